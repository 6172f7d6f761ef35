package p4rtserver

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// APIVersion is the P4Runtime version that Capabilities reports.
const APIVersion = "1.4.1"

// errorSpace names the origin of the codes in p4.v1.Error.
const errorSpace = "countersign"

// Options are the parameters of a server. The zero value serves device 0 with
// the defaults named below.
type Options struct {
	// DeviceID is the P4Runtime device id of the target.
	DeviceID uint64
	// PacketInQueue bounds the packets that wait for one controller to read
	// them; 0: 4,096. A further packet is dropped.
	PacketInQueue int
	// MaxMessageBytes bounds a received message; 0: 64 MiB, room for a
	// compiled program.
	MaxMessageBytes int
	// Registerer takes the server's collectors; nil: none.
	Registerer prometheus.Registerer
	// Logger takes events; nil: slog.Default.
	Logger *slog.Logger
	// Now is the clock of notifications; nil: time.Now.
	Now func() time.Time
}

// Server is a P4Runtime server for one device; New makes it. It is safe for
// concurrent use.
type Server struct {
	p4v1.UnimplementedP4RuntimeServer
	target  Target
	opts    Options
	metrics *metrics
	arb     arbiter
	done    chan struct{}
	stop    sync.Once

	// mu serialises changes of the forwarding state against reads. It is
	// taken after arb.mu.
	mu sync.RWMutex
	// cur is the pipeline that Write and Read refer to: the one that forwards,
	// or the one that VERIFY_AND_SAVE has put aside. nil: none was set.
	cur *loaded

	// liveMu guards live against PacketOut. It is taken after mu.
	liveMu sync.RWMutex
	live   *loaded // forwards; nil: none was committed
}

// New makes a server for a target. It fails where a collector cannot be
// registered.
func New(target Target, opts Options) (*Server, error) {
	if opts.PacketInQueue <= 0 {
		opts.PacketInQueue = 4096
	}
	if opts.MaxMessageBytes <= 0 {
		opts.MaxMessageBytes = 64 << 20
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	m, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, fmt.Errorf("p4runtime metrics: %w", err)
	}
	s := &Server{target: target, opts: opts, metrics: m, done: make(chan struct{})}
	s.arb.deviceID, s.arb.log = opts.DeviceID, opts.Logger
	return s, nil
}

// observe counts a request by its outcome.
func (s *Server) observe(method string, err error) error {
	s.metrics.rpcs.WithLabelValues(method, status.Code(err).String()).Inc()
	return err
}

// Capabilities implements p4.v1.P4Runtime.
func (s *Server) Capabilities(context.Context, *p4v1.CapabilitiesRequest) (*p4v1.CapabilitiesResponse, error) {
	return &p4v1.CapabilitiesResponse{P4RuntimeApiVersion: APIVersion}, nil
}

// Write implements p4.v1.P4Runtime.
func (s *Server) Write(_ context.Context, req *p4v1.WriteRequest) (*p4v1.WriteResponse, error) {
	if err := s.observe("Write", s.write(req)); err != nil {
		return nil, err
	}
	return &p4v1.WriteResponse{}, nil
}

