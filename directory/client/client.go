// Package client is what a controller uses of the directory: it enrols, keeps
// the member's keys, follows the bundle, and works on the last valid one while
// the directory is away.
package client

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/bundle"
	"countersign/directory/clock"
	"countersign/directory/keys"
	pb "countersign/directory/proto"
	"countersign/tag"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
)

// Errors that callers branch on.
var (
	// ErrNotJoined is a state directory without an identity: join first.
	ErrNotJoined = errors.New("not a member yet")
	// ErrJoined is a state directory that has an identity.
	ErrJoined = errors.New("a member already")
	// ErrUnavailable is a directory that is not connected.
	ErrUnavailable = errors.New("directory not connected")
	// ErrUnknownPeer is a certificate of no active member.
	ErrUnknownPeer = errors.New("not an active member of the alliance")
	// ErrConfig is what every refusal of a Config wraps.
	ErrConfig = errors.New("directory client configuration")
)

const (
	identityFile = "identity"
	ringFile     = "keyring"
	bundleFile   = "bundle"

	callTimeout = 10 * time.Second
	maxUpdate   = 64 << 20 // bytes
	spareKeys   = 2
)

// Config is what a member's client needs. The zero value lacks State.
type Config struct {
	State   string `yaml:"state"`    // directory, created with mode 0700
	KeyFile string `yaml:"key_file"` // 32 bytes that encrypt the keys at rest; default State/state.key, made on first use with mode 0600
	Address string `yaml:"address"`  // host:port of the directory; default: as in the token
	// RotateEvery is how often each signing key is replaced, with a tenth of
	// jitter; 0 leaves it to `keys rotate`.
	RotateEvery time.Duration `yaml:"rotate_every"`
	// CodeEvery is how often the identity's code is renewed; default 1 h.
	CodeEvery time.Duration `yaml:"code_every"`

	Log     *slog.Logger          `yaml:"-"` // default: discards
	Metrics prometheus.Registerer `yaml:"-"` // default: none
	Clock   clock.Clock           `yaml:"-"` // default: the machine's
	// OnEvent is called, one event at a time, for what an operator should see;
	// it must not block.
	OnEvent func(Event) `yaml:"-"`
}

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventConnected    EventKind = "connected"
	EventDisconnected EventKind = "disconnected"
	EventForcedSwitch EventKind = "forced_switch"    // an excluded member's keys were replaced
	EventExcluded     EventKind = "member_excluded"  // Member was suspended or revoked; may be this member
	EventRefused      EventKind = "update_refused"   // rollback, fork, bad signature, ...
	EventBadEnvelope  EventKind = "envelope_refused" // Key is not what its issuer vouched for
	EventExpired      EventKind = "bundle_expired"
)

// Event is something an operator should see. The zero value is no event.
type Event struct {
	Kind   EventKind
	Member string
	Key    tag.KeyID
	Err    error
}

// Status is the client's view of the directory at one moment.
type Status struct {
	Connected         bool
	Version, Sequence uint64
	Age               time.Duration // since the bundle was issued
	Expiry            time.Time
	Expired           bool
}

// identity is who the member is. It is a secret.
type identity struct {
	Name         string      `json:"name"`
	Address      string      `json:"address"`
	Key          []byte      `json:"key"`      // Ed25519 seed
	SealKey      []byte      `json:"seal_key"` // HPKE private key
	Code         bundle.Code `json:"code"`
	NextCode     bundle.Code `json:"next_code"`
	Certificates [][]byte    `json:"certificates,omitempty"` // DER; none before Join has succeeded
	Obtained     time.Time   `json:"obtained"`
}

