package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/bundle"
	pb "countersign/directory/proto"
	"countersign/directory/store"
	"countersign/tag"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	maxRequest  = 8 << 20 // bytes of one message to the directory
	callTimeout = 10 * time.Second
	maxStreams  = 16 // calls at once on one connection
)

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(s.authority.TLSConfig(s.cfg.CertLifetime))),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(callTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}
}

// caller is who a verified certificate says it is.
type caller struct {
	name    string
	role    authority.Role
	expires time.Time
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// authenticate returns who calls, by its certificate and, for members, by what
// the directory knows now.
func (s *Server) authenticate(ctx context.Context) (caller, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return caller{}, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return caller{}, status.Error(codes.Unauthenticated, "a client certificate of this alliance is needed")
	}
	cert := info.State.VerifiedChains[0][0]
	name, role, err := authority.Holder(cert)
	if err != nil {
		return caller{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if !s.cfg.Clock.Now().Before(cert.NotAfter) {
		return caller{}, status.Error(codes.Unauthenticated, "the certificate has expired")
	}
	if role == authority.Member {
		s.mu.RLock()
		m := s.state.member(name)
		s.mu.RUnlock()
		key, _ := cert.PublicKey.(ed25519.PublicKey)
		if m == nil || !key.Equal(ed25519.PublicKey(m.Identity)) {
			return caller{}, status.Errorf(codes.PermissionDenied, "%s is not a member", name)
		}
		if !active(m) {
			return caller{}, status.Errorf(codes.PermissionDenied, "member %s is %v", name, directory.MemberState(m.State))
		}
	}
	return caller{name, role, cert.NotAfter}, nil
}

// allowed is who may call what.
func allowed(method string, role authority.Role) bool {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	switch service {
	case pb.Membership_ServiceDesc.ServiceName:
		return role == authority.Member || role == authority.Operator && name == "Renew"
	case pb.Administration_ServiceDesc.ServiceName:
		reads := name == "List" || name == "Keys" || name == "Status"
		return role == authority.Operator || role == authority.Reader && reads
	}
	return false
}

func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	if strings.HasPrefix(method, "/"+pb.Enrolment_ServiceDesc.ServiceName+"/") {
		if !s.joins.AllowN(s.cfg.Clock.Now(), 1) {
			return ctx, status.Error(codes.ResourceExhausted, "too many joins, try again later")
		}
		return ctx, nil
	}
	c, err := s.authenticate(ctx)
	if err != nil {
		return ctx, err
	}
	if !allowed(method, c.role) {
		return ctx, status.Errorf(codes.PermissionDenied, "role %s may not call %s", c.role, method)
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ctx, err := s.admit(ctx, info.FullMethod)
	var resp any
	if err == nil {
		resp, err = handler(ctx, req)
	}
	err = asStatus(err)
	s.metrics.request(info.FullMethod, err)
	if err != nil {
		s.cfg.Log.Warn("request_refused", "method", info.FullMethod, "caller", callerOf(ctx).name, "error", err)
	}
	return resp, err
}

type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (a *admittedStream) Context() context.Context { return a.ctx }

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := s.admit(ss.Context(), info.FullMethod)
	if err == nil {
		err = handler(srv, &admittedStream{ss, ctx})
	}
	err = asStatus(err)
	s.metrics.request(info.FullMethod, err)
	return err
}

// asStatus gives errors of our own packages their code.
func asStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrConflict):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, authority.ErrRequest), errors.Is(err, bundle.ErrMalformed):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, bundle.ErrEnvelope):
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

type enrolment struct {
	pb.UnimplementedEnrolmentServer
	s *Server
}

