package demo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	pb "countersign/directory/proto"
	"countersign/packet"
	"countersign/tag"
)

// keyOf makes the keys of the tests once: an RSA key takes a while.
var keyOf = func() func(testing.TB, tag.Suite) *tag.IssueKey {
	made := map[tag.Suite]*tag.IssueKey{}
	return func(t testing.TB, s tag.Suite) *tag.IssueKey {
		if made[s] == nil {
			k, err := tag.GenerateKey(s)
			if err != nil {
				t.Fatal(err)
			}
			made[s] = k
		}
		return made[s]
	}
}()

// plainFrame is a TCP segment without content from the client to the server.
func plainFrame(port uint16) []byte {
	f := make([]byte, 14+20+20)
	f[12] = 8
	ip := f[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], 40)
	copy(ip[12:], netip.MustParseAddr(clientAddr).AsSlice())
	copy(ip[16:], netip.MustParseAddr(serverAddr).AsSlice())
	binary.BigEndian.PutUint16(ip[20:], port)
	binary.BigEndian.PutUint16(ip[22:], 80)
	ip[32], ip[33] = 5<<4, 0x10
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	return f
}

func sampleOf(t testing.TB, s tag.Suite, port uint16) *sample {
	t.Helper()
	f := plainFrame(port)
	var v packet.View
	if a := packet.Parse(f, packet.DefaultCarrier, &v); a != packet.None || v.Has(packet.BadChecksum) {
		t.Fatalf("the frame is no good: %v", a)
	}
	h, err := keyOf(t, s).Issue(0x1234567, 5, 99, &v.Tuple)
	if err != nil {
		t.Fatal(err)
	}
	ip, err := packet.Insert(nil, f[14:], packet.DefaultCarrier, &h)
	if err != nil {
		t.Fatal(err)
	}
	out, err := newSample(append(f[:14:14], ip...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// verify is what a verifier with the one key says of a frame on a trunk.
func verify(t testing.TB, s tag.Suite, frame []byte) string {
	t.Helper()
	var v packet.View
	switch a := packet.Parse(frame, packet.DefaultCarrier, &v); {
	case a != packet.None:
		return a.String()
	case v.Has(packet.BadChecksum):
		return "bad_checksum"
	case !v.Tagged:
		return "untagged_on_trunk"
	case v.Tag.Echoed():
		return "tag_malformed"
	case v.Tag.KeyID() != tag.KeyID{Suite: s, UNID: 0x1234567, Epoch: 5}:
		return "tag_unknown_key"
	}
	if err := keyOf(t, s).Verifier().Verify(&v.Tag, &v.Tuple); err != nil {
		return tag.Reason(err)
	}
	return "verified"
}

func TestForging(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, s := range tag.Suites {
		one, other := sampleOf(t, s, 4000), sampleOf(t, s, 4001)
		untagged, err := one.untagged()
		if err != nil {
			t.Fatal(err)
		}
		original := bytes.Clone(one.frame)
		for _, tc := range []struct {
			name  string
			frame []byte
			want  string
		}{
			{"replay", one.replay(7), "verified"},
			{"forged", one.forged(random), "tag_forged"},
			{"other session", one.withTagOf(other), "tag_forged"},
			{"own session", one.withTagOf(one), "verified"},
			{"untagged", untagged, "untagged_on_trunk"},
		} {
			t.Run(s.String()+"/"+tc.name, func(t *testing.T) {
				if got := verify(t, s, tc.frame); got != tc.want {
					t.Errorf("a verifier says %s, want %s", got, tc.want)
				}
				if _, ok := isMarked(tc.frame); !ok {
					t.Error("is not marked")
				}
			})
		}
		if n, _ := isMarked(one.replay(7)); n != 7 {
			t.Errorf("number %d, want 7", n)
		}
		if !bytes.Equal(one.frame, original) {
			t.Error("the sample was changed")
		}
	}
}

// TestFlipReason holds what the demonstration expects of every single bit
// against what verifying says.
func TestFlipReason(t *testing.T) {
	for _, s := range tag.Suites {
		t.Run(s.String(), func(t *testing.T) {
			one := sampleOf(t, s, 4000)
			known := func(id tag.KeyID) (pb.KeyState, bool) { return pb.KeyState_KEY_STATE_CURRENT, id == one.id() }
			for bit := range one.view.Tag.Len() * 8 {
				want := flipReason(&one.view.Tag, bit, known)
				if got := verify(t, s, one.flipped(bit)); got != want {
					t.Errorf("bit %d: a verifier says %s, expected is %s", bit, got, want)
				}
			}
		})
	}
}

func TestFlipToAnotherKey(t *testing.T) {
	one := sampleOf(t, tag.Siphash, 4000)
	const lowestEpochBit = 79
	for _, tc := range []struct {
		name  string
		state pb.KeyState
		want  string
	}{
		{"next", pb.KeyState_KEY_STATE_NEXT, "tag_forged"},
		{"retired", pb.KeyState_KEY_STATE_RETIRED, "tag_revoked"},
		{"revoked", pb.KeyState_KEY_STATE_REVOKED, "tag_revoked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			known := func(id tag.KeyID) (pb.KeyState, bool) { return tc.state, id.Epoch == 4 }
			if got := flipReason(&one.view.Tag, lowestEpochBit, known); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestFlipsAreDistinctAndWithinTheTag(t *testing.T) {
	for _, s := range tag.Suites {
		one := sampleOf(t, s, 4000)
		seen := map[int]bool{}
		for _, bit := range flips(&one.view.Tag) {
			if seen[bit] || bit < 0 || bit >= one.view.Tag.Len()*8 {
				t.Errorf("%v: bit %d twice or outside", s, bit)
			}
			seen[bit] = true
		}
		if want := 28*8 + min(64, s.SealedLen()*8); len(seen) != want {
			t.Errorf("%v: %d bits, want %d", s, len(seen), want)
		}
	}
}

func TestNewSampleRefuses(t *testing.T) {
	good := sampleOf(t, tag.Siphash, 4000)
	for _, tc := range []struct {
		name  string
		frame []byte
	}{
		{"nothing", nil},
		{"untagged", plainFrame(4000)},
		{"cut", good.frame[:40]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if s, err := newSample(tc.frame); err == nil {
				t.Errorf("took %x", s.frame)
			}
		})
	}
	if _, err := newSample(plainFrame(1)); !errors.Is(err, errNotTagged) {
		t.Errorf("got %v", err)
	}
}
