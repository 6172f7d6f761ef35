// Package authority holds the directory's own keys: the alliance's certificate
// authority, the key that signs bundles with the chain that led to it, and the
// key that members' codes are sealed to.
package authority

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"strings"
	"sync"
	"time"

	"countersign/directory"
	"countersign/directory/bundle"
	"countersign/directory/keys"
	pb "countersign/directory/proto"

	"google.golang.org/protobuf/proto"
)

// Errors that callers branch on.
var (
	// ErrExists is a directory that was initialised before.
	ErrExists = errors.New("directory is initialised already")
	// ErrMissing is a directory that was not initialised.
	ErrMissing = errors.New("directory is not initialised")
	// ErrRequest is a certificate request that is not acceptable.
	ErrRequest = errors.New("certificate request refused")
	// ErrCertificate is a certificate that names no role.
	ErrCertificate = errors.New("certificate names no role of this alliance")
)

const (
	caLifetime = 20 * 365 * 24 * time.Hour
	// backdate makes certificates valid for peers whose clocks are behind.
	backdate = 5 * time.Minute
	suffix   = ".countersign.internal"
)

// Role is what a certificate lets its holder do. The zero value is nothing.
type Role string

// The roles.
const (
	Member    Role = "member"
	Operator  Role = "operator"
	Reader    Role = "reader"
	Directory Role = "directory"
)

// DirectoryName is the host name in the directory's own certificates.
const DirectoryName = "server." + string(Directory) + suffix

// HostName is the DNS name in the certificate of a name and role; it is what
// the other end of a connection verifies.
func HostName(name string, role Role) string { return name + "." + string(role) + suffix }

// Holder returns the name and role of a verified certificate, or
// ErrCertificate.
func Holder(cert *x509.Certificate) (name string, role Role, err error) {
	if len(cert.DNSNames) == 1 {
		if host, ok := strings.CutSuffix(cert.DNSNames[0], suffix); ok {
			name, kind, _ := strings.Cut(host, ".")
			role = Role(kind)
			if directory.CheckName(name) == nil && (role == Member || role == Operator || role == Reader) {
				return name, role, nil
			}
		}
	}
	return "", "", fmt.Errorf("%w: %q", ErrCertificate, cert.DNSNames)
}

// Fingerprint is the SHA-256 of a DER certificate.
func Fingerprint(der []byte) [sha256.Size]byte { return sha256.Sum256(der) }

// stored is the content of the authority's file.
type stored struct {
	Alliance   string            `json:"alliance"`
	CAKey      []byte            `json:"ca_key"` // Ed25519 seed
	CA         []byte            `json:"ca"`     // DER
	SigningKey []byte            `json:"signing_key"`
	Chain      []json.RawMessage `json:"chain"` // KeyLink, oldest first
	SealKey    []byte            `json:"seal_key"`
}

// Authority holds the keys in memory. Make it with Create or Open; it is safe
// for concurrent use.
type Authority struct {
	path  string
	vault *keys.Vault
	now   func() time.Time

	alliance string
	caKey    ed25519.PrivateKey
	ca       *x509.Certificate
	sealKey  hpke.PrivateKey

	mu      sync.Mutex
	signing ed25519.PrivateKey
	chain   []*pb.KeyLink
	server  *tls.Certificate // cached, renewed at half of its life
}

// Create makes the keys of a new alliance in a file, or returns ErrExists.
func Create(path string, vault *keys.Vault, alliance string, now func() time.Time) (*Authority, error) {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrExists, path), err)
	}
	if err := directory.CheckName(alliance); err != nil {
		return nil, fmt.Errorf("alliance: %w", err)
	}
	a := &Authority{path: path, vault: vault, now: now, alliance: alliance}
	var err error
	if _, a.caKey, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	if _, a.signing, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	if a.sealKey, err = bundle.GenerateSealKey(); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Countersign alliance " + alliance},
		NotBefore:    now().Add(-backdate), NotAfter: now().Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "Countersign alliance " + alliance}}, a.caKey.Public(), a.caKey)
	if err != nil {
		return nil, fmt.Errorf("authority certificate: %w", err)
	}
	if a.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, a.save(a.signing, nil)
}

