package device_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"countersign/controller/device"
	"countersign/controller/device/devicetest"
)

// key returns the number that sessionOf was given.
func key(u *p4v1.Update) uint32 {
	var n uint32
	for _, b := range u.GetEntity().GetTableEntry().GetMatch()[0].GetExact().GetValue() {
		n = n<<8 | uint32(b)
	}
	return n
}

// gathered runs the Writes so that they share batches: with one RPC in flight
// and the server holding each, the others queue behind it.
func gathered(t *testing.T, s *devicetest.Server, r *running, writes [][]*p4v1.Update) []error {
	t.Helper()
	first := make(chan error, 1)
	go func() { first <- r.Write(t.Context(), insert(sessionOf(1<<30))) }()
	s.Hold <- struct{}{}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	go func() { first <- r.Write(t.Context(), insert(sessionOf(1<<30+1))) }()
	errs := make([]error, len(writes))
	var all sync.WaitGroup
	for i, w := range writes {
		all.Go(func() { errs[i] = r.Write(t.Context(), w) })
	}
	done := make(chan struct{})
	go func() { all.Wait(); <-first; close(done) }()
	for {
		select {
		case s.Hold <- struct{}{}:
		case <-done:
			return errs
		}
	}
}

func held(s *devicetest.Server) { s.Hold = make(chan struct{}) }

func TestErrorsGoToTheirCallers(t *testing.T) {
	// Every third session fails, by a code of its own.
	fails := func(n uint32) codes.Code {
		if n%3 != 0 {
			return codes.OK
		}
		return []codes.Code{codes.ResourceExhausted, codes.AlreadyExists, codes.InvalidArgument}[n/3%3]
	}
	s := server(t, held, func(s *devicetest.Server) {
		s.FailUpdate = func(u *p4v1.Update) *p4v1.Error {
			if c := fails(key(u)); c != codes.OK && key(u) < 1<<30 {
				return failure(c)
			}
			return nil
		}
	})
	cfg := config(s)
	cfg.InFlight = 1
	r := start(t, cfg, []*p4v1.Entity{}...)
	r.synced(1)

	var writes [][]*p4v1.Update
	n := uint32(1)
	for size := 1; size <= 20; size++ {
		var w []*p4v1.Update
		for range size {
			w = append(w, insert(sessionOf(n))...)
			n++
		}
		writes = append(writes, w)
	}
	errs := gathered(t, s, r, writes)
	if got := len(s.Writes()); got >= len(writes) {
		t.Errorf("%d Writes made %d RPCs", len(writes), got)
	}
	for i, w := range writes {
		got := map[int]codes.Code{}
		if errs[i] != nil {
			var we *device.WriteError
			if !errors.As(errs[i], &we) || we.Total != len(w) {
				t.Fatalf("write %d: %v", i, errs[i])
			}
			for _, u := range we.Errors {
				got[u.Index] = u.Code
				if want := fmt.Sprintf("INSERT session{a=%x}", bytesOf(key(w[u.Index]))); u.Update != want {
					t.Errorf("update is called %q, want %q", u.Update, want)
				}
			}
		}
		want := map[int]codes.Code{}
		for j, u := range w {
			if c := fails(key(u)); c != codes.OK {
				want[j] = c
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("write %d: errors %v, want %v", i, got, want)
		}
	}
}

func TestRefusedBatchHarmsOnlyItsCause(t *testing.T) {
	for _, c := range []codes.Code{codes.InvalidArgument, codes.ResourceExhausted} {
		t.Run(c.String(), func(t *testing.T) {
			s := server(t, held, func(s *devicetest.Server) {
				s.FailWrite = func(req *p4v1.WriteRequest) error {
					for _, u := range req.GetUpdates() {
						if key(u) == 13 {
							return status.Error(c, "whole batch")
						}
					}
					return nil
				}
			})
			cfg := config(s)
			cfg.InFlight = 1
			r := start(t, cfg, []*p4v1.Entity{}...)
			r.synced(1)
			var writes [][]*p4v1.Update
			for n := range uint32(40) {
				writes = append(writes, insert(sessionOf(n+1)))
			}
			for i, err := range gathered(t, s, r, writes) {
				if n := i + 1; n == 13 {
					var u *device.UpdateError
					if !errors.As(err, &u) || u.Code != c || u.Message != "whole batch" {
						t.Errorf("culprit: %v", err)
					}
				} else if err != nil {
					t.Errorf("session %d: %v", n, err)
				}
			}
		})
	}
}

func TestWholeWriteFails(t *testing.T) {
	for _, c := range []struct {
		name string
		fail error
		want error // sentinel, or nil
		code codes.Code
	}{
		{"not primary", status.Error(codes.PermissionDenied, "no"), device.ErrNotPrimary, codes.PermissionDenied},
		{"unavailable", status.Error(codes.Unavailable, "gone"), device.ErrUnconfirmed, codes.Unavailable},
		{"unknown without details", status.Error(codes.Unknown, "?"), device.ErrUnconfirmed, codes.Unknown},
		{"no pipeline", status.Error(codes.FailedPrecondition, "no pipeline"), nil, codes.FailedPrecondition},
		{"one detail for two updates", details(1), device.ErrUnconfirmed, codes.Unknown},
		{"three details for two updates", details(3), device.ErrUnconfirmed, codes.Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := server(t, func(s *devicetest.Server) {
				s.FailWrite = func(*p4v1.WriteRequest) error { return c.fail }
			})
			r := start(t, config(s), []*p4v1.Entity{}...)
			r.synced(1)
			err := r.Write(t.Context(), insert(sessionOf(1), sessionOf(2)))
			var we *device.WriteError
			if !errors.As(err, &we) || len(we.Errors) != 2 {
				t.Fatalf("got %v", err)
			}
			for i, u := range we.Errors {
				if u.Index != i || u.Code != c.code || status.Code(u) != c.code || c.want != nil && !errors.Is(u, c.want) {
					t.Errorf("update %d: %v", i, u)
				}
				if c.want == nil && (errors.Is(u, device.ErrUnconfirmed) || errors.Is(u, device.ErrNotPrimary)) {
					t.Errorf("update %d stands for a sentinel: %v", i, u)
				}
			}
		})
	}
}

