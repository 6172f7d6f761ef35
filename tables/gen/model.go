package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	p4config "github.com/p4lang/p4runtime/go/p4/config/v1"
)

// model is the P4Info in the form that is printed: checked, with Go names.
type model struct {
	enums     []*enum
	constants []constant
	tables    []*table
	actions   []*action
	profiles  []*profile
	counters  []*cells
	meters    []*cells
	headers   []*header
}

type object struct {
	id          uint32
	name, alias string
	goName      string
}

type field struct {
	id     uint32
	name   string
	width  int
	kind   string // of match fields: Exact, LPM, Ternary, Range, Optional
	enum   *enum
	goName string
	pad    bool
}

type table struct {
	object
	fields       []*field
	actions      []actionRef
	size         int64
	profile      *profile
	counter      *cells
	meter        *cells
	constDefault uint32
	idle         bool
	isConst      bool
}

type actionRef struct {
	*action
	scope p4config.ActionRef_Scope
}

type action struct {
	object
	params []*field
	tables []*table // that hold it directly
}

type profile struct {
	object
	tables   []*table
	actions  []*action
	selector bool
	size     int64
	maxGroup int32
}

// cells is a counter or meter; table is set for a direct one.
type cells struct {
	object
	size  int64
	unit  string
	table *table
}

type header struct {
	object
	fields []*field
}

// enumOfField are the fields whose enumeration has another name than theirs.
var enumOfField = map[string]string{"state": "KeyState", "mode": "PacketOutMode"}

// newModel checks info and gives every object its Go name.
func newModel(info *p4config.P4Info, src *source) (*model, error) {
	m := &model{enums: slices.Clone(src.enums), constants: src.constants}
	if err := m.addEnums(info.GetTypeInfo()); err != nil {
		return nil, err
	}
	ids := make(map[uint32]string)
	newObject := func(what string, p *p4config.Preamble) (object, error) {
		o := object{id: p.GetId(), name: p.GetName(), alias: p.GetAlias()}
		if o.alias == "" {
			o.alias = o.name
		}
		o.goName = camel(o.alias)
		switch other, taken := ids[o.id]; {
		case o.id == 0 || o.name == "":
			return o, fmt.Errorf("%s %q has id %d", what, o.name, o.id)
		case taken:
			return o, fmt.Errorf("%s %s has the id %#x of %s", what, o.name, o.id, other)
		}
		ids[o.id] = o.name
		return o, nil
	}
	if len(info.GetTables()) == 0 {
		return nil, errors.New("no tables")
	}
	used := make(map[uint32]bool)
	for _, t := range info.GetTables() {
		for _, r := range t.GetActionRefs() {
			used[r.GetId()] = true
		}
	}
	var err error
	for _, p := range info.GetActions() {
		if !used[p.GetPreamble().GetId()] {
			continue // called by the program alone
		}
		a := new(action)
		if a.object, err = newObject("action", p.GetPreamble()); err != nil {
			return nil, err
		}
		for _, p := range p.GetParams() {
			f := &field{id: p.GetId(), name: p.GetName(), width: int(p.GetBitwidth())}
			if err := m.addField(&a.params, f, p.GetTypeName(), info.GetTypeInfo()); err != nil {
				return nil, fmt.Errorf("action %s: %w", a.name, err)
			}
		}
		m.actions = append(m.actions, a)
	}
	m.shortenActions()
	for _, p := range info.GetActionProfiles() {
		pr := &profile{selector: p.GetWithSelector(), size: p.GetSize(), maxGroup: p.GetMaxGroupSize()}
		if pr.object, err = newObject("action profile", p.GetPreamble()); err != nil {
			return nil, err
		}
		m.profiles = append(m.profiles, pr)
	}
	for _, p := range info.GetTables() {
		t, err := m.newTable(p, info.GetTypeInfo(), newObject)
		if err != nil {
			return nil, err
		}
		m.tables = append(m.tables, t)
	}
	for _, c := range info.GetCounters() {
		if err := m.addCells(&m.counters, "counter", c, c.GetSize(), 0, c.GetSpec().GetUnit().String(), newObject); err != nil {
			return nil, err
		}
	}
	for _, c := range info.GetDirectCounters() {
		if err := m.addCells(&m.counters, "direct counter", c, 0, c.GetDirectTableId(), c.GetSpec().GetUnit().String(), newObject); err != nil {
			return nil, err
		}
	}
	for _, c := range info.GetMeters() {
		if err := m.addCells(&m.meters, "meter", c, c.GetSize(), 0, c.GetSpec().GetUnit().String(), newObject); err != nil {
			return nil, err
		}
	}
	for _, c := range info.GetDirectMeters() {
		if err := m.addCells(&m.meters, "direct meter", c, 0, c.GetDirectTableId(), c.GetSpec().GetUnit().String(), newObject); err != nil {
			return nil, err
		}
	}
	for _, p := range info.GetControllerPacketMetadata() {
		h := new(header)
		if h.object, err = newObject("packet metadata", p.GetPreamble()); err != nil {
			return nil, err
		}
		if h.name != "packet_in" && h.name != "packet_out" {
			return nil, fmt.Errorf("packet metadata %s is neither packet_in nor packet_out", h.name)
		}
		for _, p := range p.GetMetadata() {
			f := &field{id: p.GetId(), name: p.GetName(), width: int(p.GetBitwidth())}
			f.pad = slices.Contains(p.GetAnnotations(), "@padding") || f.name == "pad" || strings.HasPrefix(f.name, "_pad")
			if err := m.addField(&h.fields, f, p.GetTypeName(), info.GetTypeInfo()); err != nil {
				return nil, fmt.Errorf("packet metadata %s: %w", h.name, err)
			}
		}
		m.headers = append(m.headers, h)
	}
	return m, m.checkNames()
}

