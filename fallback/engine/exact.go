package engine

import (
	"math/bits"
	"runtime"
	"slices"
	"sync/atomic"

	"countersign/tables"
)

const (
	chunkBits = 12 // entries of a chunk, as a power of two
	chunkLen  = 1 << chunkBits
	shardBits = 8 // of a table of at least shardFrom entries
	shardFrom = 1 << 14
	minSlots  = 16      // of a shard's index
	hitGrain  = 1e6     // ns: how exactly an entry's last hit is kept
	placeBits = 23      // of a slot: the place plus 1; tables are half as large
	gone      = 1 << 31 // a removed slot
)

// entry is one entry of an exact table. What a packet reads is not changed
// while packets can find the entry, or is atomic.
type entry[K comparable, V any] struct {
	key     K
	val     V
	lastHit atomic.Int64 // ns since the Unix epoch

	// Of the control path, under the pipeline's lock.
	timeout int64 // ns; 0: none
	report  int64 // when the idle timeout was last reported
}

// hit notes that a packet found the entry.
func (e *entry[K, V]) hit(now int64) {
	if now-e.lastHit.Load() > hitGrain {
		e.lastHit.Store(now)
	}
}

// exact is an exact-match table of bounded size. Packets read it without
// locks, also while one goroutine at a time changes it. Make it with newExact.
//
// Entries stay where they are, in chunks; what packets search is an index of
// four bytes a slot, open addressing in shards that grow one by one. A
// removed entry's place is used again when no worker can hold it any more.
type exact[K comparable, V any] struct {
	shards []atomic.Pointer[index]
	shift  uint // of the hash, for the shard
	chunks [][]entry[K, V]

	// Of the control path.
	hash  func(*K) uint64
	grace *grace
	size  int
	n     atomic.Int64 // entries; metrics read it
	next  uint32       // first place never used
	live  []uint64     // bitmap of places in use
	free  []retired    // in the order of removal
}

// Every place of the largest table fits a slot.
const _ = uint(1<<placeBits - 2*chunkLen - tables.SessionV4TableSize)

type retired struct {
	id    uint32
	epoch uint64
}

// index is a shard's slots. A slot is 0 where empty, gone where its entry was
// removed, otherwise the hash's tag above the entry's place plus 1.
type index struct {
	slots []atomic.Uint32 // a power of two
	used  int             // slots not empty, removed ones included
	live  int
}

func newExact[K comparable, V any](size int, g *grace, hash func(*K) uint64) *exact[K, V] {
	t := &exact[K, V]{hash: hash, grace: g, size: size, shift: 64}
	shards := 1
	if size >= shardFrom {
		shards, t.shift = 1<<shardBits, 64-shardBits
	}
	t.shards = make([]atomic.Pointer[index], shards)
	for i := range t.shards {
		t.shards[i].Store(&index{slots: make([]atomic.Uint32, minSlots)})
	}
	// One chunk more than the size, for entries that wait to be used again.
	t.chunks = make([][]entry[K, V], (size+chunkLen-1)/chunkLen+1)
	return t
}

// tagOf is the part of a hash that a slot keeps, 8 bits.
func tagOf(h uint64) uint32 { return uint32(h) & 0xff }

// slotPlace is a slot's place plus 1.
func slotPlace(s uint32) uint32 { return s & (1<<placeBits - 1) }

// home is where the search for h begins; mask it.
func home(h uint64) uint32 { return uint32(h >> 24) }

func (t *exact[K, V]) at(id uint32) *entry[K, V] {
	return &t.chunks[id>>chunkBits][id&(chunkLen-1)]
}

// find returns the entry of key, whose hash is h, or nil.
func (t *exact[K, V]) find(h uint64, key *K) *entry[K, V] {
	_, e := t.search(h, key)
	return e
}

// search is find that tells the entry's place too.
func (t *exact[K, V]) search(h uint64, key *K) (uint32, *entry[K, V]) {
	slots := t.shards[h>>t.shift].Load().slots
	tag, mask := tagOf(h), uint32(len(slots)-1)
	for i := home(h); ; i++ {
		s := slots[i&mask].Load()
		if s == 0 {
			return 0, nil
		}
		if s>>placeBits == tag {
			if e := t.at(slotPlace(s) - 1); e.key == *key {
				return slotPlace(s) - 1, e
			}
		}
	}
}

// touch reads the slot where the search for h begins, so that it is in the
// cache when probe comes. Called for a batch, the reads overlap.
func (t *exact[K, V]) touch(h uint64) uint32 {
	slots := t.shards[h>>t.shift].Load().slots
	return slots[home(h)&uint32(len(slots)-1)].Load()
}

// probe finds the first entry with the tag of h and does the same for it. It
// returns the entry's place plus 1 for recall, or 0 where no entry has the tag.
func (t *exact[K, V]) probe(h uint64) uint32 {
	slots := t.shards[h>>t.shift].Load().slots
	tag, mask := tagOf(h), uint32(len(slots)-1)
	for i := home(h); ; i++ {
		s := slots[i&mask].Load()
		if s == 0 {
			return 0
		}
		if s>>placeBits == tag {
			t.at(slotPlace(s) - 1).lastHit.Load()
			return slotPlace(s)
		}
	}
}

// recall is find after probe, within the same batch.
func (t *exact[K, V]) recall(probed uint32, h uint64, key *K) *entry[K, V] {
	if probed == 0 {
		return nil
	}
	if e := t.at(probed - 1); e.key == *key {
		return e
	}
	return t.find(h, key)
}

