package hostpkt

import "net/netip"

const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129

	unreachable4, fragmentationNeeded4 = 3, 4 // type and code
	timeExceeded4                      = 11
	tooBig6                            = 2
	timeExceeded6                      = 3
	redirect6                          = 137
	lastError6                         = 127 // RFC 4443 2.1

	maxError4 = 576        // bytes of an error's IP packet, RFC 1812 4.3.2.3
	maxError6 = 1280       // RFC 4443 2.4 c
	tosError  = 0b110 << 5 // internetwork control, RFC 1812 4.3.2.5
)

// EchoReply is the answer to an ICMP or ICMPv6 echo request of one host to
// another. It reports false for anything else, fragments, IPv4 options and IPv6
// extension headers, and wrong checksums.
func EchoReply(frame []byte) ([]byte, bool) {
	p, ok := parseIP(frame)
	m := p.payload
	if !ok || !p.unicast() || len(m) < icmpLen || m[1] != 0 {
		return nil, false
	}
	fragment, _ := p.fragment()
	switch {
	case p.v4 && !fragment && len(p.header) == ipv4Len && p.protocol == protoICMP && m[0] == echoRequest4 && ^fold(sum(0, m)) == 0:
	case !p.v4 && p.protocol == protoICMPv6 && m[0] == echoRequest6 && checksum6(p.src, p.dst, m) == 0:
	default:
		return nil, false
	}
	out, b := p.answer(p.ether.src(), p.ether.dst(), len(p.header)+len(m))
	r := b[len(p.header):]
	copy(r, m)
	if p.v4 {
		r[0] = echoReply4
		header4(b, protoICMP, p.header[1], p.id(), p.dst, p.src)
		putChecksum4(r)
		return out, true
	}
	r[0] = echoReply6
	header6(b, protoICMPv6, ttl, p.dst, p.src)
	putChecksum6(r, p.dst, p.src)
	return out, true
}

// FragmentationNeeded is the error to the sender of the IPv4 packet in frame
// that mtu bytes is the most that goes on (RFC 1191 4), from the address from
// and the link-layer address mac. It is the caller who looks at DF: a member
// does not fragment. It reports false where no error may be sent: about ICMP
// errors, fragments other than the first, and packets that are not of one host
// to one host (RFC 1122 3.2.2); or where from is of another family.
func FragmentationNeeded(frame []byte, from netip.Addr, mac uint64, mtu uint16) ([]byte, bool) {
	p, ok := parseIP(frame)
	if !ok || !p.v4 {
		return nil, false
	}
	return p.report(from, mac, unreachable4, fragmentationNeeded4, uint32(mtu))
}

// PacketTooBig is FragmentationNeeded for IPv6 (RFC 4443 3.2), with the limits of
// RFC 4443 2.4 e. Multicast is left out here as well, as nothing forwards it.
func PacketTooBig(frame []byte, from netip.Addr, mac uint64, mtu uint32) ([]byte, bool) {
	p, ok := parseIP(frame)
	if !ok || p.v4 {
		return nil, false
	}
	return p.report(from, mac, tooBig6, 0, mtu)
}

// TimeExceeded is the error that the packet's TTL or hop limit ran out on its
// way, for both families, otherwise like FragmentationNeeded.
func TimeExceeded(frame []byte, from netip.Addr, mac uint64) ([]byte, bool) {
	p, ok := parseIP(frame)
	switch {
	case !ok:
		return nil, false
	case p.v4:
		return p.report(from, mac, timeExceeded4, 0, 0)
	}
	return p.report(from, mac, timeExceeded6, 0, 0)
}

// report makes an error about p, which it quotes as far as there is room.
func (p *ip) report(from netip.Addr, mac uint64, kind, code uint8, rest uint32) ([]byte, bool) {
	if from.Is4() != p.v4 || !singleHost(from) || !p.unicast() || !p.reportable() {
		return nil, false
	}
	header, most := ipv6Len, maxError6
	if p.v4 {
		header, most = ipv4Len, maxError4
	}
	quote := p.ether.payload[:min(len(p.header)+len(p.payload), most-header-icmpLen)]
	out, b := p.answer(p.ether.src(), mac, header+icmpLen+len(quote))
	m := b[header:]
	m[0], m[1] = kind, code
	be.PutUint32(m[4:], rest)
	copy(m[icmpLen:], quote)
	if p.v4 {
		header4(b, protoICMP, tosError, p.id(), from, p.src)
		putChecksum4(m)
	} else {
		header6(b, protoICMPv6, ttl, from, p.src)
		putChecksum6(m, from, p.src)
	}
	return out, true
}

// reportable: neither an ICMP error nor of a type that may be one, and not a
// fragment other than the first.
func (p *ip) reportable() bool {
	if p.v4 {
		if _, offset := p.fragment(); offset != 0 {
			return false
		}
		return p.protocol != protoICMP || len(p.payload) > 0 && isQuery4(p.payload[0])
	}
	b, next := p.payload, p.protocol
	for {
		n := 0
		switch next {
		case protoICMPv6:
			return len(b) > 0 && b[0] > lastError6 && b[0] != redirect6
		case protoHopByHop, protoRouting, protoOptions, protoFragment, protoAH:
			if len(b) < 8 {
				return false // what follows cannot be known
			}
			n = (int(b[1]) + 1) * 8
		default:
			return true
		}
		switch next {
		case protoFragment:
			if n = 8; be.Uint16(b[2:])>>3 != 0 {
				return false
			}
		case protoAH:
			n = (int(b[1]) + 2) * 4
		}
		if len(b) < n {
			return false
		}
		next, b = b[0], b[n:]
	}
}

// isQuery4: echo, router discovery, timestamp, information and address mask; the
// other types are errors, or unknown.
func isQuery4(kind uint8) bool {
	return kind == echoReply4 || kind == echoRequest4 || kind == 9 || kind == 10 || kind >= 13 && kind <= 18
}

func putChecksum4(m []byte) {
	m[2], m[3] = 0, 0
	be.PutUint16(m[2:], ^fold(sum(0, m)))
}

func putChecksum6(m []byte, src, dst netip.Addr) {
	m[2], m[3] = 0, 0
	be.PutUint16(m[2:], checksum6(src, dst, m))
}
