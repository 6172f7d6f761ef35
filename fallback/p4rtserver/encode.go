package p4rtserver

import (
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// slab hands out zeroed values from blocks, so that a read of many entries
// makes few allocations; blocks grow from a few values to many. The zero value
// is ready.
type slab[T any] struct {
	free []T
	size int
}

func (s *slab[T]) next() *T { return &s.run(1)[0] }

// run is n values side by side, full.
func (s *slab[T]) run(n int) []T {
	if n == 0 {
		return nil
	}
	if len(s.free) < n {
		s.size = min(max(2*s.size, 4), 1024)
		s.free = make([]T, max(n, s.size))
	}
	v := s.free[:n:n]
	s.free = s.free[n:]
	return v
}

// encoder turns entries into protobuf messages that share nothing with them.
// The zero value is ready; it is for one goroutine.
type encoder struct {
	size int // of what the caller has gathered, in bytes, about

	bytes     slab[byte]
	entries   slab[p4v1.TableEntry]
	entities  slab[tableEntity]
	fields    slab[p4v1.FieldMatch]
	fieldPtrs slab[*p4v1.FieldMatch]
	exacts    slab[exactMatch]
	actions   slab[tableAction]
	params    slab[p4v1.Action_Param]
	paramPtrs slab[*p4v1.Action_Param]
}

// The parts of a message that always come together.
type (
	exactMatch struct {
		oneof p4v1.FieldMatch_Exact_
		msg   p4v1.FieldMatch_Exact
	}
	tableAction struct {
		msg    p4v1.TableAction
		oneof  p4v1.TableAction_Action
		action p4v1.Action
	}
	tableEntity struct {
		oneof p4v1.Entity_TableEntry
		msg   p4v1.Entity
	}
)

func (x *encoder) copy(b []byte) []byte {
	out := x.bytes.run(len(b))
	copy(out, b)
	return out
}

func entity(te *p4v1.TableEntry) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: te}}
}

func (x *encoder) entity(te *p4v1.TableEntry) *p4v1.Entity {
	e := x.entities.next()
	e.oneof.TableEntry = te
	e.msg.Entity = &e.oneof
	return &e.msg
}

// key encodes an entry's key. The second result is an upper bound of its size.
func (x *encoder) key(t *tableInfo, e *Entry) (*p4v1.TableEntry, int) {
	te := x.entries.next()
	te.TableId, te.Priority, te.IsDefaultAction = t.id, e.Priority, e.Default
	size := 32
	n := 0
	for i := range e.Match {
		if e.Match[i].Kind != MatchAny {
			n++
		}
	}
	te.Match = x.fieldPtrs.run(n)[:0]
	for i := range e.Match {
		m := &e.Match[i]
		if m.Kind == MatchAny {
			continue
		}
		te.Match = append(te.Match, x.fieldMatch(m))
		size += 32 + len(m.Value) + len(m.Mask)
	}
	return te, size
}

func (x *encoder) fieldMatch(m *FieldMatch) *p4v1.FieldMatch {
	fm := x.fields.next()
	fm.FieldId = m.ID
	v := x.copy(Canonical(m.Value))
	switch m.Kind {
	case MatchExact:
		k := x.exacts.next()
		k.msg.Value = v
		k.oneof.Exact = &k.msg
		fm.FieldMatchType = &k.oneof
	case MatchLPM:
		fm.FieldMatchType = &p4v1.FieldMatch_Lpm{Lpm: &p4v1.FieldMatch_LPM{Value: v, PrefixLen: m.PrefixLen}}
	case MatchTernary:
		fm.FieldMatchType = &p4v1.FieldMatch_Ternary_{Ternary: &p4v1.FieldMatch_Ternary{Value: v, Mask: x.copy(Canonical(m.Mask))}}
	case MatchRange:
		fm.FieldMatchType = &p4v1.FieldMatch_Range_{Range: &p4v1.FieldMatch_Range{Low: v, High: x.copy(Canonical(m.Mask))}}
	case MatchOptional:
		fm.FieldMatchType = &p4v1.FieldMatch_Optional_{Optional: &p4v1.FieldMatch_Optional{Value: v}}
	}
	return fm
}

