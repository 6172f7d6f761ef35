package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/pktio"
	"countersign/p4src"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

func TestLoadRefusesOtherPipelines(t *testing.T) {
	own, err := p4src.P4Info()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*p4configv1.P4Info)
		want   string
	}{
		"no table": {func(p *p4configv1.P4Info) { p.Tables = p.Tables[1:] }, "table port"},
		"another table": {func(p *p4configv1.P4Info) {
			p.Tables = append(p.Tables, &p4configv1.Table{Preamble: &p4configv1.Preamble{Id: 9, Alias: "acl"}})
		}, "acl"},
		"table name":       {func(p *p4configv1.P4Info) { p.Tables[0].Preamble.Name = "x.y" }, `"x.y"`},
		"table size":       {func(p *p4configv1.P4Info) { p.Tables[0].Size = 1 }, "size 1"},
		"field width":      {func(p *p4configv1.P4Info) { p.Tables[0].MatchFields[0].Bitwidth = 9 }, "in_port (id 1, 9 bits"},
		"field missing":    {func(p *p4configv1.P4Info) { p.Tables[0].MatchFields = p.Tables[0].MatchFields[:1] }, "1 match fields"},
		"action missing":   {func(p *p4configv1.P4Info) { p.Actions = nil }, "is missing"},
		"action reference": {func(p *p4configv1.P4Info) { p.Tables[0].ActionRefs = p.Tables[0].ActionRefs[:1] }, "table port"},
		"counter size":     {func(p *p4configv1.P4Info) { p.Counters[0].Size = 3 }, "size 3"},
		"no meter":         {func(p *p4configv1.P4Info) { p.DirectMeters = nil }, "meter"},
		"no profile":       {func(p *p4configv1.P4Info) { p.ActionProfiles = nil }, "action profile"},
		"packet-in":        {func(p *p4configv1.P4Info) { p.ControllerPacketMetadata[0].Metadata[0].Bitwidth = 9 }, "packet_"},
	} {
		t.Run(name, func(t *testing.T) {
			p := proto.Clone(own).(*p4configv1.P4Info)
			c.change(p)
			_, err := New(Options{}).Load(&p4v1.ForwardingPipelineConfig{P4Info: p}, nil)
			if !errors.Is(err, p4rtserver.ErrInvalidArgument) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want one about %q", err, c.want)
			}
		})
	}
}

func TestWithoutPipeline(t *testing.T) {
	e := New(Options{})
	f := pktio.NewFrames(1)
	batch := []Packet{{Frame: f[0], InPort: 1}}
	e.Worker(0).Process(0, batch)
	e.Sweep(0)
	if batch[0].Verdict != Drop || len(e.Stats().Stages) != 0 {
		t.Errorf("%+v, %+v", batch[0], e.Stats())
	}
}

