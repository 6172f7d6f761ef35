package p4rtserver_test

import (
	"fmt"
	"strings"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/p4rtserver/memtarget"
)

// bridgeEntry is an entry of the exact table.
func bridgeEntry(dst, port string, rest string) string {
	return fmt.Sprintf(`table_entry { table_id: %d match { field_id: 1 exact { value: "%s" } } match { field_id: 2 exact { value: "%s" } } %s }`, bridge, dst, port, rest)
}

const (
	dropAction    = `action { action { action_id: 0x01000003 } }`
	forwardAction = `action { action { action_id: 0x01000002 params { param_id: 1 value: "\x05" } params { param_id: 2 value: "\x0a" } } }`
	nextHopAction = `action { action_id: 0x01000005 params { param_id: 1 value: "\x05" } }`
)

func aclEntry(matches, rest string) string {
	return fmt.Sprintf(`table_entry { table_id: %d match { field_id: 4 exact { value: "\x01" } } %s %s }`, acl, matches, rest)
}

func routeEntry(matches, rest string) string {
	return fmt.Sprintf(`table_entry { table_id: %d %s %s }`, route, matches, rest)
}

func routeMatch(value string, plen int) string {
	return fmt.Sprintf(`match { field_id: 1 lpm { value: "%s" prefix_len: %d } }`, value, plen)
}

func profileEntry(key, rest string) string {
	return fmt.Sprintf(`table_entry { table_id: %d match { field_id: 1 exact { value: "%s" } } %s }`, profile, key, rest)
}

func member(profile, id int) string {
	return fmt.Sprintf(`action_profile_member { action_profile_id: %d member_id: %d %s }`, profile, id, nextHopAction)
}

func group(id, maxSize int, members string) string {
	return fmt.Sprintf(`action_profile_group { action_profile_id: %d group_id: %d max_size: %d %s }`, ecmp, id, maxSize, members)
}

func oneShot(weights ...int) string {
	var b strings.Builder
	for _, w := range weights {
		fmt.Fprintf(&b, `action_profile_actions { %s weight: %d }`, nextHopAction, w)
	}
	return `action { action_profile_action_set { ` + b.String() + ` } }`
}

// constTarget has an entry in the const table.
func constTarget() *memtarget.Target {
	return &memtarget.Target{Initial: []p4rtserver.Entry{{
		TableID: fixed,
		Match:   []p4rtserver.FieldMatch{{ID: 1, Kind: p4rtserver.MatchExact, Value: []byte{9}}},
		Action:  p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: p4rtserver.Action{ID: drop}},
	}, {
		TableID: bridge, Default: true,
		Action: p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: p4rtserver.Action{ID: flood}},
	}}}
}

