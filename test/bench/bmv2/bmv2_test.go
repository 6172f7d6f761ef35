package bmv2

import (
	"errors"
	"os"
	"testing"
	"time"

	"countersign/test/dataplane"
	"countersign/test/netlab"
)

func TestMain(m *testing.M) {
	dataplane.Main()
	errPrivileges = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

var errPrivileges error

func compare(t testing.TB, rounds int, d time.Duration) Result {
	t.Helper()
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	r, err := Compare(t.Context(), rounds, d)
	if errors.Is(err, dataplane.ErrUnavailable) && os.Getenv("COUNTERSIGN_REQUIRE_BMV2") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCompare is there so that the measurement keeps working.
func TestCompare(t *testing.T) {
	if r := compare(t, 1, 100*time.Millisecond); r.Forward <= 0 || r.Retag <= 0 {
		t.Errorf("measured %+v", r)
	}
}

func TestWrites(t *testing.T) {
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	rates, err := Writes(t.Context(), []int{1, 10}, 10*time.Millisecond)
	if errors.Is(err, dataplane.ErrUnavailable) && os.Getenv("COUNTERSIGN_REQUIRE_BMV2") != "1" {
		t.Skip(err)
	}
	if err != nil || len(rates) != 2 || rates[0].PerSecond <= 0 || rates[1].Batch != 10 {
		t.Errorf("%+v, %v", rates, err)
	}
}

func BenchmarkRetag(b *testing.B) {
	r := compare(b, 5, 2*time.Second)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r.Forward, "forward-packets/s")
	b.ReportMetric(r.Retag, "retag-packets/s")
	b.ReportMetric(r.Ratio(), "ratio")
	b.ReportMetric(float64(r.ForwardCPU.Nanoseconds()), "forward-cpu-ns/packet")
	b.ReportMetric(float64(r.RetagCPU.Nanoseconds()), "retag-cpu-ns/packet")
	b.ReportMetric(SketchRatio, "sketch-ratio")
}
