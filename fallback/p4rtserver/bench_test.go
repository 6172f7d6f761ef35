package p4rtserver_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/fallback/p4rtserver"
)

// BenchmarkInsert inserts entries of the shape of a session (an exact key of
// several fields, an action with parameters) over a Unix socket.
func BenchmarkInsert(b *testing.B) {
	for _, batch := range []int{1, 200} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			c := newRig(b, nil, p4rtserver.Options{}).primary()
			info := loadP4Info(b)
			info.Tables[0].Size = 0
			if err := c.commit(info, 1); err != nil {
				b.Fatal(err)
			}
			updates := make([]*p4v1.Update, 0, batch)
			b.ReportAllocs()
			for i := range b.N {
				updates = append(updates, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: sessionEntity(uint32(i))})
				if len(updates) == batch || i == b.N-1 {
					if err := c.write(updates...); err != nil {
						b.Fatal(err)
					}
					updates = updates[:0]
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// BenchmarkRead reads a whole table over a Unix socket.
func BenchmarkRead(b *testing.B) {
	const n = 100_000
	c := newRig(b, nil, p4rtserver.Options{}).primary()
	info := loadP4Info(b)
	info.Tables[0].Size = 0
	if err := c.commit(info, 1); err != nil {
		b.Fatal(err)
	}
	for i := range n / 1000 {
		var updates []*p4v1.Update
		for j := range 1000 {
			updates = append(updates, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: sessionEntity(uint32(1000*i + j))})
		}
		if err := c.write(updates...); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		got, err := c.read(`table_entry { table_id: 0x02000001 }`)
		if err != nil || len(got) != n {
			b.Fatalf("%d entries, %v", len(got), err)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkDecode is the server's share of an insert: checks and translation.
func BenchmarkDecode(b *testing.B) {
	s, err := p4rtserver.New(nopTarget{}, p4rtserver.Options{DeviceID: deviceID, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	election := &p4v1.Uint128{Low: 1}
	if err := s.OpenStream().Handle(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{
		Arbitration: &p4v1.MasterArbitrationUpdate{DeviceId: deviceID, ElectionId: election}}}); err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	if _, err := s.SetForwardingPipelineConfig(ctx, &p4v1.SetForwardingPipelineConfigRequest{DeviceId: deviceID, ElectionId: election, Action: verifyAndCommit, Config: config(loadP4Info(b), 1)}); err != nil {
		b.Fatal(err)
	}
	req := &p4v1.WriteRequest{DeviceId: deviceID, ElectionId: election}
	for i := range 200 {
		req.Updates = append(req.Updates, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: sessionEntity(uint32(i))})
	}
	b.ReportAllocs()
	for i := 0; i < b.N; i += len(req.Updates) {
		if _, err := s.Write(ctx, req); err != nil {
			b.Fatal(err)
		}
	}
}

func sessionEntity(i uint32) *p4v1.Entity {
	exact := func(id uint32, v []byte) *p4v1.FieldMatch {
		return &p4v1.FieldMatch{FieldId: id, FieldMatchType: &p4v1.FieldMatch_Exact_{Exact: &p4v1.FieldMatch_Exact{Value: v}}}
	}
	return &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{
		TableId:       bridge,
		Match:         []*p4v1.FieldMatch{exact(1, binary.BigEndian.AppendUint32([]byte{2, 0}, i)), exact(2, []byte{1})},
		IdleTimeoutNs: 30e9,
		Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{ActionId: forward, Params: []*p4v1.Action_Param{
			{ParamId: 1, Value: []byte{5}}, {ParamId: 2, Value: []byte{2, 0, 0, 0, 0, 1}}}}}},
	}}}
}

// nopTarget takes everything and keeps nothing.
type nopTarget struct{}

func (nopTarget) Load(*p4v1.ForwardingPipelineConfig, p4rtserver.Upcalls) (p4rtserver.Pipeline, error) {
	return nopPipeline{}, nil
}

type nopPipeline struct{ p4rtserver.Unimplemented }

func (nopPipeline) Activate() error                                                     { return nil }
func (nopPipeline) Close()                                                              {}
func (nopPipeline) Flush()                                                              {}
func (nopPipeline) WriteTable(p4rtserver.Op, *p4rtserver.Entry) error                   { return nil }
func (nopPipeline) Lookup(*p4rtserver.Entry, p4rtserver.Want) error                     { return nil }
func (nopPipeline) Entries(uint32, p4rtserver.Want, func(*p4rtserver.Entry) bool) error { return nil }
