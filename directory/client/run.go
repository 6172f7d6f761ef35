package client

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/bundle"
	"countersign/directory/keys"
	pb "countersign/directory/proto"
	"countersign/tag"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	backoffMin = 50 * time.Millisecond
	backoffMax = 5 * time.Second
	// retryChange is the pause after a change that the directory refused.
	retryChange = time.Second
)

// Run follows the directory until ctx ends: it watches with back-off, publishes
// and rotates keys, renews certificate and code. It returns ctx's error, or
// ErrNotJoined at once.
func (c *Client) Run(ctx context.Context) error {
	if !c.Joined() {
		return fmt.Errorf("%w: %s", ErrNotJoined, c.cfg.State)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.follow(ctx) })
	g.Go(func() error { return c.maintain(ctx) })
	if slices.Contains(c.Snapshot().Self.Suites, tag.RSA2048) {
		g.Go(func() error { return c.spares.Fill(ctx) })
	}
	return g.Wait()
}

// certificate is the newest one.
func (c *Client) certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	id := c.identity
	c.mu.Unlock()
	if id == nil {
		return nil, ErrNotJoined
	}
	return authority.Credential{Certificates: id.Certificates, Key: id.Key}.Certificate()
}

// follow keeps a watch open, and opens the next one after a pause that grows
// while there is none.
func (c *Client) follow(ctx context.Context) error {
	pause := backoffMin
	for {
		updated, err := c.watch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if updated {
			pause = backoffMin
		}
		c.emit(Event{Kind: EventDisconnected, Err: err})
		c.checkExpiry()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.cfg.Clock.At(c.cfg.Clock.Now().Add(pause/2 + mathrand.N(pause/2))):
		}
		pause = min(2*pause, backoffMax)
	}
}

func (c *Client) dial() (*grpc.ClientConn, error) {
	c.mu.Lock()
	id := c.identity
	c.mu.Unlock()
	conf, err := authority.DirectoryTLS(id.Certificates[1], c.cfg.Clock.Now, c.certificate)
	if err != nil {
		return nil, err
	}
	address := id.Address
	if c.cfg.Address != "" {
		address = c.cfg.Address
	}
	return grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxUpdate)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
}

// watch is one connection to the directory.
func (c *Client) watch(ctx context.Context) (updated bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	c.mu.Lock()
	trusted := ed25519.PublicKey(c.bundle.Signed.DirectoryKey)
	req := &pb.WatchRequest{Version: c.bundle.Version(), Sequence: c.bundle.Sequence, DirectoryKey: trusted}
	c.mu.Unlock()
	stream, err := pb.NewMembershipClient(conn).Watch(ctx, req)
	if err != nil {
		return false, err
	}
	defer func() {
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
		c.metrics.connected.Set(0)
	}()
	for {
		u, err := stream.Recv()
		if err != nil {
			return updated, err
		}
		c.mu.Lock()
		err = c.apply(trusted, u)
		if err == nil {
			trusted = c.bundle.Signed.DirectoryKey
			c.conn = conn
		}
		c.mu.Unlock()
		c.flush()
		if err != nil {
			c.emit(Event{Kind: EventRefused, Err: err})
			return updated, err
		}
		if !updated {
			updated = true
			c.metrics.connected.Set(1)
			c.emit(Event{Kind: EventConnected})
		}
		c.wake()
	}
}

// flush emits what was queued under c.mu.
func (c *Client) flush() {
	c.mu.Lock()
	queued := c.queued
	c.queued = nil
	c.mu.Unlock()
	for _, e := range queued {
		c.emit(e)
	}
}

func (c *Client) wake() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// checkExpiry takes the keys away when the bundle has expired.
func (c *Client) checkExpiry() {
	c.mu.Lock()
	s := c.snapshot
	expired := !c.cfg.Clock.Now().Before(s.Expiry) && slices.ContainsFunc(s.Keys, func(k directory.VerifyKey) bool { return k.State.Live() })
	if expired {
		c.publish()
		c.queued = append(c.queued, Event{Kind: EventExpired, Err: fmt.Errorf("%w: version %d at %v", bundle.ErrExpired, s.Version, s.Expiry)})
	}
	c.mu.Unlock()
	c.flush()
}

// maintain does what is due, after each update and in time.
func (c *Client) maintain(ctx context.Context) error {
	rotateAt := c.nextRotation()
	for {
		c.checkExpiry()
		var err error
		if c.Status().Connected {
			steps := []func(context.Context) error{c.renewCode, c.renewCertificate, c.ensureKeys, c.sendAck}
			if !rotateAt.IsZero() && !c.cfg.Clock.Now().Before(rotateAt) {
				steps = append(steps, func(ctx context.Context) error {
					err := c.rotateAll(ctx)
					if err == nil {
						rotateAt = c.nextRotation()
					}
					return err
				})
			}
			for _, step := range steps {
				err = errors.Join(err, step(ctx))
			}
		}
		due := c.dueAt(rotateAt)
		if err != nil {
			if ctx.Err() == nil && status.Code(err) != codes.FailedPrecondition {
				c.cfg.Log.Warn("directory_request_failed", "error", err)
			}
			pause := retryChange
			if c.cfg.RotateEvery > 0 {
				pause = min(pause, max(c.cfg.RotateEvery/10, backoffMin))
			}
			due = c.cfg.Clock.Now().Add(pause)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.poke:
		case <-c.cfg.Clock.At(due):
		}
	}
}

