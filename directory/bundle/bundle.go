// Package bundle is what the directory signs and every member checks: a header
// with a version and an expiry over records that are equal for all readers, the
// chain of directory keys, and envelopes that only their recipient can open.
//
// A member never trusts the directory with more than membership. The order of
// versions, the chain of keys and the identity behind a UNID are checked here
// against what the member knew before, and every key against its issuer's
// signature.
package bundle

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"countersign/directory"
	pb "countersign/directory/proto"
	"countersign/tag"

	"google.golang.org/protobuf/proto"
)

// Errors that callers branch on. Each is a reason to refuse an update and keep
// what was known before.
var (
	// ErrSignature is a header, key or link that its key did not sign.
	ErrSignature = errors.New("signature does not verify")
	// ErrChain is a directory key that does not follow from the trusted one.
	ErrChain = errors.New("directory key does not follow from the trusted one")
	// ErrRollback is a version or sequence older than the one known.
	ErrRollback = errors.New("older than what is known")
	// ErrFork is another content under a version that is known.
	ErrFork = errors.New("a different bundle of the same version")
	// ErrExpired is a bundle past its expiry.
	ErrExpired = errors.New("bundle has expired")
	// ErrMalformed is a record or header that breaks the format.
	ErrMalformed = errors.New("malformed bundle")
	// ErrRoot is a set of records that is not the one signed.
	ErrRoot = errors.New("records are not the signed ones")
	// ErrIdentity is a UNID that has changed hands.
	ErrIdentity = errors.New("UNID belongs to another identity")
)

const (
	headerContext    = "countersign directory header v1\x00"
	linkContext      = "countersign directory key v1\x00"
	statementContext = "countersign key statement v1\x00"
	rootContext      = "countersign records v1\x00"
)

// Record is one entry of the core with the bytes that the root covers. It is
// immutable.
type Record struct {
	ID        string
	Raw       []byte
	Body      *pb.Record
	Statement *pb.KeyStatement // decoded, of a key's record
	hash      [sha256.Size]byte
}

// NewRecord encodes a record and checks it.
func NewRecord(body *pb.Record) (*Record, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return ParseRecord(raw)
}

// ParseRecord decodes and checks a record, and returns ErrMalformed with the
// field at fault. It keeps raw.
func ParseRecord(raw []byte) (*Record, error) {
	r := &Record{Raw: raw, Body: &pb.Record{}, hash: sha256.Sum256(raw)}
	if err := proto.Unmarshal(raw, r.Body); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var err error
	switch body := r.Body.Body.(type) {
	case *pb.Record_Member:
		r.ID = MemberRecordID(body.Member.GetName())
		err = checkMember(body.Member)
	case *pb.Record_Key:
		if r.Statement, err = ParseStatement(body.Key.GetStatement()); err == nil {
			r.ID = KeyRecordID(KeyIDOf(r.Statement.Id))
			if s := body.Key.State; s < pb.KeyState_KEY_STATE_NEXT || s > pb.KeyState_KEY_STATE_REVOKED {
				err = fmt.Errorf("state %d", s)
			}
		}
	case *pb.Record_Site:
		r.ID = SiteRecordID(body.Site.GetName())
		err = checkSite(body.Site)
	default:
		err = errors.New("no known body")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: record %q: %w", ErrMalformed, r.ID, err)
	}
	return r, nil
}

// MemberRecordID is the id of a member's record.
func MemberRecordID(name string) string { return "member/" + name }

// SiteRecordID is the id of a site's record.
func SiteRecordID(name string) string { return "site/" + name }

// KeyRecordID is the id of a key's record.
func KeyRecordID(id tag.KeyID) string {
	return fmt.Sprintf("key/%d/%08x/%05d", id.Suite, id.UNID, id.Epoch)
}

// KeyIDOf converts the wire form; fields out of range give a KeyID whose Suite
// is not valid.
func KeyIDOf(id *pb.KeyID) tag.KeyID {
	if id.GetEpoch() > 0xffff || id.GetSuite() < 0 || id.GetSuite() > 0xff {
		return tag.KeyID{}
	}
	return tag.KeyID{Suite: tag.Suite(id.GetSuite()), UNID: id.GetUnid(), Epoch: uint16(id.GetEpoch())}
}

