package tables

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// enumMembers are the enumerations by name, for the properties.
var enumMembers = map[string]func(uint64) bool{
	"KeyState":      func(v uint64) bool { return v <= 255 && KeyState(v).known() },
	"PacketOutMode": func(v uint64) bool { return v <= 255 && PacketOutMode(v).known() },
	"Reason":        func(v uint64) bool { return v <= 255 && Reason(v).known() },
	"Role":          func(v uint64) bool { return v <= 255 && Role(v).known() },
	"Suite":         func(v uint64) bool { return v <= 255 && Suite(v).known() },
}

var session = SessionV4Entry{
	Key:         SessionV4Key{Low: 0x0a000001, High: 0xc0a80101, LowPort: 40000, HighPort: 443, Protocol: 6},
	Action:      AdmittedV4{LowZone: 1, HighZone: 2},
	IdleTimeout: time.Minute,
}

func TestSessionOnTheWire(t *testing.T) {
	got, err := session.Update(p4v1.Update_INSERT)
	if err != nil {
		t.Fatal(err)
	}
	exact := func(id uint32, v string) *p4v1.FieldMatch {
		return &p4v1.FieldMatch{FieldId: id, FieldMatchType: &p4v1.FieldMatch_Exact_{Exact: &p4v1.FieldMatch_Exact{Value: []byte(v)}}}
	}
	want := &p4v1.Update{Type: p4v1.Update_INSERT, Entity: &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{
		TableId: 0x02000601,
		Match: []*p4v1.FieldMatch{
			exact(1, "\x0a\x00\x00\x01"), exact(2, "\xc0\xa8\x01\x01"), exact(3, "\x06"),
			exact(4, "\x00"), exact(5, "\x9c\x40"), exact(6, "\x01\xbb"),
		},
		Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{ActionId: 0x01000601, Params: []*p4v1.Action_Param{
			{ParamId: 1, Value: []byte{1}}, {ParamId: 2, Value: []byte{2}},
		}}}},
		IdleTimeoutNs: 60e9,
	}}}}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestErrorsNameWhatIsWrong(t *testing.T) {
	te, err := session.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	te.Match[0].GetExact().Value = []byte{1, 2, 3, 4, 5}
	_, err = DecodeEntry(te)
	if want := "tables: table session_v4 (id 0x2000601): field low (id 1): value of 33 bits, field has 32: wrong width"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = PortEntry{Key: PortKey{VLAN: 4096}}.ToProto()
	if want := "tables: table port (id 0x2000101): field vlan (id 2): value of 13 bits, field has 12: wrong width"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = PortConfig{Role: 9}.ToProto()
	if want := "tables: action port_config (id 0x1000101): field role (id 1): Role has no member 9: value out of range"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// What a match ignores does not reach the wire, and an entry is the same with
// or without it.
func TestEncodingIgnoresWhatDoesNotMatter(t *testing.T) {
	for _, tc := range []struct {
		name        string
		given, want Entry
	}{
		{"IPv4 host bits", EgressPortV4Entry{Key: EgressPortV4Key{Dst: LPM[uint32]{0x0a0102ff, 25}}},
			EgressPortV4Entry{Key: EgressPortV4Key{Dst: LPM[uint32]{0x0a010280, 25}}}},
		{"IPv4 /0", EgressPortV4Entry{Key: EgressPortV4Key{Dst: LPM[uint32]{0x0a0102ff, 0}}}, EgressPortV4Entry{}},
		{"IPv6 host bits", EgressPortV6Entry{Key: EgressPortV6Key{Dst: LPM[[16]byte]{[16]byte{0x20, 1, 0xff, 9}, 17}}},
			EgressPortV6Entry{Key: EgressPortV6Key{Dst: LPM[[16]byte]{[16]byte{0x20, 1, 0x80}, 17}}}},
		{"ternary", PolicyV4Entry{Priority: 1, Key: PolicyV4Key{Src: Ternary[uint32]{0xffffffff, 0xff000000}}},
			PolicyV4Entry{Priority: 1, Key: PolicyV4Key{Src: Ternary[uint32]{0xff000000, 0xff000000}}}},
		{"IPv6 ternary", PolicyV6Entry{Priority: 1, Key: PolicyV6Key{Src: Ternary[[16]byte]{[16]byte{1, 2}, [16]byte{1}}}},
			PolicyV6Entry{Priority: 1, Key: PolicyV6Key{Src: Ternary[[16]byte]{[16]byte{1}, [16]byte{1}}}}},
		{"all ports", PolicyV4Entry{Priority: 1, Key: PolicyV4Key{DstPort: Between[uint16](0, 0xffff)}}, PolicyV4Entry{Priority: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			te, err := tc.given.ToProto()
			if err != nil {
				t.Fatal(err)
			}
			if got := decode(t, te); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
			if tc.given.Identity() != tc.want.Identity() {
				t.Errorf("identity %+v, want %+v", tc.given.Identity(), tc.want.Identity())
			}
		})
	}
	if (PolicyV4Entry{Priority: 1}).Identity() == (PolicyV6Entry{Priority: 1}).Identity() {
		t.Error("two tables, one identity")
	}
}

func TestInvalidEntryDoesNotEncode(t *testing.T) {
	for _, tc := range []struct {
		name string
		e    Entry
		want error
	}{
		{"action of the default entry", SessionV4Entry{Action: NoSessionV4{}}, ErrAction},
		{"default entry with a key", SessionV4Entry{Default: true, Key: session.Key}, ErrMatch},
		{"prefix too long", EgressPortV4Entry{Key: EgressPortV4Key{Dst: LPM[uint32]{0, 33}}}, ErrMatch},
		{"negative prefix", EgressPortV6Entry{Key: EgressPortV6Key{Dst: LPM[[16]byte]{PrefixLen: -1}}}, ErrMatch},
		{"range backwards", PolicyV4Entry{Priority: 1, Key: PolicyV4Key{DstPort: Between[uint16](2, 1)}}, ErrMatch},
		{"no priority", PolicyV4Entry{}, ErrPriority},
		{"idle timeout", SessionV4Entry{IdleTimeout: -1}, ErrValue},
		{"role", PortEntry{Action: PortConfig{Role: 77}}, ErrValue},
		{"one-shot weight", EgressPortV4Entry{Action: NextHopsOneShot{{Action: NextHop{}}}}, ErrValue},
		{"one-shot action", EgressPortV4Entry{Action: NextHopsOneShot{{Weight: 1}}}, ErrMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.e.ToProto(); !errors.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

// Keys are secret: an error never quotes a value.
func TestErrorsKeepSecrets(t *testing.T) {
	a, err := SiphashKey{State: KeyStateAccepted, K0: 0x0123456789abcdef}.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	a.Params[2].Value = append([]byte{0xff}, a.Params[2].Value...)
	te := &p4v1.TableEntry{TableId: IssuerKeyTableID, IsDefaultAction: false,
		Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: a}}}
	e, err := IssuerKeyEntry{Key: IssuerKeyKey{Suite: SuiteSiphash}}.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	te.Match = e.Match
	_, err = DecodeEntry(te)
	if !errors.Is(err, ErrWidth) || strings.Contains(strings.ToLower(err.Error()), "89abcdef") {
		t.Error(err)
	}
}

func TestPacketHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := PacketIn{
			Reason:      rapid.SampledFrom(ReasonValues()).Draw(t, "reason"),
			Role:        rapid.SampledFrom(RoleValues()).Draw(t, "role"),
			IngressPort: rapid.Uint16().Draw(t, "ingress port"),
			Zone:        rapid.Uint16().Draw(t, "zone"),
			EgressPort:  rapid.Uint16().Draw(t, "egress port"),
			EgressZone:  rapid.Uint16().Draw(t, "egress zone"),
		}
		p, err := in.ToProto([]byte("packet"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodePacketIn(p); err != nil || got != in || string(p.GetPayload()) != "packet" {
			t.Fatalf("%+v, %v, want %+v", got, err, in)
		}
		out := PacketOut{
			Mode:        rapid.SampledFrom(PacketOutModeValues()).Draw(t, "mode"),
			EgressPort:  in.EgressPort,
			IngressPort: in.IngressPort,
		}
		po, err := out.ToProto(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodePacketOut(po); err != nil || got != out {
			t.Fatalf("%+v, %v, want %+v", got, err, out)
		}
	})
}

func TestMalformedPacketHeaderIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(m *p4v1.PacketIn)
		want   error
	}{
		{"none", func(m *p4v1.PacketIn) { m.Metadata = nil }, ErrMissing},
		{"one missing", func(m *p4v1.PacketIn) { m.Metadata = m.Metadata[1:] }, ErrMissing},
		{"unknown id", func(m *p4v1.PacketIn) { m.Metadata[0].MetadataId = 99 }, ErrUnknownID},
		{"id 0", func(m *p4v1.PacketIn) { m.Metadata[0].MetadataId = 0 }, ErrUnknownID},
		{"twice", func(m *p4v1.PacketIn) { m.Metadata[1].MetadataId = 1 }, ErrDuplicate},
		{"empty", func(m *p4v1.PacketIn) { m.Metadata[2].Value = nil }, ErrWidth},
		{"too wide", func(m *p4v1.PacketIn) { m.Metadata[2].Value = []byte{1, 0, 0} }, ErrWidth},
		{"no such reason", func(m *p4v1.PacketIn) { m.Metadata[0].Value = []byte{255} }, ErrValue},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := PacketIn{Reason: ReasonNewSession, IngressPort: 4}.ToProto(nil)
			if err != nil {
				t.Fatal(err)
			}
			tc.change(m)
			if _, err := DecodePacketIn(m); !errors.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestMembersAndGroups(t *testing.T) {
	info := loadP4Info(t)
	rapid.Check(t, func(rt *rapid.T) {
		d := drawer{rt, info}
		pm := &p4v1.ActionProfileMember{
			ActionProfileId: NextHopsProfileID,
			MemberId:        rapid.Uint32().Draw(rt, "member"),
			Action:          d.action(rapid.SampledFrom(profileNextHops.Actions).Draw(rt, "action").ID),
		}
		m, err := DecodeNextHopsMember(pm)
		if err != nil {
			rt.Fatal(err)
		}
		u, err := m.Update(p4v1.Update_INSERT)
		if err != nil || !proto.Equal(u.GetEntity().GetActionProfileMember(), pm) {
			rt.Fatalf("%v, %v, want %v", u, err, pm)
		}
		g := NextHopsGroup{GroupID: pm.MemberId, MaxSize: rapid.Int32Range(0, 64).Draw(rt, "max")}
		for range rapid.IntRange(0, 3).Draw(rt, "members") {
			g.Members = append(g.Members, GroupMember{
				MemberID:  rapid.Uint32().Draw(rt, "id"),
				Weight:    rapid.Int32Range(1, 9).Draw(rt, "weight"),
				WatchPort: Optional[uint32]{Set: rapid.Bool().Draw(rt, "watch")},
			})
		}
		u, err = g.Update(p4v1.Update_INSERT)
		if err != nil {
			rt.Fatal(err)
		}
		back, err := DecodeNextHopsGroup(u.GetEntity().GetActionProfileGroup())
		if err != nil || !reflect.DeepEqual(back, g) {
			rt.Fatalf("%+v, %v, want %+v", back, err, g)
		}
	})
}

func TestMalformedProfileIsRefused(t *testing.T) {
	hop, err := NextHop{Port: 1}.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	member := func(m *p4v1.ActionProfileMember) error { _, err := DecodeNextHopsMember(m); return err }
	group := func(g *p4v1.ActionProfileGroup) error { _, err := DecodeNextHopsGroup(g); return err }
	set := func(a *p4v1.ActionProfileAction) error {
		te, err := EgressPortV4Entry{}.ToProto()
		if err != nil {
			return err
		}
		te.Action = &p4v1.TableAction{Type: &p4v1.TableAction_ActionProfileActionSet{ActionProfileActionSet: &p4v1.ActionProfileActionSet{ActionProfileActions: []*p4v1.ActionProfileAction{a}}}}
		_, err = DecodeEntry(te)
		return err
	}
	direct, err := EgressPortV4Entry{}.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	direct.Action = &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: hop}}
	_, directErr := DecodeEntry(direct)
	wide := []byte{1, 0, 0, 0, 0}
	for _, tc := range []struct {
		name string
		got  error
		want error
	}{
		{"member of no profile", member(&p4v1.ActionProfileMember{Action: hop}), ErrUnknownID},
		{"member without action", member(&p4v1.ActionProfileMember{ActionProfileId: NextHopsProfileID}), ErrAction},
		{"member with another action", member(&p4v1.ActionProfileMember{ActionProfileId: NextHopsProfileID, Action: &p4v1.Action{ActionId: AdmittedV4ActionID}}), ErrAction},
		{"group of no profile", group(&p4v1.ActionProfileGroup{}), ErrUnknownID},
		{"group member of weight 0", group(&p4v1.ActionProfileGroup{ActionProfileId: NextHopsProfileID, Members: []*p4v1.ActionProfileGroup_Member{{MemberId: 1}}}), ErrValue},
		{"group member with wide port", group(&p4v1.ActionProfileGroup{ActionProfileId: NextHopsProfileID, Members: []*p4v1.ActionProfileGroup_Member{
			{MemberId: 1, Weight: 1, WatchKind: &p4v1.ActionProfileGroup_Member_WatchPort{WatchPort: wide}}}}), ErrWidth},
		{"one-shot of weight 0", set(&p4v1.ActionProfileAction{Action: hop}), ErrValue},
		{"one-shot with wide port", set(&p4v1.ActionProfileAction{Action: hop, Weight: 1, WatchKind: &p4v1.ActionProfileAction_WatchPort{WatchPort: wide}}), ErrWidth},
		{"one-shot without action", set(&p4v1.ActionProfileAction{Weight: 1}), ErrAction},
		{"direct action", directErr, ErrAction},
	} {
		if !errors.Is(tc.got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, tc.got, tc.want)
		}
	}
}

