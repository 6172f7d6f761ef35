package capture

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

var at = time.Date(2026, 2, 3, 4, 5, 6, 789123000, time.UTC)

var payloads = [][]byte{{1, 2, 3}, bytes.Repeat([]byte{7}, 1500), {}, {9}}

func pcapOf(t testing.TB, link layers.LinkType) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(1000, link); err != nil { // less than the packets have, as some writers do
		t.Fatal(err)
	}
	for _, p := range payloads {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(p), Length: len(p) + 1}, p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func pcapngOf(t testing.TB, link layers.LinkType) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, link)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range payloads {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(p), Length: len(p) + 1}, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ng writes pcapng blocks of either byte order, right or wrong.
type ng struct {
	binary.AppendByteOrder
	b []byte
}

func newNg(order binary.AppendByteOrder) *ng {
	g := &ng{AppendByteOrder: order}
	body := order.AppendUint32(nil, byteOrderMagic)
	body = order.AppendUint16(order.AppendUint16(body, 1), 0)
	return g.block(blockSection, order.AppendUint64(body, ^uint64(0)))
}

func (g *ng) block(kind uint32, body []byte) *ng {
	for len(body)%4 != 0 {
		body = append(slices.Clip(body), 0)
	}
	n := uint32(len(body) + 12)
	g.b = g.AppendUint32(g.AppendUint32(g.b, kind), n)
	g.b = g.AppendUint32(append(g.b, body...), n)
	return g
}

func (g *ng) iface(link uint16, snap uint32, options ...byte) *ng {
	body := g.AppendUint16(g.AppendUint16(nil, link), 0)
	return g.block(blockInterface, append(g.AppendUint32(body, snap), options...))
}

func (g *ng) enhanced(iface uint32, stamp uint64, captured uint32, data ...byte) *ng {
	body := g.AppendUint32(nil, iface)
	body = g.AppendUint32(g.AppendUint32(body, uint32(stamp>>32)), uint32(stamp))
	body = g.AppendUint32(g.AppendUint32(body, captured), uint32(len(data)))
	return g.block(blockEnhanced, append(body, data...))
}

func readAll(b []byte) (packets []Packet, err error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	for {
		p, err := r.Next()
		if err != nil {
			if _, again := r.Next(); again != err {
				return packets, errors.New("the error did not come again")
			}
			if err == io.EOF {
				err = nil
			}
			return packets, err
		}
		packets = append(packets, p)
	}
}

func TestReadBothFormats(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(pcapOf(t, layers.LinkTypeEthernet)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		b        []byte
		ethernet bool
	}{
		{"pcap, Ethernet", pcapOf(t, layers.LinkTypeEthernet), true},
		{"pcap, raw IP", pcapOf(t, layers.LinkTypeRaw), false},
		{"pcap, raw IP of OpenBSD", pcapOf(t, 14), false},
		{"pcap, gzip", zipped.Bytes(), true},
		{"pcapng, Ethernet", pcapngOf(t, layers.LinkTypeEthernet), true},
		{"pcapng, raw IPv6", pcapngOf(t, layers.LinkTypeIPv6), false},
	} {
		got, err := readAll(c.b)
		if err != nil || len(got) != len(payloads) {
			t.Errorf("%s: %d packets, %v", c.name, len(got), err)
			continue
		}
		for i, p := range got {
			if p.Number != i+1 || p.Ethernet != c.ethernet || p.Length != len(payloads[i])+1 || !bytes.Equal(p.Data, payloads[i]) ||
				!p.Time.Equal(at.Truncate(time.Microsecond)) {
				t.Errorf("%s: packet %+v", c.name, p)
			}
		}
	}
}

