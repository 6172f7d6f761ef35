package engine

import (
	"countersign/tables"
	"countersign/tag"
)

// minMTU is below every trunk's (docs/wire.md), so that nothing wraps.
const minMTU = 576

// mss is the stage of that name: the MSS of SYN and SYN-ACK that leave by a
// trunk is lowered to what fits behind the tag (RFC 6691). It reports whether
// it was.
func (m *meta) mss() bool {
	if !m.putTag || m.hop.role != tables.RoleTrunk || m.view.MSSAt == 0 || m.kind() != tag.KindPorts || m.hop.mtu < minMTU {
		return false
	}
	headers := 40 // of IPv4 and TCP
	if m.view.Family == 6 {
		headers = 60
	}
	return m.view.ClampMSS(m.frame, uint16(int(m.hop.mtu)-headers-m.newTagLen))
}