func TestWriteRefusals(t *testing.T) {
	const (
		invalid  = codes.InvalidArgument
		denied   = codes.PermissionDenied
		notFound = codes.NotFound
		exists   = codes.AlreadyExists
		full     = codes.ResourceExhausted
		unimpl   = codes.Unimplemented
		range_   = codes.OutOfRange
		precond  = codes.FailedPrecondition
	)
	for _, tt := range []struct {
		name   string
		before []string
		update string
		code   codes.Code
		text   string // part of the message
	}{
		{"no type", nil, `UNSPECIFIED ` + bridgeEntry("\x01", "\x01", dropAction), invalid, "UNSPECIFIED"},
		{"no entity", nil, `INSERT `, invalid, "entity is empty"},
		{"unknown table", nil, `INSERT table_entry { table_id: 0x02ffffff }`, invalid, "no table has id 0x2ffffff"},
		{"table id 0", nil, `INSERT table_entry { }`, invalid, "no table has id"},

		{"exact missing", nil, fmt.Sprintf(`INSERT table_entry { table_id: %d match { field_id: 1 exact { value: "1" } } %s }`, bridge, dropAction), invalid, `match field "port" (2) is missing`},
		{"unknown field", nil, fmt.Sprintf(`INSERT table_entry { table_id: %d match { field_id: 9 exact { value: "1" } } %s }`, bridge, dropAction), invalid, "no match field 9"},
		{"field twice", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `match { field_id: 1 exact { value: "1" } }`+dropAction), invalid, "given twice"},
		{"exact too wide", nil, `INSERT ` + bridgeEntry(`\x01`, `\x02\x00`, dropAction), invalid, "needs 10 bits, expected at most 9"},
		{"exact empty", nil, `INSERT ` + bridgeEntry(`\x01`, ``, dropAction), invalid, "value is empty, expected 9 bits"},
		{"exact as lpm", nil, `INSERT ` + routeEntry(`match { field_id: 1 exact { value: "1" } }`, oneShot(1)), invalid, "the match is exact, expected lpm"},
		{"match without kind", nil, `INSERT ` + routeEntry(`match { field_id: 1 }`, oneShot(1)), invalid, "expected lpm"},
		{"lpm prefix 0", nil, `INSERT ` + routeEntry(routeMatch(`\x00`, 0), oneShot(1)), invalid, "prefix length is 0, expected 1 to 32"},
		{"lpm prefix 33", nil, `INSERT ` + routeEntry(routeMatch(`\x00`, 33), oneShot(1)), invalid, "expected 1 to 32"},
		{"lpm host bits", nil, `INSERT ` + routeEntry(routeMatch(`\x0a\x00\x00\x01`, 24), oneShot(1)), invalid, "behind the prefix"},
		{"lpm host bits within a byte", nil, `INSERT ` + routeEntry(routeMatch(`\x0a\x10\x00\x00`, 11), oneShot(1)), invalid, "behind the prefix"},
		{"ternary mask 0", nil, `INSERT ` + aclEntry(`match { field_id: 1 ternary { value: "\x00" mask: "\x00" } }`, `priority: 1 `+dropAction), invalid, "mask is 0"},
		{"ternary value outside", nil, `INSERT ` + aclEntry(`match { field_id: 1 ternary { value: "\x03" mask: "\x02" } }`, `priority: 1 `+dropAction), invalid, "outside the mask"},
		{"ternary value longer", nil, `INSERT ` + aclEntry(`match { field_id: 1 ternary { value: "\x01\x00" mask: "\xff" } }`, `priority: 1 `+dropAction), invalid, "outside the mask"},
		{"range reversed", nil, `INSERT ` + aclEntry(`match { field_id: 2 range { low: "\x01\x00" high: "\xff" } }`, `priority: 1 `+dropAction), invalid, "low bound is above"},
		{"range full", nil, `INSERT ` + aclEntry(`match { field_id: 2 range { low: "\x00" high: "\xff\xff" } }`, `priority: 1 `+dropAction), invalid, "holds all values"},
		{"optional too wide", nil, `INSERT ` + aclEntry(`match { field_id: 3 optional { value: "\x01\x00" } }`, `priority: 1 `+dropAction), invalid, `match field "proto" (3)`},
		{"priority missing", nil, `INSERT ` + aclEntry(``, dropAction), invalid, "priority is 0, expected more than 0"},
		{"priority negative", nil, `INSERT ` + aclEntry(``, `priority: -1 `+dropAction), invalid, "priority is -1"},
		{"priority forbidden", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `priority: 1 `+dropAction), invalid, "expected 0"},

		{"no action", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, ``), invalid, "an action is needed"},
		{"empty action", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { }`), invalid, "action is empty"},
		{"unknown action", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action { action_id: 5 } }`), invalid, "no action has id 0x5"},
		{"foreign action", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { `+nextHopAction+` }`), invalid, `action "next_hop" (0x1000005) is not among its actions`},
		{"default only action", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action { action_id: 0x01000004 } }`), denied, "can only be its default action"},
		{"parameter missing", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action { action_id: 0x01000002 params { param_id: 1 value: "\x05" } } }`), invalid, `parameter "src" (2) is missing`},
		{"parameter unknown", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action { action_id: 0x01000002 params { param_id: 3 value: "\x05" } } }`), invalid, `no parameter 3`},
		{"parameter twice", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action { action_id: 0x01000002 params { param_id: 1 value: "\x05" } params { param_id: 1 value: "\x05" } } }`), invalid, `given twice`},
		{"parameter too wide", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action { action_id: 0x01000002 params { param_id: 1 value: "\x02\x00" } } }`), invalid, `parameter "port" (1): the value needs 10 bits`},
		{"member in a direct table", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `action { action_profile_member_id: 1 }`), invalid, "is an action profile member, expected an action"},
		{"action in an indirect table", nil, `INSERT ` + routeEntry(``, dropAction), invalid, "expected a member, a group or a one-shot set"},
		{"group without selector", nil, `INSERT ` + profileEntry(`\x01`, `action { action_profile_group_id: 1 }`), invalid, "expected a member of"},
		{"one-shot without selector", nil, `INSERT ` + profileEntry(`\x01`, oneShot(1)), invalid, "expected a member of"},

		{"metadata too long", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `metadata: "`+strings.Repeat("x", 65537)+`" `+dropAction), invalid, "65537 bytes"},
		{"controller metadata", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `controller_metadata: 1 `+dropAction), unimpl, "use metadata"},
		{"idle timeout unsupported", nil, `INSERT ` + aclEntry(``, `priority: 1 idle_timeout_ns: 1 `+dropAction), invalid, "no idle timeout"},
		{"idle timeout negative", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `idle_timeout_ns: -1 `+dropAction), invalid, "idle_timeout_ns is -1"},
		{"last hit written", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `time_since_last_hit { } `+dropAction), invalid, "cannot be written"},
		{"meter config without meter", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `meter_config { } `+dropAction), invalid, "no direct meter"},
		{"counter data without counter", nil, `MODIFY table_entry { table_id: 0x02000006 is_default_action: true counter_data { } }`, invalid, "no direct counter"},
		{"negative counter", nil, `INSERT ` + bridgeEntry(`\x01`, `\x01`, `counter_data { packet_count: -1 } `+dropAction), invalid, "expected 0 or more"},
		{"negative meter", nil, `INSERT ` + aclEntry(``, `priority: 1 meter_config { cir: -1 } `+dropAction), invalid, "0 or more"},
		{"peak below committed", nil, `INSERT ` + aclEntry(``, `priority: 1 meter_config { cir: 2 pir: 1 } `+dropAction), invalid, "below its cir"},
		{"meter counters not 0", nil, `INSERT ` + aclEntry(``, `priority: 1 meter_counter_data { red { byte_count: 1 } } `+dropAction), invalid, "only be set to 0"},

		{"insert twice", []string{`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction)}, `INSERT ` + bridgeEntry(`\x00\x01`, `\x00\x01`, forwardAction), exists, `table "ingress.bridge" (0x2000001): already exists`},
		{"modify nothing", nil, `MODIFY ` + bridgeEntry(`\x01`, `\x01`, dropAction), notFound, "not found"},
		{"delete nothing", nil, `DELETE ` + bridgeEntry(`\x01`, `\x01`, ``), notFound, "not found"},
		{"table full", []string{
			`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT ` + bridgeEntry(`\x02`, `\x01`, dropAction),
			`INSERT ` + bridgeEntry(`\x03`, `\x01`, dropAction), `INSERT ` + bridgeEntry(`\x04`, `\x01`, dropAction)},
			`INSERT ` + bridgeEntry(`\x05`, `\x01`, dropAction), full, "full at 4 entries"},
		{"keyless insert", nil, `INSERT table_entry { table_id: 0x02000006 ` + forwardAction + ` }`, invalid, "no key"},

		{"default insert", nil, `INSERT table_entry { table_id: 0x02000001 is_default_action: true ` + forwardAction + ` }`, invalid, "only be modified"},
		{"default delete", nil, `DELETE table_entry { table_id: 0x02000001 is_default_action: true }`, invalid, "only be modified"},
		{"default with match", nil, `MODIFY ` + bridgeEntry(`\x01`, `\x01`, `is_default_action: true `+forwardAction), invalid, "neither match fields nor a priority"},
		{"default with priority", nil, `MODIFY table_entry { table_id: 0x02000003 priority: 1 is_default_action: true }`, invalid, "neither match fields nor a priority"},
		{"default with idle timeout", nil, `MODIFY table_entry { table_id: 0x02000001 is_default_action: true idle_timeout_ns: 1 }`, invalid, "no idle timeout"},
		{"table only action as default", nil, `MODIFY table_entry { table_id: 0x02000001 is_default_action: true ` + dropAction + ` }`, denied, "cannot be its default"},
		{"const default", nil, `MODIFY table_entry { table_id: 0x02000004 is_default_action: true }`, denied, "default entry is constant"},
		{"default of indirect table", nil, `MODIFY table_entry { table_id: 0x02000002 is_default_action: true }`, denied, "default entry of a table with an action profile"},
		{"const table insert", nil, `INSERT table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x01" } } ` + dropAction + ` }`, denied, "table is constant"},
		{"const table delete", nil, `DELETE table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } }`, denied, "table is constant"},
		{"const table action", nil, `MODIFY table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } ` + dropAction + ` }`, denied, "table is constant"},

		{"member id 0", nil, `INSERT ` + member(plain, 0), invalid, "member id is 0"},
		{"member of no profile", nil, `INSERT ` + member(1, 1), invalid, "no action profile has id 0x1"},
		{"member without action", nil, `INSERT action_profile_member { action_profile_id: 0x11000002 member_id: 1 }`, invalid, "has no action"},
		{"member with foreign action", nil, `INSERT action_profile_member { action_profile_id: 0x11000002 member_id: 1 action { action_id: 0x01000003 } }`, invalid, "not among its actions"},
		{"member with default action", nil, `INSERT action_profile_member { action_profile_id: 0x11000001 member_id: 1 action { action_id: 0x01000001 } }`, denied, "only be its default"},
		{"member twice", []string{`INSERT ` + member(plain, 1)}, `INSERT ` + member(plain, 1), exists, "member 1 already"},
		{"member modify nothing", nil, `MODIFY ` + member(plain, 1), notFound, "no member 1"},
		{"member delete nothing", nil, `DELETE ` + member(plain, 1), notFound, "no member 1"},
		{"profile full", []string{`INSERT ` + member(plain, 1), `INSERT ` + member(plain, 2)}, `INSERT ` + member(plain, 3), full, "size is 2 members"},
		{"member used by entry", []string{`INSERT ` + member(plain, 1), `INSERT ` + profileEntry(`\x01`, `action { action_profile_member_id: 1 }`)}, `DELETE ` + member(plain, 1), precond, "used by 1"},
		{"member used by group", []string{`INSERT ` + member(ecmp, 1), `INSERT ` + group(1, 8, `members { member_id: 1 weight: 1 }`)}, `DELETE ` + member(ecmp, 1), precond, "used by 1"},
		{"entry with unknown member", nil, `INSERT ` + profileEntry(`\x01`, `action { action_profile_member_id: 1 }`), notFound, "no member 1"},
		{"entry with unknown group", nil, `INSERT ` + routeEntry(``, `action { action_profile_group_id: 1 }`), notFound, "no group 1"},

		{"group of a plain profile", nil, `INSERT action_profile_group { action_profile_id: 0x11000002 group_id: 1 }`, invalid, "no selector"},
		{"group id 0", nil, `INSERT ` + group(0, 8, ``), invalid, "group id is 0"},
		{"group max_size 0", nil, `INSERT ` + group(1, 0, ``), invalid, "max_size 0, expected 1 to 8"},
		{"group max_size 9", nil, `INSERT ` + group(1, 9, ``), invalid, "max_size 9, expected 1 to 8"},
		{"group weight 0", nil, `INSERT ` + group(1, 8, `members { member_id: 1 }`), invalid, "weight 0"},
		{"group member twice", nil, `INSERT ` + group(1, 8, `members { member_id: 1 weight: 1 } members { member_id: 1 weight: 1 }`), invalid, "member 1 twice"},
		{"group weights too large", nil, `INSERT ` + group(1, 2, `members { member_id: 1 weight: 3 }`), full, "add up to 3"},
		{"group with unknown member", nil, `INSERT ` + group(1, 8, `members { member_id: 1 weight: 1 }`), notFound, "no member 1"},
		{"group with watch", nil, `INSERT ` + group(1, 8, `members { member_id: 1 weight: 1 watch: 1 }`), unimpl, "use watch_port"},
		{"group twice", []string{`INSERT ` + group(1, 8, ``)}, `INSERT ` + group(1, 8, ``), exists, "group 1 already"},
		{"group modify nothing", nil, `MODIFY ` + group(1, 8, ``), notFound, "no group 1"},
		{"group delete nothing", nil, `DELETE ` + group(1, 8, ``), notFound, "no group 1"},
		{"group max_size changed", []string{`INSERT ` + group(1, 8, ``)}, `MODIFY ` + group(1, 7, ``), invalid, "cannot change to 7"},
		{"group used", []string{`INSERT ` + group(1, 8, ``), `INSERT ` + routeEntry(``, `action { action_profile_group_id: 1 }`)}, `DELETE ` + group(1, 0, ``), precond, "used by 1 entries"},

		{"one-shot weight 0", nil, `INSERT ` + routeEntry(``, oneShot(1, 0)), invalid, "action 1 of the set has weight 0"},
		{"one-shot weights too large", nil, `INSERT ` + routeEntry(``, oneShot(4, 5)), invalid, "max_group_size 8"},
		{"one-shot beside members", []string{`INSERT ` + member(ecmp, 1)}, `INSERT ` + routeEntry(``, oneShot(1)), invalid, "excludes one-shot"},
		{"member beside one-shots", []string{`INSERT ` + routeEntry(``, oneShot(1))}, `INSERT ` + member(ecmp, 1), invalid, "excludes members"},
		{"group beside one-shots", []string{`INSERT ` + routeEntry(``, oneShot(1))}, `INSERT ` + group(1, 8, ``), invalid, "excludes members"},
		{"one-shots fill the selector", []string{`INSERT ` + routeEntry(``, oneShot(1, 1, 1))}, `INSERT ` + routeEntry(routeMatch(`\x0a\x00\x00\x00`, 8), oneShot(1, 1)), full, "size is 4 actions"},

		{"counter insert", nil, `INSERT counter_entry { counter_id: 0x12000001 index { } }`, invalid, "only be modified"},
		{"counter unknown", nil, `MODIFY counter_entry { counter_id: 1 }`, invalid, "no counter has id 0x1"},
		{"counter index negative", nil, `MODIFY counter_entry { counter_id: 0x12000001 index { index: -1 } }`, invalid, "index is -1, expected 0 to 7"},
		{"counter index beyond", nil, `MODIFY counter_entry { counter_id: 0x12000001 index { index: 8 } }`, range_, "index is 8, expected 0 to 7"},
		{"meter delete", nil, `DELETE meter_entry { meter_id: 0x14000001 }`, invalid, "only be modified"},
		{"meter unknown", nil, `MODIFY meter_entry { meter_id: 1 }`, invalid, "no meter has id 0x1"},
		{"meter index beyond", nil, `MODIFY meter_entry { meter_id: 0x14000001 index { index: 4 } }`, range_, "expected 0 to 3"},
		{"direct counter insert", nil, `INSERT direct_counter_entry { table_entry { table_id: 0x02000001 } }`, invalid, "only be modified"},
		{"direct counter of no entry", nil, `MODIFY direct_counter_entry { ` + bridgeEntry(`\x01`, `\x01`, ``) + ` data { } }`, notFound, "not found"},
		{"direct counter of no entry, no data", nil, `MODIFY direct_counter_entry { ` + bridgeEntry(`\x01`, `\x01`, ``) + ` }`, notFound, "not found"},
		{"direct counter of no counter", nil, `MODIFY direct_counter_entry { table_entry { table_id: 0x02000007 } }`, invalid, "no direct counter"},
		{"direct meter of no entry", nil, `MODIFY direct_meter_entry { ` + aclEntry(``, `priority: 1`) + ` }`, notFound, "not found"},
		{"direct meter of no meter", nil, `MODIFY direct_meter_entry { ` + bridgeEntry(`\x01`, `\x01`, ``) + ` }`, invalid, "no direct meter"},

		{"multicast group 0", nil, `INSERT packet_replication_engine_entry { multicast_group_entry { } }`, invalid, "id is 0"},
		{"multicast replica twice", nil, `INSERT packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 1 replicas { egress_port: 1 } replicas { egress_port: 1 } } }`, invalid, "port 1 with instance 0 is there twice"},
		{"multicast delete nothing", nil, `DELETE packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 1 } }`, notFound, "no multicast group 1"},
		{"multicast twice", []string{`INSERT packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 1 } }`}, `INSERT packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 1 } }`, exists, "there already"},
		{"clone session 0", nil, `INSERT packet_replication_engine_entry { clone_session_entry { } }`, invalid, "id is 0"},
		{"clone session length", nil, `INSERT packet_replication_engine_entry { clone_session_entry { session_id: 1 packet_length_bytes: -1 } }`, invalid, "packet_length_bytes is -1"},
		{"clone session modify nothing", nil, `MODIFY packet_replication_engine_entry { clone_session_entry { session_id: 1 } }`, notFound, "no clone session 1"},
		{"empty replication entry", nil, `INSERT packet_replication_engine_entry { }`, invalid, "expected a multicast group or a clone session"},

		{"digest", nil, `INSERT digest_entry { digest_id: 0x17000001 }`, unimpl, `digest "learn"`},
		{"register", nil, `MODIFY register_entry { register_id: 0x16000001 }`, unimpl, `register "nonces"`},
		{"value set", nil, `MODIFY value_set_entry { value_set_id: 0x03000001 }`, unimpl, `value set "vlans"`},
		{"unknown digest", nil, `INSERT digest_entry { digest_id: 1 }`, invalid, "no digest has id 0x1"},
		{"extern", nil, `INSERT extern_entry { extern_type_id: 0x81 }`, unimpl, "0x81"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ready(t, constTarget())
			c.mustWrite(tt.before...)
			before, err := c.read(`table_entry { }`)
			if err != nil {
				t.Fatal(err)
			}
			errs := updateErrors(t, c.write(update(t, tt.update)))
			if len(errs) != 1 {
				t.Fatalf("got %d errors, expected 1", len(errs))
			}
			if got := codes.Code(errs[0].GetCanonicalCode()); got != tt.code || !strings.Contains(errs[0].GetMessage(), tt.text) {
				t.Errorf("got %v %q, expected %v %q", got, errs[0].GetMessage(), tt.code, tt.text)
			}
			after, err := c.read(`table_entry { }`)
			if err != nil || len(after) != len(before) {
				t.Errorf("%d entries after the refusal, %v, expected %d", len(after), err, len(before))
			}
		})
	}
}

