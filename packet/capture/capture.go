// Package capture reads packets from pcap and pcapng files of any origin.
// Whatever a file holds, it is read within bounded memory and ends in an error
// that says which packet was the last good one.
package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// MaxPacket bounds a packet in bytes, as tcpdump and Wireshark do.
const MaxPacket = 262144

// ErrFormat is returned for what is neither pcap nor pcapng, or is damaged.
var ErrFormat = errors.New("not a readable capture")

// Packet is one captured packet.
type Packet struct {
	Number    int       // from 1, as Wireshark counts
	Interface int       // interface of the capture's section, 0 in pcap
	Time      time.Time // UTC; zero where the file has none that can be
	Ethernet  bool      // Data begins with an Ethernet header; else with the IP header
	Length    int       // on the wire, in bytes; more than len(Data) where cut by the snap length
	Data      []byte
}

// Reader reads packets one after the other. It is made by NewReader and not
// safe for concurrent use.
type Reader struct {
	next func() (Packet, error)
	n    int
	err  error
}

// NewReader reads the file header of a pcap (also gzipped) or pcapng file.
func NewReader(r io.Reader) (*Reader, error) {
	br := bufio.NewReader(r)
	magic, err := br.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("%w: shorter than a file header", ErrFormat)
	}
	if binary.LittleEndian.Uint32(magic) == blockSection {
		ng := &ngReader{r: br}
		return &Reader{next: ng.next}, nil
	}
	pr, err := pcapgo.NewReader(br)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	// Some writers put in a snap length and do not keep to it.
	pr.SetSnaplen(MaxPacket)
	ethernet, err := isEthernet(pr.LinkType())
	if err != nil {
		return nil, err
	}
	return &Reader{next: func() (Packet, error) {
		data, info, err := pr.ReadPacketData()
		if errors.Is(err, io.EOF) && data != nil {
			err = io.ErrUnexpectedEOF // the end of the file behind a packet's header
		}
		return Packet{Time: info.Timestamp, Ethernet: ethernet, Length: info.Length, Data: data}, err
	}}, nil
}

// Next returns the next packet, whose Data is the caller's. At the end it
// returns io.EOF; any other error, ErrFormat, names the number of the packet
// that could not be read, and comes again on every further call.
func (r *Reader) Next() (Packet, error) {
	if r.err != nil {
		return Packet{}, r.err
	}
	p, err := r.next()
	switch {
	case err == io.EOF:
		r.err = io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		r.err = fmt.Errorf("packet %d: %w: the file ends within it", r.n+1, ErrFormat)
	case errors.Is(err, ErrFormat):
		r.err = fmt.Errorf("packet %d: %w", r.n+1, err)
	case err != nil:
		r.err = fmt.Errorf("packet %d: %w: %w", r.n+1, ErrFormat, err)
	}
	if r.err != nil {
		return Packet{}, r.err
	}
	r.n++
	p.Number = r.n
	return p, nil
}

// isEthernet tells link types with an Ethernet header from raw IP.
func isEthernet(t layers.LinkType) (bool, error) {
	switch t {
	case layers.LinkTypeEthernet:
		return true, nil
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, 12, 14: // 12, 14: raw IP on BSDs
		return false, nil
	}
	return false, fmt.Errorf("%w: link type %d (%v), want Ethernet (1) or raw IP (101)", ErrFormat, int(t), t)
}

// pcapng: draft-ietf-opsawg-pcapng. pcapgo's reader of it trusts lengths and
// indexes in the file, so blocks are read here.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockObsolete  = 2
	blockSimple    = 3
	blockEnhanced  = 6

	byteOrderMagic = 0x1a2b3c4d
	maxBlock       = 16 << 20
	maxInterfaces  = 4096
	maxSeconds     = 253402300799 // the end of the year 9999

	optionTimeResolution = 9
	optionTimeOffset     = 14
)

type ngInterface struct {
	linkType layers.LinkType
	snap     uint32
	perSec   uint64 // units of a timestamp in a second
	offset   int64  // seconds
}

type ngReader struct {
	r          *bufio.Reader
	order      binary.ByteOrder
	interfaces []ngInterface
}

func (g *ngReader) next() (Packet, error) {
	for {
		kind, body, err := g.block()
		if err != nil {
			return Packet{}, err
		}
		switch kind {
		case blockSection:
			g.interfaces = nil
		case blockInterface:
			if err := g.addInterface(body); err != nil {
				return Packet{}, err
			}
		case blockEnhanced:
			if len(body) < 20 {
				return Packet{}, short(kind, len(body))
			}
			return g.packet(g.order.Uint32(body), body[4:], body[20:])
		case blockObsolete:
			if len(body) < 20 {
				return Packet{}, short(kind, len(body))
			}
			return g.packet(uint32(g.order.Uint16(body)), body[4:], body[20:])
		case blockSimple:
			if len(body) < 4 {
				return Packet{}, short(kind, len(body))
			}
			return g.simple(body)
		}
	}
}

func short(kind uint32, n int) error {
	return fmt.Errorf("%w: block of type %d with %d bytes", ErrFormat, kind, n)
}

