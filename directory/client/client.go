// Package client is what a controller uses of the directory: it enrols, keeps
// the member's keys, follows the bundle, and works on the last valid one while
// the directory is away.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"countersign/directory"
	"countersign/tag"

	"github.com/prometheus/client_golang/prometheus"
)

// Errors that callers branch on.
var (
	// ErrNotJoined is a state directory without an identity: join first.
	ErrNotJoined = errors.New("not a member yet")
	// ErrUnavailable is a directory that does not answer.
	ErrUnavailable = errors.New("directory not reachable")
	// ErrUnknownPeer is a certificate of no active member.
	ErrUnknownPeer = errors.New("not an active member of the alliance")
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
	// OnEvent is called from Run's goroutine for what an operator should see;
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

// Client is a member's side of the directory. Make it with Open; its methods
// are safe for concurrent use.
type Client struct{ cfg Config }

var errSkeleton = errors.New("directory client: not there yet")

// Open reads the state; a member that has not joined yet opens as well.
func Open(cfg Config) (*Client, error) { return nil, errSkeleton }

// Close releases the state. Run must have returned.
func (c *Client) Close() error { return errSkeleton }

// Joined reports whether the state holds an identity.
func (c *Client) Joined() bool { return false }

// Join redeems a token: it makes the identity's keys and obtains the first
// certificate and bundle.
func (c *Client) Join(ctx context.Context, token string) error { return errSkeleton }

// Run follows the directory until ctx ends: it watches with back-off, publishes
// and rotates keys, renews the certificate. It returns ctx's error, or
// ErrNotJoined.
func (c *Client) Run(ctx context.Context) error { return errSkeleton }

// Updates delivers the newest Snapshot whenever there is a new one; older ones
// that were not taken are dropped. The one on disk comes first.
func (c *Client) Updates() <-chan *directory.Snapshot { return nil }

// Snapshot returns the newest Snapshot, nil before joining. One past its expiry
// has no live keys.
func (c *Client) Snapshot() *directory.Snapshot { return nil }

// Ack tells the directory that every key of the Snapshot with that Sequence
// stands in each reachable data plane, but for missing.
func (c *Client) Ack(ctx context.Context, sequence uint64, missing ...tag.KeyID) error {
	return errSkeleton
}

// Rotate makes the next key of a suite current. It reports false where that
// waits for acknowledgements.
func (c *Client) Rotate(ctx context.Context, suite tag.Suite) (done bool, err error) {
	return false, errSkeleton
}

// Status returns the client's view of the directory.
func (c *Client) Status() Status { return Status{} }

// ServerTLS is the configuration of a listener for other members: mutual TLS
// 1.3, active members only.
func (c *Client) ServerTLS() *tls.Config { return nil }

// ClientTLS is the configuration of a connection to the member of that name.
func (c *Client) ClientTLS(member string) *tls.Config { return nil }

// PeerName returns the member at the other end of a connection made with
// ServerTLS or ClientTLS, or ErrUnknownPeer where it is no longer active.
func (c *Client) PeerName(state tls.ConnectionState) (string, error) { return "", errSkeleton }