func TestBatchErrorsAreInOrder(t *testing.T) {
	c := ready(t, nil)
	err := c.write(
		update(t, `INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction)),
		update(t, `INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction)),
		update(t, `DELETE `+bridgeEntry(`\x02`, `\x01`, ``)),
		update(t, `INSERT `+bridgeEntry(`\x03`, `\x01`, dropAction)),
	)
	errs := updateErrors(t, err)
	want := []codes.Code{codes.OK, codes.AlreadyExists, codes.NotFound, codes.OK}
	if len(errs) != len(want) {
		t.Fatalf("got %d errors, expected %d", len(errs), len(want))
	}
	for i, e := range errs {
		if codes.Code(e.GetCanonicalCode()) != want[i] {
			t.Errorf("update %d: got %v, expected %v", i, e, want[i])
		}
		if want[i] == codes.OK && (e.GetMessage() != "" || e.GetSpace() != "") {
			t.Errorf("update %d: got %v, expected OK alone", i, e)
		}
	}
	if msg := status.Convert(err).Message(); !strings.Contains(msg, "update 2 of 4") || !strings.Contains(msg, "2 errors in all") {
		t.Errorf("message is %q", msg)
	}
	c.wantRead(`table_entry { table_id: 0x02000001 }`,
		bridgeEntry(`\x01`, `\x01`, dropAction), bridgeEntry(`\x03`, `\x01`, dropAction))
}

