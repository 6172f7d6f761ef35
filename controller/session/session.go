// Package session is the controller's book of what stands in its data planes
// because of decisions: admitted sessions with where each direction may come
// from, and the tags that were vouched for or signed per session.
package session

import (
	"iter"
	"slices"
	"sync"
	"time"

	"countersign/tag"
)

// Announcement is what siblings of one site tell each other of a session.
type Announcement struct {
	Tuple tag.Tuple
	// InitiatorLow: the low side of the five-tuple opened the session.
	InitiatorLow bool
	// LowZone and HighZone are the names of the zones that packets of the low
	// and of the high side may come from; "*" is any, "" none.
	LowZone, HighZone string
	// Origin is the member that announces; a receiver takes it from the
	// certificate, never from the wire.
	Origin string
	// Issuer is the member whose tag vouched for the session, empty where
	// policy admitted it.
	Issuer string
	// Generation counts at the origin; a deletion touches its own only.
	Generation uint64
	Expiry     time.Time
	Deleted    bool
}

// Session is one admitted session. It is a plain value; the Book hands out
// copies.
type Session struct {
	Tuple        tag.Tuple
	InitiatorLow bool
	// Zone numbers that packets of each side may come from.
	LowZone, HighZone uint16
	// Origin is the sibling that announced it, empty for the member's own.
	Origin     string
	Issuer     string
	Generation uint64
	Created    time.Time
	// Expiry bounds a sibling's session and one that is closing; zero is none.
	Expiry time.Time
	// Places are the data planes where entries of the session stand. The slice
	// is never changed in place, so that copies of a Session may share it; see
	// At.
	Places []Place
	// Closing: FIN or RST was seen.
	Closing bool
	// Announced is when the siblings were last told.
	Announced time.Time
}

// Place is what stands of a session in one data plane.
type Place struct {
	Device             string
	Session, Delivered bool
	// When the data plane last reported the entries idle.
	SessionIdle, DeliveredIdle time.Time
}

// At returns the place of a device for change, in a copy of Places.
func (s *Session) At(device string) *Place {
	s.Places = slices.Clone(s.Places)
	for i := range s.Places {
		if s.Places[i].Device == device {
			return &s.Places[i]
		}
	}
	s.Places = append(s.Places, Place{Device: device})
	return &s.Places[len(s.Places)-1]
}

// Installed reports whether the session's entry stands in any data plane.
func (s *Session) Installed() bool {
	return slices.ContainsFunc(s.Places, func(p Place) bool { return p.Session })
}

// Delivered reports whether a tagged direction leaves by an edge here.
func (s *Session) Delivered() bool {
	return slices.ContainsFunc(s.Places, func(p Place) bool { return p.Delivered })
}

// Vouched identifies a tag that the CPU has verified for a session.
type Vouched struct {
	ID            tag.KeyID
	Nonce, Digest uint64
	CRC           uint32
}

// Tags is what stands for one five-tuple in vouched and own_tag.
type Tags struct {
	Vouched []Vouched // newest last, at most MaxVouched
	Own     tag.KeyID // key of the finished tag; zero: none
}

// MaxVouched bounds the vouched tags of one five-tuple: every issuer and epoch
// on its paths, and no more.
const MaxVouched = 16

const shards = 64

// Book holds sessions and tags. Its zero value is not usable, make it with
// NewBook; it is safe for concurrent use. Functions given to its methods run
// under a lock and must not call the Book.
type Book struct {
	max    int
	shards [shards]shard
}

type shard struct {
	mu       sync.Mutex
	sessions map[tag.Tuple]*Session
	tags     map[tag.Tuple]*Tags
}

// NewBook returns an empty book for at most max sessions.
func NewBook(max int) *Book {
	b := &Book{max: max}
	for i := range b.shards {
		b.shards[i].sessions = map[tag.Tuple]*Session{}
		b.shards[i].tags = map[tag.Tuple]*Tags{}
	}
	return b
}

func (b *Book) shard(t tag.Tuple) *shard { return &b.shards[t.FlowHash()%shards] }

// Get returns a copy of the session.
func (b *Book) Get(t tag.Tuple) (Session, bool) {
	sh := b.shard(t)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s := sh.sessions[t]; s != nil {
		return *s, true
	}
	return Session{}, false
}

// Put stores s; it reports false where the book is full and s is new.
func (b *Book) Put(s Session) bool {
	sh := b.shard(s.Tuple)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.sessions[s.Tuple] == nil && len(sh.sessions) >= b.max/shards+1 {
		return false
	}
	sh.sessions[s.Tuple] = &s
	return true
}

// Update runs f on the session, if it is there, and returns a copy of it.
func (b *Book) Update(t tag.Tuple, f func(*Session)) (Session, bool) {
	sh := b.shard(t)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.sessions[t]
	if s == nil {
		return Session{}, false
	}
	f(s)
	return *s, true
}

// Delete forgets the session and returns what it was. With a generation other
// than 0 only that one of the given origin is touched.
func (b *Book) Delete(t tag.Tuple, origin string, generation uint64) (Session, bool) {
	sh := b.shard(t)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.sessions[t]
	if s == nil || generation != 0 && (s.Generation != generation || s.Origin != origin) {
		return Session{}, false
	}
	delete(sh.sessions, t)
	return *s, true
}

// Tags runs f on what stands for the five-tuple; where f leaves nothing, the
// record goes.
func (b *Book) Tags(t tag.Tuple, f func(*Tags)) {
	sh := b.shard(t)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.tags[t]
	if r == nil {
		r = &Tags{}
	}
	f(r)
	if len(r.Vouched) == 0 && r.Own == (tag.KeyID{}) {
		delete(sh.tags, t)
	} else {
		sh.tags[t] = r
	}
}

// Sessions yields copies of all sessions, each shard as it is at one moment.
func (b *Book) Sessions() iter.Seq[Session] {
	return func(yield func(Session) bool) {
		for i := range b.shards {
			sh := &b.shards[i]
			sh.mu.Lock()
			part := make([]Session, 0, len(sh.sessions))
			for _, s := range sh.sessions {
				part = append(part, *s)
			}
			sh.mu.Unlock()
			for _, s := range part {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// AllTags yields copies of all records of tags.
func (b *Book) AllTags() iter.Seq2[tag.Tuple, Tags] {
	return func(yield func(tag.Tuple, Tags) bool) {
		type row struct {
			t tag.Tuple
			r Tags
		}
		for i := range b.shards {
			sh := &b.shards[i]
			sh.mu.Lock()
			part := make([]row, 0, len(sh.tags))
			for t, r := range sh.tags {
				part = append(part, row{t, Tags{append([]Vouched(nil), r.Vouched...), r.Own}})
			}
			sh.mu.Unlock()
			for _, x := range part {
				if !yield(x.t, x.r) {
					return
				}
			}
		}
	}
}

// Len is the number of sessions.
func (b *Book) Len() int {
	n := 0
	for i := range b.shards {
		b.shards[i].mu.Lock()
		n += len(b.shards[i].sessions)
		b.shards[i].mu.Unlock()
	}
	return n
}
