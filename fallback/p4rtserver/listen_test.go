package p4rtserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/p4rtserver/memtarget"
)

func TestListenRefusals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for _, tt := range []struct {
		name     string
		endpoint p4rtserver.Endpoint
		insecure bool
		text     string
	}{
		{"all addresses in clear", p4rtserver.Endpoint{Address: ":0"}, true, "give a certificate"},
		{"0.0.0.0 in clear", p4rtserver.Endpoint{Address: "0.0.0.0:0"}, true, "0.0.0.0:0"},
		{"a name in clear", p4rtserver.Endpoint{Address: "localhost:0"}, true, "127.0.0.1"},
		{"one-sided TLS", p4rtserver.Endpoint{Address: "127.0.0.1:0", TLS: &tls.Config{}}, false, "verify client certificates"},
		{"TLS without a CA", p4rtserver.Endpoint{Address: "127.0.0.1:0", TLS: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}}, false, "verify client certificates"},
		{"no port", p4rtserver.Endpoint{Address: "127.0.0.1"}, false, "HOST:PORT"},
		{"a file in the way", p4rtserver.Endpoint{Address: "unix://" + file}, false, "in use"},
		{"a live socket", p4rtserver.Endpoint{Address: "unix://" + filepath.Join(dir, "live")}, false, "in use"},
		{"no such directory", p4rtserver.Endpoint{Address: "unix://" + filepath.Join(dir, "none", "s")}, false, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lis, err := tt.endpoint.Listen(t.Context())
			if err == nil {
				lis.Close()
				t.Fatal("it listens")
			}
			if errors.Is(err, p4rtserver.ErrInsecure) != tt.insecure || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	lis, err := p4rtserver.Endpoint{Address: "0.0.0.0:0", AllowInsecure: true}.Listen(t.Context())
	if err != nil {
		t.Fatalf("AllowInsecure: %v", err)
	}
	lis.Close()
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	lis, err := p4rtserver.Endpoint{Address: "unix://" + path}.Listen(t.Context())
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	defer lis.Close()
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v, expected 0600", fi.Mode(), err)
	}
}

// authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestMutualTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	srv, err := p4rtserver.New(new(memtarget.Target), p4rtserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{ca.issue(t)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool}
	lis, err := p4rtserver.Endpoint{Address: "127.0.0.1:0", TLS: conf}.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, lis, conf) }()
	for _, tt := range []struct {
		name  string
		certs []tls.Certificate
		ok    bool
	}{
		{"the alliance's certificate", []tls.Certificate{ca.issue(t)}, true},
		{"no certificate", nil, false},
		{"another CA's certificate", []tls.Certificate{other.issue(t)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: ca.pool, Certificates: tt.certs})))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = p4v1.NewP4RuntimeClient(conn).Capabilities(t.Context(), &p4v1.CapabilitiesRequest{})
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
