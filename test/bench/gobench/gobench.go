// Package gobench runs Go benchmarks of this module and reads what they print.
package gobench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// ErrNoResult means that a benchmark printed no such figure.
var ErrNoResult = errors.New("benchmark has no such figure")

// Options say what to run. Package and Pattern are required.
type Options struct {
	Package string // import path
	Pattern string // of -bench
	Time    string // of -benchtime; default 1s
	Count   int    // runs of each; default 1
	CPUs    int    // GOMAXPROCS; default: all
}

// Results are the figures of each run, by benchmark, without "Benchmark" and
// the number of processors, and by unit.
type Results map[string]map[string][]float64

// Run runs benchmarks with the go command. The error has what they printed.
func Run(ctx context.Context, o Options) (Results, error) {
	args := []string{"test", "-run", "^$", "-bench", o.Pattern, "-count", strconv.Itoa(max(o.Count, 1))}
	if o.Time != "" {
		args = append(args, "-benchtime", o.Time)
	}
	if o.CPUs > 0 {
		args = append(args, "-cpu", strconv.Itoa(o.CPUs))
	}
	cmd := exec.CommandContext(ctx, "go", append(args, o.Package)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return Parse(out), nil
}

// Parse reads the output of benchmarks; other lines are passed over. The form
// is golang.org/design/14313-benchmark-format.
func Parse(out []byte) Results {
	r := Results{}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		name, ok := strings.CutPrefix(s.Text(), "Benchmark")
		if !ok {
			continue
		}
		f := strings.Fields(name)
		if len(f) < 4 || len(f)%2 != 0 {
			continue
		}
		if _, err := strconv.Atoi(f[1]); err != nil {
			continue
		}
		name = withoutCPUs(f[0])
		for i := 2; i < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				break
			}
			if r[name] == nil {
				r[name] = map[string][]float64{}
			}
			r[name][f[i+1]] = append(r[name][f[i+1]], v)
		}
	}
	return r
}

// withoutCPUs takes the number of processors off a benchmark's name.
func withoutCPUs(name string) string {
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		if _, err := strconv.ParseUint(name[i+1:], 10, 16); err == nil {
			return name[:i]
		}
	}
	return name
}

// Median returns the median of the runs' figures, or ErrNoResult.
func (r Results) Median(name, unit string) (float64, error) { return r.pick(name, unit, 0.5) }

// Max returns the largest of the runs' figures, or ErrNoResult.
func (r Results) Max(name, unit string) (float64, error) { return r.pick(name, unit, 1) }

// Min returns the smallest of the runs' figures, or ErrNoResult.
func (r Results) Min(name, unit string) (float64, error) { return r.pick(name, unit, 0) }

func (r Results) pick(name, unit string, at float64) (float64, error) {
	v := slices.Sorted(slices.Values(r[name][unit]))
	if len(v) == 0 {
		return 0, fmt.Errorf("%w: %s, %s", ErrNoResult, name, unit)
	}
	return v[min(int(at*float64(len(v))), len(v)-1)], nil
}
