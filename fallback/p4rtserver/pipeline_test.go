package p4rtserver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/p4rtserver/memtarget"
)

const (
	verify          = p4v1.SetForwardingPipelineConfigRequest_VERIFY
	verifyAndSave   = p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_SAVE
	verifyAndCommit = p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT
	commitSaved     = p4v1.SetForwardingPipelineConfigRequest_COMMIT
	reconcile       = p4v1.SetForwardingPipelineConfigRequest_RECONCILE_AND_COMMIT
)

func TestCapabilities(t *testing.T) {
	r := newRig(t, nil, p4rtserver.Options{})
	resp, err := r.client.Capabilities(r.ctx, &p4v1.CapabilitiesRequest{})
	if err != nil || resp.GetP4RuntimeApiVersion() != "1.4.1" {
		t.Errorf("got %v, %v", resp, err)
	}
}

func (c *controller) getPipeline(kind p4v1.GetForwardingPipelineConfigRequest_ResponseType) *p4v1.ForwardingPipelineConfig {
	c.t.Helper()
	resp, err := c.client.GetForwardingPipelineConfig(c.ctx, &p4v1.GetForwardingPipelineConfigRequest{DeviceId: deviceID, ResponseType: kind})
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.GetConfig()
}

func TestGetPipeline(t *testing.T) {
	r := newRig(t, nil, p4rtserver.Options{})
	c := r.primary()
	if cfg := c.getPipeline(0); cfg != nil {
		t.Errorf("got %v before a config was set", cfg)
	}
	full := config(loadP4Info(t), 42)
	if err := c.setPipeline(verifyAndCommit, full); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[p4v1.GetForwardingPipelineConfigRequest_ResponseType]*p4v1.ForwardingPipelineConfig{
		p4v1.GetForwardingPipelineConfigRequest_ALL:                      full,
		p4v1.GetForwardingPipelineConfigRequest_COOKIE_ONLY:              {Cookie: full.Cookie},
		p4v1.GetForwardingPipelineConfigRequest_P4INFO_AND_COOKIE:        {P4Info: full.P4Info, Cookie: full.Cookie},
		p4v1.GetForwardingPipelineConfigRequest_DEVICE_CONFIG_AND_COOKIE: {P4DeviceConfig: full.P4DeviceConfig, Cookie: full.Cookie},
	} {
		if got := c.getPipeline(kind); !proto.Equal(got, want) {
			t.Errorf("%v: got %v, expected %v", kind, got, want)
		}
	}
	for device, code := range map[uint64]codes.Code{8: codes.NotFound, deviceID: codes.InvalidArgument} {
		_, err := r.client.GetForwardingPipelineConfig(r.ctx, &p4v1.GetForwardingPipelineConfigRequest{DeviceId: device, ResponseType: 9})
		if status.Code(err) != code {
			t.Errorf("device %d: got %v, expected %v", device, err, code)
		}
	}
}

