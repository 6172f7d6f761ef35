package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	"countersign/directory/bundle"
	pb "countersign/directory/proto"

	"google.golang.org/protobuf/proto"
)

// newTx is a transaction over one active member, m, whose first code is 1.
func newTx(t *testing.T) *tx {
	t.Helper()
	seal, err := bundle.GenerateSealKey()
	if err != nil {
		t.Fatal(err)
	}
	cfg := &Config{State: t.TempDir(), Alliance: "lab", Address: "localhost:1"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	x := &tx{tables: newTables(&newState().tables), cfg: cfg, now: time.Unix(1000, 0), sequence: 1, envelopes: map[string]*pb.Envelope{}}
	err = x.putMember(&pb.Member{
		Name: "m", Site: "m", Unids: []uint32{1}, Suites: []pb.Suite{1}, State: pb.MemberState_MEMBER_STATE_ACTIVE,
		Identity: make([]byte, 32), SealKey: seal.PublicKey().Bytes(),
	})
	if err != nil {
		t.Fatal(err)
	}
	x.accounts.put("m", &pb.Account{Name: "m", Code: bundle.Code{1}.Hash()})
	return x
}

func TestCodes(t *testing.T) {
	type use struct {
		code, next byte
		refused    bool
	}
	cases := []struct {
		name      string
		uses      []use
		suspended bool
	}{
		{"the same pair until it is renewed", []use{{1, 2, false}, {1, 2, false}, {2, 3, false}, {2, 3, false}}, false},
		{"the answer was lost", []use{{1, 2, false}, {1, 2, false}}, false},
		{"crash after the renewal was saved, before its use", []use{{1, 2, false}, {2, 3, false}}, false},
		{"crash before the renewal was saved", []use{{1, 2, false}, {1, 2, false}, {2, 3, false}}, false},
		{"the clone moves first", []use{{1, 2, false}, {2, 9, false}, {1, 2, true}}, true},
		{"the owner moves first", []use{{1, 2, false}, {2, 3, false}, {2, 9, true}}, true},
		{"the owner moves twice, the clone has the first", []use{{1, 2, false}, {2, 3, false}, {3, 4, false}, {1, 2, true}}, true},
		{"two next codes", []use{{1, 2, false}, {1, 9, true}}, true},
		{"a stranger's code", []use{{1, 2, false}, {7, 8, true}}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x := newTx(t)
			for i, u := range c.uses {
				reject, err := x.checkCode("m", bundle.Code{u.code}, bundle.Code{u.next})
				if err != nil {
					t.Fatal(err)
				}
				if (reject != nil) != u.refused {
					t.Fatalf("use %d: %v, want refused %v", i, reject, u.refused)
				}
			}
			if active(x.member("m")) == c.suspended || x.accounts.get("m").Alarm != c.suspended {
				t.Fatalf("member %v, account %v", x.member("m"), x.accounts.get("m"))
			}
		})
	}
}

func TestTableLayers(t *testing.T) {
	base := newTable[string, pb.Account](nil)
	base.put("a", &pb.Account{Name: "a"})
	base.put("b", &pb.Account{Name: "b"})
	mid := newTable(base)
	mid.drop("a")
	mid.put("c", &pb.Account{Name: "c"})
	top := newTable(mid)
	top.put("b", &pb.Account{Name: "b2"})
	got := map[string]string{}
	for k, v := range top.all {
		got[k] = v.Name
		top.drop(k) // allowed meanwhile
	}
	if len(got) != 2 || got["b"] != "b2" || got["c"] != "c" || mid.get("a") != nil || base.get("a") == nil {
		t.Fatalf("got %v", got)
	}
	top.merge()
	if mid.get("b") != nil || mid.get("c") != nil || base.get("b").Name != "b" {
		t.Fatal("merge changed the wrong layer")
	}
}

func TestConfigNamesTheKey(t *testing.T) {
	good := Config{State: "s", Alliance: "lab", Address: "dir:7443"}
	cases := []struct {
		name, key string
		edit      func(*Config)
	}{
		{"no state", "state", func(c *Config) { c.State = "" }},
		{"alliance", "alliance", func(c *Config) { c.Alliance = "Not a label" }},
		{"address", "address", func(c *Config) { c.Address = "dir" }},
		{"listen", "listen", func(c *Config) { c.Listen = "7443" }},
		{"carrier", "carrier", func(c *Config) { c.Carrier.Kind = "gre" }},
		{"grace", "grace", func(c *Config) { c.Grace = -1 }},
		{"ack_timeout", "ack_timeout", func(c *Config) { c.AckTimeout = time.Microsecond }},
		{"echo_only", "echo_only", func(c *Config) { c.EchoOnly = -1 }},
		{"join_rate", "join_rate", func(c *Config) { c.JoinRate = -1 }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.edit(&cfg)
			err := cfg.Validate()
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), ": "+c.key+": ") {
				t.Fatalf("got %v, want one that names %s", err, c.key)
			}
		})
	}
	if err := good.Validate(); err != nil || good.Grace == 0 {
		t.Fatalf("defaults: %v %+v", err, good)
	}
}

func FuzzPublish(f *testing.F) {
	b, err := proto.Marshal(&pb.PublishRequest{Keys: []*pb.Publication{{Statement: []byte{1}, Envelopes: []*pb.Envelope{{}, nil}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &pb.PublishRequest{}
		if proto.Unmarshal(b, req) != nil {
			return
		}
		x := newTx(t)
		if err := x.publish("m", req.Keys); err == nil && len(req.Keys) > 0 {
			t.Fatal("took a key that nobody signed")
		}
	})
}
