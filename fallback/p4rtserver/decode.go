package p4rtserver

import (
	"bytes"

	configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// maxMetadata bounds an entry's metadata, so that each entry fits a message of
// a read, in bytes.
const maxMetadata = 64 << 10

// decoder turns protobuf messages into the types of the target interface and
// checks them on the way. It reuses its memory from one update to the next and
// shares that of the message. The zero value but for s is ready; it is for one
// goroutine.
type decoder struct {
	s       *schema
	entry   Entry
	match   []FieldMatch
	params  [][]byte
	set     []WeightedAction
	counter CounterData
	meter   MeterConfig
	colours MeterCounters
}

// value checks that a big-endian byte string fits width bits and returns the
// canonical one. what and owner name it in errors, which do not print it: it may
// be a key.
func value(b []byte, f *fieldInfo, what string, owner object) ([]byte, error) {
	if len(b) == 0 {
		return nil, failf(ErrInvalidArgument, "%v: %s %v: the value is empty, expected %d bits", owner, what, f, f.width)
	}
	b = Canonical(b)
	if 8*len(b) > f.width && BitLen(b) > f.width {
		return nil, failf(ErrInvalidArgument, "%v: %s %v: the value needs %d bits, expected at most %d", owner, what, f, BitLen(b), f.width)
	}
	return b, nil
}

// key decodes what identifies an entry: table, match and priority, or the
// default flag.
func (d *decoder) key(te *p4v1.TableEntry) (*tableInfo, *Entry, error) {
	t, err := d.s.table(te.GetTableId())
	if err != nil {
		return nil, nil, err
	}
	d.entry = Entry{TableID: t.id}
	e := &d.entry
	if te.GetIsDefaultAction() {
		e.Default = true
		if len(te.GetMatch()) > 0 || te.GetPriority() != 0 {
			return nil, nil, failf(ErrInvalidArgument, "%v: the default entry takes neither match fields nor a priority", t.object)
		}
		return t, e, nil
	}
	if e.Match, err = d.matches(t, te.GetMatch()); err != nil {
		return nil, nil, err
	}
	e.Priority = te.GetPriority()
	switch {
	case t.prioritized && e.Priority <= 0:
		return nil, nil, failf(ErrInvalidArgument, "%v: priority is %d, expected more than 0 as the key has a ternary, range or optional field", t.object, e.Priority)
	case !t.prioritized && e.Priority != 0:
		return nil, nil, failf(ErrInvalidArgument, "%v: priority is %d, expected 0 as the key has no ternary, range or optional field", t.object, e.Priority)
	}
	return t, e, nil
}

func (d *decoder) matches(t *tableInfo, list []*p4v1.FieldMatch) ([]FieldMatch, error) {
	if cap(d.match) < len(t.fields) {
		d.match = make([]FieldMatch, len(t.fields))
	}
	match := d.match[:len(t.fields)]
	clear(match)
	for _, fm := range list {
		i := find(t.fields, fm.GetFieldId())
		if i < 0 {
			return nil, failf(ErrInvalidArgument, "%v: it has no match field %d", t.object, fm.GetFieldId())
		}
		f, m := &t.fields[i], &match[i]
		if m.Kind != MatchAny {
			return nil, failf(ErrInvalidArgument, "%v: match field %v is given twice", t.object, f)
		}
		if err := decodeMatch(t, f, fm, m); err != nil {
			return nil, err
		}
		m.ID, m.Kind = f.id, f.kind
	}
	for i := range match {
		match[i].ID = t.fields[i].id
		if match[i].Kind == MatchAny && t.fields[i].kind == MatchExact {
			return nil, failf(ErrInvalidArgument, "%v: match field %v is missing, exact fields cannot be omitted", t.object, &t.fields[i])
		}
	}
	return match, nil
}

var matchNames = [...]string{"any", "exact", "lpm", "ternary", "range", "optional"}

func decodeMatch(t *tableInfo, f *fieldInfo, fm *p4v1.FieldMatch, m *FieldMatch) (err error) {
	const what = "match field"
	bad := func(text string) error {
		return failf(ErrInvalidArgument, "%v: match field %v: %s", t.object, f, text)
	}
	got := MatchAny
	switch k := fm.GetFieldMatchType().(type) {
	case *p4v1.FieldMatch_Exact_:
		if got = MatchExact; f.kind == got {
			m.Value, err = value(k.Exact.GetValue(), f, what, t.object)
			return err
		}
	case *p4v1.FieldMatch_Optional_:
		if got = MatchOptional; f.kind == got {
			m.Value, err = value(k.Optional.GetValue(), f, what, t.object)
			return err
		}
	case *p4v1.FieldMatch_Lpm:
		if got = MatchLPM; f.kind == got {
			n := int(k.Lpm.GetPrefixLen())
			if n < 1 || n > f.width {
				return failf(ErrInvalidArgument, "%v: match field %v: prefix length is %d, expected 1 to %d (a field that matches anything is omitted)", t.object, f, n, f.width)
			}
			if m.Value, err = value(k.Lpm.GetValue(), f, what, t.object); err != nil {
				return err
			}
			if !lowBitsZero(m.Value, f.width-n) {
				return bad("the value has bits set behind the prefix")
			}
			m.PrefixLen = int32(n)
			return nil
		}
	case *p4v1.FieldMatch_Ternary_:
		if got = MatchTernary; f.kind == got {
			if m.Value, err = value(k.Ternary.GetValue(), f, what, t.object); err != nil {
				return err
			}
			if m.Mask, err = value(k.Ternary.GetMask(), f, what, t.object); err != nil {
				return err
			}
			if isZero(m.Mask) {
				return bad("the mask is 0 (a field that matches anything is omitted)")
			}
			if !within(m.Value, m.Mask) {
				return bad("the value has bits set outside the mask")
			}
			return nil
		}
	case *p4v1.FieldMatch_Range_:
		if got = MatchRange; f.kind == got {
			if m.Value, err = value(k.Range.GetLow(), f, what, t.object); err != nil {
				return err
			}
			if m.Mask, err = value(k.Range.GetHigh(), f, what, t.object); err != nil {
				return err
			}
			if compare(m.Value, m.Mask) > 0 {
				return bad("the low bound is above the high bound")
			}
			if isZero(m.Value) && allOnes(m.Mask, f.width) {
				return bad("the range holds all values (a field that matches anything is omitted)")
			}
			return nil
		}
	}
	if got == MatchAny {
		return failf(ErrInvalidArgument, "%v: match field %v: no match is given that this target knows, expected %s", t.object, f, matchNames[f.kind])
	}
	return failf(ErrInvalidArgument, "%v: match field %v: the match is %s, expected %s", t.object, f, matchNames[got], matchNames[f.kind])
}

// The helpers below work on canonical byte strings.

func isZero(b []byte) bool { return len(b) == 1 && b[0] == 0 }

func lowBitsZero(b []byte, n int) bool {
	i := len(b) - 1
	for ; n >= 8 && i >= 0; n, i = n-8, i-1 {
		if b[i] != 0 {
			return false
		}
	}
	return i < 0 || n <= 0 || b[i]&(1<<n-1) == 0
}

func within(v, mask []byte) bool {
	if len(v) > len(mask) {
		return false
	}
	mask = mask[len(mask)-len(v):]
	for i := range v {
		if v[i]&^mask[i] != 0 {
			return false
		}
	}
	return true
}

func compare(a, b []byte) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return bytes.Compare(a, b)
}

