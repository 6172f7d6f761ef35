package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"countersign/controller/admin"
	"countersign/controller/sibling"
	"countersign/directory"
	"countersign/directory/server"
	"countersign/tag"
)

const vectors = "../../tag/testdata/tag-v1.json"

func TestTagCheck(t *testing.T) {
	good, err := os.ReadFile(vectors)
	if err != nil {
		t.Fatal(err)
	}
	if out := succeed(t, "tag", "check", vectors); !strings.HasSuffix(out, " ok, 0 failed\n") || strings.HasPrefix(out, "0 ") {
		t.Errorf("got %q", out)
	}
	// A bit of the first vector's digest, and a reason.
	var f struct {
		Vectors []struct{ Name, Digest string }
	}
	if err := json.Unmarshal(good, &f); err != nil {
		t.Fatal(err)
	}
	name, digest := f.Vectors[0].Name, f.Vectors[0].Digest
	flipped := "0" + digest[1:]
	if flipped == digest {
		flipped = "1" + digest[1:]
	}
	bad := write(t, "spoilt.json", strings.Replace(string(good), digest, flipped, 1))
	t.Run("spoilt", func(t *testing.T) {
		r := call(t, 0, "tag", "check", bad)
		if r.code != exitFailed || !strings.Contains(r.out, name+": ") || strings.Contains(r.out, " 0 failed") || r.errOut != "" {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("several as JSON", func(t *testing.T) {
		r := call(t, 0, "tag", "check", "--json", vectors, bad)
		var all []struct {
			File     string
			OK       int
			Failures []struct{ Name, Why string }
		}
		if err := json.Unmarshal([]byte(r.out), &all); err != nil || r.code != exitFailed {
			t.Fatalf("%+v, %v", r, err)
		}
		if len(all) != 2 || all[0].File != vectors || len(all[0].Failures) != 0 || all[1].File != bad || all[1].Failures[0].Name != name {
			t.Errorf("got %+v", all)
		}
	})
	t.Run("standard input", func(t *testing.T) {
		if r := callWith(t, t.Context(), string(good), 0, "tag", "check", "-"); r.code != exitOK {
			t.Errorf("got %+v", r)
		}
	})
}

// tagged is a capture with three packets of the shared vectors, of which the
// second has no tag.
func tagged(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(vectors)
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Packets []struct{ Name, Tagged, Plain string }
	}
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	bits := map[string]string{}
	for _, p := range f.Packets {
		bits[p.Name] = p.Tagged
	}
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{bits["ipv4-tcp-siphash"], "450000140000000009320000" + "0a0000010a000002", bits["ipv6-tcp-ed25519"]} {
		p, err := hex.DecodeString(text)
		if err != nil || len(p) == 0 {
			t.Fatalf("packet %d: %v", i, err)
		}
		info := gopacket.CaptureInfo{Timestamp: time.Unix(1700000000+int64(i), 0), CaptureLength: len(p), Length: len(p)}
		if err := w.WritePacket(info, p); err != nil {
			t.Fatal(err)
		}
	}
	return write(t, "trunk.pcap", b.String())
}

func TestTagDecode(t *testing.T) {
	path := tagged(t)
	r := call(t, 0, "tag", "decode", path)
	if r.code != exitOK {
		t.Fatalf("got %+v", r)
	}
	golden(t, "decode.txt", r.out+r.errOut)
	r = call(t, 0, "tag", "decode", "--json", path)
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if r.code != exitOK || len(lines) != 2 {
		t.Fatalf("got %+v", r)
	}
	var rec struct {
		Packet int
		Tag    struct{ Suite string }
	}
	if err := json.Unmarshal([]byte(lines[1]), &rec); err != nil || rec.Packet != 3 || rec.Tag.Suite != "ed25519" {
		t.Errorf("got %+v, %v", rec, err)
	}
	if r := call(t, 0, "tag", "decode", "--carrier", "udp", path); r.code != exitOK || r.out != "" {
		t.Errorf("with another carrier: %+v", r)
	}
}

func TestPolicy(t *testing.T) {
	const file = "testdata/fw1.yaml"
	shown := succeed(t, "policy", "show", "--table", "port,issuer_key,policy_v4", file)
	golden(t, "policy-show.txt", shown)
	out := succeed(t, "policy", "check", file)
	if !strings.HasSuffix(out, file+": OK\n") || strings.Count(out, "device ") != 2 {
		t.Errorf("got %s", out)
	}
	t.Run("JSON agrees with the counts", func(t *testing.T) {
		var counts []struct {
			Device string
			Tables map[string]int
		}
		var entries []struct {
			Device  string
			Entries []struct{ Table string }
		}
		if err := json.Unmarshal([]byte(succeed(t, "policy", "check", "--json", file)), &counts); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(succeed(t, "policy", "show", "--json", file)), &entries); err != nil {
			t.Fatal(err)
		}
		if len(counts) != 2 || len(entries) != 2 {
			t.Fatalf("%d and %d devices", len(counts), len(entries))
		}
		for i, d := range entries {
			for _, e := range d.Entries {
				counts[i].Tables[e.Table]--
			}
			for name, n := range counts[i].Tables {
				if n != 0 {
					t.Errorf("device %s, table %s: counts differ by %d", d.Device, name, n)
				}
			}
		}
	})
	t.Run("no key material", func(t *testing.T) {
		all := succeed(t, "policy", "show", "--json", file) + succeed(t, "policy", "show", file)
		for _, secret := range []string{"k0", "k1", "0001020304050607", "0706050403020100", "506097522914230528", "f0f1f2f3"} {
			if strings.Contains(all, secret) {
				t.Errorf("%s is shown", secret)
			}
		}
	})
	t.Run("one device, narrow", func(t *testing.T) {
		r := call(t, 80, "policy", "show", "--device", "south", file)
		if r.code != exitOK || strings.Contains(r.out, "device north") {
			t.Fatalf("got %+v", r)
		}
		for line := range strings.Lines(r.out) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
				t.Errorf("%d columns: %q", n, line)
			}
		}
	})
}

