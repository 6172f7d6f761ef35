// Package decide judges punted packets: it admits sessions, verifies and signs
// per session, answers for the member's own addresses, and keeps the data
// planes' dynamic entries in step with keys and siblings.
//
// The rule of all decisions: the entry is written first, and once the data
// plane has confirmed it the packet is handed back to the start of its
// pipeline, so that packets are tagged in one place only.
package decide

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"countersign/controller/compile"
	"countersign/controller/config"
	"countersign/controller/entry"
	"countersign/controller/session"
	"countersign/directory"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// DataPlane is what a Decider writes to: a device session, or an engine in
// memory. Its methods are safe for concurrent use.
type DataPlane interface {
	// Write returns when the data plane has answered for each update.
	Write(ctx context.Context, updates []*p4v1.Update) error
	PacketOut(ctx context.Context, p *p4v1.PacketOut) error
}

// Failures lists the updates of a failed Write by index; errors of a DataPlane
// that do not implement it concern the Write as a whole.
type Failures interface {
	error
	// Failed calls f for each failed update.
	Failed(f func(index int, err error))
}

// Punt is a packet-in with where it came from.
type Punt struct {
	Device string
	Meta   tables.PacketIn
	Frame  []byte // not kept after Handle unless the packet waits, then copied
}

// Outcome is what became of a punt.
type Outcome struct {
	Verdict Verdict
	// Reason is why a packet was dropped, empty otherwise.
	Reason string
}

// Verdict is the kind of an Outcome.
type Verdict string

// The verdicts.
const (
	Returned Verdict = "returned" // handed back to the pipeline
	Dropped  Verdict = "dropped"
	Waiting  Verdict = "waiting"  // held for an announcement or more fragments
	Consumed Verdict = "consumed" // answered, or only a copy
)

func drop(reason string) Outcome { return Outcome{Dropped, reason} }

// Config is what a Decider works with. Config, Planes and Now are required.
type Config struct {
	Config *config.Config
	Planes map[string]DataPlane // by device name
	Book   *session.Book        // default: a new one
	Now    func() time.Time
	Random io.Reader // nonces and generations; default: crypto/rand
	// Announce tells the siblings; it must not block. Default: nobody.
	Announce func(...session.Announcement)
	// Learned is called when a neighbour's link-layer address has become known
	// or has changed; the owner then compiles the routes anew.
	Learned func()
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Decider decides on punts. It is made by New and is safe for concurrent use;
// punts of one five-tuple should come in order, one at a time.
type Decider struct {
	cfg    *config.Config
	suite  tag.Suite
	zones  map[string]uint16
	names  map[uint16]string
	planes map[string]DataPlane
	book   *session.Book
	now    func() time.Time
	random io.Reader
	tell   func(...session.Announcement)
	learn  func()
	log    *slog.Logger

	view       atomic.Pointer[view]
	generation atomic.Uint64
	waiting    waitRoom
	fragments  fragmentRoom
	near       *Neighbourhood

	decisions *prometheus.CounterVec
	errors    *rate.Limiter
	randMu    sync.Mutex
	nonces    tag.MACKey // secret that nonces of finished tags are made from
}

// view is the snapshot with the look-ups made from it.
type view struct {
	snap *directory.Snapshot
	keys map[tag.KeyID]*directory.VerifyKey
}

// New returns a Decider for cfg.
func New(cfg Config) (*Decider, error) {
	suite, err := tag.ParseSuite(cfg.Config.Sign)
	if err != nil {
		return nil, err
	}
	d := &Decider{
		cfg: cfg.Config, suite: suite, zones: cfg.Config.Zones(), names: map[uint16]string{},
		planes: cfg.Planes, book: cfg.Book, now: cfg.Now, random: cfg.Random,
		tell: cfg.Announce, learn: cfg.Learned, log: cfg.Log,
	}
	for name, id := range d.zones {
		d.names[id] = name
	}
	if d.book == nil {
		d.book = session.NewBook(cfg.Config.Sessions.Max)
	}
	if d.random == nil {
		d.random = rand.Reader
	}
	if d.tell == nil {
		d.tell = func(...session.Announcement) {}
	}
	if d.learn == nil {
		d.learn = func() {}
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if _, err := io.ReadFull(d.random, d.nonces[:]); err != nil {
		return nil, fmt.Errorf("random number: %w", err)
	}
	d.errors = rate.NewLimiter(500, 100)
	d.near = newNeighbourhood(cfg.Config)
	d.waiting.max = cfg.Config.Siblings.Held
	d.generation.Store(uint64(d.now().UnixNano()))
	d.view.Store(&view{})
	d.decisions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "countersign_decisions_total",
		Help: "Decisions of the controller on punted packets, by punt reason, verdict and, where dropped, why.",
	}, []string{"reason", "verdict", "why"})
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(d.decisions, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "countersign_sessions", Help: "Sessions in the controller's book.",
		}, func() float64 { return float64(d.book.Len()) }))
	}
	return d, nil
}

