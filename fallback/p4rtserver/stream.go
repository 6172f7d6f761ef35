package p4rtserver

import (
	"context"
	"errors"
	"io"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// notificationQueue bounds what waits for a controller beside packets.
	notificationQueue = 1024
	// idleBytes is about how large an idle timeout notification becomes.
	idleBytes = 256 << 10
)

// stream is one StreamChannel. The fields of the arbiter are guarded by
// arbiter.mu; the queues are filled by anyone and emptied by the stream's
// handler.
type stream struct {
	srv      *Server
	role     *role       // arbiter
	election *electionID // arbiter
	gone     bool        // arbiter: it has left

	control chan *p4v1.StreamMessageResponse // arbitration
	notes   chan *p4v1.StreamMessageResponse // idle timeouts, errors
	packets chan *p4v1.StreamMessageResponse
	// end has the first error that ends the stream.
	end chan error
}

// StreamChannel implements p4.v1.P4Runtime.
func (s *Server) StreamChannel(rpc p4v1.P4Runtime_StreamChannelServer) error {
	st := s.newStream()
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	defer s.arb.leave(st)
	// The receiver ends when this function's return cancels the context.
	go func() { st.finish(st.receive(rpc)) }()
	return st.send(rpc.Context(), rpc.Send)
}

func (s *Server) newStream() *stream {
	return &stream{
		srv:     s,
		control: make(chan *p4v1.StreamMessageResponse, 64),
		notes:   make(chan *p4v1.StreamMessageResponse, notificationQueue),
		packets: make(chan *p4v1.StreamMessageResponse, s.opts.PacketInQueue),
		end:     make(chan error, 1),
	}
}

// finish ends the stream with err; only the first call counts.
func (st *stream) finish(err error) {
	select {
	case st.end <- err:
	default:
	}
}

func (st *stream) receive(rpc p4v1.P4Runtime_StreamChannelServer) error {
	for {
		m, err := rpc.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := st.handle(m); err != nil {
			// Take it out at once: the handler may be busy sending.
			st.srv.arb.leave(st)
			return err
		}
	}
}

