package sibling

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/controller/session"
	pb "countersign/controller/sibling/proto"
	"countersign/tag"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// alliance is a CA, and what its members' certificates give.
type alliance struct {
	t    testing.TB
	cert *x509.Certificate
	key  ed25519.PrivateKey
	pool *x509.CertPool
}

func newAlliance(t testing.TB) *alliance {
	t.Helper()
	a := &alliance{t: t, pool: x509.NewCertPool()}
	var err error
	if _, a.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

const domain = ".member.test"

// tls is the configuration of a member, for both ends.
func (a *alliance) tls(member string) *tls.Config {
	a.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{member + domain}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: a.pool, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
}

func to(conf *tls.Config, member string) *tls.Config {
	conf = conf.Clone()
	conf.ServerName = member + domain
	return conf
}

func peerName(s tls.ConnectionState) (string, error) {
	name, ok := strings.CutSuffix(s.PeerCertificates[0].DNSNames[0], domain)
	if !ok {
		return "", errors.New("no member")
	}
	return name, nil
}

// member is a Service under test, with a book that stands for a controller's.
type member struct {
	*Service
	t     testing.TB
	name  string
	stop  func()
	batch chan []session.Announcement // what Accept got

	mu       sync.Mutex
	peers    []Peer
	standing []session.Announcement
	gate     chan struct{} // not nil: Accept waits until it is closed
	strange  atomic.Bool   // nobody is a sibling
}

func (m *member) setPeers(p ...Peer) {
	m.mu.Lock()
	m.peers = p
	m.mu.Unlock()
	m.Refresh()
}

func (m *member) setStanding(a ...session.Announcement) {
	m.mu.Lock()
	m.standing = a
	m.mu.Unlock()
}

func (m *member) peer() Peer { return Peer{m.name, m.Addr().String()} }

func startMember(t testing.TB, a *alliance, name, listen string, edit func(*member, *Config)) *member {
	t.Helper()
	m := &member{t: t, name: name, batch: make(chan []session.Announcement, 1000)}
	conf := a.tls(name)
	cfg := Config{
		Self: name, Listen: listen, ServerTLS: conf, PeerName: peerName,
		ClientTLS: func(other string) *tls.Config { return to(conf, other) },
		Sibling:   func(other string) bool { return strings.HasPrefix(other, "s") && !m.strange.Load() },
		Peers: func() []Peer {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Clone(m.peers)
		},
		Accept: func(_ string, b []session.Announcement) {
			m.mu.Lock()
			gate := m.gate
			m.mu.Unlock()
			if gate != nil {
				<-gate
			}
			m.batch <- b
		},
		Standing: func() iter.Seq[session.Announcement] {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Values(slices.Clone(m.standing))
		},
		Metrics: prometheus.NewRegistry(),
	}
	if edit != nil {
		edit(m, &cfg)
	}
	var err error
	if m.Service, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Run: %v", name, err)
		}
	})
	t.Cleanup(m.stop)
	return m
}

const patience = 20 * time.Second

// next waits for an announcement that ok likes, and returns all up to it.
func (m *member) next(ok func(session.Announcement) bool) (all []session.Announcement) {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case b := <-m.batch:
			all = append(all, b...)
			if slices.ContainsFunc(b, ok) {
				return all
			}
		case <-deadline:
			m.t.Fatalf("%s: %d announcements and not the one awaited", m.name, len(all))
		}
	}
}

func generation(g uint64) func(session.Announcement) bool {
	return func(a session.Announcement) bool { return a.Generation == g && !a.Deleted }
}

func deletion(g uint64) func(session.Announcement) bool {
	return func(a session.Announcement) bool { return a.Generation == g && a.Deleted }
}

// announcement number g, of a tuple of its own.
func announcement(g uint64) session.Announcement {
	t, low := tag.NewTuple(6, tag.KindPorts, netip.AddrFrom4([4]byte{192, 0, 2, byte(g >> 16)}), netip.MustParseAddr("198.51.100.1"), uint16(g), 443)
	return session.Announcement{
		Tuple: t, InitiatorLow: low, LowZone: "outside", HighZone: "inside", Generation: g, Expiry: time.Now().Add(time.Hour),
	}
}

func deleted(g uint64) session.Announcement {
	a := announcement(g)
	a.Deleted = true
	return a
}

func message(g uint64) *pb.Announcement {
	a := announcement(g)
	m, err := encode(&a, a.Expiry.Add(-time.Minute))
	if err != nil {
		panic(err)
	}
	return m
}

