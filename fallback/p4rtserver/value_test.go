package p4rtserver_test

import (
	"bytes"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"countersign/fallback/p4rtserver"
)

func TestCanonical(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""}, {"\x00", "\x00"}, {"\x00\x00", "\x00"}, {"\x00\x63", "\x63"}, {"\x30\x64", "\x30\x64"}, {"\x00\x01\x00", "\x01\x00"},
	} {
		if got := p4rtserver.Canonical([]byte(tt.in)); string(got) != tt.want {
			t.Errorf("Canonical(%q) is %q, expected %q", tt.in, got, tt.want)
		}
	}
}

func TestValuesAgreeWithBigInt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 1, 12).Draw(t, "value")
		n := new(big.Int).SetBytes(b)
		if got := p4rtserver.BitLen(b); got != n.BitLen() {
			t.Fatalf("BitLen(%x) is %d, expected %d", b, got, n.BitLen())
		}
		c := p4rtserver.Canonical(b)
		padded := bytes.Repeat([]byte{0xee}, 16)
		p4rtserver.PutPadded(padded, c)
		if !bytes.Equal(padded, n.FillBytes(make([]byte, 16))) {
			t.Fatalf("PutPadded(%x) is %x", c, padded)
		}
		if n.IsUint64() {
			if got := p4rtserver.Uint64(c); got != n.Uint64() {
				t.Fatalf("Uint64(%x) is %d", c, got)
			}
			if got := p4rtserver.AppendUint64(nil, n.Uint64()); !bytes.Equal(got, c) {
				t.Fatalf("AppendUint64(%d) is %x, expected %x", n, got, c)
			}
		}
	})
}

func TestPutPaddedCutsInFront(t *testing.T) {
	dst := make([]byte, 2)
	if p4rtserver.PutPadded(dst, []byte{1, 2, 3}); !bytes.Equal(dst, []byte{2, 3}) {
		t.Errorf("got %x, expected the last two bytes", dst)
	}
}
