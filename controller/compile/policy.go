package compile

import (
	"fmt"
	"net/netip"

	"countersign/controller/config"
	"countersign/tables"
)

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10

	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58
)

// rule is one entry of the policy tables, before the family is known.
type rule struct {
	in, out  tables.Ternary[uint16]
	src, dst netip.Prefix
	protocol tables.Ternary[uint8]
	sport    tables.Range[uint16]
	dport    tables.Range[uint16]
	flags    tables.Ternary[uint8]
	tagged   tables.Ternary[uint8]
	action   string
	name     string
}

// policy compiles the operator's rules from the highest priority downwards,
// and below all of them what waits for an announcement where replies may come
// to another data plane or member: the mirrors of the rules that admit, and
// what the site serves.
func (b *builder) policy() error {
	var rules []rule
	for i := range b.cfg.Policy {
		rules = append(rules, b.compileRule(i)...)
	}
	if b.cfg.Siblings.Listen != "" || len(b.cfg.Devices) > 1 {
		for i := range b.cfg.Policy {
			if b.cfg.Policy[i].Action == "admit" {
				rules = append(rules, b.mirror(i)...)
			}
		}
		for _, s := range b.cfg.Serves {
			proto, any, err := config.ParseProtocol(s.Protocol)
			if err != nil {
				return err
			}
			r := rule{src: s.Prefix, sport: portRange(s.Port), tagged: untagged, action: "await", name: "serves " + s.Prefix.String()}
			rules = append(rules, expand(r, proto, any, awaitFlags)...)
		}
	}
	priority := int32(len(rules))
	for _, r := range rules {
		b.addRule(r, priority)
		priority--
	}
	return nil
}

var untagged = tables.Ternary[uint8]{Value: 0, Mask: 1}

// flag sets that TCP packets of a rule may have.
var (
	anyFlags   = []tables.Ternary[uint8]{{}}
	synFlags   = []tables.Ternary[uint8]{{Value: tcpSYN, Mask: tcpSYN | tcpACK | tcpRST | tcpFIN}}
	awaitFlags = []tables.Ternary[uint8]{{Value: tcpACK, Mask: tcpACK}, {Value: 0, Mask: tcpSYN}}
)

func (b *builder) compileRule(i int) []rule {
	c := &b.cfg.Policy[i]
	proto, any, _ := config.ParseProtocol(c.Protocol)
	r := rule{
		in: b.zone(c.From), out: b.zone(c.To), src: c.Src, dst: c.Dst,
		sport: portRange(c.SrcPort), dport: portRange(c.DstPort),
		tagged: untagged, action: c.Action, name: c.Name,
	}
	if r.name == "" {
		r.name = fmt.Sprintf("policy[%d]", i)
	}
	if c.Always {
		r.tagged = tables.Ternary[uint8]{}
	}
	flags := anyFlags
	if c.Action == "admit" && !c.Midstream {
		flags = synFlags
	}
	return expand(r, proto, any, flags)
}

// mirror matches the replies to what the rule admits. A TCP packet that opens
// a connection is never a reply.
func (b *builder) mirror(i int) []rule {
	c := &b.cfg.Policy[i]
	proto, any, _ := config.ParseProtocol(c.Protocol)
	return expand(rule{
		in: b.zone(c.To), out: b.zone(c.From), src: c.Dst, dst: c.Src,
		sport: portRange(c.DstPort), dport: portRange(c.SrcPort),
		tagged: untagged, action: "await", name: "replies to " + c.Name,
	}, proto, any, awaitFlags)
}

// expand gives the entries of a rule whose TCP packets must have one of the
// flag sets. "Any protocol" is TCP with the flags, and everything that differs
// from TCP in one of the eight bits of the protocol.
func expand(r rule, proto uint8, any bool, flags []tables.Ternary[uint8]) []rule {
	var out []rule
	restricted := flags[0].Mask != 0
	if !any {
		r.protocol = tables.Ternary[uint8]{Value: proto, Mask: 0xff}
		if proto != protoTCP {
			return append(out, r)
		}
	} else if !restricted {
		return append(out, r)
	}
	tcp := r
	tcp.protocol = tables.Ternary[uint8]{Value: protoTCP, Mask: 0xff}
	for _, f := range flags {
		tcp.flags = f
		out = append(out, tcp)
	}
	if any {
		for bit := uint8(1); bit != 0; bit <<= 1 {
			other := r
			other.protocol = tables.Ternary[uint8]{Value: ^uint8(protoTCP) & bit, Mask: bit}
			out = append(out, other)
		}
	}
	return out
}

func (b *builder) addRule(r rule, priority int32) {
	family := 0
	for _, p := range []netip.Prefix{r.src, r.dst} {
		if p.IsValid() {
			family = 6
			if p.Addr().Is4() {
				family = 4
			}
		}
	}
	if r.protocol.Mask == 0xff && family == 0 {
		switch r.protocol.Value {
		case protoICMP:
			family = 4
		case protoICMPv6:
			family = 6
		}
	}
	if family != 6 {
		e := tables.PolicyV4Entry{
			Key: tables.PolicyV4Key{
				InZone: r.in, OutZone: r.out, Src: ternary4(r.src), Dst: ternary4(r.dst), Protocol: r.protocol,
				SrcPort: r.sport, DstPort: r.dport, TCPFlags: r.flags, Tagged: r.tagged,
			},
			Priority: priority,
		}
		switch r.action {
		case "admit":
			e.Action = tables.AdmitV4{}
		case "tag":
			e.Action = tables.TagV4{}
		case "await":
			e.Action = tables.AwaitV4{}
		default:
			e.Action = tables.DenyV4{}
		}
		b.add(e)
	}
	if family != 4 {
		e := tables.PolicyV6Entry{
			Key: tables.PolicyV6Key{
				InZone: r.in, OutZone: r.out, Src: ternary6(r.src), Dst: ternary6(r.dst), Protocol: r.protocol,
				SrcPort: r.sport, DstPort: r.dport, TCPFlags: r.flags, Tagged: r.tagged,
			},
			Priority: priority,
		}
		switch r.action {
		case "admit":
			e.Action = tables.AdmitV6{}
		case "tag":
			e.Action = tables.TagV6{}
		case "await":
			e.Action = tables.AwaitV6{}
		default:
			e.Action = tables.DenyV6{}
		}
		b.add(e)
	}
}

func (b *builder) zone(name string) tables.Ternary[uint16] {
	if name == "" {
		return tables.Ternary[uint16]{}
	}
	return tables.Ternary[uint16]{Value: b.zones[name], Mask: 0xffff}
}

func portRange(r config.PortRange) tables.Range[uint16] {
	if !r.IsSet() {
		return tables.Range[uint16]{}
	}
	low, high := r.Bounds()
	return tables.Between(low, high)
}

func ternary4(p netip.Prefix) tables.Ternary[uint32] {
	if !p.IsValid() || !p.Addr().Is4() {
		return tables.Ternary[uint32]{}
	}
	mask := ^uint32(0) << (32 - p.Bits())
	return tables.Ternary[uint32]{Value: v4(p.Addr()) & mask, Mask: mask}
}

func ternary6(p netip.Prefix) tables.Ternary[[16]byte] {
	if !p.IsValid() || p.Addr().Is4() {
		return tables.Ternary[[16]byte]{}
	}
	t := tables.Ternary[[16]byte]{Value: p.Masked().Addr().As16()}
	for i := range p.Bits() {
		t.Mask[i/8] |= 0x80 >> (i % 8)
	}
	return t
}
