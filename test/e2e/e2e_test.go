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

var target = flag.String("target", "", "data planes: fallback or bmv2; default: both, bmv2 where it is installed")

// forbidden is why no namespaces can be made here.
var forbidden error

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Short() {
		forbidden = netlab.EnsurePrivileges()
	}
	os.Exit(m.Run())
}

// TestAlliance runs every step for every suite: each row is a test.
func TestAlliance(t *testing.T) {
	if testing.Short() {
		t.Skip("the whole alliance takes minutes")
	}
	if forbidden != nil {
		t.Skip(forbidden)
	}
	program := filepath.Join(t.TempDir(), "countersign")
	if out, err := exec.Command("go", "build", "-o", program, "countersign/cmd/countersign").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	targets := []string{demo.Fallback, demo.BMv2}
	if *target != "" {
		targets = []string{*target}
	}
	for _, target := range targets {
		t.Run(target, func(t *testing.T) { alliance(t, program, target) })
	}
}

func alliance(t *testing.T, program, target string) {
	r, err := demo.Run(context.Background(), demo.Options{
		Program: program, Target: target, Progress: demo.Lines(os.Stderr),
	})
	if errors.Is(err, launcher.ErrNotFound) {
		if os.Getenv("COUNTERSIGN_REQUIRE_BMV2") == "1" {
			t.Fatal(err)
		}
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
