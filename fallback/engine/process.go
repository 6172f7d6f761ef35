package engine

import (
	"encoding/binary"
	"sync/atomic"

	"countersign/packet"
	"countersign/tables"
	"countersign/tag"
)

// meta is what the stages know of one packet: the P4 program's metadata_t.
type meta struct {
	p     *Packet
	frame []byte      // as it came
	view  packet.View // what the parser found
	state
}

// state is the part of meta that each packet begins with zeroed.
type state struct {
	disposition tables.Disposition
	reason      tables.Reason
	copy        tables.Reason
	puntReason  tables.Reason
	stage       Stage // that decided
	returned    bool

	// Port.
	inPort  uint16
	vlan    uint16
	role    tables.Role
	zone    uint16
	flags   uint8
	carrier packet.Carrier
	finding packet.Anomaly
	tagged  bool
	raw     bool // ARP or ND, port to port: forwarded as it is
	ipLen   int

	// Sorted five-tuple, beside view.Tuple.
	hash     uint64
	hashed   bool
	flowHash uint32

	verified bool

	// Egress.
	transparent bool
	hop         hop
	putTag      bool
	byTag       *ownTag // suites 2 and 3
	byKey       *ownKey // suite 1
	nonce       uint64
	oldTagLen   int // bytes, carrier header included
	newTagLen   int

	probed uint32 // what probe found in delivered or session
}

func (m *meta) drop(s Stage, r tables.Reason) {
	m.disposition, m.stage, m.reason = tables.DispositionDrop, s, r
}

func (m *meta) hold(s Stage, r tables.Reason) {
	m.disposition, m.stage, m.reason = tables.DispositionHold, s, r
}

func (m *meta) forward() bool { return m.disposition == tables.DispositionForward }

// kind, srcPort and dstPort are those of M, not sorted.
func (m *meta) kind() uint16 { return uint16(m.view.Tuple.W2 >> 32) }

func (m *meta) ports() (src, dst uint16) {
	switch m.kind() {
	case tag.KindPorts:
		return m.view.SrcPort, m.view.DstPort
	case tag.KindFragment:
		return uint16(m.view.FragID >> 16), uint16(m.view.FragID)
	}
	return 0, 0
}

// tuple4 is the key of IPv4 sessions: W2 and A[0] of the sorted five-tuple.
type tuple4 struct{ w2, addresses uint64 }

func (m *meta) tuple4() *tuple4 { return &tuple4{m.view.Tuple.W2, m.view.Tuple.A[0]} }

// flow is h of docs/wire.md, computed once, where it is needed.
func (m *meta) flow() uint32 {
	if !m.hashed {
		m.flowHash, m.hashed = m.view.Tuple.FlowHash(), true
	}
	return m.flowHash
}

// Worker is one goroutine's hold on the engine; not safe for concurrent use.
// Take it from Engine.Worker.
type Worker struct {
	e      *Engine
	id     int
	now    int64
	pl     *pipeline   // of the last batch
	port   portEntries // of the last packet in this batch
	tally  tally
	nonces [tables.PortTxCounterSize]block
	metas  [MaxBatch]meta
	in     packetIn

	_    [64]byte
	seen atomic.Uint64 // see grace
	_    [56]byte
}

// Process takes a batch of packets through the pipeline at now, in nanoseconds
// since the Unix epoch. What is punted or copied goes to the P4Runtime server
// before Process returns. Frames of forwarded packets are rewritten in place:
// they need pktio.Headroom free bytes in front. Without a pipeline every packet
// is dropped.
func (w *Worker) Process(now int64, batch []Packet) {
	w.e.grace.enter(w)
	defer w.e.grace.leave(w)
	pl := w.e.active.Load()
	w.begin(pl, now)
	if pl == nil {
		for i := range batch {
			batch[i].result(Drop, tables.ReasonNone, StageNone)
		}
		return
	}
	for len(batch) > 0 {
		n := min(len(batch), MaxBatch)
		w.run(pl, batch[:n])
		batch = batch[n:]
	}
	w.tally.flush(pl.cells)
}

// begin prepares for a batch; blocks of nonces belong to one pipeline.
func (w *Worker) begin(pl *pipeline, now int64) {
	if pl != w.pl {
		w.pl, w.nonces = pl, [len(w.nonces)]block{}
	}
	w.now, w.port.valid = now, false
}

// run takes at most MaxBatch packets through the pipeline. The two short sweeps
// in the middle do nothing but read the large tables' memory, so that the waits
// of many packets overlap.
func (w *Worker) run(pl *pipeline, batch []Packet) {
	metas := w.metas[:len(batch)]
	for i := range metas {
		m := &metas[i]
		m.start(&batch[i])
		w.tally.count(cellRx+cellPort(m.inPort), len(m.frame))
		w.find(pl, m)
	}
	for i := range metas {
		pl.touch(&metas[i])
	}
	for i := range metas {
		pl.probe(&metas[i])
	}
	for i := range metas {
		w.decide(pl, &metas[i])
	}
}

func (m *meta) start(p *Packet) {
	m.state = state{}
	m.p, m.frame, m.inPort = p, p.Frame.Bytes(), p.InPort
}

// cellPort keeps a port's number within the counters.
func cellPort(port uint16) int { return int(port) % tables.PortRxCounterSize }

