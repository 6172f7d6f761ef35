package tables

import (
	"fmt"
	"math/bits"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// Match is one match field of a table entry without protobuf around it. The
// zero value is a field that was left out and so matches everything. Byte
// strings are numbers in network byte order; leading zeros are allowed.
type Match struct {
	Kind      MatchKind
	PrefixLen int32  // lpm, in bits
	Value     []byte // of a range the lower bound
	Mask      []byte // ternary: the mask; range: the upper bound
}

// CounterData is the state of one counter cell.
type CounterData struct {
	Bytes, Packets int64
}

// MeterConfig configures a two-rate three-colour meter (RFC 2698), in bytes or
// packets as the meter's unit is: rates per second, bursts as counts.
type MeterConfig struct {
	CIR, CBurst, PIR, PBurst int64
}

// matchFromProto brings the match fields of te into the order of the P4Info;
// dst is zeroed and has one element for each. The results share memory with te.
func (t *TableInfo) matchFromProto(dst []Match, te *p4v1.TableEntry) error {
	for n, m := range te.GetMatch() {
		i := indexOf(t.Fields, m.GetFieldId(), n)
		if i < 0 {
			return t.fail(fmt.Errorf("match field id %d: %w", m.GetFieldId(), ErrUnknownID))
		}
		f := &dst[i]
		if f.Kind != MatchAny {
			return fieldError("table", &t.Object, &t.Fields[i], ErrDuplicate)
		}
		switch k := m.GetFieldMatchType().(type) {
		case *p4v1.FieldMatch_Exact_:
			f.Kind, f.Value = MatchExact, k.Exact.GetValue()
		case *p4v1.FieldMatch_Lpm:
			f.Kind, f.Value, f.PrefixLen = MatchLPM, k.Lpm.GetValue(), k.Lpm.GetPrefixLen()
		case *p4v1.FieldMatch_Ternary_:
			f.Kind, f.Value, f.Mask = MatchTernary, k.Ternary.GetValue(), k.Ternary.GetMask()
		case *p4v1.FieldMatch_Range_:
			f.Kind, f.Value, f.Mask = MatchRange, k.Range.GetLow(), k.Range.GetHigh()
		case *p4v1.FieldMatch_Optional_:
			f.Kind, f.Value = MatchOptional, k.Optional.GetValue()
		default:
			return fieldError("table", &t.Object, &t.Fields[i], fmt.Errorf("kind %T: %w", k, ErrMatch))
		}
	}
	return nil
}

// paramsFromProto brings the parameters of a into the order of the P4Info; dst
// is zeroed and has one element for each. The results share memory with p.
func (a *ActionInfo) paramsFromProto(dst [][]byte, p *p4v1.Action) error {
	if p.GetActionId() != a.ID {
		return fmt.Errorf("tables: action %v: action id %#x: %w", a.Object, p.GetActionId(), ErrUnknownID)
	}
	for n, v := range p.GetParams() {
		if err := place(dst, "action", &a.Object, a.Params, n, v.GetParamId(), v.GetValue()); err != nil {
			return err
		}
	}
	return complete(dst, "action", &a.Object, a.Params)
}

// metadataFromProto brings packet metadata into the order of the P4Info; dst
// is zeroed and has one element for each. The results share memory with ms.
func (h *HeaderInfo) metadataFromProto(dst [][]byte, ms []*p4v1.PacketMetadata) error {
	for n, m := range ms {
		if err := place(dst, "header", &h.Object, h.Fields, n, m.GetMetadataId(), m.GetValue()); err != nil {
			return err
		}
	}
	return complete(dst, "header", &h.Object, h.Fields)
}

// complete checks that dst has every value.
func complete(dst [][]byte, what string, o *Object, fields []FieldInfo) error {
	for i := range dst {
		if dst[i] == nil {
			return fieldError(what, o, &fields[i], ErrMissing)
		}
	}
	return nil
}

// place puts the value of the field with that id where it belongs in dst.
func place(dst [][]byte, what string, o *Object, fields []FieldInfo, hint int, id uint32, value []byte) error {
	i := indexOf(fields, id, hint)
	if i < 0 {
		return fmt.Errorf("tables: %s %v: field id %d: %w", what, *o, id, ErrUnknownID)
	}
	if dst[i] != nil {
		return fieldError(what, o, &fields[i], ErrDuplicate)
	}
	if len(value) == 0 {
		return fieldError(what, o, &fields[i], errEmpty(fields[i].Width))
	}
	dst[i] = value
	return nil
}

// indexOf finds the field with that id, first at hint, and returns -1 where
// there is none.
func indexOf(fields []FieldInfo, id uint32, hint int) int {
	if hint < len(fields) && fields[hint].ID == id {
		return hint
	}
	for i := range fields {
		if fields[i].ID == id {
			return i
		}
	}
	return -1
}

// fieldReader reads the fields of one object and keeps the first error. The
// fields come in the order of the P4Info, i counts in it.
type fieldReader struct {
	what   string // "table", "action" or "header"
	object *Object
	fields []FieldInfo
	err    error
}

// reader starts reading n fields; it reports whether these are as many as the
// object has.
func reader(what string, o *Object, fields []FieldInfo, n int) (fieldReader, bool) {
	r := fieldReader{what: what, object: o, fields: fields}
	if n != len(fields) {
		r.err = fmt.Errorf("tables: %s %v: %d fields, not %d: %w", what, *o, n, len(fields), ErrMissing)
	}
	return r, r.err == nil
}

func (r *fieldReader) fail(i int, err error) {
	if r.err == nil {
		r.err = fieldError(r.what, r.object, &r.fields[i], err)
	}
}

func (r *fieldReader) word(i int, b []byte) uint64 {
	v, err := parseWord(b, r.fields[i].Width)
	if err != nil {
		r.fail(i, err)
	}
	return v
}

func (r *fieldReader) bytes(i int, dst, b []byte) {
	if err := parseBytes(dst, b, r.fields[i].Width); err != nil {
		r.fail(i, err)
	}
}

// known refuses a value that its enumeration does not name.
func (r *fieldReader) known(i int, v uint64, known bool) {
	if !known {
		r.fail(i, errEnum(&r.fields[i], v))
	}
}

// given reports whether field i is there, in its kind.
func (r *fieldReader) given(i int, m *Match) bool {
	switch want := r.fields[i].Kind; {
	case m.Kind == want:
		return true
	case m.Kind != MatchAny:
		r.fail(i, fmt.Errorf("%v given, field is %v: %w", m.Kind, want, ErrMatch))
	case want == MatchExact:
		r.fail(i, ErrMissing)
	}
	return false
}

func (r *fieldReader) exact(i int, m *Match) uint64 {
	if !r.given(i, m) {
		return 0
	}
	return r.word(i, m.Value)
}

func (r *fieldReader) exactBytes(i int, dst []byte, m *Match) {
	if r.given(i, m) {
		r.bytes(i, dst, m.Value)
	}
}

func (r *fieldReader) prefixLen(i int, m *Match) int {
	n, w := int(m.PrefixLen), r.fields[i].Width
	if n < 0 || n > w {
		r.fail(i, errPrefix(n, w))
		return 0
	}
	return n
}

func readLPM[T word](r *fieldReader, i int, m *Match) LPM[T] {
	if !r.given(i, m) {
		return LPM[T]{}
	}
	v := LPM[T]{T(r.word(i, m.Value)), r.prefixLen(i, m)}
	if uint64(v.Value)&^prefixWord(r.fields[i].Width, v.PrefixLen) != 0 {
		r.fail(i, fmt.Errorf("bits behind the prefix of %d: %w", v.PrefixLen, ErrMatch))
	}
	return v
}

// lpmBytes reads the value into dst and returns the prefix length.
func (r *fieldReader) lpmBytes(i int, dst []byte, m *Match) int {
	if !r.given(i, m) {
		return 0
	}
	r.bytes(i, dst, m.Value)
	n := r.prefixLen(i, m)
	if low := len(dst)*8 - trailingZeros(dst); !isZero(dst) && low-(len(dst)*8-r.fields[i].Width) > n {
		r.fail(i, fmt.Errorf("bits behind the prefix of %d: %w", n, ErrMatch))
	}
	return n
}

// trailingZeros counts the zero bits at the end of b.
func trailingZeros(b []byte) int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return (len(b)-1-i)*8 + bits.TrailingZeros8(b[i])
		}
	}
	return len(b) * 8
}

