package figure

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name  string
		f     Figure
		want  Outcome
		ratio float64
	}{
		{"no target", Figure{Value: Quantity{Value: 3}}, Measured, 0},
		{"at most, kept", Figure{Value: Quantity{Value: 3}, Target: AtMost(3)}, Pass, 0},
		{"at most, broken", Figure{Value: Quantity{Value: 3.1}, Target: AtMost(3)}, NotReached, 0},
		{"at least, kept", Figure{Value: Quantity{Value: 3}, Target: AtLeast(3)}, Pass, 0},
		{"at least, broken", Figure{Value: Quantity{Value: 2.9}, Target: AtLeast(3)}, NotReached, 0},
		{"ratio kept", Figure{Value: Quantity{Value: 3}, Beside: &Quantity{Value: 6}, RatioTarget: AtLeast(0.5)}, Pass, 0.5},
		{"ratio broken", Figure{Value: Quantity{Value: 3}, Beside: &Quantity{Value: 6}, RatioTarget: AtLeast(0.6)}, NotReached, 0.5},
		{"ratio given", Figure{Value: Quantity{Value: 3}, Beside: &Quantity{Value: 6}, Ratio: 0.7, RatioTarget: AtLeast(0.6)}, Pass, 0.7},
		{"beside nothing", Figure{Value: Quantity{Value: 3}, Beside: &Quantity{}}, Measured, 0},
		{"one of two", Figure{Value: Quantity{Value: 3}, Target: AtLeast(1), Beside: &Quantity{Value: 6}, RatioTarget: AtLeast(0.6)}, NotReached, 0.5},
		{"failed", Figure{Target: AtMost(3), Outcome: Failed}, Failed, 0},
		{"skipped", Figure{Target: AtMost(3), Outcome: Skipped}, Skipped, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.f.Judge()
			if c.f.Outcome != c.want || c.f.Ratio != c.ratio {
				t.Errorf("%s, ratio %v; want %s, %v", c.f.Outcome, c.f.Ratio, c.want, c.ratio)
			}
		})
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.17346: "0.173", 12.34: "12.3", 99: "99", 123.4: "123", 1234: "1,234", 1234567: "1,234,567", -1234: "-1,234", 250: "250",
	} {
		if got := number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	r := Report{
		Machine: Machine{"Some CPU", 2, "6.1", "go1.26"}, Date: time.Unix(0, 0), Commit: "0123456", Elapsed: 3 * time.Second,
		Figures: []Figure{
			{Name: "a: one", Value: Quantity{Value: 10, Unit: "ns/packet"}, Target: AtMost(20)},
			{Name: "b: two", Value: Quantity{Value: 50, Unit: "packets/s"}, More: []Quantity{{"p50", 1.5, "ms"}},
				Beside: &Quantity{"kernel", 200, "packets/s"}, RatioTarget: AtLeast(0.3), Others: 0.42},
			{Name: "c: three", Outcome: Skipped, Why: "no switch"},
		},
	}
	for i := range r.Figures {
		r.Figures[i].Judge()
	}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"table":    func(b *bytes.Buffer) error { return r.WriteTable(b, false) },
		"markdown": func(b *bytes.Buffer) error { return r.WriteMarkdown(b) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"Some CPU, 2 cores, Linux 6.1, go1.26", "1970-01-01 00:00 UTC", "0123456", "10 ns/packet", "≤ 20",
			"50 packets/s, p50 1.5 ms", "kernel 200 packets/s", "0.25", "42 %", "not reached", "no switch", "1 pass, 1 not reached, 1 skipped",
		} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s lacks %q:\n%s", name, want, b.String())
			}
		}
	}
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || len(back.Figures) != 3 || back.Figures[1].Ratio != 0.25 || back.Figures[1].Outcome != NotReached {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestOthersSince(t *testing.T) {
	start := CPU{10 * time.Second, 20 * time.Second, 2 * time.Second}
	for _, c := range []struct {
		name string
		now  CPU
		want float64
	}{
		{"alone", CPU{14 * time.Second, 30 * time.Second, 6 * time.Second}, 0},
		{"others took half", CPU{16 * time.Second, 30 * time.Second, 3 * time.Second}, 0.5},
		{"more than there is", CPU{10 * time.Second, 30 * time.Second, 4 * time.Second}, 0},
		{"no time", start, 0},
	} {
		if got := c.now.OthersSince(start); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if now := Now(); now.busy <= 0 || now.total < now.busy || now.own <= 0 {
		t.Errorf("now %+v", now)
	}
}

func TestThisMachine(t *testing.T) {
	if m := ThisMachine(); m.CPU == "" || m.Cores < 1 || !strings.Contains(m.Kernel, ".") || m.Go == "" {
		t.Errorf("%+v", m)
	}
}