// allTables has an entry of each table, and another action for it or nil.
func allTables() (entries, others []tables.Entry) {
	t4, t6 := untagged4.tuple(), untagged6.tuple()
	k4, k6 := key4(t4), key6(t6)
	add := func(e, other tables.Entry) { entries, others = append(entries, e), append(others, other) }
	add(tables.PortEntry{Key: tables.PortKey{InPort: 77, VLAN: 4094}, Action: tables.PortConfig{Role: tables.RoleEcho, Zone: 0xabcd, Flags: 7}},
		tables.PortEntry{Key: tables.PortKey{InPort: 77, VLAN: 4094}, Action: tables.PortConfig{Role: tables.RoleEdge, Zone: 1}})
	key := tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: 0xdeadbeef, Epoch: 0xfffe}
	add(tables.IssuerKeyEntry{Key: key, Action: tables.SiphashKey{State: tables.KeyStateEchoOnly, OwnSite: 1, K0: 1<<63 | 5, K1: 6}, Metadata: "m"},
		tables.IssuerKeyEntry{Key: key, Action: tables.Tombstone{}})
	key.Suite = tables.SuiteEd25519
	add(tables.IssuerKeyEntry{Key: key, Action: tables.Ed25519Key{State: tables.KeyStateAccepted, K1: 6}}, nil)
	key.Suite = tables.SuiteRSA2048
	add(tables.IssuerKeyEntry{Key: key, Action: tables.RSA2048Key{State: tables.KeyStateAccepted}}, nil)
	add(tables.VouchedV4Entry{Key: tables.VouchedV4Key{Low: k4.Low, High: k4.High, Protocol: 6, LowPort: 1, HighPort: 2, Suite: 2, UNID: 3,
		Epoch: 4, Nonce: 1 << 63, Digest: 6, SealedCRC: 7}, Action: tables.Vouched{}, IdleTimeout: time.Minute}, nil)
	add(tables.VouchedV6Entry{Key: tables.VouchedV6Key{Low: k6.Low, High: k6.High, Protocol: 6, Kind: 2, LowPort: 1, HighPort: 2, Suite: 3, UNID: 3,
		Epoch: 4, Digest: 6, SealedCRC: 7}, Action: tables.Vouched{}}, nil)
	hop := tables.NextHop{Port: 2, VLAN: 5, Role: tables.RoleTrunk, Zone: 20, MTU: 1500, SrcMAC: ownMAC, DstMAC: peerMAC}
	add(tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10 << 24, PrefixLen: 8}}, Action: oneShot(hop)},
		tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10 << 24, PrefixLen: 8}}, Action: oneShot(hop, hop)})
	add(tables.EgressPortV4Entry{Action: oneShot(hop)}, nil) // 0.0.0.0/0
	add(tables.EgressPortV6Entry{Key: tables.EgressPortV6Key{Dst: tables.LPM[[16]byte]{Value: k6.Low, PrefixLen: 128}}, Action: oneShot(hop)}, nil)
	add(tables.CrossConnectEntry{Key: tables.CrossConnectKey{InPort: 9}, Action: tables.ToPort{Port: 300, Role: tables.RoleTrunk, Zone: 9, MTU: 9000}}, nil)
	add(tables.DeliveredV4Entry{Key: tables.DeliveredV4Key(k4), Action: tables.Delivered{}, IdleTimeout: time.Second}, nil)
	add(tables.DeliveredV6Entry{Key: tables.DeliveredV6Key(k6), Action: tables.Delivered{}}, nil)
	add(tables.SessionV4Entry{Key: k4, Action: tables.AdmittedV4{LowZone: 0xabcd, HighZone: 2}, IdleTimeout: time.Hour, Metadata: "session"},
		tables.SessionV4Entry{Key: k4, Action: tables.AdmittedV4{LowZone: 3, HighZone: 0xffff}})
	add(tables.SessionV6Entry{Key: k6, Action: tables.AdmittedV6{LowZone: 1, HighZone: 2}}, nil)
	p4 := tables.PolicyV4Key{InZone: exactly[uint16](1), Src: tables.Ternary[uint32]{Value: 10 << 24, Mask: 0xff << 24}, DstPort: tables.Between[uint16](1, 9)}
	add(tables.PolicyV4Entry{Key: p4, Priority: 10, Action: tables.AdmitV4{}}, tables.PolicyV4Entry{Key: p4, Priority: 10, Action: tables.DenyV4{}})
	add(tables.PolicyV4Entry{Key: p4, Priority: 11, Action: tables.AwaitV4{}, Metadata: "await"}, nil)
	add(tables.PolicyV6Entry{Priority: 1, Action: tables.TagV6{}}, nil)
	add(tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}, Action: signSiphash()},
		tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}, Action: tables.SignBySession{}})
	add(tables.OwnTagV4Entry{Key: tables.OwnTagV4Key(k4), Action: tables.PutEd25519{UNID: 1, Epoch: 2, Nonce: 3, TagDigest: 4, Sealed: [64]byte{0, 5}}, IdleTimeout: time.Hour},
		tables.OwnTagV4Entry{Key: tables.OwnTagV4Key(k4), Action: tables.PutRSA2048{UNID: 9, TagDigest: 4, Sealed: [256]byte{1, 5}}})
	add(tables.OwnTagV6Entry{Key: tables.OwnTagV6Key(k6), Action: tables.PutRSA2048{UNID: 1, Epoch: 0xffff, TagDigest: 4, Sealed: [256]byte{5, 255: 9}}}, nil)
	add(tables.PuntEntry{Key: tables.PuntKey{Reason: tables.ReasonToMe, Role: tables.RoleEdge, Zone: 65535}, Action: tables.ToCPU{},
		Meter: tables.Some(tables.MeterConfig{CIR: 1, CBurst: 2, PIR: 3, PBurst: 4})}, nil)
	return entries, others
}

