package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"

	"countersign/directory/client"
	"countersign/directory/clock"
	pb "countersign/directory/proto"
	"countersign/directory/server"
)

// directoryFile is the YAML file of a directory.
type directoryFile struct {
	server.Config `yaml:",inline"`
	MetricsAddr   string `yaml:"metrics"`
}

// directoryFlags adds the flags of a directory's configuration; the function
// returned reads the file, if one is named, and then the flags.
func directoryFlags(c *cobra.Command) func() (directoryFile, error) {
	var path string
	texts := map[string]*string{}
	times := map[string]*time.Duration{}
	text := func(name, help string) { texts[name] = c.Flags().String(name, "", help) }
	c.Flags().StringVarP(&path, "config", "c", "", "YAML `FILE` with the configuration; flags go before it")
	text("state", "state `DIR`, mode 0700")
	text("key-file", "`FILE` with the 32 bytes that encrypt the state's keys (default DIR/state.key)")
	text("alliance", "`NAME` of the alliance, a DNS label")
	text("address", "`HOST:PORT` under which members reach the directory")
	text("listen", "`HOST:PORT` to listen on (default the port of --address)")
	text("metrics", "`HOST:PORT` that Prometheus scrapes")
	text("carrier", "`KIND` of carrier of the alliance: ip or udp")
	span := func(name, help string) { times[name] = c.Flags().Duration(name, 0, help) }
	span("grace", "how long an old key is accepted (default 1m)")
	span("bundle-lifetime", "how long members work without the directory (default 24h)")
	span("cert-lifetime", "lifetime of members' certificates (default 24h)")
	span("token-lifetime", "lifetime of tokens (default 1h)")
	return func() (f directoryFile, err error) {
		if path != "" {
			if f, err = readDirectoryFile(path); err != nil {
				return f, err
			}
		}
		for name, to := range map[string]*string{
			"state": &f.State, "key-file": &f.KeyFile, "alliance": &f.Alliance, "address": &f.Address,
			"listen": &f.Listen, "metrics": &f.MetricsAddr, "carrier": &f.Carrier.Kind,
		} {
			if c.Flags().Changed(name) {
				*to = *texts[name]
			}
		}
		for name, to := range map[string]*time.Duration{
			"grace": &f.Grace, "bundle-lifetime": &f.BundleLifetime,
			"cert-lifetime": &f.CertLifetime, "token-lifetime": &f.TokenLifetime,
		} {
			if c.Flags().Changed(name) {
				*to = *times[name]
			}
		}
		return f, nil
	}
}

// readDirectoryFile reads the YAML file of a directory. Its errors name file and
// line; unknown keys are refused.
func readDirectoryFile(path string) (f directoryFile, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return f, fmt.Errorf("%s: %w", path, bare(err))
	}
	defer func() {
		// The YAML library has panicked on hostile documents before.
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: not readable as YAML: %v", path, p)
		}
	}()
	if err := yaml.UnmarshalWithOptions(data, &f, yaml.Strict()); err != nil && !errors.Is(err, io.EOF) {
		return f, located(path, data, err)
	}
	return f, nil
}

// located puts file and position before an error of the YAML library. Errors of
// single values come without position, so their key is looked for.
func located(path string, data []byte, err error) error {
	if e := yaml.Error(nil); errors.As(err, &e) && e.GetToken() != nil {
		at := e.GetToken().Position
		return fmt.Errorf("%s:%d:%d: %s", path, at.Line, at.Column, e.GetMessage())
	}
	if file, perr := parser.ParseBytes(data, 0); perr == nil && len(file.Docs) > 0 {
		if m, ok := file.Docs[0].Body.(*ast.MappingNode); ok {
			for _, v := range m.Values {
				var one directoryFile
				if err := yaml.NodeToValue(v, &one); err != nil {
					at := v.Key.GetToken().Position
					return fmt.Errorf("%s:%d:%d: %s: %w", path, at.Line, at.Column, v.Key, err)
				}
			}
		}
	}
	return fmt.Errorf("%s: %w", path, err)
}

func (a *app) directory() *cobra.Command {
	c := &cobra.Command{
		Use:   "directory",
		Short: "Run the directory, or ask and change it",
		Long: `Run the directory: the management server that tells members who belongs to the
alliance, with which keys. It runs until it is interrupted. "directory init"
makes its state first.

The configuration is taken from the flags and from a YAML file with the same
keys (with _ for -), where flags go first.`,
		Example: `  countersign directory init --state /var/lib/countersign/directory --alliance example --address dir.example.net:7443
  countersign directory --state /var/lib/countersign/directory --alliance example --address dir.example.net:7443
  countersign directory -c /etc/countersign/directory.yaml --metrics 127.0.0.1:9101`,
		Args: cobra.ArbitraryArgs,
	}
	config := directoryFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return missingCommand(cmd, args)
		}
		cfg, err := config()
		if err != nil {
			return err
		}
		if cfg.Log, err = a.logger(); err != nil {
			return err
		}
		registry := newRegistry()
		cfg.Metrics = registry
		s, err := server.New(cfg.Config)
		if err != nil {
			return err
		}
		return withMetrics(cmd.Context(), cfg.MetricsAddr, registry, func(ctx context.Context) error {
			return ended(ctx, s.Run(ctx))
		})
	}
	c.AddCommand(a.directoryInit(), a.directoryStatus(), a.directorySite(), a.directoryRotateKey())
	return c
}

