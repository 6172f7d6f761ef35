// Package static makes a Snapshot from a configuration, in the directory's
// place: for captures, tests and alliances whose keys somebody keeps by hand.
package static

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"countersign/directory"
	"countersign/tag"
)

// ErrConfig is what every refusal of a Config wraps, with the key that is wrong.
var ErrConfig = errors.New("static directory")

// Config is the `static` part of a controller's configuration. It is plain
// data; the zero value has no members and is refused.
type Config struct {
	Alliance string   `yaml:"alliance"` // default "static"
	Carrier  Carrier  `yaml:"carrier"`
	Members  []Member `yaml:"members"`
	Sites    []Site   `yaml:"sites"`
	Keys     []Key    `yaml:"keys"`
}

// Carrier is the alliance's carrier; the zero value is ip, protocol 253.
type Carrier struct {
	Kind     string `yaml:"kind"`     // "ip" (default) or "udp"
	Protocol uint8  `yaml:"protocol"` // of carrier ip, default 253
	Port     uint16 `yaml:"port"`     // of carrier udp, default 25300
}

// Member is one member of the alliance.
type Member struct {
	Name    string      `yaml:"name"`
	Site    string      `yaml:"site"`    // default: the name
	UNID    uint32      `yaml:"unid"`    // not 0, unique
	Suites  []tag.Suite `yaml:"suites"`  // default: those of its keys
	Sibling string      `yaml:"sibling"` // host:port of its controller
}

// Site gives a site its prefixes.
type Site struct {
	Name     string   `yaml:"name"`
	Prefixes []string `yaml:"prefixes"`
}

// Key is one key of the member whose unid it has. Exactly one of Issue and
// Verify is set, in hexadecimal, in the encodings of tag.ParseIssueKey and
// tag.ParseVerifyKey; a tombstone (retired, revoked) may have neither.
type Key struct {
	Suite  tag.Suite          `yaml:"suite"`
	UNID   uint32             `yaml:"unid"`
	Epoch  uint16             `yaml:"epoch"`
	State  directory.KeyState `yaml:"state"` // default current
	Issue  string             `yaml:"issue"`
	Verify string             `yaml:"verify"`
}

// CarrierOf returns the carrier that kind, protocol and port name, where 0
// stands for the default, or an error that names the key at fault.
func CarrierOf(kind string, protocol uint8, port uint16) (directory.Carrier, error) {
	c := directory.DefaultCarrier()
	switch kind {
	case "", "ip":
	case "udp":
		c.UDP = true
	default:
		return c, fmt.Errorf("carrier.kind: %q, want ip or udp", kind)
	}
	switch protocol {
	case 0:
	case 1, 2, 4, 6, 17, 41, 43, 44, 50, 51, 58, 59, 60:
		return c, fmt.Errorf("carrier.protocol: %d is taken by another protocol, use 253 or 254 (RFC 3692)", protocol)
	default:
		c.Protocol = protocol
	}
	if port != 0 {
		c.Port = port
	}
	return c, nil
}

