package demo

import (
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"

	"countersign/tag"
)

// Lines returns a progress function that writes one line for each step and
// row, for logs.
func Lines(w io.Writer) func(Event) {
	began := time.Now()
	return func(e Event) {
		at := fmt.Sprintf("%6.1fs  %-8v", time.Since(began).Seconds(), e.Suite)
		if e.Row == nil {
			fmt.Fprintf(w, "%s %d/%d %s ...\n", at, e.Done+1, e.Total, e.Text)
			return
		}
		fmt.Fprintf(w, "%s     %s %s: %s\n", at, verdict(e.Row.Pass, false), e.Row.Step, e.Row.figures())
	}
}

// Bars returns a progress function that draws a bar for each suite on a
// terminal, and a function that takes them down.
func Bars(w io.Writer) (show func(Event), stop func()) {
	pw := progress.NewWriter()
	pw.SetOutputWriter(w)
	pw.SetStyle(progress.StyleBlocks)
	pw.SetUpdateFrequency(100 * time.Millisecond)
	pw.SetTrackerLength(24)
	pw.SetMessageLength(52)
	pw.Style().Visibility.Value = false
	pw.Style().Visibility.ETA = false
	go pw.Render()
	bars := map[tag.Suite]*progress.Tracker{}
	show = func(e Event) {
		bar := bars[e.Suite]
		if bar == nil {
			bar = &progress.Tracker{Total: int64(e.Total)}
			bars[e.Suite] = bar
			pw.AppendTracker(bar)
		}
		if e.Text != "" {
			bar.UpdateMessage(fmt.Sprintf("%v: %s", e.Suite, e.Text))
		}
		bar.SetValue(int64(e.Done))
		if e.Row != nil && !e.Row.Pass {
			bar.UpdateMessage(fmt.Sprintf("%v: FAILED %s", e.Suite, e.Row.Step))
			bar.MarkAsErrored()
		}
	}
	return show, func() {
		pw.Stop()
		for pw.IsRenderInProgress() {
			time.Sleep(10 * time.Millisecond)
		}
	}
}
