package p4rtserver_test

import (
	"context"
	"io"
	"log/slog"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"countersign/fallback/p4rtserver"
)

// fuzzKinds is what the first byte of an input selects.
const (
	fuzzWrite = iota
	fuzzRead
	fuzzStream
	fuzzPipeline
	fuzzKinds
)

// FuzzRequests decodes bytes as requests and runs them against an in-memory
// target with some state. Nothing may panic, and what is read must have a key
// that the server recognises as its own.
func FuzzRequests(f *testing.F) {
	seed := func(kind byte, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(kind, b)
	}
	info := loadP4Info(f)
	var all []*p4v1.Update
	for _, e := range everything {
		all = append(all, update(f, `INSERT `+e))
		for _, op := range []string{`INSERT `, `MODIFY `, `DELETE `} {
			seed(fuzzWrite, &p4v1.WriteRequest{Updates: []*p4v1.Update{update(f, op+e)}})
		}
		seed(fuzzRead, &p4v1.ReadRequest{Entities: []*p4v1.Entity{parse(f, new(p4v1.Entity), e)}})
	}
	for _, e := range []string{`table_entry { }`, `counter_entry { }`, `meter_entry { }`, `direct_counter_entry { }`, `direct_meter_entry { }`,
		`action_profile_member { }`, `packet_replication_engine_entry { clone_session_entry { } }`, `digest_entry { }`} {
		seed(fuzzRead, &p4v1.ReadRequest{Entities: []*p4v1.Entity{parse(f, new(p4v1.Entity), e)}})
		seed(fuzzWrite, &p4v1.WriteRequest{Updates: []*p4v1.Update{update(f, `MODIFY `+e)}})
	}
	for _, m := range []string{`arbitration { device_id: 7 role { name: "x" } election_id { low: 9 } }`, `digest_ack { digest_id: 1 }`, `other { }`,
		`packet { payload: "x" metadata { metadata_id: 1 value: "\x01" } metadata { metadata_id: 2 value: "\x01" } }`} {
		seed(fuzzStream, parse(f, new(p4v1.StreamMessageRequest), m))
	}
	for _, action := range []p4v1.SetForwardingPipelineConfigRequest_Action{verify, verifyAndSave, verifyAndCommit, commitSaved, reconcile} {
		seed(fuzzPipeline, &p4v1.SetForwardingPipelineConfigRequest{Action: action, Config: config(info, 1)})
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	election := &p4v1.Uint128{Low: 1}

	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		target := constTarget()
		s, err := p4rtserver.New(target, p4rtserver.Options{DeviceID: deviceID, Logger: quiet, PacketInQueue: 1})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		st := s.OpenStream()
		if err := st.Handle(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{
			Arbitration: &p4v1.MasterArbitrationUpdate{DeviceId: deviceID, ElectionId: election}}}); err != nil {
			t.Fatal(err)
		}
		setPipeline := func(req *p4v1.SetForwardingPipelineConfigRequest) error {
			_, err := s.SetForwardingPipelineConfig(ctx, req)
			return err
		}
		if err := setPipeline(&p4v1.SetForwardingPipelineConfigRequest{DeviceId: deviceID, ElectionId: election, Action: verifyAndCommit, Config: config(info, 1)}); err != nil {
			t.Fatal(err)
		}
		write := func(req *p4v1.WriteRequest) error {
			_, err := s.Write(ctx, req)
			return err
		}
		if err := write(&p4v1.WriteRequest{DeviceId: deviceID, ElectionId: election, Updates: all}); err != nil {
			t.Fatal(err)
		}
		switch kind % fuzzKinds {
		case fuzzWrite:
			req := new(p4v1.WriteRequest)
			if proto.Unmarshal(data, req) != nil {
				return
			}
			write(req)
			req.DeviceId, req.Role, req.ElectionId, req.Atomicity = deviceID, "", election, 0
			write(req)
		case fuzzRead:
			req := new(p4v1.ReadRequest)
			if proto.Unmarshal(data, req) != nil {
				return
			}
			req.DeviceId = deviceID
			s.ReadAll(req)
		case fuzzStream:
			req := new(p4v1.StreamMessageRequest)
			if proto.Unmarshal(data, req) != nil {
				return
			}
			if st.Handle(req) == nil {
				st.Handle(req)
			}
			s.OpenStream().Handle(req)
			return
		case fuzzPipeline:
			req := new(p4v1.SetForwardingPipelineConfigRequest)
			if proto.Unmarshal(data, req) != nil {
				return
			}
			setPipeline(req)
			req.DeviceId, req.Role, req.ElectionId = deviceID, "", election
			setPipeline(req)
			req.Action = reconcile
			setPipeline(req)
		}
		entries, err := s.ReadAll(&p4v1.ReadRequest{DeviceId: deviceID, Entities: []*p4v1.Entity{parse(t, new(p4v1.Entity), `table_entry { }`)}})
		if err != nil {
			t.Fatalf("reading all entries: %v", err)
		}
		for _, e := range entries {
			if e.GetTableEntry().GetTableId() == fixed {
				continue
			}
			err := write(&p4v1.WriteRequest{DeviceId: deviceID, ElectionId: election, Updates: []*p4v1.Update{{Type: p4v1.Update_INSERT, Entity: e}}})
			if errs := updateErrors(t, err); codes.Code(errs[0].GetCanonicalCode()) != codes.AlreadyExists {
				t.Errorf("inserting %v again: %v, expected ALREADY_EXISTS", e, errs[0])
			}
		}
		s.Close()
		if n := target.Open(); n != 0 {
			t.Errorf("%d pipelines are open at the end", n)
		}
	})
}
