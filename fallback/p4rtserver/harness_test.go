package p4rtserver_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/p4rtserver/memtarget"
)

// Ids of testdata/all_kinds.p4info.txtpb.
const (
	deviceID = 7

	bridge  = 0x02000001
	route   = 0x02000002
	acl     = 0x02000003
	fixed   = 0x02000004
	profile = 0x02000005
	keyless = 0x02000006
	route6  = 0x02000007

	noAction = 0x01000001
	forward  = 0x01000002
	drop     = 0x01000003
	flood    = 0x01000004
	nextHop  = 0x01000005

	ecmp  = 0x11000001
	plain = 0x11000002
)

func loadP4Info(t testing.TB) *configv1.P4Info {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "all_kinds.p4info.txtpb"))
	if err != nil {
		t.Fatal(err)
	}
	info := new(configv1.P4Info)
	if err := prototext.Unmarshal(text, info); err != nil {
		t.Fatal(err)
	}
	return info
}

// parse reads a message in text form.
func parse[M proto.Message](t testing.TB, m M, text string) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// rig is a server on a Unix socket with a target and a client.
type rig struct {
	t      testing.TB
	ctx    context.Context
	target *memtarget.Target
	server *p4rtserver.Server
	client p4v1.P4RuntimeClient
}

func newRig(t testing.TB, target *memtarget.Target, opts p4rtserver.Options) *rig {
	t.Helper()
	if target == nil {
		target = new(memtarget.Target)
	}
	opts.DeviceID = deviceID
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	srv, err := p4rtserver.New(target, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	address := "unix://" + filepath.Join(t.TempDir(), "p4rt.sock")
	lis, err := p4rtserver.Endpoint{Address: address}.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	serveCtx, stop := context.WithCancel(ctx)
	go func() { served <- srv.Serve(serveCtx, lis, nil) }()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := target.Open(); n != 0 {
			t.Errorf("%d pipelines are open at the end", n)
		}
		cancel()
	})
	return &rig{t: t, ctx: ctx, target: target, server: srv, client: p4v1.NewP4RuntimeClient(conn)}
}

// controller is a stream and the identity that goes with it.
type controller struct {
	*rig
	stream   p4v1.P4Runtime_StreamChannelClient
	role     string
	election *p4v1.Uint128
	cancel   context.CancelFunc
}

func (r *rig) open() *controller {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.ctx)
	r.t.Cleanup(cancel)
	st, err := r.client.StreamChannel(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return &controller{rig: r, stream: st, cancel: cancel}
}

// arbitrate sends an arbitration message; election 0 leaves the id out.
func (c *controller) arbitrate(role string, election uint64) {
	c.t.Helper()
	m := &p4v1.MasterArbitrationUpdate{DeviceId: deviceID}
	c.role, c.election = role, nil
	if role != "" {
		m.Role = &p4v1.Role{Name: role}
	}
	if election != 0 {
		c.election = &p4v1.Uint128{Low: election}
		m.ElectionId = c.election
	}
	c.send(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{Arbitration: m}})
}

