package engine

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/pktio"
	"countersign/p4src"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// rig is an engine with a small network around it:
//
//	port 1  edge   zone 10  10.1.0.0/16  2001:db8:1::/48
//	port 2  trunk  zone 20  10.2.0.0/16  2001:db8:2::/48
//	port 3  echo   zone 30  10.3.0.0/16  2001:db8:3::/48
//	port 4  edge   zone 40  10.4.0.0/16  2001:db8:4::/48, VLAN 44
//	port 5  trunk  zone 50  untagged allowed
//	port 6  edge   zone 60  transparent, crossed with port 7
//	port 7  trunk  zone 70  transparent, crossed with port 6
type rig struct {
	t       testing.TB
	e       *Engine
	pl      p4rtserver.Pipeline
	w       *Worker
	now     int64
	udp     bool
	carrier packet.Carrier
	idle    []p4rtserver.Entry
	ins     []tables.PacketIn
	held    [][]byte
	out     []Packet
	sent    [][]byte
	quiet   bool // does not keep packet-ins
}

const (
	ownUNID, ownEpoch   = 0x0badcafe, 7
	peerUNID, peerEpoch = 0x5eed5eed, 9
	ownMAC, peerMAC     = 0x020000000001, 0x020000000002
)

var (
	ownMACKey  = tag.MACKey{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	peerMACKey = tag.MACKey{9, 9, 9, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

// PacketIn implements p4rtserver.Upcalls.
func (r *rig) PacketIn(md [][]byte, payload []byte) {
	if r.quiet {
		return
	}
	var in tables.PacketIn
	if err := in.DecodeMetadata(md); err != nil {
		r.t.Errorf("packet-in metadata: %v", err)
	}
	r.ins = append(r.ins, in)
	r.held = append(r.held, slices.Clone(payload))
}

// IdleTimeout implements p4rtserver.Upcalls.
func (r *rig) IdleTimeout(idle []p4rtserver.Entry) { r.idle = append(r.idle, idle...) }

func newBareRig(t testing.TB, workers int) *rig {
	t.Helper()
	r := &rig{t: t, now: 1e18, carrier: packet.DefaultCarrier}
	r.e = New(Options{Workers: workers, Seed: 1, Now: func() int64 { return r.now }, Output: func(p *Packet) {
		r.out = append(r.out, *p)
		r.sent = append(r.sent, slices.Clone(p.Frame.Bytes()))
	}})
	info, err := p4src.P4Info()
	if err != nil {
		t.Fatal(err)
	}
	if r.pl, err = r.e.Load(&p4v1.ForwardingPipelineConfig{P4Info: info}, r); err != nil {
		t.Fatal(err)
	}
	if err := r.pl.Activate(); err != nil {
		t.Fatal(err)
	}
	r.w = r.e.Worker(0)
	return r
}

func newRig(t testing.TB, udp bool) *rig {
	t.Helper()
	r := newBareRig(t, 1)
	r.udp, r.carrier.UDP = udp, udp
	flags := func(f uint8) uint8 {
		if udp {
			f |= tables.PortCarrierUDP
		}
		return f
	}
	for _, p := range []struct {
		port, vlan, zone uint16
		role             tables.Role
		flags            uint8
	}{
		{1, 0, 10, tables.RoleEdge, 0}, {2, 0, 20, tables.RoleTrunk, 0}, {3, 0, 30, tables.RoleEcho, 0},
		{4, 44, 40, tables.RoleEdge, 0}, {5, 0, 50, tables.RoleTrunk, tables.PortAllowUntagged},
		{6, 0, 60, tables.RoleEdge, tables.PortTransparent}, {7, 0, 70, tables.RoleTrunk, tables.PortTransparent},
		{8, 0, 80, tables.RoleEdge, tables.PortTransparent}, // not crossed
	} {
		r.put(tables.PortEntry{Key: tables.PortKey{InPort: p.port, VLAN: p.vlan},
			Action: tables.PortConfig{Role: p.role, Zone: p.zone, Flags: flags(p.flags)}})
		for _, reason := range tables.ReasonValues() {
			if reason != tables.ReasonNone && reason <= tables.ReasonTagUnknownKey {
				r.put(tables.PuntEntry{Key: tables.PuntKey{Reason: reason, Role: p.role, Zone: p.zone}, Action: tables.ToCPU{}})
			}
		}
	}
	r.put(
		tables.CrossConnectEntry{Key: tables.CrossConnectKey{InPort: 6}, Action: tables.ToPort{Port: 7, Role: tables.RoleTrunk, Zone: 70, MTU: 1500}},
		tables.CrossConnectEntry{Key: tables.CrossConnectKey{InPort: 7}, Action: tables.ToPort{Port: 6, Role: tables.RoleEdge, Zone: 60, MTU: 1500}},
		tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}, Action: signSiphash()},
		tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleEcho}, Action: signSiphash()},
		issuer(tag.Siphash, peerUNID, peerMACKey, tables.KeyStateAccepted, 1),
	)
	for i, hop := range []tables.NextHop{
		{Port: 1, Role: tables.RoleEdge, Zone: 10}, {Port: 2, Role: tables.RoleTrunk, Zone: 20},
		{Port: 3, Role: tables.RoleEcho, Zone: 30}, {Port: 4, Role: tables.RoleEdge, Zone: 40, VLAN: 44},
	} {
		hop.MTU, hop.SrcMAC, hop.DstMAC = 1500, ownMAC, peerMAC
		r.route(i+1, oneShot(hop))
	}
	return r
}

