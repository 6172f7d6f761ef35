package sibling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"countersign/controller/session"
	pb "countersign/controller/sibling/proto"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
)

// errProtocol is a sibling that does not speak the protocol.
var errProtocol = errors.New("unexpected acknowledgement")

// item is an announcement and when it was made; zero for one of Standing.
type item struct {
	session.Announcement
	at time.Time
}

// sentBatch waits for its acknowledgement.
type sentBatch struct {
	count     int
	oldest    time.Time // zero: nothing but Standing
	deletions []item    // to be sent again if the connection ends first
}

// peer is one sibling as we dial it: its queue and, while connected, its stream.
// One goroutine sends, another hears acknowledgements.
type peer struct {
	s      *Service
	cancel context.CancelFunc
	wake   chan struct{} // the sender has something to look at
	retry  chan struct{} // do not wait for the back-off

	mu       sync.Mutex // guards what follows
	address  string
	hangUp   context.CancelFunc // ends the connection, nil while there is none
	queue    []item
	inflight []sentBatch // oldest first
	sequence uint64      // of the newest in inflight
	open     bool        // a stream takes announcements
	resync   bool        // Standing must be sent again when the queue is empty
	state    PeerStatus
}

func newPeer(s *Service, to Peer, cancel context.CancelFunc) *peer {
	return &peer{
		s: s, cancel: cancel, wake: make(chan struct{}, 1), retry: make(chan struct{}, 1),
		address: to.Address, state: PeerStatus{Name: to.Name},
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (p *peer) status() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.state
	st.Address, st.Connected, st.Queued = p.address, p.open, len(p.queue)
	return st
}

// readdress moves the connection where the address is a new one, and cuts short
// a back-off.
func (p *peer) readdress(address string) {
	p.mu.Lock()
	if p.address != address {
		p.address = address
		if p.hangUp != nil {
			p.hangUp()
		}
	}
	p.mu.Unlock()
	signal(p.retry)
}

// enqueue takes what there is room for. While no stream is open, Standing will
// hold what is announced, but not what is deleted.
func (p *peer) enqueue(all []session.Announcement, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dropped := 0
	for i := range all {
		a := &all[i]
		switch {
		case !a.Deleted && !p.open:
		case len(p.queue) < maxQueue, a.Deleted && len(p.queue) < 2*maxQueue:
			p.queue = append(p.queue, item{*a, now})
		default:
			dropped++
			p.resync = true
		}
	}
	if dropped > 0 {
		p.state.Dropped += uint64(dropped)
		p.s.metrics.dropped.WithLabelValues(p.state.Name).Add(float64(dropped))
	}
	if p.open {
		signal(p.wake)
	}
}

// run keeps a stream to the sibling until ctx ends.
func (p *peer) run(ctx context.Context) {
	name := p.state.Name
	for pause := backoffMin; ; {
		connected, err := p.connect(ctx)
		news := p.close(err)
		if ctx.Err() != nil {
			return
		}
		p.s.metrics.disconnects.WithLabelValues(name).Inc()
		if connected || news {
			p.s.cfg.Log.Warn("sibling_disconnected", "peer", name, "error", err)
		}
		if connected {
			pause = backoffMin
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-p.retry:
		case <-ctx.Done():
		}
		timer.Stop()
		pause = min(2*pause, backoffMax)
	}
}

// connect dials, waits until the sibling has found us to be one, and sends until
// something fails. Each connection starts from the newest certificates.
func (p *peer) connect(ctx context.Context) (connected bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.mu.Lock()
	address := p.address
	p.hangUp = func() { cancel(errors.New("the address has changed")) }
	p.mu.Unlock()

	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(p.s.cfg.ClientTLS(p.state.Name))),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: handshakeTimeout}),
		grpc.WithInitialWindowSize(flowWindow), grpc.WithInitialConnWindowSize(flowWindow),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4<<10), grpc.MaxCallSendMsgSize(maxBatchBytes)),
	)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	stream, err := pb.NewSiblingsClient(conn).Announce(ctx)
	if err != nil {
		return false, err
	}
	hello := time.AfterFunc(handshakeTimeout, func() { cancel(errors.New("no acknowledgement of the stream")) })
	ack, err := stream.Recv()
	hello.Stop()
	if err != nil {
		return false, cause(ctx, err)
	}
	if ack.Sequence != 0 {
		return false, fmt.Errorf("%w: %d, not 0", errProtocol, ack.Sequence)
	}

	p.begin()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		cancel(p.hear(stream))
	}()
	if err = p.send(ctx, stream); !errors.Is(err, io.EOF) { // at the end of a stream, hear has the reason
		cancel(err)
	}
	<-heard
	return true, cause(ctx, err)
}

// cause is why ctx was cancelled rather than the error that followed from it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// begin opens the queue to all announcements; send asks for Standing afterwards,
// so that none falls between.
func (p *peer) begin() {
	p.mu.Lock()
	p.open, p.sequence, p.state.Error = true, 0, ""
	p.mu.Unlock()
	p.s.metrics.connected.WithLabelValues(p.state.Name).Set(1)
	p.s.cfg.Log.Info("sibling_connected", "peer", p.state.Name)
}

