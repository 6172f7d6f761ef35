package p4rtserver

import (
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// ReadAll answers a request without gRPC.
func (s *Server) ReadAll(req *p4v1.ReadRequest) ([]*p4v1.Entity, error) {
	var out []*p4v1.Entity
	err := s.read(req, func(resp *p4v1.ReadResponse) error {
		out = append(out, resp.GetEntities()...)
		return nil
	})
	return out, err
}

// Stream is a stream without gRPC.
type Stream struct{ st *stream }

// OpenStream opens a stream whose queues nobody empties.
func (s *Server) OpenStream() Stream { return Stream{s.newStream()} }

// Handle handles a message; an error ends the stream.
func (st Stream) Handle(m *p4v1.StreamMessageRequest) error {
	err := st.st.handle(m)
	if err != nil {
		st.st.srv.arb.leave(st.st)
	}
	return err
}
