package engine

import (
	"encoding/binary"

	"countersign/packet"
	"countersign/tables"
)

// Flags of the action port_config.
const (
	allowUntagged = tables.PortAllowUntagged
	carrierUDP    = tables.PortCarrierUDP
	transparent   = tables.PortTransparent
)

// portKey is in_port(16) | vlan(12), the key of port and cross_connect.
func portKey(port, vlan uint16) uint64 { return uint64(port)<<12 | uint64(vlan) }

// vlanOf is the VID of a frame, 0 without 802.1Q tag.
func vlanOf(frame []byte) uint16 {
	if len(frame) >= 18 && frame[12] == 0x81 && frame[13] == 0 {
		return binary.BigEndian.Uint16(frame[14:]) & 0xfff
	}
	return 0
}

// portEntries is what the tables port and cross_connect have for one port and
// VLAN. A worker keeps it within a batch, whose packets mostly share them.
type portEntries struct {
	valid, known, crossed bool
	key                   uint64
	config                uint64 // role(8) | zone(16) | flags(8)
	to                    uint64 // port(16) | role(8) | zone(16) | mtu(16)
}

func (pl *pipeline) lookUpPort(p *portEntries, key uint64) {
	*p = portEntries{valid: true, key: key}
	h := pl.hashes.one(key)
	if e := pl.ports.find(h, &key); e != nil {
		p.known, p.config = true, e.val.Load()
	}
	if e := pl.crossConnects.find(h, &key); e != nil {
		p.crossed, p.to = true, e.val.Load()
	}
}

// port is the stage of that name: ingress port and VLAN give the role and the
// zone; the alliance's carrier, a flag of the port, settles whether the packet
// is tagged; step 0 of verifying says what may appear on a port of this role.
func (pl *pipeline) port(m *meta, p *portEntries) {
	m.vlan = vlanOf(m.frame)
	if key := portKey(m.inPort, m.vlan); !p.valid || p.key != key {
		pl.lookUpPort(p, key)
	}
	if !p.known {
		m.drop(StagePort, tables.ReasonUnknownPort)
		return
	}
	config := p.config
	m.role, m.zone, m.flags = tables.Role(config>>24), uint16(config>>8), uint8(config)
	m.carrier = pl.carrier
	m.carrier.UDP = m.flags&carrierUDP != 0

	v := &m.view
	m.finding = packet.Parse(m.frame, m.carrier, v)
	m.tagged = v.Tagged
	m.ipLen = v.End - v.L3
	switch m.finding {
	case packet.None:
		switch {
		case v.ARP:
		case m.tagged && m.role == tables.RoleEdge:
			m.drop(StagePort, tables.ReasonTagOnEdge)
		case m.tagged && m.role == tables.RoleEcho && !v.Tag.Echoed():
			m.drop(StagePort, tables.ReasonTagOnEdge)
		case m.tagged && m.role == tables.RoleTrunk && v.Tag.Echoed():
			m.drop(StagePort, tables.ReasonTagMalformed)
		case !m.tagged && m.role == tables.RoleTrunk && m.flags&allowUntagged == 0 &&
			!v.Has(packet.ND|packet.QuotedCarrier):
			m.drop(StagePort, tables.ReasonUntaggedOnTrunk)
		}
	case packet.TagMalformed, packet.TagFragmented, packet.TagMisplaced:
		if m.finding != packet.TagMisplaced {
			m.tagged = true
		}
		if m.tagged && m.role == tables.RoleEdge {
			m.drop(StagePort, tables.ReasonTagOnEdge)
		}
	}
}
