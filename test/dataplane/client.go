package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"countersign/tables"
)

const deviceID = 1

// Punted is a packet that the CPU was handed.
type Punted struct {
	tables.PacketIn
	Data []byte
}

// Client is the only controller of one data plane. It knows no retries and no
// reconnects, so that a test sees what the target does; take it from Dial, end
// it with Close. Its methods are safe for concurrent use.
type Client struct {
	conn   *grpc.ClientConn
	rpc    p4v1.P4RuntimeClient
	cancel context.CancelFunc

	mu     sync.Mutex // guards Send of stream
	stream p4v1.P4Runtime_StreamChannelClient

	// PacketIns and IdleTimeouts carry what the stream brings; they are closed
	// with it.
	PacketIns    chan Punted
	IdleTimeouts chan *p4v1.TableEntry
	ended        chan struct{}
	err          error // of the stream, once ended is closed
}

// Dial becomes the primary controller of the data plane behind conn and pushes
// the pipeline. It closes conn on an error.
func Dial(ctx context.Context, conn *grpc.ClientConn, info *p4configv1.P4Info, program []byte) (c *Client, err error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c = &Client{
		conn: conn, rpc: p4v1.NewP4RuntimeClient(conn), cancel: cancel,
		PacketIns: make(chan Punted, 1024), IdleTimeouts: make(chan *p4v1.TableEntry, 64), ended: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			cancel()
			err = errors.Join(err, conn.Close())
		}
	}()
	if c.stream, err = c.rpc.StreamChannel(run, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("stream channel: %w", err)
	}
	if err := c.stream.Send(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{
		Arbitration: &p4v1.MasterArbitrationUpdate{DeviceId: deviceID, ElectionId: electionID()},
	}}); err != nil {
		return nil, fmt.Errorf("arbitration: %w", err)
	}
	answer, err := c.stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("arbitration: %w", err)
	}
	if a := answer.GetArbitration(); a == nil || a.GetStatus().GetCode() != 0 {
		return nil, fmt.Errorf("arbitration: not primary: %v", answer)
	}
	if _, err := c.rpc.SetForwardingPipelineConfig(ctx, &p4v1.SetForwardingPipelineConfigRequest{
		DeviceId: deviceID, ElectionId: electionID(),
		Action: p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT,
		Config: &p4v1.ForwardingPipelineConfig{P4Info: info, P4DeviceConfig: program},
	}); err != nil {
		return nil, fmt.Errorf("push pipeline: %w", err)
	}
	go c.receive()
	return c, nil
}

func electionID() *p4v1.Uint128 { return &p4v1.Uint128{Low: 1} }

// Close ends the stream and the connection.
func (c *Client) Close() error {
	c.cancel()
	<-c.ended
	return c.conn.Close()
}

// Err is why the stream has ended, nil while it has not.
func (c *Client) Err() error {
	select {
	case <-c.ended:
		return c.err
	default:
		return nil
	}
}

func (c *Client) receive() {
	defer func() {
		close(c.PacketIns)
		close(c.IdleTimeouts)
		close(c.ended)
	}()
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.err = err
			return
		}
		switch u := m.GetUpdate().(type) {
		case *p4v1.StreamMessageResponse_Packet:
			h, err := tables.DecodePacketIn(u.Packet)
			if err != nil {
				c.err = err
				return
			}
			c.PacketIns <- Punted{h, u.Packet.GetPayload()}
		case *p4v1.StreamMessageResponse_IdleTimeoutNotification:
			for _, te := range u.IdleTimeoutNotification.GetTableEntry() {
				c.IdleTimeouts <- te
			}
		case *p4v1.StreamMessageResponse_Error:
			c.err = fmt.Errorf("stream error %d: %s", u.Error.GetCanonicalCode(), u.Error.GetMessage())
			return
		}
	}
}

// PacketOut has the data plane send or take back a frame.
func (c *Client) PacketOut(h tables.PacketOut, frame []byte) error {
	m, err := h.ToProto(frame)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream.Send(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Packet{Packet: m}})
}

