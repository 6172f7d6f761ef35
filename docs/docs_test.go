// Package docs_test holds the documentation against the code: names, links,
// examples and figures that a reader would copy.
package docs_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"

	"countersign/controller/config"
	"countersign/directory/server"
	"countersign/tables"
)

// pages are all Markdown files that a reader is sent to.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	return append(found, "../README.md", "../directory/README.md")
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var fences = regexp.MustCompile("(?ms)^ *```([^\n]*)\n(.*?)^ *```")

// blocks are the code blocks whose info string is info.
func blocks(text, info string) (found []string) {
	for _, m := range fences.FindAllStringSubmatch(text, -1) {
		if m[1] == info {
			found = append(found, m[2])
		}
	}
	return found
}

var heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)

// anchors are the fragments that GitHub gives to a page's headings.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
		slug := strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r), unicode.IsNumber(r), r == '-', r == '_':
				return unicode.ToLower(r)
			case r == ' ':
				return '-'
			}
			return -1
		}, m[1])
		found[slug] = true
	}
	return found
}

var links = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// Every relative link leads to a file, and to a heading where it names one.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		t.Run(page, func(t *testing.T) {
			text := read(t, page)
			for _, m := range links.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				path, fragment, _ := strings.Cut(m[1], "#")
				target := page
				if path != "" {
					target = filepath.Join(filepath.Dir(page), path)
				}
				if _, err := os.Stat(target); err != nil {
					t.Errorf("link %q: %v", m[1], err)
					continue
				}
				if fragment != "" && strings.HasSuffix(target, ".md") && !anchors(read(t, target))[fragment] {
					t.Errorf("link %q: %s has no such heading", m[1], target)
				}
			}
		})
	}
}

var reasonRow = regexp.MustCompile("(?m)^\\| (\\d+) \\| `([a-z0-9_]+)` \\|")

// The table of reasons is that of the P4 program, number by number.
func TestReasons(t *testing.T) {
	want := map[string]string{}
	for _, r := range tables.ReasonValues() {
		if r != tables.ReasonNone {
			want[r.String()] = fmt.Sprint(uint8(r))
		}
	}
	got := map[string]string{}
	for _, m := range reasonRow.FindAllStringSubmatch(read(t, "pipeline.md"), -1) {
		got[m[2]] = m[1]
	}
	if !maps.Equal(got, want) {
		for name, n := range want {
			if got[name] != n {
				t.Errorf("reason %s: number %q, want %s", name, got[name], n)
			}
		}
		for name := range got {
			if want[name] == "" {
				t.Errorf("reason %s is not in the P4 program", name)
			}
		}
	}
}

var sizeRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([0-9,]+) \\|")

// Every table of the P4 program is described, and its size is right.
func TestTables(t *testing.T) {
	text := read(t, "pipeline.md")
	sizes := map[string]string{}
	for _, m := range sizeRow.FindAllStringSubmatch(read(t, "p4.md"), -1) {
		sizes[m[1]] = strings.ReplaceAll(m[2], ",", "")
	}
	for _, table := range tables.Tables() {
		if !strings.Contains(text, "`"+table.Alias+"`") {
			t.Errorf("pipeline.md does not name table %s", table.Alias)
		}
		if want := fmt.Sprint(table.Size); sizes[table.Alias] != want {
			t.Errorf("p4.md: size of %s is %q, want %s", table.Alias, sizes[table.Alias], want)
		}
	}
	for _, o := range tables.OutcomeValues() {
		if !strings.Contains(text, "`"+o.String()+"`") {
			t.Errorf("pipeline.md does not name outcome %s", o)
		}
	}
}

