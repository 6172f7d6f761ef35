// Package session_test runs one suite of a controller's P4Runtime session
// against each server that the project has: bmv2's, and the fallback's over a
// target in memory.
package session_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"countersign/bmv2/launcher"
	"countersign/controller/device"
	"countersign/fallback/p4rtserver"
	"countersign/fallback/p4rtserver/memtarget"
)

// Ids of testdata/echo.p4.
const (
	route   = 0x02000001
	session = 0x02000003
	seen    = 0x12000001
	admit   = 0x01000001
)

// target is a P4Runtime server and its data plane, if it has one that forwards
// packets.
type target struct {
	name     string
	forwards bool
	start    func(testing.TB) (address string)
}

var targets = []target{
	{"bmv2", true, bmv2},
	{"p4rtserver", false, memory},
}

func bmv2(t testing.TB) string {
	t.Helper()
	if _, err := launcher.Find(); err != nil {
		if os.Getenv("COUNTERSIGN_REQUIRE_BMV2") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	sw, err := launcher.Launch(t.Context(), launcher.Config{DeviceID: 1, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sw.Stop(); err != nil {
			t.Error(err)
		}
	})
	return sw.Target()
}

func memory(t testing.TB) string {
	t.Helper()
	return serve(t, new(memtarget.Target))
}

// serve serves a target by the fallback's server, and returns its address.
func serve(t testing.TB, target p4rtserver.Target) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p4rt") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(dir, "s")
	srv, err := p4rtserver.New(target, p4rtserver.Options{DeviceID: 1, Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := p4rtserver.Endpoint{Address: address}.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, lis, nil) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-served, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return address
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// load reads a message in text form. Unknown fields are dropped: the compiler's
// P4Info is newer than the Go protos (initial_default_action).
func load[M proto.Message](t testing.TB, name string, m M) M {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, m); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m
}

func config(t testing.TB, address string) device.Config {
	t.Helper()
	json, err := os.ReadFile("testdata/echo.json")
	if err != nil {
		t.Fatal(err)
	}
	return device.Config{
		Target: address, DeviceID: 1,
		Pipeline: device.Pipeline{Info: load(t, "echo.p4info.txtpb", new(p4configv1.P4Info)), DeviceConfig: json, Cookie: 1},
		Dynamic:  []uint32{session},
		Backoff:  device.Backoff{Min: 10 * time.Millisecond, Max: 100 * time.Millisecond},
		Log:      logger(t),
	}
}

func static(t testing.TB) []*p4v1.Entity {
	t.Helper()
	return load(t, "static.txtpb", new(p4v1.ReadResponse)).GetEntities()
}

func number(n uint32) []byte {
	return p4rtserver.AppendUint64(nil, uint64(n))
}

func sessionOf(n uint32) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{
		TableId: session,
		Match:   []*p4v1.FieldMatch{{FieldId: 1, FieldMatchType: &p4v1.FieldMatch_Exact_{Exact: &p4v1.FieldMatch_Exact{Value: number(n)}}}},
		Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{
			ActionId: admit, Params: []*p4v1.Action_Param{{ParamId: 1, Value: []byte{7}}},
		}}},
	}}}
}

func insert(entities ...*p4v1.Entity) []*p4v1.Update {
	var u []*p4v1.Update
	for _, e := range entities {
		u = append(u, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: e})
	}
	return u
}

// running is a session under test.
type running struct {
	*device.Session
	t    testing.TB
	stop func()
}