func signSiphash() tables.SignSiphash {
	k0, k1 := ownMACKey.Words()
	return tables.SignSiphash{UNID: ownUNID, Epoch: ownEpoch, K0: k0, K1: k1, NonceSalt: 0x1234567890abcdef}
}

func issuer(s tag.Suite, unid uint32, k tag.MACKey, state tables.KeyState, ownSite uint8) tables.IssuerKeyEntry {
	e := tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.Suite(s), UNID: unid, Epoch: peerEpoch}}
	k0, k1 := k.Words()
	switch s {
	case tag.Siphash:
		e.Action = tables.SiphashKey{State: state, OwnSite: ownSite, K0: k0, K1: k1}
	case tag.Ed25519:
		e.Action = tables.Ed25519Key{State: state, OwnSite: ownSite, K0: k0, K1: k1}
	default:
		e.Action = tables.RSA2048Key{State: state, OwnSite: ownSite}
	}
	return e
}

func oneShot(hops ...tables.NextHop) tables.NextHopsOneShot {
	var set tables.NextHopsOneShot
	for _, h := range hops {
		set = append(set, tables.NextHopsWeighted{Action: h, Weight: 1})
	}
	return set
}

// route routes 10.n.0.0/16 and 2001:db8:n::/48.
func (r *rig) route(n int, a tables.NextHopsOneShot) {
	var v6 [16]byte
	copy(v6[:], []byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(n)})
	r.put(
		tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10<<24 | uint32(n)<<16, PrefixLen: 16}}, Action: a},
		tables.EgressPortV6Entry{Key: tables.EgressPortV6Key{Dst: tables.LPM[[16]byte]{Value: v6, PrefixLen: 48}}, Action: a},
	)
}

// entry is what the server makes of an encoded entry.
func (r *rig) entry(te *p4v1.TableEntry) *p4rtserver.Entry {
	r.t.Helper()
	t := info(te.GetTableId())
	e := &p4rtserver.Entry{TableID: t.ID, Priority: te.GetPriority(), IdleTimeoutNs: te.GetIdleTimeoutNs(), Metadata: te.GetMetadata()}
	e.Match = make([]p4rtserver.FieldMatch, len(t.Fields))
	for i, f := range t.Fields {
		e.Match[i].ID = f.ID
		for _, m := range te.GetMatch() {
			if m.GetFieldId() != f.ID {
				continue
			}
			switch k := m.GetFieldMatchType().(type) {
			case *p4v1.FieldMatch_Exact_:
				e.Match[i].Kind, e.Match[i].Value = p4rtserver.MatchExact, k.Exact.GetValue()
			case *p4v1.FieldMatch_Lpm:
				e.Match[i].Kind, e.Match[i].Value, e.Match[i].PrefixLen = p4rtserver.MatchLPM, k.Lpm.GetValue(), k.Lpm.GetPrefixLen()
			case *p4v1.FieldMatch_Ternary_:
				e.Match[i].Kind, e.Match[i].Value, e.Match[i].Mask = p4rtserver.MatchTernary, k.Ternary.GetValue(), k.Ternary.GetMask()
			case *p4v1.FieldMatch_Range_:
				e.Match[i].Kind, e.Match[i].Value, e.Match[i].Mask = p4rtserver.MatchRange, k.Range.GetLow(), k.Range.GetHigh()
			}
		}
	}
	params := func(a *p4v1.Action) p4rtserver.Action {
		x := p4rtserver.Action{ID: a.GetActionId()}
		for _, p := range a.GetParams() {
			x.Params = append(x.Params, p.GetValue())
		}
		return x
	}
	switch a := te.GetAction().GetType().(type) {
	case *p4v1.TableAction_Action:
		e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: params(a.Action)}
	case *p4v1.TableAction_ActionProfileMemberId:
		e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionMember, RefID: a.ActionProfileMemberId}
	case *p4v1.TableAction_ActionProfileGroupId:
		e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionGroup, RefID: a.ActionProfileGroupId}
	case *p4v1.TableAction_ActionProfileActionSet:
		e.Action.Kind = p4rtserver.ActionSet
		for _, w := range a.ActionProfileActionSet.GetActionProfileActions() {
			e.Action.Set = append(e.Action.Set, p4rtserver.WeightedAction{Action: params(w.GetAction()), Weight: w.GetWeight()})
		}
	}
	if c := te.GetCounterData(); c != nil {
		e.Counter = &p4rtserver.CounterData{Bytes: c.GetByteCount(), Packets: c.GetPacketCount()}
	}
	if m := te.GetMeterConfig(); m != nil {
		e.Meter = &p4rtserver.MeterConfig{CIR: m.GetCir(), CBurst: m.GetCburst(), PIR: m.GetPir(), PBurst: m.GetPburst()}
	}
	return e
}

