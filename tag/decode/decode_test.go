package decode

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"countersign/packet"
	"countersign/packet/capture"
)

// sharedPackets returns the tagged packets of the shared vectors by name.
func sharedPackets(t *testing.T) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile("../testdata/tag-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Packets []struct{ Name, Tagged string }
	}
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	packets := map[string][]byte{}
	for _, p := range f.Packets {
		if packets[p.Name], err = hex.DecodeString(p.Tagged); err != nil {
			t.Fatal(err)
		}
	}
	return packets
}

func capture1(t *testing.T, link layers.LinkType, packets ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(65535, link); err != nil {
		t.Fatal(err)
	}
	for i, p := range packets {
		info := gopacket.CaptureInfo{Timestamp: time.Unix(1700000000+int64(i), 0), CaptureLength: len(p), Length: len(p)}
		if err := w.WritePacket(info, p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func decode(b []byte, c packet.Carrier) (lines []string, all []Record, s Summary, err error) {
	s, err = Decode(bytes.NewReader(b), c, func(r *Record) error {
		lines = append(lines, r.String())
		all = append(all, *r)
		return nil
	})
	return lines, all, s, err
}

func TestDecode(t *testing.T) {
	p := sharedPackets(t)
	malformed := bytes.Clone(p["ipv4-echo"])
	malformed[22] = 0x21
	lines, records, s, err := decode(capture1(t, layers.LinkTypeRaw,
		p["ipv4-tcp-siphash"],
		p["ipv6-tcp-ed25519"],
		[]byte{0x45, 0, 0, 20, 0, 0, 0, 0, 9, 50, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2},
		malformed,
		[]byte{0x45},
		p["ipv6-fragment-middle"],
	), packet.DefaultCarrier)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"1 2023-11-14T22:13:20Z 198.51.100.9:40000 > 203.0.113.2:443 protocol 6 length 78 carrier ip suite siphash unid 56156412 epoch 55361 nonce 5e1635bf3387366d digest b4883364bafd7c8d",
		"2 2023-11-14T22:13:21Z [2001:db8::1:9]:40000 > [2001:db8:ffff::2]:443 protocol 6 length 162 carrier ip suite ed25519 unid 56156412 epoch 39861 nonce 8928da5a91afb62d digest 218764de547773ec sealed crc32 ",
		"4 2023-11-14T22:13:23Z tag_malformed",
		"6 2023-11-14T22:13:25Z 2001:db8::1:9 > 2001:db8:ffff::2 protocol 17 fragment deadbeef length 140 carrier ip suite siphash unid 56156412 epoch 44014 nonce 7b0a1eaf2eaa0979 digest 9589bd5c4fde220f",
	}
	if len(lines) != len(want) {
		t.Fatalf("%d records:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("%s\nwant\n%s", lines[i], want[i])
		}
	}
	if s.String() != "6 packets, 3 tagged, 1 refused, 1 not parsed" {
		t.Error(s)
	}
	text, err := json.Marshal(records[2])
	if err != nil || string(text) != `{"packet":4,"interface":0,"time":"2023-11-14T22:13:23Z","reason":"tag_malformed"}` {
		t.Errorf("%s, %v", text, err)
	}
	text, err = json.Marshal(records[0])
	if err != nil || string(text) != `{"packet":1,"interface":0,"time":"2023-11-14T22:13:20Z","tag":{"carrier":"ip","suite":"siphash","unid":"56156412","epoch":55361,`+
		`"echoed":false,"nonce":"5e1635bf3387366d","digest":"b4883364bafd7c8d","src":"198.51.100.9","dst":"203.0.113.2","protocol":6,"kind":0,"src_port":40000,"dst_port":443,"length":78}}` {
		t.Errorf("%s, %v", text, err)
	}
}

func TestDecodeEthernetAndUDPCarrier(t *testing.T) {
	p := sharedPackets(t)["udp-carrier-ipv4-tcp-siphash"]
	f := append([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x81, 0, 0, 77, 8, 0}, p...)
	c := packet.DefaultCarrier
	c.UDP = true
	lines, _, s, err := decode(capture1(t, layers.LinkTypeEthernet, f), c)
	if err != nil || s.Tagged != 1 || !strings.Contains(lines[0], " vlan 77 ") || !strings.Contains(lines[0], " carrier udp ") {
		t.Errorf("%q, %v, %v", lines, s, err)
	}
	if _, _, s, err = decode(capture1(t, layers.LinkTypeEthernet, f), packet.DefaultCarrier); err != nil || s.Tagged != 0 {
		t.Errorf("with carrier ip: %v, %v", s, err)
	}
}

func TestDecodeDamaged(t *testing.T) {
	p := sharedPackets(t)["ipv4-tcp-siphash"]
	whole := capture1(t, layers.LinkTypeRaw, p, p, p)
	lines, _, s, err := decode(whole[:len(whole)-1], packet.DefaultCarrier)
	if !errors.Is(err, capture.ErrFormat) || !strings.HasPrefix(err.Error(), "packet 3: ") || len(lines) != 2 || s.Packets != 2 {
		t.Errorf("%d lines, %v, %v", len(lines), s, err)
	}
	if _, _, _, err = decode([]byte("garbage, and more of it than 24 bytes"), packet.DefaultCarrier); !errors.Is(err, capture.ErrFormat) {
		t.Error(err)
	}
	stop := errors.New("stop")
	if s, err := Decode(bytes.NewReader(whole), packet.DefaultCarrier, func(*Record) error { return stop }); !errors.Is(err, stop) || s.Packets != 1 {
		t.Error(s, err)
	}
}
