package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"countersign/tag"
)

// Errors of the functions that put tags on and take them off.
var (
	// ErrUntaggable: docs/wire.md lets no tag stand on this packet.
	ErrUntaggable = errors.New("packet can carry no tag")
	// ErrTagged: the packet has a tag already; tags do not stack.
	ErrTagged = errors.New("packet is tagged already")
	// ErrUntagged: the packet has no tag to replace or remove.
	ErrUntagged = errors.New("packet has no tag")
	// ErrTooLong: the length field of the IP header cannot hold the result.
	ErrTooLong = errors.New("packet too long for a tag")
	// ErrHeadroom: the buffer lacks room before the frame.
	ErrHeadroom = errors.New("not enough headroom")
)

// Insert puts the tag h on the frame at buf[start:], which v describes, and
// returns where the frame starts then: the headers before the tag move forward
// into the headroom, what follows stays, and the frame still ends at
// start+v.End. It sets the tag's next header to the packet's; h is not changed.
// v is stale afterwards. Errors leave the frame as it was.
func (v *View) Insert(buf []byte, start int, c Carrier, h *tag.Header) (int, error) {
	fragment := 0 // length of the fragment header that an IPv4 fragment is given
	next := v.NextHeader
	if v.Family == 4 && v.Fragment && !v.Tagged {
		fragment, next = fragLen, protoFragment
	}
	switch {
	case v.Tagged:
		return start, ErrTagged
	case v.Family == 0 || v.Has(LinkScope|ND|SourceRoute):
		return start, ErrUntaggable
	case next == protoHopByHop || next == c.Protocol:
		return start, ErrUntaggable
	case v.Family == 4 && (next == protoRouting || next == protoDstOpts || next == protoFragment && fragment == 0):
		return start, ErrUntaggable // as a tag's next header it would mean something else
	}
	n := c.len() + h.Len() + fragment
	start, err := v.shift(buf, start, n, h)
	if err != nil {
		return start, err
	}
	f := buf[start:]
	v.putCarrier(f, c, h, next, v.End-v.Place+n)
	ip := f[v.L3:]
	if v.Family == 6 {
		v.resize6(ip, n, f, c.protocol())
		if be32(ip)&0xfffff == 0 {
			label := v.Tuple.FlowHash() & 0xfffff
			if label == 0 {
				label = 1
			}
			binary.BigEndian.PutUint32(ip, be32(ip)|label)
		}
		return start, nil
	}
	fragmentField := be16(ip[6:])
	if fragment > 0 {
		b := f[v.Place+n-fragLen:]
		b[0], b[1] = v.NextHeader, 0
		bits := fragmentField&offsetMask<<3 | fragmentField&flagMF>>13 | fragmentField&flagDF>>13
		binary.BigEndian.PutUint16(b[2:], bits)
		binary.BigEndian.PutUint32(b[4:], v.FragID)
		fragmentField = fragmentField&^(flagMF|offsetMask) | flagDF
	}
	v.resize4(ip, n, be16(ip[4:]), fragmentField, c.protocol())
	return start, nil
}

// Replace puts the tag h in the place of the one on the frame at buf[start:],
// otherwise like Insert. h.Sealed must not alias the frame. The IPv6 flow label
// stays as it is.
func (v *View) Replace(buf []byte, start int, c Carrier, h *tag.Header) (int, error) {
	if !v.Tagged {
		return start, ErrUntagged
	}
	n := c.len() + h.Len() - (v.Next - v.Place)
	start, err := v.shift(buf, start, n, h)
	if err != nil {
		return start, err
	}
	f := buf[start:]
	v.putCarrier(f, c, h, v.NextHeader, v.End-v.Place+n)
	if n == 0 {
		return start, nil
	}
	ip := f[v.L3:]
	if v.Family == 6 {
		v.resize6(ip, n, f, c.protocol())
	} else {
		v.resize4(ip, n, be16(ip[4:]), be16(ip[6:]), c.protocol())
	}
	return start, nil
}

// Strip takes the tag off the frame at buf[start:], which v describes, and
// returns where the frame starts then; it still ends at start+v.End. v is stale
// afterwards. The only error is ErrUntagged.
func (v *View) Strip(buf []byte, start int) (int, error) {
	if !v.Tagged {
		return start, ErrUntagged
	}
	n := v.Next - v.Place
	fragment := v.Family == 4 && v.Fragment
	var restored [fragLen]byte
	if fragment {
		copy(restored[:], buf[start+v.Next:])
		n += fragLen
	}
	copy(buf[start+n:], buf[start:start+v.Place])
	start += n
	f := buf[start:]
	ip := f[v.L3:]
	switch {
	case v.Family == 6:
		v.resize6(ip, -n, f, v.NextHeader)
	case fragment:
		bits := be16(restored[2:])
		field := be16(ip[6:])&^(flagDF|flagMF|offsetMask) | bits>>3 | bits&1<<13 | bits&2<<13
		v.resize4(ip, -n, be16(restored[6:]), field, restored[0])
	default:
		v.resize4(ip, -n, be16(ip[4:]), be16(ip[6:]), v.NextHeader)
	}
	return start, nil
}

// shift moves what precedes the tag's place n bytes forward.
func (v *View) shift(buf []byte, start, n int, h *tag.Header) (int, error) {
	length := v.End - v.L3 + n
	if v.Family == 6 {
		length -= ipv6Len
	}
	switch {
	case h.Len() != int(h.Length)*4:
		return start, tag.ErrMalformed
	case length > 0xffff:
		return start, ErrTooLong
	case start < n:
		return start, ErrHeadroom
	}
	if n != 0 {
		copy(buf[start-n:], buf[start:start+v.Place])
	}
	return start - n, nil
}

