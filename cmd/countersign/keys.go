package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"countersign/controller/admin"
	"countersign/directory"
	"countersign/directory/bundle"
	pb "countersign/directory/proto"
	"countersign/tag"
)

// adminFlag adds the flag of the controller's socket.
func adminFlag(c *cobra.Command) func() *admin.Client {
	const usual = "/run/countersign/controller.sock"
	path := c.Flags().String("admin", env("COUNTERSIGN_ADMIN", usual), "admin socket `PATH` of the controller (default: $COUNTERSIGN_ADMIN or "+usual+")")
	c.Flags().Lookup("admin").DefValue = ""
	return func() *admin.Client { return admin.NewClient(*path) }
}

func (a *app) keys() *cobra.Command {
	return group("keys", "Show and rotate keys",
		"Show the keys that a controller or the directory knows, and rotate them. Key\nmaterial is never shown.",
		"  countersign keys show\n  countersign keys rotate siphash\n  countersign keys rotate ed25519 --member fw2",
		a.keysShow(), a.keysRotate())
}

func (a *app) keysShow() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "show",
		Short: "Show keys and their states",
		Long: `Show the keys that tags may come under, with their issuers and states: those
that a controller has, or with --all those that the directory has.`,
		Example: `  countersign keys show
  countersign keys show --admin /run/countersign/fw2.sock --state current
  countersign keys show --all --json`,
		Args: cobra.NoArgs,
	})
	socket, call := adminFlag(c), operatorFlags(c)
	all := c.Flags().Bool("all", false, "ask the directory, as an operator")
	member := c.Flags().String("member", "", "keys of this `MEMBER` only")
	state := c.Flags().String("state", "", "keys in this `STATE` only: next, current, grace, echo_only, retired, revoked")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var want directory.KeyState
		if *state != "" {
			if err := want.UnmarshalText([]byte(*state)); err != nil {
				return usage("--state: %w", err)
			}
		}
		var keys []admin.Key
		var err error
		if *all {
			err = call(func(ctx context.Context, api pb.AdministrationClient) (err error) {
				keys, err = directoryKeys(ctx, api)
				return err
			})
		} else {
			keys, err = socket().Keys(cmd.Context())
		}
		if err != nil {
			return err
		}
		keys = slices.DeleteFunc(keys, func(k admin.Key) bool {
			return *member != "" && k.Member != *member || want != 0 && k.State != want
		})
		slices.SortStableFunc(keys, func(a, b admin.Key) int {
			return cmp.Or(cmp.Compare(a.Member, b.Member), cmp.Compare(a.Suite, b.Suite), cmp.Compare(a.UNID, b.UNID), cmp.Compare(a.Epoch, b.Epoch))
		})
		return a.print(keys, func(w io.Writer) error { return a.writeKeys(w, keys) })
	}
	return c
}

func (a *app) writeKeys(w io.Writer, keys []admin.Key) error {
	var rows [][]string
	for _, k := range keys {
		rows = append(rows, []string{
			k.Member, k.Site, k.Suite.String(), k.UNID, strconv.Itoa(int(k.Epoch)), k.State.String(),
			join(mark(k.Own, "own"), mark(!k.Known && k.State.Live(), "not received")),
		})
	}
	return a.table(w, []string{"member", "site", "suite", "unid", "epoch", "state", "notes"}, rows)
}

// directoryKeys lists what the directory knows of keys; it knows no material.
func directoryKeys(ctx context.Context, api pb.AdministrationClient) ([]admin.Key, error) {
	keys, err := api.Keys(ctx, &pb.KeysRequest{})
	if err != nil {
		return nil, err
	}
	members, err := api.List(ctx, &pb.ListRequest{})
	if err != nil {
		return nil, err
	}
	sites := map[string]string{}
	for _, m := range members.Members {
		sites[m.Member.GetName()] = m.Member.GetSite()
	}
	out := []admin.Key{}
	for _, k := range keys.Keys {
		s, err := bundle.ParseStatement(k.Statement)
		if err != nil {
			return nil, err
		}
		id := bundle.KeyIDOf(s.Id)
		out = append(out, admin.Key{
			Suite: id.Suite, UNID: fmt.Sprintf("%08x", id.UNID), Epoch: id.Epoch, State: directory.KeyState(k.State),
			Member: s.Member, Site: sites[s.Member], Known: true,
		})
	}
	return out, nil
}

// rotated is what `keys rotate --json` prints.
type rotated struct {
	Suite tag.Suite `json:"suite"`
	// Done is false while members have yet to acknowledge the next key.
	Done bool `json:"done"`
}

func (a *app) keysRotate() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "rotate SUITE",
		Short: "Sign with the next key",
		Long: `Make the next signing key of a suite current: the controller's own, or with
--member that of any member, by way of the directory. Where members have not
acknowledged the key yet it becomes current as soon as they have.`,
		Example: `  countersign keys rotate siphash
  countersign keys rotate ed25519 --member fw2 --operator alice.credential`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"siphash", "ed25519", "rsa2048"},
	})
	socket, call := adminFlag(c), operatorFlags(c)
	member := c.Flags().String("member", "", "rotate this `MEMBER`'s key, as an operator")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		suite, err := tag.ParseSuite(args[0])
		if err != nil {
			return usage("%q is not siphash, ed25519 or rsa2048", args[0])
		}
		r := rotated{Suite: suite}
		if *member == "" {
			r.Done, err = socket().Rotate(cmd.Context(), suite)
		} else {
			err = call(func(ctx context.Context, api pb.AdministrationClient) error {
				resp, err := api.Rotate(ctx, &pb.RotateRequest{Member: *member, Suite: pb.Suite(suite)})
				r.Done = resp.GetDone()
				return err
			})
		}
		if err != nil {
			return err
		}
		return a.print(r, func(w io.Writer) error {
			what := "the next key is current"
			if !r.Done {
				what = "the next key becomes current when every member has acknowledged it"
			}
			_, err := fmt.Fprintf(w, "%s: %s\n", suite, what)
			return err
		})
	}
	return c
}
