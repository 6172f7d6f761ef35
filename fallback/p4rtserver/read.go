package p4rtserver

import (
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// chunkBytes is about how large a ReadResponse becomes, well below gRPC's
// default limit of 4 MiB for a received message.
const chunkBytes = 512 << 10

// reader answers read requests against one pipeline and hands responses to
// emit, which must not keep them. l and emit are to be set; it is for one
// goroutine.
type reader struct {
	l    *loaded
	emit func(*p4v1.ReadResponse) error
	enc  encoder
	resp p4v1.ReadResponse
	err  error // of emit
}

// add puts an entity into the response and sends it when it is large enough.
func (r *reader) add(e *p4v1.Entity, size int) bool {
	r.resp.Entities = append(r.resp.Entities, e)
	r.enc.size += size
	if r.enc.size >= chunkBytes {
		r.err = r.flush()
	}
	return r.err == nil
}

// flush sends what is left.
func (r *reader) flush() error {
	if len(r.resp.Entities) == 0 {
		return nil
	}
	err := r.emit(&r.resp)
	clear(r.resp.Entities)
	r.resp.Entities = r.resp.Entities[:0]
	r.enc.size = 0
	return err
}

// read answers one request.
func (r *reader) read(e *p4v1.Entity) (err error) {
	switch x := e.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		err = r.tables(x.TableEntry)
	case *p4v1.Entity_DirectCounterEntry:
		err = r.directCounters(x.DirectCounterEntry)
	case *p4v1.Entity_DirectMeterEntry:
		err = r.directMeters(x.DirectMeterEntry)
	case *p4v1.Entity_ActionProfileMember:
		err = r.members(x.ActionProfileMember)
	case *p4v1.Entity_ActionProfileGroup:
		err = r.groups(x.ActionProfileGroup)
	case *p4v1.Entity_CounterEntry:
		err = r.counters(x.CounterEntry)
	case *p4v1.Entity_MeterEntry:
		err = r.meters(x.MeterEntry)
	case *p4v1.Entity_PacketReplicationEngineEntry:
		err = r.replication(x.PacketReplicationEngineEntry)
	default:
		// A wildcard read of what the target does not serve finds nothing.
		if r.l.schema.wildcardUnserved(e) {
			return nil
		}
		err = r.l.schema.unserved(e)
	}
	if r.err != nil {
		return r.err
	}
	return err
}

// wildcardUnserved says whether a request asks for all objects of a kind that
// the server does not serve.
func (s *schema) wildcardUnserved(e *p4v1.Entity) bool {
	switch x := e.GetEntity().(type) {
	case *p4v1.Entity_DigestEntry:
		return x.DigestEntry.GetDigestId() == 0
	case *p4v1.Entity_RegisterEntry:
		return x.RegisterEntry.GetRegisterId() == 0
	case *p4v1.Entity_ValueSetEntry:
		return x.ValueSetEntry.GetValueSetId() == 0
	case *p4v1.Entity_ExternEntry:
		return x.ExternEntry.GetExternTypeId() == 0 && x.ExternEntry.GetExternId() == 0
	}
	return false
}

// selection is what the entries of a read are filtered by.
type selection struct {
	key      *Entry // nil: any
	priority int32
	action   uint32
	metadata string
}

func (s *selection) matches(e *Entry) bool {
	return (s.priority == 0 || e.Priority == s.priority) &&
		(s.action == 0 || e.Action.Kind == ActionDirect && e.Action.Action.ID == s.action) &&
		(s.metadata == "" || string(e.Metadata) == s.metadata) &&
		(s.key == nil || sameMatch(s.key.Match, e.Match))
}

func sameMatch(a, b []FieldMatch) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Kind != b[i].Kind || a[i].PrefixLen != b[i].PrefixLen ||
			string(a[i].Value) != string(b[i].Value) || string(a[i].Mask) != string(b[i].Mask) {
			return false
		}
	}
	return true
}

