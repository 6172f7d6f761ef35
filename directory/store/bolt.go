package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

var (
	boltEntries  = []byte("entries")  // key to revision (8 bytes, big-endian) and value
	boltMeta     = []byte("meta")     // what is below
	boltRevision = []byte("revision") // 8 bytes, big-endian
)

// watchBacklog is how many batches a reader may be behind before its watch ends.
const watchBacklog = 1024

// Bolt is the embedded Store, one file that one process holds. Make it with
// OpenBolt; it is safe for concurrent use. It keeps no history: Watch only
// starts at the present revision.
type Bolt struct {
	db *bbolt.DB

	mu       sync.Mutex // orders commits and what watchers see of them
	revision uint64
	closed   bool
	watchers map[*watcher]struct{}
}

type watcher struct {
	prefix string
	ch     chan Batch
}

// OpenBolt opens or makes the file. It waits a second for another process that
// holds it.
func OpenBolt(path string) (*Bolt, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("store %s: held by another process: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", path, err)
	}
	s := &Bolt{db: db, watchers: map[*watcher]struct{}{}}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(boltEntries); err != nil {
			return err
		}
		meta, err := tx.CreateBucketIfNotExists(boltMeta)
		if err != nil {
			return err
		}
		if b := meta.Get(boltRevision); len(b) == 8 {
			s.revision = binary.BigEndian.Uint64(b)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", path, err), db.Close())
	}
	return s, nil
}

func decodeEntry(key, b []byte) (Entry, error) {
	if len(b) < 8 {
		return Entry{}, fmt.Errorf("store: entry %q of %d bytes is damaged", key, len(b))
	}
	return Entry{Key: string(key), Revision: binary.BigEndian.Uint64(b), Value: bytes.Clone(b[8:])}, nil
}

// Get implements Store.
func (s *Bolt) Get(ctx context.Context, key string) (e Entry, err error) {
	if err := ctx.Err(); err != nil {
		return Entry{}, err
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(boltEntries).Get([]byte(key))
		if b == nil {
			return fmt.Errorf("%w: %q", ErrNotFound, key)
		}
		e, err = decodeEntry([]byte(key), b)
		return err
	})
	return e, boltError(err)
}

// Range implements Store.
func (s *Bolt) Range(ctx context.Context, prefix string) (entries []Entry, revision uint64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(boltMeta).Get(boltRevision); len(b) == 8 {
			revision = binary.BigEndian.Uint64(b)
		}
		c := tx.Bucket(boltEntries).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			e, err := decodeEntry(k, v)
			if err != nil {
				return err
			}
			entries = append(entries, e)
		}
		return nil
	})
	return entries, revision, boltError(err)
}

// Commit implements Store.
func (s *Bolt) Commit(ctx context.Context, txn Txn) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, ErrClosed
	}
	batch := Batch{Revision: s.revision + 1}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(boltEntries)
		for key, want := range txn.Expect {
			var have uint64
			if v := b.Get([]byte(key)); v != nil {
				e, err := decodeEntry([]byte(key), v)
				if err != nil {
					return err
				}
				have = e.Revision
			}
			if have != want {
				return fmt.Errorf("%w: %q at revision %d, expected %d", ErrConflict, key, have, want)
			}
		}
		stamp := binary.BigEndian.AppendUint64(nil, batch.Revision)
		for key, value := range txn.Put {
			if err := b.Put([]byte(key), append(bytes.Clone(stamp), value...)); err != nil {
				return fmt.Errorf("put %q: %w", key, err)
			}
			batch.Events = append(batch.Events, Event{Entry: Entry{Key: key, Value: bytes.Clone(value), Revision: batch.Revision}})
		}
		for _, key := range txn.Delete {
			if b.Get([]byte(key)) == nil {
				continue
			}
			if err := b.Delete([]byte(key)); err != nil {
				return fmt.Errorf("delete %q: %w", key, err)
			}
			batch.Events = append(batch.Events, Event{Entry: Entry{Key: key, Revision: batch.Revision}, Deleted: true})
		}
		if len(batch.Events) == 0 {
			return nil
		}
		return tx.Bucket(boltMeta).Put(boltRevision, stamp)
	})
	if err != nil {
		return 0, boltError(err)
	}
	if len(batch.Events) == 0 {
		return s.revision, nil
	}
	s.revision = batch.Revision
	slices.SortFunc(batch.Events, func(a, b Event) int { return strings.Compare(a.Key, b.Key) })
	for w := range s.watchers {
		w.offer(s, batch)
	}
	return batch.Revision, nil
}

// offer gives a watcher its part of a batch, or ends it where it is too far
// behind. The caller holds s.mu.
func (w *watcher) offer(s *Bolt, batch Batch) {
	mine := Batch{Revision: batch.Revision}
	for _, e := range batch.Events {
		if strings.HasPrefix(e.Key, w.prefix) {
			mine.Events = append(mine.Events, e)
		}
	}
	if len(mine.Events) == 0 {
		return
	}
	select {
	case w.ch <- mine:
	default:
		s.drop(w)
	}
}

// drop ends a watch. The caller holds s.mu.
func (s *Bolt) drop(w *watcher) {
	if _, ok := s.watchers[w]; ok {
		delete(s.watchers, w)
		close(w.ch)
	}
}

// Watch implements Store. Values that it delivers are shared and must not be
// changed.
func (s *Bolt) Watch(ctx context.Context, prefix string, after uint64) (<-chan Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if after != s.revision {
		return nil, fmt.Errorf("%w: %d, the store is at %d", ErrCompacted, after, s.revision)
	}
	w := &watcher{prefix: prefix, ch: make(chan Batch, watchBacklog)}
	s.watchers[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(w)
	})
	return w.ch, nil
}

// Close implements Store.
func (s *Bolt) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for w := range s.watchers {
		s.drop(w)
	}
	return s.db.Close()
}

func boltError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}
