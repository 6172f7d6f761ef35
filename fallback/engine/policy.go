package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
)

// policy is the stage of that name: an untagged packet without a session is
// judged by the operator's rules, in order of priority; what matches none is
// denied. A rule that binds tagged packets too leaves `tagged` open, every
// other one asks for 0; a tagged packet that matches none passes, because its
// issuer has admitted it.
func (pl *pipeline) policy(m *meta, worker int) {
	v := &m.view
	rules := pl.policy4.rules.Load()
	if v.Family == 6 {
		rules = pl.policy6.rules.Load()
	}
	if r := m.firstRule(rules); r != nil {
		r.counts[worker].add(1, uint64(len(m.frame)))
		switch r.verdict.Load() {
		case tables.AdmitV4ActionID, tables.AdmitV6ActionID:
			m.hold(StagePolicy, tables.ReasonNewSession)
		case tables.AwaitV4ActionID, tables.AwaitV6ActionID:
			m.hold(StagePolicy, tables.ReasonReplyUnknown)
		case tables.DenyV4ActionID, tables.DenyV6ActionID:
			m.drop(StagePolicy, tables.ReasonPolicyDeny)
		}
	} else if !m.tagged {
		m.drop(StagePolicy, tables.ReasonPolicyDefault)
	}
}

// firstRule returns the rule that the packet matches, or nil.
func (m *meta) firstRule(s *ruleset) *rule {
	if len(s.rules) == 0 {
		return nil
	}
	v := &m.view
	var k policyKey
	k.inZone, k.outZone, k.protocol = m.zone, m.hop.zone, v.Protocol
	k.srcPort, k.dstPort = m.ports()
	k.words[0] = policyWord(uint64(m.zone), uint64(m.hop.zone), uint64(v.Protocol), uint64(v.TCPFlags), uint64(m.kind()))
	if m.tagged {
		k.tagged = 1
	}
	ip := m.frame[v.L3:]
	if v.Family == 4 {
		k.words[1] = binary.BigEndian.Uint64(ip[12:])
	} else {
		for i := range 4 {
			k.words[1+i] = binary.BigEndian.Uint64(ip[8+8*i:])
		}
	}
	return s.match(&k)
}

// policyKey is a packet as rules see it.
type policyKey struct {
	words            [5]uint64 // policyWord, then source and destination address
	srcPort, dstPort uint16
	tagged           uint8

	inZone, outZone uint16
	protocol        uint8
}

// policyWord is the fields before and behind the addresses and ports.
func policyWord(inZone, outZone, protocol, tcpFlags, kind uint64) uint64 {
	return inZone<<48 | outZone<<32 | protocol<<24 | tcpFlags<<16 | kind
}

// rule is one entry, ready to compare. What packets read beside verdict and
// counts does not change.
type rule struct {
	srcLow, srcHigh, dstLow, dstHigh uint16
	tagged, taggedMask               uint8
	words                            [5]struct{ value, mask uint64 }
	verdict                          atomic.Uint32 // action id
	counts                           []striped     // by worker

	// Of the control path.
	key      string
	match    []p4rtserver.FieldMatch
	priority int32
	order    uint64 // older rules first, where priorities are equal
	metadata []byte
}

// striped keeps the counts of different workers apart.
type striped struct {
	counts
	_ [48]byte
}

func (r *rule) matches(k *policyKey, n int) bool {
	for i := range n {
		if w := &r.words[i]; k.words[i]&w.mask != w.value {
			return false
		}
	}
	return r.srcLow <= k.srcPort && k.srcPort <= r.srcHigh && r.dstLow <= k.dstPort && k.dstPort <= r.dstHigh &&
		k.tagged&r.taggedMask == r.tagged
}

// ruleset finds the first of many rules. For each of four fields it has, by
// the field's value, a bitmap of the rules that may match; the rules that all
// four leave are compared in full (bit vector packet classification; Lakshman
// and Stiliadis 1998). It is immutable.
type ruleset struct {
	rules           []*rule // by priority
	words           int     // of each key
	inZone, outZone zoneMap
	protocol        [256]bitmap
	dstFrom         []uint16 // ascending, begins with 0
	dstPort         []bitmap // of the ports from dstFrom[i] on
}