// Join implements the service of directory.proto.
func (e *enrolment) Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinResponse, error) {
	s := e.s
	hash := sha256.Sum256(req.Secret)
	invitation := hex.EncodeToString(hash[:])
	csr, err := x509.ParseCertificateRequest(req.Request)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "request: %v", err)
	}
	identity, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, status.Error(codes.InvalidArgument, "request: want an Ed25519 key")
	}
	var inv *pb.Invitation
	err = s.change(ctx, func(t *tx) (err error) {
		inv, err = t.join(invitation, identity, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	lifetime := s.cfg.CertLifetime
	if inv.Role != pb.Role_ROLE_MEMBER {
		lifetime = s.cfg.OperatorLifetime
	}
	certificates, _, err := s.authority.Issue(req.Request, inv.Name, roles[inv.Role], lifetime)
	if err != nil {
		return nil, err
	}
	resp := &pb.JoinResponse{Certificates: certificates}
	if inv.Role == pb.Role_ROLE_MEMBER {
		resp.Update, _, err = s.updateSince(ctx, inv.Name, &position{key: s.authority.PublicKey()})
	}
	return resp, err
}

type membership struct {
	pb.UnimplementedMembershipServer
	s *Server
}

// mutate is change for a member's request: it checks the proof first, and does
// nothing else where that is refused.
func (m *membership) mutate(ctx context.Context, method string, proof *pb.Proof, fn func(t *tx, name string) error) error {
	name := callerOf(ctx).name
	code, next, err := bundle.OpenProof(m.s.authority.SealKey(), name, method, proof)
	if err != nil {
		return err
	}
	var reject error
	err = m.s.change(ctx, func(t *tx) (err error) {
		if reject, err = t.checkCode(name, code, next); err != nil || reject != nil {
			return err
		}
		if !active(t.member(name)) {
			return status.Errorf(codes.PermissionDenied, "member %s is not active", name)
		}
		return fn(t, name)
	})
	if err != nil {
		return err // reject may still be written where the caller has left
	}
	return reject
}

// Renew implements the service of directory.proto.
func (m *membership) Renew(ctx context.Context, req *pb.RenewRequest) (*pb.RenewResponse, error) {
	c := callerOf(ctx)
	csr, err := x509.ParseCertificateRequest(req.Request)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "request: %v", err)
	}
	p, _ := peer.FromContext(ctx)
	held := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].PublicKey
	if key, ok := csr.PublicKey.(ed25519.PublicKey); !ok || !key.Equal(held) {
		return nil, status.Error(codes.InvalidArgument, "request: another identity than the certificate's")
	}
	lifetime := m.s.cfg.OperatorLifetime
	if c.role == authority.Member {
		lifetime = m.s.cfg.CertLifetime
		if err := m.mutate(ctx, "Renew", req.Proof, func(*tx, string) error { return nil }); err != nil {
			return nil, err
		}
	}
	certificates, _, err := m.s.authority.Issue(req.Request, c.name, c.role, lifetime)
	if err != nil {
		return nil, err
	}
	return &pb.RenewResponse{Certificates: certificates}, nil
}

// Publish implements the service of directory.proto.
func (m *membership) Publish(ctx context.Context, req *pb.PublishRequest) (*pb.PublishResponse, error) {
	resp := &pb.PublishResponse{}
	err := m.mutate(ctx, "Publish", req.Proof, func(t *tx, name string) error {
		resp.Sequence = t.sequence
		return t.publish(name, req.Keys)
	})
	return resp, err
}

// Ack implements the service of directory.proto.
func (m *membership) Ack(ctx context.Context, req *pb.AckRequest) (*pb.AckResponse, error) {
	return &pb.AckResponse{}, m.mutate(ctx, "Ack", req.Proof, func(t *tx, name string) error {
		return t.ack(name, req.Sequence, req.Missing)
	})
}