// Book returns the book of sessions.
func (d *Decider) Book() *session.Book { return d.book }

// Neighbours returns the link-layer addresses that are known.
func (d *Decider) Neighbours() compile.Neighbours { return d.near.Known() }

// Handle decides on one punt and carries the decision out.
func (d *Decider) Handle(ctx context.Context, p Punt) Outcome {
	out := d.decide(ctx, p)
	d.decisions.WithLabelValues(p.Meta.Reason.String(), string(out.Verdict), out.Reason).Inc()
	return out
}

func (d *Decider) decide(ctx context.Context, p Punt) Outcome {
	if d.planes[p.Device] == nil {
		return drop("unknown_device")
	}
	var v packet.View
	if a := packet.Parse(p.Frame, d.Carrier(), &v); a != packet.None {
		return drop(a.String())
	}
	switch p.Meta.Reason {
	case tables.ReasonNewSession:
		return d.newSession(ctx, p, &v)
	case tables.ReasonReplyUnknown:
		return d.replyUnknown(ctx, p, &v)
	case tables.ReasonTagUnverified:
		return d.tagUnverified(ctx, p, &v)
	case tables.ReasonTagUnsigned:
		return d.tagUnsigned(ctx, p, &v)
	case tables.ReasonFragment:
		return d.fragment(ctx, p, &v)
	case tables.ReasonTooBig:
		return d.tooBig(ctx, p, &v)
	case tables.ReasonTTLExpired:
		return d.ttlExpired(ctx, p, &v)
	case tables.ReasonICMPError:
		return d.icmpError(ctx, p, &v)
	case tables.ReasonToMe:
		return d.toMe(ctx, p, &v)
	case tables.ReasonFirstSeen:
		return d.firstSeen(ctx, p, &v)
	case tables.ReasonTCPFlags:
		return d.tcpFlags(p, &v)
	case tables.ReasonTagUnknownKey:
		// The directory sends every key as soon as there is one: there is
		// nothing to ask it for, and the copy is counted.
		return Outcome{Consumed, ""}
	}
	return Outcome{Consumed, ""}
}

// Carrier is what announces a tag: the alliance's, else the configuration's.
func (d *Decider) Carrier() packet.Carrier {
	c := packet.Carrier{UDP: d.cfg.Carrier.Kind == "udp", Protocol: d.cfg.Carrier.Protocol, Port: d.cfg.Carrier.Port}
	if s := d.view.Load().snap; s != nil {
		c = packet.Carrier{UDP: s.Carrier.UDP, Protocol: s.Carrier.Protocol, Port: s.Carrier.Port}
	}
	return c
}

