package pool

import (
	"context"
	"sync"
	"testing"
)

func TestOrderWithinAFlow(t *testing.T) {
	type item struct{ flow, n int }
	const flows, each = 50, 100
	var mu sync.Mutex
	seen := map[int]int{}
	var done sync.WaitGroup
	done.Add(flows * each)
	p := New(8, flows*each, func(_ context.Context, it item) {
		mu.Lock()
		defer mu.Unlock()
		if seen[it.flow] != it.n {
			t.Errorf("flow %d: item %d after %d others", it.flow, it.n, seen[it.flow])
		}
		seen[it.flow]++
		done.Done()
	})
	for n := range each {
		for f := range flows {
			if !p.Submit(uint32(f), false, item{f, n}) {
				t.Fatal("refused")
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	finished := make(chan struct{})
	go func() { p.Run(ctx); close(finished) }()
	done.Wait()
	cancel()
	<-finished
}

func TestFullQueuesRefuseAndUrgentComesFirst(t *testing.T) {
	var got []string
	ctx, cancel := context.WithCancel(context.Background())
	p := New(1, 2, func(_ context.Context, s string) {
		got = append(got, s)
		if len(got) == 4 {
			cancel()
		}
	})
	for i, tc := range []struct {
		urgent bool
		item   string
		want   bool
	}{
		{false, "plain 1", true}, {false, "plain 2", true}, {false, "plain 3", false},
		{true, "urgent 1", true}, {true, "urgent 2", true}, {true, "urgent 3", false},
	} {
		if ok := p.Submit(1, tc.urgent, tc.item); ok != tc.want {
			t.Errorf("submit %d: %v", i, ok)
		}
	}
	p.Run(ctx)
	want := [...]string{"urgent 1", "urgent 2", "plain 1", "plain 2"}
	if [4]string(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
