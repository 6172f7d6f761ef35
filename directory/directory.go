// Package directory holds what the management server tells the members of an
// alliance, as plain data: who is a member, with which keys in which states.
//
// The server is in directory/server, what a controller uses of it in
// directory/client, and the same data from a file in directory/static.
package directory

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"countersign/tag"
)

// Errors that callers branch on.
var (
	// ErrName is a name of a member, site or operator that is not a DNS label
	// of lower-case letters, digits and hyphens.
	ErrName = errors.New("not a valid name")
	// ErrState is the name of no state.
	ErrState = errors.New("not a valid state")
)

// KeyState is where a key stands in its life (docs/design.md, docs/wire.md Verifying).
// The zero value is no state. It is a plain value.
type KeyState uint8

// The states of a key, in the order that a key passes through them.
const (
	Next     KeyState = iota + 1 // accepted, not signed with yet
	Current                      // accepted, signed with
	Grace                        // accepted, no longer signed with
	EchoOnly                     // accepted with E = 1 on an echo port only
	Retired                      // tombstone: refused as tag_revoked
	Revoked                      // tombstone: refused as tag_revoked
)

var keyStates = [...]string{Next: "next", Current: "current", Grace: "grace", EchoOnly: "echo_only", Retired: "retired", Revoked: "revoked"}

// String is the name of docs/design.md: "next", "current", "grace", "echo_only",
// "retired" or "revoked".
func (s KeyState) String() string {
	if s < Next || s > Revoked {
		return fmt.Sprintf("key state %d", uint8(s))
	}
	return keyStates[s]
}

// Live reports whether a tag may still be accepted under a key in state s.
func (s KeyState) Live() bool { return s >= Next && s <= EchoOnly }

