package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"countersign/controller/config"
	"countersign/replay"
)

func (a *app) replay() *cobra.Command {
	var file, mode string
	var inputs []string
	var lines bool
	o := replay.Options{}
	c := &cobra.Command{
		Use:   "replay -c FILE --in PORT=FILE.pcap … --out-dir DIR",
		Short: "Run captures through one data plane offline",
		Long: `Run captures through one data plane offline, with the configuration of a
controller: the software data plane in memory, and with --punts decide the
controller's real decisions. Time is the captures'; equal inputs and an equal
--seed give equal outputs.

The configuration has static members and keys in the directory's place. PORT is
a port's number or name in it. Captures are pcap (also gzipped) or pcapng files
with Ethernet headers, at most one for each port; their packets are merged by
time.

DIR is made where it does not exist, and gets

  port-N.pcap      what leaves by port N, for each port of the data plane
  verdicts.jsonl   a JSON line for each packet

The lines go to standard output too; --json=false prints totals in their place.
A line has number and port of the packet, verdict (forward, drop, punt), reason,
egress_port and stage; punted says why the controller decided about it. Packets
that the controller sends (answers to ARP, ICMP errors) have from: "controller".

The exit status is 1 where a capture could not be read to its end: what was
readable is replayed, and the error names file and packet.`,
		Example: `  countersign replay -c fw1.yaml --in 1=inside.pcap --in trunk=trunk.pcapng --out-dir out
  countersign replay -c fw1.yaml --in 1=inside.pcap --out-dir out --punts report | jq -c 'select(.verdict != "forward")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Punts, err = replay.ParseMode(mode); err != nil {
				return usage("--punts: %w", err)
			}
			for _, s := range inputs {
				in, err := replay.ParseInput(s)
				if err != nil {
					return usage("--in: %w", err)
				}
				o.Inputs = append(o.Inputs, in)
			}
			if o.Config, err = config.Load(file); err != nil {
				return err
			}
			if lines {
				o.Lines = a.stdout
			}
			sum, err := replay.Run(cmd.Context(), o)
			if sum.Cut > 0 {
				fmt.Fprintf(a.stderr, "countersign: %d packets are not whole in their capture, and judged by what there is of them\n", sum.Cut)
			}
			if err != nil || lines {
				return err
			}
			return fields(a.stdout, "packets", fmt.Sprint(sum.Packets), "forwarded", fmt.Sprint(sum.Forwarded),
				"dropped", fmt.Sprint(sum.Dropped), "punted", fmt.Sprint(sum.Punted),
				"sent by the controller", fmt.Sprint(sum.Sent), "verdicts", filepath.Join(o.OutDir, replay.VerdictsFile))
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `FILE` of the controller, with static members and keys")
	f.StringArrayVar(&inputs, "in", nil, "`PORT=FILE` of a capture of what comes in by a port; once for each port")
	f.StringVar(&o.OutDir, "out-dir", "", "`DIR` for the captures of what leaves, and for the verdicts")
	f.StringVar(&o.Device, "device", "", "`NAME` of the data plane in the configuration (default: the first)")
	f.StringVar(&mode, "punts", string(replay.Decide), "`MODE` for punted packets: decide (by the controller's code), report (their way ends there)")
	f.Uint64Var(&o.Seed, "seed", 1, "`NUMBER` that nonces are drawn from")
	f.BoolVar(&lines, "json", true, "print the JSON lines on standard output, too")
	for _, name := range []string{"config", "in", "out-dir"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return c
}
