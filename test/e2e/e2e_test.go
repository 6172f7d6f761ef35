// Package e2e runs the whole alliance end to end, on real packets, against any
// kind of data plane:
//
//	go test ./test/e2e -target fallback
//	go test ./test/e2e -target bmv2 -timeout 15m
//
// The steps and what each must show are those of the demonstration, package
// demo.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"countersign/bmv2/launcher"
	"countersign/demo"
	"countersign/tag"
	"countersign/test/netlab"
)

var target = flag.String("target", demo.Fallback, "data planes: fallback or bmv2")

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("end-to-end tests are not short")
		return
	}
	if err := netlab.EnsurePrivileges(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestAlliance runs every step for every suite: each row is a test.
func TestAlliance(t *testing.T) {
	program := filepath.Join(t.TempDir(), "countersign")
	if out, err := exec.Command("go", "build", "-o", program, "countersign/cmd/countersign").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	r, err := demo.Run(context.Background(), demo.Options{
		Program: program, Target: *target, Progress: demo.Lines(os.Stderr),
	})
	if errors.Is(err, launcher.ErrNotFound) {
		t.Skip(err)
	}
	if r == nil {
		t.Fatal(err)
	}
	suites := map[tag.Suite]int{}
	for _, row := range r.Rows {
		suites[row.Suite]++
		t.Run(fmt.Sprintf("%v/%s", row.Suite, row.Step), func(t *testing.T) {
			if !row.Pass {
				t.Error(row.Why)
			}
		})
	}
	const rows = 10 // a, b, c1 to c6, d, e
	for _, s := range tag.Suites {
		if suites[s] != rows {
			t.Errorf("%v has %d rows, want %d", s, suites[s], rows)
		}
	}
	if err != nil {
		t.Error(err)
	}
}