// newSession admits: the policy has said so, the entry makes it stand.
func (d *Decider) newSession(ctx context.Context, p Punt, v *packet.View) Outcome {
	s, known := d.book.Get(v.Tuple)
	if !known || s.Origin != "" || s.Closing {
		s = session.Session{
			Tuple: v.Tuple, InitiatorLow: v.SrcIsLow,
			Generation: d.generation.Add(1), Created: d.now(),
		}
	}
	s.At(p.Device).Session = true
	s.LowZone, s.HighZone = zonesBySide(p.Meta.Zone, p.Meta.EgressZone, v.SrcIsLow)
	if !d.book.Put(s) {
		return drop("sessions_full")
	}
	d.announce(s)
	add := []tables.Entry{entry.ForSession(v.Tuple, s.LowZone, s.HighZone, d.idle(v.Tuple))}
	if e, err := d.signIfNeeded(p, v); err != nil {
		return d.failed(v.Tuple, err)
	} else if e != nil {
		add = append(add, e)
	}
	if err := d.upsert(ctx, p.Device, add...); err != nil {
		return d.failed(v.Tuple, err)
	}
	return d.giveBack(ctx, p)
}

// replyUnknown: a reply without a session, which a sibling may have admitted.
func (d *Decider) replyUnknown(ctx context.Context, p Punt, v *packet.View) Outcome {
	if s, ok := d.book.Get(v.Tuple); ok {
		return d.install(ctx, p, v, s)
	}
	if !d.waiting.add(v.Tuple, p, d.now().Add(d.cfg.Siblings.Wait.Std())) {
		return drop("waiting_full")
	}
	// It may have been announced in between.
	if _, ok := d.book.Get(v.Tuple); ok {
		d.release(ctx, v.Tuple)
	}
	return Outcome{Waiting, ""}
}

func (d *Decider) install(ctx context.Context, p Punt, v *packet.View, s session.Session) Outcome {
	add := []tables.Entry{d.sessionEntry(s)}
	if e, err := d.signIfNeeded(p, v); err != nil {
		return d.failed(v.Tuple, err)
	} else if e != nil {
		add = append(add, e)
	}
	if err := d.upsert(ctx, p.Device, add...); err != nil {
		return drop(reasonOf(err))
	}
	d.book.Update(v.Tuple, func(s *session.Session) { s.At(p.Device).Session = true })
	return d.giveBack(ctx, p)
}

// release hands back what waited for the session of t.
func (d *Decider) release(ctx context.Context, t tag.Tuple) {
	for _, p := range d.waiting.take(t) {
		var v packet.View
		out := drop("waiting_lost")
		if packet.Parse(p.Frame, d.Carrier(), &v) == packet.None {
			if s, ok := d.book.Get(t); ok {
				out = d.install(ctx, p, &v, s)
			}
		}
		d.decisions.WithLabelValues(p.Meta.Reason.String(), string(out.Verdict), out.Reason).Inc()
	}
}

// Expire drops what has waited too long; it is called several times within
// that time, and returns how many packets it dropped.
func (d *Decider) Expire() int {
	now := d.now()
	n := d.waiting.expire(now)
	if n > 0 {
		d.decisions.WithLabelValues(tables.ReasonReplyUnknown.String(), string(Dropped), "no_announcement").Add(float64(n))
	}
	m := d.fragments.expire(now)
	if m > 0 {
		d.decisions.WithLabelValues(tables.ReasonFragment.String(), string(Dropped), "reassembly_timeout").Add(float64(m))
	}
	k := d.near.forget(now)
	if k > 0 {
		d.decisions.WithLabelValues(tables.ReasonToMe.String(), string(Dropped), "neighbour_unknown").Add(float64(k))
	}
	return n + m + k
}

// Sweep removes sessions that have reached their end, and announces the
// member's own again before what was said of them expires. It is called more
// often than a quarter of the shortest session timeout.
func (d *Decider) Sweep(ctx context.Context) {
	now := d.now()
	for s := range d.book.Sessions() {
		switch {
		case !s.Expiry.IsZero() && now.After(s.Expiry):
			d.remove(ctx, s.Tuple, s.Origin, s.Generation)
		case s.Origin == "" && now.Sub(s.Announced) > d.idle(s.Tuple)/2:
			d.announce(s)
		}
	}
}