// insert adds an entry for key, which is not there, to a table that is not
// full, and returns it before packets can find it: publish it or give it back.
func (t *exact[K, V]) insert(key K) (id uint32, e *entry[K, V]) {
	id = t.place()
	e = t.at(id)
	*e = entry[K, V]{}
	e.key = key
	return id, e
}

// place takes a place for a new entry.
func (t *exact[K, V]) place() uint32 {
	for {
		if len(t.free) > 0 && t.grace.over(t.free[0].epoch) {
			id := t.free[0].id
			t.free = t.free[1:]
			return id
		}
		if int(t.next>>chunkBits) < len(t.chunks) {
			break
		}
		runtime.Gosched() // a batch is microseconds
	}
	id := t.next
	t.next++
	if id&(chunkLen-1) == 0 {
		t.chunks[id>>chunkBits] = preferHugePages(make([]entry[K, V], min(chunkLen, max(t.size, minSlots))))
		t.live = append(t.live, make([]uint64, chunkLen/64)...)
	}
	if n := len(t.chunks[id>>chunkBits]); int(id&(chunkLen-1)) == n-1 {
		t.next = (id>>chunkBits + 1) << chunkBits // a small table's chunk is shorter
	}
	return id
}

// giveBack undoes insert.
func (t *exact[K, V]) giveBack(id uint32) { t.free = append(t.free, retired{id, 0}) }

// publish lets packets find the entry.
func (t *exact[K, V]) publish(id uint32, e *entry[K, V]) {
	h := t.hash(&e.key)
	shard := &t.shards[h>>t.shift]
	ix := shard.Load()
	if (ix.used+1)*4 > len(ix.slots)*3 {
		ix = t.rebuild(ix)
		defer shard.Store(ix)
	}
	ix.put(h, id)
	t.live[id/64] |= 1 << (id % 64)
	t.n.Add(1)
}

func (ix *index) put(h uint64, id uint32) {
	mask := uint32(len(ix.slots) - 1)
	i := home(h) & mask
	for {
		s := ix.slots[i].Load()
		if s == 0 {
			ix.used++
		} else if s != gone {
			i = (i + 1) & mask
			continue
		}
		ix.slots[i].Store(tagOf(h)<<placeBits | (id + 1))
		ix.live++
		return
	}
}

// rebuild returns an index like ix without removed slots and with room.
func (t *exact[K, V]) rebuild(ix *index) *index {
	n := minSlots
	for n < ix.live*2+2 {
		n *= 2
	}
	fresh := &index{slots: preferHugePages(make([]atomic.Uint32, n))}
	for i := range ix.slots {
		if s := ix.slots[i].Load(); s != 0 && s != gone {
			id := slotPlace(s) - 1
			fresh.put(t.hash(&t.at(id).key), id)
		}
	}
	return fresh
}

// remove takes out the entry of key, which is there.
func (t *exact[K, V]) remove(key *K) {
	h := t.hash(key)
	id, _ := t.search(h, key)
	ix := t.shards[h>>t.shift].Load()
	mask := uint32(len(ix.slots) - 1)
	i := home(h) & mask
	for s := ix.slots[i].Load(); s == gone || slotPlace(s) != id+1; s = ix.slots[i].Load() {
		i = (i + 1) & mask
	}
	ix.slots[i].Store(gone)
	ix.live--
	t.live[id/64] &^= 1 << (id % 64)
	t.free = append(t.free, retired{id, t.grace.retire()})
	t.n.Add(-1)
}

// each yields the entries from place `from` on, at most n places, and returns
// the place to go on from, or false where there is none.
func (t *exact[K, V]) each(from, n uint32, yield func(uint32, *entry[K, V]) bool) (uint32, bool) {
	end := min(t.next, from+n)
	for w := from / 64; w*64 < end; w++ {
		for set := t.live[w]; set != 0; set &= set - 1 {
			if id := w*64 + uint32(bits.TrailingZeros64(set)); !yield(id, t.at(id)) {
				return 0, false
			}
		}
	}
	return end, end < t.next
}

// grace tells when no worker can hold a removed entry any more: each was seen
// between two batches since then (quiescent state based reclamation).
type grace struct {
	epoch   atomic.Uint64
	workers []*Worker
}

// outside is what a worker shows between batches.
const outside = ^uint64(0)

func (g *grace) enter(w *Worker) { w.seen.Store(g.epoch.Load()) }
func (g *grace) leave(w *Worker) { w.seen.Store(outside) }

// retire begins the grace of what was just removed.
func (g *grace) retire() uint64 { return g.epoch.Add(1) }

func (g *grace) over(epoch uint64) bool {
	return !slices.ContainsFunc(g.workers, func(w *Worker) bool { return w.seen.Load() < epoch })
}

// hasher hashes keys with secrets, so that nobody outside can aim many
// sessions at one place of a table (wyhash's multiply and fold). The zero
// value is not secret; it is safe for concurrent use.
type hasher [4]uint64

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (s *hasher) one(a uint64) uint64    { return fold(fold(a^s[0], s[1])^s[2], s[3]) }
func (s *hasher) two(a, b uint64) uint64 { return fold(fold(a^s[0], b^s[1])^s[2], s[3]) }

// more mixes two further words into h.
func (s *hasher) more(h, a, b uint64) uint64 { return fold(fold(h^a^s[0], b^s[1])^s[2], s[3]) }
