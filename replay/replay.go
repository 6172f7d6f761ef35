// Package replay runs captures through one data plane offline: the software
// data plane in memory, with the entries of a controller's own configuration
// and, unless told otherwise, with the controller's real decisions on punted
// packets. Time is the captures', and chance comes from a seed, so that equal
// inputs give equal outputs byte for byte.
package replay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"countersign/controller/compile"
	"countersign/controller/config"
	"countersign/controller/decide"
	"countersign/directory"
	"countersign/fallback"
	"countersign/fallback/engine"
	"countersign/fallback/pktio"
	"countersign/packet"
	"countersign/tables"
)

// Mode is what is done with punted packets.
type Mode string

// The modes.
const (
	Decide Mode = "decide" // the controller decides
	Report Mode = "report" // their way ends there
)

// ParseMode reads the name of a mode.
func ParseMode(s string) (Mode, error) {
	if m := Mode(s); m == Decide || m == Report {
		return m, nil
	}
	return "", fmt.Errorf("%q is not decide or report", s)
}

// Options say what to replay. Config, Inputs and OutDir are required.
type Options struct {
	Config *config.Config // with static members and keys
	Device string         // of Config; default: the first
	Inputs []Input        // at most one for each port
	OutDir string         // is made where it does not exist
	Punts  Mode           // default: Decide
	Seed   uint64         // of nonces
	Lines  io.Writer      // gets the lines of VerdictsFile too; default: nobody
	Log    *slog.Logger   // of the decisions; default: none
}

// Summary counts packets.
type Summary struct {
	Packets   int `json:"packets"` // read
	Forwarded int `json:"forwarded"`
	Dropped   int `json:"dropped"`
	Punted    int `json:"punted"` // whose way ended at the controller
	Sent      int `json:"sent"`   // by the controller
	Cut       int `json:"cut"`    // not whole in their capture
}

// Run replays the captures. Where a capture is damaged, or ctx ends, everything
// up to there is done and written, and the error names file and packet; the
// summary counts what was done.
func Run(ctx context.Context, o Options) (s Summary, err error) {
	device, err := pickDevice(o.Config, o.Device)
	if err != nil {
		return s, err
	}
	snap, err := snapshot(o.Config)
	if err != nil {
		return s, err
	}
	in, err := openInputs(o.Config, device.Name, o.Inputs)
	if err != nil {
		return s, err
	}
	defer in.close()
	r := &run{cfg: o.Config, device: device.Name, snap: snap, mode: o.Punts, in: in, waiting: map[key][]*entry{}}
	if first := in.earliest(); first != nil {
		r.start = first.at
	}
	carrier := packet.Carrier{UDP: snap.Carrier.UDP, Protocol: snap.Carrier.Protocol, Port: snap.Carrier.Port}
	if err := carrier.Validate(); err != nil {
		return s, o.Config.At("carrier", err)
	}
	if r.plane, err = newPlane(device.ID, carrier, r.start); err != nil {
		return s, err
	}
	defer r.plane.close()
	r.plane.left = r.packetOut
	if err := r.configure(ctx, o); err != nil {
		return s, err
	}
	if r.out, err = createOutputs(o.OutDir, o.Config, device.Name, in, o.Lines); err != nil {
		return s, err
	}
	err = r.all(ctx)
	return r.sum, errors.Join(err, r.out.close(), in.damage())
}

func pickDevice(cfg *config.Config, name string) (config.Device, error) {
	if name == "" {
		return cfg.Devices[0], nil
	}
	var names []string
	for _, d := range cfg.Devices {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return config.Device{}, fmt.Errorf("the configuration has no device %q; there are %q", name, names)
}

// snapshot is what stands in the directory's place.
func snapshot(cfg *config.Config) (*directory.Snapshot, error) {
	if cfg.Static == nil {
		return nil, cfg.At("static", errors.New("is missing: a replay has no directory to ask, put members and keys here in its place"))
	}
	snap, err := cfg.Static.Snapshot(cfg.Member)
	if err != nil {
		return nil, cfg.At("static", err)
	}
	return snap, nil
}

// run is one replay. Everything happens in one goroutine.
type run struct {
	cfg     *config.Config
	device  string
	snap    *directory.Snapshot
	mode    Mode
	in      sources
	out     *outputs
	plane   *plane
	decider *decide.Decider
	entries installed
	learned bool  // the entries are to be compiled anew
	start   int64 // time of the first packet

	current *entry // the packet that everything happens because of; nil between packets
	waiting map[key][]*entry
	waits   int   // entries in waiting
	failed  error // of an output
	sum     Summary
}

// key finds a punted packet again when the controller returns it.
type key struct {
	port uint16
	sum  uint64
}

var hashSeed = maphash.MakeSeed()

func keyOf(port uint16, frame []byte) key { return key{port, maphash.Bytes(hashSeed, frame)} }

// configure gives the data plane what a controller gives it.
func (r *run) configure(ctx context.Context, o Options) error {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.Seed)
	var err error
	r.decider, err = decide.New(decide.Config{
		Config: r.cfg, Planes: map[string]decide.DataPlane{r.device: r.plane},
		Now:     func() time.Time { return time.Unix(0, r.plane.now) },
		Random:  rand.NewChaCha8(seed),
		Learned: func() { r.learned = true },
		Log:     o.Log,
	})
	if err != nil {
		return err
	}
	if err := r.decider.Update(ctx, r.snap); err != nil {
		return err
	}
	r.entries.plane = r.plane
	if err := r.compile(ctx); err != nil {
		return err
	}
	entities, err := compile.Entities(nil)
	if err != nil {
		return err
	}
	if err := r.plane.insert(ctx, entities); err != nil {
		return err
	}
	return r.decider.Sign(ctx, r.device)
}