// tagUnverified checks the sealed nonce of a tag of suites 2 and 3.
func (d *Decider) tagUnverified(ctx context.Context, p Punt, v *packet.View) Outcome {
	if !v.Tagged {
		return drop("untagged")
	}
	id := v.Tag.KeyID()
	k := d.view.Load().keys[id]
	switch {
	case k == nil || k.State.Live() && k.Key == nil:
		return drop(tables.ReasonTagUnknownKey.String())
	case !k.State.Live(), k.State == directory.EchoOnly && p.Meta.Role != tables.RoleEcho:
		return drop(tables.ReasonTagRevoked.String())
	}
	which := session.Vouched{ID: id, Nonce: v.Tag.Nonce, Digest: v.Tag.Digest, CRC: v.Tag.SealedCRC()}
	known, own := false, tag.KeyID{}
	d.book.Tags(v.Tuple, func(t *session.Tags) {
		own = t.Own
		for _, o := range t.Vouched {
			known = known || o == which
		}
	})
	if !known {
		if err := k.Key.Verify(&v.Tag, &v.Tuple); err != nil {
			return drop(tables.ReasonTagForged.String())
		}
	}
	// Packets that were held behind the first one of a tag find its entries; of
	// several data planes, the one that asks may lack them.
	var add []tables.Entry
	if !known || len(d.planes) > 1 {
		add = append(add, entry.ForVouched(v.Tuple, which, d.idle(v.Tuple)))
	}
	if port, ok := d.leavesBy(p, v); ok && port.Role != "edge" && (own != d.current() || len(d.planes) > 1) {
		if e, err := d.signature(v.Tuple); err != nil {
			return d.failed(v.Tuple, err)
		} else if e != nil {
			add = append(add, e)
		}
	}
	if len(add) > 0 {
		if err := d.upsert(ctx, p.Device, add...); err != nil {
			return drop(reasonOf(err))
		}
	}
	var old []session.Vouched
	d.book.Tags(v.Tuple, func(t *session.Tags) {
		if !known {
			t.Vouched = append(t.Vouched, which)
		}
		if n := len(t.Vouched) - session.MaxVouched; n > 0 {
			old, t.Vouched = t.Vouched[:n:n], t.Vouched[n:]
		}
	})
	for _, o := range old {
		d.erase(ctx, entry.VouchedRemoval(v.Tuple, o))
	}
	// A packet that is handed back is not copied again: what its first_seen
	// would say is known now, and a session whose every packet has a new tag
	// would never say it.
	if port, ok := d.leavesBy(p, v); ok && port.Role == "edge" {
		if s, known := d.book.Get(v.Tuple); !known || s.Origin != "" || s.Closing || !s.At(p.Device).Delivered {
			p.Meta.EgressPort, p.Meta.EgressZone = port.Port, d.zones[port.Zone]
			d.firstSeen(ctx, p, v)
		}
	}
	return d.giveBack(ctx, p)
}

// tagUnsigned makes the session's finished tag.
func (d *Decider) tagUnsigned(ctx context.Context, p Punt, v *packet.View) Outcome {
	e, err := d.signature(v.Tuple)
	if err != nil {
		return d.failed(v.Tuple, err)
	}
	if e != nil {
		if err := d.upsert(ctx, p.Device, e); err != nil {
			return drop(reasonOf(err))
		}
	}
	return d.giveBack(ctx, p)
}

