package p4rtserver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/p4rtserver/memtarget"
)

func TestArbitration(t *testing.T) {
	const (
		primary  = codes.OK
		backup   = codes.AlreadyExists
		vacant   = codes.NotFound
		noUpdate = codes.Code(99)
	)
	type step struct {
		who      int
		role     string
		election uint64 // 0: none
		leave    bool
		// What each controller that is there receives, in order of opening.
		want    []codes.Code
		highest uint64
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"the first is primary", []step{{0, "", 5, false, []codes.Code{primary}, 5}}},
		{"a lower one is backup, alone told", []step{
			{0, "", 5, false, []codes.Code{primary}, 5},
			{1, "", 4, false, []codes.Code{noUpdate, backup}, 5}}},
		{"a higher one takes over", []step{
			{0, "", 5, false, []codes.Code{primary}, 5},
			{1, "", 6, false, []codes.Code{backup, primary}, 6}}},
		{"the highest id outlives its stream", []step{
			{0, "", 5, false, []codes.Code{primary}, 5},
			{1, "", 4, false, []codes.Code{noUpdate, backup}, 5},
			{0, "", 0, true, []codes.Code{noUpdate, vacant}, 5},
			{1, "", 4, false, []codes.Code{noUpdate, vacant}, 5},
			{1, "", 5, false, []codes.Code{noUpdate, primary}, 5}}},
		{"a backup's end is told to nobody", []step{
			{0, "", 5, false, []codes.Code{primary}, 5},
			{1, "", 4, false, []codes.Code{noUpdate, backup}, 5},
			{1, "", 0, true, []codes.Code{noUpdate, noUpdate}, 5},
			{0, "", 5, false, []codes.Code{primary, noUpdate}, 5}}},
		{"a primary steps down", []step{
			{0, "", 5, false, []codes.Code{primary}, 5},
			{1, "", 4, false, []codes.Code{noUpdate, backup}, 5},
			{0, "", 3, false, []codes.Code{vacant, vacant}, 5},
			{1, "", 7, false, []codes.Code{backup, primary}, 7}}},
		{"without an id nobody is primary", []step{
			{0, "", 0, false, []codes.Code{vacant}, 0},
			{1, "", 1, false, []codes.Code{backup, primary}, 1},
			{1, "", 0, false, []codes.Code{vacant, vacant}, 1}}},
		{"roles are separate", []step{
			{0, "a", 5, false, []codes.Code{primary}, 5},
			{1, "b", 1, false, []codes.Code{noUpdate, primary}, 1},
			{2, "", 1, false, []codes.Code{noUpdate, noUpdate, primary}, 1},
			{3, "a", 4, false, []codes.Code{noUpdate, noUpdate, noUpdate, backup}, 5}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil, p4rtserver.Options{})
			var all []*controller
			for i, s := range tt.steps {
				if s.who == len(all) {
					all = append(all, r.open())
				}
				if s.leave {
					all[s.who].cancel()
				} else {
					all[s.who].arbitrate(s.role, s.election)
				}
				if len(s.want) != len(all) {
					t.Fatalf("step %d expects %d messages for %d controllers", i, len(s.want), len(all))
				}
				for who, code := range s.want {
					if code != noUpdate {
						all[who].wantArbitration(code, s.highest)
					}
				}
			}
			// Nobody has received more than was expected: the next message of
			// each stream answers an empty one.
			for i, c := range all {
				if c.stream.Context().Err() != nil {
					continue
				}
				c.send(new(p4v1.StreamMessageRequest))
				if m := c.recv(); m.GetError().GetOther() == nil {
					t.Errorf("controller %d received %v", i, m)
				}
			}
		})
	}
}

