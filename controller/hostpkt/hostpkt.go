// Package hostpkt makes what a controller says for its member itself: answers to
// ARP, neighbour discovery and echo requests, and ICMP errors. All functions
// are pure, safe for concurrent use, take Ethernet frames without FCS that may
// have one 802.1Q tag, and never keep or change what they are given. A MAC
// address is the lower 48 bits of an integer, first byte highest.
package hostpkt

import (
	"encoding/binary"
	"net/netip"
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd

	protoHopByHop = 0
	protoICMP     = 1
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoOptions  = 60

	macLen  = 6
	ethLen  = 14
	vlanLen = 4
	ipv4Len = 20
	ipv6Len = 40
	icmpLen = 8
	ttl     = 64 // of what we send: RFC 1700 (IPv4), and hosts' default for IPv6

	broadcastMAC = 1<<48 - 1
	groupBit     = 1 << 40 // in a MAC: multicast or broadcast
)

var be = binary.BigEndian

// ether is a frame's link header, with its VLAN tag, and what follows it.
type ether struct {
	header  []byte
	kind    uint16 // EtherType
	payload []byte
}

func parseEther(frame []byte) (e ether, ok bool) {
	n := ethLen
	if len(frame) >= ethLen && be.Uint16(frame[2*macLen:]) == etherVLAN {
		n += vlanLen
	}
	if len(frame) < n {
		return ether{}, false
	}
	return ether{frame[:n], be.Uint16(frame[n-2:]), frame[n:]}, true
}

func (e *ether) dst() uint64 { return getMAC(e.header) }
func (e *ether) src() uint64 { return getMAC(e.header[macLen:]) }

// answer is a frame with room for n bytes of payload, with the VLAN tag and
// EtherType of e.
func (e *ether) answer(dst, src uint64, n int) (frame, payload []byte) {
	frame = make([]byte, len(e.header)+n)
	copy(frame, e.header)
	putMAC(frame, dst)
	putMAC(frame[macLen:], src)
	return frame, frame[len(e.header):]
}

func getMAC(b []byte) uint64 { return uint64(be.Uint16(b))<<32 | uint64(be.Uint32(b[2:])) }

func putMAC(b []byte, mac uint64) {
	be.PutUint16(b, uint16(mac>>32))
	be.PutUint32(b[2:], uint32(mac))
}

// individual: the address of one interface.
func individual(mac uint64) bool { return mac != 0 && mac&groupBit == 0 }

// ip is an IP packet; header and payload end where its lengths say.
type ip struct {
	ether
	v4              bool
	src, dst        netip.Addr
	header, payload []byte // header without IPv6 extension headers
	protocol        uint8
	hopLimit        uint8
}

// parseIP takes only packets that are whole, with a correct header checksum.
func parseIP(frame []byte) (p ip, ok bool) {
	if p.ether, ok = parseEther(frame); !ok {
		return ip{}, false
	}
	b := p.ether.payload
	switch {
	case p.kind == etherIPv4 && len(b) >= ipv4Len && b[0]>>4 == 4:
		n, total := int(b[0]&0xf)*4, int(be.Uint16(b[2:]))
		if n < ipv4Len || total < n || len(b) < total || ^fold(sum(0, b[:n])) != 0 {
			return ip{}, false
		}
		p.v4, p.header, p.payload, p.protocol, p.hopLimit = true, b[:n], b[n:total], b[9], b[8]
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case p.kind == etherIPv6 && len(b) >= ipv6Len && b[0]>>4 == 6:
		n := int(be.Uint16(b[4:]))
		if len(b) < ipv6Len+n {
			return ip{}, false
		}
		p.header, p.payload, p.protocol, p.hopLimit = b[:ipv6Len], b[ipv6Len:ipv6Len+n], b[6], b[7]
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	default:
		return ip{}, false
	}
	return p, true
}

// fragment: an IPv4 fragment, the first one included, and its offset.
func (p *ip) fragment() (is bool, offset uint16) {
	if !p.v4 {
		return false, 0
	}
	f := be.Uint16(p.header[6:])
	return f&0x3fff != 0, f & 0x1fff
}

// id is the IPv4 identification.
func (p *ip) id() uint16 { return be.Uint16(p.header[4:]) }

// unicast: both ends are single hosts, on the link as well, so that an answer
// may go to the source (RFC 1122 3.2.2, RFC 4443 2.4 e).
func (p *ip) unicast() bool {
	return individual(p.ether.dst()) && individual(p.ether.src()) && singleHost(p.src) && singleHost(p.dst)
}

func singleHost(a netip.Addr) bool {
	if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() {
		return false
	}
	if a.Is4() { // "this network", class E and broadcast
		first := a.As4()[0]
		return first != 0 && first < 240
	}
	return true
}

// header4 writes an IPv4 header without options, with DF clear; the
// identification of what is answered is as good as unique to its sender.
func header4(b []byte, protocol, tos uint8, id uint16, src, dst netip.Addr) {
	b[0], b[1], b[8], b[9] = 0x45, tos, ttl, protocol
	be.PutUint16(b[2:], uint16(len(b)))
	be.PutUint16(b[4:], id)
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	be.PutUint16(b[10:], ^fold(sum(0, b[:ipv4Len])))
}

func header6(b []byte, protocol, hopLimit uint8, src, dst netip.Addr) {
	b[0], b[6], b[7] = 0x60, protocol, hopLimit
	be.PutUint16(b[4:], uint16(len(b)-ipv6Len))
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
}

// sum adds the 16-bit words of b (RFC 1071); fold ends it.
func sum(s uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(be.Uint16(b))
	}
	if len(b) > 0 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// checksum6 is the ICMPv6 checksum of b (RFC 8200 8.1); 0 where b holds its own
// correct one.
func checksum6(src, dst netip.Addr, b []byte) uint16 {
	s, d := src.As16(), dst.As16()
	return ^fold(sum(sum(sum(uint64(len(b))+protoICMPv6, s[:]), d[:]), b))
}
