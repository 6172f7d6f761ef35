package device

import (
	"testing"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/protobuf/proto"
)

// FuzzEntity gives what a device may report to all that looks at it: nothing
// panics, and the canonical form is one that does not change any more.
func FuzzEntity(f *testing.F) {
	sch, err := newSchema(&p4configv1.P4Info{Tables: []*p4configv1.Table{{Preamble: &p4configv1.Preamble{Id: 1, Alias: "t"}}}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range []*p4v1.Entity{
		{},
		{Entity: &p4v1.Entity_TableEntry{}},
		{Entity: &p4v1.Entity_PacketReplicationEngineEntry{}},
		{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{TableId: 1, Priority: 3, Match: []*p4v1.FieldMatch{
			{},
			{FieldId: 2, FieldMatchType: &p4v1.FieldMatch_Exact_{}},
			{FieldId: 1, FieldMatchType: &p4v1.FieldMatch_Ternary_{Ternary: &p4v1.FieldMatch_Ternary{Value: []byte{0, 1}, Mask: []byte{0, 0}}}},
			{FieldId: 3, FieldMatchType: &p4v1.FieldMatch_Range_{Range: &p4v1.FieldMatch_Range{Low: []byte{0}, High: []byte{0, 255}}}},
			{FieldId: 4, FieldMatchType: &p4v1.FieldMatch_Lpm{Lpm: &p4v1.FieldMatch_LPM{Value: []byte{10}, PrefixLen: -1}}},
			{FieldId: 5, FieldMatchType: &p4v1.FieldMatch_Optional_{Optional: &p4v1.FieldMatch_Optional{}}},
		}, Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{Params: []*p4v1.Action_Param{{}, {ParamId: 1, Value: []byte{0, 0}}}}}}}}},
		{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{Action: &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileActionSet{
			ActionProfileActionSet: &p4v1.ActionProfileActionSet{ActionProfileActions: []*p4v1.ActionProfileAction{{Weight: 2}, {Weight: 1}}},
		}}}}},
		{Entity: &p4v1.Entity_ActionProfileGroup{ActionProfileGroup: &p4v1.ActionProfileGroup{Members: []*p4v1.ActionProfileGroup_Member{{MemberId: 2}, {MemberId: 1}}}}},
		{Entity: &p4v1.Entity_MeterEntry{MeterEntry: &p4v1.MeterEntry{}}},
		{Entity: &p4v1.Entity_DirectCounterEntry{}},
		{Entity: &p4v1.Entity_RegisterEntry{}},
	} {
		b, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e := new(p4v1.Entity)
		if proto.Unmarshal(b, e) != nil {
			t.Skip()
		}
		_ = sch.check(e)
		_, _ = sch.describe(e), stageOf(e)
		hash := entryHash(e)
		it, err := sch.newItem(e)
		if err != nil {
			return
		}
		c := new(p4v1.Entity)
		if err := proto.Unmarshal([]byte(it.body), c); err != nil {
			t.Fatal(err)
		}
		again, err := sch.newItem(c)
		if err != nil || again.key != it.key || again.body != it.body {
			t.Errorf("canonical form of %v changes to %v", c, again.entity)
		}
		if h := entryHash(c); h != hash {
			t.Errorf("hash of %v differs from that of its canonical form", e)
		}
	})
}
