package engine

import (
	"encoding/binary"

	"countersign/packet"
	"countersign/tables"
)

var anomalyReasons = [...]tables.Reason{
	packet.Truncated:     tables.ReasonTruncated,
	packet.VLANStacked:   tables.ReasonVLANStacked,
	packet.NotIP:         tables.ReasonNotIP,
	packet.IPVersion:     tables.ReasonIPVersion,
	packet.BadLength:     tables.ReasonBadLength,
	packet.BadOptions:    tables.ReasonBadOptions,
	packet.Jumbogram:     tables.ReasonJumbogram,
	packet.TagFragmented: tables.ReasonTagFragmented,
	packet.TagMalformed:  tables.ReasonTagMalformed,
	packet.TagMisplaced:  tables.ReasonTagMisplaced,
	packet.L4Truncated:   tables.ReasonL4Truncated,
}

// anomaly is the stage of that name: what the parser found wrong, and the fixed
// rules about shapes that are never forwarded. ARP and neighbour discovery
// leave here for the CPU, because the rules about scope would drop them.
func anomaly(m *meta) {
	v := &m.view
	switch {
	case m.finding != packet.None:
		m.drop(StageAnomaly, anomalyReasons[m.finding])
	case v.ARP || v.Has(packet.ND):
		if m.flags&transparent != 0 {
			m.raw = true
		} else {
			m.hold(StageAnomaly, tables.ReasonToMe)
		}
	case m.returned:
	case badChecksum(m):
		m.drop(StageAnomaly, tables.ReasonBadChecksum)
	case v.Flags&(packet.SourceRoute|packet.UnreadableChain|packet.LinkScope|packet.Martian) == 0 && !taggedND(v):
	case v.Has(packet.SourceRoute):
		m.drop(StageAnomaly, tables.ReasonSourceRoute)
	case v.Has(packet.UnreadableChain):
		m.drop(StageAnomaly, tables.ReasonUnreadableChain)
	case v.Has(packet.LinkScope) || taggedND(v):
		m.drop(StageAnomaly, tables.ReasonLinkScope)
	default:
		m.drop(StageAnomaly, tables.ReasonMartian)
	}
}

// badChecksum is the P4 program's comparison, for which 0xffff is not another
// way to write 0.
func badChecksum(m *meta) bool {
	v := &m.view
	return v.Has(packet.BadChecksum) || v.Family == 4 && binary.BigEndian.Uint16(m.frame[v.L3+10:]) == 0xffff
}

// taggedND reports neighbour discovery under a tag; packet.ND is untagged.
func taggedND(v *packet.View) bool {
	return v.Family == 6 && v.Tagged && !v.Fragment && v.Protocol == 58 && v.ICMPType >= 133 && v.ICMPType <= 137
}