func TestSetPipelineRefusals(t *testing.T) {
	edit := func(f func(*configv1.P4Info)) *p4v1.ForwardingPipelineConfig {
		info := loadP4Info(t)
		f(info)
		return config(info, 1)
	}
	for _, tt := range []struct {
		name   string
		action p4v1.SetForwardingPipelineConfigRequest_Action
		cfg    *p4v1.ForwardingPipelineConfig
		code   codes.Code
		text   string
	}{
		{"no action", 0, config(loadP4Info(t), 1), codes.InvalidArgument, "UNSPECIFIED"},
		{"no config", verifyAndCommit, nil, codes.InvalidArgument, "config is missing"},
		{"no P4Info", verify, config(nil, 1), codes.InvalidArgument, "no P4Info"},
		{"commit of nothing", commitSaved, nil, codes.NotFound, "VERIFY_AND_SAVE first"},
		{"commit with a config", commitSaved, config(loadP4Info(t), 1), codes.InvalidArgument, "takes no config"},
		{"id 0", verify, edit(func(i *configv1.P4Info) { i.Tables[0].Preamble.Id = 0 }), codes.InvalidArgument, `table "ingress.bridge" has id 0`},
		{"id twice", verify, edit(func(i *configv1.P4Info) { i.Tables[0].Preamble.Id = route }), codes.InvalidArgument, "used twice"},
		{"field twice", verify, edit(func(i *configv1.P4Info) { i.Tables[0].MatchFields[1].Id = 1 }), codes.InvalidArgument, "field id 1 is used twice"},
		{"field id 0", verify, edit(func(i *configv1.P4Info) { i.Tables[0].MatchFields[1].Id = 0 }), codes.InvalidArgument, `"port" has id 0`},
		{"no width", verify, edit(func(i *configv1.P4Info) { i.Actions[1].Params[0].Bitwidth = 0 }), codes.InvalidArgument, "width of 0 bits"},
		{"negative width", verify, edit(func(i *configv1.P4Info) { i.Actions[1].Params[0].Bitwidth = -1 }), codes.InvalidArgument, "width of -1 bits"},
		{"negative size", verify, edit(func(i *configv1.P4Info) { i.Tables[0].Size = -1 }), codes.InvalidArgument, "negative size"},
		{"negative counter", verify, edit(func(i *configv1.P4Info) { i.Counters[0].Size = -1 }), codes.InvalidArgument, "negative size"},
		{"match kind", verify, edit(func(i *configv1.P4Info) {
			i.Tables[0].MatchFields[0].Match = &configv1.MatchField_OtherMatchType{OtherMatchType: "selector"}
		}), codes.Unimplemented, `"selector"`},
		{"missing action", verify, edit(func(i *configv1.P4Info) { i.Tables[0].ActionRefs[0].Id = 9 }), codes.InvalidArgument, "refers to action 0x9"},
		{"missing profile", verify, edit(func(i *configv1.P4Info) { i.Tables[1].ImplementationId = 9 }), codes.InvalidArgument, "refers to action profile 0x9"},
		{"missing counter", verify, edit(func(i *configv1.P4Info) { i.DirectCounters = nil }), codes.InvalidArgument, "no direct counter or meter"},
		{"two packet headers", verify, edit(func(i *configv1.P4Info) { i.ControllerPacketMetadata[1].Preamble.Name = "packet_in" }), codes.InvalidArgument, "there twice"},
		{"more than the target has", verifyAndCommit, edit(func(i *configv1.P4Info) { i.Counters[0].Size = 1 << 40 }), codes.ResourceExhausted, "cells"},
		{"empty preambles", verify, config(&configv1.P4Info{Tables: []*configv1.Table{{}}}, 1), codes.InvalidArgument, "has id 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newRig(t, nil, p4rtserver.Options{}).primary()
			err := c.setPipeline(tt.action, tt.cfg)
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, expected %v %q", err, tt.code, tt.text)
			}
			if cfg := c.getPipeline(0); cfg != nil {
				t.Errorf("got config %v after the refusal", cfg)
			}
		})
	}
	t.Run("not the primary", func(t *testing.T) {
		c := newRig(t, nil, p4rtserver.Options{}).open()
		if err := c.commit(loadP4Info(t), 1); status.Code(err) != codes.PermissionDenied {
			t.Errorf("got %v, expected PermissionDenied", err)
		}
	})
}

func TestVerifyChangesNothing(t *testing.T) {
	c := ready(t, nil)
	c.mustWrite(`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction))
	before := c.target.Active()
	if err := c.setPipeline(verify, config(&configv1.P4Info{}, 2)); err != nil {
		t.Fatal(err)
	}
	if c.target.Active() != before || c.getPipeline(0).GetCookie().GetCookie() != 1 {
		t.Error("VERIFY has changed the pipeline")
	}
	c.wantRead(`table_entry { table_id: 0x02000001 }`, bridgeEntry(`\x01`, `\x01`, dropAction))
}

func TestCommitClears(t *testing.T) {
	c := ready(t, nil)
	c.mustWrite(`INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction), `INSERT `+member(plain, 1), `INSERT packet_replication_engine_entry { clone_session_entry { session_id: 8 } }`)
	if err := c.commit(loadP4Info(t), 2); err != nil {
		t.Fatal(err)
	}
	c.wantRead(`table_entry { }`)
	c.wantRead(`action_profile_member { }`)
	c.wantRead(`packet_replication_engine_entry { clone_session_entry { } }`)
}

