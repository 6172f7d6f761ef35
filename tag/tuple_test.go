package tag

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// slowMessage writes M byte by byte as docs/wire.md tells it: each word most
// significant byte first, then turned around. It shares nothing with the
// package but the names.
func slowMessage(h Header, nonce uint64, protocol uint8, kind uint16, src, dst netip.Addr, srcPort, dstPort uint16) []byte {
	low, high, lowPort, highPort := src, dst, srcPort, dstPort
	c := bytes.Compare(src.AsSlice(), dst.AsSlice())
	if c > 0 {
		low, high = dst, src
	}
	if kind != 2 && (c > 0 || c == 0 && dstPort < srcPort) {
		lowPort, highPort = dstPort, srcPort
	}
	family := byte(6)
	if src.Is4() {
		family = 4
	}
	var m []byte
	m = append(m, h.Version<<4|byte(h.Suite), h.Flags&0xfe)
	m = append(m, byte(h.Epoch>>8), byte(h.Epoch))
	m = append(m, byte(h.UNID>>24), byte(h.UNID>>16), byte(h.UNID>>8), byte(h.UNID))
	for i := 7; i >= 0; i-- {
		m = append(m, byte(nonce>>(8*i)))
	}
	m = append(m, protocol, family, byte(kind>>8), byte(kind))
	m = append(m, byte(lowPort>>8), byte(lowPort), byte(highPort>>8), byte(highPort))
	m = append(m, low.AsSlice()...)
	m = append(m, high.AsSlice()...)
	for word := range slices.Chunk(m, 8) {
		slices.Reverse(word)
	}
	return m
}

// FuzzMessage compares M, its digests and h with an independent serialisation.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}, uint8(6), uint16(0), uint16(40000), uint16(443), uint64(1), uint32(2), uint16(3), uint8(1))
	f.Add([]byte{10, 0, 0, 2}, []byte{10, 0, 0, 2}, uint8(17), uint16(2), uint16(2), uint16(1), uint64(1), uint32(2), uint16(3), uint8(0))
	f.Add(bytes.Repeat([]byte{0xfd}, 16), bytes.Repeat([]byte{1}, 16), uint8(58), uint16(1), uint16(0), uint16(0), uint64(1), uint32(2), uint16(3), uint8(1))
	f.Fuzz(func(t *testing.T, src, dst []byte, protocol uint8, kind, srcPort, dstPort uint16, nonce uint64, unid uint32, epoch uint16, flags uint8) {
		a, ok := netip.AddrFromSlice(src)
		b, ok2 := netip.AddrFromSlice(dst)
		if !ok || !ok2 || a.Is4() != b.Is4() {
			t.Skip()
		}
		h := NewHeader(KeyID{Siphash, unid, epoch})
		h.Flags = flags & FlagEcho
		want := slowMessage(h, nonce, protocol, kind, a, b, srcPort, dstPort)
		tuple, srcIsLow := NewTuple(protocol, kind, a, b, srcPort, dstPort)
		if got := Message(nil, h.Word0(), nonce, &tuple); !bytes.Equal(got, want) {
			t.Fatalf("M %x, want %x", got, want)
		}
		if got, want := SipHash(nonce, 7, h.Word0(), nonce, &tuple), slowSipHash(nonce, 7, want); got != want {
			t.Fatalf("digest %x, want %x", got, want)
		}
		var flow []byte
		for word := range slices.Chunk(want[16:], 8) {
			flow = binary.BigEndian.AppendUint64(flow, binary.LittleEndian.Uint64(word))
		}
		if got, want := tuple.FlowHash(), crc32.ChecksumIEEE(flow); got != want {
			t.Fatalf("h %x, want %x", got, want)
		}
		if low := tuple.Low(); srcIsLow && low != a || !srcIsLow && low != b {
			t.Fatalf("srcIsLow %v, low %v of %v and %v", srcIsLow, low, a, b)
		}
	})
}

