package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"countersign/test/netlab"
)

var errPrivileges error

func TestMain(m *testing.M) {
	errPrivileges = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

// BenchmarkForward measures the kernel and packet I/O by turns and reports the
// medians, so that other load on the machine strikes both.
func BenchmarkForward(b *testing.B) {
	if errPrivileges != nil {
		b.Skipf("no network namespaces: %v", errPrivileges)
	}
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			var kernel, packets, ratio []float64
			for b.Loop() {
				k, err := Measure(b.Context(), Kernel, size, 64, 200*time.Millisecond)
				if err != nil {
					b.Fatal(err)
				}
				p, err := Measure(b.Context(), Packets, size, 64, 200*time.Millisecond)
				if err != nil {
					b.Fatal(err)
				}
				kernel, packets = append(kernel, k.PPS()), append(packets, p.PPS())
				ratio = append(ratio, p.PPS()/k.PPS())
			}
			b.ReportMetric(median(kernel), "kernel-pps")
			b.ReportMetric(median(packets), "pktio-pps")
			b.ReportMetric(median(packets)*float64(size)*8/1e9, "pktio-Gbit/s")
			b.ReportMetric(median(ratio), "ratio")
		})
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

func TestMeasure(t *testing.T) {
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	for name, f := range map[string]Forwarder{"kernel": Kernel, "packets": Packets} {
		r, err := Measure(t.Context(), f, 64, 4, 20*time.Millisecond)
		if err != nil || r.Received == 0 || r.Received > r.Sent {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	fails := func(context.Context, *netlab.Node, net.HardwareAddr, net.HardwareAddr, func()) error {
		return os.ErrInvalid
	}
	if _, err := Measure(t.Context(), fails, 64, 4, time.Hour); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("a forwarder that fails: %v", err)
	}
}
