package engine

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
	"countersign/tag"
)

// ownKey is an entry of own_key: how this member signs. It is immutable.
type ownKey struct {
	bySession    bool
	head         [tag.HeaderLen]byte // of a tag of suite 1, without what the packet decides
	word0        uint64
	k0, k1, salt uint64
}

// ownTag is an entry of own_tag: a session's finished tag. It is immutable.
type ownTag struct {
	wire []byte // its first byte, the next header, is the packet's
}

// block is a run of a port's nonce counter that a worker has taken for itself.
type block struct{ next, end uint64 }

const blockLen = 256

const (
	udpLen      = 8
	fragmentLen = 8
)

// ownTag is the stage of that name: what leaves by a trunk or towards an
// echoing host gets the member's own tag. With suite 1 only its nonce is chosen
// here; with suites 2 and 3 the session's finished tag is looked up, and a miss
// is held. The length on leaving decides whether the packet still fits.
func (w *Worker) ownTag(pl *pipeline, m *meta) {
	v := &m.view
	if m.tagged {
		m.oldTagLen = v.Next - v.Place
	}
	if m.hop.role == tables.RoleTrunk || m.hop.role == tables.RoleEcho {
		m.putTag = true
		pl.sign(m, w.now)
		if m.carrier.UDP {
			m.newTagLen += udpLen
		}
	}
	// An IPv4 fragment gets or loses its fragment header with the tag.
	if v.Family == 4 && v.Fragment {
		if m.tagged {
			m.oldTagLen += fragmentLen
		}
		if m.putTag {
			m.newTagLen += fragmentLen
		}
	}
	switch {
	case !m.forward():
	case m.ipLen-m.oldTagLen+m.newTagLen > int(m.hop.mtu):
		m.hold(StageOwnTag, tables.ReasonTooBig)
	case m.byKey != nil:
		port := m.hop.port % uint16(len(w.nonces))
		m.nonce = (m.byKey.salt ^ uint64(m.hop.port)<<48) + w.nonces[port].take(&pl.nonceCount[port])
	}
}

// take takes the next count from a port's counter.
func (b *block) take(counter *atomic.Uint64) uint64 {
	if b.next == b.end {
		b.end = counter.Add(blockLen)
		b.next = b.end - blockLen
	}
	b.next++
	return b.next - 1
}

// sign finds the key or the tag.
func (pl *pipeline) sign(m *meta, now int64) {
	role := uint64(m.hop.role)
	e := pl.ownKeys.find(pl.hashes.one(role), &role)
	if e == nil {
		m.drop(StageOwnTag, tables.ReasonNoSigningKey)
		return
	}
	if k := e.val.Load(); !k.bySession {
		m.byKey, m.newTagLen = k, tag.HeaderLen
		return
	}
	if m.view.Family == 4 {
		if e := pl.ownTags4.find(pl.tupleHash(m), m.tuple4()); e != nil {
			e.hit(now)
			m.byTag = e.val.Load()
		}
	} else if e := pl.ownTags6.find(pl.tupleHash(m), &m.view.Tuple); e != nil {
		e.hit(now)
		m.byTag = e.val.Load()
	}
	if m.byTag == nil {
		m.hold(StageOwnTag, tables.ReasonTagUnsigned)
		return
	}
	m.newTagLen = len(m.byTag.wire)
}

func setOwnKey(_ *uint64, p *atomic.Pointer[ownKey], a *p4rtserver.Action) error {
	k := &ownKey{bySession: true}
	if a.ID == tables.SignSiphashActionID {
		id := tag.KeyID{Suite: tag.Siphash, UNID: uint32(param(a, 0)), Epoch: uint16(param(a, 1))}
		h := tag.NewHeader(id)
		h.Put(k.head[:])
		*k = ownKey{head: k.head, word0: id.Word0(), k0: param(a, 2), k1: param(a, 3), salt: param(a, 4)}
	}
	p.Store(k)
	return nil
}

func getOwnKey(p *atomic.Pointer[ownKey]) p4rtserver.Action {
	k := p.Load()
	if k.bySession {
		return action(tables.SignBySessionActionID)
	}
	return action(tables.SignSiphashActionID, k.word0&0xffffffff, k.word0>>32&0xffff, k.k0, k.k1, k.salt)
}

func setOwnTag[K any](_ *K, p *atomic.Pointer[ownTag], a *p4rtserver.Action) error {
	id := tag.KeyID{Suite: tag.RSA2048, UNID: uint32(param(a, 0)), Epoch: uint16(param(a, 1))}
	rest := a.Params[2:]
	h := tag.NewHeader(id)
	if a.ID == tables.PutEd25519ActionID {
		id.Suite = tag.Ed25519
		h = tag.NewHeader(id)
		h.Nonce = p4rtserver.Uint64(rest[0])
		rest = rest[1:]
	}
	h.Digest = p4rtserver.Uint64(rest[0])
	h.Sealed = make([]byte, id.Suite.SealedLen())
	p4rtserver.PutPadded(h.Sealed, rest[1])
	p.Store(&ownTag{h.AppendTo(make([]byte, 0, h.Len()))})
	return nil
}

func getOwnTag(p *atomic.Pointer[ownTag]) p4rtserver.Action {
	wire := p.Load().wire
	unid, epoch := uint64(binary.BigEndian.Uint32(wire[4:])), uint64(binary.BigEndian.Uint16(wire[8:]))
	nonce, digest := binary.BigEndian.Uint64(wire[12:]), binary.BigEndian.Uint64(wire[20:])
	var a p4rtserver.Action
	if tag.Suite(wire[2]&0xf) == tag.Ed25519 {
		a = action(tables.PutEd25519ActionID, unid, epoch, nonce, digest)
	} else {
		a = action(tables.PutRSA2048ActionID, unid, epoch, digest)
	}
	a.Params = append(a.Params, bytes.Clone(p4rtserver.Canonical(wire[tag.HeaderLen:])))
	return a
}