func (r *run) compile(ctx context.Context) error {
	r.learned = false
	entries, err := compile.Entries(r.cfg, r.device, r.decider.Neighbours(), r.snap)
	if err != nil {
		return err
	}
	return r.entries.set(ctx, entries)
}

// all replays every packet.
func (r *run) all(ctx context.Context) error {
	frame := pktio.NewFrames(1)[0]
	for s := r.in.earliest(); s != nil; s = r.in.earliest() {
		if err := ctx.Err(); err != nil {
			return r.finish(fmt.Errorf("stopped before packet %d of %s: %w", s.head.Number, s.file, err))
		}
		r.advance(ctx, s.at)
		r.one(ctx, s, frame)
		if r.learned {
			if err := r.compile(ctx); err != nil {
				return r.finish(err)
			}
			r.decider.Resolved(ctx, r.resolved)
		}
		if err := errors.Join(r.failed, r.out.flush()); err != nil {
			return r.finish(err)
		}
		s.next()
	}
	return r.finish(nil)
}

// resolved settles a packet that waited for its neighbour and was dropped; one
// that was handed back is settled there.
func (r *run) resolved(p decide.Punt, out decide.Outcome) {
	if out.Verdict != decide.Dropped {
		return
	}
	if held := r.waiting[keyOf(p.Meta.IngressPort, p.Frame)]; len(held) > 0 {
		r.settle(held[0], "drop", out.Reason)
	}
}

// finish gives up what still waits.
func (r *run) finish(err error) error {
	for _, e := range r.out.queue {
		if e.waits {
			r.settle(e, "drop", e.expiry)
		}
	}
	return errors.Join(err, r.out.flush())
}

// longestWait is more than the controller holds a piece of a datagram.
const longestWait = int64(10 * time.Second)

// advance moves the clock, which never goes back, to a packet's time. What a
// process does once a second is done once, for the last whole second that has
// passed since the first packet.
func (r *run) advance(ctx context.Context, to int64) {
	p := r.plane
	if to <= p.now {
		return
	}
	const every = int64(fallback.SweepInterval)
	if tick := to - (to-r.start)%every; tick > p.now {
		p.now = tick
		r.decider.Expire()
		for _, te := range p.sweep() {
			r.decider.Idle(ctx, r.device, te)
		}
		r.decider.Sweep(ctx)
	}
	p.now = to
	if r.waits == 0 {
		return
	}
	r.decider.Expire()
	for _, e := range r.out.queue {
		if e.waits && to > e.until {
			r.settle(e, "drop", e.expiry)
		}
	}
}

// one takes a packet through the data plane, and what was punted through the
// controller.
func (r *run) one(ctx context.Context, s *source, frame *pktio.Frame) {
	e := &entry{at: s.at, Line: Line{Number: s.head.Number, Port: s.port, Time: time.Unix(0, s.at).UTC()}}
	r.out.queue = append(r.out.queue, e)
	r.current = e
	defer func() { r.current = nil }()
	r.sum.Packets++
	if s.head.Length > len(s.head.Data) {
		r.sum.Cut++
		e.Captured, e.Length = len(s.head.Data), s.head.Length
	}
	if len(s.head.Data) > pktio.MaxFrame || frame.Set(s.head.Data) != nil {
		e.Stage = engine.StagePort.String()
		r.settle(e, "drop", "frame_too_long")
		return
	}
	frame.Time = s.at
	k := engine.Packet{Frame: frame, InPort: s.port}
	res, in := r.plane.process(&k)
	if k.Copied != tables.ReasonNone {
		e.Copied = k.Copied.String()
	}
	e.Stage = res.stage.String()
	if res.verdict != engine.Punt || r.mode == Report || in == nil {
		r.result(e, &res)
		if in != nil && r.mode != Report {
			r.decider.Handle(ctx, decide.Punt{Device: r.device, Meta: in.meta, Frame: in.frame})
		}
		return
	}
	e.Punted = res.reason.String()
	r.hold(e, in)
	out := r.decider.Handle(ctx, decide.Punt{Device: r.device, Meta: in.meta, Frame: in.frame})
	switch {
	case !e.waits: // returned, and settled there
	case out.Verdict == decide.Consumed:
		r.settle(e, "punt", e.Punted)
	case out.Verdict == decide.Dropped:
		r.settle(e, "drop", out.Reason)
		if out.Reason == overlap {
			r.discard(e)
		}
	}
}