// firstSeen: a tagged session leaves by an edge here. Its replies come
// untagged, here or at a sibling.
func (d *Decider) firstSeen(ctx context.Context, p Punt, v *packet.View) Outcome {
	if !v.Tagged {
		return drop("untagged")
	}
	k := d.view.Load().keys[v.Tag.KeyID()]
	if k == nil || !k.State.Live() {
		return drop(tables.ReasonTagRevoked.String())
	}
	now := d.now()
	s, known := d.book.Get(v.Tuple)
	if !known || s.Origin != "" || s.Closing && v.TCPFlags&0x12 == 0x02 {
		s = session.Session{
			Tuple: v.Tuple, InitiatorLow: v.SrcIsLow,
			Generation: d.generation.Add(1), Created: now,
		}
		s.LowZone, s.HighZone = zonesBySide(p.Meta.Zone, p.Meta.EgressZone, v.SrcIsLow)
	}
	if s.Issuer == "" && !known {
		s.Issuer = k.Member
	}
	at := s.At(p.Device)
	at.Session, at.Delivered = true, true
	if v.Tuple.Kind() == tag.KindFragment {
		// A datagram's pieces need no reply and are no session.
		if err := d.upsert(ctx, p.Device, entry.ForDelivered(v.Tuple, fragmentIdle)); err != nil {
			return drop(reasonOf(err))
		}
		return Outcome{Consumed, ""}
	}
	if !d.book.Put(s) {
		return drop("sessions_full")
	}
	d.announce(s)
	err := d.upsert(ctx, p.Device,
		entry.ForDelivered(v.Tuple, d.idle(v.Tuple)),
		d.sessionEntry(s))
	if err != nil {
		return d.failed(v.Tuple, err)
	}
	d.release(ctx, v.Tuple)
	return Outcome{Consumed, ""}
}

// tcpFlags: the end of a connection shortens what is left of its session.
func (d *Decider) tcpFlags(p Punt, v *packet.View) Outcome {
	const fin, rst = 0x01, 0x04
	if v.TCPFlags&(fin|rst) == 0 {
		return Outcome{Consumed, ""}
	}
	s, ok := d.book.Update(v.Tuple, func(s *session.Session) {
		s.Closing = true
		s.Expiry = d.now().Add(d.cfg.Sessions.Closing.Std())
	})
	if ok && s.Origin == "" {
		d.announce(s)
	}
	return Outcome{Consumed, ""}
}

// Announced takes what a sibling says about its sessions.
func (d *Decider) Announced(ctx context.Context, from string, batch []session.Announcement) {
	for _, a := range batch {
		switch {
		case a.Deleted:
			d.remove(ctx, a.Tuple, from, a.Generation)
			continue
		case !d.serves(&a):
			d.decisions.WithLabelValues("announcement", string(Dropped), "not_of_the_site").Inc()
			continue
		}
		s, known := d.book.Get(a.Tuple)
		if known && s.Origin == "" && !s.Closing {
			continue // our own knowledge is first hand
		}
		if known && s.Origin == from && s.Generation > a.Generation {
			continue
		}
		fresh := !known || s.Generation != a.Generation || s.Origin != from
		n := session.Session{
			Tuple: a.Tuple, InitiatorLow: a.InitiatorLow, Origin: from, Issuer: a.Issuer,
			Generation: a.Generation, Created: d.now(), Expiry: a.Expiry,
			LowZone: d.zoneOf(a.LowZone), HighZone: d.zoneOf(a.HighZone), Places: s.Places,
		}
		if !fresh {
			n.Created = s.Created
		}
		if !d.book.Put(n) {
			d.decisions.WithLabelValues("announcement", string(Dropped), "sessions_full").Inc()
			continue
		}
		if fresh && d.cfg.Siblings.Mode == "eager" {
			for dev := range d.planes {
				if err := d.upsert(ctx, dev, d.sessionEntry(n)); err != nil {
					d.log.Warn("session_not_installed", "device", dev, "error", err)
				} else {
					d.book.Update(a.Tuple, func(s *session.Session) { s.At(dev).Session = true })
				}
			}
		}
		d.release(ctx, a.Tuple)
	}
}