func TestExchange(t *testing.T) {
	a := newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	s2 := startMember(t, a, "s2", "127.0.0.1:0", func(_ *member, c *Config) {
		c.Now = func() time.Time { return time.Now().Add(-1000 * time.Hour) } // clocks need not agree
	})
	first := announcement(1)
	first.Origin = "somebody else"
	s1.setStanding(first)
	s2.setStanding(func() session.Announcement {
		a := announcement(10)
		a.Expiry = a.Expiry.Add(-1000 * time.Hour)
		return a
	}())
	s1.setPeers(s1.peer(), s2.peer()) // itself is left out
	s2.setPeers(s1.peer(), s2.peer())

	got := s2.next(generation(1))[0]
	want := first
	want.Origin = "s1"
	left := got.Expiry.Sub(time.Now().Add(-1000 * time.Hour))
	if got.Expiry = want.Expiry; got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if left > time.Hour+time.Minute || left < time.Hour-time.Minute {
		t.Errorf("%v left by the receiver's clock", left)
	}
	if got := s1.next(generation(10))[0].Origin; got != "s2" {
		t.Errorf("origin %q", got)
	}

	s1.Announce() // nothing
	s1.Announce(announcement(2), session.Announcement{}, announcement(3))
	s1.Announce(deleted(2))
	var seen []uint64
	for _, a := range s2.next(deletion(2)) {
		seen = append(seen, a.Generation)
	}
	if !slices.Equal(seen, []uint64{2, 3, 2}) {
		t.Errorf("generations %v", seen)
	}
	if n := testutil.ToFloat64(s1.metrics.refused.WithLabelValues("s2", "sent", "tuple")); n != 1 {
		t.Errorf("%v malformed ones not sent", n)
	}
	st := s1.Status()
	if len(st) != 1 || st[0].Name != "s2" || !st[0].Connected || !st[0].Hearing || st[0].Resyncs != 1 || st[0].Error != "" {
		t.Errorf("status %+v", st)
	}
}

// A member that stops and comes back on the same address hears what stands,
// and what was deleted meanwhile.
func TestRestart(t *testing.T) {
	a := newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	s2 := startMember(t, a, "s2", "127.0.0.1:0", nil)
	s1.setStanding(announcement(1), announcement(2))
	s1.setPeers(s2.peer())
	s2.next(generation(2))
	s2.stop()

	s1.setStanding(announcement(2), announcement(3))
	s1.Announce(announcement(3), deleted(1))
	s2 = startMember(t, a, "s2", s2.Addr().String(), nil)
	s1.Refresh()
	var seen []uint64
	for _, a := range s2.next(deletion(1)) {
		seen = append(seen, a.Generation)
	}
	if !slices.Equal(seen, []uint64{2, 3, 1}) {
		t.Errorf("generations %v", seen)
	}
}

// What finds no room is made up for, and a sibling that stands still slows
// nobody.
func TestOverflow(t *testing.T) {
	const n = maxQueue + (window+4)*maxBatch
	a := newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	s2 := startMember(t, a, "s2", "127.0.0.1:0", nil)
	slow := startMember(t, a, "s3", "127.0.0.1:0", nil)
	s1.setStanding(announcement(1))
	s1.setPeers(s2.peer(), slow.peer())
	s2.next(generation(1))
	slow.next(generation(1))

	gate := make(chan struct{})
	slow.mu.Lock()
	slow.gate = gate
	slow.mu.Unlock()
	all := make([]session.Announcement, n)
	for i := range all {
		all[i] = announcement(uint64(i + 2))
	}
	s1.setStanding(all...)
	for part := range slices.Chunk(all, maxBatch) {
		s1.Announce(part...)
		s2.next(generation(part[len(part)-1].Generation))
	}
	s1.Announce(deleted(1)) // has room where the others have none
	if st := s1.Status(); st[0].Dropped != 0 || st[1].Dropped == 0 || st[1].Queued != maxQueue+1 || st[1].Resyncs != 1 {
		t.Errorf("status %+v", st)
	}

	close(gate)
	seen, gone := map[uint64]bool{}, false
	for len(seen) < n || !gone {
		for _, a := range slow.next(func(session.Announcement) bool { return true }) {
			if a.Deleted {
				gone = true
			} else {
				seen[a.Generation] = true
			}
		}
	}
	if st := s1.Status()[1]; st.Resyncs != 2 {
		t.Errorf("status %+v", st)
	}
}

// A deletion made while Standing is being sent comes after what it deletes, and
// a new session does not wait for the end.
func TestDeletionDuringResync(t *testing.T) {
	a := newAlliance(t)
	s2 := startMember(t, a, "s2", "127.0.0.1:0", nil)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", func(m *member, c *Config) {
		m.peers = []Peer{s2.peer()}
		c.Standing = func() iter.Seq[session.Announcement] {
			return func(yield func(session.Announcement) bool) {
				for g := range uint64(3 * maxBatch) {
					if g == maxBatch/2 {
						m.Announce(deleted(3*maxBatch), announcement(9*maxBatch))
					}
					if !yield(announcement(g + 1)) {
						return
					}
				}
			}
		}
	})
	got := s2.next(deletion(3 * maxBatch))
	fresh := slices.IndexFunc(got, generation(9*maxBatch))
	stale := slices.IndexFunc(got, generation(3*maxBatch))
	if fresh < 0 || stale < fresh {
		t.Errorf("the new session is number %d, the deleted one %d of %d", fresh, stale, len(got))
	}
	s1.stop()
}

