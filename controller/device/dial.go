package device

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// maxRead bounds one message of a Read: some servers answer a wildcard read of
// a whole table with a single message.
const maxRead = 1 << 30

// maxStatus bounds a status with its details: an Error for each update of a
// batch ("gRPC Metadata Maximum Size").
const maxStatus = 16 << 20

// checkTarget refuses targets over which keys would travel in the open.
func checkTarget(target string, conf *tls.Config) error {
	if conf != nil {
		if len(conf.Certificates) == 0 && conf.GetClientCertificate == nil {
			return fmt.Errorf("%w: TLS to %q without a client certificate", ErrInsecureTarget, target)
		}
		return nil
	}
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return nil
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return fmt.Errorf("target %q is neither unix:///path nor host:port: %w", target, err)
	}
	if addr, err := netip.ParseAddr(host); host == "localhost" || err == nil && addr.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%w: %q", ErrInsecureTarget, target)
}

func dial(target string, conf *tls.Config, timeout time.Duration) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if conf != nil {
		creds = credentials.NewTLS(conf)
	}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: timeout}),
		grpc.WithMaxHeaderListSize(maxStatus),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxRead), grpc.MaxCallSendMsgSize(maxRead)),
	)
}

// waiter draws the waits of a Backoff.
type waiter struct {
	Backoff
	bound time.Duration
}

func newWaiter(b Backoff) *waiter { return &waiter{b, b.Min} }

func (w *waiter) reset() { w.bound = w.Min }

func (w *waiter) next() time.Duration {
	d := jitter(w.bound)
	w.bound = min(2*w.bound, w.Max)
	return d
}

// jitter draws from the upper half of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// sleep waits for d or for ctx's end.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
