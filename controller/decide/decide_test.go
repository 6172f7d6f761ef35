package decide

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"countersign/controller/config"
	"countersign/controller/entry"
	"countersign/controller/session"
	"countersign/directory"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// recorder is a data plane that keeps entries by identity and packet-outs; it
// stands here for the real ones, which package test runs the same code on.
type recorder struct {
	mu      sync.Mutex
	entries map[any]tables.Entry
	outs    []tables.PacketOut
	frames  [][]byte
	full    bool
}

type failed []error

func (f failed) Error() string { return fmt.Sprint([]error(f)) }
func (f failed) Failed(yield func(int, error)) {
	for i, e := range f {
		if e != nil {
			yield(i, e)
		}
	}
}

func (r *recorder) Write(_ context.Context, updates []*p4v1.Update) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := make(failed, len(updates))
	bad := false
	for i, u := range updates {
		e, err := tables.DecodeEntry(u.GetEntity().GetTableEntry())
		if err != nil {
			return err
		}
		id := e.Identity()
		_, there := r.entries[id]
		switch {
		case u.Type == p4v1.Update_INSERT && there:
			errs[i] = status.Error(codes.AlreadyExists, "there")
		case u.Type != p4v1.Update_INSERT && !there:
			errs[i] = status.Error(codes.NotFound, "not there")
		case u.Type == p4v1.Update_INSERT && r.full:
			errs[i] = status.Error(codes.ResourceExhausted, "full")
		case u.Type == p4v1.Update_DELETE:
			delete(r.entries, id)
		default:
			r.entries[id] = e
		}
		bad = bad || errs[i] != nil
	}
	if bad {
		return errs
	}
	return nil
}

func (r *recorder) PacketOut(_ context.Context, p *p4v1.PacketOut) error {
	out, err := tables.DecodePacketOut(p)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outs = append(r.outs, out)
	r.frames = append(r.frames, p.Payload)
	return nil
}

func (r *recorder) has(e tables.Entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.entries[e.Identity()]
	return ok
}

func (r *recorder) returned() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, o := range r.outs {
		if o.Mode == tables.PacketOutModeReturn {
			n++
		}
	}
	return n
}

const sample = `
member: s1
site: server
devices: [{name: dp, address: "unix:///x"}]
ports:
  - {port: 1, name: lan, role: edge, mac: "02:00:00:00:00:01", addresses: [10.2.0.1/24, "fd02::1/64"]}
  - {port: 2, name: wan, role: trunk, mtu: 1800, mac: "02:00:00:00:00:02", addresses: [10.9.0.2/30]}
routes: [{to: 10.1.0.0/16, via: [10.9.0.1]}]
neighbours: [{address: 10.9.0.1, mac: "02:00:00:00:00:99"}]
sign: %s
serves: [{prefix: 10.2.0.0/24, protocol: tcp, port: 80}]
policy: [{from: lan, to: wan, protocol: udp, action: admit}]
siblings: {listen: "127.0.0.1:1", wait: 500ms, held: 4, mode: %s}
sessions: {max: 256}
directory: {address: "127.0.0.1:2", state: /x}
`

type bench struct {
	*Decider
	dp   *recorder
	now  time.Time
	said []session.Announcement
	keys map[tag.Suite]*tag.IssueKey
}