func allOnes(b []byte, width int) bool {
	if BitLen(b) != width {
		return false
	}
	for _, c := range b[1:] {
		if c != 0xff {
			return false
		}
	}
	return b[0]&(b[0]+1) == 0
}

// tableEntry decodes an entry for an update of type op.
func (d *decoder) tableEntry(op Op, te *p4v1.TableEntry) (*tableInfo, *Entry, error) {
	t, e, err := d.key(te)
	if err != nil {
		return nil, nil, err
	}
	if err := d.permit(t, op, te); err != nil {
		return nil, nil, err
	}
	if op == Delete {
		return t, e, nil
	}
	if err := refuseControllerMetadata(t.object, te); err != nil {
		return nil, nil, err
	}
	if len(te.GetMetadata()) > maxMetadata {
		return nil, nil, failf(ErrInvalidArgument, "%v: metadata of %d bytes, expected at most %d", t.object, len(te.GetMetadata()), maxMetadata)
	}
	e.Metadata = te.GetMetadata()
	if err := idleTimeout(t, te); err != nil {
		return nil, nil, err
	}
	if te.GetTimeSinceLastHit() != nil {
		return nil, nil, failf(ErrInvalidArgument, "%v: time_since_last_hit cannot be written", t.object)
	}
	e.IdleTimeoutNs = te.GetIdleTimeoutNs()
	params := d.params[:0]
	if e.Action, err = d.tableAction(t, te, &params); err != nil {
		return nil, nil, err
	}
	d.params = params
	if e.Action.Kind == ActionNone && op == Insert {
		return nil, nil, failf(ErrInvalidArgument, "%v: an action is needed to insert an entry", t.object)
	}
	return t, e, d.direct(t, e, te)
}

