// Package controller is the process that owns a member's data planes: it ties
// device sessions, the directory, the siblings and the decisions on punted
// packets together. What each of them is lies in a package of its own.
package controller

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"countersign/controller/admin"
	"countersign/controller/compile"
	"countersign/controller/config"
	"countersign/controller/decide"
	"countersign/controller/device"
	"countersign/controller/pool"
	"countersign/controller/session"
	"countersign/controller/sibling"
	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/client"
	"countersign/p4src"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// Options are what a controller needs beside its configuration.
type Options struct {
	Config *config.Config
	Log    *slog.Logger
	// Metrics is where the controller's metrics are registered; default: none.
	Metrics prometheus.Registerer
}

// Run runs the controller until ctx ends. It returns nil then, and an error
// where it could not start.
func Run(ctx context.Context, o Options) error {
	c, err := start(o)
	if err != nil {
		return err
	}
	return c.run(ctx)
}

type controller struct {
	cfg     *config.Config
	suite   tag.Suite
	log     *slog.Logger
	started time.Time

	devices  []*plane
	decider  *decide.Decider
	siblings *sibling.Service // nil without
	client   *client.Client   // nil with static keys
	pool     *pool.Pool[decide.Punt]
	admin    *admin.Server // nil without

	snap      atomic.Pointer[directory.Snapshot]
	compiling sync.Mutex
	changed   chan struct{} // static entries are to be compiled anew

	punts   *prometheus.CounterVec
	planesC *planeCollector
}

// plane is one data plane with its session.
type plane struct {
	cfg config.Device
	*device.Session
	wanted atomic.Uint64 // revision of the newest desired set
	signed sync.Mutex
	keyID  tag.KeyID // what own_key holds
	gen    uint64    // in which generation of the session
}

// Write turns the session's error into one that decide can read by update.
func (p *plane) Write(ctx context.Context, updates []*p4v1.Update) error {
	err := p.Session.Write(ctx, updates)
	var we *device.WriteError
	if errors.As(err, &we) {
		return failures{we}
	}
	return err
}

type failures struct{ *device.WriteError }

// Failed implements decide.Failures.
func (f failures) Failed(yield func(int, error)) {
	for _, e := range f.Errors {
		yield(e.Index, e)
	}
}

// Queues of packet-ins: a flood of new sessions does not delay the rest.
const (
	queueUrgent = iota
	queuePlain
)