// MarshalText gives the name of the state.
func (s KeyState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name of a state, or returns ErrState.
func (s *KeyState) UnmarshalText(b []byte) error {
	for i := Next; i <= Revoked; i++ {
		if keyStates[i] == string(b) {
			*s = i
			return nil
		}
	}
	return fmt.Errorf("%w: key state %q", ErrState, b)
}

// MemberState is the standing of a member. The zero value is no state. It is a
// plain value.
type MemberState uint8

// The states of a member.
const (
	Active          MemberState = iota + 1
	Suspended                   // excluded until an operator resumes it
	MemberIsRevoked             // excluded for good
)

var memberStates = [...]string{Active: "active", Suspended: "suspended", MemberIsRevoked: "revoked"}

// String is "active", "suspended" or "revoked".
func (s MemberState) String() string {
	if s < Active || s > MemberIsRevoked {
		return fmt.Sprintf("member state %d", uint8(s))
	}
	return memberStates[s]
}

// MarshalText gives the name of the state.
func (s MemberState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Carrier is what announces a tag, alliance-wide (docs/wire.md, Carrier). The zero
// value is not valid. It is a plain value.
type Carrier struct {
	UDP      bool   // carrier udp instead of ip
	Protocol uint8  // IP protocol of carrier ip, default 253
	Port     uint16 // destination port of carrier udp, default 25300
}

// DefaultCarrier is carrier ip with protocol 253.
func DefaultCarrier() Carrier { return Carrier{Protocol: 253, Port: 25300} }

// String is "ip protocol 253" or "udp port 25300".
func (c Carrier) String() string {
	if c.UDP {
		return fmt.Sprintf("udp port %d", c.Port)
	}
	return fmt.Sprintf("ip protocol %d", c.Protocol)
}

// Member is one firewall of the alliance. It is immutable once in a Snapshot.
type Member struct {
	Name     string            // unique in the alliance
	Site     string            // siblings share it
	UNIDs    []uint32          // wire identities; the first is the one for new keys
	Suites   []tag.Suite       // what it may sign with
	Sibling  string            // host:port of its controller for its siblings, or empty
	State    MemberState       //
	Identity ed25519.PublicKey // of its certificate, and of what it publishes
	SealKey  []byte            // HPKE public key that envelopes to it are sealed to
	// Recipients are the members that receive its keys; empty means all.
	Recipients []string
}

// Receives reports whether the member to gets the keys of m, by m's
// distribution rule: every member where m lists none, and always m itself.
func (m *Member) Receives(to string) bool {
	if len(m.Recipients) == 0 || to == m.Name {
		return true
	}
	for _, name := range m.Recipients {
		if name == to {
			return true
		}
	}
	return false
}

// Site is the members behind one egress. It is immutable once in a Snapshot.
type Site struct {
	Name     string
	Members  []string       // sorted, active ones only
	Prefixes []netip.Prefix // what the site's server sides lie in
}

// VerifyKey is one key that tags may come under. It is immutable once in a
// Snapshot.
type VerifyKey struct {
	tag.KeyID
	State  KeyState
	Member string // who issues under it
	Site   string // of that member
	// Forced marks a key whose state changed by a forced switch: it is Revoked
	// because an excluded member held it, or Current in such a key's place.
	Forced bool
	// Key is nil for tombstones, and while no envelope of it has been opened.
	Key *tag.VerifyKey
}

// SigningKey is one of the member's own keys. It is immutable once in a
// Snapshot, and a secret.
type SigningKey struct {
	tag.KeyID
	State KeyState
	Key   *tag.IssueKey
}

// Snapshot is the whole of what a member knows at one moment. It is immutable,
// so it may be shared by any number of goroutines; the zero value knows nothing.
type Snapshot struct {
	// Version is the bundle's. Sequence, at least Version, also counts
	// envelopes, which are no part of the signed core: it is what is
	// acknowledged.
	Version, Sequence uint64
	Issued, Expiry    time.Time
	Alliance          string
	Carrier           Carrier
	Self              Member
	Members           []Member // sorted by name, Self among them
	Sites             []Site   // sorted by name
	// Keys are all keys that a tag may come under, tombstones and the member's
	// own ones too, sorted by suite, UNID and epoch.
	Keys []VerifyKey
	// Signing are the member's own keys that are next, current, grace or
	// echo_only; at most one in each suite is Current.
	Signing []SigningKey
	// Forced is the version of the newest forced switch, 0 if there was none: a
	// controller that has applied an older version only drops dead keys before
	// anything else.
	Forced uint64
}

// Current returns the key to sign with in suite s, or nil if there is none yet.
func (s *Snapshot) Current(suite tag.Suite) *SigningKey {
	for i := range s.Signing {
		if s.Signing[i].Suite == suite && s.Signing[i].State == Current {
			return &s.Signing[i]
		}
	}
	return nil
}

// Member returns the member of that name, or nil.
func (s *Snapshot) Member(name string) *Member {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i]
		}
	}
	return nil
}

// SitesOf groups the active members by site and adds the prefixes by the site's
// name; sites without either are left out. The result is sorted.
func SitesOf(members []Member, prefixes map[string][]netip.Prefix) []Site {
	sites := map[string]*Site{}
	for name, p := range prefixes {
		sites[name] = &Site{Name: name, Prefixes: p}
	}
	for i := range members {
		m := &members[i]
		if m.State != Active {
			continue
		}
		if sites[m.Site] == nil {
			sites[m.Site] = &Site{Name: m.Site}
		}
		sites[m.Site].Members = append(sites[m.Site].Members, m.Name)
	}
	out := make([]Site, 0, len(sites))
	for _, s := range sites {
		slices.Sort(s.Members)
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Site) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// SortKeys sorts by suite, UNID and epoch.
func SortKeys(keys []VerifyKey) {
	slices.SortFunc(keys, func(a, b VerifyKey) int { return CompareKeyID(a.KeyID, b.KeyID) })
}

// CompareKeyID orders by suite, UNID and epoch, as numbers.
func CompareKeyID(a, b tag.KeyID) int {
	return cmp.Or(cmp.Compare(a.Suite, b.Suite), cmp.Compare(a.UNID, b.UNID), cmp.Compare(a.Epoch, b.Epoch))
}

// CheckName returns ErrName unless name is a DNS label of at most 63 lower-case
// letters, digits and hyphens (RFC 1123 section 2.1): names are put into
// certificates.
func CheckName(name string) error {
	ok := len(name) >= 1 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%w: %q (use 1 to 63 lower-case letters, digits and hyphens)", ErrName, name)
	}
	return nil
}