// same reports what of an entry read back differs from what was written.
func same(have, want *p4rtserver.Entry) error {
	if h, w := fmt.Sprintf("%+v", have.Match), fmt.Sprintf("%+v", want.Match); h != w {
		return fmt.Errorf("match %s, want %s", h, w)
	}
	if h, w := fmt.Sprintf("%+v", have.Action), fmt.Sprintf("%+v", want.Action); h != w {
		return fmt.Errorf("action %s, want %s", h, w)
	}
	if have.Priority != want.Priority || have.IdleTimeoutNs != want.IdleTimeoutNs || string(have.Metadata) != string(want.Metadata) {
		return fmt.Errorf("%+v, want %+v", have, want)
	}
	if want.Meter != nil && (have.Meter == nil || *have.Meter != *want.Meter) {
		return fmt.Errorf("meter %+v, want %+v", have.Meter, want.Meter)
	}
	return nil
}

func TestEveryTableThroughP4Runtime(t *testing.T) {
	entries, others := allTables()
	seen := make(map[uint32]bool)
	for i, x := range entries {
		seen[x.TableID()] = true
		t.Run(fmt.Sprintf("%s %d", info(x.TableID()).Alias, i), func(t *testing.T) {
			r := newBareRig(t, 1)
			want := func(x tables.Entry) *p4rtserver.Entry {
				te, err := x.ToProto()
				if err != nil {
					t.Fatal(err)
				}
				return r.entry(te)
			}
			read := func(w *p4rtserver.Entry) {
				t.Helper()
				got := p4rtserver.Entry{TableID: w.TableID, Match: w.Match, Priority: w.Priority}
				if err := r.pl.Lookup(&got, p4rtserver.WantMeter); err != nil {
					t.Fatal(err)
				}
				if err := same(&got, w); err != nil {
					t.Errorf("lookup: %v", err)
				}
				n := 0
				if err := r.pl.Entries(w.TableID, p4rtserver.WantMeter, func(e *p4rtserver.Entry) bool {
					n++
					if err := same(e, w); err != nil {
						t.Errorf("entries: %v", err)
					}
					return true
				}); err != nil || n != 1 {
					t.Errorf("%d entries, %v", n, err)
				}
			}
			w := want(x)
			for _, op := range []p4rtserver.Op{p4rtserver.Modify, p4rtserver.Delete} {
				if err := r.pl.WriteTable(op, w); !errors.Is(err, p4rtserver.ErrNotFound) {
					t.Errorf("op %v of no entry: %v", op, err)
				}
			}
			r.put(x)
			if err := r.pl.WriteTable(p4rtserver.Insert, w); !errors.Is(err, p4rtserver.ErrAlreadyExists) {
				t.Errorf("second insert: %v", err)
			}
			read(w)
			if others[i] != nil {
				r.modify(others[i])
				read(want(others[i]))
			}
			r.del(x)
			if err := r.pl.Lookup(&p4rtserver.Entry{TableID: w.TableID, Match: w.Match, Priority: w.Priority}, 0); !errors.Is(err, p4rtserver.ErrNotFound) {
				t.Errorf("lookup of a deleted entry: %v", err)
			}
			if n := r.pl.(*pipeline).byID[x.TableID()].count(); n != 0 {
				t.Errorf("%d entries left", n)
			}
			if err := r.pl.WriteTable(p4rtserver.Modify, &p4rtserver.Entry{TableID: w.TableID, Default: true}); !errors.Is(err, p4rtserver.ErrInvalidArgument) {
				t.Errorf("default entry: %v", err)
			}
			if err := r.pl.Lookup(&p4rtserver.Entry{TableID: w.TableID, Default: true}, 0); err != nil {
				t.Errorf("default entry: %v", err)
			}
		})
	}
	for _, x := range tables.Tables() {
		if !seen[x.ID] {
			t.Errorf("no entry of %s", x.Alias)
		}
	}
}

func TestFullTable(t *testing.T) {
	r := newBareRig(t, 1)
	for i := range tables.PortTableSize {
		r.put(tables.PortEntry{Key: tables.PortKey{InPort: uint16(i)}, Action: tables.PortConfig{Role: tables.RoleEdge, Zone: uint16(i)}})
	}
	one := tables.PortEntry{Key: tables.PortKey{InPort: 60000}, Action: tables.PortConfig{}}
	if err := r.write(p4rtserver.Insert, one); !errors.Is(err, p4rtserver.ErrResourceExhausted) {
		t.Errorf("one too many: %v", err)
	}
	if p := r.send(5, eth(untagged4.packet())); p.Stage == StagePort {
		t.Errorf("an entry was lost: %+v", p)
	}
	r.del(tables.PortEntry{Key: tables.PortKey{InPort: 7}})
	r.put(one)
}