func TestCounterCells(t *testing.T) {
	want := DropsCounter{int64(ReasonTagForged), CounterData{Bytes: 640, Packets: 10}}
	p, err := want.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeDropsCounter(p); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := DecodePuntsCounter(p); !errors.Is(err, ErrUnknownID) {
		t.Errorf("cell of another counter: %v", err)
	}
	p.Index = nil
	if _, err := DecodeDropsCounter(p); !errors.Is(err, ErrMissing) {
		t.Errorf("no index: %v", err)
	}
	for _, i := range []int64{-1, DropsCounterSize} {
		if _, err := (DropsCounter{Index: i}).ToProto(); !errors.Is(err, ErrValue) {
			t.Errorf("encode index %d: %v", i, err)
		}
		if _, err := DecodeDropsCounter(&p4v1.CounterEntry{CounterId: DropsCounterID, Index: &p4v1.Index{Index: i}}); !errors.Is(err, ErrValue) {
			t.Errorf("decode index %d: %v", i, err)
		}
	}
}

func TestDirectCells(t *testing.T) {
	e := session
	e.Counter = Some(CounterData{Bytes: 1, Packets: 2})
	c, err := e.DirectCounter()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeSessionV4Counter(c); err != nil || got.Key != e.Key || got.Counter != e.Counter || got.Action != nil {
		t.Errorf("%+v, %v, want %+v", got, err, e)
	}
	p := PuntEntry{
		Key:   PuntKey{Reason: ReasonNewSession, Role: RoleEdge, Zone: 3},
		Meter: Some(MeterConfig{CIR: 1, CBurst: 2, PIR: 3, PBurst: 4}),
	}
	m, err := p.DirectMeter()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodePuntMeter(m); err != nil || got != p {
		t.Errorf("%+v, %v, want %+v", got, err, p)
	}
}

