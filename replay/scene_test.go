package replay_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"countersign/packet"
	"countersign/tag"
)

// The addresses of the example.
const (
	client4, server4 = "10.1.0.2", "10.2.0.2"
	client6, server6 = "2001:db8:1::2", "2001:db8:2::2"
)

var (
	clientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	insideMAC = net.HardwareAddr{2, 0, 0, 0, 1, 1}
	peerMAC   = net.HardwareAddr{2, 0, 0, 0, 9, 2}
	trunkMAC  = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}
)

// start is the time of the first packet of the example.
var start = time.Date(2024, 5, 1, 12, 0, 0, 123456789, time.UTC)

// timed is a frame of a capture.
type timed struct {
	at     time.Duration // since start
	frame  []byte
	length int // on the wire where that is more
}

// issuer has the keys of one member of the shared vectors.
type issuer struct {
	unid    uint32
	siphash *tag.IssueKey
	ed25519 *tag.IssueKey
}

func issuers(t testing.TB) []issuer {
	t.Helper()
	var v struct {
		Issuers []struct {
			UNID    uint32
			Siphash string
			Ed25519 struct{ Filter, Seed string }
		}
	}
	b, err := os.ReadFile("../tag/testdata/tag-v1.json")
	must(t, err)
	must(t, json.Unmarshal(b, &v))
	var out []issuer
	for _, i := range v.Issuers {
		mac, err := hex.DecodeString(i.Siphash)
		must(t, err)
		sip, err := tag.ParseIssueKey(tag.Siphash, mac)
		must(t, err)
		seed, err := hex.DecodeString(i.Ed25519.Filter + i.Ed25519.Seed)
		must(t, err)
		ed, err := tag.ParseIssueKey(tag.Ed25519, seed)
		must(t, err)
		out = append(out, issuer{i.UNID, sip, ed})
	}
	return out
}

// ip makes an IP packet. ttl 0 means 64.
func ip(t testing.TB, src, dst string, ttl uint8, transport gopacket.SerializableLayer, payload string) []byte {
	t.Helper()
	if ttl == 0 {
		ttl = 64
	}
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	proto := layers.IPProtocolTCP
	switch transport.(type) {
	case *layers.UDP:
		proto = layers.IPProtocolUDP
	case *layers.ICMPv4:
		proto = layers.IPProtocolICMPv4
	}
	var network interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	}
	if s.Is4() {
		network = &layers.IPv4{Version: 4, TTL: ttl, Protocol: proto, SrcIP: s.AsSlice(), DstIP: d.AsSlice(), Flags: layers.IPv4DontFragment}
	} else {
		network = &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: proto, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	}
	if c, ok := transport.(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		must(t, c.SetNetworkLayerForChecksum(network))
	}
	return serialize(t, network, transport, gopacket.Payload(payload))
}

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...))
	return bytes.Clone(b.Bytes())
}

func tcp(sport, dport uint16, flags string) *layers.TCP {
	l := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Seq: 1, Window: 1000}
	for _, f := range flags {
		switch f {
		case 'S':
			l.SYN = true
		case 'A':
			l.ACK = true
		case 'F':
			l.FIN = true
		}
	}
	return l
}

func udp(sport, dport uint16) *layers.UDP {
	return &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
}

// ethernet puts a link header before an IP packet.
func ethernet(src, dst net.HardwareAddr, ip []byte) []byte {
	kind := []byte{0x08, 0x00}
	if ip[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	return bytes.Join([][]byte{dst, src, kind, ip}, nil)
}

func fromClient(ip []byte) []byte { return ethernet(clientMAC, insideMAC, ip) }
func fromPeer(ip []byte) []byte   { return ethernet(peerMAC, trunkMAC, ip) }

func arpRequest(t testing.TB, target string) []byte {
	return serialize(t, &layers.Ethernet{SrcMAC: clientMAC, DstMAC: broadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: clientMAC, SourceProtAddress: netip.MustParseAddr(client4).AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: netip.MustParseAddr(target).AsSlice(),
		})
}

// tagged puts a tag on an IP packet, changed by edit if that is not nil.
func tagged(t testing.TB, packetBytes []byte, c packet.Carrier, unid uint32, epoch uint16, k *tag.IssueKey, edit func(*tag.Header)) []byte {
	t.Helper()
	var v packet.View
	if a := packet.ParseIP(packetBytes, c, &v); a != packet.None {
		t.Fatalf("packet to tag: %v", a)
	}
	h, err := k.Issue(unid, epoch, 0x0123456789abcdef, &v.Tuple)
	must(t, err)
	if edit != nil {
		edit(&h)
	}
	out, err := packet.Insert(nil, packetBytes, c, &h)
	must(t, err)
	return out
}

// fragments cuts an IPv4 packet into two, the first with n bytes of payload.
func fragments(whole []byte, n int, id uint16) [2][]byte {
	cut := func(payload []byte, field uint16) []byte {
		f := append(bytes.Clone(whole[:20]), payload...)
		f[2], f[3] = byte(len(f)>>8), byte(len(f))
		f[4], f[5] = byte(id>>8), byte(id)
		f[6], f[7] = byte(field>>8), byte(field)
		f[10], f[11] = 0, 0
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(f[i])<<8 | uint32(f[i+1])
		}
		sum = ^(sum>>16 + sum&0xffff)
		f[10], f[11] = byte(sum>>8), byte(sum)
		return f
	}
	return [2][]byte{cut(whole[20:20+n], 0x2000), cut(whole[20+n:], uint16(n/8))}
}

