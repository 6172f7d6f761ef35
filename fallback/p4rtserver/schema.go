package p4rtserver

import (
	"fmt"

	configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
)

// maxWidth bounds a field's width in bits: 256 bytes, as P4 programs use for
// keys and signatures, with much room.
const maxWidth = 1 << 16

// schema is what the checks need of a P4Info, by id. It does not change.
type schema struct {
	tables    []*tableInfo
	tableByID map[uint32]*tableInfo
	actions   map[uint32]*actionInfo

	profiles    []*profileInfo
	profileByID map[uint32]*profileInfo

	counters    []*arrayInfo
	counterByID map[uint32]*arrayInfo
	meters      []*arrayInfo
	meterByID   map[uint32]*arrayInfo

	// unsupported names what no target here serves: digests, registers,
	// value sets, externs.
	unsupported map[uint32]object

	packetIn, packetOut []fieldInfo
}

// object is a P4Info object's identity, as errors name it.
type object struct {
	id   uint32
	kind string
	name string
}

func (o object) String() string { return fmt.Sprintf("%s %q (%#x)", o.kind, o.name, o.id) }

// fieldInfo is a match field, an action parameter or a packet metadata field.
type fieldInfo struct {
	id    uint32
	width int
	kind  MatchKind
	name  string
}

func (f *fieldInfo) String() string { return fmt.Sprintf("%q (%d)", f.name, f.id) }

type actionInfo struct {
	object
	params []fieldInfo
}

type tableInfo struct {
	object
	fields       []fieldInfo
	prioritized  bool
	actions      map[uint32]actionRef
	constDefault bool
	isConst      bool
	idle         bool
	counter      bool
	meter        bool
	profile      *profileInfo
}

type actionRef struct {
	*actionInfo
	scope configv1.ActionRef_Scope
}

type profileInfo struct {
	object
	selector     bool
	size         int64
	maxGroupSize int64
	actions      map[uint32]actionRef
}

// arrayInfo is an indirect counter or meter.
type arrayInfo struct {
	object
	size int64
}

// newSchema checks that a P4Info is consistent in itself: ids are set and
// unique within their kind, references lead somewhere, widths are given.
// Errors are ErrInvalidArgument, or ErrUnimplemented for what the P4Info may
// hold and the server does not know.
func newSchema(info *configv1.P4Info) (*schema, error) {
	s := &schema{
		tableByID:   make(map[uint32]*tableInfo),
		actions:     make(map[uint32]*actionInfo),
		profileByID: make(map[uint32]*profileInfo),
		counterByID: make(map[uint32]*arrayInfo),
		meterByID:   make(map[uint32]*arrayInfo),
		unsupported: make(map[uint32]object),
	}
	if err := s.addActions(info); err != nil {
		return nil, err
	}
	if err := s.addProfiles(info); err != nil {
		return nil, err
	}
	if err := s.addArrays(info); err != nil {
		return nil, err
	}
	if err := s.addTables(info); err != nil {
		return nil, err
	}
	if err := s.addHeaders(info); err != nil {
		return nil, err
	}
	for _, x := range info.GetDigests() {
		s.addUnsupported("digest", x.GetPreamble())
	}
	for _, x := range info.GetRegisters() {
		s.addUnsupported("register", x.GetPreamble())
	}
	for _, x := range info.GetValueSets() {
		s.addUnsupported("value set", x.GetPreamble())
	}
	return s, nil
}

func (s *schema) addUnsupported(kind string, p *configv1.Preamble) {
	s.unsupported[p.GetId()] = object{p.GetId(), kind, p.GetName()}
}

// identify checks an object's preamble.
func identify[T any](kind string, p *configv1.Preamble, seen map[uint32]T) (object, error) {
	o := object{p.GetId(), kind, p.GetName()}
	if o.id == 0 {
		return o, failf(ErrInvalidArgument, "P4Info: %s %q has id 0", kind, o.name)
	}
	if _, dup := seen[o.id]; dup {
		return o, failf(ErrInvalidArgument, "P4Info: %v: the id is used twice", o)
	}
	return o, nil
}