func start(t testing.TB, cfg device.Config, desired []*p4v1.Entity) *running {
	t.Helper()
	s, err := device.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.SetDesired(desired); err != nil {
		t.Fatal(err)
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
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
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

func (r *running) setDesired(entities []*p4v1.Entity) {
	r.t.Helper()
	revision, err := r.SetDesired(entities)
	if err != nil {
		r.t.Fatal(err)
	}
	r.await("the desired set", func(s device.State) bool { return s.Phase == device.Synced && s.Revision >= revision })
}

func (r *running) read(wildcard *p4v1.Entity) []*p4v1.Entity {
	r.t.Helper()
	var all []*p4v1.Entity
	for e, err := range r.Read(r.t.Context(), wildcard) {
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// echo sends a packet-out and returns the hit field of each packet-in that
// comes back before that of a second one, sent behind it.
func (r *running) echo(key uint32, copies byte) []byte {
	r.t.Helper()
	const last = 0xffffffff
	out := func(key uint32, copies byte) *p4v1.PacketOut {
		return &p4v1.PacketOut{Payload: []byte("payload"), Metadata: []*p4v1.PacketMetadata{
			{MetadataId: 1, Value: number(key)}, {MetadataId: 2, Value: []byte{copies}},
		}}
	}
	for _, p := range []*p4v1.PacketOut{out(key, copies), out(last, 0)} {
		if err := r.PacketOut(r.t.Context(), p); err != nil {
			r.t.Fatal(err)
		}
	}
	timeout := time.After(30 * time.Second)
	var hits []byte
	for {
		select {
		case p := <-r.PacketIns(0):
			if slices.Equal(p.GetMetadata()[0].GetValue(), number(last)) {
				slices.Sort(hits)
				return hits
			}
			hits = append(hits, p.GetMetadata()[1].GetValue()[0])
		case <-timeout:
			r.t.Fatal("no packet-in")
		}
	}
}

func total(t testing.TB, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == "countersign_p4runtime_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// each runs a test for every target.
func each(t *testing.T, test func(*testing.T, target)) {
	for _, tgt := range targets {
		t.Run(tgt.name, func(t *testing.T) { test(t, tgt) })
	}
}

func TestReconcile(t *testing.T) {
	each(t, func(t *testing.T, tgt target) {
		cfg := config(t, tgt.start(t))
		r := start(t, cfg, static(t))
		if st := r.synced(1); !st.Pushed {
			t.Error("pipeline was not pushed")
		}
		if err := r.Write(t.Context(), insert(sessionOf(1), sessionOf(2))); err != nil {
			t.Fatal(err)
		}
		r.stop()

		// A controller that starts anew finds everything as it wants it.
		reg := prometheus.NewRegistry()
		cfg.Metrics = device.NewMetrics(reg)
		r = start(t, cfg, static(t))
		if st := r.synced(1); st.Pushed {
			t.Error("pipeline was pushed again")
		}
		if n := total(t, reg, "static_updates_total"); n != 0 {
			t.Errorf("%v static updates written, want none", n)
		}
		for _, e := range r.read(device.Table(session)) {
			if !proto.Equal(e, sessionOf(1)) && !proto.Equal(e, sessionOf(2)) {
				t.Errorf("session %v", e)
			}
		}
		r.setDesired(nil)
		if left := r.read(device.Table(route)); len(left) > 0 {
			t.Errorf("left after an empty set: %v", left)
		}
		r.setDesired(static(t))
		if n := len(r.read(device.Table(session))); n != 2 {
			t.Errorf("%d sessions, want 2", n)
		}
		if !tgt.forwards {
			return
		}
		if hits := r.echo(1, 1); !slices.Equal(hits, []byte{1, 0xff}) {
			t.Errorf("a session's packet came back with %v", hits)
		}
		r.stop()

		// Another pipeline, to which the old clone session must not add its copies.
		cfg.Pipeline.Cookie, cfg.Metrics = 2, nil
		r = start(t, cfg, static(t))
		if st := r.synced(1); !st.Pushed {
			t.Error("new pipeline was not pushed")
		}
		if hits := r.echo(3, 1); !slices.Equal(hits, []byte{0, 0xff}) {
			t.Errorf("after a new pipeline a packet came back with %v", hits)
		}
	})
}

func TestErrors(t *testing.T) {
	each(t, func(t *testing.T, tgt target) {
		r := start(t, config(t, tgt.start(t)), nil)
		r.synced(1)
		if err := r.Write(t.Context(), insert(sessionOf(1))); err != nil {
			t.Fatal(err)
		}
		bad := sessionOf(3)
		bad.GetTableEntry().GetAction().GetAction().ActionId = 99
		missing := &p4v1.Update{Type: p4v1.Update_DELETE, Entity: sessionOf(9)}
		err := r.Write(t.Context(), append(insert(sessionOf(2), sessionOf(1), bad), missing))
		var we *device.WriteError
		if !errors.As(err, &we) {
			t.Fatalf("got %v", err)
		}
		got := map[int]codes.Code{}
		for _, u := range we.Errors {
			got[u.Index] = u.Code
		}
		// Of a reference to an unknown action the specification does not name the code.
		if len(got) != 3 || got[1] != codes.AlreadyExists || got[2] == codes.OK || got[3] != codes.NotFound {
			t.Errorf("errors %v", got)
		}
		if n := len(r.read(device.Table(session))); n != 2 {
			t.Errorf("%d sessions, want 2", n)
		}
	})
}

func TestMastership(t *testing.T) {
	each(t, func(t *testing.T, tgt target) {
		cfg := config(t, tgt.start(t))
		cfg.ElectionID = device.ElectionID{Low: 5}
		a := start(t, cfg, static(t))
		a.synced(1)
		cfg.ElectionID = device.ElectionID{Low: 9}
		b := start(t, cfg, static(t))
		b.synced(1)
		a.await("backup", func(st device.State) bool { return st.Phase == device.Backup })
		b.stop()
		a.synced(2)
	})
}

func TestIdleTimeout(t *testing.T) {
	each(t, func(t *testing.T, tgt target) {
		if !tgt.forwards {
			t.Skip("does not age entries")
		}
		r := start(t, config(t, tgt.start(t)), nil)
		r.synced(1)
		e := sessionOf(4)
		e.GetTableEntry().IdleTimeoutNs = int64(time.Second)
		if err := r.Write(t.Context(), insert(e)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // it is told again while the entry stands
			select {
			case n := <-r.IdleTimeouts():
				if len(n.GetTableEntry()) != 1 || !proto.Equal(n.GetTableEntry()[0].GetMatch()[0], e.GetTableEntry().GetMatch()[0]) {
					t.Errorf("notification %v", n)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("no notification")
			}
		}
	})
}

func TestReads(t *testing.T) {
	each(t, func(t *testing.T, tgt target) {
		r := start(t, config(t, tgt.start(t)), static(t))
		r.synced(1)
		if n := len(r.read(device.Counter(seen))); n != 16 {
			t.Errorf("%d cells", n)
		}
		if n := len(r.read(device.DirectCounters(route))); n < 2 {
			t.Errorf("%d direct counters", n)
		}
		for _, err := range r.Read(t.Context(), device.Table(0x02123456)) {
			if status.Code(err) == codes.OK {
				t.Error("a table that is not there was read")
			}
		}
		if !tgt.forwards {
			return
		}
		r.echo(3, 0)
		if n := r.read(device.Counter(seen))[3].GetCounterEntry().GetData().GetPacketCount(); n != 1 {
			t.Errorf("%d packets counted, want 1", n)
		}
		hits := int64(0)
		for _, e := range r.read(device.DirectCounters(route)) {
			hits += e.GetDirectCounterEntry().GetData().GetPacketCount()
		}
		if hits != 2 {
			t.Errorf("%d hits of routes, want 2", hits)
		}
	})
}

// BenchmarkWrite inserts b.N sessions from many callers.
func BenchmarkWrite(b *testing.B) {
	for _, tgt := range targets {
		for _, c := range []struct{ callers, each int }{{1, 1}, {64, 1}, {256, 1}, {4, 500}} {
			b.Run(fmt.Sprintf("%s/callers=%d/each=%d", tgt.name, c.callers, c.each), func(b *testing.B) {
				cfg := config(b, tgt.start(b))
				reg := prometheus.NewRegistry()
				cfg.Metrics = device.NewMetrics(reg)
				r := start(b, cfg, nil)
				r.synced(1)
				var next atomic.Int64
				var callers sync.WaitGroup
				b.ResetTimer()
				for range c.callers {
					callers.Go(func() {
						for {
							end := next.Add(int64(c.each))
							first := end - int64(c.each)
							var w []*p4v1.Update
							for n := first; n < min(end, int64(b.N)); n++ {
								w = append(w, insert(sessionOf(uint32(n)))...)
							}
							if len(w) == 0 {
								return
							}
							if err := r.Write(b.Context(), w); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				callers.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
				b.ReportMetric(float64(b.N)/total(b, reg, "write_batches_total"), "updates/RPC")
			})
		}
	}
}
