package tag

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
)

// Kinds of a five-tuple (docs/wire.md, The message M).
const (
	KindPorts     uint16 = 0 // transport ports, an echo identifier, or 0 and 0
	KindICMPOther uint16 = 1 // ICMP and ICMPv6 other than echo
	KindFragment  uint16 = 2 // the port fields hold the identification
)

// Tuple is a sorted five-tuple with its kind, as the words of M from w2 on, so
// that a packet and its reply have equal Tuples. The zero value is no tuple.
// It is comparable, serves as a map key, and is safe to copy.
type Tuple struct {
	// W2 is protocol(8) | family(8) | kind(16) | low port(16) | high port(16),
	// most significant first.
	W2 uint64
	// A holds the addresses: IPv4 low(32) | high(32) in A[0]; IPv6 low in A[0]
	// and A[1], high in A[2] and A[3], each high half first.
	A [4]uint64
}

// NewTuple sorts a five-tuple and reports whether the source is the low side
// (also where both sides are equal). Addresses that are not both IPv4 are taken
// as IPv6. For KindFragment the ports are the halves of the 32-bit
// identification, high half first, and stay where they are.
func NewTuple(protocol uint8, kind uint16, src, dst netip.Addr, srcPort, dstPort uint16) (t Tuple, srcIsLow bool) {
	be := binary.BigEndian
	if src.Is4() && dst.Is4() {
		s, d := src.As4(), dst.As4()
		srcIsLow = t.Set4(protocol, kind, be.Uint32(s[:]), be.Uint32(d[:]), srcPort, dstPort)
		return t, srcIsLow
	}
	s, d := src.As16(), dst.As16()
	srcIsLow = t.Set6(protocol, kind, be.Uint64(s[:]), be.Uint64(s[8:]), be.Uint64(d[:]), be.Uint64(d[8:]), srcPort, dstPort)
	return t, srcIsLow
}

// Set4 is NewTuple in place, for IPv4 addresses as integers.
func (t *Tuple) Set4(protocol uint8, kind uint16, src, dst uint32, srcPort, dstPort uint16) (srcIsLow bool) {
	srcIsLow = src < dst || src == dst && (srcPort <= dstPort || kind == KindFragment)
	if !srcIsLow {
		src, dst = dst, src
		if kind != KindFragment {
			srcPort, dstPort = dstPort, srcPort
		}
	}
	t.W2 = uint64(protocol)<<56 | 4<<48 | uint64(kind)<<32 | uint64(srcPort)<<16 | uint64(dstPort)
	t.A[0], t.A[1], t.A[2], t.A[3] = uint64(src)<<32|uint64(dst), 0, 0, 0
	return srcIsLow
}

// Set6 is NewTuple in place, for IPv6 addresses as pairs of integers.
func (t *Tuple) Set6(protocol uint8, kind uint16, srcHi, srcLo, dstHi, dstLo uint64, srcPort, dstPort uint16) (srcIsLow bool) {
	switch {
	case srcHi != dstHi:
		srcIsLow = srcHi < dstHi
	case srcLo != dstLo:
		srcIsLow = srcLo < dstLo
	default:
		srcIsLow = srcPort <= dstPort || kind == KindFragment
	}
	if !srcIsLow {
		srcHi, srcLo, dstHi, dstLo = dstHi, dstLo, srcHi, srcLo
		if kind != KindFragment {
			srcPort, dstPort = dstPort, srcPort
		}
	}
	t.W2 = uint64(protocol)<<56 | 6<<48 | uint64(kind)<<32 | uint64(srcPort)<<16 | uint64(dstPort)
	t.A[0], t.A[1], t.A[2], t.A[3] = srcHi, srcLo, dstHi, dstLo
	return srcIsLow
}

// Protocol is the transport protocol of M.
func (t *Tuple) Protocol() uint8 { return uint8(t.W2 >> 56) }

// Family is 4 or 6.
func (t *Tuple) Family() uint8 { return uint8(t.W2 >> 48) }

// Kind is one of the Kind constants.
func (t *Tuple) Kind() uint16 { return uint16(t.W2 >> 32) }

// LowPort is the port of the low side, or the identification's high half.
func (t *Tuple) LowPort() uint16 { return uint16(t.W2 >> 16) }

// HighPort is the port of the high side, or the identification's low half.
func (t *Tuple) HighPort() uint16 { return uint16(t.W2) }

// Low is the numerically lower address.
func (t *Tuple) Low() netip.Addr {
	if t.Family() == 4 {
		return addr4(uint32(t.A[0] >> 32))
	}
	return addr6(t.A[0], t.A[1])
}

// High is the numerically higher address.
func (t *Tuple) High() netip.Addr {
	if t.Family() == 4 {
		return addr4(uint32(t.A[0]))
	}
	return addr6(t.A[2], t.A[3])
}

func addr4(a uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], a)
	return netip.AddrFrom4(b)
}

func addr6(hi, lo uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}

// String shows protocol, both ends and, where it is not 0, the kind.
func (t Tuple) String() string {
	switch t.Kind() {
	case KindPorts:
		return fmt.Sprintf("%d %v %v", t.Protocol(), netip.AddrPortFrom(t.Low(), t.LowPort()), netip.AddrPortFrom(t.High(), t.HighPort()))
	case KindICMPOther:
		return fmt.Sprintf("%d %v %v icmp", t.Protocol(), t.Low(), t.High())
	default:
		return fmt.Sprintf("%d %v %v fragment %08x", t.Protocol(), t.Low(), t.High(), uint32(t.W2))
	}
}

// words is how many words of A the family uses.
func (t *Tuple) words() int {
	if t.Family() == 4 {
		return 1
	}
	return len(t.A)
}

// FlowHash is h of docs/wire.md, Carrier: the CRC-32 (IEEE 802.3) of the Tuple's
// words in network byte order. It does not allocate.
func (t *Tuple) FlowHash() uint32 {
	// hash/crc32 calls through a function variable, which would move a buffer
	// on the stack to the heap.
	crc := crcWord(^uint32(0), t.W2)
	for _, w := range t.A[:t.words()] {
		crc = crcWord(crc, w)
	}
	return ^crc
}

func crcWord(crc uint32, w uint64) uint32 {
	for shift := 56; shift >= 0; shift -= 8 {
		crc = crc32.IEEETable[byte(crc)^byte(w>>shift)] ^ crc>>8
	}
	return crc
}
