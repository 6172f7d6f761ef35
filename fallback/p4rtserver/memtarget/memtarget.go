// Package memtarget is a p4rtserver.Target in memory that forwards nothing. It
// takes any P4Info, and is for tests of the server and of its clients.
package memtarget

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/fallback/p4rtserver"
)

// maxCells bounds what a P4Info can make the target allocate, in counter and
// meter cells.
const maxCells = 1 << 20

// Target keeps pipelines in maps. The zero value is ready; set the fields
// before use. It is safe for concurrent use.
type Target struct {
	// Initial is the program's own entries: those of const tables, and, with
	// Default set, original default entries. Those of other programs' tables
	// are left out.
	Initial []p4rtserver.Entry
	// OnPacketOut takes packets from the controller; nil: they are dropped.
	OnPacketOut func(metadata [][]byte, payload []byte) error
	// OnActivate may refuse an activation.
	OnActivate func(*Pipeline) error

	mu     sync.Mutex
	active *Pipeline
	open   int
}

// Active is the pipeline that would forward, or nil.
func (t *Target) Active() *Pipeline {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active
}

// Open is the number of pipelines that are loaded and not closed.
func (t *Target) Open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

// Load implements p4rtserver.Target. Wrapped ErrResourceExhausted where the
// P4Info's counters and meters are too many.
func (t *Target) Load(cfg *p4v1.ForwardingPipelineConfig, up p4rtserver.Upcalls) (p4rtserver.Pipeline, error) {
	p := &Pipeline{
		Up:       up,
		target:   t,
		tables:   make(map[uint32]*table),
		counters: make(map[uint32][]p4rtserver.CounterData),
		meters:   make(map[uint32][]*p4rtserver.MeterConfig),
	}
	var cells int64
	for _, c := range cfg.GetP4Info().GetCounters() {
		if cells += min(c.GetSize(), maxCells+1); cells > maxCells {
			return nil, fmt.Errorf("counters: %w: more than %d cells", p4rtserver.ErrResourceExhausted, maxCells)
		}
		p.counters[c.GetPreamble().GetId()] = make([]p4rtserver.CounterData, c.GetSize())
	}
	for _, m := range cfg.GetP4Info().GetMeters() {
		if cells += min(m.GetSize(), maxCells+1); cells > maxCells {
			return nil, fmt.Errorf("meters: %w: more than %d cells", p4rtserver.ErrResourceExhausted, maxCells)
		}
		p.meters[m.GetPreamble().GetId()] = make([]*p4rtserver.MeterConfig, m.GetSize())
	}
	for _, x := range cfg.GetP4Info().GetTables() {
		p.tables[x.GetPreamble().GetId()] = &table{size: x.GetSize(), entries: make(map[string]*p4rtserver.Entry)}
	}
	for i := range t.Initial {
		e := clone(&t.Initial[i])
		switch tb := p.tables[e.TableID]; {
		case tb == nil:
		case e.Default:
			tb.original = e.Action
			tb.reset()
		default:
			tb.insert(e)
		}
	}
	t.mu.Lock()
	t.open++
	t.mu.Unlock()
	return p, nil
}

// Pipeline is what Target loads. Its methods are called as the interface says,
// and are then safe for concurrent use.
type Pipeline struct {
	p4rtserver.Unimplemented
	// Up takes the pipeline's events; a test raises them.
	Up p4rtserver.Upcalls

	target   *Target
	tables   map[uint32]*table
	counters map[uint32][]p4rtserver.CounterData
	meters   map[uint32][]*p4rtserver.MeterConfig

	mu      sync.Mutex
	flushes int
}

type table struct {
	size     int64
	entries  map[string]*p4rtserver.Entry
	order    []string
	original p4rtserver.TableAction
	dflt     *p4rtserver.Entry
}

func (t *table) insert(e *p4rtserver.Entry) {
	k := key(e)
	t.entries[k] = e
	t.order = append(t.order, k)
}

func (t *table) reset() { t.dflt = &p4rtserver.Entry{Default: true, Action: t.original} }