func (c *Client) nextRotation() time.Time {
	if c.cfg.RotateEvery == 0 {
		return time.Time{}
	}
	jitter := max(c.cfg.RotateEvery/5, 1)
	return c.cfg.Clock.Now().Add(c.cfg.RotateEvery - jitter/2 + mathrand.N(jitter))
}

// dueAt is until when maintain may sleep.
func (c *Client) dueAt(rotateAt time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.cfg.Clock.Now().Add(time.Hour)
	take := func(t time.Time) {
		if t.Before(at) {
			at = t
		}
	}
	if c.cfg.Clock.Now().Before(c.snapshot.Expiry) {
		take(c.snapshot.Expiry)
	}
	if c.conn != nil {
		take(renewAt(c.identity))
		if c.confirmed {
			take(c.codeSince.Add(c.cfg.CodeEvery))
		}
		if !rotateAt.IsZero() {
			take(rotateAt)
		}
	}
	return at
}

// renewAt is when the certificate is renewed: before half of its life, with a
// jitter that is its own.
func renewAt(id *identity) time.Time {
	cert, err := authority.Credential{Certificates: id.Certificates, Key: id.Key}.Certificate()
	if err != nil {
		return time.Time{}
	}
	life := cert.Leaf.NotAfter.Sub(id.Obtained)
	jitter := time.Duration(cert.Leaf.Raw[len(cert.Leaf.Raw)-1]) // of the signature
	return id.Obtained.Add(life*4/10 + life*jitter/2560)
}

// request sends one request that changes something: one at a time, with a fresh
// proof, to the directory that is connected.
func (c *Client) request(ctx context.Context, method string, send func(context.Context, pb.MembershipClient, *pb.Proof) error) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	c.mu.Lock()
	conn, id := c.conn, c.identity
	var sealKey []byte
	if c.bundle.Header != nil {
		sealKey = c.bundle.Header.DirectorySealKey
	}
	c.mu.Unlock()
	if conn == nil {
		return fmt.Errorf("%w: %s", ErrUnavailable, method)
	}
	proof, err := bundle.SealProof(sealKey, id.Name, method, id.Code, id.NextCode)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := send(ctx, pb.NewMembershipClient(conn), proof); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.identity.NextCode == id.NextCode {
		c.confirmed = true
	}
	return nil
}

// renewCode moves on to the next code, once the directory has it. Both are on
// disk before either is used.
func (c *Client) renewCode(context.Context) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Clock.Now()
	if !c.confirmed || now.Before(c.codeSince.Add(c.cfg.CodeEvery)) {
		return nil
	}
	id := *c.identity
	id.Code = id.NextCode
	if _, err := rand.Read(id.NextCode[:]); err != nil {
		return err
	}
	if err := c.saveIdentity(&id); err != nil {
		return fmt.Errorf("save code: %w", err)
	}
	c.confirmed, c.codeSince = false, now
	c.cfg.Log.Info("code_renewed", "member", id.Name)
	return nil
}