// Open reads what Create has made, or returns ErrMissing.
func Open(path string, vault *keys.Vault, now func() time.Time) (*Authority, error) {
	b, err := vault.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is missing, run `countersign directory init`", ErrMissing, path)
	}
	if err != nil {
		return nil, err
	}
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(s.CAKey) != ed25519.SeedSize || len(s.SigningKey) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s: %w", path, keys.ErrSealedFile)
	}
	a := &Authority{
		path: path, vault: vault, now: now, alliance: s.Alliance,
		caKey:   ed25519.NewKeyFromSeed(s.CAKey),
		signing: ed25519.NewKeyFromSeed(s.SigningKey),
	}
	if a.ca, err = x509.ParseCertificate(s.CA); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if a.sealKey, err = bundle.ParseSealKey(s.SealKey); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, raw := range s.Chain {
		var encoded []byte
		link := &pb.KeyLink{}
		if err := errors.Join(json.Unmarshal(raw, &encoded), proto.Unmarshal(encoded, link)); err != nil {
			return nil, fmt.Errorf("%s: chain: %w", path, err)
		}
		a.chain = append(a.chain, link)
	}
	return a, nil
}

func (a *Authority) save(signing ed25519.PrivateKey, chain []*pb.KeyLink) error {
	sealKey, err := a.sealKey.Bytes()
	if err != nil {
		return err
	}
	s := stored{Alliance: a.alliance, CAKey: a.caKey.Seed(), CA: a.ca.Raw, SigningKey: signing.Seed(), SealKey: sealKey}
	for _, link := range chain {
		b, err := proto.Marshal(link)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(b)
		if err != nil {
			return err
		}
		s.Chain = append(s.Chain, raw)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return a.vault.Write(a.path, b)
}

// Alliance is the name given to Create.
func (a *Authority) Alliance() string { return a.alliance }

// Certificate is the authority's own, which tokens carry the fingerprint of.
func (a *Authority) Certificate() *x509.Certificate { return a.ca }

// SealKey is the key pair that codes are sealed to.
func (a *Authority) SealKey() hpke.PrivateKey { return a.sealKey }

// Sign signs a header with the present directory key.
func (a *Authority) Sign(h *pb.Header) (*pb.SignedHeader, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return bundle.SignHeader(a.signing, h)
}

// PublicKey is the present directory key.
func (a *Authority) PublicKey() ed25519.PublicKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signing.Public().(ed25519.PublicKey)
}

// Chain returns the links from a key that a member trusts to the present one;
// none where they are the same, all where the key is unknown.
func (a *Authority) Chain(trusted ed25519.PublicKey) []*pb.KeyLink {
	a.mu.Lock()
	defer a.mu.Unlock()
	if bytes.Equal(trusted, a.signing.Public().(ed25519.PublicKey)) {
		return nil
	}
	for i, link := range a.chain {
		if bytes.Equal(link.Previous, trusted) {
			return a.chain[i:len(a.chain):len(a.chain)]
		}
	}
	return a.chain[:len(a.chain):len(a.chain)]
}

// RotateKey makes a new directory key, signed by the old one. It is on disk
// before anything is signed with it.
func (a *Authority) RotateKey() error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	chain := append(a.chain[:len(a.chain):len(a.chain)], bundle.SignLink(a.signing, public))
	if err := a.save(private, chain); err != nil {
		return fmt.Errorf("save directory key: %w", err)
	}
	a.signing, a.chain = private, chain
	return nil
}

// Issue makes a certificate for the key of a PKCS #10 request; its subject is
// ignored. It returns the DER certificates, the new one first, and the key, or
// ErrRequest.
func (a *Authority) Issue(request []byte, name string, role Role, lifetime time.Duration) ([][]byte, ed25519.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	key, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, nil, fmt.Errorf("%w: key of type %T, want Ed25519", ErrRequest, csr.PublicKey)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	der, err := a.issue(key, HostName(name, role), lifetime)
	if err != nil {
		return nil, nil, err
	}
	return [][]byte{der, a.ca.Raw}, key, nil
}

func (a *Authority) issue(key ed25519.PublicKey, host string, lifetime time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: host},
		DNSNames:     []string{host},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.ca, key, a.caKey)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", host, err)
	}
	return der, nil
}

// TLSConfig is the directory's listener: TLS 1.3 with a short-lived certificate
// that renews itself. A client certificate is verified where there is one; who
// may do without is decided for each call.
func (a *Authority) TLSConfig(lifetime time.Duration) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  pool,
		Time:       a.now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.serverCertificate(lifetime)
		},
		// A resumed session would skip the certificate's expiry.
		SessionTicketsDisabled: true,
	}
}

func (a *Authority) serverCertificate(lifetime time.Duration) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil && a.server.Leaf.NotAfter.Sub(a.now()) > lifetime/2 {
		return a.server, nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := a.issue(public, DirectoryName, lifetime)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a.server = &tls.Certificate{Certificate: [][]byte{der, a.ca.Raw}, PrivateKey: private, Leaf: leaf}
	return a.server, nil
}

func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b), nil
}