// WireKeyID converts to the wire form.
func WireKeyID(id tag.KeyID) *pb.KeyID {
	return &pb.KeyID{Suite: pb.Suite(id.Suite), Unid: id.UNID, Epoch: uint32(id.Epoch)}
}

func checkMember(m *pb.Member) error {
	if err := directory.CheckName(m.GetName()); err != nil {
		return err
	}
	if err := directory.CheckName(m.Site); err != nil {
		return fmt.Errorf("site: %w", err)
	}
	if m.State < pb.MemberState_MEMBER_STATE_ACTIVE || m.State > pb.MemberState_MEMBER_STATE_REVOKED {
		return fmt.Errorf("state %d", m.State)
	}
	if len(m.Identity) != ed25519.PublicKeySize {
		return fmt.Errorf("identity of %d bytes", len(m.Identity))
	}
	if _, err := parseSealKey(m.SealKey); err != nil {
		return err
	}
	if len(m.Unids) == 0 || slices.Contains(m.Unids, 0) {
		return errors.New("no UNID, or UNID 0")
	}
	for _, s := range m.Suites {
		if s < 0 || s > 0xff || !tag.Suite(s).Valid() {
			return fmt.Errorf("suite %d", s)
		}
	}
	return nil
}

func checkSite(s *pb.Site) error {
	if err := directory.CheckName(s.GetName()); err != nil {
		return err
	}
	for _, text := range s.Prefixes {
		if p, err := netip.ParsePrefix(text); err != nil || p != p.Masked() {
			return fmt.Errorf("prefix %q", text)
		}
	}
	return nil
}

// ParseStatement decodes what an issuer vouches for, or returns ErrMalformed.
func ParseStatement(raw []byte) (*pb.KeyStatement, error) {
	st := &pb.KeyStatement{}
	if err := proto.Unmarshal(raw, st); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	id := KeyIDOf(st.Id)
	switch {
	case !id.Suite.Valid() || id.UNID == 0:
		return nil, fmt.Errorf("%w: key id %v", ErrMalformed, st.Id)
	case len(st.Commitment) != sha256.Size:
		return nil, fmt.Errorf("%w: commitment of %d bytes", ErrMalformed, len(st.Commitment))
	case id.Suite == tag.Ed25519 && len(st.Public) != ed25519.PublicKeySize,
		id.Suite != tag.Ed25519 && len(st.Public) != 0:
		return nil, fmt.Errorf("%w: public part of %d bytes", ErrMalformed, len(st.Public))
	}
	return st, nil
}

// SignStatement encodes and signs a statement with the issuer's identity.
func SignStatement(identity ed25519.PrivateKey, st *pb.KeyStatement) (raw, signature []byte, err error) {
	if raw, err = (proto.MarshalOptions{Deterministic: true}).Marshal(st); err != nil {
		return nil, nil, err
	}
	return raw, ed25519.Sign(identity, append([]byte(statementContext), raw...)), nil
}

// VerifyStatement checks that the member issued the statement under one of its
// UNIDs, in one of its suites. Errors are ErrMalformed and ErrSignature.
func VerifyStatement(m *pb.Member, raw, signature []byte) (*pb.KeyStatement, error) {
	st, err := ParseStatement(raw)
	if err != nil {
		return nil, err
	}
	if st.Member != m.GetName() || !slices.Contains(m.GetUnids(), st.Id.Unid) || !slices.Contains(m.GetSuites(), st.Id.Suite) {
		return nil, fmt.Errorf("%w: key %v is not for member %q", ErrMalformed, KeyIDOf(st.Id), m.GetName())
	}
	if !ed25519.Verify(m.GetIdentity(), append([]byte(statementContext), raw...), signature) {
		return nil, fmt.Errorf("%w: key %v of %s", ErrSignature, KeyIDOf(st.Id), st.Member)
	}
	return st, nil
}

// SignHeader encodes and signs a header with the directory's key.
func SignHeader(key ed25519.PrivateKey, h *pb.Header) (*pb.SignedHeader, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(h)
	if err != nil {
		return nil, err
	}
	return &pb.SignedHeader{
		Header:       raw,
		Signature:    ed25519.Sign(key, append([]byte(headerContext), raw...)),
		DirectoryKey: key.Public().(ed25519.PublicKey),
	}, nil
}