// putCarrier writes carrier and tag at their place in f; length is from there
// to the packet's end.
func (v *View) putCarrier(f []byte, c Carrier, h *tag.Header, next uint8, length int) {
	b := f[v.Place:]
	if c.UDP {
		binary.BigEndian.PutUint16(b[0:], uint16(49152+v.Tuple.FlowHash()%16384))
		binary.BigEndian.PutUint16(b[2:], c.Port)
		binary.BigEndian.PutUint16(b[4:], uint16(length))
		binary.BigEndian.PutUint16(b[6:], 0)
		b = b[udpLen:]
	}
	h.Put(b)
	b[0] = next
}

// resize6 adds n to the payload length and sets what follows the place.
func (v *View) resize6(ip []byte, n int, f []byte, protocol uint8) {
	binary.BigEndian.PutUint16(ip[4:], uint16(int(be16(ip[4:]))+n))
	f[v.ProtoAt] = protocol
}

// resize4 adds n to the total length, sets the other fields, and corrects the
// header checksum by what changed, so that a wrong one stays wrong.
func (v *View) resize4(ip []byte, n int, id, fragment uint16, protocol uint8) {
	totalLen := uint16(int(be16(ip[2:])) + n)
	sum := be16(ip[10:])
	sum = UpdateChecksum(sum, be16(ip[2:]), totalLen)
	sum = UpdateChecksum(sum, be16(ip[4:]), id)
	sum = UpdateChecksum(sum, be16(ip[6:]), fragment)
	sum = UpdateChecksum(sum, uint16(ip[9]), uint16(protocol))
	binary.BigEndian.PutUint16(ip[2:], totalLen)
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[6:], fragment)
	ip[9] = protocol
	binary.BigEndian.PutUint16(ip[10:], sum)
}

// Insert appends the IP packet ip with the tag h to dst. Padding behind the
// packet is left out. Errors are those of Anomaly.Err, of View.Insert, and
// neither changes dst's contents.
func Insert(dst, ip []byte, c Carrier, h *tag.Header) ([]byte, error) {
	return edit(dst, ip, c, c.len()+h.Len()+fragLen, func(v *View, buf []byte, start int) (int, error) {
		return v.Insert(buf, start, c, h)
	})
}

// Strip appends the IP packet ip without its tag to dst, otherwise like Insert.
func Strip(dst, ip []byte, c Carrier) ([]byte, error) {
	return edit(dst, ip, c, 0, func(v *View, buf []byte, start int) (int, error) {
		return v.Strip(buf, start)
	})
}

func edit(dst, ip []byte, c Carrier, headroom int, f func(*View, []byte, int) (int, error)) ([]byte, error) {
	var v View
	if a := ParseIP(ip, c, &v); a != None {
		return dst, a.Err()
	}
	buf := slices.Concat(make([]byte, headroom), ip[:v.End])
	start, err := f(&v, buf, headroom)
	if err != nil {
		return dst, fmt.Errorf("%w: %v", err, v.Tuple)
	}
	return append(dst, buf[start:]...), nil
}

// UpdateChecksum returns the Internet checksum sum after a 16-bit word that it
// covers changed from old to new (RFC 1624, equation 3).
func UpdateChecksum(sum, old, new uint16) uint16 {
	s := uint32(^sum) + uint32(^old) + uint32(new)
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	return ^uint16(s)
}

// checksum is the Internet checksum (RFC 1071) of b, whose length is a multiple
// of 4; it is 0 where b holds its own correct checksum.
func checksum(b []byte) uint16 {
	var s uint64
	if len(b) == ipv4Len { // without options
		s = uint64(be32(b)) + uint64(be32(b[4:])) + uint64(be32(b[8:])) + uint64(be32(b[12:])) + uint64(be32(b[16:]))
		b = nil
	}
	for ; len(b) >= 4; b = b[4:] {
		s += uint64(be32(b))
	}
	s = s&0xffffffff + s>>32
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	return ^uint16(s)
}

// ClampMSS lowers the maximum segment size that a TCP SYN announces in frame to
// limit bytes where it is above, corrects the TCP checksum, and reports whether
// it did. It does nothing where the option is not the first.
func (v *View) ClampMSS(frame []byte, limit uint16) bool {
	const syn = 0x02
	if v.MSSAt == 0 || v.TCPFlags&syn == 0 {
		return false
	}
	mss := be16(frame[v.MSSAt:])
	if mss <= limit {
		return false
	}
	binary.BigEndian.PutUint16(frame[v.MSSAt:], limit)
	sum := frame[v.L4+16:]
	binary.BigEndian.PutUint16(sum, UpdateChecksum(be16(sum), mss, limit))
	return true
}

// DecrementTTL lowers the TTL, with the IPv4 header checksum, or the hop limit
// by one. It reports false, and changes nothing, where the packet would expire
// or is not IP.
func (v *View) DecrementTTL(frame []byte) bool {
	if v.TTL <= 1 {
		return false
	}
	v.TTL--
	if v.Family == 6 {
		frame[v.L3+7] = v.TTL
		return true
	}
	ip := frame[v.L3:]
	old := be16(ip[8:])
	ip[8] = v.TTL
	binary.BigEndian.PutUint16(ip[10:], UpdateChecksum(be16(ip[10:]), old, be16(ip[8:])))
	return true
}
