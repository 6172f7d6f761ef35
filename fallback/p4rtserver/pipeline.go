package p4rtserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// loaded is a pipeline with what the server keeps beside it: the schema, and
// the small objects that table entries refer to or that targets need not read
// back. Server.mu guards it; pipeline.PacketOut and the schema are free.
type loaded struct {
	srv      *Server
	cfg      *p4v1.ForwardingPipelineConfig
	schema   *schema
	pipeline Pipeline
	dec      decoder
	active   atomic.Bool // its upcalls count

	profiles map[uint32]*profileState
	// refs has what each entry of a table with an action profile uses, by
	// key. Such tables are small.
	refs       map[string]entryRef
	keyBuf     []byte
	multicast  map[uint32]*p4v1.MulticastGroupEntry
	clones     map[uint32]*p4v1.CloneSessionEntry
	ownDefault map[uint32]bool // tables whose default entry was written
}

// profileState is what an action profile holds.
type profileState struct {
	members map[uint32]*memberState
	groups  map[uint32]*groupState
	// Entries that use members or groups, entries that use one-shot sets, and
	// the actions in those sets.
	byRef, oneShots, oneShotActions int
}

type memberState struct {
	msg  *p4v1.ActionProfileMember
	uses int // by groups and entries
}

type groupState struct {
	msg  *p4v1.ActionProfileGroup
	uses int // by entries
}

// entryRef is what a table entry refers to in an action profile.
type entryRef struct {
	kind ActionKind
	id   uint32
	n    int // actions of a one-shot set
}

func newLoaded(srv *Server, cfg *p4v1.ForwardingPipelineConfig) (*loaded, error) {
	if cfg.GetP4Info() == nil {
		return nil, failf(ErrInvalidArgument, "the config has no P4Info")
	}
	s, err := newSchema(cfg.GetP4Info())
	if err != nil {
		return nil, err
	}
	l := &loaded{
		srv:        srv,
		cfg:        cfg,
		schema:     s,
		dec:        decoder{s: s},
		profiles:   make(map[uint32]*profileState),
		refs:       make(map[string]entryRef),
		multicast:  make(map[uint32]*p4v1.MulticastGroupEntry),
		clones:     make(map[uint32]*p4v1.CloneSessionEntry),
		ownDefault: make(map[uint32]bool),
	}
	for id := range s.profileByID {
		l.profiles[id] = &profileState{members: make(map[uint32]*memberState), groups: make(map[uint32]*groupState)}
	}
	if l.pipeline, err = srv.target.Load(cfg, l); err != nil {
		if errors.As(err, new(*sentinel)) {
			return nil, err
		}
		return nil, &failure{ErrInvalidArgument, "the target cannot realise the config: " + err.Error()}
	}
	return l, nil
}

// update applies one update of a Write.
func (l *loaded) update(u *p4v1.Update) error {
	op := Op(u.GetType())
	if u.GetType() < p4v1.Update_INSERT || u.GetType() > p4v1.Update_DELETE {
		return failf(ErrInvalidArgument, "update type is %v, expected INSERT, MODIFY or DELETE", u.GetType())
	}
	switch x := u.GetEntity().GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		return l.writeTable(op, x.TableEntry)
	case *p4v1.Entity_ActionProfileMember:
		return l.writeMember(op, x.ActionProfileMember)
	case *p4v1.Entity_ActionProfileGroup:
		return l.writeGroup(op, x.ActionProfileGroup)
	case *p4v1.Entity_DirectCounterEntry:
		return l.writeDirectCounter(op, x.DirectCounterEntry)
	case *p4v1.Entity_DirectMeterEntry:
		return l.writeDirectMeter(op, x.DirectMeterEntry)
	case *p4v1.Entity_CounterEntry:
		return l.writeCounter(op, x.CounterEntry)
	case *p4v1.Entity_MeterEntry:
		return l.writeMeter(op, x.MeterEntry)
	case *p4v1.Entity_PacketReplicationEngineEntry:
		switch p := x.PacketReplicationEngineEntry.GetType().(type) {
		case *p4v1.PacketReplicationEngineEntry_MulticastGroupEntry:
			return l.writeMulticastGroup(op, p.MulticastGroupEntry)
		case *p4v1.PacketReplicationEngineEntry_CloneSessionEntry:
			return l.writeCloneSession(op, p.CloneSessionEntry)
		}
		return failf(ErrInvalidArgument, "packet replication engine entry: expected a multicast group or a clone session")
	default:
		return l.schema.unserved(u.GetEntity())
	}
}

