package forward

import (
	"fmt"
	"os"
	"testing"
	"time"

	"countersign/test/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.EnsurePrivileges(); err != nil {
		fmt.Fprintln(os.Stderr, "skip:", err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func BenchmarkForward(b *testing.B) {
	for _, size := range []int{64, 1400} {
		for _, c := range []struct {
			name string
			f    Forwarder
		}{{"kernel", Kernel}, {"pktio", Packets}} {
			b.Run(fmt.Sprintf("%s/%d", c.name, size), func(b *testing.B) {
				for b.Loop() {
					r, err := Measure(b.Context(), c.f, size, 64, time.Second)
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(r.PPS(), "pps")
					b.ReportMetric(float64(r.Sent)/r.Elapsed.Seconds(), "sent-pps")
					b.ReportMetric(r.PPS()*float64(size)*8/1e9, "Gbit/s")
				}
			})
		}
	}
}
