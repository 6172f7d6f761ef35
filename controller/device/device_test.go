package device_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"countersign/controller/device"
	"countersign/controller/device/devicetest"
)

const (
	route    = 0x02000001 // static, longest match
	acl      = 0x02000002 // static, ternary, with a direct meter
	session  = 0x02000003 // dynamic, exact
	fixed    = 0x02000004 // constant
	nextHops = 0x11000001 // action profile
	limits   = 0x14000001 // meter
	packets  = 0x12000001 // counter

	reconcileAndCommit = p4v1.SetForwardingPipelineConfigRequest_RECONCILE_AND_COMMIT
	verifyAndCommit    = p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT
)

func info() *p4configv1.P4Info {
	table := func(id uint32, name string) *p4configv1.Table {
		return &p4configv1.Table{
			Preamble:    &p4configv1.Preamble{Id: id, Name: "ingress." + name, Alias: name},
			MatchFields: []*p4configv1.MatchField{{Id: 1, Name: "a", Bitwidth: 32}, {Id: 2, Name: "b", Bitwidth: 32}},
			Size:        1 << 20,
		}
	}
	i := &p4configv1.P4Info{
		Tables: []*p4configv1.Table{table(route, "route"), table(acl, "acl"), table(session, "session"), table(fixed, "fixed")},
		ActionProfiles: []*p4configv1.ActionProfile{
			{Preamble: &p4configv1.Preamble{Id: nextHops, Name: "ingress.next_hops", Alias: "next_hops"}},
		},
		Meters:       []*p4configv1.Meter{{Preamble: &p4configv1.Preamble{Id: limits, Alias: "limits"}, Size: 16}},
		DirectMeters: []*p4configv1.DirectMeter{{Preamble: &p4configv1.Preamble{Id: 0x15000001}, DirectTableId: acl}},
		Counters:     []*p4configv1.Counter{{Preamble: &p4configv1.Preamble{Id: packets, Alias: "packets"}, Size: 16}},
	}
	i.Tables[1].DirectResourceIds = []uint32{0x15000001}
	i.Tables[3].IsConstTable = true
	return i
}

func bytesOf(n uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, n)
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

func exact(field, v uint32) *p4v1.FieldMatch {
	return &p4v1.FieldMatch{FieldId: field, FieldMatchType: &p4v1.FieldMatch_Exact_{Exact: &p4v1.FieldMatch_Exact{Value: bytesOf(v)}}}
}

func lpm(v uint32, n int32) *p4v1.FieldMatch {
	return &p4v1.FieldMatch{FieldId: 1, FieldMatchType: &p4v1.FieldMatch_Lpm{Lpm: &p4v1.FieldMatch_LPM{Value: bytesOf(v), PrefixLen: n}}}
}

func ternary(v, mask uint32) *p4v1.FieldMatch {
	return &p4v1.FieldMatch{FieldId: 1, FieldMatchType: &p4v1.FieldMatch_Ternary_{Ternary: &p4v1.FieldMatch_Ternary{Value: bytesOf(v), Mask: bytesOf(mask)}}}
}

func action(params ...uint32) *p4v1.Action {
	a := &p4v1.Action{ActionId: 0x01000001}
	for i, p := range params {
		a.Params = append(a.Params, &p4v1.Action_Param{ParamId: uint32(i + 1), Value: bytesOf(p)})
	}
	return a
}

func entry(table uint32, a *p4v1.Action, matches ...*p4v1.FieldMatch) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{
		TableId: table, Match: matches, Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: a}},
	}}}
}

func routeTo(prefix, port uint32) *p4v1.Entity { return entry(route, action(port), lpm(prefix<<8, 24)) }

func rule(priority int32, v uint32, cir int64) *p4v1.Entity {
	e := entry(acl, action(1), ternary(v, 0xff))
	e.GetTableEntry().Priority = priority
	if cir > 0 {
		e.GetTableEntry().MeterConfig = &p4v1.MeterConfig{Cir: cir, Cburst: 1, Pir: cir, Pburst: 1}
	}
	return e
}

func sessionOf(n uint32) *p4v1.Entity { return entry(session, action(7), exact(1, n)) }

