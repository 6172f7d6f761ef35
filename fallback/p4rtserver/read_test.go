package p4rtserver_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/p4rtserver"
)

// TestReadBack writes entities and reads them back as they were, but for
// values that were not canonical.
func TestReadBack(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write []string
		read  string
		want  []string
	}{
		{"exact, made canonical",
			[]string{`INSERT ` + bridgeEntry(`\x00\x00\x00\x00\x00\x00\x00\x01`, `\x00\x01\xff`, `metadata: "m" idle_timeout_ns: 5 `+forwardAction)},
			`table_entry { table_id: 0x02000001 }`,
			[]string{bridgeEntry(`\x01`, `\x01\xff`, `metadata: "m" idle_timeout_ns: 5 `+forwardAction)}},
		{"zero is one byte",
			[]string{`INSERT ` + bridgeEntry(`\x00\x00`, `\x00`, dropAction)},
			`table_entry { table_id: 0x02000001 }`,
			[]string{bridgeEntry(`\x00`, `\x00`, dropAction)}},
		{"all kinds of match",
			[]string{`INSERT ` + aclEntry(`match { field_id: 3 optional { value: "\x06" } } match { field_id: 2 range { low: "\x00\x50" high: "\x01\xbb" } } match { field_id: 1 ternary { value: "\x00\x0a\x00\x00\x00" mask: "\xff\x00\x00\x00" } }`, `priority: 10 `+dropAction)},
			`table_entry { table_id: 0x02000003 }`,
			[]string{fmt.Sprintf(`table_entry { table_id: %d priority: 10 match { field_id: 1 ternary { value: "\x0a\x00\x00\x00" mask: "\xff\x00\x00\x00" } } match { field_id: 2 range { low: "\x50" high: "\x01\xbb" } } match { field_id: 3 optional { value: "\x06" } } match { field_id: 4 exact { value: "\x01" } } %s }`, acl, dropAction)}},
		{"don't care prefix and a 128 bit one",
			[]string{`INSERT table_entry { table_id: 0x02000007 ` + dropAction + ` }`,
				`INSERT table_entry { table_id: 0x02000007 match { field_id: 1 lpm { value: " \x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" prefix_len: 32 } } ` + dropAction + ` }`},
			`table_entry { table_id: 0x02000007 }`,
			[]string{`table_entry { table_id: 0x02000007 ` + dropAction + ` }`,
				`table_entry { table_id: 0x02000007 match { field_id: 1 lpm { value: " \x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" prefix_len: 32 } } ` + dropAction + ` }`}},
		{"prefix of a small address",
			[]string{`INSERT ` + routeEntry(routeMatch(`\x00`, 8), oneShot(1))},
			`table_entry { table_id: 0x02000002 ` + routeMatch(`\x00\x00`, 8) + ` }`,
			[]string{routeEntry(routeMatch(`\x00`, 8), oneShot(1))}},
		{"one-shot sets are kept as they are",
			[]string{`INSERT ` + routeEntry(``, `action { action_profile_action_set { action_profile_actions { `+nextHopAction+` weight: 2 watch_port: "\x00\x01" } action_profile_actions { `+nextHopAction+` weight: 1 } } }`)},
			`table_entry { table_id: 0x02000002 }`,
			[]string{routeEntry(``, `action { action_profile_action_set { action_profile_actions { `+nextHopAction+` weight: 2 watch_port: "\x00\x01" } action_profile_actions { `+nextHopAction+` weight: 1 } } }`)}},
		{"members and groups of all profiles",
			[]string{`INSERT ` + member(plain, 2), `INSERT ` + member(ecmp, 2), `INSERT ` + member(ecmp, 1)},
			`action_profile_member { }`,
			[]string{member(plain, 2), member(ecmp, 2), member(ecmp, 1)}},
		{"members of one profile",
			[]string{`INSERT ` + member(plain, 2), `INSERT ` + member(ecmp, 2)},
			`action_profile_member { action_profile_id: 0x11000002 }`,
			[]string{member(plain, 2)}},
		{"one member",
			[]string{`INSERT ` + member(ecmp, 2), `INSERT ` + member(ecmp, 1)},
			`action_profile_member { action_profile_id: 0x11000001 member_id: 1 }`,
			[]string{member(ecmp, 1)}},
		{"groups",
			[]string{`INSERT ` + member(ecmp, 2), `INSERT ` + group(1, 8, `members { member_id: 2 weight: 2 watch_port: "\x07" }`), `INSERT ` + group(2, 3, ``)},
			`action_profile_group { }`,
			[]string{group(1, 8, `members { member_id: 2 weight: 2 watch_port: "\x07" }`), group(2, 3, ``)}},
		{"one group",
			[]string{`INSERT ` + group(1, 8, ``), `INSERT ` + group(2, 3, ``)},
			`action_profile_group { action_profile_id: 0x11000001 group_id: 2 }`,
			[]string{group(2, 3, ``)}},
		{"entries by member and group",
			[]string{`INSERT ` + member(ecmp, 2), `INSERT ` + group(1, 8, ``), `INSERT ` + routeEntry(``, `action { action_profile_group_id: 1 }`), `INSERT ` + routeEntry(routeMatch(`\x0a\x00\x00\x00`, 8), `action { action_profile_member_id: 2 }`)},
			`table_entry { table_id: 0x02000002 }`,
			[]string{routeEntry(``, `action { action_profile_group_id: 1 }`), routeEntry(routeMatch(`\x0a\x00\x00\x00`, 8), `action { action_profile_member_id: 2 }`)}},
		{"default entry, original",
			nil,
			`table_entry { table_id: 0x02000001 is_default_action: true }`,
			[]string{`table_entry { table_id: 0x02000001 is_default_action: true action { action { action_id: 0x01000004 } } }`}},
		{"default entry, changed and reset",
			[]string{`MODIFY table_entry { table_id: 0x02000001 is_default_action: true ` + forwardAction + ` }`, `MODIFY table_entry { table_id: 0x02000001 is_default_action: true }`},
			`table_entry { table_id: 0x02000001 is_default_action: true }`,
			[]string{`table_entry { table_id: 0x02000001 is_default_action: true action { action { action_id: 0x01000004 } } }`}},
		{"default entry of a keyless table",
			[]string{`MODIFY table_entry { table_id: 0x02000006 is_default_action: true ` + forwardAction + ` }`},
			`table_entry { table_id: 0x02000006 is_default_action: true }`,
			[]string{`table_entry { table_id: 0x02000006 is_default_action: true ` + forwardAction + ` }`}},
		{"default entries are not among the others",
			[]string{`MODIFY table_entry { table_id: 0x02000001 is_default_action: true ` + forwardAction + ` }`},
			`table_entry { table_id: 0x02000001 }`, nil},
		{"const entries", nil,
			`table_entry { table_id: 0x02000004 }`,
			[]string{`table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } ` + dropAction + ` }`}},
		{"direct meter of a const entry",
			[]string{`MODIFY table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } meter_config { cir: 1 pir: 2 } }`},
			`table_entry { table_id: 0x02000004 meter_config { } }`,
			[]string{`table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } ` + dropAction + ` meter_config { cir: 1 pir: 2 } }`}},
		{"all tables",
			[]string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + aclEntry(``, `priority: 1 `+dropAction)},
			`table_entry { }`,
			[]string{bridgeEntry(`\x01`, `\x01`, dropAction), aclEntry(``, `priority: 1 `+dropAction),
				`table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } ` + dropAction + ` }`}},
		{"one entry",
			[]string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + bridgeEntry(`\x02`, `\x01`, dropAction)},
			bridgeEntry(`\x00\x01`, `\x01`, ``),
			[]string{bridgeEntry(`\x01`, `\x01`, dropAction)}},
		{"one entry that is not there", nil, bridgeEntry(`\x00\x01`, `\x01`, ``), nil},
		{"by action",
			[]string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + bridgeEntry(`\x02`, `\x01`, forwardAction)},
			`table_entry { table_id: 0x02000001 action { action { action_id: 0x01000002 } } }`,
			[]string{bridgeEntry(`\x02`, `\x01`, forwardAction)}},
		{"by metadata",
			[]string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + bridgeEntry(`\x02`, `\x01`, `metadata: "x" `+dropAction)},
			`table_entry { table_id: 0x02000001 metadata: "x" }`,
			[]string{bridgeEntry(`\x02`, `\x01`, `metadata: "x" `+dropAction)}},
		{"by priority",
			[]string{`INSERT ` + aclEntry(``, `priority: 1 `+dropAction), `INSERT ` + aclEntry(``, `priority: 2 `+dropAction)},
			`table_entry { table_id: 0x02000003 priority: 2 }`,
			[]string{aclEntry(``, `priority: 2 `+dropAction)}},
		{"by match with any priority",
			[]string{`INSERT ` + aclEntry(``, `priority: 1 `+dropAction), `INSERT ` + aclEntry(``, `priority: 2 `+dropAction), `INSERT ` + aclEntry(`match { field_id: 3 optional { value: "\x06" } }`, `priority: 2 `+dropAction)},
			aclEntry(``, ``),
			[]string{aclEntry(``, `priority: 1 `+dropAction), aclEntry(``, `priority: 2 `+dropAction)}},
		{"direct resources with the entry",
			[]string{`INSERT ` + aclEntry(``, `priority: 1 counter_data { byte_count: 10 packet_count: 1 } meter_config { cir: 1 cburst: 2 pir: 3 pburst: 4 } `+dropAction)},
			`table_entry { table_id: 0x02000003 counter_data { } meter_config { } }`,
			[]string{aclEntry(``, `priority: 1 counter_data { byte_count: 10 packet_count: 1 } meter_config { cir: 1 cburst: 2 pir: 3 pburst: 4 } `+dropAction)}},
		{"direct resources only when asked for",
			[]string{`INSERT ` + aclEntry(``, `priority: 1 counter_data { byte_count: 10 packet_count: 1 } meter_config { cir: 1 pir: 3 } `+dropAction)},
			`table_entry { table_id: 0x02000003 }`,
			[]string{aclEntry(``, `priority: 1 `+dropAction)}},
		{"modify keeps the counter and the action, resets the meter",
			[]string{`INSERT ` + aclEntry(``, `priority: 1 counter_data { byte_count: 10 packet_count: 1 } meter_config { cir: 1 pir: 3 } `+dropAction), `MODIFY ` + aclEntry(``, `priority: 1`)},
			`table_entry { table_id: 0x02000003 counter_data { } meter_config { } }`,
			[]string{aclEntry(``, `priority: 1 counter_data { byte_count: 10 packet_count: 1 } `+dropAction)}},
		{"direct counter written and read alone",
			[]string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + bridgeEntry(`\x02`, `\x01`, dropAction),
				`MODIFY direct_counter_entry { ` + bridgeEntry(`\x02`, `\x01`, ``) + ` data { packet_count: 4 } }`, `MODIFY direct_counter_entry { ` + bridgeEntry(`\x02`, `\x01`, ``) + ` }`},
			`direct_counter_entry { ` + bridgeEntry(`\x02`, `\x01`, ``) + ` }`,
			[]string{`direct_counter_entry { ` + bridgeEntry(`\x02`, `\x01`, ``) + ` data { packet_count: 4 } }`}},
		{"direct counters of all tables",
			[]string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + aclEntry(``, `priority: 3 `+dropAction)},
			`direct_counter_entry { }`,
			[]string{`direct_counter_entry { ` + bridgeEntry(`\x01`, `\x01`, ``) + ` data { } }`, `direct_counter_entry { ` + aclEntry(``, `priority: 3`) + ` data { } }`}},
		{"direct meter written and read alone",
			[]string{`INSERT ` + aclEntry(``, `priority: 3 `+dropAction), `MODIFY direct_meter_entry { ` + aclEntry(``, `priority: 3`) + ` config { cir: 5 pir: 6 } counter_data { } }`},
			`direct_meter_entry { table_entry { table_id: 0x02000003 } }`,
			[]string{`direct_meter_entry { ` + aclEntry(``, `priority: 3`) + ` config { cir: 5 pir: 6 } }`}},
		{"one counter cell",
			[]string{`MODIFY counter_entry { counter_id: 0x12000001 index { index: 3 } data { byte_count: 5 packet_count: 6 } }`},
			`counter_entry { counter_id: 0x12000001 index { index: 3 } }`,
			[]string{`counter_entry { counter_id: 0x12000001 index { index: 3 } data { byte_count: 5 packet_count: 6 } }`}},
		{"cell 0 is not a wildcard", nil,
			`counter_entry { counter_id: 0x12000001 index { } }`,
			[]string{`counter_entry { counter_id: 0x12000001 index { } data { } }`}},
		{"all cells of a meter, written at once",
			[]string{`MODIFY meter_entry { meter_id: 0x14000001 config { cir: 1 pir: 1 } }`, `MODIFY meter_entry { meter_id: 0x14000001 index { index: 2 } }`},
			`meter_entry { meter_id: 0x14000001 }`,
			[]string{`meter_entry { meter_id: 0x14000001 index { } config { cir: 1 pir: 1 } }`, `meter_entry { meter_id: 0x14000001 index { index: 1 } config { cir: 1 pir: 1 } }`,
				`meter_entry { meter_id: 0x14000001 index { index: 2 } }`, `meter_entry { meter_id: 0x14000001 index { index: 3 } config { cir: 1 pir: 1 } }`}},
		{"multicast groups",
			[]string{`INSERT packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 2 } }`,
				`MODIFY packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 2 replicas { egress_port: 1 instance: 1 } replicas { egress_port: 1 instance: 2 } } }`,
				`INSERT packet_replication_engine_entry { clone_session_entry { session_id: 9 } }`},
			`packet_replication_engine_entry { multicast_group_entry { } }`,
			[]string{`packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 2 replicas { egress_port: 1 instance: 1 } replicas { egress_port: 1 instance: 2 } } }`}},
		{"clone sessions",
			[]string{`INSERT packet_replication_engine_entry { clone_session_entry { session_id: 9 replicas { egress_port: 510 instance: 1 } class_of_service: 2 packet_length_bytes: 128 } }`,
				`INSERT packet_replication_engine_entry { clone_session_entry { session_id: 8 } }`},
			`packet_replication_engine_entry { clone_session_entry { session_id: 9 } }`,
			[]string{`packet_replication_engine_entry { clone_session_entry { session_id: 9 replicas { egress_port: 510 instance: 1 } class_of_service: 2 packet_length_bytes: 128 } }`}},
		{"wildcards of what is not served", nil, `digest_entry { }`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ready(t, constTarget())
			c.mustWrite(tt.write...)
			c.wantRead(tt.read, tt.want...)
		})
	}
}