// permit refuses updates of what the program declares constant.
func (d *decoder) permit(t *tableInfo, op Op, te *p4v1.TableEntry) error {
	if te.GetIsDefaultAction() {
		switch {
		case op != Modify:
			return failf(ErrInvalidArgument, "%v: the default entry is always there, it can only be modified", t.object)
		case t.constDefault:
			return failf(ErrPermissionDenied, "%v: the default entry is constant", t.object)
		case t.profile != nil:
			return failf(ErrPermissionDenied, "%v: the default entry of a table with an action profile is constant", t.object)
		}
		return nil
	}
	switch {
	case t.isConst && (op != Modify || te.GetAction() != nil):
		return failf(ErrPermissionDenied, "%v: the table is constant, only direct resources of its entries can be modified", t.object)
	case t.isConst && te.GetIdleTimeoutNs() != 0:
		return failf(ErrInvalidArgument, "%v: entries of a constant table have no idle timeout", t.object)
	case len(t.fields) == 0:
		return failf(ErrInvalidArgument, "%v: the table has no key, only its default entry can be written", t.object)
	}
	return nil
}

// idleTimeout checks the two fields of a written or read entry.
func idleTimeout(t *tableInfo, te *p4v1.TableEntry) error {
	ns := te.GetIdleTimeoutNs()
	if ns == 0 && te.GetTimeSinceLastHit() == nil {
		return nil
	}
	switch {
	case te.GetIsDefaultAction():
		return failf(ErrInvalidArgument, "%v: the default entry has no idle timeout", t.object)
	case !t.idle:
		return failf(ErrInvalidArgument, "%v: the table supports no idle timeout", t.object)
	case ns < 0:
		return failf(ErrInvalidArgument, "%v: idle_timeout_ns is %d, expected 0 or more", t.object, ns)
	}
	return nil
}

func (d *decoder) direct(t *tableInfo, e *Entry, te *p4v1.TableEntry) (err error) {
	if c := te.GetCounterData(); c != nil {
		if !t.counter {
			return failf(ErrInvalidArgument, "%v: it has no direct counter", t.object)
		}
		if e.Counter, err = d.counterData(t.object, c); err != nil {
			return err
		}
	}
	if c := te.GetMeterConfig(); c != nil {
		if !t.meter {
			return failf(ErrInvalidArgument, "%v: it has no direct meter", t.object)
		}
		if e.Meter, err = d.meterConfig(t.object, c); err != nil {
			return err
		}
	}
	if c := te.GetMeterCounterData(); c != nil {
		if !t.meter {
			return failf(ErrInvalidArgument, "%v: it has no direct meter", t.object)
		}
		e.MeterCounters, err = d.meterCounters(t.object, c)
	}
	return err
}

func (d *decoder) counterData(o object, c *p4v1.CounterData) (*CounterData, error) {
	if c.GetByteCount() < 0 || c.GetPacketCount() < 0 {
		return nil, failf(ErrInvalidArgument, "%v: counts are %d bytes, %d packets, expected 0 or more", o, c.GetByteCount(), c.GetPacketCount())
	}
	d.counter = CounterData{c.GetByteCount(), c.GetPacketCount()}
	return &d.counter, nil
}

func (d *decoder) meterConfig(o object, c *p4v1.MeterConfig) (*MeterConfig, error) {
	m := MeterConfig{c.GetCir(), c.GetCburst(), c.GetPir(), c.GetPburst()}
	if m.CIR < 0 || m.CBurst < 0 || m.PIR < 0 || m.PBurst < 0 {
		return nil, failf(ErrInvalidArgument, "%v: meter rates and bursts are 0 or more, got %+v", o, m)
	}
	if m.PIR < m.CIR {
		return nil, failf(ErrInvalidArgument, "%v: the meter's pir %d is below its cir %d (RFC 2698)", o, m.PIR, m.CIR)
	}
	d.meter = m
	return &d.meter, nil
}

// meterCounters accepts zeros only: to write them is to clear them.
func (d *decoder) meterCounters(o object, c *p4v1.MeterCounterData) (*MeterCounters, error) {
	for _, x := range []*p4v1.CounterData{c.GetGreen(), c.GetYellow(), c.GetRed()} {
		if x.GetByteCount() != 0 || x.GetPacketCount() != 0 {
			return nil, failf(ErrInvalidArgument, "%v: a meter's counters can only be set to 0", o)
		}
	}
	d.colours = MeterCounters{}
	return &d.colours, nil
}

