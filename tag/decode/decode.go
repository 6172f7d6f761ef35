// Package decode lists the tags in a packet capture.
package decode

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"countersign/packet"
	"countersign/packet/capture"
	"countersign/tag"
)

// Record is one packet with a tag, or with one that is refused: Reason is set
// then, and Tag is nil.
type Record struct {
	Packet    int       `json:"packet"` // number in the capture, from 1
	Interface int       `json:"interface"`
	Time      time.Time `json:"time,omitzero"`
	VLAN      uint16    `json:"vlan,omitempty"`
	Reason    string    `json:"reason,omitempty"` // tag_malformed, tag_misplaced or tag_fragmented
	Tag       *Tag      `json:"tag,omitempty"`
}

// Tag is a well-formed tag and what M says of its packet. UNID, nonce,
// digest, sealed bytes and identification are hexadecimal, of their full width.
type Tag struct {
	Carrier    string     `json:"carrier"` // ip or udp
	Suite      tag.Suite  `json:"suite"`
	UNID       string     `json:"unid"`
	Epoch      uint16     `json:"epoch"`
	Echoed     bool       `json:"echoed"`
	Nonce      string     `json:"nonce"`
	Digest     string     `json:"digest"`
	Sealed     string     `json:"sealed,omitempty"`
	SealedCRC  string     `json:"sealed_crc32,omitempty"`
	Src        netip.Addr `json:"src"`
	Dst        netip.Addr `json:"dst"`
	Protocol   uint8      `json:"protocol"`
	Kind       uint16     `json:"kind"`
	SrcPort    uint16     `json:"src_port"`
	DstPort    uint16     `json:"dst_port"`
	FragmentID string     `json:"fragment_id,omitempty"`
	Length     int        `json:"length"` // bytes of the IP packet, tag included
}

// Summary counts the packets of a capture.
type Summary struct {
	Packets int `json:"packets"` // all that could be read
	Tagged  int `json:"tagged"`  // with a well-formed tag
	Refused int `json:"refused"` // with a tag that is malformed, misplaced or fragmented
	Other   int `json:"other"`   // that could not be parsed for another reason
}

// Decode reads a pcap or pcapng file with link type Ethernet or raw IP from r
// and hands every packet that has a tag to emit, in order. It ends at the first
// error of emit, or at capture.ErrFormat, which names the packet that could not
// be read; the Summary covers what came before.
func Decode(r io.Reader, c packet.Carrier, emit func(*Record) error) (Summary, error) {
	var s Summary
	cr, err := capture.NewReader(r)
	if err != nil {
		return s, err
	}
	var v packet.View
	for {
		p, err := cr.Next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return s, err
		}
		s.Packets++
		parse := packet.ParseIP
		if p.Ethernet {
			parse = packet.Parse
		}
		rec := Record{Packet: p.Number, Interface: p.Interface, Time: p.Time}
		switch a := parse(p.Data, c, &v); {
		case a == packet.None && v.Tagged:
			s.Tagged++
			rec.Tag = newTag(&v)
		case a == packet.None:
			continue
		case tag.Reason(a.Err()) != "":
			s.Refused++
			rec.Reason = a.String()
		default:
			s.Other++
			continue
		}
		rec.VLAN = v.VLAN
		if err := emit(&rec); err != nil {
			return s, err
		}
	}
}

func newTag(v *packet.View) *Tag {
	h := &v.Tag
	t := &Tag{
		Carrier:  "ip",
		Suite:    h.Suite,
		UNID:     fmt.Sprintf("%08x", h.UNID),
		Epoch:    h.Epoch,
		Echoed:   h.Echoed(),
		Nonce:    fmt.Sprintf("%016x", h.Nonce),
		Digest:   fmt.Sprintf("%016x", h.Digest),
		Src:      v.Tuple.High(),
		Dst:      v.Tuple.Low(),
		Protocol: v.Protocol,
		Kind:     v.Tuple.Kind(),
		SrcPort:  v.SrcPort,
		DstPort:  v.DstPort,
		Length:   v.End - v.L3,
	}
	if v.SrcIsLow {
		t.Src, t.Dst = t.Dst, t.Src
	}
	if v.UDPCarrier {
		t.Carrier = "udp"
	}
	if len(h.Sealed) > 0 {
		t.Sealed = hex.EncodeToString(h.Sealed)
		t.SealedCRC = fmt.Sprintf("%08x", h.SealedCRC())
	}
	if v.Fragment {
		t.FragmentID = fmt.Sprintf("%08x", v.FragID)
	}
	return t
}

// String is the record on one line, sealed bytes by their CRC-32 only.
func (rec *Record) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", rec.Packet)
	if !rec.Time.IsZero() {
		fmt.Fprintf(&b, " %s", rec.Time.Format(time.RFC3339Nano))
	}
	if rec.VLAN != 0 {
		fmt.Fprintf(&b, " vlan %d", rec.VLAN)
	}
	t := rec.Tag
	if t == nil {
		fmt.Fprintf(&b, " %s", rec.Reason)
		return b.String()
	}
	switch t.Kind {
	case tag.KindPorts:
		fmt.Fprintf(&b, " %v > %v protocol %d", netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort), t.Protocol)
	case tag.KindICMPOther:
		fmt.Fprintf(&b, " %v > %v protocol %d not echo", t.Src, t.Dst, t.Protocol)
	default:
		fmt.Fprintf(&b, " %v > %v protocol %d fragment %s", t.Src, t.Dst, t.Protocol, t.FragmentID)
	}
	fmt.Fprintf(&b, " length %d carrier %s suite %v unid %s epoch %d", t.Length, t.Carrier, t.Suite, t.UNID, t.Epoch)
	if t.Echoed {
		b.WriteString(" echoed")
	}
	fmt.Fprintf(&b, " nonce %s digest %s", t.Nonce, t.Digest)
	if t.Sealed != "" {
		fmt.Fprintf(&b, " sealed crc32 %s", t.SealedCRC)
	}
	return b.String()
}

// String is the summary on one line.
func (s Summary) String() string {
	return fmt.Sprintf("%d packets, %d tagged, %d refused, %d not parsed", s.Packets, s.Tagged, s.Refused, s.Other)
}