// Standing returns the announcements of the member's own sessions.
func (d *Decider) Standing() func(yield func(session.Announcement) bool) {
	return func(yield func(session.Announcement) bool) {
		for s := range d.book.Sessions() {
			if s.Origin == "" && !yield(d.announcement(s)) {
				return
			}
		}
	}
}

// announce tells the siblings of one of the member's own sessions.
func (d *Decider) announce(s session.Session) {
	d.book.Update(s.Tuple, func(b *session.Session) { b.Announced = d.now() })
	d.tell(d.announcement(s))
}

// serves: the side of the session that belongs to the site must be among what
// it serves, or among its initiators' prefixes.
func (d *Decider) serves(a *session.Announcement) bool {
	low, high := a.Tuple.Low(), a.Tuple.High()
	for _, s := range d.cfg.Serves {
		if s.Prefix.Contains(low) || s.Prefix.Contains(high) {
			return true
		}
	}
	if snap := d.view.Load().snap; snap != nil {
		for i := range snap.Sites {
			if snap.Sites[i].Name != snap.Self.Site {
				continue
			}
			for _, p := range snap.Sites[i].Prefixes {
				if p.Contains(low) || p.Contains(high) {
					return true
				}
			}
		}
	}
	return false
}

func (d *Decider) announcement(s session.Session) session.Announcement {
	expiry := s.Expiry
	if expiry.IsZero() {
		expiry = d.now().Add(2 * d.idle(s.Tuple))
	}
	return session.Announcement{
		Tuple: s.Tuple, InitiatorLow: s.InitiatorLow,
		LowZone: d.names[s.LowZone], HighZone: d.names[s.HighZone],
		Issuer: s.Issuer, Generation: s.Generation, Expiry: expiry,
	}
}

// zoneOf numbers a sibling's zone; one that this member does not have lets
// nothing in, "*" everything.
func (d *Decider) zoneOf(name string) uint16 {
	if name == "*" {
		return 0xffff
	}
	return d.zones[name]
}

// Idle takes the data plane's word that an entry was not hit for its time.
func (d *Decider) Idle(ctx context.Context, dev string, te *p4v1.TableEntry) {
	r, ok, err := entry.Decode(te)
	if err != nil || !ok {
		return
	}
	switch r.Kind {
	case entry.Vouched:
		d.book.Tags(r.Tuple, func(t *session.Tags) {
			kept := t.Vouched[:0]
			for _, o := range t.Vouched {
				if o != r.Vouched {
					kept = append(kept, o)
				}
			}
			t.Vouched = kept
		})
		d.erase(ctx, entry.VouchedRemoval(r.Tuple, r.Vouched))
		return
	case entry.OwnTag:
		d.book.Tags(r.Tuple, func(t *session.Tags) { t.Own = tag.KeyID{} })
		d.erase(ctx, entry.Removal(entry.OwnTag, r.Tuple))
		return
	}
	now := d.now()
	s, ok := d.book.Update(r.Tuple, func(s *session.Session) {
		if at := s.At(dev); r.Kind == entry.Delivered {
			at.DeliveredIdle = now
		} else {
			at.SessionIdle = now
		}
	})
	switch {
	case !ok:
		d.erase(ctx, entry.Removal(r.Kind, r.Tuple))
	case s.Origin != "":
		// A sibling's session goes at its expiry.
	case d.quiet(&s):
		d.remove(ctx, s.Tuple, s.Origin, s.Generation)
	}
}

// quiet: all entries of the session, in all data planes, are idle.
func (d *Decider) quiet(s *session.Session) bool {
	for _, p := range s.Places {
		if p.Session && !d.recently(p.SessionIdle, s.Tuple) || p.Delivered && !d.recently(p.DeliveredIdle, s.Tuple) {
			return false
		}
	}
	return true
}

// recently: idle entries are reported again each time their timeout passes, so
// a report that is older says nothing any more.
func (d *Decider) recently(at time.Time, t tag.Tuple) bool {
	return !at.IsZero() && d.now().Sub(at) <= d.idle(t)+d.idle(t)/2
}