// tableEntry encodes an entry with what a read wants. The second result is an
// upper bound of its size.
func (x *encoder) tableEntry(t *tableInfo, e *Entry, want Want) (*p4v1.TableEntry, int) {
	te, size := x.key(t, e)
	if len(e.Metadata) > 0 {
		te.Metadata = x.copy(e.Metadata)
	}
	te.IdleTimeoutNs = e.IdleTimeoutNs
	size += 32 + len(e.Metadata)
	switch a := &e.Action; a.Kind {
	case ActionDirect:
		ta := x.actions.next()
		size += x.action(&ta.action, &a.Action, t.actions)
		ta.oneof.Action = &ta.action
		ta.msg.Type = &ta.oneof
		te.Action = &ta.msg
	case ActionMember:
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileMemberId{ActionProfileMemberId: a.RefID}}
	case ActionGroup:
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileGroupId{ActionProfileGroupId: a.RefID}}
	case ActionSet:
		set := &p4v1.ActionProfileActionSet{}
		for i := range a.Set {
			w := &a.Set[i]
			pa := &p4v1.ActionProfileAction{Action: &p4v1.Action{}, Weight: w.Weight}
			size += 32 + len(w.WatchPort) + x.action(pa.Action, &w.Action, t.actions)
			if len(w.WatchPort) > 0 {
				pa.WatchKind = &p4v1.ActionProfileAction_WatchPort{WatchPort: x.copy(w.WatchPort)}
			}
			set.ActionProfileActions = append(set.ActionProfileActions, pa)
		}
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileActionSet{ActionProfileActionSet: set}}
	}
	if want&WantCounter != 0 {
		var c CounterData
		if e.Counter != nil {
			c = *e.Counter
		}
		te.CounterData = counterMessage(c)
		size += 32
	}
	if want&WantMeter != 0 {
		te.MeterConfig = meterMessage(e.Meter)
		size += 64
	}
	if want&WantMeterCounters != 0 {
		te.MeterCounterData = coloursMessage(e.MeterCounters)
		size += 96
	}
	if want&WantLastHit != 0 && !e.Default {
		te.TimeSinceLastHit = &p4v1.TableEntry_IdleTimeout{ElapsedNs: e.SinceLastHitNs}
		size += 16
	}
	return te, size
}

// action encodes a into msg and returns an upper bound of its size.
func (x *encoder) action(msg *p4v1.Action, a *Action, known map[uint32]actionRef) int {
	msg.ActionId = a.ID
	size := 32
	ref := known[a.ID]
	if ref.actionInfo == nil {
		return size
	}
	n := min(len(a.Params), len(ref.params))
	msg.Params = x.paramPtrs.run(n)
	for i := range msg.Params {
		p := x.params.next()
		p.ParamId = ref.params[i].id
		p.Value = x.copy(Canonical(a.Params[i]))
		msg.Params[i] = p
		size += 16 + len(p.Value)
	}
	return size
}

func actionSize(a *p4v1.Action) int {
	size := 32
	for _, p := range a.GetParams() {
		size += 16 + len(p.GetValue())
	}
	return size
}

func memberMessage(m *Member, known map[uint32]actionRef) *p4v1.ActionProfileMember {
	var x encoder
	msg := &p4v1.ActionProfileMember{ActionProfileId: m.ProfileID, MemberId: m.ID, Action: &p4v1.Action{}}
	x.action(msg.Action, &m.Action, known)
	return msg
}

func groupMessage(g *Group) *p4v1.ActionProfileGroup {
	msg := &p4v1.ActionProfileGroup{ActionProfileId: g.ProfileID, GroupId: g.ID, MaxSize: g.MaxSize}
	for _, m := range g.Members {
		pm := &p4v1.ActionProfileGroup_Member{MemberId: m.ID, Weight: m.Weight}
		if len(m.WatchPort) > 0 {
			pm.WatchKind = &p4v1.ActionProfileGroup_Member_WatchPort{WatchPort: m.WatchPort}
		}
		msg.Members = append(msg.Members, pm)
	}
	return msg
}

func replicaMessages(list []Replica) []*p4v1.Replica {
	out := make([]*p4v1.Replica, 0, len(list))
	for _, r := range list {
		out = append(out, &p4v1.Replica{EgressPort: r.EgressPort, Instance: r.Instance})
	}
	return out
}

func counterMessage(c CounterData) *p4v1.CounterData {
	return &p4v1.CounterData{ByteCount: c.Bytes, PacketCount: c.Packets}
}

// meterMessage is nil for the default configuration.
func meterMessage(m *MeterConfig) *p4v1.MeterConfig {
	if m == nil {
		return nil
	}
	return &p4v1.MeterConfig{Cir: m.CIR, Cburst: m.CBurst, Pir: m.PIR, Pburst: m.PBurst}
}

func coloursMessage(c *MeterCounters) *p4v1.MeterCounterData {
	if c == nil {
		c = new(MeterCounters)
	}
	return &p4v1.MeterCounterData{Green: counterMessage(c.Green), Yellow: counterMessage(c.Yellow), Red: counterMessage(c.Red)}
}
