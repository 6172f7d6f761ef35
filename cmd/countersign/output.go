package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// minColumn is the width below which no column is made narrower.
const minColumn = 8

// terminalWidth is the width of the terminal that f is, or 0.
func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// print writes v as JSON where --json was given, and otherwise what human
// writes.
func (a *app) print(v any, human func(w io.Writer) error) error {
	if !a.json {
		return human(a.stdout)
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printable replaces what would steer a terminal: parts of the output come from
// other machines.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// table writes rows below a header, in columns that fit the terminal.
func (a *app) table(w io.Writer, header []string, rows [][]string) error {
	widths := make([]int, len(header))
	t := table.NewWriter()
	add := func(cells []string) table.Row {
		row := make(table.Row, len(cells))
		for i, c := range cells {
			c = printable(c)
			widths[i] = max(widths[i], text.StringWidthWithoutEscSequences(c))
			row[i] = c
		}
		return row
	}
	t.AppendHeader(add(header))
	for _, r := range rows {
		t.AppendRow(add(r))
	}
	const gap = 2
	t.SetStyle(table.Style{
		Box:     table.BoxStyle{PaddingRight: strings.Repeat(" ", gap)},
		Format:  table.FormatOptions{Header: text.FormatUpper},
		Options: table.OptionsNoBordersAndSeparators,
	})
	columns := make([]table.ColumnConfig, len(header))
	for i, width := range fit(widths, a.width-gap*len(widths)) {
		columns[i] = table.ColumnConfig{Number: i + 1, WidthMax: width, WidthMaxEnforcer: text.WrapSoft}
	}
	t.SetColumnConfigs(columns)
	var b strings.Builder
	for line := range strings.Lines(t.Render()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fit takes from the widest columns until all fit into room, if that is
// positive.
func fit(widths []int, room int) []int {
	total := 0
	for _, w := range widths {
		total += w
	}
	for ; room > 0 && total > room; total-- {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= minColumn {
			break
		}
		widths[widest]--
	}
	return widths
}

// fields writes a name and a value on each line, without those whose value is
// empty.
func fields(w io.Writer, pairs ...string) error {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(&b, "%-*s  %s\n", width, pairs[i], printable(pairs[i+1]))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// moment is a time as people read it, "" for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// unixNano is the time that a protocol has in nanoseconds, zero for 0.
func unixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// span is a duration as people read it: to the second, below ten seconds to the
// millisecond.
func span(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// mark is word where b holds.
func mark(b bool, word string) string {
	if b {
		return word
	}
	return ""
}

// join joins the words that are not empty.
func join(words ...string) string {
	var some []string
	for _, w := range words {
		if w != "" {
			some = append(some, w)
		}
	}
	return strings.Join(some, ", ")
}

// logger is the log that --log-level and --log-format ask for.
func (a *app) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, usage("--log-level: %q is not debug, info, warn or error", a.logLevel)
	}
	o := &slog.HandlerOptions{Level: level}
	switch a.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(a.stderr, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, o)), nil
	}
	return nil, usage("--log-format: %q is not text or json", a.logFormat)
}

// said is the error of a directory's answer, without the framing of gRPC.
func said(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	if s.Code() == codes.Unavailable || s.Code() == codes.DeadlineExceeded {
		return fmt.Errorf("directory not reached: %s", s.Message())
	}
	return errors.New("directory: " + s.Message())
}
