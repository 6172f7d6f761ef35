// Package tag implements the session identification information of docs/wire.md,
// version 1: its layout, the message M over the sorted five-tuple, and the
// three suites that issue and verify it. It knows nothing of whole packets;
// package packet finds, inserts and removes tags in them.
package tag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Version is the only tag version (docs/wire.md, Layout).
const Version = 1

// FlagEcho is the E flag: the tag was returned by a host that received it.
// It is the only flag of version 1 and is not part of M.
const FlagEcho = 0x01

// HeaderLen is the length in bytes of a tag without its sealed nonce.
const HeaderLen = 28

// MaxLen is the length in bytes of the longest tag, of suite rsa2048.
const MaxLen = HeaderLen + rsaLen

// Suite is a way to make and verify a tag. The zero value is no suite.
type Suite uint8

// The suites of docs/wire.md.
const (
	Siphash Suite = 1 // SipHash-2-4 digest, no sealed nonce
	Ed25519 Suite = 2 // SipHash-2-4 filter digest and an Ed25519 signature
	RSA2048 Suite = 3 // SHA-256 digest and a random number sealed with RSA-2048
)

// Suites lists all suites in ascending order.
var Suites = [...]Suite{Siphash, Ed25519, RSA2048}

var suiteNames = [...]string{Siphash: "siphash", Ed25519: "ed25519", RSA2048: "rsa2048"}

var tagLens = [...]uint16{Siphash: HeaderLen, Ed25519: HeaderLen + 64, RSA2048: MaxLen}

// Valid reports whether s is a suite of this version.
func (s Suite) Valid() bool { return s >= Siphash && s <= RSA2048 }

// String returns the name of the suite as configuration and vectors have it.
func (s Suite) String() string {
	if s.Valid() {
		return suiteNames[s]
	}
	return fmt.Sprintf("suite(%d)", uint8(s))
}

// ParseSuite is the inverse of String; it returns ErrSuite for other names.
func ParseSuite(name string) (Suite, error) {
	for _, s := range Suites {
		if suiteNames[s] == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("%w %q, want siphash, ed25519 or rsa2048", ErrSuite, name)
}

// MarshalText gives the suite's name, ErrSuite where it has none.
func (s Suite) MarshalText() ([]byte, error) {
	if !s.Valid() {
		return nil, fmt.Errorf("%w %d", ErrSuite, uint8(s))
	}
	return []byte(suiteNames[s]), nil
}

// UnmarshalText is ParseSuite in place.
func (s *Suite) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSuite(string(text))
	return err
}

// TagLen is the length in bytes of a whole tag: 28, 92 or 284. It is 0 for an
// unknown suite.
func (s Suite) TagLen() int {
	if !s.Valid() {
		return 0
	}
	return int(tagLens[s])
}

// SealedLen is the length in bytes of the sealed nonce: 0, 64 or 256.
func (s Suite) SealedLen() int { return max(s.TagLen()-HeaderLen, 0) }

// Words is the tag's Length field: TagLen in words of 4 bytes.
func (s Suite) Words() uint8 { return uint8(s.TagLen() / 4) }

// KeyID names a key everywhere. Epochs and UNIDs are compared for equality
// only. It is comparable and serves as a map key.
type KeyID struct {
	Suite Suite  // which algorithm the key is for
	UNID  uint32 // wire identity of the issuer
	Epoch uint16 // key epoch of the issuer
}

// String returns suite/unid/epoch, the UNID in eight hexadecimal digits.
func (id KeyID) String() string {
	return fmt.Sprintf("%v/%08x/%d", id.Suite, id.UNID, id.Epoch)
}

// Header is a decoded tag. The zero value is not a valid tag. It holds no
// lock; Sealed aliases the bytes it was parsed from.
type Header struct {
	NextHeader uint8  // protocol that the carrier stands in for
	Length     uint8  // whole tag in words of 4 bytes
	Version    uint8  // 4 bits
	Suite      Suite  // 4 bits
	Flags      uint8  // FlagEcho or 0
	UNID       uint32 // wire identity of the issuer
	Epoch      uint16 // key epoch of the issuer
	Reserved   uint16 // 0
	Nonce      uint64 // 0 in suite rsa2048
	Digest     uint64
	Sealed     []byte // Suite.SealedLen() bytes
}

// NewHeader returns a tag of id with everything filled in that does not depend
// on a packet or key: NextHeader, Nonce, Digest and Sealed are zero.
func NewHeader(id KeyID) Header {
	return Header{Length: id.Suite.Words(), Version: Version, Suite: id.Suite, UNID: id.UNID, Epoch: id.Epoch}
}

// KeyID returns the triple that names the key of h.
func (h *Header) KeyID() KeyID { return KeyID{h.Suite, h.UNID, h.Epoch} }

// Echoed reports whether the E flag is set.
func (h *Header) Echoed() bool { return h.Flags&FlagEcho != 0 }

// Len is the length in bytes of the tag on the wire.
func (h *Header) Len() int { return HeaderLen + len(h.Sealed) }

// SealedCRC is the CRC-32 (IEEE 802.3) of the sealed bytes, part of the key of
// tags that the CPU has verified. It is 0 for suite siphash.
func (h *Header) SealedCRC() uint32 { return crc32.ChecksumIEEE(h.Sealed) }

