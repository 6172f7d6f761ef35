package tables

import (
	"fmt"
	"math/bits"
)

type word interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64
}

// LPM is a longest-prefix match: the first PrefixLen bits of Value. The zero
// value matches everything. Bits behind the prefix are ignored when encoding.
type LPM[T comparable] struct {
	Value     T
	PrefixLen int // in bits
}

// Ternary is a match under a mask: a bit of Value counts where Mask has it
// set. The zero value matches everything. Bits outside the mask are ignored
// when encoding.
type Ternary[T comparable] struct {
	Value, Mask T
}

// Range matches Low to High, both included, where Set. The zero value matches
// everything.
type Range[T comparable] struct {
	Low, High T
	Set       bool
}

// Between returns the range from low to high, both included.
func Between[T comparable](low, high T) Range[T] { return Range[T]{low, high, true} }

// Optional is a value that may be absent; as a match field the zero value
// matches everything.
type Optional[T comparable] struct {
	Value T
	Set   bool
}

// Some returns an Optional that holds v.
func Some[T comparable](v T) Optional[T] { return Optional[T]{v, true} }

// maxWord returns the largest number of width bits, 1 to 64.
func maxWord(width int) uint64 { return ^uint64(0) >> (64 - uint(width)) }

// prefixWord returns the mask of the first n of width bits.
func prefixWord(width, n int) uint64 { return maxWord(width) &^ (maxWord(width) >> uint(n)) }

// The norm functions return what an entry matches on, with all that does not
// matter zeroed.
func normLPM[T word](m LPM[T], width int) LPM[T] {
	if m.PrefixLen <= 0 {
		return LPM[T]{}
	}
	return LPM[T]{m.Value & T(prefixWord(width, min(m.PrefixLen, width))), m.PrefixLen}
}

func normTernary[T word](m Ternary[T]) Ternary[T] { return Ternary[T]{m.Value & m.Mask, m.Mask} }

func normRange[T word](m Range[T], width int) Range[T] {
	if !m.Set || m.Low == 0 && uint64(m.High) == maxWord(width) {
		return Range[T]{}
	}
	return m
}

func normOptional[T comparable](m Optional[T]) Optional[T] {
	if !m.Set {
		return Optional[T]{}
	}
	return m
}

// maskPrefix zeroes what lies behind the first n bits of a field of width
// bits, held big-endian and right-aligned in b.
func maskPrefix(b []byte, width, n int) {
	keep := len(b)*8 - width + n
	for i := range b {
		switch {
		case keep >= (i+1)*8:
		case keep <= i*8:
			b[i] = 0
		default:
			b[i] &= 0xff << uint((i+1)*8-keep)
		}
	}
}

// maskBytes zeroes the bits of b outside mask.
func maskBytes(b, mask []byte) {
	for i := range b {
		b[i] &= mask[i]
	}
}

// bitLen is the number of bits that the big-endian number b needs.
func bitLen(b []byte) int {
	b = trim(b)
	if len(b) == 0 {
		return 0
	}
	return len(b)*8 - bits.LeadingZeros8(b[0])
}

// trim drops leading zeros.
func trim(b []byte) []byte {
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

func isZero(b []byte) bool { return len(trim(b)) == 0 }

// appendWord appends the canonical byte string of v.
func appendWord(dst []byte, v uint64) []byte {
	for n := (bits.Len64(v|1) - 1) / 8; n >= 0; n-- {
		dst = append(dst, byte(v>>(8*uint(n))))
	}
	return dst
}

// appendBytes appends the canonical byte string of the big-endian number b.
func appendBytes(dst, b []byte) []byte {
	if b = trim(b); len(b) == 0 {
		return append(dst, 0)
	}
	return append(dst, b...)
}

// parseWord reads a byte string of a field of at most 64 bits.
func parseWord(b []byte, width int) (uint64, error) {
	if len(b) == 0 {
		return 0, errEmpty(width)
	}
	if len(b) > 8 {
		if b = trim(b); len(b) > 8 {
			return 0, errWidth(bitLen(b), width)
		}
	}
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	if n := bits.Len64(v); n > width {
		return 0, errWidth(n, width)
	}
	return v, nil
}

// parseBytes reads a byte string into dst, which is zeroed, big-endian and
// right-aligned.
func parseBytes(dst, b []byte, width int) error {
	if len(b) == 0 {
		return errEmpty(width)
	}
	if n := bitLen(b); n > width {
		return errWidth(n, width)
	}
	if len(b) > len(dst) {
		b = b[len(b)-len(dst):]
	}
	copy(dst[len(dst)-len(b):], b)
	return nil
}

func errEmpty(width int) error {
	return fmt.Errorf("empty byte string for %d bits: %w", width, ErrWidth)
}

func errWidth(have, width int) error {
	return fmt.Errorf("value of %d bits, field has %d: %w", have, width, ErrWidth)
}