func member(id, port uint32) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_ActionProfileMember{ActionProfileMember: &p4v1.ActionProfileMember{
		ActionProfileId: nextHops, MemberId: id, Action: action(port),
	}}}
}

func group(id uint32, members ...uint32) *p4v1.Entity {
	g := &p4v1.ActionProfileGroup{ActionProfileId: nextHops, GroupId: id}
	for _, m := range members {
		g.Members = append(g.Members, &p4v1.ActionProfileGroup_Member{MemberId: m, Weight: 1})
	}
	return &p4v1.Entity{Entity: &p4v1.Entity_ActionProfileGroup{ActionProfileGroup: g}}
}

func clone(id uint32, ports ...uint32) *p4v1.Entity {
	c := &p4v1.CloneSessionEntry{SessionId: id}
	for _, p := range ports {
		c.Replicas = append(c.Replicas, &p4v1.Replica{EgressPort: p, Instance: 1})
	}
	return &p4v1.Entity{Entity: &p4v1.Entity_PacketReplicationEngineEntry{PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{
		Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{CloneSessionEntry: c},
	}}}
}

func meter(i, cir int64) *p4v1.Entity {
	m := &p4v1.MeterEntry{MeterId: limits, Index: &p4v1.Index{Index: i}}
	if cir > 0 {
		m.Config = &p4v1.MeterConfig{Cir: cir, Cburst: 1, Pir: cir, Pburst: 1}
	}
	return &p4v1.Entity{Entity: &p4v1.Entity_MeterEntry{MeterEntry: m}}
}

func defaultOf(table uint32, a *p4v1.Action) *p4v1.Entity {
	e := entry(table, a)
	e.GetTableEntry().IsDefaultAction = true
	return e
}

func insert(entities ...*p4v1.Entity) []*p4v1.Update { return updates(p4v1.Update_INSERT, entities...) }

func updates(typ p4v1.Update_Type, entities ...*p4v1.Entity) []*p4v1.Update {
	var u []*p4v1.Update
	for _, e := range entities {
		u = append(u, &p4v1.Update{Type: typ, Entity: e})
	}
	return u
}

func failure(c codes.Code) *p4v1.Error {
	return &p4v1.Error{CanonicalCode: int32(c), Message: "scripted"}
}

func config(s *devicetest.Server) device.Config {
	return device.Config{
		Target: s.Target, DeviceID: devicetest.DeviceID,
		Pipeline: device.Pipeline{Info: info(), DeviceConfig: []byte("config"), Cookie: 42},
		Dynamic:  []uint32{session},
		Backoff:  device.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
		Takeover: time.Millisecond,
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// running is a session under test.
type running struct {
	*device.Session
	t    *testing.T
	stop func() // ends Run and checks that it leaves nothing behind
}

// start runs a session; desired is what it shall have, nil for no set at all.
func start(t *testing.T, cfg device.Config, desired ...*p4v1.Entity) *running {
	t.Helper()
	s, err := device.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if desired != nil {
		if _, err := s.SetDesired(desired); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r := &running{s, t, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})}
	t.Cleanup(r.stop)
	return r
}

func (r *running) await(what string, ok func(device.State) bool) device.State {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	st, err := r.Wait(ctx, ok)
	if err != nil {
		r.t.Fatalf("waiting for %s: %v; state %+v", what, err, st)
	}
	return st
}

func (r *running) synced(generation uint64) device.State {
	r.t.Helper()
	return r.await(fmt.Sprintf("generation %d synced", generation), func(s device.State) bool {
		return s.Phase == device.Synced && s.Generation >= generation
	})
}

func (r *running) setDesired(entities ...*p4v1.Entity) {
	r.t.Helper()
	rev, err := r.SetDesired(entities)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.Synced(ctx, rev); err != nil {
		r.t.Fatalf("%v; state %+v", err, r.State())
	}
}

func server(t *testing.T, set ...func(*devicetest.Server)) *devicetest.Server {
	t.Helper()
	s := devicetest.New(t)
	for _, f := range set {
		f(s)
	}
	s.Start(t)
	return s
}

// summary counts updates by type and object, such as "INSERT route".
func summary(writes [][]*p4v1.Update) map[string]int {
	names := map[uint32]string{route: "route", acl: "acl", session: "session"}
	n := map[string]int{}
	for _, w := range writes {
		for _, u := range w {
			e := u.GetEntity()
			name := strings.TrimPrefix(fmt.Sprintf("%T", e.GetEntity()), "*v1.Entity_")
			if t := e.GetTableEntry(); t != nil {
				name = names[t.GetTableId()]
			}
			n[u.GetType().String()+" "+name]++
		}
	}
	return n
}

func checkWrites(t *testing.T, s *devicetest.Server, want map[string]int) {
	t.Helper()
	if got := summary(s.Writes()); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("wrote %v, want %v", got, want)
	}
}