func newBench(t *testing.T, suite tag.Suite, mode string) *bench {
	t.Helper()
	cfg, err := config.Parse("s1.yaml", fmt.Appendf(nil, sample, suite, mode))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{dp: &recorder{entries: map[any]tables.Entry{}}, now: time.Unix(1e9, 0), keys: map[tag.Suite]*tag.IssueKey{}}
	b.Decider, err = New(Config{
		Config: cfg, Planes: map[string]DataPlane{"dp": b.dp}, Now: func() time.Time { return b.now },
		Announce: func(a ...session.Announcement) { b.said = append(b.said, a...) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []tag.Suite{tag.Siphash, tag.Ed25519} {
		if b.keys[s], err = tag.GenerateKey(s); err != nil {
			t.Fatal(err)
		}
	}
	b.update(t, directory.Current, directory.Active, 1)
	return b
}

const issuer, own = 0xc1c1c1c1, 0x51515151

// update gives the decider a snapshot in which the peer c1 has the key state
// and the member state given, and s1 signs with the epoch.
func (b *bench) update(t *testing.T, state directory.KeyState, member directory.MemberState, epoch uint16) {
	t.Helper()
	snap := &directory.Snapshot{
		Carrier: directory.DefaultCarrier(),
		Self:    directory.Member{Name: "s1", Site: "server"},
		Members: []directory.Member{{Name: "c1", Site: "client", State: member}, {Name: "s1", Site: "server", State: directory.Active}},
		Sites:   []directory.Site{{Name: "server", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}}},
	}
	for s, k := range b.keys {
		snap.Keys = append(snap.Keys, directory.VerifyKey{
			KeyID: tag.KeyID{Suite: s, UNID: issuer, Epoch: 7}, State: state, Member: "c1", Site: "client", Key: k.Verifier()})
		for e := uint16(1); e <= epoch; e++ {
			st := directory.Grace
			if e == epoch {
				st = directory.Current
			}
			id := tag.KeyID{Suite: s, UNID: own, Epoch: e}
			snap.Keys = append(snap.Keys, directory.VerifyKey{KeyID: id, State: st, Member: "s1", Site: "server", Key: k.Verifier()})
			snap.Signing = append(snap.Signing, directory.SigningKey{KeyID: id, State: st, Key: k})
		}
	}
	directory.SortKeys(snap.Keys)
	if err := b.Update(context.Background(), snap); err != nil {
		t.Fatal(err)
	}
}

func frame(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for _, l := range ls {
		if u, ok := l.(*layers.UDP); ok {
			_ = u.SetNetworkLayerForChecksum(ls[1].(gopacket.NetworkLayer))
		}
		if u, ok := l.(*layers.TCP); ok {
			_ = u.SetNetworkLayerForChecksum(ls[1].(gopacket.NetworkLayer))
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func eth(t layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 9, 9}, DstMAC: []byte{2, 0, 0, 0, 0, 1}, EthernetType: t}
}

func tcp(t *testing.T, src, dst string, sport, dport uint16, flags string) []byte {
	l := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Window: 1000}
	for _, f := range flags {
		switch f {
		case 'S':
			l.SYN = true
		case 'A':
			l.ACK = true
		case 'F':
			l.FIN = true
		case 'R':
			l.RST = true
		}
	}
	return frame(t, eth(layers.EthernetTypeIPv4),
		&layers.IPv4{Version: 4, TTL: 64, Protocol: 6, SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice()}, l)
}

func (b *bench) tagged(t *testing.T, f []byte, s tag.Suite) []byte {
	t.Helper()
	var v packet.View
	if a := packet.Parse(f, packet.DefaultCarrier, &v); a != packet.None {
		t.Fatal(a)
	}
	h, err := b.keys[s].Issue(issuer, 7, 99, &v.Tuple)
	if err != nil {
		t.Fatal(err)
	}
	buf := append(make([]byte, 512), f...)
	start, err := v.Insert(buf, 512, packet.DefaultCarrier, &h)
	if err != nil {
		t.Fatal(err)
	}
	return buf[start:]
}

func tupleOf(t *testing.T, f []byte) tag.Tuple {
	t.Helper()
	var v packet.View
	if a := packet.Parse(f, packet.DefaultCarrier, &v); a != packet.None {
		t.Fatal(a)
	}
	return v.Tuple
}

func (b *bench) punt(reason tables.Reason, f []byte, inbound bool) Outcome {
	m := tables.PacketIn{Reason: reason, Role: tables.RoleEdge, IngressPort: 1, Zone: 1, EgressPort: 2, EgressZone: 2}
	if inbound {
		m = tables.PacketIn{Reason: reason, Role: tables.RoleTrunk, IngressPort: 2, Zone: 2, EgressPort: 1, EgressZone: 1}
	}
	return b.Handle(context.Background(), Punt{Device: "dp", Meta: m, Frame: f})
}

func want(t *testing.T, got Outcome, verdict Verdict, reason string) {
	t.Helper()
	if got != (Outcome{verdict, reason}) {
		t.Fatalf("got %+v, want %s %s", got, verdict, reason)
	}
}

func TestNewSessionIsWrittenSignedAnnouncedAndHandedBack(t *testing.T) {
	for _, suite := range []tag.Suite{tag.Siphash, tag.Ed25519} {
		b := newBench(t, suite, "eager")
		f := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
		want(t, b.punt(tables.ReasonNewSession, f, false), Returned, "")
		tu := tupleOf(t, f)
		if !b.dp.has(entry.Removal(entry.Session, tu)) {
			t.Error("no session entry")
		}
		if got := b.dp.has(entry.Removal(entry.OwnTag, tu)); got != (suite != tag.Siphash) {
			t.Errorf("%v: finished tag: %v", suite, got)
		}
		if len(b.said) != 1 || b.said[0].Tuple != tu || b.said[0].Deleted {
			t.Errorf("announced %+v", b.said)
		}
		// The same again, as after a lost answer: still one session.
		want(t, b.punt(tables.ReasonNewSession, f, false), Returned, "")
		if b.Book().Len() != 1 {
			t.Errorf("%d sessions", b.Book().Len())
		}
	}
}

func TestFullTableDropsAndKeepsOthers(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	first := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
	want(t, b.punt(tables.ReasonNewSession, first, false), Returned, "")
	b.dp.full = true
	second := tcp(t, "10.2.0.5", "10.1.0.3", 4001, 443, "S")
	want(t, b.punt(tables.ReasonNewSession, second, false), Dropped, "table_full")
	if _, ok := b.Book().Get(tupleOf(t, second)); ok {
		t.Error("a session that does not stand is in the book")
	}
	if !b.dp.has(entry.Removal(entry.Session, tupleOf(t, first))) {
		t.Error("the first session is lost")
	}
}

func TestReplyWaitsForItsAnnouncement(t *testing.T) {
	for _, mode := range []string{"eager", "lazy"} {
		b := newBench(t, tag.Siphash, mode)
		reply := tcp(t, "10.2.0.5", "10.1.0.3", 80, 4000, "SA")
		tu := tupleOf(t, reply)
		want(t, b.punt(tables.ReasonReplyUnknown, reply, false), Waiting, "")
		if b.dp.returned() != 0 {
			t.Fatal("handed back before it was announced")
		}
		a := session.Announcement{Tuple: tu, LowZone: "wan", HighZone: "lan", Generation: 1, Expiry: b.now.Add(time.Minute)}
		b.Announced(context.Background(), "s2", []session.Announcement{a})
		if b.dp.returned() != 1 || !b.dp.has(entry.Removal(entry.Session, tu)) {
			t.Fatalf("%s: %d handed back", mode, b.dp.returned())
		}
		// A deletion of another generation touches nothing, its own does.
		a.Deleted, a.Generation = true, 2
		b.Announced(context.Background(), "s2", []session.Announcement{a})
		b.Announced(context.Background(), "s3", []session.Announcement{{Tuple: tu, Generation: 1, Deleted: true}})
		if !b.dp.has(entry.Removal(entry.Session, tu)) {
			t.Fatal("deleted by a stranger to it")
		}
		a.Generation = 1
		b.Announced(context.Background(), "s2", []session.Announcement{a})
		if b.dp.has(entry.Removal(entry.Session, tu)) {
			t.Fatal("not deleted")
		}
	}
}

func TestWaitingIsBoundedInNumberAndTime(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	for i := range 4 {
		want(t, b.punt(tables.ReasonReplyUnknown, tcp(t, "10.2.0.5", "10.1.0.3", 80, uint16(4000+i), "A"), false), Waiting, "")
	}
	want(t, b.punt(tables.ReasonReplyUnknown, tcp(t, "10.2.0.5", "10.1.0.3", 80, 5000, "A"), false), Dropped, "waiting_full")
	b.now = b.now.Add(499 * time.Millisecond)
	if n := b.Expire(); n != 0 {
		t.Fatalf("%d expired early", n)
	}
	b.now = b.now.Add(2 * time.Millisecond)
	if n := b.Expire(); n != 4 {
		t.Fatalf("%d expired, want 4", n)
	}
	want(t, b.punt(tables.ReasonReplyUnknown, tcp(t, "10.2.0.5", "10.1.0.3", 80, 5000, "A"), false), Waiting, "")
}

func TestAnnouncementsOfOthersPrefixesAreRefused(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	tu, _ := tag.NewTuple(6, 0, netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("10.8.0.1"), 1, 80)
	b.Announced(context.Background(), "s2", []session.Announcement{{Tuple: tu, LowZone: "*", HighZone: "*", Generation: 1, Expiry: b.now.Add(time.Hour)}})
	if _, ok := b.Book().Get(tu); ok {
		t.Error("a session between strangers was taken")
	}
}

func TestTagUnverified(t *testing.T) {
	b := newBench(t, tag.Ed25519, "eager")
	plain := tcp(t, "10.1.0.3", "10.2.0.5", 4000, 80, "S")
	good := b.tagged(t, plain, tag.Ed25519)
	want(t, b.punt(tables.ReasonTagUnverified, good, true), Returned, "")
	// It leaves by an edge, and what is handed back is not copied as first_seen.
	tu := tupleOf(t, good)
	n := len(b.dp.entries)
	if n != 3 || !b.dp.has(entry.Removal(entry.Delivered, tu)) || !b.dp.has(entry.Removal(entry.Session, tu)) || len(b.said) != 1 {
		t.Fatalf("%d entries, want the vouched, delivered and session ones; %d announcements, want 1", n, len(b.said))
	}
	bad := append([]byte(nil), good...)
	bad[14+20+28+10] ^= 1 // within the signature
	want(t, b.punt(tables.ReasonTagUnverified, bad, true), Dropped, "tag_forged")
	if len(b.dp.entries) != n {
		t.Error("a forged tag left an entry")
	}
	b.update(t, directory.Revoked, directory.Active, 1)
	if len(b.dp.entries) != n-1 {
		t.Error("what a revoked key vouched for still stands")
	}
	want(t, b.punt(tables.ReasonTagUnverified, good, true), Dropped, "tag_revoked")
}

func TestFirstSeenOpensTheReplyDirection(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	f := b.tagged(t, tcp(t, "10.1.0.3", "10.2.0.5", 4000, 80, "S"), tag.Siphash)
	want(t, b.punt(tables.ReasonFirstSeen, f, true), Consumed, "")
	tu := tupleOf(t, f)
	s, _ := b.Book().Get(tu)
	if s.Issuer != "c1" || !s.Delivered() || s.LowZone != 2 || s.HighZone != 1 {
		t.Errorf("session is %+v", s)
	}
	if len(b.said) != 1 || b.said[0].Issuer != "c1" || b.said[0].LowZone != "wan" || b.said[0].HighZone != "lan" {
		t.Errorf("announced %+v", b.said)
	}
	// Revoking the issuer flushes what it vouched for.
	b.update(t, directory.Revoked, directory.MemberIsRevoked, 1)
	if len(b.dp.entries) != 0 || b.Book().Len() != 0 {
		t.Errorf("%d entries, %d sessions after the revocation", len(b.dp.entries), b.Book().Len())
	}
	if last := b.said[len(b.said)-1]; !last.Deleted {
		t.Errorf("siblings were not told: %+v", last)
	}
}

func TestRotationSignsAnew(t *testing.T) {
	b := newBench(t, tag.Ed25519, "eager")
	f := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
	want(t, b.punt(tables.ReasonNewSession, f, false), Returned, "")
	epoch := func() uint16 {
		e := b.dp.entries[entry.Removal(entry.OwnTag, tupleOf(t, f)).Identity()].(tables.OwnTagV4Entry)
		return e.Action.(tables.PutEd25519).Epoch
	}
	if got := epoch(); got != 1 {
		t.Fatalf("signed with epoch %d", got)
	}
	b.update(t, directory.Current, directory.Active, 2)
	if got := epoch(); got != 2 {
		t.Fatalf("after the rotation signed with epoch %d", got)
	}
}

func TestIdleEndsWhatBothDirectionsLeft(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	f := b.tagged(t, tcp(t, "10.1.0.3", "10.2.0.5", 4000, 80, "S"), tag.Siphash)
	want(t, b.punt(tables.ReasonFirstSeen, f, true), Consumed, "")
	tu := tupleOf(t, f)
	idle := func(k entry.Kind) {
		te, err := entry.Removal(k, tu).ToProto()
		if err != nil {
			t.Fatal(err)
		}
		b.Idle(context.Background(), "dp", te)
	}
	idle(entry.Session) // replies take another way
	if b.Book().Len() != 1 {
		t.Fatal("removed while the tagged direction lives")
	}
	b.now = b.now.Add(2 * time.Hour)
	idle(entry.Delivered)
	if b.Book().Len() != 1 {
		t.Fatal("removed on a report that is long past")
	}
	idle(entry.Session)
	if b.Book().Len() != 0 || len(b.dp.entries) != 0 {
		t.Fatalf("%d sessions, %d entries", b.Book().Len(), len(b.dp.entries))
	}
}

func TestClosingSessionsGo(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	f := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
	want(t, b.punt(tables.ReasonNewSession, f, false), Returned, "")
	want(t, b.punt(tables.ReasonTCPFlags, tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "FA"), false), Consumed, "")
	b.Sweep(context.Background())
	if b.Book().Len() != 1 {
		t.Fatal("gone at once")
	}
	b.now = b.now.Add(31 * time.Second)
	b.Sweep(context.Background())
	if b.Book().Len() != 0 || len(b.dp.entries) != 0 {
		t.Fatal("still there")
	}
}

func TestAdoptKeepsSessionsOfBothSides(t *testing.T) {
	b := newBench(t, tag.Ed25519, "eager")
	f := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
	want(t, b.punt(tables.ReasonNewSession, f, false), Returned, "")
	before := len(b.dp.entries)

	// The device lost everything.
	b.dp.entries = map[any]tables.Entry{}
	none := func(func(*p4v1.TableEntry, error) bool) {}
	if err := b.Adopt(context.Background(), "dp", none); err != nil {
		t.Fatal(err)
	}
	if len(b.dp.entries) != before+2 { // and own_key for two roles
		t.Fatalf("%d entries, want %d", len(b.dp.entries), before+2)
	}

	// The controller lost everything.
	again := newBench(t, tag.Ed25519, "eager")
	again.keys = b.keys
	again.update(t, directory.Current, directory.Active, 1)
	again.dp.entries = b.dp.entries
	found := func(yield func(*p4v1.TableEntry, error) bool) {
		for _, e := range b.dp.entries {
			if te, err := e.ToProto(); !yield(te, err) {
				return
			}
		}
	}
	if err := again.Adopt(context.Background(), "dp", found); err != nil {
		t.Fatal(err)
	}
	if _, ok := again.Book().Get(tupleOf(t, f)); !ok {
		t.Fatal("the session was not taken over")
	}
}

func TestHostPackets(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	arp := frame(t, eth(layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
		SourceHwAddress: []byte{2, 0, 0, 0, 9, 9}, SourceProtAddress: []byte{10, 2, 0, 5},
		DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 2, 0, 1},
	})
	want(t, b.punt(tables.ReasonToMe, arp, false), Consumed, "")
	if len(b.dp.outs) != 1 || b.dp.outs[0].EgressPort != 1 {
		t.Fatalf("packet-outs: %+v", b.dp.outs)
	}
	// A packet to a neighbour that is not known: it is asked for, once a second.
	to := tcp(t, "10.1.0.3", "10.2.0.77", 4000, 80, "S")
	for range 4 {
		want(t, b.punt(tables.ReasonToMe, to, true), Waiting, "")
	}
	want(t, b.punt(tables.ReasonToMe, to, true), Dropped, "neighbour_unknown")
	if len(b.dp.outs) != 2 {
		t.Fatalf("%d packet-outs, want one request more", len(b.dp.outs))
	}
	reply := frame(t, eth(layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 2,
		SourceHwAddress: []byte{2, 0, 0, 0, 0, 77}, SourceProtAddress: []byte{10, 2, 0, 77},
		DstHwAddress: []byte{2, 0, 0, 0, 0, 1}, DstProtAddress: []byte{10, 2, 0, 1},
	})
	want(t, b.punt(tables.ReasonToMe, reply, false), Consumed, "")
	if mac := b.Neighbours()[netip.MustParseAddr("10.2.0.77")]; mac != 0x02000000004d {
		t.Fatalf("learned %x", mac)
	}
	// What waited is judged: no rule admits from outside.
	b.Resolved(context.Background(), nil)
	if b.dp.returned() != 0 || b.Expire() != 0 {
		t.Error("a packet that no rule admits went on, or still waits")
	}
}