func TestSaveThenCommit(t *testing.T) {
	c := ready(t, nil)
	c.mustWrite(`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction))
	forwarding := c.target.Active()
	for range 2 { // the second takes the place of the first
		if err := c.setPipeline(verifyAndSave, config(loadP4Info(t), 2)); err != nil {
			t.Fatal(err)
		}
	}
	if c.target.Active() != forwarding {
		t.Error("VERIFY_AND_SAVE has changed what forwards")
	}
	// Requests refer to the saved config.
	c.wantRead(`table_entry { table_id: 0x02000001 }`)
	c.mustWrite(`INSERT ` + bridgeEntry(`\x02`, `\x01`, dropAction))
	if err := c.setPipeline(commitSaved, nil); err != nil {
		t.Fatal(err)
	}
	if c.target.Active() == forwarding || c.target.Open() != 1 {
		t.Errorf("COMMIT left %d pipelines", c.target.Open())
	}
	c.wantRead(`table_entry { table_id: 0x02000001 }`, bridgeEntry(`\x02`, `\x01`, dropAction))
	if err := c.setPipeline(commitSaved, nil); status.Code(err) != codes.NotFound {
		t.Errorf("a second COMMIT: got %v, expected NotFound", err)
	}
}

func TestFailedActivationKeepsTheOldPipeline(t *testing.T) {
	fail := false
	target := &memtarget.Target{OnActivate: func(*memtarget.Pipeline) error {
		if fail {
			return fmt.Errorf("ports: %w", p4rtserver.ErrResourceExhausted)
		}
		return nil
	}}
	c := ready(t, target)
	c.mustWrite(`INSERT ` + bridgeEntry(`\x01`, `\x01`, dropAction))
	fail = true
	for _, action := range []p4v1.SetForwardingPipelineConfigRequest_Action{verifyAndCommit, reconcile} {
		cfg := config(loadP4Info(t), 2)
		cfg.P4DeviceConfig = []byte("other")
		if err := c.setPipeline(action, cfg); status.Code(err) != codes.ResourceExhausted {
			t.Fatalf("%v: got %v, expected ResourceExhausted", action, err)
		}
	}
	if got := c.getPipeline(0).GetCookie().GetCookie(); got != 1 || target.Open() != 1 {
		t.Errorf("cookie %d, %d pipelines, expected the first alone", got, target.Open())
	}
	c.wantRead(`table_entry { table_id: 0x02000001 }`, bridgeEntry(`\x01`, `\x01`, dropAction))
	target.Active().Up.PacketIn([][]byte{{1}, {1}}, nil)
	if m := c.recv(); m.GetPacket() == nil {
		t.Errorf("got %v, expected the old pipeline's packet", m)
	}
}

// everything is a write of each sort, and how it reads.
var everything = []string{
	bridgeEntry(`\x01`, `\x01`, `metadata: "m" idle_timeout_ns: 3 counter_data { packet_count: 2 } `+forwardAction),
	aclEntry(``, `priority: 2 counter_data { } meter_config { cir: 1 pir: 2 } `+dropAction),
	member(ecmp, 1), group(4, 8, `members { member_id: 1 weight: 3 }`),
	`table_entry { table_id: 0x02000002 action { action_profile_group_id: 4 } }`,
	`packet_replication_engine_entry { multicast_group_entry { multicast_group_id: 2 replicas { egress_port: 1 } } }`,
	`packet_replication_engine_entry { clone_session_entry { session_id: 3 replicas { egress_port: 1 } } }`,
}

func TestReconcile(t *testing.T) {
	write := func(c *controller) {
		for _, e := range everything {
			c.mustWrite(`INSERT ` + e)
		}
		c.mustWrite(`MODIFY counter_entry { counter_id: 0x12000001 index { index: 2 } data { packet_count: 5 } }`,
			`MODIFY meter_entry { meter_id: 0x14000001 index { index: 1 } config { cir: 5 pir: 5 } }`,
			`MODIFY table_entry { table_id: 0x02000006 is_default_action: true `+forwardAction+` }`)
	}
	check := func(c *controller) {
		t.Helper()
		c.wantRead(`table_entry { table_id: 0x02000001 counter_data { } }`, everything[0])
		c.wantRead(`table_entry { table_id: 0x02000003 meter_config { } counter_data { } }`, everything[1])
		c.wantRead(`action_profile_member { }`, everything[2])
		c.wantRead(`action_profile_group { }`, everything[3])
		c.wantRead(`table_entry { table_id: 0x02000002 }`, everything[4])
		c.wantRead(`packet_replication_engine_entry { multicast_group_entry { } }`, everything[5])
		c.wantRead(`packet_replication_engine_entry { clone_session_entry { } }`, everything[6])
		c.wantRead(`counter_entry { counter_id: 0x12000001 index { index: 2 } }`, `counter_entry { counter_id: 0x12000001 index { index: 2 } data { packet_count: 5 } }`)
		c.wantRead(`meter_entry { meter_id: 0x14000001 index { index: 1 } }`, `meter_entry { meter_id: 0x14000001 index { index: 1 } config { cir: 5 pir: 5 } }`)
		c.wantRead(`table_entry { table_id: 0x02000006 is_default_action: true }`, `table_entry { table_id: 0x02000006 is_default_action: true `+forwardAction+` }`)
		c.wantRead(`table_entry { table_id: 0x02000004 }`, `table_entry { table_id: 0x02000004 match { field_id: 1 exact { value: "\x09" } } `+dropAction+` }`)
	}
	t.Run("as the first config", func(t *testing.T) {
		c := newRig(t, nil, p4rtserver.Options{}).primary()
		if err := c.setPipeline(reconcile, config(loadP4Info(t), 1)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the same config leaves the pipeline alone", func(t *testing.T) {
		c := ready(t, constTarget())
		write(c)
		before := c.target.Active()
		if err := c.setPipeline(reconcile, config(loadP4Info(t), 2)); err != nil {
			t.Fatal(err)
		}
		if c.target.Active() != before || c.getPipeline(0).GetCookie().GetCookie() != 2 {
			t.Error("expected the old pipeline with the new cookie")
		}
		check(c)
	})
	t.Run("a compatible config takes the state over", func(t *testing.T) {
		c := ready(t, constTarget())
		write(c)
		before := c.target.Active()
		info := loadP4Info(t)
		info.Tables[0].MatchFields[1].Bitwidth = 32
		info.Tables[6].Size = 1
		if err := c.setPipeline(reconcile, config(info, 2)); err != nil {
			t.Fatal(err)
		}
		if c.target.Active() == before {
			t.Error("expected a new pipeline")
		}
		check(c)
		// References came along.
		if errs := updateErrors(t, c.write(update(t, `DELETE `+group(4, 0, ``)))); codes.Code(errs[0].GetCanonicalCode()) != codes.FailedPrecondition {
			t.Errorf("got %v, expected FAILED_PRECONDITION", errs[0])
		}
	})
	for name, edit := range map[string]func(*configv1.P4Info){
		"a narrower field":  func(i *configv1.P4Info) { i.Actions[1].Params[0].Bitwidth = 2 },
		"a missing table":   func(i *configv1.P4Info) { i.Tables = i.Tables[1:] },
		"another kind":      func(i *configv1.P4Info) { i.Tables[0].IdleTimeoutBehavior = 0 },
		"a smaller counter": func(i *configv1.P4Info) { i.Counters[0].Size = 2 },
		"a const default":   func(i *configv1.P4Info) { i.Tables[5].ConstDefaultActionId = forward },
		"an exact acl field": func(i *configv1.P4Info) {
			i.Tables[2].MatchFields[0].Match = &configv1.MatchField_MatchType_{MatchType: configv1.MatchField_EXACT}
		},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			c := ready(t, constTarget())
			write(c)
			info := loadP4Info(t)
			edit(info)
			err := c.setPipeline(reconcile, config(info, 2))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "cannot be kept") {
				t.Errorf("got %v, expected InvalidArgument", err)
			}
			check(c)
		})
	}
}

// TestProjectPrograms commits the compiled programs of the project.
func TestProjectPrograms(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "p4src", "build", "*.p4info.txtpb"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no compiled program is there: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// The compiler may know fields of a newer P4Info.
			info := new(configv1.P4Info)
			if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, info); err != nil {
				t.Fatal(err)
			}
			c := newRig(t, nil, p4rtserver.Options{}).primary()
			if err := c.commit(info, 1); err != nil {
				t.Fatal(err)
			}
			if got, err := c.read(`table_entry { is_default_action: true }`); err != nil || len(got) != len(info.GetTables()) {
				t.Errorf("got %d default entries, %v, expected %d", len(got), err, len(info.GetTables()))
			}
		})
	}
}

func TestFlushOncePerWrite(t *testing.T) {
	c := ready(t, nil)
	before := c.target.Active().Flushes()
	if err := c.write(update(t, `INSERT `+bridgeEntry(`\x01`, `\x01`, dropAction)), update(t, `INSERT `+bridgeEntry(`\x02`, `\x01`, dropAction))); err != nil {
		t.Fatal(err)
	}
	if got := c.target.Active().Flushes() - before; got != 1 {
		t.Errorf("Flush was called %d times, expected once", got)
	}
}

func TestCloseEndsStreams(t *testing.T) {
	c := ready(t, nil)
	c.server.Close()
	c.wantEnd(codes.Unavailable)
	if err := c.write(); status.Code(err) == codes.OK {
		t.Error("a write succeeded after Close")
	}
	if c.target.Open() != 0 {
		t.Error("a pipeline is open after Close")
	}
}
