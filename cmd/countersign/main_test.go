package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result is what a call left.
type result struct {
	code        int
	out, errOut string
}

// call runs the program with args on a terminal of that width, 0 for none.
func call(t *testing.T, width int, args ...string) result {
	t.Helper()
	return callWith(t, t.Context(), "", width, args...)
}

func callWith(t *testing.T, ctx context.Context, stdin string, width int, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errOut, width: width}
	code := a.run(ctx, args)
	return result{code, out.String(), errOut.String()}
}

// succeed is a call that must end with 0 and say nothing on standard error.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	r := call(t, 0, args...)
	if r.code != exitOK || r.errOut != "" {
		t.Fatalf("%v ended with %d: %s", args, r.code, r.errOut)
	}
	return r.out
}

// fail is a call that must end with the code and one line on standard error
// that has every one of the texts.
func fail(t *testing.T, code int, args []string, texts ...string) {
	t.Helper()
	r := call(t, 0, args...)
	line, rest, _ := strings.Cut(r.errOut, "\n")
	if r.code != code || rest != "" || !strings.HasPrefix(line, "countersign: ") {
		t.Errorf("%v ended with %d, want %d, and said %q", args, r.code, code, r.errOut)
	}
	for _, text := range texts {
		if !strings.Contains(line, text) {
			t.Errorf("%v said %q, want %q in it", args, line, text)
		}
	}
}

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (-update writes it anew): got\n%s\nwant\n%s", path, got, want)
	}
}

func write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// commands yields the path of every command but help.
func commands(c *cobra.Command) (all []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.Name() != "help" {
			all = append(append(all, sub), commands(sub)...)
		}
	}
	return all
}

func TestHelp(t *testing.T) {
	for _, c := range commands((&app{}).root()) {
		args := strings.Fields(c.CommandPath())[1:]
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			out := succeed(t, append(slices.Clone(args), "--help")...)
			for _, want := range []string{"Usage:\n  countersign ", "Examples:\n  "} {
				if !strings.Contains(out, want) {
					t.Errorf("help lacks %q:\n%s", want, out)
				}
			}
			if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Long == "" {
				t.Errorf("short %q, long %q", c.Short, c.Long)
			}
			if strings.Contains(out, " string ") || strings.Contains(out, " strings ") || strings.Contains(out, " uint") {
				t.Errorf("a flag's value has no name:\n%s", out)
			}
			for line := range strings.Lines(c.Long) {
				if c.Parent().Name() != "completion" && len([]rune(strings.TrimRight(line, "\n"))) > 80 {
					t.Errorf("line of help longer than 80 columns: %q", line)
				}
			}
			for _, line := range strings.Split(c.Example, "\n") {
				if strings.TrimSpace(line) == "" {
					t.Error("an example is empty")
				}
			}
		})
	}
	golden(t, "help.txt", succeed(t, "--help"))
}

