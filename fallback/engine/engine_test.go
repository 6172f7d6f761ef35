package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"

	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// A verdictCase is a packet and what becomes of it.
type verdictCase struct {
	name   string
	udp    bool         // the alliance's carrier
	setup  func(r *rig) // further entries; nil: none
	port   uint16       // 0: 1
	frame  func(r *rig) []byte
	want   Verdict
	reason tables.Reason // of drop and punt
	copied tables.Reason
	stage  Stage
	egress uint16
	count  tables.Outcome // of forward
	check  func(t *testing.T, r *rig, in, out []byte)
}

var (
	untagged4 = tcp4("10.9.0.1", "10.2.0.2")
	untagged6 = tcp4("2001:db8:9::1", "2001:db8:2::2")
)

func plain(f flow) func(*rig) []byte { return func(*rig) []byte { return eth(f.packet()) } }

func raw(b []byte) func(*rig) []byte { return func(*rig) []byte { return b } }

// peer is a packet with the peer's tag of suite 1.
func peer(f flow) func(*rig) []byte {
	return func(r *rig) []byte { return eth(r.byPeer(f.packet())) }
}

// edited is a frame with one byte set.
func edited(frame func(*rig) []byte, at int, b byte) func(*rig) []byte {
	return func(r *rig) []byte {
		x := frame(r)
		x[at] = b
		return x
	}
}

func hbh(f flow) []byte {
	l4 := f.l4(0x18)
	x := f.ip(append([]byte{f.protocol, 0, 1, 4, 0, 0, 0, 0}, l4...))
	x[6] = 0
	return x
}

func arp() []byte {
	b := eth(make([]byte, 46))
	b[12], b[13] = 0x08, 0x06
	return b
}

func nd(kind byte) []byte {
	f := flow{58, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1"), 0, 0}
	return eth(f.ip([]byte{kind, 0, 0, 0, 0, 0, 0, 0}))
}

func icmpError(quoted []byte) []byte {
	f := flow{1, netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.2.0.2"), 0, 0}
	return f.ip(append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, quoted...))
}

// fragment is the second fragment of a TCP packet.
func fragment(src, dst string) []byte {
	return ipv4(6, netip.MustParseAddr(src), netip.MustParseAddr(dst), 0x4000|0x2000|100, nil, []byte("fragment"))
}

func fragment6(src, dst string) []byte {
	f := flow{44, netip.MustParseAddr(src), netip.MustParseAddr(dst), 0, 0}
	return f.ip([]byte("\x06\x00\x03\x21\x12\x34\x56\x78fragment"))
}

func withRules(rules ...tables.PolicyV4Entry) func(*rig) {
	return func(r *rig) {
		for i, e := range rules {
			if e.Priority == 0 {
				e.Priority = int32(len(rules) - i)
			}
			r.put(e)
		}
	}
}

func rule4(a tables.PolicyV4Action) tables.PolicyV4Entry {
	return tables.PolicyV4Entry{Key: tables.PolicyV4Key{InZone: exactly[uint16](10), Tagged: tables.Ternary[uint8]{Mask: 1}}, Action: a}
}

func tagAll(r *rig) {
	r.put(anyRule(tables.TagV4{}))
	r.put(tables.PolicyV6Entry{Priority: 1, Action: tables.TagV6{}})
}

func anyRule(a tables.PolicyV4Action) tables.PolicyV4Entry {
	return tables.PolicyV4Entry{Priority: 1, Action: a}
}

// leavesTagged checks a tag of our own of suite 1.
func leavesTagged(t *testing.T, r *rig, in, out []byte) {
	t.Helper()
	v := r.view(out)
	if !v.Tagged || v.Tag.KeyID() != (tag.KeyID{Suite: tag.Siphash, UNID: ownUNID, Epoch: ownEpoch}) ||
		!ownMACKey.VerifyDigest(&v.Tag, &v.Tuple) || v.Tag.Flags != 0 {
		t.Errorf("left with tag %+v of %v", v.Tag, v.Tuple)
	}
	var before packet.View
	packet.Parse(in, r.carrier, &before)
	if v.Tuple != before.Tuple {
		t.Errorf("five-tuple %v became %v", before.Tuple, v.Tuple)
	}
}

// leavesAs checks the packet against IP bytes, with the hop taken into account.
func leavesAs(ip func(*rig) []byte) func(*testing.T, *rig, []byte, []byte) {
	return func(t *testing.T, r *rig, _, out []byte) {
		t.Helper()
		want := slices.Clone(ip(r))
		if want[0]>>4 == 4 {
			want[8]--
			mendIPv4(want)
		} else {
			want[7]--
		}
		v := r.view(out)
		if got := out[v.L3:]; !bytes.Equal(got, want) {
			t.Errorf("left as\n%x, want\n%x", got, want)
		}
		if mac := out[:12]; !bytes.Equal(mac, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}) {
			t.Errorf("addresses %x", mac)
		}
	}
}

var ed25519Key = mustKey(tag.NewEd25519Key(peerMACKey, bytes.Repeat([]byte{7}, 32)))
var ownEd25519Key = mustKey(tag.NewEd25519Key(ownMACKey, bytes.Repeat([]byte{8}, 32)))
var rsaKey = mustKey(tag.GenerateKey(tag.RSA2048))

func mustKey(k *tag.IssueKey, err error) *tag.IssueKey {
	if err != nil {
		panic(err)
	}
	return k
}

func issuers(state tables.KeyState) func(*rig) {
	return func(r *rig) {
		r.put(issuer(tag.Ed25519, peerUNID, peerMACKey, state, 1), issuer(tag.RSA2048, peerUNID, tag.MACKey{}, state, 1))
	}
}

// sealed is a packet with the peer's tag of suite 2 or 3.
func sealed(k *tag.IssueKey, f flow) func(*rig) []byte {
	return func(r *rig) []byte { return eth(r.tagged(k, peerUNID, f.packet())) }
}

