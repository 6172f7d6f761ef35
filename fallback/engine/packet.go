package engine

import (
	"fmt"

	"countersign/fallback/pktio"
	"countersign/tables"
)

// Verdict is what becomes of a packet. The zero value is Drop.
type Verdict uint8

// The verdicts.
const (
	Drop    Verdict = iota // for Reason
	Forward                // Frame is rewritten and leaves by Egress
	Punt                   // held: the frame as it came went to the CPU, for Reason
)

// String is the verdict's name in reports.
func (v Verdict) String() string {
	switch v {
	case Drop:
		return "drop"
	case Forward:
		return "forward"
	case Punt:
		return "punt"
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// Stage names the stage of the pipeline that decided about a packet. The zero
// value is none: no pipeline was loaded, or the CPU sent the packet.
type Stage uint8

// The stages in the pipeline's order, named as in the P4 program.
const (
	StageNone Stage = iota
	StagePort
	StageAnomaly
	StageSourceGuard
	StageLists
	StageService
	StageMitigation
	StageIssuerKey
	StageVouched
	StageReplay
	StageEgressPort
	StageDelivered
	StageSession
	StagePolicy
	StageOwnTag
	StagePunt
	StageEgress
	stageCount
)

var stageNames = [stageCount]string{
	"none", "port", "anomaly", "source_guard", "lists", "service", "mitigation", "issuer_key", "vouched",
	"replay", "egress_port", "delivered", "session", "policy", "own_tag", "punt", "egress",
}

// String is the stage's name in the P4 program.
func (s Stage) String() string {
	if s < stageCount {
		return stageNames[s]
	}
	return fmt.Sprintf("stage(%d)", uint8(s))
}

// Packet is one frame on its way through the pipeline: Frame and InPort are
// given to Process, which sets the rest. The zero value lacks a frame; it is
// not safe for concurrent use.
type Packet struct {
	Frame  *pktio.Frame
	InPort uint16

	Verdict Verdict
	Reason  tables.Reason // of Drop and Punt
	Copied  tables.Reason // why a copy went to the CPU besides; ReasonNone where none did
	Stage   Stage         // where Drop or Punt was decided; StageEgress for Forward
	Egress  uint16        // port, with Forward
}