// pcap is a capture in nanoseconds.
func pcap(t testing.TB, link layers.LinkType, packets []timed) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	must(t, w.WriteFileHeader(65536, link))
	for _, p := range packets {
		must(t, w.WritePacket(info(p), p.frame))
	}
	return b.Bytes()
}

func pcapng(t testing.TB, packets []timed) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, layers.LinkTypeEthernet)
	must(t, err)
	for _, p := range packets {
		must(t, w.WritePacket(info(p), p.frame))
	}
	must(t, w.Flush())
	return b.Bytes()
}

func info(p timed) gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: start.Add(p.at), CaptureLength: len(p.frame), Length: max(p.length, len(p.frame))}
}

// inside and trunk are the captures of the example.
func inside(t testing.TB) []timed {
	is := issuers(t)
	c := packet.DefaultCarrier
	dns := fragments(ip(t, client4, server4, 0, udp(5353, 53), string(make([]byte, 100))), 64, 77)
	lone := fragments(ip(t, client4, server4, 0, udp(5354, 53), string(make([]byte, 100))), 64, 78)
	web := ip(t, client4, server4, 0, tcp(40000, 443, "S"), "")
	big := ip(t, client4, server4, 0, udp(5000, 514), string(make([]byte, 1200)))
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	return []timed{
		{at: ms(0), frame: arpRequest(t, "10.1.0.1")},
		{at: ms(1), frame: fromClient(web)},
		{at: ms(2), frame: fromClient(ip(t, client4, server4, 0, tcp(40000, 443, "A"), "hello"))},
		{at: ms(3), frame: fromClient(ip(t, client4, server4, 0, udp(5000, 514), "log"))},
		{at: ms(4), frame: fromClient(ip(t, client4, server4, 0, tcp(40001, 25, "S"), ""))},
		{at: ms(5), frame: fromClient(ip(t, client6, server6, 0, tcp(40002, 443, "S"), ""))},
		{at: ms(6), frame: fromClient(ip(t, client4, server4, 1, tcp(40003, 443, "S"), ""))},
		{at: ms(7), frame: fromClient(tagged(t, web, c, is[0].unid, 7, is[0].siphash, nil))},
		{at: ms(8), frame: fromClient(dns[1])}, // the second piece first
		{at: ms(9), frame: fromClient(dns[0])},
		{at: ms(10), frame: fromClient(lone[1])}, // the first never comes
		{at: ms(11), frame: fromClient(ip(t, client4, "10.1.0.1", 0,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 9, Seq: 1}, "ping"))},
		{at: ms(12), frame: fromClient(ip(t, client4, "192.0.2.1", 0, tcp(40004, 443, "S"), ""))},
		{at: ms(13), frame: fromClient(big)[:96], length: 14 + len(big)}, // cut by the snap length
		{at: ms(30), frame: fromClient(ip(t, client4, server4, 0, tcp(22, 50000, "SA"), ""))},
		{at: ms(20000), frame: fromClient(ip(t, client4, server4, 0, tcp(40000, 443, "FA"), ""))},
		{at: ms(60000), frame: fromClient(ip(t, client4, server4, 0, tcp(40000, 443, "A"), "late"))},
	}
}

func trunk(t testing.TB, c packet.Carrier) []timed {
	is := issuers(t)
	unid, sip, ed := is[1].unid, is[1].siphash, is[1].ed25519
	ssh := ip(t, server4, client4, 0, tcp(50000, 22, "S"), "")
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	on := func(at time.Duration, p []byte, epoch uint16, k *tag.IssueKey, edit func(*tag.Header)) timed {
		return timed{at: at, frame: fromPeer(tagged(t, p, c, unid, epoch, k, edit))}
	}
	return []timed{
		on(ms(3), ip(t, server4, client4, 0, tcp(443, 40000, "SA"), ""), 21, sip, nil), // at the time of one of inside
		on(ms(20), ssh, 21, sip, nil),
		on(ms(21), ssh, 21, sip, func(h *tag.Header) { h.Digest ^= 1 << 40 }),
		on(ms(22), ssh, 20, sip, nil),
		on(ms(23), ssh, 22, sip, nil),
		{at: ms(24), frame: fromPeer(ssh)},
		on(ms(25), ssh, 21, sip, func(h *tag.Header) { h.Flags |= tag.FlagEcho }),
		on(ms(26), ip(t, server4, client4, 0, udp(53, 6000), "answer"), 21, ed, nil),
		on(ms(27), ip(t, server4, client4, 0, udp(53, 6001), "answer"), 21, ed, func(h *tag.Header) { h.Sealed[5] ^= 1 }),
		on(ms(28), ip(t, server6, client6, 0, udp(53, 6000), "answer"), 21, sip, nil),
		on(ms(29), ip(t, server4, client4, 0, tcp(50001, 23, "S"), ""), 21, sip, nil),
		on(ms(31), ip(t, server4, "10.1.0.77", 0, udp(53, 6000), "nobody"), 21, sip, nil),
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
