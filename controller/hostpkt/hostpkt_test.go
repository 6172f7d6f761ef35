package hostpkt

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const (
	hostMAC uint64 = 0x020000000001
	ownMAC  uint64 = 0x02000000000a
)

var (
	host4, own4, far4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("198.51.100.7")
	host6, own6, far6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::fe"), netip.MustParseAddr("2001:db8:1::77:1234")
)

func hw(mac uint64) net.HardwareAddr {
	b := make([]byte, 6)
	putMAC(b, mac)
	return b
}

type packet struct {
	dst, src uint64
	vlan     uint16
	ls       []gopacket.SerializableLayer
}

func from(ls ...gopacket.SerializableLayer) packet {
	return packet{dst: ownMAC, src: hostMAC, ls: ls}
}

func (p packet) bytes(t testing.TB) []byte {
	t.Helper()
	kind := layers.EthernetTypeIPv4
	switch p.ls[0].(type) {
	case *layers.IPv6:
		kind = layers.EthernetTypeIPv6
	case *layers.ARP:
		kind = layers.EthernetTypeARP
	}
	eth := &layers.Ethernet{DstMAC: hw(p.dst), SrcMAC: hw(p.src), EthernetType: kind}
	all := []gopacket.SerializableLayer{eth}
	if p.vlan != 0 {
		eth.EthernetType = layers.EthernetTypeDot1Q
		all = append(all, &layers.Dot1Q{VLANIdentifier: p.vlan, Priority: 5, Type: kind})
	}
	return serialize(t, append(all, p.ls...)...)
}

// serialize computes lengths and checksums.
func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var link []byte
	if eth, ok := all[0].(*layers.Ethernet); ok { // by hand, as gopacket pads
		link = binary.BigEndian.AppendUint16(slices.Concat(eth.DstMAC, eth.SrcMAC), uint16(eth.EthernetType))
		all = all[1:]
	}
	var network gopacket.NetworkLayer
	for _, l := range all {
		if n, ok := l.(gopacket.NetworkLayer); ok {
			network = n
		}
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := c.SetNetworkLayerForChecksum(network); err != nil {
				t.Fatal(err)
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return append(link, buf.Bytes()...)
}

// decode decodes what we made, and proves its lengths and checksums by making it
// again.
func decode(t *testing.T, frame []byte) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("%v\n%v", e.Error(), p)
	}
	var all []gopacket.SerializableLayer
	for _, l := range p.Layers() {
		s, ok := l.(gopacket.SerializableLayer)
		if !ok {
			t.Fatalf("cannot serialize %v", l.LayerType())
		}
		all = append(all, s)
		if l.LayerType() == layers.LayerTypeICMPv6 { // the layers above it lose their payload
			all = append(all, gopacket.Payload(l.LayerPayload()))
			break
		}
	}
	if again := serialize(t, all...); !bytes.Equal(again, frame) {
		t.Errorf("lengths or checksums are wrong:\n%x\nshould be\n%x", frame, again)
	}
	return p
}

func layer[T gopacket.Layer](t *testing.T, p gopacket.Packet, kind gopacket.LayerType) T {
	t.Helper()
	l, ok := p.Layer(kind).(T)
	if !ok {
		t.Fatalf("no %v in\n%v", kind, p)
	}
	return l
}

func checkEnds(t *testing.T, p gopacket.Packet, dst, src uint64, to, by netip.Addr, vlan uint16) {
	t.Helper()
	eth := layer[*layers.Ethernet](t, p, layers.LayerTypeEthernet)
	if getMAC(eth.DstMAC) != dst || getMAC(eth.SrcMAC) != src {
		t.Errorf("from %v to %v", eth.SrcMAC, eth.DstMAC)
	}
	if vlan != 0 {
		if q := layer[*layers.Dot1Q](t, p, layers.LayerTypeDot1Q); q.VLANIdentifier != vlan {
			t.Errorf("VLAN %d, want %d", q.VLANIdentifier, vlan)
		}
	} else if p.Layer(layers.LayerTypeDot1Q) != nil {
		t.Error("has a VLAN tag")
	}
	if !to.IsValid() {
		return
	}
	flow := p.NetworkLayer().NetworkFlow()
	if !bytes.Equal(flow.Dst().Raw(), to.AsSlice()) || !bytes.Equal(flow.Src().Raw(), by.AsSlice()) {
		t.Errorf("%v, want from %v to %v", flow, by, to)
	}
}

