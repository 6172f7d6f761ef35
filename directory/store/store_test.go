package store

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

func open(t *testing.T, path string) *Bolt {
	t.Helper()
	s, err := OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestStore is what every Store does; the embedded one is the first.
func TestStore(t *testing.T) {
	for _, c := range []struct {
		name string
		open func(*testing.T) Store
	}{{"bolt", func(t *testing.T) Store { return open(t, filepath.Join(t.TempDir(), "db")) }}} {
		t.Run(c.name, func(t *testing.T) { checkStore(t, c.open(t)) })
	}
}

func checkStore(t *testing.T, s Store) {
	ctx, cancel := context.WithCancel(t.Context())
	commit := func(want error, txn Txn) uint64 {
		t.Helper()
		rev, err := s.Commit(ctx, txn)
		if !errors.Is(err, want) {
			t.Fatalf("commit: %v, want %v", err, want)
		}
		return rev
	}
	_, start, err := s.Range(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	watch, err := s.Watch(ctx, "a/", start)
	if err != nil {
		t.Fatal(err)
	}
	first := commit(nil, Txn{Expect: map[string]uint64{"a/1": 0}, Put: map[string][]byte{"a/1": []byte("x"), "b/1": []byte("y"), "a/2": nil}})
	commit(ErrConflict, Txn{Expect: map[string]uint64{"a/1": 0}, Put: map[string][]byte{"a/1": []byte("z"), "a/3": nil}})
	if _, err := s.Get(ctx, "a/3"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("half of a refused transaction: %v", err)
	}
	e, err := s.Get(ctx, "a/1")
	if err != nil || string(e.Value) != "x" || e.Revision != first {
		t.Fatalf("get: %+v %v", e, err)
	}
	second := commit(nil, Txn{Expect: map[string]uint64{"a/1": first}, Put: map[string][]byte{"a/2": []byte("w")}, Delete: []string{"a/1", "none"}})
	if second <= first {
		t.Fatalf("revision %d after %d", second, first)
	}
	if rev := commit(nil, Txn{Delete: []string{"none"}}); rev != second {
		t.Fatalf("nothing changed, revision %d", rev)
	}
	entries, rev, err := s.Range(ctx, "a/")
	if err != nil || rev != second || len(entries) != 1 || entries[0].Key != "a/2" || string(entries[0].Value) != "w" {
		t.Fatalf("range: %+v %d %v", entries, rev, err)
	}
	b := <-watch
	if b.Revision != first || len(b.Events) != 2 || b.Events[0].Key != "a/1" || b.Events[1].Key != "a/2" {
		t.Fatalf("first batch %+v", b)
	}
	b = <-watch
	if b.Revision != second || len(b.Events) != 2 || !b.Events[0].Deleted || string(b.Events[1].Value) != "w" {
		t.Fatalf("second batch %+v", b)
	}
	cancel()
	if b, ok := <-watch; ok {
		t.Fatalf("after the end: %+v", b)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), Txn{Put: map[string][]byte{"a": nil}}); !errors.Is(err, ErrClosed) {
		t.Fatalf("commit after close: %v", err)
	}
	if _, _, err := s.Range(t.Context(), ""); !errors.Is(err, ErrClosed) {
		t.Fatalf("range after close: %v", err)
	}
}

func TestBoltReopens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	rev, err := s.Commit(t.Context(), Txn{Put: map[string][]byte{"a": []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBolt(path); err == nil {
		t.Fatal("two processes hold the store")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	entries, at, err := s.Range(t.Context(), "")
	if err != nil || at != rev || len(entries) != 1 || entries[0].Revision != rev {
		t.Fatalf("%+v %d %v", entries, at, err)
	}
	if _, err := s.Watch(t.Context(), "", rev-1); !errors.Is(err, ErrCompacted) {
		t.Fatalf("watch from the past: %v", err)
	}
}

func TestBoltDropsSlowWatchers(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	s.db.NoSync = true
	slow, err := s.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for range watchBacklog + 1 {
		if _, err := s.Commit(t.Context(), Txn{Put: map[string][]byte{"a": nil}}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for range slow {
		n++
	}
	if n != watchBacklog {
		t.Fatalf("%d batches before the end, want %d", n, watchBacklog)
	}
}
