// Package sibling lets the members of one site tell each other of sessions, so
// that a reply may cross another firewall than the request (docs/design.md,
// Asymmetric return). Each member dials each of its siblings and streams what
// it has decided itself; what it hears goes to its controller and no further.
package sibling

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"countersign/controller/session"
	pb "countersign/controller/sibling/proto"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// ErrConfig is what every refusal of a Config wraps.
var ErrConfig = errors.New("sibling configuration")

// Bounds of the protocol and of what is kept for one peer.
const (
	maxBatch      = 1000     // announcements in a batch
	maxBatchBytes = 64 << 10 // encoded
	window        = 8        // batches sent and not acknowledged
	// maxQueue bounds the announcements that wait for a peer. Deletions, which
	// no resync makes up for, may fill it twice.
	maxQueue = 16384
)

const (
	backoffMin       = 50 * time.Millisecond
	backoffMax       = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	keepaliveTime    = 10 * time.Second // grpc's least
	keepaliveTimeout = 5 * time.Second
	flowWindow       = 2 * window * maxBatchBytes
)

// Peer is a sibling: a member's name and where it listens, host:port.
type Peer struct{ Name, Address string }

// Config is what a Service needs; all but Log, Metrics and Now must be set. The
// functions are called from several goroutines.
type Config struct {
	Self   string // the member's own name
	Listen string // host:port
	// ServerTLS, ClientTLS and PeerName are those of the directory's client.
	// PeerName and Sibling are asked again for each batch, because a connection
	// outlives an exclusion.
	ServerTLS *tls.Config
	ClientTLS func(member string) *tls.Config
	PeerName  func(tls.ConnectionState) (string, error)
	// Sibling reports whether that member is of this site; others are refused.
	Sibling func(name string) bool
	// Peers are the siblings at this time; Run and Refresh ask.
	Peers func() []Peer
	// Accept takes over what a sibling announced. It is called for one batch of
	// a sibling at a time, in their order, and what it has returned from is
	// acknowledged as usable; while it lasts, that sibling alone waits. A
	// session may be announced again.
	Accept func(from string, batch []session.Announcement)
	// Standing yields the member's own live sessions, which are sent in full to
	// a peer when it connects, and after announcements had to be dropped. A
	// session must be in it before it is announced, and out of it before its
	// deletion is.
	Standing func() iter.Seq[session.Announcement]

	Log     *slog.Logger          // default: discards
	Metrics prometheus.Registerer // default: none
	Now     func() time.Time      // default: time.Now
}

func (c *Config) validate() error {
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"self", c.Self == ""}, {"listen", c.Listen == ""}, {"server TLS", c.ServerTLS == nil}, {"client TLS", c.ClientTLS == nil},
		{"peer name", c.PeerName == nil}, {"sibling", c.Sibling == nil}, {"peers", c.Peers == nil},
		{"accept", c.Accept == nil}, {"standing", c.Standing == nil},
	} {
		if f.missing {
			return fmt.Errorf("%w: %s: is missing", ErrConfig, f.name)
		}
	}
	if c.ServerTLS.ClientAuth != tls.RequireAndVerifyClientCert {
		return fmt.Errorf("%w: server TLS: takes clients without a verified certificate", ErrConfig)
	}
	return nil
}

// PeerStatus is what is known of one sibling. The zero value is one that was
// never reached. Counts are since it became a sibling.
type PeerStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Connected: it takes our announcements. Hearing: it sends its own.
	Connected bool `json:"connected"`
	Hearing   bool `json:"hearing"`
	// Queued announcements wait; Sent were acknowledged; Dropped found no room;
	// Resyncs of Standing were begun, one for each connection at least.
	Queued  int    `json:"queued"`
	Sent    uint64 `json:"sent"`
	Dropped uint64 `json:"dropped"`
	Resyncs uint64 `json:"resyncs"`
	// Error is why the last connection ended, empty while one stands.
	Error string `json:"error,omitempty"`
}

// Service is a member's exchange with its siblings. Make it with New; its
// methods are safe for concurrent use.
type Service struct {
	cfg      Config
	metrics  *metrics
	listener net.Listener

	mu      sync.Mutex
	ctx     context.Context // Run's, nil while it does not run
	peers   map[string]*peer
	inbound map[string]*inbound
	running sync.WaitGroup // of peers
}

// New listens; Run serves and closes the listener in the end.
func New(cfg Config) (*Service, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for siblings: %w", err)
	}
	return &Service{cfg: cfg, metrics: m, listener: l, peers: map[string]*peer{}, inbound: map[string]*inbound{}}, nil
}

// Addr is where the service listens.
func (s *Service) Addr() net.Addr { return s.listener.Addr() }

// Run exchanges announcements until ctx ends, and returns its error; Accept is
// not called afterwards. It may be called once.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(s.cfg.ServerTLS)),
		grpc.MaxRecvMsgSize(maxBatchBytes),
		grpc.MaxConcurrentStreams(4),
		grpc.MaxHeaderListSize(8<<10),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.InitialWindowSize(flowWindow), grpc.InitialConnWindowSize(flowWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2}),
		grpc.WaitForHandlers(true),
	)
	pb.RegisterSiblingsServer(server, receiver{service: s, ctx: ctx})
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }()

	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	s.Refresh()

	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-served:
		err = fmt.Errorf("serve siblings: %w", err)
	}
	s.mu.Lock()
	s.ctx = nil
	s.mu.Unlock()
	cancel()
	server.Stop()
	s.running.Wait()
	return err
}

// Announce sends to every peer what this member has decided itself. It never
// blocks: what finds no room in a peer's queue is dropped and made up for by
// sending Standing again. For a peer that is away, deletions are kept.
func (s *Service) Announce(a ...session.Announcement) {
	if len(a) == 0 {
		return
	}
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		p.enqueue(a, now)
	}
}

// Refresh asks for the peers again: it dials new ones, leaves those that are no
// longer siblings, and tries at once those that could not be reached.
func (s *Service) Refresh() {
	peers := s.cfg.Peers()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		return
	}
	wanted := map[string]string{}
	for _, p := range peers {
		if p.Name != s.cfg.Self && p.Name != "" && p.Address != "" {
			wanted[p.Name] = p.Address
		}
	}
	for name, p := range s.peers {
		if wanted[name] == "" {
			p.cancel()
			delete(s.peers, name)
			s.cfg.Log.Info("sibling_left", "peer", name)
		}
	}
	for name, address := range wanted {
		if p := s.peers[name]; p != nil {
			p.readdress(address)
			continue
		}
		s.cfg.Log.Info("sibling_added", "peer", name, "address", address)
		ctx, cancel := context.WithCancel(s.ctx)
		p := newPeer(s, Peer{name, address}, cancel)
		s.peers[name] = p
		s.running.Go(func() { p.run(ctx) })
	}
}

// Status returns the peers by name.
func (s *Service) Status() []PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]PeerStatus, 0, len(s.peers))
	for name, p := range s.peers {
		st := p.status()
		st.Hearing = s.inbound[name] != nil
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
