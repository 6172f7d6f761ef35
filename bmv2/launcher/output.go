package launcher

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	keptLines = 20
	keptBytes = 500 // of a line
)

// output passes a process's output on and keeps its last lines. Its methods
// are safe for concurrent use.
type output struct {
	w, r    *os.File
	to      io.Writer
	done    chan struct{} // closed at the end of the output
	caught  chan struct{} // takes a token when all that was written has been read
	partial []byte

	mu    sync.Mutex
	lines []string
	alarm bool // a line has held the text alarm
}

// alarm is what the switch prints when it goes on without a port.
const alarm = "Add port operation failed"

func newOutput(to io.Writer) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if to == nil {
		to = io.Discard
	}
	o := &output{w: w, r: r, to: to, done: make(chan struct{}), caught: make(chan struct{})}
	go o.copy()
	return o, nil
}

func (o *output) copy() {
	defer close(o.done)
	defer o.r.Close()
	defer func() {
		if len(o.partial) > 0 {
			o.keep(o.partial)
		}
	}()
	buf := make([]byte, 16<<10)
	catching := false
	for {
		n, err := o.r.Read(buf)
		o.take(buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			catching = true
			err = o.r.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return
		}
		if catching && o.pending() == 0 {
			catching = false
			o.caught <- struct{}{}
		}
	}
}

// pending returns how many bytes wait in the pipe.
func (o *output) pending() int {
	n := 0
	c, err := o.r.SyscallConn()
	if err == nil {
		_ = c.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	if err != nil {
		return 0
	}
	return n
}

// catchUp returns when everything that the process has written so far is in tail
// and alarmed.
func (o *output) catchUp() {
	_ = o.r.SetReadDeadline(time.Unix(1, 0)) // fails only at the output's end
	select {
	case <-o.caught:
	case <-o.done:
	}
}

func (o *output) take(b []byte) {
	_, _ = o.to.Write(b) // a log that cannot be written is not the switch's trouble
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		o.keep(append(o.partial, b[:i]...))
		o.partial, b = o.partial[:0], b[i+1:]
	}
	o.partial = append(o.partial, b[:min(len(b), max(0, keptBytes-len(o.partial)))]...)
}

func (o *output) keep(line []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.lines) == keptLines {
		o.lines = append(o.lines[:0], o.lines[1:]...)
	}
	text := string(line[:min(len(line), keptBytes)])
	o.lines = append(o.lines, text)
	o.alarm = o.alarm || strings.Contains(text, alarm)
}

// alarmed reports whether the switch has gone on without a port.
func (o *output) alarmed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.alarm
}

// tail returns the last lines.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n")
}