func checkEntities(t *testing.T, s *devicetest.Server, want ...*p4v1.Entity) {
	t.Helper()
	got := s.Entities()
	if len(got) != len(want) {
		t.Errorf("device has %d entities, want %d", len(got), len(want))
	}
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g *p4v1.Entity) bool { return proto.Equal(g, w) }) {
			t.Errorf("device lacks %v", w)
		}
	}
}

func TestFirstSync(t *testing.T) {
	s := server(t)
	all := []*p4v1.Entity{
		group(1, 1, 2), member(1, 10), member(2, 20), routeTo(1, 1), rule(5, 9, 100), clone(3, 510), meter(2, 50), defaultOf(acl, action(3)),
	}
	r := start(t, config(s), all...)
	st := r.synced(1)
	if !st.Pushed || st.Revision != 1 || st.Err != nil {
		t.Errorf("state %+v", st)
	}
	if p := s.Pushes(); !slices.Equal(p, []p4v1.SetForwardingPipelineConfigRequest_Action{verifyAndCommit}) {
		t.Errorf("pushes %v", p)
	}
	checkEntities(t, s, all...)
	// Members stand before the groups that refer to them.
	for i, w := range s.Writes() {
		for _, u := range w {
			if u.GetEntity().GetActionProfileGroup() != nil && summary([][]*p4v1.Update{w})["INSERT ActionProfileMember"] > 0 {
				t.Errorf("write %d holds a group and its members", i)
			}
		}
	}
}

func TestMinimalDiff(t *testing.T) {
	base := func() []*p4v1.Entity {
		return []*p4v1.Entity{
			routeTo(1, 1), routeTo(2, 2), rule(5, 9, 100), clone(3, 510), meter(2, 50), defaultOf(acl, action(3)), member(1, 10), group(1, 1),
		}
	}
	for _, c := range []struct {
		name    string
		desired []*p4v1.Entity
		want    map[string]int
	}{
		{"same", base(), map[string]int{}},
		{"one more", append(base(), routeTo(3, 3)), map[string]int{"INSERT route": 1}},
		{"action changed", append(base()[1:], routeTo(1, 9)), map[string]int{"MODIFY route": 1}},
		{"direct meter changed", append(slices.Delete(base(), 2, 3), rule(5, 9, 200)), map[string]int{"MODIFY acl": 1}},
		{"priority changed", append(slices.Delete(base(), 2, 3), rule(6, 9, 100)), map[string]int{"INSERT acl": 1, "DELETE acl": 1}},
		{"clone session changed", append(slices.Delete(base(), 3, 4), clone(3, 511)), map[string]int{"MODIFY PacketReplicationEngineEntry": 1}},
		{"meter gone", slices.Delete(base(), 4, 5), map[string]int{"MODIFY MeterEntry": 1}},
		{"default gone", slices.Delete(base(), 5, 6), map[string]int{"MODIFY acl": 1}},
		{"group gone", base()[:7], map[string]int{"DELETE ActionProfileGroup": 1}},
		{"all gone", []*p4v1.Entity{}, map[string]int{
			"DELETE route": 2, "DELETE acl": 1, "DELETE PacketReplicationEngineEntry": 1, "MODIFY MeterEntry": 1, "MODIFY acl": 1,
			"DELETE ActionProfileGroup": 1, "DELETE ActionProfileMember": 1,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := server(t)
			r := start(t, config(s), base()...)
			r.synced(1)
			s.Writes()
			r.setDesired(c.desired...)
			checkWrites(t, s, c.want)

			// What is there is what another controller finds.
			r.stop()
			start(t, config(s), c.desired...).synced(1)
			checkWrites(t, s, map[string]int{})
		})
	}
}