type bitmap []uint64

// zoneMap has the zones that rules name, and all others.
type zoneMap struct {
	zones []uint16
	maps  []bitmap
	other bitmap
}

func (z *zoneMap) get(zone uint16) bitmap {
	for i, x := range z.zones {
		if x == zone {
			return z.maps[i]
		}
	}
	return z.other
}

// match needs at least one rule.
func (s *ruleset) match(k *policyKey) *rule {
	in, out, proto := s.inZone.get(k.inZone), s.outZone.get(k.outZone), s.protocol[k.protocol]
	i, j := 0, len(s.dstFrom)
	for j-i > 1 {
		if h := (i + j) / 2; s.dstFrom[h] <= k.dstPort {
			i = h
		} else {
			j = h
		}
	}
	port := s.dstPort[i]
	out, proto, port = out[:len(in)], proto[:len(in)], port[:len(in)]
	for w := range in {
		for set := in[w] & out[w] & proto[w] & port[w]; set != 0; set &= set - 1 {
			if r := s.rules[w*64+bits.TrailingZeros64(set)]; r.matches(k, s.words) {
				return r
			}
		}
	}
	return nil
}

// maxBounds bounds the memory of the port bitmaps: bounds times words.
const maxBounds = 1 << 18

// newRuleset makes the bitmaps of rules, which are in order.
func newRuleset(rules []*rule, words int) *ruleset {
	s := &ruleset{rules: rules, words: words}
	n := (len(rules) + 63) / 64
	s.inZone = newZoneMap(rules, n, 48)
	s.outZone = newZoneMap(rules, n, 32)

	any := make(bitmap, n)
	exactly := make(map[uint8]bitmap)
	for i, r := range rules {
		if w := r.words[0]; uint8(w.mask>>24) == 0xff {
			exactly[uint8(w.value>>24)] = nil
		} else {
			any.set(i)
		}
	}
	for p := range exactly {
		exactly[p] = slices.Clone(any)
	}
	for i, r := range rules {
		if w := r.words[0]; uint8(w.mask>>24) == 0xff {
			exactly[uint8(w.value>>24)].set(i)
		}
	}
	for p := range s.protocol {
		s.protocol[p] = any
		if m, ok := exactly[uint8(p)]; ok {
			s.protocol[p] = m
		}
	}

	s.dstFrom = []uint16{0}
	for _, r := range rules {
		s.dstFrom = append(s.dstFrom, r.dstLow)
		if r.dstHigh < 0xffff {
			s.dstFrom = append(s.dstFrom, r.dstHigh+1)
		}
	}
	slices.Sort(s.dstFrom)
	s.dstFrom = slices.Compact(s.dstFrom)
	if most := max(maxBounds/max(n, 1), 1); len(s.dstFrom) > most {
		// Fewer, wider steps: their bitmaps have more rules than match.
		step := (len(s.dstFrom) + most - 1) / most
		var coarse []uint16
		for i := 0; i < len(s.dstFrom); i += step {
			coarse = append(coarse, s.dstFrom[i])
		}
		s.dstFrom = coarse
	}
	s.dstPort = make([]bitmap, len(s.dstFrom))
	for i := range s.dstPort {
		s.dstPort[i] = make(bitmap, n)
	}
	for i, r := range rules {
		from, _ := slices.BinarySearch(s.dstFrom, r.dstLow+1)
		if r.dstLow == 0xffff {
			from = len(s.dstFrom)
		}
		for b := from - 1; b < len(s.dstFrom) && s.dstFrom[b] <= r.dstHigh; b++ {
			s.dstPort[b].set(i)
		}
	}
	return s
}

func (b bitmap) set(i int) { b[i/64] |= 1 << (i % 64) }