// unserved is the error for an entity that the server does not know.
func (s *schema) unserved(e *p4v1.Entity) error {
	switch x := e.GetEntity().(type) {
	case nil:
		return failf(ErrInvalidArgument, "the entity is empty")
	case *p4v1.Entity_DigestEntry:
		return s.missing("digest", x.DigestEntry.GetDigestId())
	case *p4v1.Entity_RegisterEntry:
		return s.missing("register", x.RegisterEntry.GetRegisterId())
	case *p4v1.Entity_ValueSetEntry:
		return s.missing("value set", x.ValueSetEntry.GetValueSetId())
	case *p4v1.Entity_ExternEntry:
		return failf(ErrUnimplemented, "extern type %#x, instance %#x: this target serves no externs", x.ExternEntry.GetExternTypeId(), x.ExternEntry.GetExternId())
	default:
		return failf(ErrUnimplemented, "this target does not know the entity")
	}
}

func (l *loaded) writeTable(op Op, te *p4v1.TableEntry) error {
	t, e, err := l.dec.tableEntry(op, te)
	if err != nil {
		return err
	}
	if t.profile != nil && !e.Default {
		return l.writeIndirect(op, t, e)
	}
	if err := l.pipeline.WriteTable(op, e); err != nil {
		return named(err, t.object)
	}
	if e.Default {
		l.ownDefault[t.id] = e.Action.Kind != ActionNone
	}
	return nil
}

// writeIndirect writes an entry of a table with an action profile and keeps
// count of what entries refer to.
func (l *loaded) writeIndirect(op Op, t *tableInfo, e *Entry) error {
	ps := l.profiles[t.profile.id]
	l.keyBuf = appendKey(l.keyBuf[:0], e)
	old, had := l.refs[string(l.keyBuf)]
	ref := entryRef{e.Action.Kind, e.Action.RefID, len(e.Action.Set)}
	if ref.kind != ActionNone {
		if err := ps.admit(t.profile, ref, old); err != nil {
			return err
		}
	}
	if err := l.pipeline.WriteTable(op, e); err != nil {
		return named(err, t.object)
	}
	if op != Delete && ref.kind == ActionNone {
		return nil
	}
	if had {
		ps.count(old, -1)
	}
	if op == Delete {
		delete(l.refs, string(l.keyBuf))
	} else {
		ps.count(ref, 1)
		l.refs[string(l.keyBuf)] = ref
	}
	return nil
}

// admit checks that an entry may refer to ref in place of old (P4Runtime
// specification, sections 9.1.2 and 9.2.3).
func (ps *profileState) admit(p *profileInfo, ref, old entryRef) error {
	switch ref.kind {
	case ActionMember:
		if ps.members[ref.id] == nil {
			return failf(ErrNotFound, "%v has no member %d", p.object, ref.id)
		}
	case ActionGroup:
		if ps.groups[ref.id] == nil {
			return failf(ErrNotFound, "%v has no group %d", p.object, ref.id)
		}
	case ActionSet:
		if len(ps.members)+len(ps.groups) > 0 {
			return failf(ErrInvalidArgument, "%v: it is used with members and groups, which excludes one-shot sets", p.object)
		}
		if p.size > 0 && int64(ps.oneShotActions-old.n+ref.n) > p.size {
			return failf(ErrResourceExhausted, "%v is full, its size is %d actions", p.object, p.size)
		}
	}
	return nil
}

func (ps *profileState) count(ref entryRef, by int) {
	switch ref.kind {
	case ActionMember:
		ps.members[ref.id].uses += by
		ps.byRef += by
	case ActionGroup:
		ps.groups[ref.id].uses += by
		ps.byRef += by
	case ActionSet:
		ps.oneShots += by
		ps.oneShotActions += by * ref.n
	}
}

// appendKey appends an unambiguous form of an entry's key.
func appendKey(b []byte, e *Entry) []byte {
	b = binary.BigEndian.AppendUint32(b, e.TableID)
	b = binary.BigEndian.AppendUint32(b, uint32(e.Priority))
	for i := range e.Match {
		m := &e.Match[i]
		b = append(b, byte(m.Kind))
		b = binary.AppendUvarint(b, uint64(m.PrefixLen))
		b = binary.AppendUvarint(b, uint64(len(m.Value)))
		b = append(b, m.Value...)
		b = binary.AppendUvarint(b, uint64(len(m.Mask)))
		b = append(b, m.Mask...)
	}
	return b
}

// named puts the object in front of a target's error.
func named(err error, o object) error {
	return fmt.Errorf("%v: %w", o, err)
}