// Snapshot returns what the member self knows in the alliance of cfg: keys with
// Issue that belong to self are its signing keys, all others are verified with.
// It never expires. Errors wrap ErrConfig and name the key at fault.
func (cfg *Config) Snapshot(self string) (*directory.Snapshot, error) {
	fail := func(format string, args ...any) (*directory.Snapshot, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)
	}
	carrier, err := CarrierOf(cfg.Carrier.Kind, cfg.Carrier.Protocol, cfg.Carrier.Port)
	if err != nil {
		return fail("%w", err)
	}
	snap := &directory.Snapshot{
		Version: 1, Sequence: 1, Alliance: cmp.Or(cfg.Alliance, "static"), Carrier: carrier,
		Expiry: time.Unix(1<<40, 0),
	}
	byUNID := map[uint32]*directory.Member{}
	for i, m := range cfg.Members {
		if err := directory.CheckName(m.Name); err != nil {
			return fail("members[%d].name: %w", i, err)
		}
		if m.UNID == 0 || byUNID[m.UNID] != nil {
			return fail("members[%d].unid: %#x of %s is 0 or taken", i, m.UNID, m.Name)
		}
		if snap.Member(m.Name) != nil {
			return fail("members[%d].name: %q is taken", i, m.Name)
		}
		member := directory.Member{
			Name: m.Name, Site: cmp.Or(m.Site, m.Name), UNIDs: []uint32{m.UNID},
			Suites: slices.Clone(m.Suites), Sibling: m.Sibling, State: directory.Active,
		}
		for _, k := range cfg.Keys {
			if k.UNID == m.UNID && len(m.Suites) == 0 && !slices.Contains(member.Suites, k.Suite) {
				member.Suites = append(member.Suites, k.Suite)
			}
		}
		snap.Members = append(snap.Members, member)
		byUNID[m.UNID] = &member
	}
	slices.SortFunc(snap.Members, func(a, b directory.Member) int { return cmp.Compare(a.Name, b.Name) })
	me := snap.Member(self)
	if me == nil {
		return fail("members: %q is not among them", self)
	}
	snap.Self = *me
	prefixes := map[string][]netip.Prefix{}
	for i, s := range cfg.Sites {
		for j, text := range s.Prefixes {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return fail("sites[%d].prefixes[%d]: %w", i, j, err)
			}
			prefixes[s.Name] = append(prefixes[s.Name], p.Masked())
		}
	}
	snap.Sites = directory.SitesOf(snap.Members, prefixes)
	seen := map[tag.KeyID]bool{}
	current := map[tag.Suite]bool{}
	for i, k := range cfg.Keys {
		id := tag.KeyID{Suite: k.Suite, UNID: k.UNID, Epoch: k.Epoch}
		owner := byUNID[k.UNID]
		state := cmp.Or(k.State, directory.Current)
		switch {
		case owner == nil:
			return fail("keys[%d].unid: %#x is no member's", i, k.UNID)
		case !slices.Contains(owner.Suites, k.Suite):
			return fail("keys[%d].suite: %v is not among the suites of %s", i, k.Suite, owner.Name)
		case seen[id]:
			return fail("keys[%d]: %v is there twice", i, id)
		case k.Issue != "" && k.Verify != "":
			return fail("keys[%d]: both issue and verify", i)
		case k.Issue == "" && k.Verify == "" && state.Live():
			return fail("keys[%d]: neither issue nor verify", i)
		}
		seen[id] = true
		verify := directory.VerifyKey{KeyID: id, State: state, Member: owner.Name, Site: owner.Site}
		if k.Issue != "" {
			issue, err := parseHex(k.Suite, k.Issue, tag.ParseIssueKey)
			if err != nil {
				return fail("keys[%d].issue: %w", i, err)
			}
			verify.Key = issue.Verifier()
			if owner.Name == self && state.Live() {
				if state == directory.Current && current[k.Suite] {
					return fail("keys[%d].state: a second current key of suite %v", i, k.Suite)
				}
				current[k.Suite] = current[k.Suite] || state == directory.Current
				snap.Signing = append(snap.Signing, directory.SigningKey{KeyID: id, State: state, Key: issue})
			}
		}
		if k.Verify != "" {
			if verify.Key, err = parseHex(k.Suite, k.Verify, tag.ParseVerifyKey); err != nil {
				return fail("keys[%d].verify: %w", i, err)
			}
		}
		if !state.Live() {
			verify.Key = nil
		}
		snap.Keys = append(snap.Keys, verify)
	}
	directory.SortKeys(snap.Keys)
	return snap, nil
}

func parseHex[K any](s tag.Suite, text string, parse func(tag.Suite, []byte) (K, error)) (K, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		var none K
		return none, fmt.Errorf("not hexadecimal") // the text is a secret
	}
	return parse(s, b)
}