// find is the entry with the key of e, or nil.
func (t *table) find(e *p4rtserver.Entry) *p4rtserver.Entry {
	if e.Default {
		if t.dflt == nil {
			t.reset()
		}
		return t.dflt
	}
	return t.entries[key(e)]
}

// key is an unambiguous form of an entry's key.
func key(e *p4rtserver.Entry) string {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 128), uint32(e.Priority))
	for i := range e.Match {
		m := &e.Match[i]
		b = append(b, byte(m.Kind))
		b = binary.AppendUvarint(b, uint64(m.PrefixLen))
		for _, v := range [...][]byte{m.Value, m.Mask} {
			b = append(binary.AppendUvarint(b, uint64(len(v))), v...)
		}
	}
	return string(b)
}

// clone is a deep copy of an entry.
func clone(e *p4rtserver.Entry) *p4rtserver.Entry {
	c := *e
	c.Match = slices.Clone(e.Match)
	for i := range c.Match {
		c.Match[i].Value = slices.Clone(c.Match[i].Value)
		c.Match[i].Mask = slices.Clone(c.Match[i].Mask)
	}
	c.Metadata = slices.Clone(e.Metadata)
	c.Action.Action = cloneAction(e.Action.Action)
	c.Action.Set = slices.Clone(e.Action.Set)
	for i := range c.Action.Set {
		w := &c.Action.Set[i]
		w.Action, w.WatchPort = cloneAction(w.Action), slices.Clone(w.WatchPort)
	}
	c.Counter, c.Meter, c.MeterCounters = copyOf(e.Counter), copyOf(e.Meter), copyOf(e.MeterCounters)
	return &c
}

func cloneAction(a p4rtserver.Action) p4rtserver.Action {
	a.Params = slices.Clone(a.Params)
	for i := range a.Params {
		a.Params[i] = slices.Clone(a.Params[i])
	}
	return a
}

func copyOf[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// Activate implements p4rtserver.Pipeline.
func (p *Pipeline) Activate() error {
	if f := p.target.OnActivate; f != nil {
		if err := f(p); err != nil {
			return err
		}
	}
	p.target.mu.Lock()
	defer p.target.mu.Unlock()
	p.target.active = p
	return nil
}

// Close implements p4rtserver.Pipeline.
func (p *Pipeline) Close() {
	p.target.mu.Lock()
	defer p.target.mu.Unlock()
	p.target.open--
	if p.target.active == p {
		p.target.active = nil
	}
}

// WriteTable implements p4rtserver.Pipeline.
func (p *Pipeline) WriteTable(op p4rtserver.Op, e *p4rtserver.Entry) error {
	t := p.tables[e.TableID]
	have := t.find(e)
	switch op {
	case p4rtserver.Insert:
		if have != nil {
			return p4rtserver.ErrAlreadyExists
		}
		if t.size > 0 && int64(len(t.entries)) >= t.size {
			return fmt.Errorf("%w: the table is full at %d entries", p4rtserver.ErrResourceExhausted, t.size)
		}
		t.insert(clone(e))
		return nil
	case p4rtserver.Modify:
		if have == nil {
			return p4rtserver.ErrNotFound
		}
		if e.Default && e.Action.Kind == p4rtserver.ActionNone {
			t.reset()
			return nil
		}
		n := clone(e)
		if n.Action.Kind == p4rtserver.ActionNone {
			n.Action = have.Action
		}
		if n.Counter == nil {
			n.Counter = have.Counter
		}
		*have = *n
		return nil
	}
	if have == nil {
		return p4rtserver.ErrNotFound
	}
	k := key(e)
	delete(t.entries, k)
	i := slices.Index(t.order, k)
	t.order = slices.Delete(t.order, i, i+1)
	return nil
}

// Hit does what a packet of n bytes that hits the entry with the key of e
// would: it counts in the direct counter. sinceLastHit is read back.
func (p *Pipeline) Hit(e *p4rtserver.Entry, n, sinceLastHit int64) error {
	have := p.tables[e.TableID].find(e)
	if have == nil {
		return p4rtserver.ErrNotFound
	}
	if have.Counter == nil {
		have.Counter = new(p4rtserver.CounterData)
	}
	have.Counter.Packets++
	have.Counter.Bytes += n
	have.SinceLastHitNs = sinceLastHit
	return nil
}

// SetDirectCounter implements p4rtserver.Pipeline.
func (p *Pipeline) SetDirectCounter(e *p4rtserver.Entry) error {
	have := p.tables[e.TableID].find(e)
	if have == nil {
		return p4rtserver.ErrNotFound
	}
	have.Counter = copyOf(e.Counter)
	return nil
}

// SetDirectMeter implements p4rtserver.Pipeline.
func (p *Pipeline) SetDirectMeter(e *p4rtserver.Entry) error {
	have := p.tables[e.TableID].find(e)
	if have == nil {
		return p4rtserver.ErrNotFound
	}
	have.Meter = copyOf(e.Meter)
	return nil
}

// Flush implements p4rtserver.Pipeline.
func (p *Pipeline) Flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushes++
}