// Every YAML example is a configuration that a controller takes.
func TestExamples(t *testing.T) {
	n := 0
	for _, page := range pages(t) {
		for i, example := range blocks(read(t, page), "yaml") {
			n++
			t.Run(fmt.Sprintf("%s/%d", page, i), func(t *testing.T) {
				if _, err := config.Parse("example.yaml", []byte(example)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if n < 3 {
		t.Errorf("%d examples, want at least 3", n)
	}
}

// keys lists the paths of a configuration's keys, ports[].role for example.
func keys(t reflect.Type, path string, found map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer:
		keys(t.Elem(), path, found)
		return
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct && t.Elem() != reflect.TypeFor[netip.Prefix]() && t.Elem() != reflect.TypeFor[netip.Addr]() {
			keys(t.Elem(), path+"[]", found)
			return
		}
	case reflect.Struct:
		if t != reflect.TypeFor[netip.Prefix]() && t != reflect.TypeFor[netip.Addr]() && t != reflect.TypeFor[config.PortRange]() {
			for i := range t.NumField() {
				name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
				if name == "" || name == "-" {
					continue
				}
				if path != "" {
					name = path + "." + name
				}
				keys(t.Field(i).Type, name, found)
			}
			return
		}
	}
	found[path] = true
}

var keyRow = regexp.MustCompile("(?m)^\\| `([a-z_.\\[\\]]+)` \\|")

// The reference lists every key of the configuration, and no other.
func TestConfigurationKeys(t *testing.T) {
	want := map[string]bool{}
	keys(reflect.TypeFor[config.Config](), "", want)
	got := map[string]bool{}
	reference, _, ok := strings.Cut(read(t, "configuration.md"), "## The directory")
	if !ok {
		t.Fatal(`configuration.md has no heading "The directory"`)
	}
	for _, m := range keyRow.FindAllStringSubmatch(reference, -1) {
		got[m[1]] = true
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !got[key] {
			t.Errorf("configuration.md lacks %s", key)
		}
	}
	for key := range got {
		if !want[key] {
			t.Errorf("configuration.md has %s, the configuration has not", key)
		}
	}
}

// The reference lists every key of the directory's configuration with its flag,
// where it has one, and the right defaults of durations.
func TestDirectoryKeys(t *testing.T) {
	cfg := server.Config{State: "s", Alliance: "a", Address: "h:1"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(read(t, "configuration.md"), "## The directory")
	want := map[string]bool{}
	keys(reflect.TypeOf(cfg), "", want)
	for key := range want {
		if !strings.Contains(text, "| `"+key+"` |") {
			t.Errorf("configuration.md lacks %s", key)
		}
	}
	v := reflect.ValueOf(cfg)
	for i := range v.NumField() {
		d, ok := v.Field(i).Interface().(time.Duration)
		if !ok {
			continue
		}
		name := v.Type().Field(i).Tag.Get("yaml")
		row := regexp.MustCompile("(?m)^\\| `" + name + "` \\| ([^|]*) \\|").FindStringSubmatch(text)
		if row == nil {
			continue // reported above
		}
		if got, err := time.ParseDuration(row[1]); err != nil || got != d {
			t.Errorf("%s: default %q, want %v", name, row[1], d)
		}
	}
	for _, example := range blocks(text, "yaml directory") {
		var f struct {
			server.Config `yaml:",inline"`
			MetricsAddr   string `yaml:"metrics"`
		}
		err := yaml.UnmarshalWithOptions([]byte(example), &f, yaml.Strict())
		if err == nil {
			err = f.Validate()
		}
		if err != nil {
			t.Error(err)
		}
	}
}

var whys = regexp.MustCompile("drop\\(\"([a-z_]+)\"\\)|return \"([a-z]+_[a-z_]+)\"")

// Every reason for which the controller drops is in the troubleshooting table.
func TestWhys(t *testing.T) {
	files, err := filepath.Glob("../controller/decide/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	text := read(t, "operations.md")
	for _, name := range files {
		for _, m := range whys.FindAllStringSubmatch(read(t, name), -1) {
			if why := m[1] + m[2]; !strings.HasSuffix(name, "_test.go") && !strings.Contains(text, "`"+why+"`") {
				t.Errorf("operations.md lacks %s of %s", why, name)
			}
		}
	}
}

var inline = regexp.MustCompile("`(countersign [^`]+)`")

// calls are the calls of countersign that a page shows.
func calls(text string) (found []string) {
	for _, block := range blocks(text, "sh") {
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "   # ")
			if strings.HasPrefix(line, "countersign ") {
				found = append(found, line)
			}
		}
	}
	for _, m := range inline.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
		found = append(found, m[1])
	}
	return found
}

// Every command that a page shows is there, with its flags.
func TestCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "countersign")
	if out, err := exec.Command("go", "build", "-o", program, "countersign/cmd/countersign").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	seen := map[string]bool{}
	for _, page := range pages(t) {
		for _, call := range calls(read(t, page)) {
			if seen[call] {
				continue
			}
			seen[call] = true
			t.Run(call, func(t *testing.T) {
				var words, flags []string
				for _, token := range strings.Fields(call)[1:] {
					if strings.HasPrefix(token, "-") {
						flag, _, _ := strings.Cut(token, "=")
						flags = append(flags, flag)
					} else if len(flags) == 0 {
						words = append(words, token)
					}
				}
				if len(words) > 0 && words[0] == "COMMAND" {
					return
				}
				out, err := exec.Command(program, append(words, "--help")...).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				help := string(out)
				_, use, _ := strings.Cut(help, "Usage:\n  countersign ")
				use, _, _ = strings.Cut(use, "\n")
				given := strings.Fields(use)
				for i, word := range words {
					if i >= len(given) || given[i] != word {
						if strings.Contains(help, "Available Commands:") || i == 0 {
							t.Errorf("there is no command %q", word)
						}
						break
					}
				}
				for _, flag := range flags {
					if !regexp.MustCompile("(?m)(^|[ ,])" + flag + "([ ,=]|$)").MatchString(help) {
						t.Errorf("there is no flag %s", flag)
					}
				}
			})
		}
	}
	if len(seen) < 20 {
		t.Errorf("%d commands found", len(seen))
	}
}

// The worked example of the wire format is a checked vector.
func TestWireExample(t *testing.T) {
	var file struct {
		Packets []struct{ Name, Untagged, Tagged string }
	}
	if err := json.Unmarshal([]byte(read(t, "../tag/testdata/tag-v1.json")), &file); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, block := range blocks(read(t, "wire.md"), "hex") {
		var digits strings.Builder
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, "#")
			digits.WriteString(strings.ReplaceAll(strings.TrimSpace(line), " ", ""))
		}
		got = append(got, digits.String())
	}
	for _, p := range file.Packets {
		if p.Name == "ipv4-tcp-siphash" {
			if want := []string{p.Untagged, p.Tagged}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			return
		}
	}
	t.Error("the vectors have no such packet")
}

// No page names a place of the machine that it was written on.
func TestNoMachinePaths(t *testing.T) {
	for _, page := range pages(t) {
		for _, path := range []string{"/root/", "/home/"} {
			if strings.Contains(read(t, page), path) {
				t.Errorf("%s mentions %s", page, path)
			}
		}
	}
}
