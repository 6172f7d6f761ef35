package dataplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/p4src"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
	"countersign/test/netlab"
)

var target = flag.String("target", os.Getenv("COUNTERSIGN_TARGET"), "the kind of data plane that the packets go through; empty: every kind in turn")

// TestDataPlane takes the same packets through every kind of data plane.
func TestDataPlane(t *testing.T) {
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	for _, kind := range []string{Fallback, BMv2} {
		if *target != "" && *target != kind {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			startShared(t, kind)
			for _, c := range []struct {
				name string
				run  func(*testing.T)
			}{
				{"vectors", testVectors},
				{"drops", testDrops},
				{"sessions", testSessions},
				{"TCP flags", testTCPFlags},
				{"policy", testPolicy},
				{"first seen", testFirstSeen},
				{"echo", testEcho},
				{"holds", testHolds},
				{"unsigned", testUnsigned},
				{"vouched", testVouched},
				{"VLAN", testVLAN},
				{"padding", testPadding},
				{"MSS", testMSS},
				{"other carrier", testOtherCarrier},
				{"transparent", testTransparent},
				{"ECMP", testECMP},
				{"punt budget", testPuntBudget},
				{"packet out", testPacketOut},
				{"idle timeout", testIdleTimeout},
				{"flow hash", testFlowHash},
			} {
				t.Run(c.name, c.run)
			}
		})
	}
}

func TestMain(m *testing.M) {
	Main()
	flag.Parse()
	errPrivileges = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

var errPrivileges error

// The ports of the data plane. Every one has the zone of its number, and 10.0.N.0/24
// and fd00:N::/64 are behind port N.
const (
	edge1, edge2, trunk3, trunk4, echo5, unknown6, open7 = 1, 2, 3, 4, 5, 6, 7

	vlan100     = 100 // on edge1, with the zone vlanZone
	vlanZone    = 21
	mtu         = 1500
	ownUNID     = 0x0a0b0c0d
	ownEpoch    = 77
	peerUNID    = 0x01020304
	peerEpoch   = 5
	salt        = 0xfedcba9876543210
	waitForAll  = 5 * time.Second
	settleAfter = 2 * time.Millisecond
)

var roles = map[uint16]tables.Role{
	edge1: tables.RoleEdge, edge2: tables.RoleEdge, trunk3: tables.RoleTrunk, trunk4: tables.RoleTrunk,
	echo5: tables.RoleEcho, open7: tables.RoleTrunk,
}

var (
	ownMAC  = tag.MACKey{0: 1, 5: 0x80, 15: 0xfe}
	peerMAC = tag.MACKey{0: 0xaa, 9: 0x11, 15: 0x22}
)

// shared is one data plane for all tests of its kind, which leave it without
// entries.
var shared struct {
	*Switch
	raw map[uint16]*netlab.Raw
}

// fixture is a data plane with the entries of one test.
type fixture struct {
	*testing.T
	*Switch
	ctx    context.Context
	raw    map[uint16]*netlab.Raw
	last   Counts
	udp    bool            // the carrier
	nonces map[uint64]bool // of own tags seen
}

// newFixture gives the test the data plane, with entries that hold for all
// tests and those given, until it ends.
func newFixture(t *testing.T, udp bool, entries ...tables.Entry) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // for cleanups too
	t.Cleanup(cancel)
	f := &fixture{T: t, Switch: shared.Switch, ctx: ctx, raw: shared.raw, udp: udp, nonces: map[uint64]bool{}}
	f.insert(slices.Concat(base(udp), entries)...)
	var err error
	f.last, err = f.Counts(ctx)
	must(t, err)
	return f
}

