package dataplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/tables"
	"countersign/tag"
)

var (
	plainOutcome = []tables.Outcome{tables.OutcomeForwardedPlain}
	tagOutcome   = []tables.Outcome{tables.OutcomeTagged}
	retagOutcome = []tables.Outcome{tables.OutcomeVerifiedSiphash, tables.OutcomeRetagged}
	stripOutcome = []tables.Outcome{tables.OutcomeVerifiedSiphash, tables.OutcomeStripped}
)

// testSessions lets an admitted session pass in both directions, each from its
// own zone only.
func testSessions(t *testing.T) {
	for name, pair := range map[string][2][]byte{
		"IPv4, low initiates":  {datagram(host1, host2), eth(ip4{src: host2, dst: host1, proto: protoUDP}.with(udp(2000, 1000)))},
		"IPv4, high initiates": {datagram(host2, host1), eth(ip4{src: host1, dst: host2, proto: protoUDP}.with(udp(2000, 1000)))},
		"IPv6":                 {datagram6(six1, six2), eth(ip6{src: six2, dst: six1, next: protoUDP}.with(udp(2000, 1000)))},
		"echo": {
			eth(ip4{src: host1, dst: host2, proto: protoICMP}.with(icmp(8, []byte("ping")))),
			eth(ip4{src: host2, dst: host1, proto: protoICMP}.with(icmp(0, []byte("ping")))),
		},
		"ICMPv6 echo": {
			eth(ip6{src: six1, dst: six2, next: protoICMPv6}.with(icmp(128, []byte("ping")))),
			eth(ip6{src: six2, dst: six1, next: protoICMPv6}.with(icmp(129, []byte("ping")))),
		},
		"SCTP": {
			eth(ip4{src: host1, dst: host2, proto: 132}.with(be16(7), be16(9), make([]byte, 8))),
			eth(ip4{src: host2, dst: host1, proto: 132}.with(be16(9), be16(7), make([]byte, 8))),
		},
		"protocol without ports": {
			eth(ip4{src: host1, dst: host2, proto: 47}.with([]byte("GRE"))),
			eth(ip4{src: host2, dst: host1, proto: 47}.with([]byte("GRE"))),
		},
	} {
		t.Run(name, func(t *testing.T) {
			there, back := pair[0], pair[1]
			f := newFixture(t, false)
			from, to := uint16(edge1), uint16(edge2)
			if bytes.Equal(there, datagram(host2, host1)) {
				from, to = edge2, edge1
			}
			f.send(from, there, want{drop: tables.ReasonPolicyDefault})
			entry := f.admitted(there, from, to)
			f.insert(entry)
			f.send(from, there, want{out: to, frame: f.routed(there, to), outcomes: plainOutcome})
			f.send(to, back, want{out: from, frame: f.routed(back, from), outcomes: plainOutcome})
			f.send(to, there, want{drop: tables.ReasonWrongZone})
			f.send(from, back, want{drop: tables.ReasonWrongZone})

			e := f.admitted(there, from, tables.ZoneAny)
			f.modify(e, entry)
			f.send(open7, back, want{out: from, frame: f.routed(back, from), outcomes: plainOutcome})
			f.direct(entry, 5)
		})
	}
}

// direct checks a session entry's own counter.
func (f *fixture) direct(e tables.Entry, packets int64) {
	f.Helper()
	te, err := e.ToProto()
	must(f.T, err)
	te.Action, te.CounterData = nil, &p4v1.CounterData{}
	got, err := f.Read(f.ctx, &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: te}})
	must(f.T, err)
	if len(got) != 1 || got[0].GetTableEntry().GetCounterData().GetPacketCount() != packets {
		f.Errorf("direct counter of %v, want %d packets", got, packets)
	}
}

// testTCPFlags copies what begins and ends a session.
func testTCPFlags(t *testing.T) {
	for name, c := range map[string]struct {
		flags  byte
		copied bool
	}{
		"SYN": {syn, false}, "SYN-ACK": {syn | ack, true}, "ACK": {ack, false}, "PSH-ACK": {0x18, false},
		"FIN": {fin | ack, true}, "RST": {rst, true}, "RST-ACK": {rst | ack, true},
	} {
		t.Run(name, func(t *testing.T) {
			frame := eth(tcp4(host1, host2, tcp(1, 2, c.flags, nil)))
			f := newFixture(t, false)
			f.insert(f.admitted(frame, edge1, edge2))
			w := want{out: edge2, frame: f.routed(frame, edge2), outcomes: plainOutcome}
			f.sendBack(edge1, frame, w)
			if c.copied {
				w.copied, w.egress = tables.ReasonTCPFlags, edge2
			}
			f.send(edge1, frame, w)
		})
	}
}

