package engine

import (
	"testing"

	"countersign/tables"
	"countersign/tag"
)

func TestVerifyAndRetag(t *testing.T) {
	for _, udp := range []bool{false, true} {
		for name, f := range map[string]flow{
			"ipv4": tcp4("10.9.0.1", "10.2.0.2"),
			"ipv6": tcp4("2001:db8:9::1", "2001:db8:2::2"),
		} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t, udp)
				p := r.send(2, eth(r.byPeer(f.packet())))
				if p.Verdict != Forward || p.Egress != 2 || p.Stage != StageEgress {
					t.Fatalf("%v %v at %v, port %d", p.Verdict, p.Reason, p.Stage, p.Egress)
				}
				v := r.view(p.Frame.Bytes())
				want := tag.KeyID{Suite: tag.Siphash, UNID: ownUNID, Epoch: ownEpoch}
				if !v.Tagged || v.Tag.KeyID() != want || !ownMACKey.VerifyDigest(&v.Tag, &v.Tuple) || v.Tuple != f.tuple() || v.TTL != 63 {
					t.Errorf("left as %+v", v)
				}
				if n := r.counter(tables.OutcomesCounterID, int(tables.OutcomeRetagged)); n != 1 {
					t.Errorf("retagged %d", n)
				}
				if n := r.counter(tables.OutcomesCounterID, int(tables.OutcomeVerifiedSiphash)); n != 1 {
					t.Errorf("verified %d", n)
				}
			})
		}
	}
}