// close keeps what the next connection has to send: the deletions, those on the
// way first. It reports whether the error is another one than last time.
func (p *peer) close(err error) (news bool) {
	p.s.metrics.connected.WithLabelValues(p.state.Name).Set(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []item
	for _, b := range p.inflight {
		kept = append(kept, b.deletions...)
	}
	for _, it := range p.queue {
		if it.Deleted {
			kept = append(kept, it)
		}
	}
	p.open, p.inflight, p.queue, p.hangUp = false, nil, kept, nil
	news = p.state.Error != err.Error()
	p.state.Error = err.Error()
	return news
}

// hear reads acknowledgements until the stream ends.
func (p *peer) hear(stream grpc.BidiStreamingClient[pb.Batch, pb.Ack]) error {
	for {
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := p.acknowledge(ack.Sequence); err != nil {
			return err
		}
	}
}

func (p *peer) acknowledge(sequence uint64) error {
	name := p.state.Name
	now := p.s.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.sequence - uint64(len(p.inflight)) + 1
	if sequence < first || sequence > p.sequence {
		return fmt.Errorf("%w: %d, not from %d to %d", errProtocol, sequence, first, p.sequence)
	}
	n := int(sequence - first + 1)
	for _, b := range p.inflight[:n] {
		p.state.Sent += uint64(b.count)
		p.s.metrics.sent.WithLabelValues(name).Add(float64(b.count))
		if !b.oldest.IsZero() {
			p.s.metrics.seconds.WithLabelValues(name).Observe(now.Sub(b.oldest).Seconds())
		}
	}
	p.inflight = append(p.inflight[:0], p.inflight[n:]...)
	signal(p.wake)
	return nil
}

// sender is what the sending goroutine alone holds for one connection.
type sender struct {
	p     *peer
	items []item // taken from the queue or from Standing, not sent yet

	// A resync: new announcements go between its batches, but deletions wait for
	// its end, because Standing may still yield what they delete.
	next     func() (session.Announcement, bool) // nil: none is under way
	stop     func()
	deferred []item
}

func (p *peer) send(ctx context.Context, stream grpc.BidiStreamingClient[pb.Batch, pb.Ack]) error {
	x := &sender{p: p}
	x.resync()
	defer x.close()
	for {
		b := x.batch()
		if b == nil {
			select {
			case <-p.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := stream.Send(b); err != nil {
			return err
		}
	}
}

// close gives back the deletions that were not sent.
func (x *sender) close() {
	if x.next != nil {
		x.stop()
	}
	x.p.mu.Lock()
	defer x.p.mu.Unlock()
	x.p.queue = append(append(x.items, x.deferred...), x.p.queue...)
}

// batch takes the next one and counts it as sent; nil where there is none, or
// too many are not acknowledged.
func (x *sender) batch() *pb.Batch {
	p := x.p
	for {
		p.mu.Lock()
		if len(p.inflight) >= window {
			p.mu.Unlock()
			return nil
		}
		if len(x.items) == 0 {
			x.take()
		}
		resync := len(x.items) == 0 && x.next == nil && p.resync
		p.mu.Unlock()
		if resync {
			x.resync()
		}
		if len(x.items) == 0 && x.next != nil {
			x.pull()
		}
		if len(x.items) == 0 {
			return nil
		}
		if b := x.encode(); b != nil {
			return b
		}
	}
}

// resync starts on Standing. That it is due is forgotten first, so that what is
// dropped meanwhile makes it due again.
func (x *sender) resync() {
	p := x.p
	p.mu.Lock()
	p.resync = false
	p.state.Resyncs++
	p.mu.Unlock()
	p.s.metrics.resyncs.WithLabelValues(p.state.Name).Inc()
	x.next, x.stop = iter.Pull(p.s.cfg.Standing())
}

// take moves up to a batch from the queue. The caller holds the lock.
func (x *sender) take() {
	q := &x.p.queue
	n := 0
	for n < len(*q) && len(x.items) < maxBatch && len(x.deferred) < maxQueue {
		if it := (*q)[n]; it.Deleted && x.next != nil {
			x.deferred = append(x.deferred, it)
		} else {
			x.items = append(x.items, it)
		}
		n++
	}
	if *q = (*q)[n:]; len(*q) == 0 {
		*q = nil
	}
}

// pull takes up to a batch from Standing, and at its end what waited for it.
func (x *sender) pull() {
	for len(x.items) < maxBatch {
		a, ok := x.next()
		if !ok {
			x.next = nil
			x.items = append(x.items, x.deferred...)
			x.deferred = nil
			return
		}
		x.items = append(x.items, item{Announcement: a})
	}
}

// encode makes a batch of the first items; nil where none is worth sending.
func (x *sender) encode() *pb.Batch {
	p := x.p
	now := p.s.cfg.Now()
	b := &pb.Batch{}
	sent := sentBatch{}
	size, n := 16, 0 // bytes: the sequence; items
	for ; n < len(x.items) && len(b.Announcements) < maxBatch; n++ {
		it := &x.items[n]
		m, err := encode(&it.Announcement, now)
		if err != nil {
			p.s.metrics.refused.WithLabelValues(p.state.Name, "sent", reasonOf(err)).Inc()
			p.s.cfg.Log.Debug("announcement_not_sent", "peer", p.state.Name, "error", err)
			continue
		}
		if size += proto.Size(m) + 4; size > maxBatchBytes { // tag, and a length of at most three bytes
			break
		}
		b.Announcements = append(b.Announcements, m)
		if !it.at.IsZero() && (sent.oldest.IsZero() || it.at.Before(sent.oldest)) {
			sent.oldest = it.at
		}
		if it.Deleted {
			sent.deletions = append(sent.deletions, *it)
		}
	}
	x.items = x.items[n:]
	if len(b.Announcements) == 0 {
		return nil
	}
	sent.count = len(b.Announcements)
	p.mu.Lock()
	p.sequence++
	b.Sequence = p.sequence
	p.inflight = append(p.inflight, sent)
	p.mu.Unlock()
	return b
}