func start(o Options) (*controller, error) {
	cfg := o.Config
	suite, err := tag.ParseSuite(cfg.Sign)
	if err != nil {
		return nil, cfg.At("sign", err)
	}
	c := &controller{
		cfg: cfg, suite: suite, log: o.Log, started: time.Now(), changed: make(chan struct{}, 1),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	reg := o.Metrics
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	if err := c.warnMTU(); err != nil {
		return nil, err
	}
	info, err := p4src.P4Info()
	if err != nil {
		return nil, err
	}
	h := fnv.New64a()
	h.Write(p4src.Stamp)
	cookie := h.Sum64()

	planes := map[string]decide.DataPlane{}
	metrics := device.NewMetrics(reg)
	for i := range cfg.Devices {
		dc := cfg.Devices[i]
		tlsConfig, err := loadTLS(cfg, i)
		if err != nil {
			return nil, err
		}
		p := &plane{cfg: dc}
		p.Session, err = device.New(device.Config{
			Name: dc.Name, Target: dc.Address, TLS: tlsConfig, DeviceID: dc.ID,
			Pipeline: device.Pipeline{Info: info, DeviceConfig: p4src.JSON, Cookie: cookie},
			Dynamic:  compile.Dynamic(),
			Adopt: func(ctx context.Context, found iter.Seq2[*p4v1.TableEntry, error]) error {
				if err := c.decider.Adopt(ctx, dc.Name, found); err != nil {
					return err
				}
				c.note(p)
				return nil
			},
			Queues:   []device.Queue{queueUrgent: {Name: "urgent", Depth: 16384}, queuePlain: {Name: "plain", Depth: 16384}},
			Classify: classify,
			Log:      c.log.With("device", dc.Name), Metrics: metrics,
		})
		if err != nil {
			return nil, cfg.At(fmt.Sprintf("devices[%d].address", i), err)
		}
		c.devices = append(c.devices, p)
		planes[dc.Name] = p
	}

	if cfg.Directory != nil {
		c.client, err = client.Open(client.Config{
			State: cfg.Directory.State, KeyFile: cfg.Directory.KeyFile, Address: cfg.Directory.Address,
			RotateEvery: cfg.Directory.RotateEvery.Std(), CodeEvery: cfg.Directory.CodeEvery.Std(),
			Log: c.log, Metrics: reg,
		})
		if err != nil {
			return nil, cfg.At("directory.state", err)
		}
	}
	if cfg.Siblings.Listen != "" {
		c.siblings, err = sibling.New(sibling.Config{
			Self: cfg.Member, Listen: cfg.Siblings.Listen,
			ServerTLS: c.serverTLS(), ClientTLS: c.client.ClientTLS, PeerName: c.client.PeerName,
			Sibling: c.isSibling, Peers: c.peers,
			Accept: func(from string, batch []session.Announcement) {
				c.decider.Announced(context.Background(), from, batch)
			},
			Standing: func() iter.Seq[session.Announcement] { return c.decider.Standing() },
			Log:      c.log, Metrics: reg, Now: time.Now,
		})
		if err != nil {
			return nil, cfg.At("siblings.listen", err)
		}
	}
	dc := decide.Config{
		Config: cfg, Planes: planes, Now: time.Now, Log: c.log, Metrics: reg,
		Learned: c.recompile,
	}
	if c.siblings != nil {
		dc.Announce = c.siblings.Announce
	}
	if c.decider, err = decide.New(dc); err != nil {
		return nil, err
	}
	c.punts = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "countersign_punts_dropped_total", Help: "Punts that found the controller's queue full, by reason.",
	}, []string{"reason"})
	c.planesC = newPlaneCollector(c)
	reg.MustRegister(c.punts, c.planesC)
	c.pool = pool.New(cfg.Punts.Workers, cfg.Punts.Queue, func(ctx context.Context, p decide.Punt) {
		out := c.decider.Handle(ctx, p)
		if out.Verdict == decide.Dropped {
			c.log.Debug("punt_dropped", "reason", p.Meta.Reason.String(), "why", out.Reason, "port", p.Meta.IngressPort)
		}
	})
	if cfg.Admin != "" {
		if c.admin, err = admin.Listen(cfg.Admin, c); err != nil {
			return nil, cfg.At("admin", err)
		}
	}
	return c, nil
}

// serverTLS asks the directory's client anew for every connection, because
// certificates and authorities change while the controller runs.
func (c *controller) serverTLS() *tls.Config {
	base := c.client.ServerTLS()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.client.ServerTLS(), nil }
	return base
}

// classify runs on the stream's receive path: new flows are the flood to
// expect, everything else concerns flows that stand.
func classify(p *p4v1.PacketIn) int {
	in, err := tables.DecodePacketIn(p)
	if err != nil {
		return queuePlain
	}
	switch in.Reason {
	case tables.ReasonNewSession, tables.ReasonReplyUnknown, tables.ReasonFirstSeen, tables.ReasonTagUnknownKey, tables.ReasonSample:
		return queuePlain
	}
	return queueUrgent
}

