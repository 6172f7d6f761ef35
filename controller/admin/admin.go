// Package admin is the admin interface of a controller: what it does now, its
// sessions and its keys, over HTTP and JSON on a Unix socket that only its
// owner can open. No answer holds key material.
//
//	GET  /v1/status
//	GET  /v1/keys
//	POST /v1/keys/rotate      RotateRequest → RotateResponse
//	GET  /v1/sessions         one Session a line (NDJSON); see Filter for the query
//	POST /v1/sessions/kill    FiveTuple → KillResponse
//
// An answer other than 200 is a JSON object with the one key "error".
package admin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"time"

	"countersign/controller/sibling"
	"countersign/directory"
	"countersign/tag"
)

// Errors that callers branch on.
var (
	// ErrUnreachable is a socket behind which no controller answers.
	ErrUnreachable = errors.New("controller not reached")
	// ErrInUse is a socket on which another controller answers.
	ErrInUse = errors.New("another controller serves this socket")
	// ErrNoSocket is a path at which there is a file of another kind.
	ErrNoSocket = errors.New("there is a file that is no socket")
	// ErrRequest is a request that the controller does not understand.
	ErrRequest = errors.New("bad request")
)

// Backend is what the interface shows and steers. Its methods are safe for
// concurrent use.
type Backend interface {
	Status() Status
	// Keys returns the keys in any order.
	Keys() []Key
	// Sessions yields all sessions in any order, each once; it must bear that
	// its consumer is slow.
	Sessions() iter.Seq[Session]
	// Rotate makes the next signing key of a suite current; done is false where
	// that waits for acknowledgements.
	Rotate(ctx context.Context, suite tag.Suite) (done bool, err error)
	// KillSession removes a session everywhere, or reports that there was none.
	KillSession(ctx context.Context, t tag.Tuple) bool
}

// Seconds is a duration that JSON has as a number of seconds.
type Seconds time.Duration

// MarshalJSON writes seconds, to the nanosecond.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Seconds(), 'f', -1, 64), nil
}

// UnmarshalJSON reads a number of seconds.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	if d := f * float64(time.Second); err == nil && d > -1<<63 && d < 1<<63 {
		*s = Seconds(d)
		return nil
	}
	return fmt.Errorf("%w: %.40q is not a number of seconds", ErrRequest, b)
}

// Status is the state of a controller at one moment. It is a plain value.
type Status struct {
	Member   string    `json:"member"`
	Site     string    `json:"site"`
	Alliance string    `json:"alliance,omitempty"`
	Started  time.Time `json:"started"`
	Uptime   Seconds   `json:"uptime_seconds"`
	Devices  []Device  `json:"devices"`
	// Directory is nil where static keys stand in its place.
	Directory *Directory           `json:"directory,omitempty"`
	Siblings  []sibling.PeerStatus `json:"siblings,omitempty"`
	Sessions  int                  `json:"sessions"`
	// Signing are the member's own live keys; the one in state current is what
	// it signs with.
	Signing []Key `json:"signing"`
}

// Device is one data plane of the controller, with the state of its P4Runtime
// session. It is a plain value.
type Device struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Phase is that of package device: disconnected, connected, backup, primary
	// or synced.
	Phase string `json:"phase"`
	// Generation counts how often the controller became its primary.
	Generation uint64 `json:"generation"`
	// Revision is that of the static entries that it has; 0: none yet.
	Revision uint64 `json:"revision"`
	// Error is why it is not further, empty where nothing is wrong.
	Error string `json:"error,omitempty"`
}

// Directory is the controller's view of the directory. It is a plain value.
type Directory struct {
	Address   string    `json:"address"`
	Connected bool      `json:"connected"`
	Version   uint64    `json:"version"`
	Sequence  uint64    `json:"sequence"`
	Age       Seconds   `json:"age_seconds"` // since the bundle was issued
	Expiry    time.Time `json:"expiry,omitzero"`
	Expired   bool      `json:"expired"`
}

// Key is a key without its material. It is a plain value.
type Key struct {
	Suite  tag.Suite          `json:"suite"`
	UNID   string             `json:"unid"` // eight hexadecimal digits
	Epoch  uint16             `json:"epoch"`
	State  directory.KeyState `json:"state"`
	Member string             `json:"member"`
	Site   string             `json:"site"`
	Own    bool               `json:"own"`
	// Known: the material to verify with is here. Tombstones have none.
	Known bool `json:"known"`
}

