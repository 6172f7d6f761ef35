// Package dataplane runs a data plane of any kind between raw sockets and
// steers it by P4Runtime, for tests and measurements that are the same for all
// kinds: a table of packets and of what must become of them does not know what
// forwards them.
package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"countersign/test/netlab"
)

// Kinds of data planes that Start knows.
const (
	BMv2 = "bmv2"
)

// ErrUnavailable means that this machine cannot run that kind of data plane.
var ErrUnavailable = errors.New("data plane is not available")

// address of the P4Runtime server, on the loopback of the data plane's own
// namespace.
const address = "127.0.0.1:9559"

// MTU of the links in bytes: the most that packet I/O of the software data plane carries.
const MTU = 9216

// Options say what to start. The zero value is of no use.
type Options struct {
	Kind    string
	Info    *p4configv1.P4Info
	Program []byte   // for bmv2 the compiled JSON
	Ports   []uint16 // port numbers
}

// Switch is a running data plane; end it with Close.
type Switch struct {
	*Client
	// Node and Peer are the namespaces of the data plane's ports and of their
	// other ends. Interfaces are named by PortName in both.
	Node, Peer *netlab.Node
	lab        *netlab.Lab
}

// PortName is the name of the interface that is port n.
func PortName(n uint16) string { return fmt.Sprint("port", n) }

// Start builds a lab of two namespaces joined by a link for each port, and in
// the one of them starts a data plane, which is given the pipeline. It fails
// with ErrUnavailable where that kind cannot run here.
func Start(ctx context.Context, o Options) (s *Switch, err error) {
	start := map[string]func(context.Context, *netlab.Node, Options) error{BMv2: startBMv2}[o.Kind]
	if start == nil {
		return nil, fmt.Errorf("%w: kind %q is unknown", ErrUnavailable, o.Kind)
	}
	lab, err := netlab.New()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lab.Close())
		}
	}()
	s = &Switch{lab: lab}
	if s.Node, err = lab.Node("switch"); err != nil {
		return nil, err
	}
	if s.Peer, err = lab.Node("peer"); err != nil {
		return nil, err
	}
	for _, p := range o.Ports {
		if err := lab.Link(s.Node, PortName(p), s.Peer, PortName(p), netlab.LinkOpts{MTU: MTU, NoIPv6: true}); err != nil {
			return nil, err
		}
	}
	if err := start(ctx, s.Node, o); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return s.Node.DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return nil, err
	}
	if s.Client, err = Dial(ctx, conn, o.Info, o.Program); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Kind, err)
	}
	return s, nil
}

// Close ends the data plane and its lab.
func (s *Switch) Close() error { return errors.Join(s.Client.Close(), s.lab.Close()) }

// startBMv2 starts simple_switch_grpc without a pipeline and without a log,
// which would show keys.
func startBMv2(_ context.Context, node *netlab.Node, o Options) error {
	path, err := exec.LookPath("simple_switch_grpc")
	if err != nil {
		return fmt.Errorf("%w: bmv2: %w", ErrUnavailable, err)
	}
	args := []string{"--no-p4", "--device-id", fmt.Sprint(deviceID), "-L", "off"}
	for _, p := range o.Ports {
		args = append(args, "-i", fmt.Sprintf("%d@%s", p, PortName(p)))
	}
	args = append(args, "--", "--grpc-server-addr", address, "--cpu-port", "510")
	cmd := exec.Command(path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if os.Getenv("COUNTERSIGN_BMV2_OUTPUT") != "" {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	_, err = node.Start(cmd)
	return err
}
