package entry

import (
	"net/netip"
	"testing"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/controller/session"
	"countersign/tables"
	"countersign/tag"
)

func TestEntriesKeepTheTuple(t *testing.T) {
	v4, _ := tag.NewTuple(6, tag.KindPorts, netip.MustParseAddr("10.2.0.9"), netip.MustParseAddr("10.1.0.3"), 443, 50000)
	v6, _ := tag.NewTuple(17, tag.KindFragment, netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("2001:db8::3"), 7, 9)
	v := session.Vouched{ID: tag.KeyID{Suite: tag.Ed25519, UNID: 0xdeadbeef, Epoch: 65535}, Nonce: 1 << 63, Digest: 2, CRC: 3}
	h := tag.NewHeader(v.ID)
	h.Sealed = make([]byte, 64)
	for _, tuple := range []tag.Tuple{v4, v6} {
		own, err := ForOwnTag(tuple, &h, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			e    tables.Entry
			want Read
		}{
			{ForSession(tuple, 3, 4, time.Minute), Read{Kind: Session, Tuple: tuple, LowZone: 3, HighZone: 4, Idle: time.Minute}},
			{ForDelivered(tuple, 0), Read{Kind: Delivered, Tuple: tuple}},
			{ForVouched(tuple, v, time.Hour), Read{Kind: Vouched, Tuple: tuple, Vouched: v, Idle: time.Hour}},
			{own, Read{Kind: OwnTag, Tuple: tuple, Own: v.ID, Idle: time.Second}},
		} {
			te, err := tc.e.ToProto()
			if err != nil {
				t.Fatalf("%v: %v", tc.want.Kind, err)
			}
			got, ok, err := Decode(te)
			if err != nil || !ok || got != tc.want {
				t.Errorf("%v: got %+v, %v, %v; want %+v", tc.want.Kind, got, ok, err, tc.want)
			}
			removal := VouchedRemoval(tuple, v)
			if tc.want.Kind != Vouched {
				removal = Removal(tc.want.Kind, tuple)
			}
			if removal.Identity() != tc.e.Identity() {
				t.Errorf("%v: removal is of another entry", tc.want.Kind)
			}
			if _, err := removal.Update(p4v1.Update_DELETE); err != nil {
				t.Errorf("%v: %v", tc.want.Kind, err)
			}
		}
	}
	if _, err := ForOwnTag(v4, &tag.Header{Suite: tag.Siphash}, 0); err == nil {
		t.Error("a siphash tag has no own_tag entry")
	}
}
