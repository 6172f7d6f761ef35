package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"countersign/controller/admin"
	"countersign/controller/config"
	"countersign/tag"
)

// tableRows is how many sessions one table holds; longer lists are several, so
// that they need no memory.
const tableRows = 1000

func (a *app) sessions() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "sessions",
		Short: "List a controller's sessions",
		Long: `List the sessions that a controller has admitted, or heard of from its
siblings, in no particular order. With --json each line is an object.`,
		Example: `  countersign sessions
  countersign sessions --protocol tcp --port 443 --prefix 10.1.0.0/16
  countersign sessions --origin fw2 --json | jq .low
  countersign sessions kill tcp 10.1.0.7:40112 192.0.2.80:443`,
		Args: cobra.ArbitraryArgs,
	})
	socket := adminFlag(c)
	var f admin.Filter
	protocol := c.Flags().String("protocol", "", "sessions of this `PROTOCOL` only, by name or number")
	prefix := c.Flags().String("prefix", "", "sessions with an end in this `PREFIX` only")
	c.Flags().Uint16Var(&f.Port, "port", 0, "sessions with this `PORT` only")
	c.Flags().StringVar(&f.Zone, "zone", "", "sessions of this `ZONE` only")
	c.Flags().StringVar(&f.Origin, "origin", "", "sessions that this sibling `MEMBER` announced only")
	c.Flags().Uint64Var(&f.Skip, "skip", 0, "leave out the first `N`")
	c.Flags().Uint64Var(&f.Limit, "limit", 0, "list at most `N` (default all)")
	c.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if len(args) > 0 {
			return missingCommand(cmd, args)
		}
		if *protocol != "" {
			if f.Protocol, err = protocolNumber(*protocol); err != nil {
				return usage("--protocol: %w", err)
			}
		}
		if *prefix != "" {
			if f.Prefix, err = netip.ParsePrefix(*prefix); err != nil {
				return usage("--prefix: %q is not a prefix", *prefix)
			}
		}
		enc := json.NewEncoder(a.stdout)
		var rows [][]string
		for s, err := range socket().Sessions(cmd.Context(), f) {
			if err != nil {
				return err
			}
			if a.json {
				if err := enc.Encode(&s); err != nil {
					return err
				}
				continue
			}
			if rows = append(rows, sessionRow(&s)); len(rows) == tableRows {
				if err := a.writeSessions(a.stdout, rows); err != nil {
					return err
				}
				rows = rows[:0]
			}
		}
		if a.json || len(rows) == 0 {
			return nil
		}
		return a.writeSessions(a.stdout, rows)
	}
	c.AddCommand(a.sessionsKill())
	return c
}

// protocolNumber reads an IP protocol's name or number.
func protocolNumber(s string) (uint8, error) {
	p, any, err := config.ParseProtocol(s)
	if err == nil && any {
		err = fmt.Errorf("%q is not a protocol", s)
	}
	return p, err
}

func (a *app) writeSessions(w io.Writer, rows [][]string) error {
	return a.table(w, []string{"proto", "from", "to", "zones", "age", "origin", "issuer", "notes"}, rows)
}

func sessionRow(s *admin.Session) []string {
	from, to := s.Initiator()
	zones := s.HighZone + " → " + s.LowZone
	if s.InitiatorLow {
		zones = s.LowZone + " → " + s.HighZone
	}
	kind := ""
	switch s.Kind {
	case tag.KindICMPOther:
		kind = " other"
	case tag.KindFragment:
		kind = " fragment"
	}
	return []string{
		protocolName(s.Protocol) + kind, from.String(), to.String(), zones, span(time.Duration(s.Age)), s.Origin, s.Issuer,
		join(mark(!s.Installed, "not installed"), mark(s.Delivered, "delivered"), mark(s.Closing, "closing")),
	}
}

func (a *app) sessionsKill() *cobra.Command {
	c := &cobra.Command{
		Use:   "kill PROTOCOL ADDRESS:PORT ADDRESS:PORT",
		Short: "End a session",
		Long: `Remove a session from a controller, its data planes and its siblings; its ends
may be given in either order. Its next packet is judged anew. The exit status is
1 where there is no such session.`,
		Example: `  countersign sessions kill tcp 10.1.0.7:40112 192.0.2.80:443
  countersign sessions kill udp '[2001:db8::1]:5353' '[2001:db8::2]:53'`,
		Args: cobra.ExactArgs(3),
	}
	socket := adminFlag(c)
	kind := c.Flags().Uint16("kind", 0, "`KIND` of the five-tuple: 0, or 1 for ICMP other than echo, or 2 for a fragment")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		t := admin.FiveTuple{Kind: *kind}
		var err error
		if t.Protocol, err = protocolNumber(args[0]); err != nil {
			return &usageError{err}
		}
		for i, end := range []*netip.AddrPort{&t.A, &t.B} {
			if *end, err = netip.ParseAddrPort(args[i+1]); err != nil {
				return usage("%q is not ADDRESS:PORT", args[i+1])
			}
		}
		if _, err := t.Tuple(); err != nil {
			return &usageError{err}
		}
		killed, err := socket().KillSession(cmd.Context(), t)
		switch {
		case err != nil:
			return err
		case !killed:
			return fmt.Errorf("no session %s", fmt.Sprint(args))
		}
		_, err = fmt.Fprintln(a.stdout, "killed")
		return err
	}
	return c
}