// entries yields what a table entry used as a filter selects in one table
// (P4Runtime specification, section 9.1.5). A key that no entry has selects
// nothing.
func (r *reader) entries(t *tableInfo, te *p4v1.TableEntry, want Want, yield func(*Entry) bool) error {
	dec := decoder{s: r.l.schema}
	if te.GetIsDefaultAction() {
		_, e, err := dec.key(&p4v1.TableEntry{TableId: t.id, IsDefaultAction: true, Match: te.GetMatch(), Priority: te.GetPriority()})
		if err != nil {
			return err
		}
		return r.lookup(t, e, want, yield)
	}
	sel := selection{priority: te.GetPriority(), metadata: string(te.GetMetadata())}
	if a := te.GetAction(); a != nil {
		d, ok := a.GetType().(*p4v1.TableAction_Action)
		if !ok || t.profile != nil {
			return failf(ErrUnimplemented, "%v: entries can only be selected by the id of a direct action", t.object)
		}
		sel.action = d.Action.GetActionId()
		if _, ok := t.actions[sel.action]; !ok {
			return failf(ErrInvalidArgument, "%v: action %#x is not among its actions", t.object, sel.action)
		}
	}
	if len(te.GetMatch()) > 0 {
		match, err := dec.matches(t, te.GetMatch())
		if err != nil {
			return err
		}
		key := &Entry{TableID: t.id, Match: match, Priority: te.GetPriority()}
		if !t.prioritized || key.Priority != 0 {
			return r.lookup(t, key, want, func(e *Entry) bool {
				return !sel.matches(e) || yield(e)
			})
		}
		sel.key = key
	}
	err := r.l.pipeline.Entries(t.id, want, func(e *Entry) bool {
		return !sel.matches(e) || yield(e)
	})
	if err != nil {
		return named(err, t.object)
	}
	return nil
}

func (r *reader) lookup(t *tableInfo, e *Entry, want Want, yield func(*Entry) bool) error {
	switch err := r.l.pipeline.Lookup(e, want); {
	case err == nil:
		yield(e)
	case codeOf(err) != codeOf(ErrNotFound):
		return named(err, t.object)
	}
	return nil
}

// selectTables is the tables that an id names: one, or all if it is 0.
func (s *schema) selectTables(id uint32) ([]*tableInfo, error) {
	if id == 0 {
		return s.tables, nil
	}
	t, err := s.table(id)
	return []*tableInfo{t}, err
}

func (r *reader) tables(te *p4v1.TableEntry) error {
	tables, err := r.l.schema.selectTables(te.GetTableId())
	if err != nil {
		return err
	}
	if te.GetTableId() == 0 && (len(te.GetMatch()) > 0 || te.GetAction() != nil) {
		return failf(ErrInvalidArgument, "a read of all tables takes no match and no action")
	}
	for _, t := range tables {
		var want Want
		if te.GetCounterData() != nil && t.counter {
			want |= WantCounter
		}
		if te.GetMeterConfig() != nil && t.meter {
			want |= WantMeter
		}
		if te.GetMeterCounterData() != nil && t.meter {
			want |= WantMeterCounters
		}
		if te.GetTimeSinceLastHit() != nil && t.idle {
			want |= WantLastHit
		}
		if te.GetTableId() != 0 {
			if err := r.checkWanted(t, te); err != nil {
				return err
			}
		}
		err := r.entries(t, te, want, func(e *Entry) bool {
			msg, size := r.enc.tableEntry(t, e, want)
			return r.add(r.enc.entity(msg), size)
		})
		if err != nil || r.err != nil {
			return err
		}
	}
	return nil
}

// checkWanted refuses to read what a table does not have.
func (r *reader) checkWanted(t *tableInfo, te *p4v1.TableEntry) error {
	switch {
	case te.GetCounterData() != nil && !t.counter:
		return failf(ErrInvalidArgument, "%v: it has no direct counter", t.object)
	case (te.GetMeterConfig() != nil || te.GetMeterCounterData() != nil) && !t.meter:
		return failf(ErrInvalidArgument, "%v: it has no direct meter", t.object)
	}
	if err := refuseControllerMetadata(t.object, te); err != nil {
		return err
	}
	return idleTimeout(t, te)
}

