// Command bench measures what this project promises, one case after the other,
// and prints one table: what was measured, what it should be, and what was
// measured beside it in the same run. Its exit status is 1 where something could
// not be measured, and 0 where a target was not reached: that is a result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"countersign/bmv2/launcher"
	"countersign/test/bench/figure"
	"countersign/test/bench/process"
	"countersign/test/dataplane"
	"countersign/test/netlab"
)

// The longest that a run may take.
const (
	wholeLimit = 10 * time.Minute
	quickLimit = 3 * time.Minute
)

func main() {
	process.Main()
	errPrivileges := netlab.EnsurePrivileges()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, errPrivileges); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

var errFailed = errors.New("not everything could be measured")

func run(ctx context.Context, errPrivileges error) error {
	only := flag.String("only", "", "run the cases whose name matches `REGEX`")
	quick := flag.Bool("quick", false, "measure for a shorter time, with less certainty")
	asJSON := flag.Bool("json", false, "print JSON for machines")
	markdown := flag.Bool("markdown", false, "print the table as Markdown")
	list := flag.Bool("list", false, "list the cases and run none")
	profile := flag.String("profile", "", "have the data plane and the controller leave CPU profiles in `DIR`")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q is not understood; see -help", flag.Arg(0))
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if *profile != "" {
		if err := errors.Join(os.MkdirAll(*profile, 0o755), os.Setenv(process.ProfileEnv, *profile)); err != nil {
			return fmt.Errorf("-profile: %w", err)
		}
	}
	limit := wholeLimit
	if *quick {
		limit = quickLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	e := env{quick: *quick, errPrivileges: errPrivileges}
	r := figure.Report{
		Machine: figure.ThisMachine(), Date: time.Now(), Commit: commit(ctx), Quick: *quick,
	}
	for _, c := range cases {
		switch {
		case !pattern.MatchString(c.name):
			continue
		case *list:
			fmt.Println(c.name)
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", c.name)
		r.Figures = append(r.Figures, measure(ctx, e, c)...)
	}
	if *list {
		return nil
	}
	r.Elapsed = time.Since(r.Date)
	switch {
	case *asJSON:
		err = r.WriteJSON(os.Stdout)
	case *markdown:
		err = r.WriteMarkdown(os.Stdout)
	default:
		err = r.WriteTable(os.Stdout, isTerminal(os.Stdout))
	}
	if err == nil && r.Count(figure.Failed) > 0 {
		err = errFailed
	}
	return err
}

// measure runs one case; where it fails that is its last figure.
func measure(ctx context.Context, e env, c benchCase) []figure.Figure {
	before := figure.Now()
	figures, err := c.run(ctx, e)
	others := figure.Now().OthersSince(before)
	for i := range figures {
		figures[i].Others = others
		figures[i].Judge()
	}
	if err == nil {
		return figures
	}
	f := figure.Figure{Name: c.name, Outcome: figure.Failed, Why: firstLine(err)}
	if errors.Is(err, launcher.ErrNotFound) || errors.Is(err, dataplane.ErrUnavailable) || errors.Is(err, netlab.ErrPrivileges) {
		f.Outcome = figure.Skipped
	} else {
		fmt.Fprintf(os.Stderr, "%s: %v\n", c.name, err)
	}
	return append(figures, f)
}

// firstLine keeps the table narrow; the whole error is on standard error.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	if r := []rune(line); len(r) > 100 {
		line = string(r[:99]) + "…"
	}
	return line
}

// commit names what is measured, "unknown" outside a git work tree.
func commit(ctx context.Context) string {
	id, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=10", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(id))
	if changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output(); err == nil && len(changed) > 0 {
		name += " with changes"
	}
	return name
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
}
