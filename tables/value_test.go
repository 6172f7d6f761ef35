package tables

import (
	"errors"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func TestCanonicalWords(t *testing.T) {
	for v, want := range map[uint64]string{
		0: "\x00", 1: "\x01", 0xff: "\xff", 0x100: "\x01\x00", 0xffff: "\xff\xff",
		1 << 16: "\x01\x00\x00", 1<<64 - 1: "\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		if got := string(appendWord(nil, v)); got != want {
			t.Errorf("appendWord(%#x) = %x, want %x", v, got, want)
		}
		if got := string(appendBytes(nil, new(big.Int).SetUint64(v).FillBytes(make([]byte, 16)))); got != want {
			t.Errorf("appendBytes(%#x) = %x, want %x", v, got, want)
		}
	}
}

func TestParseWord(t *testing.T) {
	for _, tc := range []struct {
		name  string
		in    string
		width int
		want  uint64
		err   error
	}{
		{"zero", "\x00", 1, 0, nil},
		{"one bit", "\x01", 1, 1, nil},
		{"two bits for one", "\x02", 1, 0, ErrWidth},
		{"empty", "", 8, 0, ErrWidth},
		{"nine bits", "\x01\xff", 9, 511, nil},
		{"ten for nine", "\x02\x00", 9, 0, ErrWidth},
		{"leading zeros", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07", 3, 7, nil},
		{"full 64", "\xff\xff\xff\xff\xff\xff\xff\xff", 64, 1<<64 - 1, nil},
		{"65 bits", "\x01\x00\x00\x00\x00\x00\x00\x00\x00", 64, 0, ErrWidth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseWord([]byte(tc.in), tc.width)
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Fatalf("%d, %v, want %d, %v", got, err, tc.want, tc.err)
			}
		})
	}
}

// Masking agrees with the same on big integers.
func TestMaskPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.IntRange(1, 300).Draw(t, "width")
		n := rapid.IntRange(0, width).Draw(t, "prefix")
		v := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 40, 40).Draw(t, "value"))
		v.Mod(v, new(big.Int).Lsh(big.NewInt(1), uint(width)))
		b := v.FillBytes(make([]byte, (width+7)/8))
		maskPrefix(b, width, n)
		v.Rsh(v, uint(width-n)).Lsh(v, uint(width-n))
		if got := new(big.Int).SetBytes(b); got.Cmp(v) != 0 {
			t.Fatalf("/%d of %d bits: %x, want %x", n, width, got, v)
		}
		if width > 64 {
			return
		}
		w := v.Uint64()
		if w&^prefixWord(width, n) != 0 || w|prefixWord(width, n) > maxWord(width) {
			t.Fatalf("prefixWord(%d, %d) = %#x", width, n, prefixWord(width, n))
		}
	})
}

func TestOptionalFields(t *testing.T) {
	object := &Object{ID: 1, Alias: "sample"}
	fields := []FieldInfo{{ID: 1, Name: "word", Width: 9, Kind: MatchOptional}, {ID: 2, Name: "wide", Width: 70, Kind: MatchOptional}}
	for _, tc := range []struct {
		name string
		word Optional[uint16]
		wide Optional[[9]byte]
		err  error
	}{
		{name: "absent"},
		{name: "zero", word: Some[uint16](0), wide: Some([9]byte{})},
		{name: "largest", word: Some[uint16](511), wide: Some([9]byte{0: 0x3f, 8: 1})},
		{name: "word too wide", word: Some[uint16](512), err: ErrWidth},
		{name: "bytes too wide", wide: Some([9]byte{0x40}), err: ErrWidth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := fieldWriter{what: "table", object: object, fields: fields}
			m := []Match{writeOptional(&w, 0, tc.word), w.optionalBytes(1, tc.wide.Value[:], tc.wide.Set)}
			r, _ := reader("table", object, fields, len(m))
			word := readOptional[uint16](&r, 0, &m[0])
			var wide Optional[[9]byte]
			wide.Set = r.optionalBytes(1, wide.Value[:], &m[1])
			if !errors.Is(w.err, tc.err) || !errors.Is(r.err, tc.err) {
				t.Fatalf("write %v, read %v, want %v", w.err, r.err, tc.err)
			}
			if tc.err == nil && (word != tc.word || wide != tc.wide) {
				t.Fatalf("%+v, %+v, want %+v, %+v", word, wide, tc.word, tc.wide)
			}
		})
	}
}

func TestMatchesThatAreTheSame(t *testing.T) {
	for _, tc := range []struct {
		name string
		same bool
	}{
		{"lpm host bits", normLPM(LPM[uint32]{0x0a010203, 8}, 32) == normLPM(LPM[uint32]{0x0a000000, 8}, 32)},
		{"lpm /0", normLPM(LPM[uint32]{Value: 5}, 32) == LPM[uint32]{}},
		{"ternary", normTernary(Ternary[uint8]{0xff, 0x0f}) == Ternary[uint8]{0x0f, 0x0f}},
		{"full range", normRange(Between[uint16](0, 0xffff), 16) == Range[uint16]{}},
		{"full range of 13 bits", normRange(Between[uint16](0, 1<<13-1), 13) == Range[uint16]{}},
		{"port 0", normRange(Between[uint16](0, 0), 16) == Between[uint16](0, 0)},
		{"optional", normOptional(Optional[uint8]{Value: 1}) == Optional[uint8]{}},
	} {
		if !tc.same {
			t.Errorf("%s: not the same", tc.name)
		}
	}
}
