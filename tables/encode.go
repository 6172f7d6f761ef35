package tables

import (
	"fmt"
	"math/bits"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// Action is an action of the pipeline with its parameters.
type Action interface {
	// ActionID returns the id in the P4Info.
	ActionID() uint32
	// ToProto encodes the action; it fails where a parameter has more bits
	// than the P4Info gives it.
	ToProto() (*p4v1.Action, error)
	// AppendParams appends the canonical byte strings of the parameters, in
	// the order of the P4Info, to dst; their bytes are appended to buf.
	AppendParams(dst [][]byte, buf []byte) ([][]byte, []byte, error)
}

// Entry is an entry of any table; its dynamic type is the table's own.
type Entry interface {
	// TableID returns the id in the P4Info.
	TableID() uint32
	// Identity returns what tells the entry from others of all tables: table,
	// key and priority, as a comparable value. Keys that match the same
	// packets are equal.
	Identity() any
	// ToProto encodes the entry. An entry without action is a request to read
	// or delete.
	ToProto() (*p4v1.TableEntry, error)
	// Update encodes the entry as one update of a P4Runtime write. To insert
	// or modify, an entry must have an action; to modify the default entry
	// without one resets it.
	Update(p4v1.Update_Type) (*p4v1.Update, error)
}

// The slots are all messages of one match field, so that those of a whole
// entry come from one allocation.
type (
	exactSlot struct {
		match p4v1.FieldMatch
		kind  p4v1.FieldMatch_Exact_
		value p4v1.FieldMatch_Exact
	}
	lpmSlot struct {
		match p4v1.FieldMatch
		kind  p4v1.FieldMatch_Lpm
		value p4v1.FieldMatch_LPM
	}
	ternarySlot struct {
		match p4v1.FieldMatch
		kind  p4v1.FieldMatch_Ternary_
		value p4v1.FieldMatch_Ternary
	}
	rangeSlot struct {
		match p4v1.FieldMatch
		kind  p4v1.FieldMatch_Range_
		value p4v1.FieldMatch_Range
	}
	optionalSlot struct {
		match p4v1.FieldMatch
		kind  p4v1.FieldMatch_Optional_
		value p4v1.FieldMatch_Optional
	}
	entrySlot struct {
		entry  p4v1.TableEntry
		action p4v1.TableAction
		direct p4v1.TableAction_Action
	}
)

// slots holds the slots of one entry, as many of each kind as its table has
// fields of that kind.
type slots struct {
	exact    []exactSlot
	lpm      []lpmSlot
	ternary  []ternarySlot
	ranges   []rangeSlot
	optional []optionalSlot
	match    []*p4v1.FieldMatch
}

// matchToProto encodes the match fields ms, in the order of the P4Info.
func (t *TableInfo) matchToProto(s slots, ms []Match) []*p4v1.FieldMatch {
	for i := range ms {
		m, id := &ms[i], t.Fields[i].ID
		switch m.Kind {
		case MatchExact:
			x := &s.exact[0]
			s.exact = s.exact[1:]
			x.match.FieldId, x.match.FieldMatchType = id, &x.kind
			x.kind.Exact = &x.value
			x.value.Value = m.Value
			s.match = append(s.match, &x.match)
		case MatchLPM:
			x := &s.lpm[0]
			s.lpm = s.lpm[1:]
			x.match.FieldId, x.match.FieldMatchType = id, &x.kind
			x.kind.Lpm = &x.value
			x.value.Value, x.value.PrefixLen = m.Value, m.PrefixLen
			s.match = append(s.match, &x.match)
		case MatchTernary:
			x := &s.ternary[0]
			s.ternary = s.ternary[1:]
			x.match.FieldId, x.match.FieldMatchType = id, &x.kind
			x.kind.Ternary = &x.value
			x.value.Value, x.value.Mask = m.Value, m.Mask
			s.match = append(s.match, &x.match)
		case MatchRange:
			x := &s.ranges[0]
			s.ranges = s.ranges[1:]
			x.match.FieldId, x.match.FieldMatchType = id, &x.kind
			x.kind.Range = &x.value
			x.value.Low, x.value.High = m.Value, m.Mask
			s.match = append(s.match, &x.match)
		case MatchOptional:
			x := &s.optional[0]
			s.optional = s.optional[1:]
			x.match.FieldId, x.match.FieldMatchType = id, &x.kind
			x.kind.Optional = &x.value
			x.value.Value = m.Value
			s.match = append(s.match, &x.match)
		}
	}
	return s.match
}

// paramsToProto encodes the parameters vs, in the order of the P4Info.
func (a *ActionInfo) paramsToProto(dst []*p4v1.Action_Param, slots []p4v1.Action_Param, vs [][]byte) []*p4v1.Action_Param {
	for i, v := range vs {
		slots[i].ParamId, slots[i].Value = a.Params[i].ID, v
		dst = append(dst, &slots[i])
	}
	return dst
}

// metadataToProto encodes the metadata vs, in the order of the P4Info.
func (h *HeaderInfo) metadataToProto(vs [][]byte) []*p4v1.PacketMetadata {
	slots := make([]p4v1.PacketMetadata, len(vs))
	dst := make([]*p4v1.PacketMetadata, len(vs))
	for i, v := range vs {
		slots[i].MetadataId, slots[i].Value = h.Fields[i].ID, v
		dst[i] = &slots[i]
	}
	return dst
}

// fieldWriter writes the fields of one object and keeps the first error. The
// fields are in the order of the P4Info, i counts in it; buf takes all byte
// strings.
type fieldWriter struct {
	what   string
	object *Object
	fields []FieldInfo
	buf    []byte
	err    error
}

func (w *fieldWriter) fail(i int, err error) {
	if w.err == nil {
		w.err = fieldError(w.what, w.object, &w.fields[i], err)
	}
}

func (w *fieldWriter) checkWord(i int, v uint64) {
	if have, width := bits.Len64(v), w.fields[i].Width; have > width {
		w.fail(i, errWidth(have, width))
	}
}

func (w *fieldWriter) checkBytes(i int, b []byte) {
	if have, width := bitLen(b), w.fields[i].Width; have > width {
		w.fail(i, errWidth(have, width))
	}
}

func (w *fieldWriter) word(i int, v uint64) []byte {
	w.checkWord(i, v)
	n := len(w.buf)
	w.buf = appendWord(w.buf, v)
	return w.buf[n:len(w.buf):len(w.buf)]
}

func (w *fieldWriter) bytes(i int, b []byte) []byte {
	w.checkBytes(i, b)
	n := len(w.buf)
	w.buf = appendBytes(w.buf, b)
	return w.buf[n:len(w.buf):len(w.buf)]
}

// known refuses a value that its enumeration does not name.
func (w *fieldWriter) known(i int, v uint64, known bool) {
	if !known {
		w.fail(i, errEnum(&w.fields[i], v))
	}
}

func (w *fieldWriter) exact(i int, v uint64) Match {
	return Match{Kind: MatchExact, Value: w.word(i, v)}
}

func (w *fieldWriter) exactBytes(i int, b []byte) Match {
	return Match{Kind: MatchExact, Value: w.bytes(i, b)}
}

// prefixLen refuses a prefix that the field cannot have; it reports whether
// there is one to encode.
func (w *fieldWriter) prefixLen(i, n int) bool {
	if width := w.fields[i].Width; n < 0 || n > width {
		w.fail(i, errPrefix(n, width))
		return false
	}
	return n > 0
}

func writeLPM[T word](w *fieldWriter, i int, m LPM[T]) Match {
	w.checkWord(i, uint64(m.Value))
	if !w.prefixLen(i, m.PrefixLen) {
		return Match{}
	}
	v := uint64(m.Value) & prefixWord(w.fields[i].Width, m.PrefixLen)
	return Match{Kind: MatchLPM, Value: w.word(i, v), PrefixLen: int32(m.PrefixLen)}
}

// lpmBytes zeroes the bits of value behind the prefix.
func (w *fieldWriter) lpmBytes(i int, value []byte, n int) Match {
	w.checkBytes(i, value)
	if !w.prefixLen(i, n) {
		return Match{}
	}
	maskPrefix(value, w.fields[i].Width, n)
	return Match{Kind: MatchLPM, Value: w.bytes(i, value), PrefixLen: int32(n)}
}

func writeTernary[T word](w *fieldWriter, i int, m Ternary[T]) Match {
	w.checkWord(i, uint64(m.Value))
	if m.Mask == 0 {
		return Match{}
	}
	return Match{Kind: MatchTernary, Value: w.word(i, uint64(m.Value&m.Mask)), Mask: w.word(i, uint64(m.Mask))}
}

// ternaryBytes zeroes the bits of value outside the mask.
func (w *fieldWriter) ternaryBytes(i int, value, mask []byte) Match {
	w.checkBytes(i, value)
	if isZero(mask) {
		return Match{}
	}
	maskBytes(value, mask)
	return Match{Kind: MatchTernary, Value: w.bytes(i, value), Mask: w.bytes(i, mask)}
}

func writeRange[T word](w *fieldWriter, i int, m Range[T]) Match {
	if m.Set && m.Low > m.High {
		w.fail(i, errRange(uint64(m.Low), uint64(m.High)))
	}
	if m = normRange(m, w.fields[i].Width); !m.Set {
		return Match{}
	}
	return Match{Kind: MatchRange, Value: w.word(i, uint64(m.Low)), Mask: w.word(i, uint64(m.High))}
}

func writeOptional[T word](w *fieldWriter, i int, m Optional[T]) Match {
	if !m.Set {
		return Match{}
	}
	return Match{Kind: MatchOptional, Value: w.word(i, uint64(m.Value))}
}

func (w *fieldWriter) optionalBytes(i int, value []byte, set bool) Match {
	if !set {
		return Match{}
	}
	return Match{Kind: MatchOptional, Value: w.bytes(i, value)}
}

// writeAttrs writes what an entry has beside key and action.
func (t *TableInfo) writeAttrs(te *p4v1.TableEntry, a *entryAttrs) error {
	te.TableId = t.ID
	te.Priority = a.priority
	te.IsDefaultAction = a.isDefault
	te.IdleTimeoutNs = int64(a.idleTimeout)
	if a.metadata != "" {
		te.Metadata = []byte(a.metadata)
	}
	if a.sinceHit.Set {
		te.TimeSinceLastHit = &p4v1.TableEntry_IdleTimeout{ElapsedNs: int64(a.sinceHit.Value)}
	}
	if a.counter.Set {
		te.CounterData = a.counter.Value.ToProto()
	}
	if a.meter.Set {
		te.MeterConfig = a.meter.Value.ToProto()
	}
	return t.checkAttrs(a)
}

// writeAction puts a into the entry of s.
func (t *TableInfo) writeAction(s *entrySlot, a Action, isDefault bool) error {
	if _, err := t.checkAction(a.ActionID(), isDefault); err != nil {
		return err
	}
	p, err := a.ToProto()
	if err != nil {
		return err
	}
	s.direct.Action = p
	s.action.Type = &s.direct
	s.entry.Action = &s.action
	return nil
}

// identity is what Entry.Identity returns.
type identity[K comparable] struct {
	table     uint32
	key       K
	priority  int32
	isDefault bool
}

// newUpdate makes an update of te.
func (t *TableInfo) newUpdate(kind p4v1.Update_Type, te *p4v1.TableEntry, err error) (*p4v1.Update, error) {
	if err != nil {
		return nil, err
	}
	reset := kind == p4v1.Update_MODIFY && te.IsDefaultAction
	if te.Action == nil && kind != p4v1.Update_DELETE && !reset {
		return nil, t.fail(fmt.Errorf("%v without action: %w", kind, ErrMissing))
	}
	if te.IsDefaultAction && kind != p4v1.Update_MODIFY {
		return nil, t.fail(fmt.Errorf("%v of the default entry: %w", kind, ErrAction))
	}
	s := new(struct {
		update p4v1.Update
		entity p4v1.Entity
		kind   p4v1.Entity_TableEntry
	})
	s.kind.TableEntry = te
	s.entity.Entity = &s.kind
	s.update.Entity = &s.entity
	s.update.Type = kind
	return &s.update, nil
}

// ToProto encodes the state of a counter cell.
func (c CounterData) ToProto() *p4v1.CounterData {
	return &p4v1.CounterData{ByteCount: c.Bytes, PacketCount: c.Packets}
}

// ToProto encodes the configuration of a meter cell.
func (m MeterConfig) ToProto() *p4v1.MeterConfig {
	return &p4v1.MeterConfig{Cir: m.CIR, Cburst: m.CBurst, Pir: m.PIR, Pburst: m.PBurst}
}
