// Package dataplane runs a data plane of any kind between raw sockets and
// steers it by P4Runtime, for tests and measurements that are the same for all
// kinds: a table of packets and of what must become of them does not know what
// forwards them.
package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"countersign/bmv2/launcher"
	"countersign/fallback"
	"countersign/test/netlab"
)

// Kinds of data planes that Start knows.
const (
	BMv2     = "bmv2"
	Fallback = "fallback"
)

// ErrUnavailable means that this machine cannot run that kind of data plane.
var ErrUnavailable = errors.New("data plane is not available")

// MTU of the links in bytes, the most that packet I/O of the software data
// plane carries.
const MTU = 9216

// Options say what to start. The zero value is of no use.
type Options struct {
	Kind    string
	Info    *p4configv1.P4Info
	Program []byte   // for bmv2 the compiled JSON
	Ports   []uint16 // port numbers
}

// Switch is a running data plane; end it with Close.
type Switch struct {
	*Client
	// Peer is the namespace of the ports' other ends, whose interfaces are
	// named by PortName.
	Peer *netlab.Node

	lab     *netlab.Lab
	process *netlab.Process
	stop    func() error
}

// PortName is the name of the interface that is port n, at both ends.
func PortName(n uint16) string { return fmt.Sprint("port", n) }

// Start builds a lab of two namespaces joined by a link for each port, and in
// the one of them starts a data plane, which is given the pipeline. It fails
// with ErrUnavailable where that kind cannot run here. The caller must have
// called Main, and hold the privileges of netlab.EnsurePrivileges.
func Start(ctx context.Context, o Options) (_ *Switch, err error) {
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	s := &Switch{lab: lab, stop: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", o.Kind, err), s.stop(), lab.Close())
		}
	}()
	node, err := lab.Node("switch")
	if err != nil {
		return nil, err
	}
	if s.Peer, err = lab.Node("peer"); err != nil {
		return nil, err
	}
	for _, p := range o.Ports {
		if err := lab.Link(node, PortName(p), s.Peer, PortName(p), netlab.LinkOpts{MTU: MTU, NoIPv6: true}); err != nil {
			return nil, err
		}
	}
	var target string
	switch o.Kind {
	case BMv2:
		target, err = s.startBMv2(ctx, node, o)
	case Fallback:
		target, err = s.startFallback(node, o)
	default:
		err = fmt.Errorf("%w: unknown kind", ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.process.Done():
			cancel(fmt.Errorf("process ended: %w", s.process.Wait()))
		case <-ctx.Done():
		}
	}()
	if s.Client, err = Dial(ctx, conn, o.Info, o.Program); err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	return s, nil
}

// Close ends the data plane and its lab.
func (s *Switch) Close() error { return errors.Join(s.Client.Close(), s.stop(), s.lab.Close()) }

// CPU is the processor time that the data plane has used in all its threads, to
// the kernel's tick of 10 ms.
func (s *Switch) CPU() (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on all of Go's Linux ports
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.Pid()))
	if err != nil {
		return 0, err
	}
	// Of what follows the name (proc_pid_stat(5)), utime is field 14 and stime 15.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("process %d: cannot read %q", s.process.Pid(), stat)
	}
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, fmt.Errorf("process %d: %w", s.process.Pid(), err)
	}
	return time.Duration(user+system) * tick, nil
}

// startBMv2 starts simple_switch_grpc without a pipeline.
func (s *Switch) startBMv2(ctx context.Context, node *netlab.Node, o Options) (target string, err error) {
	ports := map[uint32]string{}
	for _, p := range o.Ports {
		ports[uint32(p)] = PortName(p)
	}
	sw, err := launcher.Launch(ctx, launcher.Config{
		DeviceID: deviceID, Ports: ports,
		Start: func(cmd *exec.Cmd) (launcher.Process, error) {
			p, err := node.Start(cmd)
			s.process = p
			return p, err
		},
	})
	if errors.Is(err, launcher.ErrNotFound) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return "", err
	}
	s.stop = sw.Stop
	return sw.Target(), nil
}

// asFallback is the environment variable with the configuration of a software
// data plane that this program is to be.
const asFallback = "COUNTERSIGN_AS_FALLBACK"

// Main must be called first in main or TestMain: where this process was started
// as a software data plane, it is that, and exits.
func Main() {
	text := os.Getenv(asFallback)
	if text == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	var c fallback.Config
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = fallback.Run(ctx, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startFallback starts this program again as a software data plane.
func (s *Switch) startFallback(node *netlab.Node, o Options) (target string, err error) {
	dir, err := os.MkdirTemp("", "countersign")
	if err != nil {
		return "", err
	}
	s.stop = func() error { return os.RemoveAll(dir) }
	target = "unix://" + filepath.Join(dir, "p4runtime")
	type config struct { // what of fallback.Config is data
		Ports       map[uint16]string
		DeviceID    uint64
		P4Runtime   struct{ Address string }
		Promiscuous bool
	}
	c := config{Ports: map[uint16]string{}, DeviceID: deviceID, Promiscuous: true}
	c.P4Runtime.Address = target
	for _, p := range o.Ports {
		c.Ports[p] = PortName(p)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asFallback+"="+string(text))
	cmd.Stderr = os.Stderr
	s.process, err = node.Start(cmd)
	return target, err
}