// vouch adds the entry for the tag of a frame.
func vouch(frame func(*rig) []byte) func(*rig) {
	return func(r *rig) {
		issuers(tables.KeyStateAccepted)(r)
		v := r.view(frame(r))
		h, s := &v.Tag, key4(v.Tuple)
		crc := crc32.ChecksumIEEE(h.Sealed)
		if v.Family == 4 {
			r.put(tables.VouchedV4Entry{Key: tables.VouchedV4Key{
				Low: s.Low, High: s.High, Protocol: s.Protocol, Kind: s.Kind, LowPort: s.LowPort, HighPort: s.HighPort,
				Suite: tables.Suite(h.Suite), UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, Digest: h.Digest, SealedCRC: crc,
			}, Action: tables.Vouched{}})
			return
		}
		s6 := key6(v.Tuple)
		r.put(tables.VouchedV6Entry{Key: tables.VouchedV6Key{
			Low: s6.Low, High: s6.High, Protocol: s6.Protocol, Kind: s6.Kind, LowPort: s6.LowPort, HighPort: s6.HighPort,
			Suite: tables.Suite(h.Suite), UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, Digest: h.Digest, SealedCRC: crc,
		}, Action: tables.Vouched{}})
	}
}

// ownTag signs a session with suite 2 or 3.
func signBySession(k *tag.IssueKey, tuple tag.Tuple) func(*rig) {
	return func(r *rig) {
		r.modify(tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}, Action: tables.SignBySession{}})
		if k == nil {
			return
		}
		h, err := k.Issue(ownUNID, ownEpoch, 77, &tuple)
		if err != nil {
			r.t.Fatal(err)
		}
		var a tables.OwnTagV4Action
		if k.Suite() == tag.Ed25519 {
			a = tables.PutEd25519{UNID: ownUNID, Epoch: ownEpoch, Nonce: 77, TagDigest: h.Digest, Sealed: [64]byte(h.Sealed)}
		} else {
			a = tables.PutRSA2048{UNID: ownUNID, Epoch: ownEpoch, TagDigest: h.Digest, Sealed: [256]byte(h.Sealed)}
		}
		if tuple.Family() == 4 {
			r.put(tables.OwnTagV4Entry{Key: tables.OwnTagV4Key(key4(tuple)), Action: a})
		} else {
			r.put(tables.OwnTagV6Entry{Key: tables.OwnTagV6Key(key6(tuple)), Action: a.(tables.OwnTagV6Action)})
		}
	}
}

// leavesSealed checks that the session's own tag verifies under k.
func leavesSealed(k *tag.IssueKey) func(*testing.T, *rig, []byte, []byte) {
	return func(t *testing.T, r *rig, _, out []byte) {
		t.Helper()
		v := r.view(out)
		if !v.Tagged || v.Tag.UNID != ownUNID {
			t.Fatalf("left with tag %+v", v.Tag)
		}
		if err := k.Verifier().Verify(&v.Tag, &v.Tuple); err != nil {
			t.Errorf("own tag: %v", err)
		}
	}
}

func both(fs ...func(*rig)) func(*rig) {
	return func(r *rig) {
		for _, f := range fs {
			f(r)
		}
	}
}

func admitting(f flow) func(*rig) { return func(r *rig) { r.admit(f.tuple()) } }

