package engine

import (
	"countersign/tag"
)

// mss is the stage of that name: the MSS of SYN and SYN-ACK that leave by a
// trunk is lowered to what fits behind the tag (RFC 6691).
func (m *meta) mss(frame []byte) {
	const ipv4AndTCP, more6 = 40, 20
	overhead := m.newTagLen + ipv4AndTCP
	if m.view.Family == 6 {
		overhead += more6
	}
	if mtu := int(m.hop.mtu); mtu > overhead && m.kind() == tag.KindPorts {
		m.view.ClampMSS(frame, uint16(mtu-overhead))
	}
}