func (c *Client) renewCertificate(ctx context.Context) error {
	c.mu.Lock()
	id := c.identity
	c.mu.Unlock()
	if c.cfg.Clock.Now().Before(renewAt(id)) {
		return nil
	}
	request, err := authority.NewRequest(ed25519.NewKeyFromSeed(id.Key))
	if err != nil {
		return err
	}
	var resp *pb.RenewResponse
	err = c.request(ctx, "Renew", func(ctx context.Context, m pb.MembershipClient, proof *pb.Proof) (err error) {
		resp, err = m.Renew(ctx, &pb.RenewRequest{Proof: proof, Request: request})
		return err
	})
	if err != nil {
		return err
	}
	if _, err := (authority.Credential{Certificates: resp.Certificates, Key: id.Key}).Certificate(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	renewed := *c.identity
	renewed.Certificates, renewed.Obtained = resp.Certificates, c.cfg.Clock.Now()
	if err := c.saveIdentity(&renewed); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	c.cfg.Log.Info("certificate_renewed", "member", renewed.Name)
	if c.conn != nil { // the watch comes back with the new certificate
		return c.conn.Close()
	}
	return nil
}

// ensureKeys publishes what the directory lacks: a next and a reserve key in
// each suite, and envelopes for members that have none.
func (c *Client) ensureKeys(ctx context.Context) error {
	s := c.Snapshot()
	if s.Self.State != directory.Active || len(s.Self.UNIDs) == 0 {
		return nil
	}
	for _, suite := range s.Self.Suites {
		for _, reserve := range []bool{false, true} {
			if err := c.ensureKey(ctx, s, suite, reserve); err != nil {
				return err
			}
		}
	}
	return c.publishKeys(ctx)
}

// ensureKey puts a key into the ring where there is none for that use.
func (c *Client) ensureKey(ctx context.Context, s *directory.Snapshot, suite tag.Suite, reserve bool) error {
	unid := s.Self.UNIDs[0]
	have := func() bool {
		for id, o := range c.ring.Own {
			if id.Suite != suite || id.UNID != unid || o.Reserve != reserve {
				continue
			}
			r := c.bundle.Records[bundle.KeyRecordID(id)]
			if r == nil || r.Body.GetKey().State == pb.KeyState_KEY_STATE_NEXT {
				return true
			}
		}
		return false
	}
	c.mu.Lock()
	ok := have()
	c.mu.Unlock()
	if ok {
		return nil
	}
	issue, err := c.spares.Take(ctx, suite)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.ring.Add(issue, s.Self.Name, unid, ed25519.NewKeyFromSeed(c.identity.Key))
	if err != nil {
		return err
	}
	o.Reserve = reserve
	if err := c.ring.Save(); err != nil {
		delete(c.ring.Own, o.ID)
		return fmt.Errorf("save keyring: %w", err)
	}
	return nil
}

// publishKeys hands in keys and envelopes that the directory does not have yet.
func (c *Client) publishKeys(ctx context.Context) error {
	c.mu.Lock()
	to := recipients(c.snapshot)
	var owns []*keys.Own
	req := &pb.PublishRequest{}
	for _, o := range c.ring.Own {
		p, err := o.Publication(to)
		if err != nil {
			c.mu.Unlock()
			return err
		}
		if o.Published == 0 || len(p.Envelopes) > 0 {
			owns, req.Keys = append(owns, o), append(req.Keys, p)
		}
	}
	c.mu.Unlock()
	if len(req.Keys) == 0 {
		return nil
	}
	var resp *pb.PublishResponse
	err := c.request(ctx, "Publish", func(ctx context.Context, m pb.MembershipClient, proof *pb.Proof) (err error) {
		req.Proof = proof
		resp, err = m.Publish(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, o := range owns {
		o.MarkSealed(req.Keys[i], to, resp.Sequence)
	}
	return c.ring.Save()
}

// Ack tells the directory that every key of the Snapshot with that Sequence
// stands in each reachable data plane, but for missing. While the directory is
// away, the newest word is kept and sent later, and the error is
// ErrUnavailable.
func (c *Client) Ack(ctx context.Context, sequence uint64, missing ...tag.KeyID) error {
	req := &pb.AckRequest{Sequence: sequence}
	for _, id := range missing {
		req.Missing = append(req.Missing, bundle.WireKeyID(id))
	}
	c.mu.Lock()
	if c.ack == nil || c.ack.Sequence <= sequence {
		c.ack, c.acked = req, false
	}
	c.mu.Unlock()
	return c.sendAck(ctx)
}

func (c *Client) sendAck(ctx context.Context) error {
	c.mu.Lock()
	ack, done := c.ack, c.acked
	if ack == nil || done {
		c.mu.Unlock()
		return nil
	}
	req := &pb.AckRequest{Sequence: ack.Sequence, Missing: slices.Clone(ack.Missing)}
	for id := range c.bad {
		req.Missing = append(req.Missing, bundle.WireKeyID(id))
	}
	c.mu.Unlock()
	err := c.request(ctx, "Ack", func(ctx context.Context, m pb.MembershipClient, proof *pb.Proof) error {
		req.Proof = proof
		_, err := m.Ack(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = c.acked || c.ack == ack
	return nil
}

// Rotate makes the next key of a suite current. It reports false where that
// waits for acknowledgements; the Snapshot shows when it is done.
func (c *Client) Rotate(ctx context.Context, suite tag.Suite) (done bool, err error) {
	err = c.request(ctx, "RotateOwn", func(ctx context.Context, m pb.MembershipClient, proof *pb.Proof) error {
		resp, err := m.RotateOwn(ctx, &pb.RotateOwnRequest{Proof: proof, Suite: pb.Suite(suite)})
		done = resp.GetDone()
		return err
	})
	return done, err
}

func (c *Client) rotateAll(ctx context.Context) (err error) {
	s := c.Snapshot()
	for _, suite := range s.Self.Suites {
		if s.Self.State == directory.Active {
			_, e := c.Rotate(ctx, suite)
			err = errors.Join(err, e)
		}
	}
	return err
}