// testPolicy has rules of every kind decide, and a returned packet decided
// without another punt.
func testPolicy(t *testing.T) {
	plain, plain6 := datagram(host1, host2), datagram6(six1, six2)
	t.Run("admit", func(t *testing.T) {
		f := newFixture(t, false, policy4(tables.AdmitV4{}), policy6(tables.AdmitV6{}))
		for _, frame := range [][]byte{plain, plain6} {
			f.send(edge1, frame, want{hold: tables.ReasonNewSession, egress: edge2})
			f.sendBack(edge1, frame, want{drop: tables.ReasonPuntLoop})
			f.insert(f.admitted(frame, edge1, edge2))
			w := want{out: edge2, frame: f.routed(frame, edge2), outcomes: plainOutcome}
			f.sendBack(edge1, frame, w)
			f.send(edge1, frame, w)
		}
	})
	t.Run("admit towards trunk", func(t *testing.T) {
		f := newFixture(t, false, policy4(tables.AdmitV4{}))
		frame := datagram(host1, host4)
		f.send(edge1, frame, want{hold: tables.ReasonNewSession, egress: trunk4})
		f.insert(f.admitted(frame, edge1, trunk4))
		f.sendBack(edge1, frame, want{out: trunk4, frame: f.routed(frame, trunk4), signed: true, outcomes: tagOutcome})
		f.send(edge1, frame, want{out: trunk4, frame: f.routed(frame, trunk4), signed: true, outcomes: tagOutcome})
	})
	t.Run("await", func(t *testing.T) {
		f := newFixture(t, false, policy4(tables.AwaitV4{}), policy6(tables.AwaitV6{}))
		for _, frame := range [][]byte{plain, plain6} {
			f.send(edge1, frame, want{hold: tables.ReasonReplyUnknown, egress: edge2})
		}
	})
	t.Run("deny binds tagged packets where it says so", func(t *testing.T) {
		f := newFixture(t, false, policy4(tables.DenyV4{}), policy6(tables.DenyV6{}))
		always := tables.PolicyV4Entry{Key: tables.PolicyV4Key{DstPort: tables.Between[uint16](1999, 2000)}, Action: tables.DenyV4{}, Priority: 20}
		tagged, tagged6 := f.fromPeer(datagram(host3, host2), 1), f.fromPeer(datagram6(six3, six2), 1)
		f.insert(f.delivered(tagged), f.delivered(tagged6))
		f.send(trunk3, tagged, want{out: edge2, frame: f.routed(f.stripped(tagged), edge2), outcomes: stripOutcome})
		f.send(trunk3, tagged6, want{out: edge2, frame: f.routed(f.stripped(tagged6), edge2), outcomes: stripOutcome})
		f.insert(always)
		f.send(trunk3, tagged, want{drop: tables.ReasonPolicyDeny, outcomes: verifiedSiphash})
	})
	t.Run("fields and priorities", func(t *testing.T) {
		any1 := tables.Ternary[uint8]{Mask: 1}
		exact := func(v uint32) tables.Ternary[uint32] { return tables.Ternary[uint32]{Value: v, Mask: 0xffffffff} }
		f := newFixture(t, false, policy4(tables.TagV4{}))
		for i, c := range []struct {
			name  string
			key   tables.PolicyV4Key
			match bool
		}{
			{"in zone", tables.PolicyV4Key{InZone: tables.Ternary[uint16]{Value: edge1, Mask: 0xffff}}, true},
			{"other in zone", tables.PolicyV4Key{InZone: tables.Ternary[uint16]{Value: edge2, Mask: 0xffff}}, false},
			{"out zone", tables.PolicyV4Key{OutZone: tables.Ternary[uint16]{Value: edge2, Mask: 0xffff}}, true},
			{"other out zone", tables.PolicyV4Key{OutZone: tables.Ternary[uint16]{Value: edge1, Mask: 0xffff}}, false},
			{"source", tables.PolicyV4Key{Src: exact(0x0a000109)}, true},
			{"other source", tables.PolicyV4Key{Src: exact(0x0a000209)}, false},
			{"destination", tables.PolicyV4Key{Dst: tables.Ternary[uint32]{Value: 0x0a000200, Mask: 0xffffff00}}, true},
			{"other destination", tables.PolicyV4Key{Dst: exact(0x0a000109)}, false},
			{"protocol", tables.PolicyV4Key{Protocol: tables.Ternary[uint8]{Value: protoUDP, Mask: 0xff}}, true},
			{"other protocol", tables.PolicyV4Key{Protocol: tables.Ternary[uint8]{Value: protoTCP, Mask: 0xff}}, false},
			{"source port", tables.PolicyV4Key{SrcPort: tables.Between[uint16](1000, 1000)}, true},
			{"other source port", tables.PolicyV4Key{SrcPort: tables.Between[uint16](1001, 65535)}, false},
			{"destination port", tables.PolicyV4Key{DstPort: tables.Between[uint16](0, 2000)}, true},
			{"other destination port", tables.PolicyV4Key{DstPort: tables.Between[uint16](0, 1999)}, false},
			{"TCP flags", tables.PolicyV4Key{TCPFlags: tables.Ternary[uint8]{Value: syn, Mask: syn | ack}}, false},
			{"kind", tables.PolicyV4Key{Kind: tables.Ternary[uint16]{Value: 0, Mask: 0xffff}}, true},
			{"other kind", tables.PolicyV4Key{Kind: tables.Ternary[uint16]{Value: 1, Mask: 0xffff}}, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				f := f.sub(t)
				c.key.Tagged = any1
				f.insert(tables.PolicyV4Entry{Key: c.key, Action: tables.DenyV4{}, Priority: int32(20 + i)})
				w := want{out: edge2, frame: f.routed(plain, edge2), outcomes: plainOutcome}
				if c.match {
					w = want{drop: tables.ReasonPolicyDeny}
				}
				f.send(edge1, plain, w)
			})
		}
	})
	t.Run("untagged on a trunk that allows it", func(t *testing.T) {
		f := newFixture(t, false, policy4(tables.TagV4{}))
		frame := datagram(host7, host4)
		f.send(open7, frame, want{out: trunk4, frame: f.routed(frame, trunk4), signed: true, outcomes: tagOutcome})
	})
}