func TestServersFreedomOfForm(t *testing.T) {
	desired := entry(acl, action(1, 2), ternary(9, 0xff), exact(2, 4))
	reported := proto.CloneOf(desired)
	te := reported.GetTableEntry()
	slices.Reverse(te.Match)
	slices.Reverse(te.GetAction().GetAction().Params)
	te.Match[1].GetTernary().Value = []byte{0, 0, 0, 9}
	te.Match[0].GetExact().Value = []byte{0, 4}
	te.GetAction().GetAction().Params[0].Value = []byte{0, 0, 2}
	te.CounterData = &p4v1.CounterData{PacketCount: 3}
	zeroMask := proto.CloneOf(te.Match[1])
	zeroMask.GetTernary().Mask, zeroMask.FieldId = []byte{0, 0}, 3
	te.Match = append(te.Match, zeroMask)

	s := server(t, func(s *devicetest.Server) {
		s.SetCookie(42)
		s.Put(reported)
	})
	start(t, config(s), desired).synced(1)
	checkWrites(t, s, map[string]int{})
}

func TestServerRestart(t *testing.T) {
	for _, c := range []struct {
		name   string
		during func(*devicetest.Server)
		pushes int
		pushed bool
		want   map[string]int
	}{
		{"entries kept", func(s *devicetest.Server) { s.Stop() }, 1, false, map[string]int{}},
		{"entries lost", func(s *devicetest.Server) { s.Stop(); s.Wipe(false) }, 1, false, map[string]int{"INSERT route": 2}},
		{"pipeline and entries lost", func(s *devicetest.Server) { s.Stop(); s.Wipe(true) }, 2, true, map[string]int{"INSERT route": 2}},
		{"changed behind our back", func(s *devicetest.Server) { s.Stop(); s.Put(routeTo(2, 99), routeTo(3, 3)) }, 1, false,
			map[string]int{"MODIFY route": 1, "DELETE route": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := server(t)
			r := start(t, config(s), routeTo(1, 1), routeTo(2, 2))
			r.synced(1)
			s.Writes()
			c.during(s)
			r.await("disconnected", func(st device.State) bool { return st.Phase == device.Disconnected })
			if err := r.Write(t.Context(), insert(sessionOf(1))); !errors.Is(err, device.ErrNotPrimary) {
				t.Errorf("Write while disconnected: %v", err)
			}
			s.Start(t)
			if st := r.synced(2); st.Pushed != c.pushed {
				t.Errorf("pushed %v, want %v", st.Pushed, c.pushed)
			}
			if n := len(s.Pushes()); n != c.pushes {
				t.Errorf("%d pushes, want %d", n, c.pushes)
			}
			checkWrites(t, s, c.want)
			checkEntities(t, s, routeTo(1, 1), routeTo(2, 2))
		})
	}
}

func TestStreamDropped(t *testing.T) {
	s := server(t)
	r := start(t, config(s), routeTo(1, 1))
	r.synced(1)
	s.DropStreams()
	r.synced(2)
}