func TestPacketsWaitForTheirNeighbour(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	tagged := b.tagged(t, tcp(t, "10.1.0.3", "10.2.0.78", 4000, 80, "S"), tag.Siphash)
	want(t, b.punt(tables.ReasonToMe, tagged, true), Waiting, "")
	b.Resolved(context.Background(), nil)
	if b.dp.returned() != 0 {
		t.Fatal("went on before the neighbour was known")
	}
	b.near.learn(netip.MustParseAddr("10.2.0.78"), 0x4e)
	b.Resolved(context.Background(), nil)
	tu := tupleOf(t, tagged)
	if b.dp.returned() != 1 || !b.dp.has(entry.Removal(entry.Delivered, tu)) || !b.dp.has(entry.Removal(entry.Session, tu)) {
		t.Fatalf("%d handed back, entries %v", b.dp.returned(), b.dp.entries)
	}
	want(t, b.punt(tables.ReasonToMe, tcp(t, "10.1.0.3", "10.2.0.79", 4000, 80, "S"), true), Waiting, "")
	b.now = b.now.Add(4 * time.Second)
	if n := b.Expire(); n != 1 {
		t.Errorf("%d expired, want the one whose neighbour is silent", n)
	}
}

func TestFragmentsWaitForTheFirst(t *testing.T) {
	piece := func(offset uint16, more bool, payload ...byte) []byte {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: 17, Id: 9, FragOffset: offset, SrcIP: []byte{10, 2, 0, 5}, DstIP: []byte{10, 1, 0, 3}}
		if more {
			ip.Flags = layers.IPv4MoreFragments
		}
		return frame(t, eth(layers.EthernetTypeIPv4), ip, gopacket.Payload(payload))
	}
	first := piece(0, true, 0, 53, 0, 54, 0, 24, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	b := newBench(t, tag.Siphash, "eager")
	want(t, b.punt(tables.ReasonFragment, piece(2, false, 1, 2, 3, 4, 5, 6, 7, 8), false), Waiting, "")
	want(t, b.punt(tables.ReasonFragment, first, false), Returned, "")
	if b.dp.returned() != 2 {
		t.Fatalf("%d pieces handed back, want 2", b.dp.returned())
	}
	want(t, b.punt(tables.ReasonFragment, piece(1, false, 9, 9, 9, 9, 9, 9, 9, 9), false), Dropped, "fragment_overlap")
	b = newBench(t, tag.Siphash, "eager")
	want(t, b.punt(tables.ReasonFragment, piece(0, true, 0, 53, 0, 54), false), Dropped, "fragment_tiny")
}

