package decide

import (
	"bytes"
	"sync"
	"time"

	"countersign/tag"
)

// maxPerTuple bounds how many packets of one session wait.
const maxPerTuple = 32

// waitRoom holds replies that overtook their announcement, bounded in number
// and time. The zero value with max set is ready; it is safe for concurrent
// use.
type waitRoom struct {
	max  int
	mu   sync.Mutex
	n    int
	held map[tag.Tuple]*waiters
}

type waiters struct {
	until time.Time
	punts []Punt
}

// add keeps a copy of p, or reports false where there is no room.
func (w *waitRoom) add(t tag.Tuple, p Punt, until time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = map[tag.Tuple]*waiters{}
	}
	e := w.held[t]
	if w.n >= w.max || e != nil && len(e.punts) >= maxPerTuple {
		return false
	}
	if e == nil {
		e = &waiters{until: until}
		w.held[t] = e
	}
	p.Frame = bytes.Clone(p.Frame)
	e.punts = append(e.punts, p)
	w.n++
	return true
}

func (w *waitRoom) take(t tag.Tuple) []Punt {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.held[t]
	if e == nil {
		return nil
	}
	delete(w.held, t)
	w.n -= len(e.punts)
	return e.punts
}

func (w *waitRoom) expire(now time.Time) (dropped int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t, e := range w.held {
		if now.After(e.until) {
			dropped += len(e.punts)
			delete(w.held, t)
		}
	}
	w.n -= dropped
	return dropped
}