func (d *decoder) tableAction(t *tableInfo, te *p4v1.TableEntry, params *[][]byte) (ta TableAction, err error) {
	isDefault := te.GetIsDefaultAction()
	refuse := func(got string) error {
		want := "an action"
		if t.profile != nil {
			want = "a member of " + t.profile.String()
			if t.profile.selector {
				want = "a member, a group or a one-shot set for " + t.profile.String()
			}
		}
		return failf(ErrInvalidArgument, "%v: the entry's action is %s, expected %s", t.object, got, want)
	}
	action := te.GetAction()
	if action == nil {
		return ta, nil
	}
	switch x := action.GetType().(type) {
	case nil:
		return ta, refuse("empty")
	case *p4v1.TableAction_Action:
		if t.profile != nil {
			return ta, refuse("an action")
		}
		ta.Kind = ActionDirect
		ta.Action, err = d.action(t.object, t.actions, x.Action, isDefault, params)
	case *p4v1.TableAction_ActionProfileMemberId:
		if t.profile == nil {
			return ta, refuse("an action profile member")
		}
		ta.Kind, ta.RefID = ActionMember, x.ActionProfileMemberId
	case *p4v1.TableAction_ActionProfileGroupId:
		if t.profile == nil || !t.profile.selector {
			return ta, refuse("an action profile group")
		}
		ta.Kind, ta.RefID = ActionGroup, x.ActionProfileGroupId
	case *p4v1.TableAction_ActionProfileActionSet:
		if t.profile == nil || !t.profile.selector {
			return ta, refuse("a one-shot action set")
		}
		ta.Kind = ActionSet
		ta.Set, err = d.actionSet(t, x.ActionProfileActionSet, params)
	}
	return ta, err
}

func (d *decoder) actionSet(t *tableInfo, set *p4v1.ActionProfileActionSet, params *[][]byte) ([]WeightedAction, error) {
	list := set.GetActionProfileActions()
	d.set = d.set[:0]
	var sum int64
	for i, x := range list {
		a, err := d.action(t.object, t.actions, x.GetAction(), false, params)
		if err != nil {
			return nil, err
		}
		if err := refuseWatch(t.object, x); err != nil {
			return nil, err
		}
		if x.GetWeight() < 1 {
			return nil, failf(ErrInvalidArgument, "%v: action %d of the set has weight %d, expected at least 1", t.object, i, x.GetWeight())
		}
		sum += int64(x.GetWeight())
		d.set = append(d.set, WeightedAction{a, x.GetWeight(), x.GetWatchPort()})
	}
	if limit := t.profile.maxGroupSize; limit > 0 && sum > limit {
		return nil, failf(ErrInvalidArgument, "%v: the set's weights add up to %d, expected at most the max_group_size %d of %v", t.object, sum, limit, t.profile.object)
	}
	return d.set, nil
}

// action decodes an action that stands in a table or in an action profile.
func (d *decoder) action(owner object, allowed map[uint32]actionRef, a *p4v1.Action, isDefault bool, arena *[][]byte) (Action, error) {
	ref, ok := allowed[a.GetActionId()]
	if !ok {
		if known, ok := d.s.actions[a.GetActionId()]; ok {
			return Action{}, failf(ErrInvalidArgument, "%v: %v is not among its actions", owner, known.object)
		}
		return Action{}, failf(ErrInvalidArgument, "%v: no action has id %#x in the P4Info", owner, a.GetActionId())
	}
	switch {
	case isDefault && ref.scope == configv1.ActionRef_TABLE_ONLY:
		return Action{}, failf(ErrPermissionDenied, "%v: %v cannot be its default action", owner, ref.object)
	case !isDefault && ref.scope == configv1.ActionRef_DEFAULT_ONLY:
		return Action{}, failf(ErrPermissionDenied, "%v: %v can only be its default action", owner, ref.object)
	}
	start := len(*arena)
	for range ref.params {
		*arena = append(*arena, nil)
	}
	params := (*arena)[start:len(*arena):len(*arena)]
	for _, p := range a.GetParams() {
		i := find(ref.params, p.GetParamId())
		if i < 0 {
			return Action{}, failf(ErrInvalidArgument, "%v: %v has no parameter %d", owner, ref.object, p.GetParamId())
		}
		if params[i] != nil {
			return Action{}, failf(ErrInvalidArgument, "%v: %v: parameter %v is given twice", owner, ref.object, &ref.params[i])
		}
		v, err := value(p.GetValue(), &ref.params[i], "parameter", ref.object)
		if err != nil {
			return Action{}, err
		}
		params[i] = v
	}
	for i := range params {
		if params[i] == nil {
			return Action{}, failf(ErrInvalidArgument, "%v: %v: parameter %v is missing", owner, ref.object, &ref.params[i])
		}
	}
	return Action{ref.id, params}, nil
}