func (r *rig) write(op p4rtserver.Op, x tables.Entry) error {
	r.t.Helper()
	te, err := x.ToProto()
	if err != nil {
		r.t.Fatal(err)
	}
	err = r.pl.WriteTable(op, r.entry(te))
	r.pl.Flush()
	return err
}

func (r *rig) put(entries ...tables.Entry) {
	r.t.Helper()
	for _, x := range entries {
		if err := r.write(p4rtserver.Insert, x); err != nil {
			r.t.Fatalf("%T: %v", x, err)
		}
	}
}

func (r *rig) modify(x tables.Entry) {
	r.t.Helper()
	if err := r.write(p4rtserver.Modify, x); err != nil {
		r.t.Fatalf("%T: %v", x, err)
	}
}

func (r *rig) del(x tables.Entry) {
	r.t.Helper()
	if err := r.write(p4rtserver.Delete, x); err != nil {
		r.t.Fatalf("%T: %v", x, err)
	}
}

// send takes one frame through the pipeline.
func (r *rig) send(port uint16, frame []byte) Packet {
	r.t.Helper()
	f := pktio.NewFrames(1)[0]
	if err := f.Set(frame); err != nil {
		r.t.Fatal(err)
	}
	batch := []Packet{{Frame: f, InPort: port}}
	r.w.Process(r.now, batch)
	return batch[0]
}

func (r *rig) packetOut(mode uint8, egress, ingress uint16, frame []byte) {
	r.t.Helper()
	md := [][]byte{{mode}, {0}, binary.BigEndian.AppendUint16(nil, egress), binary.BigEndian.AppendUint16(nil, ingress)}
	if err := r.pl.PacketOut(md, frame); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) counter(id uint32, index int) int64 {
	r.t.Helper()
	d, err := r.pl.Counter(id, int64(index))
	if err != nil {
		r.t.Fatal(err)
	}
	return d.Packets
}

// flow is the two ends of a conversation.
type flow struct {
	protocol         uint8
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

func tcp4(src, dst string) flow {
	return flow{6, netip.MustParseAddr(src), netip.MustParseAddr(dst), 40000, 443}
}

// tuple is the sorted five-tuple.
func (f flow) tuple() tag.Tuple {
	t, _ := tag.NewTuple(f.protocol, tag.KindPorts, f.src, f.dst, f.srcPort, f.dstPort)
	return t
}

// l4 is a transport header with 8 bytes behind it.
func (f flow) l4(flags uint8) []byte {
	b := binary.BigEndian.AppendUint16(nil, f.srcPort)
	b = binary.BigEndian.AppendUint16(b, f.dstPort)
	if f.protocol == 6 {
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, 5<<4, flags, 1, 0, 0xbe, 0xef, 0, 0)
	} else {
		b = append(b, 0, 16, 0xbe, 0xef)
	}
	return append(b, "payload!"...)
}