// testFirstSeen copies each packet to an edge until the session is known.
func testFirstSeen(t *testing.T) {
	f := newFixture(t, false)
	for _, plain := range [][]byte{datagram(host3, host2), datagram6(six3, six2)} {
		tagged := f.fromPeer(plain, 3)
		w := want{out: edge2, frame: f.routed(f.stripped(tagged), edge2), outcomes: stripOutcome}
		seen := w
		seen.copied, seen.egress = tables.ReasonFirstSeen, edge2
		f.send(trunk3, tagged, seen)
		f.send(trunk3, tagged, seen)
		f.sendBack(trunk3, tagged, w)
		f.insert(f.delivered(tagged))
		f.send(trunk3, tagged, w)
	}
}

// testEcho sends the member's own tag to hosts and takes back what they echo.
func testEcho(t *testing.T) {
	k := tag.NewSiphashKey(ownMAC)
	k0, k1 := ownMAC.Words()
	own := func(state tables.KeyState, site uint8) tables.IssuerKeyEntry {
		return tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: ownUNID, Epoch: ownEpoch},
			Action: tables.SiphashKey{State: state, OwnSite: site, K0: k0, K1: k1}}
	}
	accepted := own(tables.KeyStateAccepted, 1)
	f := newFixture(t, false, accepted)
	there := f.fromPeer(datagram(host3, host5), 1)
	f.send(trunk3, there, want{out: echo5, frame: f.routed(there, echo5), retagged: true, outcomes: retagOutcome})

	reply := eth(ip4{src: host5, dst: host3, proto: protoUDP}.with(udp(2000, 1000)))
	back := with(f.issue(k, ownUNID, ownEpoch, 55, reply), 34+3, tag.FlagEcho)
	w := want{out: trunk3, frame: f.routed(back, trunk3), retagged: true, outcomes: retagOutcome}
	f.send(echo5, back, w)
	f.modify(own(tables.KeyStateEchoOnly, 1), accepted)
	f.send(echo5, back, w)
	f.write(p4v1.Update_MODIFY, own(tables.KeyStateAccepted, 0))
	f.send(echo5, back, want{drop: tables.ReasonTagOnEdge})
}