func TestIssuerKeyWithoutKey(t *testing.T) {
	r := newBareRig(t, 1)
	for name, a := range map[string]tables.IssuerKeyAction{
		"zero":     tables.SiphashKey{State: tables.KeyStateAccepted},
		"rsa2048":  tables.RSA2048Key{State: tables.KeyStateAccepted},
		"zero two": tables.Ed25519Key{State: tables.KeyStateAccepted},
	} {
		e := tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: 1, Epoch: 1}, Action: a}
		if err := r.write(p4rtserver.Insert, e); !errors.Is(err, p4rtserver.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.put(tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: 1, Epoch: 1}, Action: tables.Tombstone{}})
}

func TestIdleTimeout(t *testing.T) {
	r := newRig(t, false)
	r.put(tables.SessionV4Entry{Key: key4(untagged4.tuple()), Action: tables.AdmittedV4{LowZone: 10, HighZone: 10}, IdleTimeout: 10 * time.Second, Metadata: "x"})
	r.put(tables.DeliveredV6Entry{Key: tables.DeliveredV6Key(key6(untagged6.tuple())), Action: tables.Delivered{}}) // never
	step := func(d time.Duration, want int) {
		t.Helper()
		r.now += int64(d)
		r.idle = nil
		r.e.Sweep(r.now)
		if len(r.idle) != want {
			t.Errorf("%d notifications, want %d", len(r.idle), want)
		}
	}
	step(9*time.Second, 0)
	r.send(1, eth(untagged4.packet()))
	step(9*time.Second, 0)
	step(2*time.Second, 1)
	if e := r.idle[0]; e.TableID != tables.SessionV4TableID || string(e.Metadata) != "x" || e.IdleTimeoutNs != 10e9 {
		t.Errorf("%+v", e)
	}
	step(time.Second, 0)
	step(9*time.Second, 1)
	r.send(1, eth(untagged4.packet()))
	step(time.Second, 0)

	te, _ := tables.SessionV4Entry{Key: key4(untagged4.tuple())}.ToProto()
	e := r.entry(te)
	if err := r.pl.Lookup(e, p4rtserver.WantLastHit|p4rtserver.WantCounter); err != nil || e.SinceLastHitNs != 1e9 || e.Counter.Packets != 2 {
		t.Errorf("%+v, %+v, %v", e, e.Counter, err)
	}
}

func TestNextHopGroups(t *testing.T) {
	r := newRig(t, false)
	hop := func(port uint16) p4rtserver.Action {
		return action(tables.NextHopActionID, uint64(port), 0, uint64(tables.RoleTrunk), 20, 1500, ownMAC, peerMAC)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pl := r.pl
	for id := uint32(1); id <= 3; id++ {
		must(pl.WriteMember(p4rtserver.Insert, &p4rtserver.Member{ProfileID: tables.NextHopsProfileID, ID: id, Action: hop(uint16(100 + id))}))
	}
	group := &p4rtserver.Group{ProfileID: tables.NextHopsProfileID, ID: 9, Members: []p4rtserver.GroupMember{{ID: 3, Weight: 2}, {ID: 1, Weight: 1}}}
	must(pl.WriteGroup(p4rtserver.Insert, group))
	r.put(tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10<<24 | 7<<16, PrefixLen: 16}}, Action: tables.NextHopsGroupRef(9)})
	r.put(anyRule(tables.TagV4{}))
	at := func(want ...uint16) {
		t.Helper()
		for i := range 50 {
			f := tcp4("10.9.0.1", "10.7.0.2")
			f.srcPort += uint16(i)
			tuple := f.tuple()
			p := r.send(1, eth(f.packet()))
			if h := tuple.FlowHash(); p.Verdict != Forward || p.Egress != want[h%uint32(len(want))] {
				t.Fatalf("%v %v by port %d, hash %d of %v", p.Verdict, p.Reason, p.Egress, h, want)
			}
		}
	}
	at(103, 103, 101)
	must(pl.WriteMember(p4rtserver.Modify, &p4rtserver.Member{ProfileID: tables.NextHopsProfileID, ID: 3, Action: hop(200)}))
	at(200, 200, 101)
	group.Members = []p4rtserver.GroupMember{{ID: 2, Weight: 1}}
	must(pl.WriteGroup(p4rtserver.Modify, group))
	at(102)
	r.modify(tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10<<24 | 7<<16, PrefixLen: 16}}, Action: tables.NextHopsMemberRef(1)})
	at(101)
	group.Members = nil
	must(pl.WriteGroup(p4rtserver.Modify, group))
	r.modify(tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10<<24 | 7<<16, PrefixLen: 16}}, Action: tables.NextHopsGroupRef(9)})
	// An empty group runs no action: nowhere, and nothing fits there.
	if p := r.send(1, eth(tcp4("10.9.0.1", "10.7.0.2").packet())); p.Reason != tables.ReasonTooBig {
		t.Errorf("%v %v", p.Verdict, p.Reason)
	}
	group.Members = []p4rtserver.GroupMember{{ID: 2, Weight: 1, WatchPort: []byte{1}}}
	if err := pl.WriteGroup(p4rtserver.Modify, group); !errors.Is(err, p4rtserver.ErrUnimplemented) {
		t.Errorf("watch port: %v", err)
	}
	if err := pl.WriteMember(p4rtserver.Insert, &p4rtserver.Member{ID: 1, Action: hop(1)}); !errors.Is(err, p4rtserver.ErrAlreadyExists) {
		t.Errorf("second insert: %v", err)
	}
	if err := pl.WriteGroup(p4rtserver.Delete, &p4rtserver.Group{ID: 77}); !errors.Is(err, p4rtserver.ErrNotFound) {
		t.Errorf("delete: %v", err)
	}
}

