package keys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"countersign/directory/bundle"
	pb "countersign/directory/proto"
	"countersign/tag"
)

// Own is one of the member's own keys, with what its envelopes are made from.
// It is a secret.
type Own struct {
	ID        tag.KeyID
	Issue     *tag.IssueKey
	Salt      []byte // of the commitment
	Statement []byte // serialised, as published
	Signature []byte
	// Reserve: the directory holds it back for a forced switch.
	Reserve bool
	// Published is the sequence that took it, 0 while that is not known.
	Published uint64
	// Sealed maps recipients to the seal key that it was sealed to.
	Sealed map[string][]byte
}

// Ring is a member's keys. Make it with LoadRing; it is not safe for concurrent
// use.
type Ring struct {
	path  string
	vault *Vault

	Own    map[tag.KeyID]*Own
	Opened map[tag.KeyID]*tag.VerifyKey // of other members
	epochs map[uint32]map[tag.Suite]uint16
}

type storedOwn struct {
	ID        tag.KeyID         `json:"id"`
	Issue     []byte            `json:"issue"`
	Salt      []byte            `json:"salt"`
	Statement []byte            `json:"statement"`
	Signature []byte            `json:"signature"`
	Reserve   bool              `json:"reserve,omitempty"`
	Published uint64            `json:"published,omitempty"`
	Sealed    map[string][]byte `json:"sealed,omitempty"`
}

type storedRing struct {
	Own    []storedOwn                     `json:"own"`
	Opened []storedOpened                  `json:"opened"`
	Epochs map[uint32]map[tag.Suite]uint16 `json:"epochs"`
}

type storedOpened struct {
	ID  tag.KeyID `json:"id"`
	Key []byte    `json:"key"`
}

// LoadRing reads the ring in a file; a missing one is empty.
func LoadRing(path string, vault *Vault) (*Ring, error) {
	r := &Ring{path: path, vault: vault, Own: map[tag.KeyID]*Own{}, Opened: map[tag.KeyID]*tag.VerifyKey{}, epochs: map[uint32]map[tag.Suite]uint16{}}
	b, err := vault.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	var s storedRing
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, o := range s.Own {
		issue, err := tag.ParseIssueKey(o.ID.Suite, o.Issue)
		if err != nil {
			return nil, fmt.Errorf("%s: key %v: %w", path, o.ID, err)
		}
		if o.Sealed == nil {
			o.Sealed = map[string][]byte{}
		}
		r.Own[o.ID] = &Own{o.ID, issue, o.Salt, o.Statement, o.Signature, o.Reserve, o.Published, o.Sealed}
	}
	for _, o := range s.Opened {
		if r.Opened[o.ID], err = tag.ParseVerifyKey(o.ID.Suite, o.Key); err != nil {
			return nil, fmt.Errorf("%s: key %v: %w", path, o.ID, err)
		}
	}
	if s.Epochs != nil {
		r.epochs = s.Epochs
	}
	return r, nil
}

// Save writes the ring.
func (r *Ring) Save() error {
	s := storedRing{Epochs: r.epochs}
	for _, o := range r.Own {
		b, err := o.Issue.Bytes()
		if err != nil {
			return err
		}
		s.Own = append(s.Own, storedOwn{o.ID, b, o.Salt, o.Statement, o.Signature, o.Reserve, o.Published, o.Sealed})
	}
	for id, k := range r.Opened {
		b, err := k.Bytes()
		if err != nil {
			return err
		}
		s.Opened = append(s.Opened, storedOpened{id, b})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return r.vault.Write(r.path, b)
}

// Add takes a fresh key into the ring under the next epoch of suite and UNID,
// which is never given twice, and signs its statement. It is not saved yet.
func (r *Ring) Add(issue *tag.IssueKey, member string, unid uint32, identity ed25519.PrivateKey) (*Own, error) {
	epoch, err := r.nextEpoch(unid, issue.Suite())
	if err != nil {
		return nil, err
	}
	o := &Own{
		ID: tag.KeyID{Suite: issue.Suite(), UNID: unid, Epoch: epoch}, Issue: issue,
		Salt: make([]byte, bundle.SaltLen), Sealed: map[string][]byte{},
	}
	if _, err := rand.Read(o.Salt); err != nil {
		return nil, err
	}
	b, err := issue.Verifier().Bytes()
	if err != nil {
		return nil, err
	}
	st := &pb.KeyStatement{Id: bundle.WireKeyID(o.ID), Member: member, Commitment: bundle.Commitment(o.ID, o.Salt, b)}
	if o.ID.Suite == tag.Ed25519 {
		st.Public = b[len(b)-ed25519.PublicKeySize:]
	}
	if o.Statement, o.Signature, err = bundle.SignStatement(identity, st); err != nil {
		return nil, err
	}
	r.Own[o.ID] = o
	return o, nil
}

// nextEpoch starts anywhere, so that an epoch does not tell a UNID's age.
func (r *Ring) nextEpoch(unid uint32, suite tag.Suite) (uint16, error) {
	if r.epochs[unid] == nil {
		r.epochs[unid] = map[tag.Suite]uint16{}
	}
	epoch, ok := r.epochs[unid][suite]
	if !ok {
		var b [2]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, err
		}
		epoch = binary.BigEndian.Uint16(b[:])
	}
	epoch++
	r.epochs[unid][suite] = epoch
	return epoch, nil
}

// Publication is a key as the directory takes it, with envelopes for the
// recipients (name to seal key) that it was not sealed to yet. The ring notes
// them as sealed with MarkSealed, once the directory has them.
func (o *Own) Publication(recipients map[string][]byte) (*pb.Publication, error) {
	p := &pb.Publication{Statement: o.Statement, Signature: o.Signature, Reserve: o.Reserve}
	key, err := o.Issue.Verifier().Bytes()
	if err != nil {
		return nil, err
	}
	for name, sealKey := range recipients {
		if bytes.Equal(o.Sealed[name], sealKey) {
			continue
		}
		e, err := bundle.SealKey(o.ID, name, sealKey, o.Salt, key)
		if err != nil {
			return nil, err
		}
		p.Envelopes = append(p.Envelopes, e)
	}
	return p, nil
}

// MarkSealed notes what the directory has taken.
func (o *Own) MarkSealed(p *pb.Publication, recipients map[string][]byte, sequence uint64) {
	for _, e := range p.Envelopes {
		o.Sealed[e.Recipient] = recipients[e.Recipient]
	}
	if o.Published == 0 {
		o.Published = sequence
	}
}

// Spares makes keys of suite rsa2048 ahead, because that takes long. Make it
// with NewSpares; it is safe for concurrent use.
type Spares struct{ ready chan *tag.IssueKey }

// NewSpares returns Spares that hold at most n keys. Fill fills them.
func NewSpares(n int) *Spares { return &Spares{make(chan *tag.IssueKey, n)} }

// Fill makes keys until ctx ends.
func (s *Spares) Fill(ctx context.Context) error {
	for {
		k, err := tag.GenerateKey(tag.RSA2048)
		if err != nil {
			return err
		}
		select {
		case s.ready <- k:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Take returns a fresh key: a spare one of suite rsa2048 as soon as there is
// one, a new one of the others.
func (s *Spares) Take(ctx context.Context, suite tag.Suite) (*tag.IssueKey, error) {
	if suite != tag.RSA2048 {
		return tag.GenerateKey(suite)
	}
	select {
	case k := <-s.ready:
		return k, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
