package tables

import (
	"errors"
	"reflect"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// Tests of what is special in the sample P4Info; the generator's test runs
// them, with the properties of package tables, on the code that it generates.

var enumMembers = map[string]func(uint64) bool{
	"Reason": func(v uint64) bool { return v <= 255 && Reason(v).known() },
	"Role":   func(v uint64) bool { return v <= 255 && Role(v).known() },
}

func TestWordsTooWideToEncode(t *testing.T) {
	for name, e := range map[string]Entry{
		"lpm value":      ShortPrefixEntry{Key: ShortPrefixKey{Label: LPM[uint32]{1 << 20, 1}}},
		"lpm value, /0":  ShortPrefixEntry{Key: ShortPrefixKey{Label: LPM[uint32]{1 << 20, 0}}},
		"exact bytes":    ShortPrefixEntry{Key: ShortPrefixKey{Odd: [9]byte{0x40}}},
		"lpm bytes":      OddPrefixEntry{Key: OddPrefixKey{LPM[[9]byte]{[9]byte{0x80}, 70}}},
		"exact word":     EgressPortV4Entry{Key: EgressPortV4Key{Vrf: 1 << 10}},
		"ternary value":  PolicyEntry{Priority: 1, Key: PolicyKey{MAC: Ternary[uint64]{1 << 48, 1}}},
		"ternary mask":   PolicyEntry{Priority: 1, Key: PolicyKey{IPv4Valid: Ternary[uint8]{0, 2}}},
		"range":          PolicyEntry{Priority: 1, Key: PolicyKey{Offset: Between[uint16](0, 1<<13)}},
		"optional":       PolicyEntry{Priority: 1, Key: PolicyKey{InPort: Some[uint16](512)}},
		"optional bytes": PolicyEntry{Priority: 1, Key: PolicyKey{Wide: Some([13]byte{0x10})}},
		"parameter":      SessionV4Entry{Action: Admit{MTU: 1 << 14}},
		"wide parameter": SessionV4Entry{Action: OwnTag{Odd: [9]byte{0x08}}},
	} {
		if _, err := e.ToProto(); !errors.Is(err, ErrWidth) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInvalidToEncode(t *testing.T) {
	for _, tc := range []struct {
		name string
		e    Entry
		want error
	}{
		{"enum in key", PolicyEntry{Priority: 1, Key: PolicyKey{Role: Some(Role(3))}}, ErrValue},
		{"enum in action", PolicyEntry{Priority: 1, Action: Deny{Reason(77)}}, ErrValue},
		{"prefix", ShortPrefixEntry{Key: ShortPrefixKey{Label: LPM[uint32]{0, 21}}}, ErrMatch},
		{"negative prefix", OddPrefixEntry{Key: OddPrefixKey{LPM[[9]byte]{PrefixLen: -1}}}, ErrMatch},
		{"range", PolicyEntry{Priority: 1, Key: PolicyKey{DstPort: Between[uint16](2, 1)}}, ErrMatch},
		{"no priority", PolicyEntry{}, ErrPriority},
		{"idle timeout", SessionV4Entry{IdleTimeout: -1}, ErrValue},
		{"table only", SessionV4Entry{Default: true, Action: OwnTag{}}, ErrAction},
		{"default only", SessionV4Entry{Action: NoAction{}}, ErrAction},
		{"default with key", SessionV4Entry{Default: true, Key: SessionV4Key{Kind: 1}}, ErrMatch},
		{"weight", EgressPortV4Entry{Action: NexthopGroupOneShot{{Action: SetNexthop{}}}}, ErrValue},
		{"one-shot action", EgressPortV4Entry{Action: NexthopGroupOneShot{{Weight: 1}}}, ErrMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.e.ToProto(); !errors.Is(err, tc.want) {
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestIdentityIgnoresWhatDoesNotMatter(t *testing.T) {
	a := PolicyEntry{Priority: 7, Key: PolicyKey{
		Src:     Ternary[[16]byte]{[16]byte{1, 2, 3}, [16]byte{0xff}},
		Wide:    Optional[[13]byte]{Value: [13]byte{1}},
		DstPort: Between[uint16](0, 0xffff),
	}}
	b := PolicyEntry{Priority: 7, Metadata: "another", Key: PolicyKey{Src: Ternary[[16]byte]{[16]byte{1}, [16]byte{0xff}}}}
	if a.Identity() != b.Identity() {
		t.Errorf("%+v and %+v differ", a.Identity(), b.Identity())
	}
	b.Priority = 8
	if a.Identity() == b.Identity() {
		t.Error("priority does not count")
	}
	c := OddPrefixEntry{Key: OddPrefixKey{LPM[[9]byte]{[9]byte{0x21, 0xff}, 6}}}
	d := OddPrefixEntry{Key: OddPrefixKey{LPM[[9]byte]{[9]byte{0x21, 0x00}, 6}}}
	if c.Identity() != d.Identity() {
		t.Errorf("%+v and %+v differ", c.Identity(), d.Identity())
	}
}

func TestPacketInPadding(t *testing.T) {
	want := PacketIn{Reason: ReasonTagForged, IngressPort: 511, LowAddr: [16]byte{15: 9}}
	p, err := want.ToProto([]byte("packet"))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.GetMetadata()) != 4 || string(p.GetMetadata()[2].GetValue()) != "\x00" {
		t.Errorf("metadata %v", p.GetMetadata())
	}
	if got, err := DecodePacketIn(p); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestConstants(t *testing.T) {
	if CPUPort != 510 || CarrierProtocol != 253 || ZoneAny != 0xffff {
		t.Error(CPUPort, CarrierProtocol, ZoneAny)
	}
}

func TestMemberAndGroup(t *testing.T) {
	m := NexthopGroupMember{7, SetNexthop{Port: 3, DstMAC: 0x0102030405}}
	pm, err := m.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeNexthopGroupMember(pm); err != nil || got != m {
		t.Errorf("%+v, %v, want %+v", got, err, m)
	}
	g := NexthopGroupGroup{9, 4, []GroupMember{{7, 1, Some[uint32](0)}, {8, 3, Optional[uint32]{}}}}
	pg, err := g.ToProto()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeNexthopGroupGroup(pg); err != nil || !reflect.DeepEqual(got, g) {
		t.Errorf("%+v, %v, want %+v", got, err, g)
	}
	if _, err := (NexthopGroupMember{MemberID: 1}).Update(p4v1.Update_INSERT); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
}
