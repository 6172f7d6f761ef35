package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"countersign/tag"
)

func headerOf(s tag.Suite, digest uint64) *tag.Header {
	h := tag.NewHeader(tag.KeyID{Suite: s, UNID: 0xcafef00d, Epoch: 3})
	h.Digest = digest
	h.Sealed = bytes.Repeat([]byte{0x77}, s.SealedLen())
	return &h
}

// editAndBack checks on one packet that what is put on comes off again.
func editAndBack(t interface{ Fatalf(string, ...any) }, ip []byte, c Carrier) {
	var v View
	if a := ParseIP(ip, c, &v); a != None {
		t.Fatalf("%x: %v", ip, a)
	}
	if v.Tagged {
		stripped, err := Strip(nil, ip, c)
		if err != nil || len(stripped) >= len(ip) {
			t.Fatalf("%x: stripped to %x, %v", ip, stripped, err)
		}
		for _, s := range tag.Suites {
			replaced, err := replace(ip, c, headerOf(s, 9))
			if errors.Is(err, ErrTooLong) {
				continue
			}
			if err != nil {
				t.Fatalf("%x: replacing: %v", ip, err)
			}
			again, err := Strip(nil, replaced, c)
			if err != nil || !bytes.Equal(again, stripped) {
				t.Fatalf("%x: by %x to %x, %v; directly to %x", ip, replaced, again, err, stripped)
			}
		}
		return
	}
	for _, s := range tag.Suites {
		h := headerOf(s, 5)
		tagged, err := Insert(nil, ip, c, h)
		if errors.Is(err, ErrUntaggable) || errors.Is(err, ErrTooLong) {
			continue
		}
		if err != nil {
			t.Fatalf("%x: inserting: %v", ip, err)
		}
		var w View
		if a := ParseIP(tagged, c, &w); a != None || !w.Tagged {
			t.Fatalf("%x: tagged as %x: %v", ip, tagged, a)
		}
		if w.Tuple != v.Tuple || w.SrcIsLow != v.SrcIsLow || w.Flags != v.Flags || w.Protocol != v.Protocol ||
			w.SrcPort != v.SrcPort || w.FragOffset != v.FragOffset || w.MoreFragments != v.MoreFragments || w.FragID != v.FragID {
			t.Fatalf("%x: read as %+v, tagged as %+v", ip, v, w)
		}
		if w.Tag.KeyID() != h.KeyID() || w.Tag.Digest != 5 || !bytes.Equal(w.Tag.Sealed, h.Sealed) {
			t.Fatalf("%x: tag %+v", ip, w.Tag)
		}
		back, err := Strip(nil, tagged, c)
		want := slices.Clone(ip)
		if v.Family == 6 && be32(ip)&0xfffff == 0 {
			label := v.Tuple.FlowHash() & 0xfffff
			binary.BigEndian.PutUint32(want, be32(ip)|max(label, 1))
		}
		if v.Family == 4 && be16(want[10:]) == 0xffff {
			continue // the other form of checksum 0; it comes back as 0
		}
		if err != nil || !bytes.Equal(back, want) {
			t.Fatalf("%x: came back as %x, %v", want, back, err)
		}
		editAndBack(t, tagged, c)
	}
}

func replace(ip []byte, c Carrier, h *tag.Header) ([]byte, error) {
	return edit(nil, ip, c, tag.MaxLen, func(v *View, buf []byte, start int) (int, error) {
		return v.Replace(buf, start, c, h)
	})
}

func TestEditAllParsedPackets(t *testing.T) {
	for _, c := range parseCases() {
		var v View
		if Parse(c.frame, c.carrier, &v) == None && !v.ARP {
			editAndBack(t, c.frame[v.L3:v.End], c.carrier)
		}
	}
}

func TestInsertStripProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := rapid.SampledFrom([]Carrier{carrierIP, carrierUDP}).Draw(t, "carrier")
		protocol := rapid.SampledFrom([]byte{1, 6, 17, 33, 44, 50, 58, 60, 132, 136}).Draw(t, "protocol")
		payload := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "payload")
		var ip []byte
		if rapid.Bool().Draw(t, "IPv6") {
			ip = v6(protocol, payload, func(b []byte) {
				copy(b[1:], rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1}), 3, 3).Draw(t, "label"))
				b[39] = rapid.Byte().Draw(t, "destination")
			})
		} else {
			flags := rapid.Uint16().Draw(t, "flags and offset")
			id := rapid.Uint16().Draw(t, "id")
			ip = v4(protocol, payload, func(b []byte) {
				binary.BigEndian.PutUint16(b[4:], id)
				binary.BigEndian.PutUint16(b[6:], flags)
			})
		}
		var v View
		if ParseIP(ip, c, &v) == None {
			editAndBack(t, ip, c)
		}
	})
}

func TestEditRefusals(t *testing.T) {
	sip := headerOf(tag.Siphash, 1)
	broken := *sip
	broken.Sealed = []byte{1}
	tagged := v4(253, cat(tagOf(tag.Siphash, 6), tcp()))
	long := v4(6, cat(tcp(), zeros(65535-40)))
	for _, c := range []struct {
		name string
		ip   []byte
		h    *tag.Header
		want error
	}{
		{"tagged", tagged, sip, ErrTagged},
		{"multicast", v4(6, tcp(), set(16, 224, 0, 0, 1)), sip, ErrUntaggable},
		{"neighbour discovery", v6(58, icmp(135, 0)), sip, ErrUntaggable},
		{"source route", v4opts([]byte{131, 3, 4}, 6, tcp()), sip, ErrUntaggable},
		{"routing header with segments left", v6(43, []byte{6, 0, 4, 1, 0, 0, 0, 0}), sip, ErrUntaggable},
		{"IPv4 protocol 0", v4(0, nil), sip, ErrUntaggable},
		{"IPv4 protocol 43", v4(43, nil), sip, ErrUntaggable},
		{"IPv4 protocol 44", v4(44, zeros(8)), sip, ErrUntaggable},
		{"IPv4 protocol 60", v4(60, nil), sip, ErrUntaggable},
		{"two hop-by-hop headers", v6(0, cat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, zeros(8))), sip, ErrUntaggable},
		{"IPv4 of 65535 bytes", long, sip, ErrTooLong},
		{"IPv6 of 65535 bytes", v6(50, zeros(65535)), sip, ErrTooLong},
		{"tag that does not fit its length", v4(6, tcp()), &broken, tag.ErrMalformed},
		{"not a packet", []byte{0x45}, sip, nil},
	} {
		got, err := Insert([]byte{1}, c.ip, carrierIP, c.h)
		if c.want != nil && !errors.Is(err, c.want) || err == nil || !bytes.Equal(got, []byte{1}) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := Strip(nil, v4(6, tcp()), carrierIP); !errors.Is(err, ErrUntagged) {
		t.Errorf("stripping an untagged packet: %v", err)
	}
	if _, err := Insert(nil, v4(253, nil), carrierUDP, sip); !errors.Is(err, ErrUntaggable) {
		t.Errorf("protocol 253 with carrier udp: %v", err)
	}
	if _, err := Insert(nil, v4(6, cat(tcp(), zeros(65535-40-28))), carrierIP, sip); err != nil {
		t.Errorf("result of 65535 bytes: %v", err)
	}
	if _, err := Insert(nil, v6(50, zeros(65535-28)), carrierIP, sip); err != nil {
		t.Errorf("IPv6 result of 65535 bytes of payload: %v", err)
	}
	if _, err := Insert(nil, v4(6, cat(tcp(), zeros(65535-40-28-7)), set(6, 0x20, 0)), carrierIP, sip); !errors.Is(err, ErrTooLong) {
		t.Errorf("fragment that becomes one byte too long: %v", err)
	}

	// In place: what is refused stays as it was.
	f := eth(v4(6, tcp()))
	buf := append(zeros(27), f...)
	var v View
	Parse(buf[27:], carrierIP, &v)
	if start, err := v.Insert(buf, 27, carrierIP, sip); !errors.Is(err, ErrHeadroom) || start != 27 || !bytes.Equal(buf[27:], f) {
		t.Errorf("27 bytes of headroom: %v", err)
	}
	if start, err := v.Replace(buf, 27, carrierIP, sip); !errors.Is(err, ErrUntagged) || start != 27 {
		t.Errorf("replacing nothing: %v", err)
	}
	Parse(frame(etherARP, zeros(28)), carrierIP, &v)
	if _, err := v.Insert(make([]byte, 200), 100, carrierIP, sip); !errors.Is(err, ErrUntaggable) {
		t.Errorf("ARP: %v", err)
	}
}

