package pktio

import (
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// memPort is one end of a Pipe.
type memPort struct {
	receiver
	name  string
	mtu   int
	in    *memQueue
	out   *memQueue
	stats counters
}

// memQueue is a bounded queue of frames from one end to the other; its methods
// may be called from any goroutine.
type memQueue struct {
	ready *event

	mu      sync.Mutex
	frames  []*Frame
	head, n int
	waiting bool // the reader polls ready
	ended   bool // one end is closed
}

// Pipe returns two ports of which each receives what the other sends, for tests
// and benchmarks. Each direction holds depth frames; more are dropped and
// counted as TxDropped. A frame keeps its Time. When one end is closed, the
// other receives what is left and then io.EOF.
func Pipe(nameA, nameB string, mtu, depth int) (a, b Port, err error) {
	if mtu <= 0 || mtu > MaxMTU || depth <= 0 {
		return nil, nil, fmt.Errorf("pipe %s-%s: MTU %d, depth %d: %w", nameA, nameB, mtu, depth, ErrSpec)
	}
	var events [4]*event
	for i := range events {
		if events[i], err = newEvent(); err != nil {
			for _, e := range events[:i] {
				e.close()
			}
			return nil, nil, fmt.Errorf("pipe %s-%s: %w", nameA, nameB, err)
		}
	}
	ab := &memQueue{ready: events[0], frames: NewFrames(depth)}
	ba := &memQueue{ready: events[1], frames: NewFrames(depth)}
	return &memPort{receiver: receiver{wake: events[2]}, name: nameA, mtu: mtu, in: ba, out: ab},
		&memPort{receiver: receiver{wake: events[3]}, name: nameB, mtu: mtu, in: ab, out: ba}, nil
}

func (p *memPort) Name() string                   { return p.name }
func (p *memPort) MTU() int                       { return p.mtu }
func (p *memPort) HardwareAddr() net.HardwareAddr { return nil }
func (p *memPort) Wake()                          { p.wake.set() }
func (p *memPort) Stats() Stats                   { return p.stats.load() }

func (p *memPort) Recv(frames []*Frame) (int, error) { return p.recv(p, frames) }

func (p *memPort) tryRecv(frames []*Frame) (int, error) {
	if err := p.check(p); err != nil {
		return 0, err
	}
	n, bytes, ended := p.in.take(frames)
	if n == 0 {
		if ended {
			return 0, io.EOF
		}
		return 0, nil
	}
	p.stats.received(n, bytes)
	return n, nil
}

func (p *memPort) appendPoll(fds []unix.PollFd) ([]unix.PollFd, bool) {
	q := p.in
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n > 0 || q.ended {
		return fds, false
	}
	q.waiting = true
	return append(fds, q.ready.pollFd()), true
}

func (p *memPort) polled(fds []unix.PollFd) {
	if fds[0].Revents != 0 {
		p.in.ready.take()
	}
}

func (p *memPort) Send(frames []*Frame) (int, error) {
	if err := p.check(p); err != nil {
		return 0, err
	}
	n, bytes := p.out.put(frames, p.mtu+L2Len)
	p.stats.sent(n, bytes)
	p.stats.txDropped.Add(uint64(len(frames) - n))
	return n, nil
}

func (p *memPort) Close() error {
	p.shut(func() {
		p.in.close()
		p.out.close()
	})
	return nil
}

// close is called by each end once.
func (q *memQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		q.ready.close()
		return
	}
	q.ended = true
	q.notify()
}

// put copies frames in and returns how many of them and their bytes; longer ones
// than limit are left out.
func (q *memQueue) put(frames []*Frame, limit int) (n int, bytes uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return 0, 0
	}
	for _, f := range frames {
		if f.Len() > limit || q.n == len(q.frames) {
			continue
		}
		slot := q.frames[(q.head+q.n)%len(q.frames)]
		if slot.Set(f.Bytes()) != nil {
			continue
		}
		slot.Time = f.Time
		q.n++
		n++
		bytes += uint64(f.Len())
	}
	q.notify()
	return n, bytes
}

// notify wakes a reader that polls; q.mu is held.
func (q *memQueue) notify() {
	if q.waiting {
		q.waiting = false
		q.ready.set()
	}
}

// take swaps filled frames for the caller's.
func (q *memQueue) take(frames []*Frame) (n int, bytes uint64, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n < len(frames) && q.n > 0 {
		slot := q.frames[q.head]
		*frames[n], *slot = *slot, *frames[n]
		bytes += uint64(frames[n].Len())
		q.head = (q.head + 1) % len(q.frames)
		q.n--
		n++
	}
	return n, bytes, q.ended
}
