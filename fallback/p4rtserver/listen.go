package p4rtserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// ErrInsecure is the error for an address where anybody could read keys.
var ErrInsecure = errors.New("P4Runtime in clear text on a non-loopback address")

// Endpoint says where and how to listen. The zero value is no valid endpoint.
type Endpoint struct {
	// Address is unix:///PATH, or HOST:PORT with a literal address.
	Address string
	// TLS is the configuration of mutual TLS; it must demand and verify client
	// certificates. nil: clear text, for Unix sockets and loopback.
	TLS *tls.Config
	// AllowInsecure permits clear text on any address, for laboratories. A
	// read returns keys.
	AllowInsecure bool
}

// Listen opens the endpoint. A Unix socket is open to its owner only; one that
// a dead process left behind is replaced. Errors: ErrInsecure, and those of
// net.Listen.
func (e Endpoint) Listen(ctx context.Context) (net.Listener, error) {
	if e.TLS != nil && (e.TLS.ClientAuth != tls.RequireAndVerifyClientCert || e.TLS.ClientCAs == nil) {
		return nil, fmt.Errorf("listen on %s: the TLS configuration must require and verify client certificates against a given CA", e.Address)
	}
	if path, ok := strings.CutPrefix(e.Address, "unix://"); ok {
		return listenUnix(ctx, path)
	}
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: expected unix:///PATH or HOST:PORT: %w", e.Address, err)
	}
	if ip := net.ParseIP(host); e.TLS == nil && !e.AllowInsecure && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("listen on %s: %w: give a certificate, or use 127.0.0.1, ::1 or unix:///PATH", e.Address, ErrInsecure)
	}
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", e.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e.Address, err)
	}
	return lis, nil
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	// The mode is set on the socket before it appears in the file system.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}}
	lis, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, unix.EADDRINUSE) && removeStale(ctx, path) {
		lis, err = lc.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	return lis, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(ctx context.Context, path string) bool {
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != os.ModeSocket {
		return false
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return false
	}
	return errors.Is(err, unix.ECONNREFUSED) && os.Remove(path) == nil
}

// stopGrace is how long requests may take to end when the server stops.
const stopGrace = 5 * time.Second

// Serve answers P4Runtime on lis until ctx is done or lis fails, then ends the
// streams, waits for requests and closes the server. tlsConfig is the
// endpoint's.
func (s *Server) Serve(ctx context.Context, lis net.Listener, tlsConfig *tls.Config) error {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.opts.MaxMessageBytes),
		// A primary that is gone without a word must make room.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	g := grpc.NewServer(opts...)
	p4v1.RegisterP4RuntimeServer(g, s)
	stopped := context.AfterFunc(ctx, func() { s.shutdown(g) })
	defer s.Close()
	err := g.Serve(lis)
	if !stopped() { // ctx is done: Serve has returned because of it
		return nil
	}
	return err
}

// shutdown lets requests end, for a while.
func (s *Server) shutdown(g *grpc.Server) {
	s.stop.Do(func() { close(s.done) })
	force := time.AfterFunc(stopGrace, g.Stop)
	g.GracefulStop()
	force.Stop()
}
