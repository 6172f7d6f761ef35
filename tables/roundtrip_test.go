package tables

import (
	"errors"
	"math/big"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	p4config "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// The properties here draw entries from the P4Info alone, so that they hold
// the generated code against it and not against itself. TABLES_P4INFO names
// another P4Info; the generator's test runs them on its sample that way.
func loadP4Info(t testing.TB) *p4config.P4Info {
	t.Helper()
	path := os.Getenv("TABLES_P4INFO")
	if path == "" {
		path = "../p4src/build/countersign.p4info.txtpb"
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info := new(p4config.P4Info)
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, info); err != nil {
		t.Fatal(err)
	}
	info.Actions = slices.DeleteFunc(info.Actions, func(a *p4config.Action) bool {
		for _, t := range info.Tables {
			for _, r := range t.ActionRefs {
				if r.Id == a.Preamble.Id {
					return false
				}
			}
		}
		return true // called by the program alone
	})
	return info
}

// drawer draws P4Runtime messages that fit info.
type drawer struct {
	*rapid.T
	info *p4config.P4Info
}

// number draws a value of width bits, often one at the edge.
func (d drawer) number(width int32, label string) *big.Int {
	top := new(big.Int).Lsh(big.NewInt(1), uint(width))
	switch rapid.IntRange(0, 5).Draw(d.T, label+" class") {
	case 0:
		return new(big.Int)
	case 1:
		return top.Sub(top, big.NewInt(1))
	}
	b := rapid.SliceOfN(rapid.Byte(), 0, int(width+7)/8).Draw(d.T, label)
	v := new(big.Int).SetBytes(b)
	return v.Mod(v, top)
}

func canonical(v *big.Int) []byte {
	if v.Sign() == 0 {
		return []byte{0}
	}
	return v.Bytes()
}

// enumOf finds the enumeration of a field as the generated code has it.
func enumOf(fields []FieldInfo, id uint32) string {
	for _, f := range fields {
		if f.ID == id {
			return f.Enum
		}
	}
	return ""
}

// knownMembers are the members of each enumeration, through the exported API.
func (d drawer) value(width int32, enum, label string) []byte {
	if enum == "" {
		return canonical(d.number(width, label))
	}
	members := slices.Collect(func(yield func(uint64) bool) {
		for v := range uint64(256) {
			if enumMembers[enum](v) && v < 1<<uint(width) && !yield(v) {
				return
			}
		}
	})
	return canonical(new(big.Int).SetUint64(rapid.SampledFrom(members).Draw(d.T, label)))
}

// match draws a match of field f, or nil for one to leave out.
func (d drawer) match(f *p4config.MatchField, enum string) *p4v1.FieldMatch {
	m := &p4v1.FieldMatch{FieldId: f.GetId()}
	w := f.GetBitwidth()
	kind := f.GetMatchType()
	if kind != p4config.MatchField_EXACT && rapid.Bool().Draw(d.T, f.GetName()+" omitted") {
		return nil
	}
	max := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(w)), big.NewInt(1))
	switch kind {
	case p4config.MatchField_EXACT:
		m.FieldMatchType = &p4v1.FieldMatch_Exact_{Exact: &p4v1.FieldMatch_Exact{Value: d.value(w, enum, f.GetName())}}
	case p4config.MatchField_OPTIONAL:
		m.FieldMatchType = &p4v1.FieldMatch_Optional_{Optional: &p4v1.FieldMatch_Optional{Value: d.value(w, enum, f.GetName())}}
	case p4config.MatchField_LPM:
		n := rapid.Int32Range(1, w).Draw(d.T, f.GetName()+" prefix")
		v := d.number(w, f.GetName())
		v.Rsh(v, uint(w-n)).Lsh(v, uint(w-n))
		m.FieldMatchType = &p4v1.FieldMatch_Lpm{Lpm: &p4v1.FieldMatch_LPM{Value: canonical(v), PrefixLen: n}}
	case p4config.MatchField_TERNARY:
		mask := d.number(w, f.GetName()+" mask")
		if mask.Sign() == 0 {
			return nil
		}
		v := d.number(w, f.GetName())
		m.FieldMatchType = &p4v1.FieldMatch_Ternary_{Ternary: &p4v1.FieldMatch_Ternary{Value: canonical(v.And(v, mask)), Mask: canonical(mask)}}
	case p4config.MatchField_RANGE:
		low, high := d.number(w, f.GetName()+" low"), d.number(w, f.GetName()+" high")
		if low.Cmp(high) > 0 {
			low, high = high, low
		}
		if low.Sign() == 0 && high.Cmp(max) == 0 {
			return nil
		}
		m.FieldMatchType = &p4v1.FieldMatch_Range_{Range: &p4v1.FieldMatch_Range{Low: canonical(low), High: canonical(high)}}
	}
	return m
}

