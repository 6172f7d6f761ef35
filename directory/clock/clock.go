// Package clock is the time that the directory and its clients go by, so that
// tests can set it.
package clock

import (
	"sync"
	"time"
)

// Clock tells the time and wakes. Implementations are safe for concurrent use.
type Clock interface {
	Now() time.Time
	// At delivers once, when it is t; at once where it is already. A moment
	// instead of a duration leaves no gap between Now and the wait.
	At(t time.Time) <-chan time.Time
}

// System is the machine's clock. The zero value is ready.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now() }

// At implements Clock.
func (System) At(t time.Time) <-chan time.Time { return time.After(time.Until(t)) }

// Fake is a clock that only Advance moves. Make it with NewFake; it is safe for
// concurrent use.
type Fake struct {
	mu     sync.Mutex
	now    time.Time
	alarms map[chan time.Time]time.Time
}

// NewFake returns a clock that stands at start.
func NewFake(start time.Time) *Fake {
	return &Fake{now: start, alarms: map[chan time.Time]time.Time{}}
}

// Now implements Clock.
func (f *Fake) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// At implements Clock.
func (f *Fake) At(t time.Time) <-chan time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan time.Time, 1)
	if !t.After(f.now) {
		ch <- f.now
	} else {
		f.alarms[ch] = t
	}
	return ch
}

// Advance moves the clock and wakes what is due.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
	for ch, at := range f.alarms {
		if !at.After(f.now) {
			ch <- f.now
			delete(f.alarms, ch)
		}
	}
}