var verdictCases = []verdictCase{
	// port
	{name: "unknown port", port: 99, frame: plain(untagged4), reason: tables.ReasonUnknownPort, stage: StagePort},
	{name: "unknown VLAN", frame: raw(vlan(9, eth(untagged4.packet()))), reason: tables.ReasonUnknownPort, stage: StagePort},
	{name: "unknown port before truncated", port: 99, frame: raw([]byte{1, 2, 3}), reason: tables.ReasonUnknownPort, stage: StagePort},
	{name: "tag on edge", frame: peer(untagged4), reason: tables.ReasonTagOnEdge, stage: StagePort},
	{name: "malformed tag on edge", frame: edited(peer(untagged4), 14+20+2, 0x91), reason: tables.ReasonTagOnEdge, stage: StagePort},
	{name: "fragmented tag on edge", frame: edited(peer(untagged4), 14+6, 0x20), reason: tables.ReasonTagOnEdge, stage: StagePort},
	{name: "unechoed tag on echo", port: 3, frame: peer(untagged4), reason: tables.ReasonTagOnEdge, stage: StagePort},
	{name: "echoed tag on trunk", port: 2, frame: func(r *rig) []byte {
		return eth(r.taggedFlags(tag.NewSiphashKey(peerMACKey), peerUNID, untagged4.packet(), tag.FlagEcho))
	}, reason: tables.ReasonTagMalformed, stage: StagePort},
	{name: "untagged on trunk", port: 2, frame: plain(untagged4), reason: tables.ReasonUntaggedOnTrunk, stage: StagePort},
	{name: "untagged allowed on trunk", port: 5, frame: plain(untagged4), reason: tables.ReasonPolicyDefault, stage: StagePolicy},
	{name: "error without carrier on trunk", port: 2, frame: raw(eth(icmpError(untagged4.packet()))), reason: tables.ReasonUntaggedOnTrunk, stage: StagePort},
	{name: "L4 truncated on trunk", port: 2, frame: raw(eth(untagged4.ip([]byte("short")))), reason: tables.ReasonL4Truncated, stage: StageAnomaly},
	{name: "other carrier is ordinary", frame: func(r *rig) []byte {
		r.carrier.UDP = true
		return eth(r.byPeer(untagged4.packet()))
	}, reason: tables.ReasonPolicyDefault, stage: StagePolicy},
	{name: "other carrier is unreadable, udp", udp: true, frame: func(r *rig) []byte {
		r.carrier.UDP = false
		return eth(r.byPeer(untagged4.packet()))
	}, reason: tables.ReasonUnreadableChain, stage: StageAnomaly},

	// anomaly
	{name: "truncated", frame: raw(eth(untagged4.packet()[:10])), reason: tables.ReasonTruncated, stage: StageAnomaly},
	{name: "VLAN stacked", port: 4, frame: raw(vlan(44, vlan(45, eth(untagged4.packet())))), reason: tables.ReasonVLANStacked, stage: StageAnomaly},
	{name: "not IP", frame: edited(plain(untagged4), 12, 0x99), reason: tables.ReasonNotIP, stage: StageAnomaly},
	{name: "IP version", frame: edited(plain(untagged4), 14, 0x65), reason: tables.ReasonIPVersion, stage: StageAnomaly},
	{name: "bad length", frame: edited(plain(untagged4), 16, 0xff), reason: tables.ReasonBadLength, stage: StageAnomaly},
	{name: "bad options", frame: raw(eth(ipv4(6, untagged4.src, untagged4.dst, 0, []byte{7, 1, 0, 0}, untagged4.l4(0)))), reason: tables.ReasonBadOptions, stage: StageAnomaly},
	{name: "jumbogram", frame: func(*rig) []byte { b := eth(hbh(untagged6)); b[18], b[19] = 0, 0; return b }, reason: tables.ReasonJumbogram, stage: StageAnomaly},
	{name: "L4 truncated", frame: raw(eth(untagged4.ip([]byte("short")))), reason: tables.ReasonL4Truncated, stage: StageAnomaly},
	{name: "bad checksum", frame: edited(plain(untagged4), 14+10, 1), reason: tables.ReasonBadChecksum, stage: StageAnomaly},
	{name: "source route", frame: raw(eth(ipv4(6, untagged4.src, untagged4.dst, 0, []byte{131, 3, 4, 0}, untagged4.l4(0)))), reason: tables.ReasonSourceRoute, stage: StageAnomaly},
	{name: "unreadable chain", frame: raw(eth(flow{60, untagged6.src, untagged6.dst, 0, 0}.ip(make([]byte, 8)))), reason: tables.ReasonUnreadableChain, stage: StageAnomaly},
	{name: "routing header with segments left", frame: raw(eth(flow{43, untagged6.src, untagged6.dst, 0, 0}.ip([]byte{6, 0, 0, 1, 0, 0, 0, 0}))), reason: tables.ReasonSourceRoute, stage: StageAnomaly},
	{name: "martian", frame: plain(tcp4("127.0.0.1", "10.2.0.2")), reason: tables.ReasonMartian, stage: StageAnomaly},
	{name: "martian IPv6", frame: plain(tcp4("::1", "2001:db8:2::2")), reason: tables.ReasonMartian, stage: StageAnomaly},
	{name: "multicast", frame: plain(tcp4("10.9.0.1", "224.0.0.5")), reason: tables.ReasonLinkScope, stage: StageAnomaly},
	{name: "link-local", frame: plain(tcp4("fe80::1", "2001:db8:2::2")), reason: tables.ReasonLinkScope, stage: StageAnomaly},
	{name: "ND under a tag", port: 2, frame: func(r *rig) []byte {
		f := flow{58, untagged6.src, untagged6.dst, 0, 0}
		b := eth(r.byPeer(f.ip([]byte{128, 0, 0, 0, 0, 0, 0, 0})))
		b[14+40+28] = 135
		return b
	}, reason: tables.ReasonLinkScope, stage: StageAnomaly},
	{name: "tag malformed", port: 2, frame: edited(peer(untagged4), 14+20+2, 0x91), reason: tables.ReasonTagMalformed, stage: StageAnomaly},
	{name: "tag misplaced", port: 2, frame: raw(eth(flow{44, untagged6.src, untagged6.dst, 0, 0}.ip([]byte{253, 0, 0, 1, 0, 0, 0, 0}))), reason: tables.ReasonTagMisplaced, stage: StageAnomaly},
	{name: "tag fragmented", port: 2, frame: edited(peer(untagged4), 14+6, 0x20), reason: tables.ReasonTagFragmented, stage: StageAnomaly},
	{name: "ARP to me", frame: raw(arp()), want: Punt, reason: tables.ReasonToMe, stage: StageAnomaly},
	{name: "ND to me", port: 2, frame: raw(nd(135)), want: Punt, reason: tables.ReasonToMe, stage: StageAnomaly},
	{name: "ARP across", port: 6, frame: raw(arp()), want: Forward, stage: StageEgress, egress: 7, count: tables.OutcomeForwardedPlain,
		check: func(t *testing.T, _ *rig, in, out []byte) {
			if !bytes.Equal(in, out) {
				t.Errorf("ARP was changed: %x", out)
			}
		}},
	{name: "ND across", port: 7, frame: raw(nd(135)), want: Forward, stage: StageEgress, egress: 6, count: tables.OutcomeForwardedPlain},
	{name: "ARP nowhere to cross", port: 8, frame: raw(arp()), reason: tables.ReasonNoRoute, stage: StageEgressPort},

	// issuer_key
	{name: "unknown key", port: 2, frame: func(r *rig) []byte { return eth(r.tagged(tag.NewSiphashKey(peerMACKey), 1, untagged4.packet())) },
		reason: tables.ReasonTagUnknownKey, copied: tables.ReasonTagUnknownKey, stage: StageIssuerKey},
	{name: "wrong action for the suite", port: 2, frame: sealed(ed25519Key, untagged4), setup: func(r *rig) {
		e := issuer(tag.Ed25519, peerUNID, peerMACKey, tables.KeyStateAccepted, 1)
		k0, k1 := peerMACKey.Words()
		e.Action = tables.SiphashKey{State: tables.KeyStateAccepted, K0: k0, K1: k1}
		r.put(e)
	}, reason: tables.ReasonTagUnknownKey, copied: tables.ReasonTagUnknownKey, stage: StageIssuerKey},
	{name: "key without state", port: 2, frame: sealed(ed25519Key, untagged4), setup: issuers(tables.KeyStateNone),
		reason: tables.ReasonTagUnknownKey, copied: tables.ReasonTagUnknownKey, stage: StageIssuerKey},
	{name: "revoked", port: 2, frame: peer(untagged4), setup: func(r *rig) {
		e := issuer(tag.Siphash, peerUNID, peerMACKey, tables.KeyStateAccepted, 1)
		e.Action = tables.Tombstone{}
		r.modify(e)
	}, reason: tables.ReasonTagRevoked, stage: StageIssuerKey},
	{name: "echo-only key on trunk", port: 2, frame: peer(untagged4), setup: func(r *rig) {
		r.modify(issuer(tag.Siphash, peerUNID, peerMACKey, tables.KeyStateEchoOnly, 1))
	}, reason: tables.ReasonTagRevoked, stage: StageIssuerKey},
	{name: "echo-only key on echo", port: 3, frame: func(r *rig) []byte {
		return eth(r.taggedFlags(tag.NewSiphashKey(peerMACKey), peerUNID, untagged4.packet(), tag.FlagEcho))
	}, setup: func(r *rig) {
		r.modify(issuer(tag.Siphash, peerUNID, peerMACKey, tables.KeyStateEchoOnly, 1))
	}, want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeRetagged, check: leavesTagged},
	{name: "other site's tag on echo", port: 3, frame: func(r *rig) []byte {
		return eth(r.taggedFlags(tag.NewSiphashKey(peerMACKey), peerUNID, untagged4.packet(), tag.FlagEcho))
	}, setup: func(r *rig) {
		r.modify(issuer(tag.Siphash, peerUNID, peerMACKey, tables.KeyStateAccepted, 0))
	}, reason: tables.ReasonTagOnEdge, stage: StageIssuerKey},
	{name: "forged", port: 2, frame: func(r *rig) []byte { return eth(r.tagged(tag.NewSiphashKey(ownMACKey), peerUNID, untagged4.packet())) },
		reason: tables.ReasonTagForged, stage: StageIssuerKey},
	{name: "bit flipped port", port: 2, frame: edited(peer(untagged4), 14+20+28+1, 0x41), reason: tables.ReasonTagForged, stage: StageIssuerKey},

	{name: "retagged", port: 2, frame: peer(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeVerifiedSiphash, check: leavesTagged},
	{name: "retagged IPv6 udp", udp: true, port: 2, frame: peer(untagged6), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeRetagged, check: leavesTagged},

	// vouched
	{name: "ed25519 unverified", port: 2, frame: sealed(ed25519Key, untagged4), setup: issuers(tables.KeyStateAccepted),
		want: Punt, reason: tables.ReasonTagUnverified, stage: StageVouched},
	{name: "ed25519 filter forged", port: 2, frame: edited(sealed(ed25519Key, untagged4), 14+20+21, 0), setup: issuers(tables.KeyStateAccepted),
		reason: tables.ReasonTagForged, stage: StageIssuerKey},
	{name: "rsa2048 unverified", port: 2, frame: sealed(rsaKey, untagged6), setup: issuers(tables.KeyStateAccepted),
		want: Punt, reason: tables.ReasonTagUnverified, stage: StageVouched},
	{name: "ed25519 vouched", port: 2, frame: sealed(ed25519Key, untagged4), setup: vouch(sealed(ed25519Key, untagged4)),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeVerifiedEd25519, check: leavesTagged},
	{name: "ed25519 vouched IPv6", port: 2, frame: sealed(ed25519Key, untagged6), setup: vouch(sealed(ed25519Key, untagged6)),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeVerifiedEd25519, check: leavesTagged},
	{name: "rsa2048 vouched udp", udp: true, port: 2, frame: sealed(rsaKey, untagged4), setup: vouch(sealed(rsaKey, untagged4)),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeVerifiedRSA2048, check: leavesTagged},
	{name: "another seal of a vouched tag", port: 2, frame: func(r *rig) []byte {
		b := sealed(ed25519Key, untagged4)(r)
		b[14+20+28+5] ^= 1
		return b
	}, setup: vouch(sealed(ed25519Key, untagged4)), want: Punt, reason: tables.ReasonTagUnverified, stage: StageVouched},

	// egress_port
	{name: "no route", frame: plain(tcp4("10.9.0.1", "11.0.0.1")), reason: tables.ReasonNoRoute, stage: StageEgressPort},
	{name: "route to nowhere", frame: plain(tcp4("10.9.0.1", "10.5.0.1")), setup: func(r *rig) {
		r.route(5, tables.NextHopsOneShot{{Action: tables.NoRoute{}, Weight: 1}})
	}, reason: tables.ReasonNoRoute, stage: StageEgressPort},
	{name: "to me", frame: plain(tcp4("10.9.0.1", "10.5.0.1")), setup: func(r *rig) {
		r.route(5, tables.NextHopsOneShot{{Action: tables.ToMe{}, Weight: 1}})
	}, want: Punt, reason: tables.ReasonToMe, stage: StageEgressPort},
	{name: "TTL expired", frame: func(*rig) []byte { b := eth(untagged4.packet()); b[14+8] = 1; mendIPv4(b[14:]); return b },
		want: Punt, reason: tables.ReasonTTLExpired, stage: StageEgressPort},
	{name: "hop limit expired", frame: edited(plain(untagged6), 14+7, 1), want: Punt, reason: tables.ReasonTTLExpired, stage: StageEgressPort},
	{name: "TTL port to port", port: 7, frame: func(r *rig) []byte {
		b := untagged4.packet()
		b[8] = 1
		mendIPv4(b)
		return eth(r.byPeer(b))
	}, want: Forward, copied: tables.ReasonFirstSeen, stage: StageEgress, egress: 6, count: tables.OutcomeStripped,
		check: func(t *testing.T, r *rig, _, out []byte) {
			if v := r.view(out); v.TTL != 1 || !bytes.Equal(out[:12], eth(nil)[:12]) {
				t.Errorf("left as %x", out)
			}
		}},

	// delivered
	{name: "stripped, first seen", port: 2, frame: peer(tcp4("10.9.0.1", "10.1.0.2")),
		want: Forward, copied: tables.ReasonFirstSeen, stage: StageEgress, egress: 1, count: tables.OutcomeStripped,
		check: leavesAs(func(*rig) []byte { return tcp4("10.9.0.1", "10.1.0.2").packet() })},
	{name: "stripped udp IPv6", udp: true, port: 2, frame: func(r *rig) []byte { return append(peer(tcp4("2001:db8:9::1", "2001:db8:1::2"))(r), "padding"...) },
		setup: func(r *rig) { r.deliver(tcp4("2001:db8:9::1", "2001:db8:1::2").tuple()) },
		want:  Forward, stage: StageEgress, egress: 1, count: tables.OutcomeStripped,
		check: func(t *testing.T, r *rig, _, out []byte) {
			if v := r.view(out); v.Tagged {
				t.Errorf("left as %x", out)
			}
		}},
	{name: "delivered into a VLAN", port: 2, frame: peer(tcp4("10.9.0.1", "10.4.0.2")),
		setup: func(r *rig) { r.deliver(tcp4("10.9.0.1", "10.4.0.2").tuple()) },
		want:  Forward, stage: StageEgress, egress: 4, count: tables.OutcomeStripped,
		check: func(t *testing.T, r *rig, in, out []byte) {
			leavesAs(func(*rig) []byte { return tcp4("10.9.0.1", "10.4.0.2").packet() })(t, r, in, out)
			if v := r.view(out); v.VLAN != 44 || out[14]&0xf0 != 0 {
				t.Errorf("VLAN %d", v.VLAN)
			}
		}},
	{name: "stripped behind hop-by-hop", port: 2, frame: func(r *rig) []byte { return eth(r.byPeer(hbh(tcp4("2001:db8:9::1", "2001:db8:1::2")))) },
		want: Forward, copied: tables.ReasonFirstSeen, stage: StageEgress, egress: 1, count: tables.OutcomeStripped,
		check: func(t *testing.T, r *rig, _, out []byte) {
			if v := r.view(out); v.Tagged || v.ProtoAt != 14+40 || v.Protocol != 6 {
				t.Errorf("left as %x", out)
			}
		}},

	// session
	{name: "admitted, tagged", frame: plain(untagged4), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesTagged},
	{name: "admitted, tagged IPv6", frame: plain(untagged6), setup: admitting(untagged6), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged,
		check: func(t *testing.T, r *rig, in, out []byte) {
			leavesTagged(t, r, in, out)
			tuple := untagged6.tuple()
			if label := binary.BigEndian.Uint32(out[14:]) & 0xfffff; label != tuple.FlowHash()&0xfffff {
				t.Errorf("flow label %x", label)
			}
		}},
	{name: "flow label kept", frame: edited(plain(untagged6), 14+3, 9), setup: admitting(untagged6), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged,
		check: func(t *testing.T, r *rig, in, out []byte) {
			if label := binary.BigEndian.Uint32(out[14:]) & 0xfffff; label != 9 {
				t.Errorf("flow label %x", label)
			}
		}},
	{name: "admitted, tagged udp", udp: true, frame: plain(untagged4), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged,
		check: func(t *testing.T, r *rig, in, out []byte) {
			leavesTagged(t, r, in, out)
			tuple := untagged4.tuple()
			src, n := binary.BigEndian.Uint16(out[34:]), binary.BigEndian.Uint16(out[38:])
			if src != uint16(49152+tuple.FlowHash()%16384) || int(n) != len(out)-34 || binary.BigEndian.Uint16(out[40:]) != 0 {
				t.Errorf("carrier %x", out[34:42])
			}
		}},
	{name: "tagged behind hop-by-hop udp", udp: true, frame: raw(eth(hbh(untagged6))), setup: admitting(untagged6), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesTagged},
	{name: "padding is cut", frame: raw(append(eth(untagged4.packet()), "padding"...)), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesTagged},
	{name: "out of a VLAN", port: 4, frame: raw(vlan(44, eth(untagged4.packet()))), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged,
		check: func(t *testing.T, r *rig, in, out []byte) {
			leavesTagged(t, r, in, out)
			if v := r.view(out); v.HasVLAN {
				t.Errorf("VLAN %d", v.VLAN)
			}
		}},
	{name: "within a VLAN", port: 4, frame: raw(vlan(44|0xa000, eth(tcp4("10.9.0.1", "10.4.0.2").packet()))), setup: admitting(tcp4("10.9.0.1", "10.4.0.2")),
		want: Forward, stage: StageEgress, egress: 4, count: tables.OutcomeForwardedPlain,
		check: func(t *testing.T, _ *rig, _, out []byte) {
			if out[14] != 0xa0 || out[15] != 44 {
				t.Errorf("802.1Q tag %x", out[12:16])
			}
		}},
	{name: "plain between edges", frame: plain(tcp4("10.9.0.1", "10.1.0.2")), setup: admitting(tcp4("10.9.0.1", "10.1.0.2")),
		want: Forward, stage: StageEgress, egress: 1, count: tables.OutcomeForwardedPlain,
		check: leavesAs(func(*rig) []byte { return tcp4("10.9.0.1", "10.1.0.2").packet() })},
	{name: "tagged to echo", frame: plain(tcp4("10.9.0.1", "10.3.0.2")), setup: admitting(tcp4("10.9.0.1", "10.3.0.2")), want: Forward, stage: StageEgress, egress: 3, count: tables.OutcomeTagged, check: leavesTagged},
	{name: "tagged port to port", port: 6, frame: plain(untagged4), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 7, count: tables.OutcomeTagged,
		check: func(t *testing.T, r *rig, in, out []byte) {
			leavesTagged(t, r, in, out)
			if v := r.view(out); v.TTL != 64 || !bytes.Equal(out[:12], in[:12]) {
				t.Errorf("left as %x", out)
			}
		}},
	{name: "low zone", frame: plain(untagged4), setup: func(r *rig) {
		r.put(tables.SessionV4Entry{Key: key4(untagged4.tuple()), Action: tables.AdmittedV4{LowZone: 99, HighZone: 10}})
	}, want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged},
	{name: "wrong zone", frame: plain(untagged4), setup: func(r *rig) {
		r.put(tables.SessionV4Entry{Key: key4(untagged4.tuple()), Action: tables.AdmittedV4{LowZone: 10, HighZone: 99}})
	}, reason: tables.ReasonWrongZone, stage: StageSession},
	{name: "SYN-ACK is copied", frame: raw(eth(untagged4.ip(untagged4.l4(0x12)))), setup: admitting(untagged4), want: Forward, copied: tables.ReasonTCPFlags, stage: StageEgress, egress: 2, count: tables.OutcomeTagged},
	{name: "FIN is copied", frame: raw(eth(untagged6.ip(untagged6.l4(0x11)))), setup: admitting(untagged6), want: Forward, copied: tables.ReasonTCPFlags, stage: StageEgress, egress: 2, count: tables.OutcomeTagged},
	{name: "SYN is not", frame: raw(eth(untagged4.ip(untagged4.l4(0x02)))), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged},
	{name: "ICMP error", frame: raw(eth(icmpError(untagged4.packet()))), want: Punt, reason: tables.ReasonICMPError, stage: StageSession},
	{name: "ICMP error about a tagged packet", port: 2, frame: func(r *rig) []byte { return eth(icmpError(r.byPeer(untagged4.packet()))) }, want: Punt, reason: tables.ReasonICMPError, stage: StageSession},
	{name: "fragment", frame: raw(eth(fragment("10.9.0.1", "10.2.0.2"))), want: Punt, reason: tables.ReasonFragment, stage: StageSession},
	{name: "admitted fragment", frame: raw(eth(fragment("10.9.0.1", "10.2.0.2"))), setup: func(r *rig) {
		tuple, _ := tag.NewTuple(6, tag.KindFragment, untagged4.src, untagged4.dst, 0, 0xabcd)
		r.admit(tuple)
	}, want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged,
		check: func(t *testing.T, r *rig, in, out []byte) {
			leavesTagged(t, r, in, out)
			if h := out[14+20+28:][:8]; !bytes.Equal(h, []byte{6, 0, 100 >> 5, 100<<3&0xff | 3, 0, 0, 0xab, 0xcd}) || out[14+6] != 0x40 || out[14+7] != 0 {
				t.Errorf("fragment header %x, fragment field %x", h, out[20:22])
			}
		}},
	{name: "stripped fragment", port: 2, frame: func(r *rig) []byte { return eth(r.byPeer(fragment("10.9.0.1", "10.1.0.2"))) },
		want: Forward, copied: tables.ReasonFirstSeen, stage: StageEgress, egress: 1, count: tables.OutcomeStripped,
		check: leavesAs(func(*rig) []byte { return fragment("10.9.0.1", "10.1.0.2") })},
	{name: "retagged fragment", port: 2, frame: func(r *rig) []byte { return eth(r.byPeer(fragment("10.9.0.1", "10.2.0.2"))) },
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeRetagged, check: leavesTagged},
	{name: "stripped fragment IPv6", port: 2, frame: func(r *rig) []byte { return eth(r.byPeer(fragment6("2001:db8:9::1", "2001:db8:1::2"))) },
		want: Forward, copied: tables.ReasonFirstSeen, stage: StageEgress, egress: 1, count: tables.OutcomeStripped,
		check: func(t *testing.T, r *rig, _, out []byte) {
			if v := r.view(out); v.Tagged || !v.Fragment || v.FragID != 0x12345678 {
				t.Errorf("left as %x", out)
			}
		}},

	// policy
	{name: "policy default", frame: plain(untagged4), reason: tables.ReasonPolicyDefault, stage: StagePolicy},
	{name: "policy default IPv6", frame: plain(untagged6), reason: tables.ReasonPolicyDefault, stage: StagePolicy},
	{name: "policy deny", frame: plain(untagged4), setup: withRules(rule4(tables.DenyV4{})), reason: tables.ReasonPolicyDeny, stage: StagePolicy},
	{name: "policy admit", frame: plain(untagged4), setup: withRules(rule4(tables.AdmitV4{})), want: Punt, reason: tables.ReasonNewSession, stage: StagePolicy},
	{name: "policy await", frame: plain(untagged4), setup: withRules(rule4(tables.AwaitV4{})), want: Punt, reason: tables.ReasonReplyUnknown, stage: StagePolicy},
	{name: "policy tag", frame: plain(untagged4), setup: withRules(rule4(tables.TagV4{})), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesTagged},
	{name: "policy by priority", frame: plain(untagged4), setup: func(r *rig) {
		deny, admit := rule4(tables.DenyV4{}), rule4(tables.AdmitV4{})
		deny.Priority, admit.Priority = 5, 7
		r.put(deny, admit)
	}, want: Punt, reason: tables.ReasonNewSession, stage: StagePolicy},
	{name: "policy IPv6 by prefix and ports", frame: plain(untagged6), setup: func(r *rig) {
		dst, mask := untagged6.dst.As16(), [16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		for i := 6; i < 16; i++ {
			dst[i] = 0
		}
		r.put(tables.PolicyV6Entry{Priority: 3, Key: tables.PolicyV6Key{
			Dst: tables.Ternary[[16]byte]{Value: dst, Mask: mask}, SrcPort: tables.Between[uint16](40000, 40001),
			DstPort: tables.Between[uint16](443, 443), TCPFlags: tables.Ternary[uint8]{Mask: 0x02}, Protocol: exactly[uint8](6),
		}, Action: tables.DenyV6{}})
	}, reason: tables.ReasonPolicyDeny, stage: StagePolicy},
	{name: "veto on a tagged packet", port: 2, frame: peer(untagged4), setup: withRules(tables.PolicyV4Entry{Action: tables.DenyV4{}}), reason: tables.ReasonPolicyDeny, stage: StagePolicy},
	{name: "rules for untagged leave tagged alone", port: 2, frame: peer(untagged4), setup: func(r *rig) {
		e := rule4(tables.DenyV4{})
		e.Priority, e.Key.InZone = 1, tables.Ternary[uint16]{}
		r.put(e)
	}, want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeRetagged},

	// own_tag
	{name: "no signing key", frame: plain(untagged4), setup: both(admitting(untagged4), func(r *rig) {
		r.del(tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}})
	}), reason: tables.ReasonNoSigningKey, stage: StageOwnTag},
	{name: "unsigned", frame: plain(untagged4), setup: both(admitting(untagged4), signBySession(nil, tag.Tuple{})), want: Punt, reason: tables.ReasonTagUnsigned, stage: StageOwnTag},
	{name: "unsigned hides the copy", frame: raw(eth(untagged4.ip(untagged4.l4(0x12)))), setup: both(admitting(untagged4), signBySession(nil, tag.Tuple{})), want: Punt, reason: tables.ReasonTagUnsigned, stage: StageOwnTag},
	{name: "ed25519", frame: plain(untagged4), setup: both(admitting(untagged4), signBySession(ownEd25519Key, untagged4.tuple())),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesSealed(ownEd25519Key)},
	{name: "rsa2048 udp IPv6", udp: true, frame: plain(untagged6), setup: both(admitting(untagged6), signBySession(rsaKey, untagged6.tuple())),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesSealed(rsaKey)},
	{name: "siphash in, ed25519 out", port: 2, frame: peer(untagged4), setup: signBySession(ownEd25519Key, untagged4.tuple()),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeRetagged, check: leavesSealed(ownEd25519Key)},
	{name: "rsa2048 in, siphash out", port: 2, frame: sealed(rsaKey, untagged4), setup: vouch(sealed(rsaKey, untagged4)),
		want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeRetagged, check: leavesTagged},
	{name: "too big with the tag", frame: raw(eth(untagged4.ip(append(untagged4.l4(0), make([]byte, 1425)...)))), setup: admitting(untagged4), want: Punt, reason: tables.ReasonTooBig, stage: StageOwnTag},
	{name: "just fits with the tag", frame: raw(eth(untagged4.ip(append(untagged4.l4(0), make([]byte, 1424)...)))), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged},
	{name: "too big with udp", udp: true, frame: raw(eth(untagged4.ip(append(untagged4.l4(0), make([]byte, 1420)...)))), setup: admitting(untagged4), want: Punt, reason: tables.ReasonTooBig, stage: StageOwnTag},

	// mss
	{name: "MSS clamped", frame: raw(eth(untagged4.ip(syn(untagged4, 1460)))), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeMSSClamped, check: leavesMSS(1500 - 28 - 40)},
	{name: "MSS clamped IPv6 udp", udp: true, frame: raw(eth(untagged6.ip(syn(untagged6, 1440)))), setup: admitting(untagged6), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesMSS(1500 - 36 - 60)},
	{name: "MSS small enough", frame: raw(eth(untagged4.ip(syn(untagged4, 1000)))), setup: admitting(untagged4), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged, check: leavesMSS(1000)},
	{name: "MSS to echo stays", frame: raw(eth(tcp4("10.9.0.1", "10.3.0.2").ip(syn(tcp4("10.9.0.1", "10.3.0.2"), 1460)))), setup: admitting(tcp4("10.9.0.1", "10.3.0.2")), want: Forward, stage: StageEgress, egress: 3, count: tables.OutcomeTagged, check: leavesMSS(1460)},

	// punt
	{name: "punt limited", port: 1, frame: plain(untagged4), setup: both(withRules(rule4(tables.AdmitV4{})), func(r *rig) {
		r.del(tables.PuntEntry{Key: tables.PuntKey{Reason: tables.ReasonNewSession, Role: tables.RoleEdge, Zone: 10}})
	}), reason: tables.ReasonPuntLimited, stage: StagePunt},
	{name: "copy limited", frame: raw(eth(untagged4.ip(untagged4.l4(0x12)))), setup: both(admitting(untagged4), func(r *rig) {
		r.del(tables.PuntEntry{Key: tables.PuntKey{Reason: tables.ReasonTCPFlags, Role: tables.RoleEdge, Zone: 10}})
	}), want: Forward, stage: StageEgress, egress: 2, count: tables.OutcomeTagged},
	{name: "next hop is the CPU", frame: plain(tcp4("10.9.0.1", "10.5.0.1")), setup: both(admitting(tcp4("10.9.0.1", "10.5.0.1")), func(r *rig) {
		r.route(5, oneShot(tables.NextHop{Port: tables.CPUPort, Role: tables.RoleEdge, MTU: 1500}))
	}), want: Punt, stage: StageEgress},
}

