// Package engine is the Go software data plane: the pipeline of the P4
// program, stage by stage, with the same names in the same order, on batches of
// frames in memory. A file per stage holds what the P4 file of that name does;
// process.go is the list of stages.
//
// Nothing on the path of a packet allocates or takes a lock. Tables are read
// without locks while P4Runtime writes them.
package engine

import (
	"sync/atomic"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/fallback/p4rtserver"
	"countersign/packet"
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
	workers []*Worker
	active  atomic.Pointer[pipeline]
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
	e := &Engine{o: o}
	for i := range o.Workers {
		e.workers = append(e.workers, &Worker{e: e, id: i})
	}
	return e
}

// Load implements p4rtserver.Target. It takes the pipeline of this program
// only.
func (e *Engine) Load(cfg *p4v1.ForwardingPipelineConfig, up p4rtserver.Upcalls) (p4rtserver.Pipeline, error) {
	return nil, p4rtserver.ErrUnimplemented
}

// Worker returns worker i, 0 <= i < Options.Workers.
func (e *Engine) Worker(i int) *Worker { return e.workers[i] }

// Sweep raises the idle timeouts that are due at now, in nanoseconds since the
// Unix epoch. An entry is reported when no packet has hit it for its timeout,
// and again after each further timeout without a hit.
func (e *Engine) Sweep(now int64) {}

// Worker is one goroutine's hold on the engine; not safe for concurrent use.
// Take it from Engine.Worker.
type Worker struct {
	e  *Engine
	id int
}

// Process takes a batch of packets through the pipeline at now, in nanoseconds
// since the Unix epoch. What is punted or copied goes to the P4Runtime server
// before Process returns. Frames of forwarded packets are rewritten in place.
func (w *Worker) Process(now int64, batch []Packet) {
	for i := range batch {
		batch[i].Verdict, batch[i].Reason, batch[i].Copied, batch[i].Stage, batch[i].Egress = Drop, ReasonNone, ReasonNone, StageNone, 0
	}
}

type pipeline struct{}
