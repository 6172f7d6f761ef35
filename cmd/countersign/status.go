package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/controller/admin"
)

func (a *app) status() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "Show a controller's state",
		Long: `Show the state of a controller: its data planes, its directory and siblings,
how many sessions it holds, and the keys that it signs with.`,
		Example: `  countersign status
  countersign status --admin /run/countersign/fw2.sock
  countersign status --json | jq -e 'all(.devices[]; .phase == "synced")'`,
		Args: cobra.NoArgs,
	})
	socket := adminFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := socket().Status(cmd.Context())
		if err != nil {
			return err
		}
		return a.print(s, func(w io.Writer) error { return a.writeStatus(w, &s) })
	}
	return c
}

func (a *app) writeStatus(w io.Writer, s *admin.Status) error {
	var signing []string
	for _, k := range s.Signing {
		signing = append(signing, fmt.Sprintf("%s/%s/%d %s", k.Suite, k.UNID, k.Epoch, k.State))
	}
	err := fields(w,
		"member", s.Member+mark(s.Alliance != "", " of "+s.Alliance),
		"site", s.Site,
		"up", span(time.Duration(s.Uptime))+" since "+moment(s.Started),
		"sessions", strconv.Itoa(s.Sessions),
		"signing", strings.Join(signing, ", "),
		"directory", directoryText(s.Directory),
	)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, d := range s.Devices {
		rows = append(rows, []string{d.Name, d.Address, d.Phase, strconv.FormatUint(d.Generation, 10), strconv.FormatUint(d.Revision, 10), d.Error})
	}
	fmt.Fprintln(w)
	if err := a.table(w, []string{"device", "address", "phase", "generation", "revision", "error"}, rows); err != nil || len(s.Siblings) == 0 {
		return err
	}
	rows = nil
	for _, p := range s.Siblings {
		rows = append(rows, []string{
			p.Name, p.Address, yes(p.Connected), yes(p.Hearing), strconv.Itoa(p.Queued),
			strconv.FormatUint(p.Sent, 10), strconv.FormatUint(p.Dropped, 10), p.Error,
		})
	}
	fmt.Fprintln(w)
	return a.table(w, []string{"sibling", "address", "connected", "hearing", "queued", "sent", "dropped", "error"}, rows)
}

func directoryText(d *admin.Directory) string {
	if d == nil {
		return "none, keys are static"
	}
	state := "not connected"
	if d.Connected {
		state = "connected"
	}
	text := strings.TrimSpace(d.Address + " " + state)
	if d.Version == 0 {
		return text + ", no bundle"
	}
	text += fmt.Sprintf(", version %d, sequence %d, %s old", d.Version, d.Sequence, span(time.Duration(d.Age)))
	switch {
	case d.Expired:
		return text + ", EXPIRED " + moment(d.Expiry)
	case !d.Expiry.IsZero():
		return text + ", valid until " + moment(d.Expiry)
	}
	return text
}
