// Package compile turns a configuration, the neighbours that are known and the
// directory's snapshot into the static entries of a data plane. It is a pure
// function: what is wanted is plain data that can be compared and printed.
package compile

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sort"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/controller/config"
	"countersign/directory"
	"countersign/tables"
	"countersign/tag"
)

// CPUPort is the data plane's port towards the controller, and CloneSession
// what copies go to it by; both are constants of the P4 program.
const (
	CPUPort      = 510
	CloneSession = 1
)

// Flags of port_config, as in types.p4.
const (
	portAllowUntagged = 1
	portCarrierUDP    = 2
	portTransparent   = 4
)

// Dynamic are the tables whose entries come from decisions on punted packets,
// and own_key, whose salt must be new in each write.
func Dynamic() []uint32 {
	return []uint32{
		tables.VouchedV4TableID, tables.VouchedV6TableID,
		tables.DeliveredV4TableID, tables.DeliveredV6TableID,
		tables.SessionV4TableID, tables.SessionV6TableID,
		tables.OwnTagV4TableID, tables.OwnTagV6TableID,
		tables.OwnKeyTableID,
	}
}

// DefaultRates are the punt budgets in packets a second, for each role and
// zone that a reason can come from. A reason that is not here is not punted.
func DefaultRates() map[tables.Reason]uint32 {
	return map[tables.Reason]uint32{
		tables.ReasonNewSession:    50000,
		tables.ReasonReplyUnknown:  20000,
		tables.ReasonTagUnverified: 30000,
		tables.ReasonTagUnsigned:   30000,
		tables.ReasonFragment:      10000,
		tables.ReasonTooBig:        2000,
		tables.ReasonTTLExpired:    1000,
		tables.ReasonICMPError:     2000,
		tables.ReasonToMe:          5000,
		tables.ReasonFirstSeen:     50000,
		tables.ReasonTCPFlags:      50000,
		tables.ReasonSYNProof:      20000,
		tables.ReasonSample:        1000,
		tables.ReasonTagUnknownKey: 200,
	}
}

// Neighbours are link-layer addresses by IP address.
type Neighbours map[netip.Addr]uint64

// Static returns the neighbours that the configuration fixes.
func Static(cfg *config.Config) Neighbours {
	n := Neighbours{}
	for _, e := range cfg.Neighbours {
		if mac, err := config.ParseMAC(e.MAC); err == nil {
			n[e.Address] = mac
		}
	}
	return n
}

// Entries returns the static entries of one device of the configuration, in an
// order that does not depend on chance: ports, cross connects, routes, policy,
// punt budgets, keys of issuers.
func Entries(cfg *config.Config, dev string, near Neighbours, snap *directory.Snapshot) ([]tables.Entry, error) {
	b := builder{cfg: cfg, dev: dev, near: near, zones: cfg.Zones(), udp: cfg.Carrier.Kind == "udp"}
	if snap != nil {
		b.udp = snap.Carrier.UDP
	}
	b.ports()
	b.routes()
	if err := b.policy(); err != nil {
		return nil, err
	}
	b.punts()
	if snap != nil {
		b.keys(snap)
	}
	return b.out, nil
}

// Entities returns the entries and the clone session as a device takes them.
func Entities(entries []tables.Entry) ([]*p4v1.Entity, error) {
	out := make([]*p4v1.Entity, 0, len(entries)+1)
	for _, e := range entries {
		te, err := e.ToProto()
		if err != nil {
			return nil, err
		}
		out = append(out, &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: te}})
	}
	return append(out, &p4v1.Entity{Entity: &p4v1.Entity_PacketReplicationEngineEntry{
		PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{
			Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{
				CloneSessionEntry: &p4v1.CloneSessionEntry{
					SessionId: CloneSession,
					Replicas:  []*p4v1.Replica{{EgressPort: CPUPort, Instance: 1}},
				},
			},
		},
	}}), nil
}

type builder struct {
	cfg   *config.Config
	dev   string
	near  Neighbours
	zones map[string]uint16
	udp   bool
	out   []tables.Entry
}

func (b *builder) add(e ...tables.Entry) { b.out = append(b.out, e...) }