// shortenActions leaves out the control's name where the action's own is
// enough. Aliases are unique among all actions, and so longer than needed
// among those of tables.
func (m *model) shortenActions() {
	count := make(map[string]int)
	short := func(a *action) string { return camel(a.name[strings.LastIndexByte(a.name, '.')+1:]) }
	for _, a := range m.actions {
		count[short(a)]++
	}
	for _, a := range m.actions {
		if s := short(a); count[s] == 1 {
			a.goName = s
		}
	}
}

// addEnums adds the enumerations of the type information that the P4 source
// did not already give.
func (m *model) addEnums(ti *p4config.P4TypeInfo) error {
	for name, s := range ti.GetSerializableEnums() {
		e := &enum{name: name, width: int(s.GetUnderlyingType().GetBitwidth())}
		if e.width < 1 || e.width > 64 {
			return fmt.Errorf("enum %s: width %d", name, e.width)
		}
		for _, p := range s.GetMembers() {
			var v uint64
			for _, b := range p.GetValue() {
				v = v<<8 | uint64(b)
			}
			e.members = append(e.members, constant{p.GetName(), v})
		}
		i := slices.IndexFunc(m.enums, func(o *enum) bool { return o.name == name })
		switch {
		case i < 0:
			m.enums = append(m.enums, e)
		case m.enums[i].width != e.width || !slices.Equal(m.enums[i].members, e.members):
			return fmt.Errorf("enum %s differs between P4Info and P4 source", name)
		}
	}
	slices.SortFunc(m.enums, func(a, b *enum) int { return strings.Compare(a.name, b.name) })
	for _, e := range m.enums {
		seen := make(map[uint64]string)
		for _, c := range e.members {
			if other, taken := seen[c.value]; taken {
				return fmt.Errorf("enum %s: %s has the value of %s", e.name, c.name, other)
			}
			seen[c.value] = c.name
		}
		if len(e.members) == 0 {
			return fmt.Errorf("enum %s has no members", e.name)
		}
	}
	return nil
}

func (m *model) enum(name string) *enum {
	for _, e := range m.enums {
		if e.name == name {
			return e
		}
	}
	return nil
}

