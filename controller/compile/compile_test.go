package compile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"countersign/controller/config"
	"countersign/directory"
	"countersign/tables"
	"countersign/tag"
)

const header = `
member: s1
devices: [{name: a, address: "unix:///a"}, {name: b, address: "unix:///b"}]
ports:
  - {device: a, port: 1, name: lan, role: edge, mac: "02:00:00:00:00:01", addresses: [10.2.0.1/24]}
  - {device: a, port: 2, name: wan, role: trunk, mtu: 1800, mac: "02:00:00:00:00:02", addresses: [10.9.0.1/24]}
  - {device: a, port: 3, vlan: 7, name: dmz, role: edge, mac: "02:00:00:00:00:03"}
  - {device: b, port: 1, name: b1, role: edge, mac: "02:00:00:00:00:04"}
  - {device: b, port: 2, name: b2, role: trunk, mtu: 1800, mac: "02:00:00:00:00:05"}
cross_connects: [{a: b1, b: b2}]
routes:
  - {to: 10.1.0.0/16, via: [10.9.0.7, 10.9.0.8]}
  - {to: 10.3.0.0/16, via: [10.9.0.9]}
neighbours:
  - {address: 10.9.0.7, mac: "02:00:00:00:00:77"}
  - {address: 10.9.0.8, mac: "02:00:00:00:00:88"}
directory: {address: "127.0.0.1:1", state: /x}
`

