package replay

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/engine"
	"countersign/fallback/p4rtserver"
	"countersign/p4src"
	"countersign/packet"
	"countersign/tables"
)

// electionID is that of the one controller there is.
var electionID = &p4v1.Uint128{Low: 1}

// plane is the software data plane in memory, driven through its own P4Runtime
// server, but by calls instead of a connection, so that everything happens in
// one order. It implements decide.DataPlane. Made by newPlane; not safe for
// concurrent use.
type plane struct {
	deviceID uint64
	now      int64 // nanoseconds since the Unix epoch: the data plane's clock
	engine   *engine.Engine
	server   *p4rtserver.Server
	pipeline p4rtserver.Pipeline
	// left is called for each packet that the controller has sent or returned.
	left func(mode tables.PacketOutMode, ingress uint16, payload []byte, r *result)

	punts []punt             // of the packet under way
	idle  []*p4v1.TableEntry // of the sweep under way
	out   *result            // of the packet-out under way
	end   func()
}

// punt is a packet-in.
type punt struct {
	meta  tables.PacketIn
	frame []byte
}

// result is what the pipeline made of a packet.
type result struct {
	verdict engine.Verdict
	reason  tables.Reason
	stage   engine.Stage
	egress  uint16
	frame   []byte // of engine.Forward
}

// newPlane returns a data plane with the pipeline of this program and without
// entries, whose clock stands at now.
func newPlane(deviceID uint64, carrier packet.Carrier, now int64) (*plane, error) {
	p := &plane{deviceID: deviceID, now: now}
	p.engine = engine.New(engine.Options{
		Carrier: carrier,
		Seed:    1, // of hash tables only, and the same in each run
		Now:     func() int64 { return p.now },
		Output: func(k *engine.Packet) {
			p.out = &result{k.Verdict, k.Reason, k.Stage, k.Egress, k.Frame.Bytes()}
		},
	})
	var err error
	p.server, err = p4rtserver.New(target{p}, p4rtserver.Options{
		DeviceID: deviceID, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Unix(0, p.now) },
	})
	if err != nil {
		return nil, err
	}
	if err := p.connect(); err != nil {
		return nil, err
	}
	info, err := p4src.P4Info()
	if err != nil {
		return nil, err
	}
	_, err = p.server.SetForwardingPipelineConfig(context.Background(), &p4v1.SetForwardingPipelineConfigRequest{
		DeviceId: deviceID, ElectionId: electionID,
		Action: p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT,
		Config: &p4v1.ForwardingPipelineConfig{P4Info: info, P4DeviceConfig: p4src.JSON},
	})
	if err != nil {
		p.close()
		return nil, fmt.Errorf("pipeline: %w", err)
	}
	return p, nil
}

// connect makes this process the primary controller.
func (p *plane) connect() error {
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{ctx: ctx, answer: make(chan *p4v1.StreamMessageResponse, 1)}
	s.request = &p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{
		Arbitration: &p4v1.MasterArbitrationUpdate{DeviceId: p.deviceID, ElectionId: electionID},
	}}
	done := make(chan error, 1)
	go func() { done <- p.server.StreamChannel(s) }()
	p.end = func() { cancel(); <-done }
	select {
	case <-s.answer:
		return nil
	case err := <-done:
		cancel()
		return fmt.Errorf("arbitration: %w", err)
	}
}

func (p *plane) close() {
	p.end()
	p.server.Close()
}

