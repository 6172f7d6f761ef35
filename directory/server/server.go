package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"countersign/directory/authority"
	"countersign/directory/bundle"
	"countersign/directory/keys"
	pb "countersign/directory/proto"
	"countersign/directory/static"
	"countersign/directory/store"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	authorityFile = "authority"
	storeFile     = "directory.db"
	// OperatorFile is the credential that Init leaves in the state directory.
	OperatorFile = "operator.credential"

	history  = 1024 // changes kept for watchers to resume from
	maxBatch = 256  // requests in one commit
	// commitRetry is the pause after a commit that the store refused.
	commitRetry = time.Second
)

// errDamaged is a store whose content makes no sense: nothing may be built on it.
var errDamaged = errors.New("store is damaged")

// Server is a running directory. Make it with New; it is safe for concurrent
// use.
type Server struct {
	cfg       Config
	authority *authority.Authority
	store     store.Store
	requests  chan *request
	joins     *rate.Limiter
	metrics   metrics
	stopped   chan struct{} // closed when the committer has ended

	mu      sync.RWMutex // guards what follows; only the committer writes
	state   *state
	changes []change      // oldest first
	lost    uint64        // newest sequence that changes no longer holds
	wake    chan struct{} // closed and replaced with each change
	present map[string]int
}

// request is one change that waits for its commit.
type request struct {
	apply func(*tx) error
	done  chan error
}

func (cfg *Config) authorityPath() string { return filepath.Join(cfg.State, authorityFile) }

// Init makes the keys of a new alliance in cfg.State, and the credential of its
// first operator, whose path it returns. It refuses a directory that exists.
func Init(cfg Config, operator string) (credential string, err error) {
	if err := cfg.Validate(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return "", err
	}
	vault, err := keys.OpenVault(cfg.KeyFile)
	if err != nil {
		return "", err
	}
	a, err := authority.Create(cfg.authorityPath(), vault, cfg.Alliance, cfg.Clock.Now)
	if err != nil {
		return "", err
	}
	identity, request, err := authority.NewIdentity()
	if err != nil {
		return "", err
	}
	certificates, _, err := a.Issue(request, operator, authority.Operator, cfg.OperatorLifetime)
	if err != nil {
		return "", err
	}
	credential = filepath.Join(cfg.State, OperatorFile)
	c := authority.Credential{Address: cfg.Address, Certificates: certificates, Key: identity.Seed()}
	return credential, c.Write(credential)
}

// New opens the state that Init has made.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	vault, err := keys.OpenVault(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	a, err := authority.Open(cfg.authorityPath(), vault, cfg.Clock.Now)
	if err != nil {
		return nil, err
	}
	if a.Alliance() != cfg.Alliance {
		return nil, fmt.Errorf("%w: alliance: %q, but the state in %s is of %q", ErrConfig, cfg.Alliance, cfg.State, a.Alliance())
	}
	st, err := store.OpenBolt(filepath.Join(cfg.State, storeFile))
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, authority: a, store: st,
		requests: make(chan *request, maxBatch),
		joins:    rate.NewLimiter(rate.Limit(cfg.JoinRate), cfg.JoinBurst),
		metrics:  newMetrics(cfg.Metrics),
		stopped:  make(chan struct{}),
		state:    newState(), wake: make(chan struct{}), present: map[string]int{},
	}, nil
}

// Run listens on cfg.Listen and serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	lis, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listen: %w", err), s.store.Close())
	}
	return s.Serve(ctx, lis)
}

// Serve serves on lis until ctx ends, then closes lis and the store. It must be
// called once.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	committed := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		defer close(s.stopped)
		committed <- s.commitAll(ctx, ready)
	}()
	var err error
	select {
	case <-ready:
		g := s.grpcServer()
		served := make(chan error, 1)
		go func() { served <- g.Serve(lis) }()
		s.cfg.Log.Info("directory_ready", "address", lis.Addr().String(), "alliance", s.cfg.Alliance)
		select {
		case err = <-served:
			served <- nil
		case err = <-committed:
			committed <- err
		case <-ctx.Done():
		}
		g.Stop()
		<-served // has closed lis
	case err = <-committed:
		committed <- err
		err = errors.Join(err, lis.Close())
	}
	cancel()
	if e := <-committed; err == nil {
		err = e
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, s.store.Close())
}