// syn is a SYN that announces an MSS, with a checksum to follow it.
func syn(f flow, mss uint16) []byte {
	b := f.l4(0x02)[:20]
	b[12] = 6 << 4
	return append(b, 2, 4, byte(mss>>8), byte(mss))
}

func leavesMSS(want uint16) func(*testing.T, *rig, []byte, []byte) {
	return func(t *testing.T, r *rig, in, out []byte) {
		t.Helper()
		var before packet.View
		packet.Parse(in, r.carrier, &before)
		v := r.view(out)
		if got := binary.BigEndian.Uint16(out[v.MSSAt:]); got != want {
			t.Errorf("MSS %d, want %d", got, want)
		}
		sum := func(f []byte, l4 int) (s uint32) {
			for i := l4; i < l4+24; i += 2 {
				s += uint32(binary.BigEndian.Uint16(f[i:]))
			}
			return s % 0xffff
		}
		if a, b := sum(in, before.L4), sum(out, v.L4); a != b {
			t.Errorf("TCP checksum does not follow: sums %x and %x", a, b)
		}
	}
}

func TestVerdicts(t *testing.T) {
	reasons, outcomes := make(map[tables.Reason]bool), make(map[tables.Outcome]bool)
	for _, c := range verdictCases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.udp)
			if c.port == 0 {
				c.port = 1
			}
			if c.setup != nil {
				c.setup(r)
			}
			in := c.frame(r)
			r.carrier.UDP = c.udp
			p := r.send(c.port, in)
			out := p.Frame.Bytes()
			if p.Verdict != c.want || p.Reason != c.reason || p.Copied != c.copied || p.Stage != c.stage || p.Egress != c.egress {
				t.Fatalf("%v %v copied %v at %v, egress %d; want %v %v copied %v at %v, egress %d",
					p.Verdict, p.Reason, p.Copied, p.Stage, p.Egress, c.want, c.reason, c.copied, c.stage, c.egress)
			}
			r.checkCounters(&c, &p, len(in))
			if c.want == Forward && c.check != nil {
				c.check(t, r, in, out)
			}
			if c.want != Forward && !bytes.Equal(in, out) {
				t.Errorf("a packet that does not leave was changed: %x", out)
			}
			for i, in1 := range r.held {
				if !bytes.Equal(in1, in) || r.ins[i].IngressPort != c.port {
					t.Errorf("packet-in %+v with %x", r.ins[i], in1)
				}
			}
			reasons[c.reason], reasons[c.copied], outcomes[c.count] = true, true, true
		})
	}
	// What no stage of the program gives yet, and what tests of their own cover.
	for _, reason := range []tables.Reason{
		tables.ReasonSYNProof, tables.ReasonSample, tables.ReasonLand, tables.ReasonTagReplayed, tables.ReasonSourceGuard,
		tables.ReasonBlocklist, tables.ReasonMitigation, tables.ReasonICMPUnproven,
		tables.ReasonPuntLoop, tables.ReasonBadPacketOut,
	} {
		reasons[reason] = true
	}
	for _, reason := range tables.ReasonValues() {
		if !reasons[reason] {
			t.Errorf("no case for %v", reason)
		}
	}
	for _, o := range []tables.Outcome{tables.OutcomeReturned, tables.OutcomeSentByCPU} {
		outcomes[o] = true
	}
	for _, o := range tables.OutcomeValues() {
		if !outcomes[o] {
			t.Errorf("no case for outcome %v", o)
		}
	}
}

