package dataplane

import (
	"bytes"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"testing"

	"countersign/tables"
	"countersign/tag"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func (h hexBytes) int() *big.Int { return new(big.Int).SetBytes(h) }

// vectors is what is used here of the shared examples.
type vectors struct {
	Issuers []struct {
		UNID    uint32   `json:"unid"`
		Siphash hexBytes `json:"siphash"`
		Ed25519 struct {
			Filter, Seed hexBytes
		} `json:"ed25519"`
		RSA2048 struct {
			N, D, P, Q hexBytes
			E          int
		} `json:"rsa2048"`
	} `json:"issuers"`
	Packets []struct {
		Name     string    `json:"name"`
		Carrier  string    `json:"carrier"`
		Issuer   int       `json:"issuer"`
		Suite    tag.Suite `json:"suite"`
		Epoch    uint16    `json:"epoch"`
		Nonce    hexBytes  `json:"nonce"`
		Untagged hexBytes  `json:"untagged"`
		Tagged   hexBytes  `json:"tagged"`
	} `json:"packets"`
}

func readVectors(t *testing.T) *vectors {
	t.Helper()
	b, err := os.ReadFile("../../tag/testdata/tag-v1.json")
	must(t, err)
	v := new(vectors)
	must(t, json.Unmarshal(b, v))
	if len(v.Packets) == 0 {
		t.Fatal("no packets in the vectors")
	}
	return v
}

func (v *vectors) key(t *testing.T, issuer int, s tag.Suite) *tag.IssueKey {
	t.Helper()
	i := v.Issuers[issuer]
	var k *tag.IssueKey
	var err error
	switch s {
	case tag.Siphash:
		k = tag.NewSiphashKey(tag.MACKey(i.Siphash))
	case tag.Ed25519:
		k, err = tag.NewEd25519Key(tag.MACKey(i.Ed25519.Filter), i.Ed25519.Seed)
	case tag.RSA2048:
		p := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: i.RSA2048.N.int(), E: i.RSA2048.E},
			D:         i.RSA2048.D.int(), Primes: []*big.Int{i.RSA2048.P.int(), i.RSA2048.Q.int()},
		}
		p.Precompute()
		k, err = tag.NewRSA2048Key(p)
	}
	must(t, err)
	return k
}

// verifying is the entry that makes a data plane verify tags of k.
func verifying(k *tag.IssueKey, unid uint32, epoch uint16, state tables.KeyState) tables.IssuerKeyEntry {
	e := tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.Suite(k.Suite()), UNID: unid, Epoch: epoch}}
	mac, _ := k.MAC()
	k0, k1 := mac.Words()
	switch k.Suite() {
	case tag.Siphash:
		e.Action = tables.SiphashKey{State: state, K0: k0, K1: k1}
	case tag.Ed25519:
		e.Action = tables.Ed25519Key{State: state, K0: k0, K1: k1}
	default:
		e.Action = tables.RSA2048Key{State: state}
	}
	return e
}

// vouched is the entry for the tag on frame, which the CPU has verified.
func (f *fixture) vouched(frame []byte) tables.Entry {
	h := f.view(frame).Tag
	if f.view(frame).Family == 4 {
		k := f.session4(frame)
		return tables.VouchedV4Entry{Action: tables.Vouched{}, Key: tables.VouchedV4Key{
			Low: k.Low, High: k.High, Protocol: k.Protocol, Kind: k.Kind, LowPort: k.LowPort, HighPort: k.HighPort,
			Suite: tables.Suite(h.Suite), UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, Digest: h.Digest, SealedCRC: h.SealedCRC(),
		}}
	}
	k := f.session6(frame)
	return tables.VouchedV6Entry{Action: tables.Vouched{}, Key: tables.VouchedV6Key{
		Low: k.Low, High: k.High, Protocol: k.Protocol, Kind: k.Kind, LowPort: k.LowPort, HighPort: k.HighPort,
		Suite: tables.Suite(h.Suite), UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, Digest: h.Digest, SealedCRC: h.SealedCRC(),
	}}
}

// finished is the entry that puts the tag of suite 2 or 3 that tagged has on
// the packets of its session.
func (f *fixture) finished(tagged []byte) tables.Entry {
	h := f.view(tagged).Tag
	if f.view(tagged).Family == 4 {
		e := tables.OwnTagV4Entry{Key: tables.OwnTagV4Key(f.session4(tagged))}
		if h.Suite == tag.Ed25519 {
			e.Action = tables.PutEd25519{UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, TagDigest: h.Digest, Sealed: [64]byte(h.Sealed)}
		} else {
			e.Action = tables.PutRSA2048{UNID: h.UNID, Epoch: h.Epoch, TagDigest: h.Digest, Sealed: [256]byte(h.Sealed)}
		}
		return e
	}
	e := tables.OwnTagV6Entry{Key: tables.OwnTagV6Key(f.session6(tagged))}
	if h.Suite == tag.Ed25519 {
		e.Action = tables.PutEd25519{UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, TagDigest: h.Digest, Sealed: [64]byte(h.Sealed)}
	} else {
		e.Action = tables.PutRSA2048{UNID: h.UNID, Epoch: h.Epoch, TagDigest: h.Digest, Sealed: [256]byte(h.Sealed)}
	}
	return e
}

