package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/client"
	"countersign/directory/clock"
	pb "countersign/directory/proto"
	"countersign/directory/server"
	"countersign/tag"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// patience is how long a test waits for an event before it gives up.
const patience = 30 * time.Second

// alliance is a directory over loopback, on a clock that the test moves.
type alliance struct {
	t     *testing.T
	clk   *clock.Fake
	cfg   server.Config
	addr  string
	admin pb.AdministrationClient
	stop  func()
}

func newAlliance(t *testing.T, edit func(*server.Config)) *alliance {
	t.Helper()
	a := &alliance{t: t, clk: clock.NewFake(time.Now())}
	lis := listen(t, "127.0.0.1:0")
	a.addr = lis.Addr().String()
	a.cfg = server.Config{
		State: t.TempDir(), Address: a.addr, Alliance: "lab", Clock: a.clk,
		AckTimeout: 10 * time.Second, Grace: 20 * time.Second, SessionTimeout: 40 * time.Second, CertLifetime: 24 * time.Hour,
	}
	if edit != nil {
		edit(&a.cfg)
	}
	credential, err := server.Init(a.cfg, "root")
	if err != nil {
		t.Fatal(err)
	}
	a.start(lis)
	admin, conn, err := client.DialOperator(credential, "", a.clk)
	if err != nil {
		t.Fatal(err)
	}
	a.admin = admin
	t.Cleanup(func() { closeQuietly(conn); a.stop() })
	return a
}

func closeQuietly(c io.Closer) { _ = c.Close() }

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return lis
}

func (a *alliance) start(lis net.Listener) {
	a.t.Helper()
	s, err := server.New(a.cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(a.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis) }()
	var once sync.Once
	a.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				a.t.Errorf("serve: %v", err)
			}
		})
	}
}

func (a *alliance) ctx() context.Context {
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	a.t.Cleanup(cancel)
	return ctx
}

func (a *alliance) invite(req *pb.InviteRequest) string {
	a.t.Helper()
	resp, err := a.admin.Invite(a.ctx(), req)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.Token
}

// node is a member with a controller that acknowledges whatever it gets.
type node struct {
	t    *testing.T
	a    *alliance
	name string
	cfg  client.Config
	c    *client.Client
	stop func()

	mu      sync.Mutex
	last    *directory.Snapshot
	wake    chan struct{}
	mute    bool // do not acknowledge
	renewed bool // the code was
	events  []client.Event
}

func (a *alliance) join(name string, suites ...pb.Suite) *node {
	a.t.Helper()
	if len(suites) == 0 {
		suites = []pb.Suite{pb.Suite_SUITE_SIPHASH}
	}
	n := a.newNode(name, a.t.TempDir())
	if err := n.c.Join(a.ctx(), a.invite(&pb.InviteRequest{Name: name, Suites: suites})); err != nil {
		a.t.Fatal(err)
	}
	n.run()
	return n
}

func (a *alliance) newNode(name, dir string) *node {
	a.t.Helper()
	n := &node{t: a.t, a: a, name: name, wake: make(chan struct{})}
	n.cfg = client.Config{State: dir, Clock: a.clk, Log: slog.New(renewals{n}), OnEvent: func(e client.Event) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.events = append(n.events, e)
		n.notify()
	}}
	n.open()
	return n
}

// renewals is a slog.Handler that notes when the code was renewed.
type renewals struct{ n *node }

func (r renewals) Enabled(context.Context, slog.Level) bool { return true }
func (r renewals) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r renewals) WithGroup(string) slog.Handler            { return r }
func (r renewals) Handle(_ context.Context, rec slog.Record) error {
	if rec.Message == "code_renewed" {
		r.n.mu.Lock()
		defer r.n.mu.Unlock()
		r.n.renewed = true
		r.n.notify()
	}
	return nil
}

func (n *node) mustAck() {
	n.t.Helper()
	if err := n.c.Ack(n.a.ctx(), n.c.Snapshot().Sequence); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) open() {
	n.t.Helper()
	c, err := client.Open(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.c = c
}

func (n *node) notify() {
	close(n.wake)
	n.wake = make(chan struct{})
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(n.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.c.Run(ctx); !errors.Is(err, context.Canceled) {
			n.t.Errorf("%s: run: %v", n.name, err)
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-n.c.Updates():
				n.mu.Lock()
				mute := n.mute
				n.mu.Unlock()
				if !mute {
					_ = n.c.Ack(ctx, s.Sequence) // kept and sent again where it fails
				}
				n.mu.Lock()
				n.last = s
				n.notify()
				n.mu.Unlock()
			}
		}
	})
	n.stop = func() { cancel(); wg.Wait() }
	n.t.Cleanup(n.stop)
}

