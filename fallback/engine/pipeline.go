package engine

import (
	"fmt"
	"sync"
	"sync/atomic"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/fallback/p4rtserver"
	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

type (
	wordTable[V any]   = exact[uint64, V]
	tuple4Table[V any] = exact[tuple4, V]
	tuple6Table[V any] = exact[tag.Tuple, V]
)

// pipeline is one loaded forwarding pipeline: the tables and counters of the
// P4 program. It implements p4rtserver.Pipeline.
type pipeline struct {
	p4rtserver.Unimplemented
	e       *Engine
	up      p4rtserver.Upcalls
	carrier packet.Carrier
	hashes  hasher

	ports, crossConnects *wordTable[atomic.Uint64]
	issuerKeys           *wordTable[atomic.Pointer[issuerKey]]
	vouched4             *exact[vouchedKey4, struct{}]
	vouched6             *exact[vouchedKey6, struct{}]
	routes4, routes6     *routeStore
	delivered4           *tuple4Table[struct{}]
	delivered6           *tuple6Table[struct{}]
	session4             *tuple4Table[session]
	session6             *tuple6Table[session]
	policy4, policy6     *policyStore
	ownKeys              *wordTable[atomic.Pointer[ownKey]]
	ownTags4             *tuple4Table[atomic.Pointer[ownTag]]
	ownTags6             *tuple6Table[atomic.Pointer[ownTag]]
	punts                *wordTable[atomic.Pointer[meter]]
	cells                []counts // see cellDrops and the others
	nonceCount           [tables.PortTxCounterSize]atomic.Uint64

	// mu guards what the control path keeps beside what packets read: changes
	// and sweeps hold it, reads share it.
	mu      sync.RWMutex
	profile *profile
	stores  []store // in the order of the P4Info
	byID    map[uint32]store
}

// newPipeline returns an empty pipeline.
func newPipeline(e *Engine, up p4rtserver.Upcalls) *pipeline {
	pl := &pipeline{
		e: e, up: up, carrier: e.o.Carrier, hashes: e.hashes,
		cells: make([]counts, cellCount), profile: newProfile(), byID: make(map[uint32]store),
	}
	pl.ports = addWords(pl, tables.PortTableID, atWord12, setPort, getPort, nil)
	pl.issuerKeys = addWords(pl, tables.IssuerKeyTableID, atKeyWord, setIssuerKey, getIssuerKey, nil)
	pl.addVouched()
	pl.routes4 = newRouteStore(info(tables.EgressPortV4TableID), pl.profile)
	pl.routes6 = newRouteStore(info(tables.EgressPortV6TableID), pl.profile)
	pl.add(tables.EgressPortV4TableID, pl.routes4)
	pl.add(tables.EgressPortV6TableID, pl.routes6)
	pl.crossConnects = addWords(pl, tables.CrossConnectTableID, atWord12, setCrossConnect, getCrossConnect, nil)
	pl.delivered4 = add4(pl, tables.DeliveredV4TableID, setNothing[tuple4], getNothing(tables.DeliveredActionID), nil)
	pl.delivered6 = add6(pl, tables.DeliveredV6TableID, setNothing[tag.Tuple], getNothing(tables.DeliveredActionID), nil)
	pl.session4 = add4(pl, tables.SessionV4TableID, setSession[tuple4], getSession(tables.AdmittedV4ActionID), sessionCounts)
	pl.session6 = add6(pl, tables.SessionV6TableID, setSession[tag.Tuple], getSession(tables.AdmittedV6ActionID), sessionCounts)
	pl.policy4 = newPolicyStore(info(tables.PolicyV4TableID), e.o.Workers+1)
	pl.policy6 = newPolicyStore(info(tables.PolicyV6TableID), e.o.Workers+1)
	pl.add(tables.PolicyV4TableID, pl.policy4)
	pl.add(tables.PolicyV6TableID, pl.policy6)
	pl.ownKeys = addWords(pl, tables.OwnKeyTableID, atWord, setOwnKey, getOwnKey, nil)
	pl.ownTags4 = add4(pl, tables.OwnTagV4TableID, setOwnTag[tuple4], getOwnTag, nil)
	pl.ownTags6 = add6(pl, tables.OwnTagV6TableID, setOwnTag[tag.Tuple], getOwnTag, nil)
	pl.punts = addWords(pl, tables.PuntTableID, atPunt, setPunt, getPunt,
		func(p *atomic.Pointer[meter]) *atomic.Pointer[meter] { return p })
	return pl
}

// info is the table with that id of our own P4Info.
func info(id uint32) *tables.TableInfo {
	t, err := tables.TableByID(id)
	if err != nil {
		panic(err) // the constant and the list are generated together
	}
	return t
}

func (pl *pipeline) add(id uint32, s store) {
	pl.stores = append(pl.stores, s)
	pl.byID[id] = s
}

// wordKey translates between the fields of a key and the word that the table
// has of them.
type wordKey struct {
	join  func(fields []uint64) uint64
	split func(word uint64) []uint64
}

var (
	atWord = wordKey{
		func(f []uint64) uint64 { return f[0] },
		func(w uint64) []uint64 { return []uint64{w} },
	}
	atWord12 = wordKey{
		func(f []uint64) uint64 { return portKey(uint16(f[0]), uint16(f[1])) },
		func(w uint64) []uint64 { return []uint64{w >> 12, w & 0xfff} },
	}
	atKeyWord = wordKey{
		func(f []uint64) uint64 { return keyWord(f[0], f[1], f[2]) },
		splitKeyWord,
	}
	atPunt = wordKey{
		func(f []uint64) uint64 { return puntKey(f[0], f[1], f[2]) },
		func(w uint64) []uint64 { return []uint64{w >> 24, w >> 16 & 0xff, w & 0xffff} },
	}
)

func splitKeyWord(w uint64) []uint64 { return []uint64{w >> 48, w & 0xffffffff, w >> 32 & 0xffff} }

// addWords adds a table whose key is one word.
func addWords[V any](pl *pipeline, id uint32, k wordKey, set func(*uint64, *V, *p4rtserver.Action) error,
	get func(*V) p4rtserver.Action, meter func(*V) *atomic.Pointer[meter]) *wordTable[V] {
	t := info(id)
	x := newExact[uint64, V](int(t.Size), &pl.e.grace, func(w *uint64) uint64 { return pl.hashes.one(*w) })
	pl.add(id, newExactStore(x, codec[uint64, V]{
		info: t, set: set, get: get, meter: meter,
		key: k.join, words: func(w *uint64) []uint64 { return k.split(*w) },
	}))
	return x
}

// The first fields of a key of a session: low, high, protocol, kind, low_port,
// high_port.
func joinTuple4(f []uint64) tuple4 {
	return tuple4{f[2]<<56 | 4<<48 | f[3]<<32 | f[4]<<16 | f[5], f[0]<<32 | f[1]}
}

func splitTuple4(t *tuple4) []uint64 {
	return append([]uint64{t.addresses >> 32, t.addresses & 0xffffffff}, splitW2(t.w2)...)
}

func joinTuple6(f []uint64) tag.Tuple {
	return tag.Tuple{W2: f[4]<<56 | 6<<48 | f[5]<<32 | f[6]<<16 | f[7], A: [4]uint64(f)}
}

func splitTuple6(t *tag.Tuple) []uint64 { return append(t.A[:len(t.A):len(t.A)], splitW2(t.W2)...) }

func splitW2(w uint64) []uint64 {
	return []uint64{w >> 56, w >> 32 & 0xffff, w >> 16 & 0xffff, w & 0xffff}
}

// add4 adds a table of IPv4 sessions.
func add4[V any](pl *pipeline, id uint32, set func(*tuple4, *V, *p4rtserver.Action) error,
	get func(*V) p4rtserver.Action, counter func(*V) *counts) *tuple4Table[V] {
	t := info(id)
	x := newExact[tuple4, V](int(t.Size), &pl.e.grace, pl.hashes.tuple4)
	pl.add(id, newExactStore(x, codec[tuple4, V]{
		info: t, set: set, get: get, counter: counter, key: joinTuple4, words: splitTuple4,
	}))
	return x
}

// add6 adds a table of IPv6 sessions.
func add6[V any](pl *pipeline, id uint32, set func(*tag.Tuple, *V, *p4rtserver.Action) error,
	get func(*V) p4rtserver.Action, counter func(*V) *counts) *tuple6Table[V] {
	t := info(id)
	x := newExact[tag.Tuple, V](int(t.Size), &pl.e.grace, pl.hashes.tuple6)
	pl.add(id, newExactStore(x, codec[tag.Tuple, V]{
		info: t, set: set, get: get, counter: counter, key: joinTuple6, words: splitTuple6,
	}))
	return x
}

// addVouched adds vouched_v4 and vouched_v6.
func (pl *pipeline) addVouched() {
	join := func(f []uint64) vouchedTag { return vouchedTag{keyWord(f[0], f[1], f[2]), f[3], f[4], f[5]} }
	split := func(t *vouchedTag) []uint64 { return append(splitKeyWord(t.word), t.nonce, t.digest, t.crc) }
	t4, t6 := info(tables.VouchedV4TableID), info(tables.VouchedV6TableID)
	pl.vouched4 = newExact[vouchedKey4, struct{}](int(t4.Size), &pl.e.grace, func(k *vouchedKey4) uint64 {
		return pl.hashes.vouched(pl.hashes.tuple4(&k.tuple), &k.tag)
	})
	pl.add(t4.ID, newExactStore(pl.vouched4, codec[vouchedKey4, struct{}]{
		info: t4, set: setNothing[vouchedKey4], get: getNothing(tables.VouchedActionID),
		key:   func(f []uint64) vouchedKey4 { return vouchedKey4{joinTuple4(f), join(f[6:])} },
		words: func(k *vouchedKey4) []uint64 { return append(splitTuple4(&k.tuple), split(&k.tag)...) },
	}))
	pl.vouched6 = newExact[vouchedKey6, struct{}](int(t6.Size), &pl.e.grace, func(k *vouchedKey6) uint64 {
		return pl.hashes.vouched(pl.hashes.tuple6(&k.tuple), &k.tag)
	})
	pl.add(t6.ID, newExactStore(pl.vouched6, codec[vouchedKey6, struct{}]{
		info: t6, set: setNothing[vouchedKey6], get: getNothing(tables.VouchedActionID),
		key:   func(f []uint64) vouchedKey6 { return vouchedKey6{joinTuple6(f), join(f[8:])} },
		words: func(k *vouchedKey6) []uint64 { return append(splitTuple6(&k.tuple), split(&k.tag)...) },
	}))
}

func setPort(_ *uint64, v *atomic.Uint64, a *p4rtserver.Action) error {
	v.Store(param(a, 0)<<24 | param(a, 1)<<8 | param(a, 2))
	return nil
}

func getPort(v *atomic.Uint64) p4rtserver.Action {
	c := v.Load()
	return action(tables.PortConfigActionID, c>>24, c>>8&0xffff, c&0xff)
}

func setCrossConnect(_ *uint64, v *atomic.Uint64, a *p4rtserver.Action) error {
	v.Store(param(a, 0)<<40 | param(a, 1)<<32 | param(a, 2)<<16 | param(a, 3))
	return nil
}

func getCrossConnect(v *atomic.Uint64) p4rtserver.Action {
	c := v.Load()
	return action(tables.ToPortActionID, c>>40, c>>32&0xff, c>>16&0xffff, c&0xffff)
}

func setNothing[K any](*K, *struct{}, *p4rtserver.Action) error { return nil }

func getNothing(id uint32) func(*struct{}) p4rtserver.Action {
	return func(*struct{}) p4rtserver.Action { return action(id) }
}

func sessionCounts(s *session) *counts { return &s.counts }

// Activate implements p4rtserver.Pipeline.
func (pl *pipeline) Activate() error {
	pl.e.active.Store(pl)
	return nil
}

// Close implements p4rtserver.Pipeline.
func (pl *pipeline) Close() { pl.e.active.CompareAndSwap(pl, nil) }

func (pl *pipeline) table(id uint32) (store, error) {
	if s := pl.byID[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%w: table %#x", p4rtserver.ErrNotFound, id)
}

// WriteTable implements p4rtserver.Pipeline.
func (pl *pipeline) WriteTable(op p4rtserver.Op, e *p4rtserver.Entry) error {
	return pl.change(e.TableID, func(s store) error { return s.write(op, e, pl.e.o.Now()) })
}

// SetDirectCounter implements p4rtserver.Pipeline.
func (pl *pipeline) SetDirectCounter(e *p4rtserver.Entry) error {
	return pl.change(e.TableID, func(s store) error { return s.setCounter(e) })
}

// SetDirectMeter implements p4rtserver.Pipeline.
func (pl *pipeline) SetDirectMeter(e *p4rtserver.Entry) error {
	return pl.change(e.TableID, func(s store) error { return s.setMeter(e, pl.e.o.Now()) })
}

func (pl *pipeline) change(id uint32, f func(store) error) error {
	s, err := pl.table(id)
	if err != nil {
		return err
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return f(s)
}

// Flush implements p4rtserver.Pipeline.
func (pl *pipeline) Flush() {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.policy4.flush()
	pl.policy6.flush()
}

// Lookup implements p4rtserver.Pipeline.
func (pl *pipeline) Lookup(e *p4rtserver.Entry, want p4rtserver.Want) error {
	s, err := pl.table(e.TableID)
	if err != nil {
		return err
	}
	pl.mu.RLock()
	defer pl.mu.RUnlock()
	return s.lookup(e, want, pl.e.o.Now())
}

// Entries implements p4rtserver.Pipeline.
func (pl *pipeline) Entries(id uint32, want p4rtserver.Want, yield func(*p4rtserver.Entry) bool) error {
	s, err := pl.table(id)
	if err != nil {
		return err
	}
	pl.mu.RLock()
	defer pl.mu.RUnlock()
	s.each(want, pl.e.o.Now(), yield)
	return nil
}

// WriteMember implements p4rtserver.Pipeline.
func (pl *pipeline) WriteMember(op p4rtserver.Op, m *p4rtserver.Member) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.profile.writeMember(op, m)
}

// WriteGroup implements p4rtserver.Pipeline.
func (pl *pipeline) WriteGroup(op p4rtserver.Op, g *p4rtserver.Group) error {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.profile.writeGroup(op, g)
}

// cell finds a cell of an indirect counter.
func (pl *pipeline) cell(id uint32, index int64) (*counts, error) {
	first, ok := cellOf(id)
	if !ok {
		return nil, fmt.Errorf("%w: counter %#x", p4rtserver.ErrNotFound, id)
	}
	return &pl.cells[first+int(index)], nil
}

// Counter implements p4rtserver.Pipeline.
func (pl *pipeline) Counter(id uint32, index int64) (p4rtserver.CounterData, error) {
	c, err := pl.cell(id, index)
	if err != nil {
		return p4rtserver.CounterData{}, err
	}
	return c.load(), nil
}

// SetCounter implements p4rtserver.Pipeline.
func (pl *pipeline) SetCounter(id uint32, index int64, d p4rtserver.CounterData) error {
	c, err := pl.cell(id, index)
	if err != nil {
		return err
	}
	c.store(d)
	return nil
}

// WriteCloneSession implements p4rtserver.Pipeline. Copies go to the CPU port
// without one; the session that the P4 program needs there is accepted.
func (pl *pipeline) WriteCloneSession(op p4rtserver.Op, s *p4rtserver.CloneSession) error {
	if op == p4rtserver.Delete {
		return nil
	}
	if s.ID != tables.CPUCloneSession || len(s.Replicas) != 1 || s.Replicas[0].EgressPort != tables.CPUPort || s.PacketLength != 0 {
		return fmt.Errorf("%w: clone session %d: only session %d with the whole packet to port %d has a use",
			p4rtserver.ErrInvalidArgument, s.ID, tables.CPUCloneSession, tables.CPUPort)
	}
	return nil
}

// PacketOut implements p4rtserver.Pipeline.
func (pl *pipeline) PacketOut(metadata [][]byte, payload []byte) error {
	// An unknown mode is for the pipeline to drop and count.
	if len(metadata) != len(packetOutFields) {
		return fmt.Errorf("%w: packet-out with %d fields", p4rtserver.ErrInvalidArgument, len(metadata))
	}
	e := pl.e
	e.outMu.Lock()
	defer e.outMu.Unlock()
	if err := e.outFrame.Set(payload); err != nil {
		return fmt.Errorf("%w: packet-out: %w", p4rtserver.ErrInvalidArgument, err)
	}
	w := e.cpu
	p := Packet{Frame: e.outFrame, InPort: tables.CPUPort}
	e.grace.enter(w)
	defer e.grace.leave(w)
	w.begin(pl, e.o.Now())
	mode, egress, ingress := p4rtserver.Uint64(metadata[0]), p4rtserver.Uint64(metadata[2]), p4rtserver.Uint64(metadata[3])
	w.packetOut(pl, tables.PacketOutMode(mode), uint16(egress), uint16(ingress), &p)
	if p.Verdict == Forward && e.o.Output != nil {
		e.o.Output(&p)
	}
	return nil
}

// sweepPlaces is how many places of a table a sweep looks at under one hold of
// the lock.
const sweepPlaces = 1 << 14

// sweep raises the idle timeouts that are due.
func (pl *pipeline) sweep(now int64) {
	for _, s := range pl.stores {
		for from, more := uint32(0), true; more; {
			var idle []p4rtserver.Entry
			pl.mu.Lock()
			idle, from, more = s.sweep(nil, from, sweepPlaces, now)
			pl.mu.Unlock()
			if len(idle) > 0 {
				pl.up.IdleTimeout(idle)
			}
		}
	}
}

// Load implements p4rtserver.Target. It takes the pipeline of this program
// only: ids, names and widths must be those of package tables.
func (e *Engine) Load(cfg *p4v1.ForwardingPipelineConfig, up p4rtserver.Upcalls) (p4rtserver.Pipeline, error) {
	if err := checkP4Info(cfg.GetP4Info()); err != nil {
		return nil, fmt.Errorf("%w: not the countersign pipeline: %w", p4rtserver.ErrInvalidArgument, err)
	}
	return newPipeline(e, up), nil
}
