package tag

import (
	"encoding/binary"

	"github.com/dchest/siphash"
)

// MaxMessageLen is the length in bytes of M for IPv6; for IPv4 it is 32.
const MaxMessageLen = 56

// Word0 is w0 of M: version(4) | suite(4) | flags(8) | epoch(16) | unid(32),
// with E cleared.
func (h *Header) Word0() uint64 {
	return uint64(h.Version)<<60 | uint64(h.Suite&0xf)<<56 | uint64(h.Flags&^FlagEcho)<<48 |
		uint64(h.Epoch)<<32 | uint64(h.UNID)
}

// Word0 is w0 of M for a tag of this version without flags.
func (id KeyID) Word0() uint64 {
	return Version<<60 | uint64(id.Suite&0xf)<<56 | uint64(id.Epoch)<<32 | uint64(id.UNID)
}

// Message appends M to dst: 32 bytes for IPv4, 56 for IPv6. nonce is the
// tag's, for suite rsa2048 the random number that its seal holds.
func Message(dst []byte, w0, nonce uint64, t *Tuple) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, w0)
	dst = le.AppendUint64(dst, nonce)
	dst = le.AppendUint64(dst, t.W2)
	for _, w := range t.A[:t.words()] {
		dst = le.AppendUint64(dst, w)
	}
	return dst
}

// SipHash is SipHash-2-4 of M under the key (k0, k1) without allocation: the
// digest of suite siphash and the filter digest of suite ed25519.
func SipHash(k0, k1, w0, nonce uint64, t *Tuple) uint64 {
	var b [MaxMessageLen]byte
	le := binary.LittleEndian
	le.PutUint64(b[0:], w0)
	le.PutUint64(b[8:], nonce)
	le.PutUint64(b[16:], t.W2)
	le.PutUint64(b[24:], t.A[0])
	if t.Family() == 4 {
		return siphash.Hash(k0, k1, b[:32])
	}
	le.PutUint64(b[32:], t.A[1])
	le.PutUint64(b[40:], t.A[2])
	le.PutUint64(b[48:], t.A[3])
	return siphash.Hash(k0, k1, b[:])
}
