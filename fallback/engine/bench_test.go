package engine

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"countersign/fallback/pktio"
	"countersign/tables"
	"countersign/tag"
)

// bench runs batches of frames, each a copy of the template that set makes
// anew. ns/packet is the engine's time alone; ns/op has that of making them too.
func (r *rig) bench(b *testing.B, port uint16, template []byte, set func(i int, frame []byte), want Verdict) {
	b.Helper()
	r.quiet = true
	frames := pktio.NewFrames(MaxBatch)
	batch := make([]Packet, MaxBatch)
	var took time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += len(batch) {
		for i := range batch {
			f := frames[i]
			_ = f.Set(template)
			if set != nil {
				set(n+i, f.Bytes())
			}
			batch[i].Frame, batch[i].InPort = f, port
		}
		start := time.Now()
		r.w.Process(r.now, batch)
		took += time.Since(start)
	}
	b.StopTimer()
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/packet")
	for i := range batch {
		if batch[i].Verdict != want {
			b.Fatalf("%v %v at %v", batch[i].Verdict, batch[i].Reason, batch[i].Stage)
		}
	}
}

// small is a 64-byte frame (60 without FCS): 46 bytes of IPv4 with UDP.
func small(src, dst string) []byte {
	f := flow{17, netip.MustParseAddr(src), netip.MustParseAddr(dst), 40000, 5000}
	return eth(f.ip(append(f.l4(0), make([]byte, 10)...)))
}

func smallIP(src, dst string) []byte { return small(src, dst)[14:] }

func BenchmarkVerifyRetag(b *testing.B) {
	r := newRig(b, false)
	r.bench(b, 2, eth(r.byPeer(smallIP("10.9.0.1", "10.2.0.2"))), nil, Forward)
}

func BenchmarkStrip(b *testing.B) {
	r := newRig(b, false)
	frame := eth(r.byPeer(smallIP("10.9.0.1", "10.1.0.2")))
	v := r.view(frame)
	r.deliver(v.Tuple)
	r.bench(b, 2, frame, nil, Forward)
}

// sessionSource spreads session i over source addresses and ports.
func sessionSource(i int, frame []byte) {
	src := 10<<24 | 9<<16 | uint32(i)&0xffff
	binary.BigEndian.PutUint32(frame[26:], src)
	binary.BigEndian.PutUint16(frame[34:], 20000+uint16(i>>16))
	mendIPv4(frame[14:])
}

func BenchmarkTagSession(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, false)
			template := small("10.9.0.1", "10.2.0.2")
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := range n {
				sessionSource(i, template)
				v := r.view(template)
				r.pl.(*pipeline).insertSession(b, v.Tuple)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			x := uint32(1)
			r.bench(b, 1, template, func(_ int, frame []byte) {
				x ^= x << 13
				x ^= x >> 17
				x ^= x << 5
				sessionSource(int(uint64(x)*uint64(n)>>32), frame)
			}, Forward)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/session")
		})
	}
}

// insertSession adds a session without what P4Runtime makes of it.
func (pl *pipeline) insertSession(t testing.TB, tuple tag.Tuple) {
	t.Helper()
	key := tuple4{tuple.W2, tuple.A[0]}
	id, e := pl.session4.insert(key)
	e.val.zones.Store(tables.ZoneAny<<16 | tables.ZoneAny)
	pl.session4.publish(id, e)
}

func BenchmarkPolicyDeny(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, false)
			r.rules(n)
			r.bench(b, 1, small("10.9.0.1", "10.2.0.2"), nil, Drop)
		})
	}
}

// rules adds n rules for services, of which the last denies the rest.
func (r *rig) rules(n int) {
	r.t.Helper()
	for i := range n - 1 {
		r.put(tables.PolicyV4Entry{
			Key: tables.PolicyV4Key{
				InZone: exactly[uint16](10), OutZone: exactly(uint16(20 + 10*(i%3))),
				Dst:      tables.Ternary[uint32]{Value: 10<<24 | 2<<16 | uint32(i)<<4, Mask: 0xfffffff0},
				Protocol: exactly[uint8](6 + 11*uint8(i%2)),
				DstPort:  tables.Between(uint16(1000+i), uint16(1000+i)),
				Tagged:   tables.Ternary[uint8]{Mask: 1},
			},
			Priority: int32(10 + n - i), Action: tables.AdmitV4{},
		})
	}
	r.put(tables.PolicyV4Entry{Key: tables.PolicyV4Key{InZone: exactly[uint16](10)}, Priority: 1, Action: tables.DenyV4{}})
}

func exactly[T uint8 | uint16 | uint32](v T) tables.Ternary[T] {
	return tables.Ternary[T]{Value: v, Mask: ^T(0)}
}