func v4(src, dst netip.Addr, protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, Id: 0x1234, TTL: 9, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func v6(src, dst netip.Addr, next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 9, NextHeader: next, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func arp(op uint16, mac uint64, src netip.Addr, dstMAC uint64, dst netip.Addr) *layers.ARP {
	return &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
		SourceHwAddress: hw(mac), SourceProtAddress: src.AsSlice(), DstHwAddress: hw(dstMAC), DstProtAddress: dst.AsSlice(),
	}
}

// nd is a solicitation or advertisement with its options.
func nd(src, dst netip.Addr, kind uint8, flags uint8, target netip.Addr, options ...byte) packet {
	ip := v6(src, dst, layers.IPProtocolICMPv6)
	ip.HopLimit = 255
	body := append([]byte{flags, 0, 0, 0}, target.AsSlice()...)
	p := from(ip, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, gopacket.Payload(append(body, options...)))
	if dst.IsMulticast() {
		p.dst = 0x3333<<32 | uint64(binary.BigEndian.Uint32(dst.AsSlice()[12:]))
	}
	return p
}

func option(kind uint8, mac uint64) []byte { return append([]byte{kind, 1}, hw(mac)...) }

var (
	group6   = netip.MustParseAddr("ff02::1:ff00:fe") // solicited-node of own6
	none4    = netip.IPv4Unspecified()
	none6    = netip.IPv6Unspecified()
	linkMAC  = option(1, hostMAC)
	otherMAC = option(2, hostMAC)
)

// flip changes a bit after the checksum was made.
func flip(b []byte, at int) []byte {
	b[at] ^= 1
	return b
}

func TestParseNeighbour(t *testing.T) {
	arpFrame := func(a *layers.ARP) []byte { return from(a).bytes(t) }
	tagged := nd(host6, group6, 135, 0, own6, linkMAC...)
	tagged.vlan = 7
	lowHops := nd(host6, group6, 135, 0, own6, linkMAC...)
	lowHops.ls[0].(*layers.IPv6).HopLimit = 254
	code := nd(host6, group6, 135, 0, own6, linkMAC...)
	code.ls[1].(*layers.ICMPv6).TypeCode = layers.CreateICMPv6TypeCode(135, 1)
	for _, c := range []struct {
		name  string
		frame []byte
		want  Neighbour
		ok    bool
	}{
		{"ARP request", arpFrame(arp(1, hostMAC, host4, 0, own4)), Neighbour{host4, hostMAC, own4, true}, true},
		{"ARP request, padded", append(arpFrame(arp(1, hostMAC, host4, 0, own4)), make([]byte, 18)...), Neighbour{host4, hostMAC, own4, true}, true},
		{"ARP reply", arpFrame(arp(2, hostMAC, host4, ownMAC, own4)), Neighbour{host4, hostMAC, netip.Addr{}, false}, true},
		{"ARP probe", arpFrame(arp(1, hostMAC, none4, 0, own4)), Neighbour{none4, hostMAC, own4, true}, true},
		{"ARP announcement", arpFrame(arp(1, hostMAC, host4, 0, host4)), Neighbour{host4, hostMAC, host4, true}, true},
		{"ARP reply of nobody", arpFrame(arp(2, hostMAC, none4, ownMAC, own4)), Neighbour{}, false},
		{"ARP of a multicast address", arpFrame(arp(2, hostMAC, netip.MustParseAddr("224.0.0.1"), ownMAC, own4)), Neighbour{}, false},
		{"ARP of a multicast MAC", arpFrame(arp(2, 0x01005e000001, host4, ownMAC, own4)), Neighbour{}, false},
		{"ARP of no MAC", arpFrame(arp(2, 0, host4, ownMAC, own4)), Neighbour{}, false},
		{"ARP for nobody", arpFrame(arp(1, hostMAC, host4, 0, none4)), Neighbour{}, false},
		{"RARP", arpFrame(arp(3, hostMAC, host4, ownMAC, own4)), Neighbour{}, false},
		{"ARP for another hardware", flip(arpFrame(arp(1, hostMAC, host4, 0, own4)), 15), Neighbour{}, false},
		{"ARP cut", arpFrame(arp(1, hostMAC, host4, 0, own4))[:41], Neighbour{}, false},
		{"NS", nd(host6, group6, 135, 0, own6, linkMAC...).bytes(t), Neighbour{host6, hostMAC, own6, true}, true},
		{"NS in a VLAN", tagged.bytes(t), Neighbour{host6, hostMAC, own6, true}, true},
		{"NS to one host without an address", nd(host6, own6, 135, 0, own6).bytes(t), Neighbour{host6, 0, own6, true}, true},
		{"NS behind another option", nd(host6, group6, 135, 0, own6, append([]byte{14, 1, 0, 0, 0, 0, 0, 0}, linkMAC...)...).bytes(t), Neighbour{host6, hostMAC, own6, true}, true},
		{"NS for a duplicate", nd(none6, group6, 135, 0, own6).bytes(t), Neighbour{none6, 0, own6, true}, true},
		{"NS for a duplicate with an address", nd(none6, group6, 135, 0, own6, linkMAC...).bytes(t), Neighbour{}, false},
		{"NS for a duplicate to one host", nd(none6, own6, 135, 0, own6).bytes(t), Neighbour{}, false},
		{"NS of a multicast target", nd(host6, group6, 135, 0, netip.MustParseAddr("ff02::1"), linkMAC...).bytes(t), Neighbour{}, false},
		{"NS with hop limit 254", lowHops.bytes(t), Neighbour{}, false},
		{"NS with code 1", code.bytes(t), Neighbour{}, false},
		{"NS with a wrong checksum", flip(nd(host6, group6, 135, 0, own6, linkMAC...).bytes(t), 85), Neighbour{}, false},
		{"NS with an option of length 0", nd(host6, group6, 135, 0, own6, 1, 0, 2, 0, 0, 0, 0, 1).bytes(t), Neighbour{}, false},
		{"NS with an option cut", nd(host6, group6, 135, 0, own6, 1, 2, 2, 0, 0, 0, 0, 1).bytes(t), Neighbour{}, false},
		{"NS with a multicast MAC", nd(host6, group6, 135, 0, own6, option(1, 0x333300000001)...).bytes(t), Neighbour{}, false},
		{"NS cut", nd(host6, group6, 135, 0, own6, linkMAC...).bytes(t)[:80], Neighbour{}, false},
		{"NA", nd(host6, own6, 136, 0x60, host6, otherMAC...).bytes(t), Neighbour{host6, hostMAC, netip.Addr{}, false}, true},
		{"NA without an address", nd(host6, own6, 136, 0x60, host6).bytes(t), Neighbour{host6, 0, netip.Addr{}, false}, true},
		{"NA to all nodes", nd(host6, allNodes, 136, 0x20, host6, otherMAC...).bytes(t), Neighbour{host6, hostMAC, netip.Addr{}, false}, true},
		{"NA to all nodes, solicited", nd(host6, allNodes, 136, 0x60, host6, otherMAC...).bytes(t), Neighbour{}, false},
		{"router advertisement", nd(host6, allNodes, 134, 0, host6, otherMAC...).bytes(t), Neighbour{}, false},
		{"TCP", from(v4(host4, own4, 6), &layers.TCP{}).bytes(t), Neighbour{}, false},
		{"nothing", nil, Neighbour{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, ok := ParseNeighbour(c.frame)
			if ok != c.ok || ok && n != c.want {
				t.Errorf("got %+v, %v, want %+v, %v", n, ok, c.want, c.ok)
			}
		})
	}
}

func TestAnswerARP(t *testing.T) {
	for _, c := range []struct {
		name string
		src  netip.Addr
		vlan uint16
	}{{"request", host4, 0}, {"request in a VLAN", host4, 7}, {"probe", none4, 0}} {
		t.Run(c.name, func(t *testing.T) {
			request := from(arp(1, hostMAC, c.src, 0, own4))
			request.dst, request.vlan = broadcastMAC, c.vlan
			out, ok := AnswerNeighbour(request.bytes(t), ownMAC)
			if !ok {
				t.Fatal("no answer")
			}
			p := decode(t, out)
			checkEnds(t, p, hostMAC, ownMAC, netip.Addr{}, netip.Addr{}, c.vlan)
			got, want := layer[*layers.ARP](t, p, layers.LayerTypeARP), arp(2, ownMAC, own4, hostMAC, c.src)
			if !bytes.Equal(serialize(t, got), serialize(t, want)) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestAnswerSolicitation(t *testing.T) {
	for _, c := range []struct {
		name    string
		request packet
		to      netip.Addr
		mac     uint64
		flags   uint8
	}{
		{"multicast", nd(host6, group6, 135, 0, own6, option(1, 0x02000000beef)...), host6, 0x02000000beef, 0xe0},
		{"one host, no address", nd(host6, own6, 135, 0, own6), host6, hostMAC, 0xe0},
		{"for a duplicate", nd(none6, group6, 135, 0, own6), allNodes, allNodesMAC, 0xa0},
	} {
		for _, vlan := range []uint16{0, 7} {
			t.Run(c.name, func(t *testing.T) {
				c.request.vlan = vlan
				out, ok := AnswerNeighbour(c.request.bytes(t), ownMAC)
				if !ok {
					t.Fatal("no answer")
				}
				p := decode(t, out)
				checkEnds(t, p, c.mac, ownMAC, c.to, own6, vlan)
				na := layer[*layers.ICMPv6NeighborAdvertisement](t, p, layers.LayerTypeICMPv6NeighborAdvertisement)
				if na.Flags != c.flags || !na.TargetAddress.Equal(own6.AsSlice()) || len(na.Options) != 1 ||
					na.Options[0].Type != layers.ICMPv6OptTargetAddress || getMAC(na.Options[0].Data) != ownMAC {
					t.Errorf("%+v", na)
				}
				if hops := layer[*layers.IPv6](t, p, layers.LayerTypeIPv6).HopLimit; hops != 255 {
					t.Errorf("hop limit %d", hops)
				}
				if n, ok := ParseNeighbour(out); !ok || n.Addr != own6 || n.MAC != ownMAC || n.Request {
					t.Errorf("read as %+v, %v", n, ok)
				}
			})
		}
	}
	t.Run("no request", func(t *testing.T) {
		for _, p := range []packet{from(arp(2, hostMAC, host4, ownMAC, own4)), nd(host6, own6, 136, 0x60, host6, otherMAC...)} {
			if _, ok := AnswerNeighbour(p.bytes(t), ownMAC); ok {
				t.Errorf("%v is answered", p.ls)
			}
		}
	})
	t.Run("from a multicast MAC", func(t *testing.T) {
		p := nd(host6, own6, 135, 0, own6)
		p.src = allNodesMAC
		if _, ok := AnswerNeighbour(p.bytes(t), ownMAC); ok {
			t.Error("is answered")
		}
	})
}

func TestSolicit(t *testing.T) {
	for _, c := range []struct {
		name     string
		src, dst netip.Addr
		vlan     uint16
		to       uint64
		group    netip.Addr
	}{
		{"ARP", own4, host4, 0, broadcastMAC, netip.Addr{}},
		{"ARP in a VLAN", own4, host4, 4094, broadcastMAC, netip.Addr{}},
		{"NS", own6, far6, 0, 0x3333ff771234, netip.MustParseAddr("ff02::1:ff77:1234")},
		{"NS in a VLAN", own6, far6, 7, 0x3333ff771234, netip.MustParseAddr("ff02::1:ff77:1234")},
		{"families differ", own4, host6, 0, 0, netip.Addr{}},
		{"for a group", own6, allNodes, 0, 0, netip.Addr{}},
		{"from nobody", none4, host4, 0, 0, netip.Addr{}},
		{"zero addresses", netip.Addr{}, netip.Addr{}, 0, 0, netip.Addr{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := Solicit(ownMAC, c.src, c.dst, c.vlan)
			if c.to == 0 {
				if out != nil {
					t.Errorf("got %x", out)
				}
				return
			}
			checkEnds(t, decode(t, out), c.to, ownMAC, c.group, c.src, c.vlan)
			if n, ok := ParseNeighbour(out); !ok || n != (Neighbour{c.src, ownMAC, c.dst, true}) {
				t.Errorf("read as %+v, %v", n, ok)
			}
		})
	}
}

func echo4(src, dst netip.Addr, kind uint8, payload string) packet {
	return from(v4(src, dst, 1), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: 77, Seq: 3}, gopacket.Payload(payload))
}

func echo6(src, dst netip.Addr, kind uint8, payload string) packet {
	return from(v6(src, dst, 58), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)},
		&layers.ICMPv6Echo{Identifier: 77, SeqNumber: 3}, gopacket.Payload(payload))
}

func TestEchoReply(t *testing.T) {
	with := func(p packet, edit func(*packet)) packet {
		edit(&p)
		return p
	}
	for _, c := range []struct {
		name    string
		request packet
		ok      bool
	}{
		{"IPv4", echo4(host4, own4, 8, "odd"), true},
		{"IPv4 without data", echo4(host4, own4, 8, ""), true},
		{"IPv4 in a VLAN", with(echo4(host4, own4, 8, "data"), func(p *packet) { p.vlan = 7 }), true},
		{"IPv6", echo6(host6, own6, 128, "odd"), true},
		{"IPv6 in a VLAN", with(echo6(host6, own6, 128, "data"), func(p *packet) { p.vlan = 7 }), true},
		{"IPv4 reply", echo4(host4, own4, 0, "data"), false},
		{"IPv6 reply", echo6(host6, own6, 129, "data"), false},
		{"IPv4 fragment", with(echo4(host4, own4, 8, "data"), func(p *packet) { p.ls[0].(*layers.IPv4).Flags = layers.IPv4MoreFragments }), false},
		{"IPv4 options", with(echo4(host4, own4, 8, "data"), func(p *packet) {
			p.ls[0].(*layers.IPv4).Options = []layers.IPv4Option{{OptionType: 1}}
		}), false},
		{"IPv4 multicast", echo4(host4, netip.MustParseAddr("224.0.0.1"), 8, "data"), false},
		{"IPv4 broadcast", echo4(host4, netip.MustParseAddr("255.255.255.255"), 8, "data"), false},
		{"from nobody", echo4(none4, own4, 8, "data"), false},
		{"IPv6 multicast", echo6(host6, allNodes, 128, "data"), false},
		{"to a broadcast MAC", with(echo4(host4, own4, 8, "data"), func(p *packet) { p.dst = broadcastMAC }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := c.request.bytes(t)
			before := bytes.Clone(frame)
			out, ok := EchoReply(append(frame, 0, 0, 0)) // link padding
			if ok != c.ok {
				t.Fatalf("answered: %v, want %v", ok, c.ok)
			}
			if !bytes.Equal(frame, before) {
				t.Error("the request was changed")
			}
			if !ok {
				return
			}
			p, request := decode(t, out), gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			flow := request.NetworkLayer().NetworkFlow()
			src, _ := netip.AddrFromSlice(flow.Src().Raw())
			dst, _ := netip.AddrFromSlice(flow.Dst().Raw())
			checkEnds(t, p, hostMAC, ownMAC, src, dst, c.request.vlan)
			if src.Is4() {
				icmp := layer[*layers.ICMPv4](t, p, layers.LayerTypeICMPv4)
				if icmp.TypeCode != 0 || icmp.Id != 77 || icmp.Seq != 3 || layer[*layers.IPv4](t, p, layers.LayerTypeIPv4).TTL != 64 {
					t.Errorf("%+v", icmp)
				}
			} else if layer[*layers.ICMPv6](t, p, layers.LayerTypeICMPv6).TypeCode.Type() != 129 {
				t.Error("is no reply")
			}
			n := len(frame)
			if got := out[len(out)-4:]; len(out) != n || !bytes.Equal(got, frame[n-4:]) {
				t.Errorf("the data is %q, want %q", got, frame[n-4:])
			}
		})
	}
	for _, frame := range [][]byte{echo4(host4, own4, 8, "data").bytes(t), echo6(host6, own6, 128, "data").bytes(t)} {
		if _, ok := EchoReply(frame[:len(frame)-1]); ok {
			t.Error("a packet that was cut is answered")
		}
		if _, ok := EchoReply(flip(frame, len(frame)-1)); ok {
			t.Error("a wrong checksum is answered")
		}
	}
	if _, ok := EchoReply(flip(echo4(host4, own4, 8, "data").bytes(t), 22)); ok {
		t.Error("a wrong header checksum is answered")
	}
}

// udp is a packet of n bytes of IP.
func udp(t testing.TB, src, dst netip.Addr, n int) packet {
	t.Helper()
	u := &layers.UDP{SrcPort: 1, DstPort: 2}
	if src.Is4() {
		return from(v4(src, dst, 17), u, gopacket.Payload(strings.Repeat("x", n-28)))
	}
	return from(v6(src, dst, 17), u, gopacket.Payload(strings.Repeat("x", n-48)))
}

func TestErrors(t *testing.T) {
	needed := func(f []byte) ([]byte, bool) { return FragmentationNeeded(f, own4, ownMAC, 1400) }
	tooBig := func(f []byte) ([]byte, bool) { return PacketTooBig(f, own6, ownMAC, 1400) }
	exceeded4 := func(f []byte) ([]byte, bool) { return TimeExceeded(f, own4, ownMAC) }
	exceeded6 := func(f []byte) ([]byte, bool) { return TimeExceeded(f, own6, ownMAC) }
	for _, c := range []struct {
		name  string
		make  func([]byte) ([]byte, bool)
		about packet
		code  uint16 // type and code
		rest  uint32
		quote int
	}{
		{"fragmentation needed", needed, udp(t, host4, far4, 1500), 0x0304, 1400, 548},
		{"fragmentation needed, whole quote", needed, udp(t, host4, far4, 548), 0x0304, 1400, 548},
		{"fragmentation needed, short quote", needed, udp(t, host4, far4, 29), 0x0304, 1400, 29},
		{"packet too big", tooBig, udp(t, host6, far6, 1500), 0x0200, 1400, 1232},
		{"packet too big, short quote", tooBig, udp(t, host6, far6, 49), 0x0200, 1400, 49},
		{"time exceeded", exceeded4, udp(t, host4, far4, 1500), 0x0b00, 0, 548},
		{"time exceeded, IPv6", exceeded6, udp(t, host6, far6, 1500), 0x0300, 0, 1232},
		{"about an echo request", exceeded4, echo4(host4, far4, 8, "data"), 0x0b00, 0, 32},
		{"about an ICMPv6 echo request", exceeded6, echo6(host6, far6, 128, "data"), 0x0300, 0, 52},
		{"about a packet with options", exceeded4, func() packet {
			p := udp(t, host4, far4, 40)
			p.ls[0].(*layers.IPv4).Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
			return p
		}(), 0x0b00, 0, 44},
	} {
		for _, vlan := range []uint16{0, 7} {
			t.Run(c.name, func(t *testing.T) {
				c.about.vlan = vlan
				frame := c.about.bytes(t)
				out, ok := c.make(append(frame, 0, 0, 0)) // link padding
				if !ok {
					t.Fatal("no error")
				}
				p := decode(t, out)
				head := ethLen
				if vlan != 0 {
					head += vlanLen
				}
				quote := frame[head:][:c.quote]
				var message []byte
				if p.Layer(layers.LayerTypeIPv4) != nil {
					checkEnds(t, p, hostMAC, ownMAC, host4, own4, vlan)
					message = out[head+ipv4Len:]
					if tos := out[head+1]; tos != 0xc0 {
						t.Errorf("TOS %#x", tos)
					}
				} else {
					checkEnds(t, p, hostMAC, ownMAC, host6, own6, vlan)
					message = out[head+ipv6Len:]
				}
				if binary.BigEndian.Uint16(message) != c.code || binary.BigEndian.Uint32(message[4:]) != c.rest || !bytes.Equal(message[8:], quote) {
					t.Errorf("message %x\nquoting %d bytes", message, len(message)-8)
				}
			})
		}
	}
}

func TestNoErrors(t *testing.T) {
	with4 := func(edit func(*packet, *layers.IPv4)) packet {
		p := udp(t, host4, far4, 100)
		edit(&p, p.ls[0].(*layers.IPv4))
		return p
	}
	// chain is an IPv6 packet whose payload b starts with the extension header kind.
	chain := func(kind layers.IPProtocol, b ...byte) packet {
		return from(v6(host6, far6, kind), gopacket.Payload(b))
	}
	message := append([]byte{128}, make([]byte, 7)...)
	failure := append([]byte{1}, make([]byte, 7)...)
	for _, c := range []struct {
		name  string
		about packet
		ok    bool
	}{
		{"UDP", udp(t, host4, far4, 100), true},
		{"IPv4 first fragment", with4(func(_ *packet, ip *layers.IPv4) { ip.Flags = layers.IPv4MoreFragments }), true},
		{"IPv4 later fragment", with4(func(_ *packet, ip *layers.IPv4) { ip.FragOffset = 1 }), false},
		{"destination unreachable", echo4(host4, far4, 3, "data"), false},
		{"source quench", echo4(host4, far4, 4, "data"), false},
		{"redirect", echo4(host4, far4, 5, "data"), false},
		{"time exceeded", echo4(host4, far4, 11, "data"), false},
		{"parameter problem", echo4(host4, far4, 12, "data"), false},
		{"unknown ICMP type", echo4(host4, far4, 200, "data"), false},
		{"ICMP without a type", from(v4(host4, far4, 1)), false},
		{"echo reply", echo4(host4, far4, 0, "data"), true},
		{"to multicast", udp(t, host4, netip.MustParseAddr("239.1.2.3"), 100), false},
		{"to broadcast", udp(t, host4, netip.MustParseAddr("255.255.255.255"), 100), false},
		{"to a group MAC", with4(func(p *packet, _ *layers.IPv4) { p.dst = 0x01005e000001 }), false},
		{"from a group MAC", with4(func(p *packet, _ *layers.IPv4) { p.src = broadcastMAC }), false},
		{"from multicast", udp(t, netip.MustParseAddr("239.1.2.3"), far4, 100), false},
		{"from nobody", udp(t, none4, far4, 100), false},
		{"from loopback", udp(t, netip.MustParseAddr("127.0.0.1"), far4, 100), false},
		{"from class E", udp(t, netip.MustParseAddr("240.0.0.1"), far4, 100), false},
		{"IPv6 UDP", udp(t, host6, far6, 100), true},
		{"IPv6 to multicast", udp(t, host6, netip.MustParseAddr("ff0e::1"), 100), false},
		{"IPv6 from nobody", udp(t, none6, far6, 100), false},
		{"ICMPv6 error", echo6(host6, far6, 1, "data"), false},
		{"ICMPv6 redirect", chain(58, append([]byte{137}, make([]byte, 7)...)...), false},
		{"ICMPv6 without a type", chain(58), false},
		{"IPv6 first fragment", chain(44, append([]byte{58, 0, 0, 1, 0, 0, 0, 1}, message...)...), true},
		{"IPv6 later fragment", chain(44, append([]byte{58, 0, 0, 8, 0, 0, 0, 1}, message...)...), false},
		{"ICMPv6 error behind hop-by-hop", chain(0, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, failure...)...), false},
		{"ICMPv6 query behind hop-by-hop", chain(0, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, message...)...), true},
		{"ICMPv6 error behind AH", chain(51, append([]byte{58, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}, failure...)...), false},
		{"ICMPv6 error behind routing and options", chain(43, append([]byte{60, 0, 0, 0, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0}, failure...)...), false},
		{"chain cut", chain(60, 58, 0, 1, 4), false},
		{"chain longer than the packet", chain(60, append([]byte{58, 4, 1, 4, 0, 0, 0, 0}, failure...)...), false},
		{"no next header", chain(59), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := c.about.bytes(t)
			by := own6
			if _, is := c.about.ls[0].(*layers.IPv4); is {
				by = own4
			}
			if _, ok := TimeExceeded(frame, by, ownMAC); ok != c.ok {
				t.Errorf("time exceeded: %v, want %v", ok, c.ok)
			}
			_, ok4 := FragmentationNeeded(frame, by, ownMAC, 1400)
			_, ok6 := PacketTooBig(frame, by, ownMAC, 1400)
			if ok4 != (c.ok && by.Is4()) || ok6 != (c.ok && by.Is6()) {
				t.Errorf("too big: %v for IPv4, %v for IPv6", ok4, ok6)
			}
			for _, from := range []netip.Addr{{}, none4, none6, allNodes} {
				if _, ok := TimeExceeded(frame, from, ownMAC); ok {
					t.Errorf("an error from %v", from)
				}
			}
		})
	}
	for _, at := range []int{14, 17, 22} { // version, total length, TTL without its checksum
		if _, ok := TimeExceeded(flip(udp(t, host4, far4, 100).bytes(t), at), own4, ownMAC); ok {
			t.Errorf("an error about a broken header, byte %d", at)
		}
	}
}