var verifiedOutcome = map[tag.Suite]tables.Outcome{
	tag.Siphash: tables.OutcomeVerifiedSiphash, tag.Ed25519: tables.OutcomeVerifiedEd25519, tag.RSA2048: tables.OutcomeVerifiedRSA2048,
}

// testVectors takes every packet of the shared vectors through the data plane
// four ways: from a trunk to an edge, from an edge to a trunk, from a trunk to
// a trunk, and from a trunk to a trunk of a member that signs by session.
func testVectors(t *testing.T) {
	all := readVectors(t)
	for _, p := range all.Packets {
		t.Run(p.Name, func(t *testing.T) {
			k := all.key(t, p.Issuer, p.Suite)
			unid := all.Issuers[p.Issuer].UNID
			known := verifying(k, unid, p.Epoch, tables.KeyStateAccepted)
			// A flow label that was 0 stays what insertion has made it.
			untagged, tagged := eth(p.Untagged), eth(p.Tagged)
			verified := verifiedOutcome[p.Suite]
			towards := func(port uint16) []tables.Entry {
				return []tables.Entry{route4("203.0.113.2/32", hop(port)), route6("2001:db8:ffff::/48", hop(port))}
			}
			options := bytes.Contains([]byte(p.Name), []byte("destination-options"))

			if options {
				// Chains that are not read are dropped, tagged or not.
				t.Run("unreadable", func(t *testing.T) {
					f := newFixture(t, p.Carrier == "udp", append(towards(edge2), known)...)
					f.send(trunk3, tagged, want{drop: tables.ReasonUnreadableChain})
				})
				return
			}
			t.Run("strip", func(t *testing.T) {
				f := newFixture(t, p.Carrier == "udp", append(towards(edge2), known)...)
				f.insert(f.delivered(tagged))
				if p.Suite != tag.Siphash {
					f.send(trunk3, tagged, want{hold: tables.ReasonTagUnverified})
					f.insert(f.vouched(tagged))
				}
				plain := f.stripped(tagged)
				w := want{out: edge2, frame: f.routed(plain, edge2), outcomes: []tables.Outcome{verified, tables.OutcomeStripped}}
				f.send(trunk3, tagged, w)
				if p.Suite != tag.Siphash {
					f.sendBack(trunk3, tagged, w)
				}
				if !bytes.Equal(plain, untagged) && p.Name != "ipv6-zero-flow-label-tcp" {
					t.Errorf("stripped %x, want %x", plain, untagged)
				}
			})
			t.Run("tag", func(t *testing.T) {
				f := newFixture(t, p.Carrier == "udp", append(towards(trunk4), tagAll()...)...)
				if f.view(untagged).Fragment {
					f.insert(f.admitted(untagged, edge1, edge2))
				}
				for range 3 {
					f.send(edge1, untagged, want{out: trunk4, frame: f.routed(untagged, trunk4), signed: true, outcomes: []tables.Outcome{tables.OutcomeTagged}})
				}
			})
			t.Run("retag", func(t *testing.T) {
				f := newFixture(t, p.Carrier == "udp", append(towards(trunk4), known)...)
				if p.Suite != tag.Siphash {
					f.insert(f.vouched(tagged))
				}
				f.send(trunk3, tagged, want{out: trunk4, frame: f.routed(tagged, trunk4), retagged: true, outcomes: []tables.Outcome{verified, tables.OutcomeRetagged}})
			})
			if p.Suite == tag.Siphash {
				return
			}
			t.Run("sign by session", func(t *testing.T) {
				entries := append(towards(trunk4), tagAll()...)
				f := newFixture(t, p.Carrier == "udp", entries...)
				own := ownKey(tables.RoleTrunk)
				own.Action = tables.SignBySession{}
				f.modify(own, ownKey(tables.RoleTrunk))
				f.send(edge1, untagged, want{hold: tables.ReasonTagUnsigned, egress: trunk4})
				f.insert(f.finished(tagged))
				h := f.view(tagged).Tag
				w := want{out: trunk4, frame: f.put(f.routed(untagged, trunk4), &h, false), outcomes: []tables.Outcome{tables.OutcomeTagged}}
				f.sendBack(edge1, untagged, w)
				f.send(edge1, untagged, w)
			})
			t.Run("retag by session", func(t *testing.T) {
				f := newFixture(t, p.Carrier == "udp", towards(trunk4)...)
				own := ownKey(tables.RoleTrunk)
				own.Action = tables.SignBySession{}
				f.modify(own, ownKey(tables.RoleTrunk))
				f.insert(f.finished(tagged))
				h := f.view(tagged).Tag
				peers := f.fromPeer(untagged, 99)
				f.send(trunk3, peers, want{out: trunk4, frame: f.put(f.routed(peers, trunk4), &h, true), outcomes: []tables.Outcome{tables.OutcomeVerifiedSiphash, tables.OutcomeRetagged}})
			})
		})
	}
}
