// Package stamp ties the compiled P4 program to its sources: which files, with
// which contents, by which compiler.
package stamp

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"
)

// ErrStale is returned by Check where the compiled files do not belong to the
// sources.
var ErrStale = errors.New("compiled P4 program is stale, run make p4")

// Of returns the stamp of the P4 sources in fsys and of the compiled files
// under build/, for a compiler that calls itself so: a line "compiler NAME",
// then "sha256 HEX FILE" for each file in order.
func Of(fsys fs.FS, compiler string) (string, error) {
	sources, err := fs.Glob(fsys, "*.p4")
	if err != nil {
		return "", err
	}
	files := append(sources, "build/countersign.json", "build/countersign.p4info.txtpb")
	sort.Strings(files)
	var b strings.Builder
	fmt.Fprintf(&b, "compiler %s\n", compiler)
	for _, name := range files {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "sha256 %x %s\n", sha256.Sum256(data), name)
	}
	return b.String(), nil
}

// Check compares the stamp with the files in fsys. It returns ErrStale with
// the first line that differs.
func Check(fsys fs.FS, stamp string) error {
	first, _, _ := strings.Cut(stamp, "\n")
	compiler, ok := strings.CutPrefix(first, "compiler ")
	if !ok {
		return fmt.Errorf("%w: the stamp names no compiler", ErrStale)
	}
	want, err := Of(fsys, compiler)
	if err != nil {
		return err
	}
	if want == stamp {
		return nil
	}
	have := map[string]bool{}
	for _, line := range strings.Split(stamp, "\n") {
		have[line] = true
	}
	for _, line := range strings.Split(want, "\n") {
		if !have[line] {
			return fmt.Errorf("%w: now %q", ErrStale, line)
		}
	}
	return fmt.Errorf("%w: the stamp names a file that is gone", ErrStale)
}

// Strip returns p4c's JSON without source positions, which are two thirds of
// it and change with every comment, one top-level element a line. Edits may
// change the rest.
func Strip(data []byte, edits ...func(program map[string]any)) ([]byte, error) {
	var program map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&program); err != nil {
		return nil, fmt.Errorf("compiled program: %w", err)
	}
	for _, edit := range edits {
		edit(program)
	}
	keys := make([]string, 0, len(program))
	for k := range program {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	b.WriteString("{\n")
	for i, k := range keys {
		v, err := json.Marshal(strip(program[k]))
		if err != nil {
			return nil, err
		}
		sep := ",\n"
		if i == len(keys)-1 {
			sep = "\n"
		}
		fmt.Fprintf(&b, "%q: %s%s", k, v, sep)
	}
	b.WriteString("}\n")
	return []byte(b.String()), nil
}

func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "source_info")
		for k := range v {
			v[k] = strip(v[k])
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
	}
	return v
}
