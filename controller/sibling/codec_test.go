package sibling

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"countersign/controller/session"
	pb "countersign/controller/sibling/proto"
	"countersign/tag"

	"google.golang.org/protobuf/proto"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func tuple(protocol uint8, kind uint16, src, dst string, srcPort, dstPort uint16) tag.Tuple {
	t, _ := tag.NewTuple(protocol, kind, netip.MustParseAddr(src), netip.MustParseAddr(dst), srcPort, dstPort)
	return t
}

func TestCodec(t *testing.T) {
	full := session.Announcement{
		Tuple: tuple(6, tag.KindPorts, "192.0.2.9", "198.51.100.1", 40000, 443), InitiatorLow: true,
		LowZone: "outside", HighZone: "*", Issuer: "c1", Generation: 7, Expiry: epoch.Add(time.Minute),
	}
	for _, c := range []struct {
		name string
		edit func(*session.Announcement)
		err  error
	}{
		{"IPv4 TCP", func(*session.Announcement) {}, nil},
		{"IPv6 UDP", func(a *session.Announcement) {
			a.Tuple = tuple(17, tag.KindPorts, "2001:db8::1", "2001:db8::2", 53, 5353)
		}, nil},
		{"IPv4-mapped stays IPv6", func(a *session.Announcement) {
			a.Tuple = tuple(17, tag.KindPorts, "::ffff:192.0.2.1", "2001:db8::2", 53, 5353)
		}, nil},
		{"equal addresses", func(a *session.Announcement) {
			a.Tuple = tuple(6, tag.KindPorts, "192.0.2.1", "192.0.2.1", 9, 8)
		}, nil},
		{"ICMP echo", func(a *session.Announcement) {
			a.Tuple = tuple(1, tag.KindPorts, "192.0.2.1", "192.0.2.2", 77, 77)
		}, nil},
		{"GRE has no ports", func(a *session.Announcement) { a.Tuple = tuple(47, tag.KindPorts, "192.0.2.1", "192.0.2.2", 0, 0) }, nil},
		{"ICMPv6 other", func(a *session.Announcement) {
			a.Tuple = tuple(58, tag.KindICMPOther, "2001:db8::1", "2001:db8::2", 0, 0)
		}, nil},
		{"IPv6 fragment", func(a *session.Announcement) {
			a.Tuple = tuple(17, tag.KindFragment, "2001:db8::2", "2001:db8::1", 0xdead, 0xbeef)
		}, nil},
		{"IPv4 fragment", func(a *session.Announcement) {
			a.Tuple = tuple(17, tag.KindFragment, "192.0.2.2", "192.0.2.1", 0, 0xbeef)
		}, nil},
		{"deletion without an expiry", func(a *session.Announcement) { a.Deleted, a.Expiry = true, time.Time{} }, nil},
		{"zero tuple", func(a *session.Announcement) { a.Tuple = tag.Tuple{} }, ErrTuple},
		{"family 5", func(a *session.Announcement) { a.Tuple.W2 = a.Tuple.W2&^(0xff<<48) | 5<<48 }, ErrTuple},
		{"not sorted", func(a *session.Announcement) { a.Tuple.A[0] = a.Tuple.A[0]<<32 | a.Tuple.A[0]>>32 }, ErrTuple},
		{"words of another family", func(a *session.Announcement) { a.Tuple.A[3] = 1 }, ErrTuple},
		{"kind 3", func(a *session.Announcement) { a.Tuple.W2 |= 3 << 32 }, ErrTuple},
		{"ports of GRE", func(a *session.Announcement) { a.Tuple = tuple(47, tag.KindPorts, "192.0.2.1", "192.0.2.2", 0, 1) }, ErrTuple},
		{"echo with two identifiers", func(a *session.Announcement) {
			a.Tuple = tuple(1, tag.KindPorts, "192.0.2.1", "192.0.2.2", 1, 2)
		}, ErrTuple},
		{"kind 1 of TCP", func(a *session.Announcement) {
			a.Tuple = tuple(6, tag.KindICMPOther, "192.0.2.1", "192.0.2.2", 0, 0)
		}, ErrTuple},
		{"kind 1 with ports", func(a *session.Announcement) {
			a.Tuple = tuple(1, tag.KindICMPOther, "192.0.2.1", "192.0.2.2", 0, 1)
		}, ErrTuple},
		{"IPv4 identification of 17 bits", func(a *session.Announcement) {
			a.Tuple = tuple(17, tag.KindFragment, "192.0.2.2", "192.0.2.1", 1, 0)
		}, ErrTuple},
		{"multicast", func(a *session.Announcement) {
			a.Tuple = tuple(17, tag.KindPorts, "192.0.2.2", "224.0.0.251", 5353, 5353)
		}, ErrTuple},
		{"unspecified", func(a *session.Announcement) { a.Tuple = tuple(17, tag.KindPorts, "0.0.0.0", "192.0.2.1", 68, 67) }, ErrTuple},
		{"longest zone", func(a *session.Announcement) { a.LowZone = strings.Repeat("z", 64) }, nil},
		{"zone too long", func(a *session.Announcement) { a.HighZone = strings.Repeat("z", 65) }, ErrName},
		{"issuer not UTF-8", func(a *session.Announcement) { a.Issuer = "\xff" }, ErrName},
		{"generation 0", func(a *session.Announcement) { a.Generation = 0 }, ErrGeneration},
		{"generation 0 of a deletion", func(a *session.Announcement) { a.Generation, a.Deleted = 0, true }, ErrGeneration},
		{"expired", func(a *session.Announcement) { a.Expiry = epoch }, ErrExpired},
		{"no expiry", func(a *session.Announcement) { a.Expiry = time.Time{} }, ErrExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := full
			c.edit(&a)
			m, err := encode(&a, epoch)
			if !errors.Is(err, c.err) {
				t.Fatalf("encode: error %v, want %v", err, c.err)
			}
			if err != nil {
				if reasonOf(err) == "other" {
					t.Errorf("%v has no reason", err)
				}
				return
			}
			later := epoch.Add(1000 * time.Hour) // the receiver's clock
			got, err := decode(m, "s1", later)
			if err != nil {
				t.Fatal(err)
			}
			want := a
			want.Origin, want.Expiry = "s1", later.Add(max(0, a.Expiry.Sub(epoch)))
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*pb.Announcement)
		err  error
	}{
		{"no address", func(m *pb.Announcement) { m.Low = nil }, ErrTuple},
		{"address of 5 bytes", func(m *pb.Announcement) { m.High = make([]byte, 5) }, ErrTuple},
		{"mixed families", func(m *pb.Announcement) { m.High = make([]byte, 16) }, ErrTuple},
		{"not sorted", func(m *pb.Announcement) { m.Low, m.High = m.High, m.Low }, ErrTuple},
		{"protocol 256", func(m *pb.Announcement) { m.Protocol = 256 }, ErrTuple},
		{"kind 65536", func(m *pb.Announcement) { m.Kind = 65536 }, ErrTuple},
		{"port 65536", func(m *pb.Announcement) { m.LowPort = 65536 }, ErrTuple},
		{"high port 65536", func(m *pb.Announcement) { m.HighPort = 65536 }, ErrTuple},
		{"expired", func(m *pb.Announcement) { m.RemainingMs = 0 }, ErrExpired},
		{"generation 0", func(m *pb.Announcement) { m.Generation = 0 }, ErrGeneration},
		{"zone too long", func(m *pb.Announcement) { m.LowZone = strings.Repeat("z", 65) }, ErrName},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := message(1)
			if _, err := decode(m, "s1", epoch); err != nil {
				t.Fatal(err)
			}
			c.edit(m)
			if _, err := decode(m, "s1", epoch); !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
		})
	}
	t.Run("lifetime is cut", func(t *testing.T) {
		m := message(1)
		m.RemainingMs = 1 << 63
		a, err := decode(m, "s1", epoch)
		if err != nil || !a.Expiry.Equal(epoch.Add(maxRemaining)) {
			t.Errorf("expiry %v, error %v", a.Expiry, err)
		}
	})
}

// FuzzDecode: what is taken from any bytes is well formed, and encodes to the
// same again.
func FuzzDecode(f *testing.F) {
	seed, err := proto.Marshal(&pb.Batch{Sequence: 1, Announcements: []*pb.Announcement{message(1), {}, message(2)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &pb.Batch{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		for _, raw := range m.Announcements {
			a, err := decode(raw, "s1", epoch)
			if err != nil {
				if reasonOf(err) == "other" {
					t.Errorf("%v has no reason", err)
				}
				continue
			}
			if a.Origin != "s1" {
				t.Errorf("origin %q", a.Origin)
			}
			again, err := encode(&a, epoch)
			if err != nil {
				t.Fatalf("taken but not sent: %v", err)
			}
			if b, err := decode(again, "s1", epoch); err != nil || b != a {
				t.Errorf("%+v, then %+v, error %v", a, b, err)
			}
		}
	})
}