func TestPipeline(t *testing.T) {
	unsupported := func(req *p4v1.SetForwardingPipelineConfigRequest) error {
		if req.GetAction() == reconcileAndCommit {
			return status.Error(codes.Unimplemented, "no")
		}
		return nil
	}
	refused := 3
	for _, c := range []struct {
		name      string
		reconcile bool
		setup     func(*devicetest.Server)
		want      []p4v1.SetForwardingPipelineConfigRequest_Action
		keeps     bool // the session that was there
	}{
		{"same cookie", true, func(s *devicetest.Server) { s.SetCookie(42) }, nil, true},
		{"other cookie", false, func(s *devicetest.Server) { s.SetCookie(41) }, []p4v1.SetForwardingPipelineConfigRequest_Action{verifyAndCommit}, false},
		{"other cookie, can reconcile", true, func(s *devicetest.Server) { s.SetCookie(41) }, []p4v1.SetForwardingPipelineConfigRequest_Action{reconcileAndCommit}, true},
		{"other cookie, cannot reconcile", true, func(s *devicetest.Server) {
			s.SetCookie(41)
			s.FailPipeline = unsupported
		}, []p4v1.SetForwardingPipelineConfigRequest_Action{verifyAndCommit}, false},
		{"takes the cookie, refuses the pipeline", false, func(s *devicetest.Server) {
			halfway := true
			s.FailPipeline = func(*p4v1.SetForwardingPipelineConfigRequest) error {
				if halfway {
					halfway = false
					return status.Error(codes.Unknown, "halfway")
				}
				return nil
			}
			s.SetCookie(41)
			s.CookieFirst = true
		}, []p4v1.SetForwardingPipelineConfigRequest_Action{verifyAndCommit}, false},
		{"refused at first", false, func(s *devicetest.Server) {
			s.FailPipeline = func(*p4v1.SetForwardingPipelineConfigRequest) error {
				if refused--; refused >= 0 {
					return status.Error(codes.InvalidArgument, "not yet")
				}
				return nil
			}
		}, []p4v1.SetForwardingPipelineConfigRequest_Action{verifyAndCommit}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := server(t, func(s *devicetest.Server) {
				s.Put(sessionOf(1), clone(7, 1))
				c.setup(s)
			})
			cfg := config(s)
			cfg.Reconcile = c.reconcile
			r := start(t, cfg, clone(7, 2))
			if st := r.synced(1); st.Pushed != (len(c.want) > 0) {
				t.Errorf("pushed %v", st.Pushed)
			}
			if got := s.Pushes(); !slices.Equal(got, c.want) {
				t.Errorf("pushes %v, want %v", got, c.want)
			}
			want := []*p4v1.Entity{clone(7, 2)}
			if c.keeps {
				want = append(want, sessionOf(1))
			}
			checkEntities(t, s, want...)
			if len(c.want) > 0 && summary(s.Writes())["MODIFY PacketReplicationEngineEntry"] != 0 {
				t.Error("clone session outlived its pipeline")
			}
		})
	}
}

func TestAdopt(t *testing.T) {
	s := server(t, func(s *devicetest.Server) {
		s.SetCookie(42)
		s.Put(sessionOf(1), sessionOf(2), routeTo(1, 1))
	})
	cfg := config(s)
	var r *running
	ready, calls := make(chan struct{}), 0
	cfg.Adopt = func(ctx context.Context, found iter.Seq2[*p4v1.TableEntry, error]) error {
		<-ready
		if calls++; calls == 1 {
			return errors.New("not ready")
		}
		var stale []*p4v1.Entity
		for e, err := range found {
			if err != nil {
				return err
			}
			if proto.Equal(e, sessionOf(2).GetTableEntry()) {
				stale = append(stale, &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: e}})
			}
		}
		return r.Write(ctx, append(updates(p4v1.Update_DELETE, stale...), insert(sessionOf(3))...))
	}
	r = start(t, cfg, routeTo(1, 1))
	close(ready)
	r.synced(1)
	if calls != 2 {
		t.Errorf("Adopt was called %d times", calls)
	}
	checkEntities(t, s, routeTo(1, 1), sessionOf(1), sessionOf(3))
	r.setDesired(routeTo(2, 2))
	if calls != 2 {
		t.Error("Adopt was called again in the same generation")
	}
}

func TestNothingIsTouchedBeforeADesiredSet(t *testing.T) {
	s := server(t, func(s *devicetest.Server) {
		s.SetCookie(42)
		s.Put(routeTo(1, 1))
	})
	r := start(t, config(s))
	r.await("primary", func(st device.State) bool { return st.Phase == device.Primary })
	for r.Write(t.Context(), insert(sessionOf(1))) != nil { // until the pipeline is confirmed
		runtime.Gosched()
	}
	checkEntities(t, s, routeTo(1, 1), sessionOf(1))
	r.setDesired(routeTo(2, 2))
	checkEntities(t, s, routeTo(2, 2), sessionOf(1))
}