func (d *decoder) member(op Op, m *p4v1.ActionProfileMember) (*profileInfo, *Member, error) {
	p, err := d.s.profile(m.GetActionProfileId())
	if err != nil {
		return nil, nil, err
	}
	out := &Member{ProfileID: p.id, ID: m.GetMemberId()}
	if out.ID == 0 {
		return nil, nil, failf(ErrInvalidArgument, "%v: member id is 0", p.object)
	}
	if op == Delete {
		return p, out, nil
	}
	if m.GetAction() == nil {
		return nil, nil, failf(ErrInvalidArgument, "%v: member %d has no action", p.object, out.ID)
	}
	params := d.params[:0]
	out.Action, err = d.action(p.object, p.actions, m.GetAction(), false, &params)
	d.params = params
	return p, out, err
}

func (d *decoder) group(op Op, g *p4v1.ActionProfileGroup) (*profileInfo, *Group, error) {
	p, err := d.s.profile(g.GetActionProfileId())
	if err != nil {
		return nil, nil, err
	}
	out := &Group{ProfileID: p.id, ID: g.GetGroupId(), MaxSize: g.GetMaxSize()}
	switch {
	case !p.selector:
		return nil, nil, failf(ErrInvalidArgument, "%v has no selector and so no groups", p.object)
	case out.ID == 0:
		return nil, nil, failf(ErrInvalidArgument, "%v: group id is 0", p.object)
	case op == Delete:
		return p, out, nil
	case p.maxGroupSize > 0 && (out.MaxSize < 1 || int64(out.MaxSize) > p.maxGroupSize):
		return nil, nil, failf(ErrInvalidArgument, "%v: group %d has max_size %d, expected 1 to %d", p.object, out.ID, out.MaxSize, p.maxGroupSize)
	case out.MaxSize < 0:
		return nil, nil, failf(ErrInvalidArgument, "%v: group %d has max_size %d, expected 0 or more", p.object, out.ID, out.MaxSize)
	}
	var sum int64
	seen := make(map[uint32]bool, len(g.GetMembers()))
	for _, m := range g.GetMembers() {
		id := m.GetMemberId()
		if seen[id] {
			return nil, nil, failf(ErrInvalidArgument, "%v: group %d has member %d twice, expected a weight", p.object, out.ID, id)
		}
		seen[id] = true
		if m.GetWeight() < 1 {
			return nil, nil, failf(ErrInvalidArgument, "%v: group %d: member %d has weight %d, expected at least 1", p.object, out.ID, id, m.GetWeight())
		}
		if err := refuseWatch(p.object, m); err != nil {
			return nil, nil, err
		}
		sum += int64(m.GetWeight())
		out.Members = append(out.Members, GroupMember{id, m.GetWeight(), m.GetWatchPort()})
	}
	if out.MaxSize > 0 && sum > int64(out.MaxSize) {
		return nil, nil, failf(ErrResourceExhausted, "%v: the weights of group %d add up to %d, its max_size is %d", p.object, out.ID, sum, out.MaxSize)
	}
	return p, out, nil
}

func decodeReplicas(what string, list []*p4v1.Replica) ([]Replica, error) {
	out := make([]Replica, 0, len(list))
	seen := make(map[Replica]bool, len(list))
	for _, x := range list {
		r := Replica{x.GetEgressPort(), x.GetInstance()}
		if seen[r] {
			return nil, failf(ErrInvalidArgument, "%s: port %d with instance %d is there twice", what, r.EgressPort, r.Instance)
		}
		seen[r] = true
		out = append(out, r)
	}
	return out, nil
}

// decodeMetadata decodes a packet's metadata, in the P4Info's order.
func decodeMetadata(header []fieldInfo, list []*p4v1.PacketMetadata) ([][]byte, error) {
	owner := object{kind: "packet header", name: "packet_out"}
	out := make([][]byte, len(header))
	for _, m := range list {
		i := find(header, m.GetMetadataId())
		if i < 0 {
			return nil, failf(ErrInvalidArgument, "packet_out has no metadata field %d", m.GetMetadataId())
		}
		if out[i] != nil {
			return nil, failf(ErrInvalidArgument, "packet_out: metadata field %v is given twice", &header[i])
		}
		v, err := value(m.GetValue(), &header[i], "metadata field", owner)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	for i := range out {
		if out[i] == nil {
			return nil, failf(ErrInvalidArgument, "packet_out: metadata field %v is missing", &header[i])
		}
	}
	return out, nil
}
