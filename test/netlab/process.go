package netlab

import (
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 2 * time.Second

// Process is a running command of a node; take it from [Node.Start]. Its methods
// may be called from any goroutine.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts cmd in the node's namespace, in a process group of its own. The
// kernel kills it when this process ends, and Lab.Close ends and reaps it. cmd's
// own Wait must not be called.
func (n *Node) Start(cmd *exec.Cmd) (*Process, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if n.lab.closed {
		return nil, fmt.Errorf("node %s: start %s: %w", n.name, cmd.Path, ErrClosed)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := n.lab.spawn.start(n.ns, cmd); err != nil {
		return nil, fmt.Errorf("node %s: start %s: %w", n.name, cmd.Path, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	n.lab.procs = append(n.lab.procs, p)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and is reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end and returns the error of exec.Cmd.Wait.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the process; one that has ended is left alone.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
		return p.cmd.Process.Signal(sig)
	}
}

// Stop ends the process and its process group: SIGTERM, SIGKILL after two
// seconds. It returns when the process is reaped.
func (p *Process) Stop() { stopAll([]*Process{p}) }

// stopAll ends processes together, so that the grace is spent once.
func stopAll(procs []*Process) {
	for _, p := range procs {
		p.killGroup(syscall.SIGTERM)
	}
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	expired := false
	for _, p := range procs {
		if !expired {
			select {
			case <-p.done:
				continue
			case <-timer.C:
				expired = true
			}
		}
		p.killGroup(syscall.SIGKILL)
		<-p.done
	}
}

// killGroup signals the process group while its leader is not reaped, which keeps
// the group's id from being another's.
func (p *Process) killGroup(sig syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, sig) // ESRCH: it has just ended
	}
}

// spawner starts processes from one OS thread that lives as long as the lab,
// because the parent's death signal is bound to the thread that forked.
type spawner struct {
	requests chan func()
	once     sync.Once
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the lab
		for f := range s.requests {
			f()
		}
	}()
	return s
}

func (s *spawner) start(ns netns.NsHandle, cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.requests <- func() {
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		result <- cmd.Start()
	}
	return <-result
}

func (s *spawner) close() { s.once.Do(func() { close(s.requests) }) }
