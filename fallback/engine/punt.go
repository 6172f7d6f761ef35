package engine

import (
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
)

// puntKey is reason(8) | role(8) | zone(16).
func puntKey(reason, role, zone uint64) uint64 { return reason<<24 | role<<16 | zone }

// punt is the stage of that name: reason, role and zone give a meter; what is
// within it goes to the CPU, held or as a copy, what is over it is dropped,
// punt_limited (a copy is then only not made). A returned packet is never
// punted again. It reports whether a copy is to be made.
func (pl *pipeline) punt(m *meta, now int64) (copyNow bool) {
	hold := m.disposition == tables.DispositionHold
	if hold {
		m.puntReason = m.reason
	} else if m.forward() || m.copy == tables.ReasonTagUnknownKey {
		m.puntReason = m.copy
	}
	if m.returned {
		if hold {
			m.drop(StagePunt, tables.ReasonPuntLoop)
		}
		return false
	}
	if m.puntReason == tables.ReasonNone {
		return false
	}
	c := red
	key := puntKey(uint64(m.puntReason), uint64(m.role), uint64(m.zone))
	if e := pl.punts.find(pl.hashes.one(key), &key); e != nil {
		c = e.val.Load().mark(now, len(m.frame))
	}
	if c == red && hold {
		m.drop(StagePunt, tables.ReasonPuntLimited)
	}
	return c != red && !hold
}

func setPunt(_ *uint64, p *atomic.Pointer[meter], _ *p4rtserver.Action) error { return nil }

func getPunt(*atomic.Pointer[meter]) p4rtserver.Action { return action(tables.ToCPUActionID) }
