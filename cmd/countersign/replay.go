package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"countersign/controller/config"
	"countersign/replay"
)

func (a *app) replay() *cobra.Command {
	var o replay.Options
	c := &cobra.Command{
		Use:   "replay",
		Short: "Run captures through a data plane offline",
		Long: `Run captures through one data plane offline, with the configuration of a
controller: the software data plane in memory, and with --punts decide the
controller's real decisions. Time is the captures'; equal inputs and an equal
--seed give equal outputs.

The configuration has static members and keys in the directory's place. PORT is
a port's number or name in it. Captures are pcap or pcapng files with Ethernet
headers, at most one for each port; their packets are merged by time.

DIR is made where it does not exist, and gets

  port-N.pcap      what leaves by port N, for each port of the data plane
  verdicts.jsonl   a JSON line for each packet

The lines go to standard output too; --json=false prints totals in their place.
A line has number and port of the packet, verdict (forward, drop, punt), reason,
egress_port and stage; punted says why the controller decided about it. Packets
that the controller sends (answers to ARP, ICMP errors) have from: "controller".

The exit status is 1 where a capture could not be read to its end: what was
readable is replayed, and the error names file and packet.`,
		Example: `  countersign replay -c fw1.yaml --in 1=lan.pcap --in trunk=trunk.pcapng --out-dir out
  countersign replay -c fw1.yaml --in 1=lan.pcap --out-dir out --punts report | jq -c 'select(.verdict != "forward")'`,
		Args: cobra.NoArgs,
	}
	path := c.Flags().StringP("config", "c", "", "YAML `FILE` with the configuration, which has static members and keys")
	in := c.Flags().StringArray("in", nil, "capture of what came in by a port, `PORT=FILE`; once for each")
	c.Flags().StringVar(&o.OutDir, "out-dir", "", "`DIR` for the captures of what leaves, and for the verdicts")
	c.Flags().StringVar(&o.Device, "device", "", "`NAME` of the data plane in the configuration (default: the first)")
	punts := c.Flags().String("punts", string(replay.Decide), "`MODE` of punted packets: decide, or report (their way ends there)")
	c.Flags().Uint64Var(&o.Seed, "seed", 1, "`NUMBER` that nonces are drawn from")
	lines := c.Flags().Bool("json", true, "print the JSON lines on standard output, too")
	c.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if *path == "" || len(*in) == 0 || o.OutDir == "" {
			return usage("replay needs --config FILE, --in PORT=FILE and --out-dir DIR")
		}
		if o.Punts, err = replay.ParseMode(*punts); err != nil {
			return usage("--punts: %w", err)
		}
		for _, s := range *in {
			input, err := replay.ParseInput(s)
			if err != nil {
				return usage("--in: %w", err)
			}
			o.Inputs = append(o.Inputs, input)
		}
		if o.Config, err = config.Load(*path); err != nil {
			return err
		}
		if o.Log, err = a.logger(); err != nil {
			return err
		}
		if *lines {
			o.Lines = a.stdout
		}
		s, err := replay.Run(cmd.Context(), o)
		if s.Cut > 0 {
			fmt.Fprintf(a.stderr, "countersign: %d packets are not whole in their capture, and judged by what there is of them\n", s.Cut)
		}
		if *lines || s.Packets == 0 && err != nil {
			return err
		}
		if perr := fields(a.stdout, "packets", fmt.Sprint(s.Packets), "forwarded", fmt.Sprint(s.Forwarded),
			"dropped", fmt.Sprint(s.Dropped), "punted", fmt.Sprint(s.Punted),
			"sent by the controller", fmt.Sprint(s.Sent), "verdicts", filepath.Join(o.OutDir, replay.VerdictsFile)); err == nil {
			err = perr
		}
		return err
	}
	return c
}