// Kill removes the session of t everywhere; it reports whether there was one.
func (d *Decider) Kill(ctx context.Context, t tag.Tuple) bool {
	s, ok := d.book.Get(t)
	if ok {
		d.remove(ctx, t, s.Origin, s.Generation)
	}
	return ok
}

func (d *Decider) remove(ctx context.Context, t tag.Tuple, origin string, generation uint64) {
	s, ok := d.book.Delete(t, origin, generation)
	if !ok {
		return
	}
	rm := []tables.Entry{entry.Removal(entry.Session, t)}
	if s.Delivered() {
		rm = append(rm, entry.Removal(entry.Delivered, t))
	}
	var tags session.Tags
	d.book.Tags(t, func(r *session.Tags) { tags, *r = *r, session.Tags{} })
	for _, v := range tags.Vouched {
		rm = append(rm, entry.VouchedRemoval(t, v))
	}
	if tags.Own != (tag.KeyID{}) {
		rm = append(rm, entry.Removal(entry.OwnTag, t))
	}
	d.erase(ctx, rm...)
	if s.Origin == "" {
		a := d.announcement(s)
		a.Deleted = true
		d.tell(a)
	}
}

// signIfNeeded returns the own_tag entry that a held packet will need where
// its egress port is known.
func (d *Decider) signIfNeeded(p Punt, v *packet.View) (tables.Entry, error) {
	port := d.portOf(p.Device, p.Meta.EgressPort, p.Meta.EgressZone)
	if port == nil || port.Role == "edge" {
		return nil, nil
	}
	return d.signature(v.Tuple)
}

// signature makes the finished tag of a session and notes it in the book; nil
// where the member signs with suite 1, whose tags the data plane makes.
func (d *Decider) signature(t tag.Tuple) (tables.Entry, error) {
	if d.suite == tag.Siphash {
		return nil, nil
	}
	snap := d.view.Load().snap
	if snap == nil {
		return nil, errNoKey
	}
	k := snap.Current(d.suite)
	if k == nil {
		return nil, errNoKey
	}
	// The nonce is the session's in this epoch, as random as the secret, so that
	// signing again makes the same tag and the next member verifies one only.
	h, err := k.Key.Issue(k.UNID, k.Epoch, d.nonces.Digest(k.KeyID.Word0(), 0, &t), &t)
	if err != nil {
		return nil, fmt.Errorf("sign under %v: %w", k.KeyID, err)
	}
	e, err := entry.ForOwnTag(t, &h, d.idle(t))
	if err == nil {
		d.book.Tags(t, func(r *session.Tags) { r.Own = k.KeyID })
	}
	return e, err
}

// current is the key that the member signs with, the zero value for none.
func (d *Decider) current() tag.KeyID {
	if snap := d.view.Load().snap; snap != nil {
		if k := snap.Current(d.suite); k != nil {
			return k.KeyID
		}
	}
	return tag.KeyID{}
}

var errNoKey = errors.New("no current key to sign with")