func (c *controller) send(m *p4v1.StreamMessageRequest) {
	c.t.Helper()
	if err := c.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

func (c *controller) recv() *p4v1.StreamMessageResponse {
	c.t.Helper()
	m, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// wantArbitration receives the next message, which must be an arbitration one.
func (c *controller) wantArbitration(code codes.Code, highest uint64) {
	c.t.Helper()
	m := c.recv()
	a := m.GetArbitration()
	if a == nil {
		c.t.Fatalf("got %v, expected an arbitration message", m)
	}
	if codes.Code(a.GetStatus().GetCode()) != code || a.GetElectionId().GetLow() != highest ||
		(a.GetElectionId() == nil) != (highest == 0) || a.GetRole().GetName() != c.role || a.GetDeviceId() != deviceID {
		c.t.Fatalf("got %v, expected code %v and election id %d", a, code, highest)
	}
}

// wantEnd receives the stream's end.
func (c *controller) wantEnd(code codes.Code) {
	c.t.Helper()
	m, err := c.stream.Recv()
	if status.Code(err) != code {
		c.t.Fatalf("got %v, %v, expected the stream to end with %v", m, err, code)
	}
}

// primary opens a stream that is the primary of the default role.
func (r *rig) primary() *controller {
	r.t.Helper()
	c := r.open()
	c.arbitrate("", 1)
	c.wantArbitration(codes.OK, 1)
	return c
}

// ready is a primary with the test's pipeline committed.
func ready(t testing.TB, target *memtarget.Target) *controller {
	t.Helper()
	c := newRig(t, target, p4rtserver.Options{}).primary()
	if err := c.commit(loadP4Info(t), 1); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *controller) setPipeline(action p4v1.SetForwardingPipelineConfigRequest_Action, cfg *p4v1.ForwardingPipelineConfig) error {
	_, err := c.client.SetForwardingPipelineConfig(c.ctx, &p4v1.SetForwardingPipelineConfigRequest{
		DeviceId: deviceID, Role: c.role, ElectionId: c.election, Action: action, Config: cfg,
	})
	return err
}

func config(info *configv1.P4Info, cookie uint64) *p4v1.ForwardingPipelineConfig {
	return &p4v1.ForwardingPipelineConfig{P4Info: info, P4DeviceConfig: []byte("device"), Cookie: &p4v1.ForwardingPipelineConfig_Cookie{Cookie: cookie}}
}

func (c *controller) commit(info *configv1.P4Info, cookie uint64) error {
	return c.setPipeline(p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT, config(info, cookie))
}

func (c *controller) write(updates ...*p4v1.Update) error {
	_, err := c.client.Write(c.ctx, &p4v1.WriteRequest{DeviceId: deviceID, Role: c.role, ElectionId: c.election, Updates: updates})
	return err
}

// update parses "INSERT entity…" into an update.
func update(t testing.TB, text string) *p4v1.Update {
	t.Helper()
	op, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	return &p4v1.Update{Type: p4v1.Update_Type(p4v1.Update_Type_value[op]), Entity: parse(t, new(p4v1.Entity), rest)}
}

func (c *controller) mustWrite(texts ...string) {
	c.t.Helper()
	for _, text := range texts {
		if err := c.write(update(c.t, text)); err != nil {
			c.t.Fatalf("%s: %v", text, describe(err))
		}
	}
}

// describe is an error with its details.
func describe(err error) string { return prototext.Format(status.Convert(err).Proto()) }

// updateErrors is the per-update errors of a status.
func updateErrors(t testing.TB, err error) []*p4v1.Error {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != codes.Unknown {
		t.Fatalf("status is %v, expected Unknown with details", err)
	}
	var list []*p4v1.Error
	for _, d := range st.Proto().GetDetails() {
		e := new(p4v1.Error)
		if err := d.UnmarshalTo(e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

func (c *controller) read(texts ...string) ([]*p4v1.Entity, error) {
	c.t.Helper()
	req := &p4v1.ReadRequest{DeviceId: deviceID}
	for _, text := range texts {
		req.Entities = append(req.Entities, parse(c.t, new(p4v1.Entity), text))
	}
	st, err := c.client.Read(c.ctx, req)
	if err != nil {
		c.t.Fatal(err)
	}
	var out []*p4v1.Entity
	for {
		resp, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, resp.GetEntities()...)
	}
}

// wantRead reads and compares with the expected entities, in any order.
func (c *controller) wantRead(request string, want ...string) {
	c.t.Helper()
	got, err := c.read(request)
	if err != nil {
		c.t.Fatalf("read %s: %s", request, describe(err))
	}
	for _, text := range want {
		w := parse(c.t, new(p4v1.Entity), text)
		found := false
		for i, g := range got {
			if proto.Equal(g, w) {
				got, found = append(got[:i:i], got[i+1:]...), true
				break
			}
		}
		if !found {
			c.t.Errorf("read %s: %v is missing", request, w)
		}
	}
	for _, g := range got {
		c.t.Errorf("read %s: %v is too much", request, g)
	}
}
