// Package devicetest is a scripted P4Runtime server for tests of a controller.
// It keeps entities as they were written, arbitrates by the specification's
// rules, and lets a test restart it, drop its streams, fail or hold chosen
// updates, and send what a data plane would send. It forwards no packets and
// checks no entity against a P4Info.
package devicetest

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// DeviceID is the only device that a Server knows.
const DeviceID = 1

// Server is a scripted P4Runtime server on a Unix socket; make it with New.
// Its methods are safe for concurrent use. Its exported fields are set before
// Start.
type Server struct {
	Target     string // to dial
	MaxMessage int    // bytes that it receives; default gRPC's 4 MiB
	Promote    bool   // give mastership to the next backup by itself, as bmv2 does
	// FailUpdate may return the error of an update, which is then not applied.
	// It must not call the Server's methods, nor may the next two.
	FailUpdate func(*p4v1.Update) *p4v1.Error
	// FailWrite may return the error of a whole Write.
	FailWrite func(*p4v1.WriteRequest) error
	// FailPipeline may return the error of a SetForwardingPipelineConfig.
	FailPipeline func(*p4v1.SetForwardingPipelineConfigRequest) error
	// CookieFirst makes the server take the cookie of a pipeline that it then
	// refuses, as bmv2 does in some cases.
	CookieFirst bool
	// TLS makes the server listen on a loopback port under TLS.
	TLS *tls.Config
	// Mute makes Capabilities never answer, as a device that hangs.
	Mute bool
	// Hold, if not nil, is received from before each Write is carried out.
	Hold chan struct{}

	grpc *grpc.Server
	done chan struct{}

	mu       sync.Mutex
	order    []string // keys of entities, in order of insertion
	entities map[string]*p4v1.Entity
	pipeline *p4v1.ForwardingPipelineConfig
	streams  []*stream
	highest  *p4v1.Uint128
	pushes   []p4v1.SetForwardingPipelineConfigRequest_Action
	writes   [][]*p4v1.Update
	packets  chan *p4v1.PacketOut
}

type stream struct {
	id      *p4v1.Uint128
	primary bool
	gone    bool
	out     chan *p4v1.StreamMessageResponse
	drop    context.CancelFunc
}

// New returns a server without pipeline and entities that t stops at its end.
func New(t testing.TB) *Server {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket holds about 100 bytes.
	dir, err := os.MkdirTemp("", "p4rt")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Target:   "unix://" + filepath.Join(dir, "s"),
		entities: map[string]*p4v1.Entity{},
		packets:  make(chan *p4v1.PacketOut, 1024),
	}
	t.Cleanup(func() {
		s.Stop()
		os.RemoveAll(dir)
	})
	return s
}

// Start serves until Stop; it may be called again after that.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	l, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	opts := []grpc.ServerOption{grpc.WaitForHandlers(true)}
	if s.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(s.TLS)))
	}
	if s.MaxMessage > 0 {
		opts = append(opts, grpc.MaxRecvMsgSize(s.MaxMessage))
	}
	s.grpc, s.done = grpc.NewServer(opts...), make(chan struct{})
	p4v1.RegisterP4RuntimeServer(s.grpc, &service{s: s})
	go func(g *grpc.Server, done chan struct{}) {
		defer close(done)
		g.Serve(l)
	}(s.grpc, s.done)
}

// listen takes the address of Target, which under TLS is chosen at the first
// Start and kept.
func (s *Server) listen() (net.Listener, error) {
	path, unix := strings.CutPrefix(s.Target, "unix://")
	switch {
	case s.TLS == nil:
		return net.Listen("unix", path)
	case unix:
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			s.Target = l.Addr().String()
		}
		return l, err
	}
	return net.Listen("tcp", s.Target)
}

// Stop closes the socket and all connections. Entities and the pipeline stay.
func (s *Server) Stop() {
	if s.grpc == nil {
		return
	}
	s.DropStreams()
	s.grpc.Stop()
	<-s.done
	s.grpc = nil
	s.mu.Lock()
	s.highest = nil
	s.mu.Unlock()
}

// Wipe forgets the entities, and the pipeline too if that is said, as a data
// plane that restarts does.
func (s *Server) Wipe(pipeline bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order, s.entities = nil, map[string]*p4v1.Entity{}
	if pipeline {
		s.pipeline = nil
	}
}