// change applies fn in the next commit and returns its error, or the commit's.
// fn may run more than once.
func (s *Server) change(ctx context.Context, fn func(*tx) error) error {
	r := &request{apply: fn, done: make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return store.ErrClosed
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return store.ErrClosed
	}
}

// commitAll is the one goroutine that changes anything. It closes ready once
// the state is loaded and a valid bundle is signed.
func (s *Server) commitAll(ctx context.Context, ready chan struct{}) error {
	for {
		err := s.commitWatched(ctx, &ready)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDamaged), errors.Is(err, store.ErrClosed):
			return err
		case err != nil:
			s.cfg.Log.Error("commit_failed", "error", err)
			select {
			case <-ctx.Done():
			case <-s.cfg.Clock.At(s.cfg.Clock.Now().Add(commitRetry)):
			}
		}
	}
}

// commitWatched loads the state and commits for as long as the store's watch
// lasts.
func (s *Server) commitWatched(ctx context.Context, ready *chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := s.load(ctx)
	if err != nil {
		return err
	}
	var batch []*request // first whatever fell due meanwhile
	for ok := true; ok; batch, ok, err = s.gather(ctx, watch) {
		if err := s.commit(ctx, watch, batch); err != nil {
			for _, r := range batch {
				r.done <- err
			}
			return err
		}
		if *ready != nil {
			close(*ready)
			*ready = nil
		}
	}
	return err
}

// load reads the whole state and starts the watch behind it.
func (s *Server) load(ctx context.Context) (<-chan store.Batch, error) {
	for {
		entries, revision, err := s.store.Range(ctx, "")
		if err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
		watch, err := s.store.Watch(ctx, "", revision)
		if errors.Is(err, store.ErrCompacted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
		st := newState()
		for _, e := range entries {
			if err := st.applyEvent(store.Event{Entry: e}, &change{topUps: map[string][]string{}}); err != nil {
				return nil, fmt.Errorf("%w: %q: %w", errDamaged, e.Key, err)
			}
		}
		st.revision = revision
		s.mu.Lock()
		s.state, s.changes, s.lost = st, nil, st.sequence
		s.wakeAll()
		s.mu.Unlock()
		return watch, nil
	}
}

// wakeAll lets watchers look. The caller holds s.mu.
func (s *Server) wakeAll() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// gather waits until there is something to commit: requests, or the time for
// advance, or a bundle to refresh. ok is false where the watch has ended.
func (s *Server) gather(ctx context.Context, watch <-chan store.Batch) (batch []*request, ok bool, err error) {
	for {
		at := s.dueAt()
		if !at.After(s.cfg.Clock.Now()) {
			return nil, true, nil
		}
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-s.cfg.Clock.At(at):
			return nil, true, nil
		case b, open := <-watch:
			if !open {
				return nil, false, ctx.Err()
			}
			if err := s.take(b); err != nil {
				return nil, false, err
			}
		case r := <-s.requests:
			batch = append(batch, r)
			for len(batch) < maxBatch {
				select {
				case r := <-s.requests:
					batch = append(batch, r)
					continue
				default:
				}
				break
			}
			return batch, true, nil
		}
	}
}

// dueAt is when something is due by itself, the zero time for now.
func (s *Server) dueAt() time.Time {
	if s.state.header == nil {
		return time.Time{}
	}
	at := s.refreshAt()
	if due := s.state.due(); !due.IsZero() && due.Before(at) {
		return due
	}
	return at
}

// refreshAt is when the bundle is signed anew although nothing has changed: at
// half of its life.
func (s *Server) refreshAt() time.Time {
	h := s.state.header
	return time.Unix(0, h.IssuedUnixNano+(h.ExpiryUnixNano-h.IssuedUnixNano)/2)
}

// take applies what the store has committed, ours or another server's.
func (s *Server) take(b store.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Revision <= s.state.revision {
		return nil
	}
	ch, err := s.state.apply(b)
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	s.changes = append(s.changes, ch)
	if len(s.changes) > history {
		s.lost = s.changes[0].sequence
		s.changes = slices.Delete(s.changes, 0, 1)
	}
	s.metrics.observe(s.state)
	s.wakeAll()
	return nil
}

