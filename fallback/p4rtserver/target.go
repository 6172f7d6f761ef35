package p4rtserver

import (
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// Target is a data plane that the server drives. The server calls Load one at
// a time.
type Target interface {
	// Load builds the pipeline that cfg describes, with its const entries and
	// original default actions and nothing else, beside the one that is
	// forwarding now: packets do not reach it before Activate. cfg has a
	// P4Info that the server has checked to be consistent in itself, and is
	// not to be changed; it stays valid for as long as the pipeline is used.
	// An error says why the target cannot realise cfg.
	//
	// Events of the pipeline go to up, from any goroutine.
	Load(cfg *p4v1.ForwardingPipelineConfig, up Upcalls) (Pipeline, error)
}

// Pipeline is one loaded forwarding pipeline. The server serialises all calls
// of methods that change it, and runs the reading ones (Lookup, Entries,
// Counter, Meter) concurrently with each other but never with a change.
// PacketOut is called at any time between Activate and Close. Packets are
// forwarded concurrently with everything.
//
// What the server passes has been checked against the P4Info: ids exist, an
// action is allowed where it stands, values are canonical (see Canonical) and
// fit their width, slices have the order and the length of the P4Info's lists.
// Arguments are only valid during the call: a pipeline copies what it keeps.
//
// Errors are the sentinels of this package, wrapped with what an operator needs
// to know; any other error is reported as INTERNAL.
type Pipeline interface {
	// Activate makes the pipeline the one that forwards, in place of any
	// other pipeline of the target. Entries may have been written before.
	Activate() error
	// Close discards the pipeline. When it follows another's Activate,
	// packets no longer reach this one.
	Close()

	// WriteTable inserts, modifies or deletes an entry.
	//
	//   - Insert: ErrAlreadyExists, ErrResourceExhausted.
	//   - Modify: ErrNotFound. Action.Kind 0 keeps the action; with Default
	//     set it restores the default entry that the program declares.
	//     Meter nil resets the direct meter, Counter nil leaves the direct
	//     counter, as the specification wants (section 9.1.6).
	//   - Delete: ErrNotFound. Only the key is set.
	//
	// The key is TableID, Match and Priority, or TableID and Default.
	WriteTable(op Op, e *Entry) error
	// SetDirectCounter writes e.Counter to the entry with the key of e.
	SetDirectCounter(e *Entry) error
	// SetDirectMeter writes e.Meter to the entry with the key of e (nil: the
	// default, all packets green), and clears its counters per colour if
	// e.MeterCounters is not nil.
	SetDirectMeter(e *Entry) error
	// Flush ends a batch of changes: when it returns, packets see them. It is
	// called before a Write is answered.
	Flush()

	// Lookup fills in the entry with the key of e: action, idle timeout,
	// metadata, and what want names. What it fills in is only read until the
	// next call. ErrNotFound if there is none.
	Lookup(e *Entry, want Want) error
	// Entries yields the entries of a table, const ones included, without the
	// default entry, until yield returns false. The entry is only valid
	// during the call of yield.
	Entries(tableID uint32, want Want, yield func(*Entry) bool) error

	// WriteMember inserts, modifies or deletes a member of an action profile.
	// The server keeps what a read needs and the rules on references.
	WriteMember(op Op, m *Member) error
	// WriteGroup inserts, modifies or deletes a group of an action selector.
	WriteGroup(op Op, g *Group) error

	// Counter reads a cell of an indirect counter; index is in range.
	Counter(id uint32, index int64) (CounterData, error)
	// SetCounter writes a cell of an indirect counter.
	SetCounter(id uint32, index int64, d CounterData) error
	// Meter reads a cell of an indirect meter; a nil config is the default.
	// Counters per colour are wanted with WantMeterCounters only.
	Meter(id uint32, index int64, want Want) (*MeterConfig, *MeterCounters, error)
	// SetMeter writes a cell of an indirect meter; nil is the default. It
	// clears the counters per colour if clear is set.
	SetMeter(id uint32, index int64, c *MeterConfig, clear bool) error

	// WriteMulticastGroup inserts, modifies or deletes a multicast group. The
	// server knows which exist.
	WriteMulticastGroup(op Op, id uint32, replicas []Replica) error
	// WriteCloneSession inserts, modifies or deletes a clone session. The
	// server knows which exist.
	WriteCloneSession(op Op, s *CloneSession) error

	// PacketOut takes a packet from the controller. metadata has one value
	// for each field of the P4Info's packet_out header, in its order.
	PacketOut(metadata [][]byte, payload []byte) error
}

// Upcalls takes the events of a pipeline. Its methods may be called from any
// goroutine, from within a Pipeline's method too; they copy what they need and
// never block: what a slow controller does not read is dropped and counted.
type Upcalls interface {
	// PacketIn hands a packet to the primary of each role. metadata has one
	// value for each field of the P4Info's packet_in header, in its order;
	// leading zeros are allowed.
	PacketIn(metadata [][]byte, payload []byte)
	// IdleTimeout reports entries that no packet has hit for their timeout:
	// key, IdleTimeoutNs and Metadata are read. Give those of a scan at once.
	IdleTimeout(entries []Entry)
}

// Op is the type of an update.
type Op uint8

// The updates, numbered as in p4.v1.Update.Type.
const (
	Insert Op = Op(p4v1.Update_INSERT)
	Modify Op = Op(p4v1.Update_MODIFY)
	Delete Op = Op(p4v1.Update_DELETE)
)

// Want is a set of the costly parts of a read.
type Want uint8

// The parts that a read names.
const (
	WantCounter       Want = 1 << iota // Entry.Counter
	WantMeter                          // Entry.Meter
	WantMeterCounters                  // Entry.MeterCounters
	WantLastHit                        // Entry.SinceLastHitNs
)

// Entry is a table entry. The zero value is no valid entry.
type Entry struct {
	TableID uint32
	// Default marks the default entry; Match is then empty.
	Default bool
	// Match has one element for each match field of the table in the P4Info,
	// in its order.
	Match []FieldMatch
	// Priority is greater than 0 in tables with a ternary, range or optional
	// field, where the greater one wins, and 0 in others.
	Priority int32
	Action   TableAction
	// IdleTimeoutNs is 0 where the entry does not time out.
	IdleTimeoutNs int64
	// SinceLastHitNs is the time since a packet hit the entry, or since it
	// was written; read only.
	SinceLastHitNs int64
	// Metadata is the controller's, opaque, returned by a read.
	Metadata      []byte
	Counter       *CounterData
	Meter         *MeterConfig
	MeterCounters *MeterCounters
}

// MatchKind is how a field is compared.
type MatchKind uint8

// The kinds of matches. MatchAny is an omitted field, whatever its kind.
const (
	MatchAny MatchKind = iota
	MatchExact
	MatchLPM
	MatchTernary
	MatchRange
	MatchOptional
)

// FieldMatch is one field of a key. The zero value matches any packet.
type FieldMatch struct {
	ID   uint32
	Kind MatchKind
	// PrefixLen is in bits, 1 to the field's width; with MatchLPM.
	PrefixLen int32
	// Value is the value, or with MatchRange the low bound. Bits that the
	// match does not compare are 0.
	Value []byte
	// Mask is the mask, or with MatchRange the high bound; else nil.
	Mask []byte
}

// ActionKind is what a table entry refers to.
type ActionKind uint8

// The kinds of table actions.
const (
	ActionNone   ActionKind = iota // none given; see Pipeline.WriteTable
	ActionDirect                   // Action
	ActionMember                   // RefID, a member of the table's profile
	ActionGroup                    // RefID, a group of the table's selector
	ActionSet                      // Set, a one-shot set for the selector
)

// TableAction is what a hit does. The zero value is ActionNone.
type TableAction struct {
	Kind   ActionKind
	RefID  uint32
	Action Action
	Set    []WeightedAction
}

// Action is an action and its parameters. The zero value is no valid action.
type Action struct {
	ID uint32
	// Params has one value for each parameter in the P4Info, in its order.
	Params [][]byte
}

// WeightedAction is one action of a one-shot set.
type WeightedAction struct {
	Action Action
	// Weight is at least 1; the server has checked the sum.
	Weight int32
	// WatchPort is the port whose failure takes the action out; empty: none.
	WatchPort []byte
}

// Member is a member of an action profile.
type Member struct {
	ProfileID, ID uint32
	Action        Action
}

// Group is a group of an action selector; its members exist.
type Group struct {
	ProfileID, ID uint32
	MaxSize       int32
	Members       []GroupMember
}

// GroupMember is a member's part in a group.
type GroupMember struct {
	ID     uint32
	Weight int32
	// WatchPort is the port whose failure takes the member out; empty: none.
	WatchPort []byte
}

// CounterData is a counter's value.
type CounterData struct{ Bytes, Packets int64 }

// MeterConfig is a two rate three colour marker (RFC 2698): rates in bytes or
// packets per second, bursts in bytes or packets, by the unit in the P4Info.
type MeterConfig struct{ CIR, CBurst, PIR, PBurst int64 }

// MeterCounters counts what a meter has marked.
type MeterCounters struct{ Green, Yellow, Red CounterData }

// Replica is one copy that the packet replication engine makes.
type Replica struct{ EgressPort, Instance uint32 }

// CloneSession says where clones go.
type CloneSession struct {
	ID             uint32
	Replicas       []Replica
	ClassOfService uint32
	// PacketLength truncates the clone to so many bytes; 0: no truncation.
	PacketLength int32
}