// details returns a Write's status with n errors in it.
func details(n int) error {
	st := status.New(codes.Unknown, "write failure")
	for range n {
		st, _ = st.WithDetails(failure(codes.AlreadyExists))
	}
	return st.Err()
}

func TestMessageSize(t *testing.T) {
	const limit = 32 << 10
	s := server(t, func(s *devicetest.Server) { s.MaxMessage = limit + 1<<10 })
	cfg := config(s)
	cfg.MaxMessage, cfg.MaxBatch = limit, 10000
	cfg.Pipeline.DeviceConfig = nil
	r := start(t, cfg, []*p4v1.Entity{}...)
	r.synced(1)
	var w []*p4v1.Update
	for n := range uint32(2000) {
		w = append(w, insert(sessionOf(n+1))...)
	}
	big := sessionOf(1 << 20)
	big.GetTableEntry().Metadata = make([]byte, limit*3/4)
	w = append(w, insert(big)...)
	if err := r.Write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Entities()); n != len(w) {
		t.Errorf("device has %d of %d", n, len(w))
	}
	for _, b := range s.Writes() {
		if size := proto.Size(&p4v1.WriteRequest{Updates: b}); size > limit {
			t.Errorf("a Write of %d bytes", size)
		}
	}

	huge := sessionOf(1 << 21)
	huge.GetTableEntry().Metadata = make([]byte, limit)
	if err := r.Write(t.Context(), insert(huge)); !errors.Is(err, device.ErrInvalid) {
		t.Errorf("an update above the limit: %v", err)
	}
}

func TestBatchLimit(t *testing.T) {
	s := server(t)
	cfg := config(s)
	cfg.MaxBatch = 64
	r := start(t, cfg, []*p4v1.Entity{}...)
	r.synced(1)
	var w []*p4v1.Update
	for n := range uint32(1000) {
		w = append(w, insert(sessionOf(n+1))...)
	}
	if err := r.Write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	batches := s.Writes()
	if len(batches) != (1000+63)/64 {
		t.Errorf("%d batches", len(batches))
	}
	for _, b := range batches {
		if len(b) > 64 {
			t.Errorf("a batch of %d", len(b))
		}
	}
}

