package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/fallback"
	"countersign/packet"
)

func (a *app) fallback() *cobra.Command {
	c := &cobra.Command{
		Use:   "fallback",
		Short: "Run the software data plane",
		Long: `Run the software data plane: the same pipeline as the P4 program, behind
P4Runtime, on interfaces of this machine. It runs until it is interrupted, and
keeps forwarding without a controller.

A port is NUMBER=INTERFACE (AF_PACKET), or NUMBER=pcap:IN[,OUT] for captures. A
P4Runtime read returns keys, so anything but a Unix socket or loopback needs
mutual TLS.`,
		Example: `  countersign fallback --listen unix:///run/countersign/dp.sock --port 1=eth0 --port 2=eth1
  countersign fallback --listen 192.0.2.1:9559 --tls-cert dp.pem --tls-key dp.key --tls-ca ca.pem --port 1=eth0 --port 2=eth1 --workers 2
  countersign fallback --listen unix:///run/countersign/dp.sock --port 1=eth0 --port 2=eth1 --metrics 127.0.0.1:9102`,
		Args: cobra.NoArgs,
	}
	cfg := fallback.Config{}
	flags := c.Flags()
	flags.StringVar(&cfg.P4Runtime.Address, "listen", "", "P4Runtime endpoint `ADDRESS`: unix:///PATH or HOST:PORT")
	flags.BoolVar(&cfg.P4Runtime.AllowInsecure, "insecure", false, "serve P4Runtime in clear text on any address, for laboratories")
	var cert, key, ca string
	flags.StringVar(&cert, "tls-cert", "", "PEM `FILE` with the certificate of this data plane")
	flags.StringVar(&key, "tls-key", "", "PEM `FILE` with its private key")
	flags.StringVar(&ca, "tls-ca", "", "PEM `FILE` with the authority of controllers' certificates")
	flags.Uint64Var(&cfg.DeviceID, "device-id", 1, "P4Runtime device `ID`")
	ports := flags.StringArray("port", nil, "a port, `NUMBER=INTERFACE`; once for each")
	flags.IntVar(&cfg.Workers, "workers", 1, "`N` worker threads, each with a queue of every port")
	flags.StringVar(&cfg.Metrics, "metrics", "", "`HOST:PORT` that Prometheus scrapes")
	flags.BoolVar(&cfg.FixOffloads, "fix-offloads", false, "switch off offloads of the ports that a packet processor cannot work with")
	flags.BoolVar(&cfg.KeepKernel, "keep-kernel", false, "leave what the ports receive to this machine's network stack too")
	flags.BoolVar(&cfg.Promiscuous, "promiscuous", false, "receive frames for any hardware address, for transparent ports")
	cfg.Carrier = packet.DefaultCarrier
	flags.Uint8Var(&cfg.Carrier.Protocol, "carrier-protocol", cfg.Carrier.Protocol, "IP protocol `NUMBER` of carrier ip")
	flags.Uint16Var(&cfg.Carrier.Port, "carrier-port", cfg.Carrier.Port, "destination `PORT` of carrier udp")
	c.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.P4Runtime.Address == "" {
			return usage("no P4Runtime endpoint: give --listen ADDRESS")
		}
		if cfg.Ports, err = portsOf(*ports); err != nil {
			return err
		}
		if err := cfg.Carrier.Validate(); err != nil {
			return &usageError{err}
		}
		if cfg.Log, err = a.logger(); err != nil {
			return err
		}
		if cfg.P4Runtime.TLS, err = mutualTLS(cert, key, ca); err != nil {
			return err
		}
		return fallback.Run(cmd.Context(), cfg)
	}
	return c
}

// portsOf reads NUMBER=SPECIFICATION of each port.
func portsOf(specs []string) (map[uint16]string, error) {
	if len(specs) == 0 {
		return nil, usage("no ports: give --port NUMBER=INTERFACE for each")
	}
	ports := map[uint16]string{}
	for _, s := range specs {
		number, spec, ok := strings.Cut(s, "=")
		n, err := strconv.ParseUint(number, 10, 16)
		if !ok || err != nil || spec == "" {
			return nil, usage("--port: %q is not NUMBER=INTERFACE", s)
		}
		if _, twice := ports[uint16(n)]; twice {
			return nil, usage("--port: port %d is given twice", n)
		}
		ports[uint16(n)] = spec
	}
	return ports, nil
}

// mutualTLS is the configuration of a listener whose callers prove who they
// are, or nil where no file is named.
func mutualTLS(cert, key, ca string) (*tls.Config, error) {
	if cert == "" && key == "" && ca == "" {
		return nil, nil
	}
	if cert == "" || key == "" || ca == "" {
		return nil, usage("mutual TLS needs all of --tls-cert, --tls-key and --tls-ca")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert: %w", err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-ca: no certificate in %s", ca)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, nil
}