// overlap is the controller's reason for refusing a datagram as a whole, with
// the pieces that it has held.
const overlap = "fragment_overlap"

// discard drops the waiting pieces of the datagram that e is a piece of.
func (r *run) discard(e *entry) {
	for _, o := range r.out.queue {
		if o.waits && o.Punted == e.Punted && o.tuple == e.tuple {
			r.settle(o, "drop", overlap)
		}
	}
}

// hold notes a packet that the controller is to decide on.
func (r *run) hold(e *entry, in *punt) {
	e.waits, e.held = true, keyOf(in.meta.IngressPort, in.frame)
	e.until, e.expiry = r.plane.now+max(longestWait, 2*int64(r.cfg.Siblings.Wait)), "not_returned"
	switch in.meta.Reason {
	case tables.ReasonReplyUnknown:
		e.expiry = "no_announcement"
	case tables.ReasonFragment:
		e.expiry = "reassembly_timeout"
	case tables.ReasonToMe:
		e.expiry = "neighbour_unknown"
	}
	var v packet.View
	if packet.Parse(in.frame, r.decider.Carrier(), &v) == packet.None {
		e.tuple = v.Tuple
	}
	r.waiting[e.held] = append(r.waiting[e.held], e)
	r.waits++
}

// settle makes a line final.
func (r *run) settle(e *entry, verdict, reason string) {
	if e.waits {
		e.waits = false
		r.waits--
		rest := r.waiting[e.held]
		for i, o := range rest {
			if o == e {
				rest = append(rest[:i:i], rest[i+1:]...)
				break
			}
		}
		if len(rest) == 0 {
			delete(r.waiting, e.held)
		} else {
			r.waiting[e.held] = rest
		}
	}
	if reason == tables.ReasonNone.String() {
		reason = ""
	}
	e.Verdict, e.Reason = verdict, reason
	switch verdict {
	case "drop":
		r.sum.Dropped++
		if e.Length > 0 && cutReasons[reason] {
			e.Reason = tables.ReasonTruncated.String()
		}
	case "punt":
		r.sum.Punted++
	case "forward":
		r.sum.Forwarded++
	}
}

// cutReasons are what the parser finds where a capture has less of a packet
// than its headers say.
var cutReasons = map[string]bool{
	tables.ReasonTruncated.String(): true, tables.ReasonBadLength.String(): true, tables.ReasonL4Truncated.String(): true,
}

// result settles a line by what the pipeline made of the packet.
func (r *run) result(e *entry, res *result) {
	e.Stage = res.stage.String()
	if res.verdict == engine.Forward {
		egress := res.egress
		e.EgressPort = &egress
		at := e.at
		if e != r.current {
			at = r.plane.now // it leaves now, having waited
		}
		r.send(egress, res.frame, at)
	}
	r.settle(e, res.verdict.String(), res.reason.String())
}

func (r *run) send(port uint16, frame []byte, at int64) {
	if err := r.out.send(port, frame, at); err != nil && r.failed == nil {
		r.failed = err
	}
}

// packetOut takes what became of a packet that the controller has returned or
// sent.
func (r *run) packetOut(mode tables.PacketOutMode, ingress uint16, payload []byte, res *result) {
	if mode == tables.PacketOutModeReturn {
		if held := r.waiting[keyOf(ingress, payload)]; len(held) > 0 {
			r.result(held[0], res)
		}
		return
	}
	if res.verdict != engine.Forward {
		return
	}
	at := r.plane.now
	e := &entry{at: at, Line: Line{
		Port: tables.CPUPort, Time: time.Unix(0, at).UTC(), From: "controller",
		Verdict: res.verdict.String(), Stage: res.stage.String(), EgressPort: &res.egress,
	}}
	if r.current != nil {
		e.Answers = &Packet{r.current.Number, r.current.Port}
	}
	r.sum.Sent++
	r.send(res.egress, res.frame, at)
	r.out.queue = append(r.out.queue, e)
}