// Client is a member's side of the directory. Make it with Open; its methods
// are safe for concurrent use.
type Client struct {
	cfg     Config
	vault   *keys.Vault
	spares  *keys.Spares
	metrics metrics
	updates chan *directory.Snapshot
	poke    chan struct{} // wakes maintain
	events  sync.Mutex    // one event at a time

	changing sync.Mutex // one request that changes something at a time

	mu        sync.Mutex // guards what follows
	identity  *identity  // nil before Join was tried; replaced, never changed
	ring      *keys.Ring
	bundle    *bundle.Bundle
	bad       map[tag.KeyID]bool // envelopes refused
	snapshot  *directory.Snapshot
	conn      *grpc.ClientConn // nil while not connected
	confirmed bool             // the directory has seen NextCode
	codeSince time.Time
	ack       *pb.AckRequest // newest one wanted
	acked     bool           // it has arrived
	queued    []Event        // to be emitted without c.mu
}

// Open reads the state; a member that has not joined yet opens as well.
func Open(cfg Config) (*Client, error) {
	if cfg.State == "" {
		return nil, fmt.Errorf("%w: state: is missing", ErrConfig)
	}
	if cfg.RotateEvery < 0 || cfg.CodeEvery < 0 {
		return nil, fmt.Errorf("%w: rotate_every or code_every: is negative", ErrConfig)
	}
	cfg.KeyFile = cmp.Or(cfg.KeyFile, filepath.Join(cfg.State, "state.key"))
	cfg.CodeEvery = cmp.Or(cfg.CodeEvery, time.Hour)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, fmt.Errorf("%w: state: %w", ErrConfig, err)
	}
	vault, err := keys.OpenVault(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, vault: vault, spares: keys.NewSpares(spareKeys), metrics: newMetrics(cfg.Metrics),
		updates: make(chan *directory.Snapshot, 1), poke: make(chan struct{}, 1),
		bundle: &bundle.Bundle{}, bad: map[tag.KeyID]bool{}, codeSince: cfg.Clock.Now(),
	}
	return c, c.load()
}

func (c *Client) path(file string) string { return filepath.Join(c.cfg.State, file) }

