// Command compile runs p4c on the P4 program and writes the compiled files and
// their stamp: `make p4`, from the project's root.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"countersign/p4src/stamp"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "make p4:", err)
		os.Exit(1)
	}
}

func run() error {
	compiler, err := exec.LookPath("p4c-bm2-ss")
	if err != nil {
		return fmt.Errorf("p4c-bm2-ss is not on the PATH; the compiled program in p4src/build is checked in and needs no compiler: %w", err)
	}
	version, err := exec.Command(compiler, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w", compiler, err)
	}
	tmp, err := os.MkdirTemp("", "countersign-p4")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	out, info := filepath.Join(tmp, "out.json"), filepath.Join(tmp, "out.p4info.txtpb")
	cmd := exec.Command(compiler, "--std", "p4-16", "--p4runtime-files", info, "-o", out, "countersign.p4")
	cmd.Dir, cmd.Stdout, cmd.Stderr = "p4src", os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", compiler, err)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	if program, err = stamp.Strip(program, thin); err != nil {
		return err
	}
	p4info, err := os.ReadFile(info)
	if err != nil {
		return err
	}
	if err := os.WriteFile("p4src/build/countersign.json", program, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("p4src/build/countersign.p4info.txtpb", p4info, 0o644); err != nil {
		return err
	}
	_, v, _ := strings.Cut(string(version), "Version ")
	v, _, _ = strings.Cut(v, "\n")
	s, err := stamp.Of(os.DirFS("p4src"), "p4c-bm2-ss "+strings.TrimSpace(v))
	if err != nil {
		return err
	}
	return os.WriteFile("p4src/build/STAMP", []byte(s), 0o644)
}