func TestMeter(t *testing.T) {
	cfg := func(cir, cburst, pir, pburst int64) *p4rtserver.MeterConfig {
		return &p4rtserver.MeterConfig{CIR: cir, CBurst: cburst, PIR: pir, PBurst: pburst}
	}
	type at struct {
		ms   int64
		want string // colours of packets at that time
	}
	for name, c := range map[string]struct {
		cfg   *p4rtserver.MeterConfig
		steps []at
	}{
		"unset":      {nil, []at{{0, "gggg"}}},
		"all zero":   {cfg(0, 0, 0, 0), []at{{0, "rr"}, {5000, "rr"}}},
		"burst only": {cfg(0, 1, 0, 3), []at{{0, "gyyr"}, {5000, "r"}}},
		"rates":      {cfg(1, 1, 2, 3), []at{{0, "gyyr"}, {500, "yr"}, {1000, "gr"}, {1500, "yr"}, {10000, "gyyr"}}},
		"fast":       {cfg(1e9, 2, 1e9, 2), []at{{0, "ggr"}, {1, "ggr"}}},
		"huge":       {cfg(1<<62, 1<<62, 1<<62, 1<<62), []at{{0, "gggggg"}, {1000, "gggggg"}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMeter(c.cfg, 7)
			var green int64
			for _, s := range c.steps {
				for i, want := range s.want {
					if got := "gyr"[m.mark(7+s.ms*1e6, 60)]; got != byte(want) {
						t.Errorf("at %d ms, packet %d is %c, want %c", s.ms, i, got, want)
					}
				}
				green += int64(strings.Count(s.want, "g"))
			}
			if n := m.counters().Green; n.Packets != green || n.Bytes != 60*green {
				t.Errorf("green counted %+v, want %d", n, green)
			}
		})
	}
}

func TestPuntMeter(t *testing.T) {
	r := newRig(t, false)
	e := tables.PuntEntry{Key: tables.PuntKey{Reason: tables.ReasonNewSession, Role: tables.RoleEdge, Zone: 10}, Action: tables.ToCPU{},
		Meter: tables.Some(tables.MeterConfig{CIR: 1, CBurst: 1, PIR: 1, PBurst: 2})}
	r.modify(e)
	r.put(anyRule(tables.AdmitV4{}))
	for i, want := range []tables.Reason{tables.ReasonNewSession, tables.ReasonNewSession, tables.ReasonPuntLimited} {
		if p := r.send(1, eth(untagged4.packet())); p.Reason != want {
			t.Errorf("packet %d: %v, want %v", i, p.Reason, want)
		}
	}
	te, _ := e.ToProto()
	x := r.entry(te)
	if err := r.pl.Lookup(x, p4rtserver.WantMeterCounters); err != nil || x.MeterCounters.Yellow.Packets != 1 || x.MeterCounters.Red.Packets != 1 {
		t.Errorf("%+v, %v", x.MeterCounters, err)
	}
	x.Meter, x.MeterCounters = nil, nil
	if err := r.pl.SetDirectMeter(x); err != nil {
		t.Fatal(err)
	}
	if p := r.send(1, eth(untagged4.packet())); p.Verdict != Punt {
		t.Errorf("an unset meter is not green: %v %v", p.Verdict, p.Reason)
	}
}

