// Package pktio moves Ethernet frames between a software data plane and its
// ports, in batches and without allocating for a frame.
//
// # Ownership
//
// The caller owns every [Frame]. Recv overwrites the frames it is lent and is
// done with them when it returns; Send copies the frames it is lent and neither
// keeps nor changes them. So one slice from [NewFrames] serves a worker for its
// whole life, and a frame can be sent on several ports.
//
// # Workers
//
// [Open] returns one [Port] for each worker. A worker receives from all its
// ports through a [Mux] and sends on any of them.
//
// # Another kind of port
//
// A kind, such as AF_XDP, is a function of the type of [openers]'s values and
// an entry in that map; nothing else in the data plane names a kind.
package pktio

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Headroom is the number of free bytes in front of a received frame: room
	// for the longest tag (284), a UDP header and a fragment header, and some
	// to spare.
	Headroom = 512
	// MaxMTU is the largest network-layer packet a port carries, in bytes.
	MaxMTU = 9216
	// L2Len is the longest Ethernet header in bytes: 14 and one 802.1Q tag.
	L2Len = 18
	// MaxFrame is the longest frame in bytes, without FCS.
	MaxFrame = MaxMTU + L2Len
)

// Errors that callers branch on; each comes wrapped with the port's name.
var (
	// ErrClosed is returned by every method of a closed Port or Mux.
	ErrClosed = errors.New("port is closed")
	// ErrGone means that the interface was removed; the port must be opened anew.
	ErrGone = errors.New("interface was removed")
	// ErrNoInterface means that no interface has this name in this namespace.
	ErrNoInterface = errors.New("no such interface")
	// ErrDown means that the interface is administratively down at Open.
	ErrDown = errors.New("interface is down")
	// ErrPermission means that CAP_NET_RAW or CAP_NET_ADMIN is missing.
	ErrPermission = errors.New("permission denied")
	// ErrOffloads means that the interface has offloads on that a packet
	// processor cannot work with.
	ErrOffloads = errors.New("offloads are on")
	// ErrSpec means that a port specification cannot be read.
	ErrSpec = errors.New("bad port specification")
	// ErrNoRoom means that a frame has not the room asked for.
	ErrNoRoom = errors.New("no room in frame")
)

// Frame is one Ethernet frame in a buffer with free room in front. The zero
// value has no buffer, take frames from [NewFrames]; not safe for concurrent
// use.
type Frame struct {
	buf        []byte
	start, end int
	// Time is when the frame was received, in nanoseconds since the Unix epoch.
	Time int64
}

// NewFrames returns n empty frames, each with room for Headroom + MaxFrame
// bytes.
func NewFrames(n int) []*Frame {
	const size = (Headroom + MaxFrame + 63) &^ 63
	slab := make([]byte, n*size)
	frames := make([]Frame, n)
	refs := make([]*Frame, n)
	for i := range frames {
		frames[i] = Frame{buf: slab[i*size : (i+1)*size : (i+1)*size], start: Headroom, end: Headroom}
		refs[i] = &frames[i]
	}
	return refs
}

// Bytes returns the frame from its Ethernet header to its end. The slice is
// valid until the frame is next changed.
func (f *Frame) Bytes() []byte { return f.buf[f.start:f.end:f.end] }

// Len returns the frame's length in bytes.
func (f *Frame) Len() int { return f.end - f.start }

// Room returns the number of free bytes in front of the frame.
func (f *Frame) Room() int { return f.start }

// Set makes b the frame's content, with Headroom in front. It returns ErrNoRoom
// and leaves the frame as it was where b is longer than the buffer.
func (f *Frame) Set(b []byte) error {
	if Headroom+len(b) > len(f.buf) {
		return fmt.Errorf("%d bytes: %w", len(b), ErrNoRoom)
	}
	f.start, f.end = Headroom, Headroom+copy(f.buf[Headroom:], b)
	return nil
}

// Insert opens a gap of n bytes at offset at by moving the at bytes before it
// forward into the headroom, and returns the frame. The gap's content is
// undefined. ok is false, and the frame as it was, where the headroom or the
// frame is too short.
func (f *Frame) Insert(at, n int) (b []byte, ok bool) {
	if n < 0 || at < 0 || n > f.start || at > f.Len() {
		return nil, false
	}
	copy(f.buf[f.start-n:], f.buf[f.start:f.start+at])
	f.start -= n
	return f.Bytes(), true
}

// Remove cuts n bytes out at offset at by moving the at bytes before them
// back, and returns the frame. ok is false, and the frame as it was, where the
// frame is too short.
func (f *Frame) Remove(at, n int) (b []byte, ok bool) {
	if n < 0 || at < 0 || at > f.Len() || n > f.Len()-at {
		return nil, false
	}
	copy(f.buf[f.start+n:f.start+n+at], f.buf[f.start:f.start+at])
	f.start += n
	return f.Bytes(), true
}

// Truncate makes the frame n bytes long where it is longer.
func (f *Frame) Truncate(n int) {
	if n >= 0 && n < f.Len() {
		f.end = f.start + n
	}
}