// addField checks a field and appends it to list.
func addField(owner object, list []fieldInfo, f fieldInfo) ([]fieldInfo, error) {
	if f.id == 0 {
		return nil, failf(ErrInvalidArgument, "P4Info: %v: field %q has id 0", owner, f.name)
	}
	if f.width < 1 || f.width > maxWidth {
		return nil, failf(ErrInvalidArgument, "P4Info: %v: field %v has a width of %d bits, expected 1 to %d", owner, &f, f.width, maxWidth)
	}
	for i := range list {
		if list[i].id == f.id {
			return nil, failf(ErrInvalidArgument, "P4Info: %v: field id %d is used twice", owner, f.id)
		}
	}
	return append(list, f), nil
}

func (s *schema) addActions(info *configv1.P4Info) error {
	for _, x := range info.GetActions() {
		o, err := identify("action", x.GetPreamble(), s.actions)
		if err != nil {
			return err
		}
		a := &actionInfo{object: o}
		for _, p := range x.GetParams() {
			a.params, err = addField(o, a.params, fieldInfo{id: p.GetId(), name: p.GetName(), width: int(p.GetBitwidth())})
			if err != nil {
				return err
			}
		}
		s.actions[o.id] = a
	}
	return nil
}

func (s *schema) addProfiles(info *configv1.P4Info) error {
	for _, x := range info.GetActionProfiles() {
		o, err := identify("action profile", x.GetPreamble(), s.profileByID)
		if err != nil {
			return err
		}
		p := &profileInfo{
			object:       o,
			selector:     x.GetWithSelector(),
			size:         x.GetSize(),
			maxGroupSize: int64(x.GetMaxGroupSize()),
		}
		if p.size < 0 || p.maxGroupSize < 0 {
			return failf(ErrInvalidArgument, "P4Info: %v has a negative size", o)
		}
		s.profiles = append(s.profiles, p)
		s.profileByID[o.id] = p
	}
	return nil
}

func (s *schema) addArrays(info *configv1.P4Info) error {
	add := func(kind string, p *configv1.Preamble, size int64, list *[]*arrayInfo, byID map[uint32]*arrayInfo) error {
		o, err := identify(kind, p, byID)
		if err != nil {
			return err
		}
		if size < 0 {
			return failf(ErrInvalidArgument, "P4Info: %v has a negative size", o)
		}
		byID[o.id] = &arrayInfo{o, size}
		*list = append(*list, byID[o.id])
		return nil
	}
	for _, x := range info.GetCounters() {
		if err := add("counter", x.GetPreamble(), x.GetSize(), &s.counters, s.counterByID); err != nil {
			return err
		}
	}
	for _, x := range info.GetMeters() {
		if err := add("meter", x.GetPreamble(), x.GetSize(), &s.meters, s.meterByID); err != nil {
			return err
		}
	}
	return nil
}