func (d drawer) action(id uint32) *p4v1.Action {
	a := &p4v1.Action{ActionId: id}
	info, err := ActionByID(id)
	if err != nil {
		d.Fatal(err)
	}
	for _, p := range d.info.GetActions() {
		if p.GetPreamble().GetId() != id {
			continue
		}
		for _, f := range p.GetParams() {
			a.Params = append(a.Params, &p4v1.Action_Param{ParamId: f.GetId(), Value: d.value(f.GetBitwidth(), enumOf(info.Params, f.GetId()), f.GetName())})
		}
	}
	return a
}

// entry draws an entry of t in its canonical form.
func (d drawer) entry(t *p4config.Table) *p4v1.TableEntry {
	te := &p4v1.TableEntry{TableId: t.GetPreamble().GetId()}
	te.IsDefaultAction = t.GetImplementationId() == 0 && rapid.IntRange(0, 9).Draw(d.T, "default") == 0
	info, err := TableByID(te.TableId)
	if err != nil {
		d.Fatal(err)
	}
	if !te.IsDefaultAction {
		for _, f := range t.GetMatchFields() {
			if m := d.match(f, enumOf(info.Fields, f.GetId())); m != nil {
				te.Match = append(te.Match, m)
			}
			switch f.GetMatchType() {
			case p4config.MatchField_TERNARY, p4config.MatchField_RANGE, p4config.MatchField_OPTIONAL:
				te.Priority = rapid.Int32Range(1, 1<<31-1).Draw(d.T, "priority")
			}
		}
	}
	var ids []uint32
	for _, r := range t.GetActionRefs() {
		if t.GetImplementationId() != 0 && r.GetScope() == p4config.ActionRef_DEFAULT_ONLY ||
			te.IsDefaultAction && r.GetScope() == p4config.ActionRef_TABLE_ONLY ||
			!te.IsDefaultAction && r.GetScope() == p4config.ActionRef_DEFAULT_ONLY {
			continue
		}
		ids = append(ids, r.GetId())
	}
	switch kind := rapid.IntRange(0, 9).Draw(d.T, "action kind"); {
	case len(ids) == 0 || kind == 0:
	case t.GetImplementationId() == 0:
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: d.action(rapid.SampledFrom(ids).Draw(d.T, "action"))}}
	case kind < 3:
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileMemberId{ActionProfileMemberId: rapid.Uint32().Draw(d.T, "member")}}
	case kind < 6:
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileGroupId{ActionProfileGroupId: rapid.Uint32().Draw(d.T, "group")}}
	default:
		set := new(p4v1.ActionProfileActionSet)
		for range rapid.IntRange(1, 4).Draw(d.T, "one-shot") {
			w := &p4v1.ActionProfileAction{Action: d.action(rapid.SampledFrom(ids).Draw(d.T, "action")), Weight: rapid.Int32Range(1, 99).Draw(d.T, "weight")}
			if rapid.Bool().Draw(d.T, "watch") {
				w.WatchKind = &p4v1.ActionProfileAction_WatchPort{WatchPort: canonical(d.number(32, "port"))}
			}
			set.ActionProfileActions = append(set.ActionProfileActions, w)
		}
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileActionSet{ActionProfileActionSet: set}}
	}
	if t.GetIdleTimeoutBehavior() == p4config.Table_NOTIFY_CONTROL {
		te.IdleTimeoutNs = rapid.Int64Range(0, 1<<50).Draw(d.T, "idle")
		if rapid.Bool().Draw(d.T, "since hit") {
			te.TimeSinceLastHit = &p4v1.TableEntry_IdleTimeout{ElapsedNs: rapid.Int64().Draw(d.T, "elapsed")}
		}
	}
	if info.DirectCounterID != 0 && rapid.Bool().Draw(d.T, "counter") {
		te.CounterData = &p4v1.CounterData{ByteCount: rapid.Int64().Draw(d.T, "bytes"), PacketCount: rapid.Int64().Draw(d.T, "packets")}
	}
	if info.DirectMeterID != 0 && rapid.Bool().Draw(d.T, "meter") {
		te.MeterConfig = &p4v1.MeterConfig{Cir: 1, Cburst: 2, Pir: 3, Pburst: rapid.Int64().Draw(d.T, "burst")}
	}
	if s := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(d.T, "metadata"); len(s) > 0 {
		te.Metadata = s
	}
	return te
}