// find is the pipeline as far as egress_port: what the packet is, whether its
// tag is good, and where it would go. The empty stages keep their places.
func (w *Worker) find(pl *pipeline, m *meta) {
	pl.port(m, &w.port)
	if m.forward() {
		anomaly(m)
	}
	// source_guard, lists, service and mitigation, which a returned packet
	// skips, have no tables yet.
	if m.forward() && m.tagged {
		pl.issuerKey(m)
		if m.forward() && !m.verified {
			pl.vouched(m, w.now)
		}
		// replay has no table yet.
	}
	if m.forward() {
		if m.verified {
			w.tally.count(cellOutcomes+int(verifiedOutcome(m.view.Tag.Suite)), 0)
		}
		pl.egressPort(m, &w.port)
	}
	if m.forward() && !m.raw {
		pl.tupleHash(m)
	}
}

func verifiedOutcome(s tag.Suite) tables.Outcome {
	switch s {
	case tag.Siphash:
		return tables.OutcomeVerifiedSiphash
	case tag.Ed25519:
		return tables.OutcomeVerifiedEd25519
	}
	return tables.OutcomeVerifiedRSA2048
}

// decide is the pipeline behind egress_port: whether the packet may go there,
// with which tag, and what becomes of it.
func (w *Worker) decide(pl *pipeline, m *meta) {
	if m.forward() && !m.raw {
		admitted := false
		if !m.tagged {
			admitted = pl.session(m, w.now)
		} else if m.hop.role == tables.RoleEdge {
			pl.delivered(m, w.now)
		}
		if m.forward() && !admitted {
			pl.policy(m, w.id)
		}
		if m.forward() {
			w.ownTag(pl, m)
		}
	}
	copyNow := pl.punt(m, w.now)
	w.finish(pl, m, copyNow)
}

// finish counts the packet, makes the copy and carries out the disposition.
func (w *Worker) finish(pl *pipeline, m *meta, copyNow bool) {
	p := m.p
	if copyNow {
		w.tally.count(cellPunts+int(m.puntReason), 0)
		p.Copied = m.puntReason
		w.toCPU(pl, m)
	} else {
		p.Copied = tables.ReasonNone
	}
	switch m.disposition {
	case tables.DispositionDrop:
		w.tally.count(cellDrops+int(m.reason), 0)
		p.result(Drop, m.reason, m.stage)
	case tables.DispositionHold:
		w.tally.count(cellPunts+int(m.puntReason), 0)
		p.result(Punt, m.puntReason, m.stage)
		w.toCPU(pl, m)
	default:
		w.tally.count(cellTx+cellPort(m.hop.port), 0)
		w.tally.count(cellOutcomes+int(m.outcome()), 0)
		p.result(Forward, tables.ReasonNone, StageEgress)
		p.Egress = m.hop.port
		if m.hop.port == tables.CPUPort {
			p.result(Punt, m.puntReason, StageEgress)
			w.toCPU(pl, m)
		} else if m.forward() && !m.raw {
			if m.mss() {
				w.tally.count(cellOutcomes+int(tables.OutcomeMSSClamped), 0)
			}
			if !m.rewrite() {
				p.result(Drop, tables.ReasonNone, StageEgress)
			}
		}
	}
	w.tally.count(cellStages+int(p.Stage)*reasons+int(p.Reason), 0)
}

func (m *meta) outcome() tables.Outcome {
	switch {
	case m.disposition == tables.DispositionSend:
		return tables.OutcomeSentByCPU
	case m.putTag && m.tagged:
		return tables.OutcomeRetagged
	case m.putTag:
		return tables.OutcomeTagged
	case m.tagged:
		return tables.OutcomeStripped
	}
	return tables.OutcomeForwardedPlain
}

func (p *Packet) result(v Verdict, r tables.Reason, s Stage) {
	p.Verdict, p.Reason, p.Stage, p.Egress = v, r, s, 0
}

// packetIn is the metadata of a packet-in, ready for Upcalls without
// allocation.
type packetIn struct {
	bytes  [10]byte
	fields [][]byte
}

// toCPU hands the packet, as it came, to the P4Runtime server.
func (w *Worker) toCPU(pl *pipeline, m *meta) {
	b := &w.in.bytes
	if w.in.fields == nil {
		w.in.fields = [][]byte{b[0:1], b[1:2], b[2:4], b[4:6], b[6:8], b[8:10]}
	}
	b[0], b[1] = uint8(m.puntReason), uint8(m.role)
	binary.BigEndian.PutUint16(b[2:], m.inPort)
	binary.BigEndian.PutUint16(b[4:], m.zone)
	binary.BigEndian.PutUint16(b[6:], m.hop.port)
	binary.BigEndian.PutUint16(b[8:], m.hop.zone)
	pl.up.PacketIn(w.in.fields, m.frame)
}

// packetOut does what the CPU asks with a packet.
func (w *Worker) packetOut(pl *pipeline, mode tables.PacketOutMode, egress, ingress uint16, p *Packet) {
	m := &w.metas[0]
	m.start(p)
	switch mode {
	case tables.PacketOutModeSend:
		m.disposition, m.hop.port = tables.DispositionSend, egress
		w.finish(pl, m, false)
	case tables.PacketOutModeReturn:
		m.returned, m.inPort = true, ingress
		w.tally.count(cellOutcomes+int(tables.OutcomeReturned), 0)
		w.find(pl, m)
		pl.probe(m)
		w.decide(pl, m)
	default:
		m.inPort = tables.CPUPort
		m.drop(StageNone, tables.ReasonBadPacketOut)
		w.finish(pl, m, false)
	}
	w.tally.flush(pl.cells)
}
