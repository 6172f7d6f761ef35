package device

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/protobuf/proto"
)

// schema is what a session needs to know of a P4Info. It is not changed after
// newSchema and so safe for concurrent use.
type schema struct {
	tables   []*table // in P4Info's order
	tableBy  map[uint32]*table
	profiles []uint32          // action profiles
	meters   []uint32          // indirect meters
	names    map[uint32]string // of every object that entities refer to
	dynamic  map[uint32]bool
}

type table struct {
	id          uint32
	constant    bool
	directMeter bool
	fields      map[uint32]string
}

func newSchema(info *p4configv1.P4Info, dynamic []uint32) (*schema, error) {
	s := &schema{tableBy: map[uint32]*table{}, names: map[uint32]string{}, dynamic: map[uint32]bool{}}
	name := func(p *p4configv1.Preamble) uint32 {
		s.names[p.GetId()] = cmp.Or(p.GetAlias(), p.GetName())
		return p.GetId()
	}
	directMeters := map[uint32]bool{}
	for _, m := range info.GetDirectMeters() {
		directMeters[m.GetPreamble().GetId()] = true
	}
	for _, t := range info.GetTables() {
		tbl := &table{id: name(t.GetPreamble()), constant: t.GetIsConstTable(), fields: map[uint32]string{}}
		for _, f := range t.GetMatchFields() {
			tbl.fields[f.GetId()] = f.GetName()
		}
		tbl.directMeter = slices.ContainsFunc(t.GetDirectResourceIds(), func(id uint32) bool { return directMeters[id] })
		s.tables = append(s.tables, tbl)
		s.tableBy[tbl.id] = tbl
	}
	for _, p := range info.GetActionProfiles() {
		s.profiles = append(s.profiles, name(p.GetPreamble()))
	}
	for _, m := range info.GetMeters() {
		s.meters = append(s.meters, name(m.GetPreamble()))
	}
	for _, c := range info.GetCounters() {
		name(c.GetPreamble())
	}
	for _, r := range info.GetRegisters() {
		name(r.GetPreamble())
	}
	for _, id := range dynamic {
		if _, ok := s.names[id]; !ok {
			return nil, fmt.Errorf("%w: dynamic id %#x is not in the P4Info", ErrInvalid, id)
		}
		s.dynamic[id] = true
	}
	return s, nil
}

// owner returns the P4Info id that decides whether an entity is dynamic, and
// whether the entity is of a kind that a desired set holds at all. The packet
// replication engine has no id and is always static.
func owner(e *p4v1.Entity) (id uint32, holds bool) {
	switch e := e.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		return e.TableEntry.GetTableId(), true
	case *p4v1.Entity_ActionProfileMember:
		return e.ActionProfileMember.GetActionProfileId(), true
	case *p4v1.Entity_ActionProfileGroup:
		return e.ActionProfileGroup.GetActionProfileId(), true
	case *p4v1.Entity_MeterEntry:
		return e.MeterEntry.GetMeterId(), true
	case *p4v1.Entity_PacketReplicationEngineEntry:
		return 0, true
	}
	return 0, false
}

// static reports whether the desired set owns e.
func (s *schema) static(e *p4v1.Entity) bool {
	id, holds := owner(e)
	return holds && !s.dynamic[id]
}

// check says why e cannot be in a desired set.
func (s *schema) check(e *p4v1.Entity) error {
	id, holds := owner(e)
	switch {
	case !holds:
		return fmt.Errorf("%w: a desired set does not hold %T", ErrInvalid, e.GetEntity())
	case e.GetPacketReplicationEngineEntry() != nil:
		return nil
	case s.names[id] == "":
		return fmt.Errorf("%w: id %#x is not in the P4Info", ErrInvalid, id)
	case s.dynamic[id]:
		return fmt.Errorf("%w: %s is dynamic", ErrInvalid, s.describe(e))
	}
	if t := e.GetTableEntry(); t != nil {
		tbl := s.tableBy[id]
		switch {
		case tbl == nil:
			return fmt.Errorf("%w: id %#x is not a table", ErrInvalid, id)
		case tbl.constant && !t.GetIsDefaultAction():
			return fmt.Errorf("%w: %s is of a constant table", ErrInvalid, s.describe(e))
		}
		for _, m := range t.GetMatch() {
			if _, ok := tbl.fields[m.GetFieldId()]; !ok {
				return fmt.Errorf("%w: table %s has no match field %d", ErrInvalid, s.names[id], m.GetFieldId())
			}
		}
	}
	return nil
}

// stage orders entities by what refers to what: a lower stage is written first
// and deleted last.
type stage int

