package replay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"countersign/controller/config"
	"countersign/packet"
	"countersign/packet/capture"
	"countersign/replay"
	"countersign/tag"
)

var update = flag.Bool("update", false, "write the captures and golden lines of the example")

const example = "../docs/examples/replay"

func load(t *testing.T, path string) *config.Config {
	t.Helper()
	cfg, err := config.Load(path)
	must(t, err)
	return cfg
}

// fresh compares a file with what it should be, or writes it.
func fresh(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(path, want, 0o666))
	}
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not as it should be; go test ./replay -update writes it. Now:\n%s", path, want)
	}
}

func TestExample(t *testing.T) {
	fresh(t, filepath.Join(example, "inside.pcap"), pcap(t, layers.LinkTypeEthernet, inside(t)))
	fresh(t, filepath.Join(example, "trunk.pcap"), pcap(t, layers.LinkTypeEthernet, trunk(t, packet.DefaultCarrier)))
	for _, mode := range []replay.Mode{replay.Decide, replay.Report} {
		t.Run(string(mode), func(t *testing.T) {
			dir := t.TempDir()
			var lines bytes.Buffer
			_, err := replay.Run(context.Background(), replay.Options{
				Config: load(t, filepath.Join(example, "c1.yaml")),
				Inputs: []replay.Input{{Port: "trunk", File: filepath.Join(example, "trunk.pcap")}, {Port: "1", File: filepath.Join(example, "inside.pcap")}},
				OutDir: dir, Punts: mode, Seed: 1, Lines: &lines,
			})
			must(t, err)
			fresh(t, filepath.Join(example, "verdicts-"+string(mode)+".jsonl"), lines.Bytes())
			written, err := os.ReadFile(filepath.Join(dir, replay.VerdictsFile))
			must(t, err)
			if !bytes.Equal(written, lines.Bytes()) {
				t.Error("the file of verdicts differs from the lines written beside it")
			}
		})
	}
}

// write puts a file into a directory of its own.
func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, b, 0o666))
	return path
}

// edited is the example's configuration with some text replaced.
func edited(t *testing.T, oldnew ...string) *config.Config {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(example, "c1.yaml"))
	must(t, err)
	text := strings.NewReplacer(oldnew...).Replace(string(b))
	if text == string(b) && len(oldnew) > 0 {
		t.Fatalf("nothing to replace by %q", oldnew)
	}
	cfg, err := config.Parse("c1.yaml", []byte(text))
	must(t, err)
	return cfg
}

// outcome is what a replay has written.
type outcome struct {
	sum   replay.Summary
	err   error
	lines []replay.Line
	files map[string][]byte
}

func run(t *testing.T, o replay.Options) (out outcome) {
	t.Helper()
	if o.Config == nil {
		o.Config = edited(t)
	}
	if o.OutDir == "" {
		o.OutDir = filepath.Join(t.TempDir(), "made", "here")
	}
	out.sum, out.err = replay.Run(t.Context(), o)
	out.files = map[string][]byte{}
	entries, _ := os.ReadDir(o.OutDir)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(o.OutDir, e.Name()))
		must(t, err)
		out.files[e.Name()] = b
	}
	dec := json.NewDecoder(bytes.NewReader(out.files[replay.VerdictsFile]))
	for dec.More() {
		var l replay.Line
		must(t, dec.Decode(&l))
		out.lines = append(out.lines, l)
	}
	return out
}

func (o *outcome) packets(t *testing.T, port uint16) (all []capture.Packet) {
	t.Helper()
	r, err := capture.NewReader(bytes.NewReader(o.files[replay.CaptureFile(port)]))
	must(t, err)
	for {
		p, err := r.Next()
		if err == io.EOF {
			return all
		}
		must(t, err)
		all = append(all, p)
	}
}

// both are the captures of the example.
func both(t *testing.T) []replay.Input {
	return []replay.Input{
		{Port: "inside", File: write(t, "inside.pcap", pcap(t, layers.LinkTypeEthernet, inside(t)))},
		{Port: "trunk", File: write(t, "trunk.pcapng", pcapng(t, trunk(t, packet.DefaultCarrier)))},
	}
}