func (l *loaded) writeMember(op Op, msg *p4v1.ActionProfileMember) error {
	p, m, err := l.dec.member(op, msg)
	if err != nil {
		return err
	}
	ps := l.profiles[p.id]
	have := ps.members[m.ID]
	switch {
	case op == Insert && have != nil:
		return failf(ErrAlreadyExists, "%v has member %d already", p.object, m.ID)
	case op != Insert && have == nil:
		return failf(ErrNotFound, "%v has no member %d", p.object, m.ID)
	case op == Insert && ps.oneShots > 0:
		return failf(ErrInvalidArgument, "%v: it is used with one-shot sets, which excludes members and groups", p.object)
	case op == Insert && p.size > 0 && int64(len(ps.members)) >= p.size:
		return failf(ErrResourceExhausted, "%v is full, its size is %d members", p.object, p.size)
	case op == Delete && have.uses > 0:
		return failf(ErrFailedPrecondition, "%v: member %d is used by %d groups or entries", p.object, m.ID, have.uses)
	}
	if err := l.pipeline.WriteMember(op, m); err != nil {
		return named(err, p.object)
	}
	switch op {
	case Insert:
		ps.members[m.ID] = &memberState{msg: memberMessage(m, p.actions)}
	case Modify:
		have.msg = memberMessage(m, p.actions)
	case Delete:
		delete(ps.members, m.ID)
	}
	return nil
}

func (l *loaded) writeGroup(op Op, msg *p4v1.ActionProfileGroup) error {
	p, g, err := l.dec.group(op, msg)
	if err != nil {
		return err
	}
	ps := l.profiles[p.id]
	have := ps.groups[g.ID]
	switch {
	case op == Insert && have != nil:
		return failf(ErrAlreadyExists, "%v has group %d already", p.object, g.ID)
	case op != Insert && have == nil:
		return failf(ErrNotFound, "%v has no group %d", p.object, g.ID)
	case op == Insert && ps.oneShots > 0:
		return failf(ErrInvalidArgument, "%v: it is used with one-shot sets, which excludes members and groups", p.object)
	case op == Delete && have.uses > 0:
		return failf(ErrFailedPrecondition, "%v: group %d is used by %d entries", p.object, g.ID, have.uses)
	case op == Modify && g.MaxSize != have.msg.GetMaxSize():
		return failf(ErrInvalidArgument, "%v: group %d has max_size %d, which cannot change to %d", p.object, g.ID, have.msg.GetMaxSize(), g.MaxSize)
	}
	for _, m := range g.Members {
		if ps.members[m.ID] == nil {
			return failf(ErrNotFound, "%v has no member %d, which group %d names", p.object, m.ID, g.ID)
		}
	}
	if err := l.pipeline.WriteGroup(op, g); err != nil {
		return named(err, p.object)
	}
	if have != nil {
		for _, m := range have.msg.GetMembers() {
			ps.members[m.GetMemberId()].uses--
		}
	}
	if op == Delete {
		delete(ps.groups, g.ID)
		return nil
	}
	for _, m := range g.Members {
		ps.members[m.ID].uses++
	}
	if have == nil {
		have = new(groupState)
		ps.groups[g.ID] = have
	}
	have.msg = groupMessage(g)
	return nil
}

// modifyOnly refuses the other updates for objects that are always there.
func modifyOnly(op Op, what string) error {
	if op != Modify {
		return failf(ErrInvalidArgument, "%s can only be modified", what)
	}
	return nil
}

// directKey decodes the key of a direct resource's entry for a write.
func (l *loaded) directKey(te *p4v1.TableEntry) (*tableInfo, *Entry, error) {
	t, e, err := l.dec.key(te)
	if err == nil && len(t.fields) == 0 && !e.Default {
		err = failf(ErrInvalidArgument, "%v: the table has no key, only its default entry can be named", t.object)
	}
	return t, e, err
}

func (l *loaded) writeDirectCounter(op Op, x *p4v1.DirectCounterEntry) error {
	if err := modifyOnly(op, "a direct counter"); err != nil {
		return err
	}
	t, e, err := l.directKey(x.GetTableEntry())
	if err != nil {
		return err
	}
	if !t.counter {
		return failf(ErrInvalidArgument, "%v: it has no direct counter", t.object)
	}
	if x.GetData() == nil { // only the entry's existence is to be checked
		if err := l.pipeline.Lookup(e, 0); err != nil {
			return named(err, t.object)
		}
		return nil
	}
	if e.Counter, err = l.dec.counterData(t.object, x.GetData()); err != nil {
		return err
	}
	if err := l.pipeline.SetDirectCounter(e); err != nil {
		return named(err, t.object)
	}
	return nil
}