const (
	stageBase    stage = iota // packet replication, meters
	stageMembers              // action profile members
	stageGroups               // action profile groups
	stageTables               // table entries
	stages
)

func stageOf(e *p4v1.Entity) stage {
	switch e.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		return stageTables
	case *p4v1.Entity_ActionProfileGroup:
		return stageGroups
	case *p4v1.Entity_ActionProfileMember:
		return stageMembers
	}
	return stageBase
}

// item is an entity with its canonical forms: equal keys are the same entry,
// and equal bodies beside it the same content.
type item struct {
	entity    *p4v1.Entity
	key, body string
}

// newItem brings an entity into its canonical form, whatever freedom a server
// took with it: order of repeated fields, leading zeros, written-out "don't
// care" matches ("Bytestrings", "Match Format").
func (s *schema) newItem(e *p4v1.Entity) (item, error) {
	c := proto.CloneOf(e)
	var key *p4v1.Entity
	switch c := c.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		t := c.TableEntry
		t.CounterData, t.MeterCounterData, t.TimeSinceLastHit = nil, nil, nil
		if tbl := s.tableBy[t.GetTableId()]; tbl == nil || !tbl.directMeter {
			t.MeterConfig = nil
		}
		t.Match = slices.DeleteFunc(t.GetMatch(), dontCare)
		for _, m := range t.GetMatch() {
			canonicalMatch(m)
		}
		slices.SortFunc(t.GetMatch(), func(a, b *p4v1.FieldMatch) int { return cmp.Compare(a.GetFieldId(), b.GetFieldId()) })
		canonicalAction(t.GetAction().GetAction())
		set := t.GetAction().GetActionProfileActionSet().GetActionProfileActions()
		for _, a := range set {
			canonicalAction(a.GetAction())
		}
		slices.SortFunc(set, func(a, b *p4v1.ActionProfileAction) int { return cmp.Compare(encode(a), encode(b)) })
		key = &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{
			TableId: t.GetTableId(), Match: t.GetMatch(), Priority: t.GetPriority(), IsDefaultAction: t.GetIsDefaultAction(),
		}}}
	case *p4v1.Entity_ActionProfileMember:
		m := c.ActionProfileMember
		canonicalAction(m.GetAction())
		key = &p4v1.Entity{Entity: &p4v1.Entity_ActionProfileMember{ActionProfileMember: &p4v1.ActionProfileMember{
			ActionProfileId: m.GetActionProfileId(), MemberId: m.GetMemberId(),
		}}}
	case *p4v1.Entity_ActionProfileGroup:
		g := c.ActionProfileGroup
		slices.SortFunc(g.GetMembers(), func(a, b *p4v1.ActionProfileGroup_Member) int {
			return cmp.Compare(a.GetMemberId(), b.GetMemberId())
		})
		key = &p4v1.Entity{Entity: &p4v1.Entity_ActionProfileGroup{ActionProfileGroup: &p4v1.ActionProfileGroup{
			ActionProfileId: g.GetActionProfileId(), GroupId: g.GetGroupId(),
		}}}
	case *p4v1.Entity_MeterEntry:
		m := c.MeterEntry
		m.CounterData = nil
		key = &p4v1.Entity{Entity: &p4v1.Entity_MeterEntry{MeterEntry: &p4v1.MeterEntry{
			MeterId: m.GetMeterId(), Index: m.GetIndex(),
		}}}
	case *p4v1.Entity_PacketReplicationEngineEntry:
		key = &p4v1.Entity{Entity: &p4v1.Entity_PacketReplicationEngineEntry{
			PacketReplicationEngineEntry: canonicalReplication(c.PacketReplicationEngineEntry),
		}}
	default:
		return item{}, fmt.Errorf("%w: %T", ErrInvalid, e.GetEntity())
	}
	return item{e, encode(key), encode(c)}, nil
}

// canonicalReplication sorts the replicas of e and returns its key.
func canonicalReplication(e *p4v1.PacketReplicationEngineEntry) *p4v1.PacketReplicationEngineEntry {
	byPort := func(a, b *p4v1.Replica) int {
		return cmp.Or(cmp.Compare(a.GetEgressPort(), b.GetEgressPort()), cmp.Compare(a.GetInstance(), b.GetInstance()))
	}
	if g := e.GetMulticastGroupEntry(); g != nil {
		slices.SortFunc(g.GetReplicas(), byPort)
		return &p4v1.PacketReplicationEngineEntry{Type: &p4v1.PacketReplicationEngineEntry_MulticastGroupEntry{
			MulticastGroupEntry: &p4v1.MulticastGroupEntry{MulticastGroupId: g.GetMulticastGroupId()},
		}}
	}
	c := e.GetCloneSessionEntry()
	slices.SortFunc(c.GetReplicas(), byPort)
	return &p4v1.PacketReplicationEngineEntry{Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{
		CloneSessionEntry: &p4v1.CloneSessionEntry{SessionId: c.GetSessionId()},
	}}
}