func TestArbitrationRefusals(t *testing.T) {
	arbitration := func(text string) *p4v1.StreamMessageRequest {
		return parse(t, new(p4v1.StreamMessageRequest), `arbitration { `+text+` }`)
	}
	for _, tt := range []struct {
		name  string
		first string // accepted, if not empty
		text  string
		code  codes.Code
	}{
		{"wrong device", ``, `device_id: 8`, codes.NotFound},
		{"wrong device later", `device_id: 7`, `device_id: 8`, codes.FailedPrecondition},
		{"role changed", `device_id: 7`, `device_id: 7 role { name: "x" }`, codes.FailedPrecondition},
		{"role config", ``, `device_id: 7 role { config { } }`, codes.InvalidArgument},
		{"role id", ``, `device_id: 7 role { id: 1 }`, codes.InvalidArgument},
		{"role name too long", ``, `device_id: 7 role { name: "` + strings.Repeat("r", 257) + `" }`, codes.InvalidArgument},
		{"duplicate id", ``, `device_id: 7 election_id { low: 1 }`, codes.InvalidArgument},
		{"duplicate id later", `device_id: 7 election_id { low: 2 }`, `device_id: 7 election_id { low: 1 }`, codes.InvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil, p4rtserver.Options{})
			other := r.primary()
			c := r.open()
			if tt.first != "" {
				c.send(arbitration(tt.first))
				c.recv()
			}
			c.send(arbitration(tt.text))
			c.wantEnd(tt.code)
			if strings.Contains(tt.first, "low: 2") { // it was the primary
				other.wantArbitration(codes.AlreadyExists, 2)
				other.wantArbitration(codes.NotFound, 2)
			}
		})
	}
}

func TestRolesAndStreamsAreBounded(t *testing.T) {
	r := newRig(t, nil, p4rtserver.Options{})
	for i := range 64 {
		c := r.open()
		c.arbitrate("crowd", uint64(i+1))
		c.wantArbitration(codes.OK, uint64(i+1))
	}
	c := r.open()
	c.arbitrate("crowd", 100)
	c.wantEnd(codes.ResourceExhausted)
}

// TestNewPrimaryWrites checks who may write across a change of primaries.
func TestNewPrimaryWrites(t *testing.T) {
	first := ready(t, nil)
	second := first.open()
	second.arbitrate("", 2)
	second.wantArbitration(codes.OK, 2)
	first.wantArbitration(codes.AlreadyExists, 2)
	entry := update(t, `INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction))
	if err := first.write(entry); !strings.Contains(fmt.Sprint(err), "PermissionDenied") {
		t.Errorf("the former primary: got %v, expected PermissionDenied", err)
	}
	if err := second.write(entry); err != nil {
		t.Errorf("the primary: %v", err)
	}
	named := first.open()
	named.arbitrate("other", 1)
	named.wantArbitration(codes.OK, 1)
	if err := named.write(update(t, `DELETE `+bridgeEntry(`\x01`, `\x01`, ``))); err != nil {
		t.Errorf("the primary of a named role: %v", err)
	}
}

func TestPacketIn(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, nil, p4rtserver.Options{Registerer: reg})
	c := r.primary()
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	named := r.open()
	named.arbitrate("other", 1)
	named.wantArbitration(codes.OK, 1)
	backup := r.open()
	backup.arbitrate("", 0)
	backup.wantArbitration(codes.AlreadyExists, 1)

	up := r.target.Active().Up
	up.PacketIn([][]byte{{1}}, []byte("too few fields"))
	up.PacketIn([][]byte{{2, 0}, {1}}, []byte("too wide"))
	payload := []byte("payload")
	up.PacketIn([][]byte{{0, 5}, {0}}, payload)
	payload[0] = 'X' // the server has copied it
	want := parse(t, new(p4v1.StreamMessageResponse), `packet { payload: "payload" metadata { metadata_id: 1 value: "\x05" } metadata { metadata_id: 2 value: "\x00" } }`)
	for _, p := range []*controller{c, named} {
		if m := p.recv(); !proto.Equal(m, want) {
			t.Errorf("got %v, expected %v", m, want)
		}
	}
	backup.send(new(p4v1.StreamMessageRequest))
	if m := backup.recv(); m.GetError() == nil {
		t.Errorf("the backup received %v", m)
	}
	if got := gather(t, reg, "countersign_p4runtime_packet_in_total", "malformed"); got != 2 {
		t.Errorf("%v packets counted as malformed, expected 2", got)
	}
}

// gather is the value of a counter with a label.
func gather(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == label {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// TestSlowReader checks that packets for a controller that reads nothing are
// dropped and counted and hold nobody up.
func TestSlowReader(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, nil, p4rtserver.Options{Registerer: reg, PacketInQueue: 4})
	c := r.primary()
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	up := r.target.Active().Up
	payload := make([]byte, 64<<10)
	for gather(t, reg, "countersign_p4runtime_packet_in_total", "dropped") < 100 {
		up.PacketIn([][]byte{{1}, {1}}, payload)
	}
	// The unread stream does not stop requests.
	c.mustWrite(`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction))
}

