// Package device keeps the P4Runtime session of a controller with one data
// plane: it dials, arbitrates, pushes the pipeline where the cookie differs,
// reconciles the static entries with what it reads back, batches writes, and
// starts over when either side restarts.
//
// The package knows nothing of a particular P4 program and nothing of a
// particular target; section names in comments are those of the P4Runtime
// specification 1.4.
package device

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// ElectionID is a P4Runtime election id, ordered as a 128-bit number. The zero
// value is not a valid id ("Zero as Reserved Value").
type ElectionID struct {
	High, Low uint64
}

// Less reports whether e is lower than f.
func (e ElectionID) Less(f ElectionID) bool {
	return e.High < f.High || e.High == f.High && e.Low < f.Low
}

// String formats e as high.low.
func (e ElectionID) String() string { return fmt.Sprintf("%d.%d", e.High, e.Low) }

// next returns the id after e, or e if it is the highest there is.
func (e ElectionID) next() ElectionID {
	switch {
	case e.Low < math.MaxUint64:
		e.Low++
	case e.High < math.MaxUint64:
		e.High, e.Low = e.High+1, 0
	}
	return e
}

func (e ElectionID) proto() *p4v1.Uint128 { return &p4v1.Uint128{High: e.High, Low: e.Low} }

func electionID(u *p4v1.Uint128) ElectionID { return ElectionID{u.GetHigh(), u.GetLow()} }

// newElectionID returns an id that is higher than those of earlier processes
// whose clocks agree, and that two controllers do not share.
func newElectionID() ElectionID {
	var low [8]byte
	rand.Read(low[:])
	// The top bit stays clear, so that there is always room to raise the id.
	return ElectionID{uint64(time.Now().UnixNano()), binary.BigEndian.Uint64(low[:]) >> 1}
}

// Pipeline is the forwarding pipeline that a session wants on its device.
type Pipeline struct {
	Info         *p4configv1.P4Info // required
	DeviceConfig []byte             // opaque to the session; for bmv2 the compiled JSON
	Cookie       uint64             // identifies Info and DeviceConfig; a device that reports it keeps its pipeline
}

// Queue is one bounded queue of packet-ins.
type Queue struct {
	Name  string // label in metrics
	Depth int    // packets it holds before it drops; at least 1
}

// Backoff bounds the waits between attempts. Each wait is drawn from the upper
// half of a bound that doubles from Min to Max.
type Backoff struct {
	Min, Max time.Duration
}

// Config says what a session connects to and what it wants there. The zero
// value of each field but Target, Pipeline is usable; a Config is not changed
// by the session.
type Config struct {
	Name     string // label in logs and metrics; default: Target
	Target   string // unix:///path, or host:port
	TLS      *tls.Config
	DeviceID uint64
	Role     string // empty: the default role
	// ElectionID of this controller; the zero value stands for one made from
	// the time, so that the controller started last becomes primary.
	ElectionID ElectionID
	Pipeline   Pipeline
	// Reconcile tries RECONCILE_AND_COMMIT, which keeps the entries, before
	// VERIFY_AND_COMMIT where a pipeline is replaced. It is for targets that
	// can do it or say that they cannot: bmv2 breaks off halfway.
	Reconcile bool

	// Dynamic lists the P4Info ids (tables, meters, action profiles) whose
	// content the owner writes through Write. Everything else in the pipeline
	// belongs to the set given to SetDesired.
	Dynamic []uint32
	// Adopt is called once whenever the session has become primary and the
	// static entries are there, with the entries found in the Dynamic tables.
	// It compares them with what the owner wants and writes the difference
	// through Write. After an error it is called again. It returns when ctx
	// ends, and does not wait for Synced, which comes after it.
	Adopt func(ctx context.Context, found iter.Seq2[*p4v1.TableEntry, error]) error

	// Queues of packet-ins; default: one of 1024 packets.
	Queues []Queue
	// Classify returns the index in Queues of a packet-in; an index out of
	// range drops it. Nil stands for queue 0. It runs on the stream's receive
	// path and must not block.
	Classify func(*p4v1.PacketIn) int
	// IdleTimeouts is the depth of the queue of idle-timeout notifications;
	// default 256 messages.
	IdleTimeouts int

	MaxBatch    int           // updates in a Write RPC; default 500
	MaxMessage  int           // bytes of a Write RPC; default 3 MiB, as servers take 4 MiB unless told otherwise
	InFlight    int           // Write RPCs outstanding at once; default 2
	RPCTimeout  time.Duration // deadline of an RPC that writes or asks for little; default 10 s
	BulkTimeout time.Duration // deadline of reads and of the pipeline's push; default 60 s
	// Probe is the interval at which a Capabilities RPC shows that the device
	// still answers; default 5 s. (HTTP/2 pings more often than every five
	// minutes make gRPC servers close the connection.)
	Probe    time.Duration
	Backoff  Backoff       // default 50 ms to 5 s
	Takeover time.Duration // a backup waits up to this long before it takes over from a primary that is gone; default 100 ms

	Log     *slog.Logger // default: slog.Default()
	Metrics *Metrics     // default: counted, not exported
}