// testHolds reaches what waits for the CPU by no rule of the policy.
func testHolds(t *testing.T) {
	f := newFixture(t, false, policy4(tables.TagV4{}), policy6(tables.TagV6{}),
		tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 0x0a000101, PrefixLen: 32}}, Action: tables.NextHopsOneShot{{Action: tables.ToMe{}, Weight: 1}}},
		tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 0x0a0001fe, PrefixLen: 32}}, Action: tables.NextHopsOneShot{{Action: tables.NoRoute{}, Weight: 1}}},
	)
	arp := ethType(0x0806, cat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, make([]byte, 20)))
	neighbour := eth(ip6{src: "fe80::1", dst: "ff02::1:ff00:1", next: protoICMPv6, hops: 255}.with(icmp(135, make([]byte, 20))))
	big := func(src, dst string, n int) []byte {
		return eth(ip4{src: src, dst: dst, proto: protoUDP}.with(udp(1, 2, make([]byte, n-28))))
	}
	big6 := func(src, dst string, n int) []byte {
		return eth(ip6{src: src, dst: dst, next: protoUDP}.with(udp(1, 2, make([]byte, n-48))))
	}
	quoted := datagram(host2, host1)[14:]
	peers := f.fromPeer(datagram(host2, host1), 1)[14:]
	peers6 := f.fromPeer(datagram6(six2, six1), 1)[14:]
	for _, c := range []struct {
		name  string
		port  uint16
		frame []byte
		w     want
	}{
		{"ARP on edge", edge1, arp, want{hold: tables.ReasonToMe}},
		{"ARP on trunk", trunk3, arp, want{hold: tables.ReasonToMe}},
		{"neighbour discovery on edge", edge1, neighbour, want{hold: tables.ReasonToMe}},
		{"neighbour discovery on trunk", trunk3, neighbour, want{hold: tables.ReasonToMe}},
		{"own address", edge2, datagram(host2, "10.0.1.1"), want{hold: tables.ReasonToMe}},
		{"tagged to own address", trunk3, f.fromPeer(datagram(host3, "10.0.1.1"), 1), want{hold: tables.ReasonToMe, outcomes: verifiedSiphash}},
		{"route that rejects", edge2, datagram(host2, "10.0.1.254"), want{drop: tables.ReasonNoRoute}},

		{"TTL 1", edge1, eth(ip4{src: host1, dst: host2, proto: 47, ttl: 1}.with()), want{hold: tables.ReasonTTLExpired, egress: edge2}},
		{"TTL 2", edge1, eth(ip4{src: host1, dst: host2, proto: 47, ttl: 2}.with()), want{out: edge2, outcomes: plainOutcome}},
		{"hop limit 1", edge1, eth(ip6{src: six1, dst: six2, next: 47, hops: 1}.with()), want{hold: tables.ReasonTTLExpired, egress: edge2}},
		{"hop limit 0", edge1, with(datagram6(six1, six2), 21, 0), want{hold: tables.ReasonTTLExpired, egress: edge2}},
		{"tagged, TTL 1", trunk3, f.fromPeer(eth(ip4{src: host3, dst: host4, proto: 47, ttl: 1}.with()), 1), want{hold: tables.ReasonTTLExpired, egress: trunk4, outcomes: verifiedSiphash}},

		{"as big as the MTU", edge1, big(host1, host2, mtu), want{out: edge2, outcomes: plainOutcome}},
		{"bigger than the MTU", edge1, big(host1, host2, mtu+1), want{hold: tables.ReasonTooBig, egress: edge2}},
		{"as big as the MTU with tag", edge1, big(host1, host4, mtu-28), want{out: trunk4, signed: true, outcomes: tagOutcome}},
		{"bigger than the MTU with tag", edge1, big(host1, host4, mtu-27), want{hold: tables.ReasonTooBig, egress: trunk4}},
		{"bigger than the MTU with tag, IPv6", edge1, big6(six1, six4, mtu-27), want{hold: tables.ReasonTooBig, egress: trunk4}},
		{"retagged as big as the MTU", trunk3, f.fromPeer(big(host3, host4, mtu-28), 1), want{out: trunk4, retagged: true, outcomes: retagOutcome}},
		{"retagged bigger than the MTU", trunk3, f.fromPeer(big(host3, host4, mtu-27), 1), want{hold: tables.ReasonTooBig, egress: trunk4, outcomes: verifiedSiphash}},
		{"bigger than the MTU before strip", trunk3, f.fromPeer(big(host3, host2, mtu), 1), want{out: edge2, outcomes: stripOutcome, copied: tables.ReasonFirstSeen, egress: edge2}},

		{"ICMP error on edge", edge1, eth(ip4{src: "10.9.9.9", dst: host2, proto: protoICMP}.with(icmp(3, quoted))), want{hold: tables.ReasonICMPError, egress: edge2}},
		{"ICMPv6 error on edge", edge1, eth(ip6{src: six1, dst: six2, next: protoICMPv6}.with(icmp(2, make([]byte, 48)))), want{hold: tables.ReasonICMPError, egress: edge2}},
		{"ICMP error about a tagged packet", trunk3, eth(ip4{src: "10.9.9.9", dst: host2, proto: protoICMP}.with(icmp(3, peers[:28]))), want{hold: tables.ReasonICMPError, egress: edge2}},
		{"ICMPv6 error about a tagged packet", trunk3, eth(ip6{src: six3, dst: six2, next: protoICMPv6}.with(icmp(2, peers6))), want{hold: tables.ReasonICMPError, egress: edge2}},
		{"ICMP error that quotes too little", trunk3, eth(ip4{src: "10.9.9.9", dst: host2, proto: protoICMP}.with(icmp(3, peers[:19]))), want{drop: tables.ReasonUntaggedOnTrunk}},

		{"first fragment", edge1, eth(ip4{src: host1, dst: host2, proto: protoUDP, id: 9, frag: 0x2000}.with(udp(1, 2, make([]byte, 16)))), want{hold: tables.ReasonFragment, egress: edge2}},
		{"last fragment", edge1, eth(ip4{src: host1, dst: host2, proto: protoUDP, id: 9, frag: 3}.with(make([]byte, 5))), want{hold: tables.ReasonFragment, egress: edge2}},
		{"IPv6 atomic fragment", edge1, eth(ip6{src: six1, dst: six2, next: 44}.with(fragmentHeader(protoUDP, 0, 9), udp(1, 2))), want{hold: tables.ReasonFragment, egress: edge2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := f.sub(t)
			if c.w.out != 0 {
				c.w.frame = f.routed(c.frame, c.w.out)
				if f.view(c.frame).Tagged && !c.w.retagged {
					c.w.frame = f.stripped(c.w.frame)
				}
			}
			f.send(c.port, c.frame, c.w)
		})
	}
	t.Run("never twice", func(t *testing.T) {
		f := f.sub(t)
		f.sendBack(edge1, arp, want{drop: tables.ReasonPuntLoop})
		f.sendBack(edge1, eth(ip4{src: host1, dst: host2, proto: 47, ttl: 1}.with()), want{drop: tables.ReasonPuntLoop})
	})
	t.Run("fragments of a session", func(t *testing.T) {
		f := f.sub(t)
		for _, frame := range [][]byte{
			eth(ip4{src: host1, dst: host4, proto: protoUDP, id: 10, frag: 0x6000}.with(udp(1, 2, make([]byte, 16)))),
			eth(ip4{src: host1, dst: host4, proto: protoTCP, id: 11, frag: 3}.with(make([]byte, 5))),
			eth(ip6{src: six1, dst: six4, next: 44, label: 1}.with(fragmentHeader(protoUDP, 8|1, 0x12345678), make([]byte, 8))),
		} {
			f.insert(f.admitted(frame, edge1, trunk4))
			f.send(edge1, frame, want{out: trunk4, frame: f.routed(frame, trunk4), signed: true, outcomes: tagOutcome})
		}
	})
}

