package authority

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"countersign/directory"
	"countersign/directory/keys"
)

// ErrToken is a token that cannot be read.
var ErrToken = errors.New("not a valid token")

const tokenPrefix = "cst1."

// SecretLen is the length in bytes of a token's secret.
const SecretLen = 32

// Token is what an operator hands to a new member: where the directory is, how
// to know it, and a secret that is good for one Join. It is a secret as a whole.
type Token struct {
	Name        string            `json:"n"`
	Role        Role              `json:"r"`
	Address     string            `json:"a"` // host:port of the directory
	Fingerprint [sha256.Size]byte `json:"-"` // of the authority's certificate
	Secret      []byte            `json:"s"`
	Print       []byte            `json:"f"` // Fingerprint as bytes
}

// Encode is the token as one word of printable ASCII.
func (t Token) Encode() (string, error) {
	t.Print = t.Fingerprint[:]
	b, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b), nil
}

// ParseToken is the inverse of Encode; it returns ErrToken, which never shows
// the token.
func ParseToken(text string) (t Token, err error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok {
		return t, fmt.Errorf("%w: it does not start with %s", ErrToken, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || json.Unmarshal(b, &t) != nil {
		return Token{}, fmt.Errorf("%w: it is incomplete or mistyped", ErrToken)
	}
	if directory.CheckName(t.Name) != nil || len(t.Secret) != SecretLen || len(t.Print) != sha256.Size || t.Address == "" {
		return Token{}, fmt.Errorf("%w: it is incomplete or mistyped", ErrToken)
	}
	t.Fingerprint = [sha256.Size]byte(t.Print)
	return t, nil
}

// String does not show the secret.
func (t Token) String() string { return fmt.Sprintf("token for %s %q", t.Role, t.Name) }

// GoString does not show the secret.
func (t Token) GoString() string { return t.String() }

// JoinTLS is the configuration for the connection that redeems a token: no
// client certificate yet, and a directory known by its authority's fingerprint.
func (t Token) JoinTLS(now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Verification is VerifyConnection's: there are no roots yet.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			pool := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				if sha256.Sum256(c.Raw) == t.Fingerprint {
					pool.AddCert(c)
				}
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: DirectoryName, CurrentTime: now()})
			if err != nil {
				return fmt.Errorf("this is not the directory that issued the token: %w", err)
			}
			return nil
		},
	}
}

// NewIdentity makes an identity key and a PKCS #10 request for it.
func NewIdentity() (ed25519.PrivateKey, []byte, error) {
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	request, err := NewRequest(identity)
	return identity, request, err
}

// NewRequest makes a PKCS #10 request for an identity key.
func NewRequest(identity ed25519.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, identity)
}

// Credential is an identity with its certificate, and the directory that it is
// for. It is a secret; the zero value is not usable.
type Credential struct {
	Address      string   `json:"address"`      // host:port of the directory
	Certificates [][]byte `json:"certificates"` // DER: its own, then the authority's
	Key          []byte   `json:"key"`          // Ed25519 seed
}

// ReadCredential reads a file that Write has made, which only its owner may
// read.
func ReadCredential(path string) (c Credential, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return c, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return c, fmt.Errorf("credential %s: mode %#o lets others in, run chmod 600", path, mode)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("credential %s: %w", path, err)
	}
	if _, err := c.Certificate(); err != nil {
		return c, fmt.Errorf("credential %s: %w", path, err)
	}
	return c, nil
}

// Write puts the credential into a file of mode 0600.
func (c Credential) Write(path string) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return keys.WriteFile(path, b)
}

// Certificate is the credential in the form that TLS takes.
func (c Credential) Certificate() (*tls.Certificate, error) {
	if len(c.Certificates) != 2 || len(c.Key) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: it is incomplete", ErrCertificate)
	}
	leaf, err := x509.ParseCertificate(c.Certificates[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return &tls.Certificate{Certificate: c.Certificates, PrivateKey: ed25519.NewKeyFromSeed(c.Key), Leaf: leaf}, nil
}

// DirectoryTLS is the configuration for a connection to the directory with the
// certificate that current returns.
func DirectoryTLS(root []byte, now func() time.Time, current func() (*tls.Certificate, error)) (*tls.Config, error) {
	ca, err := x509.ParseCertificate(root)
	if err != nil {
		return nil, fmt.Errorf("%w: authority: %w", ErrCertificate, err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: DirectoryName, Time: now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current() },
	}, nil
}
