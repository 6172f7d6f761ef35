package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"countersign/tag"
)

var (
	carrierIP  = DefaultCarrier
	carrierUDP = Carrier{UDP: true, Protocol: 253, Port: 25300}
)

type mod func(b []byte)

func set(at int, v ...byte) mod { return func(b []byte) { copy(b[at:], v) } }

// v4 is an IPv4 packet from 198.51.100.9 to 203.0.113.2; edits come before the
// header checksum is made.
func v4(protocol byte, payload []byte, edits ...mod) []byte {
	b := []byte{0x45, 0, 0, 0, 0xab, 0xcd, 0x40, 0, 61, protocol, 0, 0, 198, 51, 100, 9, 203, 0, 113, 2}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	for _, e := range edits {
		e(b)
	}
	if n := int(b[0]&0xf) * 4; n >= 20 && n <= len(b) {
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], checksum(b[:n]))
	}
	return b
}

// v4opts is v4 with options, padded to words with zeroes.
func v4opts(options []byte, protocol byte, payload []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	return v4(protocol, append(slices.Clone(options), payload...), set(0, 0x45+byte(len(options)/4)))
}

// v6 is an IPv6 packet from 2001:db8:ffff::2 to 2001:db8::1.
func v6(next byte, payload []byte, edits ...mod) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[3], b[6], b[7] = 0x60, 0x01, next, 61
	copy(b[8:], []byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff})
	b[23] = 2
	copy(b[24:], []byte{0x20, 0x01, 0x0d, 0xb8})
	b[39] = 1
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	for _, e := range edits {
		e(b)
	}
	return b
}

func frame(etherType uint16, data []byte) []byte {
	b := append(make([]byte, 12, 14+len(data)), byte(etherType>>8), byte(etherType))
	return append(b, data...)
}

// eth puts an Ethernet header before an IP packet.
func eth(ip []byte) []byte {
	if ip[0]>>4 == 6 {
		return frame(etherIPv6, ip)
	}
	return frame(etherIPv4, ip)
}

func vlan(tci uint16, f []byte) []byte {
	return slices.Concat(f[:12], []byte{0x81, 0, byte(tci >> 8), byte(tci)}, f[12:])
}

func tcp(edits ...mod) []byte {
	b := make([]byte, 20)
	copy(b, []byte{0x9c, 0x40, 0x01, 0xbb})
	b[12], b[13] = 0x50, 0x18
	for _, e := range edits {
		e(b)
	}
	return b
}

func syn(mss uint16) []byte {
	return append(tcp(set(12, 0x60, 0x02)), 2, 4, byte(mss>>8), byte(mss))
}

func udp(src, dst uint16, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

func icmp(kind, code byte, rest ...byte) []byte {
	return append([]byte{kind, code, 0, 0, 0x11, 0x22, 0, 1}, rest...)
}

func fragHeader(next byte, offsetField uint16, id uint32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, offsetField)
	return binary.BigEndian.AppendUint32(b, id)
}

// tagOf is a well-formed tag; its digest is anything.
func tagOf(s tag.Suite, next byte, edits ...mod) []byte {
	h := tag.NewHeader(tag.KeyID{Suite: s, UNID: 0xdeadbeef, Epoch: 77})
	h.NextHeader, h.Digest = next, 42
	h.Sealed = bytes.Repeat([]byte{0x5a}, s.SealedLen())
	b := h.AppendTo(nil)
	for _, e := range edits {
		e(b)
	}
	return b
}

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func zeros(n int) []byte { return make([]byte, n) }

type parseCase struct {
	name    string
	carrier Carrier
	frame   []byte
	want    Anomaly
	flags   Flags
	tuple   string // "" is not compared
}