// block reads one block and returns its body without type, lengths and, in a
// section header, the byte-order magic.
func (g *ngReader) block() (kind uint32, body []byte, err error) {
	var head [12]byte
	if _, err := io.ReadFull(g.r, head[:8]); err != nil {
		return 0, nil, err
	}
	n := 8
	if binary.LittleEndian.Uint32(head[:]) == blockSection { // reads the same in both byte orders
		if _, err := io.ReadFull(g.r, head[8:]); err != nil {
			return 0, nil, noEOF(err)
		}
		n = 12
		switch uint32(byteOrderMagic) {
		case binary.LittleEndian.Uint32(head[8:]):
			g.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			g.order = binary.BigEndian
		default:
			return 0, nil, fmt.Errorf("%w: byte-order magic %x", ErrFormat, head[8:])
		}
	}
	kind = g.order.Uint32(head[:])
	total := g.order.Uint32(head[4:])
	if total%4 != 0 || total < uint32(n+4) || total > maxBlock {
		return 0, nil, fmt.Errorf("%w: block of type %#x and %d bytes", ErrFormat, kind, total)
	}
	body = make([]byte, int(total)-n)
	if _, err := io.ReadFull(g.r, body); err != nil {
		return 0, nil, noEOF(err)
	}
	end := len(body) - 4
	if trailer := g.order.Uint32(body[end:]); trailer != total {
		return 0, nil, fmt.Errorf("%w: block of %d bytes ends as one of %d", ErrFormat, total, trailer)
	}
	return kind, body[:end], nil
}

// noEOF makes the end of the file within a block what it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (g *ngReader) addInterface(body []byte) error {
	if len(body) < 8 {
		return short(blockInterface, len(body))
	}
	if len(g.interfaces) == maxInterfaces {
		return fmt.Errorf("%w: more than %d interfaces", ErrFormat, maxInterfaces)
	}
	i := ngInterface{
		linkType: layers.LinkType(g.order.Uint16(body)),
		snap:     g.order.Uint32(body[4:]),
		perSec:   1e6,
	}
	for options := body[8:]; len(options) >= 4; {
		code, n := g.order.Uint16(options), int(g.order.Uint16(options[2:]))
		options = options[4:]
		padded := (n + 3) &^ 3
		if code == 0 || padded > len(options) {
			break
		}
		switch {
		case code == optionTimeResolution && n == 1:
			i.perSec = resolution(options[0])
		case code == optionTimeOffset && n == 8:
			i.offset = int64(g.order.Uint64(options))
		}
		options = options[padded:]
	}
	if i.perSec == 0 {
		return fmt.Errorf("%w: timestamp resolution out of range", ErrFormat)
	}
	g.interfaces = append(g.interfaces, i)
	return nil
}

// resolution is the units in a second by option if_tsresol, 0 where they
// exceed 64 bits.
func resolution(b byte) uint64 {
	exponent := int(b & 0x7f)
	if b&0x80 != 0 {
		if exponent > 63 {
			return 0
		}
		return 1 << exponent
	}
	if exponent > 19 {
		return 0
	}
	n := uint64(1)
	for range exponent {
		n *= 10
	}
	return n
}

func (g *ngReader) iface(id uint32) (*ngInterface, bool, error) {
	if uint64(id) >= uint64(len(g.interfaces)) {
		return nil, false, fmt.Errorf("%w: interface %d of %d", ErrFormat, id, len(g.interfaces))
	}
	i := &g.interfaces[id]
	ethernet, err := isEthernet(i.linkType)
	return i, ethernet, err
}

// packet reads an enhanced packet from its timestamp on; data is what follows
// the fixed fields.
func (g *ngReader) packet(id uint32, fields, data []byte) (Packet, error) {
	i, ethernet, err := g.iface(id)
	if err != nil {
		return Packet{}, err
	}
	stamp := uint64(g.order.Uint32(fields))<<32 | uint64(g.order.Uint32(fields[4:]))
	captured, length := g.order.Uint32(fields[8:]), g.order.Uint32(fields[12:])
	if uint64(captured) > uint64(len(data)) || captured > MaxPacket {
		return Packet{}, fmt.Errorf("%w: %d bytes captured in a block with %d", ErrFormat, captured, len(data))
	}
	hi, lo := bits.Mul64(stamp%i.perSec, 1e9)
	nanos, _ := bits.Div64(hi, lo, i.perSec)
	at := time.Time{}
	if seconds := int64(stamp/i.perSec) + i.offset; seconds >= 0 && seconds <= maxSeconds {
		at = time.Unix(seconds, int64(nanos)).UTC()
	}
	return Packet{
		Interface: int(id),
		Time:      at,
		Ethernet:  ethernet,
		Length:    int(length),
		Data:      data[:captured:captured],
	}, nil
}

func (g *ngReader) simple(body []byte) (Packet, error) {
	i, ethernet, err := g.iface(0)
	if err != nil {
		return Packet{}, err
	}
	length, data := g.order.Uint32(body), body[4:]
	captured := length
	if i.snap != 0 {
		captured = min(captured, i.snap)
	}
	if uint64(captured) > uint64(len(data)) || captured > MaxPacket {
		return Packet{}, fmt.Errorf("%w: %d bytes captured in a block with %d", ErrFormat, captured, len(data))
	}
	return Packet{Ethernet: ethernet, Length: int(length), Data: data[:captured:captured]}, nil
}