func TestWhatLeaves(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cfg     *config.Config
		carrier packet.Carrier
		suite   tag.Suite
	}{
		{"siphash", edited(t), packet.DefaultCarrier, tag.Siphash},
		{"ed25519", edited(t, "sign: siphash", "sign: ed25519", "514, action: tag", "514, action: admit"), packet.DefaultCarrier, tag.Ed25519},
		{"udp carrier, the configuration's", edited(t, "sign: siphash", "carrier: {kind: udp}"), packet.Carrier{UDP: true, Protocol: 253, Port: 25300}, tag.Siphash},
		{"udp carrier, the alliance's", edited(t, "static:\n", "static:\n  carrier: {kind: udp, port: 4000}\n"), packet.Carrier{UDP: true, Protocol: 253, Port: 4000}, tag.Siphash},
		{"another protocol", edited(t, "static:\n", "static:\n  carrier: {protocol: 254}\n"), packet.Carrier{Protocol: 254, Port: 25300}, tag.Siphash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := run(t, replay.Options{Config: tt.cfg, Seed: 1, Inputs: []replay.Input{
				{Port: "1", File: write(t, "inside.pcap", pcap(t, layers.LinkTypeEthernet, inside(t)))},
				{Port: "2", File: write(t, "trunk.pcapng", pcapng(t, trunk(t, tt.carrier)))},
			}})
			must(t, o.err)
			me := issuers(t)[0]
			verify := me.siphash.Verifier()
			if tt.suite == tag.Ed25519 {
				verify = me.ed25519.Verifier()
			}
			want := map[uint16]int{}
			times := map[uint16][]time.Time{}
			for _, l := range o.lines {
				if l.EgressPort != nil {
					want[*l.EgressPort]++
					times[*l.EgressPort] = append(times[*l.EgressPort], l.Time)
				}
			}
			if len(o.files) != 4 || want[1] < 4 || want[2] < 7 {
				t.Fatalf("%d files, %d packets by port 1 and %d by port 2; lines:\n%s", len(o.files), want[1], want[2], o.files[replay.VerdictsFile])
			}
			for port := uint16(1); port <= 3; port++ {
				all := o.packets(t, port)
				if len(all) != want[port] {
					t.Errorf("port %d: %d packets, want %d", port, len(all), want[port])
				}
				for _, p := range all {
					var v packet.View
					if a := packet.Parse(p.Data, tt.carrier, &v); a != packet.None {
						t.Errorf("port %d, packet %d: %v", port, p.Number, a)
					}
					switch {
					case v.Tagged != (port == 2):
						t.Errorf("port %d, packet %d: tagged %t", port, p.Number, v.Tagged)
					case v.Tagged && verify.Verify(&v.Tag, &v.Tuple) != nil:
						t.Errorf("port %d, packet %d: the tag is not this member's", port, p.Number)
					}
				}
			}
			for i, p := range o.packets(t, 1) {
				if !p.Time.Equal(times[1][i]) {
					t.Errorf("packet %d left at %v, came in at %v", i, p.Time, times[1][i])
				}
			}
		})
	}
}

func TestSeed(t *testing.T) {
	first := run(t, replay.Options{Inputs: both(t), Seed: 5})
	again := run(t, replay.Options{Inputs: both(t), Seed: 5})
	other := run(t, replay.Options{Inputs: both(t), Seed: 6})
	must(t, first.err)
	for name, b := range first.files {
		if !bytes.Equal(b, again.files[name]) {
			t.Errorf("%s differs between runs with one seed", name)
		}
	}
	if bytes.Equal(first.files["port-2.pcap"], other.files["port-2.pcap"]) {
		t.Error("another seed gives the same nonces")
	}
	if !bytes.Equal(first.files[replay.VerdictsFile], other.files[replay.VerdictsFile]) {
		t.Error("another seed gives other verdicts")
	}
}