func TestRefresh(t *testing.T) {
	a := newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	s2 := startMember(t, a, "s2", "127.0.0.1:0", nil)
	s1.setStanding(announcement(1))
	s1.setPeers(s2.peer(), Peer{Name: "s4"}) // no address: nothing to dial
	s2.next(generation(1))

	moved := startMember(t, a, "s2", "127.0.0.1:0", nil)
	s1.setPeers(moved.peer())
	moved.next(generation(1))

	s1.setPeers()
	if st := s1.Status(); len(st) != 0 {
		t.Errorf("status %+v", st)
	}
	s1.setPeers(moved.peer())
	moved.next(generation(1))
}

// raw is a caller's stream with a certificate of its own.
func raw(t *testing.T, m *member, conf *tls.Config) grpc.BidiStreamingClient[pb.Batch, pb.Ack] {
	t.Helper()
	conn, err := grpc.NewClient(m.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(to(conf, m.name))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	stream, err := pb.NewSiblingsClient(conn).Announce(ctx)
	if err != nil {
		return failed{err: err}
	}
	return stream
}

// failed is a stream that could not be opened.
type failed struct {
	grpc.BidiStreamingClient[pb.Batch, pb.Ack]
	err error
}

func (f failed) Recv() (*pb.Ack, error) { return nil, f.err }

func TestCallers(t *testing.T) {
	a, strangers := newAlliance(t), newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	anonymous := a.tls("s2")
	anonymous.Certificates = nil
	forged := strangers.tls("s2")
	forged.RootCAs = a.pool
	for _, c := range []struct {
		name string
		conf *tls.Config
		code codes.Code
	}{
		{"sibling", a.tls("s2"), codes.OK},
		{"member of another site", a.tls("c1"), codes.PermissionDenied},
		{"own name", a.tls("s1"), codes.PermissionDenied},
		{"certificate of another authority", forged, codes.Unavailable},
		{"no certificate", anonymous, codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			ack, err := raw(t, s1, c.conf).Recv()
			if status.Code(err) != c.code || err == nil && ack.Sequence != 0 {
				t.Errorf("ack %v, error %v, want %v", ack, err, c.code)
			}
		})
	}
	if n := testutil.ToFloat64(s1.metrics.unauthorised); n != 2 {
		t.Errorf("%v streams refused, want 2", n)
	}
}

func TestBatches(t *testing.T) {
	a := newAlliance(t)
	unsorted := message(1)
	unsorted.Low, unsorted.High = unsorted.High, unsorted.Low
	many := func(n int) *pb.Batch {
		b := &pb.Batch{Sequence: 1}
		for range n {
			b.Announcements = append(b.Announcements, message(1))
		}
		return b
	}
	large := many(1)
	large.Announcements[0].LowZone = strings.Repeat("z", maxBatchBytes)
	for _, c := range []struct {
		name  string
		batch *pb.Batch
		code  codes.Code
		taken int
	}{
		{"empty", many(0), codes.OK, 0},
		{"largest", many(maxBatch), codes.OK, maxBatch},
		{"malformed among others", &pb.Batch{Sequence: 1, Announcements: []*pb.Announcement{message(1), unsorted, {}, message(2)}}, codes.OK, 2},
		{"too many", many(maxBatch + 1), codes.InvalidArgument, 0},
		{"too large", large, codes.ResourceExhausted, 0},
		{"out of sequence", &pb.Batch{Sequence: 2}, codes.InvalidArgument, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
			stream := raw(t, s1, a.tls("s2"))
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(c.batch); err != nil {
				t.Fatal(err)
			}
			ack, err := stream.Recv()
			if status.Code(err) != c.code || err == nil && ack.Sequence != c.batch.Sequence {
				t.Errorf("ack %v, error %v, want %v", ack, err, c.code)
			}
			taken := 0
			if len(s1.batch) > 0 {
				taken = len(<-s1.batch)
			}
			if taken != c.taken {
				t.Errorf("%d taken over, want %d", taken, c.taken)
			}
		})
	}
}

func TestSuperseded(t *testing.T) {
	a := newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	conf := a.tls("s2")
	old := raw(t, s1, conf)
	if _, err := old.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := raw(t, s1, conf).Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("error %v", err)
	}
}