func TestManyErrorsFitTheStatus(t *testing.T) {
	c := ready(t, nil)
	u := update(t, `DELETE `+bridgeEntry(`\x02`, `\x01`, ``))
	updates := make([]*p4v1.Update, 30000)
	for i := range updates {
		updates[i] = u
	}
	errs := updateErrors(t, c.write(updates...))
	if len(errs) != len(updates) {
		t.Fatalf("got %d errors, expected %d", len(errs), len(updates))
	}
	if e := errs[len(errs)-1]; codes.Code(e.GetCanonicalCode()) != codes.NotFound || e.GetMessage() != "" {
		t.Errorf("the last error is %v, expected NOT_FOUND with its text left out", e)
	}
}

func TestWritePreconditions(t *testing.T) {
	r := newRig(t, nil, p4rtserver.Options{})
	c := r.primary()
	id := func(n uint64) *p4v1.Uint128 { return &p4v1.Uint128{Low: n} }
	entry := []*p4v1.Update{update(t, `INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction))}
	for _, tt := range []struct {
		name string
		req  *p4v1.WriteRequest
		code codes.Code
	}{
		{"wrong device", &p4v1.WriteRequest{DeviceId: 8, ElectionId: id(1)}, codes.NotFound},
		{"unknown role", &p4v1.WriteRequest{DeviceId: deviceID, Role: "nobody", ElectionId: id(1)}, codes.NotFound},
		//lint:ignore SA1019 the field is refused
		{"role id", &p4v1.WriteRequest{DeviceId: deviceID, RoleId: 3, ElectionId: id(1)}, codes.NotFound},
		{"no election id", &p4v1.WriteRequest{DeviceId: deviceID}, codes.PermissionDenied},
		{"lower election id", &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: id(0)}, codes.PermissionDenied},
		{"higher election id", &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: &p4v1.Uint128{High: 1, Low: 1}}, codes.PermissionDenied},
		{"no pipeline", &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: id(1)}, codes.FailedPrecondition},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Updates = entry
			_, err := r.client.Write(r.ctx, tt.req)
			if status.Code(err) != tt.code || len(status.Convert(err).Details()) != 0 {
				t.Errorf("got %v, expected %v without details", err, tt.code)
			}
		})
	}
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	for _, a := range []p4v1.WriteRequest_Atomicity{p4v1.WriteRequest_ROLLBACK_ON_ERROR, p4v1.WriteRequest_DATAPLANE_ATOMIC} {
		_, err := r.client.Write(r.ctx, &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: id(1), Updates: entry, Atomicity: a})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%v: got %v, expected Unimplemented", a, err)
		}
	}
	_, err := r.client.Write(r.ctx, &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: id(1), Updates: entry, Atomicity: 9})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("atomicity 9: got %v, expected InvalidArgument", err)
	}
}

func TestReferencesAreReleased(t *testing.T) {
	c := ready(t, nil)
	c.mustWrite(
		`INSERT `+member(ecmp, 1), `INSERT `+member(ecmp, 2),
		`INSERT `+group(1, 8, `members { member_id: 1 weight: 1 } members { member_id: 2 weight: 2 watch_port: "\x03" }`),
		`INSERT `+routeEntry(``, `action { action_profile_group_id: 1 }`),
		`MODIFY `+group(1, 8, `members { member_id: 2 weight: 1 }`),
		`DELETE `+member(ecmp, 1),
		// Metadata alone keeps the reference; another action moves it.
		`MODIFY `+routeEntry(``, `metadata: "x"`),
	)
	if errs := updateErrors(t, c.write(update(t, `DELETE `+group(1, 0, ``)))); codes.Code(errs[0].GetCanonicalCode()) != codes.FailedPrecondition {
		t.Errorf("got %v, expected FAILED_PRECONDITION", errs[0])
	}
	c.mustWrite(
		`MODIFY `+routeEntry(``, `action { action_profile_member_id: 2 }`),
		`DELETE `+group(1, 0, ``),
		`DELETE `+routeEntry(``, ``),
		`DELETE `+member(ecmp, 2),
		// Empty again, the selector may be used the other way, and back.
		`INSERT `+routeEntry(``, oneShot(3, 3)),
		`MODIFY `+routeEntry(``, oneShot(1, 1, 1, 1)),
		`DELETE `+routeEntry(``, ``),
		`INSERT `+member(ecmp, 1),
	)
}