// startShared makes a data plane the shared one until the test ends.
func startShared(t *testing.T, kind string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	info, err := p4src.P4Info()
	must(t, err)
	ports := []uint16{edge1, edge2, trunk3, trunk4, echo5, unknown6, open7}
	s, err := Start(ctx, Options{Kind: kind, Info: info, Program: p4src.JSON, Ports: ports})
	if errors.Is(err, ErrUnavailable) && os.Getenv("COUNTERSIGN_REQUIRE_BMV2") != "1" {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	shared.Switch, shared.raw = s, map[uint16]*netlab.Raw{}
	for _, p := range ports {
		shared.raw[p], err = s.Peer.OpenRaw(PortName(p))
		must(t, err)
	}
	must(t, s.Write(ctx, CloneSession(p4v1.Update_INSERT)))
}

// insert writes entries and has them deleted at the test's end.
func (f *fixture) insert(entries ...tables.Entry) {
	f.Helper()
	f.write(p4v1.Update_INSERT, entries...)
	f.Cleanup(func() { f.write(p4v1.Update_DELETE, entries...) })
}

func (f *fixture) write(kind p4v1.Update_Type, entries ...tables.Entry) {
	f.Helper()
	must(f.T, f.Write(f.ctx, updates(f.T, kind, entries...)...))
}

func updates(t *testing.T, kind p4v1.Update_Type, entries ...tables.Entry) []*p4v1.Update {
	t.Helper()
	var us []*p4v1.Update
	for _, e := range entries {
		u, err := e.Update(kind)
		must(t, err)
		us = append(us, u)
	}
	return us
}

// base is what every test starts from: ports, routes, keys and punts without
// limit; no session and no policy.
func base(udp bool) []tables.Entry {
	var flags uint8
	if udp {
		flags = tables.PortCarrierUDP
	}
	k0, k1 := peerMAC.Words()
	entries := []tables.Entry{
		tables.PortEntry{Key: tables.PortKey{InPort: edge1, VLAN: vlan100}, Action: tables.PortConfig{Role: tables.RoleEdge, Zone: vlanZone, Flags: flags}},
		tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: peerUNID, Epoch: peerEpoch},
			Action: tables.SiphashKey{State: tables.KeyStateAccepted, K0: k0, K1: k1}},
		puntEntry(tables.ReasonNewSession, tables.RoleEdge, vlanZone),
	}
	for p, role := range roles {
		f := flags
		if p == open7 {
			f |= tables.PortAllowUntagged
		}
		entries = append(entries,
			tables.PortEntry{Key: tables.PortKey{InPort: p}, Action: tables.PortConfig{Role: role, Zone: p, Flags: f}},
			route4(fmt.Sprintf("10.0.%d.0/24", p), hop(p)),
			route6(fmt.Sprintf("fd00:%d::/64", p), hop(p)))
		for _, r := range tables.ReasonValues() {
			if r != tables.ReasonNone && r < tables.ReasonUnknownPort {
				entries = append(entries, puntEntry(r, role, p))
			}
		}
	}
	return append(entries, ownKey(tables.RoleTrunk), ownKey(tables.RoleEcho))
}

func ownKey(role tables.Role) tables.OwnKeyEntry {
	k0, k1 := ownMAC.Words()
	return tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: role}, Action: tables.SignSiphash{UNID: ownUNID, Epoch: ownEpoch, K0: k0, K1: k1, NonceSalt: salt}}
}

func puntEntry(r tables.Reason, role tables.Role, zone uint16) tables.PuntEntry {
	return tables.PuntEntry{Key: tables.PuntKey{Reason: r, Role: role, Zone: zone}, Action: tables.ToCPU{}}
}

// hop leaves by port p.
func hop(p uint16) tables.NextHop {
	return tables.NextHop{Port: p, Role: roles[p], Zone: p, MTU: mtu, SrcMAC: 0x0200000000aa, DstMAC: 0x020000000b00 | uint64(p)}
}

func oneShot(hops ...tables.NextHop) tables.NextHopsOneShot {
	var s tables.NextHopsOneShot
	for _, h := range hops {
		s = append(s, tables.NextHopsWeighted{Action: h, Weight: 1})
	}
	return s
}

func route4(prefix string, hops ...tables.NextHop) tables.EgressPortV4Entry {
	p := netip.MustParsePrefix(prefix)
	a := p.Addr().As4()
	return tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: binary.BigEndian.Uint32(a[:]), PrefixLen: p.Bits()}}, Action: oneShot(hops...)}
}

func route6(prefix string, hops ...tables.NextHop) tables.EgressPortV6Entry {
	p := netip.MustParsePrefix(prefix)
	return tables.EgressPortV6Entry{Key: tables.EgressPortV6Key{Dst: tables.LPM[[16]byte]{Value: p.Addr().As16(), PrefixLen: p.Bits()}}, Action: oneShot(hops...)}
}

// policy4 and policy6 are one rule that matches everything untagged.
func policy4(a tables.PolicyV4Action) tables.PolicyV4Entry {
	return tables.PolicyV4Entry{Key: tables.PolicyV4Key{Tagged: tables.Ternary[uint8]{Mask: 1}}, Action: a, Priority: 10}
}

func policy6(a tables.PolicyV6Action) tables.PolicyV6Entry {
	return tables.PolicyV6Entry{Key: tables.PolicyV6Key{Tagged: tables.Ternary[uint8]{Mask: 1}}, Action: a, Priority: 10}
}

// tagAll signs whatever is untagged, by the rule alone.
func tagAll() []tables.Entry {
	return []tables.Entry{policy4(tables.TagV4{}), policy6(tables.TagV6{})}
}

// want is what must become of one packet, and what must be counted for it
// beside its arrival.
type want struct {
	out      uint16        // port it leaves by; 0: none
	frame    []byte        // how it leaves; nil: by tagged
	signed   bool          // frame is without its tag; the data plane's own, of suite 1, is expected on it
	retagged bool          // frame has another's tag, which is replaced
	drop     tables.Reason // it is dropped
	hold     tables.Reason // it goes to the CPU
	copied   tables.Reason // a copy goes to the CPU
	egress   uint16        // port and zone in packet-in
	outcomes []tables.Outcome
}

