package device

import (
	"context"
	"errors"
	"io"
	"iter"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// Read yields the entities that match those given, as they arrive, or one
// error at the end. A field left unset is a wildcard ("Wildcard Reads"); Table
// and Counter make the usual ones. It works for backups too, and fails with
// ErrDisconnected without a connection.
func (s *Session) Read(ctx context.Context, entities ...*p4v1.Entity) iter.Seq2[*p4v1.Entity, error] {
	return func(yield func(*p4v1.Entity, error) bool) {
		l := s.link.Load()
		if l == nil {
			yield(nil, ErrDisconnected)
			return
		}
		ctx, cancel := context.WithTimeout(ctx, s.cfg.BulkTimeout)
		defer cancel()
		stream, err := l.client.Read(ctx, &p4v1.ReadRequest{DeviceId: s.cfg.DeviceID, Role: s.cfg.Role, Entities: entities})
		if err != nil {
			yield(nil, err)
			return
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, e := range resp.GetEntities() {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Table selects all entries of a table but its default action.
func Table(id uint32) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{TableId: id}}}
}

// Counter selects all cells of an indirect counter.
func Counter(id uint32) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_CounterEntry{CounterEntry: &p4v1.CounterEntry{CounterId: id}}}
}

// DirectCounters selects the direct counters of all entries of a table.
func DirectCounters(table uint32) *p4v1.Entity {
	return &p4v1.Entity{Entity: &p4v1.Entity_DirectCounterEntry{DirectCounterEntry: &p4v1.DirectCounterEntry{
		TableEntry: &p4v1.TableEntry{TableId: table},
	}}}
}