func TestPcapngForms(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		option := func(code uint16, v ...byte) []byte {
			b := order.AppendUint16(order.AppendUint16(nil, code), uint16(len(v)))
			b = append(b, v...)
			for len(b)%4 != 0 {
				b = append(b, 0)
			}
			return b
		}
		g := newNg(order).
			iface(1, 0).
			iface(101, 2, option(optionTimeResolution, 9)...).
			iface(1, 0, slices.Concat(option(2, 'e', 't', 'h', '0'), option(optionTimeResolution, 0x80|10), option(optionTimeOffset, order.AppendUint64(nil, 100)...), option(0), []byte{0xff})...).
			block(0x0bad, []byte{1, 2, 3}).
			enhanced(0, 1_500_000, 2, 0xaa, 0xbb).
			enhanced(1, 1_500_000_000, 1, 0xcc, 0xdd).
			enhanced(2, 1536, 1, 0xee).
			enhanced(0, ^uint64(0), 1, 0xff)
		obsolete := order.AppendUint16(order.AppendUint16(nil, 1), 0)
		obsolete = order.AppendUint32(order.AppendUint32(obsolete, 0), 7)
		obsolete = order.AppendUint32(order.AppendUint32(obsolete, 1), 1)
		g.block(blockObsolete, append(obsolete, 0x11))
		g.b = append(g.b, newNg(order).iface(101, 2).block(blockSimple, append(order.AppendUint32(nil, 3), 1, 2, 3)).b...)

		got, err := readAll(g.b)
		if err != nil {
			t.Errorf("%v: %v", order, err)
		}
		want := []Packet{
			{1, 0, time.Unix(1, 5e8).UTC(), true, 2, []byte{0xaa, 0xbb}},
			{2, 1, time.Unix(1, 5e8).UTC(), false, 2, []byte{0xcc}},
			{3, 2, time.Unix(101, 5e8).UTC(), true, 1, []byte{0xee}},
			{4, 0, time.Time{}, true, 1, []byte{0xff}},
			{5, 1, time.Unix(0, 7).UTC(), false, 1, []byte{0x11}},
			{6, 0, time.Time{}, false, 3, []byte{1, 2}},
		}
		if !slices.EqualFunc(got, want, func(a, b Packet) bool {
			same := bytes.Equal(a.Data, b.Data) && a.Time.Equal(b.Time)
			return same && a.Number == b.Number && a.Interface == b.Interface && a.Ethernet == b.Ethernet && a.Length == b.Length
		}) {
			t.Errorf("%v: %+v", order, got)
		}
	}
}