// direct reads a direct resource: of all tables that have one, of a table, or
// of one entry, which must then be there.
func (r *reader) direct(te *p4v1.TableEntry, what string, has func(*tableInfo) bool, want Want, yield func(*tableInfo, *Entry) bool) error {
	tables, err := r.l.schema.selectTables(te.GetTableId())
	if err != nil {
		return err
	}
	if te.GetTableId() == 0 && len(te.GetMatch()) > 0 {
		return failf(ErrInvalidArgument, "a read of all tables takes no match")
	}
	for _, t := range tables {
		if !has(t) {
			if te.GetTableId() != 0 {
				return failf(ErrInvalidArgument, "%v: it has no direct %s", t.object, what)
			}
			continue
		}
		// Only the key selects: whatever else is set is not looked at.
		key := &p4v1.TableEntry{TableId: t.id, Match: te.GetMatch(), Priority: te.GetPriority(), IsDefaultAction: te.GetIsDefaultAction()}
		found := false
		err := r.entries(t, key, want, func(e *Entry) bool {
			found = true
			return yield(t, e)
		})
		if err != nil || r.err != nil {
			return err
		}
		if !found && len(te.GetMatch()) > 0 {
			return failf(ErrNotFound, "%v: no entry has the key", t.object)
		}
	}
	return nil
}

func (r *reader) directCounters(x *p4v1.DirectCounterEntry) error {
	has := func(t *tableInfo) bool { return t.counter }
	return r.direct(x.GetTableEntry(), "counter", has, WantCounter, func(t *tableInfo, e *Entry) bool {
		key, size := r.enc.key(t, e)
		d := &p4v1.DirectCounterEntry{TableEntry: key, Data: &p4v1.CounterData{}}
		if e.Counter != nil {
			d.Data = counterMessage(*e.Counter)
		}
		return r.add(&p4v1.Entity{Entity: &p4v1.Entity_DirectCounterEntry{DirectCounterEntry: d}}, size+32)
	})
}

func (r *reader) directMeters(x *p4v1.DirectMeterEntry) error {
	has := func(t *tableInfo) bool { return t.meter }
	want := WantMeter
	if x.GetCounterData() != nil {
		want |= WantMeterCounters
	}
	return r.direct(x.GetTableEntry(), "meter", has, want, func(t *tableInfo, e *Entry) bool {
		key, size := r.enc.key(t, e)
		d := &p4v1.DirectMeterEntry{TableEntry: key, Config: meterMessage(e.Meter)}
		if want&WantMeterCounters != 0 {
			d.CounterData = coloursMessage(e.MeterCounters)
		}
		return r.add(&p4v1.Entity{Entity: &p4v1.Entity_DirectMeterEntry{DirectMeterEntry: d}}, size+128)
	})
}

// selectProfiles is the action profiles that an id names: one, or all if 0.
func (s *schema) selectProfiles(id uint32) ([]*profileInfo, error) {
	if id == 0 {
		return s.profiles, nil
	}
	p, err := s.profile(id)
	return []*profileInfo{p}, err
}

func (r *reader) members(x *p4v1.ActionProfileMember) error {
	profiles, err := r.l.schema.selectProfiles(x.GetActionProfileId())
	if err != nil {
		return err
	}
	for _, p := range profiles {
		for _, m := range sorted(r.l.profiles[p.id].members) {
			if id := x.GetMemberId(); id != 0 && id != m.msg.GetMemberId() {
				continue
			}
			e := &p4v1.Entity{Entity: &p4v1.Entity_ActionProfileMember{ActionProfileMember: m.msg}}
			if !r.add(e, 64+actionSize(m.msg.GetAction())) {
				return nil
			}
		}
	}
	return nil
}

func (r *reader) groups(x *p4v1.ActionProfileGroup) error {
	profiles, err := r.l.schema.selectProfiles(x.GetActionProfileId())
	if err != nil {
		return err
	}
	for _, p := range profiles {
		if x.GetActionProfileId() != 0 && !p.selector {
			return failf(ErrInvalidArgument, "%v has no selector and so no groups", p.object)
		}
		for _, g := range sorted(r.l.profiles[p.id].groups) {
			if id := x.GetGroupId(); id != 0 && id != g.msg.GetGroupId() {
				continue
			}
			size := 64
			for _, m := range g.msg.GetMembers() {
				size += 32 + len(m.GetWatchPort())
			}
			e := &p4v1.Entity{Entity: &p4v1.Entity_ActionProfileGroup{ActionProfileGroup: g.msg}}
			if !r.add(e, size) {
				return nil
			}
		}
	}
	return nil
}