func (l *loaded) writeDirectMeter(op Op, x *p4v1.DirectMeterEntry) error {
	if err := modifyOnly(op, "a direct meter"); err != nil {
		return err
	}
	t, e, err := l.directKey(x.GetTableEntry())
	if err != nil {
		return err
	}
	if !t.meter {
		return failf(ErrInvalidArgument, "%v: it has no direct meter", t.object)
	}
	if c := x.GetConfig(); c != nil {
		if e.Meter, err = l.dec.meterConfig(t.object, c); err != nil {
			return err
		}
	}
	if c := x.GetCounterData(); c != nil {
		if e.MeterCounters, err = l.dec.meterCounters(t.object, c); err != nil {
			return err
		}
	}
	if err := l.pipeline.SetDirectMeter(e); err != nil {
		return named(err, t.object)
	}
	return nil
}

// cells is the range of cells that an index names: one, or all if it is unset.
func (a *arrayInfo) cells(index *p4v1.Index) (from, to int64, err error) {
	if index == nil {
		return 0, a.size, nil
	}
	i := index.GetIndex()
	switch {
	case i < 0:
		return 0, 0, failf(ErrInvalidArgument, "%v: index is %d, expected 0 to %d", a.object, i, a.size-1)
	case i >= a.size:
		return 0, 0, failf(ErrOutOfRange, "%v: index is %d, expected 0 to %d", a.object, i, a.size-1)
	}
	return i, i + 1, nil
}

func (l *loaded) writeCounter(op Op, x *p4v1.CounterEntry) error {
	if err := modifyOnly(op, "a counter"); err != nil {
		return err
	}
	a, ok := l.schema.counterByID[x.GetCounterId()]
	if !ok {
		return l.schema.missing("counter", x.GetCounterId())
	}
	from, to, err := a.cells(x.GetIndex())
	if err != nil || x.GetData() == nil {
		return err
	}
	c, err := l.dec.counterData(a.object, x.GetData())
	if err != nil {
		return err
	}
	for i := from; i < to; i++ {
		if err := l.pipeline.SetCounter(a.id, i, *c); err != nil {
			return named(err, a.object)
		}
	}
	return nil
}

func (l *loaded) writeMeter(op Op, x *p4v1.MeterEntry) error {
	if err := modifyOnly(op, "a meter"); err != nil {
		return err
	}
	a, ok := l.schema.meterByID[x.GetMeterId()]
	if !ok {
		return l.schema.missing("meter", x.GetMeterId())
	}
	from, to, err := a.cells(x.GetIndex())
	if err != nil {
		return err
	}
	var cfg *MeterConfig
	if x.GetConfig() != nil {
		if cfg, err = l.dec.meterConfig(a.object, x.GetConfig()); err != nil {
			return err
		}
	}
	if x.GetCounterData() != nil {
		if _, err := l.dec.meterCounters(a.object, x.GetCounterData()); err != nil {
			return err
		}
	}
	for i := from; i < to; i++ {
		if err := l.pipeline.SetMeter(a.id, i, cfg, x.GetCounterData() != nil); err != nil {
			return named(err, a.object)
		}
	}
	return nil
}

// existence checks an update against whether the object is there.
func existence(op Op, have bool, what string, id uint32) error {
	switch {
	case id == 0:
		return failf(ErrInvalidArgument, "%s id is 0", what)
	case op == Insert && have:
		return failf(ErrAlreadyExists, "%s %d is there already", what, id)
	case op != Insert && !have:
		return failf(ErrNotFound, "there is no %s %d", what, id)
	}
	return nil
}

func (l *loaded) writeMulticastGroup(op Op, x *p4v1.MulticastGroupEntry) error {
	const what = "multicast group"
	id := x.GetMulticastGroupId()
	if err := existence(op, l.multicast[id] != nil, what, id); err != nil {
		return err
	}
	var replicas []Replica
	var err error
	if op != Delete {
		if replicas, err = decodeReplicas(fmt.Sprintf("%s %d", what, id), x.GetReplicas()); err != nil {
			return err
		}
	}
	if err := l.pipeline.WriteMulticastGroup(op, id, replicas); err != nil {
		return fmt.Errorf("%s %d: %w", what, id, err)
	}
	if op == Delete {
		delete(l.multicast, id)
	} else {
		l.multicast[id] = &p4v1.MulticastGroupEntry{MulticastGroupId: id, Replicas: replicaMessages(replicas)}
	}
	return nil
}

