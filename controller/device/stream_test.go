package device_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"

	"countersign/controller/device"
	"countersign/controller/device/devicetest"
)

func packetIn(payload string) *p4v1.StreamMessageResponse {
	return &p4v1.StreamMessageResponse{Update: &p4v1.StreamMessageResponse_Packet{Packet: &p4v1.PacketIn{Payload: []byte(payload)}}}
}

func TestStreamMessages(t *testing.T) {
	s := server(t)
	reg := prometheus.NewRegistry()
	cfg := config(s)
	cfg.Name, cfg.Metrics = "d", device.NewMetrics(reg)
	cfg.Queues = []device.Queue{{Name: "a", Depth: 2}, {Name: "b", Depth: 8}}
	cfg.Classify = func(p *p4v1.PacketIn) int { return int(p.GetPayload()[0]) - 'a' }
	r := start(t, cfg, []*p4v1.Entity{}...)
	r.synced(1)

	for _, m := range []*p4v1.StreamMessageResponse{
		packetIn("a1"), packetIn("a2"), packetIn("a3 finds the queue full"), packetIn("z has no queue"),
		{Update: &p4v1.StreamMessageResponse_Digest{Digest: &p4v1.DigestList{}}},
		{Update: &p4v1.StreamMessageResponse_Error{Error: &p4v1.StreamError{CanonicalCode: int32(codes.InvalidArgument)}}},
		{Update: &p4v1.StreamMessageResponse_IdleTimeoutNotification{IdleTimeoutNotification: &p4v1.IdleTimeoutNotification{
			TableEntry: []*p4v1.TableEntry{sessionOf(1).GetTableEntry(), sessionOf(2).GetTableEntry()},
		}}},
		packetIn("b1"),
	} {
		if !s.Send(m) {
			t.Fatal("no primary")
		}
	}
	if p := <-r.PacketIns(1); string(p.GetPayload()) != "b1" { // all before it has been dispatched
		t.Errorf("queue b: %q", p.GetPayload())
	}
	for _, want := range []string{"a1", "a2"} {
		if p := <-r.PacketIns(0); string(p.GetPayload()) != want {
			t.Errorf("queue a: %q, want %q", p.GetPayload(), want)
		}
	}
	if n := <-r.IdleTimeouts(); len(n.GetTableEntry()) != 2 {
		t.Errorf("idle timeouts: %v", n)
	}
	if err := r.PacketOut(t.Context(), &p4v1.PacketOut{Payload: []byte("out")}); err != nil {
		t.Error(err)
	}
	if p := <-s.PacketOuts(); string(p.GetPayload()) != "out" {
		t.Errorf("packet-out %v", p)
	}
	for name, want := range map[string]float64{
		"packet_ins_total": 4, "packet_in_drops_total": 1, "idle_timeouts_total": 2,
		"unhandled_stream_messages_total": 2, "stream_errors_total": 1,
	} {
		if got := total(t, reg, "countersign_p4runtime_"+name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}

	// Queues outlive connections.
	s.DropStreams()
	r.synced(2)
	s.Send(packetIn("b2"))
	if p := <-r.PacketIns(1); string(p.GetPayload()) != "b2" {
		t.Errorf("queue b: %q", p.GetPayload())
	}
}

// total sums a metric over its labels.
func total(t testing.TB, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := server(t)
	cfg := config(s)
	cfg.Metrics = device.NewMetrics(reg)
	r := start(t, cfg, routeTo(1, 1))
	r.synced(1)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for name, want := range map[string]float64{"updates_total": 1, "write_batches_total": 1, "static_updates_total": 1, "pipeline_pushes_total": 1} {
		if got := total(t, reg, "countersign_p4runtime_"+name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestTargets(t *testing.T) {
	mutual := &tls.Config{Certificates: make([]tls.Certificate, 1)}
	for _, c := range []struct {
		target string
		tls    *tls.Config
		want   error
	}{
		{"unix:///run/countersign/p4rt", nil, nil},
		{"127.0.0.1:9559", nil, nil},
		{"[::1]:9559", nil, nil},
		{"localhost:9559", nil, nil},
		{"192.0.2.1:9559", nil, device.ErrInsecureTarget},
		{"switch.example:9559", nil, device.ErrInsecureTarget},
		{"switch.example:9559", &tls.Config{}, device.ErrInsecureTarget},
		{"switch.example:9559", mutual, nil},
	} {
		_, err := device.New(device.Config{Target: c.target, TLS: c.tls, Pipeline: device.Pipeline{Info: info()}})
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.target, err, c.want)
		}
	}
	for _, cfg := range []device.Config{
		{Target: "no port", Pipeline: device.Pipeline{Info: info()}},
		{Target: "unix:///x"},
		{Target: "unix:///x", Pipeline: device.Pipeline{Info: info()}, Dynamic: []uint32{99}},
		{Target: "unix:///x", Pipeline: device.Pipeline{Info: info()}, Queues: []device.Queue{{Name: "none"}}},
	} {
		if _, err := device.New(cfg); err == nil {
			t.Errorf("New took %+v", cfg)
		}
	}
}

func TestMutualTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	s := server(t, func(s *devicetest.Server) {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	})
	cfg := config(s)
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}
	r := start(t, cfg, routeTo(1, 1))
	r.synced(1)
	s.Stop()
	s.Start(t)
	r.synced(2)

	// A server that the configuration does not trust gets nothing.
	_, other := selfSigned(t)
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: other}
	st := start(t, cfg, routeTo(1, 1)).await("refusal", func(st device.State) bool { return st.Err != nil })
	if st.Phase != device.Disconnected {
		t.Errorf("state %+v", st)
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