func TestPacketOut(t *testing.T) {
	type packet struct {
		metadata [][]byte
		payload  string
	}
	got := make(chan packet, 10)
	target := &memtarget.Target{OnPacketOut: func(md [][]byte, payload []byte) error {
		if string(payload) == "refused" {
			return fmt.Errorf("port 5: %w", p4rtserver.ErrNotFound)
		}
		got <- packet{md, string(payload)}
		return nil
	}}
	r := newRig(t, target, p4rtserver.Options{})
	c := r.primary()
	out := func(text string) *p4v1.StreamMessageRequest {
		return parse(t, new(p4v1.StreamMessageRequest), `packet { `+text+` }`)
	}
	const md = `metadata { metadata_id: 2 value: "\x01" } metadata { metadata_id: 1 value: "\x00\x05" }`
	refused := func(c *controller, m *p4v1.StreamMessageRequest, code codes.Code, text string) {
		t.Helper()
		c.send(m)
		e := c.recv().GetError()
		if codes.Code(e.GetCanonicalCode()) != code || !strings.Contains(e.GetMessage(), text) {
			t.Errorf("got %v, expected %v %q", e, code, text)
		}
		if m.GetPacket() != nil && !proto.Equal(e.GetPacketOut().GetPacketOut(), m.GetPacket()) {
			t.Errorf("got %v, expected the packet back", e)
		}
	}
	refused(c, out(md), codes.FailedPrecondition, "no forwarding pipeline")
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	backup := r.open()
	refused(backup, out(md), codes.PermissionDenied, "only the primary")
	backup.arbitrate("", 0)
	backup.wantArbitration(codes.AlreadyExists, 1)
	refused(backup, out(md), codes.PermissionDenied, "only the primary")

	refused(c, out(``), codes.InvalidArgument, `metadata field "egress_port" (1) is missing`)
	refused(c, out(`metadata { metadata_id: 7 value: "\x00" }`), codes.InvalidArgument, "no metadata field 7")
	refused(c, out(`metadata { metadata_id: 2 value: "\x02" }`), codes.InvalidArgument, "needs 2 bits, expected at most 1")
	refused(c, out(`metadata { metadata_id: 2 }`), codes.InvalidArgument, "value is empty")
	refused(c, out(md+` metadata { metadata_id: 2 value: "\x01" }`), codes.InvalidArgument, "given twice")
	refused(c, out(md+` payload: "refused"`), codes.NotFound, "port 5")
	refused(c, parse(t, new(p4v1.StreamMessageRequest), `digest_ack { digest_id: 1 }`), codes.InvalidArgument, "no digest")
	refused(c, parse(t, new(p4v1.StreamMessageRequest), `digest_ack { digest_id: 0x17000001 }`), codes.Unimplemented, "learn")
	refused(c, parse(t, new(p4v1.StreamMessageRequest), `other { }`), codes.Unimplemented, "no other")

	c.send(out(md + ` payload: "hello"`))
	p := <-got
	if p.payload != "hello" || len(p.metadata) != 2 || string(p.metadata[0]) != "\x05" || string(p.metadata[1]) != "\x01" {
		t.Errorf("got %+v, expected the values in the P4Info's order, canonical", p)
	}
	if len(got) != 0 {
		t.Error("a refused packet reached the target")
	}
}