// ip is the packet with that payload.
func (f flow) ip(payload []byte) []byte {
	if f.src.Is6() {
		b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), f.protocol, 64}
		return append(append(append(b, f.src.AsSlice()...), f.dst.AsSlice()...), payload...)
	}
	return ipv4(f.protocol, f.src, f.dst, 0, nil, payload)
}

// ipv4 is a packet with a fragment field and options.
func ipv4(protocol uint8, src, dst netip.Addr, fragment uint16, options, payload []byte) []byte {
	n := 20 + len(options)
	b := []byte{0x40 | byte(n/4), 0, 0, 0, 0xab, 0xcd, byte(fragment >> 8), byte(fragment), 64, protocol, 0, 0}
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), options...)
	binary.BigEndian.PutUint16(b[2:], uint16(n+len(payload)))
	mendIPv4(b)
	return append(b, payload...)
}

func (f flow) packet() []byte { return f.ip(f.l4(0x18)) }

// eth puts an IP packet into a frame.
func eth(ip []byte) []byte {
	b := append(make([]byte, 0, 14+len(ip)), "\x02\x00\x00\x00\x00\xaa\x02\x00\x00\x00\x00\xbb\x08\x00"...)
	if len(ip) > 0 && ip[0]>>4 == 6 {
		b[12], b[13] = 0x86, 0xdd
	}
	return append(b, ip...)
}

func vlan(vid uint16, frame []byte) []byte {
	return slices.Concat(frame[:12], []byte{0x81, 0, byte(vid >> 8), byte(vid)}, frame[12:])
}

// tagged puts a tag of the peer on an IP packet.
func (r *rig) tagged(k *tag.IssueKey, unid uint32, ip []byte) []byte {
	r.t.Helper()
	return r.taggedFlags(k, unid, ip, 0)
}

func (r *rig) taggedFlags(k *tag.IssueKey, unid uint32, ip []byte, flags uint8) []byte {
	r.t.Helper()
	var v packet.View
	if a := packet.ParseIP(ip, r.carrier, &v); a != packet.None {
		r.t.Fatal(a)
	}
	h, err := k.Issue(unid, peerEpoch, 0x1122334455667788, &v.Tuple)
	if err != nil {
		r.t.Fatal(err)
	}
	h.Flags = flags
	b, err := packet.Insert(nil, ip, r.carrier, &h)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) byPeer(ip []byte) []byte { return r.tagged(tag.NewSiphashKey(peerMACKey), peerUNID, ip) }

// view parses what left.
func (r *rig) view(frame []byte) (v packet.View) {
	r.t.Helper()
	if a := packet.Parse(frame, r.carrier, &v); a != packet.None {
		r.t.Fatalf("what left does not parse: %v\n%x", a, frame)
	}
	if v.Has(packet.BadChecksum) {
		r.t.Errorf("IPv4 header checksum of what left is wrong: %x", frame)
	}
	if v.End != len(frame) {
		r.t.Errorf("%d bytes left, the packet ends at %d", len(frame), v.End)
	}
	return v
}

// sessions4 is the key of an IPv4 session.
func key4(t tag.Tuple) tables.SessionV4Key {
	return tables.SessionV4Key{Low: uint32(t.A[0] >> 32), High: uint32(t.A[0]), Protocol: t.Protocol(), Kind: t.Kind(), LowPort: t.LowPort(), HighPort: t.HighPort()}
}

func key6(t tag.Tuple) tables.SessionV6Key {
	return tables.SessionV6Key{Low: t.Low().As16(), High: t.High().As16(), Protocol: t.Protocol(), Kind: t.Kind(), LowPort: t.LowPort(), HighPort: t.HighPort()}
}

// admit adds a session for either family, from any zone.
func (r *rig) admit(t tag.Tuple) {
	r.t.Helper()
	if t.Family() == 4 {
		r.put(tables.SessionV4Entry{Key: key4(t), Action: tables.AdmittedV4{LowZone: tables.ZoneAny, HighZone: tables.ZoneAny}})
	} else {
		r.put(tables.SessionV6Entry{Key: key6(t), Action: tables.AdmittedV6{LowZone: tables.ZoneAny, HighZone: tables.ZoneAny}})
	}
}

func (r *rig) deliver(t tag.Tuple) {
	r.t.Helper()
	if t.Family() == 4 {
		r.put(tables.DeliveredV4Entry{Key: tables.DeliveredV4Key(key4(t)), Action: tables.Delivered{}})
	} else {
		r.put(tables.DeliveredV6Entry{Key: tables.DeliveredV6Key(key6(t)), Action: tables.Delivered{}})
	}
}
