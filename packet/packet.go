// Package packet reads live frames as the data planes see them, and puts tags
// on, replaces them and takes them off. Its parse rules are those of the P4
// parser bit for bit, so that policy, tag and every target see the same thing.
// Nothing on the path of a packet allocates.
package packet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"countersign/tag"
)

// Carrier is how a tag is announced, alliance-wide (docs/wire.md, Carrier). The zero
// value is not usable; start from DefaultCarrier. It is comparable.
type Carrier struct {
	UDP      bool   // a UDP header to Port precedes the tag
	Protocol uint8  // IP protocol of carrier ip; no tag's next header with either carrier
	Port     uint16 // UDP destination port of carrier udp
}

// DefaultCarrier is carrier ip with protocol 253; its Port is carrier udp's.
var DefaultCarrier = Carrier{Protocol: 253, Port: 25300}

// ErrCarrier is returned by Carrier.Validate.
var ErrCarrier = errors.New("unusable carrier")

// Validate returns ErrCarrier where the protocol is one that the parser reads
// as something else, or the port is 0.
func (c Carrier) Validate() error {
	if classes[c.Protocol] != classOther || c.Protocol == protoFragment || c.Protocol == 4 || c.Protocol == 41 {
		return fmt.Errorf("%w: protocol %d has a meaning of its own; 253 and 254 are for experiments (RFC 3692)", ErrCarrier, c.Protocol)
	}
	if c.Port == 0 {
		return fmt.Errorf("%w: UDP port 0", ErrCarrier)
	}
	return nil
}

// String is "ip/253" or "udp/25300".
func (c Carrier) String() string {
	if c.UDP {
		return fmt.Sprintf("udp/%d", c.Port)
	}
	return fmt.Sprintf("ip/%d", c.Protocol)
}

// len is the number of bytes before the tag.
func (c Carrier) len() int {
	if c.UDP {
		return udpLen
	}
	return 0
}

// protocol is what the IP header says in the place of the tag's next header.
func (c Carrier) protocol() uint8 {
	if c.UDP {
		return protoUDP
	}
	return c.Protocol
}

// Overhead is how many bytes a tag of suite s adds to a packet. An IPv4
// fragment grows by 8 more.
func (c Carrier) Overhead(s tag.Suite) int { return c.len() + s.TagLen() }

// Anomaly is why a frame cannot be parsed. The zero value is none.
type Anomaly uint8

// The anomalies in the order of the parse rules.
const (
	None          Anomaly = iota
	Truncated             // the frame ends within a header
	VLANStacked           // more than one 802.1Q tag, or 802.1ad
	NotIP                 // neither IPv4, IPv6 nor ARP
	IPVersion             // version and EtherType differ
	BadLength             // a length field that cannot be
	BadOptions            // IPv4 options that cannot be walked
	Jumbogram             // RFC 2675
	TagFragmented         // the carrier's packet was fragmented on the way
	TagMalformed          // docs/wire.md, Malformed
	TagMisplaced          // the carrier anywhere but in its place
	L4Truncated           // the packet ends within its transport header
)

var anomalyNames = [...]string{
	"none", "truncated", "vlan_stacked", "not_ip", "ip_version", "bad_length", "bad_options",
	"jumbogram", "tag_fragmented", "tag_malformed", "tag_misplaced", "l4_truncated",
}

// String returns the reason name.
func (a Anomaly) String() string {
	if int(a) < len(anomalyNames) {
		return anomalyNames[a]
	}
	return fmt.Sprintf("anomaly(%d)", uint8(a))
}

// Err returns nil for None, the sentinel of package tag for the three that
// concern tags, and an error whose text is the reason name for the others.
func (a Anomaly) Err() error {
	switch a {
	case None:
		return nil
	case TagFragmented:
		return tag.ErrFragmented
	case TagMalformed:
		return tag.ErrMalformed
	case TagMisplaced:
		return tag.ErrMisplaced
	}
	return anomalyError(a)
}

type anomalyError Anomaly

func (e anomalyError) Error() string { return Anomaly(e).String() }

