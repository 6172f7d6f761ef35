package pktio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// event is an eventfd that stays set until it is taken. take and pollFd are for its
// reader; the rest may be called from any goroutine, also after close.
type event struct {
	file  *os.File
	fd    int32
	taken [8]byte
}

// eventValue is what sets an event: any value but 0 and 2^64-1.
var eventValue = []byte{1, 0, 0, 0, 0, 0, 0, 0}

func newEvent() (*event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &event{file: os.NewFile(uintptr(fd), "eventfd"), fd: int32(fd)}, nil
}

func (e *event) set() { _, _ = e.file.Write(eventValue) }

// take clears the event after poll has found it set.
func (e *event) take() { _, _ = e.file.Read(e.taken[:]) }

func (e *event) close() { _ = e.file.Close() }

// pollFd is the event's entry for poll.
func (e *event) pollFd() unix.PollFd { return unix.PollFd{Fd: e.fd, Events: unix.POLLIN} }

// poll waits until one of fds is ready.
func poll(fds []unix.PollFd) error {
	for {
		_, err := unix.Poll(fds, -1)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Mux receives from several ports for one worker and owns them. Take it from
// [NewMux]; Recv is for one goroutine at a time, Wake and Close may be called
// from any.
type Mux struct {
	closed atomic.Bool
	wake   *event
	mu     sync.Mutex // held by Recv, so that Close frees nothing in use
	ports  []Port
	ended  []bool
	next   int
	fds    []unix.PollFd
	spans  []span
}

// span is the part of Mux.fds that belongs to a port.
type span struct{ port, from, to int }

// NewMux returns a Mux of the ports, which it closes when it is closed.
func NewMux(ports ...Port) (*Mux, error) {
	wake, err := newEvent()
	if err != nil {
		return nil, err
	}
	return &Mux{wake: wake, ports: ports, ended: make([]bool, len(ports))}, nil
}

// Recv fills frames from one port, whose number in NewMux's order it returns;
// ports with input take turns. It waits until there is a frame, or until Wake,
// when it returns 0, -1 and no error. An error of a port comes with the port's
// number once, and the port is then left out; io.EOF with -1 means that no port
// is left, ErrClosed that the Mux is closed.
func (m *Mux) Recv(frames []*Frame) (n, port int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(frames) == 0 {
		return 0, -1, nil
	}
	for {
		if m.closed.Load() {
			return 0, -1, fmt.Errorf("mux: %w", ErrClosed)
		}
		n, port, err := m.try(frames)
		if n > 0 || err != nil {
			return n, port, err
		}
		woken, err := m.wait()
		if err != nil || woken {
			return 0, -1, err
		}
	}
}

// try looks once at each port that has not ended, by turns.
func (m *Mux) try(frames []*Frame) (n, port int, err error) {
	left := 0
	for range m.ports {
		i := m.next
		if m.next++; m.next == len(m.ports) {
			m.next = 0
		}
		if m.ended[i] {
			continue
		}
		n, err := m.ports[i].tryRecv(frames)
		if n > 0 {
			return n, i, nil
		}
		if err != nil {
			m.ended[i] = true
			return 0, i, err
		}
		left++
	}
	if left == 0 {
		return 0, -1, io.EOF
	}
	return 0, -1, nil
}

// wait waits until a port may have input, and reports whether Wake ended it.
func (m *Mux) wait() (woken bool, err error) {
	m.fds = append(m.fds[:0], m.wake.pollFd())
	m.spans = m.spans[:0]
	for i, p := range m.ports {
		if m.ended[i] {
			continue
		}
		from, ok := len(m.fds), false
		if m.fds, ok = p.appendPoll(m.fds); !ok {
			return false, nil
		}
		m.spans = append(m.spans, span{i, from, len(m.fds)})
	}
	if err := poll(m.fds); err != nil {
		return false, fmt.Errorf("mux: poll: %w", err)
	}
	for _, s := range m.spans {
		m.ports[s.port].polled(m.fds[s.from:s.to])
	}
	if m.fds[0].Revents == 0 {
		return false, nil
	}
	m.wake.take()
	return !m.closed.Load(), nil
}

// Ports returns the ports in NewMux's order; the slice must not be changed.
func (m *Mux) Ports() []Port { return m.ports }

// Wake ends one present or next wait of Recv.
func (m *Mux) Wake() { m.wake.set() }

// Close ends a waiting Recv and closes the ports. It is idempotent.
func (m *Mux) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	m.wake.set()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake.close()
	return closeAll(m.ports)
}

// receiver is the waiting half of a Port on its own.
type receiver struct {
	closed atomic.Bool
	wake   *event
	mu     sync.Mutex // held by recv, so that shut frees nothing in use
	fds    []unix.PollFd
}

// recv is Port.Recv over tryRecv.
func (r *receiver) recv(p Port, frames []*Frame) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		n, err := p.tryRecv(frames)
		if n > 0 || err != nil || len(frames) == 0 {
			return n, err
		}
		r.fds = append(r.fds[:0], r.wake.pollFd())
		var ok bool
		if r.fds, ok = p.appendPoll(r.fds); !ok {
			continue
		}
		if err := poll(r.fds); err != nil {
			return 0, fmt.Errorf("port %s: poll: %w", p.Name(), err)
		}
		p.polled(r.fds[1:])
		if r.fds[0].Revents != 0 {
			r.wake.take()
			return 0, r.check(p)
		}
	}
}

// check reports ErrClosed where the port is closed.
func (r *receiver) check(p Port) error {
	if r.closed.Load() {
		return fmt.Errorf("port %s: %w", p.Name(), ErrClosed)
	}
	return nil
}

// shut ends a waiting recv and then calls free, the first time it is called.
func (r *receiver) shut(free func()) {
	if r.closed.Swap(true) {
		return
	}
	r.wake.set()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wake.close()
	free()
}
