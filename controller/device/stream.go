package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// link is one connection to the device. It is safe for concurrent use.
type link struct {
	client p4v1.P4RuntimeClient
	out    chan *p4v1.StreamMessageRequest // to the stream, which one goroutine may write
	ctx    context.Context                 // ends with the connection
}

// connect opens one connection and serves it until it ends, which it reports
// as an error; arbitrated says whether the device had answered to arbitration.
func (s *Session) connect(parent context.Context) (arbitrated bool, err error) {
	cc, err := dial(s.cfg.Target, s.cfg.TLS, s.cfg.RPCTimeout)
	if err != nil {
		return false, err
	}
	defer cc.Close()
	ctx, cancel := context.WithCancelCause(parent)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)

	l := &link{client: p4v1.NewP4RuntimeClient(cc), out: make(chan *p4v1.StreamMessageRequest, 256), ctx: ctx}
	stream, err := l.client.StreamChannel(ctx)
	if err != nil {
		return false, err
	}
	if (s.election == ElectionID{}) {
		s.election = newElectionID()
	}
	l.out <- s.arbitration()
	s.link.Store(l)
	defer s.link.Store(nil)
	s.setState(func(st *State) { st.Phase, st.Err = Connected, nil })

	answers := make(chan *p4v1.MasterArbitrationUpdate)
	tasks.Go(func() { cancel(s.receive(ctx, stream, answers)) })
	tasks.Go(func() {
		if err := s.transmit(ctx, stream, l.out); err != nil {
			cancel(err)
		}
	})
	tasks.Go(func() {
		if err := s.probe(ctx, l.client); err != nil {
			cancel(err)
		}
	})

	stop := func() {} // ends the generation in which this controller is primary
	defer func() { stop() }()
	primary := false
	silence := time.NewTimer(s.cfg.RPCTimeout)
	defer silence.Stop()
	takeover := time.NewTimer(0)
	takeover.Stop()
	defer takeover.Stop()
	var highest ElectionID
	for {
		select {
		case <-ctx.Done():
			err := context.Cause(ctx)
			if status.Code(err) == codes.InvalidArgument {
				// The id is in use, perhaps by another backup that took over
				// with the same raised id: back to the one of the configuration.
				s.election = s.cfg.ElectionID
			}
			return arbitrated, err

		case <-silence.C:
			return false, fmt.Errorf("no answer to arbitration within %v", s.cfg.RPCTimeout)

		case m := <-answers:
			arbitrated = true
			silence.Stop()
			takeover.Stop()
			if m.GetElectionId() != nil {
				highest = electionID(m.GetElectionId())
			}
			code := codes.Code(m.GetStatus().GetCode())
			if won := code == codes.OK; won != primary {
				primary = won
				s.metrics.mastership.Inc()
				stop()
				if stop = func() {}; won {
					stop = s.startLead(ctx, l)
				}
			}
			s.setState(func(st *State) {
				st.Highest = highest
				if !primary {
					st.Phase, st.Err = Backup, nil
				}
			})
			if code == codes.NotFound { // there is no primary
				takeover.Reset(jitter(s.cfg.Takeover))
			}

		case <-takeover.C:
			// Only an id that is not below the highest ever seen becomes primary.
			if s.election.Less(highest) {
				s.election = highest.next()
			}
			s.log.Info("device_takeover", "election_id", s.election)
			select {
			case l.out <- s.arbitration():
			case <-ctx.Done():
			}
		}
	}
}

// startLead runs lead in a new generation; stop ends it and waits.
func (s *Session) startLead(ctx context.Context, l *link) (stop func()) {
	s.setState(func(st *State) {
		st.Phase, st.Pushed, st.Revision, st.Err = Primary, false, 0, nil
		st.Generation++
	})
	ctx, cancel := context.WithCancel(ctx)
	election := s.election
	var lead sync.WaitGroup
	lead.Go(func() { s.lead(ctx, l, election) })
	return func() {
		cancel()
		lead.Wait()
	}
}

