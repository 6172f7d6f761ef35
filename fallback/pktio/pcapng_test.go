package pktio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

type ngOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// ngBlock is a block with its lengths around the body, padded.
func ngBlock(o ngOrder, kind uint32, body ...[]byte) []byte {
	b := slices.Concat(body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	head := o.AppendUint32(o.AppendUint32(nil, kind), uint32(len(b)+12))
	return o.AppendUint32(append(head, b...), uint32(len(b)+12))
}

func ngHead(o ngOrder) []byte {
	return ngBlock(o, ngSection, o.AppendUint32(nil, ngByteOrder), []byte{0, 0, 0, 0}, bytes.Repeat([]byte{0xff}, 8))
}

func ngIfaceBlock(o ngOrder, link uint16, snap uint32, resol byte) []byte {
	body := o.AppendUint32(o.AppendUint16(o.AppendUint16(nil, link), 0), snap)
	body = append(o.AppendUint16(o.AppendUint16(body, ngOptionTSResol), 1), resol, 0, 0, 0)
	body = o.AppendUint64(o.AppendUint16(o.AppendUint16(body, ngOptionTSOffset), 8), 100)
	return ngBlock(o, ngInterface, body, []byte{0, 0, 0, 0})
}

func ngPacket(o ngOrder, iface uint32, ticks uint64, data []byte) []byte {
	var h []byte
	for _, v := range []uint32{iface, uint32(ticks >> 32), uint32(ticks), uint32(len(data)), uint32(len(data))} {
		h = o.AppendUint32(h, v)
	}
	return ngBlock(o, ngEnhancedPacket, h, data)
}

// ngFile is a capture of an enhanced packet of 61 bytes a tick and a half second
// behind second 100, a block of a kind nobody knows, and a simple packet cut at 40.
func ngFile(o ngOrder, resol byte) []byte {
	ticks, _ := ticksPerSecond(resol)
	return slices.Concat(ngHead(o), ngIfaceBlock(o, 1, 40, resol),
		ngPacket(o, 0, ticks+ticks/2, bytes.Repeat([]byte{1}, 61)),
		ngBlock(o, 0xbad, make([]byte, 100)),
		ngBlock(o, ngSimplePacket, o.AppendUint32(nil, 61), bytes.Repeat([]byte{2}, 40)))
}

func TestPcapng(t *testing.T) {
	for _, o := range []ngOrder{binary.LittleEndian, binary.BigEndian} {
		for _, resol := range []byte{0, 3, 6, 9, 12, 0x80, 0x8a, 0xa0} {
			r, err := NewPcapReader(bytes.NewReader(ngFile(o, resol)))
			must(t, err)
			frame, nanos, err := r.Next()
			want := 101*time.Second + time.Second/2
			if resol&0x7f == 0 { // whole seconds: the half is lost
				want = 101 * time.Second
			}
			if err != nil || len(frame) != 61 || frame[60] != 1 || nanos != want.Nanoseconds() {
				t.Errorf("%v, resolution %#x: %d bytes at %v, %v", o, resol, len(frame), time.Duration(nanos), err)
			}
			frame, nanos, err = r.Next()
			if err != nil || len(frame) != 40 || frame[39] != 2 || nanos != 0 {
				t.Errorf("%v, resolution %#x: simple packet of %d bytes at %d, %v", o, resol, len(frame), nanos, err)
			}
			if _, _, err := r.Next(); err != io.EOF {
				t.Errorf("%v, resolution %#x: end: %v", o, resol, err)
			}
		}
	}
}

func TestPcapngRefuses(t *testing.T) {
	o := binary.LittleEndian
	head, iface := ngHead(o), ngIfaceBlock(o, 1, 0, 9)
	packet := ngPacket(o, 0, 0, make([]byte, 60))
	claim := func(block []byte, at int, v uint32) []byte {
		b := bytes.Clone(block)
		o.PutUint32(b[at:], v)
		return b
	}
	for _, c := range []struct {
		name string
		file []byte
		is   error
		says string
	}{
		{"byte order", claim(head, 8, 1), errPcapng, "byte order"},
		{"block of 8 bytes", slices.Concat(head, claim(packet, 4, 8)), errPcapng, "8 bytes"},
		{"block of odd length", slices.Concat(head, claim(packet, 4, 93)), errPcapng, "93 bytes"},
		{"packet without interface", slices.Concat(head, packet), errPcapng, "interface 0 of 0"},
		{"simple packet without interface", slices.Concat(head, ngBlock(o, ngSimplePacket, make([]byte, 8))), errPcapng, "without"},
		{"packet longer than its block", slices.Concat(head, iface, claim(packet, 20, 100)), errPcapng, "100 bytes"},
		{"packet of 4 GB", slices.Concat(head, iface, claim(claim(packet, 20, 0xfffffff0), 4, 0xfffffffc)), errPcapng, "4294967280"},
		{"packet block too short", slices.Concat(head, iface, ngBlock(o, ngEnhancedPacket, make([]byte, 8))), errPcapng, "shorter"},
		{"interface too short", slices.Concat(head, ngBlock(o, ngInterface, make([]byte, 4))), errPcapng, "4 bytes"},
		{"interface of 4 GB", slices.Concat(head, claim(iface, 4, 0xfffffffc)), errPcapng, "interface"},
		{"resolution", slices.Concat(head, ngIfaceBlock(o, 1, 0, 20)), errPcapng, "0x14"},
		{"binary resolution", slices.Concat(head, ngIfaceBlock(o, 1, 0, 0xc0)), errPcapng, "0xc0"},
		{"link type", slices.Concat(head, ngIfaceBlock(o, 101, 0, 9), packet), ErrSpec, "not Ethernet"},
		{"cut in a packet", slices.Concat(head, iface, packet[:50]), io.ErrUnexpectedEOF, "packet 1"},
		{"cut in a length", slices.Concat(head, iface, packet[:6]), io.ErrUnexpectedEOF, "packet 1"},
		{"cut behind the packet", slices.Concat(head, iface, packet[:len(packet)-4]), io.ErrUnexpectedEOF, "packet 1"},
	} {
		r, err := NewPcapReader(bytes.NewReader(c.file))
		must(t, err)
		_, _, err = r.Next()
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v saying %q", c.name, err, c.is, c.says)
		}
	}
}
