package server

import (
	"encoding/binary"
	"fmt"
	"maps"
	"strings"

	"countersign/directory/bundle"
	pb "countersign/directory/proto"
	"countersign/directory/store"
	"countersign/tag"

	"google.golang.org/protobuf/proto"
)

// Keys of the store.
const (
	sequenceKey      = "sequence" // 8 bytes, big-endian; every transaction replaces it
	headerKey        = "header"
	recordPrefix     = "record/"     // and the record's id
	accountPrefix    = "account/"    // and the member
	rolloutPrefix    = "rollout/"    // and the key
	reservePrefix    = "reserve/"    // and the key
	invitationPrefix = "invitation/" // and SHA-256 of the secret
	envelopePrefix   = "envelope/"   // and recipient, and key; not kept in memory
)

func envelopeKey(recipient string, id tag.KeyID) string {
	return envelopePrefix + recipient + "/" + bundle.KeyRecordID(id)
}

// table is one kind of entry in layers: a layer shows what it has changed over
// what lies below. Values are never changed in place. Not safe for concurrent
// use.
type table[K comparable, V any] struct {
	below   *table[K, V]
	changed map[K]*V // nil: deleted
}

func newTable[K comparable, V any](below *table[K, V]) *table[K, V] {
	return &table[K, V]{below: below, changed: map[K]*V{}}
}

// get returns the value, or nil.
func (t *table[K, V]) get(key K) *V {
	for ; t != nil; t = t.below {
		if v, ok := t.changed[key]; ok {
			return v
		}
	}
	return nil
}

func (t *table[K, V]) put(key K, v *V) { t.changed[key] = v }
func (t *table[K, V]) drop(key K)      { t.changed[key] = nil }

// all yields every entry, in no order. The topmost layer may be changed
// meanwhile, which is not seen.
func (t *table[K, V]) all(yield func(K, *V) bool) {
	layers := []map[K]*V{t.changed}
	if t.below != nil { // a root is only read
		layers[0] = maps.Clone(t.changed)
	}
	for l := t.below; l != nil; l = l.below {
		layers = append(layers, l.changed)
	}
	for i, layer := range layers {
	next:
		for k, v := range layer {
			for _, above := range layers[:i] {
				if _, hidden := above[k]; hidden {
					continue next
				}
			}
			if v != nil && !yield(k, v) {
				return
			}
		}
	}
}

// merge puts a layer's changes into the one below it.
func (t *table[K, V]) merge() { maps.Copy(t.below.changed, t.changed) }

// tables is everything that the directory keeps in memory.
type tables struct {
	records     *table[string, bundle.Record]
	accounts    *table[string, pb.Account]
	rollouts    *table[tag.KeyID, pb.Rollout]
	reserves    *table[tag.KeyID, pb.Reserve]
	invitations *table[string, pb.Invitation] // by hex of the hash
}

func newTables(below *tables) tables {
	if below == nil {
		below = &tables{}
	}
	return tables{newTable(below.records), newTable(below.accounts), newTable(below.rollouts), newTable(below.reserves), newTable(below.invitations)}
}

func (t *tables) merge() {
	t.records.merge()
	t.accounts.merge()
	t.rollouts.merge()
	t.reserves.merge()
	t.invitations.merge()
}

func (t *tables) member(name string) *pb.Member {
	if r := t.records.get(bundle.MemberRecordID(name)); r != nil {
		return r.Body.GetMember()
	}
	return nil
}

// state is the store's content as of a revision.
type state struct {
	tables
	sequence         uint64
	sequenceRevision uint64 // of its entry, which every transaction replaces
	revision         uint64 // of the store
	signed           *pb.SignedHeader
	header           *pb.Header
}

func newState() *state {
	return &state{tables: newTables(nil)}
}

// change is what one transaction brought to readers of the bundle.
type change struct {
	sequence uint64
	header   bool
	records  []string            // ids, changed or removed
	topUps   map[string][]string // recipient to store keys of new envelopes
}

// apply takes a batch of the store's watch.
func (s *state) apply(b store.Batch) (change, error) {
	ch := change{topUps: map[string][]string{}}
	for _, e := range b.Events {
		if err := s.applyEvent(e, &ch); err != nil {
			return ch, fmt.Errorf("store entry %q: %w", e.Key, err)
		}
	}
	s.revision = b.Revision
	ch.sequence = s.sequence
	return ch, nil
}