// addField checks f, finds its enumeration, and appends it to list.
func (m *model) addField(list *[]*field, f *field, typ *p4config.P4NamedType, ti *p4config.P4TypeInfo) error {
	short := f.name[strings.LastIndexByte(f.name, '.')+1:]
	if short == "$valid$" {
		short = strings.TrimSuffix(f.name, ".$valid$")
		short = short[strings.LastIndexByte(short, '.')+1:] + "_valid"
	}
	f.goName = camel(short)
	if f.id == 0 || f.name == "" || f.width < 1 {
		return fmt.Errorf("field %q has id %d and %d bits", f.name, f.id, f.width)
	}
	if name := typ.GetName(); name != "" {
		f.enum = m.enum(name)
		if nt := ti.GetNewTypes()[name]; f.enum == nil && nt.GetTranslatedType() != nil {
			return fmt.Errorf("field %s: translated type %s is not supported", f.name, name)
		}
	}
	if f.enum == nil {
		f.enum = m.enum(f.goName)
	}
	if f.enum == nil {
		f.enum = m.enum(enumOfField[short])
	}
	for _, o := range *list {
		if o.id == f.id || o.goName == f.goName {
			return fmt.Errorf("fields %s (id %d) and %s (id %d) have the same id or Go name", o.name, o.id, f.name, f.id)
		}
	}
	*list = append(*list, f)
	return nil
}

var matchKinds = map[p4config.MatchField_MatchType]string{
	p4config.MatchField_EXACT:    "Exact",
	p4config.MatchField_LPM:      "LPM",
	p4config.MatchField_TERNARY:  "Ternary",
	p4config.MatchField_RANGE:    "Range",
	p4config.MatchField_OPTIONAL: "Optional",
}