// SignLink signs the directory's new key with its old one.
func SignLink(old ed25519.PrivateKey, key ed25519.PublicKey) *pb.KeyLink {
	return &pb.KeyLink{
		Previous:  old.Public().(ed25519.PublicKey),
		Key:       key,
		Signature: ed25519.Sign(old, append([]byte(linkContext), key...)),
	}
}

// Follow walks the chain from a trusted key to want, or returns ErrChain or
// ErrSignature.
func Follow(trusted, want ed25519.PublicKey, chain []*pb.KeyLink) error {
	if len(trusted) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: no key of %d bytes is trusted", ErrChain, len(trusted))
	}
	for _, link := range chain {
		if bytes.Equal(trusted, want) {
			break
		}
		if !bytes.Equal(link.GetPrevious(), trusted) {
			continue // older than what we trust
		}
		if len(link.Key) != ed25519.PublicKeySize || !ed25519.Verify(trusted, append([]byte(linkContext), link.Key...), link.Signature) {
			return fmt.Errorf("%w: link to directory key %x", ErrSignature, link.Key)
		}
		trusted = link.Key
	}
	if !bytes.Equal(trusted, want) {
		return fmt.Errorf("%w: reached %x, signed by %x", ErrChain, trusted, want)
	}
	return nil
}

// Bundle is a checked bundle. It is immutable: Apply makes a new one. The zero
// value knows nothing and is what a member starts from.
type Bundle struct {
	// Sequence counts updates; it is at least the header's version.
	Sequence uint64
	Signed   *pb.SignedHeader // nil in the zero value
	Header   *pb.Header       // decoded from Signed
	Records  map[string]*Record
	hash     [sha256.Size]byte // of Signed.Header
}

// Root is SHA-256 over a context and, in order of ids, each id's length (2
// bytes, big-endian), the id, and the SHA-256 of the record's bytes.
func Root(records map[string]*Record) []byte {
	h := sha256.New()
	h.Write([]byte(rootContext))
	for _, id := range slices.Sorted(maps.Keys(records)) {
		h.Write(binary.BigEndian.AppendUint16(nil, uint16(len(id))))
		h.Write([]byte(id))
		h.Write(records[id].hash[:])
	}
	return h.Sum(nil)
}

// Expiry is when the bundle ends; the zero time for the zero value.
func (b *Bundle) Expiry() time.Time {
	if b.Header == nil {
		return time.Time{}
	}
	return time.Unix(0, b.Header.ExpiryUnixNano)
}

// Version is the header's version, 0 for the zero value.
func (b *Bundle) Version() uint64 { return b.Header.GetVersion() }

// Member returns a member's record, or nil.
func (b *Bundle) Member(name string) *pb.Member {
	if r := b.Records[MemberRecordID(name)]; r != nil {
		return r.Body.GetMember()
	}
	return nil
}

// Apply checks an update against b and the trusted directory key, and returns
// the bundle after it. The key to trust from then on is its Signed.DirectoryKey.
// Where it returns an error, b stands as it was. The zero b takes the alliance
// as it comes.
func (b *Bundle) Apply(trusted ed25519.PublicKey, u *pb.Update, now time.Time) (*Bundle, error) {
	next := &Bundle{Sequence: u.GetSequence(), Signed: b.Signed, Header: b.Header, Records: b.Records, hash: b.hash}
	if next.Sequence < b.Sequence {
		return nil, fmt.Errorf("%w: sequence %d, known %d", ErrRollback, next.Sequence, b.Sequence)
	}
	if u.Header == nil {
		if len(u.Records) > 0 || len(u.Removed) > 0 || u.Snapshot || b.Signed == nil {
			return nil, fmt.Errorf("%w: records without a header", ErrMalformed)
		}
		return next, nil
	}
	if err := next.takeHeader(trusted, u, now); err != nil {
		return nil, err
	}
	if b.Header != nil {
		if err := b.follows(next); err != nil {
			return nil, err
		}
	}
	if err := next.takeRecords(b, u); err != nil {
		return nil, err
	}
	return next, nil
}