func (l *loaded) writeCloneSession(op Op, x *p4v1.CloneSessionEntry) error {
	const what = "clone session"
	s := &CloneSession{ID: x.GetSessionId()}
	if err := existence(op, l.clones[s.ID] != nil, what, s.ID); err != nil {
		return err
	}
	if op != Delete {
		var err error
		if s.Replicas, err = decodeReplicas(fmt.Sprintf("%s %d", what, s.ID), x.GetReplicas()); err != nil {
			return err
		}
		if x.GetPacketLengthBytes() < 0 {
			return failf(ErrInvalidArgument, "%s %d: packet_length_bytes is %d, expected 0 or more", what, s.ID, x.GetPacketLengthBytes())
		}
		s.ClassOfService, s.PacketLength = x.GetClassOfService(), x.GetPacketLengthBytes()
	}
	if err := l.pipeline.WriteCloneSession(op, s); err != nil {
		return fmt.Errorf("%s %d: %w", what, s.ID, err)
	}
	if op == Delete {
		delete(l.clones, s.ID)
	} else {
		l.clones[s.ID] = &p4v1.CloneSessionEntry{
			SessionId:         s.ID,
			Replicas:          replicaMessages(s.Replicas),
			ClassOfService:    s.ClassOfService,
			PacketLengthBytes: s.PacketLength,
		}
	}
	return nil
}

// adopt writes everything that old holds, for RECONCILE_AND_COMMIT. l is fresh.
func (l *loaded) adopt(old *loaded) error {
	insert := func(e *p4v1.Entity, op p4v1.Update_Type) error {
		if err := l.update(&p4v1.Update{Type: op, Entity: e}); err != nil {
			return &failure{ErrInvalidArgument, "the forwarding state cannot be kept: " + err.Error()}
		}
		return nil
	}
	// Members before groups before entries: each refers to what is before it.
	all := []*p4v1.Entity{
		{Entity: &p4v1.Entity_ActionProfileMember{ActionProfileMember: &p4v1.ActionProfileMember{}}},
		{Entity: &p4v1.Entity_ActionProfileGroup{ActionProfileGroup: &p4v1.ActionProfileGroup{}}},
		{Entity: &p4v1.Entity_PacketReplicationEngineEntry{PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{
			Type: &p4v1.PacketReplicationEngineEntry_MulticastGroupEntry{MulticastGroupEntry: &p4v1.MulticastGroupEntry{}}}}},
		{Entity: &p4v1.Entity_PacketReplicationEngineEntry{PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{
			Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{CloneSessionEntry: &p4v1.CloneSessionEntry{}}}}},
	}
	for _, t := range old.schema.tables {
		te := &p4v1.TableEntry{TableId: t.id}
		if t.counter {
			te.CounterData = &p4v1.CounterData{}
		}
		if t.meter {
			te.MeterConfig = &p4v1.MeterConfig{}
		}
		if !t.isConst {
			all = append(all, entity(te))
		}
		if old.ownDefault[t.id] {
			all = append(all, entity(&p4v1.TableEntry{TableId: t.id, IsDefaultAction: true, CounterData: te.CounterData, MeterConfig: te.MeterConfig}))
		}
	}
	for _, a := range old.schema.counters {
		all = append(all, &p4v1.Entity{Entity: &p4v1.Entity_CounterEntry{CounterEntry: &p4v1.CounterEntry{CounterId: a.id}}})
	}
	for _, a := range old.schema.meters {
		all = append(all, &p4v1.Entity{Entity: &p4v1.Entity_MeterEntry{MeterEntry: &p4v1.MeterEntry{MeterId: a.id}}})
	}
	r := reader{l: old, emit: func(resp *p4v1.ReadResponse) error {
		for _, e := range resp.GetEntities() {
			op := p4v1.Update_INSERT
			switch {
			case e.GetCounterEntry() != nil:
				d := e.GetCounterEntry().GetData()
				if d.GetByteCount() == 0 && d.GetPacketCount() == 0 {
					continue
				}
				op = p4v1.Update_MODIFY
			case e.GetMeterEntry() != nil:
				if e.GetMeterEntry().GetConfig() == nil {
					continue
				}
				op = p4v1.Update_MODIFY
			case e.GetTableEntry().GetIsDefaultAction():
				op = p4v1.Update_MODIFY
			}
			if err := insert(e, op); err != nil {
				return err
			}
		}
		return nil
	}}
	for _, e := range all {
		// A target that cannot read counters has none to keep.
		if err := r.read(e); err != nil && !errors.Is(err, ErrUnimplemented) {
			return err
		}
		if err := r.flush(); err != nil {
			return err
		}
	}
	l.pipeline.Flush()
	return nil
}

// sorted yields a map's values by ascending key, so that reads repeat.
func sorted[V any](m map[uint32]V) []V {
	out := make([]V, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[id])
	}
	return out
}