// send puts a frame on a port and checks all that becomes of it.
func (f *fixture) send(port uint16, frame []byte, w want) {
	f.Helper()
	must(f.T, f.raw[port].Send(frame))
	f.check(port, map[uint16]int64{port: 1}, frame, w)
}

// sendBack hands a held frame back as if it came from port.
func (f *fixture) sendBack(port uint16, frame []byte, w want) {
	f.Helper()
	must(f.T, f.PacketOut(tables.PacketOut{Mode: tables.PacketOutModeReturn, IngressPort: port}, frame))
	w.outcomes = append([]tables.Outcome{tables.OutcomeReturned}, w.outcomes...)
	f.check(port, map[uint16]int64{}, frame, w)
}

func (f *fixture) check(port uint16, rx map[uint16]int64, frame []byte, w want) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, waitForAll)
	defer cancel()
	expect := Counts{rx, map[uint16]int64{}, map[tables.Reason]int64{}, map[tables.Reason]int64{}, map[tables.Outcome]int64{}}
	if w.out != 0 {
		expect.Tx[w.out]++
		got, err := f.raw[w.out].Next(ctx, func(c netlab.Captured) bool { return !c.Outgoing })
		if err != nil {
			f.report(expect)
			f.Fatalf("nothing left by port %d: %v", w.out, err)
		}
		if wantFrame := f.wanted(w, got.Data); !bytes.Equal(got.Data, wantFrame) {
			f.Errorf("left by port %d:\n got %x\nwant %x", w.out, got.Data, wantFrame)
		}
	}
	for _, r := range []tables.Reason{w.hold, w.copied} {
		if r == tables.ReasonNone {
			continue
		}
		expect.Punts[r]++
		select {
		case p, ok := <-f.PacketIns:
			if !ok {
				f.Fatalf("stream ended: %v", f.Err())
			}
			h := tables.PacketIn{Reason: r, Role: roles[port], IngressPort: port, Zone: port}
			if w.egress != 0 {
				h.EgressPort, h.EgressZone = w.egress, w.egress
			}
			if p.PacketIn != h {
				f.Errorf("packet-in %+v, want %+v", p.PacketIn, h)
			}
			if !bytes.Equal(p.Data, frame) {
				f.Errorf("packet-in:\n got %x\nwant %x", p.Data, frame)
			}
		case <-ctx.Done():
			f.report(expect)
			f.Fatalf("no packet-in %v", r)
		}
	}
	if w.drop != tables.ReasonNone {
		expect.Drops[w.drop]++
	}
	for _, o := range w.outcomes {
		expect.Outcomes[o]++
	}
	f.settle(ctx, expect)
}

// settle waits until exactly what is expected has been counted.
func (f *fixture) settle(ctx context.Context, expect Counts) {
	f.Helper()
	for {
		now, err := f.Counts(ctx)
		must(f.T, err)
		if reflect.DeepEqual(now.Sub(f.last), expect) {
			f.last = now
			return
		}
		select {
		case <-ctx.Done():
			f.Errorf("counted %v, want %v", now.Sub(f.last), expect)
			f.last = now
			return
		case <-time.After(settleAfter):
		}
	}
}

func (f *fixture) report(expect Counts) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitForAll)
	defer cancel()
	now, err := f.Counts(ctx)
	f.Logf("counted %v, want %v, error %v", now.Sub(f.last), expect, err)
}

// wanted completes the frame that is expected in got's place: a tag that the
// data plane made itself has a nonce that is only known from got, and must not
// have been on the port before.
func (f *fixture) wanted(w want, got []byte) []byte {
	f.Helper()
	if !w.signed && !w.retagged {
		return w.frame
	}
	c := carrierOf(f.udp)
	var v packet.View
	if a := packet.Parse(got, c, &v); a != packet.None || !v.Tagged {
		f.Errorf("no tag on what left: %v", a)
		return nil
	}
	nonce := v.Tag.Nonce
	if f.nonces[nonce] {
		f.Errorf("nonce %016x again", nonce)
	}
	f.nonces[nonce] = true
	return f.signed(w.frame, w.retagged, nonce)
}

// signed puts the data plane's own tag of suite 1 on frame.
func (f *fixture) signed(frame []byte, replace bool, nonce uint64) []byte {
	f.Helper()
	var v packet.View
	c := carrierOf(f.udp)
	if a := packet.Parse(frame, c, &v); a != packet.None {
		f.Fatalf("cannot be tagged: %v", a)
	}
	h, err := tag.NewSiphashKey(ownMAC).Issue(ownUNID, ownEpoch, nonce, &v.Tuple)
	must(f.T, err)
	return f.put(frame, &h, replace)
}