// commit applies a batch of requests and whatever is due, in one transaction,
// and waits until the state has it. It answers the requests unless it returns
// an error.
func (s *Server) commit(ctx context.Context, watch <-chan store.Batch, batch []*request) error {
	for {
		t := &tx{
			tables: newTables(&s.state.tables), cfg: &s.cfg, now: s.cfg.Clock.Now(), sequence: s.state.sequence + 1,
			envelopes: map[string]*pb.Envelope{},
		}
		errs := make([]error, len(batch))
		for i, r := range batch {
			child := t.nested()
			if errs[i] = r.apply(child); errs[i] == nil {
				t.merge(child)
			}
		}
		if err := t.advance(); err != nil {
			return err
		}
		txn, err := s.sign(t)
		if err != nil {
			return err
		}
		revision := s.state.revision
		if txn != nil {
			revision, err = s.store.Commit(ctx, *txn)
		}
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
		// After a conflict the other server's change is on its way.
		for s.state.revision < revision || err != nil {
			b, open := <-watch
			if !open {
				if err != nil {
					return err
				}
				break
			}
			if e := s.take(b); e != nil {
				return e
			}
			if err != nil {
				break
			}
		}
		if err != nil {
			continue
		}
		for _, e := range t.events {
			s.cfg.Log.Log(ctx, e.level, e.name, e.attrs...)
			s.metrics.count(e)
		}
		for i, r := range batch {
			r.done <- errs[i]
		}
		return nil
	}
}

// sign makes the transaction of t: what it has changed, and a new header where
// that is part of the bundle. It returns nil where there is nothing to commit.
func (s *Server) sign(t *tx) (*store.Txn, error) {
	txn, err := s.state.transaction(&t.tables)
	if err != nil {
		return nil, err
	}
	for at, e := range t.envelopes {
		b, err := proto.Marshal(&pb.StoredEnvelope{Envelope: e, Sequence: t.sequence})
		if err != nil {
			return nil, err
		}
		txn.Put[at] = b
	}
	for _, at := range t.erase {
		if _, ok := txn.Put[at]; !ok {
			txn.Delete = append(txn.Delete, at)
		}
	}
	if len(t.records.changed) > 0 || s.state.header == nil || !t.now.Before(s.refreshAt()) || t.resign {
		records := map[string]*bundle.Record{}
		for id, r := range t.records.all {
			records[id] = r
		}
		carrier, err := static.CarrierOf(s.cfg.Carrier.Kind, s.cfg.Carrier.Protocol, s.cfg.Carrier.Port)
		if err != nil {
			return nil, err
		}
		h := &pb.Header{
			Version: t.sequence, IssuedUnixNano: t.now.UnixNano(), ExpiryUnixNano: t.now.Add(s.cfg.BundleLifetime).UnixNano(),
			Alliance: s.cfg.Alliance, Carrier: &pb.Carrier{Udp: carrier.UDP, Protocol: uint32(carrier.Protocol), Port: uint32(carrier.Port)},
			Root: bundle.Root(records), DirectorySealKey: s.authority.SealKey().PublicKey().Bytes(),
			Authorities: [][]byte{s.authority.Certificate().Raw}, ForcedVersion: s.state.header.GetForcedVersion(),
		}
		if t.forced {
			h.ForcedVersion = t.sequence
		}
		signed, err := s.authority.Sign(h)
		if err != nil {
			return nil, err
		}
		if txn.Put[headerKey], err = proto.Marshal(signed); err != nil {
			return nil, err
		}
	}
	if len(txn.Put) == 1 && len(txn.Delete) == 0 { // the sequence alone
		return nil, nil
	}
	return &txn, nil
}

// grpcServer returns the server with all services and limits.
func (s *Server) grpcServer() *grpc.Server {
	g := grpc.NewServer(s.options()...)
	pb.RegisterEnrolmentServer(g, &enrolment{s: s})
	pb.RegisterMembershipServer(g, &membership{s: s})
	pb.RegisterAdministrationServer(g, &administration{s: s})
	return g
}