// forEachTable checks a property of random entries of every table.
func forEachTable(t *testing.T, property func(d drawer, info *p4config.Table, te *p4v1.TableEntry)) {
	info := loadP4Info(t)
	if len(info.GetTables()) != len(Tables()) {
		t.Fatalf("%d tables generated, P4Info has %d", len(Tables()), len(info.GetTables()))
	}
	for _, table := range info.GetTables() {
		t.Run(table.GetPreamble().GetAlias(), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				d := drawer{rt, info}
				property(d, table, d.entry(table))
			})
		})
	}
}

func decode(t interface{ Fatalf(string, ...any) }, te *p4v1.TableEntry) Entry {
	e, err := DecodeEntry(te)
	if err != nil {
		t.Fatalf("decode %v: %v", te, err)
	}
	return e
}

func TestEntryRoundTrip(t *testing.T) {
	forEachTable(t, func(d drawer, _ *p4config.Table, te *p4v1.TableEntry) {
		e := decode(d, te)
		again, err := e.ToProto()
		if err != nil {
			d.Fatalf("encode %+v: %v", e, err)
		}
		if !proto.Equal(te, again) {
			d.Fatalf("entry changed\n was %v\n  is %v", te, again)
		}
		back := decode(d, again)
		if !reflect.DeepEqual(e, back) || e.Identity() != back.Identity() {
			d.Fatalf("value changed\n was %+v\n  is %+v", e, back)
		}
		if e.TableID() != te.TableId {
			d.Fatalf("table id %#x, want %#x", e.TableID(), te.TableId)
		}
	})
}

func TestFieldsComeInAnyOrder(t *testing.T) {
	forEachTable(t, func(d drawer, _ *p4config.Table, te *p4v1.TableEntry) {
		e := decode(d, te)
		slices.Reverse(te.Match)
		slices.Reverse(te.GetAction().GetAction().GetParams())
		if back := decode(d, te); !reflect.DeepEqual(e, back) {
			d.Fatalf("order matters\n was %+v\n  is %+v", e, back)
		}
	})
}

// values are the byte strings of te with the width of each.
func values(d drawer, te *p4v1.TableEntry) (vs []*[]byte, widths []int32) {
	for _, t := range d.info.GetTables() {
		if t.GetPreamble().GetId() != te.TableId {
			continue
		}
		for _, m := range te.Match {
			for _, f := range t.GetMatchFields() {
				if f.GetId() != m.FieldId {
					continue
				}
				switch k := m.FieldMatchType.(type) {
				case *p4v1.FieldMatch_Exact_:
					vs = append(vs, &k.Exact.Value)
				case *p4v1.FieldMatch_Lpm:
					vs = append(vs, &k.Lpm.Value)
				case *p4v1.FieldMatch_Optional_:
					vs = append(vs, &k.Optional.Value)
				case *p4v1.FieldMatch_Ternary_:
					vs = append(vs, &k.Ternary.Value, &k.Ternary.Mask)
				case *p4v1.FieldMatch_Range_:
					vs = append(vs, &k.Range.Low, &k.Range.High)
				}
				for len(widths) < len(vs) {
					widths = append(widths, f.GetBitwidth())
				}
			}
		}
	}
	for _, a := range d.info.GetActions() {
		if pa := te.GetAction().GetAction(); a.GetPreamble().GetId() == pa.GetActionId() {
			for i, p := range pa.GetParams() {
				vs, widths = append(vs, &p.Value), append(widths, a.GetParams()[i].GetBitwidth())
			}
		}
	}
	return vs, widths
}

