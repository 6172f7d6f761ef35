package pktio

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// maxCaptured is the longest packet of a capture that is read, in bytes: what
// libpcap allows.
const maxCaptured = 1 << 18

// PcapReader reads the Ethernet frames of a pcap or pcapng capture. Not safe for
// concurrent use; take it from [NewPcapReader].
type PcapReader struct {
	next  func() ([]byte, gopacket.CaptureInfo, error)
	count int
	err   error // of Next, which repeats it
}

// NewPcapReader reads the head of a capture. A capture of another link type than
// Ethernet is ErrSpec, here or at its first such packet.
func NewPcapReader(r io.Reader) (*PcapReader, error) {
	buf := bufio.NewReader(r)
	magic, err := buf.Peek(len(pcapngMagic))
	if err != nil {
		return nil, fmt.Errorf("capture has no header: %w", err)
	}
	if string(magic) == pcapngMagic {
		ng := &ngReader{r: buf}
		return &PcapReader{next: ng.next}, nil
	}
	pcap, err := pcapgo.NewReader(buf)
	if err != nil {
		return nil, fmt.Errorf("pcap header: %w", err)
	}
	if pcap.LinkType() != layers.LinkTypeEthernet {
		return nil, fmt.Errorf("capture's link type is %s, not Ethernet: %w", pcap.LinkType(), ErrSpec)
	}
	pcap.SetSnaplen(maxCaptured)
	return &PcapReader{next: pcap.ReadPacketData}, nil
}

// Next returns the next frame and its time, in nanoseconds since the Unix epoch,
// and io.EOF behind the last. An error is returned again by every later call.
func (p *PcapReader) Next() (frame []byte, nanos int64, err error) {
	if p.err != nil {
		return nil, 0, p.err
	}
	frame, info, err := p.next()
	p.count++
	switch {
	case err == io.EOF: // not a wrapped one: that is a capture cut short
		p.err = io.EOF
	case err != nil:
		p.err = fmt.Errorf("packet %d: %w", p.count, err)
	}
	return frame, info.Timestamp.UnixNano(), p.err
}

// PcapWriter writes Ethernet frames to a pcap file with times in nanoseconds. Not
// safe for concurrent use; take it from [NewPcapWriter].
type PcapWriter struct {
	buf *bufio.Writer
	w   *pcapgo.Writer
}

// NewPcapWriter writes the head of a capture; Flush must follow the last frame.
func NewPcapWriter(w io.Writer) (*PcapWriter, error) {
	buf := bufio.NewWriter(w)
	p := &PcapWriter{buf: buf, w: pcapgo.NewWriterNanos(buf)}
	if err := p.w.WriteFileHeader(maxCaptured, layers.LinkTypeEthernet); err != nil {
		return nil, fmt.Errorf("pcap header: %w", err)
	}
	return p, nil
}

// Write appends a frame.
func (p *PcapWriter) Write(frame []byte, nanos int64) error {
	return p.w.WritePacket(gopacket.CaptureInfo{
		Timestamp: time.Unix(0, nanos).UTC(), CaptureLength: len(frame), Length: len(frame),
	}, frame)
}

// Flush writes what is buffered.
func (p *PcapWriter) Flush() error { return p.buf.Flush() }

// pcapPort is a Port whose input and output are captures.
type pcapPort struct {
	receiver
	name    string
	stats   counters
	in, out *os.File // nil where there is none
	reader  *PcapReader
	sendMu  sync.Mutex // held while writer is in use
	writer  *PcapWriter
}

func openPcap(name string, o Options) ([]Port, error) {
	if o.Queues != 1 {
		return nil, fmt.Errorf("port pcap:%s: a capture has one queue, not %d: %w", name, o.Queues, ErrSpec)
	}
	in, out, _ := strings.Cut(name, ",")
	wake, err := newEvent()
	if err != nil {
		return nil, fmt.Errorf("port pcap:%s: %w", name, err)
	}
	p := &pcapPort{receiver: receiver{wake: wake}, name: name}
	if err := p.open(in, out); err != nil {
		return nil, errors.Join(fmt.Errorf("port pcap:%s: %w", name, err), p.Close())
	}
	return []Port{p}, nil
}

func (p *pcapPort) open(in, out string) (err error) {
	if in != "" {
		if p.in, err = os.Open(in); err != nil {
			return err
		}
		if p.reader, err = NewPcapReader(p.in); err != nil {
			return err
		}
	}
	if out != "" {
		if p.out, err = os.Create(out); err != nil {
			return err
		}
		if p.writer, err = NewPcapWriter(p.out); err != nil {
			return err
		}
	}
	return nil
}

func (p *pcapPort) Name() string                   { return p.name }
func (p *pcapPort) MTU() int                       { return MaxMTU }
func (p *pcapPort) HardwareAddr() net.HardwareAddr { return nil }
func (p *pcapPort) Wake()                          { p.wake.set() }
func (p *pcapPort) Stats() Stats                   { return p.stats.load() }

func (p *pcapPort) Recv(frames []*Frame) (int, error) { return p.recv(p, frames) }

func (p *pcapPort) tryRecv(frames []*Frame) (int, error) {
	if err := p.check(p); err != nil {
		return 0, err
	}
	if p.reader == nil {
		return 0, io.EOF
	}
	n, bytes := 0, uint64(0)
	for n < len(frames) {
		data, nanos, err := p.reader.Next()
		if err != nil {
			if n > 0 {
				break // the reader reports it again
			}
			if errors.Is(err, io.EOF) {
				return 0, err
			}
			return 0, fmt.Errorf("port %s: %w", p.name, err)
		}
		f := frames[n]
		switch {
		case len(data) < etherLen:
			p.stats.rxTooShort.Add(1)
		case len(data) > MaxFrame || f.Set(data) != nil:
			p.stats.rxTooLong.Add(1)
		default:
			f.Time = nanos
			bytes += uint64(len(data))
			n++
		}
	}
	p.stats.received(n, bytes)
	return n, nil
}

// A capture is never waited for: appendPoll has nothing to add.
func (p *pcapPort) appendPoll(fds []unix.PollFd) ([]unix.PollFd, bool) { return fds, false }
func (p *pcapPort) polled([]unix.PollFd)                               {}

func (p *pcapPort) Send(frames []*Frame) (int, error) {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if err := p.check(p); err != nil {
		return 0, err
	}
	if p.writer == nil {
		p.stats.txDropped.Add(uint64(len(frames)))
		return 0, nil
	}
	var bytes uint64
	for i, f := range frames {
		if err := p.writer.Write(f.Bytes(), f.Time); err != nil {
			p.stats.sent(i, bytes)
			return i, fmt.Errorf("port %s: write capture: %w", p.name, err)
		}
		bytes += uint64(f.Len())
	}
	p.stats.sent(len(frames), bytes)
	return len(frames), nil
}

func (p *pcapPort) Close() (err error) {
	p.shut(func() {
		p.sendMu.Lock()
		defer p.sendMu.Unlock()
		if p.writer != nil {
			err = p.writer.Flush()
		}
		for _, f := range []*os.File{p.in, p.out} {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			err = fmt.Errorf("port %s: close: %w", p.name, err)
		}
	})
	return err
}
