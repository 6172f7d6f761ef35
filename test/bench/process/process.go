// Package process runs one member, a data plane and its controller with P4Runtime
// over a Unix socket between them, each as a process of its own: the measuring
// program run again, which is what `countersign fallback` and `countersign
// controller` run too.
package process

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"countersign/bmv2/launcher"
	"countersign/controller"
	"countersign/controller/admin"
	"countersign/controller/config"
	"countersign/fallback"
	"countersign/fallback/p4rtserver"
	"countersign/tag"
	"countersign/test/netlab"
)

// Targets that Options may name.
const (
	Fallback = "fallback"
	BMv2     = "bmv2"
)

// The ports of the data plane.
const inPort, outPort = 1, 2

// ProfileEnv is the environment variable with the directory where each process
// leaves a CPU profile, KIND-PID.pprof; empty: none.
const ProfileEnv = "COUNTERSIGN_BENCH_PROFILE"

// startTimeout bounds the time until a member's data plane has all its entries.
const startTimeout = 30 * time.Second

// The first argument of the program where it is a member's process.
const (
	asFallback   = "as-fallback"
	asController = "as-controller"
)

// Main must be called first in main or TestMain: where this process was started
// as one of a member, it runs that, and exits.
func Main() {
	if len(os.Args) < 3 {
		return
	}
	var run func(context.Context, []string) error
	switch os.Args[1] {
	case asFallback:
		run = runFallback
	case asController:
		run = runController
	default:
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	err := profiled(os.Args[1], func() error { return run(ctx, os.Args[2:]) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func profiled(kind string, run func() error) (err error) {
	dir := os.Getenv(ProfileEnv)
	if dir == "" {
		return run()
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.pprof", kind, os.Getpid())))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return run()
}

func runFallback(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("want the address and the interfaces of two ports")
	}
	return fallback.Run(ctx, fallback.Config{
		Ports:    map[uint16]string{inPort: args[1], outPort: args[2]},
		DeviceID: 1, P4Runtime: p4rtserver.Endpoint{Address: args[0]},
	})
}

func runController(ctx context.Context, args []string) error {
	cfg, err := config.Load(args[0])
	if err != nil {
		return err
	}
	return controller.Run(ctx, controller.Options{Config: cfg, Log: slog.Default()})
}

// Options say what to start. All fields are required.
type Options struct {
	Target string    // Fallback or BMv2
	Suite  tag.Suite // that the member signs with
	// Egress is the role of the port OutIf, "trunk" or "edge".
	Egress string
	// InIf, an edge, and OutIf are interfaces of the node.
	InIf, OutIf string
	// InAddr and OutAddr are the member's addresses with their prefix lengths,
	// Dst is the prefix that is routed to the next hop Via, whose hardware
	// address is ViaMAC. Every UDP packet from InIf is admitted.
	InAddr, OutAddr, Dst, Via string
	ViaMAC                    net.HardwareAddr
}

// Member is a running member; end it with Close.
type Member struct {
	dir        string
	bmv2       *launcher.Switch
	processes  []*netlab.Process
	controller *netlab.Process
}

// Start starts a member in the node and returns when its data plane has every
// entry of its configuration. It fails with launcher.ErrNotFound where there is
// no bmv2, and with what the processes wrote last where one of them ends.
func Start(ctx context.Context, node *netlab.Node, o Options) (_ *Member, err error) {
	m := new(Member)
	if m.dir, err = os.MkdirTemp("", "csbench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	address := "unix://" + filepath.Join(m.dir, "p4rt")
	switch o.Target {
	case Fallback:
		if _, err := m.run(node, asFallback, address, o.InIf, o.OutIf); err != nil {
			return nil, err
		}
	case BMv2:
		if m.bmv2, err = launcher.Launch(ctx, launcher.Config{
			DeviceID: 1, Ports: map[uint32]string{inPort: o.InIf, outPort: o.OutIf}, Socket: filepath.Join(m.dir, "p4rt"),
			Start: func(c *exec.Cmd) (launcher.Process, error) { return node.Start(c) },
		}); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("target %q is neither %s nor %s", o.Target, Fallback, BMv2)
	}
	text, err := o.yaml(node, address, filepath.Join(m.dir, "admin"))
	if err != nil {
		return nil, err
	}
	file := filepath.Join(m.dir, "member.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if m.controller, err = m.run(node, asController, file); err != nil {
		return nil, err
	}
	return m, m.synced(ctx)
}

func (m *Member) run(node *netlab.Node, args ...string) (*netlab.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(m.dir, args[0]+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own copy
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := node.Start(cmd)
	if err == nil {
		m.processes = append(m.processes, p)
	}
	return p, err
}

// synced waits until the controller says that its data plane has everything.
func (m *Member) synced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := admin.NewClient(filepath.Join(m.dir, "admin"))
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		st, err := client.Status(ctx)
		if err == nil && len(st.Devices) == 1 && st.Devices[0].Phase == "synced" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("data plane is not in step: %w: %s", ctx.Err(), m.Logs())
		case <-m.controller.Done():
			return fmt.Errorf("controller ended: %s", m.Logs())
		case <-t.C:
		}
	}
}

// Logs is the end of what the processes wrote.
func (m *Member) Logs() (text string) {
	const most = 2000
	for _, name := range []string{asFallback, asController} {
		b, err := os.ReadFile(filepath.Join(m.dir, name+".log"))
		if err == nil {
			text += string(b[max(0, len(b)-most):])
		}
	}
	return text
}

// Close ends the processes and waits for them.
func (m *Member) Close() error {
	for i := len(m.processes) - 1; i >= 0; i-- {
		m.processes[i].Stop()
	}
	var err error
	if m.bmv2 != nil {
		err = m.bmv2.Stop()
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

const configuration = `member: m
devices: [{name: dp, address: "%s"}]
ports:
  - {port: %d, name: in, role: edge, mtu: 1800, mac: "%s", addresses: ["%s"]}
  - {port: %d, name: out, role: %s, mtu: 1800, mac: "%s", addresses: ["%s"]}
routes: [{to: "%s", via: ["%s"]}]
neighbours: [{address: "%s", mac: "%s"}]
sign: %v
policy: [{name: all, from: in, to: out, protocol: udp, action: admit}]
sessions: {udp: 1h}
static:
  members: [{name: m, unid: 16909060}]
  keys: [{suite: %v, unid: 16909060, epoch: 1, issue: "%s"}]
admin: "%s"
`

func (o *Options) yaml(node *netlab.Node, address, socket string) (string, error) {
	var macs [2]net.HardwareAddr
	for i, name := range []string{o.InIf, o.OutIf} {
		var err error
		if macs[i], err = node.HardwareAddr(name); err != nil {
			return "", err
		}
	}
	key, err := tag.GenerateKey(o.Suite)
	if err != nil {
		return "", err
	}
	secret, err := key.Bytes()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(configuration, address, inPort, macs[0], o.InAddr, outPort, o.Egress, macs[1], o.OutAddr,
		o.Dst, o.Via, o.Via, o.ViaMAC, o.Suite, o.Suite, hex.EncodeToString(secret), socket), nil
}

var _ io.Closer = (*Member)(nil)
