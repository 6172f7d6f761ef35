package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrPrivileges means that this process may not make network namespaces.
var ErrPrivileges = errors.New("no privilege to make network namespaces")

// reexecEnv marks the process that EnsurePrivileges started.
const reexecEnv = "COUNTERSIGN_NETLAB_REEXEC"

// checkPrivileges reports ErrPrivileges where a network namespace cannot be made.
func checkPrivileges() error {
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: run as root, or call netlab.EnsurePrivileges first", ErrPrivileges)
	}
	if err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	return nil
}

// EnsurePrivileges returns nil where this process may make network namespaces.
// Otherwise it runs the program again, with the same arguments, as root of a new
// user, network and mount namespace, passes signals on to it, and exits with its
// status: it must be called first in main or TestMain. Where user namespaces are
// forbidden it returns ErrPrivileges with what to do.
func EnsurePrivileges() error {
	if err := checkPrivileges(); err == nil || !errors.Is(err, ErrPrivileges) {
		return err
	}
	if os.Getenv(reexecEnv) != "" {
		return fmt.Errorf("%w, even in a user namespace%s", ErrPrivileges, advice())
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), reexecEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	status, err := runForeground(cmd)
	if err != nil {
		return fmt.Errorf("%w: user namespace: %w%s", ErrPrivileges, err, advice())
	}
	os.Exit(status)
	return nil
}

// runForeground runs cmd, passing it the signals this process gets, and returns
// its exit status, 128 + N where signal N ended it.
func runForeground(cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	started, result := make(chan error, 1), make(chan error, 1)
	go func() {
		_ = onThread(func() error { // the death signal is bound to this thread
			err := cmd.Start()
			started <- err
			if err == nil {
				result <- cmd.Wait()
			}
			return nil
		})
	}()
	if err := <-started; err != nil {
		return 0, err
	}
	for {
		select {
		case sig := <-signals:
			if sig != syscall.SIGINT && sig != syscall.SIGQUIT { // the terminal sends these to both
				_ = cmd.Process.Signal(sig)
			}
		case err := <-result:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

// advice says what stands in the way of user namespaces here.
func advice() string {
	for _, s := range []struct{ key, forbids, fix string }{
		{"kernel.unprivileged_userns_clone", "0", "1"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
		{"user.max_user_namespaces", "0", "10000"},
		{"user.max_net_namespaces", "0", "10000"},
	} {
		value, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(s.key, ".", "/"))
		if err == nil && strings.TrimSpace(string(value)) == s.forbids {
			return fmt.Sprintf("; run as root, or allow user namespaces by: sysctl -w %s=%s", s.key, s.fix)
		}
	}
	return "; run as root, or allow user namespaces to this user (a container needs a seccomp profile that permits unshare)"
}