func TestDirectCounters(t *testing.T) {
	r := newRig(t, false)
	r.admit(untagged4.tuple())
	e := anyRule(tables.DenyV4{})
	r.put(e)
	frame := eth(untagged4.packet())
	r.send(1, frame)
	r.send(1, frame)
	r.send(1, eth(tcp4("10.9.0.9", "10.2.0.2").packet()))
	for _, c := range []struct {
		entry tables.Entry
		want  int64
	}{{tables.SessionV4Entry{Key: key4(untagged4.tuple())}, 2}, {e, 1}} {
		te, _ := c.entry.ToProto()
		x := r.entry(te)
		if err := r.pl.Lookup(x, p4rtserver.WantCounter); err != nil || x.Counter.Packets != c.want || x.Counter.Bytes != c.want*int64(len(frame)) {
			t.Errorf("%T: %+v, %v", c.entry, x.Counter, err)
		}
		x.Counter = &p4rtserver.CounterData{Packets: 50, Bytes: 60}
		if err := r.pl.SetDirectCounter(x); err != nil {
			t.Fatal(err)
		}
		if err := r.pl.Lookup(x, p4rtserver.WantCounter); err != nil || *x.Counter != (p4rtserver.CounterData{Packets: 50, Bytes: 60}) {
			t.Errorf("%T after setting: %+v, %v", c.entry, x.Counter, err)
		}
	}
}

func TestNonceNeverRepeats(t *testing.T) {
	r := newRig(t, false)
	r.put(anyRule(tables.TagV4{}))
	seen := make(map[uint64]bool)
	note := func(frame []byte) {
		v := r.view(frame)
		if seen[v.Tag.Nonce] {
			t.Fatalf("nonce %x again", v.Tag.Nonce)
		}
		seen[v.Tag.Nonce] = true
	}
	for i := range 3 * blockLen {
		p := r.send(1, eth(untagged4.packet()))
		note(p.Frame.Bytes())
		if i%7 == 0 {
			r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, eth(untagged4.packet()))
			note(r.sent[len(r.sent)-1])
		}
	}
	if first := (signSiphash().NonceSalt ^ 2<<48) + 0; !seen[first] || !seen[first+1] {
		t.Errorf("nonces do not begin with the salt and the port, %x", first)
	}
}

// TestRulesAgainstScan compares the bitmaps with a plain scan by priority.
func TestRulesAgainstScan(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	few := func(n int) uint16 { return uint16(random.IntN(n)) }
	for round := range 30 {
		s := newPolicyStore(info(tables.PolicyV4TableID), 1)
		r := &rig{t: t}
		n := 1 + random.IntN(200)
		for range n {
			k := tables.PolicyV4Key{}
			if few(2) == 0 {
				k.InZone = exactly(few(4))
			} else if few(4) == 0 {
				k.InZone = tables.Ternary[uint16]{Value: few(2), Mask: 1}
			}
			if few(2) == 0 {
				k.OutZone = exactly(few(4))
			}
			if few(2) == 0 {
				k.Protocol = exactly(uint8(few(3)))
			}
			if few(2) == 0 {
				k.Dst = tables.Ternary[uint32]{Value: uint32(few(4)), Mask: 3}
			}
			if few(2) == 0 {
				low := few(20) * 3400
				k.DstPort = tables.Between(low, low+few(900))
			}
			if few(4) == 0 {
				k.SrcPort = tables.Between(few(4), 4+few(4))
			}
			if few(2) == 0 {
				k.Tagged = tables.Ternary[uint8]{Value: uint8(few(2)), Mask: 1}
			}
			te, err := tables.PolicyV4Entry{Key: k, Priority: 1 + int32(few(9)), Action: tables.AdmitV4{}}.ToProto()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.write(p4rtserver.Insert, r.entry(te), 0); err != nil && !errors.Is(err, p4rtserver.ErrAlreadyExists) {
				t.Fatal(err)
			}
		}
		s.flush()
		rules := s.rules.Load()
		for range 500 {
			var k policyKey
			k.inZone, k.outZone, k.protocol, k.tagged = few(5), few(5), uint8(few(4)), uint8(few(2))
			k.srcPort, k.dstPort = few(10), few(20)*3400+few(1000)
			k.words[0] = policyWord(uint64(k.inZone), uint64(k.outZone), uint64(k.protocol), 0, 0)
			k.words[1] = uint64(few(4))
			var want *rule
			for _, x := range rules.rules {
				if x.matches(&k, 2) && (want == nil || x.priority > want.priority || x.priority == want.priority && x.order < want.order) {
					want = x
				}
			}
			if got := rules.match(&k); got != want {
				t.Fatalf("round %d: %+v: rule %+v, want %+v", round, k, got, want)
			}
		}
	}
}