// testUnsigned drops what would have to leave without a tag.
func testUnsigned(t *testing.T) {
	f := newFixture(t, false, tagAll()...)
	f.write(p4v1.Update_DELETE, ownKey(tables.RoleTrunk))
	f.Cleanup(func() { f.write(p4v1.Update_INSERT, ownKey(tables.RoleTrunk)) })
	f.send(edge1, datagram(host1, host4), want{drop: tables.ReasonNoSigningKey})
	f.send(trunk3, f.fromPeer(datagram(host3, host4), 1), want{drop: tables.ReasonNoSigningKey, outcomes: verifiedSiphash})
}

// testVouched takes only the very tag that the CPU has verified.
func testVouched(t *testing.T) {
	all := readVectors(t)
	for _, s := range []tag.Suite{tag.Ed25519, tag.RSA2048} {
		t.Run(s.String(), func(t *testing.T) {
			f := newFixture(t, false)
			k := all.key(t, 0, s)
			f.insert(verifying(k, peerUNID, 1, tables.KeyStateAccepted))
			const at = 34
			frame := f.issue(k, peerUNID, 1, 9, datagram(host3, host4))
			f.insert(f.vouched(frame))
			w := want{out: trunk4, frame: f.routed(frame, trunk4), retagged: true, outcomes: []tables.Outcome{verifiedOutcome[s], tables.OutcomeRetagged}}
			f.send(trunk3, frame, w)
			last := at + s.TagLen() - 1
			f.send(trunk3, with(frame, last, frame[last]^1), want{hold: tables.ReasonTagUnverified})
			unknown := f.issue(k, peerUNID, 2, 9, datagram(host3, host4))
			f.send(trunk3, unknown, want{drop: tables.ReasonTagUnknownKey, copied: tables.ReasonTagUnknownKey})
			other := f.issue(k, peerUNID, 1, 9, datagram(host3, "10.0.4.10"))
			f.send(trunk3, other, want{hold: tables.ReasonTagUnverified})
			f.sendBack(trunk3, other, want{drop: tables.ReasonPuntLoop})
			if s == tag.Ed25519 {
				f.send(trunk3, with(frame, at+27, frame[at+27]^1), want{drop: tables.ReasonTagForged})
			}
		})
	}
}

// testVLAN takes 802.1Q tags off, puts them on and changes them.
func testVLAN(t *testing.T) {
	plain := datagram(host1, elsewhere)
	ip := plain[14:]
	for name, c := range map[string]struct {
		in, out int
	}{"off": {vlan100, 0}, "on": {0, 300}, "over": {vlan100, 300}, "none": {0, 0}} {
		t.Run(name, func(t *testing.T) {
			h := hop(edge2)
			h.VLAN = uint16(c.out)
			f := newFixture(t, false, append(tagAll(), route4(elsewhere+"/32", h))...)
			frame, leaves := plain, f.routed(plain, edge2)
			if c.in != 0 {
				frame = eth(ip, c.in)
			}
			if c.out != 0 {
				leaves = cat(leaves[:12], []byte{0x81, 0}, be16(c.out), leaves[12:])
			}
			f.send(edge1, cat(frame, []byte("padding")), want{out: edge2, frame: leaves, outcomes: plainOutcome})
		})
	}
	t.Run("zone", func(t *testing.T) {
		f := newFixture(t, false, tables.PolicyV4Entry{
			Key: tables.PolicyV4Key{InZone: tables.Ternary[uint16]{Value: vlanZone, Mask: 0xffff}}, Action: tables.TagV4{}, Priority: 1,
		})
		f.send(edge1, datagram(host1, host2), want{drop: tables.ReasonPolicyDefault})
		f.send(edge1, eth(datagram(host1, host2)[14:], vlan100), want{out: edge2, frame: f.routed(datagram(host1, host2), edge2), outcomes: plainOutcome})
	})
	t.Run("tagged under 802.1Q", func(t *testing.T) {
		h := hop(trunk4)
		h.VLAN = 300
		f := newFixture(t, false, append(tagAll(), route4(elsewhere+"/32", h))...)
		leaves := f.routed(eth(ip, 300), trunk4)
		f.send(edge1, plain, want{out: trunk4, frame: leaves, signed: true, outcomes: tagOutcome})
	})
}

