package tag

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"strings"
	"testing"

	"github.com/dchest/siphash"
)

// published holds the SipHash-2-4 vectors of the reference implementation by
// Aumasson and Bernstein: outputs for the messages 00, 00 01, … of 0 to 63 bytes
// under the key 00 01 … 0f.
const published = `
310e0edd47db6f72 fd67dc93c539f874 5a4fa9d909806c0d 2d7efbd796666785 b7877127e09427cf 8da699cd64557618 cee3fe586e46c9cb 37d1018bf50002ab
6224939a79f5f593 b0e4a90bdf82009e f3b9dd94c5bb5d7a a7ad6b22462fb3f4 fbe50e86bc8f1e75 903d84c02756ea14 eef27a8e90ca23f7 e545be4961ca29a1
db9bc2577fcc2a3f 9447be2cf5e99a69 9cd38d96f0b3c14b bd6179a71dc96dbb 98eea21af25cd6be c7673b2eb0cbf2d0 883ea3e395675393 c8ce5ccd8c030ca8
94af49f6c650adb8 eab8858ade92e1bc f315bb5bb835d817 adcf6b0763612e2f a5c91da7acaa4dde 716595876650a2a6 28ef495c53a387ad 42c341d8fa92d832
ce7cf2722f512771 e37859f94623f3a7 381205bb1ab0e012 ae97a10fd434e015 b4a31508beff4d31 81396229f0907902 4d0cf49ee5d4dcca 5c73336a76d8bf9a
d0a704536ba93e0e 925958fcd6420cad a915c29bc8067318 952b79f3bc0aa6d4 f21df2e41d4535f9 87577519048f53a9 10a56cf5dfcd9adb eb75095ccd986cd0
51a9cb9ecba312e6 96afadfc2ce666c7 72fe52975a4364ee 5a1645b276d592a1 b274cb8ebf87870a 6f9bb4203de7b381 eaecb2a30b22a87f 9924a43cc1315724
bd838d3aafbf8db7 0b1a2a3265d51aea 135079a3231ce660 932b2846e4d70666 e1915f5cb1eca46c f325965ca16d629f 575ff28e60381be5 724506eb4c328a95
`

func TestSipHashPublishedVectors(t *testing.T) {
	var key MACKey
	for i := range key {
		key[i] = byte(i)
	}
	k0, k1 := key.Words()
	var msg []byte
	outputs := strings.Fields(published)
	if len(outputs) != 64 {
		t.Fatalf("%d vectors", len(outputs))
	}
	for n, want := range outputs {
		var got [8]byte
		binary.LittleEndian.PutUint64(got[:], siphash.Hash(k0, k1, msg))
		if hex.EncodeToString(got[:]) != want {
			t.Errorf("%d bytes: %x, want %s", n, got, want)
		}
		if slow := slowSipHash(k0, k1, msg); slow != binary.LittleEndian.Uint64(got[:]) {
			t.Errorf("%d bytes: the test's own SipHash gives %x", n, slow)
		}
		msg = append(msg, byte(n))
	}

	// 56 bytes are the words of an IPv6 tuple of family 0x16.
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(msg[8*i:]) }
	tuple := Tuple{W2: word(2), A: [4]uint64{word(3), word(4), word(5), word(6)}}
	var got [8]byte
	binary.LittleEndian.PutUint64(got[:], SipHash(k0, k1, word(0), word(1), &tuple))
	if hex.EncodeToString(got[:]) != outputs[56] {
		t.Errorf("SipHash of 56 bytes: %x, want %s", got, outputs[56])
	}
}

// slowSipHash is SipHash-2-4 by the paper's text, for comparison.
func slowSipHash(k0, k1 uint64, msg []byte) uint64 {
	v := [4]uint64{
		k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d,
		k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573,
	}
	rounds := func(n int) {
		for range n {
			v[0] += v[1]
			v[2] += v[3]
			v[1] = bits.RotateLeft64(v[1], 13) ^ v[0]
			v[3] = bits.RotateLeft64(v[3], 16) ^ v[2]
			v[0] = bits.RotateLeft64(v[0], 32)
			v[2] += v[1]
			v[0] += v[3]
			v[1] = bits.RotateLeft64(v[1], 17) ^ v[2]
			v[3] = bits.RotateLeft64(v[3], 21) ^ v[0]
			v[2] = bits.RotateLeft64(v[2], 32)
		}
	}
	padded := append([]byte(nil), msg...)
	for len(padded)%8 != 7 {
		padded = append(padded, 0)
	}
	padded = append(padded, byte(len(msg)))
	for ; len(padded) > 0; padded = padded[8:] {
		m := binary.LittleEndian.Uint64(padded)
		v[3] ^= m
		rounds(2)
		v[0] ^= m
	}
	v[2] ^= 0xff
	rounds(4)
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}