// TestExactAgainstMap drives a table against a Go map.
func TestExactAgainstMap(t *testing.T) {
	for _, size := range []int{100, 20000} {
		g := &grace{}
		random := rand.New(rand.NewPCG(3, 4))
		// A poor hash, so that searches are long.
		x := newExact[uint64, struct{}](size, g, func(k *uint64) uint64 { return (*k & 63) << 55 * 0x9e3779b97f4a7c15 })
		model := make(map[uint64]bool)
		for range 50000 {
			k := random.Uint64N(uint64(size))
			switch e := x.find(x.hash(&k), &k); {
			case (e != nil) != model[k]:
				t.Fatalf("key %d found: %t", k, e != nil)
			case e != nil:
				x.remove(&k)
				delete(model, k)
			case len(model) < min(size, 500):
				id, e := x.insert(k)
				x.publish(id, e)
				model[k] = true
			}
		}
		n := 0
		x.each(0, x.next, func(_ uint32, e *entry[uint64, struct{}]) bool {
			n++
			if !model[e.key] {
				t.Errorf("key %d is listed", e.key)
			}
			return true
		})
		if n != len(model) || int(x.n.Load()) != n {
			t.Errorf("%d of %d entries listed, %d counted", n, len(model), x.n.Load())
		}
	}
}

// TestWritesWhileForwarding is for the race detector.
func TestWritesWhileForwarding(t *testing.T) {
	const workers = 2
	r := newBareRig(t, workers)
	r.quiet = true
	setup := newRig(t, false) // for its frames only
	tagged := eth(setup.byPeer(untagged4.packet()))
	r.put(
		tables.PortEntry{Key: tables.PortKey{InPort: 1}, Action: tables.PortConfig{Role: tables.RoleEdge, Zone: 10}},
		tables.PortEntry{Key: tables.PortKey{InPort: 2}, Action: tables.PortConfig{Role: tables.RoleTrunk, Zone: 20}},
		issuer(tag.Siphash, peerUNID, peerMACKey, tables.KeyStateAccepted, 1),
		tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}, Action: signSiphash()},
	)
	r.route(2, oneShot(tables.NextHop{Port: 2, Role: tables.RoleTrunk, Zone: 20, MTU: 1500}))
	r.put(anyRule(tables.AdmitV4{}))
	var stop atomic.Bool
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			w := r.e.Worker(i)
			frames := pktio.NewFrames(MaxBatch)
			batch := make([]Packet, MaxBatch)
			for n := 0; !stop.Load(); n++ {
				for j := range batch {
					f := tcp4("10.9.0.1", "10.2.0.2")
					f.srcPort = uint16(j + n%50)
					batch[j] = Packet{Frame: frames[j], InPort: 1}
					if j%4 == 0 {
						batch[j].InPort = 2
						_ = frames[j].Set(tagged)
					} else {
						_ = frames[j].Set(eth(f.packet()))
					}
				}
				w.Process(int64(1e18)+int64(n)*2e6, batch)
				for j := range batch {
					if p := &batch[j]; p.Verdict == Forward && p.InPort == 1 {
						admitted.Add(1)
					}
				}
			}
		})
	}
	for round := 0; round < 200 || admitted.Load() == 0; round++ {
		for i := range 20 {
			f := tcp4("10.9.0.1", "10.2.0.2")
			f.srcPort = uint16(i + round%40)
			e := tables.SessionV4Entry{Key: key4(f.tuple()), Action: tables.AdmittedV4{LowZone: 10, HighZone: 10}, IdleTimeout: time.Second}
			if err := r.write(p4rtserver.Insert, e); errors.Is(err, p4rtserver.ErrAlreadyExists) {
				r.del(e)
			}
		}
		r.modify(tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk}, Action: signSiphash()})
		p := tables.PolicyV4Entry{Key: tables.PolicyV4Key{DstPort: tables.Between(uint16(round), uint16(round))}, Priority: 2, Action: tables.DenyV4{}}
		r.put(p)
		r.del(p)
		r.modify(tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: 10<<24 | 2<<16, PrefixLen: 16}},
			Action: oneShot(tables.NextHop{Port: 2, Role: tables.RoleTrunk, Zone: 20, MTU: 1500}, tables.NextHop{Port: 3, Role: tables.RoleTrunk, Zone: 20, MTU: 1500})})
		r.packetOut(uint8(tables.PacketOutModeReturn), 0, 1, eth(untagged4.packet()))
		r.e.Sweep(r.now)
		r.e.Stats()
	}
	stop.Store(true)
	wg.Wait()
}