// backend is a controller of plain data.
type backend struct {
	status   admin.Status
	sessions []admin.Session
	done     bool
	err      error
}

func (b *backend) Status() admin.Status { return b.status }

func (b *backend) Keys() []admin.Key {
	return []admin.Key{
		{Suite: tag.Ed25519, UNID: "00001234", Epoch: 9, State: directory.Current, Member: "fw2", Site: "branch"},
		{Suite: tag.Siphash, UNID: "0000abcd", Epoch: 4, State: directory.Next, Member: "fw1", Site: "hq", Own: true, Known: true},
		{Suite: tag.Siphash, UNID: "0000abcd", Epoch: 3, State: directory.Current, Member: "fw1", Site: "hq", Own: true, Known: true},
		{Suite: tag.Siphash, UNID: "00001234", Epoch: 8, State: directory.Revoked, Member: "fw2", Site: "branch"},
	}
}

func (b *backend) Sessions() iter.Seq[admin.Session] {
	return func(yield func(admin.Session) bool) {
		for _, s := range b.sessions {
			if !yield(s) {
				return
			}
		}
	}
}

func (b *backend) Rotate(context.Context, tag.Suite) (bool, error) { return b.done, b.err }

func (b *backend) KillSession(_ context.Context, t tag.Tuple) bool { return t.Protocol() == 6 }

// controllerOf serves b until the test ends and returns the socket.
func controllerOf(t *testing.T, b admin.Backend) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	s, err := admin.Listen(path, b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return path
}

func sampleStatus() admin.Status {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := &backend{}
	return admin.Status{
		Member: "fw1", Site: "hq", Alliance: "example", Started: at, Uptime: admin.Seconds(26 * time.Hour),
		Devices: []admin.Device{
			{Name: "north", Address: "unix:///run/countersign/north.sock", Phase: "synced", Generation: 1, Revision: 12},
			{Name: "south", Address: "192.0.2.7:9559", Phase: "disconnected", Error: "dial tcp 192.0.2.7:9559: connect: connection refused"},
		},
		Directory: &admin.Directory{
			Address: "dir.example.net:7443", Connected: true, Version: 40, Sequence: 41,
			Age: admin.Seconds(95 * time.Second), Expiry: at.Add(48 * time.Hour),
		},
		Siblings: []sibling.PeerStatus{{Name: "fw3", Address: "fw3.example.net:7444", Connected: true, Hearing: true, Sent: 1234}},
		Sessions: 52, Signing: b.Keys()[1:3],
	}
}

