package bundle

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	pb "countersign/directory/proto"
	"countersign/tag"

	"google.golang.org/protobuf/proto"
)

// world makes bundles as a directory with one member would.
type world struct {
	t         testing.TB
	directory ed25519.PrivateKey
	member    ed25519.PrivateKey
	seal      []byte
	now       time.Time
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, directory: newKey(t), member: newKey(t), now: time.Unix(1_000_000, 0)}
	seal, err := GenerateSealKey()
	if err != nil {
		t.Fatal(err)
	}
	w.seal = seal.PublicKey().Bytes()
	return w
}

func newKey(t testing.TB) ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *world) memberRecord() *pb.Record {
	return &pb.Record{Body: &pb.Record_Member{Member: &pb.Member{
		Name: "c1", Site: "c", Unids: []uint32{7}, Suites: []pb.Suite{pb.Suite_SUITE_SIPHASH}, State: pb.MemberState_MEMBER_STATE_ACTIVE,
		Identity: w.member.Public().(ed25519.PublicKey), SealKey: w.seal,
	}}}
}

func (w *world) keyRecord(by ed25519.PrivateKey, epoch uint32) *pb.Record {
	raw, sig, err := SignStatement(by, &pb.KeyStatement{
		Id: &pb.KeyID{Suite: pb.Suite_SUITE_SIPHASH, Unid: 7, Epoch: epoch}, Member: "c1", Commitment: make([]byte, 32),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &pb.Record{Body: &pb.Record_Key{Key: &pb.Key{Statement: raw, Signature: sig, State: pb.KeyState_KEY_STATE_NEXT}}}
}

func (w *world) update(version uint64, by ed25519.PrivateKey, records ...*pb.Record) *pb.Update {
	u := &pb.Update{Sequence: version, Snapshot: true}
	all := map[string]*Record{}
	for _, body := range records {
		r, err := NewRecord(body)
		if err != nil {
			w.t.Fatal(err)
		}
		all[r.ID] = r
		u.Records = append(u.Records, r.Raw)
	}
	w.sign(u, version, by, all)
	return u
}

func (w *world) sign(u *pb.Update, version uint64, by ed25519.PrivateKey, all map[string]*Record) {
	var err error
	u.Header, err = SignHeader(by, &pb.Header{
		Version: version, Alliance: "lab", Carrier: &pb.Carrier{Protocol: 253}, Root: Root(all),
		IssuedUnixNano: w.now.UnixNano(), ExpiryUnixNano: w.now.Add(time.Hour).UnixNano(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestApplyRefusals(t *testing.T) {
	w := newWorld(t)
	trusted := w.directory.Public().(ed25519.PublicKey)
	first := w.update(5, w.directory, w.memberRecord(), w.keyRecord(w.member, 1))
	known, err := (&Bundle{}).Apply(trusted, first, w.now)
	if err != nil {
		t.Fatal(err)
	}
	stranger, successor := newKey(t), newKey(t)
	other := newWorld(t)
	cases := []struct {
		name string
		make func() *pb.Update
		now  time.Duration
		want error
	}{
		{"the same again", func() *pb.Update { return first }, 0, nil},
		{"a later one", func() *pb.Update { return w.update(6, w.directory, w.memberRecord()) }, 0, nil},
		{"rollback", func() *pb.Update { return w.update(4, w.directory, w.memberRecord()) }, 0, ErrRollback},
		{"rollback under a later sequence", func() *pb.Update {
			u := w.update(4, w.directory, w.memberRecord())
			u.Sequence = 9
			return u
		}, 0, ErrRollback},
		{"fork", func() *pb.Update { return w.update(5, w.directory, w.memberRecord()) }, 0, ErrFork},
		{"expired", func() *pb.Update { return w.update(6, w.directory, w.memberRecord()) }, time.Hour, ErrExpired},
		{"a stranger's key", func() *pb.Update { return w.update(6, stranger, w.memberRecord()) }, 0, ErrChain},
		{"bit flipped in the header", func() *pb.Update {
			u := w.update(6, w.directory, w.memberRecord())
			u.Header.Header[len(u.Header.Header)-1] ^= 1
			return u
		}, 0, ErrSignature},
		{"bit flipped in a record", func() *pb.Update {
			u := w.update(6, w.directory, w.memberRecord())
			i := bytes.Index(u.Records[0], []byte("c1"))
			u.Records[0][i+1] = '2'
			return u
		}, 0, ErrRoot},
		{"record left out", func() *pb.Update {
			u := w.update(6, w.directory, w.memberRecord(), w.keyRecord(w.member, 1))
			u.Records = u.Records[:1]
			return u
		}, 0, ErrRoot},
		{"record slipped in", func() *pb.Update {
			u := w.update(6, w.directory, w.memberRecord())
			r, _ := NewRecord(w.keyRecord(w.member, 2))
			u.Records = append(u.Records, r.Raw)
			return u
		}, 0, ErrRoot},
		{"rubbish record", func() *pb.Update {
			u := w.update(6, w.directory, w.memberRecord())
			u.Records = append(u.Records, []byte("rubbish"))
			return u
		}, 0, ErrMalformed},
		{"records without a header", func() *pb.Update {
			u := w.update(6, w.directory, w.memberRecord())
			u.Header = nil
			return u
		}, 0, ErrMalformed},
		{"key that its issuer did not sign", func() *pb.Update { return w.update(6, w.directory, w.memberRecord(), w.keyRecord(stranger, 2)) }, 0, ErrSignature},
		{"another key of the same epoch", func() *pb.Update {
			k := w.keyRecord(w.member, 1)
			st, _ := ParseStatement(k.GetKey().Statement)
			st.Commitment[0] = 1
			k.GetKey().Statement, k.GetKey().Signature, _ = SignStatement(w.member, st)
			return w.update(6, w.directory, w.memberRecord(), k)
		}, 0, ErrIdentity},
		{"UNID in other hands", func() *pb.Update { return w.update(6, w.directory, other.memberRecord()) }, 0, ErrIdentity},
		{"UNID twice", func() *pb.Update {
			second := other.memberRecord()
			second.GetMember().Name = "c2"
			return w.update(6, w.directory, w.memberRecord(), second)
		}, 0, ErrIdentity},
		{"the directory's next key", func() *pb.Update {
			u := w.update(6, successor, w.memberRecord())
			u.Chain = []*pb.KeyLink{SignLink(w.directory, successor.Public().(ed25519.PublicKey))}
			return u
		}, 0, nil},
		{"two links, the first not needed", func() *pb.Update {
			third := newKey(t)
			u := w.update(6, third, w.memberRecord())
			u.Chain = []*pb.KeyLink{
				SignLink(stranger, trusted), SignLink(w.directory, successor.Public().(ed25519.PublicKey)), SignLink(successor, third.Public().(ed25519.PublicKey)),
			}
			return u
		}, 0, nil},
		{"link signed by a stranger", func() *pb.Update {
			u := w.update(6, successor, w.memberRecord())
			link := SignLink(stranger, successor.Public().(ed25519.PublicKey))
			link.Previous = trusted
			u.Chain = []*pb.KeyLink{link}
			return u
		}, 0, ErrSignature},
		{"envelopes alone", func() *pb.Update { return &pb.Update{Sequence: 6, Envelopes: []*pb.Envelope{{}}} }, 0, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			next, err := known.Apply(trusted, c.make(), w.now.Add(c.now))
			if !errors.Is(err, c.want) || (err == nil) != (next != nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if known.Version() != 5 || len(known.Records) != 2 {
				t.Fatal("the known bundle has changed")
			}
		})
	}
}

func TestDelta(t *testing.T) {
	w := newWorld(t)
	trusted := w.directory.Public().(ed25519.PublicKey)
	b, err := (&Bundle{}).Apply(trusted, w.update(1, w.directory, w.memberRecord(), w.keyRecord(w.member, 1)), w.now)
	if err != nil {
		t.Fatal(err)
	}
	whole := w.update(2, w.directory, w.memberRecord(), w.keyRecord(w.member, 2))
	delta := &pb.Update{Sequence: 2, Header: whole.Header, Records: whole.Records[1:], Removed: []string{KeyRecordID(tag.KeyID{Suite: 1, UNID: 7, Epoch: 1})}}
	b, err = b.Apply(trusted, delta, w.now)
	if err != nil || len(b.Records) != 2 || b.Version() != 2 {
		t.Fatalf("%v %+v", err, b)
	}
	again, err := (&Bundle{}).Apply(trusted, b.Update(), w.now)
	if err != nil || again.Version() != 2 || len(again.Records) != 2 {
		t.Fatalf("from disk: %v", err)
	}
}

func TestEnvelopes(t *testing.T) {
	reader, err := GenerateSealKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := GenerateSealKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range tag.Suites {
		issue, err := tag.GenerateKey(suite)
		if err != nil {
			t.Fatal(err)
		}
		key, err := issue.Verifier().Bytes()
		if err != nil {
			t.Fatal(err)
		}
		id := tag.KeyID{Suite: suite, UNID: 7, Epoch: 3}
		salt := make([]byte, SaltLen)
		st := &pb.KeyStatement{Id: WireKeyID(id), Member: "c1", Commitment: Commitment(id, salt, key)}
		if suite == tag.Ed25519 {
			st.Public = key[len(key)-32:]
		}
		e, err := SealKey(id, "s1", reader.PublicKey().Bytes(), salt, key)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(e.Sealed, key[:16]) {
			t.Fatal("the envelope shows the key")
		}
		opened, err := OpenKey(reader, "s1", e, st)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := opened.Bytes(); err != nil || !bytes.Equal(b, key) {
			t.Fatalf("opened another key: %v", err)
		}
		flipped := proto.CloneOf(e)
		flipped.Sealed[40] ^= 1
		elsewhere := proto.CloneOf(e)
		elsewhere.Id.Epoch = 4
		promised := proto.CloneOf(st)
		promised.Commitment[0] ^= 1
		own := make([]byte, len(key)) // what a directory could make up
		copy(own, key)
		own[0] ^= 1
		forged, err := SealKey(id, "s1", reader.PublicKey().Bytes(), salt, own)
		if err != nil {
			t.Fatal(err)
		}
		cases := []struct {
			name string
			open func() error
		}{
			{"another reader", func() error { _, err := OpenKey(other, "s1", e, st); return err }},
			{"another name", func() error { _, err := OpenKey(reader, "s2", e, st); return err }},
			{"bit flipped", func() error { _, err := OpenKey(reader, "s1", flipped, st); return err }},
			{"another epoch", func() error { _, err := OpenKey(reader, "s1", elsewhere, st); return err }},
			{"another commitment", func() error { _, err := OpenKey(reader, "s1", e, promised); return err }},
			{"made up by the directory", func() error { _, err := OpenKey(reader, "s1", forged, st); return err }},
		}
		for _, c := range cases {
			t.Run(suite.String()+" "+c.name, func(t *testing.T) {
				if err := c.open(); !errors.Is(err, ErrEnvelope) {
					t.Fatalf("got %v", err)
				}
			})
		}
	}
}

func TestProof(t *testing.T) {
	directory, err := GenerateSealKey()
	if err != nil {
		t.Fatal(err)
	}
	p, err := SealProof(directory.PublicKey().Bytes(), "c1", "Ack", Code{1}, Code{2})
	if err != nil {
		t.Fatal(err)
	}
	if code, next, err := OpenProof(directory, "c1", "Ack", p); err != nil || code != (Code{1}) || next != (Code{2}) {
		t.Fatalf("%v", err)
	}
	for _, c := range []struct{ name, member, method string }{{"another member", "c2", "Ack"}, {"another method", "c1", "Renew"}} {
		if _, _, err := OpenProof(directory, c.member, c.method, p); !errors.Is(err, ErrEnvelope) {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	if _, _, err := OpenProof(directory, "c1", "Ack", nil); !errors.Is(err, ErrEnvelope) {
		t.Fatalf("no proof: %v", err)
	}
}

func FuzzApply(f *testing.F) {
	w := newWorld(f)
	trusted := w.directory.Public().(ed25519.PublicKey)
	seed, err := proto.Marshal(w.update(5, w.directory, w.memberRecord(), w.keyRecord(w.member, 1)))
	if err != nil {
		f.Fatal(err)
	}
	known, err := (&Bundle{}).Apply(trusted, w.update(4, w.directory, w.memberRecord()), w.now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		u := &pb.Update{}
		if proto.Unmarshal(b, u) != nil {
			return
		}
		for _, from := range []*Bundle{{}, known} {
			next, err := from.Apply(trusted, u, w.now)
			if err == nil && u.Header != nil && !bytes.Equal(next.Header.Root, Root(next.Records)) {
				t.Fatal("took records that were not signed")
			}
		}
		for _, raw := range u.Records {
			if r, err := ParseRecord(raw); err == nil && r.ID == "" {
				t.Fatal("a record without an id")
			}
		}
	})
}

func FuzzOpenKey(f *testing.F) {
	reader, err := GenerateSealKey()
	if err != nil {
		f.Fatal(err)
	}
	id := tag.KeyID{Suite: tag.Siphash, UNID: 7, Epoch: 3}
	key, salt := make([]byte, 16), make([]byte, SaltLen)
	st := &pb.KeyStatement{Id: WireKeyID(id), Commitment: Commitment(id, salt, key)}
	e, err := SealKey(id, "s1", reader.PublicKey().Bytes(), salt, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Sealed)
	f.Fuzz(func(t *testing.T, sealed []byte) {
		_, err := OpenKey(reader, "s1", &pb.Envelope{Id: WireKeyID(id), Sealed: sealed}, st)
		if err == nil && !bytes.Equal(sealed, e.Sealed) {
			t.Fatal("opened a changed envelope")
		}
	})
}
