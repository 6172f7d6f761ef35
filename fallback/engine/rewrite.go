package engine

import (
	"encoding/binary"

	"countersign/tag"
)

const (
	vlanLen    = 4
	macsLen    = 12
	ipv6Len    = 40
	etherVLAN  = 0x8100
	flagDF     = 0x4000
	flagMF     = 0x2000
	offsetMask = 0x1fff
	protoUDP   = 17
	protoFrag  = 44
)

// rewrite is the stage `egress`: a routed packet gets its next hop's addresses,
// the tag is put on, replaced or taken off by the role of the egress port, and
// padding is cut off. It reports false, and leaves the packet unfit to send,
// where the frame has not the headroom.
func (m *meta) rewrite() bool {
	v, f := &m.view, m.p.Frame
	b := f.Bytes()
	l3 := v.L3
	if !m.transparent {
		copy(b, m.hop.macs[:])
		if v.Family == 4 {
			b[l3+8]--
		} else {
			b[l3+7]--
		}
		switch {
		case m.hop.vlan == 0 && v.HasVLAN:
			b, _ = f.Remove(macsLen, vlanLen)
			l3 -= vlanLen
		case m.hop.vlan != 0:
			if !v.HasVLAN {
				var ok bool
				if b, ok = f.Insert(macsLen, vlanLen); !ok {
					return false
				}
				l3 += vlanLen
				binary.BigEndian.PutUint32(b[macsLen:], etherVLAN<<16)
			}
			b[14] = b[14]&0xf0 | byte(m.hop.vlan>>8)
			b[15] = byte(m.hop.vlan)
		}
	}
	if m.tagged || m.putTag {
		var ok bool
		if b, ok = m.exchange(l3); !ok {
			return false
		}
		m.ipLen += m.newTagLen - m.oldTagLen
	}
	if v.Family == 4 {
		mendIPv4(b[l3:])
	}
	f.Truncate(l3 + m.ipLen)
	return true
}

// exchange makes room for the new tag in the old one's place and fills it. l3
// is where the IP header is now; the length that results is already in
// newTagLen and oldTagLen.
func (m *meta) exchange(l3 int) ([]byte, bool) {
	v, f := &m.view, m.p.Frame
	shift := l3 - v.L3
	place, protoAt := v.Place+shift, v.ProtoAt+shift
	b := f.Bytes()
	original := v.NextHeader

	// An IPv4 fragment's own fields: taken from the fragment header that goes,
	// or kept for the one that comes.
	fragment := v.Family == 4 && v.Fragment
	var fields [fragmentLen]byte
	ip := b[l3:]
	switch {
	case fragment && m.tagged:
		copy(fields[:], b[v.Next+shift:])
	case fragment:
		fields[0] = original
		field := binary.BigEndian.Uint16(ip[6:])
		binary.BigEndian.PutUint16(fields[2:], field&offsetMask<<3|field&flagDF>>13|field&flagMF>>13)
		copy(fields[6:], ip[4:6])
	}

	ok := true
	if grow := m.newTagLen - m.oldTagLen; grow > 0 {
		b, ok = f.Insert(place, grow)
	} else if grow < 0 {
		b, ok = f.Remove(place, -grow)
	}
	if !ok {
		return nil, false
	}
	ip = b[l3:]
	if fragment && !(m.tagged && m.putTag) {
		field := binary.BigEndian.Uint16(ip[6:]) &^ (flagDF | flagMF | offsetMask)
		if m.putTag {
			field |= flagDF
			original = protoFrag
			copy(b[place+m.newTagLen-fragmentLen:], fields[:])
		} else {
			bits := binary.BigEndian.Uint16(fields[2:])
			field |= bits>>3 | bits&1<<13 | bits&2<<13
			original = fields[0]
			copy(ip[4:], fields[6:])
		}
		binary.BigEndian.PutUint16(ip[6:], field)
	}

	length := m.ipLen - m.oldTagLen + m.newTagLen
	outer := original
	if m.putTag {
		outer = m.putOn(b[place:], original, length-(place-l3))
		if v.Family == 6 && !m.tagged {
			m.label(ip)
		}
	}
	if v.Family == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(length-ipv6Len))
	}
	b[protoAt] = outer
	return b, true
}

// putOn writes carrier and tag to b and returns what the IP header says of
// them; length is that of the rest of the packet from here.
func (m *meta) putOn(b []byte, original uint8, length int) (outer uint8) {
	outer = m.carrier.Protocol
	if m.carrier.UDP {
		outer = protoUDP
		binary.BigEndian.PutUint16(b[0:], uint16(49152+m.flow()%16384))
		binary.BigEndian.PutUint16(b[2:], m.carrier.Port)
		binary.BigEndian.PutUint32(b[4:], uint32(length)<<16)
		b = b[udpLen:]
	}
	if k := m.byKey; k != nil {
		copy(b[:tag.HeaderLen], k.head[:])
		binary.BigEndian.PutUint64(b[12:], m.nonce)
		binary.BigEndian.PutUint64(b[20:], tag.SipHash(k.k0, k.k1, k.word0, m.nonce, &m.view.Tuple))
	} else {
		copy(b, m.byTag.wire)
	}
	b[0] = original
	return outer
}

// label gives an IPv6 packet a flow label where it has none.
func (m *meta) label(ip []byte) {
	first := binary.BigEndian.Uint32(ip)
	if first&0xfffff == 0 {
		binary.BigEndian.PutUint32(ip, first|max(m.flow()&0xfffff, 1))
	}
}

// mendIPv4 computes the header checksum anew.
func mendIPv4(ip []byte) {
	binary.BigEndian.PutUint16(ip[10:], 0)
	var s uint64
	for h := ip[:int(ip[0]&0xf)*4]; len(h) >= 4; h = h[4:] {
		s += uint64(binary.BigEndian.Uint32(h))
	}
	s = s&0xffffffff + s>>32
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(s))
}