// testPadding sends nothing on from behind the packet's end.
func testPadding(t *testing.T) {
	f := newFixture(t, false, tagAll()...)
	padding := bytes.Repeat([]byte{0xee}, 30)
	for _, c := range []struct {
		name  string
		frame []byte
		out   uint16
	}{
		{"IPv4", datagram(host1, host2), edge2}, {"IPv6", datagram6(six1, six2), edge2},
		{"IPv4, tagged", datagram(host1, host4), trunk4}, {"IPv6, tagged", datagram6(six1, six4), trunk4},
		{"empty IPv4", eth(ip4{src: host1, dst: host2, proto: 99}.with()), edge2},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := f.sub(t)
			w := want{out: c.out, frame: f.routed(c.frame, c.out), outcomes: plainOutcome}
			if c.out == trunk4 {
				w.signed, w.outcomes = true, tagOutcome
			}
			f.send(edge1, cat(c.frame, padding), w)
		})
	}
	t.Run("retagged", func(t *testing.T) {
		f := f.sub(t)
		tagged := f.fromPeer(datagram(host3, host4), 1)
		f.send(trunk3, cat(tagged, padding), want{out: trunk4, frame: f.routed(tagged, trunk4), retagged: true, outcomes: retagOutcome})
	})
}

// testMSS lowers what a SYN announces to what fits behind the tag.
func testMSS(t *testing.T) {
	option := func(v int) []byte { return cat([]byte{2, 4}, be16(v)) }
	const fits, fits6 = mtu - 40 - 28, mtu - 60 - 28
	for _, c := range []struct {
		name  string
		frame []byte
		limit uint16 // 0: unchanged
	}{
		{"SYN", eth(tcp4(host1, host4, tcp(1, 2, syn, option(1460)))), fits},
		{"SYN-ACK", eth(tcp4(host1, host4, tcp(1, 2, syn|ack, option(1460)))), fits},
		{"IPv6", eth(tcp6(six1, six4, tcp(1, 2, syn, option(1440)))), fits6},
		{"more options", eth(tcp4(host1, host4, tcp(1, 2, syn, cat(option(8960), []byte{1, 3, 3, 7})))), fits},
		{"one too much", eth(tcp4(host1, host4, tcp(1, 2, syn, option(fits+1)))), fits},
		{"fits", eth(tcp4(host1, host4, tcp(1, 2, syn, option(fits)))), 0},
		{"no SYN", eth(tcp4(host1, host4, tcp(1, 2, ack, option(1460)))), 0},
		{"not the first option", eth(tcp4(host1, host4, tcp(1, 2, syn, cat([]byte{1, 1, 1, 1}, option(1460))))), 0},
		{"no option", eth(tcp4(host1, host4, tcp(1, 2, syn, nil, option(1460)))), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, false, tagAll()...)
			leaves := f.routed(c.frame, trunk4)
			w := want{out: trunk4, frame: leaves, signed: true, outcomes: tagOutcome}
			if c.limit != 0 {
				f.view(leaves).ClampMSS(leaves, c.limit)
				w.outcomes = append(w.outcomes[:1:1], tables.OutcomeMSSClamped)
			}
			f.send(edge1, c.frame, w)
		})
	}
	t.Run("retagged", func(t *testing.T) {
		f := newFixture(t, false)
		frame := f.fromPeer(eth(tcp4(host3, host4, tcp(1, 2, syn, option(1460)))), 1)
		leaves := f.routed(frame, trunk4)
		f.view(leaves).ClampMSS(leaves, fits)
		f.send(trunk3, frame, want{out: trunk4, frame: leaves, retagged: true, outcomes: append(retagOutcome[:2:2], tables.OutcomeMSSClamped)})
	})
	t.Run("not towards an edge", func(t *testing.T) {
		f := newFixture(t, false, tagAll()...)
		frame := eth(tcp4(host1, host2, tcp(1, 2, syn, option(8960))))
		f.send(edge1, frame, want{out: edge2, frame: f.routed(frame, edge2), outcomes: plainOutcome})
	})
}