// KeyOf returns what is shown of a key in a snapshot of the member self.
func KeyOf(k *directory.VerifyKey, self string) Key {
	return Key{
		Suite: k.Suite, UNID: fmt.Sprintf("%08x", k.UNID), Epoch: k.Epoch, State: k.State,
		Member: k.Member, Site: k.Site, Own: k.Member == self, Known: k.Key != nil,
	}
}

// KeysOf returns all keys of a snapshot, none of a nil one.
func KeysOf(s *directory.Snapshot) []Key {
	if s == nil {
		return nil
	}
	keys := make([]Key, len(s.Keys))
	for i := range s.Keys {
		keys[i] = KeyOf(&s.Keys[i], s.Self.Name)
	}
	return keys
}

// FiveTuple names a session, with its ends in either order. The zero value
// names none.
type FiveTuple struct {
	Protocol uint8 `json:"protocol"`
	// Kind is one of tag's kinds; it is 0 for transport ports and echo.
	Kind uint16         `json:"kind,omitempty"`
	A    netip.AddrPort `json:"a"`
	B    netip.AddrPort `json:"b"`
}

// Tuple returns the sorted five-tuple, or ErrRequest where an end is missing or
// the two are of different families.
func (f *FiveTuple) Tuple() (tag.Tuple, error) {
	a, b := f.A.Addr().Unmap(), f.B.Addr().Unmap()
	switch {
	case !a.IsValid() || !b.IsValid():
		return tag.Tuple{}, fmt.Errorf("%w: a session has two ends", ErrRequest)
	case a.Is4() != b.Is4():
		return tag.Tuple{}, fmt.Errorf("%w: %s and %s are of different families", ErrRequest, a, b)
	case f.Kind > tag.KindFragment:
		return tag.Tuple{}, fmt.Errorf("%w: kind %d", ErrRequest, f.Kind)
	}
	t, _ := tag.NewTuple(f.Protocol, f.Kind, a, b, f.A.Port(), f.B.Port())
	return t, nil
}

// Session is one admitted session. It is a plain value.
type Session struct {
	Protocol uint8          `json:"protocol"`
	Kind     uint16         `json:"kind,omitempty"`
	Low      netip.AddrPort `json:"low"`
	High     netip.AddrPort `json:"high"`
	// InitiatorLow: the low side sent the first packet.
	InitiatorLow bool `json:"initiator_low"`
	// LowZone and HighZone are where packets of each side come from.
	LowZone  string `json:"low_zone,omitempty"`
	HighZone string `json:"high_zone,omitempty"`
	// Origin is the sibling that announced it, empty for the member's own.
	Origin     string    `json:"origin,omitempty"`
	Issuer     string    `json:"issuer,omitempty"`
	Generation uint64    `json:"generation"`
	Age        Seconds   `json:"age_seconds"`
	Expiry     time.Time `json:"expiry,omitzero"`
	Installed  bool      `json:"installed"`
	Delivered  bool      `json:"delivered"`
	Closing    bool      `json:"closing"`
}

// SetTuple sets protocol, kind and both ends.
func (s *Session) SetTuple(t *tag.Tuple) {
	s.Protocol, s.Kind = t.Protocol(), t.Kind()
	s.Low = netip.AddrPortFrom(t.Low(), t.LowPort())
	s.High = netip.AddrPortFrom(t.High(), t.HighPort())
}

// Initiator returns the end that sent the first packet, and the other.
func (s *Session) Initiator() (from, to netip.AddrPort) {
	if s.InitiatorLow {
		return s.Low, s.High
	}
	return s.High, s.Low
}

// RotateRequest asks for a rotation.
type RotateRequest struct {
	Suite tag.Suite `json:"suite"`
}

// RotateResponse tells whether the new key is in use already.
type RotateResponse struct {
	Done bool `json:"done"`
}

// KillResponse tells whether there was such a session.
type KillResponse struct {
	Killed bool `json:"killed"`
}

// failure is the answer to a request that failed.
type failure struct {
	Error string `json:"error"`
}
