package engine

import (
	"bytes"
	"fmt"
	"slices"
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
)

// store is a table as P4Runtime sees it. The pipeline's lock is held: for
// writing with write, setCounter, setMeter and sweep, else for reading.
type store interface {
	write(op p4rtserver.Op, e *p4rtserver.Entry, now int64) error
	setCounter(e *p4rtserver.Entry) error
	setMeter(e *p4rtserver.Entry, now int64) error
	lookup(e *p4rtserver.Entry, want p4rtserver.Want, now int64) error
	each(want p4rtserver.Want, now int64, yield func(*p4rtserver.Entry) bool)
	// sweep appends the entries that are idle at now, of the n places from
	// `from` on, and returns the place to go on from, or false at the end.
	sweep(idle []p4rtserver.Entry, from, n uint32, now int64) ([]p4rtserver.Entry, uint32, bool)
	// count is the number of entries; it needs no lock.
	count() int
}

// codec translates between P4Runtime and an exact table: a key is the row of
// its fields as words, two words for a field of 128 bits.
type codec[K comparable, V any] struct {
	info  *tables.TableInfo
	key   func(words []uint64) K
	words func(key *K) []uint64
	set   func(key *K, v *V, a *p4rtserver.Action) error
	get   func(v *V) p4rtserver.Action
	// Of tables with a direct counter, or a direct meter.
	counter func(v *V) *counts
	meter   func(v *V) *atomic.Pointer[meter]
}

// exactStore is an exact table with its codec.
type exactStore[K comparable, V any] struct {
	*exact[K, V]
	codec[K, V]
	metadata map[uint32][]byte // of the few entries that have any, by place
}

func newExactStore[K comparable, V any](t *exact[K, V], c codec[K, V]) *exactStore[K, V] {
	return &exactStore[K, V]{exact: t, codec: c, metadata: make(map[uint32][]byte)}
}

// keyOf reads a key, which the server has checked.
func (s *exactStore[K, V]) keyOf(match []p4rtserver.FieldMatch) K {
	var words [16]uint64
	w := words[:0]
	for i := range match {
		w = appendWords(w, match[i].Value, s.info.Fields[i].Width)
	}
	return s.key(w)
}

// appendWords appends a value of at most 128 bits as words.
func appendWords(w []uint64, value []byte, width int) []uint64 {
	if width > 64 {
		n := max(len(value)-8, 0)
		return append(w, p4rtserver.Uint64(value[:n]), p4rtserver.Uint64(value[n:]))
	}
	return append(w, p4rtserver.Uint64(value))
}

// appendValue is the way back: the canonical value of the words at the front
// of w, and the rest of w.
func appendValue(w []uint64, width int) (value []byte, rest []uint64) {
	if width <= 64 {
		return p4rtserver.AppendUint64(nil, w[0]), w[1:]
	}
	return canonical128(w[0], w[1]), w[2:]
}

func canonical128(hi, lo uint64) []byte {
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(56-8*i)), byte(lo>>(56-8*i))
	}
	return bytes.Clone(p4rtserver.Canonical(b[:]))
}

func (s *exactStore[K, V]) match(key *K) []p4rtserver.FieldMatch {
	words := s.words(key)
	match := make([]p4rtserver.FieldMatch, len(s.info.Fields))
	for i, f := range s.info.Fields {
		match[i] = p4rtserver.FieldMatch{ID: f.ID, Kind: p4rtserver.MatchExact}
		match[i].Value, words = appendValue(words, f.Width)
	}
	return match
}

// locate finds the entry of a key; it is nil where there is none.
func (s *exactStore[K, V]) locate(match []p4rtserver.FieldMatch) (key K, id uint32, x *entry[K, V]) {
	key = s.keyOf(match)
	id, x = s.search(s.hash(&key), &key)
	return key, id, x
}

func errDefault(info *tables.TableInfo) error {
	return fmt.Errorf("%w: the default action of %s is constant", p4rtserver.ErrInvalidArgument, info.Alias)
}

func (s *exactStore[K, V]) write(op p4rtserver.Op, e *p4rtserver.Entry, now int64) error {
	if e.Default {
		return errDefault(s.info)
	}
	key, place, old := s.locate(e.Match)
	switch {
	case op == p4rtserver.Insert && old != nil:
		return p4rtserver.ErrAlreadyExists
	case op != p4rtserver.Insert && old == nil:
		return p4rtserver.ErrNotFound
	case op == p4rtserver.Delete:
		s.remove(&key)
		delete(s.metadata, place)
		return nil
	case op == p4rtserver.Modify:
		if e.Action.Kind != p4rtserver.ActionNone {
			if err := s.set(&key, &old.val, &e.Action.Action); err != nil {
				return err
			}
		}
		s.attributes(place, old, e, now)
		return nil
	}
	if s.count() >= s.size {
		return fmt.Errorf("%w: %s holds %d entries", p4rtserver.ErrResourceExhausted, s.info.Alias, s.size)
	}
	id, fresh := s.insert(key)
	if err := s.set(&key, &fresh.val, &e.Action.Action); err != nil {
		s.giveBack(id)
		return err
	}
	s.attributes(id, fresh, e, now)
	s.publish(id, fresh)
	return nil
}

