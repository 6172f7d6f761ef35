// Command gen writes the generated part of package tables from a P4Info:
//
//	go run ./tables/gen -p4info p4src/build/countersign.p4info.txtpb -out tables
//
// The P4Info names the objects, their ids and widths. The serializable
// enumerations and the constants of the control plane's interface, of which
// p4c's P4Info says little, come from the P4 source given by -types.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	p4config "github.com/p4lang/p4runtime/go/p4/config/v1"
	"google.golang.org/protobuf/encoding/prototext"
)

func main() {
	info := flag.String("p4info", "p4src/build/countersign.p4info.txtpb", "P4Info in protobuf text format")
	types := flag.String("types", "p4src/types.p4", "P4 source with enumerations and constants; empty: none")
	out := flag.String("out", "tables", "directory to write the *.gen.go files to")
	flag.Parse()
	files, err := generate(*info, *types)
	if err == nil {
		err = write(*out, files)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// generate returns the generated files by name.
func generate(infoPath, typesPath string) (map[string][]byte, error) {
	text, err := os.ReadFile(infoPath)
	if err != nil {
		return nil, err
	}
	info := new(p4config.P4Info)
	// p4c may be newer than the Go bindings; what these do not have, such as
	// a table's initial_default_action, the generator does not use.
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, info); err != nil {
		return nil, fmt.Errorf("%s: %w", infoPath, err)
	}
	src := new(source)
	if typesPath != "" {
		text, err := os.ReadFile(typesPath)
		if err != nil {
			return nil, err
		}
		if src, err = parseSource(string(text)); err != nil {
			return nil, fmt.Errorf("%s: %w", typesPath, err)
		}
	}
	m, err := newModel(info, src)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", infoPath, err)
	}
	return m.print()
}

func write(dir string, files map[string][]byte) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