func TestOrderOfInputs(t *testing.T) {
	in := both(t)
	first := run(t, replay.Options{Inputs: in})
	other := run(t, replay.Options{Inputs: []replay.Input{in[1], in[0]}})
	if !bytes.Equal(first.files[replay.VerdictsFile], other.files[replay.VerdictsFile]) {
		t.Error("the order of the inputs shows")
	}
}

// verdicts is a line for each packet: its port and number, and what became of
// it.
func verdicts(lines []replay.Line) (all []string) {
	for _, l := range lines {
		s := fmt.Sprintf("%d/%d %s", l.Port, l.Number, l.Verdict)
		if l.EgressPort != nil {
			s += fmt.Sprintf(" %d", *l.EgressPort)
		}
		for _, more := range []string{l.Reason, mark("punted ", l.Punted), mark("copied ", l.Copied)} {
			if more != "" {
				s += " " + more
			}
		}
		all = append(all, s)
	}
	return all
}

func mark(what, s string) string {
	if s == "" {
		return ""
	}
	return what + s
}

func TestTime(t *testing.T) {
	dns := func(at time.Duration) timed {
		return timed{at: at, frame: fromClient(ip(t, client4, server4, 0, udp(5353, 53), "?"))}
	}
	pieces := fragments(ip(t, client4, server4, 0, udp(5353, 53), string(make([]byte, 100))), 64, 9)
	for _, tt := range []struct {
		name    string
		packets []timed
		want    []string
	}{
		{"a session lives while it is used", []timed{dns(0), dns(50 * time.Second), dns(100 * time.Second)}, []string{
			"1/1 forward 2 punted new_session", "1/2 forward 2", "1/3 forward 2",
		}},
		{"and ends by its idle timeout", []timed{dns(0), dns(90 * time.Second)}, []string{
			"1/1 forward 2 punted new_session", "1/2 forward 2 punted new_session",
		}},
		{"a clock that is set back does not", []timed{dns(90 * time.Second), dns(0), dns(91 * time.Second)}, []string{
			"1/1 forward 2 punted new_session", "1/2 forward 2", "1/3 forward 2",
		}},
		{"a gap of centuries", []timed{dns(0), dns(80 * 365 * 24 * time.Hour)}, []string{
			"1/1 forward 2 punted new_session", "1/2 forward 2 punted new_session",
		}},
		{"pieces that come too late", []timed{{at: 0, frame: fromClient(pieces[1])}, {at: 8 * time.Second, frame: fromClient(pieces[0])}}, []string{
			"1/1 drop reassembly_timeout punted fragment", "1/2 forward 2 punted fragment",
		}},
		{"pieces that overlap", []timed{{at: 0, frame: fromClient(pieces[1])}, {at: 1, frame: fromClient(pieces[1])}}, []string{
			"1/1 drop fragment_overlap punted fragment", "1/2 drop fragment_overlap punted fragment",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := run(t, replay.Options{Inputs: []replay.Input{{Port: "1", File: write(t, "in.pcap", pcap(t, layers.LinkTypeEthernet, tt.packets))}}})
			must(t, o.err)
			if got := verdicts(o.lines); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// TestNeighbour replays the address resolution of a route's next hop.
func TestNeighbour(t *testing.T) {
	cfg := edited(t, `  - {address: 10.9.0.2, mac: "02:00:00:00:09:02"}`+"\n", "")
	query := timed{at: 0, frame: fromClient(ip(t, client4, server4, 0, udp(5353, 53), "?"))}
	later := query
	later.at = time.Second
	answer := serialize(t, &layers.Ethernet{SrcMAC: peerMAC, DstMAC: trunkMAC, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPReply, SourceHwAddress: peerMAC, SourceProtAddress: []byte{10, 9, 0, 2},
			DstHwAddress: trunkMAC, DstProtAddress: []byte{10, 9, 0, 1},
		})
	o := run(t, replay.Options{Config: cfg, Inputs: []replay.Input{
		{Port: "1", File: write(t, "in.pcap", pcap(t, layers.LinkTypeEthernet, []timed{query, later}))},
		{Port: "2", File: write(t, "trunk.pcap", pcap(t, layers.LinkTypeEthernet, []timed{{at: time.Millisecond, frame: answer}}))},
	}})
	must(t, o.err)
	want := []string{
		"1/1 forward 2 punted to_me", "510/0 forward 2", "2/1 punt to_me punted to_me", "1/2 forward 2",
	}
	if got := verdicts(o.lines); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if want := (replay.Summary{Packets: 3, Forwarded: 2, Punted: 1, Sent: 1}); o.sum != want {
		t.Errorf("summary %+v, want %+v", o.sum, want)
	}
}

func TestDamage(t *testing.T) {
	whole := pcap(t, layers.LinkTypeEthernet, inside(t)[:4])
	cut := write(t, "cut.pcap", whole[:len(whole)-3])
	ng := pcapng(t, inside(t)[:4])
	cutNG := write(t, "cut.pcapng", ng[:len(ng)-3])
	long := timed{frame: append(fromClient(ip(t, client4, server4, 0, udp(1, 514), "")), make([]byte, 20000)...)}
	o := run(t, replay.Options{Inputs: []replay.Input{{Port: "1", File: cut}, {Port: "2", File: cutNG}}})
	for _, want := range []string{"input 1=" + cut + ": packet 4: ", "input 2=" + cutNG + ": packet 4: "} {
		if o.err == nil || !strings.Contains(o.err.Error(), want) {
			t.Errorf("error %v, want %q in it", o.err, want)
		}
	}
	if o.sum.Packets != 6 {
		t.Errorf("%d packets replayed, want the 6 that are readable", o.sum.Packets)
	}
	o = run(t, replay.Options{Inputs: []replay.Input{{Port: "1", File: write(t, "odd.pcap", pcap(t, layers.LinkTypeEthernet, []timed{
		long, {frame: nil}, {frame: []byte{1, 2, 3}}, {frame: make([]byte, 13)},
	}))}}})
	must(t, o.err)
	want := []string{"1/1 drop frame_too_long", "1/2 drop truncated", "1/3 drop truncated", "1/4 drop truncated"}
	if got := verdicts(o.lines); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRefused(t *testing.T) {
	good := write(t, "good.pcap", pcap(t, layers.LinkTypeEthernet, inside(t)[:1]))
	second := edited(t, "ports:\n", "  - {name: c2, address: \"unix:///run/c2.sock\"}\nports:\n  - {device: c2, port: 9, name: other, role: edge, mac: \"02:00:00:00:00:09\"}\n")
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "port-2.pcap"), pcap(t, layers.LinkTypeEthernet, trunk(t, packet.DefaultCarrier)), 0o666))
	directory := edited(t)
	directory.Static = nil
	for _, tt := range []struct {
		name string
		o    replay.Options
		want string
	}{
		{"missing file", replay.Options{Inputs: []replay.Input{{Port: "1", File: "nowhere.pcap"}}}, "input 1=nowhere.pcap: no such file or directory"},
		{"a directory", replay.Options{Inputs: []replay.Input{{Port: "1", File: dir}}}, "input 1=" + dir},
		{"no capture", replay.Options{Inputs: []replay.Input{{Port: "1", File: "replay_test.go"}}}, "not a readable capture"},
		{"unknown port", replay.Options{Inputs: []replay.Input{{Port: "7", File: good}}}, `device c1 has no port "7"; there are 1 (inside), 2 (trunk), 3 (lab)`},
		{"port of another device", replay.Options{Config: second, Device: "c2", Inputs: []replay.Input{{Port: "inside", File: good}}}, `device c2 has no port "inside"; there are 9 (other)`},
		{"unknown device", replay.Options{Device: "c9", Inputs: []replay.Input{{Port: "1", File: good}}}, `no device "c9"; there are ["c1"]`},
		{"a port twice", replay.Options{Inputs: []replay.Input{{Port: "1", File: good}, {Port: "inside", File: good}}}, "port 1 has a capture already"},
		{"raw IP", replay.Options{Inputs: []replay.Input{{Port: "1", File: write(t, "raw.pcap", pcap(t, layers.LinkTypeRaw, []timed{{frame: ip(t, client4, server4, 0, udp(1, 2), "")}}))}}}, "packet 1: link type raw IP"},
		{"cooked", replay.Options{Inputs: []replay.Input{{Port: "1", File: write(t, "sll.pcap", pcap(t, layers.LinkTypeLinuxSLL, nil))}}}, "link type 113 (Linux SLL)"},
		{"an input that is an output", replay.Options{OutDir: dir, Inputs: []replay.Input{{Port: "2", File: filepath.Join(dir, "port-2.pcap")}}}, "is an input too"},
		{"a directory in the keys' place", replay.Options{Config: directory, Inputs: []replay.Input{{Port: "1", File: good}}}, "static: is missing"},
		{"no place for the outputs", replay.Options{OutDir: good, Inputs: []replay.Input{{Port: "1", File: good}}}, "output directory: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if o := run(t, tt.o); o.err == nil || !strings.Contains(o.err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", o.err, tt.want)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(dir, "port-2.pcap")); err != nil || len(b) < 100 {
		t.Errorf("the input was overwritten: %d bytes, %v", len(b), err)
	}
	o := run(t, replay.Options{Config: second, Device: "c2", Inputs: []replay.Input{{Port: "other", File: good}}})
	must(t, o.err)
	if _, ok := o.files["port-9.pcap"]; !ok || len(o.files) != 2 {
		t.Errorf("%d files for a device with port 9 only", len(o.files))
	}
}

func TestStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := replay.Run(ctx, replay.Options{Config: edited(t), Inputs: both(t), OutDir: t.TempDir()})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that the context was cancelled", err)
	}
}

