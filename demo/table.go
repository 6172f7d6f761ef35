package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"countersign/tag"
)

// Row is one step of one suite. It is plain data.
type Row struct {
	// Step is a letter and a name; equal steps of several suites sort together.
	Step  string    `json:"step"`
	Suite tag.Suite `json:"suite"`
	Pass  bool      `json:"pass"`
	// Why says what is wrong with a row that failed.
	Why string `json:"why,omitempty"`
	// Figures are what was measured, by name.
	Figures []Figure `json:"figures,omitempty"`

	fatal bool // nothing after it can work
}

// Figure is one measurement.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
}

// Result is the whole table. It is plain data; the zero value has no rows.
type Result struct {
	Target  string        `json:"target"`
	Bytes   int64         `json:"bytes_per_download"`
	Pass    bool          `json:"pass"`
	Elapsed time.Duration `json:"elapsed_ns"`
	Rows    []Row         `json:"rows"`
	// Logs is the directory of the processes' logs where a row failed.
	Logs string `json:"logs,omitempty"`
}

func (r *Result) add(row Row) {
	r.Rows = append(r.Rows, row)
	r.Pass = r.Pass && row.Pass
}

// failed names the rows that failed.
func (r *Result) failed() (names []string) {
	for _, row := range r.Rows {
		if !row.Pass {
			names = append(names, fmt.Sprintf("%s (%v)", row.Step, row.Suite))
		}
	}
	return names
}

// WriteJSON writes the table for machines.
func (r *Result) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteTable writes the table for people; colour marks pass and fail.
func (r *Result) WriteTable(w io.Writer, colour bool) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"Step", "Suite", "Result", "Figures"})
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 1, AutoMerge: true, WidthMax: 30}, {Number: 4, WidthMax: 96, WidthMaxEnforcer: text.WrapSoft}})
	rows := slices.Clone(r.Rows)
	slices.SortStableFunc(rows, func(a, b Row) int { return strings.Compare(a.Step, b.Step) })
	for i, row := range rows {
		if i > 0 && row.Step != rows[i-1].Step {
			t.AppendSeparator()
		}
		t.AppendRow(table.Row{row.Step, row.Suite.String(), verdict(row.Pass, colour), row.figures()})
	}
	_, err := fmt.Fprintf(w, "%s\n%s on %s, %s a download, %.1f s\n", t.Render(), verdict(r.Pass, colour),
		r.Target, bytesText(float64(r.Bytes)), r.Elapsed.Seconds())
	return err
}

func verdict(pass, colour bool) string {
	switch {
	case !colour && pass:
		return "pass"
	case !colour:
		return "FAIL"
	case pass:
		return text.FgGreen.Sprint("pass")
	}
	return text.FgRed.Sprint("FAIL")
}

// figures is the row's measurements in words; those of one member stand
// together.
func (row *Row) figures() string {
	var parts []string
	if row.Why != "" {
		parts = append(parts, row.Why)
	}
	member := ""
	for _, f := range row.Figures {
		who, name, ok := strings.Cut(f.Name, ": ")
		if !ok {
			parts = append(parts, f.String())
			continue
		}
		f.Name = name
		if who == member {
			parts[len(parts)-1] += ", " + f.String()
		} else {
			parts = append(parts, who+": "+f.String())
		}
		member = who
	}
	return strings.Join(parts, "; ")
}

// String is the figure in words, such as "12.5 ms to the first tag refused".
func (f Figure) String() string {
	switch f.Unit {
	case "B", "B/s":
		return bytesText(f.Value) + strings.TrimPrefix(f.Unit, "B") + " " + f.Name
	case "":
		return fmt.Sprintf("%.0f %s", f.Value, f.Name)
	}
	return fmt.Sprintf("%.1f %s %s", f.Value, f.Unit, f.Name)
}

func bytesText(n float64) string {
	return fmt.Sprintf("%.1f MB", n/1e6)
}