func (s *Session) arbitration() *p4v1.StreamMessageRequest {
	m := &p4v1.MasterArbitrationUpdate{DeviceId: s.cfg.DeviceID, ElectionId: s.election.proto()}
	if s.cfg.Role != "" {
		m.Role = &p4v1.Role{Name: s.cfg.Role}
	}
	return &p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{Arbitration: m}}
}

// receive dispatches what comes on the stream until its end, and never waits
// for a consumer. It returns why the stream ended.
func (s *Session) receive(ctx context.Context, stream p4v1.P4Runtime_StreamChannelClient, answers chan<- *p4v1.MasterArbitrationUpdate) error {
	complaints := rate.Sometimes{First: 1, Interval: time.Second}
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the device closed the stream")
		}
		if err != nil {
			return fmt.Errorf("stream: %w", err)
		}
		switch m := msg.GetUpdate().(type) {
		case *p4v1.StreamMessageResponse_Packet:
			s.enqueue(m.Packet)
		case *p4v1.StreamMessageResponse_IdleTimeoutNotification:
			n := float64(len(m.IdleTimeoutNotification.GetTableEntry()))
			s.metrics.idleTimeouts.Add(n)
			select {
			case s.idle <- m.IdleTimeoutNotification:
			default:
				s.metrics.idleTimeoutDrops.Add(n)
			}
		case *p4v1.StreamMessageResponse_Arbitration:
			select {
			case answers <- m.Arbitration:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case *p4v1.StreamMessageResponse_Error:
			code := codes.Code(m.Error.GetCanonicalCode())
			s.metrics.streamErrors.WithLabelValues(code.String()).Inc()
			complaints.Do(func() {
				s.log.Warn("device_stream_error", "code", code.String(), "message", m.Error.GetMessage())
			})
		default:
			s.metrics.unhandledStream.Inc()
		}
	}
}

func (s *Session) enqueue(p *p4v1.PacketIn) {
	i := 0
	if s.cfg.Classify != nil {
		i = s.cfg.Classify(p)
	}
	if i < 0 || i >= len(s.queues) {
		s.metrics.unhandledStream.Inc()
		return
	}
	s.metrics.packetIns[i].Inc()
	select {
	case s.queues[i] <- p:
	default:
		s.metrics.packetInDrops[i].Inc()
	}
}

// transmit writes to the stream until the connection ends.
func (s *Session) transmit(ctx context.Context, stream p4v1.P4Runtime_StreamChannelClient, out <-chan *p4v1.StreamMessageRequest) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-out:
			if err := stream.Send(m); errors.Is(err, io.EOF) {
				return nil // receive gets the reason
			} else if err != nil {
				return fmt.Errorf("stream: %w", err)
			}
			if m.GetPacket() != nil {
				s.metrics.packetOuts.Inc()
			}
		}
	}
}

// probe asks for the device's capabilities at intervals, so that one that
// hangs, or is gone behind a network, is noticed too.
func (s *Session) probe(ctx context.Context, client p4v1.P4RuntimeClient) error {
	tick := time.NewTicker(s.cfg.Probe)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			rctx, cancel := context.WithTimeout(ctx, s.cfg.RPCTimeout)
			_, err := client.Capabilities(rctx, &p4v1.CapabilitiesRequest{})
			cancel()
			if status.Code(err) == codes.DeadlineExceeded {
				return fmt.Errorf("no answer to Capabilities within %v: %w", s.cfg.RPCTimeout, err)
			}
		}
	}
}

// PacketOut sends a packet-out. It returns when the packet is queued for the
// stream; the device reports refused ones, if at all, in stream errors. It
// fails with ErrNotPrimary while this controller is not primary, and with
// ctx's error if that ends before there is room.
func (s *Session) PacketOut(ctx context.Context, p *p4v1.PacketOut) error {
	l := s.link.Load()
	if l == nil || s.writer.Load() == nil {
		return ErrNotPrimary
	}
	select {
	case l.out <- &p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Packet{Packet: p}}:
		return nil
	case <-l.ctx.Done():
		return ErrNotPrimary
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