func parse(t interface {
	Helper()
	Fatal(...any)
}, extra string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("t.yaml", []byte(header+extra))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestRoutesAndPorts(t *testing.T) {
	cfg := parse(t, "")
	entries, err := Entries(cfg, "a", Static(cfg), nil)
	if err != nil {
		t.Fatal(err)
	}
	routes := map[string]string{}
	ports := 0
	for _, e := range entries {
		switch e := e.(type) {
		case tables.EgressPortV4Entry:
			var hops []string
			for _, h := range e.Action.(tables.NextHopsOneShot) {
				if n, ok := h.Action.(tables.NextHop); ok {
					hops = append(hops, fmt.Sprintf("%d/%x", n.Port, n.DstMAC))
				} else {
					hops = append(hops, "me")
				}
			}
			v := e.Key.Dst.Value
			a := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
			routes[fmt.Sprintf("%v/%d", a, e.Key.Dst.PrefixLen)] = strings.Join(hops, " ")
		case tables.PortEntry:
			ports++
		case tables.CrossConnectEntry:
			t.Errorf("cross connect of another device: %+v", e)
		}
	}
	if ports != 3 {
		t.Errorf("%d ports, want those of device a", ports)
	}
	for prefix, want := range map[string]string{
		"10.1.0.0/16": "2/20000000077 2/20000000088", // by flow
		"10.3.0.0/16": "me",                          // next hop to be resolved
		"10.2.0.0/24": "me",
		"10.2.0.1/32": "me",
		"10.9.0.7/32": "2/20000000077",
	} {
		if routes[prefix] != want {
			t.Errorf("%s goes to %q, want %q", prefix, routes[prefix], want)
		}
	}
	b, err := Entries(cfg, "b", Static(cfg), nil)
	if err != nil {
		t.Fatal(err)
	}
	crossed := 0
	for _, e := range b {
		if _, ok := e.(tables.CrossConnectEntry); ok {
			crossed++
		}
	}
	if crossed != 2 {
		t.Errorf("%d cross connects, want both ways", crossed)
	}
	if _, err := Entities(entries); err != nil {
		t.Error(err)
	}
}

func TestKeyActions(t *testing.T) {
	k, err := tag.GenerateKey(tag.Siphash)
	if err != nil {
		t.Fatal(err)
	}
	id := tag.KeyID{Suite: tag.Siphash, UNID: 1, Epoch: 1}
	mac, _ := k.MAC()
	k0, k1 := mac.Words()
	for _, tc := range []struct {
		name string
		key  directory.VerifyKey
		want tables.IssuerKeyAction
	}{
		{"next of the own site", directory.VerifyKey{KeyID: id, State: directory.Next, Site: "s", Key: k.Verifier()},
			tables.SiphashKey{State: tables.KeyStateAccepted, OwnSite: 1, K0: k0, K1: k1}},
		{"echo only", directory.VerifyKey{KeyID: id, State: directory.EchoOnly, Site: "o", Key: k.Verifier()},
			tables.SiphashKey{State: tables.KeyStateEchoOnly, K0: k0, K1: k1}},
		{"revoked", directory.VerifyKey{KeyID: id, State: directory.Revoked}, tables.Tombstone{}},
		{"retired", directory.VerifyKey{KeyID: id, State: directory.Retired, Key: k.Verifier()}, tables.Tombstone{}},
		{"no material", directory.VerifyKey{KeyID: id, State: directory.Current}, nil},
	} {
		if got := KeyAction(&tc.key, "s"); got != tc.want {
			t.Errorf("%s: got %T", tc.name, got)
		}
	}
}

func TestSaltIsDrawnForEachEntry(t *testing.T) {
	k, err := tag.GenerateKey(tag.Siphash)
	if err != nil {
		t.Fatal(err)
	}
	snap := &directory.Snapshot{Signing: []directory.SigningKey{{KeyID: tag.KeyID{Suite: tag.Siphash, UNID: 1, Epoch: 1}, State: directory.Current, Key: k}}}
	var n uint64
	entries, err := OwnKeys(snap, tag.Siphash, func() uint64 { n++; return n })
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	if entries[0].(tables.OwnKeyEntry).Action.(tables.SignSiphash).NonceSalt == entries[1].(tables.OwnKeyEntry).Action.(tables.SignSiphash).NonceSalt {
		t.Error("two entries share a salt")
	}
	if entries, err = OwnKeys(snap, tag.RSA2048, nil); err != nil || entries != nil {
		t.Errorf("without a key: %v, %v", entries, err)
	}
}

// facts is a packet as the policy tables see it.
type facts struct {
	in, out      uint16
	src, dst     netip.Addr
	protocol     uint8
	sport, dport uint16
	flags        uint8
	tagged       uint8
}

// judge looks a packet up as the data plane does.
func judge(entries []tables.Entry, f facts) string {
	best, action := int32(0), "default"
	for _, e := range entries {
		p, ok := e.(tables.PolicyV4Entry)
		if !ok || p.Priority <= best {
			continue
		}
		k := p.Key
		s, d := v4(f.src), v4(f.dst)
		in := func(r tables.Range[uint16], v uint16) bool { return !r.Set || r.Low <= v && v <= r.High }
		if f.in&k.InZone.Mask == k.InZone.Value && f.out&k.OutZone.Mask == k.OutZone.Value &&
			s&k.Src.Mask == k.Src.Value && d&k.Dst.Mask == k.Dst.Value &&
			f.protocol&k.Protocol.Mask == k.Protocol.Value && in(k.SrcPort, f.sport) && in(k.DstPort, f.dport) &&
			f.flags&k.TCPFlags.Mask == k.TCPFlags.Value && f.tagged&k.Tagged.Mask == k.Tagged.Value {
			best = p.Priority
			switch p.Action.(type) {
			case tables.AdmitV4:
				action = "admit"
			case tables.TagV4:
				action = "tag"
			case tables.DenyV4:
				action = "deny"
			case tables.AwaitV4:
				action = "await"
			}
		}
	}
	return action
}

// want judges by the rules as they are written.
func wantAction(cfg *config.Config, f facts) string {
	zones := cfg.Zones()
	for i := range cfg.Policy {
		r := &cfg.Policy[i]
		if f.tagged == 1 && !r.Always || !r.Matches(zones, f.in, f.out, f.src, f.dst, f.protocol, f.sport, f.dport) {
			continue
		}
		if r.Action == "admit" && !r.Midstream && f.protocol == 6 && f.flags&0x17 != 0x02 {
			continue
		}
		return r.Action
	}
	if f.tagged == 1 {
		return "default"
	}
	// Replies wait, because the member has two data planes.
	for i := range cfg.Policy {
		r := &cfg.Policy[i]
		if r.Action == "admit" && r.Matches(zones, f.out, f.in, f.dst, f.src, f.protocol, f.dport, f.sport) &&
			(f.protocol != 6 || f.flags&0x10 != 0 || f.flags&0x02 == 0) {
			return "await"
		}
	}
	return "default"
}

func TestEntriesSayWhatTheRulesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		b.WriteString("policy:\n")
		maybe := rapid.Bool()
		for range rapid.IntRange(1, 5).Draw(t, "rules") {
			b.WriteString("  - {action: ")
			action := rapid.SampledFrom([]string{"admit", "deny", "tag"}).Draw(t, "action")
			b.WriteString(action)
			proto := rapid.SampledFrom([]string{"", "tcp", "udp", "47"}).Draw(t, "protocol")
			if proto != "" {
				fmt.Fprintf(&b, ", protocol: %q", proto)
			}
			if proto == "tcp" || proto == "udp" {
				if maybe.Draw(t, "ports") {
					b.WriteString(", dst_port: 80-81")
				}
			}
			if maybe.Draw(t, "from") {
				b.WriteString(", from: " + rapid.SampledFrom([]string{"lan", "wan"}).Draw(t, "zone"))
			}
			if maybe.Draw(t, "dst") {
				b.WriteString(", dst: " + rapid.SampledFrom([]string{"10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0"}).Draw(t, "prefix"))
			}
			if action == "deny" && maybe.Draw(t, "always") {
				b.WriteString(", always: true")
			}
			if action == "admit" && maybe.Draw(t, "midstream") {
				b.WriteString(", midstream: true")
			}
			b.WriteString("}\n")
		}
		cfg := parse(t, b.String())
		entries, err := Entries(cfg, "a", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		addr := rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("10.2.0.5")})
		port := rapid.SampledFrom([]uint16{0, 79, 80, 81, 82, 65535})
		zone := rapid.Uint16Range(1, 3)
		for range 50 {
			f := facts{
				in: zone.Draw(t, "in"), out: zone.Draw(t, "out"), src: addr.Draw(t, "src"), dst: addr.Draw(t, "dst"),
				protocol: rapid.SampledFrom([]uint8{6, 17, 47, 1, 7}).Draw(t, "p"),
				sport:    port.Draw(t, "sport"), dport: port.Draw(t, "dport"), tagged: rapid.Uint8Range(0, 1).Draw(t, "tagged"),
			}
			if f.protocol == 6 {
				f.flags = rapid.Uint8().Draw(t, "flags")
			}
			if got, want := judge(entries, f), wantAction(cfg, f); got != want {
				t.Fatalf("%+v: entries say %s, rules say %s\n%s", f, got, want, b.String())
			}
		}
	})
}