// RotateOwn implements the service of directory.proto.
func (m *membership) RotateOwn(ctx context.Context, req *pb.RotateOwnRequest) (*pb.RotateResponse, error) {
	var id tag.KeyID
	err := m.mutate(ctx, "RotateOwn", req.Proof, func(t *tx, name string) (err error) {
		id, err = t.rotate(name, req.Suite)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.s.rotated(id), nil
}

// rotated tells whether a key is current by now.
func (s *Server) rotated(id tag.KeyID) *pb.RotateResponse {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.state.records.get(bundle.KeyRecordID(id))
	return &pb.RotateResponse{Sequence: s.state.sequence, Done: r != nil && r.Body.GetKey().State != pb.KeyState_KEY_STATE_NEXT}
}

// position is how far a reader is.
type position struct {
	version, sequence uint64
	key               ed25519.PublicKey // directory key that it trusts
	connected         bool              // it has had an update on this stream
}

// Watch implements the service of directory.proto.
func (m *membership) Watch(req *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.Update]) error {
	s, c := m.s, callerOf(stream.Context())
	pos := &position{version: req.Version, sequence: req.Sequence, key: req.DirectoryKey}
	s.arrive(c.name, 1)
	defer s.arrive(c.name, -1)
	expiry := s.cfg.Clock.At(c.expires)
	for {
		u, wake, err := s.updateSince(stream.Context(), c.name, pos)
		if err != nil {
			return err
		}
		if u != nil {
			if err := stream.Send(u); err != nil {
				return err
			}
			s.metrics.updates.Inc()
		}
		if _, err := s.authenticate(stream.Context()); err != nil {
			return err // excluded: the update before has said so
		}
		select {
		case <-wake:
		case <-expiry:
			return status.Error(codes.Unauthenticated, "the certificate has expired")
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.stopped:
			return store.ErrClosed
		}
	}
}

func (s *Server) arrive(name string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present[name] += n; s.present[name] == 0 {
		delete(s.present, name)
	}
	s.metrics.connected.Set(float64(len(s.present)))
}

// updateSince returns what a reader lacks, nil if that is nothing, and moves
// its position; wake is closed with the next change. The first update on a
// stream is never nil, so that a reader knows that it is up to date.
func (s *Server) updateSince(ctx context.Context, name string, pos *position) (u *pb.Update, wake <-chan struct{}, err error) {
	s.mu.RLock()
	wake = s.wake
	st := s.state
	u = &pb.Update{Sequence: st.sequence}
	from := pos.sequence
	fresh := pos.version == 0 || from < s.lost || from > st.sequence || from < st.accounts.get(name).GetResumed()
	header := fresh || !pos.connected
	ids, topUps := map[string]bool{}, []string(nil)
	if fresh {
		u.Snapshot = true
		from = 0
		for id := range st.records.all {
			ids[id] = true
		}
	} else {
		for i := range slices.Backward(s.changes) {
			ch := &s.changes[i]
			if ch.sequence <= from {
				break
			}
			header = header || ch.header
			for _, id := range ch.records {
				ids[id] = true
			}
			topUps = append(topUps, ch.topUps[name]...)
		}
	}
	var entered []tag.KeyID // with their envelopes
	for id := range ids {
		r := st.records.get(id)
		if r == nil {
			u.Removed = append(u.Removed, id)
			continue
		}
		u.Records = append(u.Records, r.Raw)
		if k := decodeKey(r); k != nil && k.Entered > from && live(k.State) {
			entered = append(entered, k.id)
		}
	}
	isLive := func(id tag.KeyID) bool {
		r := st.records.get(bundle.KeyRecordID(id))
		return r != nil && live(r.Body.GetKey().State)
	}
	var liveTopUps []tag.KeyID
	for _, at := range topUps {
		if id, ok := parseEnvelopeKey(at); ok && isLive(id) && !slices.Contains(entered, id) {
			liveTopUps = append(liveTopUps, id)
		}
	}
	reads := active(st.member(name))
	if header {
		u.Header = st.signed
	}
	s.mu.RUnlock()

	if reads {
		for _, id := range append(entered, liveTopUps...) {
			e, err := s.envelope(ctx, name, id)
			if err != nil {
				return nil, nil, err
			}
			if e != nil {
				u.Envelopes = append(u.Envelopes, e)
			}
		}
	}
	slices.Sort(u.Removed)
	first := !pos.connected
	pos.connected, pos.sequence = true, u.Sequence
	if u.Header == nil && len(u.Envelopes) == 0 && !first {
		return nil, wake, nil
	}
	if u.Header != nil {
		u.Chain = s.authority.Chain(pos.key)
		pos.key, pos.version = u.Header.DirectoryKey, 1
	}
	return u, wake, nil
}

func (s *Server) envelope(ctx context.Context, recipient string, id tag.KeyID) (*pb.Envelope, error) {
	e, err := s.store.Get(ctx, envelopeKey(recipient, id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil // its issuer has not sealed it yet
	}
	if err != nil {
		return nil, err
	}
	stored := &pb.StoredEnvelope{}
	if err := proto.Unmarshal(e.Value, stored); err != nil {
		return nil, err
	}
	return stored.Envelope, nil
}

type administration struct {
	pb.UnimplementedAdministrationServer
	s *Server
}

// Invite implements the service of directory.proto.
func (a *administration) Invite(ctx context.Context, req *pb.InviteRequest) (*pb.InviteResponse, error) {
	s := a.s
	if req.Role == pb.Role_ROLE_UNSPECIFIED {
		req.Role = pb.Role_ROLE_MEMBER
	}
	role, ok := roles[req.Role]
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "role %d", req.Role)
	}
	lifetime := time.Duration(req.LifetimeNano)
	if lifetime <= 0 {
		lifetime = s.cfg.TokenLifetime
	}
	t := authority.Token{
		Name: req.Name, Role: role, Address: s.cfg.Address, Secret: make([]byte, authority.SecretLen),
		Fingerprint: authority.Fingerprint(s.authority.Certificate().Raw),
	}
	if _, err := rand.Read(t.Secret); err != nil {
		return nil, err
	}
	text, err := t.Encode()
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(t.Secret)
	inv := &pb.Invitation{
		Name: req.Name, Role: req.Role, Site: req.Site, Suites: req.Suites, Sibling: req.Sibling, Recipients: req.Recipients,
		ExpiryUnixNano: s.cfg.Clock.Now().Add(lifetime).UnixNano(),
	}
	if inv.Site == "" {
		inv.Site = inv.Name
	}
	if err := s.change(ctx, func(t *tx) error { return t.invite(hex.EncodeToString(hash[:]), inv) }); err != nil {
		return nil, err
	}
	return &pb.InviteResponse{Token: text, ExpiryUnixNano: inv.ExpiryUnixNano}, nil
}

