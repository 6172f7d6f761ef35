package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

const good = `
member: c1
site: client
devices:
  - name: dp
    address: unix:///run/c1.sock
ports:
  - {port: 1, name: lan, role: edge, mac: "02:00:00:00:00:01", addresses: [10.0.0.1/24, "fd00::1/64"]}
  - {port: 2, name: wan, role: trunk, mtu: 1800, mac: "02:00:00:00:00:02", addresses: [10.9.0.1/30]}
routes:
  - {to: 10.2.0.0/16, via: [10.9.0.2]}
policy:
  - {name: web, from: lan, to: wan, protocol: tcp, dst_port: 80, action: admit}
  - {protocol: udp, dst_port: 1000-2000, action: deny, always: true}
sessions: {tcp: 90s}
directory: {address: "127.0.0.1:7000", state: /var/lib/countersign/c1}
`

func TestParse(t *testing.T) {
	c, err := Parse("c1.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Sign != "siphash" || c.Devices[0].ID != 1 || c.Ports[0].Zone != "lan" || c.Ports[0].MTU != 1500 {
		t.Errorf("defaults not set: %+v", c)
	}
	if got := c.Sessions.TCP.Std().String(); got != "1m30s" {
		t.Errorf("sessions.tcp is %s", got)
	}
	if l, h := c.Policy[1].DstPort.Bounds(); l != 1000 || h != 2000 {
		t.Errorf("dst_port is %d-%d", l, h)
	}
}

func TestStaticCarrier(t *testing.T) {
	base := strings.Replace(good, `directory: {address: "127.0.0.1:7000", state: /var/lib/countersign/c1}`, "", 1)
	for _, tc := range []struct{ add, want string }{
		{"static: {carrier: {kind: udp, port: 4000}, members: [{name: c1, unid: 1}]}", "udp 4000"},
		{"carrier: {kind: udp, port: 4000}\nstatic: {members: [{name: c1, unid: 1}]}", "udp 4000"},
		{"carrier: {kind: udp, port: 4000}\nstatic: {carrier: {port: 5000}, members: [{name: c1, unid: 1}]}", "error"},
	} {
		c, err := Parse("c1.yaml", []byte(base+tc.add))
		got := "error"
		if err == nil {
			snap, serr := c.Static.Snapshot("c1")
			if serr != nil || snap.Carrier.UDP != (c.Carrier.Kind == "udp") || snap.Carrier.Port != c.Carrier.Port {
				t.Errorf("%s: static has another carrier: %v", tc.add, serr)
			}
			got = fmt.Sprint(c.Carrier.Kind, " ", c.Carrier.Port)
		} else if !strings.Contains(err.Error(), "static.carrier") {
			t.Errorf("%s: %v", tc.add, err)
		}
		if got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.add, got, tc.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct {
		name, old, new string
		where, what    string
	}{
		{"unknown key", "sessions: {tcp", "sesions: {tcp", "c1.yaml:15:", "sesions"},
		{"broken YAML", "member: c1", "member: [c1", "c1.yaml:", ""},
		{"wrong type", "port: 1, name: lan", "port: one, name: lan", "c1.yaml:8:", ""},
		{"role", "role: edge", "role: inside", "c1.yaml:8:", "ports[0].role"},
		{"twice", "name: wan", "name: lan", "c1.yaml:9:", "ports[1].name"},
		{"route to nowhere", "via: [10.9.0.2]", "via: [10.8.0.2]", "c1.yaml:11:", "routes[0].via[0]"},
		{"host bits", "to: 10.2.0.0/16", "to: 10.2.0.1/16", "c1.yaml:11:", "10.2.0.0/16 is meant"},
		{"zone", "from: lan", "from: dmz", "c1.yaml:13:", "policy[0].from"},
		{"ports without protocol", "protocol: tcp, dst_port: 80", "dst_port: 80", "c1.yaml:13:", "policy[0].protocol"},
		{"port range", "1000-2000", "2000-1000", "c1.yaml:14:31: policy[1].dst_port: ", "2000-1000"},
		{"duration", "tcp: 90s", "tcp: 90", "c1.yaml:15:17: sessions.tcp: ", "90"},
		{"prefix", "to: 10.2.0.0/16", "to: 10.2.0.0/99", "c1.yaml:11:10: routes[0].to: ", "10.2.0.0/99"},
		{"address", "via: [10.9.0.2]", "via: [10.9.0]", "c1.yaml:11:29: routes[0].via[0]: ", "10.9.0"},
		{"empty", good, "", "c1.yaml: ", "empty"},
		{"second document", "sessions:", "---\nsessions:", "c1.yaml:15:1: ", "second YAML document"},
		{"deep nesting", "member: c1", "member: " + strings.Repeat("[", 100000), "c1.yaml:2:", "brackets"},
		{"always", "action: deny, always", "action: admit, always", "c1.yaml:14:", "policy[1].always"},
		{"no directory", "directory: {address: \"127.0.0.1:7000\", state: /var/lib/countersign/c1}", "", "c1.yaml", "directory"},
		{"device address", "unix:///run/c1.sock", "http://foo", "c1.yaml:6:", "devices[0].address"},
		{"directory address", "127.0.0.1:7000", "dir.example.net", "c1.yaml:16:", "directory.address"},
		{"mac", "02:00:00:00:00:02", "03:00:00:00:00:02", "c1.yaml:9:", "multicast"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !strings.Contains(good, tc.old) {
				t.Fatalf("%q is not in the sample", tc.old)
			}
			_, err := Parse("c1.yaml", []byte(strings.Replace(good, tc.old, tc.new, 1)))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if !strings.HasPrefix(err.Error(), tc.where) || !strings.Contains(err.Error(), tc.what) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want %q … %q on one line", err, tc.where, tc.what)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err == nil {
			if err := c.Validate(); err != nil {
				t.Fatalf("accepted, then refused: %v", err)
			}
		}
	})
}

func TestSchemaIsFresh(t *testing.T) {
	want, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/controller.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("docs/controller.schema.json is stale: go generate ./controller/config")
	}
}
