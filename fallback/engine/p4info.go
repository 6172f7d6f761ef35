package engine

import (
	"fmt"
	"slices"

	configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"

	"countersign/tables"
)

// checkP4Info returns the first difference between a P4Info and our own, nil
// where there is none that a packet or an entry could tell.
func checkP4Info(p *configv1.P4Info) error {
	byID := make(map[uint32]*configv1.Table, len(p.GetTables()))
	for _, t := range p.GetTables() {
		byID[t.GetPreamble().GetId()] = t
	}
	for _, want := range tables.Tables() {
		have := byID[want.ID]
		if have == nil {
			return fmt.Errorf("table %v is missing", want.Object)
		}
		if err := checkTable(have, want); err != nil {
			return err
		}
		delete(byID, want.ID)
	}
	for id, t := range byID {
		return fmt.Errorf("table %s (id %#x) is not ours", t.GetPreamble().GetAlias(), id)
	}
	for _, check := range []func(*configv1.P4Info) error{checkActions, checkCells, checkHeaders} {
		if err := check(p); err != nil {
			return err
		}
	}
	return nil
}

func checkName(what string, o tables.Object, name string) error {
	if o.Name != name {
		return fmt.Errorf("%s %v is named %q, want %q", what, o, name, o.Name)
	}
	return nil
}

func checkTable(have *configv1.Table, want *tables.TableInfo) error {
	if err := checkName("table", want.Object, have.GetPreamble().GetName()); err != nil {
		return err
	}
	if len(have.GetMatchFields()) != len(want.Fields) {
		return fmt.Errorf("table %v has %d match fields, want %d", want.Object, len(have.GetMatchFields()), len(want.Fields))
	}
	for i, f := range have.GetMatchFields() {
		w := &want.Fields[i]
		if f.GetId() != w.ID || f.GetName() != w.Name || int(f.GetBitwidth()) != w.Width || matchKind(f.GetMatchType()) != w.Kind {
			return fmt.Errorf("table %v: match field %d is %s (id %d, %d bits, %v), want %s (id %d, %d bits, %v)", want.Object,
				i+1, f.GetName(), f.GetId(), f.GetBitwidth(), f.GetMatchType(), w.Name, w.ID, w.Width, w.Kind)
		}
	}
	refs := make(map[uint32]bool)
	for _, r := range have.GetActionRefs() {
		refs[r.GetId()] = true
	}
	for _, a := range want.Actions {
		if !refs[a.ID] {
			return fmt.Errorf("table %v lacks action %v", want.Object, a.Object)
		}
	}
	if len(refs) != len(want.Actions) {
		return fmt.Errorf("table %v has %d actions, want %d", want.Object, len(refs), len(want.Actions))
	}
	if have.GetSize() != want.Size {
		return fmt.Errorf("table %v has size %d, want %d", want.Object, have.GetSize(), want.Size)
	}
	if have.GetImplementationId() != want.ProfileID {
		return fmt.Errorf("table %v has action profile %#x, want %#x", want.Object, have.GetImplementationId(), want.ProfileID)
	}
	return nil
}

func matchKind(t configv1.MatchField_MatchType) tables.MatchKind {
	switch t {
	case configv1.MatchField_EXACT:
		return tables.MatchExact
	case configv1.MatchField_LPM:
		return tables.MatchLPM
	case configv1.MatchField_TERNARY:
		return tables.MatchTernary
	case configv1.MatchField_RANGE:
		return tables.MatchRange
	case configv1.MatchField_OPTIONAL:
		return tables.MatchOptional
	}
	return tables.MatchAny
}

func checkActions(p *configv1.P4Info) error {
	byID := make(map[uint32]*configv1.Action, len(p.GetActions()))
	for _, a := range p.GetActions() {
		byID[a.GetPreamble().GetId()] = a
	}
	for _, want := range tables.Actions() {
		have := byID[want.ID]
		if have == nil {
			return fmt.Errorf("action %v is missing", want.Object)
		}
		if err := checkName("action", want.Object, have.GetPreamble().GetName()); err != nil {
			return err
		}
		if len(have.GetParams()) != len(want.Params) {
			return fmt.Errorf("action %v has %d parameters, want %d", want.Object, len(have.GetParams()), len(want.Params))
		}
		for i, f := range have.GetParams() {
			w := &want.Params[i]
			if f.GetId() != w.ID || f.GetName() != w.Name || int(f.GetBitwidth()) != w.Width {
				return fmt.Errorf("action %v: parameter %d is %s (id %d, %d bits), want %s (id %d, %d bits)", want.Object,
					i+1, f.GetName(), f.GetId(), f.GetBitwidth(), w.Name, w.ID, w.Width)
			}
		}
	}
	return nil
}

// checkCells compares counters, meters and action profiles.
func checkCells(p *configv1.P4Info) error {
	names := make(map[uint32]string)
	sizes := make(map[uint32]int64)
	for _, c := range p.GetCounters() {
		names[c.GetPreamble().GetId()], sizes[c.GetPreamble().GetId()] = c.GetPreamble().GetName(), c.GetSize()
	}
	for _, c := range p.GetMeters() {
		names[c.GetPreamble().GetId()], sizes[c.GetPreamble().GetId()] = c.GetPreamble().GetName(), c.GetSize()
	}
	for _, c := range p.GetDirectCounters() {
		names[c.GetPreamble().GetId()] = c.GetPreamble().GetName()
	}
	for _, c := range p.GetDirectMeters() {
		names[c.GetPreamble().GetId()] = c.GetPreamble().GetName()
	}
	for _, c := range p.GetActionProfiles() {
		names[c.GetPreamble().GetId()], sizes[c.GetPreamble().GetId()] = c.GetPreamble().GetName(), c.GetSize()
	}
	check := func(what string, o tables.Object, size int64) error {
		name, ok := names[o.ID]
		switch {
		case !ok:
			return fmt.Errorf("%s %v is missing", what, o)
		case name != o.Name:
			return checkName(what, o, name)
		case size != sizes[o.ID]:
			return fmt.Errorf("%s %v has size %d, want %d", what, o, sizes[o.ID], size)
		}
		return nil
	}
	for _, c := range tables.Counters() {
		if err := check("counter", c.Object, c.Size); err != nil {
			return err
		}
	}
	for _, c := range tables.Meters() {
		if err := check("meter", c.Object, c.Size); err != nil {
			return err
		}
	}
	for _, c := range tables.Profiles() {
		if err := check("action profile", c.Object, c.Size); err != nil {
			return err
		}
	}
	return nil
}

// The fields of packet-in and packet-out, which Worker.toCPU and
// pipeline.PacketOut know by their places.
var (
	packetInFields  = []string{"reason:8", "role:8", "ingress_port:16", "zone:16", "egress_port:16", "egress_zone:16"}
	packetOutFields = []string{"mode:8", "pad:8", "egress_port:16", "ingress_port:16"}
)

func checkHeaders(p *configv1.P4Info) error {
	have := make(map[string][]string)
	for _, h := range p.GetControllerPacketMetadata() {
		name := h.GetPreamble().GetName()
		for _, f := range h.GetMetadata() {
			have[name] = append(have[name], fmt.Sprintf("%s:%d", f.GetName(), f.GetBitwidth()))
		}
	}
	for name, want := range map[string][]string{"packet_in": packetInFields, "packet_out": packetOutFields} {
		if !slices.Equal(have[name], want) {
			return fmt.Errorf("%s has the fields %v, want %v", name, have[name], want)
		}
	}
	return nil
}