// List implements the service of directory.proto.
func (a *administration) List(context.Context, *pb.ListRequest) (*pb.ListResponse, error) {
	s := a.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	resp := &pb.ListResponse{}
	for _, r := range s.state.records.all {
		switch {
		case r.Body.GetSite() != nil:
			resp.Sites = append(resp.Sites, r.Body.GetSite())
		case r.Body.GetMember() != nil:
			m := r.Body.GetMember()
			ms := &pb.MemberStatus{Member: m, Connected: s.present[m.Name] > 0}
			if acct := s.state.accounts.get(m.Name); acct != nil {
				ms.Acknowledged, ms.Behind, ms.Alarm, ms.JoinedUnixNano = acct.Acknowledged, acct.BehindSince != 0, acct.Alarm, acct.JoinedUnixNano
			}
			for _, ro := range s.state.rollouts.all {
				if _, ok := ro.Pending[m.Name]; ok {
					ms.WaitingFor = append(ms.WaitingFor, ro.Id)
				}
			}
			slices.SortFunc(ms.WaitingFor, func(a, b *pb.KeyID) int {
				return directory.CompareKeyID(bundle.KeyIDOf(a), bundle.KeyIDOf(b))
			})
			resp.Members = append(resp.Members, ms)
		}
	}
	for _, inv := range s.state.invitations.all {
		if len(inv.RedeemedBy) == 0 {
			resp.Invitations = append(resp.Invitations, inv)
		}
	}
	slices.SortFunc(resp.Members, func(a, b *pb.MemberStatus) int { return strings.Compare(a.Member.Name, b.Member.Name) })
	slices.SortFunc(resp.Sites, func(a, b *pb.Site) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(resp.Invitations, func(a, b *pb.Invitation) int { return strings.Compare(a.Name, b.Name) })
	return resp, nil
}

// Keys implements the service of directory.proto.
func (a *administration) Keys(context.Context, *pb.KeysRequest) (*pb.KeysResponse, error) {
	s := a.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	view := tx{tables: s.state.tables}
	resp := &pb.KeysResponse{}
	for _, k := range view.keys(func(*key) bool { return true }) {
		resp.Keys = append(resp.Keys, k.Key)
	}
	return resp, nil
}

// Status implements the service of directory.proto.
func (a *administration) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	s := a.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	h := s.state.header
	resp := &pb.StatusResponse{
		Alliance: s.cfg.Alliance, Version: h.GetVersion(), Sequence: s.state.sequence, IssuedUnixNano: h.GetIssuedUnixNano(),
		ExpiryUnixNano: h.GetExpiryUnixNano(), DirectoryKey: s.state.signed.GetDirectoryKey(), Connected: uint32(len(s.present)),
		ForcedVersion: h.GetForcedVersion(),
	}
	for name, acct := range s.state.accounts.all {
		resp.Members++
		if acct.BehindSince != 0 {
			resp.Behind = append(resp.Behind, name)
		}
		if acct.Alarm {
			resp.Alarms = append(resp.Alarms, name)
		}
	}
	for range s.state.reserves.all {
		resp.Reserves++
	}
	slices.Sort(resp.Behind)
	slices.Sort(resp.Alarms)
	return resp, nil
}

