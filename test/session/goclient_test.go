package session_test

import (
	"testing"

	"github.com/antoninbas/p4runtime-go-client/pkg/client"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"

	"countersign/fallback/engine"
	"countersign/p4src"
)

// TestForeignClient drives the software data plane with p4runtime-go-client,
// which shares no code with the controller: what it makes of the P4Info's names
// the server must take, and the other way round.
func TestForeignClient(t *testing.T) {
	ctx := t.Context()
	conn, err := grpc.NewClient(serve(t, engine.New(engine.Options{})), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := client.NewClient(p4v1.NewP4RuntimeClient(conn), 1, &p4v1.Uint128{Low: 1})
	stop, primary := make(chan struct{}), make(chan bool, 1)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(stop, primary, make(chan *p4v1.StreamMessageResponse, 16)) }()
	select {
	case is := <-primary:
		if !is {
			t.Fatal("the only controller is not primary")
		}
	case err := <-ended:
		t.Fatal(err)
	}
	defer close(stop)

	info, err := p4src.P4Info()
	if err != nil {
		t.Fatal(err)
	}
	text, err := prototext.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetFwdPipeFromBytes(ctx, p4src.JSON, text, 42); err != nil {
		t.Fatal(err)
	}
	pipe, err := c.GetFwdPipe(ctx, client.GetFwdPipeCookieOnly)
	if err != nil || pipe.Cookie != 42 {
		t.Fatalf("cookie: %+v, %v", pipe, err)
	}

	const table, action = "CountersignIngress.port.port", "CountersignIngress.port.port_config"
	entry := c.NewTableEntry(table, map[string]client.MatchInterface{
		"in_port": &client.ExactMatch{Value: []byte{0, 7}},
		"vlan":    &client.ExactMatch{Value: []byte{0, 0}},
	}, c.NewTableActionDirect(action, [][]byte{{1}, {0, 3}, {0}}), nil)
	if err := c.InsertTableEntry(ctx, entry); err != nil {
		t.Fatal(err)
	}
	if err := c.InsertTableEntry(ctx, entry); err == nil {
		t.Error("the same entry was inserted twice")
	}
	found, err := c.ReadTableEntryWildcard(ctx, table)
	if err != nil || len(found) != 1 {
		t.Fatalf("read %d entries, %v", len(found), err)
	}
	if got := found[0].GetAction().GetAction().GetParams()[1].GetValue(); string(got) != "\x03" {
		t.Errorf("zone is %x, want the canonical 03", got)
	}
	// The client has no id for an unknown name and sends 0.
	bad := c.NewTableEntry("no.such.table", map[string]client.MatchInterface{"in_port": &client.ExactMatch{Value: []byte{1}}}, nil, nil)
	if err := c.InsertTableEntry(ctx, bad); status.Code(err) == codes.OK {
		t.Error("an entry of table id 0 was taken")
	}
	if err := c.InsertCloneSession(ctx, 1, []uint32{510}, client.DefaultCloneSessionOptions); err != nil {
		t.Error(err)
	}
	counts, err := c.ReadCounterEntryWildcard(ctx, "CountersignIngress.drops")
	if err != nil || len(counts) != 256 {
		t.Errorf("%d drop counters, %v", len(counts), err)
	}
	if err := c.DeleteTableEntry(ctx, entry); err != nil {
		t.Error(err)
	}
}
