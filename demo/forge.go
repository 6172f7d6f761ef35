package demo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	pb "countersign/directory/proto"
	"countersign/packet"
	"countersign/tag"
)

// marker is the type of service of injected packets: no data plane changes it,
// no tag covers it, and nothing else in the demonstration has it.
const marker = 0xb8

// attackerMAC is the source of injected frames, so that no bridge takes their
// origin for c1's.
var attackerMAC = [6]byte{0x06, 0, 0, 0, 0, 0x66}

var errNotTagged = errors.New("not a tagged TCP packet over IPv4")

// sample is a frame with a valid tag as it was on a trunk. It is not changed by
// what is made from it.
type sample struct {
	frame []byte
	view  packet.View
}

// newSample takes a copy of a tagged frame of TCP over IPv4.
func newSample(frame []byte) (*sample, error) {
	s := &sample{frame: bytes.Clone(frame)}
	if a := packet.Parse(s.frame, packet.DefaultCarrier, &s.view); a != packet.None {
		return nil, a.Err()
	}
	if v := &s.view; v.Family != 4 || !v.Tagged || v.Protocol != 6 || v.UDPCarrier {
		return nil, errNotTagged
	}
	s.frame = s.frame[:s.view.End]
	return s, nil
}

// id is the key that the tag is under.
func (s *sample) id() tag.KeyID { return s.view.Tag.KeyID() }

// tagOf is the tag's bytes in a frame of the sample's layout.
func (s *sample) tagOf(frame []byte) []byte {
	return frame[s.view.Place : s.view.Place+s.view.Tag.Len()]
}

// replay is the sample marked, numbered, and with a TCP checksum that is wrong,
// so that the server's kernel neither takes it for a packet of the connection
// nor answers it.
func (s *sample) replay(number uint16) []byte {
	f := bytes.Clone(s.frame)
	copy(f[6:], attackerMAC[:])
	f[s.view.L4+16] ^= 0x5a
	ip := f[s.view.L3:]
	put := func(at int, value uint16) {
		sum := binary.BigEndian.Uint16(ip[10:])
		sum = packet.UpdateChecksum(sum, binary.BigEndian.Uint16(ip[at:]), value)
		binary.BigEndian.PutUint16(ip[at:], value)
		binary.BigEndian.PutUint16(ip[10:], sum)
	}
	put(0, uint16(ip[0])<<8|marker)
	put(4, number)
	return f
}

// flipped is the replay with one bit of its tag the other way; bit 0 is the
// most significant of the first byte.
func (s *sample) flipped(bit int) []byte {
	f := s.replay(uint16(bit))
	s.tagOf(f)[bit/8] ^= 0x80 >> (bit % 8)
	return f
}

// forged is the replay with everything in its tag that needs a key made up.
func (s *sample) forged(r *rand.Rand) []byte {
	f := s.replay(0)
	t := s.tagOf(f)
	from := 12 // the nonce
	if s.view.Tag.Suite == tag.RSA2048 {
		from = 20 // it must be 0
	}
	for i := from; i < len(t); i++ {
		t[i] = byte(r.Uint32())
	}
	return f
}

// withTagOf is the replay under the tag of another session.
func (s *sample) withTagOf(other *sample) []byte {
	f := s.replay(0)
	copy(s.tagOf(f), other.tagOf(other.frame))
	return f
}

// untagged is the replay without its tag.
func (s *sample) untagged() ([]byte, error) {
	f := s.replay(0)
	ip, err := packet.Strip(nil, f[s.view.L3:], packet.DefaultCarrier)
	if err != nil {
		return nil, err
	}
	return append(f[:s.view.L3:s.view.L3], ip...), nil
}

// isMarked reports whether a frame is one that was injected, and its number.
func isMarked(frame []byte) (number uint16, ok bool) {
	if len(frame) < 34 || frame[12] != 8 || frame[13] != 0 || frame[15] != marker {
		return 0, false
	}
	return binary.BigEndian.Uint16(frame[18:]), true
}

// flipReason is why a verifier drops a tag with that bit flipped on a trunk
// (docs/wire.md, Malformed and Verifying). known tells the state of a key,
// because a flipped epoch may be another one of the issuer's.
func flipReason(t *tag.Header, bit int, known func(tag.KeyID) (pb.KeyState, bool)) string {
	id := t.KeyID()
	switch octet := bit / 8; {
	case octet == 0:
		return "tag_forged" // the next header is part of M
	case octet < 4, octet == 10, octet == 11:
		return "tag_malformed" // length, version, suite, flags, reserved
	case octet < 8:
		id.UNID ^= 1 << (63 - bit)
	case octet < 10:
		id.Epoch ^= 1 << (79 - bit)
	case octet < 20 && t.Suite == tag.RSA2048:
		return "tag_malformed" // its nonce is 0
	default:
		return "tag_forged"
	}
	switch state, ok := known(id); {
	case !ok:
		return "tag_unknown_key"
	case state == pb.KeyState_KEY_STATE_RETIRED || state == pb.KeyState_KEY_STATE_REVOKED:
		return "tag_revoked"
	}
	return "tag_forged"
}

// flips are the bits to flip: all of the header, and of the sealed nonce one in
// each of its 64 parts.
func flips(t *tag.Header) (bits []int) {
	for bit := range tag.HeaderLen * 8 {
		bits = append(bits, bit)
	}
	sealed := len(t.Sealed) * 8
	for i := range min(64, sealed) {
		bits = append(bits, tag.HeaderLen*8+i*sealed/64+i%8)
	}
	return bits
}

// mismatch says how what was counted differs from what was expected, among the
// reasons that concern tags; nothing where it does not.
func mismatch(want, got map[string]int64) error {
	var errs []error
	for _, reason := range tagReasons {
		if got[reason] != want[reason] {
			errs = append(errs, fmt.Errorf("%d dropped as %s, want %d", got[reason], reason, want[reason]))
		}
	}
	return errors.Join(errs...)
}

var tagReasons = []string{
	"tag_on_edge", "untagged_on_trunk", "tag_malformed", "tag_misplaced", "tag_fragmented", "tag_unknown_key",
	"tag_revoked", "tag_forged", "tag_replayed",
}