func TestReadWildcardCounters(t *testing.T) {
	c := ready(t, nil)
	for request, want := range map[string]int{
		`counter_entry { }`:                                           8,
		`counter_entry { index { index: 3 } }`:                        8, // no filter without an id
		`counter_entry { counter_id: 0x12000001 }`:                    8,
		`meter_entry { }`:                                             4,
		`table_entry { is_default_action: true }`:                     7,
		`direct_meter_entry { }`:                                      0,
		`register_entry { }`:                                          0,
		`value_set_entry { }`:                                         0,
		`extern_entry { }`:                                            0,
		`packet_replication_engine_entry { clone_session_entry { } }`: 0,
	} {
		got, err := c.read(request)
		if err != nil || len(got) != want {
			t.Errorf("%s: got %d entities, %v, expected %d", request, len(got), err, want)
		}
	}
}

func TestReadLastHit(t *testing.T) {
	c := ready(t, nil)
	c.mustWrite(`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction))
	e := &p4rtserver.Entry{TableID: bridge, Match: []p4rtserver.FieldMatch{
		{ID: 1, Kind: p4rtserver.MatchExact, Value: []byte{1}}, {ID: 2, Kind: p4rtserver.MatchExact, Value: []byte{1}}}}
	if err := c.target.Active().Hit(e, 100, 77); err != nil {
		t.Fatal(err)
	}
	c.wantRead(`table_entry { table_id: 0x02000001 time_since_last_hit { } counter_data { } }`,
		bridgeEntry(`\x01`, `\x01`, `time_since_last_hit { elapsed_ns: 77 } counter_data { packet_count: 1 byte_count: 100 } `+dropAction))
}

func TestReadRefusals(t *testing.T) {
	c := ready(t, nil)
	for _, tt := range []struct {
		name, request string
		code          codes.Code
		text          string
	}{
		{"empty entity", ``, codes.InvalidArgument, "entity is empty"},
		{"unknown table", `table_entry { table_id: 5 }`, codes.InvalidArgument, "no table has id 0x5"},
		{"all tables with a match", `table_entry { match { field_id: 1 } }`, codes.InvalidArgument, "takes no match"},
		{"bad match", bridgeEntry(`\x01`, `\x02\x00`, ``), codes.InvalidArgument, "needs 10 bits"},
		{"part of a key", `table_entry { table_id: 0x02000001 match { field_id: 1 exact { value: "\x01" } } }`, codes.InvalidArgument, "is missing"},
		{"foreign action", `table_entry { table_id: 0x02000001 action { action { action_id: 0x01000005 } } }`, codes.InvalidArgument, "not among its actions"},
		{"by member", `table_entry { table_id: 0x02000002 action { action_profile_member_id: 1 } }`, codes.Unimplemented, "direct action"},
		{"idle time of a table without", `table_entry { table_id: 0x02000002 time_since_last_hit { } }`, codes.InvalidArgument, "no idle timeout"},
		{"counter of a table without", `table_entry { table_id: 0x02000002 counter_data { } }`, codes.InvalidArgument, "no direct counter"},
		{"meter of a table without", `table_entry { table_id: 0x02000002 meter_config { } }`, codes.InvalidArgument, "no direct meter"},
		{"direct counter of no entry", `direct_counter_entry { ` + bridgeEntry(`\x01`, `\x01`, ``) + ` }`, codes.NotFound, "no entry has the key"},
		{"direct counter of no counter", `direct_counter_entry { table_entry { table_id: 0x02000002 } }`, codes.InvalidArgument, "no direct counter"},
		{"counter index beyond", `counter_entry { counter_id: 0x12000001 index { index: 8 } }`, codes.OutOfRange, "expected 0 to 7"},
		{"a meter's id as a counter's", `counter_entry { counter_id: 0x14000001 }`, codes.InvalidArgument, "no counter has id"},
		{"meter counters that the target lacks", `meter_entry { meter_id: 0x14000001 counter_data { } }`, codes.Unimplemented, "counters of a meter"},
		{"unknown profile", `action_profile_member { action_profile_id: 5 }`, codes.InvalidArgument, "no action profile has id"},
		{"groups of no selector", `action_profile_group { action_profile_id: 0x11000002 }`, codes.InvalidArgument, "no selector"},
		{"empty replication entry", `packet_replication_engine_entry { }`, codes.InvalidArgument, "expected a multicast group"},
		{"digest", `digest_entry { digest_id: 0x17000001 }`, codes.Unimplemented, `digest "learn"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.read(`counter_entry { counter_id: 0x12000001 index { } }`, tt.request)
			if len(got) != 1 {
				t.Errorf("got %d entities, expected that of the valid request", len(got))
			}
			errs := updateErrors(t, err)
			if len(errs) != 2 || errs[0].GetCanonicalCode() != 0 {
				t.Fatalf("got errors %v, expected OK and one error", errs)
			}
			if got := codes.Code(errs[1].GetCanonicalCode()); got != tt.code || !strings.Contains(errs[1].GetMessage(), tt.text) {
				t.Errorf("got %v %q, expected %v %q", got, errs[1].GetMessage(), tt.code, tt.text)
			}
		})
	}
}