func (m *model) newTable(p *p4config.Table, ti *p4config.P4TypeInfo,
	newObject func(string, *p4config.Preamble) (object, error)) (*table, error) {
	t := &table{
		size:         p.GetSize(),
		constDefault: p.GetConstDefaultActionId(),
		idle:         p.GetIdleTimeoutBehavior() == p4config.Table_NOTIFY_CONTROL,
		isConst:      p.GetIsConstTable(),
	}
	var err error
	if t.object, err = newObject("table", p.GetPreamble()); err != nil {
		return nil, err
	}
	for _, p := range p.GetMatchFields() {
		f := &field{id: p.GetId(), name: p.GetName(), width: int(p.GetBitwidth()), kind: matchKinds[p.GetMatchType()]}
		if f.kind == "" || f.kind == "Range" && f.width > 64 {
			return nil, fmt.Errorf("table %s: field %s: %v of %d bits is not supported", t.name, f.name, p.GetMatchType(), f.width)
		}
		if err := m.addField(&t.fields, f, p.GetTypeName(), ti); err != nil {
			return nil, fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	if id := p.GetImplementationId(); id != 0 {
		i := slices.IndexFunc(m.profiles, func(o *profile) bool { return o.id == id })
		if i < 0 {
			return nil, fmt.Errorf("table %s: no action profile has id %#x", t.name, id)
		}
		t.profile = m.profiles[i]
		t.profile.tables = append(t.profile.tables, t)
	}
	for _, r := range p.GetActionRefs() {
		i := slices.IndexFunc(m.actions, func(a *action) bool { return a.id == r.GetId() })
		if i < 0 {
			return nil, fmt.Errorf("table %s: no action has id %#x", t.name, r.GetId())
		}
		a := m.actions[i]
		t.actions = append(t.actions, actionRef{a, r.GetScope()})
		if t.profile == nil {
			a.tables = append(a.tables, t)
		} else if r.GetScope() != p4config.ActionRef_DEFAULT_ONLY && !slices.Contains(t.profile.actions, a) {
			t.profile.actions = append(t.profile.actions, a)
		}
	}
	return t, nil
}

func (m *model) addCells(list *[]*cells, what string, p interface{ GetPreamble() *p4config.Preamble },
	size int64, tableID uint32, unit string, newObject func(string, *p4config.Preamble) (object, error)) error {
	c := &cells{size: size, unit: unit}
	var err error
	if c.object, err = newObject(what, p.GetPreamble()); err != nil {
		return err
	}
	if tableID == 0 {
		if size < 1 {
			return fmt.Errorf("%s %s has %d cells", what, c.name, size)
		}
		*list = append(*list, c)
		return nil
	}
	i := slices.IndexFunc(m.tables, func(t *table) bool { return t.id == tableID })
	if i < 0 {
		return fmt.Errorf("%s %s: no table has id %#x", what, c.name, tableID)
	}
	c.table = m.tables[i]
	if list == &m.counters {
		c.table.counter = c
	} else {
		c.table.meter = c
	}
	*list = append(*list, c)
	return nil
}

// checkNames refuses objects that would get the same Go name. An action whose
// name is taken by an enumeration, header or type of the runtime is renamed.
func (m *model) checkNames() error {
	taken := make(map[string]string)
	for _, name := range []string{"Action", "ActionInfo", "ActionRef", "ActionScope", "CellInfo", "CounterData",
		"DefaultOnly", "Entry", "FieldInfo", "GroupMember", "HeaderInfo", "LPM", "Match", "MatchKind",
		"MeterConfig", "Object", "Optional", "ProfileInfo", "Range", "TableAndDefault", "TableInfo",
		"TableOnly", "Ternary", "Unit", "Between", "Some", "Tables", "Actions", "Profiles", "Counters", "Meters"} {
		taken[name] = "the runtime"
	}
	take := func(what, name string) error {
		if other, is := taken[name]; is {
			return fmt.Errorf("%s and %s have the Go name %s", what, other, name)
		}
		taken[name] = what
		return nil
	}
	var names [][2]string
	for _, e := range m.enums {
		names = append(names, [2]string{"enum " + e.name, e.name})
		for _, c := range e.members {
			names = append(names, [2]string{"member of enum " + e.name, e.name + camel(c.name)})
		}
	}
	for _, c := range m.constants {
		names = append(names, [2]string{"constant " + c.name, camel(c.name)})
	}
	for _, h := range m.headers {
		names = append(names, [2]string{"header " + h.name, h.goName})
	}
	for _, t := range m.tables {
		for _, suffix := range []string{"Key", "Action", "Entry"} {
			names = append(names, [2]string{"table " + t.name, t.goName + suffix})
		}
	}
	for _, p := range m.profiles {
		for _, suffix := range []string{"Action", "Member", "Group", "MemberRef", "GroupRef", "OneShot", "Weighted"} {
			names = append(names, [2]string{"action profile " + p.name, p.goName + suffix})
		}
	}
	for _, list := range []struct {
		suffix string
		cells  []*cells
	}{{"Counter", m.counters}, {"Meter", m.meters}} {
		for _, c := range list.cells {
			if !strings.HasSuffix(c.goName, list.suffix) {
				c.goName += list.suffix
			}
			names = append(names, [2]string{list.suffix + " " + c.name, c.goName})
		}
	}
	for _, n := range names {
		if err := take(n[0], n[1]); err != nil {
			return err
		}
	}
	for _, a := range m.actions {
		if _, is := taken[a.goName]; is {
			a.goName += "Action"
		}
		if err := take("action "+a.name, a.goName); err != nil {
			return err
		}
	}
	return nil
}

// initialisms are written as Go writes them.
var initialisms = map[string]string{
	"id": "ID", "ip": "IP", "ipv4": "IPv4", "ipv6": "IPv6", "tcp": "TCP", "udp": "UDP", "icmp": "ICMP",
	"dns": "DNS", "http": "HTTP", "vlan": "VLAN", "mac": "MAC", "mtu": "MTU", "mss": "MSS", "ttl": "TTL",
	"cpu": "CPU", "crc": "CRC", "crc32": "CRC32", "unid": "UNID", "l4": "L4", "rsa2048": "RSA2048",
	"syn": "SYN", "arp": "ARP", "ecmp": "ECMP",
}

// camel turns a P4 name into an exported Go name.
func camel(name string) string {
	var b strings.Builder
	for _, part := range strings.FieldsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		switch upper := strings.ToUpper(part) == part; {
		case initialisms[strings.ToLower(part)] != "":
			b.WriteString(initialisms[strings.ToLower(part)])
		case upper:
			b.WriteString(part[:1] + strings.ToLower(part[1:]))
		default:
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	if s := b.String(); s != "" && !unicode.IsDigit(rune(s[0])) {
		return s
	}
	return "X" + b.String()
}