func TestStatus(t *testing.T) {
	b := &backend{status: sampleStatus()}
	socket := controllerOf(t, b)
	t.Setenv("COUNTERSIGN_ADMIN", socket)
	golden(t, "status.txt", succeed(t, "status"))
	golden(t, "status-80.txt", call(t, 80, "status").out)
	var s admin.Status
	if err := json.Unmarshal([]byte(succeed(t, "status", "--json")), &s); err != nil || s.Devices[1].Error != b.status.Devices[1].Error {
		t.Errorf("got %+v, %v", s, err)
	}
	b.status.Directory.Expired, b.status.Directory.Connected = true, false
	if out := succeed(t, "status"); !strings.Contains(out, "not connected") || !strings.Contains(out, "EXPIRED 2026-03-03 12:00:00Z") {
		t.Errorf("an expired bundle: %s", out)
	}
	b.status.Directory, b.status.Siblings = nil, nil
	if out := succeed(t, "status"); !strings.Contains(out, "keys are static") || strings.Contains(out, "SIBLING") {
		t.Errorf("static keys: %s", out)
	}
}

func TestKeys(t *testing.T) {
	b := &backend{done: true}
	socket := controllerOf(t, b)
	golden(t, "keys.txt", succeed(t, "keys", "show", "--admin", socket))
	var keys []admin.Key
	if err := json.Unmarshal([]byte(succeed(t, "keys", "show", "--json", "--member", "fw2", "--state", "revoked", "--admin", socket)), &keys); err != nil || len(keys) != 1 || keys[0].Epoch != 8 {
		t.Errorf("got %+v, %v", keys, err)
	}
	if out := succeed(t, "keys", "rotate", "siphash", "--admin", socket); out != "siphash: the next key is current\n" {
		t.Errorf("got %q", out)
	}
	b.done = false
	if out := succeed(t, "keys", "rotate", "siphash", "--admin", socket); !strings.Contains(out, "acknowledged") {
		t.Errorf("got %q", out)
	}
	if out := succeed(t, "keys", "rotate", "siphash", "--json", "--admin", socket); out != "{\n  \"suite\": \"siphash\",\n  \"done\": false\n}\n" {
		t.Errorf("got %q", out)
	}
	b.err = fmt.Errorf("static keys\ndo not rotate")
	fail(t, exitFailed, []string{"keys", "rotate", "siphash", "--admin", socket}, "static keys; do not rotate")
}

func sampleSessions() []admin.Session {
	end := netip.MustParseAddrPort
	return []admin.Session{
		{Protocol: 6, Low: end("10.1.0.7:40112"), High: end("192.0.2.80:443"), InitiatorLow: true, LowZone: "lan", HighZone: "wan", Age: admin.Seconds(75 * time.Second), Installed: true, Delivered: true},
		{Protocol: 17, Low: end("[2001:db8::1]:53"), High: end("[2001:db8::9]:5353"), LowZone: "dmz", HighZone: "lan", Origin: "fw2", Issuer: "fw9", Generation: 5, Age: admin.Seconds(1234 * time.Millisecond)},
		{Protocol: 1, Kind: tag.KindICMPOther, Low: end("10.1.0.7:0"), High: end("192.0.2.80:0"), LowZone: "lan", HighZone: "wan", Installed: true, Closing: true},
	}
}

