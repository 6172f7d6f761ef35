package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"countersign/p4src"
)

// versionInfo is what `version --json` prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// Pipeline is the P4 compiler, and the SHA-256 of the stamp that names all
	// sources and results.
	Pipeline struct {
		Compiler string `json:"compiler"`
		Stamp    string `json:"stamp_sha256"`
	} `json:"pipeline"`
}

func (a *app) version() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "version",
		Short: "Print version, revision and pipeline",
		Long:  "Print the version of the program, the revision it was built from, and the\ncompiler and stamp of the P4 pipeline that it holds.",
		Example: `  countersign version
  countersign version --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := currentVersion()
			return a.print(v, func(w io.Writer) error {
				return fields(w, "countersign", v.Version, "revision", v.Revision+mark(v.Modified, " (modified)"),
					"time", v.Time, "go", v.Go+" "+v.Platform, "pipeline", v.Pipeline.Compiler, "stamp", v.Pipeline.Stamp)
			})
		},
	})
}

func currentVersion() (v versionInfo) {
	v.Version, v.Go, v.Platform = "(devel)", runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
	if b, ok := debug.ReadBuildInfo(); ok {
		if b.Main.Version != "" {
			v.Version = b.Main.Version
		}
		for _, s := range b.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = s.Value
			case "vcs.time":
				v.Time = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	first, _, _ := strings.Cut(string(p4src.Stamp), "\n")
	v.Pipeline.Compiler = strings.TrimPrefix(first, "compiler ")
	sum := sha256.Sum256(p4src.Stamp)
	v.Pipeline.Stamp = hex.EncodeToString(sum[:])
	return v
}
