package gobench

import (
	"errors"
	"strings"
	"testing"
)

const output = `goos: linux
pkg: countersign/fallback/engine
BenchmarkVerifyRetag-2    	 2000000	       298.5 ns/op	       0 B/op	       0 allocs/op
BenchmarkVerifyRetag-2    	 2000000	       200.5 ns/op	       0 B/op	       0 allocs/op
BenchmarkVerifyRetag-2    	 2000000	       250 ns/op	       0 B/op	       1 allocs/op
BenchmarkTagSession/1000  	 2000000	       308.1 ns/op	       262.2 B/session
BenchmarkSome/a-b         	       1	       4 ns/op
BenchmarkBroken           	       x	       4 ns/op
BenchmarkOdd              	       1	       4 ns/op  5
BenchmarkNoNumber         	       1	       four ns/op
BenchmarkStarted
PASS
`

func TestParse(t *testing.T) {
	r := Parse([]byte(output))
	for _, c := range []struct {
		pick       func(string, string) (float64, error)
		name, unit string
		want       float64
	}{
		{r.Median, "VerifyRetag", "ns/op", 250},
		{r.Min, "VerifyRetag", "ns/op", 200.5},
		{r.Max, "VerifyRetag", "allocs/op", 1},
		{r.Median, "TagSession/1000", "B/session", 262.2},
		{r.Max, "Some/a-b", "ns/op", 4},
	} {
		if got, err := c.pick(c.name, c.unit); err != nil || got != c.want {
			t.Errorf("%s %s: %v, %v, want %v", c.name, c.unit, got, err, c.want)
		}
	}
	for _, name := range []string{"Broken", "Odd", "NoNumber", "Started", "VerifyRetag-2"} {
		if v, err := r.Median(name, "ns/op"); !errors.Is(err, ErrNoResult) {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}

func TestRun(t *testing.T) {
	r, err := Run(t.Context(), Options{Package: "countersign/test/bench/gobench", Pattern: "^BenchmarkNothing$", Time: "10x", Count: 2, CPUs: 1})
	if err != nil || len(r["Nothing"]["ns/op"]) != 2 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := Run(t.Context(), Options{Package: "countersign/nowhere", Pattern: "."}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a package that is not there: %v", err)
	}
}

func BenchmarkNothing(b *testing.B) {
	for b.Loop() {
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(output))
	f.Fuzz(func(t *testing.T, out []byte) {
		for name, units := range Parse(out) {
			for unit := range units {
				if _, err := Parse(out).Median(name, unit); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