// newZoneMap has the rules by the zone at that shift of their first word.
func newZoneMap(rules []*rule, n int, shift uint) zoneMap {
	z := zoneMap{other: make(bitmap, n)}
	named := func(r *rule) (uint16, bool) {
		return uint16(r.words[0].value >> shift), uint16(r.words[0].mask>>shift) == 0xffff
	}
	for i, r := range rules {
		if zone, ok := named(r); !ok {
			z.other.set(i)
		} else if !slices.Contains(z.zones, zone) {
			z.zones = append(z.zones, zone)
		}
	}
	for _, zone := range z.zones {
		m := slices.Clone(z.other)
		for i, r := range rules {
			if x, ok := named(r); ok && x == zone {
				m.set(i)
			}
		}
		z.maps = append(z.maps, m)
	}
	return z
}

// policyStore is policy_v4 or policy_v6; packets read its ruleset, which flush
// makes anew.
type policyStore struct {
	info    *tables.TableInfo
	stripes int // workers
	rules   atomic.Pointer[ruleset]
	byKey   map[string]*rule
	changed bool
	order   uint64
	n       atomic.Int64
}

func newPolicyStore(info *tables.TableInfo, workers int) *policyStore {
	s := &policyStore{info: info, stripes: workers, byKey: make(map[string]*rule)}
	s.rules.Store(new(ruleset))
	return s
}

// words is how many words the key has.
func (s *policyStore) words() int {
	if s.info.Fields[policySrc].Width == 32 {
		return 2
	}
	return 5
}

// The fields of a policy key, in the order of the P4Info.
const (
	policyInZone = iota
	policyOutZone
	policySrc
	policyDst
	policyProtocol
	policySrcPort
	policyDstPort
	policyTCPFlags
	policyKind
	policyTagged
)

// ruleKey names an entry: its priority and what it matches.
func ruleKey(e *p4rtserver.Entry) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(e.Priority))
	for i := range e.Match {
		f := &e.Match[i]
		b = append(b, byte(f.Kind), byte(len(f.Value)), byte(len(f.Mask)))
		b = append(append(b, f.Value...), f.Mask...)
	}
	return string(b)
}

func newRule(e *p4rtserver.Entry, v4 bool) *rule {
	word := func(i int) (value, mask uint64) {
		return p4rtserver.Uint64(e.Match[i].Value), p4rtserver.Uint64(e.Match[i].Mask)
	}
	r := &rule{srcHigh: 0xffff, dstHigh: 0xffff, priority: e.Priority}
	inZone, inMask := word(policyInZone)
	outZone, outMask := word(policyOutZone)
	protocol, protocolMask := word(policyProtocol)
	flags, flagsMask := word(policyTCPFlags)
	kind, kindMask := word(policyKind)
	tagged, taggedMask := word(policyTagged)
	r.words[0].value = policyWord(inZone, outZone, protocol, flags, kind)
	r.words[0].mask = policyWord(inMask, outMask, protocolMask, flagsMask, kindMask)
	r.tagged, r.taggedMask = uint8(tagged), uint8(taggedMask)
	if v4 {
		src, srcMask := word(policySrc)
		dst, dstMask := word(policyDst)
		r.words[1].value, r.words[1].mask = src<<32|dst, srcMask<<32|dstMask
	} else {
		for i, f := range [...]int{policySrc, policyDst} {
			value, mask := appendWords(nil, e.Match[f].Value, 128), appendWords(nil, e.Match[f].Mask, 128)
			for j := range 2 {
				r.words[1+2*i+j].value, r.words[1+2*i+j].mask = value[j], mask[j]
			}
		}
	}
	if e.Match[policySrcPort].Kind == p4rtserver.MatchRange {
		low, high := word(policySrcPort)
		r.srcLow, r.srcHigh = uint16(low), uint16(high)
	}
	if e.Match[policyDstPort].Kind == p4rtserver.MatchRange {
		low, high := word(policyDstPort)
		r.dstLow, r.dstHigh = uint16(low), uint16(high)
	}
	r.match = slices.Clone(e.Match)
	for i := range r.match {
		f := &r.match[i]
		f.Value, f.Mask = bytes.Clone(f.Value), bytes.Clone(f.Mask)
	}
	return r
}