// attributes sets what an entry has beside its action.
func (s *exactStore[K, V]) attributes(id uint32, x *entry[K, V], e *p4rtserver.Entry, now int64) {
	x.timeout, x.report = e.IdleTimeoutNs, 0
	x.lastHit.Store(now)
	if len(e.Metadata) > 0 {
		s.metadata[id] = bytes.Clone(e.Metadata)
	} else {
		delete(s.metadata, id)
	}
	if s.counter != nil && e.Counter != nil {
		s.counter(&x.val).store(*e.Counter)
	}
	if s.meter != nil {
		s.meter(&x.val).Store(newMeter(e.Meter, now))
	}
}

func (s *exactStore[K, V]) setCounter(e *p4rtserver.Entry) error {
	_, _, x := s.locate(e.Match)
	if x == nil {
		return p4rtserver.ErrNotFound
	}
	if s.codec.counter == nil {
		return p4rtserver.ErrUnimplemented
	}
	var d p4rtserver.CounterData
	if e.Counter != nil {
		d = *e.Counter
	}
	s.codec.counter(&x.val).store(d)
	return nil
}

func (s *exactStore[K, V]) setMeter(e *p4rtserver.Entry, now int64) error {
	_, _, x := s.locate(e.Match)
	if x == nil {
		return p4rtserver.ErrNotFound
	}
	if s.codec.meter == nil {
		return p4rtserver.ErrUnimplemented
	}
	m := s.codec.meter(&x.val)
	fresh := newMeter(e.Meter, now)
	if e.MeterCounters == nil {
		fresh.marked = m.Load().marked
	}
	m.Store(fresh)
	return nil
}

func (s *exactStore[K, V]) count() int { return int(s.n.Load()) }

// fill sets all but the key.
func (s *exactStore[K, V]) fill(e *p4rtserver.Entry, id uint32, x *entry[K, V], want p4rtserver.Want, now int64) {
	e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: s.get(&x.val)}
	e.IdleTimeoutNs, e.Metadata = x.timeout, s.metadata[id]
	if want&p4rtserver.WantLastHit != 0 {
		e.SinceLastHitNs = max(now-x.lastHit.Load(), 0)
	}
	if s.counter != nil && want&p4rtserver.WantCounter != 0 {
		d := s.counter(&x.val).load()
		e.Counter = &d
	}
	if s.meter != nil {
		m := s.meter(&x.val).Load()
		if want&p4rtserver.WantMeter != 0 {
			e.Meter = m.config()
		}
		if want&p4rtserver.WantMeterCounters != 0 {
			e.MeterCounters = m.counters()
		}
	}
}

func (s *exactStore[K, V]) lookup(e *p4rtserver.Entry, want p4rtserver.Want, now int64) error {
	if e.Default {
		return fillDefault(e, s.info)
	}
	_, id, x := s.locate(e.Match)
	if x == nil {
		return p4rtserver.ErrNotFound
	}
	s.fill(e, id, x, want, now)
	return nil
}

// fillDefault sets the action of the default entry, which never changes.
func fillDefault(e *p4rtserver.Entry, info *tables.TableInfo) error {
	id := info.ConstDefaultActionID
	if id == 0 {
		id = tables.NoActionID // of egress_port, whose miss the pipeline sees itself
	}
	e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: p4rtserver.Action{ID: id}}
	return nil
}

func (s *exactStore[K, V]) each(want p4rtserver.Want, now int64, yield func(*p4rtserver.Entry) bool) {
	s.exact.each(0, s.next, func(id uint32, x *entry[K, V]) bool {
		e := p4rtserver.Entry{TableID: s.info.ID, Match: s.match(&x.key)}
		s.fill(&e, id, x, want, now)
		return yield(&e)
	})
}

func (s *exactStore[K, V]) sweep(idle []p4rtserver.Entry, from, n uint32, now int64) ([]p4rtserver.Entry, uint32, bool) {
	if !s.info.IdleTimeout {
		return idle, 0, false
	}
	next, more := s.exact.each(from, n, func(id uint32, x *entry[K, V]) bool {
		if x.timeout > 0 && now-max(x.lastHit.Load(), x.report) >= x.timeout {
			x.report = now
			e := p4rtserver.Entry{TableID: s.info.ID, Match: s.match(&x.key), IdleTimeoutNs: x.timeout, Metadata: s.metadata[id]}
			e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: s.get(&x.val)}
			idle = append(idle, e)
		}
		return true
	})
	return idle, next, more
}

// action makes an action of words; its parameters have at most 64 bits.
func action(id uint32, words ...uint64) p4rtserver.Action {
	a := p4rtserver.Action{ID: id}
	for _, w := range words {
		a.Params = append(a.Params, p4rtserver.AppendUint64(nil, w))
	}
	return a
}

// param is parameter i of a, of at most 64 bits.
func param(a *p4rtserver.Action, i int) uint64 { return p4rtserver.Uint64(a.Params[i]) }

// cloneAction copies what a borrowed.
func cloneAction(a p4rtserver.Action) p4rtserver.Action {
	a.Params = slices.Clone(a.Params)
	for i := range a.Params {
		a.Params[i] = bytes.Clone(a.Params[i])
	}
	return a
}
