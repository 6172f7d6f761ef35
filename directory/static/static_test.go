package static

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"countersign/directory"
	"countersign/tag"

	"github.com/goccy/go-yaml"
)

const good = `
members:
  - {name: c1, site: c, unid: 0x1001, sibling: "127.0.0.1:7001"}
  - {name: s1, site: s, unid: 0x2001}
sites:
  - {name: s, prefixes: [10.2.0.0/16, "fd00:2::/64"]}
keys:
  - {suite: siphash, unid: 0x1001, epoch: 7, issue: 000102030405060708090a0b0c0d0e0f}
  - {suite: siphash, unid: 0x1001, epoch: 6, state: retired}
  - {suite: siphash, unid: 0x2001, epoch: 1, verify: 101112131415161718191a1b1c1d1e1f}
`

func parse(t *testing.T, text string) *Config {
	t.Helper()
	var cfg Config
	if err := yaml.UnmarshalWithOptions([]byte(text), &cfg, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return &cfg
}

func TestSnapshot(t *testing.T) {
	cfg := parse(t, good)
	snap, err := cfg.Snapshot("c1")
	if err != nil {
		t.Fatal(err)
	}
	own := snap.Current(tag.Siphash)
	if own == nil || own.Epoch != 7 || own.UNID != 0x1001 {
		t.Fatalf("current key is %v", own)
	}
	if len(snap.Keys) != 3 || snap.Keys[0].Key != nil || snap.Keys[0].State != directory.Retired || snap.Keys[2].Member != "s1" {
		t.Fatalf("keys: %v", snap.Keys)
	}
	if mac, ok := snap.Keys[2].Key.MAC(); !ok || hex.EncodeToString(mac[:]) != "101112131415161718191a1b1c1d1e1f" {
		t.Fatal("wrong verify key")
	}
	if len(snap.Sites) != 2 || len(snap.Sites[1].Prefixes) != 2 || snap.Sites[1].Members[0] != "s1" {
		t.Fatalf("sites: %v", snap.Sites)
	}
	if snap.Carrier != directory.DefaultCarrier() || snap.Self.Site != "c" {
		t.Fatalf("carrier %v, self %v", snap.Carrier, snap.Self)
	}
	other, err := cfg.Snapshot("s1")
	if err != nil || len(other.Signing) != 0 {
		t.Fatalf("s1 signs with another's keys: %v %v", other, err)
	}
}

func TestSnapshotRefusals(t *testing.T) {
	cases := []struct{ name, from, to, names string }{
		{"unid taken", "unid: 0x2001}", "unid: 0x1001}", "members[1].unid"},
		{"unid zero", "unid: 0x2001}", "unid: 0}", "members[1].unid"},
		{"bad name", "name: s1", "name: S_1", "members[1].name"},
		{"self missing", "name: c1", "name: c2", "members"},
		{"bad prefix", "10.2.0.0/16", "10.2.0.0", "sites[0].prefixes[0]"},
		{"key of nobody", "unid: 0x2001, epoch", "unid: 0x2002, epoch", "keys[2].unid"},
		{"short key", "1d1e1f", "1d1e", "keys[2].verify"},
		{"not hex", "1d1e1f", "1d1exx", "keys[2].verify"},
		{"no material", "state: retired", "state: grace", "keys[1]"},
		{"twice", "epoch: 6, state: retired", "epoch: 7, state: retired", "keys[1]"},
		{"carrier", "members:", "carrier: {protocol: 6}\nmembers:", "carrier.protocol"},
		{"two current", "epoch: 6, state: retired", "epoch: 6, issue: 000102030405060708090a0b0c0d0e0f", "keys[1].state"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(t, strings.Replace(good, c.from, c.to, 1)).Snapshot("c1")
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.names) {
				t.Fatalf("got %v, want an error that names %s", err, c.names)
			}
			if strings.Contains(err.Error(), "1011121314") {
				t.Fatal("the error shows a key")
			}
		})
	}
}