// Flags are findings that do not end parsing; rules judge them.
type Flags uint16

// The findings.
const (
	BadChecksum     Flags = 1 << iota // IPv4 header checksum is wrong
	SourceRoute                       // IPv4 source routing, IPv6 routing header with segments left
	UnreadableChain                   // a header behind which nothing is read, or no tag could stand
	Martian                           // an address that no packet may have
	LinkScope                         // a link-local, multicast or broadcast address
	LAND                              // source and destination address are equal
	ICMPError                         // an ICMP or ICMPv6 error
	QuotedCarrier                     // ... whose quotation begins with the carrier
	ND                                // untagged neighbour discovery
)

// View is what Parse finds in a frame. All offsets are from the frame's first
// byte. The zero value is empty, and Parse starts from it, so one View serves
// many frames; it is not safe for concurrent use. Tag.Sealed aliases the frame.
type View struct {
	Tuple    tag.Tuple  // sorted five-tuple, as M has it
	SrcIsLow bool       // the packet's source is the Tuple's low side
	Tagged   bool       // Tag is set
	Tag      tag.Header // the tag

	Family        uint8 // 4 or 6, 0 for ARP
	ARP           bool
	HasVLAN       bool
	UDPCarrier    bool // a UDP header precedes the tag
	Fragment      bool // a fragment, atomic ones included
	MoreFragments bool

	Flags Flags
	VLAN  uint16 // VID, 12 bits, 0 without 802.1Q tag

	Protocol   uint8 // transport protocol as M has it
	NextHeader uint8 // protocol of the header at Next: the tag's, or the IP header's own
	TTL        uint8 // or hop limit
	TCPFlags   uint8 // FIN is bit 0, CWR bit 7; 0 where not TCP
	ICMPType   uint8 // 0 where neither ICMP nor ICMPv6
	ICMPCode   uint8

	SrcPort    uint16 // transport port, or identifier of an echo; 0 where there is none
	DstPort    uint16
	FragOffset uint16 // bytes
	FragID     uint32 // IPv4's is zero-extended

	L3      int // the IP or ARP header
	ProtoAt int // the byte that says what follows the tag's place
	Place   int // where the carrier begins, or would
	Next    int // what follows the carrier and the tag
	L4      int // the transport header or fragment payload
	MSSAt   int // value of the TCP maximum segment size option, 0 where not first
	End     int // end of the packet; padding follows
}

// Has reports whether any of the flags in f is set.
func (v *View) Has(f Flags) bool { return v.Flags&f != 0 }

// Protocol numbers that the parser reads.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoDstOpts  = 60
)

const (
	ethLen    = 14
	vlanLen   = 4
	arpLen    = 28
	ipv4Len   = 20
	ipv6Len   = 40
	udpLen    = 8
	fragLen   = 8
	icmpLen   = 8
	tcpLen    = 20
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd
	etherSVID = 0x88a8

	flagDF     = 0x4000
	flagMF     = 0x2000
	offsetMask = 0x1fff
)

// A class is how the transport header of a protocol is read.
type class uint8

const (
	classOther class = iota
	classPorts8
	classPorts12
	classTCP
	classICMP
	classICMPv6
	classExtension // IPv6 only
)

var classes = [256]class{
	6: classTCP, 17: classPorts8, 136: classPorts8, 132: classPorts12, 33: classPorts12,
	1: classICMP, 58: classICMPv6,
	0: classExtension, 43: classExtension, 51: classExtension, 60: classExtension,
	135: classExtension, 139: classExtension, 140: classExtension,
}