func TestParse(t *testing.T) {
	if in, err := replay.ParseInput("1=a=b,c.pcap"); err != nil || in != (replay.Input{Port: "1", File: "a=b,c.pcap"}) {
		t.Errorf("input %v, %v", in, err)
	}
	for _, s := range []string{"", "a.pcap", "=a.pcap", "1="} {
		if _, err := replay.ParseInput(s); err == nil {
			t.Errorf("input %q is taken", s)
		}
	}
	if _, err := replay.ParseMode("punt"); err == nil {
		t.Error("mode punt is taken")
	}
}

// FuzzFrames takes any two frames through a whole replay: each packet gets one
// line with a verdict.
func FuzzFrames(f *testing.F) {
	all := append(inside(f), trunk(f, packet.DefaultCarrier)...)
	for i := range all[1:] {
		f.Add(all[i].frame, all[i+1].frame)
	}
	text, err := os.ReadFile(filepath.Join(example, "c1.yaml"))
	must(f, err)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > 1<<15 || len(b) > 1<<15 {
			t.Skip()
		}
		cfg, err := config.Parse("c1.yaml", text)
		must(t, err)
		o := run(t, replay.Options{Config: cfg, Inputs: []replay.Input{
			{Port: "1", File: write(t, "a.pcap", pcap(t, layers.LinkTypeEthernet, []timed{{frame: a}, {at: 2, frame: b}}))},
			{Port: "2", File: write(t, "b.pcap", pcap(t, layers.LinkTypeEthernet, []timed{{at: 1, frame: b}, {at: 3, frame: a}}))},
		}})
		must(t, o.err)
		if len(o.lines) != 4+o.sum.Sent || o.sum.Forwarded+o.sum.Dropped+o.sum.Punted != 4 {
			t.Errorf("%d lines, summary %+v", len(o.lines), o.sum)
		}
		for _, l := range o.lines {
			if l.Verdict == "" || l.Verdict != "forward" && l.Reason == "" || (l.Verdict == "forward") != (l.EgressPort != nil) {
				t.Errorf("line %+v", l)
			}
		}
	})
}
