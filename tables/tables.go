// Package tables is what both ends of P4Runtime share: every table, action,
// action profile, counter, meter and packet header of the pipeline as a typed
// value that encodes to and decodes from P4Runtime's messages.
//
// All files named *.gen.go are generated from the P4Info by
//
//	go run ./tables/gen -p4info p4src/build/countersign.p4info.txtpb -out tables
//
// and a test proves that they are fresh. For a table "session_v4" there are
//
//	SessionV4Key      the match fields
//	SessionV4Action   the actions that the table can hold
//	SessionV4Entry    key, action and what else an entry has in this table
//	DecodeSessionV4   the way back from a p4.v1.TableEntry
//
// and for an action "admit" there is a struct Admit with its parameters.
// DecodeEntry decodes an entry of any table.
//
// A match field or parameter of at most 64 bits is the smallest unsigned
// integer that holds it, an enumeration of the P4 program is a type of its
// own, and a wider one is a big-endian byte array, so that keys are comparable
// and serve as map keys. The zero value of LPM, Ternary, Range and Optional
// matches everything.
//
// Encoding gives canonical byte strings (P4Runtime specification, "Bytestrings":
// the shortest that holds the value, one zero byte for 0); decoding takes
// leading zeros, as the specification demands, and refuses an empty string and
// a value that does not fit. An identifier or name that the P4Info lacks is an
// error everywhere and never becomes id 0.
//
// A target that holds entries without protobuf around them uses the methods
// that stand behind all this: DecodeMatch and AppendMatch of each key,
// DecodeParams and AppendParams of each action, DecodeMetadata and
// AppendMetadata of each packet header. They take and give byte strings in the
// order of the P4Info and allocate nothing.
package tables

import (
	"errors"
	"fmt"
)

// What is wrong with a value, entry or name; errors of this package wrap one
// of them and name the table, action or header, the field and its id.
var (
	// ErrUnknownName: no object of that kind has the name.
	ErrUnknownName = errors.New("unknown name")
	// ErrUnknownID: no object, match field, parameter or metadata has the id.
	ErrUnknownID = errors.New("unknown id")
	// ErrWidth: the value has more bits than its field, or no byte at all.
	ErrWidth = errors.New("wrong width")
	// ErrMissing: a mandatory field, parameter or action was not given.
	ErrMissing = errors.New("missing")
	// ErrDuplicate: a field or parameter was given twice.
	ErrDuplicate = errors.New("given twice")
	// ErrMatch: a match of the wrong kind, a prefix longer than the field, a
	// value outside its mask, or a range that ends before it starts.
	ErrMatch = errors.New("invalid match")
	// ErrAction: the table does not have that action, or not in that place.
	ErrAction = errors.New("action not allowed")
	// ErrPriority: a priority where there must be none, or none where the
	// table needs one.
	ErrPriority = errors.New("wrong priority")
	// ErrValue: a number outside its bounds, such as an index or a timeout, or
	// one that the enumeration does not name.
	ErrValue = errors.New("value out of range")
	// ErrUnsupported: an attribute of an entry that its table does not have.
	ErrUnsupported = errors.New("not supported by the table")
)

// MatchKind is how a match field compares.
type MatchKind uint8

// The match kinds of P4Runtime. MatchAny, the zero value, is a field that was
// left out.
const (
	MatchAny MatchKind = iota
	MatchExact
	MatchLPM
	MatchTernary
	MatchRange
	MatchOptional
)

// String returns the P4 name of the kind.
func (k MatchKind) String() string {
	switch k {
	case MatchAny:
		return "any"
	case MatchExact:
		return "exact"
	case MatchLPM:
		return "lpm"
	case MatchTernary:
		return "ternary"
	case MatchRange:
		return "range"
	case MatchOptional:
		return "optional"
	}
	return fmt.Sprintf("match_kind_%d", uint8(k))
}

// FieldInfo describes a match field, an action parameter or a metadata field
// of a packet header.
type FieldInfo struct {
	ID    uint32
	Name  string
	Width int       // in bits
	Kind  MatchKind // of match fields only
	Enum  string    // name of its enumeration in the P4 program, or ""
}

// Object names one object of the P4Info.
type Object struct {
	ID    uint32
	Name  string // full name in the P4 program
	Alias string // shortest unique suffix of Name
}

// String gives alias and id, as errors and logs show them.
func (o Object) String() string { return fmt.Sprintf("%s (id %#x)", o.Alias, o.ID) }

func (o *Object) object() *Object { return o }

// ActionScope is where a table can hold an action.
type ActionScope uint8

// The scopes of P4Runtime's ActionRef.
const (
	TableAndDefault ActionScope = iota
	TableOnly
	DefaultOnly
)

// ActionRef is an action as a table has it.
type ActionRef struct {
	*ActionInfo
	Scope ActionScope
}

