package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestFit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		widths []int
		room   int
		want   []int
	}{
		{"no terminal", []int{10, 200}, 0, []int{10, 200}},
		{"enough room", []int{10, 20}, 30, []int{10, 20}},
		{"the widest gives way", []int{10, 50}, 40, []int{10, 30}},
		{"then all", []int{30, 50}, 40, []int{20, 20}},
		{"down to a bound", []int{5, 50, 50}, 10, []int{5, minColumn, minColumn}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := fit(slices.Clone(tc.widths), tc.room); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	rows := [][]string{{"a", strings.Repeat("word ", 40), strings.Repeat("x", 90)}, {"b", "short", "süß →"}}
	for _, width := range []int{40, 80, 120} {
		var b bytes.Buffer
		if err := (&app{width: width}).table(&b, []string{"one", "two", "three"}, rows); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > width {
				t.Errorf("%d columns on a terminal of %d: %q", n, width, line)
			}
		}
		if got := strings.Count(b.String(), "word"); got != 40 {
			t.Errorf("width %d: %d of 40 words are there", width, got)
		}
	}
}

func TestUntrustedTextDoesNotSteerTheTerminal(t *testing.T) {
	evil := "name\x1b[2J\r\n\x07end"
	var b bytes.Buffer
	a := &app{}
	if err := errors.Join(a.table(&b, []string{"name"}, [][]string{{evil}}), fields(&b, "name", evil)); err != nil {
		t.Fatal(err)
	}
	b.WriteString(oneLine(evil))
	if strings.ContainsAny(b.String(), "\x1b\r\x07") || !strings.Contains(b.String(), "end") {
		t.Errorf("got %q", b.String())
	}
}

func TestOneLine(t *testing.T) {
	err := errors.Join(errors.New("first"), errors.New("  second\n\n\tthird  "))
	if got := oneLine(err.Error()); got != "first; second; third" {
		t.Errorf("got %q", got)
	}
}

func TestSaid(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"refused", status.Error(codes.NotFound, "no member fw9"), "directory: no member fw9"},
		{"away", status.Error(codes.Unavailable, "connection refused"), "directory not reached: connection refused"},
		{"late", status.Error(codes.DeadlineExceeded, "too late"), "directory not reached: too late"},
		{"other", io.EOF, "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := said(tc.err).Error(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if said(nil) != nil {
		t.Error("success is an error")
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                                    "0s",
		1234567 * time.Nanosecond:            "1ms",
		9*time.Second + 4*time.Millisecond:   "9.004s",
		26*time.Hour + 1500*time.Millisecond: "26h0m2s",
	} {
		if got := span(d); got != want {
			t.Errorf("%d is %q, want %q", d, got, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := newRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "countersign_test", Help: "A test."}, func() float64 { return 7 }))
	scrape := func(t *testing.T, addr string) string {
		resp, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s, %v", resp.Status, err)
		}
		return string(body)
	}
	listen := func(t *testing.T) net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	broken := errors.New("broken")
	for _, tc := range []struct {
		name string
		err  error
	}{{"process ends", nil}, {"process fails", broken}} {
		t.Run(tc.name, func(t *testing.T) {
			l := listen(t)
			err := besideMetrics(t.Context(), l, registry, func(context.Context) error {
				body := scrape(t, l.Addr().String())
				for _, want := range []string{"countersign_test 7", "go_build_info", "go_goroutines", "process_start_time_seconds"} {
					if !strings.Contains(body, want) {
						t.Errorf("metrics lack %s", want)
					}
				}
				return tc.err
			})
			if !errors.Is(err, tc.err) {
				t.Errorf("got %v, want %v", err, tc.err)
			}
			if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
				t.Error("the listener is still there")
			}
		})
	}
	t.Run("address in use", func(t *testing.T) {
		l := listen(t)
		defer l.Close()
		err := withMetrics(t.Context(), l.Addr().String(), registry, func(context.Context) error {
			t.Error("the process was started")
			return nil
		})
		if err == nil || !strings.HasPrefix(err.Error(), "metrics: ") {
			t.Errorf("got %v", err)
		}
	})
}