// TestEditInPlace follows one frame, with VLAN and padding, through the path of
// a member.
func TestEditInPlace(t *testing.T) {
	const headroom = 512
	for _, c := range []Carrier{carrierIP, carrierUDP} {
		for name, ip := range map[string][]byte{
			"IPv4": v4(6, tcp()), "IPv6": v6(6, tcp()), "IPv4 fragment": v4(6, tcp(), set(6, 0x20, 8)),
			"options": v4opts([]byte{1, 1, 1, 1}, 6, tcp()),
		} {
			f := vlan(5, eth(ip))
			buf := cat(zeros(headroom), f, zeros(6))
			start := headroom
			var v View
			step := func(what string, edit func() (int, error), want []byte) {
				t.Helper()
				if a := Parse(buf[start:], c, &v); a != None {
					t.Fatalf("%v, %s, %s: %v", c, name, what, a)
				}
				end := start + v.End
				var err error
				if start, err = edit(); err != nil {
					t.Fatalf("%v, %s, %s: %v", c, name, what, err)
				}
				if end != headroom+len(f) {
					t.Fatalf("%v, %s, %s: the end moved to %d", c, name, what, end)
				}
				if got := buf[start:end]; !bytes.Equal(got, want) {
					t.Fatalf("%v, %s, %s: %x, want %x", c, name, what, got, want)
				}
			}
			tagged := func(h *tag.Header) []byte {
				b, err := Insert(nil, ip, c, h)
				if err != nil {
					t.Fatal(err)
				}
				return vlan(5, eth(b))
			}
			one, two, three := headerOf(tag.Siphash, 1), headerOf(tag.RSA2048, 2), headerOf(tag.Ed25519, 3)
			step("insert", func() (int, error) { return v.Insert(buf, start, c, one) }, tagged(one))
			step("replace by the same length", func() (int, error) { return v.Replace(buf, start, c, headerOf(tag.Siphash, 7)) }, tagged(headerOf(tag.Siphash, 7)))
			step("replace by a longer", func() (int, error) { return v.Replace(buf, start, c, two) }, tagged(two))
			step("replace by a shorter", func() (int, error) { return v.Replace(buf, start, c, three) }, tagged(three))
			step("strip", func() (int, error) { return v.Strip(buf, start) }, f)
		}
	}
}

func TestFlowLabel(t *testing.T) {
	sip := headerOf(tag.Siphash, 1)
	for _, c := range []Carrier{carrierIP, carrierUDP} {
		kept, err := Insert(nil, v6(6, tcp(), set(1, 0x2a, 0xbb, 0xcc)), c, sip)
		if err != nil || be32(kept) != 0x602abbcc {
			t.Errorf("%v: label %x, %v", c, be32(kept), err)
		}
		made, err := Insert(nil, v6(6, tcp(), set(0, 0x6a, 0xb0, 0, 0)), c, sip)
		var v View
		ParseIP(made, c, &v)
		if want := 0x6ab00000 | v.Tuple.FlowHash()&0xfffff; err != nil || be32(made) != want {
			t.Errorf("%v: label %x, want %x, %v", c, be32(made), want, err)
		}
	}
	// A session whose h is 0 mod 2^20 gets label 1.
	ip := v6(50, zeros(4), set(0, 0x60, 0, 0, 0))
	var v View
	for i := uint32(0); ; i++ {
		binary.BigEndian.PutUint32(ip[20:], i)
		if ParseIP(ip, carrierIP, &v); v.Tuple.FlowHash()&0xfffff == 0 {
			break
		}
	}
	got, err := Insert(nil, ip, carrierIP, sip)
	if err != nil || be32(got) != 0x60000001 {
		t.Errorf("label %x, %v, want 1", be32(got), err)
	}
}