func (s *policyStore) write(op p4rtserver.Op, e *p4rtserver.Entry, _ int64) error {
	if e.Default {
		return errDefault(s.info)
	}
	key := ruleKey(e)
	r, ok := s.byKey[key]
	switch {
	case op == p4rtserver.Insert && ok:
		return p4rtserver.ErrAlreadyExists
	case op != p4rtserver.Insert && !ok:
		return p4rtserver.ErrNotFound
	case op == p4rtserver.Delete:
		delete(s.byKey, key)
		s.changed = true
		s.n.Add(-1)
		return nil
	case op == p4rtserver.Insert:
		if len(s.byKey) >= int(s.info.Size) {
			return fmt.Errorf("%w: %s holds %d entries", p4rtserver.ErrResourceExhausted, s.info.Alias, s.info.Size)
		}
		r = newRule(e, s.words() == 2)
		r.key, r.order, r.counts = key, s.order, make([]striped, s.stripes)
		s.order++
		s.byKey[key] = r
		s.changed = true
		s.n.Add(1)
	}
	if e.Action.Kind != p4rtserver.ActionNone {
		r.verdict.Store(e.Action.Action.ID)
	}
	r.metadata = bytes.Clone(e.Metadata)
	if e.Counter != nil {
		r.setCounter(*e.Counter)
	}
	return nil
}

func (r *rule) setCounter(d p4rtserver.CounterData) {
	for i := range r.counts {
		r.counts[i].store(d)
		d = p4rtserver.CounterData{}
	}
}

func (r *rule) counter() *p4rtserver.CounterData {
	d := new(p4rtserver.CounterData)
	for i := range r.counts {
		c := r.counts[i].load()
		d.Packets += c.Packets
		d.Bytes += c.Bytes
	}
	return d
}

func (s *policyStore) flush() {
	if !s.changed {
		return
	}
	rules := make([]*rule, 0, len(s.byKey))
	for _, r := range s.byKey {
		rules = append(rules, r)
	}
	slices.SortFunc(rules, func(a, b *rule) int {
		if a.priority != b.priority {
			return int(b.priority) - int(a.priority)
		}
		if a.order < b.order {
			return -1
		}
		return 1
	})
	s.rules.Store(newRuleset(rules, s.words()))
	s.changed = false
}

func (s *policyStore) setCounter(e *p4rtserver.Entry) error {
	r := s.byKey[ruleKey(e)]
	if r == nil {
		return p4rtserver.ErrNotFound
	}
	var d p4rtserver.CounterData
	if e.Counter != nil {
		d = *e.Counter
	}
	r.setCounter(d)
	return nil
}

func (s *policyStore) setMeter(*p4rtserver.Entry, int64) error { return p4rtserver.ErrUnimplemented }

func (s *policyStore) count() int { return int(s.n.Load()) }

func (r *rule) fill(e *p4rtserver.Entry, want p4rtserver.Want) {
	e.Action = p4rtserver.TableAction{Kind: p4rtserver.ActionDirect, Action: p4rtserver.Action{ID: r.verdict.Load()}}
	e.Metadata = r.metadata
	if want&p4rtserver.WantCounter != 0 {
		e.Counter = r.counter()
	}
}

func (s *policyStore) lookup(e *p4rtserver.Entry, want p4rtserver.Want, _ int64) error {
	if e.Default {
		return fillDefault(e, s.info)
	}
	r := s.byKey[ruleKey(e)]
	if r == nil {
		return p4rtserver.ErrNotFound
	}
	r.fill(e, want)
	return nil
}

func (s *policyStore) each(want p4rtserver.Want, _ int64, yield func(*p4rtserver.Entry) bool) {
	for _, r := range s.byKey {
		e := p4rtserver.Entry{TableID: s.info.ID, Match: r.match, Priority: r.priority}
		r.fill(&e, want)
		if !yield(&e) {
			return
		}
	}
}

func (s *policyStore) sweep(idle []p4rtserver.Entry, _, _ uint32, _ int64) ([]p4rtserver.Entry, uint32, bool) {
	return idle, 0, false
}