func (s *Server) write(req *p4v1.WriteRequest) error {
	done, err := s.arb.authorize(req.GetDeviceId(), writeRoleID(req), req.GetRole(), req.GetElectionId())
	if err != nil {
		return rpcError(err)
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur == nil {
		return rpcError(errNoPipeline)
	}
	switch req.GetAtomicity() {
	case p4v1.WriteRequest_CONTINUE_ON_ERROR:
	case p4v1.WriteRequest_ROLLBACK_ON_ERROR, p4v1.WriteRequest_DATAPLANE_ATOMIC:
		return rpcError(failf(ErrUnimplemented, "atomicity %v is not supported, expected CONTINUE_ON_ERROR", req.GetAtomicity()))
	default:
		return rpcError(failf(ErrInvalidArgument, "atomicity %v is unknown, expected CONTINUE_ON_ERROR", req.GetAtomicity()))
	}
	var errs batchErrors
	for i, u := range req.GetUpdates() {
		if err := s.cur.update(u); err != nil {
			errs.set(i, len(req.GetUpdates()), err)
		}
	}
	s.cur.pipeline.Flush()
	s.countUpdates(len(req.GetUpdates()), errs.list)
	return errs.status("update")
}

var errNoPipeline = failf(ErrFailedPrecondition, "no forwarding pipeline config is set")

func (s *Server) countUpdates(n int, errs []error) {
	byCode := make(map[codes.Code]int)
	for _, err := range errs {
		if err != nil {
			byCode[codeOf(err)]++
			n--
		}
	}
	byCode[codes.OK] = n
	for code, n := range byCode {
		s.metrics.updates.WithLabelValues(code.String()).Add(float64(n))
	}
}

// batchErrors gathers the errors of a batch. The zero value has none.
type batchErrors struct{ list []error }

func (b *batchErrors) set(i, n int, err error) {
	if b.list == nil {
		b.list = make([]error, n)
	}
	b.list[i] = err
}

// maxErrorText bounds the messages in one status, in bytes; gRPC carries them
// in a header, whose size clients limit.
const maxErrorText = 1 << 20

// status is the RPC's status: nil, or UNKNOWN with a p4.v1.Error for each
// element of the batch, in order.
func (b *batchErrors) status(what string) error {
	if b.list == nil {
		return nil
	}
	ok, err := anypb.New(&p4v1.Error{})
	if err != nil {
		return rpcError(err)
	}
	st := &rpcstatus.Status{Code: int32(codes.Unknown)}
	room, failed := maxErrorText, 0
	for i, err := range b.list {
		if err == nil {
			st.Details = append(st.Details, ok)
			continue
		}
		if failed++; failed == 1 {
			st.Message = fmt.Sprintf("%s %d of %d: %v", what, i+1, len(b.list), err)
		}
		e := &p4v1.Error{CanonicalCode: int32(codeOf(err)), Space: errorSpace}
		if text := err.Error(); len(text) <= room {
			e.Message = text
			room -= len(text)
		}
		detail, err := anypb.New(e)
		if err != nil { // a name that is no UTF-8
			e.Message = ""
			if detail, err = anypb.New(e); err != nil {
				return rpcError(err)
			}
		}
		st.Details = append(st.Details, detail)
	}
	if failed > 1 {
		st.Message += fmt.Sprintf("; %d errors in all", failed)
	}
	return status.FromProto(st).Err()
}

// Read implements p4.v1.P4Runtime.
func (s *Server) Read(req *p4v1.ReadRequest, rpc p4v1.P4Runtime_ReadServer) error {
	// Responses are marshalled under the lock, for a consistent picture, and
	// sent after it, so that a slow reader holds up nobody.
	var ready []*grpc.PreparedMsg
	err := s.read(req, func(resp *p4v1.ReadResponse) error {
		m := new(grpc.PreparedMsg)
		if err := m.Encode(rpc, resp); err != nil {
			return err
		}
		ready = append(ready, m)
		return nil
	})
	for i, m := range ready {
		if sendErr := rpc.SendMsg(m); sendErr != nil {
			return s.observe("Read", sendErr)
		}
		ready[i] = nil
	}
	return s.observe("Read", err)
}

// read answers a request through emit, which must not keep the responses.
func (s *Server) read(req *p4v1.ReadRequest, emit func(*p4v1.ReadResponse) error) error {
	if req.GetDeviceId() != s.opts.DeviceID {
		return rpcError(failf(ErrNotFound, "there is no device %d here, expected %d", req.GetDeviceId(), s.opts.DeviceID))
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.cur == nil {
		return rpcError(errNoPipeline)
	}
	r := reader{l: s.cur, emit: func(resp *p4v1.ReadResponse) error {
		s.metrics.entities.Add(float64(len(resp.GetEntities())))
		return emit(resp)
	}}
	var errs batchErrors
	for i, e := range req.GetEntities() {
		err := r.read(e)
		if r.err != nil {
			return r.err
		}
		if err != nil {
			errs.set(i, len(req.GetEntities()), err)
		}
	}
	if err := r.flush(); err != nil {
		return err
	}
	return errs.status("read request")
}

// SetForwardingPipelineConfig implements p4.v1.P4Runtime.
func (s *Server) SetForwardingPipelineConfig(_ context.Context, req *p4v1.SetForwardingPipelineConfigRequest) (*p4v1.SetForwardingPipelineConfigResponse, error) {
	err := s.setPipeline(req)
	log := s.opts.Logger.With("action", req.GetAction().String(), "cookie", req.GetConfig().GetCookie().GetCookie())
	if err != nil {
		log.Warn("forwarding pipeline config refused", "err", err)
	} else {
		log.Info("forwarding pipeline config accepted")
	}
	if err := s.observe("SetForwardingPipelineConfig", rpcError(err)); err != nil {
		return nil, err
	}
	return &p4v1.SetForwardingPipelineConfigResponse{}, nil
}

func (s *Server) setPipeline(req *p4v1.SetForwardingPipelineConfigRequest) error {
	done, err := s.arb.authorize(req.GetDeviceId(), pipelineRoleID(req), req.GetRole(), req.GetElectionId())
	if err != nil {
		return err
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := req.GetConfig()
	if req.GetAction() == p4v1.SetForwardingPipelineConfigRequest_COMMIT {
		switch {
		case cfg != nil:
			return failf(ErrInvalidArgument, "COMMIT takes no config, it commits the saved one")
		case s.cur == nil || s.cur == s.live:
			return failf(ErrNotFound, "no config is saved, expected VERIFY_AND_SAVE first")
		}
		return s.commit(s.cur)
	}
	if cfg == nil {
		return failf(ErrInvalidArgument, "%v: the config is missing", req.GetAction())
	}
	switch req.GetAction() {
	case p4v1.SetForwardingPipelineConfigRequest_VERIFY:
		l, err := newLoaded(s, cfg)
		if err != nil {
			return err
		}
		l.pipeline.Close()
		return nil
	case p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_SAVE:
		l, err := newLoaded(s, cfg)
		if err != nil {
			return err
		}
		s.dropSaved()
		s.cur = l
		return nil
	case p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT:
		return s.replace(cfg, nil)
	case p4v1.SetForwardingPipelineConfigRequest_RECONCILE_AND_COMMIT:
		return s.reconcile(cfg)
	}
	return failf(ErrInvalidArgument, "action %v is unknown, expected VERIFY, VERIFY_AND_SAVE, VERIFY_AND_COMMIT, COMMIT or RECONCILE_AND_COMMIT", req.GetAction())
}

// replace commits a new pipeline, with the entries of old if that is not nil.
func (s *Server) replace(cfg *p4v1.ForwardingPipelineConfig, old *loaded) error {
	l, err := newLoaded(s, cfg)
	if err != nil {
		return err
	}
	if old != nil {
		if err := l.adopt(old); err != nil {
			l.pipeline.Close()
			return err
		}
	}
	if err := s.commit(l); err != nil {
		l.pipeline.Close()
		return err
	}
	return nil
}

// reconcile commits a config and keeps the forwarding state.
func (s *Server) reconcile(cfg *p4v1.ForwardingPipelineConfig) error {
	if l := s.live; l != nil && l == s.cur &&
		proto.Equal(cfg.GetP4Info(), l.cfg.GetP4Info()) &&
		slices.Equal(cfg.GetP4DeviceConfig(), l.cfg.GetP4DeviceConfig()) {
		l.cfg = cfg // the cookie may differ
		return nil
	}
	return s.replace(cfg, s.live)
}

// commit makes l forward. On an error everything stays as it was.
func (s *Server) commit(l *loaded) error {
	old := s.live
	if old != nil {
		old.active.Store(false)
	}
	l.active.Store(true)
	if err := l.pipeline.Activate(); err != nil {
		l.active.Store(false)
		if old != nil {
			old.active.Store(true)
		}
		return fmt.Errorf("the target cannot activate the pipeline: %w", err)
	}
	if s.cur != l {
		s.dropSaved()
	}
	s.liveMu.Lock()
	s.cur, s.live = l, l
	s.liveMu.Unlock()
	if old != nil {
		old.pipeline.Close()
	}
	return nil
}

// dropSaved discards a pipeline that was saved and not committed.
func (s *Server) dropSaved() {
	if s.cur != nil && s.cur != s.live {
		s.cur.pipeline.Close()
	}
	s.cur = s.live
}

// GetForwardingPipelineConfig implements p4.v1.P4Runtime.
func (s *Server) GetForwardingPipelineConfig(_ context.Context, req *p4v1.GetForwardingPipelineConfigRequest) (*p4v1.GetForwardingPipelineConfigResponse, error) {
	resp, err := s.getPipeline(req)
	return resp, s.observe("GetForwardingPipelineConfig", rpcError(err))
}

func (s *Server) getPipeline(req *p4v1.GetForwardingPipelineConfigRequest) (*p4v1.GetForwardingPipelineConfigResponse, error) {
	if req.GetDeviceId() != s.opts.DeviceID {
		return nil, failf(ErrNotFound, "there is no device %d here, expected %d", req.GetDeviceId(), s.opts.DeviceID)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	resp := new(p4v1.GetForwardingPipelineConfigResponse)
	if s.cur == nil {
		return resp, nil
	}
	cfg := s.cur.cfg
	resp.Config = &p4v1.ForwardingPipelineConfig{Cookie: cfg.GetCookie()}
	switch req.GetResponseType() {
	case p4v1.GetForwardingPipelineConfigRequest_ALL:
		resp.Config.P4Info, resp.Config.P4DeviceConfig = cfg.GetP4Info(), cfg.GetP4DeviceConfig()
	case p4v1.GetForwardingPipelineConfigRequest_COOKIE_ONLY:
	case p4v1.GetForwardingPipelineConfigRequest_P4INFO_AND_COOKIE:
		resp.Config.P4Info = cfg.GetP4Info()
	case p4v1.GetForwardingPipelineConfigRequest_DEVICE_CONFIG_AND_COOKIE:
		resp.Config.P4DeviceConfig = cfg.GetP4DeviceConfig()
	default:
		return nil, failf(ErrInvalidArgument, "response type %v is unknown", req.GetResponseType())
	}
	return resp, nil
}

// Close ends the streams and discards the pipelines. Requests that follow find
// no pipeline.
func (s *Server) Close() {
	s.stop.Do(func() { close(s.done) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropSaved()
	s.liveMu.Lock()
	old := s.live
	s.cur, s.live = nil, nil
	s.liveMu.Unlock()
	if old != nil {
		old.active.Store(false)
		old.pipeline.Close()
	}
}