func TestLeadingZerosAreAllowed(t *testing.T) {
	forEachTable(t, func(d drawer, _ *p4config.Table, te *p4v1.TableEntry) {
		e := decode(d, te)
		vs, _ := values(d, te)
		for _, v := range vs {
			*v = append(make([]byte, rapid.IntRange(0, 9).Draw(d.T, "zeros")), *v...)
		}
		if back := decode(d, te); !reflect.DeepEqual(e, back) {
			d.Fatalf("zeros matter\n was %+v\n  is %+v", e, back)
		}
	})
}

func TestWrongWidthIsRefused(t *testing.T) {
	forEachTable(t, func(d drawer, table *p4config.Table, te *p4v1.TableEntry) {
		vs, widths := values(d, te)
		if len(vs) == 0 {
			d.Skip("entry without values")
		}
		i := rapid.IntRange(0, len(vs)-1).Draw(d.T, "field")
		if rapid.Bool().Draw(d.T, "empty") {
			*vs[i] = nil
		} else {
			over := new(big.Int).Lsh(big.NewInt(1), uint(widths[i]))
			*vs[i] = over.Or(over, new(big.Int).SetBytes(*vs[i])).Bytes()
		}
		_, err := DecodeEntry(te)
		if !errors.Is(err, ErrWidth) {
			d.Fatalf("%d bits for %d: %v", len(*vs[i])*8, widths[i], err)
		}
	})
}

// width is that of a match field.
func width(t *p4config.Table, id uint32) int32 {
	for _, f := range t.GetMatchFields() {
		if f.GetId() == id {
			return f.GetBitwidth()
		}
	}
	return 0
}

func TestMalformedEntryIsRefused(t *testing.T) {
	forEachTable(t, func(d drawer, table *p4config.Table, te *p4v1.TableEntry) {
		pa := te.GetAction().GetAction()
		breaks := map[string]func() error{
			"table": func() error { te.TableId ^= 0x00ffffff; return ErrUnknownID },
			"zero":  func() error { te.TableId = 0; return ErrUnknownID },
			"action": func() error {
				te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{ActionId: 0}}}
				return ErrAction
			},
			"idle": func() error { te.IdleTimeoutNs = -1; return ErrValue },
		}
		if te.Priority == 0 {
			breaks["priority"] = func() error { te.Priority = 1; return ErrPriority }
		} else {
			breaks["priority"] = func() error { te.Priority = 0; return ErrPriority }
		}
		if table.GetIdleTimeoutBehavior() == p4config.Table_NO_TIMEOUT {
			breaks["no idle"] = func() error { te.IdleTimeoutNs = 1; return ErrUnsupported }
		}
		if len(table.GetDirectResourceIds()) == 0 {
			breaks["no counter"] = func() error { te.CounterData = new(p4v1.CounterData); return ErrUnsupported }
			breaks["no meter"] = func() error { te.MeterConfig = new(p4v1.MeterConfig); return ErrUnsupported }
		}
		if len(te.Match) > 0 {
			m := rapid.SampledFrom(te.Match).Draw(d.T, "match")
			breaks["field"] = func() error { m.FieldId = 0; return ErrUnknownID }
			breaks["twice"] = func() error { te.Match = append(te.Match, proto.CloneOf(m)); return ErrDuplicate }
			breaks["default"] = func() error { te.IsDefaultAction = true; return ErrMatch }
			breaks["no kind"] = func() error { m.FieldMatchType = nil; return ErrMatch }
			switch k := m.FieldMatchType.(type) {
			case *p4v1.FieldMatch_Exact_:
				breaks["kind"] = func() error {
					m.FieldMatchType = &p4v1.FieldMatch_Optional_{Optional: &p4v1.FieldMatch_Optional{Value: k.Exact.Value}}
					return ErrMatch
				}
				breaks["missing"] = func() error {
					te.Match = slices.DeleteFunc(te.Match, func(o *p4v1.FieldMatch) bool { return o == m })
					return ErrMissing
				}
			case *p4v1.FieldMatch_Lpm:
				breaks["prefix"] = func() error { k.Lpm.PrefixLen = 999; return ErrMatch }
				breaks["negative"] = func() error { k.Lpm.PrefixLen = -1; return ErrMatch }
				if !isZero(k.Lpm.Value) {
					breaks["behind prefix"] = func() error {
						v := new(big.Int).SetBytes(k.Lpm.Value)
						k.Lpm.PrefixLen = width(table, m.FieldId) - int32(v.TrailingZeroBits()) - 1
						return ErrMatch
					}
				}
			case *p4v1.FieldMatch_Ternary_:
				if !isZero(k.Ternary.Value) {
					breaks["outside mask"] = func() error { k.Ternary.Mask = []byte{0}; return ErrMatch }
				}
			case *p4v1.FieldMatch_Range_:
				if !slices.Equal(k.Range.Low, k.Range.High) {
					breaks["backwards"] = func() error { k.Range.Low, k.Range.High = k.Range.High, k.Range.Low; return ErrMatch }
				}
			}
		}
		if n := len(pa.GetParams()); n > 0 {
			i := rapid.IntRange(0, n-1).Draw(d.T, "param")
			breaks["param"] = func() error { pa.Params[i].ParamId = 0; return ErrUnknownID }
			breaks["param twice"] = func() error { pa.Params = append(pa.Params, pa.Params[i]); return ErrDuplicate }
			breaks["no param"] = func() error { pa.Params = slices.Delete(pa.Params, i, i+1); return ErrMissing }
		}
		names := make([]string, 0, len(breaks))
		for name := range breaks {
			names = append(names, name)
		}
		slices.Sort(names)
		name := rapid.SampledFrom(names).Draw(d.T, "break")
		want := breaks[name]()
		_, err := DecodeEntry(te)
		if !errors.Is(err, want) {
			d.Fatalf("%s: %v, want %v", name, err, want)
		}
		if alias := table.GetPreamble().GetAlias(); want != ErrUnknownID && pa == nil && !strings.Contains(err.Error(), alias) {
			d.Fatalf("%s: error %q does not name %s", name, err, alias)
		}
	})
}

