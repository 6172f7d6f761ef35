package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/bundle"
	"countersign/directory/client"
	"countersign/directory/clock"
	pb "countersign/directory/proto"
	"countersign/tag"
)

func (a *app) member() *cobra.Command {
	excluded := "\nIts keys go from every data plane, and every key that it held is replaced at\nonce, in one version of the bundle."
	return group("member", "Invite, list and exclude members",
		"Say at the directory who is a member. All but join need an operator's\ncredential.",
		"  countersign member invite fw1 --site hq\n  countersign member list\n  countersign member revoke fw1",
		a.memberInvite(), a.memberJoin(), a.memberList(),
		a.memberChange("suspend", "suspended", "Exclude a member until it is resumed", "Exclude a member until it is resumed."+excluded, pb.AdministrationClient.Suspend),
		a.memberChange("resume", "resumed", "Take a suspended member back", "Take a suspended member back.", pb.AdministrationClient.Resume),
		a.memberChange("revoke", "revoked", "Exclude a member for good", "Exclude a member for good."+excluded, pb.AdministrationClient.Revoke),
		a.memberChange("remove", "removed", "Forget a revoked member", "Forget a revoked member whose tombstones are gone; its name is free then.", pb.AdministrationClient.Remove),
	)
}

// suitesOf reads the names of suites.
func suitesOf(names []string) (out []tag.Suite, err error) {
	for _, n := range names {
		s, err := tag.ParseSuite(n)
		if err != nil {
			return nil, usage("--suite: %q is not siphash, ed25519 or rsa2048", n)
		}
		out = append(out, s)
	}
	return out, nil
}

// suiteNames names the suites of a message.
func suiteNames(suites []pb.Suite) []string {
	names := make([]string, len(suites))
	for i, s := range suites {
		names[i] = tag.Suite(s).String()
	}
	return names
}

// invitation is what `member invite --json` prints; the token is in the file.
type invitation struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	TokenFile string    `json:"token_file"`
	Expiry    time.Time `json:"expiry"`
}

func (a *app) memberInvite() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "invite NAME",
		Short: "Make a one-time token for a new member or operator",
		Long: `Make a one-time token with which NAME enrols. The token is a secret: it is
written to a file of mode 0600 that must not exist yet, and is to be carried to
the new member (directory.token_file of its configuration) or operator
("member join"). With --token-file - it goes to standard output.`,
		Example: `  countersign member invite fw1 --site hq --sibling fw1.example.net:7444
  countersign member invite fw2 --suite ed25519 --lifetime 10m --token-file /tmp/fw2.token
  countersign member invite alice --role reader --token-file - | ssh alice@example.net 'cat > token'`,
		Args: cobra.ExactArgs(1),
	})
	call := operatorFlags(c)
	req := &pb.InviteRequest{}
	c.Flags().StringVar(&req.Site, "site", "", "`SITE` of the member (default: its name)")
	c.Flags().StringVar(&req.Sibling, "sibling", "", "`HOST:PORT` of its controller for its siblings")
	c.Flags().StringSliceVar(&req.Recipients, "recipient", nil, "`MEMBERS` that receive its keys (default: all)")
	suites := c.Flags().StringSlice("suite", nil, "`SUITES` that it may sign with (default: siphash)")
	role := c.Flags().String("role", "member", "`ROLE`: member, operator or reader")
	lifetime := c.Flags().Duration("lifetime", 0, "how long the token is good (default: the directory's)")
	file := c.Flags().String("token-file", "", "`FILE` to write the token to (default NAME.token)")
	c.RunE = func(_ *cobra.Command, args []string) error {
		if err := directory.CheckName(args[0]); err != nil {
			return &usageError{err}
		}
		n, ok := pb.Role_value["ROLE_"+strings.ToUpper(*role)]
		if !ok || n == 0 {
			return usage("--role: %q is not member, operator or reader", *role)
		}
		if *file == "-" && a.json {
			return usage("--token-file - and --json both want standard output")
		}
		list, err := suitesOf(*suites)
		if err != nil {
			return err
		}
		if len(list) == 0 && *role == "member" {
			list = []tag.Suite{tag.Siphash}
		}
		for _, s := range list {
			req.Suites = append(req.Suites, pb.Suite(s))
		}
		req.Name, req.Role, req.LifetimeNano = args[0], pb.Role(n), int64(*lifetime)
		path := cmp.Or(*file, args[0]+".token")
		var out io.WriteCloser = nopCloser{a.stdout}
		if path != "-" {
			// First, so that no token is made that cannot be kept.
			if out, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
				return fmt.Errorf("token file %s: %w", path, bare(err))
			}
		}
		var resp *pb.InviteResponse
		err = call(func(ctx context.Context, api pb.AdministrationClient) (err error) {
			resp, err = api.Invite(ctx, req)
			return err
		})
		if err == nil {
			_, err = fmt.Fprintln(out, resp.Token)
		}
		if err = errors.Join(err, out.Close()); err != nil {
			if path != "-" {
				err = errors.Join(err, os.Remove(path))
			}
			return err
		}
		if path == "-" {
			return nil
		}
		inv := invitation{Name: req.Name, Role: *role, TokenFile: path, Expiry: unixNano(resp.ExpiryUnixNano)}
		return a.print(inv, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s %s invited until %s: the token is in %s\n", inv.Role, inv.Name, moment(inv.Expiry), inv.TokenFile)
			return err
		})
	}
	return c
}

