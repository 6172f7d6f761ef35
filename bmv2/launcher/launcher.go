// Package launcher runs simple_switch_grpc, the behavioural model (bmv2) with a
// P4Runtime server, without a P4 program: the controller pushes one.
//
// The server listens on a Unix socket in a directory that only this user can
// enter: no two switches can take each other's address, it is reached from any
// network namespace, and nobody else reads the keys in its tables.
package launcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// Binary is the name of the executable, and Env the environment variable that
// may give its path.
const (
	Binary = "simple_switch_grpc"
	Env    = "COUNTERSIGN_BMV2"
)

// DefaultCPUPort is the port of packet-ins and packet-outs.
const DefaultCPUPort = 510

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 5 * time.Second
	maxPath      = 107 // bytes of a Unix socket's path (unix(7))
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New(Binary + " not found")
	ErrPort     = errors.New("port could not be added")
	ErrExited   = errors.New(Binary + " exited")
	ErrNotReady = errors.New(Binary + " does not answer")
)

// Find returns the path of the executable: what Env says, or what is on the
// PATH. It fails with ErrNotFound.
func Find() (string, error) {
	name := cmp.Or(os.Getenv(Env), Binary)
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w (put it on the PATH or set %s)", ErrNotFound, err, Env)
	}
	return filepath.Abs(path)
}

// Process is a started command.
type Process interface {
	Wait() error // until it has ended; may be called by one goroutine
	Signal(syscall.Signal) error
}

// Config says how to run a switch. The zero value runs one without ports.
type Config struct {
	Path     string            // of the executable; default: Find
	DeviceID uint64            // of P4Runtime
	Ports    map[uint32]string // interface of each port
	CPUPort  uint32            // default DefaultCPUPort
	// Socket is the path of the P4Runtime server's socket, of at most 107
	// bytes; default: one in a new directory, which goes when the switch ends.
	Socket string
	// Log gets the switch's output: its warnings and errors. It never gets
	// traces, because bmv2 prints keys in them.
	Log io.Writer
	// Start starts the command, for instance in another network namespace;
	// default: in this process's.
	Start func(*exec.Cmd) (Process, error)
}

// Switch is a running switch. Its methods are safe for concurrent use.
type Switch struct {
	target string
	dir    string // to remove at the end, or empty
	proc   Process
	output *output
	once   sync.Once
	stop   chan struct{} // closed by Stop
	done   chan struct{}
	err    error // after done
}

// Launch starts a switch and returns when its P4Runtime server answers. ctx
// bounds the start only; so does a limit of 30 s. It fails with ErrNotFound,
// with ErrPort where an interface cannot be used, with ErrExited and the last
// lines of output where the switch ends, and with ErrNotReady.
func Launch(ctx context.Context, cfg Config) (*Switch, error) {
	s, err := start(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx); err != nil {
		if stop := s.Stop(); !errors.Is(stop, ErrExited) {
			err = errors.Join(err, stop)
		}
		return nil, err
	}
	return s, nil
}

