// Package demo shows an alliance of five firewalls at work, on real packets: it
// builds the network, runs every process, and judges what each step must show.
//
//	       clients                                    servers
//	      10.1.0.0/24                               10.2.0.0/24
//	          │        ┌────┐           ┌────┐           │
//	          ├── lan ─┤ c1 ├─ trunk ─┐ ┌─ trunk ─┤ s1 ├─ lan ──┤
//	client ───┤        └────┘          ├─┤ t ├─────┤               ├─── server
//	          ├── lan ─┤ c2 ├─ trunk ─┘ └─ trunk ─┤ s2 ├─ lan ──┤
//
// Requests go client, c1, t, s1, server; replies go server, s2, t, c2, client.
// c1 and c2 are one site, s1 and s2 another, t is alone. Every data plane and
// every controller is a process of its own in the member's namespace; the
// directory's is in a management network that reaches all members.
package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"countersign/bmv2/launcher"
	"countersign/tag"
)

// Errors that callers branch on.
var (
	// ErrFailed means that at least one row of the table failed.
	ErrFailed = errors.New("the demonstration failed")
	// ErrOptions means that the options make no sense.
	ErrOptions = errors.New("bad options")
)

// Targets that Options may name.
const (
	Fallback = "fallback"
	BMv2     = "bmv2"
)

// Options are what Run works with. The zero value needs Program.
type Options struct {
	// Program is this project's executable, which is run for every process.
	Program string
	// Target is the data planes' kind, by default Fallback.
	Target string
	// Suites to show, by default all.
	Suites []tag.Suite
	// Size of a download in bytes, by default 24 MiB on the fallback and 2 MiB
	// on bmv2.
	Size int64
	// Progress is called with what is being done, from one goroutine; nil: not
	// called.
	Progress func(Event)
}

// Event says how far a demonstration is.
type Event struct {
	Suite tag.Suite
	// Done of Total steps of the suite are over.
	Done, Total int
	// Text is what begins now, or, where Row is set, empty.
	Text string
	// Row is a row of the table that has just been decided.
	Row *Row
}

// Validate fills in the defaults. Its errors wrap ErrOptions or, where there is
// no bmv2, launcher.ErrNotFound.
func (o *Options) Validate() error {
	if len(o.Suites) == 0 {
		o.Suites = tag.Suites[:]
	}
	if o.Target == "" {
		o.Target = Fallback
	}
	least := int64(2 << 20)
	switch o.Target {
	case Fallback:
		if o.Size == 0 {
			o.Size = 24 << 20
		}
	case BMv2:
		if o.Size == 0 {
			o.Size = least
		}
		if _, err := launcher.Find(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: target: %q is not %s or %s", ErrOptions, o.Target, Fallback, BMv2)
	}
	if o.Size < least {
		return fmt.Errorf("%w: a download of %d bytes shows nothing; at least %d", ErrOptions, o.Size, least)
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	return nil
}

// Run shows every step for every suite. It returns ErrFailed, with the whole
// table, where a row failed, and the context's error where that ended first. It
// needs the privileges of netlab.EnsurePrivileges, and leaves nothing behind but,
// after a failure, the processes' logs in Result.Logs.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	began := time.Now()
	dir, err := os.MkdirTemp("", "countersign-demo-")
	if err != nil {
		return nil, err
	}
	r := &Result{Target: o.Target, Bytes: o.Size, Pass: true}
	for _, suite := range o.Suites {
		sub := filepath.Join(dir, suite.String())
		if err := os.Mkdir(sub, 0o700); err != nil {
			return nil, err
		}
		show(ctx, &o, suite, sub, r)
		if ctx.Err() != nil {
			return nil, errors.Join(context.Cause(ctx), os.RemoveAll(dir))
		}
	}
	r.Elapsed = time.Since(began)
	if !r.Pass {
		r.Logs = dir
		return r, fmt.Errorf("%w: %s; the processes' logs are in %s", ErrFailed, strings.Join(r.failed(), ", "), dir)
	}
	return r, os.RemoveAll(dir)
}

// step is one named step of a suite.
type step struct {
	text string
	run  func(*network, context.Context) []Row
}

// show runs the steps of one suite on a network of its own. A step that cannot
// be carried out fails, and those after it are not tried.
func show(ctx context.Context, o *Options, suite tag.Suite, dir string, r *Result) {
	steps := []step{
		{"network, data planes and directory", (*network).setUp},
		{"plain connection state, no tags", (*network).plain},
		{"enrolment and keys", (*network).enrol},
		{"download with tags", (*network).tagged},
		{"attacks", (*network).attacks},
		{"key rotation every second", (*network).rotation},
		{"revocation", (*network).revocation},
	}
	n := &network{o: o, suite: suite, dir: dir}
	defer n.close()
	for i, s := range steps {
		o.Progress(Event{Suite: suite, Done: i, Total: len(steps), Text: s.text})
		for _, row := range s.run(n, ctx) {
			if ctx.Err() != nil {
				return
			}
			row.Suite = suite
			r.add(row)
			o.Progress(Event{Suite: suite, Done: i + 1, Total: len(steps), Row: &row})
			if row.fatal {
				return
			}
		}
	}
}