// nopCloser is a writer that something else closes.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (a *app) memberJoin() *cobra.Command {
	c := &cobra.Command{
		Use:   "join",
		Short: "Redeem a token",
		Long: `Redeem a one-time token. A member's identity is made in --state, which is
directory.state of its controller's configuration; a controller with
directory.token_file does the same by itself. An operator's credential is
written to --credential.`,
		Example: `  countersign member join --token-file fw1.token --state /var/lib/countersign/fw1
  countersign member join --token-file alice.token --credential alice.credential`,
		Args: cobra.NoArgs,
	}
	token := c.Flags().String("token-file", "", "`FILE` with the token, - for standard input")
	state := c.Flags().String("state", "", "state `DIR` of the new member")
	key := c.Flags().String("key-file", "", "`FILE` with the 32 bytes that encrypt its keys (default DIR/state.key)")
	credential := c.Flags().String("credential", "", "`FILE` for an operator's credential")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if *token == "" || (*state == "") == (*credential == "") {
			return usage("join needs --token-file, and --state (members) or --credential (operators)")
		}
		f, err := a.open(*token)
		if err != nil {
			return fmt.Errorf("token file %s: %w", *token, err)
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, 1<<16))
		if err != nil {
			return fmt.Errorf("token file %s: %w", *token, bare(err))
		}
		t, err := authority.ParseToken(string(text))
		if err != nil {
			return fmt.Errorf("token file %s: %w", *token, err)
		}
		if member := t.Role == authority.Member; member != (*state != "") {
			return usage("this is a %s: give %s", t, map[bool]string{true: "--state", false: "--credential"}[member])
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		if *credential != "" {
			if err := client.JoinOperator(ctx, string(text), *credential, clock.System{}); err != nil {
				return said(err)
			}
			_, err = fmt.Fprintf(a.stdout, "%s %s: the credential is in %s\n", t.Role, t.Name, *credential)
			return err
		}
		log, err := a.logger()
		if err != nil {
			return err
		}
		m, err := client.Open(client.Config{State: *state, KeyFile: *key, Log: log})
		if err != nil {
			return err
		}
		if err := m.Join(ctx, string(text)); err != nil {
			return said(err)
		}
		_, err = fmt.Fprintf(a.stdout, "member %s of %s: the identity is in %s\n", t.Name, m.Snapshot().Alliance, *state)
		return err
	}
	return c
}

// memberRow is a member as `member list` shows it.
type memberRow struct {
	Name         string    `json:"name"`
	Site         string    `json:"site"`
	State        string    `json:"state"`
	UNIDs        []string  `json:"unids"`
	Suites       []string  `json:"suites"`
	Sibling      string    `json:"sibling,omitempty"`
	Recipients   []string  `json:"recipients,omitempty"`
	Connected    bool      `json:"connected"`
	Acknowledged uint64    `json:"acknowledged"`
	Behind       bool      `json:"behind"`
	WaitingFor   []string  `json:"waiting_for,omitempty"`
	Alarm        bool      `json:"alarm"`
	Joined       time.Time `json:"joined,omitzero"`
}

// invitedRow is an invitation that nobody has redeemed.
type invitedRow struct {
	Name   string    `json:"name"`
	Role   string    `json:"role"`
	Site   string    `json:"site"`
	Suites []string  `json:"suites"`
	Expiry time.Time `json:"expiry"`
}

// siteRow is a site with its prefixes.
type siteRow struct {
	Name     string   `json:"name"`
	Prefixes []string `json:"prefixes"`
}

// memberList is what `member list --json` prints.
type memberList struct {
	Members     []memberRow  `json:"members"`
	Invitations []invitedRow `json:"invitations"`
	Sites       []siteRow    `json:"sites"`
}

