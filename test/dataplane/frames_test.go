package dataplane

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"countersign/packet"
)

// A frame is written down as bytes, because most of them must not be what a
// builder of correct packets would make.

const (
	hostMAC   = "\x02\x00\x00\x00\x00\x01"
	switchMAC = "\x02\x00\x00\x00\x00\x02"
)

const (
	protoICMP, protoTCP, protoUDP, protoICMPv6 = 1, 6, 17, 58

	fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

// eth puts an Ethernet header on an IP packet, by its version, and any 802.1Q
// tag.
func eth(ip []byte, vlan ...int) []byte {
	etherType := 0x0800
	if len(ip) > 0 && ip[0]>>4 == 6 {
		etherType = 0x86dd
	}
	return ethType(etherType, ip, vlan...)
}

func ethType(etherType int, payload []byte, vlan ...int) []byte {
	b := []byte(switchMAC + hostMAC)
	for _, v := range vlan {
		b = append(append(b, 0x81, 0x00), be16(v)...)
	}
	return cat(b, be16(etherType), payload)
}

type ip4 struct {
	src, dst string
	proto    byte
	ttl      byte // 0 means 64
	id, frag int  // frag with its flags
	options  []byte
}

// with makes the packet, with a correct checksum.
func (h ip4) with(payload ...[]byte) []byte {
	p := cat(payload...)
	n := 20 + len(h.options)
	if h.ttl == 0 {
		h.ttl = 64
	}
	src, dst := netip.MustParseAddr(h.src).As4(), netip.MustParseAddr(h.dst).As4()
	b := cat([]byte{0x40 | byte(n/4), 0}, be16(n+len(p)), be16(h.id), be16(h.frag), []byte{h.ttl, h.proto, 0, 0}, src[:], dst[:], h.options, p)
	return mend(b)
}

// mend makes an IPv4 header's checksum right.
func mend(b []byte) []byte {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^sum(b[:int(b[0]&15)*4], 0))
	return b
}

// sum is the one's complement sum of RFC 1071.
func sum(b []byte, s uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

type ip6 struct {
	src, dst string
	next     byte
	hops     byte // 0 means 64
	label    uint32
}

func (h ip6) with(payload ...[]byte) []byte {
	p := cat(payload...)
	if h.hops == 0 {
		h.hops = 64
	}
	src, dst := netip.MustParseAddr(h.src).As16(), netip.MustParseAddr(h.dst).As16()
	return cat(be32(6<<28|h.label), be16(len(p)), []byte{h.next, h.hops}, src[:], dst[:], p)
}

func udp(src, dst int, payload ...[]byte) []byte {
	p := cat(payload...)
	return cat(be16(src), be16(dst), be16(8+len(p)), be16(0), p)
}

// tcp makes a segment whose checksum is that of the packet it is put into by
// tcp4 or tcp6.
func tcp(src, dst int, flags byte, options []byte, payload ...[]byte) []byte {
	return cat(be16(src), be16(dst), be32(1), be32(2), []byte{byte(5+len(options)/4) << 4, flags}, be16(4096), be16(0), be16(0), options, cat(payload...))
}

func tcp4(src, dst string, segment []byte) []byte {
	segment = bytes.Clone(segment)
	a, b := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	binary.BigEndian.PutUint16(segment[16:], ^sum(cat(a[:], b[:], segment), uint32(protoTCP+len(segment))))
	return ip4{src: src, dst: dst, proto: protoTCP}.with(segment)
}

func tcp6(src, dst string, segment []byte) []byte {
	segment = bytes.Clone(segment)
	a, b := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	binary.BigEndian.PutUint16(segment[16:], ^sum(cat(a[:], b[:], segment), uint32(protoTCP+len(segment))))
	return ip6{src: src, dst: dst, next: protoTCP}.with(segment)
}

func icmp(typ byte, payload ...[]byte) []byte {
	b := cat([]byte{typ, 0, 0, 0, 0, 7, 0, 1}, cat(payload...))
	binary.BigEndian.PutUint16(b[2:], ^sum(b, 0))
	return b
}

func fragmentHeader(next byte, offsetAndMore int, id uint32) []byte {
	return cat([]byte{next, 0}, be16(offsetAndMore), be32(id))
}

// with returns a changed copy of a frame.
func with(frame []byte, at int, v ...byte) []byte {
	b := bytes.Clone(frame)
	copy(b[at:], v)
	return b
}

func carrierOf(udp bool) packet.Carrier {
	c := packet.DefaultCarrier
	c.UDP = udp
	return c
}
