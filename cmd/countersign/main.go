// Command countersign is everything that an operator does with Countersign: it
// runs the processes (directory, controller, fallback), asks and steers them,
// and looks at configurations, captures and vectors.
//
// Its exit status is 0 where all went well, 1 where something failed or the
// answer is no, and 2 where it was called in a way that it does not understand.
// Errors are one line on standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// errNegative makes the exit status exitFailed where the output has said why.
var errNegative = errors.New("negative result")

// usageError is an error in how a command was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second signal ends the process whatever it does.
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, width: terminalWidth(os.Stdout)}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// app is one call of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	width          int // of the terminal in columns, 0: none
	logLevel       string
	logFormat      string
	json           bool
	started        bool // the arguments were understood
}

// run carries out args and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNegative):
		return exitFailed
	}
	fmt.Fprintln(a.stderr, "countersign:", oneLine(err.Error()))
	if u := (*usageError)(nil); !a.started || errors.As(err, &u) {
		return exitUsage
	}
	return exitFailed
}

// oneLine joins the lines of s.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = printable(strings.TrimSpace(line)); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

func (a *app) root() *cobra.Command {
	root := group("countersign", "A firewall that many machines form together",
		`Countersign is a firewall that many machines form together: a packet that any
member has admitted carries a short cryptographic tag, which every other member
checks alone.

A member runs a data plane (a P4 target, or "countersign fallback") and a
controller; a directory tells the members of each other.`,
		`  countersign directory init --state /var/lib/countersign/directory --alliance example --address dir.example.net:7443
  countersign member invite fw1
  countersign policy check /etc/countersign/fw1.yaml
  countersign controller -c /etc/countersign/fw1.yaml
  countersign status`,
		a.directory(), a.member(), a.keys(), a.controller(), a.fallback(),
		a.policy(), a.sessions(), a.status(), a.tag(), a.demo(), a.replay(), a.version())
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&a.logLevel, "log-level", "info", "least `LEVEL` to log: debug, info, warn, error")
	flags.StringVar(&a.logFormat, "log-format", "text", "`FORMAT` of the log on standard error: text, json")
	root.InitDefaultCompletionCmd("completion")
	a.finish(root)
	return root
}

// finish notes for every command that its arguments were understood: what
// fails before that is an error of usage.
func (a *app) finish(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	if c.HasParent() && c.Parent().Name() == "completion" {
		c.Example = "  countersign completion " + c.Name()
	} else if c.Name() == "completion" {
		c.Example = "  countersign completion bash > /etc/bash_completion.d/countersign"
	}
	for _, sub := range c.Commands() {
		a.finish(sub)
	}
}

// group returns a command that only holds others.
func group(use, short, long, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.ArbitraryArgs}
	c.AddCommand(commands...)
	c.RunE = func(cmd *cobra.Command, args []string) error { return missingCommand(cmd, args) }
	return c
}

// missingCommand says which commands there are under cmd.
func missingCommand(cmd *cobra.Command, args []string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	list := strings.Join(names, ", ")
	if len(args) > 0 {
		return usage("unknown command %q for %q: there are %s", args[0], cmd.CommandPath(), list)
	}
	return usage("%s needs a command: %s", cmd.CommandPath(), list)
}

// jsonFlag adds --json to a command that prints data.
func (a *app) jsonFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.json, "json", false, "print JSON for machines")
	return c
}

// env returns the environment's value of key, or otherwise.
func env(key, otherwise string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return otherwise
}