func (n *node) setMute(mute bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute = mute
}

// until waits for a snapshot that fits.
func (n *node) until(what string, fits func(*directory.Snapshot) bool) *directory.Snapshot {
	n.t.Helper()
	var s *directory.Snapshot
	n.await(what, func() bool { s = n.last; return s != nil && fits(s) })
	return s
}

func (n *node) await(what string, fits func() bool) {
	n.t.Helper()
	deadline := time.After(patience)
	for {
		n.mu.Lock()
		ok, wake := fits(), n.wake
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-wake:
		case <-deadline:
			n.mu.Lock()
			defer n.mu.Unlock()
			n.t.Fatalf("%s: never: %s; last %+v", n.name, what, n.last)
		}
	}
}

func (n *node) untilEvent(kind client.EventKind) client.Event {
	n.t.Helper()
	var found client.Event
	n.await("event "+string(kind), func() bool {
		for _, e := range n.events {
			if e.Kind == kind {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// keyOf is the key of a member in a suite and state, with its material.
func keyOf(s *directory.Snapshot, member string, suite tag.Suite, state directory.KeyState) *directory.VerifyKey {
	for i, k := range s.Keys {
		if k.Member == member && k.Suite == suite && k.State == state && (k.Key != nil || !state.Live()) {
			return &s.Keys[i]
		}
	}
	return nil
}

func hasKey(member string, suite tag.Suite, states ...directory.KeyState) func(*directory.Snapshot) bool {
	return func(s *directory.Snapshot) bool {
		for _, state := range states {
			if keyOf(s, member, suite, state) == nil {
				return false
			}
		}
		return true
	}
}

func code(err error) codes.Code { return status.Code(err) }

// checkTag issues a tag with from's current key and verifies it with what to
// knows.
func checkTag(t *testing.T, from, to *directory.Snapshot, suite tag.Suite) {
	t.Helper()
	own := from.Current(suite)
	if own == nil {
		t.Fatalf("%s has no current key of suite %v", from.Self.Name, suite)
	}
	i := slices.IndexFunc(to.Keys, func(k directory.VerifyKey) bool { return k.KeyID == own.KeyID })
	if i < 0 || to.Keys[i].Key == nil {
		t.Fatalf("%s lacks %v", to.Self.Name, own.KeyID)
	}
	tuple := tag.Tuple{}
	h, err := own.Key.Issue(own.UNID, own.Epoch, 7, &tuple)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Keys[i].Key.Verify(&h, &tuple); err != nil {
		t.Fatalf("%s does not verify %v: %v", to.Self.Name, own.KeyID, err)
	}
}

func TestJoinAndDistribute(t *testing.T) {
	a := newAlliance(t, nil)
	all := []pb.Suite{pb.Suite_SUITE_SIPHASH, pb.Suite_SUITE_ED25519, pb.Suite_SUITE_RSA2048}
	c1, s1 := a.join("c1", all...), a.join("s1", all...)
	for _, suite := range tag.Suites {
		x := c1.until("own and s1's current key", func(s *directory.Snapshot) bool {
			return s.Current(suite) != nil && hasKey("s1", suite, directory.Current, directory.Next)(s)
		})
		y := s1.until("own and c1's current key", func(s *directory.Snapshot) bool {
			return s.Current(suite) != nil && hasKey("c1", suite, directory.Current, directory.Next)(s)
		})
		checkTag(t, x, y, suite)
		checkTag(t, y, x, suite)
	}
	s := c1.c.Snapshot()
	if s.Self.Name != "c1" || len(s.Members) != 2 || s.Members[0].UNIDs[0] == s.Members[1].UNIDs[0] || s.Carrier != directory.DefaultCarrier() {
		t.Fatalf("snapshot %+v", s)
	}
}

func TestTokens(t *testing.T) {
	a := newAlliance(t, nil)
	suites := []pb.Suite{pb.Suite_SUITE_SIPHASH}
	used := a.invite(&pb.InviteRequest{Name: "c1", Suites: suites})
	first := a.newNode("c1", t.TempDir())
	if err := first.c.Join(a.ctx(), used); err != nil {
		t.Fatal(err)
	}
	late := a.invite(&pb.InviteRequest{Name: "c2", Suites: suites, LifetimeNano: int64(time.Minute)})
	a.clk.Advance(2 * time.Minute)
	foreign := newAlliance(t, nil).invite(&pb.InviteRequest{Name: "c3", Suites: suites})
	fine := a.invite(&pb.InviteRequest{Name: "c4", Suites: suites})
	cases := []struct {
		name, token string
		want        codes.Code
	}{
		{"used by another identity", used, codes.PermissionDenied},
		{"expired", late, codes.PermissionDenied},
		{"of another alliance", foreign, codes.Unavailable}, // TLS refuses
		{"mistyped", fine[:len(fine)-4], codes.Unknown},
		{"no token", "hello", codes.Unknown},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n := a.newNode("x", t.TempDir())
			n.cfg.Address = a.addr
			n.open()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := n.c.Join(ctx, c.token); code(err) != c.want || err == nil || n.c.Joined() {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
	t.Run("again by the same identity", func(t *testing.T) {
		if err := first.c.Join(a.ctx(), used); !errors.Is(err, client.ErrJoined) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("name taken", func(t *testing.T) {
		if _, err := a.admin.Invite(a.ctx(), &pb.InviteRequest{Name: "c1", Suites: suites}); code(err) != codes.AlreadyExists {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("name not a label", func(t *testing.T) {
		if _, err := a.admin.Invite(a.ctx(), &pb.InviteRequest{Name: "a.b", Suites: suites}); code(err) != codes.InvalidArgument {
			t.Fatalf("got %v", err)
		}
	})
}

func TestRolesAndStrangers(t *testing.T) {
	a := newAlliance(t, nil)
	path := filepath.Join(t.TempDir(), "reader")
	token := a.invite(&pb.InviteRequest{Name: "auditor", Role: pb.Role_ROLE_READER})
	if err := client.JoinOperator(a.ctx(), token, path, a.clk); err != nil {
		t.Fatal(err)
	}
	reader, conn, err := client.DialOperator(path, "", a.clk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(conn) })
	credential, err := authority.ReadCredential(path)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(certificates ...tls.Certificate) *grpc.ClientConn {
		pool := x509.NewCertPool()
		ca, err := x509.ParseCertificate(credential.Certificates[1])
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(ca)
		conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: pool, ServerName: authority.DirectoryName, Certificates: certificates, MinVersion: tls.VersionTLS13,
		})))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeQuietly(conn) })
		return conn
	}
	stranger := dial()
	own, err := credential.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	watch := func(conn *grpc.ClientConn) error {
		stream, err := pb.NewMembershipClient(conn).Watch(a.ctx(), &pb.WatchRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	cases := []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"a stranger lists", func() error {
			_, err := pb.NewAdministrationClient(stranger).List(a.ctx(), &pb.ListRequest{})
			return err
		}, codes.Unauthenticated},
		{"a stranger watches", func() error { return watch(stranger) }, codes.Unauthenticated},
		{"a stranger joins without a token", func() error {
			_, request, err := authority.NewIdentity()
			if err != nil {
				return err
			}
			_, err = pb.NewEnrolmentClient(stranger).Join(a.ctx(), &pb.JoinRequest{Secret: make([]byte, 32), Request: request})
			return err
		}, codes.PermissionDenied},
		{"a stranger joins with rubbish", func() error {
			_, err := pb.NewEnrolmentClient(stranger).Join(a.ctx(), &pb.JoinRequest{Request: []byte("rubbish")})
			return err
		}, codes.InvalidArgument},
		{"a reader lists", func() error { _, err := reader.List(a.ctx(), &pb.ListRequest{}); return err }, codes.OK},
		{"a reader invites", func() error {
			_, err := reader.Invite(a.ctx(), &pb.InviteRequest{Name: "x"})
			return err
		}, codes.PermissionDenied},
		{"a reader revokes", func() error {
			_, err := reader.Revoke(a.ctx(), &pb.MemberRequest{Name: "x"})
			return err
		}, codes.PermissionDenied},
		{"a reader watches", func() error { return watch(dial(*own)) }, codes.PermissionDenied},
		{"an operator revokes nobody", func() error {
			_, err := a.admin.Revoke(a.ctx(), &pb.MemberRequest{Name: "x"})
			return err
		}, codes.NotFound},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.call(); code(err) != c.want {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestRotationWaitsForAcks(t *testing.T) {
	a := newAlliance(t, nil)
	c1, s1 := a.join("c1"), a.join("s1")
	ready := hasKey("c1", tag.Siphash, directory.Current, directory.Next)
	before := s1.until("c1's keys", ready)
	s1.setMute(true)
	c1.until("c1's keys", ready)
	old, next := keyOf(before, "c1", tag.Siphash, directory.Current).KeyID, keyOf(before, "c1", tag.Siphash, directory.Next).KeyID
	// The next key that stands now has been acknowledged, or will be.
	a.untilNobodyWaits(next)
	if done, err := c1.c.Rotate(a.ctx(), tag.Siphash); err != nil || !done {
		t.Fatalf("rotate: %v %v", done, err)
	}
	s := s1.until("c1's switch", func(s *directory.Snapshot) bool {
		k := keyOf(s, "c1", tag.Siphash, directory.Current)
		return k != nil && k.KeyID == next && hasKey("c1", tag.Siphash, directory.Next)(s)
	})
	if k := keyOf(s, "c1", tag.Siphash, directory.Grace); k == nil || k.KeyID != old {
		t.Fatalf("old key is %v", k)
	}
	checkTag(t, c1.until("own switch", hasKey("c1", tag.Siphash, directory.Grace)), s, tag.Siphash)

	// s1 is mute: the following switch waits for it until the timeout.
	third := keyOf(s, "c1", tag.Siphash, directory.Next).KeyID
	if done, err := c1.c.Rotate(a.ctx(), tag.Siphash); err != nil || done {
		t.Fatalf("rotate without acknowledgement: %v %v", done, err)
	}
	list, err := a.admin.List(a.ctx(), &pb.ListRequest{})
	if err != nil || len(list.Members[1].WaitingFor) == 0 || list.Members[1].Behind {
		t.Fatalf("list: %v %v", list, err)
	}
	theirs := c1.until("s1's next key", hasKey("s1", tag.Siphash, directory.Current, directory.Next))
	a.untilNobodyWaits(keyOf(theirs, "s1", tag.Siphash, directory.Next).KeyID) // so that c1 is not behind
	a.clk.Advance(a.cfg.AckTimeout)
	s1.until("the switch after the timeout", func(s *directory.Snapshot) bool {
		k := keyOf(s, "c1", tag.Siphash, directory.Current)
		return k != nil && k.KeyID == third
	})
	st, err := a.admin.Status(a.ctx(), &pb.StatusRequest{})
	if err != nil || !slices.Equal(st.Behind, []string{"s1"}) {
		t.Fatalf("status: %v %v", st, err)
	}
	// Its word clears it.
	s1.setMute(false)
	if err := s1.c.Ack(a.ctx(), s1.c.Snapshot().Sequence); err != nil {
		t.Fatal(err)
	}
	if st, err = a.admin.Status(a.ctx(), &pb.StatusRequest{}); err != nil || len(st.Behind) != 0 {
		t.Fatalf("status: %v %v", st, err)
	}
}

// untilNobodyWaits polls until a key has no open acknowledgements.
func (a *alliance) untilNobodyWaits(id tag.KeyID) {
	a.t.Helper()
	ctx := a.ctx()
	for {
		list, err := a.admin.List(ctx, &pb.ListRequest{})
		if err != nil {
			a.t.Fatal(err)
		}
		waiting := false
		for _, m := range list.Members {
			for _, k := range m.WaitingFor {
				waiting = waiting || k.Epoch == uint32(id.Epoch) && k.Unid == id.UNID && k.Suite == pb.Suite(id.Suite)
			}
		}
		if !waiting {
			return
		}
	}
}

func TestKeyLife(t *testing.T) {
	a := newAlliance(t, func(c *server.Config) { c.EchoOnly = 30 * time.Second })
	c1, s1 := a.join("c1"), a.join("s1")
	ready := hasKey("c1", tag.Siphash, directory.Current, directory.Next)
	c1.until("keys", ready)
	old := keyOf(s1.until("keys", ready), "c1", tag.Siphash, directory.Current).KeyID
	a.untilNobodyWaits(keyOf(s1.last, "c1", tag.Siphash, directory.Next).KeyID)
	if _, err := a.admin.Rotate(a.ctx(), &pb.RotateRequest{Member: "c1", Suite: pb.Suite_SUITE_SIPHASH}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		state directory.KeyState
		after time.Duration
	}{{directory.Grace, 0}, {directory.EchoOnly, a.cfg.Grace}, {directory.Retired, 30 * time.Second}} {
		a.clk.Advance(step.after)
		s := s1.until(step.state.String(), func(s *directory.Snapshot) bool {
			return slices.ContainsFunc(s.Keys, func(k directory.VerifyKey) bool { return k.KeyID == old && k.State == step.state })
		})
		i := slices.IndexFunc(s.Keys, func(k directory.VerifyKey) bool { return k.KeyID == old })
		if (s.Keys[i].Key != nil) != step.state.Live() {
			t.Fatalf("%v: material is there: %v", step.state, s.Keys[i].Key != nil)
		}
	}
	a.clk.Advance(a.cfg.SessionTimeout)
	s1.until("no tombstone", func(s *directory.Snapshot) bool {
		return !slices.ContainsFunc(s.Keys, func(k directory.VerifyKey) bool { return k.KeyID == old })
	})
}

func TestRevocationSwitchesAtOnce(t *testing.T) {
	a := newAlliance(t, nil)
	c1, s1, r := a.join("c1"), a.join("s1"), a.join("r")
	full := func(s *directory.Snapshot) bool {
		for _, name := range []string{"c1", "s1", "r"} {
			if !hasKey(name, tag.Siphash, directory.Current, directory.Next)(s) {
				return false
			}
		}
		return true
	}
	for _, n := range []*node{c1, s1, r} {
		n.until("all keys", full)
	}
	a.untilReserves()
	held := map[tag.KeyID]bool{}
	for _, k := range r.c.Snapshot().Keys {
		held[k.KeyID] = true
	}
	v, err := a.admin.Revoke(a.ctx(), &pb.MemberRequest{Name: "r"})
	if err != nil {
		t.Fatal(err)
	}
	switched := func(s *directory.Snapshot) bool { return s.Version >= v.Version }
	x, y := c1.until("the revocation", switched), s1.until("the revocation", switched)
	for _, s := range []*directory.Snapshot{x, y} {
		if s.Forced != v.Version || s.Member("r").State != directory.MemberIsRevoked {
			t.Fatalf("forced %d, want %d; %+v", s.Forced, v.Version, s.Member("r"))
		}
		for _, k := range s.Keys {
			if held[k.KeyID] && k.State != directory.Revoked {
				t.Fatalf("%s: %v, which the revoked member held, is %v", s.Self.Name, k.KeyID, k.State)
			}
		}
	}
	// The same version has the keys to go on with.
	checkTag(t, x, y, tag.Siphash)
	checkTag(t, y, x, tag.Siphash)
	c1.untilEvent(client.EventForcedSwitch)
	if e := c1.untilEvent(client.EventExcluded); e.Member != "r" {
		t.Fatalf("excluded %q", e.Member)
	}
	told := r.until("its own revocation", func(s *directory.Snapshot) bool { return s.Self.State == directory.MemberIsRevoked })
	if len(told.Signing) != 0 || slices.ContainsFunc(told.Keys, func(k directory.VerifyKey) bool { return k.Key != nil }) {
		t.Fatal("the revoked member has keys of the alliance")
	}
	if err := r.c.Ack(a.ctx(), told.Sequence); err == nil {
		t.Fatal("the revoked member is still heard")
	}
	c1.until("fresh next keys", hasKey("s1", tag.Siphash, directory.Current, directory.Next))
}

// untilReserves waits until a reserve of every member lies at the directory: a
// member has told so once it has nothing left to publish.
func (a *alliance) untilReserves() {
	a.t.Helper()
	ctx := a.ctx()
	for {
		st, err := a.admin.Status(ctx, &pb.StatusRequest{})
		if err != nil {
			a.t.Fatal(err)
		}
		if st.Reserves >= st.Members {
			return
		}
	}
}

func TestDirectoryAwayAndBack(t *testing.T) {
	a := newAlliance(t, nil)
	c1, s1 := a.join("c1"), a.join("s1")
	ready := func(s *directory.Snapshot) bool {
		return hasKey("c1", tag.Siphash, directory.Current, directory.Next)(s) && hasKey("s1", tag.Siphash, directory.Current, directory.Next)(s)
	}
	c1.until("keys", ready)
	s1.until("keys", ready)
	a.stop()
	c1.untilEvent(client.EventDisconnected)
	// A member that starts now works on what it has.
	c1.stop()
	c1.open()
	s := c1.c.Snapshot()
	if s == nil || !ready(s) {
		t.Fatalf("from disk: %+v", s)
	}
	checkTag(t, s, s1.c.Snapshot(), tag.Siphash)
	if st := c1.c.Status(); st.Connected || st.Expired || st.Version != s.Version {
		t.Fatalf("status %+v", st)
	}
	c1.run()
	// The bundle ends; what it allowed ends with it.
	a.clk.Advance(25 * time.Hour)
	c1.untilEvent(client.EventExpired)
	if s := c1.c.Snapshot(); s.Current(tag.Siphash) != nil || keyOf(s, "s1", tag.Siphash, directory.Current) != nil {
		t.Fatal("keys of an expired bundle")
	}
}

func TestWatchResumes(t *testing.T) {
	a := newAlliance(t, nil)
	c1, s1 := a.join("c1"), a.join("s1")
	c1.until("keys", hasKey("s1", tag.Siphash, directory.Current, directory.Next))
	s1.until("keys", hasKey("c1", tag.Siphash, directory.Current, directory.Next))
	c1.stop()
	if _, err := a.admin.SetSite(a.ctx(), &pb.SetSiteRequest{Site: &pb.Site{Name: "s1", Prefixes: []string{"10.2.0.0/16"}}}); err != nil {
		t.Fatal(err)
	}
	version := c1.c.Snapshot().Version
	c1.open()
	c1.run()
	s := c1.until("the site", func(s *directory.Snapshot) bool {
		return s.Version > version && slices.ContainsFunc(s.Sites, func(p directory.Site) bool { return p.Name == "s1" && len(p.Prefixes) == 1 })
	})
	if !hasKey("s1", tag.Siphash, directory.Current)(s) {
		t.Fatal("keys were lost on the way")
	}
	// The directory restarts on the same address.
	a.stop()
	s1.untilEvent(client.EventDisconnected)
	a.start(listen(t, a.addr))
	version = s1.c.Snapshot().Version
	a.untilConnected(s1)
	if _, err := a.admin.SetSite(a.ctx(), &pb.SetSiteRequest{Site: &pb.Site{Name: "c1", Prefixes: []string{"10.1.0.0/16"}}}); err != nil {
		t.Fatal(err)
	}
	s1.until("a later version", func(s *directory.Snapshot) bool { return s.Version > version })
}

// untilConnected moves the clock past the back-off until the members are there.
func (a *alliance) untilConnected(nodes ...*node) {
	a.t.Helper()
	ctx := a.ctx()
	for {
		ready := true
		for _, n := range nodes {
			ready = ready && n.c.Status().Connected
		}
		if ready {
			return
		}
		a.clk.Advance(50 * time.Millisecond)
		if ctx.Err() != nil {
			a.t.Fatal("never connected")
		}
	}
}

func TestDirectoryKeyRotates(t *testing.T) {
	a := newAlliance(t, nil)
	c1, s1 := a.join("c1"), a.join("s1")
	c1.until("keys", hasKey("s1", tag.Siphash, directory.Current))
	s1.stop()
	for range 2 {
		if _, err := a.admin.RotateDirectoryKey(a.ctx(), &pb.RotateDirectoryKeyRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := a.admin.SetSite(a.ctx(), &pb.SetSiteRequest{Site: &pb.Site{Name: "c1", Prefixes: []string{"10.1.0.0/16"}}})
	if err != nil {
		t.Fatal(err)
	}
	later := func(s *directory.Snapshot) bool { return s.Sequence >= v.Sequence }
	c1.until("the new key's bundle", later)
	s1.open()
	s1.run()
	s1.until("the new key's bundle, two links later", later)
	a.stop()
	c1.untilEvent(client.EventDisconnected)
	s1.untilEvent(client.EventDisconnected)
	a.start(listen(t, a.addr)) // the key is on disk
	a.untilConnected(c1, s1)
}

func TestCertificatesRenew(t *testing.T) {
	a := newAlliance(t, nil)
	c1 := a.join("c1")
	c1.until("keys", hasKey("c1", tag.Siphash, directory.Current))
	serial := func() string { return c1.serial() }
	old := serial()
	a.clk.Advance(a.cfg.CertLifetime/2 - time.Minute)
	ctx := a.ctx()
	for serial() == old {
		if ctx.Err() != nil {
			t.Fatal("not renewed before half of its life")
		}
		a.untilConnected(c1)
	}
}

func (n *node) serial() string {
	cert, err := n.c.ServerTLS().GetCertificate(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.String()
}

func TestClonedIdentity(t *testing.T) {
	cases := []struct {
		name       string
		cloneMoves bool
	}{{"the clone moves first", true}, {"the owner moves first", false}}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := newAlliance(t, nil)
			owner, s1 := a.join("c1"), a.join("s1")
			owner.until("keys", hasKey("c1", tag.Siphash, directory.Current, directory.Next))
			s1.until("keys", hasKey("c1", tag.Siphash, directory.Current, directory.Next))
			a.untilReserves()
			owner.stop()
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(owner.cfg.State)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(dir, "state.key"), 0o600); err != nil {
				t.Fatal(err)
			}
			clone := a.newNode("c1", dir)
			owner.open()
			first, second := owner, clone
			if c.cloneMoves {
				first, second = clone, owner
			}
			first.run()
			a.untilConnected(first)
			first.mustAck() // the directory has the next code now
			a.clk.Advance(2 * time.Hour)
			first.await("its code renewed", func() bool { return first.renewed })
			first.mustAck() // and has seen it used
			first.stop()
			second.run()
			s := s1.until("the suspension", func(s *directory.Snapshot) bool { return s.Member("c1").State == directory.Suspended })
			if k := keyOf(s, "c1", tag.Siphash, directory.Revoked); k == nil || s.Forced == 0 {
				t.Fatalf("keys of a cloned identity are accepted: %+v", s.Keys)
			}
			st, err := a.admin.Status(a.ctx(), &pb.StatusRequest{})
			if err != nil || !slices.Equal(st.Alarms, []string{"c1"}) {
				t.Fatalf("status: %v %v", st, err)
			}
		})
	}
}

func TestStoreHoldsNoKey(t *testing.T) {
	a := newAlliance(t, nil)
	all := []pb.Suite{pb.Suite_SUITE_SIPHASH, pb.Suite_SUITE_ED25519, pb.Suite_SUITE_RSA2048}
	c1, s1 := a.join("c1", all...), a.join("s1", all...)
	for _, n := range []*node{c1, s1} {
		for _, suite := range tag.Suites {
			n.until("keys", hasKey("c1", suite, directory.Current, directory.Next))
			n.until("keys", hasKey("s1", suite, directory.Current, directory.Next))
		}
	}
	a.untilReserves()
	snaps := []*directory.Snapshot{c1.c.Snapshot(), s1.c.Snapshot()}
	a.stop()
	for _, dir := range []string{a.cfg.State, c1.cfg.State, s1.cfg.State} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range snaps {
				for _, k := range s.Signing {
					private, err := k.Key.Bytes()
					if err != nil {
						t.Fatal(err)
					}
					public, err := k.Key.Verifier().Bytes()
					if err != nil {
						t.Fatal(err)
					}
					if bytes.Contains(b, public[:16]) || bytes.Contains(b, private[len(private)-16:]) {
						t.Fatalf("%s of %s holds key %v in the clear", f.Name(), dir, k.KeyID)
					}
				}
			}
		}
	}
}

// TestRotationsLoseNothing rotates everybody's keys many times a second in real
// time, and checks at each switch that every other member had acknowledged the
// key that is signed with from then on, and accepts it for its grace.
func TestRotationsLoseNothing(t *testing.T) {
	const members, rotations = 4, 10
	a := newAlliance(t, func(c *server.Config) { c.Grace, c.SessionTimeout = 100*time.Millisecond, 300*time.Millisecond })
	a.stop()
	a.cfg.Clock = clock.System{}
	a.start(listen(t, a.addr))
	var mu sync.Mutex
	holds := map[string]map[tag.KeyID]bool{} // by member, what its data planes have
	switches := map[string]int{}
	enough := make(chan struct{})
	var nodes []*client.Client
	for _, name := range []string{"c1", "c2", "s1", "s2"}[:members] {
		c, err := client.Open(client.Config{State: t.TempDir(), RotateEvery: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		token := a.invite(&pb.InviteRequest{Name: name, Suites: []pb.Suite{pb.Suite_SUITE_SIPHASH, pb.Suite_SUITE_ED25519}})
		if err := c.Join(a.ctx(), token); err != nil {
			t.Fatal(err)
		}
		holds[name] = map[tag.KeyID]bool{}
		nodes = append(nodes, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, c := range nodes {
		wg.Go(func() {
			if err := c.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("run: %v", err)
			}
		})
		wg.Go(func() {
			signing := map[tag.Suite]tag.KeyID{}
			for {
				var s *directory.Snapshot
				select {
				case s = <-c.Updates():
				case <-ctx.Done():
					return
				}
				mu.Lock()
				me := holds[s.Self.Name]
				clear(me)
				for _, k := range s.Keys {
					me[k.KeyID] = k.State.Live() && k.Key != nil
				}
				for _, suite := range s.Self.Suites {
					k := s.Current(suite)
					if k == nil || signing[suite] == k.KeyID {
						continue
					}
					signing[suite] = k.KeyID
					for other, held := range holds {
						if !held[k.KeyID] {
							t.Errorf("%s signs with %v, which %s does not hold", s.Self.Name, k.KeyID, other)
						}
					}
					if switches[s.Self.Name]++; switches[s.Self.Name] == rotations {
						done := len(switches) == members
						for _, n := range switches {
							done = done && n >= rotations
						}
						if done {
							close(enough)
						}
					}
				}
				mu.Unlock()
				_ = c.Ack(ctx, s.Sequence)
			}
		})
	}
	select {
	case <-enough:
	case <-time.After(patience):
		t.Fatalf("switches: %v", switches)
	}
}

func TestSiblingsKnowEachOther(t *testing.T) {
	a := newAlliance(t, nil)
	c1, c2 := a.join("c1"), a.join("c2")
	both := func(s *directory.Snapshot) bool { return len(s.Members) == 2 }
	c1.until("both members", both)
	c2.until("both members", both)
	handshake := func(clientConf, serverConf *tls.Config) (cs, ss tls.ConnectionState, client, server error) {
		x, y := net.Pipe()
		defer closeQuietly(x)
		defer closeQuietly(y)
		sc, cc := tls.Server(y, serverConf), tls.Client(x, clientConf)
		done := make(chan error, 1)
		go func() {
			err := sc.HandshakeContext(a.ctx())
			if err != nil {
				closeQuietly(y)
			} else {
				_, err = sc.Write([]byte{1})
			}
			done <- err
		}()
		client = cc.HandshakeContext(a.ctx())
		if client == nil { // in TLS 1.3 the client learns of a refusal with its first read
			_, client = cc.Read(make([]byte, 1))
		}
		closeQuietly(x)
		server = <-done
		return cc.ConnectionState(), sc.ConnectionState(), client, server
	}
	cs, ss, ce, se := handshake(c1.c.ClientTLS("c2"), c2.c.ServerTLS())
	if ce != nil || se != nil {
		t.Fatalf("client %v, server %v", ce, se)
	}
	if name, err := c1.c.PeerName(cs); err != nil || name != "c2" {
		t.Fatalf("client sees %q %v", name, err)
	}
	if name, err := c2.c.PeerName(ss); err != nil || name != "c1" {
		t.Fatalf("server sees %q %v", name, err)
	}
	if _, _, ce, _ := handshake(c1.c.ClientTLS("c3"), c2.c.ServerTLS()); ce == nil {
		t.Fatal("took c2 for c3")
	}
	anonymous := c1.c.ClientTLS("c2")
	anonymous.GetClientCertificate = nil
	if _, _, _, se := handshake(anonymous, c2.c.ServerTLS()); se == nil {
		t.Fatal("took a client without a certificate")
	}
	if _, err := a.admin.Suspend(a.ctx(), &pb.MemberRequest{Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	c2.until("the suspension", func(s *directory.Snapshot) bool { return s.Member("c1").State == directory.Suspended })
	if _, _, _, se := handshake(c1.c.ClientTLS("c2"), c2.c.ServerTLS()); !errors.Is(se, client.ErrUnknownPeer) {
		t.Fatalf("suspended member: %v", se)
	}
	if _, err := c2.c.PeerName(ss); !errors.Is(err, client.ErrUnknownPeer) {
		t.Fatalf("open connection of a suspended member: %v", err)
	}
	c1.untilEvent(client.EventDisconnected)
	// It comes back.
	if _, err := a.admin.Resume(a.ctx(), &pb.MemberRequest{Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	a.untilConnected(c1)
	c2.until("c1's fresh key", hasKey("c1", tag.Siphash, directory.Current))
	c1.until("c2's key", hasKey("c2", tag.Siphash, directory.Current))
}