func TestStaticFailure(t *testing.T) {
	var mu sync.Mutex
	bad := true
	s := server(t, func(s *devicetest.Server) {
		s.FailUpdate = func(u *p4v1.Update) *p4v1.Error {
			mu.Lock()
			defer mu.Unlock()
			if bad && proto.Equal(u.GetEntity(), routeTo(2, 2)) {
				return failure(codes.InvalidArgument)
			}
			return nil
		}
	})
	r := start(t, config(s), routeTo(1, 1), routeTo(2, 2), routeTo(3, 3))
	st := r.await("failure", func(st device.State) bool { return st.Err != nil })
	var u *device.UpdateError
	if !errors.As(st.Err, &u) || u.Code != codes.InvalidArgument || u.Update != "INSERT route{a=0200/24}" {
		t.Errorf("state's error: %v", st.Err)
	}
	checkEntities(t, s, routeTo(1, 1), routeTo(3, 3))
	if err := r.Write(t.Context(), insert(sessionOf(1))); err != nil {
		t.Errorf("sessions must not wait for a broken static entry: %v", err)
	}
	mu.Lock()
	bad = false
	mu.Unlock()
	r.synced(1)
	checkEntities(t, s, routeTo(1, 1), routeTo(3, 3), sessionOf(1), routeTo(2, 2))
}

func TestFullTableMakesRoomFirst(t *testing.T) {
	// The server holds two routes.
	have := 0
	s := server(t, func(s *devicetest.Server) {
		s.FailUpdate = func(u *p4v1.Update) *p4v1.Error {
			switch {
			case u.GetType() == p4v1.Update_INSERT && have == 2:
				return failure(codes.ResourceExhausted)
			case u.GetType() == p4v1.Update_INSERT:
				have++
			case u.GetType() == p4v1.Update_DELETE:
				have--
			}
			return nil
		}
	})
	r := start(t, config(s), routeTo(1, 1), routeTo(2, 2))
	r.synced(1)
	r.setDesired(routeTo(3, 3), routeTo(4, 4))
	checkEntities(t, s, routeTo(3, 3), routeTo(4, 4))
}

func TestSetDesiredRefuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		entities []*p4v1.Entity
		want     string
	}{
		{"unknown table", []*p4v1.Entity{entry(99, action())}, "id 0x63 is not in the P4Info"},
		{"not a table", []*p4v1.Entity{entry(nextHops, action())}, "is not a table"},
		{"constant table", []*p4v1.Entity{entry(fixed, action(), exact(1, 2))}, "fixed{a=02} is of a constant table"},
		{"dynamic table", []*p4v1.Entity{sessionOf(1)}, "session{a=01} is dynamic"},
		{"unknown field", []*p4v1.Entity{entry(route, action(), exact(9, 2))}, "table route has no match field 9"},
		{"twice", []*p4v1.Entity{routeTo(1, 1), routeTo(1, 2)}, "route{a=0100/24} stands twice"},
		{"counter", []*p4v1.Entity{device.Counter(packets)}, "does not hold"},
		{"nothing", []*p4v1.Entity{{}}, "does not hold"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := device.New(device.Config{Target: "unix:///nowhere", Pipeline: device.Pipeline{Info: info()}, Dynamic: []uint32{session}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.SetDesired(c.entities)
			if !errors.Is(err, device.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want ErrInvalid with %q", err, c.want)
			}
		})
	}
}

func TestMastership(t *testing.T) {
	for _, promote := range []bool{false, true} {
		t.Run(fmt.Sprintf("promote=%v", promote), func(t *testing.T) {
			s := server(t, func(s *devicetest.Server) { s.Promote = promote })
			reg := prometheus.NewRegistry()
			cfg := config(s)
			cfg.Metrics = device.NewMetrics(reg)
			cfg.Name, cfg.ElectionID = "a", device.ElectionID{Low: 5}
			a := start(t, cfg, routeTo(1, 1))
			a.synced(1)

			cfg.Name, cfg.ElectionID = "b", device.ElectionID{Low: 9}
			b := start(t, cfg, routeTo(1, 2))
			b.synced(1)
			st := a.await("backup", func(st device.State) bool { return st.Phase == device.Backup })
			if st.Highest != cfg.ElectionID {
				t.Errorf("highest %v, want %v", st.Highest, cfg.ElectionID)
			}
			if err := a.Write(t.Context(), insert(sessionOf(1))); !errors.Is(err, device.ErrNotPrimary) {
				t.Errorf("a backup's Write: %v", err)
			}
			if err := a.PacketOut(t.Context(), &p4v1.PacketOut{}); !errors.Is(err, device.ErrNotPrimary) {
				t.Errorf("a backup's PacketOut: %v", err)
			}
			for _, err := range a.Read(t.Context(), device.Table(route)) {
				if err != nil {
					t.Errorf("a backup's Read: %v", err)
				}
			}
			checkEntities(t, s, routeTo(1, 2))

			b.stop()
			a.synced(2)
			checkEntities(t, s, routeTo(1, 1))
			if n := testutil.CollectAndCount(reg, "countersign_p4runtime_mastership_changes_total"); n != 2 {
				t.Errorf("%d series of mastership changes", n)
			}

			// b is back with an id that may be below a's raised one.
			b = start(t, cfg, routeTo(1, 2))
			b.await("arbitrated", func(st device.State) bool { return st.Phase == device.Backup || st.Phase == device.Synced })
		})
	}
}

