package server

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"maps"
	"slices"
	"time"

	"countersign/directory"
	"countersign/directory/authority"
	"countersign/directory/bundle"
	pb "countersign/directory/proto"
	"countersign/tag"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	maxUnused      = 2    // next or reserve keys of one member and suite
	maxSpent       = 64   // spent codes remembered for each member
	maxEnvelope    = 1024 // bytes
	maxMembers     = 1 << 16
	maxPublication = 64 // keys in one Publish
)

// tx is one batch of changes: a layer over the state, at one moment, under one
// sequence. What the rules below do to it is all that ever changes.
type tx struct {
	tables
	cfg      *Config
	now      time.Time
	sequence uint64
	// forced is set by a forced switch, resign where the header must be signed
	// although no record has changed.
	forced, resign bool
	// envelopes to store, and store keys of those to delete.
	envelopes map[string]*pb.Envelope
	erase     []string
	events    []event
}

// event is what is logged when the change is committed.
type event struct {
	level slog.Level
	name  string
	attrs []any
}

func (t *tx) event(level slog.Level, name string, attrs ...any) {
	t.events = append(t.events, event{level, name, attrs})
}

// nested returns a layer over t for one request, which merge puts into t.
func (t *tx) nested() *tx {
	return &tx{tables: newTables(&t.tables), cfg: t.cfg, now: t.now, sequence: t.sequence, envelopes: map[string]*pb.Envelope{}}
}

func (t *tx) merge(child *tx) {
	child.tables.merge()
	t.forced, t.resign = t.forced || child.forced, t.resign || child.resign
	maps.Copy(t.envelopes, child.envelopes)
	t.erase = append(t.erase, child.erase...)
	t.events = append(t.events, child.events...)
}

func (t *tx) putRecord(body *pb.Record) error {
	r, err := bundle.NewRecord(body)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	t.records.put(r.ID, r)
	return nil
}

func (t *tx) putMember(m *pb.Member) error {
	return t.putRecord(&pb.Record{Body: &pb.Record_Member{Member: m}})
}

func (t *tx) putKey(k *pb.Key) error {
	return t.putRecord(&pb.Record{Body: &pb.Record_Key{Key: k}})
}

// key is a key's record with its statement decoded.
type key struct {
	*pb.Key
	id     tag.KeyID
	member string
}

// keys returns the keys that match, sorted by id, so that every run of the rules
// does the same.
func (t *tx) keys(match func(*key) bool) []*key {
	var out []*key
	for _, r := range t.records.all {
		if k := decodeKey(r); k != nil && match(k) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *key) int { return directory.CompareKeyID(a.id, b.id) })
	return out
}

func decodeKey(r *bundle.Record) *key {
	k := r.Body.GetKey()
	if k == nil {
		return nil
	}
	return &key{k, bundle.KeyIDOf(r.Statement.Id), r.Statement.Member}
}

// slot is what has at most one current key.
type slot struct {
	member string
	suite  tag.Suite
}

func live(s pb.KeyState) bool { return directory.KeyState(s).Live() }

// setState moves a key to a state that ends after d, where d is not 0.
func (t *tx) setState(k *key, state pb.KeyState, d time.Duration, forced bool) error {
	c := edit(k.Key)
	c.State, c.Forced, c.UntilUnixNano = state, forced, 0
	if d > 0 {
		c.UntilUnixNano = t.now.Add(d).UnixNano()
	}
	if !live(state) && live(k.State) {
		t.rollouts.drop(k.id)
		t.eraseEnvelopes(k.id)
	}
	t.event(slog.LevelInfo, "key_state", "member", k.member, "key", k.id.String(), "from", directory.KeyState(k.State).String(),
		"to", directory.KeyState(state).String(), "forced", forced)
	return t.putKey(c)
}

func (t *tx) eraseEnvelopes(id tag.KeyID) {
	for _, r := range t.records.all {
		if m := r.Body.GetMember(); m != nil {
			t.erase = append(t.erase, envelopeKey(m.Name, id))
		}
	}
}

