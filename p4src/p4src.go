// Package p4src holds the compiled P4 program: what a controller pushes to a
// data plane, and what the generated tables are made from.
package p4src

import (
	_ "embed"
	"fmt"

	p4configv1 "github.com/p4lang/p4runtime/go/p4/config/v1"
	"google.golang.org/protobuf/encoding/prototext"
)

// JSON is the program as p4c's bmv2 backend writes it, without the positions
// in the sources.
//
//go:embed build/countersign.json
var JSON []byte

// P4InfoText is the P4Info in protobuf text format.
//
//go:embed build/countersign.p4info.txtpb
var P4InfoText []byte

// Stamp names the sources and the compiler that the two were made from.
//
//go:embed build/STAMP
var Stamp []byte

// P4Info returns a fresh copy of the program's P4Info. Fields that p4c writes
// and this release of the P4Runtime API does not have yet, such as
// initial_default_action, are left out.
func P4Info() (*p4configv1.P4Info, error) {
	info := new(p4configv1.P4Info)
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(P4InfoText, info); err != nil {
		return nil, fmt.Errorf("embedded P4Info: %w", err)
	}
	return info, nil
}
