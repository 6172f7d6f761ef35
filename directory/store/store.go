// Package store keeps the directory's state: keys and values with revisions,
// compared and changed in transactions, and watched. It asks for nothing that
// etcd cannot do as well.
package store

import (
	"context"
	"errors"
)

// Errors that callers branch on.
var (
	// ErrNotFound is a key that is not there.
	ErrNotFound = errors.New("not found")
	// ErrConflict is a transaction whose expectation did not hold.
	ErrConflict = errors.New("changed by somebody else")
	// ErrCompacted is a watch from a revision that is no longer kept: range
	// again and watch from there.
	ErrCompacted = errors.New("revision no longer kept")
	// ErrClosed is a store that was closed.
	ErrClosed = errors.New("store closed")
)

// Entry is a key with its value and the revision that last changed it. It is
// the caller's own copy.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Event is one change: the new entry, or the key alone where it was deleted.
type Event struct {
	Entry
	Deleted bool
}

// Batch is the changes of one transaction. Its events are sorted by key.
type Batch struct {
	Revision uint64
	Events   []Event
}

// Txn is one transaction. The zero value does nothing.
type Txn struct {
	// Expect maps keys to the revision that they must have, 0 for absent.
	Expect map[string]uint64
	// Put and Delete must not share a key.
	Put    map[string][]byte
	Delete []string
}

// Store is a revisioned key-value store, safe for concurrent use. Revisions
// grow by at least one with each transaction that changes something.
type Store interface {
	// Get returns one entry, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// Range returns the entries under a prefix, sorted by key, and the revision
	// of the store that they were read at.
	Range(ctx context.Context, prefix string) ([]Entry, uint64, error)
	// Commit applies txn as a whole and durably, and returns its revision; or
	// ErrConflict, and nothing is changed.
	Commit(ctx context.Context, txn Txn) (uint64, error)
	// Watch delivers the batches under a prefix after a revision, in order,
	// until ctx ends. A channel that closes before that means that the reader
	// fell behind. ErrCompacted: changes after that revision are gone.
	Watch(ctx context.Context, prefix string, after uint64) (<-chan Batch, error)
	// Close ends all watches.
	Close() error
}
