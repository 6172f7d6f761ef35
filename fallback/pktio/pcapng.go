package pktio

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// pcapngMagic is the block type that a pcapng file begins with, alike in both
// byte orders.
const pcapngMagic = "\x0a\x0d\x0d\x0a"

// Block types and options of draft-ietf-opsawg-pcapng, sections 4.1 to 4.4.
const (
	ngSection         = 0x0a0d0d0a
	ngInterface       = 1
	ngSimplePacket    = 3
	ngEnhancedPacket  = 6
	ngByteOrder       = 0x1a2b3c4d
	ngOptionTSResol   = 9
	ngOptionTSOffset  = 14
	ngMaxInterfaces   = 1 << 12
	ngMaxDescription  = 1 << 16 // bytes of an interface's description that are read
	ngBlockOverhead   = 12      // type, length, and the length again
	ngEnhancedHeader  = 20
	ngDefaultTSPerSec = 1e6
)

var errPcapng = errors.New("malformed pcapng")

// ngReader reads pcapng captures in bounded memory, whatever lengths a file
// claims: gopacket's reader takes a packet's length at its word. Not safe for
// concurrent use.
type ngReader struct {
	r      *bufio.Reader
	order  binary.ByteOrder
	ifaces []ngIface
}

type ngIface struct {
	snapLen  uint32 // 0 means no limit
	perSec   uint64 // ticks of the clock in a second
	offset   int64  // added to the clock, in seconds
	ethernet bool
}

// next returns the next packet and its time.
func (n *ngReader) next() ([]byte, gopacket.CaptureInfo, error) {
	for {
		data, info, err := n.block()
		if data != nil || err != nil {
			return data, info, err
		}
	}
}

// block reads one block; data is nil where it is no packet.
func (n *ngReader) block() (data []byte, info gopacket.CaptureInfo, err error) {
	var head [12]byte
	if _, err := io.ReadFull(n.r, head[:8]); err != nil {
		return nil, info, err // io.EOF between two blocks
	}
	if string(head[:4]) == pcapngMagic {
		if err := n.section(head[:]); err != nil {
			return nil, info, err
		}
	}
	if n.order == nil {
		return nil, info, fmt.Errorf("%w: no section header", errPcapng)
	}
	kind, length := n.order.Uint32(head[:]), n.order.Uint32(head[4:])
	if length < ngBlockOverhead || length%4 != 0 {
		return nil, info, fmt.Errorf("%w: block of %d bytes", errPcapng, length)
	}
	left := int64(length - ngBlockOverhead)
	switch kind {
	case ngSection:
		left -= 4 // the byte order is read already
	case ngInterface:
		left, err = n.iface(left)
	case ngEnhancedPacket:
		data, info, left, err = n.enhanced(left)
	case ngSimplePacket:
		data, info, left, err = n.simple(left)
	}
	if err == nil {
		err = n.skip(left + 4)
	}
	if err != nil {
		return nil, info, whole(err)
	}
	return data, info, nil
}

// whole turns the end of the file inside a block into an error of its own.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (n *ngReader) skip(bytes int64) error {
	if bytes < 0 {
		return fmt.Errorf("%w: block is shorter than its content", errPcapng)
	}
	_, err := io.CopyN(io.Discard, n.r, bytes)
	return err
}

// read reads n bytes of a block of which left are left.
func (n *ngReader) read(b []byte, left int64) (int64, error) {
	if int64(len(b)) > left {
		return left, fmt.Errorf("%w: block is shorter than its content", errPcapng)
	}
	_, err := io.ReadFull(n.r, b)
	return left - int64(len(b)), err
}

// section begins a section: its byte order, and no interfaces.
func (n *ngReader) section(head []byte) error {
	if _, err := io.ReadFull(n.r, head[8:12]); err != nil {
		return whole(err)
	}
	switch uint32(ngByteOrder) {
	case binary.LittleEndian.Uint32(head[8:]):
		n.order = binary.LittleEndian
	case binary.BigEndian.Uint32(head[8:]):
		n.order = binary.BigEndian
	default:
		return fmt.Errorf("%w: byte order %x", errPcapng, head[8:12])
	}
	n.ifaces = nil
	return nil
}