// checkCounters checks that exactly the packet was counted.
func (r *rig) checkCounters(c *verdictCase, p *Packet, length int) {
	r.t.Helper()
	want := make(map[string]int64)
	want[fmt.Sprint("rx ", c.port)] = 1
	if c.want == Drop {
		want[fmt.Sprint("drop ", c.reason)] = 1
	}
	for _, reason := range []tables.Reason{c.copied, c.reason} {
		if reason != tables.ReasonNone && reason <= tables.ReasonTagUnknownKey {
			want[fmt.Sprint("punt ", reason)] = 1
		}
	}
	if c.want == Forward {
		want[fmt.Sprint("tx ", c.egress)] = 1
	}
	got := make(map[string]int64)
	for i := range 256 {
		got[fmt.Sprint("drop ", tables.Reason(i))] = r.counter(tables.DropsCounterID, i)
		got[fmt.Sprint("punt ", tables.Reason(i))] = r.counter(tables.PuntsCounterID, i)
		got[fmt.Sprint("rx ", i)] = r.counter(tables.PortRxCounterID, i)
		got[fmt.Sprint("tx ", i)] = r.counter(tables.PortTxCounterID, i)
	}
	if p.Stage == StageEgress && c.want == Punt {
		return // counted as sent
	}
	for k, n := range got {
		if n != want[k] {
			r.t.Errorf("counter %s is %d, want %d", k, n, want[k])
		}
	}
	if d, _ := r.pl.Counter(tables.PortRxCounterID, int64(c.port)); d.Bytes != int64(length) {
		r.t.Errorf("port_rx has %d bytes, want %d", d.Bytes, length)
	}
	if c.want == Forward {
		if n := r.counter(tables.OutcomesCounterID, int(c.count)); n != 1 {
			r.t.Errorf("outcome %v is %d", c.count, n)
		}
	}
	if c.want == Punt || c.copied != tables.ReasonNone {
		if len(r.ins) != 1 || r.ins[0].Reason != max(c.reason, c.copied) {
			r.t.Errorf("packet-ins %+v", r.ins)
		}
	} else if len(r.ins) != 0 {
		r.t.Errorf("packet-ins %+v", r.ins)
	}
}

