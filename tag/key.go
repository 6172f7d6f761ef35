package tag

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/big"
)

const (
	rsaLen      = 256 // bytes of an RSA-2048 modulus and seal
	rsaExponent = 65537
	macLen      = 16
)

// signatureContext precedes M in what suite ed25519 signs.
const signatureContext = "countersign tag v1\x00"

const redacted = "[redacted]"

// MACKey is a 128-bit SipHash key of one epoch, a secret: it prints as
// "[redacted]". The zero value is an all-zero key. It is safe to copy.
type MACKey [macLen]byte

// ParseMACKey returns the key in b, or ErrKey where b is not 16 bytes.
func ParseMACKey(b []byte) (k MACKey, err error) {
	if len(b) != macLen {
		return k, fmt.Errorf("%w: a MAC key of %d bytes, want %d", ErrKey, len(b), macLen)
	}
	return MACKey(b), nil
}

// Words returns the key as SipHash takes it: both halves little-endian.
func (k MACKey) Words() (k0, k1 uint64) {
	return binary.LittleEndian.Uint64(k[:]), binary.LittleEndian.Uint64(k[8:])
}

// Digest is SipHash-2-4 of M under k.
func (k MACKey) Digest(w0, nonce uint64, t *Tuple) uint64 {
	k0, k1 := k.Words()
	return SipHash(k0, k1, w0, nonce, t)
}

// VerifyDigest reports whether h, of suite siphash or ed25519, has the digest
// of its own words and t under k.
func (k MACKey) VerifyDigest(h *Header, t *Tuple) bool {
	return k.Digest(h.Word0(), h.Nonce, t) == h.Digest
}

// String does not show the key.
func (MACKey) String() string { return redacted }

// GoString does not show the key.
func (MACKey) GoString() string { return redacted }

