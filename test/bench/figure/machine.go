package figure

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what figures depend on.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// ThisMachine returns what the kernel says of the machine.
func ThisMachine() Machine {
	m := Machine{CPU: "unknown CPU", Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version()}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}

// CPU is processor time since the machine started; the zero value is that
// moment.
type CPU struct {
	busy, total time.Duration // of all processes on all cores
	own         time.Duration // of this process and of its children that have ended
}

// Now returns what has been used up to now, the zero value where the kernel does
// not say.
func Now() (c CPU) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c
	}
	const tick = time.Second / 100 // USER_HZ, proc_stat(5)
	var user, nice, system, idle, iowait, irq, softirq, steal time.Duration
	if _, err := fmt.Sscanf(string(b), "cpu %d %d %d %d %d %d %d %d",
		&user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		return CPU{}
	}
	c.busy = (user + nice + system + irq + softirq + steal) * tick
	c.total = c.busy + (idle+iowait)*tick
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			c.own += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return c
}

// OthersSince returns the share of all cores' time since before that processes
// other than this one and its children took, from 0 to 1.
func (c CPU) OthersSince(before CPU) float64 {
	total := c.total - before.total
	if total <= 0 {
		return 0
	}
	others := (c.busy - before.busy) - (c.own - before.own)
	return min(max(float64(others)/float64(total), 0), 1)
}
