package sibling

import (
	"cmp"
	"context"

	"countersign/controller/session"
	pb "countersign/controller/sibling/proto"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// receiver serves the siblings' streams.
type receiver struct {
	pb.UnimplementedSiblingsServer
	service *Service
	ctx     context.Context // Run's
}

// inbound is the one stream of a sibling that counts. A newer one replaces it
// and waits for its end, so that what a sibling says is heard in order.
type inbound struct {
	superseded chan struct{}
	done       chan struct{}
}

// Announce implements the service.
func (r receiver) Announce(stream grpc.BidiStreamingServer[pb.Batch, pb.Ack]) error {
	s := r.service
	name, err := s.caller(stream.Context())
	if err != nil {
		s.metrics.unauthorised.Inc()
		s.cfg.Log.Warn("sibling_refused", "error", err)
		return err
	}
	in := s.enter(name)
	defer s.leave(name, in)
	if err := stream.Send(&pb.Ack{}); err != nil {
		return err
	}
	batches, ended := make(chan *pb.Batch), make(chan error, 1)
	go func() {
		for {
			b, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case batches <- b:
			case <-stream.Context().Done(): // also when the handler has returned
				return
			}
		}
	}()
	for last := uint64(0); ; last++ {
		var b *pb.Batch
		select {
		case <-r.ctx.Done():
			return status.Error(codes.Unavailable, "stopping")
		case <-in.superseded:
			return status.Error(codes.Aborted, "a newer stream of the same member")
		case err := <-ended:
			return err
		case b = <-batches:
		}
		if again, err := s.caller(stream.Context()); err != nil || again != name {
			return status.Errorf(codes.PermissionDenied, "%s is no sibling any more", name)
		}
		if b.Sequence != last+1 || len(b.Announcements) > maxBatch {
			return status.Errorf(codes.InvalidArgument, "batch %d of %d announcements after %d", b.Sequence, len(b.Announcements), last)
		}
		s.accept(name, b)
		if err := stream.Send(&pb.Ack{Sequence: b.Sequence}); err != nil {
			return err
		}
	}
}

// caller is the sibling at the other end; errors are gRPC's.
func (s *Service) caller(ctx context.Context) (string, error) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return "", status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", status.Error(codes.Unauthenticated, "no TLS")
	}
	name, err := s.cfg.PeerName(info.State)
	if err != nil {
		return "", status.Errorf(codes.Unauthenticated, "%v: %v", p.Addr, err)
	}
	if name == s.cfg.Self || !s.cfg.Sibling(name) {
		return "", status.Errorf(codes.PermissionDenied, "%v: %q is no sibling of %q", p.Addr, name, s.cfg.Self)
	}
	return name, nil
}

// enter makes the stream the one that counts. A sibling that dials is up, so it
// is dialled as well.
func (s *Service) enter(name string) *inbound {
	in := &inbound{superseded: make(chan struct{}), done: make(chan struct{})}
	s.mu.Lock()
	previous := s.inbound[name]
	s.inbound[name] = in
	if previous != nil {
		close(previous.superseded)
	}
	if p := s.peers[name]; p != nil {
		signal(p.retry)
	}
	s.mu.Unlock()
	if previous != nil {
		<-previous.done
	}
	return in
}

func (s *Service) leave(name string, in *inbound) {
	s.mu.Lock()
	if s.inbound[name] == in {
		delete(s.inbound, name)
	}
	s.mu.Unlock()
	close(in.done)
}

// accept hands on what is well formed.
func (s *Service) accept(name string, b *pb.Batch) {
	now := s.cfg.Now()
	batch := make([]session.Announcement, 0, len(b.Announcements))
	var first error
	for _, m := range b.Announcements {
		a, err := decode(m, name, now)
		if err != nil {
			s.metrics.refused.WithLabelValues(name, "received", reasonOf(err)).Inc()
			first = cmp.Or(first, err)
			continue
		}
		batch = append(batch, a)
	}
	if first != nil {
		s.cfg.Log.Warn("announcements_refused", "peer", name, "count", len(b.Announcements)-len(batch), "first", first)
	}
	if len(batch) > 0 {
		s.cfg.Accept(name, batch)
		s.metrics.received.WithLabelValues(name).Add(float64(len(batch)))
	}
}