func memberListOf(r *pb.ListResponse) memberList {
	l := memberList{Members: []memberRow{}, Invitations: []invitedRow{}, Sites: []siteRow{}}
	for _, m := range r.Members {
		row := memberRow{
			Name: m.Member.GetName(), Site: m.Member.GetSite(), State: enumName(m.Member.GetState(), "MEMBER_STATE_"),
			UNIDs: []string{}, Suites: suiteNames(m.Member.GetSuites()), Sibling: m.Member.GetSibling(), Recipients: m.Member.GetRecipients(),
			Connected: m.Connected, Acknowledged: m.Acknowledged, Behind: m.Behind, Alarm: m.Alarm, Joined: unixNano(m.JoinedUnixNano),
		}
		for _, u := range m.Member.GetUnids() {
			row.UNIDs = append(row.UNIDs, fmt.Sprintf("%08x", u))
		}
		for _, id := range m.WaitingFor {
			row.WaitingFor = append(row.WaitingFor, bundle.KeyIDOf(id).String())
		}
		l.Members = append(l.Members, row)
	}
	for _, i := range r.Invitations {
		l.Invitations = append(l.Invitations, invitedRow{
			Name: i.Name, Role: enumName(i.Role, "ROLE_"), Site: i.Site, Suites: suiteNames(i.Suites), Expiry: unixNano(i.ExpiryUnixNano),
		})
	}
	for _, s := range r.Sites {
		l.Sites = append(l.Sites, siteRow{s.Name, append([]string{}, s.Prefixes...)})
	}
	return l
}

// enumName is the name of a protocol's enumeration value without its prefix.
func enumName(v fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), prefix))
}

func (a *app) memberList() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "list",
		Short: "List members, invitations and sites",
		Long: `List the members with their state, the invitations that nobody has redeemed,
and the prefixes of sites. A member is behind when it has not acknowledged keys
in time; alarm means that two parties held its identity.`,
		Example: `  countersign member list
  countersign member list --json`,
		Args: cobra.NoArgs,
	})
	call := operatorFlags(c)
	c.RunE = func(*cobra.Command, []string) error {
		return call(func(ctx context.Context, api pb.AdministrationClient) error {
			r, err := api.List(ctx, &pb.ListRequest{})
			if err != nil {
				return err
			}
			l := memberListOf(r)
			return a.print(l, func(w io.Writer) error { return a.writeMembers(w, &l) })
		})
	}
	return c
}

func (a *app) writeMembers(w io.Writer, l *memberList) error {
	var rows [][]string
	for _, m := range l.Members {
		rows = append(rows, []string{
			m.Name, m.Site, m.State, strings.Join(m.Suites, " "), strings.Join(m.UNIDs, " "), yes(m.Connected),
			join(mark(m.Behind, "behind"), mark(m.Alarm, "alarm"), mark(len(m.WaitingFor) > 0, "waits for "+strings.Join(m.WaitingFor, " "))),
			moment(m.Joined),
		})
	}
	if err := a.table(w, []string{"member", "site", "state", "suites", "unids", "connected", "notes", "joined"}, rows); err != nil {
		return err
	}
	if rows = nil; len(l.Invitations) > 0 {
		for _, i := range l.Invitations {
			rows = append(rows, []string{i.Name, i.Role, i.Site, strings.Join(i.Suites, " "), moment(i.Expiry)})
		}
		fmt.Fprintln(w)
		if err := a.table(w, []string{"invited", "role", "site", "suites", "until"}, rows); err != nil {
			return err
		}
	}
	if rows = nil; len(l.Sites) > 0 {
		for _, s := range l.Sites {
			rows = append(rows, []string{s.Name, strings.Join(s.Prefixes, " ")})
		}
		fmt.Fprintln(w)
		return a.table(w, []string{"site", "prefixes"}, rows)
	}
	return nil
}

// changed is what a change of a member prints as JSON.
type changed struct {
	Name    string `json:"name"`
	Version uint64 `json:"version"`
}

// memberChange is a command that changes one member by one call.
func (a *app) memberChange(verb, done, short, long string, change changeCall) *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use: verb + " NAME", Short: short, Long: long,
		Example: "  countersign member " + verb + " fw1",
		Args:    cobra.ExactArgs(1),
	})
	call := operatorFlags(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		return call(func(ctx context.Context, api pb.AdministrationClient) error {
			r, err := change(api, ctx, &pb.MemberRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.print(changed{args[0], r.Version}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "member %s %s in version %d\n", args[0], done, r.Version)
				return err
			})
		})
	}
	return c
}

// changeCall is a method of the directory that changes one member.
type changeCall = func(pb.AdministrationClient, context.Context, *pb.MemberRequest, ...grpc.CallOption) (*pb.ChangeResponse, error)