func start(cfg Config) (_ *Switch, err error) {
	if cfg.Path == "" {
		if cfg.Path, err = Find(); err != nil {
			return nil, err
		}
	}
	if cfg.CPUPort == 0 {
		cfg.CPUPort = DefaultCPUPort
	}
	if name, ok := cfg.Ports[cfg.CPUPort]; ok {
		return nil, fmt.Errorf("%w: %d (%s) is the CPU's port", ErrPort, cfg.CPUPort, name)
	}
	if cfg.Start == nil {
		cfg.Start = startHere
	}
	s := &Switch{stop: make(chan struct{}), done: make(chan struct{})}
	defer func() {
		if err != nil && s.dir != "" {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
	}()
	if cfg.Socket == "" {
		if s.dir, err = os.MkdirTemp("", "bmv2-"); err != nil {
			return nil, err
		}
		cfg.Socket = filepath.Join(s.dir, "p4rt")
	}
	if cfg.Socket, err = filepath.Abs(cfg.Socket); err != nil {
		return nil, err
	}
	if len(cfg.Socket) > maxPath {
		return nil, fmt.Errorf("socket path %s is longer than %d bytes", cfg.Socket, maxPath)
	}
	s.target = "unix://" + cfg.Socket
	if s.output, err = newOutput(cfg.Log); err != nil {
		return nil, err
	}
	cmd := exec.Command(cfg.Path, arguments(cfg, s.target)...)
	cmd.Stdout, cmd.Stderr = s.output.w, s.output.w
	s.proc, err = cfg.Start(cmd)
	s.output.w.Close() // the switch has its own copy
	if err != nil {
		<-s.output.done
		return nil, fmt.Errorf("starting %s: %w", cfg.Path, err)
	}
	go s.watch(cfg.Socket)
	return s, nil
}

func arguments(cfg Config, target string) []string {
	args := []string{"--no-p4", "--device-id", strconv.FormatUint(cfg.DeviceID, 10), "--log-console", "--log-level", "warn"}
	for _, n := range slices.Sorted(maps.Keys(cfg.Ports)) {
		args = append(args, "--interface", fmt.Sprintf("%d@%s", n, cfg.Ports[n]))
	}
	return append(args, "--", "--grpc-server-addr", target, "--cpu-port", strconv.FormatUint(uint64(cfg.CPUPort), 10))
}

// watch waits for the end of the switch and cleans up after it.
func (s *Switch) watch(socket string) {
	defer close(s.done)
	err := s.proc.Wait()
	<-s.output.done
	select {
	case <-s.stop:
	default:
		if err == nil {
			err = errors.New("status 0")
		}
		s.err = fmt.Errorf("%w: %w; its last output:\n%s", ErrExited, err, s.output.tail())
	}
	cleanup := os.Remove(socket)
	if errors.Is(cleanup, os.ErrNotExist) {
		cleanup = nil
	}
	if s.dir != "" {
		cleanup = os.RemoveAll(s.dir)
	}
	s.err = errors.Join(s.err, cleanup)
}

// ready returns when the P4Runtime server has answered, or the reason why it
// never will.
func (s *Switch) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	cc, err := grpc.NewClient(s.target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return err
	}
	defer cc.Close()
	answer := make(chan error, 1)
	go func() {
		_, err := p4v1.NewP4RuntimeClient(cc).Capabilities(ctx, &p4v1.CapabilitiesRequest{}, grpc.WaitForReady(true))
		answer <- err
	}()
	select {
	case <-s.done:
		cancel()
		<-answer
		return s.err
	case err := <-answer:
		if err != nil {
			return fmt.Errorf("%w at %s: %w; its last output:\n%s", ErrNotReady, s.target, err, s.output.tail())
		}
	}
	// The switch goes on without a port that it cannot open, and says so
	// before its server listens.
	s.output.catchUp()
	if s.output.alarmed() {
		return fmt.Errorf("%w; the last output:\n%s", ErrPort, s.output.tail())
	}
	return nil
}

// Target returns the P4Runtime server's address for gRPC, unix:///path.
func (s *Switch) Target() string { return s.target }

// Done is closed when the switch has ended.
func (s *Switch) Done() <-chan struct{} { return s.done }

// Err returns, after Done, why the switch ended: nil after Stop, or ErrExited
// with the last lines of its output.
func (s *Switch) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Stop ends the switch, by force after five seconds, and removes its socket.
// It returns Err, so that an earlier unexpected end is not lost, and may be
// called again.
func (s *Switch) Stop() error {
	select {
	case <-s.done: // it has ended by itself
		return s.err
	default:
	}
	s.once.Do(func() { close(s.stop) })
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = s.proc.Signal(sig) // fails only if the process has just ended
		timer := time.NewTimer(stopTimeout)
		select {
		case <-s.done:
			timer.Stop()
			return s.err
		case <-timer.C:
		}
	}
	return fmt.Errorf("%s does not end", Binary)
}

// startHere starts cmd in this process's namespaces.
func startHere(cmd *exec.Cmd) (Process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return process{cmd}, nil
}

type process struct{ cmd *exec.Cmd }

func (p process) Wait() error                     { return p.cmd.Wait() }
func (p process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }
