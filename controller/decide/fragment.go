package decide

import (
	"bytes"
	"context"
	"sync"
	"time"

	"countersign/controller/entry"
	"countersign/controller/session"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// Bounds of virtual reassembly: a datagram's pieces and bytes, datagrams in
// all, and how long the first piece is waited for.
const (
	maxPieces    = 64
	maxDatagram  = 65535
	maxDatagrams = 1024
	fragmentWait = 5 * time.Second
)

// fragmentRoom holds the pieces of datagrams whose first piece, which has the
// ports, has not come yet. The zero value is ready; it is safe for concurrent
// use.
type fragmentRoom struct {
	mu   sync.Mutex
	held map[tag.Tuple]*datagram
}

type datagram struct {
	until  time.Time
	punts  []Punt
	pieces []piece
	bad    bool
}

type piece struct{ low, high int }

// add notes a piece. It returns why the datagram is refused, or nothing.
func (r *fragmentRoom) add(t tag.Tuple, p Punt, at piece, now time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = map[tag.Tuple]*datagram{}
	}
	g := r.held[t]
	if g == nil {
		if len(r.held) >= maxDatagrams {
			return "reassembly_full"
		}
		g = &datagram{until: now.Add(fragmentWait)}
		r.held[t] = g
	}
	switch {
	case g.bad:
		return "fragment_overlap"
	case at.high > maxDatagram:
		g.bad = true
		return "fragment_too_long"
	case len(g.pieces) >= maxPieces:
		g.bad = true
		return "fragment_too_many"
	}
	for _, o := range g.pieces {
		if at.low < o.high && o.low < at.high {
			// RFC 5722: the whole datagram goes.
			g.bad, g.punts = true, nil
			return "fragment_overlap"
		}
	}
	g.pieces = append(g.pieces, at)
	p.Frame = bytes.Clone(p.Frame)
	g.punts = append(g.punts, p)
	return ""
}

// take returns the pieces held and keeps what was seen, against overlaps.
func (r *fragmentRoom) take(t tag.Tuple) []Punt {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.held[t]
	if g == nil {
		return nil
	}
	punts := g.punts
	g.punts = nil
	return punts
}

func (r *fragmentRoom) expire(now time.Time) (dropped int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, g := range r.held {
		if now.After(g.until) {
			dropped += len(g.punts)
			delete(r.held, t)
		}
	}
	return dropped
}

// fragment: pieces wait for the first one, which has the ports; it is judged
// like a whole packet of its session, and all pieces pass by an entry for the
// datagram.
func (d *Decider) fragment(ctx context.Context, p Punt, v *packet.View) Outcome {
	at := piece{int(v.FragOffset), int(v.FragOffset) + v.End - v.L4}
	if why := d.fragments.add(v.Tuple, p, at, d.now()); why != "" {
		return drop(why)
	}
	if at.low != 0 {
		if s, ok := d.book.Get(v.Tuple); ok && s.Installed() {
			return d.datagramPasses(ctx, p, v, s.LowZone, s.HighZone)
		}
		return Outcome{Waiting, ""}
	}
	whole, ok := v.FirstFragmentTuple(p.Frame)
	if !ok {
		return drop("fragment_tiny")
	}
	s, ok := d.book.Get(whole)
	if !ok {
		out, routed := d.egressOf(p.Device, v)
		if !routed {
			return drop("no_route")
		}
		if d.judge(p.Meta.Zone, d.zones[out.Zone], v, whole) != "admit" {
			return drop(tables.ReasonPolicyDefault.String())
		}
		s = session.Session{
			Tuple: whole, InitiatorLow: v.SrcIsLow, Generation: d.generation.Add(1), Created: d.now(),
		}
		s.At(p.Device).Session = true
		s.LowZone, s.HighZone = zonesBySide(p.Meta.Zone, d.zones[out.Zone], v.SrcIsLow)
		if !d.book.Put(s) {
			return drop("sessions_full")
		}
		d.announce(s)
		if err := d.upsert(ctx, p.Device, d.sessionEntry(s)); err != nil {
			return d.failed(whole, err)
		}
	}
	zone := s.LowZone
	if !v.SrcIsLow {
		zone = s.HighZone
	}
	if zone != p.Meta.Zone && zone != 0xffff {
		return drop(tables.ReasonWrongZone.String())
	}
	return d.datagramPasses(ctx, p, v, s.LowZone, s.HighZone)
}

func (d *Decider) datagramPasses(ctx context.Context, p Punt, v *packet.View, low, high uint16) Outcome {
	add := []tables.Entry{entry.ForSession(v.Tuple, low, high, fragmentIdle)}
	if port, ok := d.leavesBy(p, v); ok && port.Role != "edge" {
		e, err := d.signature(v.Tuple)
		if err != nil {
			return d.failed(v.Tuple, err)
		}
		if e != nil {
			add = append(add, e)
		}
	}
	if err := d.upsert(ctx, p.Device, add...); err != nil {
		return drop(reasonOf(err))
	}
	d.book.Put(session.Session{
		Tuple: v.Tuple, InitiatorLow: v.SrcIsLow, LowZone: low, HighZone: high,
		Places:     []session.Place{{Device: p.Device, Session: true}},
		Generation: d.generation.Add(1), Created: d.now(), Expiry: d.now().Add(fragmentIdle), Announced: d.now(),
	})
	out := drop("fragment_lost")
	for _, held := range d.fragments.take(v.Tuple) {
		out = d.giveBack(ctx, held)
	}
	return out
}

// judge evaluates the rules on the CPU as the data plane does, for a packet of
// the five-tuple given; it returns the action, or nothing where no rule
// matches.
func (d *Decider) judge(in, out uint16, v *packet.View, of tag.Tuple) string {
	src, dst := v.Ends()
	sport, dport := of.LowPort(), of.HighPort()
	if !v.SrcIsLow {
		sport, dport = dport, sport
	}
	const opening, mask = 0x02, 0x17 // SYN, and neither ACK, RST nor FIN
	for i := range d.cfg.Policy {
		r := &d.cfg.Policy[i]
		if !r.Matches(d.zones, in, out, src, dst, of.Protocol(), sport, dport) {
			continue
		}
		if r.Action == "admit" && !r.Midstream && of.Protocol() == 6 && v.TCPFlags&mask != opening {
			continue
		}
		return r.Action
	}
	return ""
}
