package engine

import (
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// session is what an entry of that table holds.
type session struct {
	zones atomic.Uint64 // of the low end, above that of the high end
	counts
}

// TCP flags.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// session is the stage of that name: an untagged packet of an admitted session,
// either direction. The entry names the zone each direction may come from. It
// reports whether there is one.
func (pl *pipeline) session(m *meta, now int64) bool {
	v := &m.view
	if v.Has(packet.ICMPError) && !m.returned {
		// Judged by the session of the packet it quotes, by the CPU.
		m.hold(StageSession, tables.ReasonICMPError)
		return false
	}
	var s *session
	if v.Family == 4 {
		if e := pl.session4.recall(m.probed, m.hash, m.tuple4()); e != nil {
			e.hit(now)
			s = &e.val
		}
	} else if e := pl.session6.recall(m.probed, m.hash, &v.Tuple); e != nil {
		e.hit(now)
		s = &e.val
	}
	if s == nil {
		if v.Fragment {
			m.hold(StageSession, tables.ReasonFragment)
		}
		return false
	}
	s.add(1, uint64(len(m.frame)))
	expected := uint16(s.zones.Load())
	if srcIsLow(v) {
		expected = uint16(s.zones.Load() >> 16)
	}
	switch {
	case expected != m.zone && expected != tables.ZoneAny:
		m.drop(StageSession, tables.ReasonWrongZone)
	case v.TCPFlags&(tcpFIN|tcpRST) != 0, v.TCPFlags&(tcpSYN|tcpACK) == tcpSYN|tcpACK:
		m.copy = tables.ReasonTCPFlags
	}
	return true
}

// srcIsLow is the P4 program's: of a fragment to its own source the halves of
// the identification decide.
func srcIsLow(v *packet.View) bool {
	if v.Fragment && v.Has(packet.LAND) {
		return v.FragID>>16 <= v.FragID&0xffff
	}
	return v.SrcIsLow
}

func setSession[K any](_ *K, s *session, a *p4rtserver.Action) error {
	s.zones.Store(param(a, 0)<<16 | param(a, 1))
	return nil
}

func getSession(id uint32) func(*session) p4rtserver.Action {
	return func(s *session) p4rtserver.Action {
		zones := s.zones.Load()
		return action(id, zones>>16, zones&0xffff)
	}
}

// touch begins to fetch what delivered or session will search.
func (pl *pipeline) touch(m *meta) {
	switch v4 := m.view.Family == 4; {
	case !m.searches():
	case !m.tagged && v4:
		pl.session4.touch(m.hash)
	case !m.tagged:
		pl.session6.touch(m.hash)
	case v4:
		pl.delivered4.touch(m.hash)
	default:
		pl.delivered6.touch(m.hash)
	}
}

// probe goes on with what touch began.
func (pl *pipeline) probe(m *meta) {
	switch v4 := m.view.Family == 4; {
	case !m.searches():
	case !m.tagged && v4:
		m.probed = pl.session4.probe(m.hash)
	case !m.tagged:
		m.probed = pl.session6.probe(m.hash)
	case v4:
		m.probed = pl.delivered4.probe(m.hash)
	default:
		m.probed = pl.delivered6.probe(m.hash)
	}
}

// searches reports whether the packet comes to delivered or session.
func (m *meta) searches() bool {
	return m.forward() && !m.raw && (!m.tagged || m.hop.role == tables.RoleEdge)
}

// tupleHash is the hash of the sorted five-tuple, computed once.
func (pl *pipeline) tupleHash(m *meta) uint64 {
	if m.hash == 0 {
		if t := &m.view.Tuple; m.view.Family == 4 {
			m.hash = pl.hashes.tuple4(&tuple4{t.W2, t.A[0]})
		} else {
			m.hash = pl.hashes.tuple6(t)
		}
	}
	return m.hash
}

func (s *hasher) tuple4(t *tuple4) uint64 { return s.two(t.w2, t.addresses) }

func (s *hasher) tuple6(t *tag.Tuple) uint64 {
	return s.more(s.more(s.two(t.W2, t.A[0]), t.A[1], t.A[2]), t.A[3], 0)
}