func TestDamagedCaptures(t *testing.T) {
	pcap, pcapng := pcapOf(t, layers.LinkTypeEthernet), pcapngOf(t, layers.LinkTypeEthernet)
	le := func() *ng { return newNg(binary.LittleEndian) }
	one := func() *ng { return le().iface(1, 0).enhanced(0, 1, 1, 1) }
	hugePcap := slices.Clone(pcap[:24+16])
	binary.LittleEndian.PutUint32(hugePcap[24+8:], 1<<31)
	binary.LittleEndian.PutUint32(hugePcap[24+12:], 1<<31)
	badTrailer := slices.Clone(one().b)
	badTrailer[len(badTrailer)-4]++
	for _, c := range []struct {
		name    string
		b       []byte
		packets int
		want    string
	}{
		{"empty", nil, 0, "shorter than a file header"},
		{"text", []byte("this is no capture, whatever it says"), 0, "not a readable capture"},
		{"pcap header cut", pcap[:20], 0, "not a readable capture"},
		{"pcap of Wi-Fi", pcapOf(t, layers.LinkTypeIEEE802_11), 0, "link type 105"},
		{"pcap record header cut", pcap[:24+16+3+8], 1, "packet 2: not a readable capture: the file ends within it"},
		{"pcap data missing", pcap[:24+16], 0, "packet 1: not a readable capture: the file ends within it"},
		{"pcap data cut", pcap[:24+16+1], 0, "packet 1: not a readable capture: the file ends within it"},
		{"pcap of 2 GiB in a packet", hugePcap, 0, "packet 1: not a readable capture: capture length"},
		{"pcapng cut", pcapng[:len(pcapng)-1], 3, "packet 4: not a readable capture: the file ends within it"},
		{"pcapng cut between lengths", pcapng[:len(pcapng)-30], 3, "packet 4: "},
		{"pcapng section cut", le().b[:10], 0, "packet 1: not a readable capture: the file ends within it"},
		{"pcapng byte order", func() []byte { b := le().b; b[8] = 0; return b }(), 0, "byte-order magic"},
		{"pcapng block too short", append(one().b, 6, 0, 0, 0, 8, 0, 0, 0), 1, "packet 2: "},
		{"pcapng block not in words", append(one().b, 6, 0, 0, 0, 33, 0, 0, 0), 1, "packet 2: "},
		{"pcapng block of 4 GiB", append(one().b, 6, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff), 1, "packet 2: "},
		{"pcapng trailer", badTrailer, 0, "ends as one of"},
		{"pcapng packet without interface", le().enhanced(0, 1, 1, 1).b, 0, "interface 0 of 0"},
		{"pcapng simple packet without interface", le().block(blockSimple, zeros(8)).b, 0, "interface 0 of 0"},
		{"pcapng interface out of range", one().enhanced(1<<31, 1, 1, 1).b, 1, "interface 2147483648 of 1"},
		{"pcapng captured too much", one().enhanced(0, 1, 5, 1).b, 1, "5 bytes captured"},
		{"pcapng captured 4 GiB", one().enhanced(0, 1, ^uint32(0), 1).b, 1, "bytes captured"},
		{"pcapng simple captured too much", one().block(blockSimple, []byte{9, 0, 0, 0, 1}).b, 1, "9 bytes captured"},
		{"pcapng enhanced too short", one().block(blockEnhanced, zeros(16)).b, 1, "block of type 6 with 16 bytes"},
		{"pcapng obsolete too short", one().block(blockObsolete, zeros(16)).b, 1, "block of type 2 with 16 bytes"},
		{"pcapng simple too short", one().block(blockSimple, nil).b, 1, "block of type 3 with 0 bytes"},
		{"pcapng interface too short", le().block(blockInterface, zeros(4)).b, 0, "block of type 1 with 4 bytes"},
		{"pcapng resolution 10^20", le().iface(1, 0, 9, 0, 1, 0, 20, 0, 0, 0).b, 0, "resolution"},
		{"pcapng resolution 2^64", le().iface(1, 0, 9, 0, 1, 0, 0x80|64, 0, 0, 0).b, 0, "resolution"},
		{"pcapng of USB", le().iface(220, 0).enhanced(0, 1, 1, 1).b, 0, "link type 220"},
	} {
		got, err := readAll(c.b)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) || len(got) != c.packets {
			t.Errorf("%s: %d packets, %v, want %d, %q", c.name, len(got), err, c.packets, c.want)
		}
	}
	many := le()
	for range maxInterfaces + 1 {
		many.iface(1, 0)
	}
	if _, err := readAll(many.b); !errors.Is(err, ErrFormat) {
		t.Errorf("too many interfaces: %v", err)
	}
}

func zeros(n int) []byte { return make([]byte, n) }

func FuzzReader(f *testing.F) {
	f.Add(pcapOf(f, layers.LinkTypeEthernet))
	f.Add(pcapngOf(f, layers.LinkTypeRaw))
	f.Add(newNg(binary.BigEndian).iface(1, 0, 9, 0, 1, 0, 20, 0, 0, 0).enhanced(0, 1, 1, 1).b)
	f.Fuzz(func(t *testing.T, b []byte) {
		packets, err := readAll(b)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
		for _, p := range packets {
			if _, err := p.Time.MarshalText(); err != nil || len(p.Data) > MaxPacket {
				t.Fatalf("%+v, %v", p, err)
			}
		}
	})
}