// Flushes is how often Flush was called.
func (p *Pipeline) Flushes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flushes
}

// Lookup implements p4rtserver.Pipeline.
func (p *Pipeline) Lookup(e *p4rtserver.Entry, _ p4rtserver.Want) error {
	have := p.tables[e.TableID].lookup(e)
	if have == nil {
		return p4rtserver.ErrNotFound
	}
	id, match := e.TableID, e.Match
	*e = *have
	e.TableID, e.Match = id, match
	return nil
}

// lookup is find without the making of a default entry, for concurrent reads.
func (t *table) lookup(e *p4rtserver.Entry) *p4rtserver.Entry {
	if e.Default && t.dflt == nil {
		return &p4rtserver.Entry{Default: true, Action: t.original}
	}
	return t.find(e)
}

// Entries implements p4rtserver.Pipeline.
func (p *Pipeline) Entries(tableID uint32, _ p4rtserver.Want, yield func(*p4rtserver.Entry) bool) error {
	t := p.tables[tableID]
	for _, k := range t.order {
		if !yield(t.entries[k]) {
			break
		}
	}
	return nil
}

// WriteMember implements p4rtserver.Pipeline.
func (p *Pipeline) WriteMember(p4rtserver.Op, *p4rtserver.Member) error { return nil }

// WriteGroup implements p4rtserver.Pipeline.
func (p *Pipeline) WriteGroup(p4rtserver.Op, *p4rtserver.Group) error { return nil }

// WriteMulticastGroup implements p4rtserver.Pipeline.
func (p *Pipeline) WriteMulticastGroup(p4rtserver.Op, uint32, []p4rtserver.Replica) error {
	return nil
}

// WriteCloneSession implements p4rtserver.Pipeline.
func (p *Pipeline) WriteCloneSession(p4rtserver.Op, *p4rtserver.CloneSession) error { return nil }

// Counter implements p4rtserver.Pipeline.
func (p *Pipeline) Counter(id uint32, i int64) (p4rtserver.CounterData, error) {
	return p.counters[id][i], nil
}

// SetCounter implements p4rtserver.Pipeline.
func (p *Pipeline) SetCounter(id uint32, i int64, d p4rtserver.CounterData) error {
	p.counters[id][i] = d
	return nil
}

// Meter implements p4rtserver.Pipeline. Counters per colour are not kept.
func (p *Pipeline) Meter(id uint32, i int64, want p4rtserver.Want) (*p4rtserver.MeterConfig, *p4rtserver.MeterCounters, error) {
	if want&p4rtserver.WantMeterCounters != 0 {
		return nil, nil, fmt.Errorf("counters of a meter: %w", p4rtserver.ErrUnimplemented)
	}
	return p.meters[id][i], nil, nil
}

// SetMeter implements p4rtserver.Pipeline.
func (p *Pipeline) SetMeter(id uint32, i int64, c *p4rtserver.MeterConfig, _ bool) error {
	p.meters[id][i] = copyOf(c)
	return nil
}

// PacketOut implements p4rtserver.Pipeline.
func (p *Pipeline) PacketOut(metadata [][]byte, payload []byte) error {
	if f := p.target.OnPacketOut; f != nil {
		return f(metadata, payload)
	}
	return nil
}
