package decide

import (
	"bytes"
	"context"
	"net/netip"
	"sync"
	"time"

	"countersign/controller/compile"
	"countersign/controller/config"
	"countersign/controller/entry"
	"countersign/controller/hostpkt"
	"countersign/controller/session"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// resolveEvery is how often one address is asked for (RFC 4861,
// RetransTimer), and resolveMax how many are being asked for.
const (
	resolveEvery = time.Second
	resolveMax   = 4096
	resolveWait  = 3 * time.Second // how long packets wait for an answer
)

// Neighbourhood is the link-layer addresses that are known: fixed ones and
// learned ones. It is safe for concurrent use.
type Neighbourhood struct {
	mu    sync.Mutex
	fixed compile.Neighbours
	known compile.Neighbours
	asked map[netip.Addr]time.Time
	// Packets that wait, by the neighbour that they need.
	parked    map[netip.Addr][]Punt
	parkedAll int
}

func newNeighbourhood(cfg *config.Config) *Neighbourhood {
	return &Neighbourhood{fixed: compile.Static(cfg), known: compile.Static(cfg), asked: map[netip.Addr]time.Time{}, parked: map[netip.Addr][]Punt{}}
}

// Known returns a copy.
func (n *Neighbourhood) Known() compile.Neighbours {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(compile.Neighbours, len(n.known))
	for a, m := range n.known {
		out[a] = m
	}
	return out
}

// learn notes an address; it reports whether that is news. Only addresses
// that were asked for or are known are taken, and fixed ones never change.
func (n *Neighbourhood) learn(a netip.Addr, mac uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, fixed := n.fixed[a]; fixed || mac == 0 {
		return false
	}
	old, known := n.known[a]
	_, asked := n.asked[a]
	if !known && !asked || old == mac {
		return false
	}
	delete(n.asked, a)
	n.known[a] = mac
	return true
}

// ask reports whether it is time to ask for a.
func (n *Neighbourhood) ask(a netip.Addr, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t, ok := n.asked[a]; ok && now.Sub(t) < resolveEvery || !ok && len(n.asked) >= resolveMax {
		return false
	}
	n.asked[a] = now
	return true
}

// toMe: ARP and neighbour discovery, packets to the member's own addresses,
// and packets to neighbours that are not known yet.
func (d *Decider) toMe(ctx context.Context, p Punt, v *packet.View) Outcome {
	port := d.portOf(p.Device, p.Meta.IngressPort, p.Meta.Zone)
	if port == nil {
		return drop("unknown_port")
	}
	mac, _ := config.ParseMAC(port.MAC)
	if n, ok := hostpkt.ParseNeighbour(p.Frame); ok {
		if d.onLink(port, n.Addr) && d.near.learn(n.Addr, n.MAC) {
			d.learn()
		}
		if n.Request && d.mine(port, n.Target) {
			if reply, ok := hostpkt.AnswerNeighbour(p.Frame, mac); ok {
				if err := d.send(ctx, p.Device, port.Port, reply); err != nil {
					return drop("device_away")
				}
			}
		}
		return Outcome{Consumed, ""}
	}
	if v.ARP || v.Has(packet.ND) {
		return drop("not_for_us")
	}
	_, dst := v.Ends()
	if !d.mine(nil, dst) {
		hop, ok := d.resolve(ctx, p.Device, dst)
		if ok && d.near.park(hop, p) {
			return Outcome{Waiting, ""}
		}
		return drop("neighbour_unknown")
	}
	if v.Tagged {
		return drop("tagged_to_me")
	}
	if reply, ok := hostpkt.EchoReply(p.Frame); ok && d.errors.AllowN(d.now(), 1) {
		if err := d.send(ctx, p.Device, port.Port, reply); err != nil {
			return drop("device_away")
		}
		return Outcome{Consumed, ""}
	}
	return drop("not_served")
}

// Resolve asks for every next hop of the configuration that is not known.
func (d *Decider) Resolve(ctx context.Context, dev string) {
	known := d.near.Known()
	for _, r := range d.cfg.Routes {
		for _, via := range r.Via {
			if _, ok := known[via]; !ok {
				d.solicit(ctx, dev, via)
			}
		}
	}
}

// resolve asks for the neighbour that dst is, or is reached by, and returns
// the one that a packet to it can wait for.
func (d *Decider) resolve(ctx context.Context, dev string, dst netip.Addr) (netip.Addr, bool) {
	if d.cfg.PortTowards(dst, dev) != nil {
		d.solicit(ctx, dev, dst)
		return dst, true
	}
	best := -1
	var vias []netip.Addr
	for _, r := range d.cfg.Routes {
		if r.To.Contains(dst) && r.To.Bits() > best {
			best, vias = r.To.Bits(), r.Via
		}
	}
	for _, via := range vias {
		d.solicit(ctx, dev, via)
	}
	if len(vias) == 0 {
		return netip.Addr{}, false
	}
	return vias[0], true
}

func (d *Decider) solicit(ctx context.Context, dev string, a netip.Addr) {
	port := d.cfg.PortTowards(a, dev)
	if port == nil || !d.near.ask(a, d.now()) {
		return
	}
	mac, _ := config.ParseMAC(port.MAC)
	for _, own := range port.Addresses {
		if own.Contains(a) {
			if err := d.send(ctx, dev, port.Port, hostpkt.Solicit(mac, own.Addr(), a, port.VLAN)); err != nil {
				d.log.Debug("neighbour_not_asked", "address", a.String(), "error", err)
			}
			return
		}
	}
}

func (d *Decider) onLink(port *config.Port, a netip.Addr) bool {
	for _, p := range port.Addresses {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// mine: an address of the member, on that port if one is given.
func (d *Decider) mine(port *config.Port, a netip.Addr) bool {
	for i := range d.cfg.Ports {
		p := &d.cfg.Ports[i]
		if port != nil && p.Name != port.Name {
			continue
		}
		for _, own := range p.Addresses {
			if own.Addr() == a {
				return true
			}
		}
	}
	return false
}

// addressFor is the member's address of a's family on the port, for errors.
func (d *Decider) addressFor(port *config.Port, is4 bool) (netip.Addr, bool) {
	for _, p := range port.Addresses {
		if p.Addr().Is4() == is4 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// tooBig: the packet does not fit with its tag; its sender is told what does.
func (d *Decider) tooBig(ctx context.Context, p Punt, v *packet.View) Outcome {
	out := d.portOf(p.Device, p.Meta.EgressPort, p.Meta.EgressZone)
	if out == nil {
		return drop("unknown_port")
	}
	mtu := int(out.MTU)
	if out.Role != "edge" {
		mtu -= d.Carrier().Overhead(d.suite)
	}
	// No MTU below these is ever announced (RFC 791, RFC 8200).
	if v.Family == 4 {
		mtu = max(mtu, 576)
	} else {
		mtu = max(mtu, 1280)
	}
	return d.report(ctx, p, v, func(frame []byte, from netip.Addr, mac uint64) ([]byte, bool) {
		if v.Family == 4 {
			return hostpkt.FragmentationNeeded(frame, from, mac, uint16(mtu))
		}
		return hostpkt.PacketTooBig(frame, from, mac, uint32(mtu))
	}, tables.ReasonTooBig.String())
}

func (d *Decider) ttlExpired(ctx context.Context, p Punt, v *packet.View) Outcome {
	return d.report(ctx, p, v, hostpkt.TimeExceeded, tables.ReasonTTLExpired.String())
}

// report sends an ICMP error about a packet to where it came from, within a
// rate, and drops the packet. A member on the way sees a tagged one: the error
// goes out as if no tag had been there.
func (d *Decider) report(ctx context.Context, p Punt, v *packet.View, make func([]byte, netip.Addr, uint64) ([]byte, bool), why string) Outcome {
	port := d.portOf(p.Device, p.Meta.IngressPort, p.Meta.Zone)
	if port == nil {
		return drop(why)
	}
	from, ok := d.addressFor(port, v.Family == 4)
	if !ok || !d.errors.AllowN(d.now(), 1) {
		return drop(why)
	}
	frame := p.Frame[:v.End]
	if v.Tagged {
		buf := append([]byte(nil), frame...)
		start, err := v.Strip(buf, 0)
		if err != nil {
			return drop(why)
		}
		frame = buf[start:]
	}
	mac, _ := config.ParseMAC(port.MAC)
	if msg, ok := make(frame, from, mac); ok {
		if err := d.send(ctx, p.Device, port.Port, msg); err != nil {
			d.log.Debug("error_not_sent", "reason", why, "error", err)
		}
	}
	return drop(why)
}

// icmpError: an error is judged by the session of the packet it quotes, never
// by its own addresses. It passes once per short-lived entry of its own.
func (d *Decider) icmpError(ctx context.Context, p Punt, v *packet.View) Outcome {
	if v.Has(packet.QuotedCarrier) {
		return drop("icmp_unproven")
	}
	quoted, ok := v.Quoted(p.Frame)
	if !ok {
		return drop("icmp_unreadable")
	}
	s, ok := d.book.Get(quoted)
	if !ok {
		return drop("icmp_unproven")
	}
	out, ok := d.egressOf(p.Device, v)
	if !ok {
		return drop("no_route")
	}
	low, high := zonesBySide(p.Meta.Zone, d.zones[out.Zone], v.SrcIsLow)
	add := []tables.Entry{entry.ForSession(v.Tuple, low, high, d.cfg.Sessions.ICMP.Std())}
	if out.Role != "edge" {
		e, err := d.signature(v.Tuple)
		if err != nil {
			return drop(tables.ReasonNoSigningKey.String())
		}
		if e != nil {
			add = append(add, e)
		}
	}
	if err := d.upsert(ctx, p.Device, add...); err != nil {
		return drop(reasonOf(err))
	}
	d.book.Put(session.Session{
		Tuple: v.Tuple, InitiatorLow: v.SrcIsLow, LowZone: low, HighZone: high, Issuer: s.Issuer,
		Generation: d.generation.Add(1), Created: d.now(), Places: []session.Place{{Device: p.Device, Session: true}},
		Expiry: d.now().Add(d.cfg.Sessions.ICMP.Std()), Announced: d.now(),
	})
	return d.giveBack(ctx, p)
}

// egressOf is the port that the packet leaves by, as the configuration routes.
func (d *Decider) egressOf(dev string, v *packet.View) (*config.Port, bool) {
	_, dst := v.Ends()
	best, bits := d.cfg.PortTowards(dst, dev), -1
	if best != nil {
		for _, a := range best.Addresses {
			if a.Contains(dst) {
				bits = max(bits, a.Bits())
			}
		}
	}
	for _, r := range d.cfg.Routes {
		if r.Device != "" && r.Device != dev || !r.To.Contains(dst) || r.To.Bits() <= bits {
			continue
		}
		for _, via := range r.Via {
			if p := d.cfg.PortTowards(via, dev); p != nil {
				best, bits = p, r.To.Bits()
				break
			}
		}
	}
	return best, best != nil
}

// leavesBy is the port that a punted packet leaves by: its cross connect's other
// end, or where the configuration routes it.
func (d *Decider) leavesBy(p Punt, v *packet.View) (*config.Port, bool) {
	if in := d.portOf(p.Device, p.Meta.IngressPort, p.Meta.Zone); in != nil {
		for _, x := range d.cfg.CrossConnects {
			switch in.Name {
			case x.A:
				return d.cfg.Port(x.B), true
			case x.B:
				return d.cfg.Port(x.A), true
			}
		}
	}
	return d.egressOf(p.Device, v)
}

// maxUnresolved bounds the packets that wait for one neighbour (RFC 1122,
// 2.3.2.2, asks for at least one), and for all of them.
const (
	maxUnresolved    = 4
	maxUnresolvedAll = 1024
)

// park keeps a packet until the neighbour that it needs is known; it reports
// false where there is no room.
func (n *Neighbourhood) park(a netip.Addr, p Punt) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.parked[a]) >= maxUnresolved || n.parkedAll >= maxUnresolvedAll {
		return false
	}
	p.Frame = bytes.Clone(p.Frame)
	n.parked[a] = append(n.parked[a], p)
	n.parkedAll++
	return true
}

// resolved takes the packets whose neighbour is known.
func (n *Neighbourhood) resolved() (ready []Punt) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a, ps := range n.parked {
		if _, ok := n.known[a]; ok {
			ready = append(ready, ps...)
			n.parkedAll -= len(ps)
			delete(n.parked, a)
		}
	}
	return ready
}

// forget drops packets whose neighbour did not answer in time.
func (n *Neighbourhood) forget(now time.Time) (dropped int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a, ps := range n.parked {
		if now.Sub(n.asked[a]) > resolveWait {
			dropped += len(ps)
			n.parkedAll -= len(ps)
			delete(n.parked, a)
		}
	}
	return dropped
}

// Resolved decides on the packets that waited for neighbours which are known
// now; it is called once the routes to them stand in the data planes. each, if
// not nil, is told of every decision.
func (d *Decider) Resolved(ctx context.Context, each func(Punt, Outcome)) {
	for _, p := range d.near.resolved() {
		out := d.resume(ctx, p)
		if each != nil {
			each(p, out)
		}
		d.decisions.WithLabelValues(p.Meta.Reason.String(), string(out.Verdict), out.Reason).Inc()
	}
}

// resume does for a packet what the data plane would have asked for had its
// route stood: a packet that is handed back is not punted again.
func (d *Decider) resume(ctx context.Context, p Punt) Outcome {
	var v packet.View
	if a := packet.Parse(p.Frame, d.Carrier(), &v); a != packet.None {
		return drop(a.String())
	}
	port, ok := d.egressOf(p.Device, &v)
	if !ok {
		return drop(tables.ReasonNoRoute.String())
	}
	p.Meta.EgressPort, p.Meta.EgressZone = port.Port, d.zones[port.Zone]
	switch {
	case v.Tagged && v.Tag.Suite != tag.Siphash:
		return d.tagUnverified(ctx, p, &v)
	case v.Tagged:
		// The data plane verified it before it looked for the route.
		if port.Role == "edge" {
			if out := d.firstSeen(ctx, p, &v); out.Verdict == Dropped {
				return out
			}
		} else if e, err := d.signature(v.Tuple); err != nil {
			return d.failed(v.Tuple, err)
		} else if e != nil {
			if err := d.upsert(ctx, p.Device, e); err != nil {
				return drop(reasonOf(err))
			}
		}
		return d.giveBack(ctx, p)
	case v.Fragment:
		return d.fragment(ctx, p, &v)
	case v.Has(packet.ICMPError):
		return d.icmpError(ctx, p, &v)
	}
	if s, ok := d.book.Get(v.Tuple); ok {
		want := s.LowZone
		if !v.SrcIsLow {
			want = s.HighZone
		}
		if want != p.Meta.Zone && want != 0xffff {
			return drop(tables.ReasonWrongZone.String())
		}
		return d.install(ctx, p, &v, s)
	}
	switch d.judge(p.Meta.Zone, p.Meta.EgressZone, &v, v.Tuple) {
	case "admit":
		return d.newSession(ctx, p, &v)
	case "tag":
		return d.giveBack(ctx, p)
	case "deny":
		return drop(tables.ReasonPolicyDeny.String())
	}
	return drop(tables.ReasonPolicyDefault.String())
}
