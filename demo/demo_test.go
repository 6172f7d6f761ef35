package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"countersign/bmv2/launcher"
	"countersign/controller/config"
	"countersign/tag"
	"countersign/test/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.EnsurePrivileges(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestValidate(t *testing.T) {
	t.Setenv(launcher.Env, filepath.Join(t.TempDir(), "missing"))
	for _, tc := range []struct {
		name string
		o    Options
		want error
	}{
		{"defaults", Options{}, nil},
		{"target", Options{Target: "tofino"}, ErrOptions},
		{"size", Options{Size: 1 << 20}, ErrOptions},
		{"no bmv2", Options{Target: BMv2}, launcher.ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.o.Validate()
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err == nil && (tc.o.Size < 20<<20 || len(tc.o.Suites) != 3 || tc.o.Target != Fallback) {
				t.Errorf("defaults are %+v", tc.o)
			}
		})
	}
}

func result() *Result {
	r := &Result{Target: Fallback, Bytes: 24 << 20, Pass: true, Elapsed: 1500 * time.Millisecond}
	r.add(Row{Step: "b with tags", Suite: tag.Siphash, Pass: true, Figures: []Figure{
		{"downloaded", 25165824, "B"}, {"t: verified", 10, ""}, {"t: retagged", 10, ""}, {"s1: stripped", 4, ""}}})
	r.add(Row{Step: "a plain", Suite: tag.Ed25519, Pass: true, Figures: []Figure{{"to the end", 12.345, "ms"}}})
	return r
}

const goldenTable = `┌─────────────┬─────────┬────────┬───────────────────────────────────────────────────────────────────────┐
│ Step        │ Suite   │ Result │ Figures                                                               │
├─────────────┼─────────┼────────┼───────────────────────────────────────────────────────────────────────┤
│ a plain     │ ed25519 │ pass   │ 12.3 ms to the end                                                    │
├─────────────┼─────────┼────────┼───────────────────────────────────────────────────────────────────────┤
│ b with tags │ siphash │ pass   │ 25.2 MB downloaded; t: 10 verified, 10 retagged; s1: 4 stripped       │
│             │ rsa2048 │ FAIL   │ no download                                                           │
└─────────────┴─────────┴────────┴───────────────────────────────────────────────────────────────────────┘
FAIL on fallback, 25.2 MB a download, 1.5 s
`

func TestWriteTable(t *testing.T) {
	r := result()
	r.add(Row{Step: "b with tags", Suite: tag.RSA2048, Why: "no download"})
	var b strings.Builder
	if err := r.WriteTable(&b, false); err != nil {
		t.Fatal(err)
	}
	squeeze := func(s string) string { // widths are the library's
		var out []string
		for _, line := range strings.Split(s, "\n") {
			if !strings.ContainsAny(line, "─") {
				out = append(out, strings.Join(strings.Fields(line), " "))
			}
		}
		return strings.Join(out, "\n")
	}
	if squeeze(b.String()) != squeeze(goldenTable) {
		t.Errorf("got\n%s", b.String())
	}
}

func TestOneFailedRowFailsTheTable(t *testing.T) {
	r := result()
	if !r.Pass || len(r.failed()) != 0 {
		t.Fatalf("failed before: %v", r.failed())
	}
	r.add(Row{Step: "c forged", Suite: tag.RSA2048, Why: "3 arrived"})
	r.add(Row{Step: "d rotation", Suite: tag.RSA2048, Pass: true})
	if r.Pass || len(r.failed()) != 1 || r.failed()[0] != "c forged (rsa2048)" {
		t.Errorf("pass %v, failed %v", r.Pass, r.failed())
	}
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	if err := result().WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Target string
		Pass   bool
		Rows   []struct {
			Step, Suite string
			Pass        bool
			Figures     []Figure
		}
	}
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Target != Fallback || !back.Pass || len(back.Rows) != 2 || back.Rows[0].Suite != "siphash" || back.Rows[1].Figures[0].Value != 12.345 {
		t.Errorf("got %+v", back)
	}
}