// TableInfo describes a table.
type TableInfo struct {
	Object
	Fields               []FieldInfo
	Actions              []ActionRef
	Size                 int64  // entries
	ProfileID            uint32 // action profile that implements it, or 0
	DirectCounterID      uint32 // or 0
	DirectMeterID        uint32 // or 0
	ConstDefaultActionID uint32 // or 0
	IdleTimeout          bool   // entries can have an idle timeout
	NeedsPriority        bool   // has a ternary, range or optional field
	Const                bool   // entries are fixed by the P4 program
}

// Field returns the match field of that name.
func (t *TableInfo) Field(name string) (*FieldInfo, error) {
	return fieldByName(t.Fields, "table", t.Object, "match field", name)
}

// ActionInfo describes an action.
type ActionInfo struct {
	Object
	Params []FieldInfo
}

// Param returns the parameter of that name.
func (a *ActionInfo) Param(name string) (*FieldInfo, error) {
	return fieldByName(a.Params, "action", a.Object, "parameter", name)
}

// ProfileInfo describes an action profile.
type ProfileInfo struct {
	Object
	TableIDs     []uint32
	Actions      []*ActionInfo // that a member can have
	Selector     bool          // has groups
	Size         int64         // members, or summed weights of all groups
	MaxGroupSize int32         // summed weights of one group; 0: no bound of its own
}

// Unit is what a counter counts or a meter limits.
type Unit uint8

// The units of P4Runtime; both is of counters only.
const (
	UnitBytes Unit = iota + 1
	UnitPackets
	UnitBoth
)

// CellInfo describes a counter or meter: an array of Size cells, or one cell
// for each entry of table TableID.
type CellInfo struct {
	Object
	Size    int64
	TableID uint32
	Unit    Unit
}

// HeaderInfo describes the metadata of packet-in or packet-out.
type HeaderInfo struct {
	Object
	Fields []FieldInfo
}

// TableByName finds a table by full name or alias.
func TableByName(name string) (*TableInfo, error) { return byName("table", tableInfos, name) }

// TableByID finds a table by id.
func TableByID(id uint32) (*TableInfo, error) { return byID("table", tableInfos, id) }

// ActionByName finds an action by full name or alias.
func ActionByName(name string) (*ActionInfo, error) { return byName("action", actionInfos, name) }

// ActionByID finds an action by id.
func ActionByID(id uint32) (*ActionInfo, error) { return byID("action", actionInfos, id) }

// ProfileByName finds an action profile by full name or alias.
func ProfileByName(name string) (*ProfileInfo, error) {
	return byName("action profile", profileInfos, name)
}

// ProfileByID finds an action profile by id.
func ProfileByID(id uint32) (*ProfileInfo, error) {
	return byID("action profile", profileInfos, id)
}

// CounterByName finds a counter, direct or not, by full name or alias.
func CounterByName(name string) (*CellInfo, error) { return byName("counter", counterInfos, name) }

// CounterByID finds a counter, direct or not, by id.
func CounterByID(id uint32) (*CellInfo, error) { return byID("counter", counterInfos, id) }

// MeterByName finds a meter, direct or not, by full name or alias.
func MeterByName(name string) (*CellInfo, error) { return byName("meter", meterInfos, name) }

// MeterByID finds a meter, direct or not, by id.
func MeterByID(id uint32) (*CellInfo, error) { return byID("meter", meterInfos, id) }

// Tables returns all tables in the order of the P4Info. The caller must not
// change what they point to.
func Tables() []*TableInfo { return tableInfos }

// Actions returns all actions in the order of the P4Info. The caller must not
// change what they point to.
func Actions() []*ActionInfo { return actionInfos }

// Profiles returns all action profiles in the order of the P4Info. The caller
// must not change what they point to.
func Profiles() []*ProfileInfo { return profileInfos }

// Counters returns all counters, indirect before direct. The caller must not
// change what they point to.
func Counters() []*CellInfo { return counterInfos }

// Meters returns all meters, indirect before direct. The caller must not
// change what they point to.
func Meters() []*CellInfo { return meterInfos }

func byName[T interface{ object() *Object }](what string, all []T, name string) (T, error) {
	for _, v := range all {
		if o := v.object(); name != "" && (o.Alias == name || o.Name == name) {
			return v, nil
		}
	}
	var none T
	return none, fmt.Errorf("tables: %s %q: %w", what, name, ErrUnknownName)
}

func byID[T interface{ object() *Object }](what string, all []T, id uint32) (T, error) {
	for _, v := range all {
		if v.object().ID == id {
			return v, nil
		}
	}
	var none T
	return none, fmt.Errorf("tables: %s id %#x: %w", what, id, ErrUnknownID)
}

func fieldByName(fields []FieldInfo, what string, o Object, kind, name string) (*FieldInfo, error) {
	for i := range fields {
		if fields[i].Name == name && name != "" {
			return &fields[i], nil
		}
	}
	return nil, fmt.Errorf("tables: %s %v: %s %q: %w", what, o, kind, name, ErrUnknownName)
}