// Port is one worker's queue of an interface. Recv and Send are for one
// goroutine at a time; Wake, Close and Stats may be called from any.
type Port interface {
	// Name is the interface's or file's name.
	Name() string
	// MTU is the longest network-layer packet in bytes.
	MTU() int
	// HardwareAddr is the interface's own address, nil where it has none.
	HardwareAddr() net.HardwareAddr
	// Recv fills frames from the front and returns how many it filled. It
	// waits until there is one, or until Wake, when it returns 0 and no error.
	// It returns io.EOF where no frame can come any more, ErrClosed and
	// ErrGone; an interface that is down is waited for.
	Recv(frames []*Frame) (int, error)
	// Send sends the frames in their order and returns how many left. It never
	// waits: frames the interface does not take are dropped and counted. An
	// error means that the port is of no use any more.
	Send(frames []*Frame) (int, error)
	// Wake ends one present or next wait of Recv. A port of a Mux is woken by
	// the Mux.
	Wake()
	// Close ends a waiting Recv and frees the port; it is idempotent. A port
	// of a Mux is closed by the Mux.
	Close() error
	// Stats returns the port's counters.
	Stats() Stats

	// tryRecv is Recv that does not wait: 0 and no error where no frame is there.
	tryRecv(frames []*Frame) (int, error)
	// appendPoll adds what to poll before the next tryRecv, and reports whether
	// there is anything to wait for: false where a frame may be there already.
	appendPoll(fds []unix.PollFd) ([]unix.PollFd, bool)
	// polled is told the outcome for the entries that appendPoll added.
	polled(fds []unix.PollFd)
}

// Stats are a port's counters since Open, in frames if not said otherwise.
type Stats struct {
	RxPackets, RxBytes uint64
	TxPackets, TxBytes uint64
	// RxRingFull are frames lost because the worker was too slow.
	RxRingFull uint64
	// RxTooLong are frames dropped because they were longer than the MTU and
	// an Ethernet header: segments that an offload merged.
	RxTooLong uint64
	// RxTooShort are frames dropped because they had no whole Ethernet header.
	RxTooShort uint64
	// RxChecksumFinished are frames that came with an unfinished TCP or UDP
	// checksum and had it finished.
	RxChecksumFinished uint64
	// RxChecksumUnfinished are frames dropped because they came with an
	// unfinished checksum of another kind.
	RxChecksumUnfinished uint64
	// TxDropped are frames the interface did not take: its queue was full, or
	// the frame was longer than it sends.
	TxDropped uint64
	// TxLinkDown are frames dropped because the interface was down.
	TxLinkDown uint64
	// LinkDowns is how many times the interface went down.
	LinkDowns uint64
}

// Options say how Open opens a port. The zero value is one queue with the
// defaults, which changes nothing about the interface.
type Options struct {
	// Queues is the number of ports to return, one for each worker; 0 means 1.
	// Frames are spread over them by flow.
	Queues int
	// FixOffloads switches off the offloads that a packet processor cannot
	// work with. Without it Open refuses an interface that has them on.
	FixOffloads bool
	// Isolate keeps what the port receives from the host's own network stack,
	// which would answer and forward it too, by an ingress filter that goes
	// with the last queue's Close.
	Isolate bool
	// Promiscuous receives frames for other hardware addresses too, which a
	// transparent port needs.
	Promiscuous bool
	// RingFrames is the receive ring's length for each queue; 0 means
	// DefaultRingFrames.
	RingFrames int
	// Log receives what happens at run time; nil means slog.Default.
	Log *slog.Logger
}

// openers are the kinds of port by name. AF_XDP would be one more entry.
var openers = map[string]func(name string, o Options) ([]Port, error){
	"afpacket": openAFPacket,
	"pcap":     openPcap,
}

// DefaultKind is the kind of a specification that names none.
const DefaultKind = "afpacket"

// Kinds returns the kinds of port that Open knows, sorted.
func Kinds() []string { return slices.Sorted(maps.Keys(openers)) }

// Open opens the port that spec names, "KIND:NAME" or NAME alone for an
// AF_PACKET port, and returns one Port for each of o.Queues. Interfaces are
// looked for in the calling thread's network namespace.
//
//	eth0, afpacket:eth0     the interface eth0
//	pcap:IN.pcap            reads IN.pcap, what is sent is dropped
//	pcap:IN.pcap,OUT.pcap   reads IN.pcap, writes OUT.pcap; either may be empty
func Open(spec string, o Options) ([]Port, error) {
	kind, name, found := strings.Cut(spec, ":")
	if !found {
		kind, name = DefaultKind, spec
	}
	open, ok := openers[kind]
	if !ok {
		return nil, fmt.Errorf("port %q: kind %q is not one of %s: %w", spec, kind, strings.Join(Kinds(), ", "), ErrSpec)
	}
	if name == "" {
		return nil, fmt.Errorf("port %q has no name: %w", spec, ErrSpec)
	}
	if o.Queues < 0 || o.RingFrames < 0 {
		return nil, fmt.Errorf("port %q: %d queues of %d frames: %w", spec, o.Queues, o.RingFrames, ErrSpec)
	}
	o.Queues = max(o.Queues, 1)
	if o.RingFrames == 0 {
		o.RingFrames = DefaultRingFrames
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return open(name, o)
}

func closeAll[C io.Closer](cs []C) error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