func readTernary[T word](r *fieldReader, i int, m *Match) Ternary[T] {
	if !r.given(i, m) {
		return Ternary[T]{}
	}
	v := Ternary[T]{T(r.word(i, m.Value)), T(r.word(i, m.Mask))}
	if v.Value&^v.Mask != 0 {
		r.fail(i, fmt.Errorf("value outside the mask: %w", ErrMatch))
	}
	return v
}

func (r *fieldReader) ternaryBytes(i int, dst, mask []byte, m *Match) {
	if !r.given(i, m) {
		return
	}
	r.bytes(i, dst, m.Value)
	r.bytes(i, mask, m.Mask)
	for j := range dst {
		if dst[j]&^mask[j] != 0 {
			r.fail(i, fmt.Errorf("value outside the mask: %w", ErrMatch))
			return
		}
	}
}

func readRange[T word](r *fieldReader, i int, m *Match) Range[T] {
	if !r.given(i, m) {
		return Range[T]{}
	}
	v := Range[T]{T(r.word(i, m.Value)), T(r.word(i, m.Mask)), true}
	if v.Low > v.High {
		r.fail(i, errRange(uint64(v.Low), uint64(v.High)))
	}
	return normRange(v, r.fields[i].Width)
}

func readOptional[T word](r *fieldReader, i int, m *Match) Optional[T] {
	if !r.given(i, m) {
		return Optional[T]{}
	}
	return Some(T(r.word(i, m.Value)))
}

