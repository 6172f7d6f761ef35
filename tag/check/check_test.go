package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"countersign/packet"
	"countersign/tag"
)

const shared = "../testdata/tag-v1.json"

func sharedFile(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile(shared)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func load(t testing.TB) (*file, []issuer) {
	t.Helper()
	f, err := read(bytes.NewReader(sharedFile(t)))
	if err != nil {
		t.Fatal(err)
	}
	issuers, err := loadIssuers(f.Issuers)
	if err != nil {
		t.Fatal(err)
	}
	return f, issuers
}

func TestSharedVectors(t *testing.T) {
	r, err := Run(bytes.NewReader(sharedFile(t)))
	if err != nil {
		t.Fatal(err)
	}
	if r.OK != 93+21 || r.Failed() != 0 || r.Text() != "114 ok, 0 failed\n" {
		t.Fatal(r.Text())
	}
}

// TestSharedVectorsSwapped: what verifies in one direction verifies in the other.
func TestSharedVectorsSwapped(t *testing.T) {
	f, issuers := load(t)
	for _, v := range f.Vectors {
		if *v.Valid {
			v.Src, v.Dst = v.Dst, v.Src
			if v.Kind != tag.KindFragment {
				v.SrcPort, v.DstPort = v.DstPort, v.SrcPort
			}
			if err := v.check(issuers); err != nil {
				t.Errorf("%s: %v", v.Name, err)
			}
		}
	}
}

// TestBitFlips: every single-bit flip of a tag is refused, but for E.
func TestBitFlips(t *testing.T) {
	f, issuers := load(t)
	for _, v := range f.Vectors {
		if !*v.Valid {
			continue
		}
		src, dst := netip.MustParseAddr(v.Src), netip.MustParseAddr(v.Dst)
		good := slices.Clone(v.Tag.b)
		for bit := range 8 * len(good) {
			v.Tag.b = slices.Clone(good)
			v.Tag.b[bit/8] ^= 0x80 >> (bit % 8)
			v.Reason = "any"
			err := v.checkRefused(issuers, src, dst)
			if accepted := strings.HasPrefix(err.Error(), "accepted"); accepted != (bit == 31) {
				t.Errorf("%s: bit %d: %v", v.Name, bit, err)
			}
		}
	}
}

// TestPacketBitFlips does the same on whole packets, as a member reads them.
func TestPacketBitFlips(t *testing.T) {
	f, issuers := load(t)
	for _, p := range f.Packets {
		c := packet.DefaultCarrier
		c.UDP = p.Carrier == "udp"
		var v packet.View
		accepted := func(ip []byte) bool {
			return packet.ParseIP(ip, c, &v) == packet.None && v.Tagged && verify(issuers, &v.Tag, &v.Tuple) == nil
		}
		if !accepted(p.Tagged.b) {
			t.Fatalf("%s: refused as it is", p.Name)
		}
		first := v.Next - v.Tag.Len()
		for bit := range 8 * v.Tag.Len() {
			ip := slices.Clone(p.Tagged.b)
			ip[first+bit/8] ^= 0x80 >> (bit % 8)
			if accepted(ip) != (bit == 31) {
				t.Errorf("%s: bit %d of the tag", p.Name, bit)
			}
		}
	}
}

// TestSpoiltVectors spoils one thing of the shared file at a time and wants just
// that vector to fail, with a reason that says why.
func TestSpoiltVectors(t *testing.T) {
	for _, c := range []struct {
		section, name, key string
		value              any
		why                string
	}{
		{"vectors", "siphash-v4-0", "message", "00", "message "},
		{"vectors", "siphash-v4-0", "digest", "05bd44895bb788f4", "digest "},
		{"vectors", "siphash-v4-0", "tag", "zz", "tag: encoding/hex"},
		{"vectors", "siphash-v4-0", "tag", "", "issued tag"},
		{"vectors", "siphash-v4-0", "nonce", "12", "nonce: 1 bytes"},
		{"vectors", "siphash-v4-0", "suite", "md5", `unknown suite "md5"`},
		{"vectors", "siphash-v4-0", "issuer", 7, "issuer 7 of 2"},
		{"vectors", "siphash-v4-0", "issuer", -1, "issuer -1 of 2"},
		{"vectors", "siphash-v4-0", "issuer", 1, "message "},
		{"vectors", "siphash-v4-0", "src", "1.2.3", "src: "},
		{"vectors", "siphash-v4-0", "dst", "::1", "differ in family"},
		{"vectors", "siphash-v4-0", "kind", 2, "identification"},
		{"vectors", "siphash-v4-0", "identification", 5, "identification"},
		{"vectors", "siphash-v4-0", "flags", 1, "issued tag"},
		{"vectors", "siphash-v4-0", "epoch", 1, "message "},
		{"vectors", "siphash-v4-0", "src_port", 1, "message "},
		{"vectors", "siphash-v4-0", "valid", nil, "no key valid"},
		{"vectors", "siphash-v4-0", "valid", false, "accepted, want "},
		{"vectors", "bad-siphash-digest", "reason", "tag_malformed", "refused as tag_forged"},
		{"vectors", "bad-siphash-digest", "valid", true, "needs message and digest"},
		{"vectors", "rsa2048-v4-2", "nonce", "0000000000000000", "message "},
		{"packets", "ipv4-echo", "nonce", "0000000000000000", "inserting gives"},
		{"packets", "ipv4-echo", "carrier", "gre", "unknown carrier"},
		{"packets", "ipv4-echo", "carrier", "udp", "it has no tag"},
		{"packets", "ipv4-echo", "epoch", 5, "tag of siphash"},
		{"packets", "ipv4-echo", "untagged", "45", "untagged: truncated"},
		{"packets", "ipv4-echo", "tagged", "45", "tagged: truncated"},
		{"packets", "ipv4-echo", "untagged", "45000020000040003d01d79dc6336409cb00710208001111004d000170696e68", "inserting gives"},
	} {
		var doc map[string]any
		if err := json.Unmarshal(sharedFile(t), &doc); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, v := range doc[c.section].([]any) {
			if v := v.(map[string]any); v["name"] == c.name {
				v[c.key], found = c.value, true
			}
		}
		data, err := json.Marshal(doc)
		if err != nil || !found {
			t.Fatal(err, found)
		}
		r, err := Run(bytes.NewReader(data))
		name := fmt.Sprintf("%s with %s %v", c.name, c.key, c.value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.OK != 113 || r.Failed() != 1 || r.Failures[0].Name != c.name || !strings.Contains(r.Failures[0].Why, c.why) {
			t.Errorf("%s: %s", name, r.Text())
		}
	}
}

func TestUnusableFiles(t *testing.T) {
	const vectors = `"vectors":[{"name":"x"}]`
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "unexpected end"},
		{"not JSON", "tag", "line 1, column 2"},
		{"cut", "{\n\"vectors\": [\n{", "line 3, column 1"},
		{"trailing garbage", "{}\n}", "line 2, column 1"},
		{"array", "[]", "line 1, column 1"},
		{"no vectors", "{}", "no vectors"},
		{"wrong type", "{\n \"vectors\": [{\"epoch\": \"1\"}]}", `line 2, column 26: key "vectors.epoch": string where uint16 belongs`},
		{"out of range", `{"vectors": [{"protocol": 256}]}`, `key "vectors.protocol"`},
		{"number for hex", `{"packets": [{"tagged": 256}]}`, `key "packets.tagged"`},
		{"issuer without unid", `{"issuers":[{}],` + vectors + `}`, "issuers[0] has no unid"},
		{"issuers alike", `{"issuers":[{"unid":1},{"unid":1}],` + vectors + `}`, "issuers[0] and issuers[1]"},
		{"short MAC key", `{"issuers":[{"unid":1,"siphash":"00"}],` + vectors + `}`, "issuers[0].siphash: "},
		{"MAC key not hex", `{"issuers":[{"unid":1,"siphash":"0x"}],` + vectors + `}`, "issuers[0].siphash: encoding/hex"},
		{"short filter", `{"issuers":[{"unid":1,"ed25519":{"filter":"00"}}],` + vectors + `}`, "issuers[0].ed25519.filter: "},
		{"short seed", `{"issuers":[{"unid":1,"ed25519":{"filter":"000102030405060708090a0b0c0d0e0f","seed":"00"}}],` + vectors + `}`, "issuers[0].ed25519.seed: "},
		{"exponent 3", `{"issuers":[{"unid":1,"rsa2048":{"n":"00","e":3}}],` + vectors + `}`, "issuers[0].rsa2048.e: "},
		{"small modulus", `{"issuers":[{"unid":1,"rsa2048":{"n":"0f","e":65537}}],` + vectors + `}`, "issuers[0].rsa2048.n: "},
		{"RSA numbers that do not belong together", `{"issuers":[{"unid":1,"rsa2048":{"n":"0f","e":65537,"d":"03","p":"03","q":"05"}}],` + vectors + `}`, "issuers[0].rsa2048: "},
	} {
		_, err := Run(strings.NewReader(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	_, err := Run(strings.NewReader("{"))
	if !errors.Is(err, ErrFile) {
		t.Errorf("%v is not ErrFile", err)
	}
	r, err := Run(strings.NewReader(`{"issuers":[{"unid":1}],"vectors":[{"suite":"siphash","nonce":"0000000000000000"}]}`))
	if err != nil || r.Failed() != 1 || r.Failures[0].Name != "vectors[0]" || !strings.Contains(r.Failures[0].Why, "no key of suite siphash") {
		t.Errorf("nameless vector: %v, %v", r, err)
	}
}

// TestPublicPartsOnly: without private parts a file is still verified.
func TestPublicPartsOnly(t *testing.T) {
	var doc map[string]any
	if err := json.Unmarshal(sharedFile(t), &doc); err != nil {
		t.Fatal(err)
	}
	for _, is := range doc["issuers"].([]any) {
		is := is.(map[string]any)
		delete(is["ed25519"].(map[string]any), "seed")
		for _, k := range []string{"d", "p", "q"} {
			delete(is["rsa2048"].(map[string]any), k)
		}
	}
	data, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(bytes.NewReader(data))
	if err != nil || r.OK != 114 || r.Failed() != 0 {
		t.Fatal(r, err)
	}
}

func FuzzRun(f *testing.F) {
	f.Add([]byte(`{"issuers":[{"unid":1,"siphash":"000102030405060708090a0b0c0d0e0f"}],"vectors":[{"name":"x","suite":"siphash","nonce":"0000000000000000","src":"1.2.3.4","dst":"::1","tag":"","valid":false,"reason":"tag_malformed"}],` +
		`"packets":[{"suite":"siphash","carrier":"ip","nonce":"0000000000000000","untagged":"45","tagged":"60"}]}`))
	f.Add([]byte(`{"vectors":[{"epoch":"1"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Run(bytes.NewReader(b))
		if err == nil && r.OK+r.Failed() == 0 {
			t.Fatal("neither error nor result")
		}
	})
}