func TestUpdate(t *testing.T) {
	forEachTable(t, func(d drawer, _ *p4config.Table, te *p4v1.TableEntry) {
		e := decode(d, te)
		for _, kind := range []p4v1.Update_Type{p4v1.Update_INSERT, p4v1.Update_MODIFY, p4v1.Update_DELETE} {
			allowed := te.Action != nil || kind == p4v1.Update_DELETE
			if te.IsDefaultAction {
				allowed = kind == p4v1.Update_MODIFY
			}
			u, err := e.Update(kind)
			if (err == nil) != allowed {
				d.Fatalf("%v of %+v: %v", kind, e, err)
			}
			if err == nil && (u.GetType() != kind || !proto.Equal(u.GetEntity().GetTableEntry(), te)) {
				d.Fatalf("%v: %v, want %v", kind, u, te)
			}
		}
	})
}

// The generated descriptions agree with the P4Info.
func TestDescriptions(t *testing.T) {
	info := loadP4Info(t)
	object := func(t *testing.T, o Object, p *p4config.Preamble) {
		t.Helper()
		if o.ID != p.GetId() || o.Name != p.GetName() || o.Alias != p.GetAlias() {
			t.Errorf("%+v, P4Info has %v", o, p)
		}
	}
	for _, p := range info.GetTables() {
		for _, name := range []string{p.GetPreamble().GetAlias(), p.GetPreamble().GetName()} {
			table, err := TableByName(name)
			if err != nil {
				t.Fatal(err)
			}
			object(t, table.Object, p.GetPreamble())
			if table.Size != p.GetSize() || table.IdleTimeout != (p.GetIdleTimeoutBehavior() != 0) ||
				table.ConstDefaultActionID != p.GetConstDefaultActionId() || table.ProfileID != p.GetImplementationId() {
				t.Errorf("%+v, P4Info has %v", table, p)
			}
			for _, f := range p.GetMatchFields() {
				if got, err := table.Field(f.GetName()); err != nil || got.ID != f.GetId() || got.Width != int(f.GetBitwidth()) ||
					!strings.EqualFold(got.Kind.String(), f.GetMatchType().String()) {
					t.Errorf("%s: %+v, %v, P4Info has %v", name, got, err, f)
				}
			}
		}
	}
	for _, p := range info.GetActions() {
		a, err := ActionByName(p.GetPreamble().GetName())
		if err != nil {
			t.Fatal(err)
		}
		object(t, a.Object, p.GetPreamble())
		for _, f := range p.GetParams() {
			if got, err := a.Param(f.GetName()); err != nil || got.ID != f.GetId() || got.Width != int(f.GetBitwidth()) {
				t.Errorf("%s: %+v, %v, P4Info has %v", a.Alias, got, err, f)
			}
		}
	}
	for _, p := range info.GetActionProfiles() {
		a, err := ProfileByName(p.GetPreamble().GetAlias())
		if err != nil {
			t.Fatal(err)
		}
		object(t, a.Object, p.GetPreamble())
		if a.Size != p.GetSize() || a.MaxGroupSize != p.GetMaxGroupSize() || !slices.Equal(a.TableIDs, p.GetTableIds()) {
			t.Errorf("%+v, P4Info has %v", a, p)
		}
	}
	for _, p := range info.GetCounters() {
		c, err := CounterByID(p.GetPreamble().GetId())
		if err != nil || c.Size != p.GetSize() || c.TableID != 0 {
			t.Errorf("%+v, %v, P4Info has %v", c, err, p)
		}
	}
	for _, p := range info.GetDirectMeters() {
		c, err := MeterByName(p.GetPreamble().GetAlias())
		if err != nil || c.TableID != p.GetDirectTableId() {
			t.Errorf("%+v, %v, P4Info has %v", c, err, p)
		}
	}
}

