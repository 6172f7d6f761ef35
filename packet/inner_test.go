package packet

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"countersign/tag"
)

func serialise(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for _, l := range ls {
		if u, ok := l.(*layers.UDP); ok {
			_ = u.SetNetworkLayerForChecksum(ls[0].(*layers.IPv4))
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestQuotedAndFirstFragment(t *testing.T) {
	host, server, router := netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("10.2.0.5"), netip.MustParseAddr("10.9.0.1")
	quoted := serialise(t,
		&layers.IPv4{Version: 4, TTL: 3, Protocol: 17, SrcIP: host.AsSlice(), DstIP: server.AsSlice()},
		&layers.UDP{SrcPort: 4000, DstPort: 53}, gopacket.Payload("payload!"))
	ip := &layers.IPv4{Version: 4, TTL: 60, Protocol: 1, SrcIP: router.AsSlice(), DstIP: host.AsSlice()}
	want, _ := tag.NewTuple(17, tag.KindPorts, host, server, 4000, 53)
	for _, tc := range []struct {
		name  string
		quote []byte
		ok    bool
	}{
		{"whole", quoted, true},
		{"eight bytes", quoted[:28], true},
		{"without ports", quoted[:27], false},
		{"half a header", quoted[:12], false},
		{"nothing", nil, false},
	} {
		pkt := serialise(t, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(11, 0)}, gopacket.Payload(tc.quote))
		var v View
		if a := ParseIP(pkt, DefaultCarrier, &v); a != None {
			t.Fatalf("%s: %v", tc.name, a)
		}
		got, ok := v.Quoted(pkt)
		if ok != tc.ok || ok && got != want {
			t.Errorf("%s: got %v, %v", tc.name, got, ok)
		}
	}

	first := serialise(t,
		&layers.IPv4{Version: 4, TTL: 3, Protocol: 17, Id: 7, Flags: layers.IPv4MoreFragments, SrcIP: host.AsSlice(), DstIP: server.AsSlice()},
		&layers.UDP{SrcPort: 4000, DstPort: 53}, gopacket.Payload("payload!"))
	var v View
	if a := ParseIP(first, DefaultCarrier, &v); a != None {
		t.Fatal(a)
	}
	if got, ok := v.FirstFragmentTuple(first); !ok || got != want {
		t.Errorf("first fragment: got %v, %v", got, ok)
	}
	if src, dst := v.Ends(); src != host || dst != server {
		t.Errorf("ends are %v and %v", src, dst)
	}
	if _, ok := v.Quoted(first); ok {
		t.Error("a fragment quotes nothing")
	}
}

func FuzzQuoted(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var v View
		if ParseIP(b, DefaultCarrier, &v) == None && v.Family != 0 {
			v.Quoted(b)
			v.FirstFragmentTuple(b)
			v.Ends()
		}
	})
}