func encode(m proto.Message) string {
	// Marshal fails only on invalid UTF-8, which gRPC would not have let in.
	b, _ := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(m)
	return string(b)
}

// trim cuts leading zeros down to the canonical form of "Bytestrings".
func trim(b []byte) []byte {
	if t := bytes.TrimLeft(b, "\x00"); len(t) > 0 || len(b) == 0 {
		return t
	}
	return b[:1]
}

func dontCare(m *p4v1.FieldMatch) bool {
	switch m := m.GetFieldMatchType().(type) {
	case *p4v1.FieldMatch_Ternary_:
		return len(bytes.TrimLeft(m.Ternary.GetMask(), "\x00")) == 0
	case *p4v1.FieldMatch_Lpm:
		return m.Lpm.GetPrefixLen() == 0
	}
	return false
}

func canonicalMatch(m *p4v1.FieldMatch) {
	switch m := m.GetFieldMatchType().(type) {
	case *p4v1.FieldMatch_Exact_:
		m.Exact.Value = trim(m.Exact.GetValue())
	case *p4v1.FieldMatch_Ternary_:
		m.Ternary.Value, m.Ternary.Mask = trim(m.Ternary.GetValue()), trim(m.Ternary.GetMask())
	case *p4v1.FieldMatch_Lpm:
		m.Lpm.Value = trim(m.Lpm.GetValue())
	case *p4v1.FieldMatch_Range_:
		m.Range.Low, m.Range.High = trim(m.Range.GetLow()), trim(m.Range.GetHigh())
	case *p4v1.FieldMatch_Optional_:
		m.Optional.Value = trim(m.Optional.GetValue())
	}
}

func canonicalAction(a *p4v1.Action) {
	for _, p := range a.GetParams() {
		p.Value = trim(p.GetValue())
	}
	slices.SortFunc(a.GetParams(), func(a, b *p4v1.Action_Param) int { return cmp.Compare(a.GetParamId(), b.GetParamId()) })
}

// matchBytes returns the byte strings and the number that a match consists of.
func matchBytes(m *p4v1.FieldMatch) (a, b []byte, n int32) {
	switch m := m.GetFieldMatchType().(type) {
	case *p4v1.FieldMatch_Exact_:
		return m.Exact.GetValue(), nil, 0
	case *p4v1.FieldMatch_Ternary_:
		return m.Ternary.GetValue(), m.Ternary.GetMask(), 0
	case *p4v1.FieldMatch_Lpm:
		return m.Lpm.GetValue(), nil, m.Lpm.GetPrefixLen()
	case *p4v1.FieldMatch_Range_:
		return m.Range.GetLow(), m.Range.GetHigh(), 0
	case *p4v1.FieldMatch_Optional_:
		return m.Optional.GetValue(), nil, 0
	}
	return nil, nil, 0
}

var seed = maphash.MakeSeed()

// entryHash is equal for updates of the same entry; rarely, it is equal for
// others too. It does not allocate.
func entryHash(e *p4v1.Entity) uint64 {
	switch e := e.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		return tableHash(e.TableEntry)
	case *p4v1.Entity_DirectCounterEntry:
		return tableHash(e.DirectCounterEntry.GetTableEntry())
	case *p4v1.Entity_DirectMeterEntry:
		return tableHash(e.DirectMeterEntry.GetTableEntry())
	case *p4v1.Entity_ActionProfileMember:
		return mix(1, uint64(e.ActionProfileMember.GetActionProfileId()), uint64(e.ActionProfileMember.GetMemberId()))
	case *p4v1.Entity_ActionProfileGroup:
		return mix(2, uint64(e.ActionProfileGroup.GetActionProfileId()), uint64(e.ActionProfileGroup.GetGroupId()))
	case *p4v1.Entity_MeterEntry:
		return mix(3, uint64(e.MeterEntry.GetMeterId()), uint64(e.MeterEntry.GetIndex().GetIndex()))
	case *p4v1.Entity_CounterEntry:
		return mix(4, uint64(e.CounterEntry.GetCounterId()), uint64(e.CounterEntry.GetIndex().GetIndex()))
	case *p4v1.Entity_RegisterEntry:
		return mix(5, uint64(e.RegisterEntry.GetRegisterId()), uint64(e.RegisterEntry.GetIndex().GetIndex()))
	case *p4v1.Entity_PacketReplicationEngineEntry:
		p := e.PacketReplicationEngineEntry
		return mix(6, uint64(p.GetMulticastGroupEntry().GetMulticastGroupId()), uint64(p.GetCloneSessionEntry().GetSessionId()))
	}
	return 0
}