func TestUDPCarrierHeader(t *testing.T) {
	got, err := Insert(nil, v6(17, udp(40000, 443, 1, 2, 3)), carrierUDP, headerOf(tag.Siphash, 1))
	if err != nil {
		t.Fatal(err)
	}
	var v View
	if a := ParseIP(got, carrierUDP, &v); a != None {
		t.Fatal(a)
	}
	h := got[40:48]
	if int(be16(h)) != 49152+int(v.Tuple.FlowHash()%16384) || be16(h[2:]) != 25300 || int(be16(h[4:])) != len(got)-40 || be16(h[6:]) != 0 {
		t.Errorf("UDP header %x", h)
	}
}

func TestFragmentFlagsSurvive(t *testing.T) {
	for _, field := range []uint16{0x2000, 0x6000, 0xa000, 0xe001, 0x1fff, 0x5fff, 0x9fff} {
		ip := v4(17, zeros(16), func(b []byte) { binary.BigEndian.PutUint16(b[6:], field) })
		tagged, err := Insert(nil, ip, carrierIP, headerOf(tag.Siphash, 1))
		if err != nil {
			t.Fatal(err)
		}
		if outer := be16(tagged[6:]); outer != field&0x8000|flagDF {
			t.Errorf("%04x: outer header has %04x", field, outer)
		}
		if fh := tagged[48:56]; fh[0] != 17 || fh[1] != 0 || be16(fh[2:]) != field&offsetMask<<3|field>>13&3 || be32(fh[4:]) != 0xabcd {
			t.Errorf("%04x: fragment header %x", field, fh)
		}
		if checksum(tagged[:20]) != 0 {
			t.Errorf("%04x: checksum", field)
		}
		if back, err := Strip(nil, tagged, carrierIP); err != nil || !bytes.Equal(back, ip) {
			t.Errorf("%04x: came back as %x, %v", field, back, err)
		}
	}
}

func TestUpdateChecksum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xfe, 0xff}), 8, 8).Draw(t, "words")
		b[0] |= 0x40 // a header is never all zeroes
		before := checksum(b)
		at := 2 * rapid.IntRange(1, 3).Draw(t, "word")
		old := be16(b[at:])
		changed := rapid.Uint16().Draw(t, "new")
		binary.BigEndian.PutUint16(b[at:], changed)
		if got, want := UpdateChecksum(before, old, changed), checksum(b); got != want {
			t.Fatalf("%04x, want %04x", got, want)
		}
	})
	// The example of RFC 1624, section 4.
	if got := UpdateChecksum(0xdd2f, 0x5555, 0x3285); got != 0 {
		t.Errorf("RFC 1624's example gives %04x", got)
	}
}

// tcpSum is the TCP checksum of an IPv4 packet, 0 where the one in it is right.
func tcpSum(ip []byte) uint16 {
	pseudo := cat(ip[12:20], []byte{0, 6}, binary.BigEndian.AppendUint16(nil, uint16(len(ip)-20)), ip[20:])
	return checksum(pseudo)
}

func TestClampMSS(t *testing.T) {
	for _, c := range []struct {
		name       string
		mss, limit uint16
		flags      byte
		want       uint16
	}{
		{"above", 1460, 1432, 0x02, 1432}, {"equal", 1432, 1432, 0x02, 1432}, {"below", 536, 1432, 0x02, 536},
		{"SYN-ACK", 65535, 1176, 0x12, 1176}, {"no SYN", 1460, 1432, 0x10, 1460},
	} {
		l4 := syn(c.mss)
		l4[13] = c.flags
		ip := v4(6, l4)
		binary.BigEndian.PutUint16(ip[36:], tcpSum(ip))
		f := eth(ip)
		var v View
		Parse(f, carrierIP, &v)
		if got := v.ClampMSS(f, c.limit); got != (c.want != c.mss) {
			t.Errorf("%s: %v", c.name, got)
		}
		if got := be16(f[14+42:]); got != c.want || tcpSum(f[14:]) != 0 {
			t.Errorf("%s: MSS %d, want %d, checksum off by %x", c.name, got, c.want, tcpSum(f[14:]))
		}
	}
}

