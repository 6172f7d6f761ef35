package tag

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSuites(t *testing.T) {
	for _, c := range []struct {
		suite               Suite
		name                string
		sealed, length, wds int
	}{
		{Siphash, "siphash", 0, 28, 7},
		{Ed25519, "ed25519", 64, 92, 23},
		{RSA2048, "rsa2048", 256, 284, 71},
	} {
		if got, err := ParseSuite(c.name); got != c.suite || err != nil || c.suite.String() != c.name {
			t.Errorf("%s: parsed %v, %v", c.name, got, err)
		}
		if c.suite.SealedLen() != c.sealed || c.suite.TagLen() != c.length || int(c.suite.Words()) != c.wds {
			t.Errorf("%s: lengths %d, %d, %d", c.name, c.suite.SealedLen(), c.suite.TagLen(), c.suite.Words())
		}
		var back Suite
		text, err := c.suite.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != c.suite {
			t.Errorf("%s: text %s, %v, back %v", c.name, text, err, back)
		}
	}
	for _, name := range []string{"", "SipHash", "rsa", "suite(1)"} {
		if _, err := ParseSuite(name); !errors.Is(err, ErrSuite) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, s := range []Suite{0, 4, 255} {
		if _, err := s.MarshalText(); !errors.Is(err, ErrSuite) || s.Valid() || s.SealedLen() != 0 {
			t.Errorf("%v: %v", s, err)
		}
	}
	if MaxLen != RSA2048.TagLen() {
		t.Errorf("MaxLen %d", MaxLen)
	}
}

// wellFormed is a tag of suite s with next header 6.
func wellFormed(s Suite) []byte {
	h := NewHeader(KeyID{s, 0xdeadbeef, 0x1234})
	h.NextHeader = 6
	h.Digest = 0x0102030405060708
	if s != RSA2048 {
		h.Nonce = 0x1112131415161718
	}
	h.Sealed = bytes.Repeat([]byte{0xa5}, s.SealedLen())
	return h.AppendTo(nil)
}

func TestParseHeaderMalformed(t *testing.T) {
	for _, s := range Suites {
		set := func(at int, v byte) func([]byte) []byte {
			return func(b []byte) []byte { b[at] = v; return b }
		}
		for _, c := range []struct {
			name   string
			family uint8
			edit   func([]byte) []byte
			want   error
		}{
			{"well formed", 4, set(0, 6), nil},
			{"echoed", 4, set(3, FlagEcho), nil},
			{"bytes behind it", 6, func(b []byte) []byte { return append(b, 1, 2, 3) }, nil},
			{"empty", 4, func([]byte) []byte { return nil }, errShort},
			{"27 bytes", 4, func(b []byte) []byte { return b[:27] }, errShort},
			{"one byte short", 4, func(b []byte) []byte { return b[:len(b)-1] }, errShort},
			{"version 0", 4, set(2, byte(s)), errVersion},
			{"version 2", 4, set(2, 0x20|byte(s)), errVersion},
			{"suite 0", 4, set(2, 0x10), errSuite},
			{"suite 4", 4, set(2, 0x14), errSuite},
			{"length one less", 4, set(1, s.Words()-1), errLength},
			{"length one more", 4, set(1, s.Words()+1), errLength},
			{"length 0", 4, set(1, 0), errLength},
			{"flag 0x02", 4, set(3, 0x02), errFlags},
			{"flag 0x80 with E", 4, set(3, 0x81), errFlags},
			{"reserved high", 4, set(10, 1), errReserved},
			{"reserved low", 4, set(11, 1), errReserved},
			{"next header 0", 6, set(0, 0), errNextHeader},
			{"next header 253", 6, set(0, 253), errNextHeader},
			{"next header 43 in IPv4", 4, set(0, 43), errNextHeader},
			{"next header 60 in IPv4", 4, set(0, 60), errNextHeader},
			{"next header 43 in IPv6", 6, set(0, 43), nil},
			{"next header 60 in IPv6", 6, set(0, 60), nil},
			{"next header 44", 4, set(0, 44), nil},
		} {
			b := c.edit(wellFormed(s))
			h, err := ParseHeader(b, 253, c.family)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, %s: %v, want %v", s, c.name, err, c.want)
			}
			if err != nil && Reason(err) != "tag_malformed" {
				t.Errorf("%v, %s: reason %q", s, c.name, Reason(err))
			}
			if err == nil && !bytes.Equal(h.AppendTo(nil), b[:s.TagLen()]) {
				t.Errorf("%v, %s: written as %x, read from %x", s, c.name, h.AppendTo(nil), b)
			}
		}
	}
	b := wellFormed(RSA2048)
	b[19] = 1
	if _, err := ParseHeader(b, 253, 4); !errors.Is(err, errNonce) {
		t.Errorf("rsa2048 with a nonce: %v", err)
	}
	if _, err := ParseHeader(wellFormed(Siphash), 6, 4); !errors.Is(err, errNextHeader) {
		t.Errorf("next header of a configured carrier: %v", err)
	}
}