// Parse reads an Ethernet frame into v. Where it returns an Anomaly, v holds
// what came before it. It neither allocates nor panics, and reads no byte
// behind the packet's end.
func Parse(frame []byte, c Carrier, v *View) Anomaly {
	*v = View{}
	if len(frame) < ethLen {
		return Truncated
	}
	etherType := be16(frame[12:])
	off := ethLen
	if etherType == etherVLAN {
		if len(frame) < ethLen+vlanLen {
			return Truncated
		}
		v.HasVLAN = true
		v.VLAN = be16(frame[14:]) & 0xfff
		etherType = be16(frame[16:])
		off += vlanLen
		if etherType == etherVLAN {
			return VLANStacked
		}
	}
	v.L3 = off
	switch etherType {
	case etherIPv4:
		return v.parse4(frame, c)
	case etherIPv6:
		return v.parse6(frame, c)
	case etherARP:
		if len(frame)-off < arpLen {
			return Truncated
		}
		v.ARP = true
		v.End = off + arpLen
		return None
	case etherSVID:
		return VLANStacked
	}
	return NotIP
}

// ParseIP is Parse for a packet without a link layer header.
func ParseIP(ip []byte, c Carrier, v *View) Anomaly {
	*v = View{}
	if len(ip) == 0 {
		return Truncated
	}
	switch ip[0] >> 4 {
	case 4:
		return v.parse4(ip, c)
	case 6:
		return v.parse6(ip, c)
	}
	return IPVersion
}

func (v *View) parse4(frame []byte, c Carrier) Anomaly {
	b := frame[v.L3:]
	if len(b) < ipv4Len {
		return Truncated
	}
	if b[0]>>4 != 4 {
		return IPVersion
	}
	headerLen := int(b[0]&0xf) * 4
	totalLen := int(be16(b[2:]))
	if headerLen < ipv4Len || totalLen < headerLen || totalLen > len(b) {
		return BadLength
	}
	if headerLen > ipv4Len {
		flags, ok := walkOptions(b[ipv4Len:headerLen])
		if !ok {
			return BadOptions
		}
		v.Flags |= flags
	}
	if checksum(b[:headerLen]) != 0 {
		v.Flags |= BadChecksum
	}
	v.Family = 4
	v.TTL = b[8]
	v.ProtoAt = v.L3 + 9
	v.Place = v.L3 + headerLen
	v.End = v.L3 + totalLen
	src, dst := be32(b[12:]), be32(b[16:])
	v.Flags |= judge4(src, dst)

	p := frame[:v.End]
	protocol := b[9]
	if fragment := be16(b[6:]); fragment&(flagMF|offsetMask) != 0 {
		if protocol == c.protocol() && (!c.UDP || fragment&offsetMask == 0 && c.portAt(p, v.Place)) {
			return TagFragmented
		}
		v.Protocol, v.NextHeader = protocol, protocol
		v.Next, v.L4 = v.Place, v.Place
		v.Fragment = true
		v.MoreFragments = fragment&flagMF != 0
		v.FragOffset = fragment & offsetMask << 3
		v.FragID = uint32(be16(b[4:]))
	} else if a := v.parseBody(p, protocol, c); a != None {
		return a
	}
	kind, low, high := v.session()
	v.SrcIsLow = v.Tuple.Set4(v.Protocol, kind, src, dst, low, high)
	return None
}

func (v *View) parse6(frame []byte, c Carrier) Anomaly {
	b := frame[v.L3:]
	if len(b) < ipv6Len {
		return Truncated
	}
	if b[0]>>4 != 6 {
		return IPVersion
	}
	payloadLen := int(be16(b[4:]))
	protocol := b[6]
	if payloadLen > len(b)-ipv6Len {
		return BadLength
	}
	if payloadLen == 0 && protocol == protoHopByHop {
		return Jumbogram
	}
	v.Family = 6
	v.TTL = b[7]
	v.ProtoAt = v.L3 + 6
	v.Place = v.L3 + ipv6Len
	v.End = v.Place + payloadLen
	srcHi, srcLo, dstHi, dstLo := be64(b[8:]), be64(b[16:]), be64(b[24:]), be64(b[32:])
	v.Flags |= judge6(srcHi, srcLo, dstHi, dstLo)

	p := frame[:v.End]
	if protocol == protoHopByHop {
		if payloadLen < 8 {
			return BadLength
		}
		n := (int(p[v.Place+1]) + 1) * 8
		if n > payloadLen {
			return BadLength
		}
		protocol = p[v.Place]
		v.ProtoAt = v.Place
		v.Place += n
	}
	if a := v.parseBody(p, protocol, c); a != None {
		return a
	}
	kind, low, high := v.session()
	v.SrcIsLow = v.Tuple.Set6(v.Protocol, kind, srcHi, srcLo, dstHi, dstLo, low, high)
	return None
}

