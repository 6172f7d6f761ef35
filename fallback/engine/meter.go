package engine

import (
	"sync/atomic"

	"countersign/fallback/p4rtserver"
)

// color is what a meter marks a packet.
type color uint8

const (
	green color = iota
	yellow
	red
)

// meter is a two rate three colour marker (RFC 2698), colour blind, in packets.
// It is safe for concurrent use without locks; its configuration is fixed.
type meter struct {
	cfg             *p4rtserver.MeterConfig // nil: all packets are green
	peak, committed bucket
	marked          *[3]counts
}

// newMeter returns a meter that is full at now, nanoseconds since the Unix
// epoch.
func newMeter(cfg *p4rtserver.MeterConfig, now int64) *meter {
	m := &meter{marked: new([3]counts)}
	if cfg != nil {
		c := *cfg
		m.cfg = &c
		m.peak.init(c.PIR, c.PBurst, now)
		m.committed.init(c.CIR, c.CBurst, now)
	}
	return m
}

// mark takes one packet of so many bytes.
func (m *meter) mark(now int64, bytes int) color {
	c := green
	if m.cfg != nil {
		if !m.peak.take(now) {
			c = red
		} else if !m.committed.take(now) {
			c = yellow
		}
	}
	m.marked[c].add(1, uint64(bytes))
	return c
}

func (m *meter) config() *p4rtserver.MeterConfig { return m.cfg }

func (m *meter) counters() *p4rtserver.MeterCounters {
	return &p4rtserver.MeterCounters{Green: m.marked[green].load(), Yellow: m.marked[yellow].load(), Red: m.marked[red].load()}
}

// bucket is a token bucket of `burst` tokens that gains `rate` a second. Its
// whole state is the time at which it was, or would have been, empty: what it
// holds are the tokens gained since, at most the burst.
type bucket struct {
	interval uint64        // ticks for a token
	depth    uint64        // ticks for the burst
	start    int64         // ns
	still    bool          // gains nothing
	empty    atomic.Uint64 // ticks since start, less the burst
}

const (
	tick    = 64 // of a nanosecond: nine years fit 64 bits
	maxRate = 1e9
)

func (b *bucket) init(rate, burst, now int64) {
	b.start, b.still, b.interval = now, rate <= 0, 1
	if !b.still {
		b.interval = 1e9 * tick / uint64(min(rate, maxRate))
	}
	b.depth = min(uint64(max(burst, 0)), 1<<62/b.interval) * b.interval
}

// take takes a token, if there is one.
func (b *bucket) take(now int64) bool {
	t := b.depth
	if !b.still {
		t += uint64(max(now-b.start, 0)) * tick
	}
	for {
		old := b.empty.Load()
		e := max(old, t-b.depth) + b.interval
		if e > t {
			return false
		}
		if b.empty.CompareAndSwap(old, e) {
			return true
		}
	}
}