// ended drops the error of what ended because ctx did.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (a *app) directoryInit() *cobra.Command {
	c := &cobra.Command{
		Use:   "init",
		Short: "Make the state of a new directory",
		Long: `Make the keys of a new alliance in the state directory, and the credential of
its first operator, whose path is printed. A directory that exists is refused.`,
		Example: `  countersign directory init --state /var/lib/countersign/directory --alliance example --address dir.example.net:7443
  export COUNTERSIGN_OPERATOR=/var/lib/countersign/directory/operator.credential`,
		Args: cobra.NoArgs,
	}
	config := directoryFlags(c)
	operator := c.Flags().String("operator-name", "operator", "`NAME` of the first operator")
	c.RunE = func(*cobra.Command, []string) error {
		cfg, err := config()
		if err != nil {
			return err
		}
		path, err := server.Init(cfg.Config, *operator)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.stdout, path)
		return err
	}
	return c
}

// callTimeout bounds one request to the directory.
const callTimeout = 30 * time.Second

// operatorFlags adds the flags by which an operator reaches the directory.
func operatorFlags(c *cobra.Command) (call func(func(context.Context, pb.AdministrationClient) error) error) {
	path := c.Flags().String("operator", env("COUNTERSIGN_OPERATOR", ""), "credential `FILE` of an operator (default: $COUNTERSIGN_OPERATOR)")
	address := c.Flags().String("directory", "", "`HOST:PORT` of the directory (default: as in the credential)")
	// The credential's path depends on the machine; help has it from the text.
	c.Flags().Lookup("operator").DefValue = ""
	return func(f func(context.Context, pb.AdministrationClient) error) error {
		if *path == "" {
			return usage("no operator: give --operator FILE or set COUNTERSIGN_OPERATOR")
		}
		api, conn, err := client.DialOperator(*path, *address, clock.System{})
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(c.Context(), callTimeout)
		defer cancel()
		return said(f(ctx, api))
	}
}

// directoryStatus is what `directory status --json` prints.
type directoryStatus struct {
	Alliance  string    `json:"alliance"`
	Version   uint64    `json:"version"`
	Sequence  uint64    `json:"sequence"`
	Issued    time.Time `json:"issued,omitzero"`
	Expiry    time.Time `json:"expiry,omitzero"`
	Key       string    `json:"directory_key"` // public
	Members   uint32    `json:"members"`
	Connected uint32    `json:"connected"`
	Behind    []string  `json:"behind"`
	Alarms    []string  `json:"alarms"`
	Forced    uint64    `json:"forced_version"`
	Reserves  uint32    `json:"reserve_keys"`
}

func (a *app) directoryStatus() *cobra.Command {
	c := a.jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "Show the directory's state",
		Long:  "Show the directory's bundle, how many members are connected, and which of\nthem are behind or under alarm.",
		Example: `  countersign directory status
  countersign directory status --operator alice.credential --json`,
		Args: cobra.NoArgs,
	})
	call := operatorFlags(c)
	c.RunE = func(*cobra.Command, []string) error {
		return call(func(ctx context.Context, api pb.AdministrationClient) error {
			r, err := api.Status(ctx, &pb.StatusRequest{})
			if err != nil {
				return err
			}
			s := directoryStatus{
				Alliance: r.Alliance, Version: r.Version, Sequence: r.Sequence,
				Issued: unixNano(r.IssuedUnixNano), Expiry: unixNano(r.ExpiryUnixNano), Key: hex.EncodeToString(r.DirectoryKey),
				Members: r.Members, Connected: r.Connected, Behind: append([]string{}, r.Behind...),
				Alarms: append([]string{}, r.Alarms...), Forced: r.ForcedVersion, Reserves: r.Reserves,
			}
			return a.print(s, func(w io.Writer) error {
				return fields(w, "alliance", s.Alliance,
					"bundle", fmt.Sprintf("version %d, sequence %d, issued %s, valid until %s", s.Version, s.Sequence, moment(s.Issued), moment(s.Expiry)),
					"members", fmt.Sprintf("%d, %d connected", s.Members, s.Connected),
					"behind", strings.Join(s.Behind, ", "), "alarms", strings.Join(s.Alarms, ", "),
					"reserves", fmt.Sprintf("%d keys", s.Reserves), "key", s.Key)
			})
		})
	}
	return c
}

func (a *app) directorySite() *cobra.Command {
	c := &cobra.Command{
		Use:   "site NAME PREFIX…",
		Short: "Set the prefixes of a site",
		Long: `Set the prefixes that the server sides of a site's sessions lie in; siblings
refuse announcements outside them. The prefixes replace those from before.`,
		Example: "  countersign directory site hq 10.1.0.0/16 2001:db8:1::/48",
		Args:    cobra.MinimumNArgs(2),
	}
	call := operatorFlags(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		for _, p := range args[1:] {
			if _, err := netip.ParsePrefix(p); err != nil {
				return usage("%q is not a prefix", p)
			}
		}
		return call(func(ctx context.Context, api pb.AdministrationClient) error {
			r, err := api.SetSite(ctx, &pb.SetSiteRequest{Site: &pb.Site{Name: args[0], Prefixes: args[1:]}})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "site %s set at sequence %d\n", args[0], r.Sequence)
			return err
		})
	}
	return c
}

func (a *app) directoryRotateKey() *cobra.Command {
	c := &cobra.Command{
		Use:     "rotate-key",
		Short:   "Replace the key that the directory signs with",
		Long:    "Make a new key for the directory and sign it with the old one; members follow\nby themselves.",
		Example: "  countersign directory rotate-key",
		Args:    cobra.NoArgs,
	}
	call := operatorFlags(c)
	c.RunE = func(*cobra.Command, []string) error {
		return call(func(ctx context.Context, api pb.AdministrationClient) error {
			r, err := api.RotateDirectoryKey(ctx, &pb.RotateDirectoryKeyRequest{})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "new directory key in version %d\n", r.Version)
			return err
		})
	}
	return c
}