func (n *ngReader) iface(left int64) (int64, error) {
	if left > ngMaxDescription || len(n.ifaces) >= ngMaxInterfaces {
		return left, fmt.Errorf("%w: interface %d of %d bytes", errPcapng, len(n.ifaces), left)
	}
	b := make([]byte, left)
	left, err := n.read(b, left)
	if err != nil {
		return left, err
	}
	if len(b) < 8 {
		return left, fmt.Errorf("%w: interface of %d bytes", errPcapng, len(b))
	}
	i := ngIface{
		ethernet: n.order.Uint16(b) == uint16(layers.LinkTypeEthernet), snapLen: n.order.Uint32(b[4:]), perSec: ngDefaultTSPerSec,
	}
	for opts := b[8:]; len(opts) >= 4; {
		code, size := n.order.Uint16(opts), int(n.order.Uint16(opts[2:]))
		if opts = opts[4:]; code == 0 || size > len(opts) {
			break
		}
		switch value := opts[:size]; {
		case code == ngOptionTSResol && size == 1:
			if i.perSec, err = ticksPerSecond(value[0]); err != nil {
				return left, err
			}
		case code == ngOptionTSOffset && size == 8:
			i.offset = int64(n.order.Uint64(value))
		}
		opts = opts[min((size+3)&^3, len(opts)):]
	}
	n.ifaces = append(n.ifaces, i)
	return left, nil
}

// ticksPerSecond reads if_tsresol: a power of 10, or of 2 where the first bit is
// set.
func ticksPerSecond(resol byte) (uint64, error) {
	base, exponent, most := uint64(10), resol, byte(19)
	if resol&0x80 != 0 {
		base, exponent, most = 2, resol&0x7f, 63
	}
	if exponent > most {
		return 0, fmt.Errorf("%w: time resolution %#x", errPcapng, resol)
	}
	ticks := uint64(1)
	for range exponent {
		ticks *= base
	}
	return ticks, nil
}

func (n *ngReader) enhanced(left int64) (data []byte, info gopacket.CaptureInfo, _ int64, err error) {
	var h [ngEnhancedHeader]byte
	if left, err = n.read(h[:], left); err != nil {
		return nil, info, left, err
	}
	number := n.order.Uint32(h[:])
	if int64(number) >= int64(len(n.ifaces)) {
		return nil, info, left, fmt.Errorf("%w: packet of interface %d of %d", errPcapng, number, len(n.ifaces))
	}
	i := n.ifaces[number]
	info.Timestamp = i.time(uint64(n.order.Uint32(h[4:]))<<32 | uint64(n.order.Uint32(h[8:])))
	info.Length = int(n.order.Uint32(h[16:]))
	data, left, err = n.packet(i, n.order.Uint32(h[12:]), left)
	info.CaptureLength = len(data)
	return data, info, left, err
}

func (n *ngReader) simple(left int64) (data []byte, info gopacket.CaptureInfo, _ int64, err error) {
	var h [4]byte
	if left, err = n.read(h[:], left); err != nil {
		return nil, info, left, err
	}
	if len(n.ifaces) == 0 {
		return nil, info, left, fmt.Errorf("%w: packet without an interface", errPcapng)
	}
	i, length := n.ifaces[0], n.order.Uint32(h[:])
	info.Timestamp, info.Length = time.Unix(0, 0), int(length)
	if i.snapLen != 0 {
		length = min(length, i.snapLen)
	}
	data, left, err = n.packet(i, length, left)
	info.CaptureLength = len(data)
	return data, info, left, err
}

func (n *ngReader) packet(i ngIface, length uint32, left int64) ([]byte, int64, error) {
	if !i.ethernet {
		return nil, left, fmt.Errorf("packet of an interface that is not Ethernet: %w", ErrSpec)
	}
	if length > maxCaptured || int64(length) > left {
		return nil, left, fmt.Errorf("%w: packet of %d bytes in a block with %d", errPcapng, length, left)
	}
	data := make([]byte, length)
	left, err := n.read(data, left)
	return data, left, err
}

// time is the clock's value at ticks.
func (i ngIface) time(ticks uint64) time.Time {
	hi, lo := bits.Mul64(ticks%i.perSec, 1e9)
	nanos, _ := bits.Div64(hi, lo, i.perSec) // below 1e9, so hi is below perSec
	return time.Unix(int64(ticks/i.perSec)+i.offset, int64(nanos))
}