// Updates of one entry keep their order although several RPCs are in flight
// and a server may reorder a batch; so no batch holds an entry twice.
func TestOrderOfAnEntry(t *testing.T) {
	s := server(t)
	r := start(t, config(s), []*p4v1.Entity{}...)
	r.synced(1)
	var callers sync.WaitGroup
	for c := range uint32(8) {
		callers.Go(func() {
			var w []*p4v1.Update
			for range 10 {
				for n := range uint32(5) {
					e := sessionOf(c*5 + n + 1)
					w = append(w, insert(e)...)
					w = append(w, updates(p4v1.Update_MODIFY, e)...)
					w = append(w, updates(p4v1.Update_DELETE, e)...)
				}
			}
			if err := r.Write(t.Context(), w); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	for _, b := range s.Writes() {
		seen := map[uint32]bool{}
		for _, u := range b {
			if seen[key(u)] {
				t.Fatalf("a batch holds session %d twice", key(u))
			}
			seen[key(u)] = true
		}
	}
	checkEntities(t, s)
}

func TestWriteRefusesStaticEntities(t *testing.T) {
	s := server(t)
	r := start(t, config(s), []*p4v1.Entity{}...)
	r.synced(1)
	for _, e := range []*p4v1.Entity{routeTo(1, 1), clone(1, 1), member(1, 1), group(1), meter(1, 1)} {
		if err := r.Write(t.Context(), insert(sessionOf(1), e)); !errors.Is(err, device.ErrStatic) {
			t.Errorf("%v: %v", e, err)
		}
	}
	counter := &p4v1.Entity{Entity: &p4v1.Entity_CounterEntry{CounterEntry: &p4v1.CounterEntry{
		CounterId: packets, Index: &p4v1.Index{Index: 1}, Data: &p4v1.CounterData{},
	}}}
	if err := r.Write(t.Context(), updates(p4v1.Update_MODIFY, counter)); err != nil {
		t.Errorf("counters are nobody's: %v", err)
	}
	if err := r.Write(t.Context(), nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	checkEntities(t, s, counter)
}

// release lets every Write through from now on.
func release(ctx context.Context, s *devicetest.Server) {
	for {
		select {
		case s.Hold <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

func TestSlowServer(t *testing.T) {
	s := server(t, held)
	cfg := config(s)
	cfg.RPCTimeout, cfg.InFlight = 20*time.Millisecond, 1
	r := start(t, cfg, []*p4v1.Entity{}...)
	r.synced(1)
	err := r.Write(t.Context(), insert(sessionOf(1)))
	var u *device.UpdateError
	if !errors.As(err, &u) || u.Code != codes.DeadlineExceeded || !errors.Is(err, device.ErrUnconfirmed) {
		t.Errorf("held Write: %v", err)
	}
	go release(t.Context(), s)
	for errors.Is(err, device.ErrUnconfirmed) { // until the server has caught up
		err = r.Write(t.Context(), updates(p4v1.Update_DELETE, sessionOf(2)))
	}
	if !errors.As(err, &u) || u.Code != codes.NotFound {
		t.Errorf("once it answers: %v", err)
	}
}

func TestWriteCancelled(t *testing.T) {
	s := server(t, held)
	cfg := config(s)
	cfg.InFlight = 1
	r := start(t, cfg, []*p4v1.Entity{}...)
	r.synced(1)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Write(ctx, insert(sessionOf(1))); !errors.Is(err, context.Canceled) || errors.Is(err, device.ErrUnconfirmed) {
		t.Errorf("cancelled before: %v", err)
	}

	// The first is in flight and held; the second waits in the queue.
	ctx1, cancel1 := context.WithCancel(t.Context())
	ctx2, cancel2 := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel2()
	first := make(chan error, 1)
	go func() { first <- r.Write(ctx1, insert(sessionOf(2))) }()
	for range 2 { // the same entry cannot overtake
		err := r.Write(ctx2, insert(sessionOf(2)))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("queued: %v", err)
		}
	}
	cancel1()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("in flight: %v", err)
	}
	go release(t.Context(), s)
	if err := r.Write(t.Context(), insert(sessionOf(3))); err != nil {
		t.Error(err)
	}
	if n := len(s.Writes()); n > 2 {
		t.Errorf("%d Writes reached the device, those abandoned in the queue too", n)
	}
}