// DropStreams ends all streams.
func (s *Server) DropStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		st.drop()
	}
}

// Put stores entities as if a controller had written them.
func (s *Server) Put(entities ...*p4v1.Entity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entities {
		s.put(e)
	}
}

// Entities returns the stored entities in the order of their insertion.
func (s *Server) Entities() []*p4v1.Entity {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*p4v1.Entity
	for _, k := range s.order {
		all = append(all, proto.CloneOf(s.entities[k]))
	}
	return all
}

// SetCookie makes the server report a pipeline with this cookie.
func (s *Server) SetCookie(cookie uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pipeline = &p4v1.ForwardingPipelineConfig{Cookie: &p4v1.ForwardingPipelineConfig_Cookie{Cookie: cookie}}
}

// Pushes returns the actions of the pipelines that were accepted.
func (s *Server) Pushes() []p4v1.SetForwardingPipelineConfigRequest_Action {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pushes)
}

// Writes returns the updates of each Write RPC that came in since the last call.
func (s *Server) Writes() [][]*p4v1.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.writes
	s.writes = nil
	return w
}

// Send sends a message to the primary, as a data plane's event; it reports
// whether there is one.
func (s *Server) Send(m *p4v1.StreamMessageResponse) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		if st.primary {
			st.out <- m
			return true
		}
	}
	return false
}

// PacketOuts returns the packets that the primary sent.
func (s *Server) PacketOuts() <-chan *p4v1.PacketOut { return s.packets }

// key returns the identity of an entity as the server sees it.
func key(e *p4v1.Entity) string {
	k := proto.CloneOf(e)
	switch k := k.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		t := k.TableEntry
		k.TableEntry = &p4v1.TableEntry{TableId: t.GetTableId(), Match: t.GetMatch(), Priority: t.GetPriority(), IsDefaultAction: t.GetIsDefaultAction()}
		slices.SortFunc(t.GetMatch(), func(a, b *p4v1.FieldMatch) int { return cmp.Compare(a.GetFieldId(), b.GetFieldId()) })
	case *p4v1.Entity_ActionProfileMember:
		k.ActionProfileMember.Action = nil
	case *p4v1.Entity_ActionProfileGroup:
		k.ActionProfileGroup.Members, k.ActionProfileGroup.MaxSize = nil, 0
	case *p4v1.Entity_MeterEntry:
		k.MeterEntry.Config, k.MeterEntry.CounterData = nil, nil
	case *p4v1.Entity_PacketReplicationEngineEntry:
		if g := k.PacketReplicationEngineEntry.GetMulticastGroupEntry(); g != nil {
			g.Replicas = nil
		}
		if c := k.PacketReplicationEngineEntry.GetCloneSessionEntry(); c != nil {
			c.Replicas, c.ClassOfService, c.PacketLengthBytes = nil, 0, 0
		}
	}
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(k)
	return string(b)
}

func (s *Server) put(e *p4v1.Entity) {
	k := key(e)
	if _, ok := s.entities[k]; !ok {
		s.order = append(s.order, k)
	}
	s.entities[k] = proto.CloneOf(e)
}

// always says whether an entity exists without INSERT.
func always(e *p4v1.Entity) bool {
	return e.GetMeterEntry() != nil || e.GetCounterEntry() != nil || e.GetTableEntry().GetIsDefaultAction()
}

func (s *Server) apply(u *p4v1.Update) *p4v1.Error {
	if s.FailUpdate != nil {
		if e := s.FailUpdate(u); e != nil {
			return e
		}
	}
	k := key(u.GetEntity())
	_, exists := s.entities[k]
	exists = exists || always(u.GetEntity())
	switch u.GetType() {
	case p4v1.Update_INSERT:
		if exists {
			return fail(codes.AlreadyExists, "entry exists")
		}
		s.put(u.GetEntity())
	case p4v1.Update_MODIFY:
		if !exists {
			return fail(codes.NotFound, "no such entry")
		}
		s.put(u.GetEntity())
	case p4v1.Update_DELETE:
		if !exists {
			return fail(codes.NotFound, "no such entry")
		}
		delete(s.entities, k)
		s.order = slices.DeleteFunc(s.order, func(o string) bool { return o == k })
	default:
		return fail(codes.InvalidArgument, "no update type")
	}
	return &p4v1.Error{}
}