func TestPacketOut(t *testing.T) {
	t.Run("send", func(t *testing.T) {
		r := newRig(t, false)
		r.packetOut(uint8(tables.PacketOutModeSend), 4, 0, arp())
		if len(r.sent) != 1 || r.out[0].Egress != 4 || !bytes.Equal(r.sent[0], arp()) {
			t.Fatalf("sent %+v", r.out)
		}
		if n := r.counter(tables.OutcomesCounterID, int(tables.OutcomeSentByCPU)); n != 1 {
			t.Errorf("sent_by_cpu is %d", n)
		}
	})
	t.Run("return an admitted packet", func(t *testing.T) {
		r := newRig(t, false)
		r.admit(untagged4.tuple())
		r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, eth(untagged4.packet()))
		if len(r.sent) != 1 || r.out[0].Egress != 2 {
			t.Fatalf("sent %+v", r.out)
		}
		leavesTagged(t, r, eth(untagged4.packet()), r.sent[0])
		if n := r.counter(tables.OutcomesCounterID, int(tables.OutcomeReturned)); n != 1 {
			t.Errorf("returned is %d", n)
		}
		if n := r.counter(tables.PortRxCounterID, 1); n != 0 {
			t.Errorf("a returned packet was counted as received")
		}
	})
	t.Run("returned copies are not made", func(t *testing.T) {
		r := newRig(t, false)
		r.admit(untagged4.tuple())
		r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, eth(untagged4.ip(untagged4.l4(0x12))))
		if len(r.sent) != 1 || len(r.ins) != 0 {
			t.Errorf("sent %d, packet-ins %+v", len(r.sent), r.ins)
		}
	})
	t.Run("returned skips the rules about shapes and mends the checksum", func(t *testing.T) {
		r := newRig(t, false)
		f := tcp4("10.9.0.1", "10.2.0.2")
		r.admit(f.tuple())
		b := eth(f.packet())
		b[14+10] ^= 1
		r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, b)
		if len(r.sent) != 1 {
			t.Fatal("nothing sent")
		}
		r.view(r.sent[0])
	})
	for name, frame := range map[string][]byte{
		"punt loop": eth(untagged4.packet()), "punt loop of ARP": arp(), "punt loop of a fragment": eth(fragment("10.9.0.1", "10.2.0.2")),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, false)
			r.put(anyRule(tables.AdmitV4{}))
			r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, frame)
			if n := r.counter(tables.DropsCounterID, int(tables.ReasonPuntLoop)); n != 1 || len(r.ins) != 0 || len(r.sent) != 0 {
				t.Errorf("punt_loop %d, packet-ins %+v", n, r.ins)
			}
		})
	}
	t.Run("returned ICMP error is judged by rules", func(t *testing.T) {
		r := newRig(t, false)
		r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, eth(icmpError(untagged4.packet())))
		if n := r.counter(tables.DropsCounterID, int(tables.ReasonPolicyDefault)); n != 1 {
			t.Errorf("policy_default %d", n)
		}
	})
	t.Run("unknown mode", func(t *testing.T) {
		r := newRig(t, false)
		r.packetOut(9, 1, 1, arp())
		if n := r.counter(tables.DropsCounterID, int(tables.ReasonBadPacketOut)); n != 1 || len(r.sent) != 0 {
			t.Errorf("bad_packet_out %d", n)
		}
	})
}