// testOtherCarrier takes the carrier that is not the alliance's for an ordinary
// packet, whatever it looks like.
func testOtherCarrier(t *testing.T) {
	fake := func(udpCarrier bool, src, dst string) []byte {
		f := fixture{T: t, udp: udpCarrier}
		return f.fromPeer(datagram(src, dst), 1)
	}
	t.Run("UDP port of carrier udp", func(t *testing.T) {
		f := newFixture(t, false, tagAll()...)
		for _, c := range []struct {
			name  string
			frame func(dst string) []byte
		}{
			{"looks like a tag", func(dst string) []byte { return fake(true, host1, dst) }},
			{"looks like a malformed tag", func(dst string) []byte { return with(fake(true, host1, dst), 34+8+1, 9) }},
			{"too short for a tag", func(dst string) []byte {
				return eth(ip4{src: host1, dst: dst, proto: protoUDP}.with(udp(7, 25300, []byte("x"))))
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				f := f.sub(t)
				plain := c.frame(host2)
				f.send(edge1, plain, want{out: edge2, frame: f.routed(plain, edge2), outcomes: plainOutcome})
				tagged := c.frame(host4)
				f.send(edge1, tagged, want{out: trunk4, frame: f.routed(tagged, trunk4), signed: true, outcomes: tagOutcome})
				peers := f.fromPeer(c.frame(host4), 4)
				f.send(trunk3, peers, want{out: trunk4, frame: f.routed(peers, trunk4), retagged: true, outcomes: retagOutcome})
			})
		}
	})
	t.Run("protocol of carrier ip", func(t *testing.T) {
		f := newFixture(t, true, tagAll()...)
		plain := fake(false, host1, host2)
		f.send(edge1, plain, want{drop: tables.ReasonUnreadableChain})
		f.send(edge1, with(plain, 34+2, 0x77), want{drop: tables.ReasonUnreadableChain})
	})
}

// testTransparent joins two ports: nothing but the tag is changed.
func testTransparent(t *testing.T) {
	f := newFixture(t, false, append(tagAll(),
		tables.CrossConnectEntry{Key: tables.CrossConnectKey{InPort: edge1}, Action: tables.ToPort{Port: trunk4, Role: tables.RoleTrunk, Zone: trunk4, MTU: mtu}},
		tables.CrossConnectEntry{Key: tables.CrossConnectKey{InPort: trunk4}, Action: tables.ToPort{Port: edge1, Role: tables.RoleEdge, Zone: edge1, MTU: mtu}},
	)...)
	for _, p := range []uint16{edge1, trunk4} {
		role := tables.PortEntry{Key: tables.PortKey{InPort: p}, Action: tables.PortConfig{Role: roles[p], Zone: p}}
		to := role
		to.Action = tables.PortConfig{Role: roles[p], Zone: p, Flags: tables.PortTransparent}
		f.modify(to, role)
	}
	arp := ethType(0x0806, cat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, make([]byte, 20)))
	neighbour := eth(ip6{src: "fe80::1", dst: "ff02::1:ff00:1", next: protoICMPv6, hops: 255}.with(icmp(135, make([]byte, 20))))
	for _, frame := range [][]byte{arp, neighbour} {
		f.send(edge1, frame, want{out: trunk4, frame: frame, outcomes: plainOutcome})
		f.send(trunk4, frame, want{out: edge1, frame: frame, outcomes: plainOutcome})
	}
	plain := datagram(host1, elsewhere)
	f.send(edge1, plain, want{out: trunk4, frame: plain, signed: true, outcomes: tagOutcome})
	tagged := f.fromPeer(datagram(elsewhere, host1), 1)
	f.insert(f.delivered(tagged))
	f.send(trunk4, tagged, want{out: edge1, frame: f.stripped(tagged), outcomes: stripOutcome})
}

// testECMP spreads flows over the members of a one-shot set, both directions of
// a flow and all its packets alike.
func testECMP(t *testing.T) {
	f := newFixture(t, false, append(tagAll(), route4("192.0.2.0/24", hop(edge2), hop(open7)))...)
	used := map[uint16]int{}
	for i := range 32 {
		flow := func() uint16 {
			frame := eth(ip4{src: host1, dst: elsewhere, proto: protoUDP}.with(udp(1000+i, 53)))
			must(t, f.raw[edge1].Send(frame))
			return f.whichever(edge2, open7)
		}
		first := flow()
		if again := flow(); again != first {
			t.Errorf("flow %d left by port %d, then by %d", i, first, again)
		}
		used[first]++
	}
	if used[edge2] < 4 || used[open7] < 4 {
		t.Errorf("flows by port %v of 32", used)
	}
	f.last, _ = f.Counts(f.ctx)
}

// whichever returns which of two ports the next frame leaves by.
func (f *fixture) whichever(a, b uint16) uint16 {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, waitForAll)
	defer cancel()
	got := make(chan uint16, 2)
	for _, p := range []uint16{a, b} {
		go func() {
			for {
				c, err := f.raw[p].Next(ctx, nil)
				if err != nil {
					got <- 0
					return
				}
				if !c.Outgoing {
					got <- p
					return
				}
			}
		}()
	}
	p := <-got
	cancel()
	<-got
	if p == 0 {
		f.Fatal("nothing left")
	}
	return p
}