// FuzzFrames: whatever comes in, nothing panics or changes it, and what goes out
// is a well-formed frame that is not answered by an error again.
func FuzzFrames(f *testing.F) {
	seeds := []packet{
		from(arp(1, hostMAC, host4, 0, own4)), nd(host6, group6, 135, 0, own6, linkMAC...), nd(host6, own6, 136, 0x60, host6, otherMAC...),
		echo4(host4, own4, 8, "data"), echo6(host6, own6, 128, "data"), udp(f, host4, far4, 100), udp(f, host6, far6, 100),
		from(v6(host6, far6, 0), gopacket.Payload([]byte{58, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})),
	}
	for _, p := range seeds {
		f.Add(p.bytes(f))
		p.vlan = 7
		f.Add(p.bytes(f))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		if n, ok := ParseNeighbour(frame); ok && (!n.Addr.IsValid() || n.Request != n.Target.IsValid() || n.MAC>>40&1 != 0) {
			t.Errorf("%+v", n)
		}
		if out, ok := AnswerNeighbour(frame, ownMAC); ok {
			if n, ok := ParseNeighbour(out); !ok || n.MAC != ownMAC || n.Request {
				t.Errorf("%x answered by %x: %+v", frame, out, n)
			}
		}
		if out, ok := EchoReply(frame); ok {
			if _, ok := parseIP(out); !ok || len(out) > len(frame) {
				t.Errorf("%x answered by %x", frame, out)
			}
			if _, ok := EchoReply(out); ok {
				t.Error("a reply is answered")
			}
		}
		for _, out := range errorsAbout(frame) {
			if p, ok := parseIP(out); !ok || p.v4 && len(p.ether.payload) > maxError4 || len(p.ether.payload) > maxError6 {
				t.Errorf("%x about %x", out, frame)
			}
			if len(errorsAbout(out)) > 0 {
				t.Errorf("an error about the error %x", out)
			}
		}
		if !bytes.Equal(frame, before) {
			t.Error("the frame was changed")
		}
	})
}

func errorsAbout(frame []byte) (all [][]byte) {
	for _, by := range []netip.Addr{own4, own6} {
		if b, ok := TimeExceeded(frame, by, ownMAC); ok {
			all = append(all, b)
		}
		if b, ok := FragmentationNeeded(frame, by, ownMAC, 576); ok {
			all = append(all, b)
		}
		if b, ok := PacketTooBig(frame, by, ownMAC, 1280); ok {
			all = append(all, b)
		}
	}
	return all
}
