package pktio

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

var (
	macA = []byte{2, 0, 0, 0, 0, 1}
	macB = []byte{2, 0, 0, 0, 0, 2}
	ip4A = []byte{10, 0, 0, 1}
	ip4B = []byte{10, 0, 0, 2}
	ip6A = append([]byte{0xfd}, make([]byte, 15)...)
	ip6B = append([]byte{0xfd, 1}, make([]byte, 14)...)
)

func ether(t layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: t}
}

func ipv4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: ip4A, DstIP: ip4B}
}

func ipv6(proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: ip6A, DstIP: ip6B}
}

func tcpOver(ip gopacket.NetworkLayer) *layers.TCP {
	tcp := &layers.TCP{SrcPort: 1000, DstPort: 80, Seq: 1, ACK: true, Window: 100}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return tcp
}

func udpOver(ip gopacket.NetworkLayer) *layers.UDP {
	udp := &layers.UDP{SrcPort: 1000, DstPort: 53}
	_ = udp.SetNetworkLayerForChecksum(ip)
	return udp
}

func TestFinishChecksum(t *testing.T) {
	v4t, v4u, v6t, v6u := ipv4(layers.IPProtocolTCP), ipv4(layers.IPProtocolUDP), ipv6(layers.IPProtocolTCP), ipv6(layers.IPProtocolUDP)
	hbh4 := ipv6(layers.IPProtocolIPv6HopByHop)
	hbh := &layers.IPv6HopByHop{}
	hbh.NextHeader = layers.IPProtocolTCP
	hbh.Options = []*layers.IPv6HopByHopOption{{OptionType: 1, OptionData: make([]byte, 4)}}
	payload := gopacket.Payload("an odd number of bytes.")
	for _, c := range []struct {
		name  string
		frame []byte
		at    int // offset of the checksum
	}{
		{"TCP over IPv4", serialize(t, ether(0x800), v4t, tcpOver(v4t), payload), 14 + 20 + 16},
		{"UDP over IPv4", serialize(t, ether(0x800), v4u, udpOver(v4u), payload), 14 + 20 + 6},
		{"TCP over IPv6", serialize(t, ether(0x86dd), v6t, tcpOver(v6t), payload), 14 + 40 + 16},
		{"UDP over IPv6", serialize(t, ether(0x86dd), v6u, udpOver(v6u), payload), 14 + 40 + 6},
		{"behind hop-by-hop", serialize(t, ether(0x86dd), hbh4, hbh, tcpOver(v6t), payload), 14 + 40 + 8 + 16},
		{"VLAN", serialize(t, ether(0x8100), &layers.Dot1Q{VLANIdentifier: 5, Type: 0x800}, v4t, tcpOver(v4t), payload), 18 + 20 + 16},
		{"padding", append(serialize(t, ether(0x800), v4t, tcpOver(v4t), payload), 9, 9, 9, 9), 14 + 20 + 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := bytes.Clone(c.frame)
			got[c.at], got[c.at+1] = 0xab, 0xcd // the pseudo-header's sum, in practice
			if !finishChecksum(got) {
				t.Fatal("refused")
			}
			if !bytes.Equal(got, c.frame) {
				t.Errorf("checksum %x, want %x", got[c.at:c.at+2], c.frame[c.at:c.at+2])
			}
			for n := range len(c.frame) - 4 {
				cut := bytes.Clone(c.frame[:n])
				if finishChecksum(cut) || !bytes.Equal(cut, c.frame[:n]) {
					t.Errorf("cut at %d: not refused, or changed", n)
				}
			}
		})
	}
}

func TestFinishChecksumRefuses(t *testing.T) {
	fragment := ipv4(layers.IPProtocolUDP)
	fragment.Flags = layers.IPv4MoreFragments
	v4 := ipv4(layers.IPProtocolUDP)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"ICMP", serialize(t, ether(0x800), ipv4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: 0x800})},
		{"ARP", append(serialize(t, ether(0x806)), make([]byte, 46)...)},
		{"fragment", serialize(t, ether(0x800), fragment, udpOver(v4), gopacket.Payload("12345678"))},
		{"IPv6 fragment", serialize(t, ether(0x86dd), ipv6(layers.IPProtocolIPv6Fragment), gopacket.Payload(make([]byte, 40)))},
	} {
		before := bytes.Clone(c.frame)
		if finishChecksum(c.frame) || !bytes.Equal(c.frame, before) {
			t.Errorf("%s: not refused, or changed", c.name)
		}
	}
}

func TestUDPChecksumIsNeverZero(t *testing.T) {
	v4 := ipv4(layers.IPProtocolUDP)
	frame := serialize(t, ether(0x800), v4, udpOver(v4), gopacket.Payload{0, 0})
	sum := frame[40:42]
	copy(frame[42:], sum) // the payload takes up the sum, so that the whole comes to 0
	if !finishChecksum(frame) || !bytes.Equal(frame[40:42], []byte{0xff, 0xff}) {
		t.Errorf("checksum %x", frame[40:42])
	}
}

// sum16 agrees with the definition in RFC 1071.
func TestSum16(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "bytes")
		if rapid.Bool().Draw(t, "ones") {
			b = bytes.Repeat([]byte{0xff}, len(b))
		}
		var want uint64
		for i, c := range b {
			want += uint64(c) << (8 * (1 - i%2))
		}
		got := sum16(0, b)
		if got%0xffff != want%0xffff {
			t.Errorf("sum16(%x) = %x, want %x", b, got, want)
		}
	})
}

func FuzzFinishChecksum(f *testing.F) {
	v4, v6 := ipv4(layers.IPProtocolTCP), ipv6(layers.IPProtocolUDP)
	f.Add(serialize(f, ether(0x800), v4, tcpOver(v4)))
	f.Add(serialize(f, ether(0x86dd), v6, udpOver(v6), gopacket.Payload("x")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		ok := finishChecksum(frame)
		if !ok && !bytes.Equal(before, frame) {
			t.Fatal("refused, but changed")
		}
		once := bytes.Clone(frame)
		if ok && (!finishChecksum(frame) || !bytes.Equal(once, frame)) {
			t.Fatal("not stable")
		}
	})
}
