package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"countersign/controller/sibling"
	"countersign/directory"
	"countersign/tag"
)

// fake is a Backend of plain data.
type fake struct {
	status   Status
	keys     []Key
	sessions []Session
	rotate   func(tag.Suite) (bool, error)
	killed   []tag.Tuple
	known    bool
	during   func(i int) // before session i is yielded
}

func (f *fake) Status() Status { return f.status }
func (f *fake) Keys() []Key    { return f.keys }

func (f *fake) Sessions() iter.Seq[Session] {
	return func(yield func(Session) bool) {
		for i, s := range f.sessions {
			if f.during != nil {
				f.during(i)
			}
			if !yield(s) {
				return
			}
		}
	}
}

func (f *fake) Rotate(_ context.Context, s tag.Suite) (bool, error) { return f.rotate(s) }

func (f *fake) KillSession(_ context.Context, t tag.Tuple) bool {
	f.killed = append(f.killed, t)
	return f.known
}

// serve answers for b on a socket until the test ends, or stop is called.
func serve(t *testing.T, b Backend) (path string, stop func() error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "admin.sock")
	s, err := Listen(path, b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path, stop
}

func session(proto uint8, low, high string) Session {
	return Session{Protocol: proto, Low: netip.MustParseAddrPort(low), High: netip.MustParseAddrPort(high), Installed: true}
}

func TestAnswers(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := &fake{
		status: Status{
			Member: "fw1", Site: "hq", Alliance: "example", Started: at, Uptime: Seconds(90 * time.Second),
			Devices:   []Device{{Name: "dp", Address: "unix:///run/dp.sock", Phase: "synced", Generation: 2, Revision: 7}},
			Directory: &Directory{Address: "dir:7443", Connected: true, Version: 4, Sequence: 5, Age: Seconds(1500 * time.Millisecond), Expiry: at},
			Siblings:  []sibling.PeerStatus{{Name: "fw2", Connected: true, Sent: 3}},
			Sessions:  12,
			Signing:   []Key{{Suite: tag.Siphash, UNID: "0000abcd", Epoch: 3, State: directory.Current, Member: "fw1", Site: "hq", Own: true, Known: true}},
		},
		keys: []Key{{Suite: tag.RSA2048, UNID: "00000001", Epoch: 65535, State: directory.Revoked, Member: "fw2", Site: "hq"}},
	}
	path, _ := serve(t, b)
	c := NewClient(path)
	if s, err := c.Status(t.Context()); err != nil || !reflect.DeepEqual(s, b.status) {
		t.Errorf("Status is %+v, %v; want %+v", s, err, b.status)
	}
	if k, err := c.Keys(t.Context()); err != nil || !reflect.DeepEqual(k, b.keys) {
		t.Errorf("Keys are %+v, %v; want %+v", k, err, b.keys)
	}
}

func TestRotate(t *testing.T) {
	broken := errors.New("the directory is away")
	for _, tc := range []struct {
		name string
		done bool
		err  error
		want string
	}{
		{name: "done", done: true},
		{name: "waits"},
		{name: "fails", err: broken, want: "controller: the directory is away"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked tag.Suite
			path, _ := serve(t, &fake{rotate: func(s tag.Suite) (bool, error) { asked = s; return tc.done, tc.err }})
			done, err := NewClient(path).Rotate(t.Context(), tag.Ed25519)
			if asked != tag.Ed25519 || done != tc.done || (err == nil) != (tc.err == nil) || err != nil && err.Error() != tc.want {
				t.Errorf("asked for %v, got %v, %v", asked, done, err)
			}
		})
	}
}

