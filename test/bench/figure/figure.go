// Package figure holds what benchmarks have measured, judges it, and prints it
// as one table.
package figure

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Outcome says how a figure compares with its target.
type Outcome string

// The outcomes.
const (
	Measured   Outcome = "measured" // there is no target
	Pass       Outcome = "pass"
	NotReached Outcome = "not reached"
	Skipped    Outcome = "skipped" // this machine lacks something
	Failed     Outcome = "failed"  // it could not be measured
)

// Quantity is a number with its unit.
type Quantity struct {
	Name  string  `json:"name,omitempty"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// String gives three digits that count, or a whole number, and the unit.
func (q Quantity) String() string {
	s := number(q.Value)
	if q.Unit != "" {
		s += " " + q.Unit
	}
	if q.Name != "" {
		s = q.Name + " " + s
	}
	return s
}

func number(v float64) string {
	if math.Abs(v) < 100 && v != math.Trunc(v) {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	digits := strconv.FormatFloat(math.Abs(v), 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if v < 0 {
		digits = "-" + digits
	}
	return digits
}

// Limit is a bound that a value must keep.
type Limit struct {
	AtMost bool    `json:"at_most,omitempty"` // otherwise at least
	Value  float64 `json:"value"`
}

// AtMost returns an upper limit.
func AtMost(v float64) *Limit { return &Limit{true, v} }

// AtLeast returns a lower limit.
func AtLeast(v float64) *Limit { return &Limit{false, v} }

func (l *Limit) keeps(v float64) bool {
	if l.AtMost {
		return v <= l.Value
	}
	return v >= l.Value
}

// String begins with ≤ or ≥.
func (l *Limit) String() string {
	if l.AtMost {
		return "≤ " + number(l.Value)
	}
	return "≥ " + number(l.Value)
}

// Figure is one line of the table. The zero value is a measured 0.
type Figure struct {
	Name string `json:"name"`
	// Value is what was measured, More belongs to it.
	Value Quantity   `json:"measured"`
	More  []Quantity `json:"more,omitempty"`
	// Target bounds Value.
	Target *Limit `json:"target,omitempty"`
	// Beside is what was measured in the same run to compare with; Ratio is
	// Value to it, which RatioTarget bounds.
	Beside      *Quantity `json:"beside,omitempty"`
	Ratio       float64   `json:"ratio,omitempty"`
	RatioTarget *Limit    `json:"ratio_target,omitempty"`
	// Others is the share of the machine's processor time that other programs
	// took meanwhile, from 0 to 1.
	Others  float64 `json:"others"`
	Outcome Outcome `json:"outcome"`
	// Why explains Skipped and Failed.
	Why string `json:"why,omitempty"`
}

// Judge sets Ratio, where it is 0, and Outcome.
func (f *Figure) Judge() {
	if f.Ratio == 0 && f.Beside != nil && f.Beside.Value != 0 {
		f.Ratio = f.Value.Value / f.Beside.Value
	}
	switch {
	case f.Outcome == Skipped, f.Outcome == Failed:
	case f.Target != nil && !f.Target.keeps(f.Value.Value), f.RatioTarget != nil && !f.RatioTarget.keeps(f.Ratio):
		f.Outcome = NotReached
	case f.Target != nil, f.RatioTarget != nil:
		f.Outcome = Pass
	default:
		f.Outcome = Measured
	}
}

// Report is one run.
type Report struct {
	Machine Machine       `json:"machine"`
	Date    time.Time     `json:"date"`
	Commit  string        `json:"commit"`
	Quick   bool          `json:"quick"`
	Elapsed time.Duration `json:"elapsed_ns"`
	Figures []Figure      `json:"figures"`
}

// Count returns how many figures have that outcome.
func (r *Report) Count(o Outcome) (n int) {
	for i := range r.Figures {
		if r.Figures[i].Outcome == o {
			n++
		}
	}
	return n
}

// Heading is the lines above the table.
func (r *Report) Heading() []string {
	m := &r.Machine
	kind := "whole"
	if r.Quick {
		kind = "quick"
	}
	return []string{
		fmt.Sprintf("%s, %d cores, Linux %s, %s", m.CPU, m.Cores, m.Kernel, m.Go),
		fmt.Sprintf("%s, commit %s, %s run of %v", r.Date.UTC().Format("2006-01-02 15:04 UTC"), r.Commit, kind, r.Elapsed.Round(time.Second)),
	}
}

// summary counts the outcomes.
func (r *Report) summary() string {
	var parts []string
	for _, o := range []Outcome{Pass, NotReached, Skipped, Failed} {
		if n := r.Count(o); n > 0 || o == Pass {
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	return strings.Join(parts, ", ")
}

func (r *Report) table(colour bool) table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"Figure", "Measured", "Target", "Beside it", "Ratio", "Other load", "Result"})
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 5, Align: text.AlignRight, AlignHeader: text.AlignRight},
		{Number: 6, Align: text.AlignRight, AlignHeader: text.AlignRight},
	})
	group := ""
	for i := range r.Figures {
		f := &r.Figures[i]
		if g, _, _ := strings.Cut(f.Name, ": "); g != group {
			if group != "" {
				t.AppendSeparator()
			}
			group = g
		}
		t.AppendRow(f.row(colour))
	}
	return t
}

func (f *Figure) row(colour bool) table.Row {
	if f.Outcome == Skipped || f.Outcome == Failed {
		return table.Row{f.Name, f.Why, "", "", "", "", f.Outcome.text(colour)}
	}
	measured := []string{f.Value.String()}
	for _, q := range f.More {
		measured = append(measured, q.String())
	}
	var targets []string
	if f.Target != nil {
		targets = append(targets, f.Target.String())
	}
	if f.RatioTarget != nil {
		targets = append(targets, "ratio "+f.RatioTarget.String())
	}
	row := table.Row{f.Name, strings.Join(measured, ", "), strings.Join(targets, ", "), "", "",
		fmt.Sprintf("%.0f %%", 100*f.Others), f.Outcome.text(colour)}
	if f.Beside != nil {
		row[3] = f.Beside.String()
	}
	if f.Ratio != 0 {
		row[4] = number(math.Round(f.Ratio*1000) / 1000)
	}
	return row
}

func (o Outcome) text(colour bool) string {
	if colour {
		switch o {
		case Pass:
			return text.FgGreen.Sprint(o)
		case NotReached, Skipped:
			return text.FgYellow.Sprint(o)
		case Failed:
			return text.FgRed.Sprint(o)
		}
	}
	return string(o)
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer, colour bool) error {
	_, err := fmt.Fprintf(w, "%s\n%s\n%s\n", strings.Join(r.Heading(), "\n"), r.table(colour).Render(), r.summary())
	return err
}

// WriteMarkdown writes the report for a document.
func (r *Report) WriteMarkdown(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s.\n\n%s\n\n%s.\n", strings.Join(r.Heading(), ".\n"), r.table(false).RenderMarkdown(), r.summary())
	return err
}

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
