package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
)

// hop is what an action of egress_port or cross_connect says. The zero value
// is that of an empty group, which runs no action.
type hop struct {
	action uint32
	port   uint16
	vlan   uint16
	role   tables.Role
	zone   uint16
	mtu    uint16   // bytes of the IP packet
	macs   [12]byte // destination and source, as in a frame
}

func newHop(a *p4rtserver.Action) hop {
	h := hop{action: a.ID}
	if a.ID == tables.NextHopActionID {
		h.port, h.vlan = uint16(param(a, 0)), uint16(param(a, 1))
		h.role, h.zone, h.mtu = tables.Role(param(a, 2)), uint16(param(a, 3)), uint16(param(a, 4))
		p4rtserver.PutPadded(h.macs[6:], a.Params[5])
		p4rtserver.PutPadded(h.macs[:6], a.Params[6])
	}
	return h
}

// hops are the members of a group in the order given, each as often as its
// weight says. It is immutable.
type hops []hop

// selector is what route entries refer to: a member, a group, or a set of
// their own. Packets read it while the control path replaces its hops.
type selector struct{ hops atomic.Pointer[hops] }

func (s *selector) set(h hops) { s.hops.Store(&h) }

// egressPort is the stage of that name: the destination (longest match) gives a
// next hop group, and its member the port with VLAN, role, zone and MTU; or,
// port to port, the ingress port gives them.
func (pl *pipeline) egressPort(m *meta, p *portEntries) {
	if p.crossed {
		m.transparent = true
		m.hop = hop{
			action: tables.ToPortActionID, vlan: m.vlan,
			port: uint16(p.to >> 40), role: tables.Role(p.to >> 32), zone: uint16(p.to >> 16), mtu: uint16(p.to),
		}
	}
	switch {
	case m.transparent:
		return
	case m.raw:
		m.drop(StageEgressPort, tables.ReasonNoRoute)
		return
	}
	v := &m.view
	var s *selector
	if v.Family == 4 {
		dst := netip.AddrFrom4([4]byte(m.frame[v.L3+16:]))
		s, _ = pl.routes4.table.Load().Lookup(dst)
	} else {
		dst := netip.AddrFrom16([16]byte(m.frame[v.L3+24:]))
		s, _ = pl.routes6.table.Load().Lookup(dst)
	}
	if s == nil {
		m.drop(StageEgressPort, tables.ReasonNoRoute)
		return
	}
	h := *s.hops.Load()
	switch len(h) {
	case 0:
	case 1:
		m.hop = h[0]
	default:
		m.hop = h[m.flow()%uint32(len(h))]
	}
	switch {
	case m.hop.action == tables.ToMeActionID:
		m.hold(StageEgressPort, tables.ReasonToMe)
	case m.hop.action == tables.NoRouteActionID:
		m.drop(StageEgressPort, tables.ReasonNoRoute)
	case v.TTL < 2:
		m.hold(StageEgressPort, tables.ReasonTTLExpired)
	}
}

// profile is the action profile next_hops: its members and groups.
type profile struct {
	members map[uint32]*selector
	groups  map[uint32]*group
}

type group struct {
	selector
	members []p4rtserver.GroupMember
}

func newProfile() *profile {
	return &profile{members: make(map[uint32]*selector), groups: make(map[uint32]*group)}
}

func (p *profile) writeMember(op p4rtserver.Op, m *p4rtserver.Member) error {
	s, ok := p.members[m.ID]
	switch {
	case op == p4rtserver.Insert && ok:
		return p4rtserver.ErrAlreadyExists
	case op != p4rtserver.Insert && !ok:
		return p4rtserver.ErrNotFound
	case op == p4rtserver.Delete:
		delete(p.members, m.ID)
		return nil
	case !ok:
		if len(p.members) >= tables.NextHopsProfileSize {
			return fmt.Errorf("%w: next_hops holds %d members", p4rtserver.ErrResourceExhausted, len(p.members))
		}
		s = new(selector)
		p.members[m.ID] = s
	}
	s.set(hops{newHop(&m.Action)})
	for _, g := range p.groups {
		if slices.ContainsFunc(g.members, func(x p4rtserver.GroupMember) bool { return x.ID == m.ID }) {
			g.set(p.expand(g.members))
		}
	}
	return nil
}

func (p *profile) writeGroup(op p4rtserver.Op, g *p4rtserver.Group) error {
	old, ok := p.groups[g.ID]
	switch {
	case op == p4rtserver.Insert && ok:
		return p4rtserver.ErrAlreadyExists
	case op != p4rtserver.Insert && !ok:
		return p4rtserver.ErrNotFound
	case op == p4rtserver.Delete:
		delete(p.groups, g.ID)
		return nil
	}
	for _, m := range g.Members {
		if len(m.WatchPort) > 0 {
			return errWatchPort
		}
	}
	if !ok {
		old = new(group)
		p.groups[g.ID] = old
	}
	old.members = slices.Clone(g.Members)
	old.set(p.expand(old.members))
	return nil
}

var errWatchPort = fmt.Errorf("%w: watch ports; take the member out of its group instead", p4rtserver.ErrUnimplemented)

// expand lays out a group by its weights.
func (p *profile) expand(members []p4rtserver.GroupMember) hops {
	var h hops
	for _, m := range members {
		if s := p.members[m.ID]; s != nil {
			for range m.Weight {
				h = append(h, (*s.hops.Load())[0])
			}
		}
	}
	return h
}

