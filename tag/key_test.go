package tag

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
)

var testKeys = sync.OnceValue(func() map[Suite]*IssueKey {
	keys := map[Suite]*IssueKey{}
	for _, s := range Suites {
		key, err := GenerateKey(s)
		if err != nil {
			panic(err)
		}
		keys[s] = key
	}
	return keys
})

func testTuple() *Tuple {
	t := new(Tuple)
	t.Set4(6, KindPorts, 0x0a000001, 0x0a000002, 40000, 443)
	return t
}

func TestKeysIssueAndVerifyAfterEncoding(t *testing.T) {
	tuple := testTuple()
	var other Tuple
	other.Set4(6, KindPorts, 0x0a000001, 0x0a000002, 40001, 443)
	for s, key := range testKeys() {
		secret, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		public, err := key.Verifier().Bytes()
		if err != nil {
			t.Fatal(err)
		}
		issuer, err := ParseIssueKey(s, secret)
		if err != nil {
			t.Fatal(err)
		}
		verifier, err := ParseVerifyKey(s, public)
		if err != nil {
			t.Fatal(err)
		}
		h, err := issuer.Issue(7, 9, 0xfeedfacecafebeef, tuple)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifier.Verify(&h, tuple); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		echoed := h
		echoed.Flags = FlagEcho
		if err := verifier.Verify(&echoed, tuple); err != nil {
			t.Errorf("%v: echoed: %v", s, err)
		}
		if err := verifier.Verify(&h, &other); !errors.Is(err, ErrForged) {
			t.Errorf("%v: another session: %v", s, err)
		}
		for name, edit := range map[string]func(*Header){
			"unid":   func(h *Header) { h.UNID++ },
			"epoch":  func(h *Header) { h.Epoch++ },
			"digest": func(h *Header) { h.Digest ^= 1 << 63 },
		} {
			bad := h
			edit(&bad)
			if err := verifier.Verify(&bad, tuple); !errors.Is(err, ErrForged) {
				t.Errorf("%v: other %s: %v", s, name, err)
			}
		}
		for _, foreign := range Suites {
			if foreign == s {
				continue
			}
			if err := testKeys()[foreign].Verifier().Verify(&h, tuple); !errors.Is(err, ErrUnknownKey) {
				t.Errorf("%v under a key of %v: %v", s, foreign, err)
			}
		}
		if s == RSA2048 != (h.Nonce == 0) {
			t.Errorf("%v: nonce %x", s, h.Nonce)
		}
		nonce, err := verifier.Recover(&h)
		if s == RSA2048 && (nonce != 0xfeedfacecafebeef || err != nil) || s != RSA2048 && !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%v: recovered %x, %v", s, nonce, err)
		}
		mac, ok := verifier.MAC()
		want, wantOK := issuer.MAC()
		if ok != (s != RSA2048) || ok != wantOK || mac != want {
			t.Errorf("%v: MAC keys differ", s)
		}
		if ok && !mac.VerifyDigest(&h, tuple) {
			t.Errorf("%v: the digest does not verify alone", s)
		}
		if ok && s == Ed25519 {
			bad := h
			bad.Sealed = bytes.Clone(h.Sealed)
			bad.Sealed[0] ^= 1
			if err := verifier.Verify(&bad, tuple); !errors.Is(err, ErrForged) {
				t.Errorf("%v: bad signature: %v", s, err)
			}
		}
	}
}

func TestRSASealShape(t *testing.T) {
	key := testKeys()[RSA2048]
	public := key.Verifier()
	seal := func(padded []byte) []byte {
		m := new(big.Int).SetBytes(padded)
		return m.Exp(m, key.rsa.D, key.rsa.N).FillBytes(make([]byte, rsaLen))
	}
	good := append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 245)...)
	good = append(good, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	edit := func(at int, v byte) []byte { b := bytes.Clone(good); b[at] = v; return b }
	for _, c := range []struct {
		name   string
		sealed []byte
		ok     bool
	}{
		{"as specified", seal(good), true},
		{"first byte 1", seal(edit(0, 1)), false},
		{"type 2", seal(edit(1, 2)), false},
		{"first padding byte", seal(edit(2, 0xfe)), false},
		{"last padding byte", seal(edit(246, 0)), false},
		{"separator", seal(edit(247, 0xff)), false},
		{"the modulus itself", key.rsa.N.FillBytes(make([]byte, rsaLen)), false},
		{"above the modulus", bytes.Repeat([]byte{0xff}, rsaLen), false},
		{"zero", make([]byte, rsaLen), false},
		{"short", seal(good)[1:], false},
		{"empty", nil, false},
	} {
		nonce, ok := public.open(c.sealed)
		if ok != c.ok || ok && nonce != 0x0102030405060708 {
			t.Errorf("%s: nonce %x, %v", c.name, nonce, ok)
		}
	}
	sealed, err := key.seal(0x0102030405060708)
	if err != nil || !bytes.Equal(sealed, seal(good)) {
		t.Errorf("sealed differently: %v", err)
	}
	plus := new(big.Int).SetBytes(sealed)
	if plus.Add(plus, key.rsa.N).BitLen() <= 8*rsaLen {
		if _, ok := public.open(plus.FillBytes(make([]byte, rsaLen))); ok {
			t.Error("accepted a second seal of the same number")
		}
	}
}