// Format does not show the key, whatever the verb.
func (MACKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText does not show the key.
func (MACKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue does not show the key.
func (MACKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// IssueKey is what a member makes the tags of one suite and epoch with. The
// zero value issues nothing. It is immutable and safe for concurrent use, and
// never prints its secrets.
type IssueKey struct {
	suite Suite
	mac   MACKey
	ed    ed25519.PrivateKey
	rsa   *rsa.PrivateKey
}

// VerifyKey is what the other members verify those tags with. It is a secret
// of the alliance in every suite: the MAC key forges tags of suite siphash, and
// the public key those of suite rsa2048. The zero value verifies nothing. It is
// immutable, safe for concurrent use, and never prints what it holds.
type VerifyKey struct {
	suite Suite
	mac   MACKey
	ed    ed25519.PublicKey
	rsa   *rsa.PublicKey
}

// GenerateKey makes a fresh key of a suite. It returns ErrSuite for an unknown
// one. Suite rsa2048 takes tenths of a second.
func GenerateKey(s Suite) (*IssueKey, error) {
	k := &IssueKey{suite: s}
	var err error
	switch s {
	case Siphash:
	case Ed25519:
		_, k.ed, err = ed25519.GenerateKey(rand.Reader)
	case RSA2048:
		k.rsa, err = rsa.GenerateKey(rand.Reader, 8*rsaLen)
	default:
		err = fmt.Errorf("%w %d", ErrSuite, uint8(s))
	}
	if err != nil {
		return nil, err
	}
	if s != RSA2048 {
		_, err = rand.Read(k.mac[:])
	}
	return k, err
}

// NewSiphashKey returns the key of suite siphash.
func NewSiphashKey(mac MACKey) *IssueKey { return &IssueKey{suite: Siphash, mac: mac} }

// NewEd25519Key returns the key of suite ed25519 with the given filter key and
// the private key of a 32-byte seed (RFC 8032), or ErrKey.
func NewEd25519Key(filter MACKey, seed []byte) (*IssueKey, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: an Ed25519 seed of %d bytes, want %d", ErrKey, len(seed), ed25519.SeedSize)
	}
	return &IssueKey{suite: Ed25519, mac: filter, ed: ed25519.NewKeyFromSeed(seed)}, nil
}

// NewRSA2048Key returns the key of suite rsa2048. The key must have 2048 bits,
// exponent 65537 and pass its own validation, or ErrKey is returned.
func NewRSA2048Key(key *rsa.PrivateKey) (*IssueKey, error) {
	if err := checkRSA(&key.PublicKey); err != nil {
		return nil, err
	}
	if err := key.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	key.Precompute()
	return &IssueKey{suite: RSA2048, rsa: key}, nil
}

// NewEd25519VerifyKey returns the verifying key of suite ed25519 from its
// filter key and 32-byte public key, or ErrKey.
func NewEd25519VerifyKey(filter MACKey, public []byte) (*VerifyKey, error) {
	if len(public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: an Ed25519 public key of %d bytes, want %d", ErrKey, len(public), ed25519.PublicKeySize)
	}
	return &VerifyKey{suite: Ed25519, mac: filter, ed: append(ed25519.PublicKey(nil), public...)}, nil
}

// NewRSA2048VerifyKey returns the verifying key of suite rsa2048 from its
// modulus, big-endian, or ErrKey where that has not 2048 bits or is even.
func NewRSA2048VerifyKey(n []byte) (*VerifyKey, error) {
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: rsaExponent}
	if err := checkRSA(pub); err != nil {
		return nil, err
	}
	return &VerifyKey{suite: RSA2048, rsa: pub}, nil
}

func checkRSA(pub *rsa.PublicKey) error {
	if pub.N == nil || pub.N.BitLen() != 8*rsaLen || pub.N.Bit(0) == 0 || pub.E != rsaExponent {
		return fmt.Errorf("%w: not an RSA key of %d bits with exponent %d", ErrKey, 8*rsaLen, rsaExponent)
	}
	return nil
}

// Suite is the suite of the key.
func (k *IssueKey) Suite() Suite { return k.suite }

// Suite is the suite of the key.
func (k *VerifyKey) Suite() Suite { return k.suite }

// MAC is the 128-bit key that a data plane gets, for suites siphash and
// ed25519; ok is false for rsa2048, which has none.
func (k *IssueKey) MAC() (mac MACKey, ok bool) { return k.mac, k.suite != RSA2048 && k.suite.Valid() }

// MAC is the 128-bit key that a data plane gets, for suites siphash and
// ed25519; ok is false for rsa2048, which has none.
func (k *VerifyKey) MAC() (mac MACKey, ok bool) { return k.mac, k.suite != RSA2048 && k.suite.Valid() }

// Verifier returns what the other members get of k.
func (k *IssueKey) Verifier() *VerifyKey {
	v := &VerifyKey{suite: k.suite, mac: k.mac}
	switch k.suite {
	case Ed25519:
		v.ed = k.ed.Public().(ed25519.PublicKey)
	case RSA2048:
		v.rsa = &k.rsa.PublicKey
	}
	return v
}

// Bytes returns the secret encoding that ParseIssueKey reads: the MAC key (16
// bytes) for suite siphash, filter key and seed (48 bytes) for ed25519, PKCS #8
// DER for rsa2048.
func (k *IssueKey) Bytes() ([]byte, error) {
	switch k.suite {
	case Siphash:
		return append([]byte(nil), k.mac[:]...), nil
	case Ed25519:
		return append(append([]byte(nil), k.mac[:]...), k.ed.Seed()...), nil
	case RSA2048:
		return x509.MarshalPKCS8PrivateKey(k.rsa)
	}
	return nil, fmt.Errorf("%w %d", ErrSuite, uint8(k.suite))
}

// ParseIssueKey reads what Bytes gives; errors are ErrSuite and ErrKey.
func ParseIssueKey(s Suite, b []byte) (*IssueKey, error) {
	switch s {
	case Siphash:
		mac, err := ParseMACKey(b)
		if err != nil {
			return nil, err
		}
		return NewSiphashKey(mac), nil
	case Ed25519:
		if len(b) != macLen+ed25519.SeedSize {
			return nil, fmt.Errorf("%w: %d bytes for suite %v, want %d", ErrKey, len(b), s, macLen+ed25519.SeedSize)
		}
		return NewEd25519Key(MACKey(b[:macLen]), b[macLen:])
	case RSA2048:
		key, err := x509.ParsePKCS8PrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
		rsaKey, ok := key.(*rsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%w: %T for suite %v", ErrKey, key, s)
		}
		return NewRSA2048Key(rsaKey)
	}
	return nil, fmt.Errorf("%w %d", ErrSuite, uint8(s))
}

// Bytes returns the encoding that ParseVerifyKey reads: the MAC key (16 bytes)
// for suite siphash, filter key and public key (48 bytes) for ed25519, the
// modulus (256 bytes, big-endian) for rsa2048.
func (k *VerifyKey) Bytes() ([]byte, error) {
	switch k.suite {
	case Siphash:
		return append([]byte(nil), k.mac[:]...), nil
	case Ed25519:
		return append(append([]byte(nil), k.mac[:]...), k.ed...), nil
	case RSA2048:
		return k.rsa.N.FillBytes(make([]byte, rsaLen)), nil
	}
	return nil, fmt.Errorf("%w %d", ErrSuite, uint8(k.suite))
}

// ParseVerifyKey reads what Bytes gives; errors are ErrSuite and ErrKey.
func ParseVerifyKey(s Suite, b []byte) (*VerifyKey, error) {
	switch s {
	case Siphash:
		mac, err := ParseMACKey(b)
		if err != nil {
			return nil, err
		}
		return &VerifyKey{suite: Siphash, mac: mac}, nil
	case Ed25519:
		if len(b) != macLen+ed25519.PublicKeySize {
			return nil, fmt.Errorf("%w: %d bytes for suite %v, want %d", ErrKey, len(b), s, macLen+ed25519.PublicKeySize)
		}
		return NewEd25519VerifyKey(MACKey(b[:macLen]), b[macLen:])
	case RSA2048:
		if len(b) != rsaLen {
			return nil, fmt.Errorf("%w: %d bytes for suite %v, want %d", ErrKey, len(b), s, rsaLen)
		}
		return NewRSA2048VerifyKey(b)
	}
	return nil, fmt.Errorf("%w %d", ErrSuite, uint8(s))
}

// String shows the suite only.
func (k *IssueKey) String() string { return k.suite.String() + " issue key " + redacted }

// String shows the suite only.
func (k *VerifyKey) String() string { return k.suite.String() + " verify key " + redacted }

// Format shows the suite only, whatever the verb, for values and pointers.
func (k IssueKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// Format shows the suite only, whatever the verb, for values and pointers.
func (k VerifyKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// LogValue shows the suite only.
func (k IssueKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// LogValue shows the suite only.
func (k VerifyKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Issue makes the tag of a packet or session t under the key known as unid and
// epoch. nonce must be fresh for each tag; suite rsa2048 seals it and leaves
// the tag's Nonce 0. NextHeader is the inserter's to set. The only errors are
// ErrKey and ErrSuite; suite siphash does not allocate.
func (k *IssueKey) Issue(unid uint32, epoch uint16, nonce uint64, t *Tuple) (Header, error) {
	h := NewHeader(KeyID{k.suite, unid, epoch})
	switch k.suite {
	case Siphash:
		h.Nonce = nonce
		h.Digest = k.mac.Digest(h.Word0(), nonce, t)
	case Ed25519:
		h.Nonce = nonce
		h.Digest = k.mac.Digest(h.Word0(), nonce, t)
		h.Sealed = ed25519.Sign(k.ed, signed(h.Word0(), nonce, t))
	case RSA2048:
		h.Digest = shaDigest(h.Word0(), nonce, t)
		var err error
		if h.Sealed, err = k.seal(nonce); err != nil {
			return Header{}, err
		}
	default:
		return Header{}, fmt.Errorf("%w %d", ErrSuite, uint8(k.suite))
	}
	return h, nil
}

// Verify checks the tag h, as ParseHeader returns it, of the packet t. It
// returns ErrUnknownKey where the key is of another suite, and ErrForged where
// the digest or the sealed nonce does not fit. Suite siphash does not allocate.
func (k *VerifyKey) Verify(h *Header, t *Tuple) error {
	if h.Suite != k.suite || !k.suite.Valid() {
		return errWrongSuite
	}
	if k.suite == RSA2048 {
		nonce, err := k.Recover(h)
		if err != nil {
			return err
		}
		if shaDigest(h.Word0(), nonce, t) != h.Digest {
			return errDigest
		}
		return nil
	}
	if !k.mac.VerifyDigest(h, t) {
		return errDigest
	}
	if k.suite == Ed25519 && !ed25519.Verify(k.ed, signed(h.Word0(), h.Nonce, t), h.Sealed) {
		return errSignature
	}
	return nil
}

// Recover opens the sealed nonce of a tag of suite rsa2048. It returns
// ErrUnknownKey where tag or key are of another suite, ErrForged where the seal
// was not made with the key.
func (k *VerifyKey) Recover(h *Header) (nonce uint64, err error) {
	if h.Suite != k.suite || k.suite != RSA2048 {
		return 0, errWrongSuite
	}
	nonce, ok := k.open(h.Sealed)
	if !ok {
		return 0, errSeal
	}
	return nonce, nil
}

// Made once, so that a flood of forgeries allocates nothing.
var (
	errWrongSuite = fmt.Errorf("%w: the key is of another suite", ErrUnknownKey)
	errDigest     = fmt.Errorf("%w: digest differs", ErrForged)
	errSignature  = fmt.Errorf("%w: signature does not verify", ErrForged)
	errSeal       = fmt.Errorf("%w: sealed nonce does not open", ErrForged)
)

// signed is what suite ed25519 signs: the context and M.
func signed(w0, nonce uint64, t *Tuple) []byte {
	b := make([]byte, 0, len(signatureContext)+MaxMessageLen)
	return Message(append(b, signatureContext...), w0, nonce, t)
}

// shaDigest is the digest of suite rsa2048.
func shaDigest(w0, nonce uint64, t *Tuple) uint64 {
	var b [MaxMessageLen]byte
	sum := sha256.Sum256(Message(b[:0], w0, nonce, t))
	return binary.BigEndian.Uint64(sum[:])
}

// seal is the private operation on 00 01 FF×245 00 ‖ nonce, which is the
// padding of RSASSA-PKCS1-v1_5 without a DigestInfo.
func (k *IssueKey) seal(nonce uint64) ([]byte, error) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], nonce)
	sealed, err := rsa.SignPKCS1v15(nil, k.rsa, crypto.Hash(0), b[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return sealed, nil
}

// open recovers the random number, where sealed is below the modulus and the
// padding is the one that seal makes.
func (k *VerifyKey) open(sealed []byte) (nonce uint64, ok bool) {
	if len(sealed) != rsaLen {
		return 0, false
	}
	c := new(big.Int).SetBytes(sealed)
	if c.Cmp(k.rsa.N) >= 0 {
		return 0, false
	}
	var m [rsaLen]byte
	c.Exp(c, big.NewInt(rsaExponent), k.rsa.N).FillBytes(m[:])
	pad := rsaLen - 8 - 1
	ok = m[0] == 0 && m[1] == 1 && m[pad] == 0
	for _, b := range m[2:pad] {
		ok = ok && b == 0xff
	}
	return binary.BigEndian.Uint64(m[pad+1:]), ok
}