func (c *controller) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if c.client != nil {
		if err := c.join(ctx); err != nil {
			return err
		}
		g.Go(func() error { return ended(ctx, c.client.Run(ctx)) })
		g.Go(func() error { return c.follow(ctx) })
	} else {
		snap, err := c.cfg.Static.Snapshot(c.cfg.Member)
		if err != nil {
			return c.cfg.At("static", err)
		}
		if err := c.take(ctx, snap); err != nil {
			return err
		}
	}
	for _, p := range c.devices {
		g.Go(func() error { return p.Run(ctx) })
		for q := range 2 {
			g.Go(func() error { c.receive(ctx, p, q); return nil })
		}
		g.Go(func() error { c.idle(ctx, p); return nil })
		g.Go(func() error { c.resolve(ctx, p); return nil })
	}
	g.Go(func() error { c.pool.Run(ctx); return nil })
	g.Go(func() error { c.compileOnChange(ctx); return nil })
	g.Go(func() error { c.tick(ctx); return nil })
	if c.siblings != nil {
		g.Go(func() error { return ended(ctx, c.siblings.Run(ctx)) })
	}
	if c.admin != nil {
		g.Go(func() error { return ended(ctx, c.admin.Serve(ctx)) })
	}
	return ended(ctx, g.Wait())
}

// ended drops the error of something that ended because ctx did.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// join enrols where the state holds no identity yet. A directory that is away
// is waited for.
func (c *controller) join(ctx context.Context) error {
	if c.client.Joined() {
		return nil
	}
	path := c.cfg.Directory.TokenFile
	if path == "" {
		return c.cfg.At("directory.token_file", errors.New("is missing, and the state holds no identity: get a token with `countersign member invite`"))
	}
	token, err := os.ReadFile(path)
	if err != nil {
		return c.cfg.At("directory.token_file", err)
	}
	if t, err := authority.ParseToken(strings.TrimSpace(string(token))); err == nil && t.Name != c.cfg.Member {
		return c.cfg.At("directory.token_file", fmt.Errorf("%s holds a token for %q, this member is %q", path, t.Name, c.cfg.Member))
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err = c.client.Join(ctx, strings.TrimSpace(string(token)))
		if err == nil {
			return nil
		}
		if !errors.Is(err, client.ErrUnavailable) {
			return fmt.Errorf("enrolment: %w", err)
		}
		c.log.Warn("directory_away", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// follow takes every snapshot of the directory.
func (c *controller) follow(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case snap := <-c.client.Updates():
			if snap == nil {
				continue
			}
			if snap.Self.Name != c.cfg.Member {
				return c.cfg.At("member", fmt.Errorf("is %q, but the identity in %s is that of %q", c.cfg.Member, c.cfg.Directory.State, snap.Self.Name))
			}
			if err := c.take(ctx, snap); err != nil {
				c.log.Error("snapshot_not_applied", "version", snap.Version, "error", err)
			}
		}
	}
}

// take puts a snapshot to work, make before break: keys to verify with first,
// then what to sign with, then the word to the directory that they stand.
func (c *controller) take(ctx context.Context, snap *directory.Snapshot) error {
	mine := packet.Carrier{UDP: c.cfg.Carrier.Kind == "udp", Protocol: c.cfg.Carrier.Protocol, Port: c.cfg.Carrier.Port}
	theirs := packet.Carrier{UDP: snap.Carrier.UDP, Protocol: snap.Carrier.Protocol, Port: snap.Carrier.Port}
	if mine.Protocol != theirs.Protocol || mine.Port != theirs.Port {
		return c.cfg.At("carrier", fmt.Errorf("the alliance uses %v, this configuration and its P4 program %v", theirs, mine))
	}
	c.snap.Store(snap)
	if err := c.compile(); err != nil {
		return err
	}
	if err := c.decider.Update(ctx, snap); err != nil {
		c.log.Warn("sessions_not_signed_anew", "error", err)
	}
	var behind error
	for _, p := range c.devices {
		if p.State().Phase != device.Synced {
			continue // its keys come with its next sync, before it is used
		}
		if err := c.sign(ctx, p); err != nil {
			behind = errors.Join(behind, err)
		}
	}
	if c.siblings != nil {
		c.siblings.Refresh()
	}
	if c.client != nil {
		go c.acknowledge(ctx, snap)
	}
	return behind
}

// acknowledge tells the directory once the keys stand in every data plane that
// can be reached.
func (c *controller) acknowledge(ctx context.Context, snap *directory.Snapshot) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, p := range c.devices {
		st := p.State()
		if st.Phase == device.Disconnected || st.Phase == device.Connected || st.Phase == device.Backup {
			continue
		}
		if err := p.Synced(ctx, p.wanted.Load()); err != nil {
			return // a newer snapshot acknowledges in its place
		}
	}
	var missing []tag.KeyID
	for i := range snap.Keys {
		if k := &snap.Keys[i]; k.State.Live() && k.Key == nil {
			missing = append(missing, k.KeyID)
		}
	}
	if err := c.client.Ack(ctx, snap.Sequence, missing...); err != nil && !errors.Is(err, client.ErrUnavailable) {
		c.log.Warn("keys_not_acknowledged", "sequence", snap.Sequence, "error", err)
	}
}