func tableHash(t *p4v1.TableEntry) uint64 {
	h := mix(0, uint64(t.GetTableId()), uint64(uint32(t.GetPriority())))
	for _, m := range t.GetMatch() {
		if dontCare(m) {
			continue
		}
		a, b, n := matchBytes(m)
		// A sum, as the order of the fields does not matter.
		h += mix(uint64(m.GetFieldId())<<32|uint64(uint32(n)), maphash.Bytes(seed, trim(a)), maphash.Bytes(seed, trim(b)))
	}
	return h
}

// mix is the finalizer of MurmurHash3 over three words.
func mix(a, b, c uint64) uint64 {
	for _, w := range [...]uint64{b, c} {
		a = (a ^ w) * 0xff51afd7ed558ccd
		a = (a ^ a>>33) * 0xc4ceb9fe1a85ec53
		a ^= a >> 33
	}
	return a
}

// describe names an entity for logs and errors: its object and match values.
// Action parameters are left out, because keys are among them.
func (s *schema) describe(e *p4v1.Entity) string {
	switch e := e.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		return s.describeTable(e.TableEntry)
	case *p4v1.Entity_DirectCounterEntry:
		return "counter of " + s.describeTable(e.DirectCounterEntry.GetTableEntry())
	case *p4v1.Entity_DirectMeterEntry:
		return "meter of " + s.describeTable(e.DirectMeterEntry.GetTableEntry())
	case *p4v1.Entity_ActionProfileMember:
		return fmt.Sprintf("%s member %d", s.name(e.ActionProfileMember.GetActionProfileId()), e.ActionProfileMember.GetMemberId())
	case *p4v1.Entity_ActionProfileGroup:
		return fmt.Sprintf("%s group %d", s.name(e.ActionProfileGroup.GetActionProfileId()), e.ActionProfileGroup.GetGroupId())
	case *p4v1.Entity_MeterEntry:
		return fmt.Sprintf("%s[%d]", s.name(e.MeterEntry.GetMeterId()), e.MeterEntry.GetIndex().GetIndex())
	case *p4v1.Entity_CounterEntry:
		return fmt.Sprintf("%s[%d]", s.name(e.CounterEntry.GetCounterId()), e.CounterEntry.GetIndex().GetIndex())
	case *p4v1.Entity_PacketReplicationEngineEntry:
		if g := e.PacketReplicationEngineEntry.GetMulticastGroupEntry(); g != nil {
			return fmt.Sprintf("multicast group %d", g.GetMulticastGroupId())
		}
		return fmt.Sprintf("clone session %d", e.PacketReplicationEngineEntry.GetCloneSessionEntry().GetSessionId())
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", e.GetEntity()), "*v1.Entity_")
}

func (s *schema) describeTable(t *p4v1.TableEntry) string {
	if t.GetIsDefaultAction() {
		return s.name(t.GetTableId()) + " default"
	}
	var b strings.Builder
	b.WriteString(s.name(t.GetTableId()))
	b.WriteByte('{')
	tbl := s.tableBy[t.GetTableId()]
	for i, m := range t.GetMatch() {
		if i > 0 {
			b.WriteByte(' ')
		}
		field := fmt.Sprintf("#%d", m.GetFieldId())
		if tbl != nil {
			field = cmp.Or(tbl.fields[m.GetFieldId()], field)
		}
		v, w, n := matchBytes(m)
		fmt.Fprintf(&b, "%s=%x", field, v)
		switch m.GetFieldMatchType().(type) {
		case *p4v1.FieldMatch_Lpm:
			fmt.Fprintf(&b, "/%d", n)
		case *p4v1.FieldMatch_Ternary_:
			fmt.Fprintf(&b, "&%x", w)
		case *p4v1.FieldMatch_Range_:
			fmt.Fprintf(&b, "-%x", w)
		}
	}
	b.WriteByte('}')
	if p := t.GetPriority(); p != 0 {
		fmt.Fprintf(&b, " priority %d", p)
	}
	return b.String()
}

func (s *schema) name(id uint32) string {
	return cmp.Or(s.names[id], fmt.Sprintf("id %#x", id))
}