func fail(c codes.Code, message string) *p4v1.Error {
	return &p4v1.Error{CanonicalCode: int32(c), Message: message, Space: "devicetest"}
}

// matches says whether e is selected by the wildcard w.
func matches(w, e *p4v1.Entity) bool {
	switch w := w.GetEntity().(type) {
	case *p4v1.Entity_TableEntry:
		t, q := e.GetTableEntry(), w.TableEntry
		return t != nil && (q.GetTableId() == 0 || q.GetTableId() == t.GetTableId()) && q.GetIsDefaultAction() == t.GetIsDefaultAction()
	case *p4v1.Entity_ActionProfileMember:
		return e.GetActionProfileMember() != nil && e.GetActionProfileMember().GetActionProfileId() == w.ActionProfileMember.GetActionProfileId()
	case *p4v1.Entity_ActionProfileGroup:
		return e.GetActionProfileGroup() != nil && e.GetActionProfileGroup().GetActionProfileId() == w.ActionProfileGroup.GetActionProfileId()
	case *p4v1.Entity_MeterEntry:
		return e.GetMeterEntry() != nil && e.GetMeterEntry().GetMeterId() == w.MeterEntry.GetMeterId()
	case *p4v1.Entity_CounterEntry:
		return e.GetCounterEntry() != nil && e.GetCounterEntry().GetCounterId() == w.CounterEntry.GetCounterId()
	case *p4v1.Entity_PacketReplicationEngineEntry:
		p := e.GetPacketReplicationEngineEntry()
		if w.PacketReplicationEngineEntry.GetMulticastGroupEntry() != nil {
			return p.GetMulticastGroupEntry() != nil
		}
		return p.GetCloneSessionEntry() != nil
	}
	return false
}

// isPrimary is called with the lock held.
func (s *Server) isPrimary(id *p4v1.Uint128) bool {
	return slices.ContainsFunc(s.streams, func(st *stream) bool { return st.primary && proto.Equal(st.id, id) })
}

// notify tells every stream who is primary; it is called with the lock held.
func (s *Server) notify(only *stream) {
	code := codes.NotFound
	if slices.ContainsFunc(s.streams, func(st *stream) bool { return st.primary }) {
		code = codes.AlreadyExists
	}
	for _, st := range s.streams {
		if only != nil && st != only {
			continue
		}
		c := code
		if st.primary {
			c = codes.OK
		}
		st.out <- &p4v1.StreamMessageResponse{Update: &p4v1.StreamMessageResponse_Arbitration{Arbitration: &p4v1.MasterArbitrationUpdate{
			DeviceId: DeviceID, ElectionId: s.highest, Status: &rpcstatus.Status{Code: int32(c)},
		}}}
	}
}

func less(a, b *p4v1.Uint128) bool {
	return cmp.Or(cmp.Compare(a.GetHigh(), b.GetHigh()), cmp.Compare(a.GetLow(), b.GetLow())) < 0
}

// service keeps the RPCs out of Server's methods.
type service struct {
	p4v1.UnimplementedP4RuntimeServer
	s *Server
}