func (c *controller) recompile() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *controller) compileOnChange(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.changed:
			if err := c.compile(); err != nil {
				c.log.Error("entries_not_compiled", "error", err)
				continue
			}
			c.resume(ctx)
		}
	}
}

// resume lets packets go on that waited for a neighbour, once the routes to it
// stand where they can.
func (c *controller) resume(ctx context.Context) {
	wait, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, p := range c.devices {
		if p.State().Phase == device.Synced {
			if err := p.Synced(wait, p.wanted.Load()); err != nil {
				c.log.Debug("routes_not_there", "device", p.cfg.Name, "error", err)
			}
		}
	}
	c.decider.Resolved(ctx, nil)
}

// compile gives every device its static entries. One call at a time, so that
// what was compiled from an older snapshot never replaces what a newer one says.
func (c *controller) compile() error {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	snap := c.snap.Load()
	for _, p := range c.devices {
		entries, err := compile.Entries(c.cfg, p.cfg.Name, c.decider.Neighbours(), snap)
		if err != nil {
			return err
		}
		entities, err := compile.Entities(entries)
		if err != nil {
			return err
		}
		if err := p.want(entities); err != nil {
			return fmt.Errorf("device %s: %w", p.cfg.Name, err)
		}
	}
	return nil
}

func (p *plane) want(entities []*p4v1.Entity) error {
	revision, err := p.SetDesired(entities)
	if err == nil {
		p.wanted.Store(revision)
	}
	return err
}

// sign writes own_key where the current key, or the session with the device,
// is another than when it was last written.
func (c *controller) sign(ctx context.Context, p *plane) error {
	snap := c.snap.Load()
	p.signed.Lock()
	defer p.signed.Unlock()
	var id tag.KeyID
	if k := snap.Current(c.suite); k != nil {
		id = k.KeyID
	}
	gen := p.State().Generation
	if id == p.keyID && gen == p.gen {
		return nil
	}
	if err := c.decider.Sign(ctx, p.cfg.Name); err != nil {
		return fmt.Errorf("device %s: signing key: %w", p.cfg.Name, err)
	}
	p.keyID, p.gen = id, gen
	return nil
}

// note records what Adopt has written.
func (c *controller) note(p *plane) {
	p.signed.Lock()
	defer p.signed.Unlock()
	p.keyID, p.gen = tag.KeyID{}, p.State().Generation
	if snap := c.snap.Load(); snap != nil {
		if k := snap.Current(c.suite); k != nil {
			p.keyID = k.KeyID
		}
	}
}

// receive hands packet-ins to the pool.
func (c *controller) receive(ctx context.Context, p *plane, queue int) {
	for {
		select {
		case <-ctx.Done():
			return
		case in, ok := <-p.PacketIns(queue):
			if !ok {
				return
			}
			meta, err := tables.DecodePacketIn(in)
			if err != nil {
				c.log.Warn("packet_in_unreadable", "device", p.cfg.Name, "error", err)
				continue
			}
			punt := decide.Punt{Device: p.cfg.Name, Meta: meta, Frame: in.GetPayload()}
			if !c.pool.Submit(flowOf(punt.Frame, c.decider.Carrier()), queue == queueUrgent, punt) {
				c.punts.WithLabelValues(meta.Reason.String()).Inc()
			}
		}
	}
}