func (r *fieldReader) optionalBytes(i int, dst []byte, m *Match) bool {
	if !r.given(i, m) {
		return false
	}
	r.bytes(i, dst, m.Value)
	return true
}

func fieldError(what string, o *Object, f *FieldInfo, err error) error {
	return fmt.Errorf("tables: %s %v: field %s (id %d): %w", what, *o, f.Name, f.ID, err)
}

func errPrefix(n, width int) error {
	return fmt.Errorf("prefix of %d bits, field has %d: %w", n, width, ErrMatch)
}

func errRange(low, high uint64) error {
	return fmt.Errorf("range from %d to %d: %w", low, high, ErrMatch)
}

func errEnum(f *FieldInfo, v uint64) error {
	return fmt.Errorf("%s has no member %d: %w", f.Enum, v, ErrValue)
}

// entryAttrs is what all entries have beside key and action.
type entryAttrs struct {
	priority    int32
	isDefault   bool
	idleTimeout time.Duration
	sinceHit    Optional[time.Duration]
	counter     Optional[CounterData]
	meter       Optional[MeterConfig]
	metadata    string
}

func (t *TableInfo) fail(err error) error { return fmt.Errorf("tables: table %v: %w", t.Object, err) }

// readAttrs reads what te has beside key and action.
func (t *TableInfo) readAttrs(te *p4v1.TableEntry) (entryAttrs, error) {
	a := entryAttrs{
		priority:    te.GetPriority(),
		isDefault:   te.GetIsDefaultAction(),
		idleTimeout: time.Duration(te.GetIdleTimeoutNs()),
		metadata:    string(te.GetMetadata()),
	}
	if te.GetTableId() != t.ID {
		return a, t.fail(fmt.Errorf("entry of table id %#x: %w", te.GetTableId(), ErrUnknownID))
	}
	if a.isDefault && len(te.GetMatch()) > 0 {
		return a, t.fail(fmt.Errorf("default entry with %d match fields: %w", len(te.GetMatch()), ErrMatch))
	}
	if h := te.GetTimeSinceLastHit(); h != nil {
		a.sinceHit = Some(time.Duration(h.GetElapsedNs()))
	}
	if c := te.GetCounterData(); c != nil {
		a.counter = Some(CounterData{c.GetByteCount(), c.GetPacketCount()})
	}
	if m := te.GetMeterConfig(); m != nil {
		a.meter = Some(meterFromProto(m))
	}
	return a, t.checkAttrs(&a)
}