func TestICMPErrorsAreJudgedByWhatTheyQuote(t *testing.T) {
	b := newBench(t, tag.Siphash, "eager")
	f := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
	want(t, b.punt(tables.ReasonNewSession, f, false), Returned, "")
	icmp := func(quote []byte) []byte {
		return frame(t, eth(layers.EthernetTypeIPv4),
			&layers.IPv4{Version: 4, TTL: 64, Protocol: 1, SrcIP: []byte{10, 2, 0, 9}, DstIP: []byte{10, 1, 0, 3}},
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(quote))
	}
	want(t, b.punt(tables.ReasonICMPError, icmp(f[14:]), false), Returned, "")
	other := tcp(t, "10.2.0.5", "10.1.0.3", 4001, 443, "S")
	want(t, b.punt(tables.ReasonICMPError, icmp(other[14:]), false), Dropped, "icmp_unproven")
}

func FuzzHandle(f *testing.F) {
	t := &testing.T{}
	f.Add(uint8(1), tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S"))
	f.Fuzz(func(t *testing.T, reason uint8, data []byte) {
		b := newBench(t, tag.Ed25519, "eager")
		b.punt(tables.Reason(reason), data, reason&0x80 != 0)
	})
}

func TestTwoDataPlanesShareSessions(t *testing.T) {
	cfg, err := config.Parse("two.yaml", []byte(`
member: s1
devices: [{name: a, address: "unix:///a"}, {name: b, address: "unix:///b"}]
ports:
  - {device: a, port: 1, name: lan-a, role: edge, zone: lan, mac: "02:00:00:00:00:01", addresses: [10.2.0.1/24]}
  - {device: a, port: 2, name: net-a, role: edge, zone: net, mac: "02:00:00:00:00:02", addresses: [10.9.0.1/24]}
  - {device: b, port: 1, name: lan-b, role: edge, zone: lan, mac: "02:00:00:00:00:03", addresses: [10.2.0.2/24]}
  - {device: b, port: 2, name: net-b, role: edge, zone: net, mac: "02:00:00:00:00:04", addresses: [10.9.0.2/24]}
policy: [{from: lan, to: net, protocol: tcp, action: admit}]
directory: {address: "127.0.0.1:2", state: /x}
`))
	if err != nil {
		t.Fatal(err)
	}
	a, b := &recorder{entries: map[any]tables.Entry{}}, &recorder{entries: map[any]tables.Entry{}}
	now := time.Unix(1e9, 0)
	d, err := New(Config{Config: cfg, Planes: map[string]DataPlane{"a": a, "b": b}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	syn := tcp(t, "10.2.0.5", "10.9.0.7", 4000, 443, "S")
	lan, net := cfg.Zones()["lan"], cfg.Zones()["net"]
	want(t, d.Handle(ctx, Punt{"a", tables.PacketIn{Reason: tables.ReasonNewSession, Role: tables.RoleEdge, IngressPort: 1, Zone: lan, EgressPort: 2, EgressZone: net}, syn}), Returned, "")
	reply := tcp(t, "10.9.0.7", "10.2.0.5", 443, 4000, "SA")
	want(t, d.Handle(ctx, Punt{"b", tables.PacketIn{Reason: tables.ReasonReplyUnknown, Role: tables.RoleEdge, IngressPort: 2, Zone: net, EgressPort: 1, EgressZone: lan}, reply}), Returned, "")
	e := entry.Removal(entry.Session, tupleOf(t, syn))
	if !a.has(e) || !b.has(e) || b.returned() != 1 {
		t.Fatalf("entries: a %v, b %v", a.has(e), b.has(e))
	}
	te, err := e.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	// Requests go by a, replies by b: one of them idle ends nothing.
	d.Idle(ctx, "a", te)
	if !a.has(e) || !b.has(e) {
		t.Fatal("removed while the other data plane has traffic")
	}
	d.Idle(ctx, "b", te)
	if a.has(e) || b.has(e) || d.Book().Len() != 0 {
		t.Fatal("still there")
	}
}

// TestSigningAgainMakesTheSameTag: else every packet held in a burst would give
// the next member another tag to verify.
func TestSigningAgainMakesTheSameTag(t *testing.T) {
	b := newBench(t, tag.Ed25519, "eager")
	f := tcp(t, "10.2.0.5", "10.1.0.3", 4000, 443, "S")
	own := func() tables.PutEd25519 {
		return b.dp.entries[entry.Removal(entry.OwnTag, tupleOf(t, f)).Identity()].(tables.OwnTagV4Entry).Action.(tables.PutEd25519)
	}
	want(t, b.punt(tables.ReasonTagUnsigned, f, false), Returned, "")
	first := own()
	want(t, b.punt(tables.ReasonTagUnsigned, f, false), Returned, "")
	if own() != first {
		t.Error("the session's tag has changed within an epoch")
	}
	b.update(t, directory.Current, directory.Active, 2)
	if second := own(); second.Epoch == first.Epoch || second.Nonce == first.Nonce {
		t.Errorf("epoch %d, nonce %#x after the rotation", second.Epoch, second.Nonce)
	}
}