// flowOf keeps the punts of a five-tuple with one worker.
func flowOf(frame []byte, carrier packet.Carrier) uint32 {
	var v packet.View
	if packet.Parse(frame, carrier, &v) != packet.None || v.Family == 0 {
		return 0
	}
	return v.Tuple.FlowHash()
}

func (c *controller) idle(ctx context.Context, p *plane) {
	for {
		select {
		case <-ctx.Done():
			return
		case n, ok := <-p.IdleTimeouts():
			if !ok {
				return
			}
			for _, te := range n.GetTableEntry() {
				c.decider.Idle(ctx, p.cfg.Name, te)
			}
		}
	}
}

// resolve asks for next hops that are not known, as long as there are any.
func (c *controller) resolve(ctx context.Context, p *plane) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		if _, err := p.Wait(ctx, func(s device.State) bool { return s.Phase == device.Synced }); err != nil {
			return
		}
		c.decider.Resolve(ctx, p.cfg.Name)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (c *controller) tick(ctx context.Context) {
	expire := time.NewTicker(max(c.cfg.Siblings.Wait.Std()/8, 10*time.Millisecond))
	defer expire.Stop()
	s := &c.cfg.Sessions
	least := min(s.TCP, s.UDP, s.ICMP, s.Other, s.Closing).Std()
	sweep := time.NewTicker(min(max(least/5, 100*time.Millisecond), 5*time.Second))
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-expire.C:
			c.decider.Expire()
		case <-sweep.C:
			c.decider.Sweep(ctx)
		}
	}
}

func (c *controller) isSibling(name string) bool {
	snap := c.snap.Load()
	if snap == nil {
		return false
	}
	m := snap.Member(name)
	return m != nil && m.State == directory.Active && m.Site == snap.Self.Site && name != c.cfg.Member
}

func (c *controller) peers() []sibling.Peer {
	snap := c.snap.Load()
	if snap == nil {
		return nil
	}
	var out []sibling.Peer
	for i := range snap.Members {
		if m := &snap.Members[i]; m.Sibling != "" && c.isSibling(m.Name) {
			out = append(out, sibling.Peer{Name: m.Name, Address: m.Sibling})
		}
	}
	return out
}

// warnMTU says where a trunk is too small for the suite that leaves by it
// (docs/wire.md: at least 1280 + tag for IPv6, 1228 + tag for QUIC over IPv4),
// and refuses one that could carry no IPv4 packet of 576 bytes with its tag.
func (c *controller) warnMTU() error {
	carrier := packet.Carrier{UDP: c.cfg.Carrier.Kind == "udp"}
	for i, p := range c.cfg.Ports {
		if p.Role == "edge" {
			continue
		}
		over := carrier.Overhead(c.suite)
		if int(p.MTU) < 576+over {
			return c.cfg.At(fmt.Sprintf("ports[%d].mtu", i), fmt.Errorf("%d is less than 576 + %d, the least packet with a tag of suite %v", p.MTU, over, c.suite))
		}
		if int(p.MTU) < 1280+over {
			c.log.Warn("trunk_mtu_small", "port", p.Name, "mtu", p.MTU,
				"ipv6_needs", 1280+over, "quic_over_ipv4_needs", 1228+over, "suite", c.suite.String())
		}
	}
	return nil
}

func loadTLS(cfg *config.Config, i int) (*tls.Config, error) {
	t := cfg.Devices[i].TLS
	if t == nil {
		return nil, nil
	}
	key := fmt.Sprintf("devices[%d].tls", i)
	ca, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, cfg.At(key+".ca", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bytes.TrimSpace(ca)) {
		return nil, cfg.At(key+".ca", fmt.Errorf("%s holds no certificate", t.CA))
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, cfg.At(key+".cert", err)
	}
	host, _, _ := strings.Cut(cfg.Devices[i].Address, ":")
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert},
		ServerName: cmp.Or(t.ServerName, host),
	}, nil
}