func parseCases() []parseCase {
	const (
		ports4 = "198.51.100.9:40000 203.0.113.2:443"
		none4  = "198.51.100.9:0 203.0.113.2:0"
		ports6 = "[2001:db8::1]:443 [2001:db8:ffff::2]:40000"
		none6  = "[2001:db8::1]:0 [2001:db8:ffff::2]:0"
		frag4  = "198.51.100.9 203.0.113.2 fragment 0000abcd"
		frag6  = "2001:db8::1 2001:db8:ffff::2 fragment deadbeef"
		icmp4  = "1 198.51.100.9 203.0.113.2 icmp"
		icmp6  = "58 2001:db8::1 2001:db8:ffff::2 icmp"
	)
	sip := tag.Siphash
	good4 := v4(6, tcp())
	var cases []parseCase
	add := func(c Carrier, name string, frame []byte, want Anomaly, flags Flags, tuple string) {
		cases = append(cases, parseCase{name, c, frame, want, flags, tuple})
	}
	both := func(name string, frame []byte, want Anomaly, flags Flags, tuple string) {
		add(carrierIP, name, frame, want, flags, tuple)
		add(carrierUDP, name+", carrier udp", frame, want, flags, tuple)
	}

	// 1: link layer.
	both("empty", nil, Truncated, 0, "")
	both("13 bytes", zeros(13), Truncated, 0, "")
	both("VLAN of 17 bytes", vlan(5, eth(good4))[:17], Truncated, 0, "")
	both("VLAN", vlan(5, eth(good4)), None, 0, "6 "+ports4)
	both("VLAN 0 with priority", vlan(0xe000, eth(good4)), None, 0, "6 "+ports4)
	both("VLAN in VLAN", vlan(5, vlan(6, eth(good4))), VLANStacked, 0, "")
	both("service tag in VLAN", vlan(5, frame(etherSVID, zeros(60))), VLANStacked, 0, "")
	both("service tag", frame(etherSVID, nil), VLANStacked, 0, "")
	both("VLAN in a service tag", frame(etherSVID, vlan(5, eth(good4))[14:]), VLANStacked, 0, "")
	// 2: not IP.
	both("ARP", frame(etherARP, zeros(46)), None, 0, "")
	both("ARP of 27 bytes", frame(etherARP, zeros(27)), Truncated, 0, "")
	both("ARP in VLAN", vlan(9, frame(etherARP, zeros(28))), None, 0, "")
	both("LLDP", frame(0x88cc, zeros(60)), NotIP, 0, "")
	both("length in place of a type", frame(60, zeros(60)), NotIP, 0, "")
	// 3: IPv4.
	both("IPv4 of 19 bytes", eth(good4)[:33], Truncated, 0, "")
	both("IPv4 with version 6", frame(etherIPv4, v6(6, tcp())), IPVersion, 0, "")
	both("IHL 4", eth(v4(6, tcp(), set(0, 0x44))), BadLength, 0, "")
	both("IHL 15 in a short packet", eth(v4(6, tcp(), set(0, 0x4f))), BadLength, 0, "")
	both("total length 19", eth(v4(6, tcp(), set(2, 0, 19))), BadLength, 0, "")
	both("total length one more", eth(v4(6, tcp(), set(2, 0, 41))), BadLength, 0, "")
	both("padding", append(eth(good4), zeros(6)...), None, 0, "6 "+ports4)
	both("checksum", eth(func() []byte { b := v4(6, tcp()); b[11] ^= 1; return b }()), None, BadChecksum, "6 "+ports4)
	both("options NOP, EOL and rest", eth(v4opts([]byte{1, 1, 0, 99, 1}, 6, tcp())), None, 0, "6 "+ports4)
	both("option router alert", eth(v4opts([]byte{0x94, 4, 0, 0}, 6, tcp())), None, 0, "6 "+ports4)
	both("option loose source route", eth(v4opts([]byte{131, 3, 4}, 6, tcp())), None, SourceRoute, "6 "+ports4)
	both("option strict source route behind NOPs", eth(v4opts([]byte{1, 1, 137, 3, 4}, 6, tcp())), None, SourceRoute, "6 "+ports4)
	both("source route behind EOL", eth(v4opts([]byte{0, 131, 3, 4}, 6, tcp())), None, 0, "6 "+ports4)
	both("option of length 1", eth(v4opts([]byte{7, 1, 0, 0}, 6, tcp())), BadOptions, 0, "")
	both("option of length 0", eth(v4opts([]byte{7, 0, 0, 0}, 6, tcp())), BadOptions, 0, "")
	both("option past the header", eth(v4opts([]byte{7, 5, 0, 0}, 6, tcp())), BadOptions, 0, "")
	both("option without length", eth(v4opts([]byte{1, 1, 1, 7}, 6, tcp())), BadOptions, 0, "")
	both("source route without length", eth(v4opts([]byte{1, 1, 1, 131}, 6, tcp())), BadOptions, 0, "")
	// 4: IPv6.
	both("IPv6 of 39 bytes", eth(v6(6, tcp()))[:53], Truncated, 0, "")
	both("IPv6 with version 4", frame(etherIPv6, v4(6, zeros(40))), IPVersion, 0, "")
	both("payload length one more", eth(v6(6, tcp(), set(4, 0, 21))), BadLength, 0, "")
	both("jumbogram", eth(v6(0, cat([]byte{6, 0, 0xc2, 4, 0, 1, 0, 0}, tcp()), set(4, 0, 0))), Jumbogram, 0, "")
	both("payload length 0 without hop-by-hop", eth(v6(59, nil)), None, 0, "59 "+none6)
	both("hop-by-hop", eth(v6(0, cat([]byte{6, 0, 5, 2, 0, 0, 1, 0}, tcp()))), None, 0, "6 "+ports6)
	both("hop-by-hop of 16 bytes", eth(v6(0, cat([]byte{6, 1}, zeros(14), tcp()))), None, 0, "6 "+ports6)
	both("hop-by-hop of 7 bytes", eth(v6(0, []byte{6, 0, 5, 2, 0, 0, 1})), BadLength, 0, "")
	both("hop-by-hop past the payload", eth(v6(0, cat([]byte{6, 3}, zeros(20)))), BadLength, 0, "")
	both("hop-by-hop one byte past the payload", append(eth(v6(0, cat([]byte{59, 1}, zeros(13)))), zeros(9)...), BadLength, 0, "")
	both("hop-by-hop alone", eth(v6(0, []byte{59, 0, 1, 4, 0, 0, 0, 0})), None, 0, "59 "+none6)
	// 5: padding hides nothing.
	both("TCP header in the padding", eth(v4(6, tcp(), set(2, 0, 39))), L4Truncated, 0, "")
	both("IPv6 UDP in the padding", eth(v6(17, udp(1, 2), set(4, 0, 7))), L4Truncated, 0, "")
	add(carrierIP, "tag in the padding", eth(v4(253, cat(tagOf(sip, 6), tcp()), set(2, 0, 47))), TagMalformed, 0, "")

	// 6: the carrier.
	for _, s := range tag.Suites {
		n := s.String() + " "
		add(carrierIP, n+"in IPv4", eth(v4(253, cat(tagOf(s, 6), tcp()))), None, 0, "6 "+ports4)
		add(carrierIP, n+"in IPv6", eth(v6(253, cat(tagOf(s, 6), tcp()))), None, 0, "6 "+ports6)
		add(carrierUDP, n+"by UDP in IPv4", eth(v4(17, cat(udp(50000, 25300), tagOf(s, 6), tcp()))), None, 0, "6 "+ports4)
		add(carrierUDP, n+"by UDP in IPv6", eth(v6(17, cat(udp(50000, 25300), tagOf(s, 6), tcp()))), None, 0, "6 "+ports6)
		add(carrierIP, n+"one byte short", eth(v4(253, tagOf(s, 61)[:s.TagLen()-1])), TagMalformed, 0, "")
		add(carrierIP, n+"with nothing behind it", eth(v4(253, tagOf(s, 61))), None, 0, "61 "+none4)
	}
	add(carrierIP, "tag behind hop-by-hop", eth(v6(0, cat([]byte{253, 0, 5, 2, 0, 0, 1, 0}, tagOf(sip, 6), tcp()))), None, 0, "6 "+ports6)
	add(carrierUDP, "UDP tag behind hop-by-hop", eth(v6(0, cat([]byte{17, 0, 5, 2, 0, 0, 1, 0}, udp(1, 25300), tagOf(sip, 6), tcp()))), None, 0, "6 "+ports6)
	add(carrierIP, "tag behind options", eth(v4opts([]byte{1, 1, 1, 1}, 253, cat(tagOf(sip, 17), udp(40000, 443)))), None, 0, "17 "+ports4)
	add(carrierUDP, "protocol 253 with carrier udp", eth(v4(253, cat(tagOf(sip, 6), tcp()))), None, UnreadableChain, "253 "+none4)
	add(carrierUDP, "protocol 253 with carrier udp in IPv6", eth(v6(253, cat(tagOf(sip, 6), tcp()))), None, UnreadableChain, "253 "+none6)
	add(carrierIP, "UDP port 25300 with carrier ip", eth(v4(17, cat(udp(40000, 25300), tagOf(sip, 6)))), None, 0, "17 198.51.100.9:40000 203.0.113.2:25300")
	add(carrierUDP, "UDP from port 25300", eth(v4(17, udp(25300, 443))), None, 0, "17 198.51.100.9:25300 203.0.113.2:443")
	add(carrierUDP, "UDP of 7 bytes", eth(v4(17, udp(40000, 25300)[:7])), L4Truncated, 0, "")
	add(carrierUDP, "UDP carrier without tag", eth(v4(17, udp(40000, 25300))), TagMalformed, 0, "")
	add(carrierIP, "carrier without tag", eth(v4(253, nil)), TagMalformed, 0, "")
	for name, e := range map[string]mod{
		"version 2": set(2, 0x21), "suite 0": set(2, 0x10), "suite 4": set(2, 0x14), "length 8": set(1, 8),
		"flag 2": set(3, 2), "reserved": set(11, 1), "next header 0": set(0, 0), "next header 253": set(0, 253),
	} {
		add(carrierIP, "tag with "+name, eth(v4(253, cat(tagOf(sip, 6, e), tcp()))), TagMalformed, 0, "")
		add(carrierUDP, "UDP tag with "+name, eth(v6(17, cat(udp(1, 25300), tagOf(sip, 6, e), tcp()))), TagMalformed, 0, "")
	}
	add(carrierIP, "tag of rsa2048 with a nonce", eth(v4(253, tagOf(tag.RSA2048, 61, set(12, 1)))), TagMalformed, 0, "")
	add(carrierIP, "tag with E", eth(v4(253, cat(tagOf(sip, 6, set(3, 1)), tcp()))), None, 0, "6 "+ports4)
	for _, next := range []byte{43, 60} {
		add(carrierIP, "IPv4 tag with an IPv6 header", eth(v4(253, cat(tagOf(sip, next), tcp()))), TagMalformed, 0, "")
		add(carrierIP, "IPv6 tag with an extension header", eth(v6(253, cat(tagOf(sip, next), []byte{6, 0, 1, 0, 0, 0, 0, 0}, tcp()))),
			None, UnreadableChain, map[byte]string{43: "43 ", 60: "60 "}[next]+none6)
	}
	// 6: fragments of the carrier.
	for name, field := range map[string][]byte{"first": {0x20, 0}, "middle": {0x20, 8}, "last": {0, 16}} {
		add(carrierIP, "carrier fragment "+name, eth(v4(253, cat(tagOf(sip, 6), tcp()), set(6, field...))), TagFragmented, 0, "")
		want := None
		if name == "first" {
			want = TagFragmented
		}
		add(carrierUDP, "UDP carrier fragment "+name, eth(v4(17, cat(udp(1, 25300), tagOf(sip, 6)), set(6, field...))), want, 0, "")
		add(carrierUDP, "UDP fragment to another port "+name, eth(v4(17, udp(1, 2), set(6, field...))), None, 0, "17 "+frag4)
		add(carrierUDP, "protocol 253 fragment, carrier udp, "+name, eth(v4(253, zeros(16), set(6, field...))), None, 0, "253 "+frag4)
		add(carrierIP, "UDP to 25300 fragment, carrier ip, "+name, eth(v4(17, udp(1, 25300), set(6, field...))), None, 0, "17 "+frag4)
		both("fragment "+name, eth(v4(6, tcp(), set(6, field...))), None, 0, "6 "+frag4)
		both("fragment of protocol 44 "+name, eth(v4(44, tcp(), set(6, field...))), None, 0, "44 "+frag4)
		both("empty fragment "+name, eth(v4(6, nil, set(6, field...))), None, 0, "6 "+frag4)
	}
	add(carrierUDP, "UDP carrier fragment of 7 bytes", eth(v4(17, udp(1, 25300)[:7], set(6, 0x20, 0))), None, 0, "17 "+frag4)
	both("the reserved flag is no fragment", eth(v4(6, tcp(), set(6, 0x80, 0))), None, 0, "6 "+ports4)

	// 7: fragment headers.
	for name, field := range map[string]uint16{"first": 1, "middle": 0x41, "last": 0x80, "atomic": 0} {
		fh := fragHeader(17, field, 0xdeadbeef)
		both("IPv6 fragment "+name, eth(v6(44, cat(fh, udp(40000, 443)))), None, 0, "17 "+frag6)
		add(carrierIP, "tagged IPv6 fragment "+name, eth(v6(253, cat(tagOf(sip, 44), fh, udp(40000, 443)))), None, 0, "17 "+frag6)
		add(carrierIP, "tagged IPv4 fragment "+name, eth(v4(253, cat(tagOf(sip, 44), fh, udp(40000, 443)))), None, 0, "17 198.51.100.9 203.0.113.2 fragment deadbeef")
		both("IPv6 fragment behind hop-by-hop "+name, eth(v6(0, cat([]byte{44, 0, 1, 4, 0, 0, 0, 0}, fh))), None, 0, "17 "+frag6)
		add(carrierIP, "carrier in an IPv6 fragment "+name, eth(v6(44, cat(fragHeader(253, field, 1), tagOf(sip, 6)))), TagMisplaced, 0, "")
		add(carrierIP, "carrier in a tagged fragment "+name, eth(v6(253, cat(tagOf(sip, 44), fragHeader(253, field, 1), tagOf(sip, 6)))), TagMisplaced, 0, "")
		add(carrierUDP, "protocol 253 in an IPv6 fragment, carrier udp, "+name, eth(v6(44, fragHeader(253, field, 0xdeadbeef))), None, 0, "253 "+frag6)
		want, tuple := None, "17 "+frag6
		if field&^7 == 0 {
			want, tuple = TagMisplaced, ""
		}
		add(carrierUDP, "UDP carrier in an IPv6 fragment "+name, eth(v6(44, cat(fh, udp(1, 25300)))), want, 0, tuple)
		add(carrierIP, "UDP to 25300 in an IPv6 fragment, carrier ip, "+name, eth(v6(44, cat(fh, udp(1, 25300)))), None, 0, "17 "+frag6)
	}
	add(carrierUDP, "7 bytes of UDP in an IPv6 fragment", eth(v6(44, cat(fragHeader(17, 1, 0xdeadbeef), udp(1, 25300)[:7]))), None, 0, "17 "+frag6)
	both("fragment header of 7 bytes", eth(v6(44, fragHeader(17, 1, 1)[:7])), L4Truncated, 0, "")
	both("IPv4 protocol 44", eth(v4(44, fragHeader(17, 1, 1))), None, UnreadableChain, "44 "+none4)
	both("IPv4 protocol 44, empty", eth(v4(44, nil)), None, UnreadableChain, "44 "+none4)
	add(carrierIP, "tagged IPv4 fragment header of 7 bytes", eth(v4(253, cat(tagOf(sip, 44), fragHeader(17, 1, 1)[:7]))), L4Truncated, 0, "")
	// 7: the carrier in the wrong place.
	add(carrierUDP, "UDP carrier behind a tag", eth(v4(17, cat(udp(1, 25300), tagOf(sip, 17), udp(1, 25300), tagOf(sip, 6)))), TagMisplaced, 0, "")
	add(carrierUDP, "UDP behind a tag, other port", eth(v4(17, cat(udp(1, 25300), tagOf(sip, 17), udp(40000, 443)))), None, 0, "17 "+ports4)
	add(carrierUDP, "UDP-Lite to 25300 behind a tag", eth(v4(17, cat(udp(1, 25300), tagOf(sip, 136), udp(40000, 25300)))), None, 0, "136 198.51.100.9:40000 203.0.113.2:25300")
	add(carrierIP, "UDP to 25300 behind a tag, carrier ip", eth(v4(253, cat(tagOf(sip, 17), udp(40000, 25300)))), None, 0, "17 198.51.100.9:40000 203.0.113.2:25300")
	// 7: chains that are not walked.
	for _, p := range []byte{43, 51, 60, 135, 139, 140} {
		ext := []byte{6, 0, 0, 0, 0, 0, 0, 0}
		name := string([]byte{'0' + p/100, '0' + p/10%10, '0' + p%10})
		num := strings.TrimLeft(name, "0")
		both("IPv6 header "+name, eth(v6(p, cat(ext, tcp()))), None, UnreadableChain, num+" "+none6)
		both("IPv6 header of 7 bytes "+name, eth(v6(p, ext[:7])), L4Truncated, 0, "")
		add(carrierIP, "carrier behind IPv6 header "+name, eth(v6(p, cat([]byte{253, 0, 0, 0, 0, 0, 0, 0}, tagOf(sip, 6)))), TagMisplaced, 0, "")
		add(carrierUDP, "253 behind IPv6 header, carrier udp, "+name, eth(v6(p, []byte{253, 0, 0, 0, 0, 0, 0, 0})), None, UnreadableChain, num+" "+none6)
		flags := Flags(0)
		if p != 51 && p != 135 && p != 139 && p != 140 {
			flags = UnreadableChain // as a tag's next header it would mean something else
		}
		both("IPv4 protocol "+name, eth(v4(p, ext[:1])), None, flags, num+" "+none4)
	}
	both("two hop-by-hop headers", eth(v6(0, cat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, []byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp()))), None, UnreadableChain, "0 "+none6)
	both("routing header with segments left", eth(v6(43, []byte{6, 0, 4, 1, 0, 0, 0, 0})), None, UnreadableChain|SourceRoute, "43 "+none6)
	both("destination options with byte 3", eth(v6(60, []byte{6, 0, 4, 1, 0, 0, 0, 0})), None, UnreadableChain, "60 "+none6)
	both("IPv4 protocol 0", eth(v4(0, nil)), None, UnreadableChain, "0 "+none4)
	// 7: transport headers.
	for _, c := range []struct {
		name     string
		protocol byte
		need     int
	}{{"TCP", 6, 20}, {"UDP", 17, 8}, {"UDP-Lite", 136, 8}, {"SCTP", 132, 12}, {"DCCP", 33, 12}} {
		l4 := cat([]byte{0x9c, 0x40, 0x01, 0xbb}, zeros(c.need-4))
		num := strings.TrimLeft(string([]byte{'0' + c.protocol/100, '0' + c.protocol/10%10, '0' + c.protocol%10}), "0")
		both(c.name+" in IPv4", eth(v4(c.protocol, l4)), None, 0, num+" "+ports4)
		both(c.name+" in IPv6", eth(v6(c.protocol, l4)), None, 0, num+" "+ports6)
		both(c.name+" short", eth(v4(c.protocol, l4[:c.need-1])), L4Truncated, 0, "")
		both(c.name+" empty in IPv6", eth(v6(c.protocol, nil)), L4Truncated, 0, "")
		add(carrierIP, c.name+" short behind a tag", eth(v6(253, cat(tagOf(sip, c.protocol), l4[:c.need-1]))), L4Truncated, 0, "")
	}
	both("ESP", eth(v4(50, []byte{1, 2, 3, 4})), None, 0, "50 "+none4)
	both("IPv6 no next header", eth(v6(59, zeros(3))), None, 0, "59 "+none6)
	// 7: ICMP.
	echo4, echo6 := "1 198.51.100.9:4386 203.0.113.2:4386", "58 [2001:db8::1]:4386 [2001:db8:ffff::2]:4386"
	both("echo request", eth(v4(1, icmp(8, 0))), None, 0, echo4)
	both("echo reply", eth(v4(1, icmp(0, 0))), None, 0, echo4)
	both("timestamp", eth(v4(1, icmp(13, 0))), None, 0, icmp4)
	both("ICMP of 7 bytes", eth(v4(1, icmp(8, 0)[:7])), L4Truncated, 0, "")
	both("ICMPv6 echo request", eth(v6(58, icmp(128, 0))), None, 0, echo6)
	both("ICMPv6 echo reply", eth(v6(58, icmp(129, 0))), None, 0, echo6)
	both("ICMPv6 type 8", eth(v6(58, icmp(8, 0))), None, 0, icmp6)
	both("ICMPv6 of 7 bytes", eth(v6(58, icmp(128, 0)[:7])), L4Truncated, 0, "")
	both("ICMP in IPv6", eth(v6(1, icmp(3, 0)[:4])), None, 0, "1 "+none6)
	both("ICMPv6 in IPv4", eth(v4(58, icmp(135, 0)[:4])), None, 0, "58 "+none4)
	add(carrierIP, "tagged echo", eth(v4(253, cat(tagOf(sip, 1), icmp(8, 0)))), None, 0, echo4)
	add(carrierIP, "tagged error", eth(v6(253, cat(tagOf(sip, 58), icmp(1, 0)))), None, ICMPError, icmp6)
	for kind := byte(133); kind <= 137; kind++ {
		both("neighbour discovery", eth(v6(58, icmp(kind, 0))), None, ND, icmp6)
		add(carrierIP, "tagged neighbour discovery", eth(v6(253, cat(tagOf(sip, 58), icmp(kind, 0)))), None, 0, icmp6)
	}
	both("ICMPv6 type 132", eth(v6(58, icmp(132, 0))), None, 0, icmp6)
	both("ICMPv6 type 138", eth(v6(58, icmp(138, 0))), None, 0, icmp6)
	for kind, want := range map[byte]Flags{3: ICMPError, 4: 0, 5: 0, 11: ICMPError, 12: ICMPError} {
		both("ICMP type", eth(v4(1, icmp(kind, 4))), None, want, icmp4)
	}
	for kind, want := range map[byte]Flags{1: ICMPError, 2: ICMPError, 3: ICMPError, 4: ICMPError, 5: 0, 130: 0} {
		both("ICMPv6 type", eth(v6(58, icmp(kind, 0))), None, want, icmp6)
	}
	// 7: quotations.
	error4 := func(q []byte) []byte { return eth(v4(1, icmp(3, 4, q...))) }
	error6 := func(q []byte) []byte { return eth(v6(58, icmp(2, 0, q...))) }
	quoted := ICMPError | QuotedCarrier
	add(carrierIP, "quoted carrier", error4(v4(253, nil)), None, quoted, icmp4)
	add(carrierIP, "quoted carrier, 19 bytes", error4(v4(253, nil)[:19]), None, ICMPError, icmp4)
	add(carrierIP, "quoted carrier, version 6", error4(v4(253, nil, set(0, 0x65))), None, ICMPError, icmp4)
	add(carrierIP, "quoted carrier with options", error4(v4(253, nil, set(0, 0x46))), None, quoted, icmp4)
	add(carrierIP, "quoted UDP carrier, carrier ip", error4(v4(17, udp(1, 25300))), None, ICMPError, icmp4)
	add(carrierIP, "quoted IPv6 carrier", error6(v6(253, nil)), None, quoted, icmp6)
	add(carrierIP, "quoted IPv6 carrier, 39 bytes", error6(v6(253, nil)[:39]), None, ICMPError, icmp6)
	add(carrierIP, "quoted in a message that is no error", eth(v4(1, icmp(5, 0, v4(253, nil)...))), None, 0, icmp4)
	add(carrierIP, "quoted behind the end", eth(v4(1, icmp(3, 4, v4(253, nil)...), set(2, 0, 47))), None, ICMPError, icmp4)
	add(carrierUDP, "quoted UDP carrier", error4(v4(17, udp(1, 25300)[:4])), None, quoted, icmp4)
	add(carrierUDP, "quoted UDP carrier, 3 bytes", error4(v4(17, udp(1, 25300)[:3])), None, ICMPError, icmp4)
	add(carrierUDP, "quoted UDP carrier with options", error4(v4(17, udp(1, 25300), set(0, 0x46))), None, ICMPError, icmp4)
	add(carrierUDP, "quoted UDP, other port", error4(v4(17, udp(25300, 1))), None, ICMPError, icmp4)
	add(carrierUDP, "quoted IPv6 UDP carrier", error6(v6(17, udp(1, 25300)[:4])), None, quoted, icmp6)
	add(carrierUDP, "quoted protocol 253, carrier udp", error4(v4(253, zeros(8))), None, ICMPError, icmp4)

	// 8: addresses.
	for _, c := range []struct {
		name     string
		src, dst []byte
		want     Flags
	}{
		{"source 0/8", []byte{0, 1, 2, 3}, nil, Martian},
		{"source 127/8", []byte{127, 0, 0, 1}, nil, Martian},
		{"source 240/4", []byte{240, 0, 0, 1}, nil, Martian},
		{"source broadcast", []byte{255, 255, 255, 255}, nil, Martian | LinkScope},
		{"source multicast", []byte{224, 0, 0, 1}, nil, LinkScope},
		{"source link-local", []byte{169, 254, 0, 1}, nil, LinkScope},
		{"destination 0/8", nil, []byte{0, 0, 0, 0}, Martian},
		{"destination 127/8", nil, []byte{127, 255, 255, 255}, Martian},
		{"destination 240/4", nil, []byte{255, 255, 255, 254}, Martian},
		{"destination broadcast", nil, []byte{255, 255, 255, 255}, LinkScope},
		{"destination multicast", nil, []byte{239, 255, 255, 255}, LinkScope},
		{"destination link-local", nil, []byte{169, 254, 1, 1}, LinkScope},
		{"just outside", []byte{223, 255, 255, 255}, []byte{169, 253, 255, 255}, 0},
		{"the same", []byte{198, 51, 100, 9}, []byte{198, 51, 100, 9}, LAND},
	} {
		e := func(b []byte) { copy(b[12:], c.src); copy(b[16:], c.dst) }
		both("IPv4 "+c.name, eth(v4(50, nil, e)), None, c.want, "")
	}
	addr6 := func(hi, lo uint64) []byte {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)
	}
	for _, c := range []struct {
		name string
		a    []byte
		want Flags
	}{
		{"unspecified", addr6(0, 0), Martian},
		{"loopback", addr6(0, 1), Martian},
		{"v4-mapped", addr6(0, 0xffff0a000001), Martian},
		{"v4-compatible", addr6(0, 0x0a000001), 0},
		{"link-local", addr6(0xfe80<<48, 1), LinkScope},
		{"link-local, last", addr6(0xfebf<<48, 1), LinkScope},
		{"site-local", addr6(0xfec0<<48, 1), 0},
		{"multicast", addr6(0xff02<<48, 1), LinkScope},
	} {
		both("IPv6 source "+c.name, eth(v6(59, nil, set(8, c.a...))), None, c.want, "")
		both("IPv6 destination "+c.name, eth(v6(59, nil, set(24, c.a...))), None, c.want, "")
	}
	both("IPv6 source and destination the same", eth(v6(59, nil, set(8, v6(59, nil)[24:40]...))), None, LAND, "")
	return cases
}

