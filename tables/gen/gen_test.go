package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	p4info = "../../p4src/build/countersign.p4info.txtpb"
	types  = "../../p4src/types.p4"
	sample = "testdata/sample.p4info.txtpb"
)

// The files in package tables are what the generator writes now.
func TestFresh(t *testing.T) {
	files, err := generate(p4info, types)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("tables/%s is stale: run go run ./tables/gen", name)
		}
	}
	have, err := filepath.Glob("../*.gen.go")
	if err != nil || len(have) != len(files) {
		t.Errorf("%d generated files, generator writes %d: %v", len(have), len(files), err)
	}
}

// Package tables passes its own tests when generated from the sample.
func TestSample(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles package tables anew")
	}
	files, err := generate(sample, "testdata/types.p4")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := write(dir, files); err != nil {
		t.Fatal(err)
	}
	abs := func(path string) string {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	replace := map[string]string{abs("../pipeline_test.go"): abs("testdata/pipeline_test.go")}
	for name := range files {
		replace[abs(filepath.Join("..", name))] = filepath.Join(dir, name)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-overlay", path, "countersign/tables")
	cmd.Env = append(os.Environ(), "TABLES_P4INFO="+abs(sample))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestGenerateRefuses(t *testing.T) {
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, old, new, want string }{
		{"id 0", "id: 33554434 ", "id: 0 ", "has id 0"},
		{"id twice", "id: 33554434 ", "id: 33554433 ", "has the id"},
		{"field id 0", `id: 2 name: "high_addr"`, `id: 0 name: "high_addr"`, "has id 0"},
		{"field id twice", `id: 2 name: "high_addr"`, `id: 1 name: "high_addr"`, "same id"},
		{"field name twice", `name: "high_addr"`, `name: "low_addr"`, "same id or Go name"},
		{"no width", `name: "high_addr" bitwidth: 32`, `name: "high_addr"`, "0 bits"},
		{"match kind", `name: "high_addr" bitwidth: 32 match_type: EXACT`, `name: "high_addr" bitwidth: 32`, "not supported"},
		{"wide range", `name: "dst_port" bitwidth: 16`, `name: "dst_port" bitwidth: 128`, "not supported"},
		{"unknown action", "action_refs { id: 16777217 }", "action_refs { id: 5 }", "no action has id 0x5"},
		{"unknown profile", "implementation_id: 285212673", "implementation_id: 5", "no action profile has id 0x5"},
		{"counter of no table", "direct_table_id: 33554433", "direct_table_id: 5", "no table has id 0x5"},
		{"empty counter", "size: 256", "size: 0", "0 cells"},
		{"table names", `alias: "vouched_v6"`, `alias: "session.v4"`, "Go name SessionV4Key"},
		{"packet header", `name: "packet_out" alias`, `name: "packet_up" alias`, "neither packet_in nor packet_out"},
		{"enum values", `name: "TAG_FORGED" value: "\001"`, `name: "TAG_FORGED" value: "\000"`, "has the value of NONE"},
		{"translated type", "original_type { bitstring { bit { bitwidth: 9 } } }", `translated_type { uri: "x" sdn_bitwidth: 32 }`, "translated type port_id_t"},
		{"not text format", "tables {", "tables", "syntax error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			broken := strings.Replace(string(text), tc.old, tc.new, 1)
			if broken == string(text) {
				t.Fatalf("sample has no %q", tc.old)
			}
			path := filepath.Join(t.TempDir(), "p4info.txtpb")
			if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := generate(path, "testdata/types.p4"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestGenerateRefusesAnEmptyP4Info(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p4info.txtpb")
	if err := os.WriteFile(path, []byte("tubles {}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := generate(path, ""); err == nil || !strings.Contains(err.Error(), "no tables") {
		t.Error(err)
	}
}

func TestParseSourceRefuses(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"member without value", "enum bit<8> Role { EDGE, TRUNK }", `cannot read member "EDGE"`},
		{"value too wide", "enum bit<2> Role { EDGE = 4 }", "out of range"},
		{"too wide", "enum bit<65> Role { EDGE = 4 }", "width 65"},
		{"constant", "const bit<16> ZONE_ANY = OTHER;", "ZONE_ANY"},
	} {
		if _, err := parseSource(tc.text); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestCamel(t *testing.T) {
	for in, want := range map[string]string{
		"session_v4": "SessionV4", "TAG_FORGED": "TagForged", "NoAction": "NoAction", "dst_mac": "DstMAC",
		"ipv4_valid": "IPv4Valid", "k0": "K0", "unid": "UNID", "egress.port": "EgressPort", "6to4": "X6to4",
		"RSA2048": "RSA2048", "sealed_256": "Sealed256",
	} {
		if got := camel(in); got != want {
			t.Errorf("camel(%q) = %q, want %q", in, got, want)
		}
	}
}