// routeStore is a longest-prefix table; packets read its snapshot.
type routeStore struct {
	info    *tables.TableInfo
	profile *profile
	table   atomic.Pointer[bart.Fast[*selector]]
	entries map[netip.Prefix]*routeEntry
	n       atomic.Int64
}

// routeEntry is what P4Runtime reads back.
type routeEntry struct {
	action   p4rtserver.TableAction
	metadata []byte
}

func newRouteStore(info *tables.TableInfo, p *profile) *routeStore {
	s := &routeStore{info: info, profile: p, entries: make(map[netip.Prefix]*routeEntry)}
	s.table.Store(new(bart.Fast[*selector]))
	return s
}

func (s *routeStore) prefix(match []p4rtserver.FieldMatch) netip.Prefix {
	f := &match[0]
	if s.info.Fields[0].Width == 32 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(p4rtserver.Uint64(f.Value))))), int(f.PrefixLen))
	}
	var a [16]byte
	p4rtserver.PutPadded(a[:], f.Value)
	return netip.PrefixFrom(netip.AddrFrom16(a), int(f.PrefixLen))
}

func (s *routeStore) match(p netip.Prefix) []p4rtserver.FieldMatch {
	f := p4rtserver.FieldMatch{ID: s.info.Fields[0].ID}
	if p.Bits() > 0 {
		f.Kind, f.PrefixLen = p4rtserver.MatchLPM, int32(p.Bits())
		f.Value = p4rtserver.Canonical(p.Addr().AsSlice())
	}
	return []p4rtserver.FieldMatch{f}
}

func (s *routeStore) write(op p4rtserver.Op, e *p4rtserver.Entry, _ int64) error {
	if e.Default {
		return errDefault(s.info)
	}
	p := s.prefix(e.Match)
	old, ok := s.entries[p]
	switch {
	case op == p4rtserver.Insert && ok:
		return p4rtserver.ErrAlreadyExists
	case op != p4rtserver.Insert && !ok:
		return p4rtserver.ErrNotFound
	case op == p4rtserver.Delete:
		s.table.Store(s.table.Load().DeletePersist(p))
		delete(s.entries, p)
		s.n.Add(-1)
		return nil
	case op == p4rtserver.Insert && len(s.entries) >= int(s.info.Size):
		return fmt.Errorf("%w: %s holds %d entries", p4rtserver.ErrResourceExhausted, s.info.Alias, s.info.Size)
	}
	r := &routeEntry{metadata: bytes.Clone(e.Metadata)}
	if e.Action.Kind == p4rtserver.ActionNone {
		r.action = old.action
	} else {
		sel, err := s.resolve(&e.Action)
		if err != nil {
			return err
		}
		r.action = cloneTableAction(&e.Action)
		s.table.Store(s.table.Load().InsertPersist(p, sel))
	}
	s.entries[p] = r
	if !ok {
		s.n.Add(1)
	}
	return nil
}

// resolve finds or makes what an entry refers to; the server has checked that
// members and groups exist.
func (s *routeStore) resolve(a *p4rtserver.TableAction) (*selector, error) {
	switch a.Kind {
	case p4rtserver.ActionMember:
		if m := s.profile.members[a.RefID]; m != nil {
			return m, nil
		}
	case p4rtserver.ActionGroup:
		if g := s.profile.groups[a.RefID]; g != nil {
			return &g.selector, nil
		}
	case p4rtserver.ActionSet:
		var h hops
		for i := range a.Set {
			x := &a.Set[i]
			if len(x.WatchPort) > 0 {
				return nil, errWatchPort
			}
			for range x.Weight {
				h = append(h, newHop(&x.Action))
			}
		}
		sel := new(selector)
		sel.set(h)
		return sel, nil
	}
	return nil, fmt.Errorf("%w: %s takes members, groups and sets of next_hops", p4rtserver.ErrInvalidArgument, s.info.Alias)
}

func cloneTableAction(a *p4rtserver.TableAction) p4rtserver.TableAction {
	c := *a
	c.Action = cloneAction(a.Action)
	c.Set = slices.Clone(a.Set)
	for i := range c.Set {
		c.Set[i].Action = cloneAction(c.Set[i].Action)
	}
	return c
}

func (s *routeStore) setCounter(*p4rtserver.Entry) error      { return p4rtserver.ErrUnimplemented }
func (s *routeStore) setMeter(*p4rtserver.Entry, int64) error { return p4rtserver.ErrUnimplemented }
func (s *routeStore) count() int                              { return int(s.n.Load()) }

func (s *routeStore) lookup(e *p4rtserver.Entry, _ p4rtserver.Want, _ int64) error {
	if e.Default {
		return fillDefault(e, s.info)
	}
	r := s.entries[s.prefix(e.Match)]
	if r == nil {
		return p4rtserver.ErrNotFound
	}
	e.Action, e.Metadata = r.action, r.metadata
	return nil
}

func (s *routeStore) each(_ p4rtserver.Want, _ int64, yield func(*p4rtserver.Entry) bool) {
	for p, r := range s.entries {
		if !yield(&p4rtserver.Entry{TableID: s.info.ID, Match: s.match(p), Action: r.action, Metadata: r.metadata}) {
			return
		}
	}
}

func (s *routeStore) sweep(idle []p4rtserver.Entry, _, _ uint32, _ int64) ([]p4rtserver.Entry, uint32, bool) {
	return idle, 0, false
}