func TestUnknownNames(t *testing.T) {
	table, action := Tables()[0], Actions()[0]
	for name, lookup := range map[string]func(string) error{
		"table":   func(s string) error { _, err := TableByName(s); return err },
		"action":  func(s string) error { _, err := ActionByName(s); return err },
		"profile": func(s string) error { _, err := ProfileByName(s); return err },
		"counter": func(s string) error { _, err := CounterByName(s); return err },
		"meter":   func(s string) error { _, err := MeterByName(s); return err },
		"field":   func(s string) error { _, err := table.Field(s); return err },
		"param":   func(s string) error { _, err := action.Param(s); return err },
	} {
		for _, unknown := range []string{"", "no_such_name", table.Alias + " "} {
			if err := lookup(unknown); !errors.Is(err, ErrUnknownName) {
				t.Errorf("%s %q: %v", name, unknown, err)
			}
		}
	}
	for name, lookup := range map[string]func(uint32) error{
		"table":   func(id uint32) error { _, err := TableByID(id); return err },
		"action":  func(id uint32) error { _, err := ActionByID(id); return err },
		"profile": func(id uint32) error { _, err := ProfileByID(id); return err },
		"counter": func(id uint32) error { _, err := CounterByID(id); return err },
		"meter":   func(id uint32) error { _, err := MeterByID(id); return err },
		"entry":   func(id uint32) error { _, err := DecodeEntry(&p4v1.TableEntry{TableId: id}); return err },
	} {
		for _, unknown := range []uint32{0, 1, 1<<32 - 1} {
			if err := lookup(unknown); !errors.Is(err, ErrUnknownID) {
				t.Errorf("%s %#x: %v", name, unknown, err)
			}
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, t := range Tables() {
		seed, err := proto.Marshal(&p4v1.TableEntry{TableId: t.ID, Priority: 1})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		te := new(p4v1.TableEntry)
		if proto.Unmarshal(b, te) != nil {
			return
		}
		e, err := DecodeEntry(te)
		if err != nil {
			return
		}
		again, err := e.ToProto()
		if err != nil {
			t.Fatalf("%v decodes to %+v, which does not encode: %v", te, e, err)
		}
		if back := decode(t, again); !reflect.DeepEqual(e, back) {
			t.Fatalf("value changed\n was %+v\n  is %+v", e, back)
		}
	})
}