func TestReadPreconditions(t *testing.T) {
	r := newRig(t, nil, p4rtserver.Options{})
	for _, tt := range []struct {
		device uint64
		code   codes.Code
	}{{8, codes.NotFound}, {deviceID, codes.FailedPrecondition}} {
		st, err := r.client.Read(r.ctx, &p4v1.ReadRequest{DeviceId: tt.device})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Recv(); status.Code(err) != tt.code {
			t.Errorf("device %d: got %v, expected %v", tt.device, err, tt.code)
		}
	}
}

// TestReadInChunks reads a table that is larger than a message may be.
func TestReadInChunks(t *testing.T) {
	const n = 20000
	c := ready(t, nil)
	metadata := strings.Repeat("m", 200)
	var updates []*p4v1.Update
	for i := range n {
		updates = append(updates, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: route6Entry(uint32(i), metadata)}}})
		if len(updates) == 5000 {
			if err := c.write(updates...); err != nil {
				t.Fatal(err)
			}
			updates = updates[:0]
		}
	}
	st, err := c.client.Read(c.ctx, &p4v1.ReadRequest{DeviceId: deviceID, Entities: []*p4v1.Entity{parse(t, new(p4v1.Entity), `table_entry { table_id: 0x02000007 }`)}})
	if err != nil {
		t.Fatal(err)
	}
	seen, chunks := 0, 0
	for {
		resp, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if size := proto.Size(resp); size > 1<<20 {
			t.Errorf("a response has %d bytes", size)
		}
		for _, e := range resp.GetEntities() {
			if !proto.Equal(e.GetTableEntry(), route6Entry(uint32(seen), metadata)) {
				t.Fatalf("entry %d is %v", seen, e)
			}
			seen++
		}
		chunks++
	}
	if seen != n || chunks < 4 {
		t.Errorf("got %d entries in %d responses, expected %d in several", seen, chunks, n)
	}
}

// route6Entry is entry i of the large table, canonical.
func route6Entry(i uint32, metadata string) *p4v1.TableEntry {
	addr := binary.BigEndian.AppendUint32([]byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0}, i)
	return &p4v1.TableEntry{
		TableId:  route6,
		Match:    []*p4v1.FieldMatch{{FieldId: 1, FieldMatchType: &p4v1.FieldMatch_Lpm{Lpm: &p4v1.FieldMatch_LPM{Value: addr, PrefixLen: 128}}}},
		Action:   &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{ActionId: drop}}},
		Metadata: []byte(metadata),
	}
}
