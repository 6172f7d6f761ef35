package engine

import (
	"fmt"
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
	"countersign/tag"
)

// issuerKey is an issuer's key and its state. It is immutable.
type issuerKey struct {
	action  uint32
	suite   tag.Suite // that the action is for; of a tombstone any
	state   tables.KeyState
	ownSite bool
	k0, k1  uint64
}

// keyWord is suite(16) | epoch(16) | unid(32), the key of issuer_key and part
// of vouched's.
func keyWord(suite uint64, unid uint64, epoch uint64) uint64 { return suite<<48 | epoch<<32 | unid }

func tagKeyWord(h *tag.Header) uint64 {
	return keyWord(uint64(h.Suite), uint64(h.UNID), uint64(h.Epoch))
}

// issuerKey is the stage of that name: (suite, unid, epoch) of a tag gives the
// key and its state; the digests of suites 1 and 2 are verified right here,
// steps 2 to 4 of verifying.
func (pl *pipeline) issuerKey(m *meta) {
	h := &m.view.Tag
	word := tagKeyWord(h)
	var key *issuerKey
	if e := pl.issuerKeys.find(pl.hashes.one(word), &word); e != nil {
		key = e.val.Load()
	}
	switch {
	case key == nil || key.state == tables.KeyStateNone ||
		key.suite != h.Suite && key.action != tables.TombstoneActionID:
		m.drop(StageIssuerKey, tables.ReasonTagUnknownKey)
		m.copy = tables.ReasonTagUnknownKey
	case key.state == tables.KeyStateTombstone:
		m.drop(StageIssuerKey, tables.ReasonTagRevoked)
	case m.role == tables.RoleEcho && !key.ownSite:
		m.drop(StageIssuerKey, tables.ReasonTagOnEdge)
	case key.state == tables.KeyStateEchoOnly && m.role != tables.RoleEcho:
		m.drop(StageIssuerKey, tables.ReasonTagRevoked)
	case h.Suite == tag.RSA2048:
	case tag.SipHash(key.k0, key.k1, h.Word0(), h.Nonce, &m.view.Tuple) != h.Digest:
		m.drop(StageIssuerKey, tables.ReasonTagForged)
	default:
		m.verified = h.Suite == tag.Siphash
	}
}

// setIssuerKey refuses what docs/wire.md, Verifying, forbids: a live entry of suite
// 1 or 2 without a 128-bit key.
func setIssuerKey(word *uint64, p *atomic.Pointer[issuerKey], a *p4rtserver.Action) error {
	k := &issuerKey{action: a.ID}
	switch a.ID {
	case tables.TombstoneActionID:
		k.state = tables.KeyStateTombstone
	case tables.RSA2048KeyActionID:
		k.suite = tag.RSA2048
	case tables.Ed25519KeyActionID:
		k.suite = tag.Ed25519
	case tables.SiphashKeyActionID:
		k.suite = tag.Siphash
	}
	if a.ID != tables.TombstoneActionID {
		k.state, k.ownSite = tables.KeyState(param(a, 0)), param(a, 1) != 0
		if k.suite != tag.RSA2048 {
			k.k0, k.k1 = param(a, 2), param(a, 3)
		}
		if s := tag.Suite(*word >> 48); (s == tag.Siphash || s == tag.Ed25519) && k.k0|k.k1 == 0 {
			return fmt.Errorf("%w: an issuer_key entry of suite %v without a 128-bit key", p4rtserver.ErrInvalidArgument, s)
		}
	}
	p.Store(k)
	return nil
}

func getIssuerKey(p *atomic.Pointer[issuerKey]) p4rtserver.Action {
	k := p.Load()
	own := uint64(0)
	if k.ownSite {
		own = 1
	}
	switch k.action {
	case tables.TombstoneActionID:
		return action(k.action)
	case tables.RSA2048KeyActionID:
		return action(k.action, uint64(k.state), own)
	}
	return action(k.action, uint64(k.state), own, k.k0, k.k1)
}