func (t *tx) dropReserve(id tag.KeyID) {
	t.reserves.drop(id)
	t.eraseEnvelopes(id)
}

func receives(issuer *pb.Member, recipient string) bool {
	return len(issuer.Recipients) == 0 || slices.Contains(issuer.Recipients, recipient) || issuer.Name == recipient
}

func active(m *pb.Member) bool { return m.GetState() == pb.MemberState_MEMBER_STATE_ACTIVE }

// recipients are the members, sorted, that must acknowledge an issuer's keys:
// those that receive them, are active, and not behind already.
func (t *tx) recipients(issuer *pb.Member) []string {
	var out []string
	for _, r := range t.records.all {
		if m := r.Body.GetMember(); m != nil && m.Name != issuer.Name && active(m) && receives(issuer, m.Name) {
			if a := t.accounts.get(m.Name); a == nil || a.BehindSince == 0 {
				out = append(out, m.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// join makes a member of an invitation. It is called again with the same
// identity where the answer was lost.
func (t *tx) join(invitation string, identity ed25519.PublicKey, req *pb.JoinRequest) (*pb.Invitation, error) {
	inv := t.invitations.get(invitation)
	switch {
	case inv == nil:
		return nil, status.Error(codes.PermissionDenied, "token is unknown")
	case t.now.UnixNano() >= inv.ExpiryUnixNano:
		return nil, status.Error(codes.PermissionDenied, "token has expired")
	case len(inv.RedeemedBy) > 0 && !bytes.Equal(inv.RedeemedBy, identity):
		t.event(slog.LevelWarn, "token_reused", "name", inv.Name)
		return nil, status.Error(codes.PermissionDenied, "token is used already")
	case len(inv.RedeemedBy) > 0:
		return inv, nil
	}
	inv = edit(inv)
	inv.RedeemedBy = identity
	t.invitations.put(invitation, inv)
	t.event(slog.LevelInfo, "joined", "name", inv.Name, "role", inv.Role.String())
	if inv.Role != pb.Role_ROLE_MEMBER {
		return inv, nil
	}
	if t.member(inv.Name) != nil {
		return nil, status.Errorf(codes.AlreadyExists, "member %s exists", inv.Name)
	}
	if len(req.CodeHash) != len(bundle.Code{}.Hash()) {
		return nil, status.Error(codes.InvalidArgument, "code_hash: wrong length")
	}
	unid, err := t.newUNID()
	if err != nil {
		return nil, err
	}
	m := &pb.Member{
		Name: inv.Name, Site: inv.Site, Unids: []uint32{unid}, Suites: inv.Suites, Sibling: inv.Sibling,
		State: pb.MemberState_MEMBER_STATE_ACTIVE, Identity: identity, SealKey: req.SealKey, Recipients: inv.Recipients,
	}
	if err := t.putMember(m); err != nil {
		return nil, err
	}
	t.accounts.put(m.Name, &pb.Account{Name: m.Name, JoinedUnixNano: t.now.UnixNano(), Code: req.CodeHash})
	if t.records.get(bundle.SiteRecordID(m.Site)) == nil {
		if err := t.putRecord(&pb.Record{Body: &pb.Record_Site{Site: &pb.Site{Name: m.Site}}}); err != nil {
			return nil, err
		}
	}
	t.await(m.Name)
	return inv, nil
}

// await adds a member to those that every next key on its way waits for.
func (t *tx) await(name string) {
	for id, ro := range t.rollouts.all {
		if issuer := t.issuer(id); issuer == nil || issuer.Name == name || !receives(issuer, name) {
			continue
		}
		c := edit(ro)
		if c.Pending == nil {
			c.Pending = map[string]uint64{}
		}
		c.Pending[name] = 0
		c.DeadlineUnixNano = t.now.Add(t.cfg.AckTimeout).UnixNano()
		t.rollouts.put(id, c)
	}
}

// issuer is the member whose key has that id, or nil.
func (t *tx) issuer(id tag.KeyID) *pb.Member {
	if r := t.records.get(bundle.KeyRecordID(id)); r != nil {
		return t.member(decodeKey(r).member)
	}
	return nil
}

// newUNID draws a UNID that nobody has.
func (t *tx) newUNID() (uint32, error) {
	taken := map[uint32]bool{0: true}
	members := 0
	for _, r := range t.records.all {
		if m := r.Body.GetMember(); m != nil {
			members++
			for _, u := range m.Unids {
				taken[u] = true
			}
		}
	}
	if members >= maxMembers {
		return 0, status.Errorf(codes.ResourceExhausted, "the alliance has %d members", members)
	}
	for {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, err
		}
		if unid := binary.BigEndian.Uint32(b[:]); !taken[unid] {
			return unid, nil
		}
	}
}

// checkCode checks that the caller holds the current code or the one after it,
// which the latter's first use promotes. Two slots make a crash harmless: a
// member keeps both, and sends the same pair until an answer has come. A spent
// code, or another next code than the one known, means that two parties hold
// the identity: it is suspended, and reject tells the caller.
func (t *tx) checkCode(name string, code, next bundle.Code) (reject, err error) {
	a := t.accounts.get(name)
	if a == nil {
		return nil, status.Errorf(codes.PermissionDenied, "no account of %s", name)
	}
	have, want := code.Hash(), next.Hash()
	switch {
	case bytes.Equal(have, a.Code) && bytes.Equal(want, a.NextCode):
		return nil, nil
	case bytes.Equal(have, a.Code) && len(a.NextCode) == 0:
		a = edit(a)
	case len(a.NextCode) > 0 && bytes.Equal(have, a.NextCode):
		a = edit(a)
		a.Spent = append(a.Spent, a.Code)
		a.Spent = a.Spent[max(0, len(a.Spent)-maxSpent):]
		a.Code = a.NextCode
	case bytes.Equal(have, a.Code) || slices.ContainsFunc(a.Spent, func(s []byte) bool { return bytes.Equal(s, have) }):
		a = edit(a)
		a.Alarm = true
		t.accounts.put(name, a)
		t.event(slog.LevelError, "identity_cloned", "member", name)
		if err := t.exclude(name, pb.MemberState_MEMBER_STATE_SUSPENDED); err != nil {
			return nil, err
		}
		return status.Errorf(codes.PermissionDenied, "two parties hold the identity of %s: it is suspended, ask the operator", name), nil
	default:
		t.event(slog.LevelWarn, "code_unknown", "member", name)
		return status.Errorf(codes.PermissionDenied, "code of %s is unknown", name), nil
	}
	a.NextCode = want
	t.accounts.put(name, a)
	return nil, nil
}

// publish takes new keys of a member, and envelopes.
func (t *tx) publish(name string, pubs []*pb.Publication) error {
	if len(pubs) > maxPublication {
		return status.Errorf(codes.InvalidArgument, "%d keys in one request, at most %d", len(pubs), maxPublication)
	}
	m := t.member(name)
	for _, p := range pubs {
		st, err := bundle.VerifyStatement(m, p.Statement, p.Signature)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		id := bundle.KeyIDOf(st.Id)
		if err := t.takeStatement(m, id, p); err != nil {
			return err
		}
		if err := t.takeEnvelopes(m, id, p.Envelopes); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) takeStatement(m *pb.Member, id tag.KeyID, p *pb.Publication) error {
	if r := t.records.get(bundle.KeyRecordID(id)); r != nil {
		if !bytes.Equal(r.Body.GetKey().Statement, p.Statement) {
			return status.Errorf(codes.AlreadyExists, "key %v was another key", id)
		}
		return nil
	}
	if r := t.reserves.get(id); r != nil {
		if !bytes.Equal(r.Statement, p.Statement) {
			return status.Errorf(codes.AlreadyExists, "key %v was another key", id)
		}
		return nil
	}
	mine := func(k *key) bool { return k.member == m.Name && k.id.Suite == id.Suite }
	if p.Reserve {
		var older []tag.KeyID
		for other := range t.reserves.all {
			if other.Suite == id.Suite && slices.Contains(m.Unids, other.UNID) {
				older = append(older, other)
			}
		}
		if len(older) >= maxUnused { // their issuer has lost them
			for _, id := range older {
				t.dropReserve(id)
			}
		}
		t.reserves.put(id, &pb.Reserve{Statement: p.Statement, Signature: p.Signature})
		return nil
	}
	k := &pb.Key{Statement: p.Statement, Signature: p.Signature, State: pb.KeyState_KEY_STATE_NEXT, Entered: t.sequence}
	unused := t.keys(func(k *key) bool { return mine(k) && k.State == pb.KeyState_KEY_STATE_NEXT })
	if len(unused) >= maxUnused {
		return status.Errorf(codes.ResourceExhausted, "%d next keys of %s in suite %v", len(unused), m.Name, id.Suite)
	}
	accepted := t.keys(func(k *key) bool { return mine(k) && live(k.State) })
	switched := t.keys(func(k *key) bool { return mine(k) && k.Forced })
	if len(accepted) == 0 && len(switched) > 0 {
		// A forced switch found no reserve: nobody accepts anything of this
		// member, so there is nothing to wait for.
		k.State, k.Forced, t.forced = pb.KeyState_KEY_STATE_CURRENT, true, true
		t.event(slog.LevelInfo, "key_state", "member", m.Name, "key", id.String(), "to", "current", "forced", true)
		return t.putKey(k)
	}
	ro := &pb.Rollout{Id: bundle.WireKeyID(id), Published: t.sequence, DeadlineUnixNano: t.now.Add(t.cfg.AckTimeout).UnixNano(), Pending: map[string]uint64{}}
	for _, r := range t.recipients(m) {
		ro.Pending[r] = 0
	}
	t.rollouts.put(id, ro)
	t.event(slog.LevelInfo, "key_state", "member", m.Name, "key", id.String(), "to", "next", "forced", false)
	return t.putKey(k)
}

func (t *tx) takeEnvelopes(m *pb.Member, id tag.KeyID, envelopes []*pb.Envelope) error {
	if r := t.records.get(bundle.KeyRecordID(id)); r != nil && !live(r.Body.GetKey().State) {
		return nil // retired meanwhile
	}
	ro := t.rollouts.get(id)
	if ro != nil {
		ro = edit(ro)
	}
	for _, e := range envelopes {
		switch {
		case bundle.KeyIDOf(e.GetId()) != id:
			return status.Errorf(codes.InvalidArgument, "envelope of %v with key %v", bundle.KeyIDOf(e.GetId()), id)
		case len(e.Sealed) > maxEnvelope:
			return status.Errorf(codes.InvalidArgument, "envelope of %d bytes, at most %d", len(e.Sealed), maxEnvelope)
		case t.member(e.Recipient) == nil || e.Recipient == m.Name || !receives(m, e.Recipient):
			return status.Errorf(codes.InvalidArgument, "envelope of %v to %q, which does not receive it", id, e.Recipient)
		}
		t.envelopes[envelopeKey(e.Recipient, id)] = e
		if ro != nil {
			if _, ok := ro.Pending[e.Recipient]; ok {
				ro.Pending[e.Recipient] = t.sequence
			}
		}
	}
	if ro != nil && len(envelopes) > 0 {
		t.rollouts.put(id, ro)
	}
	return nil
}

// ack takes a member's word that it has everything up to a sequence, but for
// missing.
func (t *tx) ack(name string, sequence uint64, missing []*pb.KeyID) error {
	if sequence >= t.sequence {
		return status.Errorf(codes.InvalidArgument, "sequence %d is in the future", sequence)
	}
	lacks := map[tag.KeyID]bool{}
	for _, id := range missing {
		lacks[bundle.KeyIDOf(id)] = true
	}
	a := t.accounts.get(name)
	if a == nil {
		return status.Errorf(codes.PermissionDenied, "no account of %s", name)
	}
	caughtUp := a.BehindSince != 0 && sequence >= a.BehindSince && len(missing) == 0
	if sequence > a.Acknowledged || caughtUp {
		a = edit(a)
		a.Acknowledged = max(a.Acknowledged, sequence)
		if caughtUp {
			a.BehindSince = 0
			t.event(slog.LevelInfo, "caught_up", "member", name)
		}
		t.accounts.put(name, a)
	}
	for id, ro := range t.rollouts.all {
		if sealed, ok := ro.Pending[name]; ok && sealed != 0 && max(sealed, ro.Published) <= sequence && !lacks[id] {
			c := edit(ro)
			delete(c.Pending, name)
			t.rollouts.put(id, c)
		}
	}
	return nil
}

// rotate asks for the switch to a member's next key of a suite; advance makes
// it, at once where every recipient has acknowledged. It returns that key.
func (t *tx) rotate(name string, suite pb.Suite) (tag.KeyID, error) {
	m := t.member(name)
	if m == nil {
		return tag.KeyID{}, status.Errorf(codes.NotFound, "no member %q", name)
	}
	if !slices.Contains(m.Suites, suite) {
		return tag.KeyID{}, status.Errorf(codes.InvalidArgument, "member %s does not sign with suite %v", name, tag.Suite(suite))
	}
	next := t.keys(func(k *key) bool {
		return k.member == name && pb.Suite(k.id.Suite) == suite && k.State == pb.KeyState_KEY_STATE_NEXT
	})
	if len(next) == 0 {
		return tag.KeyID{}, status.Errorf(codes.FailedPrecondition, "member %s has published no next key of suite %v yet", name, tag.Suite(suite))
	}
	oldest := slices.MinFunc(next, func(a, b *key) int { return cmp.Compare(a.Entered, b.Entered) })
	if ro := t.rollouts.get(oldest.id); ro != nil && !ro.Requested {
		c := edit(ro)
		c.Requested = true
		t.rollouts.put(oldest.id, c)
	}
	return oldest.id, nil
}

// exclude suspends or revokes a member and makes the forced switch: every key
// that it held is revoked, and its issuer's reserve, which the member never
// got, is current in the same version.
func (t *tx) exclude(name string, to pb.MemberState) error {
	m := t.member(name)
	if m == nil {
		return status.Errorf(codes.NotFound, "no member %q", name)
	}
	if m.State == to || m.State == pb.MemberState_MEMBER_STATE_REVOKED {
		return nil
	}
	was := m.State
	m = edit(m)
	m.State = to
	if err := t.putMember(m); err != nil {
		return err
	}
	t.event(slog.LevelWarn, "member_state", "member", name, "to", directory.MemberState(to).String())
	if was != pb.MemberState_MEMBER_STATE_ACTIVE {
		return nil // the switch was made then
	}
	t.forced = true
	for id := range t.reserves.all {
		if slices.Contains(m.Unids, id.UNID) {
			t.dropReserve(id)
		}
	}
	lost := map[slot]bool{}
	for _, k := range t.keys(func(k *key) bool { return live(k.State) }) {
		issuer := t.member(k.member)
		if issuer == nil || !receives(issuer, name) {
			continue
		}
		if err := t.setState(k, pb.KeyState_KEY_STATE_REVOKED, t.cfg.BundleLifetime, k.member != name); err != nil {
			return err
		}
		if k.member != name {
			lost[slot{k.member, k.id.Suite}] = true
		}
	}
	reserves := map[tag.KeyID]*pb.Reserve{}
	for id, r := range t.reserves.all {
		reserves[id] = r
	}
	for _, id := range slices.SortedFunc(maps.Keys(reserves), directory.CompareKeyID) {
		st, err := bundle.ParseStatement(reserves[id].Statement)
		if err != nil {
			return err
		}
		at := slot{st.Member, id.Suite}
		if !lost[at] {
			continue
		}
		delete(lost, at) // one is enough; a second stays in reserve
		t.reserves.drop(id)
		t.event(slog.LevelInfo, "key_state", "member", st.Member, "key", id.String(), "from", "reserve", "to", "current", "forced", true)
		err = t.putKey(&pb.Key{
			Statement: reserves[id].Statement, Signature: reserves[id].Signature,
			State: pb.KeyState_KEY_STATE_CURRENT, Forced: true, Entered: t.sequence,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// resume takes a suspended member back.
func (t *tx) resume(name string) error {
	m := t.member(name)
	if m == nil {
		return status.Errorf(codes.NotFound, "no member %q", name)
	}
	if m.State != pb.MemberState_MEMBER_STATE_SUSPENDED {
		return status.Errorf(codes.FailedPrecondition, "member %s is %v", name, directory.MemberState(m.State))
	}
	m = edit(m)
	m.State = pb.MemberState_MEMBER_STATE_ACTIVE
	if a := t.accounts.get(name); a != nil {
		a = edit(a)
		a.Alarm, a.Resumed = false, t.sequence
		t.accounts.put(name, a)
	}
	t.await(name)
	t.event(slog.LevelInfo, "member_state", "member", name, "to", "active")
	return t.putMember(m)
}

// remove forgets a revoked member, once nobody keeps a tombstone of it.
func (t *tx) remove(name string) error {
	m := t.member(name)
	if m == nil {
		return status.Errorf(codes.NotFound, "no member %q", name)
	}
	if m.State != pb.MemberState_MEMBER_STATE_REVOKED {
		return status.Errorf(codes.FailedPrecondition, "member %s is %v, revoke it first", name, directory.MemberState(m.State))
	}
	if left := t.keys(func(k *key) bool { return k.member == name }); len(left) > 0 {
		return status.Errorf(codes.FailedPrecondition, "member %s has %d tombstones, the last goes at %v", name, len(left),
			time.Unix(0, slices.MaxFunc(left, func(a, b *key) int { return cmp.Compare(a.UntilUnixNano, b.UntilUnixNano) }).UntilUnixNano))
	}
	t.records.drop(bundle.MemberRecordID(name))
	t.accounts.drop(name)
	t.event(slog.LevelInfo, "member_removed", "member", name)
	return nil
}

// advance does what time and acknowledgements have made due.
func (t *tx) advance() error {
	if err := t.advanceRollouts(); err != nil {
		return err
	}
	now := t.now.UnixNano()
	for _, k := range t.keys(func(k *key) bool { return k.UntilUnixNano != 0 && k.UntilUnixNano <= now }) {
		var err error
		switch {
		case k.State == pb.KeyState_KEY_STATE_GRACE && t.cfg.EchoOnly > 0:
			err = t.setState(k, pb.KeyState_KEY_STATE_ECHO_ONLY, t.cfg.EchoOnly, k.Forced)
		case live(k.State):
			err = t.setState(k, pb.KeyState_KEY_STATE_RETIRED, t.cfg.SessionTimeout, k.Forced)
		default:
			t.records.drop(bundle.KeyRecordID(k.id))
		}
		if err != nil {
			return err
		}
	}
	for hash, inv := range t.invitations.all {
		if inv.ExpiryUnixNano <= now {
			t.invitations.drop(hash)
		}
	}
	return nil
}

func (t *tx) advanceRollouts() error {
	rollouts := map[tag.KeyID]*pb.Rollout{}
	for id, ro := range t.rollouts.all {
		rollouts[id] = ro
	}
	current := map[slot]*key{}
	for _, k := range t.keys(func(k *key) bool { return k.State == pb.KeyState_KEY_STATE_CURRENT }) {
		current[slot{k.member, k.id.Suite}] = k
	}
	for _, id := range slices.SortedFunc(maps.Keys(rollouts), directory.CompareKeyID) {
		ro, r := rollouts[id], t.records.get(bundle.KeyRecordID(id))
		if r == nil || r.Body.GetKey().State != pb.KeyState_KEY_STATE_NEXT {
			t.rollouts.drop(id)
			continue
		}
		k := decodeKey(r)
		pending := maps.Clone(ro.Pending)
		maps.DeleteFunc(pending, func(name string, _ uint64) bool { return !active(t.member(name)) })
		if t.now.UnixNano() >= ro.DeadlineUnixNano {
			for _, name := range slices.Sorted(maps.Keys(pending)) {
				t.fallBehind(name, id)
			}
			clear(pending)
		}
		if len(pending) != len(ro.Pending) {
			ro = edit(ro)
			ro.Pending = pending
			t.rollouts.put(id, ro)
		}
		at := slot{k.member, id.Suite}
		old := current[at]
		if len(pending) > 0 || !ro.Requested && old != nil {
			continue
		}
		if old != nil {
			if err := t.setState(old, pb.KeyState_KEY_STATE_GRACE, t.cfg.Grace, false); err != nil {
				return err
			}
		}
		if err := t.setState(k, pb.KeyState_KEY_STATE_CURRENT, 0, false); err != nil {
			return err
		}
		t.rollouts.drop(id)
		current[at] = k
	}
	return nil
}

// fallBehind notes that a key was not waited for any longer.
func (t *tx) fallBehind(name string, id tag.KeyID) {
	t.event(slog.LevelWarn, "behind", "member", name, "key", id.String())
	if a := t.accounts.get(name); a != nil && a.BehindSince == 0 {
		a = edit(a)
		a.BehindSince = t.sequence
		t.accounts.put(name, a)
	}
}

// due is when advance has something to do next, the zero time for never.
func (t *tables) due() (at time.Time) {
	earliest := int64(0)
	take := func(nano int64) {
		if nano != 0 && (earliest == 0 || nano < earliest) {
			earliest = nano
		}
	}
	for _, r := range t.records.all {
		take(r.Body.GetKey().GetUntilUnixNano())
	}
	for _, ro := range t.rollouts.all {
		if len(ro.Pending) > 0 {
			take(ro.DeadlineUnixNano)
		}
	}
	for _, inv := range t.invitations.all {
		take(inv.ExpiryUnixNano)
	}
	if earliest == 0 {
		return time.Time{}
	}
	return time.Unix(0, earliest)
}

// invite keeps an invitation under the hash of its secret.
func (t *tx) invite(hash string, inv *pb.Invitation) error {
	if err := directory.CheckName(inv.Name); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if inv.Role == pb.Role_ROLE_MEMBER {
		if t.member(inv.Name) != nil {
			return status.Errorf(codes.AlreadyExists, "member %s exists", inv.Name)
		}
		if err := directory.CheckName(inv.Site); err != nil {
			return status.Errorf(codes.InvalidArgument, "site: %v", err)
		}
		if len(inv.Suites) == 0 {
			return status.Error(codes.InvalidArgument, "suites: a member needs at least one")
		}
		for _, s := range inv.Suites {
			if s < 0 || s > 0xff || !tag.Suite(s).Valid() {
				return status.Errorf(codes.InvalidArgument, "suites: unknown suite %d", s)
			}
		}
	}
	t.invitations.put(hash, inv)
	t.event(slog.LevelInfo, "invited", "name", inv.Name, "role", inv.Role.String(), "expiry", time.Unix(0, inv.ExpiryUnixNano))
	return nil
}

var roles = map[pb.Role]authority.Role{
	pb.Role_ROLE_MEMBER:   authority.Member,
	pb.Role_ROLE_OPERATOR: authority.Operator,
	pb.Role_ROLE_READER:   authority.Reader,
}