// session gives what M has beside protocol and addresses.
func (v *View) session() (kind, srcPort, dstPort uint16) {
	if v.Fragment {
		return tag.KindFragment, uint16(v.FragID >> 16), uint16(v.FragID)
	}
	if v.otherICMP() {
		return tag.KindICMPOther, 0, 0
	}
	return tag.KindPorts, v.SrcPort, v.DstPort
}

// otherICMP reports whether the packet is ICMP or ICMPv6 other than echo.
func (v *View) otherICMP() bool {
	switch v.Protocol {
	case protoICMP:
		return v.Family == 4 && v.ICMPType != 0 && v.ICMPType != 8
	case protoICMPv6:
		return v.Family == 6 && v.ICMPType != 128 && v.ICMPType != 129
	}
	return false
}

// portAt reports whether p has a UDP header at off that is for the carrier.
func (c Carrier) portAt(p []byte, off int) bool {
	return len(p)-off >= udpLen && be16(p[off+2:]) == c.Port
}

// hidden reports whether a protocol, as a tag's next header, would mean
// something else than it does behind an IP header, so that no tag can stand
// before it.
func (v *View) hidden(protocol uint8, c Carrier) bool {
	switch protocol {
	case protoHopByHop, protoRouting, protoFragment, protoDstOpts:
		return v.Family == 4
	}
	return protocol == c.Protocol
}

// parseBody reads the carrier, the tag and the transport header of p, which
// ends where the packet does; protocol is what the header before v.Place says.
func (v *View) parseBody(p []byte, protocol uint8, c Carrier) Anomaly {
	off := v.Place
	if protocol == c.protocol() && (!c.UDP || c.portAt(p, off)) {
		v.UDPCarrier = c.UDP
		off += c.len()
		if v.Tag.Decode(p[off:], c.Protocol, v.Family) != nil {
			return TagMalformed
		}
		v.Tagged = true
		off += v.Tag.Len()
		protocol = v.Tag.NextHeader
	}
	v.NextHeader, v.Protocol = protocol, protocol
	v.Next, v.L4 = off, off
	if !v.Tagged && v.hidden(protocol, c) {
		v.Flags |= UnreadableChain
		return None
	}
	b := p[off:]
	switch classes[protocol] {
	case classTCP:
		if len(b) < tcpLen {
			return L4Truncated
		}
		v.SrcPort, v.DstPort = be16(b), be16(b[2:])
		v.TCPFlags = b[13]
		if b[12]>>4 >= 6 && len(b) >= tcpLen+4 && b[20] == 2 && b[21] == 4 {
			v.MSSAt = off + 22
		}
	case classPorts8:
		if len(b) < 8 {
			return L4Truncated
		}
		v.SrcPort, v.DstPort = be16(b), be16(b[2:])
		if c.UDP && v.Tagged && protocol == protoUDP && v.DstPort == c.Port {
			return TagMisplaced
		}
	case classPorts12:
		if len(b) < 12 {
			return L4Truncated
		}
		v.SrcPort, v.DstPort = be16(b), be16(b[2:])
	case classICMP:
		if v.Family == 4 {
			return v.parseICMP(b, c)
		}
	case classICMPv6:
		if v.Family == 6 {
			return v.parseICMP(b, c)
		}
	case classExtension:
		if v.Family == 6 {
			return v.parseExtension(b, c)
		}
	default:
		if protocol == protoFragment && (v.Family == 6 || v.Tagged) {
			return v.parseFragment(b, c)
		}
	}
	return None
}