func drawAddr(t *rapid.T, v6 bool, name string) netip.Addr {
	n := 4
	if v6 {
		n = 16
	}
	// Few different bytes, so that equal and almost equal addresses come up.
	a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 127, 128, 255}), n, n).Draw(t, name))
	return a
}

func TestTupleIsSymmetric(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		a, b := drawAddr(t, v6, "a"), drawAddr(t, v6, "b")
		port := rapid.Uint16Range(0, 3)
		p, q := port.Draw(t, "p"), port.Draw(t, "q")
		protocol := rapid.Uint8().Draw(t, "protocol")
		kind := rapid.Uint16Range(0, 2).Draw(t, "kind")
		one, oneLow := NewTuple(protocol, kind, a, b, p, q)
		if kind != KindFragment {
			p, q = q, p
		}
		two, twoLow := NewTuple(protocol, kind, b, a, p, q)
		if one != two {
			t.Fatalf("%v and %v", one, two)
		}
		if oneLow == twoLow && (a != b || p != q && kind != KindFragment) {
			t.Fatalf("both ends of %v are low: %v", one, oneLow)
		}
		if one.Low().Compare(one.High()) > 0 || one.Low() == one.High() && kind != KindFragment && one.LowPort() > one.HighPort() {
			t.Fatalf("%v is not sorted", one)
		}
		if one.Protocol() != protocol || one.Kind() != kind || one.Family() == 4 == v6 {
			t.Fatalf("%v of protocol %d, kind %d", one, protocol, kind)
		}
	})
}

func TestTupleForms(t *testing.T) {
	v4 := netip.MustParseAddr
	for _, c := range []struct {
		name     string
		kind     uint16
		src, dst netip.Addr
		sp, dp   uint16
		srcIsLow bool
		text     string
	}{
		{"source low", 0, v4("10.0.0.1"), v4("10.0.0.2"), 9, 5, true, "6 10.0.0.1:9 10.0.0.2:5"},
		{"source high", 0, v4("10.0.0.2"), v4("10.0.0.1"), 9, 5, false, "6 10.0.0.1:5 10.0.0.2:9"},
		{"addresses equal", 0, v4("10.0.0.2"), v4("10.0.0.2"), 9, 5, false, "6 10.0.0.2:5 10.0.0.2:9"},
		{"all equal", 0, v4("10.0.0.2"), v4("10.0.0.2"), 5, 5, true, "6 10.0.0.2:5 10.0.0.2:5"},
		{"high bit is not a sign", 0, v4("200.0.0.1"), v4("10.0.0.1"), 1, 2, false, "6 10.0.0.1:2 200.0.0.1:1"},
		{"IPv6 by the low half", 0, v4("fd00::2"), v4("fd00::1"), 1, 2, false, "6 [fd00::1]:2 [fd00::2]:1"},
		{"not echo", 1, v4("10.0.0.2"), v4("10.0.0.1"), 0, 0, false, "6 10.0.0.1 10.0.0.2 icmp"},
		{"identification stays", 2, v4("10.0.0.2"), v4("10.0.0.1"), 0xdead, 0xbeef, false, "6 10.0.0.1 10.0.0.2 fragment deadbeef"},
		{"families mixed", 0, v4("10.0.0.2"), v4("fd00::1"), 1, 2, true, "6 [::ffff:10.0.0.2]:1 [fd00::1]:2"},
		{"no addresses", 0, netip.Addr{}, netip.Addr{}, 1, 2, true, "6 [::]:1 [::]:2"},
	} {
		got, srcIsLow := NewTuple(6, c.kind, c.src, c.dst, c.sp, c.dp)
		if got.String() != c.text || srcIsLow != c.srcIsLow {
			t.Errorf("%s: %v, source low %v, want %s, %v", c.name, got, srcIsLow, c.text, c.srcIsLow)
		}
	}
}