// load reads identity, ring and bundle.
func (c *Client) load() error {
	var err error
	if c.ring, err = keys.LoadRing(c.path(ringFile), c.vault); err != nil {
		return err
	}
	b, err := c.vault.Read(c.path(identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	id := &identity{}
	if err := json.Unmarshal(b, id); err != nil {
		return fmt.Errorf("%s: %w", c.path(identityFile), err)
	}
	if _, err := bundle.ParseSealKey(id.SealKey); err != nil || len(id.Key) != ed25519.SeedSize {
		return fmt.Errorf("%s: %w", c.path(identityFile), keys.ErrSealedFile)
	}
	c.identity = id
	b, err = c.vault.Read(c.path(bundleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	u := &pb.Update{}
	if err := proto.Unmarshal(b, u); err != nil {
		return fmt.Errorf("%s: %w", c.path(bundleFile), err)
	}
	// It was checked before it was written, and the vault proves that it is the
	// same; the expiry is publish's.
	if c.bundle, err = c.bundle.Apply(u.GetHeader().GetDirectoryKey(), u, time.Time{}); err != nil {
		return fmt.Errorf("%s: %w", c.path(bundleFile), err)
	}
	c.publish()
	return nil
}

func (c *Client) saveIdentity(id *identity) error {
	b, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := c.vault.Write(c.path(identityFile), b); err != nil {
		return err
	}
	c.identity = id
	return nil
}

// Joined reports whether the state holds an identity with a certificate.
func (c *Client) Joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joined()
}

func (c *Client) joined() bool {
	return c.identity != nil && len(c.identity.Certificates) > 0 && c.bundle.Signed != nil
}

// Join redeems a token: it makes the identity's keys and obtains the first
// certificate and bundle. After an error it may be called again with the same
// token.
func (c *Client) Join(ctx context.Context, token string) error {
	t, err := authority.ParseToken(token)
	if err != nil {
		return err
	}
	if t.Role != authority.Member {
		return fmt.Errorf("%w: it is for a %s", authority.ErrToken, t.Role)
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	id, err := c.prepareIdentity(t)
	if err != nil {
		return err
	}
	sealKey, err := bundle.ParseSealKey(id.SealKey)
	if err != nil {
		return err
	}
	request, err := authority.NewRequest(ed25519.NewKeyFromSeed(id.Key))
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(id.Address, grpc.WithTransportCredentials(credentials.NewTLS(t.JoinTLS(c.cfg.Clock.Now))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxUpdate)))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := pb.NewEnrolmentClient(conn).Join(ctx, &pb.JoinRequest{
		Secret: t.Secret, Request: request, SealKey: sealKey.PublicKey().Bytes(), CodeHash: id.Code.Hash(),
	})
	if err != nil {
		return fmt.Errorf("join as %s: %w", t.Name, err)
	}
	credential := authority.Credential{Certificates: resp.Certificates, Key: id.Key}
	if _, err := credential.Certificate(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	joined := *id
	joined.Certificates, joined.Obtained = resp.Certificates, c.cfg.Clock.Now()
	// The bundle comes first: an identity with a certificate has one.
	c.snapshot = nil
	if err := c.apply(resp.Update.GetHeader().GetDirectoryKey(), resp.Update); err != nil {
		return err
	}
	return c.saveIdentity(&joined)
}

// prepareIdentity makes the identity's keys and saves them, so that a second
// attempt with the same token is the same identity.
func (c *Client) prepareIdentity(t authority.Token) (*identity, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joined() {
		return nil, fmt.Errorf("%w: %s holds the identity of %s", ErrJoined, c.cfg.State, c.identity.Name)
	}
	address := cmp.Or(c.cfg.Address, t.Address)
	if c.identity != nil && c.identity.Name == t.Name && c.identity.Address == address {
		return c.identity, nil
	}
	id := &identity{Name: t.Name, Address: address, Key: make([]byte, ed25519.SeedSize)}
	sealKey, err := bundle.GenerateSealKey()
	if err != nil {
		return nil, err
	}
	if id.SealKey, err = sealKey.Bytes(); err != nil {
		return nil, err
	}
	for _, b := range [][]byte{id.Key, id.Code[:], id.NextCode[:]} {
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
	}
	// Where a member with this name was removed, nothing of it is of use.
	c.bundle, c.ring.Own, c.ring.Opened = &bundle.Bundle{}, map[tag.KeyID]*keys.Own{}, map[tag.KeyID]*tag.VerifyKey{}
	return id, c.saveIdentity(id)
}

// Updates delivers the newest Snapshot whenever there is a new one; older ones
// that were not taken are dropped. The one on disk comes first.
func (c *Client) Updates() <-chan *directory.Snapshot { return c.updates }

// Snapshot returns the newest Snapshot, nil before joining. One past its expiry
// has no keys but tombstones.
func (c *Client) Snapshot() *directory.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshot
}

// Status returns the client's view of the directory.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Connected: c.conn != nil, Version: c.bundle.Version(), Sequence: c.bundle.Sequence, Expiry: c.bundle.Expiry()}
	if c.bundle.Header != nil {
		now := c.cfg.Clock.Now()
		s.Age = now.Sub(time.Unix(0, c.bundle.Header.IssuedUnixNano))
		s.Expired = !now.Before(s.Expiry)
	}
	return s
}

func (c *Client) emit(e Event) {
	c.events.Lock()
	defer c.events.Unlock()
	attrs := []any{"kind", string(e.Kind)}
	if e.Member != "" {
		attrs = append(attrs, "member", e.Member)
	}
	if e.Key != (tag.KeyID{}) {
		attrs = append(attrs, "key", e.Key.String())
	}
	if e.Err != nil {
		attrs = append(attrs, "error", e.Err)
	}
	level := slog.LevelInfo
	switch e.Kind {
	case EventRefused, EventBadEnvelope, EventExpired, EventExcluded:
		level = slog.LevelWarn
	}
	c.cfg.Log.Log(context.Background(), level, "directory_event", attrs...)
	c.metrics.events.WithLabelValues(string(e.Kind)).Inc()
	if c.cfg.OnEvent != nil {
		c.cfg.OnEvent(e)
	}
}

// apply checks an update, opens its envelopes, and saves the whole: the ring
// first, so that the bundle's sequence never promises a key that is not there.
// The caller holds c.mu.
func (c *Client) apply(trusted ed25519.PublicKey, u *pb.Update) error {
	next, err := c.bundle.Apply(trusted, u, c.cfg.Clock.Now())
	if err != nil {
		return err
	}
	changed := c.openEnvelopes(next, u.Envelopes)
	changed = c.settle(next) || changed
	if changed {
		if err := c.ring.Save(); err != nil {
			return fmt.Errorf("save keyring: %w", err)
		}
	}
	stored := next.Update()
	b, err := proto.Marshal(stored)
	if err != nil {
		return err
	}
	if err := c.vault.Write(c.path(bundleFile), b); err != nil {
		return fmt.Errorf("save bundle: %w", err)
	}
	old := c.snapshot
	c.bundle = next
	c.publish()
	for _, name := range excludedSince(old, c.snapshot) {
		c.queued = append(c.queued, Event{Kind: EventExcluded, Member: name})
	}
	if old != nil && c.snapshot.Forced > old.Forced {
		c.queued = append(c.queued, Event{Kind: EventForcedSwitch})
	}
	return nil
}

// openEnvelopes opens what is new; one that is refused leaves its key unknown.
func (c *Client) openEnvelopes(next *bundle.Bundle, envelopes []*pb.Envelope) (changed bool) {
	private, err := bundle.ParseSealKey(c.identity.SealKey)
	if err != nil {
		return false
	}
	for _, e := range envelopes {
		id := bundle.KeyIDOf(e.GetId())
		r := next.Records[bundle.KeyRecordID(id)]
		if r == nil || c.ring.Opened[id] != nil {
			continue
		}
		key, err := bundle.OpenKey(private, c.identity.Name, e, r.Statement)
		if err != nil {
			c.bad[id] = true
			c.queued = append(c.queued, Event{Kind: EventBadEnvelope, Member: r.Statement.Member, Key: id, Err: err})
			continue
		}
		delete(c.bad, id)
		c.ring.Opened[id] = key
		changed = true
	}
	return changed
}

// settle takes keys out of the ring that have had their time, and notes which
// reserve has become a key.
func (c *Client) settle(next *bundle.Bundle) (changed bool) {
	stateOf := func(id tag.KeyID) (directory.KeyState, *pb.Key) {
		r := next.Records[bundle.KeyRecordID(id)]
		if r == nil {
			return 0, nil
		}
		return directory.KeyState(r.Body.GetKey().State), r.Body.GetKey()
	}
	for id := range c.ring.Opened {
		if s, _ := stateOf(id); !s.Live() {
			delete(c.ring.Opened, id)
			changed = true
		}
	}
	excluded := false
	for id, o := range c.ring.Own {
		s, k := stateOf(id)
		switch {
		case k != nil && s.Live() && o.Reserve:
			o.Reserve = false
			changed = true
		case k != nil && !s.Live(), k == nil && !o.Reserve && o.Published != 0 && next.Sequence >= o.Published:
			excluded = excluded || s == directory.Revoked && !k.GetForced()
			delete(c.ring.Own, id)
			changed = true
		}
	}
	if excluded { // the directory has dropped our reserves
		for id, o := range c.ring.Own {
			if o.Reserve {
				delete(c.ring.Own, id)
			}
		}
	}
	return changed
}

// publish makes the Snapshot of what is known and hands it on. The caller holds
// c.mu.
func (c *Client) publish() {
	s := c.makeSnapshot()
	c.snapshot = s
	select {
	case <-c.updates:
	default:
	}
	c.updates <- s
	c.metrics.version.Set(float64(s.Version))
	c.metrics.expiry.Set(float64(s.Expiry.Unix()))
}

func (c *Client) makeSnapshot() *directory.Snapshot {
	b, h := c.bundle, c.bundle.Header
	s := &directory.Snapshot{
		Version: h.Version, Sequence: b.Sequence, Issued: time.Unix(0, h.IssuedUnixNano), Expiry: b.Expiry(), Alliance: h.Alliance,
		Carrier: directory.Carrier{UDP: h.Carrier.Udp, Protocol: uint8(h.Carrier.Protocol), Port: uint16(h.Carrier.Port)},
		Forced:  h.ForcedVersion,
	}
	prefixes, site := map[string][]netip.Prefix{}, map[string]string{}
	expired := !c.cfg.Clock.Now().Before(s.Expiry)
	for _, r := range b.Records {
		if m := r.Body.GetMember(); m != nil {
			s.Members = append(s.Members, memberOf(m))
			site[m.Name] = m.Site
		}
		if p := r.Body.GetSite(); p != nil {
			prefixes[p.Name] = nil
			for _, text := range p.Prefixes {
				prefixes[p.Name] = append(prefixes[p.Name], netip.MustParsePrefix(text)) // ParseRecord has checked it
			}
		}
	}
	for _, r := range b.Records {
		k := r.Body.GetKey()
		if k == nil {
			continue
		}
		id, state := bundle.KeyIDOf(r.Statement.Id), directory.KeyState(k.State)
		if expired && state.Live() {
			continue
		}
		v := directory.VerifyKey{KeyID: id, State: state, Member: r.Statement.Member, Site: site[r.Statement.Member], Forced: k.Forced}
		if own := c.ring.Own[id]; own != nil && state.Live() {
			v.Key = own.Issue.Verifier()
			s.Signing = append(s.Signing, directory.SigningKey{KeyID: id, State: state, Key: own.Issue})
		} else if state.Live() {
			v.Key = c.ring.Opened[id]
		}
		s.Keys = append(s.Keys, v)
	}
	slices.SortFunc(s.Members, func(a, b directory.Member) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Signing, func(a, b directory.SigningKey) int { return directory.CompareKeyID(a.KeyID, b.KeyID) })
	directory.SortKeys(s.Keys)
	s.Sites = directory.SitesOf(s.Members, prefixes)
	if me := s.Member(c.identity.Name); me != nil {
		s.Self = *me
	}
	return s
}

func memberOf(m *pb.Member) directory.Member {
	d := directory.Member{
		Name: m.Name, Site: m.Site, UNIDs: slices.Clone(m.Unids), Sibling: m.Sibling, State: directory.MemberState(m.State),
		Identity: m.Identity, SealKey: m.SealKey, Recipients: slices.Clone(m.Recipients),
	}
	for _, suite := range m.Suites {
		d.Suites = append(d.Suites, tag.Suite(suite))
	}
	return d
}

// recipients are the members that this one's keys are sealed to, with their
// seal keys.
func recipients(s *directory.Snapshot) map[string][]byte {
	to := map[string][]byte{}
	for i := range s.Members {
		if m := &s.Members[i]; m.State == directory.Active && m.Name != s.Self.Name && s.Self.Receives(m.Name) {
			to[m.Name] = m.SealKey
		}
	}
	return to
}

// excludedSince are the members that were active in old and are not in new.
func excludedSince(old, new *directory.Snapshot) []string {
	was := map[string]bool{}
	if old != nil {
		for _, m := range old.Members {
			was[m.Name] = m.State == directory.Active
		}
	}
	for _, m := range new.Members {
		if m.State == directory.Active {
			delete(was, m.Name)
		}
	}
	maps.DeleteFunc(was, func(_ string, active bool) bool { return !active })
	return slices.Sorted(maps.Keys(was))
}

type metrics struct {
	version, expiry, connected prometheus.Gauge
	events                     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "countersign_bundle_" + name, Help: help})
	}
	m := metrics{
		version:   gauge("version", "Version of the bundle in use."),
		expiry:    gauge("expiry_timestamp_seconds", "When the bundle in use expires."),
		connected: gauge("directory_connected", "1 while the directory is watched."),
		events:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_bundle_events_total", Help: "What befell the member's view of the directory."}, []string{"kind"}),
	}
	if r != nil {
		r.MustRegister(m.version, m.expiry, m.connected, m.events)
	}
	return m
}
