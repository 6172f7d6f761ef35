// Package bmv2 measures how many packets a second the P4 program verifies and
// tags anew on bmv2, beside plain forwarding on the same bmv2 in the same run,
// so that the ratio means something on a busy machine too.
package bmv2

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/protobuf/encoding/prototext"

	"countersign/fallback/pktio"
	"countersign/p4src"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
	"countersign/test/dataplane"
)

//go:embed testdata/forward.json
var forwardJSON []byte

//go:embed testdata/forward.p4info.txtpb
var forwardInfo []byte

// SketchRatio is what a first sketch of the program reached: 9,000 packets a
// second where plain forwarding ran 52,000.
const SketchRatio = 9.0 / 52

// The ports of both switches: packets come in by one and leave by the other.
const in, out = 1, 2

// Result is what Compare has measured: packets a second, and the processor time
// that a packet takes in all of bmv2's threads, which another load on the
// machine disturbs less.
type Result struct {
	Forward, Retag       float64 // plain forwarding; suite 1 verified, and the member's own tag in its place
	ForwardCPU, RetagCPU time.Duration
}

// Ratio is Retag to Forward.
func (r Result) Ratio() float64 { return r.Retag / r.Forward }

// Compare measures both in turns, rounds times for d each, and returns the
// medians. It fails with dataplane.ErrUnavailable where there is no bmv2.
func Compare(ctx context.Context, rounds int, d time.Duration) (r Result, err error) {
	plain, err := forwarding(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	retag, err := retagging(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, retag.Close()) }()

	frame, err := tagged()
	if err != nil {
		return r, err
	}
	var pps [2][]float64
	var cpu [2][]time.Duration
	for range rounds {
		for i, s := range []*dataplane.Switch{plain, retag} {
			before, err := s.CPU()
			if err != nil {
				return r, err
			}
			packets, elapsed, err := measure(ctx, s, frame, d)
			if err != nil {
				return r, err
			}
			after, err := s.CPU()
			if err != nil {
				return r, err
			}
			pps[i] = append(pps[i], float64(packets)/elapsed.Seconds())
			cpu[i] = append(cpu[i], (after-before)/time.Duration(packets))
		}
	}
	return Result{median(pps[0]), median(pps[1]), median(cpu[0]), median(cpu[1])}, nil
}

func median[T cmp.Ordered](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}

func forwarding(ctx context.Context) (*dataplane.Switch, error) {
	info := new(p4configv1.P4Info)
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(forwardInfo, info); err != nil {
		return nil, fmt.Errorf("embedded P4Info: %w", err)
	}
	s, err := dataplane.Start(ctx, dataplane.Options{Kind: dataplane.BMv2, Info: info, Program: forwardJSON, Ports: []uint16{in, out}})
	if err != nil {
		return nil, err
	}
	const table, send = 0x02000001, 0x01000001
	err = s.Write(ctx, &p4v1.Update{Type: p4v1.Update_INSERT, Entity: &p4v1.Entity{Entity: &p4v1.Entity_TableEntry{TableEntry: &p4v1.TableEntry{
		TableId: table,
		Match:   []*p4v1.FieldMatch{{FieldId: 1, FieldMatchType: &p4v1.FieldMatch_Exact_{Exact: &p4v1.FieldMatch_Exact{Value: []byte{in}}}}},
		Action: &p4v1.TableAction{Type: &p4v1.TableAction_Action{Action: &p4v1.Action{
			ActionId: send, Params: []*p4v1.Action_Param{{ParamId: 1, Value: []byte{out}}},
		}}},
	}}}})
	return closeOn(err, s)
}

// The issuer of what comes in, the member's own keys, and the packet.
const (
	issuer, issuerEpoch = 0x01020304, 5
	own, ownEpoch       = 0x0a0b0c0d, 7
	target              = 0x0a000209 // 10.0.2.9
)

var issuerMAC, ownMAC = tag.MACKey{1: 1}, tag.MACKey{2: 2}

