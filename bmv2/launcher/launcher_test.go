package launcher_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"countersign/bmv2/launcher"
)

// bmv2 skips a test where bmv2 is not installed, unless it is required.
func bmv2(t *testing.T) {
	t.Helper()
	if _, err := launcher.Find(); err != nil {
		if os.Getenv("COUNTERSIGN_REQUIRE_BMV2") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// script writes an executable in the switch's place, for what the real one
// does not do when asked.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "switch")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	path := script(t, "")
	t.Setenv(launcher.Env, path)
	if got, err := launcher.Find(); err != nil || got != path {
		t.Errorf("Find: %s, %v; want %s", got, err, path)
	}
	t.Setenv(launcher.Env, path+".missing")
	_, err := launcher.Find()
	if !errors.Is(err, launcher.ErrNotFound) || !strings.Contains(err.Error(), "simple_switch_grpc") || !strings.Contains(err.Error(), launcher.Env) {
		t.Errorf("Find: %v", err)
	}
	if _, err := launcher.Launch(t.Context(), launcher.Config{}); !errors.Is(err, launcher.ErrNotFound) {
		t.Errorf("Launch: %v", err)
	}
}

func TestLaunchFails(t *testing.T) {
	refuse := func(*exec.Cmd) (launcher.Process, error) { return nil, os.ErrPermission }
	for _, c := range []struct {
		name string
		cfg  launcher.Config
		want error
		text string
	}{
		{"exits at once", launcher.Config{Path: script(t, "echo cannot load the model >&2; exit 3")}, launcher.ErrExited, "exit status 3; its last output:\ncannot load the model"},
		{"exits without a line's end", launcher.Config{Path: script(t, "printf half")}, launcher.ErrExited, "status 0; its last output:\nhalf"},
		{"prints much", launcher.Config{Path: script(t, "seq 1 9999; exit 1")}, launcher.ErrExited, "output:\n9980\n"},
		{"not executable", launcher.Config{Path: os.DevNull}, os.ErrPermission, "starting"},
		{"start refused", launcher.Config{Path: "/bin/true", Start: refuse}, os.ErrPermission, "starting /bin/true"},
		{"CPU port taken", launcher.Config{Path: "/bin/true", Ports: map[uint32]string{510: "eth0"}}, launcher.ErrPort, "510 (eth0)"},
		{"socket path too long", launcher.Config{Path: "/bin/true", Socket: "/" + strings.Repeat("x", 107)}, nil, "longer than 107 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := launcher.Launch(t.Context(), c.cfg)
			if s != nil || err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	started := make(chan int, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cfg := launcher.Config{Path: script(t, "echo thinking; exec sleep 1000"), Start: func(c *exec.Cmd) (launcher.Process, error) {
		if err := c.Start(); err != nil {
			return nil, err
		}
		started <- c.Process.Pid
		cancel()
		return command{c}, nil
	}}
	if _, err := launcher.Launch(ctx, cfg); !errors.Is(err, launcher.ErrNotReady) {
		t.Errorf("Launch: %v", err)
	}
	if err := syscall.Kill(<-started, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
}

type command struct{ *exec.Cmd }

func (c command) Signal(sig syscall.Signal) error { return c.Process.Signal(sig) }

func TestSwitch(t *testing.T) {
	bmv2(t)
	var log bytes.Buffer
	var socket string
	cfg := launcher.Config{DeviceID: 3, Ports: map[uint32]string{1: "lo"}, Log: &log}
	s, err := launcher.Launch(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	socket = strings.TrimPrefix(s.Target(), "unix://")
	if fi, err := os.Stat(filepath.Dir(socket)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("socket's directory: %v, %v", fi.Mode(), err)
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err of a running switch: %v", err)
	}
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
	}
	<-s.Done()
	if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket's directory is left: %v", err)
	}
	if !strings.Contains(log.String(), "Adding interface lo as port 1") {
		t.Errorf("log: %q", log.String())
	}
}

func TestSwitchesSideBySide(t *testing.T) {
	bmv2(t)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			s, err := launcher.Launch(t.Context(), launcher.Config{})
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestGivenSocket(t *testing.T) {
	bmv2(t)
	dir, err := os.MkdirTemp("", "l")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "p4rt")
	for range 2 { // a second switch may take the address of a first that ended
		s, err := launcher.Launch(t.Context(), launcher.Config{Socket: socket})
		if err != nil {
			t.Fatal(err)
		}
		if s.Target() != "unix://"+socket {
			t.Errorf("target %s", s.Target())
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}

func TestMissingInterface(t *testing.T) {
	bmv2(t)
	cfg := launcher.Config{Ports: map[uint32]string{0: "nosuchif"}}
	for n := range uint32(30) {
		cfg.Ports[n+1] = "lo"
	}
	_, err := launcher.Launch(t.Context(), cfg)
	if !errors.Is(err, launcher.ErrPort) {
		t.Errorf("got %v", err)
	}
}

func TestUnexpectedEnd(t *testing.T) {
	bmv2(t)
	pid := make(chan int, 1)
	s, err := launcher.Launch(t.Context(), launcher.Config{Start: func(c *exec.Cmd) (launcher.Process, error) {
		if err := c.Start(); err != nil {
			return nil, err
		}
		pid <- c.Process.Pid
		return command{c}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(<-pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	for _, err := range []error{s.Err(), s.Stop()} {
		if !errors.Is(err, launcher.ErrExited) || !strings.Contains(err.Error(), "killed") {
			t.Errorf("got %v", err)
		}
	}
}