func (b *builder) crossed(name string) *config.Port {
	for _, x := range b.cfg.CrossConnects {
		switch name {
		case x.A:
			return b.cfg.Port(x.B)
		case x.B:
			return b.cfg.Port(x.A)
		}
	}
	return nil
}

func (b *builder) ports() {
	for i := range b.cfg.Ports {
		p := &b.cfg.Ports[i]
		if p.Device != b.dev {
			continue
		}
		role, _ := p.RoleOf()
		var flags uint8
		if p.AllowUntagged {
			flags |= portAllowUntagged
		}
		if b.udp {
			flags |= portCarrierUDP
		}
		peer := b.crossed(p.Name)
		if peer != nil {
			flags |= portTransparent
		}
		b.add(tables.PortEntry{
			Key:    tables.PortKey{InPort: p.Port, VLAN: p.VLAN},
			Action: tables.PortConfig{Role: role, Zone: b.zones[p.Zone], Flags: flags},
		})
		if peer != nil {
			peerRole, _ := peer.RoleOf()
			b.add(tables.CrossConnectEntry{
				Key:    tables.CrossConnectKey{InPort: p.Port, VLAN: p.VLAN},
				Action: tables.ToPort{Port: peer.Port, Role: peerRole, Zone: b.zones[peer.Zone], MTU: peer.MTU},
			})
		}
	}
}

// routes: own addresses and prefixes that are reached directly go to the
// controller (it answers, or resolves the neighbour), known neighbours and
// routes to their next hops. Where two say something about one prefix, the
// more special kind of them wins.
func (b *builder) routes() {
	set := map[netip.Prefix]tables.NextHopsOneShot{}
	toMe := tables.NextHopsOneShot{{Action: tables.ToMe{}, Weight: 1}}
	for _, r := range b.cfg.Routes {
		if r.Device != "" && r.Device != b.dev {
			continue
		}
		var hops tables.NextHopsOneShot
		reached := false
		for _, via := range r.Via {
			p := b.cfg.PortTowards(via, b.dev)
			if p == nil {
				continue
			}
			reached = true
			if mac, ok := b.near[via]; ok {
				hops = append(hops, tables.NextHopsWeighted{Action: b.nextHop(p, mac), Weight: 1})
			}
		}
		switch {
		case len(hops) > 0:
			set[r.To] = hops
		case reached:
			set[r.To] = toMe // the controller resolves the next hop
		}
	}
	for i := range b.cfg.Ports {
		p := &b.cfg.Ports[i]
		if p.Device != b.dev {
			continue
		}
		for _, a := range p.Addresses {
			if !a.IsSingleIP() {
				set[a.Masked()] = toMe
			}
		}
	}
	for addr, mac := range b.near {
		if p := b.cfg.PortTowards(addr, b.dev); p != nil {
			set[netip.PrefixFrom(addr, addr.BitLen())] = tables.NextHopsOneShot{{Action: b.nextHop(p, mac), Weight: 1}}
		}
	}
	for i := range b.cfg.Ports {
		p := &b.cfg.Ports[i]
		if p.Device != b.dev {
			continue
		}
		for _, a := range p.Addresses {
			set[netip.PrefixFrom(a.Addr(), a.Addr().BitLen())] = toMe
		}
	}
	prefixes := make([]netip.Prefix, 0, len(set))
	for p := range set {
		prefixes = append(prefixes, p)
	}
	sort.Slice(prefixes, func(i, j int) bool {
		if c := prefixes[i].Addr().Compare(prefixes[j].Addr()); c != 0 {
			return c < 0
		}
		return prefixes[i].Bits() < prefixes[j].Bits()
	})
	for _, p := range prefixes {
		if p.Addr().Is4() {
			b.add(tables.EgressPortV4Entry{
				Key:    tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: v4(p.Addr()), PrefixLen: p.Bits()}},
				Action: set[p],
			})
		} else {
			b.add(tables.EgressPortV6Entry{
				Key:    tables.EgressPortV6Key{Dst: tables.LPM[[16]byte]{Value: p.Addr().As16(), PrefixLen: p.Bits()}},
				Action: set[p],
			})
		}
	}
}