func TestParseRules(t *testing.T) {
	for _, c := range parseCases() {
		var v View
		got := Parse(c.frame, c.carrier, &v)
		if got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
			continue
		}
		if got != None {
			continue
		}
		if v.Flags != c.flags {
			t.Errorf("%s: flags %#x, want %#x", c.name, v.Flags, c.flags)
		}
		if c.tuple != "" && v.Tuple.String() != c.tuple {
			t.Errorf("%s: %v, want %s", c.name, v.Tuple, c.tuple)
		}
		if v.ARP != (v.Family == 0) {
			t.Errorf("%s: family %d, ARP %v", c.name, v.Family, v.ARP)
		}
		if err := invariants(c.frame, c.carrier, &v); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// invariants are what holds for every frame that parses.
func invariants(f []byte, c Carrier, v *View) error {
	if v.L3 > v.End || v.End > len(f) {
		return errors.New("the end is not in the frame")
	}
	if v.Family != 0 && (v.L3 >= v.Place || v.Place > v.Next || v.Next > v.L4 || v.L4 > v.End || v.ProtoAt >= v.Place) {
		return errors.New("offsets out of order")
	}
	if v.Tagged && v.Next-v.Place != c.Overhead(v.Tag.Suite) {
		return errors.New("overhead differs")
	}
	if v.MSSAt != 0 && v.MSSAt+2 > v.End {
		return errors.New("MSS behind the end")
	}
	// Bytes behind the end must not matter.
	var w View
	if a := Parse(append(slices.Clone(f[:v.End]), 0xff, 0xff, 0xff, 0xff), c, &w); a != None {
		return a.Err()
	}
	w.Tag.Sealed, v.Tag.Sealed = nil, nil
	if !sameView(&w, v) {
		return errors.New("bytes behind the end were read")
	}
	return nil
}

func sameView(a, b *View) bool {
	x, y := *a, *b
	same := bytes.Equal(x.Tag.Sealed, y.Tag.Sealed)
	x.Tag.Sealed, y.Tag.Sealed = nil, nil
	tx, ty := x.Tag, y.Tag
	same = same && tx.KeyID() == ty.KeyID() && tx.Nonce == ty.Nonce && tx.Digest == ty.Digest && tx.Flags == ty.Flags
	x.Tag, y.Tag = tag.Header{}, tag.Header{}
	return same && x.Tuple == y.Tuple && x.Flags == y.Flags && x.L3 == y.L3 && x.Place == y.Place && x.Next == y.Next &&
		x.L4 == y.L4 && x.End == y.End && x.MSSAt == y.MSSAt && x.TCPFlags == y.TCPFlags && x.SrcIsLow == y.SrcIsLow &&
		x.ICMPType == y.ICMPType && x.TTL == y.TTL && x.VLAN == y.VLAN && x.NextHeader == y.NextHeader
}

func TestViewFields(t *testing.T) {
	var v View
	f := vlan(0x2123, eth(v4(253, cat(tagOf(tag.Ed25519, 6), syn(1460)))))
	if a := Parse(f, carrierIP, &v); a != None {
		t.Fatal(a)
	}
	if !v.HasVLAN || v.VLAN != 0x123 || v.L3 != 18 || v.Place != 38 || v.Next != 130 || v.L4 != 130 || v.End != len(f) ||
		v.MSSAt != 152 || v.TCPFlags != 2 || v.TTL != 61 || v.Protocol != 6 || v.NextHeader != 6 || v.ProtoAt != 27 ||
		v.SrcPort != 40000 || v.DstPort != 443 || !v.SrcIsLow || !v.Tagged || v.UDPCarrier || v.Tag.UNID != 0xdeadbeef ||
		v.Tag.Epoch != 77 || len(v.Tag.Sealed) != 64 {
		t.Errorf("tagged SYN: %+v", v)
	}
	f = eth(v6(17, cat(udp(1, 25300), tagOf(tag.Siphash, 44), fragHeader(6, 0x41, 0xdeadbeef), zeros(8))))
	if a := Parse(f, carrierUDP, &v); a != None {
		t.Fatal(a)
	}
	if v.HasVLAN || !v.UDPCarrier || v.Next != v.Place+36 || v.L4 != v.Next+8 || !v.Fragment || !v.MoreFragments ||
		v.FragOffset != 64 || v.FragID != 0xdeadbeef || v.Protocol != 6 || v.NextHeader != 44 || v.SrcPort != 0 || v.SrcIsLow {
		t.Errorf("tagged fragment: %+v", v)
	}
	for name, l4 := range map[string][]byte{
		"option not first":  append(tcp(set(12, 0x70, 2)), 1, 1, 1, 1, 2, 4, 5, 0xb4),
		"other length":      append(tcp(set(12, 0x60, 2)), 2, 3, 5, 0xb4),
		"behind the header": append(tcp(set(12, 0x50, 2)), 2, 4, 5, 0xb4),
		"cut":               syn(1460)[:23],
	} {
		if a := Parse(eth(v4(6, l4)), carrierIP, &v); a != None || v.MSSAt != 0 {
			t.Errorf("MSS %s: %v, at %d", name, a, v.MSSAt)
		}
	}
}

func TestParseIP(t *testing.T) {
	for _, c := range []struct {
		name string
		ip   []byte
		want Anomaly
	}{
		{"empty", nil, Truncated}, {"version 0", zeros(40), IPVersion}, {"IPv4", v4(6, tcp()), None},
		{"IPv6", v6(6, tcp()), None}, {"IPv4 cut", v4(6, tcp())[:12], Truncated},
	} {
		var v View
		if got := ParseIP(c.ip, carrierIP, &v); got != c.want || v.L3 != 0 {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for a, want := range map[Anomaly]string{
		None: "none", Truncated: "truncated", VLANStacked: "vlan_stacked", NotIP: "not_ip", IPVersion: "ip_version",
		BadLength: "bad_length", BadOptions: "bad_options", Jumbogram: "jumbogram", TagFragmented: "tag_fragmented",
		TagMalformed: "tag_malformed", TagMisplaced: "tag_misplaced", L4Truncated: "l4_truncated", 200: "anomaly(200)",
	} {
		if a.String() != want {
			t.Errorf("%d is %v, want %s", a, a, want)
		}
		if err := a.Err(); a == None && err != nil || a != None && err.Error() != want {
			t.Errorf("%v has error %v", a, err)
		}
	}
	if !errors.Is(TagMisplaced.Err(), tag.ErrMisplaced) || tag.Reason(BadLength.Err()) != "" {
		t.Error("sentinels")
	}
}

func TestCarrierValidate(t *testing.T) {
	for _, c := range []struct {
		carrier Carrier
		ok      bool
		text    string
	}{
		{carrierIP, true, "ip/253"}, {carrierUDP, true, "udp/25300"}, {Carrier{Protocol: 254, Port: 1}, true, "ip/254"},
		{Carrier{}, false, "ip/0"}, {Carrier{Protocol: 253}, false, "ip/253"}, {Carrier{Protocol: 6, Port: 1}, false, "ip/6"},
		{Carrier{Protocol: 44, Port: 1}, false, "ip/44"}, {Carrier{Protocol: 60, Port: 1}, false, "ip/60"},
		{Carrier{Protocol: 4, Port: 1}, false, "ip/4"}, {Carrier{UDP: true, Protocol: 17, Port: 1}, false, "udp/1"},
	} {
		if err := c.carrier.Validate(); errors.Is(err, ErrCarrier) == c.ok || c.carrier.String() != c.text {
			t.Errorf("%v: %v", c.carrier, err)
		}
	}
	if carrierUDP.Overhead(tag.RSA2048) != 292 || carrierIP.Overhead(tag.Siphash) != 28 {
		t.Error("overhead")
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range parseCases() {
		f.Add(c.frame, c.carrier.UDP, uint8(253), uint16(25300))
	}
	f.Fuzz(func(t *testing.T, b []byte, overUDP bool, protocol uint8, port uint16) {
		c := Carrier{overUDP, protocol, port}
		var v View
		if a := Parse(b, c, &v); a != None {
			return
		}
		if err := invariants(b, c, &v); err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if v.Family != 0 && c.Validate() == nil {
			editAndBack(t, b[v.L3:v.End], c)
		}
	})
}