func TestEnumNames(t *testing.T) {
	for _, r := range ReasonValues() {
		text, err := r.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Reason
		if err := back.UnmarshalText(text); err != nil || back != r {
			t.Errorf("%v: %v, %v", r, back, err)
		}
	}
	if got := ReasonTagForged.String(); got != "tag_forged" {
		t.Error(got)
	}
	for _, name := range []string{"", "TAG_FORGED", "tag forged", "0"} {
		if r, err := ParseReason(name); !errors.Is(err, ErrUnknownName) || r != 0 {
			t.Errorf("%q: %v, %v", name, r, err)
		}
	}
	if _, err := Role(77).MarshalText(); !errors.Is(err, ErrValue) {
		t.Error(err)
	}
	if got := Role(77).String(); got != "role(77)" {
		t.Error(got)
	}
}

// A target decodes and encodes sessions without allocating.
func TestAllocations(t *testing.T) {
	var (
		ms  [6]Match
		vs  [2][]byte
		buf [32]byte
		bad error
	)
	if n := testing.AllocsPerRun(100, func() {
		m, rest, err := session.Key.AppendMatch(ms[:0], buf[:0])
		if err != nil {
			bad = err
		}
		p, _, err := AdmittedV4{1, 2}.AppendParams(vs[:0], rest)
		if err != nil {
			bad = err
		}
		var key SessionV4Key
		if err := key.DecodeMatch(m); err != nil || key != session.Key {
			bad = errors.Join(err, errors.New("key changed"))
		}
		var a AdmittedV4
		if err := a.DecodeParams(p); err != nil || a != session.Action {
			bad = errors.Join(err, errors.New("action changed"))
		}
	}); n != 0 || bad != nil {
		t.Errorf("%v allocations, %v", n, bad)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := session.Update(p4v1.Update_INSERT); err != nil {
			bad = err
		}
	}); n > 3 || bad != nil {
		t.Errorf("update: %v allocations, %v", n, bad)
	}
}

func FuzzDecodePacketIn(f *testing.F) {
	m, err := PacketIn{Reason: ReasonNewSession}.ToProto([]byte("packet"))
	if err != nil {
		f.Fatal(err)
	}
	seed, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(p4v1.PacketIn)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		h, err := DecodePacketIn(m)
		if err != nil {
			return
		}
		again, err := h.ToProto(nil)
		if err != nil {
			t.Fatalf("%+v does not encode: %v", h, err)
		}
		if back, err := DecodePacketIn(again); err != nil || back != h {
			t.Fatalf("%+v, %v, want %+v", back, err, h)
		}
	})
}

func BenchmarkSessionUpdate(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := session.Update(p4v1.Update_INSERT); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSessionDecode(b *testing.B) {
	te, err := session.ToProto()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeSessionV4(te); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSessionDecodeMatch(b *testing.B) {
	m, _, err := session.Key.AppendMatch(nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var key SessionV4Key
	for b.Loop() {
		if err := key.DecodeMatch(m); err != nil {
			b.Fatal(err)
		}
	}
}