func TestReasons(t *testing.T) {
	for want, err := range map[string]error{
		"tag_malformed": errLength, "tag_forged": errSeal, "tag_unknown_key": errWrongSuite,
		"tag_misplaced": ErrMisplaced, "tag_fragmented": ErrFragmented, "tag_on_edge": ErrOnEdge,
		"untagged_on_trunk": ErrUntaggedOnTrunk, "tag_revoked": ErrRevoked, "tag_unverified": ErrUnverified,
		"": ErrKey,
	} {
		if Reason(err) != want || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v has reason %q, want %q", err, Reason(err), want)
		}
	}
	if Reason(nil) != "" {
		t.Error("nil has a reason")
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	key := NewSiphashKey(MACKey{1, 2, 3})
	verifier := key.Verifier()
	tuples := map[string]Tuple{}
	var t4, t6 Tuple
	t4.Set4(6, KindPorts, 1, 2, 3, 4)
	t6.Set6(6, KindPorts, 1, 2, 3, 4, 5, 6)
	tuples["IPv4"], tuples["IPv6"] = t4, t6
	wire := wellFormed(Siphash)
	bad := append([]byte{}, wire...)
	bad[2] = 0
	out := make([]byte, 0, MaxLen)
	for family, tuple := range tuples {
		h, err := key.Issue(1, 2, 3, &tuple)
		if err != nil {
			t.Fatal(err)
		}
		forged := h
		forged.Digest++
		for name, f := range map[string]func(){
			"parse":           func() { _, _ = ParseHeader(wire, 253, 4) },
			"parse malformed": func() { _, _ = ParseHeader(bad, 253, 4) },
			"issue":           func() { _, _ = key.Issue(1, 2, 3, &tuple) },
			"write":           func() { out = h.AppendTo(out[:0]) },
			"flow hash":       func() { tuple.FlowHash() },
			"verify": func() {
				if verifier.Verify(&h, &tuple) != nil {
					t.Error("refused")
				}
			},
			"verify forged": func() {
				if verifier.Verify(&forged, &tuple) == nil {
					t.Error("accepted")
				}
			},
		} {
			if n := testing.AllocsPerRun(100, f); n != 0 {
				t.Errorf("%s, %s: %v allocations", family, name, n)
			}
		}
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(Suites[:]).Draw(t, "suite")
		h := NewHeader(KeyID{s, rapid.Uint32().Draw(t, "unid"), rapid.Uint16().Draw(t, "epoch")})
		h.NextHeader = rapid.Uint8Range(1, 252).Draw(t, "next header")
		h.Flags = rapid.Uint8Range(0, 1).Draw(t, "flags")
		h.Digest = rapid.Uint64().Draw(t, "digest")
		if s != RSA2048 {
			h.Nonce = rapid.Uint64().Draw(t, "nonce")
		}
		h.Sealed = rapid.SliceOfN(rapid.Byte(), s.SealedLen(), s.SealedLen()).Draw(t, "sealed")
		got, err := ParseHeader(h.AppendTo(nil), 253, 6)
		if err != nil {
			t.Fatal(err)
		}
		if got.KeyID() != h.KeyID() || got.NextHeader != h.NextHeader || got.Flags != h.Flags || got.Nonce != h.Nonce ||
			got.Digest != h.Digest || !bytes.Equal(got.Sealed, h.Sealed) || got.Len() != s.TagLen() || got.SealedCRC() != h.SealedCRC() {
			t.Fatalf("%+v came back as %+v", h, got)
		}
		if got.Echoed() != (h.Flags == FlagEcho) || got.Word0() != h.KeyID().Word0() {
			t.Fatalf("E is part of M in %+v", h)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	for _, s := range Suites {
		f.Add(wellFormed(s), uint8(253), uint8(4))
		f.Add(wellFormed(s), uint8(6), uint8(6))
	}
	f.Fuzz(func(t *testing.T, b []byte, carrier, family uint8) {
		h, err := ParseHeader(b, carrier, family)
		if err != nil {
			if Reason(err) != "tag_malformed" {
				t.Fatalf("reason %q of %v", Reason(err), err)
			}
			return
		}
		if h.NextHeader == carrier || h.Len() != h.Suite.TagLen() || binary.BigEndian.Uint16(b[10:]) != 0 {
			t.Fatalf("%x parsed as %+v", b, h)
		}
		if got := h.AppendTo(nil); !bytes.Equal(got, b[:h.Len()]) {
			t.Fatalf("%x written as %x", b[:h.Len()], got)
		}
	})
}