func TestDecrementTTL(t *testing.T) {
	for _, ttl := range []byte{0, 1, 2, 255} {
		for _, ip := range [][]byte{v4(6, tcp(), set(8, ttl)), v6(6, tcp(), set(7, ttl))} {
			f := eth(ip)
			var v View
			Parse(f, carrierIP, &v)
			want := ttl
			if ttl > 1 {
				want--
			}
			if got := v.DecrementTTL(f); got != (ttl > 1) {
				t.Errorf("TTL %d: %v", ttl, got)
			}
			before := v.TTL
			if a := Parse(f, carrierIP, &v); a != None || v.TTL != want || before != want || v.Has(BadChecksum) {
				t.Errorf("TTL %d became %d, %v, flags %x", ttl, v.TTL, a, v.Flags)
			}
		}
	}
	var v View
	Parse(frame(etherARP, zeros(28)), carrierIP, &v)
	if v.DecrementTTL(nil) {
		t.Error("ARP has no TTL")
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	frames := [][]byte{eth(v4(6, syn(1460))), eth(v6(6, syn(1460))), eth(v4(17, zeros(16), set(6, 0x20, 0)))}
	for _, c := range []Carrier{carrierIP, carrierUDP} {
		for i, f := range frames {
			buf := make([]byte, 512, 2048)
			var v View
			h, other := headerOf(tag.Siphash, 1), headerOf(tag.Ed25519, 2)
			n := testing.AllocsPerRun(100, func() {
				buf = append(buf[:512], f...)
				start := 512
				for range 2 {
					if Parse(buf[start:], c, &v) != None {
						t.Error("anomaly")
					}
					v.ClampMSS(buf[start:], 1000)
					v.DecrementTTL(buf[start:])
					start, _ = v.Insert(buf, start, c, h)
					Parse(buf[start:], c, &v)
					start, _ = v.Replace(buf, start, c, other)
					Parse(buf[start:], c, &v)
					start, _ = v.Strip(buf, start)
				}
			})
			if n != 0 {
				t.Errorf("%v, frame %d: %v allocations", c, i, n)
			}
		}
	}
	var v View
	for _, c := range parseCases() {
		if n := testing.AllocsPerRun(10, func() { Parse(c.frame, c.carrier, &v) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"IPv4 tagged 64", eth(v4(253, cat(tagOf(tag.Siphash, 61), zeros(2))))[:64]},
		{"IPv4 tagged TCP", eth(v4(253, cat(tagOf(tag.Siphash, 6), tcp())))},
		{"IPv4 TCP", eth(v4(6, tcp()))},
		{"IPv6 tagged TCP", eth(v6(253, cat(tagOf(tag.Siphash, 6), tcp())))},
	} {
		b.Run(c.name, func(b *testing.B) {
			var v View
			b.ReportAllocs()
			for b.Loop() {
				if Parse(c.frame, carrierIP, &v) != None {
					b.Fatal("anomaly")
				}
			}
		})
	}
}

func BenchmarkEdit(b *testing.B) {
	const headroom = 512
	h := headerOf(tag.Siphash, 1)
	untagged := cat(zeros(headroom), eth(v4(6, tcp())))
	tagged := cat(zeros(headroom), eth(v4(253, cat(tagOf(tag.Siphash, 6), tcp()))))
	var u, v View
	Parse(untagged[headroom:], carrierIP, &u)
	Parse(tagged[headroom:], carrierIP, &v)
	for name, f := range map[string]func() (int, error){
		"Insert":  func() (int, error) { return u.Insert(untagged, headroom, carrierIP, h) },
		"Replace": func() (int, error) { return v.Replace(tagged, headroom, carrierIP, h) },
		"Strip":   func() (int, error) { return v.Strip(tagged, headroom) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
