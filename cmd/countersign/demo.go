package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"countersign/demo"
	"countersign/test/netlab"
)

func (a *app) demo() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "demo",
		Short: "Show everything on a network of namespaces",
		Long: `Build a network of namespaces with five firewalls on which requests and replies
take different paths, and show on real traffic: that connection state alone
fails there, that tags make it work, that forged ones are dropped, that keys
rotate without loss, and how fast a member is revoked. It prints one table; the
exit status is 1 where a row failed. It needs root, or user namespaces.`,
		Example: `  countersign demo
  countersign demo --suite ed25519 --json
  countersign demo --target bmv2`,
		Args: cobra.NoArgs,
	})
	var o demo.Options
	c.Flags().StringVar(&o.Target, "target", demo.Fallback, "`KIND` of data plane: "+demo.Fallback+" or "+demo.BMv2)
	c.Flags().Int64Var(&o.Size, "size", 0, "size of a download in `BYTES` (default: the target's)")
	suites := c.Flags().StringSlice("suite", nil, "`SUITES` to show (default: all)")
	c.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.Target != demo.Fallback && o.Target != demo.BMv2 {
			return usage("--target: %q is not %s or %s", o.Target, demo.Fallback, demo.BMv2)
		}
		if o.Size < 0 {
			return usage("--size: %d is negative", o.Size)
		}
		if o.Suites, err = suitesOf(*suites); err != nil {
			return err
		}
		if err := netlab.EnsurePrivileges(); err != nil {
			return err
		}
		if o.Program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		stop := func() {}
		if f, ok := a.stderr.(*os.File); ok && terminalWidth(f) > 0 {
			o.Progress, stop = demo.Bars(f)
		} else {
			o.Progress = demo.Lines(a.stderr)
		}
		r, err := demo.Run(cmd.Context(), o)
		stop()
		if r == nil {
			return err
		}
		colour := a.width > 0 && os.Getenv("NO_COLOR") == ""
		if a.json {
			return errors.Join(err, r.WriteJSON(a.stdout))
		}
		return errors.Join(err, r.WriteTable(a.stdout, colour))
	}
	return c
}