func (s *schema) addTables(info *configv1.P4Info) error {
	directCounters := make(map[uint32]bool)
	for _, x := range info.GetDirectCounters() {
		directCounters[x.GetPreamble().GetId()] = true
	}
	directMeters := make(map[uint32]bool)
	for _, x := range info.GetDirectMeters() {
		directMeters[x.GetPreamble().GetId()] = true
	}
	for _, x := range info.GetTables() {
		o, err := identify("table", x.GetPreamble(), s.tableByID)
		if err != nil {
			return err
		}
		t := &tableInfo{
			object:       o,
			actions:      make(map[uint32]actionRef),
			constDefault: x.GetConstDefaultActionId() != 0,
			isConst:      x.GetIsConstTable(),
			idle:         x.GetIdleTimeoutBehavior() == configv1.Table_NOTIFY_CONTROL,
		}
		if x.GetSize() < 0 {
			return failf(ErrInvalidArgument, "P4Info: %v has a negative size", o)
		}
		for _, m := range x.GetMatchFields() {
			f := fieldInfo{id: m.GetId(), name: m.GetName(), width: int(m.GetBitwidth())}
			switch m.GetMatchType() {
			case configv1.MatchField_EXACT:
				f.kind = MatchExact
			case configv1.MatchField_LPM:
				f.kind = MatchLPM
			case configv1.MatchField_TERNARY:
				f.kind = MatchTernary
			case configv1.MatchField_RANGE:
				f.kind = MatchRange
			case configv1.MatchField_OPTIONAL:
				f.kind = MatchOptional
			default:
				return failf(ErrUnimplemented, "P4Info: %v: field %v has match type %v %q, expected exact, lpm, ternary, range or optional", o, &f, m.GetMatchType(), m.GetOtherMatchType())
			}
			t.prioritized = t.prioritized || f.kind >= MatchTernary
			if t.fields, err = addField(o, t.fields, f); err != nil {
				return err
			}
		}
		for _, r := range x.GetActionRefs() {
			a, ok := s.actions[r.GetId()]
			if !ok {
				return failf(ErrInvalidArgument, "P4Info: %v refers to action %#x, which is not there", o, r.GetId())
			}
			t.actions[r.GetId()] = actionRef{a, r.GetScope()}
		}
		for _, id := range x.GetDirectResourceIds() {
			switch {
			case directCounters[id]:
				t.counter = true
			case directMeters[id]:
				t.meter = true
			default:
				return failf(ErrInvalidArgument, "P4Info: %v refers to direct resource %#x, which is no direct counter or meter", o, id)
			}
		}
		if id := x.GetImplementationId(); id != 0 {
			p, ok := s.profileByID[id]
			if !ok {
				return failf(ErrInvalidArgument, "P4Info: %v refers to action profile %#x, which is not there", o, id)
			}
			t.profile = p
			p.actions = t.actions // the same for all tables of a profile
		}
		s.tables = append(s.tables, t)
		s.tableByID[o.id] = t
	}
	return nil
}

func (s *schema) addHeaders(info *configv1.P4Info) error {
	for _, x := range info.GetControllerPacketMetadata() {
		var list *[]fieldInfo
		switch x.GetPreamble().GetName() {
		case "packet_in":
			list = &s.packetIn
		case "packet_out":
			list = &s.packetOut
		default:
			continue
		}
		o := object{x.GetPreamble().GetId(), "packet header", x.GetPreamble().GetName()}
		if *list != nil {
			return failf(ErrInvalidArgument, "P4Info: %v is there twice", o)
		}
		for _, m := range x.GetMetadata() {
			var err error
			*list, err = addField(o, *list, fieldInfo{id: m.GetId(), name: m.GetName(), width: int(m.GetBitwidth())})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// find is the position of a field by its id, or -1. P4Infos number fields from
// 1 in order, so the first guess is nearly always right.
func find(list []fieldInfo, id uint32) int {
	if i := int(id) - 1; i >= 0 && i < len(list) && list[i].id == id {
		return i
	}
	for i := range list {
		if list[i].id == id {
			return i
		}
	}
	return -1
}

// missing is the error for an id that is not in the P4Info, or that is of a
// kind that is not served.
func (s *schema) missing(kind string, id uint32) error {
	if o, ok := s.unsupported[id]; ok && o.kind == kind {
		return failf(ErrUnimplemented, "%v: this target serves no %ss", o, kind)
	}
	return failf(ErrInvalidArgument, "no %s has id %#x in the P4Info", kind, id)
}

func (s *schema) table(id uint32) (*tableInfo, error) {
	if t, ok := s.tableByID[id]; ok {
		return t, nil
	}
	return nil, s.missing("table", id)
}

func (s *schema) profile(id uint32) (*profileInfo, error) {
	if p, ok := s.profileByID[id]; ok {
		return p, nil
	}
	return nil, s.missing("action profile", id)
}
