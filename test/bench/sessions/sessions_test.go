package sessions

import (
	"errors"
	"os"
	"testing"
	"time"

	"countersign/bmv2/launcher"
	"countersign/tag"
	"countersign/test/bench/process"
	"countersign/test/netlab"
)

var errPrivileges error

func TestMain(m *testing.M) {
	process.Main()
	errPrivileges = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

// TestMeasure is there so that the measurement keeps working.
func TestMeasure(t *testing.T) {
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	for _, c := range []struct {
		target string
		suite  tag.Suite
	}{
		{process.Fallback, tag.Siphash}, {process.Fallback, tag.Ed25519}, {process.Fallback, tag.RSA2048},
		{process.BMv2, tag.Siphash},
	} {
		t.Run(c.target+"/"+c.suite.String(), func(t *testing.T) {
			b, err := New(t.Context(), c.target, c.suite)
			if errors.Is(err, launcher.ErrNotFound) && os.Getenv("COUNTERSIGN_REQUIRE_BMV2") != "1" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}()
			r, err := b.Saturate(t.Context(), 16, 200*time.Millisecond)
			if err != nil || r.Rate <= 0 || r.Offered < 16 || r.P50 <= 0 || r.P99 < r.P50 {
				t.Errorf("saturated: %+v, %v", r, err)
			}
			t.Logf("%+v", r)
			if r, err = b.Pace(t.Context(), 200, 200*time.Millisecond); err != nil || r.Offered == 0 || r.Offered > 40 {
				t.Errorf("paced: %+v, %v", r, err)
			}
			t.Logf("%+v", r)
		})
	}
}

func TestSessionOf(t *testing.T) {
	tagged := func(i int) []byte {
		f := firstPacket(viaMAC)
		number(f, i)
		head := append(append([]byte(nil), f[:34]...), make([]byte, 28)...)
		head[23], head[34], head[35] = 253, 17, 7
		return append(head, f[34:]...)
	}
	for _, i := range []int{0, 1, 65535, 65536, maxSessions - 1} {
		if got, ok := sessionOf(tagged(i)); !ok || got != i {
			t.Errorf("session %d: got %d, %t", i, got, ok)
		}
	}
	plain := firstPacket(viaMAC)
	long := tagged(1)
	long[35] = 71
	for name, f := range map[string][]byte{"untagged": plain, "short": tagged(1)[:40], "empty": nil, "tag past the end": long} {
		if i, ok := sessionOf(f); ok {
			t.Errorf("%s: session %d", name, i)
		}
	}
}