func (s *state) applyEvent(e store.Event, ch *change) error {
	kind, rest, _ := strings.Cut(e.Key, "/")
	switch kind + "/" {
	case recordPrefix:
		ch.records = append(ch.records, rest)
		if e.Deleted {
			delete(s.records.changed, rest)
			return nil
		}
		r, err := bundle.ParseRecord(e.Value)
		if err != nil {
			return err
		}
		s.records.put(rest, r)
	case envelopePrefix:
		if recipient, _, ok := strings.Cut(rest, "/"); ok && !e.Deleted {
			ch.topUps[recipient] = append(ch.topUps[recipient], e.Key)
		}
	case accountPrefix:
		return load[pb.Account](s.accounts, rest, e)
	case rolloutPrefix:
		return loadByKey[pb.Rollout](s.rollouts, rest, e)
	case reservePrefix:
		return loadByKey[pb.Reserve](s.reserves, rest, e)
	case invitationPrefix:
		return load[pb.Invitation](s.invitations, rest, e)
	case sequenceKey + "/":
		if len(e.Value) != 8 {
			return fmt.Errorf("%d bytes, want 8", len(e.Value))
		}
		s.sequence, s.sequenceRevision = binary.BigEndian.Uint64(e.Value), e.Revision
	case headerKey + "/":
		s.signed, s.header = &pb.SignedHeader{}, &pb.Header{}
		if err := proto.Unmarshal(e.Value, s.signed); err != nil {
			return err
		}
		ch.header = true
		return proto.Unmarshal(s.signed.Header, s.header)
	}
	return nil
}

// message is a pointer to a generated message.
type message[V any] interface {
	*V
	proto.Message
}

func load[V any, M message[V], K comparable](t *table[K, V], key K, e store.Event) error {
	if e.Deleted {
		delete(t.changed, key)
		return nil
	}
	v := new(V)
	if err := proto.Unmarshal(e.Value, M(v)); err != nil {
		return err
	}
	t.put(key, v)
	return nil
}

func loadByKey[V any, M message[V]](t *table[tag.KeyID, V], text string, e store.Event) error {
	id, ok := parseKeyRecordID(text)
	if !ok {
		return fmt.Errorf("%q names no key", text)
	}
	return load[V, M](t, id, e)
}

// parseKeyRecordID is the inverse of bundle.KeyRecordID.
func parseKeyRecordID(text string) (id tag.KeyID, ok bool) {
	_, err := fmt.Sscanf(text, "key/%d/%x/%d", (*uint8)(&id.Suite), &id.UNID, &id.Epoch)
	return id, err == nil && bundle.KeyRecordID(id) == text
}

// parseEnvelopeKey returns the key whose envelope lies there.
func parseEnvelopeKey(at string) (id tag.KeyID, ok bool) {
	_, rest, _ := strings.Cut(strings.TrimPrefix(at, envelopePrefix), "/")
	return parseKeyRecordID(rest)
}

// edit returns a copy of a message to change and put back.
func edit[V any, M message[V]](v *V) *V {
	return (*V)(proto.CloneOf(M(v)))
}

// save adds a table's changes to a transaction.
func save[K comparable, V any](txn *store.Txn, t *table[K, V], name func(K) string, encode func(*V) ([]byte, error)) error {
	for key, v := range t.changed {
		if v == nil {
			txn.Delete = append(txn.Delete, name(key))
			continue
		}
		b, err := encode(v)
		if err != nil {
			return err
		}
		txn.Put[name(key)] = b
	}
	return nil
}

func encode[V any, M message[V]](v *V) ([]byte, error) { return proto.Marshal(M(v)) }

// transaction is t, a layer over s, as the store takes it: it holds only while
// no other server has changed anything.
func (s *state) transaction(t *tables) (store.Txn, error) {
	txn := store.Txn{
		Expect: map[string]uint64{sequenceKey: s.sequenceRevision},
		Put:    map[string][]byte{sequenceKey: binary.BigEndian.AppendUint64(nil, s.sequence+1)},
	}
	err := save(&txn, t.records, func(id string) string { return recordPrefix + id }, func(r *bundle.Record) ([]byte, error) { return r.Raw, nil })
	if err == nil {
		err = save(&txn, t.accounts, func(n string) string { return accountPrefix + n }, encode[pb.Account])
	}
	if err == nil {
		err = save(&txn, t.rollouts, func(id tag.KeyID) string { return rolloutPrefix + bundle.KeyRecordID(id) }, encode[pb.Rollout])
	}
	if err == nil {
		err = save(&txn, t.reserves, func(id tag.KeyID) string { return reservePrefix + bundle.KeyRecordID(id) }, encode[pb.Reserve])
	}
	if err == nil {
		err = save(&txn, t.invitations, func(h string) string { return invitationPrefix + h }, encode[pb.Invitation])
	}
	return txn, err
}