func TestSessions(t *testing.T) {
	web := session(6, "10.0.0.1:4000", "192.0.2.1:443")
	web.LowZone, web.HighZone = "lan", "wan"
	dns := session(17, "10.0.0.2:5353", "192.0.2.2:53")
	dns.Origin = "fw2"
	six := session(6, "[2001:db8::1]:4000", "[2001:db8::2]:22")
	b := &fake{sessions: []Session{web, dns, six}}
	path, _ := serve(t, b)
	for _, tc := range []struct {
		name   string
		filter Filter
		want   []Session
	}{
		{"all", Filter{}, b.sessions},
		{"protocol", Filter{Protocol: 6}, []Session{web, six}},
		{"port of either end", Filter{Port: 4000}, []Session{web, six}},
		{"prefix of the high end", Filter{Prefix: netip.MustParsePrefix("192.0.2.2/32")}, []Session{dns}},
		{"prefix of the other family", Filter{Prefix: netip.MustParsePrefix("2001:db8::/32")}, []Session{six}},
		{"zone", Filter{Zone: "wan"}, []Session{web}},
		{"origin", Filter{Origin: "fw2"}, []Session{dns}},
		{"all of several", Filter{Protocol: 17, Zone: "wan"}, nil},
		{"limit", Filter{Limit: 2}, []Session{web, dns}},
		{"page of what matches", Filter{Protocol: 6, Skip: 1, Limit: 1}, []Session{six}},
		{"behind the end", Filter{Skip: 3}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []Session
			for s, err := range NewClient(path).Sessions(t.Context(), tc.filter) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, s)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// A reader that leaves, and one that is left, both come to an end.
func TestSessionsBreakOff(t *testing.T) {
	many := make([]Session, 10000)
	for i := range many {
		many[i] = session(6, "10.0.0.1:1", "10.0.0.2:2")
	}
	t.Run("the reader leaves", func(t *testing.T) {
		path, stop := serve(t, &fake{sessions: many})
		for _, err := range NewClient(path).Sessions(t.Context(), Filter{}) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("the controller ends", func(t *testing.T) {
		var stop func() error
		b := &fake{sessions: many}
		b.during = func(i int) {
			if i == 3*flushEvery {
				panic(http.ErrAbortHandler) // as when the process is killed
			}
		}
		path, stop := serve(t, b)
		n, last := 0, error(nil)
		for _, err := range NewClient(path).Sessions(t.Context(), Filter{}) {
			if last = err; err == nil {
				n++
			}
		}
		if last == nil || n == 0 || n > 3*flushEvery {
			t.Errorf("%d sessions, then %v: a list that is cut must not look whole", n, last)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestKillSession(t *testing.T) {
	want, _ := tag.NewTuple(6, tag.KindPorts, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), 1, 2)
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("known=%v", known), func(t *testing.T) {
			b := &fake{known: known}
			path, _ := serve(t, b)
			f := FiveTuple{Protocol: 6, A: netip.MustParseAddrPort("10.0.0.2:2"), B: netip.MustParseAddrPort("10.0.0.1:1")}
			killed, err := NewClient(path).KillSession(t.Context(), f)
			if err != nil || killed != known || len(b.killed) != 1 || b.killed[0] != want {
				t.Errorf("got %v, %v; asked for %v, want %v", killed, err, b.killed, want)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	path, _ := serve(t, &fake{rotate: func(tag.Suite) (bool, error) { t.Error("rotated"); return false, nil }})
	c := NewClient(path)
	for _, tc := range []struct {
		name, method, path, body string
		code                     int
		text                     string
	}{
		{"no such path", "GET", "/v1/secrets", "", 404, "no GET /v1/secrets"},
		{"wrong method", "DELETE", "/v1/status", "", 404, "no DELETE"},
		{"rotate nothing", "POST", "/v1/keys/rotate", "{}", 400, "no suite"},
		{"rotate an unknown suite", "POST", "/v1/keys/rotate", `{"suite":"md5"}`, 400, "md5"},
		{"rotate with more", "POST", "/v1/keys/rotate", `{"suite":"siphash","now":true}`, 400, "now"},
		{"two objects", "POST", "/v1/keys/rotate", `{"suite":"siphash"}{}`, 400, "more than one"},
		{"not JSON", "POST", "/v1/keys/rotate", "suite", 400, "invalid character"},
		{"too long", "POST", "/v1/keys/rotate", `{"suite":"` + strings.Repeat("x", maxRequest) + `"}`, 400, "too large"},
		{"kill with one end", "POST", "/v1/sessions/kill", `{"protocol":6,"a":"10.0.0.1:1"}`, 400, "two ends"},
		{"kill across families", "POST", "/v1/sessions/kill", `{"protocol":6,"a":"10.0.0.1:1","b":"[::1]:1"}`, 400, "families"},
		{"kill an unknown kind", "POST", "/v1/sessions/kill", `{"protocol":6,"kind":3,"a":"10.0.0.1:1","b":"10.0.0.2:1"}`, 400, "kind 3"},
		{"kill an unknown address", "POST", "/v1/sessions/kill", `{"protocol":6,"a":"here:1","b":"10.0.0.2:1"}`, 400, "here"},
		{"unknown filter", "GET", "/v1/sessions?color=red", "", 400, "color"},
		{"filter twice", "GET", "/v1/sessions?port=1&port=2", "", 400, "2 times"},
		{"port out of range", "GET", "/v1/sessions?port=65536", "", 400, "port"},
		{"prefix", "GET", "/v1/sessions?prefix=10.0.0.0", "", 400, "prefix"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), tc.method, "http://controller"+tc.path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			var f failure
			if err := json.Unmarshal(body, &f); err != nil || resp.StatusCode != tc.code || !strings.Contains(f.Error, tc.text) {
				t.Errorf("got %d %s, want %d with %q", resp.StatusCode, body, tc.code, tc.text)
			}
		})
	}
	t.Run("as the client sees it", func(t *testing.T) {
		if _, err := c.KillSession(t.Context(), FiveTuple{}); !errors.Is(err, ErrRequest) {
			t.Errorf("got %v, want ErrRequest", err)
		}
	})
}

func TestSocket(t *testing.T) {
	t.Run("is its owner's only", func(t *testing.T) {
		path, stop := serve(t, &fake{})
		info, err := os.Stat(path)
		if err != nil || info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("mode is %v, %v", info.Mode(), err)
		}
		if _, err := Listen(path, &fake{}); !errors.Is(err, ErrInUse) {
			t.Errorf("a second controller gets %v, want ErrInUse", err)
		}
		if _, err := NewClient(path).Keys(t.Context()); err != nil {
			t.Errorf("the first one no longer answers: %v", err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if _, err := NewClient(path).Keys(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("without a controller the client gets %v, want ErrUnreachable", err)
		}
	})
	t.Run("takes the place of a dead one", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := Listen(path, &fake{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("spares other files", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path, &fake{}); !errors.Is(err, ErrNoSocket) {
			t.Errorf("got %v, want ErrNoSocket", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("the file is %q, %v", b, err)
		}
	})
	t.Run("in no directory", func(t *testing.T) {
		if _, err := Listen(filepath.Join(t.TempDir(), "missing", "s"), &fake{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}

// No answer holds a key: what is shown of one has no place for it.
func TestKeysOf(t *testing.T) {
	mac := tag.MACKey{0xde, 0xad, 0xbe, 0xef}
	k := tag.NewSiphashKey(mac)
	snap := &directory.Snapshot{
		Self: directory.Member{Name: "fw1"},
		Keys: []directory.VerifyKey{
			{KeyID: tag.KeyID{Suite: tag.Siphash, UNID: 0xabcd, Epoch: 9}, State: directory.Current, Member: "fw1", Site: "hq", Key: k.Verifier()},
			{KeyID: tag.KeyID{Suite: tag.Siphash, UNID: 1, Epoch: 2}, State: directory.Retired, Member: "fw2", Site: "hq"},
		},
	}
	want := []Key{
		{Suite: tag.Siphash, UNID: "0000abcd", Epoch: 9, State: directory.Current, Member: "fw1", Site: "hq", Own: true, Known: true},
		{Suite: tag.Siphash, UNID: "00000001", Epoch: 2, State: directory.Retired, Member: "fw2", Site: "hq"},
	}
	if got := KeysOf(snap); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	text, err := json.Marshal(KeysOf(snap))
	if err != nil || strings.Contains(string(text), "deadbeef") || strings.Contains(string(text), "3q2+7w") {
		t.Errorf("%s, %v", text, err)
	}
	if KeysOf(nil) != nil {
		t.Error("a nil snapshot has keys")
	}
}

func FuzzFilter(f *testing.F) {
	f.Add("protocol=6&prefix=10.0.0.0%2F8&port=443&zone=lan&origin=s2&skip=1&limit=2")
	f.Add("port=65536")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		a, err := parseFilter(q)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatalf("%v is no ErrRequest", err)
			}
			return
		}
		if b, err := parseFilter(a.query()); err != nil || a != b {
			t.Fatalf("%+v comes back as %+v, %v", a, b, err)
		}
	})
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(`{"protocol":6,"low":"10.0.0.1:1","high":"10.0.0.2:2","age_seconds":1.5}`))
	f.Add([]byte(`{"age_seconds":1e300}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a, b Session
		if json.Unmarshal(data, &a) != nil {
			return
		}
		text, err := json.Marshal(a)
		if err != nil {
			return // a year that RFC 3339 lacks
		}
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		tuple := FiveTuple{Protocol: a.Protocol, Kind: a.Kind, A: a.Low, B: a.High}
		if _, err := tuple.Tuple(); err != nil && !errors.Is(err, ErrRequest) {
			t.Fatal(err)
		}
	})
}