// ParseHeader decodes the tag at the start of b, which must end where the
// packet ends. carrierProtocol is the alliance's carrier protocol (253 by
// default, even with carrier udp) and family is 4 or 6; both decide which next
// headers are malformed. Every error is ErrMalformed, and none allocates.
func ParseHeader(b []byte, carrierProtocol, family uint8) (Header, error) {
	var h Header
	err := h.Decode(b, carrierProtocol, family)
	return h, err
}

// Decode is ParseHeader into h, for callers that keep one Header. After an
// error h holds what was read.
func (h *Header) Decode(b []byte, carrierProtocol, family uint8) error {
	if len(b) < HeaderLen {
		return errShort
	}
	h.NextHeader = b[0]
	h.Length = b[1]
	h.Version = b[2] >> 4
	h.Suite = Suite(b[2] & 0xf)
	h.Flags = b[3]
	h.UNID = binary.BigEndian.Uint32(b[4:])
	h.Epoch = binary.BigEndian.Uint16(b[8:])
	h.Reserved = binary.BigEndian.Uint16(b[10:])
	h.Nonce = binary.BigEndian.Uint64(b[12:])
	h.Digest = binary.BigEndian.Uint64(b[20:])
	h.Sealed = nil
	n := h.Suite.TagLen()
	switch {
	case h.Version != Version:
		return errVersion
	case n == 0:
		return errSuite
	case int(h.Length)*4 != n:
		return errLength
	case h.Flags&^FlagEcho != 0:
		return errFlags
	case h.Reserved != 0:
		return errReserved
	case h.Suite == RSA2048 && h.Nonce != 0:
		return errNonce
	case h.NextHeader == 0 || h.NextHeader == carrierProtocol ||
		family == 4 && (h.NextHeader == 43 || h.NextHeader == 60):
		return errNextHeader
	}
	if len(b) < n {
		return errShort
	}
	h.Sealed = b[HeaderLen:n:n]
	return nil
}

// Put writes the tag to the first h.Len() bytes of b, which must be there, and
// returns that length. It writes the fields as they stand, valid or not.
func (h *Header) Put(b []byte) int {
	_ = b[HeaderLen-1]
	b[0] = h.NextHeader
	b[1] = h.Length
	b[2] = h.Version<<4 | uint8(h.Suite)&0xf
	b[3] = h.Flags
	binary.BigEndian.PutUint32(b[4:], h.UNID)
	binary.BigEndian.PutUint16(b[8:], h.Epoch)
	binary.BigEndian.PutUint16(b[10:], h.Reserved)
	binary.BigEndian.PutUint64(b[12:], h.Nonce)
	binary.BigEndian.PutUint64(b[20:], h.Digest)
	return HeaderLen + copy(b[HeaderLen:], h.Sealed)
}

// AppendTo appends the tag as it is on the wire to dst.
func (h *Header) AppendTo(dst []byte) []byte {
	var b [HeaderLen]byte
	fixed := *h
	fixed.Sealed = nil
	fixed.Put(b[:])
	return append(append(dst, b[:]...), h.Sealed...)
}

// Sentinel errors. The text of those that drop a packet begins with the reason
// name of docs/wire.md.
var (
	ErrMalformed       = errors.New("tag_malformed")
	ErrMisplaced       = errors.New("tag_misplaced")
	ErrFragmented      = errors.New("tag_fragmented")
	ErrOnEdge          = errors.New("tag_on_edge")
	ErrUntaggedOnTrunk = errors.New("untagged_on_trunk")
	ErrUnknownKey      = errors.New("tag_unknown_key")
	ErrRevoked         = errors.New("tag_revoked")
	ErrForged          = errors.New("tag_forged")
	ErrUnverified      = errors.New("tag_unverified")

	ErrSuite = errors.New("unknown suite")
	ErrKey   = errors.New("unusable key")
)

// The malformed tags, made once so that a flood of them allocates nothing.
var (
	errShort      = fmt.Errorf("%w: runs past the end of the packet", ErrMalformed)
	errVersion    = fmt.Errorf("%w: version is not %d", ErrMalformed, Version)
	errSuite      = fmt.Errorf("%w: unknown suite", ErrMalformed)
	errLength     = fmt.Errorf("%w: length does not fit the suite", ErrMalformed)
	errFlags      = fmt.Errorf("%w: unknown flag", ErrMalformed)
	errReserved   = fmt.Errorf("%w: reserved field is not 0", ErrMalformed)
	errNonce      = fmt.Errorf("%w: nonce of suite rsa2048 is not 0", ErrMalformed)
	errNextHeader = fmt.Errorf("%w: next header not allowed", ErrMalformed)
)

// Reason returns the reason name of docs/wire.md that err stands for, "" where it
// stands for none.
func Reason(err error) string {
	for _, e := range [...]error{
		ErrMalformed, ErrMisplaced, ErrFragmented, ErrOnEdge, ErrUntaggedOnTrunk,
		ErrUnknownKey, ErrRevoked, ErrForged, ErrUnverified,
	} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return ""
}