// stream is the controller's end of a StreamChannel on which only the
// arbitration takes place: packets go by the calls of plane.
type stream struct {
	grpc.ServerStream
	ctx     context.Context
	request *p4v1.StreamMessageRequest // nil once received
	answer  chan *p4v1.StreamMessageResponse
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Recv() (*p4v1.StreamMessageRequest, error) {
	if m := s.request; m != nil {
		s.request = nil
		return m, nil
	}
	<-s.ctx.Done()
	return nil, io.EOF
}

func (s *stream) Send(m *p4v1.StreamMessageResponse) error {
	select {
	case s.answer <- m:
	default: // nobody waits for more than the first
	}
	return nil
}

// target lets the events of the engine's pipeline come to plane.
type target struct{ *plane }

// Load implements p4rtserver.Target.
func (t target) Load(cfg *p4v1.ForwardingPipelineConfig, _ p4rtserver.Upcalls) (p4rtserver.Pipeline, error) {
	pl, err := t.engine.Load(cfg, upcalls(t))
	t.pipeline = pl
	return pl, err
}

type upcalls struct{ *plane }

// PacketIn implements p4rtserver.Upcalls.
func (u upcalls) PacketIn(metadata [][]byte, payload []byte) {
	var k punt
	if err := k.meta.DecodeMetadata(metadata); err != nil {
		return // the engine fills in its own enumerations
	}
	k.frame = append(k.frame, payload...)
	u.punts = append(u.punts, k)
}

// IdleTimeout implements p4rtserver.Upcalls. Tables whose entries time out
// have exact fields only.
func (u upcalls) IdleTimeout(entries []p4rtserver.Entry) {
	for i := range entries {
		e := &entries[i]
		te := &p4v1.TableEntry{TableId: e.TableID, IdleTimeoutNs: e.IdleTimeoutNs}
		for _, f := range e.Match {
			te.Match = append(te.Match, &p4v1.FieldMatch{FieldId: f.ID, FieldMatchType: &p4v1.FieldMatch_Exact_{
				Exact: &p4v1.FieldMatch_Exact{Value: f.Value},
			}})
		}
		u.idle = append(u.idle, te)
	}
}

// process takes one packet through the pipeline, and returns the packet-in that
// it caused, if there was one, valid until the next call.
func (p *plane) process(k *engine.Packet) (r result, in *punt) {
	batch := [1]engine.Packet{*k}
	p.punts = p.punts[:0]
	p.engine.Worker(0).Process(p.now, batch[:])
	*k = batch[0]
	r = result{k.Verdict, k.Reason, k.Stage, k.Egress, nil}
	if r.verdict == engine.Forward {
		r.frame = k.Frame.Bytes()
	}
	if len(p.punts) > 0 {
		in = &p.punts[0]
	}
	return r, in
}

// sweep returns the entries that are idle now.
func (p *plane) sweep() []*p4v1.TableEntry {
	p.idle = nil
	p.engine.Sweep(p.now)
	return p.idle
}

// Write implements decide.DataPlane.
func (p *plane) Write(ctx context.Context, updates []*p4v1.Update) error {
	_, err := p.server.Write(ctx, &p4v1.WriteRequest{DeviceId: p.deviceID, ElectionId: electionID, Updates: updates})
	if st, ok := status.FromError(err); err != nil && ok {
		f := failures{status: err}
		for i, d := range st.Details() {
			if e, ok := d.(*p4v1.Error); ok && i < len(updates) && e.GetCanonicalCode() != int32(codes.OK) {
				f.list = append(f.list, failure{i, status.Error(codes.Code(e.GetCanonicalCode()), e.GetMessage())})
			}
		}
		if len(f.list) > 0 {
			return f
		}
	}
	return err
}

// failures are the updates of a Write that failed; it implements
// decide.Failures.
type failures struct {
	status error
	list   []failure
}

type failure struct {
	index int
	err   error
}

func (f failures) Error() string { return f.status.Error() }
func (f failures) Unwrap() error { return f.status }

// Failed implements decide.Failures.
func (f failures) Failed(yield func(int, error)) {
	for _, e := range f.list {
		yield(e.index, e.err)
	}
}

// PacketOut implements decide.DataPlane.
func (p *plane) PacketOut(_ context.Context, m *p4v1.PacketOut) error {
	meta, err := tables.DecodePacketOut(m)
	if err != nil {
		return err
	}
	fields, _, err := meta.AppendMetadata(nil, nil)
	if err != nil {
		return err
	}
	before := p.engine.Stats().Stages
	p.out = nil
	if err := p.pipeline.PacketOut(fields, m.GetPayload()); err != nil {
		return err
	}
	r := p.out
	if r == nil {
		r = dropped(before, p.engine.Stats().Stages)
	}
	p.left(meta.Mode, meta.IngressPort, m.GetPayload(), r)
	return nil
}

// dropped is the result of the one packet by which the counters of the stages
// differ: the engine hands out only packets that leave.
func dropped(before, after []engine.StageCount) *result {
	type place struct {
		stage  engine.Stage
		reason tables.Reason
	}
	seen := make(map[place]uint64, len(before))
	for _, c := range before {
		seen[place{c.Stage, c.Reason}] = c.Packets
	}
	for _, c := range after {
		if c.Packets != seen[place{c.Stage, c.Reason}] {
			return &result{verdict: engine.Drop, reason: c.Reason, stage: c.Stage}
		}
	}
	return &result{verdict: engine.Drop}
}

// insert writes entities that are not there yet.
func (p *plane) insert(ctx context.Context, entities []*p4v1.Entity) error {
	var updates []*p4v1.Update
	for _, e := range entities {
		updates = append(updates, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: e})
	}
	return p.Write(ctx, updates)
}

// installed is the set of entries that the controller compiles, as it was last
// written.
type installed struct {
	*plane
	written map[any]*p4v1.Update // by tables.Entry.Identity, as inserts
}

// set brings the data plane from the last set of entries to this one.
func (s *installed) set(ctx context.Context, entries []tables.Entry) error {
	var updates []*p4v1.Update
	next := make(map[any]*p4v1.Update, len(entries))
	for _, e := range entries {
		u, err := e.Update(p4v1.Update_INSERT)
		if err != nil {
			return err
		}
		id := e.Identity()
		next[id] = u
		old := s.written[id]
		switch {
		case old == nil:
		case proto.Equal(old, u):
			continue
		default:
			if u, err = e.Update(p4v1.Update_MODIFY); err != nil {
				return err
			}
		}
		updates = append(updates, u)
	}
	for id, u := range s.written {
		if next[id] == nil {
			updates = append(updates, &p4v1.Update{Type: p4v1.Update_DELETE, Entity: u.GetEntity()})
		}
	}
	s.written = next
	if err := s.Write(ctx, updates); err != nil {
		return fmt.Errorf("entries of the configuration: %w", err)
	}
	return nil
}