func (v *View) parseFragment(b []byte, c Carrier) Anomaly {
	if len(b) < fragLen {
		return L4Truncated
	}
	v.Protocol = b[0]
	v.Fragment = true
	v.FragOffset = be16(b[2:]) &^ 7
	v.MoreFragments = b[3]&1 != 0
	v.FragID = be32(b[4:])
	v.L4 += fragLen
	if v.Protocol == c.protocol() && (!c.UDP || v.FragOffset == 0 && c.portAt(b, fragLen)) {
		return TagMisplaced
	}
	return None
}

func (v *View) parseExtension(b []byte, c Carrier) Anomaly {
	if len(b) < 8 {
		return L4Truncated
	}
	if !c.UDP && b[0] == c.Protocol {
		return TagMisplaced
	}
	v.Flags |= UnreadableChain
	if v.Protocol == protoRouting && b[3] != 0 {
		v.Flags |= SourceRoute
	}
	return None
}

func (v *View) parseICMP(b []byte, c Carrier) Anomaly {
	if len(b) < icmpLen {
		return L4Truncated
	}
	t := b[0]
	v.ICMPType, v.ICMPCode = t, b[1]
	isError := false
	switch {
	case !v.otherICMP():
		v.SrcPort = be16(b[4:])
		v.DstPort = v.SrcPort
	case v.Family == 4:
		isError = t == 3 || t == 11 || t == 12
	default:
		isError = t >= 1 && t <= 4
		if t >= 133 && t <= 137 && !v.Tagged {
			v.Flags |= ND
		}
	}
	if isError {
		v.Flags |= ICMPError
		if v.quotesCarrier(b[icmpLen:], c) {
			v.Flags |= QuotedCarrier
		}
	}
	return None
}

// quotesCarrier reports whether the quotation q begins with the carrier.
func (v *View) quotesCarrier(q []byte, c Carrier) bool {
	n, at, plain := ipv4Len, 9, byte(0x45)
	if v.Family == 6 {
		n, at = ipv6Len, 6
	}
	if len(q) < n || q[0]>>4 != v.Family || q[at] != c.protocol() {
		return false
	}
	if !c.UDP {
		return true
	}
	return (v.Family == 6 || q[0] == plain) && len(q) >= n+4 && be16(q[n+2:]) == c.Port
}

// walkOptions reads IPv4 options (RFC 791, section 3.1).
func walkOptions(b []byte) (f Flags, ok bool) {
	for len(b) > 0 {
		switch b[0] {
		case 0:
			return f, true
		case 1:
			b = b[1:]
			continue
		case 131, 137: // loose and strict source route
			f |= SourceRoute
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return f, false
		}
		b = b[b[1]:]
	}
	return f, true
}

// judge4 finds addresses that do not belong on a wire beyond the link.
func judge4(src, dst uint32) (f Flags) {
	const broadcast = 0xffffffff
	if net := src >> 24; net == 0 || net == 127 || net >= 240 {
		f |= Martian
	}
	if net := dst >> 24; net == 0 || net == 127 || net >= 240 && dst != broadcast {
		f |= Martian
	}
	if linkScope4(src) || linkScope4(dst) {
		f |= LinkScope
	}
	if src == dst {
		f |= LAND
	}
	return f
}

// linkScope4: 169.254/16, 224/4 and 255.255.255.255.
func linkScope4(a uint32) bool {
	return a>>16 == 0xa9fe || a>>28 == 0xe || a == 0xffffffff
}

// judge6 is judge4 for IPv6.
func judge6(srcHi, srcLo, dstHi, dstLo uint64) (f Flags) {
	if martian6(srcHi, srcLo) || martian6(dstHi, dstLo) {
		f |= Martian
	}
	if linkScope6(srcHi) || linkScope6(dstHi) {
		f |= LinkScope
	}
	if srcHi == dstHi && srcLo == dstLo {
		f |= LAND
	}
	return f
}

// martian6: ::, ::1 and ::ffff:0:0/96.
func martian6(hi, lo uint64) bool { return hi == 0 && (lo <= 1 || lo>>32 == 0xffff) }

// linkScope6: fe80::/10 and ff00::/8.
func linkScope6(hi uint64) bool { return hi>>54 == 0xfe80>>6 || hi>>56 == 0xff }

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
