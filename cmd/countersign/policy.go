package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"countersign/controller/compile"
	"countersign/controller/config"
	"countersign/directory"
	"countersign/tables"
)

func (a *app) policy() *cobra.Command {
	return group("policy", "Check a controller's configuration, show what it compiles to",
		"Look at a controller's configuration without running it.",
		"  countersign policy check /etc/countersign/fw1.yaml\n  countersign policy show --table policy_v4 /etc/countersign/fw1.yaml",
		a.policyCheck(), a.policyShow())
}

// compiled is what a configuration makes of one device.
type compiled struct {
	Device string `json:"device"`
	// Entries is how many entries each table gets.
	Counts map[string]int `json:"tables"`
	list   []tables.Entry
}

// compileFile reads a configuration and compiles it for each of its devices.
// Keys are those of static members only: a directory's come at run time.
func compileFile(path string) (*config.Config, []compiled, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, nil, err
	}
	var snap *directory.Snapshot
	if cfg.Static != nil {
		if snap, err = cfg.Static.Snapshot(cfg.Member); err != nil {
			return nil, nil, cfg.At("static", err)
		}
	}
	var all []compiled
	for i, d := range cfg.Devices {
		list, err := compile.Entries(cfg, d.Name, compile.Static(cfg), snap)
		if err == nil {
			_, err = compile.Entities(list)
		}
		if err != nil {
			return nil, nil, cfg.At(fmt.Sprintf("devices[%d]", i), err)
		}
		c := compiled{Device: d.Name, Counts: map[string]int{}, list: list}
		for _, e := range list {
			t, err := tables.TableByID(e.TableID())
			if err != nil {
				return nil, nil, cfg.At(fmt.Sprintf("devices[%d]", i), err)
			}
			if c.Counts[t.Alias]++; int64(c.Counts[t.Alias]) > t.Size {
				return nil, nil, cfg.At(fmt.Sprintf("devices[%d]", i), fmt.Errorf("table %s holds %d entries, more are needed", t.Alias, t.Size))
			}
		}
		all = append(all, c)
	}
	return cfg, all, nil
}

func (a *app) policyCheck() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "check FILE",
		Short: "Check a controller's configuration",
		Long: `Check a controller's configuration and compile it for each of its devices. It
prints OK and how many entries each device gets, or the first error with file,
line and key; the exit status is 1 then.`,
		Example: "  countersign policy check /etc/countersign/fw1.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, all, err := compileFile(args[0])
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				for _, c := range all {
					if _, err := fmt.Fprintf(w, "device %s: %d entries (%s)\n", c.Device, len(c.list), counts(c.Counts)); err != nil {
						return err
					}
				}
				_, err := fmt.Fprintf(w, "%s: OK\n", args[0])
				return err
			})
		},
	})
}

// counts lists tables with their entries in the order of the pipeline.
func counts(n map[string]int) string {
	var parts []string
	for _, t := range tables.Tables() {
		if n[t.Alias] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", t.Alias, n[t.Alias]))
		}
	}
	return strings.Join(parts, ", ")
}

// deviceEntries is what `policy show --json` prints of one device.
type deviceEntries struct {
	Device  string      `json:"device"`
	Entries []entryText `json:"entries"`
}

func (a *app) policyShow() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "show FILE",
		Short: "Show the entries that a configuration compiles to",
		Long: `Show, for each device, the static entries that a controller's configuration
compiles to, in the order of the pipeline, with zones by name. Key material is
not shown. Neighbours that are found, sessions, and keys that come from a
directory appear at run time only.`,
		Example: `  countersign policy show /etc/countersign/fw1.yaml
  countersign policy show --table policy_v4 /etc/countersign/fw1.yaml
  countersign policy show --device north --json /etc/countersign/fw1.yaml`,
		Args: cobra.ExactArgs(1),
	})
	var device string
	var only []string
	c.Flags().StringVar(&device, "device", "", "show this `DEVICE` only")
	c.Flags().StringSliceVar(&only, "table", nil, "show these `TABLES` only")
	c.RunE = func(_ *cobra.Command, args []string) error {
		for _, name := range only {
			if _, err := tables.TableByName(name); err != nil {
				return usage("--table: %w", err)
			}
		}
		cfg, all, err := compileFile(args[0])
		if err != nil {
			return err
		}
		zones := map[uint64]string{}
		for name, id := range cfg.Zones() {
			zones[uint64(id)] = name
		}
		shown := []deviceEntries{}
		for _, c := range all {
			if device != "" && device != c.Device {
				continue
			}
			d := deviceEntries{Device: c.Device, Entries: []entryText{}}
			for _, e := range c.list {
				t, err := describe(e, zones)
				if err != nil {
					return err
				}
				if len(only) == 0 || slices.Contains(only, t.Table) {
					d.Entries = append(d.Entries, t)
				}
			}
			slices.SortStableFunc(d.Entries, func(a, b entryText) int { return cmp.Compare(a.place, b.place) })
			shown = append(shown, d)
		}
		if len(shown) == 0 {
			return fmt.Errorf("%s: no device %q", args[0], device)
		}
		return a.print(shown, func(w io.Writer) error {
			for i, d := range shown {
				if i > 0 {
					fmt.Fprintln(w)
				}
				fmt.Fprintf(w, "device %s: %d entries\n\n", d.Device, len(d.Entries))
				var rows [][]string
				for _, e := range d.Entries {
					rows = append(rows, e.row())
				}
				if err := a.table(w, []string{"table", "prio", "match", "action"}, rows); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return c
}
