package hostpkt

import "net/netip"

// ARP over Ethernet for IPv4 (RFC 826), and neighbour discovery (RFC 4861).
const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2

	ndSolicitation  = 135
	ndAdvertisement = 136
	ndLen           = 24 // without options
	ndOptionLen     = 8  // a link-layer address
	ndSourceMAC     = 1
	ndTargetMAC     = 2
	ndHopLimit      = 255
	ndRouter        = 1 << 7
	ndSolicited     = 1 << 6
	ndOverride      = 1 << 5

	allNodesMAC = 0x333300000001
)

var (
	arpHeader     = [6]byte{0, 1, 8, 0, macLen, 4}
	allNodes      = netip.MustParseAddr("ff02::1")
	solicitedNode = netip.MustParsePrefix("ff02::1:ff00:0/104")
)

// Neighbour is what an ARP message or a neighbour solicitation or advertisement
// says. The zero value says nothing.
type Neighbour struct {
	// Addr has the link-layer address MAC. Addr is unspecified in a probe for a
	// duplicate (RFC 5227, RFC 4862), and MAC is 0 where the message gives none.
	Addr netip.Addr
	MAC  uint64
	// Request: Target is asked for. In an answer Target is the zero Addr.
	Target  netip.Addr
	Request bool
}

// ParseNeighbour reads ARP requests and replies, and neighbour solicitations and
// advertisements that RFC 4861 7.1 finds valid.
func ParseNeighbour(frame []byte) (Neighbour, bool) {
	e, ok := parseEther(frame)
	switch {
	case !ok:
		return Neighbour{}, false
	case e.kind == etherARP:
		return parseARP(e.payload)
	case e.kind == etherIPv6:
		return parseND(frame)
	}
	return Neighbour{}, false
}

func parseARP(b []byte) (n Neighbour, ok bool) {
	if len(b) < arpLen || [6]byte(b) != arpHeader {
		return n, false
	}
	op, target := be.Uint16(b[6:]), netip.AddrFrom4([4]byte(b[24:]))
	n.MAC, n.Addr = getMAC(b[8:]), netip.AddrFrom4([4]byte(b[14:]))
	n.Request = op == arpRequest
	probe := n.Request && n.Addr.IsUnspecified()
	if !n.Request && op != arpReply || !individual(n.MAC) || !probe && !singleHost(n.Addr) {
		return Neighbour{}, false
	}
	if n.Request {
		n.Target = target
		return n, singleHost(target)
	}
	return n, true
}

func parseND(frame []byte) (n Neighbour, ok bool) {
	p, ok := parseIP(frame)
	b := p.payload
	if !ok || p.protocol != protoICMPv6 || p.hopLimit != ndHopLimit || len(b) < ndLen || b[1] != 0 || checksum6(p.src, p.dst, b) != 0 {
		return n, false
	}
	target := netip.AddrFrom16([16]byte(b[8:]))
	if !singleHost(target) {
		return n, false
	}
	switch b[0] {
	case ndSolicitation:
		n = Neighbour{Addr: p.src, Target: target, Request: true}
		mac, given, ok := ndOption(b[ndLen:], ndSourceMAC)
		if !ok {
			return Neighbour{}, false
		}
		if p.src.IsUnspecified() {
			return n, solicitedNode.Contains(p.dst) && !given
		}
		n.MAC = mac
		return n, singleHost(p.src)
	case ndAdvertisement:
		mac, _, ok := ndOption(b[ndLen:], ndTargetMAC)
		solicited := b[4]&ndSolicited != 0
		return Neighbour{Addr: target, MAC: mac}, ok && singleHost(p.src) && !(solicited && p.dst.IsMulticast())
	}
	return n, false
}