// Examples that begin with the program's name must be calls that it
// understands.
func TestExamplesParse(t *testing.T) {
	for _, c := range append(commands((&app{}).root()), (&app{}).root()) {
		for _, line := range strings.Split(c.Example, "\n") {
			words, ok := strings.CutPrefix(strings.TrimSpace(line), "countersign ")
			if !ok || c.Parent() != nil && c.Parent().Name() == "completion" {
				continue
			}
			args := exampleArgs(words)
			root := (&app{}).root()
			found, rest, err := root.Find(args)
			if err == nil {
				if err = found.ParseFlags(rest); err == nil {
					err = found.ValidateArgs(found.Flags().Args())
				}
			}
			if err != nil || found == root {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
}

// exampleArgs splits an example up to a pipe, redirection or pattern.
func exampleArgs(line string) []string {
	var args []string
	for _, w := range strings.Fields(line) {
		if w == "|" || w == ">" {
			break
		}
		args = append(args, strings.Trim(w, "'"))
	}
	return args
}

func TestWrongCalls(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", []string{}, "countersign needs a command: completion, controller"},
		{"unknown command", []string{"frobnicate"}, `unknown command "frobnicate"`},
		{"group alone", []string{"tag"}, "countersign tag needs a command: check, decode"},
		{"unknown command of a group", []string{"keys", "print"}, `unknown command "print" for "countersign keys": there are rotate, show`},
		{"unknown command of a command", []string{"directory", "start"}, "there are init, rotate-key, site, status"},
		{"unknown command of sessions", []string{"sessions", "all"}, "there are kill"},
		{"unknown flag", []string{"status", "--verbose"}, "unknown flag: --verbose"},
		{"flag of another command", []string{"version", "--admin", "x"}, "unknown flag: --admin"},
		{"flag without value", []string{"tag", "decode", "--port"}, "--port"},
		{"flag out of range", []string{"tag", "decode", "--port", "70000", "f"}, "70000"},
		{"argument missing", []string{"tag", "check"}, "at least 1"},
		{"argument too many", []string{"policy", "check", "a", "b"}, "1 arg"},
		{"carrier", []string{"tag", "decode", "--carrier", "gre", "f"}, `--carrier: "gre" is not ip or udp`},
		{"carrier protocol", []string{"tag", "decode", "--protocol", "6", "f"}, "6"},
		{"no operator", []string{"member", "list"}, "--operator"},
		{"member name", []string{"member", "invite", "FW 1"}, "FW 1"},
		{"member role", []string{"member", "invite", "fw1", "--role", "king"}, `"king" is not member, operator or reader`},
		{"member suite", []string{"member", "invite", "fw1", "--suite", "md5"}, `"md5" is not siphash`},
		{"two things on standard output", []string{"member", "invite", "fw1", "--json", "--token-file", "-"}, "standard output"},
		{"join without token", []string{"member", "join", "--state", "x"}, "--token-file"},
		{"join as both", []string{"member", "join", "--token-file", "t", "--state", "x", "--credential", "y"}, "or --credential"},
		{"site prefix", []string{"directory", "site", "hq", "10.0.0.1"}, `"10.0.0.1" is not a prefix`},
		{"rotate suite", []string{"keys", "rotate", "des"}, `"des" is not siphash`},
		{"key state", []string{"keys", "show", "--state", "lost"}, "lost"},
		{"session protocol", []string{"sessions", "--protocol", "ipx"}, "ipx"},
		{"session prefix", []string{"sessions", "--prefix", "10.0.0.1"}, "10.0.0.1"},
		{"kill what", []string{"sessions", "kill", "tcp", "10.0.0.1:1"}, "3 arg"},
		{"kill any protocol", []string{"sessions", "kill", "", "10.0.0.1:1", "10.0.0.2:2"}, "not a protocol"},
		{"kill an address", []string{"sessions", "kill", "tcp", "10.0.0.1", "10.0.0.2:2"}, `"10.0.0.1" is not ADDRESS:PORT`},
		{"kill across families", []string{"sessions", "kill", "tcp", "10.0.0.1:1", "[::1]:2"}, "families"},
		{"controller without configuration", []string{"controller"}, "--config"},
		{"fallback without endpoint", []string{"fallback", "--port", "1=eth0"}, "--listen"},
		{"fallback without ports", []string{"fallback", "--listen", "unix:///x"}, "--port"},
		{"fallback port", []string{"fallback", "--listen", "unix:///x", "--port", "eth0"}, `"eth0" is not NUMBER=INTERFACE`},
		{"fallback port twice", []string{"fallback", "--listen", "unix:///x", "--port", "1=a", "--port", "1=b"}, "port 1 is given twice"},
		{"half of TLS", []string{"fallback", "--listen", "unix:///x", "--port", "1=a", "--tls-cert", "c"}, "--tls-key"},
		{"log level", []string{"fallback", "--listen", "unix:///x", "--port", "1=a", "--log-level", "loud"}, `"loud" is not debug`},
		{"log format", []string{"fallback", "--listen", "unix:///x", "--port", "1=a", "--log-format", "xml"}, `"xml" is not text or json`},
		{"policy table", []string{"policy", "show", "--table", "routes", "f"}, `"routes"`},
		{"demo target", []string{"demo", "--target", "tofino"}, `"tofino" is not fallback or bmv2`},
		{"demo size", []string{"demo", "--size", "-1"}, "negative"},
		{"replay of nothing", []string{"replay", "-c", "f"}, "--in"},
		{"replay input", []string{"replay", "-c", "f", "--in", "left.pcap", "--out-dir", "o"}, "PORT=FILE"},
		{"replay punts", []string{"replay", "-c", "f", "--in", "1=f", "--out-dir", "o", "--punts", "drop"}, "decide or report"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("COUNTERSIGN_OPERATOR", "")
			fail(t, exitUsage, tc.args, tc.want)
		})
	}
}

func TestFailures(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	good, err := os.ReadFile("testdata/fw1.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spoilt := func(old, replacement string) string {
		if !strings.Contains(string(good), old) {
			t.Fatalf("%q is not in the sample", old)
		}
		return write(t, "fw1.yaml", strings.Replace(string(good), old, replacement, 1))
	}
	for _, tc := range []struct {
		name  string
		args  []string
		texts []string
	}{
		{"check no file", []string{"tag", "check", missing}, []string{missing, "no such file"}},
		{"check no vectors", []string{"tag", "check", write(t, "v.json", "{\n  \"vectors\": 7\n}")}, []string{"v.json", "line 2"}},
		{"check a directory", []string{"tag", "check", t.TempDir()}, []string{"is a directory"}},
		{"decode no file", []string{"tag", "decode", missing}, []string{missing, "no such file"}},
		{"decode no capture", []string{"tag", "decode", write(t, "c.pcap", "not a capture at all")}, []string{"c.pcap", "not a readable capture"}},
		{"policy of no file", []string{"policy", "check", missing}, []string{missing}},
		{"broken YAML", []string{"policy", "check", spoilt("member: fw1", "member: [fw1")}, []string{"fw1.yaml:"}},
		{"unknown key", []string{"policy", "check", spoilt("punts:", "punds:")}, []string{"fw1.yaml:18:", "punds"}},
		{"wrong role", []string{"policy", "show", spoilt("role: trunk", "role: inside")}, []string{"fw1.yaml:8:", "ports[1].role"}},
		{"wrong static key", []string{"policy", "check", spoilt("000102030405060708090a0b0c0d0e0f", "00")}, []string{"fw1.yaml:", "keys[0]"}},
		{"no such device", []string{"policy", "show", "--device", "west", "testdata/fw1.yaml"}, []string{`no device "west"`}},
		{"controller of no file", []string{"controller", "-c", missing}, []string{missing}},
		{"controller with an unknown key", []string{"controller", "-c", spoilt("punts:", "punds:")}, []string{"fw1.yaml:18:"}},
		{"no controller", []string{"status", "--admin", missing}, []string{"controller not reached", missing}},
		{"sessions of no controller", []string{"sessions", "--admin", missing}, []string{"controller not reached"}},
		{"keys of no controller", []string{"keys", "show", "--admin", missing}, []string{"controller not reached"}},
		{"no credential", []string{"member", "list", "--operator", missing}, []string{missing}},
		{"no token", []string{"member", "join", "--token-file", missing, "--state", missing}, []string{"token file", "no such file"}},
		{"mistyped token", []string{"member", "join", "--token-file", write(t, "token", "hunter2"), "--state", missing}, []string{"token"}},
		{"directory without state", []string{"directory", "--alliance", "a", "--address", "d:1"}, []string{"state: is missing"}},
		{"directory of no file", []string{"directory", "-c", missing}, []string{missing}},
		{"directory with an unknown key", []string{"directory", "-c", write(t, "d.yaml", "state: x\naliance: y\n")}, []string{"d.yaml:2:", "aliance"}},
		{"directory with a wrong duration", []string{"directory", "-c", write(t, "d.yaml", "state: x\ngrace: soon\n")}, []string{"d.yaml:2:"}},
		{"directory before init", []string{"directory", "--state", missing, "--alliance", "a", "--address", "d:1"}, nil},
		{"port that does not exist", []string{"fallback", "--listen", "unix://" + missing, "--port", "1=nowhere0"}, []string{"port 1", "nowhere0"}},
		{"certificate that does not exist", []string{"fallback", "--listen", "unix://" + missing, "--port", "1=lo", "--tls-cert", missing, "--tls-key", missing, "--tls-ca", missing}, []string{missing}},
		{"metrics address", []string{"controller", "-c", "testdata/fw1.yaml", "--metrics", "nowhere"}, []string{"metrics", "nowhere"}},
		{"replay of no file", []string{"replay", "-c", missing, "--in", "1=x", "--out-dir", t.TempDir()}, []string{missing}},
		{"replay of no capture", []string{"replay", "-c", "testdata/fw1.yaml", "--in", "1=" + missing, "--out-dir", t.TempDir()}, []string{missing}},
	} {
		t.Run(tc.name, func(t *testing.T) { fail(t, exitFailed, tc.args, tc.texts...) })
	}
}

func TestVersion(t *testing.T) {
	var v versionInfo
	if err := json.Unmarshal([]byte(succeed(t, "version", "--json")), &v); err != nil {
		t.Fatal(err)
	}
	if v.Version == "" || v.Go == "" || !strings.HasPrefix(v.Pipeline.Compiler, "p4c") || len(v.Pipeline.Stamp) != 64 {
		t.Errorf("got %+v", v)
	}
	if out := succeed(t, "version"); !strings.Contains(out, v.Version) || !strings.Contains(out, v.Pipeline.Stamp) {
		t.Errorf("got %s", out)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := succeed(t, "completion", shell); !strings.Contains(out, "countersign") {
			t.Errorf("%s: %q", shell, out)
		}
	}
	if out := call(t, 0, "__complete", "keys", "rotate", "").out; !strings.Contains(out, "ed25519") {
		t.Errorf("suites are not completed: %q", out)
	}
}