// checkAttrs refuses what the table does not support.
func (t *TableInfo) checkAttrs(a *entryAttrs) error {
	switch needs := t.NeedsPriority && !a.isDefault; {
	case needs && a.priority <= 0, !needs && a.priority != 0:
		return t.fail(fmt.Errorf("priority %d: %w", a.priority, ErrPriority))
	case a.idleTimeout < 0:
		return t.fail(fmt.Errorf("idle timeout %v: %w", a.idleTimeout, ErrValue))
	case !t.IdleTimeout && (a.idleTimeout != 0 || a.sinceHit.Set):
		return t.fail(fmt.Errorf("idle timeout: %w", ErrUnsupported))
	case t.DirectCounterID == 0 && a.counter.Set:
		return t.fail(fmt.Errorf("direct counter: %w", ErrUnsupported))
	case t.DirectMeterID == 0 && a.meter.Set:
		return t.fail(fmt.Errorf("direct meter: %w", ErrUnsupported))
	}
	return nil
}

// checkAction finds an action and refuses one that the table has not, or not in
// that place.
func (t *TableInfo) checkAction(id uint32, isDefault bool) (*ActionInfo, error) {
	for _, a := range t.Actions {
		if a.ID == id {
			if a.Scope == TableOnly && isDefault || a.Scope == DefaultOnly && !isDefault {
				return nil, t.fail(fmt.Errorf("action %v, default entry %t: %w", a.Object, isDefault, ErrAction))
			}
			return a.ActionInfo, nil
		}
	}
	return nil, t.fail(fmt.Errorf("action id %#x: %w", id, ErrAction))
}

// params returns the action of te, nil where it has none, and its parameters in
// the order of the P4Info; dst is zeroed and long enough for any of its
// actions.
func (t *TableInfo) params(dst [][]byte, te *p4v1.TableEntry) (*ActionInfo, [][]byte, error) {
	switch a := te.GetAction().GetType().(type) {
	case nil:
		return nil, nil, nil
	case *p4v1.TableAction_Action:
		info, err := t.checkAction(a.Action.GetActionId(), te.GetIsDefaultAction())
		if err != nil {
			return nil, nil, err
		}
		dst = dst[:len(info.Params)]
		return info, dst, info.paramsFromProto(dst, a.Action)
	default:
		return nil, nil, t.fail(fmt.Errorf("%T in a table without action profile: %w", a, ErrAction))
	}
}

// cell reads the index of a counter or meter cell.
func (c *CellInfo) cell(what string, id uint32, index *p4v1.Index) (int64, error) {
	if id != c.ID {
		return 0, fmt.Errorf("tables: %s %v: cell of id %#x: %w", what, c.Object, id, ErrUnknownID)
	}
	if index == nil {
		return 0, fmt.Errorf("tables: %s %v: index: %w", what, c.Object, ErrMissing)
	}
	return index.GetIndex(), c.checkIndex(what, index.GetIndex())
}

func (c *CellInfo) checkIndex(what string, i int64) error {
	if i < 0 || i >= c.Size {
		return fmt.Errorf("tables: %s %v: index %d of %d cells: %w", what, c.Object, i, c.Size, ErrValue)
	}
	return nil
}

func meterFromProto(m *p4v1.MeterConfig) MeterConfig {
	return MeterConfig{CIR: m.GetCir(), CBurst: m.GetCburst(), PIR: m.GetPir(), PBurst: m.GetPburst()}
}