func (d *Decider) random64() (uint64, error) {
	var b [8]byte
	d.randMu.Lock()
	_, err := io.ReadFull(d.random, b[:])
	d.randMu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("random number: %w", err)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

func (d *Decider) sessionEntry(s session.Session) tables.Entry {
	idle := d.idle(s.Tuple)
	if s.Origin != "" {
		idle = 0 // it goes at the announced expiry
	}
	return entry.ForSession(s.Tuple, s.LowZone, s.HighZone, idle)
}

// fragmentIdle is RFC 791's and RFC 8200's order of a reassembly timeout.
const fragmentIdle = 30 * time.Second

func (d *Decider) idle(t tag.Tuple) time.Duration {
	s := &d.cfg.Sessions
	switch {
	case t.Kind() == tag.KindFragment:
		return fragmentIdle
	case t.Kind() == tag.KindICMPOther:
		return s.ICMP.Std()
	}
	switch t.Protocol() {
	case 6:
		return s.TCP.Std()
	case 17, 136:
		return s.UDP.Std()
	case 1, 58:
		return s.ICMP.Std()
	}
	return s.Other.Std()
}

func (d *Decider) portOf(dev string, port, zone uint16) *config.Port {
	for i := range d.cfg.Ports {
		p := &d.cfg.Ports[i]
		if p.Device == dev && p.Port == port && (zone == 0 || d.zones[p.Zone] == zone) {
			return p
		}
	}
	return nil
}

// upsert inserts the entries, and modifies those that are there already.
func (d *Decider) upsert(ctx context.Context, dev string, entries ...tables.Entry) error {
	updates := make([]*p4v1.Update, 0, len(entries))
	for _, e := range entries {
		u, err := e.Update(p4v1.Update_INSERT)
		if err != nil {
			return err
		}
		updates = append(updates, u)
	}
	err := d.planes[dev].Write(ctx, updates)
	if err == nil {
		return nil
	}
	var fs Failures
	if !errors.As(err, &fs) {
		return err
	}
	var again []*p4v1.Update
	var other error
	fs.Failed(func(i int, err error) {
		if status.Code(err) == codes.AlreadyExists && i < len(entries) {
			u, uerr := entries[i].Update(p4v1.Update_MODIFY)
			if uerr == nil {
				again = append(again, u)
				return
			}
		}
		other = err
	})
	if other != nil {
		return other
	}
	return d.planes[dev].Write(ctx, again)
}

// erase deletes entries from all data planes; one that is gone already is no
// failure.
func (d *Decider) erase(ctx context.Context, entries ...tables.Entry) {
	updates := make([]*p4v1.Update, 0, len(entries))
	for _, e := range entries {
		if u, err := e.Update(p4v1.Update_DELETE); err == nil {
			updates = append(updates, u)
		}
	}
	for dev, plane := range d.planes {
		err := plane.Write(ctx, updates)
		var fs Failures
		if errors.As(err, &fs) {
			err = nil
			fs.Failed(func(_ int, e error) {
				if status.Code(e) != codes.NotFound {
					err = e
				}
			})
		}
		if err != nil {
			d.log.Warn("entries_not_deleted", "device", dev, "error", err)
		}
	}
}

// giveBack puts the packet back at the start of the ingress pipeline.
func (d *Decider) giveBack(ctx context.Context, p Punt) Outcome {
	out, err := tables.PacketOut{Mode: tables.PacketOutModeReturn, IngressPort: p.Meta.IngressPort}.ToProto(p.Frame)
	if err == nil {
		err = d.planes[p.Device].PacketOut(ctx, out)
	}
	if err != nil {
		return drop("device_away")
	}
	return Outcome{Returned, ""}
}

// send lets a frame leave by a port as it is.
func (d *Decider) send(ctx context.Context, dev string, port uint16, frame []byte) error {
	out, err := tables.PacketOut{Mode: tables.PacketOutModeSend, EgressPort: port}.ToProto(frame)
	if err != nil {
		return err
	}
	return d.planes[dev].PacketOut(ctx, out)
}

// failed forgets a session whose entries could not be written.
func (d *Decider) failed(t tag.Tuple, err error) Outcome {
	if errors.Is(err, errNoKey) {
		return drop(tables.ReasonNoSigningKey.String())
	}
	d.book.Delete(t, "", 0)
	d.log.Debug("session_refused", "five_tuple", t.String(), "error", err)
	return drop(reasonOf(err))
}

func reasonOf(err error) string {
	switch status.Code(err) {
	case codes.ResourceExhausted:
		return "table_full"
	case codes.OK, codes.Unknown:
		return "write_failed"
	default:
		return "write_" + status.Code(err).String()
	}
}

func zonesBySide(src, dst uint16, srcIsLow bool) (low, high uint16) {
	if srcIsLow {
		return src, dst
	}
	return dst, src
}
