package engine

import (
	"hash/crc32"

	"countersign/tables"
	"countersign/tag"
)

// vouchedTag is the part of vouched's key that is the tag's.
type vouchedTag struct{ word, nonce, digest, crc uint64 }

type vouchedKey4 struct {
	tuple tuple4
	tag   vouchedTag
}

type vouchedKey6 struct {
	tuple tag.Tuple
	tag   vouchedTag
}

// vouched is the hash of a key whose five-tuple hashes to h.
func (s *hasher) vouched(h uint64, t *vouchedTag) uint64 {
	return s.more(s.more(h, t.word, t.nonce), t.digest, t.crc)
}

// vouched is the stage of that name: a tag of suites 2 and 3 is verified when
// it is exactly one that the CPU has verified for this session; any other is
// held for the CPU.
func (pl *pipeline) vouched(m *meta, now int64) {
	h := &m.view.Tag
	t := vouchedTag{tagKeyWord(h), h.Nonce, h.Digest, uint64(crc32.ChecksumIEEE(h.Sealed))}
	hash := pl.hashes.vouched(pl.tupleHash(m), &t)
	if m.view.Family == 4 {
		if e := pl.vouched4.find(hash, &vouchedKey4{*m.tuple4(), t}); e != nil {
			e.hit(now)
			m.verified = true
		}
	} else if e := pl.vouched6.find(hash, &vouchedKey6{m.view.Tuple, t}); e != nil {
		e.hit(now)
		m.verified = true
	}
	if !m.verified {
		m.hold(StageVouched, tables.ReasonTagUnverified)
	}
}
