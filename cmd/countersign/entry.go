package main

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/tables"
)

// shownBits is the widest action parameter that is shown: link-layer addresses.
// Everything wider is key material or a finished tag.
const shownBits = 48

// field is a name and its value as people read it.
type field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (f field) String() string { return f.Name + "=" + f.Value }

// actionText is an action as people read it.
type actionText struct {
	Name   string  `json:"name"`
	Params []field `json:"params,omitempty"`
	Weight int32   `json:"weight,omitempty"` // among next hops
}

// entryText is an entry as people read it.
type entryText struct {
	Table    string       `json:"table"`
	Priority int32        `json:"priority,omitempty"`
	Match    []field      `json:"match"`
	Actions  []actionText `json:"actions"`
	// Rate is the meter's, in packets a second.
	Rate  int64 `json:"rate_pps,omitempty"`
	place int   // of the table in the pipeline
}

func (e *entryText) row() []string {
	var match, actions []string
	for _, f := range e.Match {
		match = append(match, f.String())
	}
	for _, a := range e.Actions {
		words := []string{a.Name}
		for _, p := range a.Params {
			words = append(words, p.String())
		}
		if a.Weight > 1 {
			words = append(words, fmt.Sprintf("weight=%d", a.Weight))
		}
		actions = append(actions, strings.Join(words, " "))
	}
	if e.Rate > 0 {
		actions = append(actions, fmt.Sprintf("%d packets/s", e.Rate))
	}
	prio := ""
	if e.Priority > 0 {
		prio = strconv.Itoa(int(e.Priority))
	}
	return []string{e.Table, prio, cmp.Or(strings.Join(match, " "), "any"), strings.Join(actions, ", ")}
}

// describe returns an entry as people read it, zones by their names and without
// key material.
func describe(e tables.Entry, zones map[uint64]string) (out entryText, err error) {
	t, err := tables.TableByID(e.TableID())
	if err != nil {
		return out, err
	}
	te, err := e.ToProto()
	if err != nil {
		return out, err
	}
	out = entryText{Table: t.Alias, Priority: te.Priority, Match: []field{}, Actions: []actionText{}, place: slices.Index(tables.Tables(), t)}
	for _, m := range te.Match {
		for i := range t.Fields {
			if f := &t.Fields[i]; f.ID == m.FieldId {
				out.Match = append(out.Match, field{f.Name, matchText(f, m, zones)})
			}
		}
	}
	if a := te.GetAction().GetAction(); a != nil {
		if err := out.addAction(a, 0, zones); err != nil {
			return out, err
		}
	}
	for _, a := range te.GetAction().GetActionProfileActionSet().GetActionProfileActions() {
		if err := out.addAction(a.Action, a.Weight, zones); err != nil {
			return out, err
		}
	}
	out.Rate = te.GetMeterConfig().GetPir()
	return out, nil
}

func (e *entryText) addAction(a *p4v1.Action, weight int32, zones map[uint64]string) error {
	info, err := tables.ActionByID(a.ActionId)
	if err != nil {
		return err
	}
	text := actionText{Name: info.Alias, Weight: weight}
	for _, p := range a.Params {
		for i := range info.Params {
			if f := &info.Params[i]; f.ID == p.ParamId && f.Width <= shownBits {
				text.Params = append(text.Params, field{f.Name, valueText(f, p.Value, zones)})
			}
		}
	}
	e.Actions = append(e.Actions, text)
	return nil
}

func matchText(f *tables.FieldInfo, m *p4v1.FieldMatch, zones map[uint64]string) string {
	switch {
	case m.GetLpm() != nil:
		return valueText(f, m.GetLpm().Value, zones) + "/" + strconv.Itoa(int(m.GetLpm().PrefixLen))
	case m.GetTernary() != nil:
		t := m.GetTernary()
		mask := padded(t.Mask, f.Width)
		set, lead := ones(mask)
		switch value := valueText(f, t.Value, zones); {
		case set == f.Width:
			return value
		case isAddress(f) && lead:
			return value + "/" + strconv.Itoa(set)
		default:
			return fmt.Sprintf("0x%x&0x%x", padded(t.Value, f.Width), mask)
		}
	case m.GetRange() != nil:
		low, high := valueText(f, m.GetRange().Low, zones), valueText(f, m.GetRange().High, zones)
		if low == high {
			return low
		}
		return low + "-" + high
	case m.GetOptional() != nil:
		return valueText(f, m.GetOptional().Value, zones)
	}
	return valueText(f, m.GetExact().GetValue(), zones)
}

// padded returns b in the field's full width.
func padded(b []byte, width int) []byte {
	out := make([]byte, (width+7)/8)
	if n := len(out) - len(b); n >= 0 {
		copy(out[n:], b)
	}
	return out
}

// ones returns how many bits of a mask are set, and whether they all lead.
func ones(mask []byte) (n int, lead bool) {
	lead = true
	for i, b := range mask {
		set := bits.OnesCount8(b)
		lead = lead && (set == 0 || n == 8*i && bits.LeadingZeros8(^b) == set)
		n += set
	}
	return n, lead
}

func isAddress(f *tables.FieldInfo) bool {
	return (f.Width == 32 || f.Width == 128) && f.Name != "unid"
}

func valueText(f *tables.FieldInfo, b []byte, zones map[uint64]string) string {
	full := padded(b, f.Width)
	if isAddress(f) {
		if a, ok := netip.AddrFromSlice(full); ok {
			return a.String()
		}
	}
	if len(full) > 8 {
		return fmt.Sprintf("0x%x", full)
	}
	var n uint64
	for _, x := range full {
		n = n<<8 | uint64(x)
	}
	switch {
	case f.Name == "unid":
		return fmt.Sprintf("%08x", n)
	case strings.HasSuffix(f.Name, "mac") && f.Width == 48:
		return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", full[0], full[1], full[2], full[3], full[4], full[5])
	case strings.HasSuffix(f.Name, "zone") && zones[n] != "":
		return zones[n]
	case f.Name == "protocol":
		return protocolName(uint8(n))
	case f.Name == "tcp_flags" || f.Name == "flags":
		return fmt.Sprintf("0x%02x", n)
	}
	switch f.Enum {
	case "Role":
		return tables.Role(n).String()
	case "Reason":
		return tables.Reason(n).String()
	case "Suite":
		return tables.Suite(n).String()
	case "KeyState":
		return tables.KeyState(n).String()
	}
	return strconv.FormatUint(n, 10)
}

// protocolName is the name that a configuration has for an IP protocol, or its
// number.
func protocolName(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 33:
		return "dccp"
	case 58:
		return "icmpv6"
	case 132:
		return "sctp"
	case 136:
		return "udplite"
	}
	return strconv.Itoa(int(p))
}
