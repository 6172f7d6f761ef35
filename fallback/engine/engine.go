// Package engine is the Go software data plane: the pipeline of the P4
// program, stage by stage, with the same names in the same order, on batches of
// frames in memory. A file per stage holds what the P4 file of that name does;
// process.go is the list of stages.
//
// Nothing on the path of a packet allocates or takes a lock. Tables are read
// without locks while P4Runtime writes them.
package engine

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"countersign/fallback/pktio"
	"countersign/packet"
	"countersign/tables"
)

// Options configure an Engine; the zero value is one worker with the default
// carrier, the system's clock and a random seed.
type Options struct {
	// Workers is the number of goroutines that call Process, 0 means 1.
	Workers int
	// Carrier is the alliance's; whether it is ip or udp is a flag of each port
	// entry, so UDP is ignored. The zero value means packet.DefaultCarrier.
	Carrier packet.Carrier
	// Seed makes the tables' hashes repeatable; 0 means random. Only replays
	// need it: a known seed lets a flood aim at one place of a table.
	Seed uint64
	// Now is the clock in nanoseconds since the Unix epoch that idle timeouts
	// and direct reads use; nil means the system's. Packets bring their own
	// time to Process, from the same epoch.
	Now func() int64
	// Output takes packets that leave because the CPU sent or returned them.
	// It is called from PacketOut, one at a time, and must not keep the frame.
	// nil drops them.
	Output func(*Packet)
}

// Engine is a data plane and a p4rtserver.Target. Make one with New; its
// methods may be called from any goroutine.
type Engine struct {
	o       Options
	hashes  hasher
	grace   grace
	workers []*Worker
	active  atomic.Pointer[pipeline]

	outMu    sync.Mutex // of packet-outs
	cpu      *Worker
	outFrame *pktio.Frame
}

// MaxBatch is the number of packets that Process works on together; longer
// batches are split.
const MaxBatch = 32

// New returns an engine without a pipeline, which drops every packet.
func New(o Options) *Engine {
	o.Workers = max(o.Workers, 1)
	if o.Carrier == (packet.Carrier{}) {
		o.Carrier = packet.DefaultCarrier
	}
	if o.Now == nil {
		o.Now = func() int64 { return time.Now().UnixNano() }
	}
	random := rand.New(rand.NewPCG(o.Seed, ^o.Seed))
	e := &Engine{o: o, outFrame: pktio.NewFrames(1)[0]}
	for i := range e.hashes {
		if o.Seed == 0 {
			e.hashes[i] = rand.Uint64() | 1
		} else {
			e.hashes[i] = random.Uint64() | 1
		}
	}
	for i := range o.Workers + 1 {
		w := &Worker{e: e, id: i}
		w.tally.touched = make([]uint16, 0, cellCount)
		e.workers = append(e.workers, w)
		w.seen.Store(outside)
	}
	e.cpu = e.workers[o.Workers]
	e.grace.workers = e.workers
	return e
}

// Worker returns worker i, 0 <= i < Options.Workers.
func (e *Engine) Worker(i int) *Worker { return e.workers[i] }

// Sweep raises the idle timeouts that are due at now, in nanoseconds since the
// Unix epoch. An entry is reported when no packet has hit it for its timeout,
// and again after each further timeout without a hit.
func (e *Engine) Sweep(now int64) {
	if pl := e.active.Load(); pl != nil {
		pl.sweep(now)
	}
}

// StageCount is how many packets a stage gave a verdict for a reason.
type StageCount struct {
	Stage   Stage
	Verdict Verdict
	Reason  tables.Reason
	Packets uint64
}

// TableCount is how many entries a table has and how many it takes.
type TableCount struct {
	ID            uint32
	Table         string // alias
	Entries, Size int64
}

// Stats are an engine's counters for metrics.
type Stats struct {
	Stages []StageCount // those that are not 0
	Punts  map[tables.Reason]uint64
	Tables []TableCount
}

// Stats reads the counters of the pipeline that forwards now; they are empty
// where there is none.
func (e *Engine) Stats() Stats {
	s := Stats{Punts: make(map[tables.Reason]uint64)}
	pl := e.active.Load()
	if pl == nil {
		return s
	}
	for i := cellStages; i < cellCount; i++ {
		if n := pl.cells[i].packets.Load(); n != 0 {
			c := StageCount{Stage: Stage((i - cellStages) / reasons), Reason: tables.Reason((i - cellStages) % reasons), Packets: n}
			c.Verdict = verdictOf(c.Stage, c.Reason)
			s.Stages = append(s.Stages, c)
		}
	}
	for i := range reasons {
		if n := pl.cells[cellPunts+i].packets.Load(); n != 0 {
			s.Punts[tables.Reason(i)] = n
		}
	}
	for _, t := range tables.Tables() {
		s.Tables = append(s.Tables, TableCount{t.ID, t.Alias, int64(pl.byID[t.ID].count()), t.Size})
	}
	return s
}

// verdictOf is the verdict that a stage gives for a reason.
func verdictOf(s Stage, r tables.Reason) Verdict {
	switch {
	case r == tables.ReasonNone && s == StageEgress:
		return Forward
	case r != tables.ReasonNone && r < tables.ReasonTagUnknownKey:
		return Punt
	}
	return Drop
}
