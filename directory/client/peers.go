package client

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/clock"
	pb "countersign/directory/proto"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// peerTLS is what both ends of a connection between members share. Before Join
// it trusts nobody.
func (c *Client) peerTLS() (*tls.Config, *x509.CertPool) {
	pool := x509.NewCertPool()
	c.mu.Lock()
	if c.joined() {
		for _, der := range c.bundle.Header.Authorities {
			if ca, err := x509.ParseCertificate(der); err == nil {
				pool.AddCert(ca)
			}
		}
	}
	c.mu.Unlock()
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       c.cfg.Clock.Now,
		NextProtos: []string{"h2"},
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := c.PeerName(s)
			return err
		},
		SessionTicketsDisabled: true,
	}, pool
}

// ServerTLS is the configuration of a listener for other members: mutual TLS
// 1.3 with the member's newest certificate, active members only.
func (c *Client) ServerTLS() *tls.Config {
	conf, pool := c.peerTLS()
	conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, pool
	conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.certificate() }
	return conf
}

// ClientTLS is the configuration of a connection to the member of that name.
func (c *Client) ClientTLS(member string) *tls.Config {
	conf, pool := c.peerTLS()
	conf.RootCAs, conf.ServerName = pool, authority.HostName(member, authority.Member)
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate() }
	return conf
}

// PeerName returns the member at the other end of a connection made with
// ServerTLS or ClientTLS, or ErrUnknownPeer where it is not, or no longer,
// active. A connection outlives an exclusion: ask again for each call.
func (c *Client) PeerName(state tls.ConnectionState) (string, error) {
	if len(state.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: no certificate", ErrUnknownPeer)
	}
	cert := state.PeerCertificates[0]
	name, role, err := authority.Holder(cert)
	if err != nil || role != authority.Member {
		return "", errors.Join(fmt.Errorf("%w: %q", ErrUnknownPeer, cert.DNSNames), err)
	}
	s := c.Snapshot()
	if s == nil {
		return "", fmt.Errorf("%w: %s", ErrNotJoined, c.cfg.State)
	}
	m := s.Member(name)
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if m == nil || m.State != directory.Active || !ok || !key.Equal(m.Identity) {
		return "", fmt.Errorf("%w: %s", ErrUnknownPeer, name)
	}
	return name, nil
}

// JoinOperator redeems a token for an operator or reader and writes the
// credential to a file.
func JoinOperator(ctx context.Context, token, path string, clk clock.Clock) error {
	t, err := authority.ParseToken(token)
	if err != nil {
		return err
	}
	if t.Role == authority.Member {
		return fmt.Errorf("%w: it is for a member", authority.ErrToken)
	}
	key, request, err := authority.NewIdentity()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(t.Address, grpc.WithTransportCredentials(credentials.NewTLS(t.JoinTLS(clk.Now))))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := pb.NewEnrolmentClient(conn).Join(ctx, &pb.JoinRequest{Secret: t.Secret, Request: request})
	if err != nil {
		return fmt.Errorf("join as %s: %w", t.Name, err)
	}
	credential := authority.Credential{Address: t.Address, Certificates: resp.Certificates, Key: key.Seed()}
	if _, err := credential.Certificate(); err != nil {
		return err
	}
	return credential.Write(path)
}

// DialOperator connects with a credential file; address replaces the one in it
// unless it is empty. The caller closes the second result.
func DialOperator(path, address string, clk clock.Clock) (pb.AdministrationClient, io.Closer, error) {
	credential, err := authority.ReadCredential(path)
	if err != nil {
		return nil, nil, err
	}
	conf, err := authority.DirectoryTLS(credential.Certificates[1], clk.Now, credential.Certificate)
	if err != nil {
		return nil, nil, err
	}
	if address == "" {
		address = credential.Address
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxUpdate)))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return pb.NewAdministrationClient(conn), conn, nil
}
