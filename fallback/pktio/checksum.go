package pktio

import (
	"encoding/binary"
	"math/bits"
)

// Numbers of RFC 791, RFC 8200 and the IANA registries of protocol numbers and
// EtherTypes.
const (
	etherLen = 14
	vlanLen  = 4

	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8

	protoHopByHop = 0
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoDstOpts  = 60
)

// finishChecksum computes the TCP or UDP checksum of an Ethernet frame whose
// sender left it to the hardware (RFC 9293 section 3.1, RFC 768, RFC 8200
// section 8.1). It reports false, and leaves the frame as it was, where the
// frame is no whole unfragmented TCP or UDP packet.
func finishChecksum(frame []byte) bool {
	if len(frame) < etherLen {
		return false
	}
	etherType, l3 := binary.BigEndian.Uint16(frame[12:]), frame[etherLen:]
	if etherType == etherTypeVLAN || etherType == etherTypeQinQ {
		if len(l3) < vlanLen {
			return false
		}
		etherType, l3 = binary.BigEndian.Uint16(l3[2:]), l3[vlanLen:]
	}
	switch etherType {
	case etherTypeIPv4:
		return finishIPv4(l3)
	case etherTypeIPv6:
		return finishIPv6(l3)
	}
	return false
}

func finishIPv4(p []byte) bool {
	if len(p) < 20 || p[0]>>4 != 4 {
		return false
	}
	header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	fragment := binary.BigEndian.Uint16(p[6:])&0x3fff != 0 // MF or an offset
	if header < 20 || total < header || total > len(p) || fragment {
		return false
	}
	return finishTransport(p[9], p[12:20], p[header:total])
}

func finishIPv6(p []byte) bool {
	if len(p) < 40 || p[0]>>4 != 6 {
		return false
	}
	length := int(binary.BigEndian.Uint16(p[4:]))
	if length > len(p)-40 {
		return false
	}
	next, rest := p[6], p[40:40+length]
	for next == protoHopByHop || next == protoRouting || next == protoDstOpts {
		if len(rest) < 8 || len(rest) < int(rest[1])*8+8 {
			return false
		}
		if next == protoRouting && rest[3] != 0 { // segments left: the sum is over the last address
			return false
		}
		next, rest = rest[0], rest[int(rest[1])*8+8:]
	}
	return finishTransport(next, p[8:40], rest)
}

// finishTransport sets the checksum of segment; addrs are source and destination
// of the pseudo-header.
func finishTransport(proto byte, addrs, segment []byte) bool {
	var at int
	switch {
	case proto == protoTCP && len(segment) >= 20:
		at = 16
	case proto == protoUDP && len(segment) >= 8:
		at = 6
	default:
		return false
	}
	segment[at], segment[at+1] = 0, 0
	sum := sum16(sum16(uint64(proto)+uint64(len(segment)), addrs), segment)
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum = ^sum & 0xffff; sum == 0 && proto == protoUDP {
		sum = 0xffff // 0 means no checksum (RFC 768)
	}
	binary.BigEndian.PutUint16(segment[at:], uint16(sum))
	return true
}

// sum16 adds b as big-endian 16-bit words to a ones' complement sum (RFC 1071),
// not folded to 16 bits.
func sum16(sum uint64, b []byte) uint64 {
	var carry uint64
	for ; len(b) >= 8; b = b[8:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
	}
	var last uint64
	for i, c := range b {
		last |= uint64(c) << (56 - 8*i)
	}
	sum, carry = bits.Add64(sum, last, carry)
	return sum>>32 + sum&0xffffffff + carry
}