func TestLines(t *testing.T) {
	var b strings.Builder
	show := Lines(&b)
	show(Event{Suite: tag.Siphash, Done: 1, Total: 7, Text: "attacks"})
	show(Event{Suite: tag.Siphash, Done: 2, Total: 7, Row: &Row{Step: "c forged", Why: "3 arrived"}})
	for _, want := range []string{"siphash  2/7 attacks", "FAIL c forged: 3 arrived"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in %q", want, b.String())
		}
	}
}

func TestParseCounts(t *testing.T) {
	const text = `# TYPE countersign_device_synced gauge
countersign_device_synced{device="dp"} 1
# TYPE countersign_packets_total counter
countersign_packets_total{device="dp",outcome="tagged"} 12
# TYPE countersign_dropped_packets_total counter
countersign_dropped_packets_total{device="dp",reason="tag_forged"} 3
# TYPE countersign_decisions_total counter
countersign_decisions_total{reason="tag_unverified",verdict="dropped",why="tag_forged"} 4
countersign_decisions_total{reason="tag_unverified",verdict="returned",why=""} 5
countersign_decisions_total{reason="announcement",verdict="dropped",why="sessions_full"} 6
# TYPE countersign_punts_dropped_total counter
countersign_punts_dropped_total{reason="tag_unverified"} 2
`
	c, err := parseCounts(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if !c.synced || c.outcome["tagged"] != 12 || c.drop["tag_forged"] != 7 || c.drop["punt_queue_full"] != 2 || len(c.drop) != 2 {
		t.Errorf("got %+v", c)
	}
	d := c.minus(counts{drop: map[string]int64{"tag_forged": 7, "punt_queue_full": 1}})
	if d.drop["tag_forged"] != 0 || d.drop["punt_queue_full"] != 1 || d.outcome["tagged"] != 12 {
		t.Errorf("difference is %+v", d)
	}
	if _, err := parseCounts(strings.NewReader("countersign_packets_total{")); err == nil {
		t.Error("took half a line")
	}
}

func TestMismatch(t *testing.T) {
	want := map[string]int64{"tag_forged": 2}
	for _, tc := range []struct {
		name string
		got  map[string]int64
		ok   bool
	}{
		{"equal", map[string]int64{"tag_forged": 2}, true},
		{"another kind of reason", map[string]int64{"tag_forged": 2, "not_ip": 4}, true},
		{"fewer", map[string]int64{"tag_forged": 1}, false},
		{"one more reason", map[string]int64{"tag_forged": 2, "tag_revoked": 1}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := mismatch(want, tc.got); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestParseRetransmits(t *testing.T) {
	n, err := parseRetransmits(strings.NewReader("Ip: A B\nIp: 1 2\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 17 0\n"))
	if err != nil || n != 17 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := parseRetransmits(strings.NewReader("Tcp: RtoMin\nTcp: 200\n")); err == nil {
		t.Error("no error without the counter")
	}
}

// TestConfigurations builds the network and loads what every controller would.
func TestConfigurations(t *testing.T) {
	for _, tags := range []bool{false, true} {
		n := &network{o: &Options{}, suite: tag.RSA2048, dir: t.TempDir()}
		t.Cleanup(n.close)
		if err := n.build(); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			c, err := n.configuration(name, tags)
			if err != nil {
				t.Fatal(err)
			}
			text, err := yaml.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			back, err := config.Parse(name+".yaml", text)
			if err != nil {
				t.Fatalf("tags %v: %v\n%s", tags, err, text)
			}
			trunks := 0
			for _, p := range back.Ports {
				if p.Role == "trunk" {
					trunks++
				}
			}
			want := 0
			if tags {
				want = map[bool]int{true: 4, false: 1}[name == "t"]
			}
			if trunks != want {
				t.Errorf("%s, tags %v: %d trunks, want %d", name, tags, trunks, want)
			}
			if !tags && back.Siblings.Listen != "" {
				t.Errorf("%s has siblings without tags", name)
			}
		}
	}
}