// put puts a tag on frame.
func (f *fixture) put(frame []byte, h *tag.Header, replace bool) []byte {
	f.Helper()
	var v packet.View
	c := carrierOf(f.udp)
	if a := packet.Parse(frame, c, &v); a != packet.None {
		f.Fatalf("cannot be tagged: %v", a)
	}
	const room = 512
	buf := slices.Concat(make([]byte, room), frame[:v.End])
	insert := v.Insert
	if replace {
		insert = v.Replace
	}
	start, err := insert(buf, room, c, h)
	must(f.T, err)
	return buf[start:]
}

// fromPeer puts on frame the tag of a member that the data plane knows.
func (f *fixture) fromPeer(frame []byte, nonce uint64) []byte {
	f.Helper()
	return f.issue(tag.NewSiphashKey(peerMAC), peerUNID, peerEpoch, nonce, frame)
}

func (f *fixture) issue(k *tag.IssueKey, unid uint32, epoch uint16, nonce uint64, frame []byte) []byte {
	f.Helper()
	h, err := k.Issue(unid, epoch, nonce, &f.view(frame).Tuple)
	must(f.T, err)
	return f.put(frame, &h, false)
}

func (f *fixture) view(frame []byte) *packet.View {
	f.Helper()
	v := new(packet.View)
	if a := packet.Parse(frame, carrierOf(f.udp), v); a != packet.None {
		f.Fatalf("cannot be parsed: %v", a)
	}
	return v
}

// routed is frame as it leaves towards port p: addresses of the next hop, TTL
// less one, without padding.
func (f *fixture) routed(frame []byte, p uint16) []byte {
	f.Helper()
	v := f.view(frame)
	b := bytes.Clone(frame[:v.End])
	h := hop(p)
	copy(b, binary.BigEndian.AppendUint64(nil, h.DstMAC)[2:])
	copy(b[6:], binary.BigEndian.AppendUint64(nil, h.SrcMAC)[2:])
	if !v.DecrementTTL(b) {
		f.Fatal("would expire")
	}
	return b
}

// stripped is frame without its tag.
func (f *fixture) stripped(frame []byte) []byte {
	f.Helper()
	v := f.view(frame)
	b := bytes.Clone(frame[:v.End])
	start, err := v.Strip(b, 0)
	must(f.T, err)
	return b[start:]
}

// session4 is the key of frame's session in the tables for IPv4.
func (f *fixture) session4(frame []byte) tables.SessionV4Key {
	t := f.view(frame).Tuple
	return tables.SessionV4Key{Low: uint32(t.A[0] >> 32), High: uint32(t.A[0]), Protocol: t.Protocol(), Kind: t.Kind(), LowPort: t.LowPort(), HighPort: t.HighPort()}
}

func (f *fixture) session6(frame []byte) tables.SessionV6Key {
	t := f.view(frame).Tuple
	return tables.SessionV6Key{Low: t.Low().As16(), High: t.High().As16(), Protocol: t.Protocol(), Kind: t.Kind(), LowPort: t.LowPort(), HighPort: t.HighPort()}
}

// delivered is the entry that keeps first_seen copies of frame away.
func (f *fixture) delivered(frame []byte) tables.Entry {
	if f.view(frame).Family == 4 {
		return tables.DeliveredV4Entry{Key: tables.DeliveredV4Key(f.session4(frame)), Action: tables.Delivered{}}
	}
	return tables.DeliveredV6Entry{Key: tables.DeliveredV6Key(f.session6(frame)), Action: tables.Delivered{}}
}

// admitted is the entry of frame's session, with the zone that each direction
// may come from: frame's, and replies'.
func (f *fixture) admitted(frame []byte, zone, replyZone uint16) tables.Entry {
	v := f.view(frame)
	low, high := zone, replyZone
	if !v.SrcIsLow {
		low, high = replyZone, zone
	}
	if v.Family == 4 {
		return tables.SessionV4Entry{Key: f.session4(frame), Action: tables.AdmittedV4{LowZone: low, HighZone: high}}
	}
	return tables.SessionV6Entry{Key: f.session6(frame), Action: tables.AdmittedV6{LowZone: low, HighZone: high}}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// modify changes an entry and has it changed back at the test's end.
func (f *fixture) modify(to, back tables.Entry) {
	f.Helper()
	f.write(p4v1.Update_MODIFY, to)
	f.Cleanup(func() { f.write(p4v1.Update_MODIFY, back) })
}

// sub is the fixture for a subtest, which shares its entries and counts.
func (f *fixture) sub(t *testing.T) *fixture {
	g := *f
	g.T = t
	t.Cleanup(func() { f.last = g.last })
	return &g
}