func TestIdleTimeout(t *testing.T) {
	now := time.Unix(1000, 7)
	r := newRig(t, nil, p4rtserver.Options{Now: func() time.Time { return now }})
	c := r.primary()
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	up := r.target.Active().Up
	entry := func(i byte, metadata int) p4rtserver.Entry {
		return p4rtserver.Entry{
			TableID:       bridge,
			Match:         []p4rtserver.FieldMatch{{ID: 1, Kind: p4rtserver.MatchExact, Value: []byte{0, i}}, {ID: 2, Kind: p4rtserver.MatchExact, Value: []byte{1}}},
			IdleTimeoutNs: 9,
			Metadata:      make([]byte, metadata),
		}
	}
	up.IdleTimeout(nil)
	up.IdleTimeout([]p4rtserver.Entry{entry(1, 1), entry(2, 1), {TableID: 99}})
	want := parse(t, new(p4v1.StreamMessageResponse), `idle_timeout_notification { timestamp: 1000000000007 `+
		bridgeEntry(`\x01`, `\x01`, `idle_timeout_ns: 9 metadata: "\x00"`)+` `+bridgeEntry(`\x02`, `\x01`, `idle_timeout_ns: 9 metadata: "\x00"`)+` }`)
	if m := c.recv(); !proto.Equal(m, want) {
		t.Errorf("got %v, expected %v", m, want)
	}
	// A large batch is split below the size of a message.
	var many []p4rtserver.Entry
	for i := range 200 {
		many = append(many, entry(byte(i), 64<<10))
	}
	up.IdleTimeout(many)
	for n := 0; n < len(many); {
		m := c.recv()
		if len(m.GetIdleTimeoutNotification().GetTableEntry()) == 0 {
			t.Fatalf("got %v, expected entries", m)
		}
		n += len(m.GetIdleTimeoutNotification().GetTableEntry())
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := newRig(t, nil, p4rtserver.Options{Registerer: reg})
	c := r.primary()
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	c.mustWrite(`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction))
	c.write(update(t, `INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction)), update(t, `INSERT `+bridgeEntry(`\x02`, `\x01`, dropAction)))
	if _, err := c.read(`table_entry { table_id: 0x02000001 }`); err != nil {
		t.Fatal(err)
	}
	err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP countersign_p4runtime_read_entities_total Entities returned by Read.
# TYPE countersign_p4runtime_read_entities_total counter
countersign_p4runtime_read_entities_total 2
# HELP countersign_p4runtime_requests_total P4Runtime requests by method and status code.
# TYPE countersign_p4runtime_requests_total counter
countersign_p4runtime_requests_total{code="OK",method="Read"} 1
countersign_p4runtime_requests_total{code="OK",method="SetForwardingPipelineConfig"} 1
countersign_p4runtime_requests_total{code="OK",method="Write"} 1
countersign_p4runtime_requests_total{code="Unknown",method="Write"} 1
# HELP countersign_p4runtime_streams Open stream channels.
# TYPE countersign_p4runtime_streams gauge
countersign_p4runtime_streams 1
# HELP countersign_p4runtime_updates_total Updates of Write requests by canonical code.
# TYPE countersign_p4runtime_updates_total counter
countersign_p4runtime_updates_total{code="AlreadyExists"} 1
countersign_p4runtime_updates_total{code="OK"} 2
`), "countersign_p4runtime_read_entities_total", "countersign_p4runtime_requests_total", "countersign_p4runtime_streams", "countersign_p4runtime_updates_total")
	if err != nil {
		t.Error(err)
	}
	if _, err := p4rtserver.New(new(memtarget.Target), p4rtserver.Options{Registerer: reg}); err == nil {
		t.Error("New registered the same collectors twice without an error")
	}
}