func TestNewestControllerWinsByDefault(t *testing.T) {
	s := server(t)
	a := start(t, config(s), routeTo(1, 1))
	a.synced(1)
	b := start(t, config(s), routeTo(1, 1))
	b.synced(1)
	a.await("backup", func(st device.State) bool { return st.Phase == device.Backup })
}

func TestElectionIDInUse(t *testing.T) {
	s := server(t)
	cfg := config(s)
	cfg.ElectionID = device.ElectionID{Low: 5}
	a := start(t, cfg, routeTo(1, 1))
	a.synced(1)
	b := start(t, cfg, routeTo(1, 1))
	st := b.await("refusal", func(st device.State) bool { return st.Err != nil })
	if status.Code(st.Err) != codes.InvalidArgument {
		t.Errorf("error %v", st.Err)
	}
	a.stop()
	b.synced(1)
}

func TestUnknownDevice(t *testing.T) {
	s := server(t)
	cfg := config(s)
	cfg.DeviceID = 77
	st := start(t, cfg).await("refusal", func(st device.State) bool { return st.Err != nil })
	if status.Code(st.Err) != codes.NotFound {
		t.Errorf("error %v", st.Err)
	}
}

func TestHungDevice(t *testing.T) {
	s := server(t, func(s *devicetest.Server) { s.Mute = true })
	cfg := config(s)
	cfg.Probe, cfg.RPCTimeout = time.Millisecond, 200*time.Millisecond
	r := start(t, cfg, routeTo(1, 1))
	st := r.await("disconnected", func(st device.State) bool { return st.Phase == device.Disconnected && st.Err != nil })
	if !strings.Contains(st.Err.Error(), "Capabilities") {
		t.Errorf("error %v", st.Err)
	}
}

func TestStop(t *testing.T) {
	s := server(t, func(s *devicetest.Server) { s.Hold = make(chan struct{}) })
	r := start(t, config(s), []*p4v1.Entity{}...)
	r.synced(1)
	wrote := make(chan error, 2)
	go func() { wrote <- r.Write(t.Context(), insert(sessionOf(1))) }()
	s.Hold <- struct{}{} // one Write is through, the next one is held
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	go func() { wrote <- r.Write(t.Context(), insert(sessionOf(2))) }()
	r.stop()
	if err := <-wrote; err == nil {
		t.Error("a held Write succeeded")
	}
	for _, open := range []func() bool{
		func() bool { _, ok := <-r.PacketIns(0); return ok },
		func() bool { _, ok := <-r.IdleTimeouts(); return ok },
	} {
		if open() {
			t.Error("channel is open after Run")
		}
	}
	if _, err := r.Wait(t.Context(), func(device.State) bool { return false }); !errors.Is(err, device.ErrClosed) {
		t.Errorf("Wait after Run: %v", err)
	}
	if err := r.Write(t.Context(), insert(sessionOf(3))); !errors.Is(err, device.ErrNotPrimary) {
		t.Errorf("Write after Run: %v", err)
	}
	if err := r.Run(t.Context()); err == nil {
		t.Error("Run ran twice")
	}
	if g := leaked(); g != "" {
		t.Errorf("goroutine left:\n%s", g)
	}
}

// leaked returns the stack of a goroutine of the package under test, if any.
func leaked() string {
	buf := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "controller/device.(*") {
			return g
		}
	}
	return ""
}

func TestMain(m *testing.M) {
	code := m.Run()
	if g := leaked(); g != "" {
		fmt.Fprintln(os.Stderr, "goroutine left:", g)
		code = 1
	}
	os.Exit(code)
}