func (v *service) Capabilities(ctx context.Context, _ *p4v1.CapabilitiesRequest) (*p4v1.CapabilitiesResponse, error) {
	if v.s.Mute {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return &p4v1.CapabilitiesResponse{P4RuntimeApiVersion: "1.4.0"}, nil
}

func (v *service) Write(ctx context.Context, req *p4v1.WriteRequest) (*p4v1.WriteResponse, error) {
	s := v.s
	if s.Hold != nil {
		select {
		case <-s.Hold:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isPrimary(req.GetElectionId()) {
		return nil, status.Error(codes.PermissionDenied, "not primary")
	}
	s.writes = append(s.writes, req.GetUpdates())
	if s.FailWrite != nil {
		if err := s.FailWrite(req); err != nil {
			return nil, err
		}
	}
	if s.pipeline == nil {
		return nil, status.Error(codes.FailedPrecondition, "no pipeline")
	}
	st := status.New(codes.Unknown, "write failure").Proto()
	failed := false
	for _, u := range req.GetUpdates() {
		e := s.apply(u)
		failed = failed || e.GetCanonicalCode() != 0
		d, err := anypb.New(e)
		if err != nil {
			return nil, err
		}
		st.Details = append(st.Details, d)
	}
	if failed {
		return nil, status.ErrorProto(st)
	}
	return &p4v1.WriteResponse{}, nil
}

func (v *service) Read(req *p4v1.ReadRequest, out p4v1.P4Runtime_ReadServer) error {
	for _, w := range req.GetEntities() {
		resp := &p4v1.ReadResponse{}
		for _, e := range v.s.Entities() {
			if matches(w, e) {
				resp.Entities = append(resp.Entities, e)
			}
		}
		if err := out.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

func (v *service) GetForwardingPipelineConfig(context.Context, *p4v1.GetForwardingPipelineConfigRequest) (*p4v1.GetForwardingPipelineConfigResponse, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.s.pipeline == nil {
		return &p4v1.GetForwardingPipelineConfigResponse{}, nil
	}
	return &p4v1.GetForwardingPipelineConfigResponse{Config: &p4v1.ForwardingPipelineConfig{Cookie: v.s.pipeline.GetCookie()}}, nil
}

func (v *service) SetForwardingPipelineConfig(_ context.Context, req *p4v1.SetForwardingPipelineConfigRequest) (*p4v1.SetForwardingPipelineConfigResponse, error) {
	s := v.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isPrimary(req.GetElectionId()) {
		return nil, status.Error(codes.PermissionDenied, "not primary")
	}
	if s.FailPipeline != nil {
		if err := s.FailPipeline(req); err != nil {
			if s.CookieFirst {
				s.pipeline = req.GetConfig()
			}
			return nil, err
		}
	}
	if req.GetAction() == p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT {
		s.order, s.entities = nil, map[string]*p4v1.Entity{}
	}
	s.pipeline = req.GetConfig()
	s.pushes = append(s.pushes, req.GetAction())
	return &p4v1.SetForwardingPipelineConfigResponse{}, nil
}

func (v *service) StreamChannel(conn p4v1.P4Runtime_StreamChannelServer) error {
	s := v.s
	ctx, cancel := context.WithCancel(conn.Context())
	defer cancel()
	st := &stream{out: make(chan *p4v1.StreamMessageResponse, 4096), drop: cancel}
	defer s.leave(st)

	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	sender.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case m := <-st.out:
				if conn.Send(m) != nil {
					return
				}
			}
		}
	})
	// Recv does not return when the test drops the stream, so it runs beside.
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := conn.Recv()
			if err == nil {
				err = s.request(st, m)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return status.Error(codes.Unavailable, "stream dropped")
	}
}

func (s *Server) request(st *stream, m *p4v1.StreamMessageRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.gone {
		return status.Error(codes.Canceled, "stream ended")
	}
	switch m := m.GetUpdate().(type) {
	case *p4v1.StreamMessageRequest_Arbitration:
		if m.Arbitration.GetDeviceId() != DeviceID {
			return status.Error(codes.NotFound, "unknown device")
		}
		return s.arbitrate(st, m.Arbitration.GetElectionId())
	case *p4v1.StreamMessageRequest_Packet:
		if st.primary {
			s.packets <- m.Packet
		}
	}
	return nil
}

// arbitrate follows the rules of "Rules for Handling MasterArbitrationUpdate".
func (s *Server) arbitrate(st *stream, id *p4v1.Uint128) error {
	if slices.ContainsFunc(s.streams, func(o *stream) bool { return o != st && proto.Equal(o.id, id) }) {
		return status.Error(codes.InvalidArgument, "election id in use")
	}
	if st.id == nil {
		s.streams = append(s.streams, st)
	}
	was := st.primary
	st.id = id
	if s.highest == nil || !less(id, s.highest) {
		for _, o := range s.streams {
			o.primary = o == st
		}
		s.highest = id
		s.notify(nil)
		return nil
	}
	st.primary = false
	if was {
		s.notify(nil)
	} else {
		s.notify(st)
	}
	return nil
}

// leave removes a stream that ended.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.gone = true
	s.streams = slices.DeleteFunc(s.streams, func(o *stream) bool { return o == st })
	if !st.primary {
		return
	}
	if s.Promote && len(s.streams) > 0 {
		next := slices.MaxFunc(s.streams, func(a, b *stream) int {
			if less(a.id, b.id) {
				return -1
			}
			return 1
		})
		next.primary, s.highest = true, next.id
	}
	s.notify(nil)
}