// send empties the queues until the stream ends. Arbitration goes first.
func (st *stream) send(ctx context.Context, send func(*p4v1.StreamMessageResponse) error) error {
	for {
		var m *p4v1.StreamMessageResponse
		select {
		case m = <-st.control:
		default:
			select {
			case m = <-st.control:
			case m = <-st.notes:
			case m = <-st.packets:
				st.srv.metrics.packetIn.WithLabelValues("sent").Inc()
			case err := <-st.end:
				return err
			case <-st.srv.done:
				return status.Error(codes.Unavailable, "the server is shutting down")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

// handle handles a message. An error ends the stream.
func (st *stream) handle(m *p4v1.StreamMessageRequest) error {
	switch x := m.GetUpdate().(type) {
	case *p4v1.StreamMessageRequest_Arbitration:
		return st.srv.arb.update(st, x.Arbitration)
	case *p4v1.StreamMessageRequest_Packet:
		err := st.packetOut(x.Packet)
		st.srv.metrics.packetOut.WithLabelValues(codeOf(err).String()).Inc()
		if err != nil {
			st.report(err, &p4v1.StreamError{Details: &p4v1.StreamError_PacketOut{
				PacketOut: &p4v1.PacketOutError{PacketOut: x.Packet}}})
		}
	case *p4v1.StreamMessageRequest_DigestAck:
		st.report(st.digestAck(x.DigestAck), &p4v1.StreamError{Details: &p4v1.StreamError_DigestListAck{
			DigestListAck: &p4v1.DigestListAckError{DigestListAck: x.DigestAck}}})
	case *p4v1.StreamMessageRequest_Other:
		st.report(failf(ErrUnimplemented, "this target knows no other stream messages"),
			&p4v1.StreamError{Details: &p4v1.StreamError_Other{Other: &p4v1.StreamOtherError{Other: x.Other}}})
	default:
		st.report(failf(ErrInvalidArgument, "the stream message is empty"),
			&p4v1.StreamError{Details: &p4v1.StreamError_Other{Other: &p4v1.StreamOtherError{}}})
	}
	return nil
}

func (st *stream) packetOut(p *p4v1.PacketOut) error {
	if !st.srv.arb.primary(st) {
		return failf(ErrPermissionDenied, "only the primary controller of a role sends packets")
	}
	st.srv.liveMu.RLock()
	defer st.srv.liveMu.RUnlock()
	l := st.srv.live
	if l == nil {
		return failf(ErrFailedPrecondition, "no forwarding pipeline config is committed")
	}
	md, err := decodeMetadata(l.schema.packetOut, p.GetMetadata())
	if err != nil {
		return err
	}
	return l.pipeline.PacketOut(md, p.GetPayload())
}

func (st *stream) digestAck(a *p4v1.DigestListAck) error {
	st.srv.liveMu.RLock()
	defer st.srv.liveMu.RUnlock()
	if l := st.srv.live; l != nil {
		return l.schema.missing("digest", a.GetDigestId())
	}
	return failf(ErrFailedPrecondition, "no forwarding pipeline config is committed")
}

// report queues an error for the controller; it is dropped where there is no
// room.
func (st *stream) report(err error, e *p4v1.StreamError) {
	e.CanonicalCode, e.Message = int32(codeOf(err)), err.Error()
	st.note(&p4v1.StreamMessageResponse{Update: &p4v1.StreamMessageResponse_Error{Error: e}}, "error")
}

func (st *stream) note(m *p4v1.StreamMessageResponse, kind string) {
	select {
	case st.notes <- m:
	default:
		st.srv.metrics.notesDropped.WithLabelValues(kind).Inc()
	}
}

// notify queues an arbitration message. They are never dropped: a controller
// that does not read them loses its stream.
func (st *stream) notify(m *p4v1.MasterArbitrationUpdate) {
	select {
	case st.control <- &p4v1.StreamMessageResponse{Update: &p4v1.StreamMessageResponse_Arbitration{Arbitration: m}}:
	default:
		st.finish(status.Error(codes.ResourceExhausted, "the controller does not read its arbitration messages"))
	}
}

// PacketIn implements Upcalls.
func (l *loaded) PacketIn(metadata [][]byte, payload []byte) {
	s := l.srv
	header := l.schema.packetIn
	if len(metadata) != len(header) {
		s.metrics.packetIn.WithLabelValues("malformed").Inc()
		return
	}
	primaries := s.arb.primaries.Load()
	if primaries == nil || len(*primaries) == 0 || !l.active.Load() {
		s.metrics.packetIn.WithLabelValues("no_primary").Inc()
		return
	}
	size := len(payload)
	for i := range metadata {
		if len(metadata[i]) == 0 || BitLen(metadata[i]) > header[i].width {
			s.metrics.packetIn.WithLabelValues("malformed").Inc()
			return
		}
		size += len(metadata[i])
	}
	// One block for all bytes, one for all fields.
	buf := make([]byte, 0, size)
	take := func(b []byte) []byte {
		n := len(buf)
		buf = append(buf, b...)
		return buf[n:len(buf):len(buf)]
	}
	fields := make([]p4v1.PacketMetadata, len(header))
	list := make([]*p4v1.PacketMetadata, len(header))
	for i := range header {
		list[i] = &fields[i]
		list[i].MetadataId = header[i].id
		list[i].Value = take(Canonical(metadata[i]))
	}
	m := &p4v1.StreamMessageResponse{Update: &p4v1.StreamMessageResponse_Packet{
		Packet: &p4v1.PacketIn{Payload: take(payload), Metadata: list}}}
	for _, st := range *primaries {
		select {
		case st.packets <- m:
		default:
			s.metrics.packetIn.WithLabelValues("dropped").Inc()
		}
	}
}

// IdleTimeout implements Upcalls.
func (l *loaded) IdleTimeout(entries []Entry) {
	s := l.srv
	primaries := s.arb.primaries.Load()
	if primaries == nil || len(*primaries) == 0 || !l.active.Load() {
		return
	}
	var enc encoder
	note := new(p4v1.IdleTimeoutNotification)
	flush := func() {
		if len(note.TableEntry) == 0 {
			return
		}
		note.Timestamp = s.opts.Now().UnixNano()
		m := &p4v1.StreamMessageResponse{Update: &p4v1.StreamMessageResponse_IdleTimeoutNotification{IdleTimeoutNotification: note}}
		for _, st := range *primaries {
			st.note(m, "idle_timeout")
		}
		note, enc.size = new(p4v1.IdleTimeoutNotification), 0
	}
	for i := range entries {
		e := &entries[i]
		t := l.schema.tableByID[e.TableID]
		if t == nil {
			continue
		}
		te, size := enc.key(t, e)
		te.IdleTimeoutNs, te.Metadata = e.IdleTimeoutNs, enc.copy(e.Metadata)
		note.TableEntry = append(note.TableEntry, te)
		if enc.size += size + len(e.Metadata) + 16; enc.size >= idleBytes {
			flush()
		}
	}
	flush()
}

var _ Upcalls = (*loaded)(nil)