// arrays yields the cells that an id and an index name.
func arrays(s *schema, kind string, all []*arrayInfo, id uint32, index *p4v1.Index, yield func(*arrayInfo, int64) (bool, error)) error {
	if id != 0 {
		all = nil
		for _, list := range [][]*arrayInfo{s.counters, s.meters} {
			for _, a := range list {
				if a.id == id && a.kind == kind {
					all = []*arrayInfo{a}
				}
			}
		}
		if all == nil {
			return s.missing(kind, id)
		}
	} else {
		index = nil
	}
	for _, a := range all {
		from, to, err := a.cells(index)
		if err != nil {
			return err
		}
		for i := from; i < to; i++ {
			if more, err := yield(a, i); err != nil {
				return named(err, a.object)
			} else if !more {
				return nil
			}
		}
	}
	return nil
}

func (r *reader) counters(x *p4v1.CounterEntry) error {
	s := r.l.schema
	return arrays(s, "counter", s.counters, x.GetCounterId(), x.GetIndex(), func(a *arrayInfo, i int64) (bool, error) {
		c, err := r.l.pipeline.Counter(a.id, i)
		if err != nil {
			return false, err
		}
		return r.add(&p4v1.Entity{Entity: &p4v1.Entity_CounterEntry{CounterEntry: &p4v1.CounterEntry{
			CounterId: a.id, Index: &p4v1.Index{Index: i}, Data: counterMessage(c),
		}}}, 48), nil
	})
}

func (r *reader) meters(x *p4v1.MeterEntry) error {
	s := r.l.schema
	want := WantMeter
	if x.GetCounterData() != nil {
		want |= WantMeterCounters
	}
	return arrays(s, "meter", s.meters, x.GetMeterId(), x.GetIndex(), func(a *arrayInfo, i int64) (bool, error) {
		cfg, colours, err := r.l.pipeline.Meter(a.id, i, want)
		if err != nil {
			return false, err
		}
		m := &p4v1.MeterEntry{MeterId: a.id, Index: &p4v1.Index{Index: i}, Config: meterMessage(cfg)}
		if want&WantMeterCounters != 0 {
			m.CounterData = coloursMessage(colours)
		}
		return r.add(&p4v1.Entity{Entity: &p4v1.Entity_MeterEntry{MeterEntry: m}}, 160), nil
	})
}

func (r *reader) replication(x *p4v1.PacketReplicationEngineEntry) error {
	put := func(e *p4v1.PacketReplicationEngineEntry, replicas int) bool {
		return r.add(&p4v1.Entity{Entity: &p4v1.Entity_PacketReplicationEngineEntry{PacketReplicationEngineEntry: e}}, 48+16*replicas)
	}
	switch k := x.GetType().(type) {
	case *p4v1.PacketReplicationEngineEntry_MulticastGroupEntry:
		id := k.MulticastGroupEntry.GetMulticastGroupId()
		for _, g := range sorted(r.l.multicast) {
			if (id == 0 || id == g.GetMulticastGroupId()) && !put(&p4v1.PacketReplicationEngineEntry{
				Type: &p4v1.PacketReplicationEngineEntry_MulticastGroupEntry{MulticastGroupEntry: g}}, len(g.GetReplicas())) {
				return nil
			}
		}
	case *p4v1.PacketReplicationEngineEntry_CloneSessionEntry:
		id := k.CloneSessionEntry.GetSessionId()
		for _, c := range sorted(r.l.clones) {
			if (id == 0 || id == c.GetSessionId()) && !put(&p4v1.PacketReplicationEngineEntry{
				Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{CloneSessionEntry: c}}, len(c.GetReplicas())) {
				return nil
			}
		}
	default:
		return failf(ErrInvalidArgument, "packet replication engine entry: expected a multicast group or a clone session")
	}
	return nil
}