func (b *Bundle) takeHeader(trusted ed25519.PublicKey, u *pb.Update, now time.Time) error {
	signed := u.Header
	if err := Follow(trusted, signed.DirectoryKey, u.Chain); err != nil {
		return err
	}
	if !ed25519.Verify(signed.DirectoryKey, append([]byte(headerContext), signed.Header...), signed.Signature) {
		return fmt.Errorf("%w: bundle header", ErrSignature)
	}
	h := &pb.Header{}
	if err := proto.Unmarshal(signed.Header, h); err != nil {
		return fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	if h.Version == 0 || h.Version > u.Sequence || h.Carrier == nil || h.Carrier.Protocol > 0xff || h.Carrier.Port > 0xffff {
		return fmt.Errorf("%w: header of version %d at sequence %d", ErrMalformed, h.Version, u.Sequence)
	}
	if expiry := time.Unix(0, h.ExpiryUnixNano); !now.Before(expiry) {
		return fmt.Errorf("%w: version %d at %v", ErrExpired, h.Version, expiry)
	}
	b.Signed, b.Header, b.hash = signed, h, sha256.Sum256(signed.Header)
	return nil
}

// follows checks the order of next after b.
func (b *Bundle) follows(next *Bundle) error {
	switch {
	case next.Header.Alliance != b.Header.Alliance:
		return fmt.Errorf("%w: alliance %q, known %q", ErrMalformed, next.Header.Alliance, b.Header.Alliance)
	case next.Version() < b.Version():
		return fmt.Errorf("%w: version %d, known %d", ErrRollback, next.Version(), b.Version())
	case next.Version() == b.Version() && next.hash != b.hash:
		return fmt.Errorf("%w: version %d", ErrFork, b.Version())
	}
	return nil
}

func (b *Bundle) takeRecords(old *Bundle, u *pb.Update) error {
	if u.Snapshot {
		b.Records = make(map[string]*Record, len(u.Records))
	} else {
		b.Records = maps.Clone(old.Records)
		if b.Records == nil {
			b.Records = map[string]*Record{}
		}
	}
	for _, id := range u.Removed {
		delete(b.Records, id)
	}
	var keys []*Record
	for _, raw := range u.Records {
		r, err := ParseRecord(raw)
		if err != nil {
			return err
		}
		b.Records[r.ID] = r
		if r.Body.GetKey() != nil {
			keys = append(keys, r)
		}
	}
	if !bytes.Equal(Root(b.Records), b.Header.Root) {
		return fmt.Errorf("%w: version %d", ErrRoot, b.Header.Version)
	}
	if err := b.checkIdentities(old); err != nil {
		return err
	}
	for _, r := range keys {
		if err := b.checkKey(old, r); err != nil {
			return err
		}
	}
	return nil
}

// checkIdentities refuses a UNID that two members share, or that belongs to
// another identity than before.
func (b *Bundle) checkIdentities(old *Bundle) error {
	owner := map[uint32][]byte{}
	for _, r := range old.Records {
		for _, unid := range r.Body.GetMember().GetUnids() {
			owner[unid] = r.Body.GetMember().Identity
		}
	}
	seen := map[uint32]bool{}
	for _, r := range b.Records {
		m := r.Body.GetMember()
		for _, unid := range m.GetUnids() {
			if was := owner[unid]; seen[unid] || was != nil && !bytes.Equal(was, m.Identity) {
				return fmt.Errorf("%w: %08x, member %s", ErrIdentity, unid, m.Name)
			}
			seen[unid] = true
		}
	}
	return nil
}

// checkKey refuses a key that its issuer did not sign. What was checked before
// is not checked again.
func (b *Bundle) checkKey(old *Bundle, r *Record) error {
	key := r.Body.GetKey()
	if was := old.Records[r.ID]; was != nil {
		if !bytes.Equal(was.Body.GetKey().GetStatement(), key.Statement) {
			return fmt.Errorf("%w: %s was another key", ErrIdentity, r.ID)
		}
		return nil
	}
	_, err := VerifyStatement(b.Member(r.Statement.Member), key.Statement, key.Signature)
	return err
}

// Update returns b as an update from nothing, which Apply on the zero Bundle
// takes back: the form in which a member keeps it on disk.
func (b *Bundle) Update() *pb.Update {
	u := &pb.Update{Sequence: b.Sequence, Header: b.Signed, Snapshot: true}
	for _, id := range slices.Sorted(maps.Keys(b.Records)) {
		u.Records = append(u.Records, b.Records[id].Raw)
	}
	return u
}