func (b *builder) nextHop(p *config.Port, mac uint64) tables.NextHop {
	role, _ := p.RoleOf()
	src, _ := config.ParseMAC(p.MAC)
	return tables.NextHop{
		Port: p.Port, VLAN: p.VLAN, Role: role, Zone: b.zones[p.Zone], MTU: p.MTU,
		SrcMAC: src, DstMAC: mac,
	}
}

// punts gives every reason its budget for each role and zone of the ports.
func (b *builder) punts() {
	rates := DefaultRates()
	for name, rate := range b.cfg.Punts.Rates {
		if r, err := tables.ParseReason(name); err == nil {
			rates[r] = rate
		}
	}
	type from struct {
		role tables.Role
		zone uint16
	}
	seen := map[from]bool{}
	var places []from
	for i := range b.cfg.Ports {
		p := &b.cfg.Ports[i]
		role, _ := p.RoleOf()
		f := from{role, b.zones[p.Zone]}
		if p.Device == b.dev && !seen[f] {
			seen[f] = true
			places = append(places, f)
		}
	}
	reasons := make([]tables.Reason, 0, len(rates))
	for r := range rates {
		reasons = append(reasons, r)
	}
	sort.Slice(reasons, func(i, j int) bool { return reasons[i] < reasons[j] })
	for _, f := range places {
		for _, r := range reasons {
			rate := int64(rates[r])
			burst := max(rate/4, 16)
			b.add(tables.PuntEntry{
				Key:    tables.PuntKey{Reason: r, Role: f.role, Zone: f.zone},
				Action: tables.ToCPU{},
				Meter:  tables.Some(tables.MeterConfig{CIR: rate, CBurst: burst, PIR: rate, PBurst: burst}),
			})
		}
	}
}

// keys: every key that tags may come under, and the tombstones.
func (b *builder) keys(snap *directory.Snapshot) {
	for i := range snap.Keys {
		k := &snap.Keys[i]
		if a := KeyAction(k, snap.Self.Site); a != nil {
			b.add(tables.IssuerKeyEntry{
				Key:    tables.IssuerKeyKey{Suite: tables.Suite(k.Suite), UNID: k.UNID, Epoch: k.Epoch},
				Action: a,
			})
		}
	}
}

// KeyAction returns the entry's action for a key, or nil where the key is live
// but its material is not known here, so that its tags stay unknown.
func KeyAction(k *directory.VerifyKey, site string) tables.IssuerKeyAction {
	state := tables.KeyStateAccepted
	switch {
	case !k.State.Live():
		return tables.Tombstone{}
	case k.State == directory.EchoOnly:
		state = tables.KeyStateEchoOnly
	}
	if k.Key == nil {
		return nil
	}
	var own uint8
	if k.Site == site {
		own = 1
	}
	mac, ok := k.Key.MAC()
	switch {
	case k.Suite == tag.RSA2048:
		return tables.RSA2048Key{State: state, OwnSite: own}
	case !ok:
		return nil
	}
	k0, k1 := mac.Words()
	if k.Suite == tag.Siphash {
		return tables.SiphashKey{State: state, OwnSite: own, K0: k0, K1: k1}
	}
	return tables.Ed25519Key{State: state, OwnSite: own, K0: k0, K1: k1}
}

// OwnKeys returns own_key for both roles that tags leave by. salt is called
// for each entry and must return fresh random bits; it is unused for suites
// that sign by session. Without a current key there are no entries, and
// packets that need a tag are dropped, no_signing_key.
func OwnKeys(snap *directory.Snapshot, suite tag.Suite, salt func() uint64) ([]tables.Entry, error) {
	k := snap.Current(suite)
	if k == nil {
		return nil, nil
	}
	var out []tables.Entry
	for _, role := range []tables.Role{tables.RoleTrunk, tables.RoleEcho} {
		e := tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: role}, Action: tables.SignBySession{}}
		if suite == tag.Siphash {
			mac, ok := k.Key.MAC()
			if !ok {
				return nil, fmt.Errorf("signing key %v: %w", k.KeyID, tag.ErrKey)
			}
			k0, k1 := mac.Words()
			e.Action = tables.SignSiphash{UNID: k.UNID, Epoch: k.Epoch, K0: k0, K1: k1, NonceSalt: salt()}
		}
		out = append(out, e)
	}
	return out, nil
}

func v4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