func TestUnusableKeys(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	smallDER, err := x509.MarshalPKCS8PrivateKey(small)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	even := bytes.Repeat([]byte{0xfe}, rsaLen)
	for _, c := range []struct {
		name   string
		suite  Suite
		secret bool
		b      []byte
		want   error
	}{
		{"siphash 15 bytes", Siphash, true, make([]byte, 15), ErrKey},
		{"siphash 17 bytes", Siphash, false, make([]byte, 17), ErrKey},
		{"siphash empty", Siphash, false, nil, ErrKey},
		{"ed25519 without seed", Ed25519, true, make([]byte, 16), ErrKey},
		{"ed25519 without public key", Ed25519, false, make([]byte, 47), ErrKey},
		{"rsa2048 garbage", RSA2048, true, []byte("garbage"), ErrKey},
		{"rsa2048 of 1024 bits", RSA2048, true, smallDER, ErrKey},
		{"rsa2048 with an ECDSA key", RSA2048, true, ecDER, ErrKey},
		{"rsa2048 short modulus", RSA2048, false, small.N.Bytes(), ErrKey},
		{"rsa2048 small modulus", RSA2048, false, small.N.FillBytes(make([]byte, rsaLen)), ErrKey},
		{"rsa2048 even modulus", RSA2048, false, even, ErrKey},
		{"suite 0", 0, true, make([]byte, 16), ErrSuite},
		{"suite 4", 4, false, make([]byte, 16), ErrSuite},
	} {
		if c.secret {
			_, err = ParseIssueKey(c.suite, c.b)
		} else {
			_, err = ParseVerifyKey(c.suite, c.b)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := GenerateKey(9); !errors.Is(err, ErrSuite) {
		t.Errorf("generated: %v", err)
	}
	if _, err := NewEd25519Key(MACKey{}, make([]byte, 31)); !errors.Is(err, ErrKey) {
		t.Errorf("seed of 31 bytes: %v", err)
	}
	var issue IssueKey
	if _, err := issue.Issue(1, 2, 3, testTuple()); !errors.Is(err, ErrSuite) {
		t.Errorf("zero key issued: %v", err)
	}
	if _, err := issue.Bytes(); !errors.Is(err, ErrSuite) {
		t.Errorf("zero key encoded: %v", err)
	}
	var verify VerifyKey
	h := Header{}
	if err := verify.Verify(&h, testTuple()); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("zero key verified: %v", err)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	for s, key := range testKeys() {
		secret, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		mac, _ := key.MAC()
		verifier := key.Verifier()
		var out bytes.Buffer
		log := slog.New(slog.NewJSONHandler(&out, nil))
		plain := slog.New(slog.NewTextHandler(&out, nil))
		for _, v := range []any{key, *key, verifier, *verifier, mac, &mac, struct{ K MACKey }{mac}, map[string]*IssueKey{"k": key}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
				fmt.Fprintf(&out, verb+"\n", v)
			}
			log.Info("key", "key", v)
			plain.Info("key", "key", v)
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(b)
		}
		text := strings.ToLower(out.String())
		for name, form := range map[string]string{
			"hex":     hex.EncodeToString(secret[:16]),
			"decimal": strings.Trim(fmt.Sprint(secret[:16]), "[]"),
			"json":    strings.ReplaceAll(strings.Trim(fmt.Sprint(secret[:16]), "[]"), " ", ","),
			"source":  strings.TrimPrefix(strings.Trim(fmt.Sprintf("%#v", secret[:16]), "{}"), "[]byte{"),
		} {
			if strings.Contains(text, strings.ToLower(form)) {
				t.Errorf("%v: printed in %s", s, name)
			}
		}
		if s == RSA2048 && strings.Contains(text, key.rsa.D.String()) {
			t.Error("private exponent printed")
		}
	}
}

func BenchmarkSuites(b *testing.B) {
	tuple := testTuple()
	for _, s := range Suites {
		key := testKeys()[s]
		verifier := key.Verifier()
		b.Run(s.String()+"/issue", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := key.Issue(1, 2, 3, tuple); err != nil {
					b.Fatal(err)
				}
			}
		})
		h, err := key.Issue(1, 2, 3, tuple)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(s.String()+"/verify", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := verifier.Verify(&h, tuple); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