// ndOption looks for a link-layer address in the options, which must be well
// formed to the end (RFC 4861 4.6).
func ndOption(b []byte, kind uint8) (mac uint64, given, ok bool) {
	for len(b) > 0 {
		if len(b) < ndOptionLen || b[1] == 0 || len(b) < int(b[1])*8 {
			return 0, false, false
		}
		if b[0] == kind && !given {
			if mac, given = getMAC(b[2:]), true; b[1] != 1 || !individual(mac) {
				return 0, false, false
			}
		}
		b = b[int(b[1])*8:]
	}
	return mac, given, true
}

// AnswerNeighbour is the ARP reply or the neighbour advertisement, from a
// router, that says that the target of the request in frame has the address mac.
// It reports false where frame is no request.
func AnswerNeighbour(frame []byte, mac uint64) ([]byte, bool) {
	n, ok := ParseNeighbour(frame)
	if !ok || !n.Request {
		return nil, false
	}
	e, _ := parseEther(frame)
	if n.Target.Is4() {
		out, b := e.answer(n.MAC, mac, arpLen)
		putARP(b, arpReply, mac, n.Target, n.MAC, n.Addr)
		return out, true
	}
	flags, to, toMAC := uint8(ndRouter|ndSolicited|ndOverride), n.Addr, n.MAC
	switch {
	case n.Addr.IsUnspecified(): // RFC 4861 7.2.4
		flags, to, toMAC = ndRouter|ndOverride, allNodes, allNodesMAC
	case toMAC == 0:
		toMAC = e.src()
	}
	if n.MAC == 0 && !individual(e.src()) {
		return nil, false
	}
	out, b := e.answer(toMAC, mac, ipv6Len+ndLen+ndOptionLen)
	putND(b, ndAdvertisement, flags, n.Target, to, n.Target, mac)
	return out, true
}

// Solicit asks who has dst, in the name of src, an address of the same family:
// the broadcast ARP request or the multicast neighbour solicitation. vlan 0 is
// no tag. It returns nil where dst or src is not the address of one host, or
// their families differ.
func Solicit(mac uint64, src, dst netip.Addr, vlan uint16) []byte {
	if src.Is4() != dst.Is4() || !singleHost(src) || !singleHost(dst) {
		return nil
	}
	header := make([]byte, ethLen, ethLen+vlanLen)
	kind := uint16(etherIPv6)
	if dst.Is4() {
		kind = etherARP
	}
	if vlan != 0 {
		header = header[:ethLen+vlanLen]
		be.PutUint16(header[2*macLen:], etherVLAN)
		be.PutUint16(header[ethLen:], vlan&0xfff)
	}
	be.PutUint16(header[len(header)-2:], kind)
	e := ether{header: header}
	if dst.Is4() {
		out, b := e.answer(broadcastMAC, mac, arpLen)
		putARP(b, arpRequest, mac, src, 0, dst)
		return out
	}
	group, d := solicitedNode.Addr().As16(), dst.As16()
	copy(group[13:], d[13:])
	out, b := e.answer(0x3333<<32|uint64(be.Uint32(group[12:])), mac, ipv6Len+ndLen+ndOptionLen)
	putND(b, ndSolicitation, 0, src, netip.AddrFrom16(group), dst, mac)
	return out
}

func putARP(b []byte, op uint16, mac uint64, addr netip.Addr, targetMAC uint64, target netip.Addr) {
	copy(b, arpHeader[:])
	be.PutUint16(b[6:], op)
	s, t := addr.As4(), target.As4()
	putMAC(b[8:], mac)
	copy(b[14:], s[:])
	putMAC(b[18:], targetMAC)
	copy(b[24:], t[:])
}

func putND(b []byte, kind, flags uint8, src, dst, target netip.Addr, mac uint64) {
	header6(b, protoICMPv6, ndHopLimit, src, dst)
	m, t := b[ipv6Len:], target.As16()
	m[0], m[4] = kind, flags
	copy(m[8:], t[:])
	option := uint8(ndSourceMAC)
	if kind == ndAdvertisement {
		option = ndTargetMAC
	}
	m[ndLen], m[ndLen+1] = option, 1
	putMAC(m[ndLen+2:], mac)
	be.PutUint16(m[2:], checksum6(src, dst, m))
}
