package bundle

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	pb "countersign/directory/proto"
	"countersign/tag"
)

// ErrEnvelope is an envelope that was not sealed to the reader, or does not
// hold what its issuer committed to.
var ErrEnvelope = errors.New("envelope refused")

// SaltLen is the length in bytes of the random salt of a commitment.
const SaltLen = 32

// CodeLen is the length in bytes of a code.
const CodeLen = 32

const (
	envelopeContext   = "countersign envelope v1\x00"
	commitmentContext = "countersign key commitment v1\x00"
	proofContext      = "countersign code v1\x00"
)

// HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
// AES-256-GCM. The issuer is proven by the signed commitment, not by HPKE.
func suite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.DHKEM(ecdh.X25519()), hpke.HKDFSHA256(), hpke.AES256GCM()
}

// GenerateSealKey makes an HPKE key pair.
func GenerateSealKey() (hpke.PrivateKey, error) {
	kem, _, _ := suite()
	return kem.GenerateKey()
}

// ParseSealKey reads what hpke.PrivateKey.Bytes gives.
func ParseSealKey(b []byte) (hpke.PrivateKey, error) {
	kem, _, _ := suite()
	return kem.NewPrivateKey(b)
}

func parseSealKey(b []byte) (hpke.PublicKey, error) {
	kem, _, _ := suite()
	k, err := kem.NewPublicKey(b)
	if err != nil {
		return nil, fmt.Errorf("%w: seal key of %d bytes: %w", ErrMalformed, len(b), err)
	}
	return k, nil
}

func seal(to, info, plain []byte) ([]byte, error) {
	k, err := parseSealKey(to)
	if err != nil {
		return nil, err
	}
	_, kdf, aead := suite()
	return hpke.Seal(k, kdf, aead, info, plain)
}

func open(k hpke.PrivateKey, info, sealed []byte) ([]byte, error) {
	_, kdf, aead := suite()
	return hpke.Open(k, kdf, aead, info, sealed)
}

func appendKeyID(b []byte, id tag.KeyID) []byte {
	b = append(b, byte(id.Suite))
	b = binary.BigEndian.AppendUint32(b, id.UNID)
	return binary.BigEndian.AppendUint16(b, id.Epoch)
}

func envelopeInfo(id tag.KeyID, recipient string) []byte {
	return append(appendKeyID([]byte(envelopeContext), id), recipient...)
}

// Commitment is SHA-256 over a context, the salt, the key's id and the key as
// tag.VerifyKey.Bytes gives it. It binds every envelope of a key to the same
// content without showing it: the salt is sealed with the key.
func Commitment(id tag.KeyID, salt, key []byte) []byte {
	b := append([]byte(commitmentContext), salt...)
	sum := sha256.Sum256(append(appendKeyID(b, id), key...))
	return sum[:]
}

// SealKey seals salt and key to a recipient's seal key.
func SealKey(id tag.KeyID, recipient string, sealKey, salt, key []byte) (*pb.Envelope, error) {
	sealed, err := seal(sealKey, envelopeInfo(id, recipient), append(bytes.Clone(salt), key...))
	if err != nil {
		return nil, fmt.Errorf("seal %v to %s: %w", id, recipient, err)
	}
	return &pb.Envelope{Id: WireKeyID(id), Recipient: recipient, Sealed: sealed}, nil
}

// OpenKey opens the envelope of a key and checks it against the issuer's
// statement, or returns ErrEnvelope.
func OpenKey(k hpke.PrivateKey, recipient string, e *pb.Envelope, st *pb.KeyStatement) (*tag.VerifyKey, error) {
	id := KeyIDOf(e.GetId())
	if id != KeyIDOf(st.GetId()) {
		return nil, fmt.Errorf("%w: of %v for %v", ErrEnvelope, id, KeyIDOf(st.GetId()))
	}
	plain, err := open(k, envelopeInfo(id, recipient), e.GetSealed())
	if err != nil {
		return nil, fmt.Errorf("%w: %v is not sealed to %s", ErrEnvelope, id, recipient)
	}
	if len(plain) < SaltLen || !bytes.Equal(Commitment(id, plain[:SaltLen], plain[SaltLen:]), st.Commitment) {
		return nil, fmt.Errorf("%w: %v is not the key that %s committed to", ErrEnvelope, id, st.Member)
	}
	key := plain[SaltLen:]
	if id.Suite == tag.Ed25519 && !bytes.HasSuffix(key, st.Public) {
		return nil, fmt.Errorf("%w: %v has another public part", ErrEnvelope, id)
	}
	v, err := tag.ParseVerifyKey(id.Suite, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrEnvelope, id, err)
	}
	return v, nil
}

// Code is the secret that tells an identity's owner from its clone. It is
// comparable.
type Code [CodeLen]byte

// Hash is what the directory keeps of a code.
func (c Code) Hash() []byte {
	sum := sha256.Sum256(append([]byte(proofContext), c[:]...))
	return sum[:]
}

// String does not show the code.
func (Code) String() string { return "[redacted]" }

// GoString does not show the code.
func (Code) GoString() string { return "[redacted]" }

// SealProof seals the current code and the one after it to the directory, for
// one member and one method.
func SealProof(directoryKey []byte, member, method string, code, next Code) (*pb.Proof, error) {
	sealed, err := seal(directoryKey, proofInfo(member, method), append(code[:], next[:]...))
	if err != nil {
		return nil, fmt.Errorf("seal code: %w", err)
	}
	return &pb.Proof{Sealed: sealed}, nil
}

// OpenProof is the directory's side of SealProof; it returns ErrEnvelope where
// the proof is for another member or method.
func OpenProof(k hpke.PrivateKey, member, method string, p *pb.Proof) (code, next Code, err error) {
	plain, err := open(k, proofInfo(member, method), p.GetSealed())
	if err != nil || len(plain) != 2*CodeLen {
		return code, next, fmt.Errorf("%w: proof of %s for %s", ErrEnvelope, member, method)
	}
	return Code(plain[:CodeLen]), Code(plain[CodeLen:]), nil
}

func proofInfo(member, method string) []byte {
	return []byte(proofContext + method + "\x00" + member)
}