func (c *Config) setDefaults() {
	def(&c.Name, c.Target)
	if len(c.Queues) == 0 {
		c.Queues = []Queue{{"packet_in", 1024}}
	}
	def(&c.IdleTimeouts, 256)
	def(&c.MaxBatch, 500)
	def(&c.MaxMessage, 3<<20)
	def(&c.InFlight, 2)
	def(&c.RPCTimeout, 10*time.Second)
	def(&c.BulkTimeout, 60*time.Second)
	def(&c.Probe, 5*time.Second)
	def(&c.Backoff.Min, 50*time.Millisecond)
	def(&c.Backoff.Max, 5*time.Second)
	def(&c.Takeover, 100*time.Millisecond)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
}

func def[T comparable](p *T, v T) {
	if *p == *new(T) {
		*p = v
	}
}

// Phase is how far a session has come with its device.
type Phase int

// The phases of a session, in the order in which it passes them.
const (
	Disconnected Phase = iota
	Connected          // the stream is open; arbitration is not answered yet
	Backup             // another controller is primary, or none is
	Primary            // the pipeline or the static entries are not there yet
	Synced             // the pipeline and the desired entries are there, and the owner has adopted the dynamic ones
)

// String returns the phase's name in lower case.
func (p Phase) String() string {
	if p < Disconnected || p > Synced {
		return fmt.Sprintf("phase(%d)", int(p))
	}
	return [...]string{"disconnected", "connected", "backup", "primary", "synced"}[p]
}

// State is a snapshot of a session.
type State struct {
	Phase      Phase
	Generation uint64     // how often the session has become primary
	Pushed     bool       // the pipeline was pushed in this generation, so the device had lost its entries
	Revision   uint64     // number of the desired set that the device has; 0: none yet
	Highest    ElectionID // highest election id that the device has reported
	Err        error      // why the session is not further, or nil
}

// Errors that callers branch on.
var (
	// ErrNotPrimary says that this controller may not write to the device now:
	// it is disconnected, a backup, or has not confirmed the pipeline yet.
	ErrNotPrimary = errors.New("not primary for the device")
	// ErrUnconfirmed says that an update was sent and its outcome is not known.
	ErrUnconfirmed = errors.New("outcome unknown")
	// ErrDisconnected says that there is no connection to the device now.
	ErrDisconnected = errors.New("device not connected")
	// ErrClosed says that Run has returned.
	ErrClosed = errors.New("session closed")
	// ErrInsecureTarget says that the target is neither local nor under mutual TLS.
	ErrInsecureTarget = errors.New("target needs mutual TLS, a Unix socket or loopback")
	// ErrStatic says that an entity belongs to the desired set and so is not for Write.
	ErrStatic = errors.New("entity belongs to the desired set")
	// ErrInvalid says that an entity cannot be an entry of this pipeline.
	ErrInvalid = errors.New("invalid entity")
)

// Session is the supervised P4Runtime session with one device; make it with
// New. Its methods are safe for concurrent use; Run is called once.
type Session struct {
	cfg     Config
	schema  *schema
	log     *slog.Logger
	metrics *deviceMetrics
	queues  []chan *p4v1.PacketIn
	idle    chan *p4v1.IdleTimeoutNotification

	link   atomic.Pointer[link]   // the open connection, or nil
	writer atomic.Pointer[writer] // where Write goes, or nil

	mu       sync.Mutex
	state    State
	changed  chan struct{} // closed and replaced at each change of state
	desired  *entitySet    // nil until SetDesired
	revision uint64        // of desired
	kick     chan struct{} // holds a token when desired has changed
	started  bool
	closed   bool

	election ElectionID // of Run's goroutine
}

