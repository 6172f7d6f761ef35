package tag

import (
	"testing"

	"github.com/dchest/siphash"
)

// BenchmarkSipHash sets the digest of M beside the library's bare hash of as
// many bytes.
func BenchmarkSipHash(b *testing.B) {
	var t4, t6 Tuple
	t4.Set4(6, KindPorts, 1, 2, 3, 4)
	t6.Set6(6, KindPorts, 1, 2, 3, 4, 5, 6)
	var buf [MaxMessageLen]byte
	var sum uint64
	for _, c := range []struct {
		name string
		f    func() uint64
	}{
		{"IPv4 M", func() uint64 { return SipHash(1, 2, 3, 4, &t4) }},
		{"IPv6 M", func() uint64 { return SipHash(1, 2, 3, 4, &t6) }},
		{"32 bytes", func() uint64 { return siphash.Hash(1, 2, buf[:32]) }},
		{"56 bytes", func() uint64 { return siphash.Hash(1, 2, buf[:]) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				sum += c.f()
			}
		})
	}
	_ = sum
}