// SetSite implements the service of directory.proto.
func (a *administration) SetSite(ctx context.Context, req *pb.SetSiteRequest) (*pb.SetSiteResponse, error) {
	site := &pb.Site{Name: req.GetSite().GetName()}
	for _, text := range req.GetSite().GetPrefixes() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "prefixes: %v", err)
		}
		site.Prefixes = append(site.Prefixes, p.Masked().String())
	}
	resp := &pb.SetSiteResponse{}
	return resp, a.s.change(ctx, func(t *tx) error {
		resp.Sequence = t.sequence
		return t.putRecord(&pb.Record{Body: &pb.Record_Site{Site: site}})
	})
}

func (a *administration) onMember(ctx context.Context, fn func(*tx) error) (*pb.ChangeResponse, error) {
	if err := a.s.change(ctx, fn); err != nil {
		return nil, err
	}
	a.s.mu.RLock()
	defer a.s.mu.RUnlock()
	return &pb.ChangeResponse{Version: a.s.state.header.GetVersion()}, nil
}

// Suspend implements the service of directory.proto.
func (a *administration) Suspend(ctx context.Context, req *pb.MemberRequest) (*pb.ChangeResponse, error) {
	return a.onMember(ctx, func(t *tx) error { return t.exclude(req.Name, pb.MemberState_MEMBER_STATE_SUSPENDED) })
}

// Resume implements the service of directory.proto.
func (a *administration) Resume(ctx context.Context, req *pb.MemberRequest) (*pb.ChangeResponse, error) {
	return a.onMember(ctx, func(t *tx) error { return t.resume(req.Name) })
}

// Revoke implements the service of directory.proto.
func (a *administration) Revoke(ctx context.Context, req *pb.MemberRequest) (*pb.ChangeResponse, error) {
	return a.onMember(ctx, func(t *tx) error { return t.exclude(req.Name, pb.MemberState_MEMBER_STATE_REVOKED) })
}

// Remove implements the service of directory.proto.
func (a *administration) Remove(ctx context.Context, req *pb.MemberRequest) (*pb.ChangeResponse, error) {
	return a.onMember(ctx, func(t *tx) error { return t.remove(req.Name) })
}

// Rotate implements the service of directory.proto.
func (a *administration) Rotate(ctx context.Context, req *pb.RotateRequest) (*pb.RotateResponse, error) {
	var id tag.KeyID
	err := a.s.change(ctx, func(t *tx) (err error) {
		id, err = t.rotate(req.Member, req.Suite)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a.s.rotated(id), nil
}

// RotateDirectoryKey implements the service of directory.proto.
func (a *administration) RotateDirectoryKey(ctx context.Context, _ *pb.RotateDirectoryKeyRequest) (*pb.ChangeResponse, error) {
	if err := a.s.authority.RotateKey(); err != nil {
		return nil, err
	}
	return a.onMember(ctx, func(t *tx) error {
		t.resign = true
		return nil
	})
}