// Write applies updates as one batch; an error names those that failed.
func (c *Client) Write(ctx context.Context, updates ...*p4v1.Update) error {
	if len(updates) == 0 {
		return nil
	}
	_, err := c.rpc.Write(ctx, &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: electionID(), Updates: updates})
	if err == nil {
		return nil
	}
	const most = 3 // failures are seldom alone
	errs := []error{fmt.Errorf("write: %w", err)}
	for i, d := range status.Convert(err).Details() {
		if e, ok := d.(*p4v1.Error); ok && e.GetCanonicalCode() != 0 && i < len(updates) && len(errs) <= most {
			errs = append(errs, fmt.Errorf("update %d, %v: code %d: %s", i, updates[i], e.GetCanonicalCode(), e.GetMessage()))
		}
	}
	return errors.Join(errs...)
}

// Read returns the entities that match those given.
func (c *Client) Read(ctx context.Context, entities ...*p4v1.Entity) ([]*p4v1.Entity, error) {
	stream, err := c.rpc.Read(ctx, &p4v1.ReadRequest{DeviceId: deviceID, Entities: entities})
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	var all []*p4v1.Entity
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		all = append(all, m.GetEntities()...)
	}
}

// Counts is what the pipeline's counters show, by index; cells at 0 are absent.
type Counts struct {
	Rx, Tx   map[uint16]int64
	Drops    map[tables.Reason]int64
	Punts    map[tables.Reason]int64
	Outcomes map[tables.Outcome]int64
}

// Counts reads all indirect counters.
func (c *Client) Counts(ctx context.Context) (Counts, error) {
	n := Counts{map[uint16]int64{}, map[uint16]int64{}, map[tables.Reason]int64{}, map[tables.Reason]int64{}, map[tables.Outcome]int64{}}
	var ask []*p4v1.Entity
	for _, id := range []uint32{tables.PortRxCounterID, tables.PortTxCounterID, tables.DropsCounterID, tables.PuntsCounterID, tables.OutcomesCounterID} {
		ask = append(ask, &p4v1.Entity{Entity: &p4v1.Entity_CounterEntry{CounterEntry: &p4v1.CounterEntry{CounterId: id}}})
	}
	all, err := c.Read(ctx, ask...)
	if err != nil {
		return n, err
	}
	for _, e := range all {
		cell := e.GetCounterEntry()
		i, v := cell.GetIndex().GetIndex(), cell.GetData().GetPacketCount()
		if v == 0 {
			continue
		}
		switch cell.GetCounterId() {
		case tables.PortRxCounterID:
			n.Rx[uint16(i)] = v
		case tables.PortTxCounterID:
			n.Tx[uint16(i)] = v
		case tables.DropsCounterID:
			n.Drops[tables.Reason(i)] = v
		case tables.PuntsCounterID:
			n.Punts[tables.Reason(i)] = v
		case tables.OutcomesCounterID:
			n.Outcomes[tables.Outcome(i)] = v
		}
	}
	return n, nil
}

// Sub returns what was counted since before.
func (n Counts) Sub(before Counts) Counts {
	return Counts{
		sub(n.Rx, before.Rx), sub(n.Tx, before.Tx), sub(n.Drops, before.Drops),
		sub(n.Punts, before.Punts), sub(n.Outcomes, before.Outcomes),
	}
}

func sub[K comparable](a, b map[K]int64) map[K]int64 {
	d := map[K]int64{}
	for k, v := range a {
		if v != b[k] {
			d[k] = v - b[k]
		}
	}
	return d
}

// CloneSession is the update that makes copies for the CPU possible.
func CloneSession(kind p4v1.Update_Type) *p4v1.Update {
	return &p4v1.Update{Type: kind, Entity: &p4v1.Entity{Entity: &p4v1.Entity_PacketReplicationEngineEntry{
		PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{
			CloneSessionEntry: &p4v1.CloneSessionEntry{
				SessionId: tables.CPUCloneSession,
				Replicas:  []*p4v1.Replica{{EgressPort: tables.CPUPort, Instance: 1}},
			},
		}},
	}}}
}