func TestSessions(t *testing.T) {
	b := &backend{sessions: sampleSessions()}
	socket := controllerOf(t, b)
	golden(t, "sessions.txt", succeed(t, "sessions", "--admin", socket))
	t.Run("filtered, as JSON", func(t *testing.T) {
		out := succeed(t, "sessions", "--admin", socket, "--json", "--protocol", "udp", "--prefix", "2001:db8::/32", "--port", "53", "--zone", "dmz", "--origin", "fw2")
		var s admin.Session
		if err := json.Unmarshal([]byte(out), &s); err != nil || s != b.sessions[1] || strings.Count(out, "\n") != 1 {
			t.Errorf("got %s, %v", out, err)
		}
	})
	t.Run("paged", func(t *testing.T) {
		if out := succeed(t, "sessions", "--admin", socket, "--json", "--skip", "1", "--limit", "1"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "fw9") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("none", func(t *testing.T) {
		if out := succeed(t, "sessions", "--admin", socket, "--protocol", "sctp"); out != "" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("more than a table", func(t *testing.T) {
		b.sessions = nil
		for range tableRows + 1 {
			b.sessions = append(b.sessions, sampleSessions()[0])
		}
		if out := succeed(t, "sessions", "--admin", socket); strings.Count(out, "10.1.0.7:40112") != tableRows+1 || strings.Count(out, "PROTO") != 2 {
			t.Errorf("%d sessions, %d tables", strings.Count(out, "10.1.0.7:40112"), strings.Count(out, "PROTO"))
		}
	})
	t.Run("killed", func(t *testing.T) {
		if out := succeed(t, "sessions", "kill", "tcp", "10.1.0.7:40112", "192.0.2.80:443", "--admin", socket); out != "killed\n" {
			t.Errorf("got %q", out)
		}
		fail(t, exitFailed, []string{"sessions", "kill", "udp", "10.1.0.7:1", "192.0.2.80:2", "--admin", socket}, "no session")
	})
}

// directoryOf runs a directory until the test ends and returns its address and
// state directory. Its state is made by the command.
func directoryOf(t *testing.T) (address, state string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address, state = l.Addr().String(), filepath.Join(t.TempDir(), "state")
	out := succeed(t, "directory", "init", "--state", state, "--alliance", "example", "--address", address)
	if out != filepath.Join(state, server.OperatorFile)+"\n" {
		t.Fatalf("init printed %q", out)
	}
	s, err := server.New(server.Config{State: state, Alliance: "example", Address: address})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(ctx, l) // its error is the context's
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return address, state
}

func TestMembers(t *testing.T) {
	address, state := directoryOf(t)
	t.Setenv("COUNTERSIGN_OPERATOR", filepath.Join(state, server.OperatorFile))
	dir := t.TempDir()
	token := filepath.Join(dir, "fw1.token")

	out := succeed(t, "member", "invite", "fw1", "--site", "hq", "--suite", "siphash,ed25519", "--token-file", token)
	secret, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(token); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the token is %v, %v", info.Mode(), err)
	}
	if strings.Contains(out, strings.TrimSpace(string(secret))) || !strings.Contains(out, "member fw1 invited until ") {
		t.Errorf("invite printed %q", out)
	}
	fail(t, exitFailed, []string{"member", "invite", "fw2", "--token-file", token}, "token file", "exists")
	if again, err := os.ReadFile(token); err != nil || !bytes.Equal(again, secret) {
		t.Errorf("the refused invitation touched the file: %v", err)
	}

	list := func(t *testing.T) (l memberList) {
		t.Helper()
		if err := json.Unmarshal([]byte(succeed(t, "member", "list", "--json")), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := list(t); len(l.Members) != 0 || len(l.Invitations) != 1 || l.Invitations[0].Name != "fw1" || l.Invitations[0].Role != "member" {
		t.Errorf("after the invitation: %+v", l)
	}

	// Redeemed as what it is not, then as what it is.
	fail(t, exitUsage, []string{"member", "join", "--token-file", token, "--credential", filepath.Join(dir, "c")}, "--state")
	home := filepath.Join(dir, "fw1")
	if out := succeed(t, "member", "join", "--token-file", token, "--state", home); out != "member fw1 of example: the identity is in "+home+"\n" {
		t.Errorf("join printed %q", out)
	}
	fail(t, exitFailed, []string{"member", "join", "--token-file", token, "--state", home}, "member already")
	l := list(t)
	if len(l.Members) != 1 || len(l.Invitations) != 0 {
		t.Fatalf("after joining: %+v", l)
	}
	if m := l.Members[0]; m.Name != "fw1" || m.Site != "hq" || m.State != "active" || len(m.UNIDs) != 1 || strings.Join(m.Suites, " ") != "siphash ed25519" || m.Joined.IsZero() {
		t.Errorf("got %+v", m)
	}

	t.Run("sites", func(t *testing.T) {
		succeed(t, "directory", "site", "hq", "10.1.0.0/16", "2001:db8:1::/48")
		if l := list(t); len(l.Sites) != 1 || strings.Join(l.Sites[0].Prefixes, " ") != "10.1.0.0/16 2001:db8:1::/48" {
			t.Errorf("got %+v", l.Sites)
		}
	})
	t.Run("readers", func(t *testing.T) {
		r := call(t, 0, "member", "invite", "alice", "--role", "reader", "--token-file", "-")
		if r.code != exitOK || strings.Count(r.out, "\n") != 1 {
			t.Fatalf("got %d, %q", r.code, r.errOut)
		}
		credential := filepath.Join(dir, "alice.credential")
		if j := callWith(t, t.Context(), r.out, 0, "member", "join", "--token-file", "-", "--credential", credential); j.code != exitOK {
			t.Fatalf("got %+v", j)
		}
		succeed(t, "member", "list", "--operator", credential)
		fail(t, exitFailed, []string{"member", "revoke", "fw1", "--operator", credential}, "directory: ")
	})
	t.Run("status", func(t *testing.T) {
		var s directoryStatus
		if err := json.Unmarshal([]byte(succeed(t, "directory", "status", "--json")), &s); err != nil || s.Alliance != "example" || s.Members != 1 || s.Version == 0 || len(s.Key) != 64 {
			t.Errorf("got %+v, %v", s, err)
		}
		before := s.Key
		succeed(t, "directory", "rotate-key")
		if out := succeed(t, "directory", "status", "--directory", address); strings.Contains(out, before) || !strings.Contains(out, "members   1, 0 connected") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("keys", func(t *testing.T) {
		// Nobody has published: no keys, and none to rotate.
		if out := succeed(t, "keys", "show", "--all", "--json"); out != "[]\n" {
			t.Errorf("got %s", out)
		}
		fail(t, exitFailed, []string{"keys", "rotate", "siphash", "--member", "fw1"}, "directory: ")
	})
	t.Run("excluded", func(t *testing.T) {
		for _, step := range []struct{ verb, done, state string }{
			{"suspend", "suspended", "suspended"}, {"resume", "resumed", "active"}, {"revoke", "revoked", "revoked"},
		} {
			if out := succeed(t, "member", step.verb, "fw1"); !strings.HasPrefix(out, "member fw1 "+step.done+" in version ") {
				t.Errorf("got %q", out)
			}
			if l := list(t); l.Members[0].State != step.state {
				t.Errorf("after %s it is %s", step.verb, l.Members[0].State)
			}
		}
		fail(t, exitFailed, []string{"member", "revoke", "fw9"}, "directory: ", "fw9")
	})
	fail(t, exitFailed, []string{"directory", "init", "--state", state, "--alliance", "example", "--address", address}, "initialised already")
}

func TestWriteMembers(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	l := memberList{
		Members: []memberRow{
			{Name: "fw1", Site: "hq", State: "active", UNIDs: []string{"0000abcd"}, Suites: []string{"siphash"}, Connected: true, Joined: at},
			{Name: "fw2", Site: "branch", State: "suspended", UNIDs: []string{"00001234", "00005678"}, Suites: []string{"siphash", "ed25519"}, Behind: true, Alarm: true, WaitingFor: []string{"siphash/0000abcd/4"}, Joined: at},
		},
		Invitations: []invitedRow{{Name: "alice", Role: "reader", Site: "alice", Expiry: at}},
		Sites:       []siteRow{{Name: "hq", Prefixes: []string{"10.1.0.0/16", "2001:db8:1::/48"}}},
	}
	var b bytes.Buffer
	if err := (&app{}).writeMembers(&b, &l); err != nil {
		t.Fatal(err)
	}
	golden(t, "members.txt", b.String())
}

// A process that is interrupted ends well.
func TestInterrupted(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	config := []string{"--state", state, "--alliance", "example", "--address", "127.0.0.1:1"}
	succeed(t, append([]string{"directory", "init"}, config...)...)
	yaml := write(t, "d.yaml", fmt.Sprintf("state: %s\nalliance: example\naddress: 127.0.0.1:1\ngrace: 5s\ncarrier: {kind: udp}\n", state))
	for name, args := range map[string][]string{
		"directory":                  append([]string{"directory", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"}, config...),
		"directory from a file":      {"directory", "-c", yaml, "--listen", "127.0.0.1:0"},
		"controller":                 {"controller", "-c", "testdata/fw1.yaml", "--metrics", "127.0.0.1:0", "--admin", filepath.Join(t.TempDir(), "run", "s")},
		"controller without metrics": {"controller", "-c", "testdata/fw1.yaml", "--log-format", "json"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if r := callWith(t, ctx, "", 0, args...); r.code != exitOK {
				t.Errorf("ended with %d: %s", r.code, r.errOut)
			}
		})
	}
}
