package dataplane

import (
	"testing"

	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

const (
	host1, host2, host3, host4, host5, host7 = "10.0.1.9", "10.0.2.9", "10.0.3.9", "10.0.4.9", "10.0.5.9", "10.0.7.9"
	six1, six2, six3, six4, six5             = "fd00:1::9", "fd00:2::9", "fd00:3::9", "fd00:4::9", "fd00:5::9"
	elsewhere, elsewhere6                    = "192.0.2.1", "2001:db8::1"
)

// datagram is an ordinary packet from src to dst.
func datagram(src, dst string) []byte {
	return eth(ip4{src: src, dst: dst, proto: protoUDP}.with(udp(1000, 2000, []byte("payload"))))
}

func datagram6(src, dst string) []byte {
	return eth(ip6{src: src, dst: dst, next: protoUDP, label: 5}.with(udp(1000, 2000, []byte("payload"))))
}

// testDrops reaches every reason for dropping a packet that a single packet can
// have, on IPv4 and IPv6, tagged and not.
func testDrops(t *testing.T) {
	plain, plain6 := datagram(host1, host2), datagram6(six1, six2)
	ip := plain[14:]
	k := tag.NewSiphashKey(peerMAC)
	f := newFixture(t, false,
		policy4(tables.DenyV4{}),
		verifying(k, peerUNID, 100, tables.KeyStateEchoOnly),
		tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: peerUNID, Epoch: 101}, Action: tables.Tombstone{}},
		// A wrong action for a suite counts as key unknown.
		tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: peerUNID, Epoch: 102}, Action: tables.Ed25519Key{State: tables.KeyStateAccepted, K0: 1, K1: 1}},
	)
	tagged := f.fromPeer(datagram(host3, host2), 7)
	tagged6 := f.fromPeer(datagram6(six3, six2), 7)
	const at, at6 = 34, 54 // the tag in a frame without options
	epoch := func(n uint16) []byte { return f.issue(k, peerUNID, n, 1, datagram(host3, host2)) }
	withNext := func(next byte) []byte { return with(tagged, at, next) }
	// rebuilt puts another payload behind a tag that then need not verify.
	rebuilt := func(next byte, payload ...[]byte) []byte {
		return eth(ip4{src: host3, dst: host2, proto: packet.DefaultCarrier.Protocol}.with(with(tagged[at:at+28], 0, next), cat(payload...)))
	}
	rebuilt6 := func(next byte, payload ...[]byte) []byte {
		return eth(ip6{src: six3, dst: six2, next: packet.DefaultCarrier.Protocol}.with(with(tagged6[at6:at6+28], 0, next), cat(payload...)))
	}
	v4 := func(proto byte, payload ...[]byte) []byte {
		return eth(ip4{src: host1, dst: host2, proto: proto}.with(payload...))
	}
	v6 := func(next byte, payload ...[]byte) []byte {
		return eth(ip6{src: six1, dst: six2, next: next}.with(payload...))
	}
	options := func(o ...byte) []byte {
		return eth(ip4{src: host1, dst: host2, proto: protoUDP, options: o}.with(udp(1, 2)))
	}
	zeros := make([]byte, 32)

	for _, c := range []struct {
		name   string
		port   uint16
		frame  []byte
		reason tables.Reason
		also   []tables.Outcome
	}{
		{"unknown port", unknown6, plain, tables.ReasonUnknownPort, nil},
		{"unknown VLAN", edge1, eth(ip, 9), tables.ReasonUnknownPort, nil},

		{"IPv4 header cut", edge1, plain[:14+19], tables.ReasonTruncated, nil},
		{"IPv6 header cut", edge1, plain6[:14+39], tables.ReasonTruncated, nil},
		{"ARP cut", edge1, ethType(0x0806, zeros[:27]), tables.ReasonTruncated, nil},
		{"nothing behind Ethernet", edge1, ethType(0x0800, nil), tables.ReasonTruncated, nil},
		{"two 802.1Q", edge1, eth(ip, vlan100, vlan100), tables.ReasonVLANStacked, nil},
		{"802.1ad", edge1, ethType(0x88a8, cat([]byte{0, 5, 8, 0}, ip)), tables.ReasonVLANStacked, nil},
		{"LLDP", edge1, ethType(0x88cc, zeros), tables.ReasonNotIP, nil},
		{"IPv6 in IPv4's EtherType", edge1, ethType(0x0800, plain6[14:]), tables.ReasonIPVersion, nil},
		{"IPv4 in IPv6's EtherType", edge1, ethType(0x86dd, cat(ip, zeros)), tables.ReasonIPVersion, nil},
		{"IHL 4", edge1, with(plain, 14, 0x44), tables.ReasonBadLength, nil},
		{"total length below IHL", edge1, with(plain, 16, 0, 19), tables.ReasonBadLength, nil},
		{"total length beyond frame", edge1, with(plain, 16, 0, byte(len(ip)+1)), tables.ReasonBadLength, nil},
		{"payload length beyond frame", edge1, with(plain6, 18, 0, byte(len(plain6)-53)), tables.ReasonBadLength, nil},
		{"hop-by-hop beyond packet", edge1, v6(0, []byte{17, 1, 0, 0, 0, 0, 0, 0}), tables.ReasonBadLength, nil},
		{"hop-by-hop cut", edge1, v6(0, []byte{17, 0, 0, 0}), tables.ReasonBadLength, nil},
		{"option without length", edge1, options(1, 1, 1, 7), tables.ReasonBadOptions, nil},
		{"option of length 1", edge1, options(7, 1, 0, 0), tables.ReasonBadOptions, nil},
		{"option beyond header", edge1, options(7, 5, 0, 0), tables.ReasonBadOptions, nil},
		{"jumbogram", edge1, with(v6(0, zeros), 18, 0, 0), tables.ReasonJumbogram, nil},

		{"UDP cut", edge1, v4(protoUDP, zeros[:7]), tables.ReasonL4Truncated, nil},
		{"TCP cut", edge1, v4(protoTCP, zeros[:19]), tables.ReasonL4Truncated, nil},
		{"SCTP cut", edge1, v4(132, zeros[:11]), tables.ReasonL4Truncated, nil},
		{"DCCP cut", edge1, v6(33, zeros[:11]), tables.ReasonL4Truncated, nil},
		{"UDP-Lite cut", edge1, v6(136, zeros[:7]), tables.ReasonL4Truncated, nil},
		{"ICMP cut", edge1, v4(protoICMP, zeros[:7]), tables.ReasonL4Truncated, nil},
		{"ICMPv6 cut", edge1, v6(protoICMPv6, zeros[:7]), tables.ReasonL4Truncated, nil},
		{"fragment header cut", edge1, v6(44, zeros[:7]), tables.ReasonL4Truncated, nil},
		{"extension header cut", edge1, v6(60, zeros[:7]), tables.ReasonL4Truncated, nil},
		{"TCP cut behind tag", trunk3, rebuilt(protoTCP, zeros[:19]), tables.ReasonL4Truncated, nil},
		{"padding is not read", edge1, cat(v4(protoTCP, zeros[:19]), zeros), tables.ReasonL4Truncated, nil},

		{"IPv4 checksum", edge1, with(plain, 24, 1), tables.ReasonBadChecksum, nil},
		{"IPv4 checksum of a tagged packet", trunk3, with(tagged, 24, 1), tables.ReasonBadChecksum, nil},
		{"loose source route", edge1, options(131, 3, 4, 0), tables.ReasonSourceRoute, nil},
		{"strict source route behind NOP", edge1, options(1, 137, 3, 4), tables.ReasonSourceRoute, nil},
		{"routing header", edge1, v6(43, []byte{17, 0, 2, 1}, zeros), tables.ReasonSourceRoute, nil},
		{"spent routing header", edge1, v6(43, []byte{17, 0, 2, 0}, zeros), tables.ReasonUnreadableChain, nil},
		{"destination options", edge1, v6(60, zeros), tables.ReasonUnreadableChain, nil},
		{"second hop-by-hop", edge1, v6(0, zeros[:8], zeros[:8]), tables.ReasonUnreadableChain, nil},
		{"IPv4 protocol 0", edge1, v4(0, zeros), tables.ReasonUnreadableChain, nil},
		{"IPv4 protocol 43", edge1, v4(43, zeros), tables.ReasonUnreadableChain, nil},
		{"IPv4 protocol 44", edge1, v4(44, zeros), tables.ReasonUnreadableChain, nil},
		{"IPv4 protocol 60", edge1, v4(60, zeros), tables.ReasonUnreadableChain, nil},
		{"authentication header", edge1, v6(51, zeros), tables.ReasonUnreadableChain, nil},

		{"from 0/8", edge1, datagram("0.1.2.3", host2), tables.ReasonMartian, nil},
		{"to 127/8", edge1, datagram(host1, "127.0.0.1"), tables.ReasonMartian, nil},
		{"from 240/4", edge1, datagram("240.0.0.1", host2), tables.ReasonMartian, nil},
		{"to 240/4", edge1, datagram(host1, "255.255.255.254"), tables.ReasonMartian, nil},
		{"from ::", edge1, datagram6("::", six2), tables.ReasonMartian, nil},
		{"to ::1", edge1, datagram6(six1, "::1"), tables.ReasonMartian, nil},
		{"to IPv4-mapped", edge1, datagram6(six1, "::ffff:10.0.2.9"), tables.ReasonMartian, nil},
		{"to 169.254/16", edge1, datagram(host1, "169.254.1.1"), tables.ReasonLinkScope, nil},
		{"from 169.254/16", edge1, datagram("169.254.1.1", host2), tables.ReasonLinkScope, nil},
		{"to 224/4", edge1, datagram(host1, "239.1.1.1"), tables.ReasonLinkScope, nil},
		{"broadcast", edge1, datagram(host1, "255.255.255.255"), tables.ReasonLinkScope, nil},
		{"from fe80::/10", edge1, datagram6("fe80::1", six2), tables.ReasonLinkScope, nil},
		{"from febf::", edge1, datagram6("febf::1", six2), tables.ReasonLinkScope, nil},
		{"to ff00::/8", edge1, datagram6(six1, "ff05::1"), tables.ReasonLinkScope, nil},
		{"tagged to multicast", trunk3, rebuiltTo(tagged, "239.1.1.1"), tables.ReasonLinkScope, nil},

		{"tag on edge", edge1, tagged, tables.ReasonTagOnEdge, nil},
		{"malformed tag on edge", edge1, with(tagged, at+2, 0), tables.ReasonTagOnEdge, nil},
		{"fragmented tag on edge", edge1, mendFrame(with(tagged, 20, 0x20)), tables.ReasonTagOnEdge, nil},
		{"tag without E on echo", echo5, tagged, tables.ReasonTagOnEdge, nil},
		{"another site's tag on echo", echo5, with(tagged, at+3, 1), tables.ReasonTagOnEdge, nil},
		{"untagged on trunk", trunk3, datagram(host3, host2), tables.ReasonUntaggedOnTrunk, nil},
		{"untagged on trunk, IPv6", trunk3, datagram6(six3, six2), tables.ReasonUntaggedOnTrunk, nil},
		{"ICMP error without tag on trunk", trunk3, eth(ip4{src: host3, dst: host2, proto: protoICMP}.with(icmp(3, ip))), tables.ReasonUntaggedOnTrunk, nil},

		{"tag version 2", trunk3, with(tagged, at+2, 0x21), tables.ReasonTagMalformed, nil},
		{"tag suite 4", trunk3, with(tagged, at+2, 0x14), tables.ReasonTagMalformed, nil},
		{"tag suite 0", trunk3, with(tagged, at+2, 0x10), tables.ReasonTagMalformed, nil},
		{"tag length", trunk3, with(tagged, at+1, 8), tables.ReasonTagMalformed, nil},
		{"tag flag", trunk3, with(tagged, at+3, 2), tables.ReasonTagMalformed, nil},
		{"E on trunk", trunk3, with(tagged, at+3, 1), tables.ReasonTagMalformed, nil},
		{"tag reserved", trunk3, with(tagged, at+11, 1), tables.ReasonTagMalformed, nil},
		{"tag cut", trunk3, eth(ip4{src: host3, dst: host2, proto: 253}.with(tagged[at : at+27])), tables.ReasonTagMalformed, nil},
		{"seal cut", trunk3, with(tagged, at+1, 23, 0x12), tables.ReasonTagMalformed, nil},
		{"suite 3 with nonce", trunk3, eth(ip4{src: host3, dst: host2, proto: 253}.with(with(tagged[at:at+28], 1, 71, 0x13), make([]byte, 256))), tables.ReasonTagMalformed, nil},
		{"next header 0", trunk3, withNext(0), tables.ReasonTagMalformed, nil},
		{"next header 253", trunk3, withNext(253), tables.ReasonTagMalformed, nil},
		{"next header 43 in IPv4", trunk3, withNext(43), tables.ReasonTagMalformed, nil},
		{"next header 60 in IPv4", trunk3, withNext(60), tables.ReasonTagMalformed, nil},

		{"tag behind fragment header", trunk3, rebuilt6(44, fragmentHeader(253, 0, 1), zeros), tables.ReasonTagMisplaced, nil},
		{"tag behind extension header", open7, eth(ip6{src: six3, dst: six2, next: 60}.with([]byte{253, 0, 0, 0, 0, 0, 0, 0}, tagged6[at6:])), tables.ReasonTagMisplaced, nil},
		{"fragmented on the way", trunk3, mendFrame(with(tagged, 20, 0x20)), tables.ReasonTagFragmented, nil},
		{"later fragment of the carrier", trunk3, mendFrame(with(tagged, 21, 5)), tables.ReasonTagFragmented, nil},

		{"retired key", trunk3, epoch(101), tables.ReasonTagRevoked, nil},
		{"echo-only key on trunk", trunk3, epoch(100), tables.ReasonTagRevoked, nil},
		{"forged digest", trunk3, with(tagged, at+27, tagged[at+27]^1), tables.ReasonTagForged, nil},
		{"forged digest, IPv6", trunk3, with(tagged6, at6+20, tagged6[at6+20]^0x80), tables.ReasonTagForged, nil},
		{"other nonce", trunk3, with(tagged, at+12, 1), tables.ReasonTagForged, nil},
		{"other port", trunk3, with(tagged, at+28, 1), tables.ReasonTagForged, nil},
		{"other address", trunk3, rebuiltTo(tagged, "10.0.2.10"), tables.ReasonTagForged, nil},

		{"no route", trunk3, f.fromPeer(datagram(host3, elsewhere), 1), tables.ReasonNoRoute, verifiedSiphash},
		{"no route, IPv6", trunk3, f.fromPeer(datagram6(six3, elsewhere6), 1), tables.ReasonNoRoute, verifiedSiphash},
		{"denied", edge1, plain, tables.ReasonPolicyDeny, nil},
		{"matches no rule", edge1, plain6, tables.ReasonPolicyDefault, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := f.sub(t)
			f.send(c.port, c.frame, want{drop: c.reason, outcomes: c.also})
		})
	}

	t.Run("unknown key", func(t *testing.T) {
		f := f.sub(t)
		for name, frame := range map[string][]byte{"epoch": epoch(999), "wrong action": epoch(102)} {
			t.Log(name)
			f.send(trunk3, frame, want{drop: tables.ReasonTagUnknownKey, copied: tables.ReasonTagUnknownKey})
		}
	})
}

var verifiedSiphash = []tables.Outcome{tables.OutcomeVerifiedSiphash}

// rebuiltTo changes an IPv4 frame's destination.
func rebuiltTo(frame []byte, dst string) []byte {
	a := eth(ip4{src: dst, dst: dst}.with())[14+16:]
	return mendFrame(with(frame, 30, a...))
}

// mendFrame makes the IPv4 checksum of a frame right.
func mendFrame(frame []byte) []byte {
	mend(frame[14:])
	return frame
}