func retagging(ctx context.Context) (*dataplane.Switch, error) {
	info, err := p4src.P4Info()
	if err != nil {
		return nil, err
	}
	s, err := dataplane.Start(ctx, dataplane.Options{Kind: dataplane.BMv2, Info: info, Program: p4src.JSON, Ports: []uint16{in, out}})
	if err != nil {
		return nil, err
	}
	k0, k1 := issuerMAC.Words()
	own0, own1 := ownMAC.Words()
	var updates []*p4v1.Update
	for _, e := range []tables.Entry{
		tables.PortEntry{Key: tables.PortKey{InPort: in}, Action: tables.PortConfig{Role: tables.RoleTrunk, Zone: in}},
		tables.PortEntry{Key: tables.PortKey{InPort: out}, Action: tables.PortConfig{Role: tables.RoleTrunk, Zone: out}},
		tables.EgressPortV4Entry{Key: tables.EgressPortV4Key{Dst: tables.LPM[uint32]{Value: target, PrefixLen: 24}}, Action: tables.NextHopsOneShot{{
			Action: tables.NextHop{Port: out, Role: tables.RoleTrunk, Zone: out, MTU: 1500, SrcMAC: 0x0200000000aa, DstMAC: 0x0200000000bb}, Weight: 1,
		}}},
		tables.IssuerKeyEntry{Key: tables.IssuerKeyKey{Suite: tables.SuiteSiphash, UNID: issuer, Epoch: issuerEpoch},
			Action: tables.SiphashKey{State: tables.KeyStateAccepted, K0: k0, K1: k1}},
		tables.OwnKeyEntry{Key: tables.OwnKeyKey{Role: tables.RoleTrunk},
			Action: tables.SignSiphash{UNID: own, Epoch: ownEpoch, K0: own0, K1: own1, NonceSalt: 1}},
	} {
		u, err := e.Update(p4v1.Update_INSERT)
		if err != nil {
			return closeOn(err, s)
		}
		updates = append(updates, u)
	}
	return closeOn(s.Write(ctx, updates...), s)
}

func closeOn(err error, s *dataplane.Switch) (*dataplane.Switch, error) {
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// tagged is a frame with a UDP packet of 64 bytes to target and a valid tag.
func tagged() ([]byte, error) {
	ip := make([]byte, 64)
	copy(ip, []byte{0x45, 0, 0, 64, 0, 0, 0, 0, 64, 17, 0x63, 0x9c, 10, 0, 1, 9, 10, 0, 2, 9, 3, 232, 7, 208, 0, 44})
	var v packet.View
	if a := packet.ParseIP(ip, packet.DefaultCarrier, &v); a != packet.None || v.Has(packet.BadChecksum) {
		return nil, fmt.Errorf("packet to measure with: %v", a)
	}
	h, err := tag.NewSiphashKey(issuerMAC).Issue(issuer, issuerEpoch, 1, &v.Tuple)
	if err != nil {
		return nil, err
	}
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}
	return packet.Insert(frame, ip, packet.DefaultCarrier, &h)
}

// measure sends frame as fast as it comes out again, with a few packets under
// way: bmv2 drops what waits behind 64 others.
func measure(ctx context.Context, s *dataplane.Switch, frame []byte, d time.Duration) (packets uint64, elapsed time.Duration, err error) {
	const burst, window = 16, 64
	const pause, lost = 100 * time.Microsecond, 50 * time.Millisecond
	var ports []pktio.Port
	if err := s.Peer.Do(func() (err error) {
		ports, err = pktio.Open(dataplane.PortName(in), pktio.Options{RingFrames: 1})
		return err
	}); err != nil {
		return 0, 0, err
	}
	defer ports[0].Close()
	frames := pktio.NewFrames(burst)
	for _, f := range frames {
		if err := f.Set(frame); err != nil {
			return 0, 0, err
		}
	}
	received := func() (uint64, error) {
		stats, err := s.Peer.LinkStats(dataplane.PortName(out))
		return stats.RxPackets, err
	}
	first, err := received()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	got, underWay, progress := uint64(0), 0, start
	for time.Since(start) < d && ctx.Err() == nil {
		if underWay+burst <= window {
			n, err := ports[0].Send(frames)
			if err != nil {
				return 0, 0, err
			}
			underWay += n
			continue
		}
		time.Sleep(pause)
		now, err := received()
		if err != nil {
			return 0, 0, err
		}
		if n := now - first - got; n > 0 {
			got, underWay, progress = got+n, max(underWay-int(n), 0), time.Now()
		} else if time.Since(progress) > lost {
			underWay, progress = 0, time.Now()
		}
	}
	elapsed = time.Since(start)
	if got == 0 {
		return 0, 0, fmt.Errorf("no packet came through in %v", elapsed)
	}
	return got, elapsed, ctx.Err()
}