// testPuntBudget drops what is over the meter, and copies are then only not
// made.
func testPuntBudget(t *testing.T) {
	f := newFixture(t, false, policy4(tables.AdmitV4{}))
	budget := func(r tables.Reason, role tables.Role, zone uint16) {
		e := puntEntry(r, role, zone)
		e.Meter = tables.Some(tables.MeterConfig{CIR: 1, CBurst: 1, PIR: 1, PBurst: 1})
		back := puntEntry(r, role, zone)
		f.write(p4v1.Update_DELETE, back)
		f.write(p4v1.Update_INSERT, e)
		f.Cleanup(func() {
			f.write(p4v1.Update_DELETE, back)
			f.write(p4v1.Update_INSERT, back)
		})
	}
	plain := datagram(host1, host2)
	budget(tables.ReasonNewSession, tables.RoleEdge, edge1)
	budget(tables.ReasonFirstSeen, tables.RoleTrunk, trunk3)
	f.send(edge1, plain, want{hold: tables.ReasonNewSession, egress: edge2})
	f.send(edge1, plain, want{drop: tables.ReasonPuntLimited})
	// Another zone's budget is its own.
	f.send(edge2, datagram(host2, host1), want{hold: tables.ReasonNewSession, egress: edge1})

	tagged := f.fromPeer(datagram(host3, host2), 1)
	w := want{out: edge2, frame: f.routed(f.stripped(tagged), edge2), outcomes: stripOutcome}
	first := w
	first.copied, first.egress = tables.ReasonFirstSeen, edge2
	f.send(trunk3, tagged, first)
	f.send(trunk3, tagged, w)

	t.Run("none", func(t *testing.T) {
		f := f.sub(t)
		f.write(p4v1.Update_DELETE, puntEntry(tables.ReasonNewSession, tables.RoleEdge, edge2))
		f.Cleanup(func() { f.write(p4v1.Update_INSERT, puntEntry(tables.ReasonNewSession, tables.RoleEdge, edge2)) })
		f.send(edge2, datagram(host2, host1), want{drop: tables.ReasonPuntLimited})
	})
}

// testPacketOut has the CPU send on a port, and refuses what it must not ask.
func testPacketOut(t *testing.T) {
	f := newFixture(t, false)
	frame := cat(datagram(host1, host2), []byte("padding"))
	must(t, f.PacketOut(tables.PacketOut{Mode: tables.PacketOutModeSend, EgressPort: edge2}, frame))
	f.check(0, map[uint16]int64{}, frame, want{out: edge2, frame: frame, outcomes: []tables.Outcome{tables.OutcomeSentByCPU}})

	// A tag goes on as it stands.
	tagged := f.fromPeer(datagram(host1, host2), 1)
	must(t, f.PacketOut(tables.PacketOut{Mode: tables.PacketOutModeSend, EgressPort: trunk4}, tagged))
	f.check(0, map[uint16]int64{}, tagged, want{out: trunk4, frame: tagged, outcomes: []tables.Outcome{tables.OutcomeSentByCPU}})

	f.sendBack(unknown6, frame, want{drop: tables.ReasonUnknownPort})
	f.sendBack(edge1, tagged, want{drop: tables.ReasonTagOnEdge})
	f.sendBack(edge1, frame[:20], want{drop: tables.ReasonTruncated})
}

// testIdleTimeout reports entries that no packet has hit.
func testIdleTimeout(t *testing.T) {
	frame := datagram(host1, host2)
	f := newFixture(t, false)
	entry := f.admitted(frame, edge1, edge2).(tables.SessionV4Entry)
	entry.IdleTimeout = time.Second
	f.insert(entry)
	f.send(edge1, frame, want{out: edge2, frame: f.routed(frame, edge2), outcomes: plainOutcome})
	select {
	case te := <-f.IdleTimeouts:
		got, err := tables.DecodeSessionV4(te)
		must(t, err)
		if got.Key != entry.Key {
			t.Errorf("idle %+v, want %+v", got.Key, entry.Key)
		}
	case <-f.ctx.Done():
		t.Fatal("no notification")
	}
}

// testFlowHash puts the hash of the flow into the source port of carrier udp
// and into flow labels that were 0.
func testFlowHash(t *testing.T) {
	for _, udpCarrier := range []bool{false, true} {
		t.Run(fmt.Sprint(carrierOf(udpCarrier)), func(t *testing.T) {
			f := newFixture(t, udpCarrier, tagAll()...)
			for i := range 8 {
				frame := eth(ip6{src: six1, dst: six4, next: protoUDP}.with(udp(i, 9)))
				f.send(edge1, frame, want{out: trunk4, frame: f.routed(frame, trunk4), signed: true, outcomes: tagOutcome})
			}
		})
	}
	// A flow whose hash gives the label 0 gets 1.
	f := newFixture(t, false, tagAll()...)
	for i := uint32(0); ; i++ {
		a := binary.BigEndian.AppendUint32(nil, i)
		dst := fmt.Sprintf("fd00:4::%x:%x", a[:2], a[2:])
		frame := eth(ip6{src: six1, dst: dst, next: protoUDP}.with(udp(1, 9)))
		if t := f.view(frame).Tuple; t.FlowHash()&0xfffff != 0 {
			continue
		}
		f.send(edge1, frame, want{out: trunk4, frame: f.routed(frame, trunk4), signed: true, outcomes: tagOutcome})
		break
	}
}
