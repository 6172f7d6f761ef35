package p4rtserver

import (
	"math/bits"
)

// Canonical strips leading zero bytes from a big-endian value, down to one
// byte. The result shares b's memory; it is empty only if b is (P4Runtime
// specification, section 8.4).
func Canonical(b []byte) []byte {
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

// BitLen is the number of bits a big-endian value needs; 0 for zero.
func BitLen(b []byte) int {
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	if len(b) == 0 {
		return 0
	}
	return bits.Len8(b[0]) + 8*(len(b)-1)
}

// Uint64 is the value of a canonical byte string of at most 8 bytes. The upper
// bytes of longer ones are lost.
func Uint64(b []byte) uint64 {
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// AppendUint64 appends the canonical byte string of v to dst.
func AppendUint64(dst []byte, v uint64) []byte {
	for n := (max(bits.Len64(v), 1) + 7) / 8; n > 0; n-- {
		dst = append(dst, byte(v>>(8*(n-1))))
	}
	return dst
}

// PutPadded writes a canonical byte string into the whole of dst, with zeros
// in front. Bytes that do not fit are cut off in front.
func PutPadded(dst, b []byte) {
	if len(b) > len(dst) {
		b = b[len(b)-len(dst):]
	}
	n := len(dst) - len(b)
	clear(dst[:n])
	copy(dst[n:], b)
}
