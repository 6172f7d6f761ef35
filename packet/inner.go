package packet

import (
	"encoding/binary"
	"net/netip"

	"countersign/tag"
)

// Ends returns the packet's source and destination, the invalid addresses for
// a frame that is not IP.
func (v *View) Ends() (src, dst netip.Addr) {
	if v.Family == 0 {
		return
	}
	src, dst = v.Tuple.Low(), v.Tuple.High()
	if !v.SrcIsLow {
		src, dst = dst, src
	}
	return src, dst
}

// FirstFragmentTuple is the sorted five-tuple of the whole packet that the
// frame is the first fragment of. It reports false for a later fragment, and
// where the fragment is too short for its transport header (RFC 1858).
func (v *View) FirstFragmentTuple(frame []byte) (tag.Tuple, bool) {
	if !v.Fragment || v.FragOffset != 0 {
		return tag.Tuple{}, false
	}
	src, dst := v.Ends()
	return innerTuple(v.Family, v.Protocol, src, dst, frame[v.L4:v.End], true)
}

// Quoted is the sorted five-tuple of the untagged packet that an ICMP error
// quotes. It reports false where the quotation does not hold it.
func (v *View) Quoted(frame []byte) (tag.Tuple, bool) {
	if !v.Has(ICMPError) || v.Has(QuotedCarrier) {
		return tag.Tuple{}, false
	}
	q := frame[v.L4+icmpLen : v.End]
	if v.Family == 4 {
		if len(q) < 20 || q[0]>>4 != 4 || q[0]&15 < 5 {
			return tag.Tuple{}, false
		}
		n := int(q[0]&15) * 4
		if len(q) < n {
			return tag.Tuple{}, false
		}
		src, dst := netip.AddrFrom4([4]byte(q[12:16])), netip.AddrFrom4([4]byte(q[16:20]))
		if f := be16(q[6:]); f&0x3fff != 0 {
			id := be16(q[4:])
			t, _ := tag.NewTuple(q[9], tag.KindFragment, src, dst, 0, id)
			return t, true
		}
		return innerTuple(4, q[9], src, dst, q[n:], false)
	}
	if len(q) < 40 || q[0]>>4 != 6 {
		return tag.Tuple{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(q[8:24])), netip.AddrFrom16([16]byte(q[24:40]))
	protocol, q := q[6], q[40:]
	if protocol == 0 {
		if len(q) < 8 || len(q) < (int(q[1])+1)*8 {
			return tag.Tuple{}, false
		}
		protocol, q = q[0], q[(int(q[1])+1)*8:]
	}
	if protocol == protoFragment {
		if len(q) < fragLen {
			return tag.Tuple{}, false
		}
		id := binary.BigEndian.Uint32(q[4:])
		t, _ := tag.NewTuple(q[0], tag.KindFragment, src, dst, uint16(id>>16), uint16(id))
		return t, true
	}
	return innerTuple(6, protocol, src, dst, q, false)
}

// innerTuple reads the ports at the start of a transport header. whole asks
// for all of the header that the parser asks for, a quotation needs 8 bytes.
func innerTuple(family, protocol uint8, src, dst netip.Addr, l4 []byte, whole bool) (tag.Tuple, bool) {
	need := 8
	var sport, dport uint16
	kind := tag.KindPorts
	class := classes[protocol]
	switch {
	case class == classTCP && whole:
		need = tcpLen
	case class == classPorts12 && whole:
		need = 12
	case class == classICMP && family == 6, class == classICMPv6 && family == 4:
		class, need = 0, 0
	case class != classTCP && class != classPorts8 && class != classPorts12 && class != classICMP && class != classICMPv6:
		class, need = 0, 0
	}
	if len(l4) < need {
		return tag.Tuple{}, false
	}
	switch class {
	case classTCP, classPorts8, classPorts12:
		sport, dport = be16(l4), be16(l4[2:])
	case classICMP, classICMPv6:
		echo := l4[0] == 8 || l4[0] == 0
		if family == 6 {
			echo = l4[0] == 128 || l4[0] == 129
		}
		if echo {
			sport = be16(l4[4:])
			dport = sport
		} else {
			kind = tag.KindICMPOther
		}
	}
	t, _ := tag.NewTuple(protocol, kind, src, dst, sport, dport)
	return t, true
}