// An exclusion ends a stream that stands.
func TestExcluded(t *testing.T) {
	a := newAlliance(t)
	s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
	stream := raw(t, s1, a.tls("s2"))
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s1.strange.Store(true)
	if err := stream.Send(&pb.Batch{Sequence: 1, Announcements: []*pb.Announcement{message(1)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("error %v", err)
	}
	if len(s1.batch) > 0 {
		t.Error("announcements of an excluded member were taken over")
	}
}

// oddServer acknowledges what was never sent; calls counts its streams.
type oddServer struct {
	pb.UnimplementedSiblingsServer
	acks  []uint64
	calls chan struct{}
}

func (o oddServer) Announce(stream grpc.BidiStreamingServer[pb.Batch, pb.Ack]) error {
	o.calls <- struct{}{}
	for _, n := range o.acks {
		if err := stream.Send(&pb.Ack{Sequence: n}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

func TestOddAcknowledgements(t *testing.T) {
	a := newAlliance(t)
	for _, c := range []struct {
		name string
		acks []uint64
	}{
		{"no hello", []uint64{7}},
		{"of the future", []uint64{0, 99}},
		{"of the past", []uint64{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			odd := oddServer{acks: c.acks, calls: make(chan struct{}, 100)}
			server := grpc.NewServer(grpc.Creds(credentials.NewTLS(a.tls("s2"))))
			pb.RegisterSiblingsServer(server, odd)
			go func() { _ = server.Serve(l) }()
			t.Cleanup(server.Stop)

			s1 := startMember(t, a, "s1", "127.0.0.1:0", nil)
			s1.setPeers(Peer{"s2", l.Addr().String()})
			for range 2 { // it comes back, with a new connection
				<-odd.calls
			}
			s1.stop()
			if n := testutil.ToFloat64(s1.metrics.disconnects.WithLabelValues("s2")); n < 1 {
				t.Errorf("%v disconnects", n)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	a := newAlliance(t)
	good := startMember(t, a, "s1", "127.0.0.1:0", nil)
	for _, c := range []struct {
		name string
		edit func(*Config)
		want string
	}{
		{"no name", func(c *Config) { c.Self = "" }, "self"},
		{"no address", func(c *Config) { c.Listen = "" }, "listen"},
		{"no server TLS", func(c *Config) { c.ServerTLS = nil }, "server TLS"},
		{"server TLS for anybody", func(c *Config) { c.ServerTLS = &tls.Config{} }, "server TLS"},
		{"no client TLS", func(c *Config) { c.ClientTLS = nil }, "client TLS"},
		{"no peer name", func(c *Config) { c.PeerName = nil }, "peer name"},
		{"no sibling", func(c *Config) { c.Sibling = nil }, "sibling"},
		{"no peers", func(c *Config) { c.Peers = nil }, "peers"},
		{"no accept", func(c *Config) { c.Accept = nil }, "accept"},
		{"no standing", func(c *Config) { c.Standing = nil }, "standing"},
		{"metrics twice", func(*Config) {}, "duplicate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good.cfg
			c.edit(&cfg)
			if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error %v, want one of %q", err, c.want)
			}
		})
	}
	cfg := good.cfg
	cfg.Metrics, cfg.Listen = nil, good.Addr().String()
	if _, err := New(cfg); err == nil {
		t.Error("listens on an address in use")
	}
}

// BenchmarkAnnounce is one pair over loopback with TLS: "alone" one announcement
// at a time, to its acknowledgement, and "stream" as fast as they go.
func BenchmarkAnnounce(b *testing.B) {
	start := func(b *testing.B) (*member, chan int) {
		a := newAlliance(b)
		heard := make(chan int, 1<<16)
		s2 := startMember(b, a, "s2", "127.0.0.1:0", func(_ *member, c *Config) {
			c.Accept = func(_ string, batch []session.Announcement) { heard <- len(batch) }
		})
		s1 := startMember(b, a, "s1", "127.0.0.1:0", nil)
		s1.setStanding(announcement(1))
		s1.setPeers(s2.peer())
		<-heard
		return s1, heard
	}
	b.Run("alone", func(b *testing.B) {
		s1, heard := start(b)
		took := make([]time.Duration, 0, b.N)
		one := announcement(2)
		for b.Loop() {
			t0 := time.Now()
			s1.Announce(one)
			<-heard
			took = append(took, time.Since(t0))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	})
	b.Run("stream", func(b *testing.B) {
		s1, heard := start(b)
		one := announcement(2)
		n := 0
		for b.Loop() {
			s1.Announce(one)
			if n++; n > maxQueue/2 {
				n -= <-heard
			}
		}
		for n > 0 {
			n -= <-heard
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "announcements/s")
		if st := s1.Status()[0]; st.Dropped > 0 {
			b.Errorf("status %+v", st)
		}
	})
}
