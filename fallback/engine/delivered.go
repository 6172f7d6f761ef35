package engine

import "countersign/tables"

// delivered is the stage of that name: a verified tag that leaves by an edge. A
// miss sends the CPU a first_seen copy, again for each packet until the entry
// stands. Only verified tags hit it, so that its idle timeout tells the
// liveness of the trusted direction.
func (pl *pipeline) delivered(m *meta, now int64) {
	if m.view.Family == 4 {
		if e := pl.delivered4.recall(m.probed, m.hash, m.tuple4()); e != nil {
			e.hit(now)
			return
		}
	} else if e := pl.delivered6.recall(m.probed, m.hash, &m.view.Tuple); e != nil {
		e.hit(now)
		return
	}
	m.copy = tables.ReasonFirstSeen
}
