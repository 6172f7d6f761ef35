package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"countersign/packet"
	"countersign/tag/check"
	"countersign/tag/decode"
)

func (a *app) tag() *cobra.Command {
	return group("tag", "Check tag vectors, decode tags in captures",
		"Check vectors of tags, and list the tags in a capture.",
		"  countersign tag check tag-v1.json\n  countersign tag decode trunk.pcap",
		a.tagCheck(), a.tagDecode())
}

// checkedFile is what `tag check --json` prints of one file.
type checkedFile struct {
	File string `json:"file"`
	*check.Report
}

func (a *app) tagCheck() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "check FILE…",
		Short: "Run vectors files in both directions",
		Long: `Run vectors files of the shape of tag-v1.json: messages, digests and tags bit
for bit, invalid ones by their reason, whole packets tagged and stripped. Each
failure is printed with its name, then the totals. FILE may be - for standard
input. The exit status is 1 where anything failed.`,
		Example: `  countersign tag check tag-v1.json
  countersign tag check --json others/*.json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			all := []checkedFile{}
			ok := true
			for _, name := range args {
				r, err := checkFile(a, name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				ok = ok && r.Failed() == 0
				all = append(all, checkedFile{name, r})
			}
			err := a.print(all, func(w io.Writer) error {
				for _, f := range all {
					head := ""
					if len(all) > 1 {
						head = f.File + ": "
					}
					for _, e := range f.Failures {
						fmt.Fprintf(w, "%s%s: %s\n", head, printable(e.Name), oneLine(e.Why))
					}
					if _, err := fmt.Fprintf(w, "%s%s\n", head, f.Report); err != nil {
						return err
					}
				}
				return nil
			})
			if err == nil && !ok {
				return errNegative
			}
			return err
		},
	})
}

func checkFile(a *app, name string) (*check.Report, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := check.Run(f)
	if r != nil && r.Failures == nil {
		r.Failures = []check.Failure{}
	}
	return r, err
}

// open opens a file for reading; - is standard input. Its errors lack the name.
func (a *app) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(a.stdin), nil
	}
	f, err := os.Open(name)
	return f, bare(err)
}

// bare is the reason of an error about a file, without operation and name.
func bare(err error) error {
	if e, ok := err.(*os.PathError); ok {
		return e.Err
	}
	return err
}

// carrierFlags adds the flags that say how tags are announced; the function
// returned reads them.
func carrierFlags(c *cobra.Command) func() (packet.Carrier, error) {
	var kind string
	carrier := packet.DefaultCarrier
	c.Flags().StringVar(&kind, "carrier", "ip", "`KIND` of carrier: ip or udp")
	c.Flags().Uint8Var(&carrier.Protocol, "protocol", carrier.Protocol, "IP protocol `NUMBER` of carrier ip")
	c.Flags().Uint16Var(&carrier.Port, "port", carrier.Port, "destination `PORT` of carrier udp")
	return func() (packet.Carrier, error) {
		if kind != "ip" && kind != "udp" {
			return carrier, usage("--carrier: %q is not ip or udp", kind)
		}
		carrier.UDP = kind == "udp"
		if err := carrier.Validate(); err != nil {
			return carrier, &usageError{err}
		}
		return carrier, nil
	}
}

func (a *app) tagDecode() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "decode FILE",
		Short: "Print the tags in a capture",
		Long: `Print the tags in a pcap or pcapng file: one line for each packet that has a
tag, or one that is refused, then totals on standard error. FILE may be - for
standard input. With --json each line is an object.`,
		Example: `  countersign tag decode trunk.pcap
  countersign tag decode --carrier udp --port 25300 --json trunk.pcapng
  tcpdump -i eth1 -w - | countersign tag decode -`,
		Args: cobra.ExactArgs(1),
	})
	carrier := carrierFlags(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		cr, err := carrier()
		if err != nil {
			return err
		}
		f, err := a.open(args[0])
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		defer f.Close()
		enc := json.NewEncoder(a.stdout)
		s, err := decode.Decode(f, cr, func(r *decode.Record) error {
			if a.json {
				return enc.Encode(r)
			}
			_, err := fmt.Fprintln(a.stdout, r)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		_, err = fmt.Fprintln(a.stderr, s)
		return err
	}
	return c
}