// New checks cfg and returns its session, which does nothing until Run.
func New(cfg Config) (*Session, error) {
	cfg.setDefaults()
	if cfg.Pipeline.Info == nil {
		return nil, fmt.Errorf("device %s: pipeline without P4Info", cfg.Name)
	}
	for _, q := range cfg.Queues {
		if q.Depth < 1 {
			return nil, fmt.Errorf("device %s: queue %q with depth %d", cfg.Name, q.Name, q.Depth)
		}
	}
	sch, err := newSchema(cfg.Pipeline.Info, cfg.Dynamic)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", cfg.Name, err)
	}
	if err := checkTarget(cfg.Target, cfg.TLS); err != nil {
		return nil, fmt.Errorf("device %s: %w", cfg.Name, err)
	}
	s := &Session{
		cfg:      cfg,
		schema:   sch,
		log:      cfg.Log.With("device", cfg.Name),
		metrics:  cfg.Metrics.device(cfg.Name, cfg.Queues),
		idle:     make(chan *p4v1.IdleTimeoutNotification, cfg.IdleTimeouts),
		changed:  make(chan struct{}),
		kick:     make(chan struct{}, 1),
		election: cfg.ElectionID,
	}
	for _, q := range cfg.Queues {
		s.queues = append(s.queues, make(chan *p4v1.PacketIn, q.Depth))
	}
	return s, nil
}

// Run keeps the session until ctx ends. It returns nil then, after all its
// goroutines have ended and the channels of PacketIns and IdleTimeouts are
// closed.
func (s *Session) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return fmt.Errorf("device %s: Run called twice", s.cfg.Name)
	}
	s.started = true
	s.mu.Unlock()
	defer func() {
		s.setState(func(st *State) { s.closed, st.Phase, st.Err = true, Disconnected, ErrClosed })
		for _, q := range s.queues {
			close(q)
		}
		close(s.idle)
	}()

	wait := newWaiter(s.cfg.Backoff)
	for ctx.Err() == nil {
		arbitrated, err := s.connect(ctx)
		if ctx.Err() != nil {
			break
		}
		s.setState(func(st *State) { st.Phase, st.Err = Disconnected, err })
		s.metrics.reconnects.Inc()
		if arbitrated {
			wait.reset()
		}
		d := wait.next()
		s.log.Warn("device_disconnected", "target", s.cfg.Target, "error", err, "retry_in", d)
		sleep(ctx, d)
	}
	return nil
}

// State returns the session's state.
func (s *Session) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Wait returns the first state from now on for which ok is true. It fails with
// ctx's error, or with ErrClosed once Run has returned.
func (s *Session) Wait(ctx context.Context, ok func(State) bool) (State, error) {
	for {
		s.mu.Lock()
		st, changed, closed := s.state, s.changed, s.closed
		s.mu.Unlock()
		if ok(st) {
			return st, nil
		}
		if closed {
			return st, ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return st, context.Cause(ctx)
		}
	}
}

// SetDesired replaces the static entries that the device shall have: table
// entries (also default actions and direct meters), action profile members and
// groups, multicast groups, clone sessions and meters. It returns the set's
// revision at once; Synced waits for it. Entities are kept and must not be
// changed afterwards. Until the first call the session leaves static entries
// as they are, and is not Synced. A default action that another process set
// and this set does not name stays.
//
// It fails with ErrInvalid where an entity is not one of this pipeline, stands
// twice, or is dynamic; the set is then as before.
func (s *Session) SetDesired(entities []*p4v1.Entity) (revision uint64, err error) {
	set, err := s.schema.desiredSet(entities)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.desired = set
	s.revision++
	revision = s.revision
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
	return revision, nil
}

// Synced waits until the device has the desired set of this revision or of a
// later one.
func (s *Session) Synced(ctx context.Context, revision uint64) error {
	_, err := s.Wait(ctx, func(st State) bool { return st.Phase == Synced && st.Revision >= revision })
	return err
}

// PacketIns returns queue i of Config.Queues. A full queue drops, and counts,
// what comes next. It stays open across reconnects until Run returns.
func (s *Session) PacketIns(i int) <-chan *p4v1.PacketIn { return s.queues[i] }

// IdleTimeouts returns the notifications of entries that no packet has hit for
// their time-to-live. The device repeats them, so a full queue may drop some.
func (s *Session) IdleTimeouts() <-chan *p4v1.IdleTimeoutNotification { return s.idle }

// setState changes the state under the lock and tells those who wait.
func (s *Session) setState(change func(*State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.state.Phase
	change(&s.state)
	close(s.changed)
	s.changed = make(chan struct{})
	s.metrics.phase.Set(float64(s.state.Phase))
	if s.state.Phase != before {
		s.log.Info("device_state", "phase", s.state.Phase.String(), "generation", s.state.Generation)
	}
}