func TestNoAllocations(t *testing.T) {
	for name, c := range map[string]struct {
		udp   bool
		port  uint16
		frame func(*rig) []byte
		setup func(*rig)
		want  Verdict
	}{
		"retag":       {false, 2, peer(untagged4), nil, Forward},
		"retag IPv6":  {true, 2, peer(untagged6), nil, Forward},
		"strip":       {false, 2, peer(tcp4("10.9.0.1", "10.1.0.2")), func(r *rig) { r.deliver(tcp4("10.9.0.1", "10.1.0.2").tuple()) }, Forward},
		"tag":         {false, 1, plain(untagged4), admitting(untagged4), Forward},
		"tag IPv6":    {true, 1, plain(untagged6), admitting(untagged6), Forward},
		"ed25519":     {false, 1, plain(untagged4), both(admitting(untagged4), signBySession(ownEd25519Key, untagged4.tuple())), Forward},
		"vouched":     {false, 2, sealed(ed25519Key, untagged6), vouch(sealed(ed25519Key, untagged6)), Forward},
		"policy deny": {false, 1, plain(untagged4), withRules(rule4(tables.DenyV4{})), Drop},
		"held":        {false, 1, plain(untagged4), withRules(rule4(tables.AdmitV4{})), Punt},
		"copied":      {false, 2, peer(tcp4("10.9.0.1", "10.1.0.2")), nil, Forward},
		"malformed":   {false, 2, edited(peer(untagged4), 14+20+2, 0x91), nil, Drop},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.udp)
			r.quiet = true
			if c.setup != nil {
				c.setup(r)
			}
			frame := c.frame(r)
			frames := pktio.NewFrames(MaxBatch)
			batch := make([]Packet, MaxBatch)
			if n := testing.AllocsPerRun(20, func() {
				for i := range batch {
					_ = frames[i].Set(frame)
					batch[i].Frame, batch[i].InPort = frames[i], c.port
				}
				r.w.Process(r.now, batch)
			}); n != 0 {
				t.Errorf("%v allocations a batch", n)
			}
			if batch[0].Verdict != c.want {
				t.Errorf("%v %v", batch[0].Verdict, batch[0].Reason)
			}
		})
	}
}

// FuzzProcess throws frames at a pipeline with entries of every kind.
func FuzzProcess(f *testing.F) {
	for _, c := range verdictCases {
		r := newRig(f, c.udp)
		f.Add(c.frame(r), max(c.port, 1), c.udp, false)
	}
	rigs := make(map[bool]*rig)
	for _, udp := range []bool{false, true} {
		r := newRig(f, udp)
		tagAll(r)
		r.admit(untagged4.tuple())
		vouch(sealed(ed25519Key, untagged4))(r)
		rigs[udp] = r
	}
	f.Fuzz(func(t *testing.T, frame []byte, port uint16, udp, returned bool) {
		if len(frame) > pktio.MaxFrame {
			return
		}
		r := rigs[udp]
		r.t, r.ins, r.held, r.out, r.sent = t, nil, nil, nil, nil
		if returned {
			r.packetOut(uint8(tables.PacketOutModeReturn), 0, port%9, frame)
			return
		}
		var before packet.View
		packet.Parse(frame, r.carrier, &before)
		p := r.send(port%9, frame)
		if p.Verdict == Forward && !before.ARP && !before.Has(packet.ND) {
			r.view(p.Frame.Bytes())
		}
	})
}
