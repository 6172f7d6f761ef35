// Package entry makes the entries of one session: it is the bridge between a
// sorted five-tuple and the typed entries of the tables keyed by it.
package entry

import (
	"encoding/binary"
	"fmt"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/controller/session"
	"countersign/tables"
	"countersign/tag"
)

// Kind is one of the tables that hold entries per session.
type Kind uint8

// The kinds of entries per session.
const (
	Session Kind = iota + 1
	Delivered
	Vouched
	OwnTag
)

// String is the table's name without the family.
func (k Kind) String() string {
	return [...]string{"?", "session", "delivered", "vouched", "own_tag"}[min(k, 5-1)]
}

type key4 = tables.SessionV4Key
type key6 = tables.SessionV6Key

func v4(t *tag.Tuple) key4 {
	return key4{
		Low: uint32(t.A[0] >> 32), High: uint32(t.A[0]), Protocol: t.Protocol(), Kind: t.Kind(),
		LowPort: t.LowPort(), HighPort: t.HighPort(),
	}
}

func v6(t *tag.Tuple) key6 {
	k := key6{Protocol: t.Protocol(), Kind: t.Kind(), LowPort: t.LowPort(), HighPort: t.HighPort()}
	binary.BigEndian.PutUint64(k.Low[:8], t.A[0])
	binary.BigEndian.PutUint64(k.Low[8:], t.A[1])
	binary.BigEndian.PutUint64(k.High[:8], t.A[2])
	binary.BigEndian.PutUint64(k.High[8:], t.A[3])
	return k
}

func of4(k key4) (t tag.Tuple) {
	t.W2 = uint64(k.Protocol)<<56 | 4<<48 | uint64(k.Kind)<<32 | uint64(k.LowPort)<<16 | uint64(k.HighPort)
	t.A[0] = uint64(k.Low)<<32 | uint64(k.High)
	return t
}

func of6(k key6) (t tag.Tuple) {
	t.W2 = uint64(k.Protocol)<<56 | 6<<48 | uint64(k.Kind)<<32 | uint64(k.LowPort)<<16 | uint64(k.HighPort)
	t.A[0] = binary.BigEndian.Uint64(k.Low[:8])
	t.A[1] = binary.BigEndian.Uint64(k.Low[8:])
	t.A[2] = binary.BigEndian.Uint64(k.High[:8])
	t.A[3] = binary.BigEndian.Uint64(k.High[8:])
	return t
}

// ForSession returns the entry of an admitted session; idle 0 is no timeout.
func ForSession(t tag.Tuple, lowZone, highZone uint16, idle time.Duration) tables.Entry {
	if t.Family() == 4 {
		return tables.SessionV4Entry{Key: v4(&t), Action: tables.AdmittedV4{LowZone: lowZone, HighZone: highZone}, IdleTimeout: idle}
	}
	return tables.SessionV6Entry{Key: v6(&t), Action: tables.AdmittedV6{LowZone: lowZone, HighZone: highZone}, IdleTimeout: idle}
}

// ForDelivered returns the entry of a tagged session that leaves by an edge.
func ForDelivered(t tag.Tuple, idle time.Duration) tables.Entry {
	if t.Family() == 4 {
		return tables.DeliveredV4Entry{Key: tables.DeliveredV4Key(v4(&t)), Action: tables.Delivered{}, IdleTimeout: idle}
	}
	return tables.DeliveredV6Entry{Key: tables.DeliveredV6Key(v6(&t)), Action: tables.Delivered{}, IdleTimeout: idle}
}

// ForVouched returns the entry of a tag that was verified for t.
func ForVouched(t tag.Tuple, v session.Vouched, idle time.Duration) tables.Entry {
	if t.Family() == 4 {
		k := v4(&t)
		return tables.VouchedV4Entry{Key: tables.VouchedV4Key{
			Low: k.Low, High: k.High, Protocol: k.Protocol, Kind: k.Kind, LowPort: k.LowPort, HighPort: k.HighPort,
			Suite: tables.Suite(v.ID.Suite), UNID: v.ID.UNID, Epoch: v.ID.Epoch, Nonce: v.Nonce, Digest: v.Digest, SealedCRC: v.CRC,
		}, Action: tables.Vouched{}, IdleTimeout: idle}
	}
	k := v6(&t)
	return tables.VouchedV6Entry{Key: tables.VouchedV6Key{
		Low: k.Low, High: k.High, Protocol: k.Protocol, Kind: k.Kind, LowPort: k.LowPort, HighPort: k.HighPort,
		Suite: tables.Suite(v.ID.Suite), UNID: v.ID.UNID, Epoch: v.ID.Epoch, Nonce: v.Nonce, Digest: v.Digest, SealedCRC: v.CRC,
	}, Action: tables.Vouched{}, IdleTimeout: idle}
}

// ForOwnTag returns the entry of the session's finished tag, of suite ed25519
// or rsa2048; for another suite it returns an error.
func ForOwnTag(t tag.Tuple, h *tag.Header, idle time.Duration) (tables.Entry, error) {
	var put interface {
		tables.OwnTagV4Action
		tables.OwnTagV6Action
	}
	switch {
	case h.Suite == tag.Ed25519 && len(h.Sealed) == 64:
		put = tables.PutEd25519{UNID: h.UNID, Epoch: h.Epoch, Nonce: h.Nonce, TagDigest: h.Digest, Sealed: [64]byte(h.Sealed)}
	case h.Suite == tag.RSA2048 && len(h.Sealed) == 256:
		put = tables.PutRSA2048{UNID: h.UNID, Epoch: h.Epoch, TagDigest: h.Digest, Sealed: [256]byte(h.Sealed)}
	default:
		return nil, fmt.Errorf("own tag of %v with %d sealed bytes: %w", h.KeyID(), len(h.Sealed), tag.ErrSuite)
	}
	if t.Family() == 4 {
		return tables.OwnTagV4Entry{Key: tables.OwnTagV4Key(v4(&t)), Action: put, IdleTimeout: idle}, nil
	}
	return tables.OwnTagV6Entry{Key: tables.OwnTagV6Key(v6(&t)), Action: put, IdleTimeout: idle}, nil
}

// Removal returns what deletes the entry of kind Session, Delivered or OwnTag.
func Removal(k Kind, t tag.Tuple) tables.Entry {
	ip4 := t.Family() == 4
	switch {
	case k == Session && ip4:
		return tables.SessionV4Entry{Key: v4(&t)}
	case k == Session:
		return tables.SessionV6Entry{Key: v6(&t)}
	case k == Delivered && ip4:
		return tables.DeliveredV4Entry{Key: tables.DeliveredV4Key(v4(&t))}
	case k == Delivered:
		return tables.DeliveredV6Entry{Key: tables.DeliveredV6Key(v6(&t))}
	case ip4:
		return tables.OwnTagV4Entry{Key: tables.OwnTagV4Key(v4(&t))}
	}
	return tables.OwnTagV6Entry{Key: tables.OwnTagV6Key(v6(&t))}
}

// VouchedRemoval returns what deletes a vouched entry.
func VouchedRemoval(t tag.Tuple, v session.Vouched) tables.Entry {
	switch e := ForVouched(t, v, 0).(type) {
	case tables.VouchedV4Entry:
		e.Action = nil
		return e
	case tables.VouchedV6Entry:
		e.Action = nil
		return e
	default:
		return e
	}
}

// Read is a decoded entry of a table that is keyed by session.
type Read struct {
	Kind              Kind
	Tuple             tag.Tuple
	LowZone, HighZone uint16          // of Session
	Vouched           session.Vouched // of Vouched
	Own               tag.KeyID       // of OwnTag
	Idle              time.Duration
}

// Decode reads an entry of one of the tables per session; ok is false for
// another table's. It reads what a device reports, with or without action.
func Decode(te *p4v1.TableEntry) (r Read, ok bool, err error) {
	e, err := tables.DecodeEntry(te)
	if err != nil {
		return r, false, err
	}
	switch e := e.(type) {
	case tables.SessionV4Entry:
		r = Read{Kind: Session, Tuple: of4(e.Key), Idle: e.IdleTimeout}
		if a, ok := e.Action.(tables.AdmittedV4); ok {
			r.LowZone, r.HighZone = a.LowZone, a.HighZone
		}
	case tables.SessionV6Entry:
		r = Read{Kind: Session, Tuple: of6(e.Key), Idle: e.IdleTimeout}
		if a, ok := e.Action.(tables.AdmittedV6); ok {
			r.LowZone, r.HighZone = a.LowZone, a.HighZone
		}
	case tables.DeliveredV4Entry:
		r = Read{Kind: Delivered, Tuple: of4(key4(e.Key)), Idle: e.IdleTimeout}
	case tables.DeliveredV6Entry:
		r = Read{Kind: Delivered, Tuple: of6(key6(e.Key)), Idle: e.IdleTimeout}
	case tables.VouchedV4Entry:
		k := e.Key
		r = Read{Kind: Vouched, Idle: e.IdleTimeout,
			Tuple:   of4(key4{Low: k.Low, High: k.High, Protocol: k.Protocol, Kind: k.Kind, LowPort: k.LowPort, HighPort: k.HighPort}),
			Vouched: session.Vouched{ID: tag.KeyID{Suite: tag.Suite(k.Suite), UNID: k.UNID, Epoch: k.Epoch}, Nonce: k.Nonce, Digest: k.Digest, CRC: k.SealedCRC}}
	case tables.VouchedV6Entry:
		k := e.Key
		r = Read{Kind: Vouched, Idle: e.IdleTimeout,
			Tuple:   of6(key6{Low: k.Low, High: k.High, Protocol: k.Protocol, Kind: k.Kind, LowPort: k.LowPort, HighPort: k.HighPort}),
			Vouched: session.Vouched{ID: tag.KeyID{Suite: tag.Suite(k.Suite), UNID: k.UNID, Epoch: k.Epoch}, Nonce: k.Nonce, Digest: k.Digest, CRC: k.SealedCRC}}
	case tables.OwnTagV4Entry:
		r = Read{Kind: OwnTag, Tuple: of4(key4(e.Key)), Own: ownOf(e.Action), Idle: e.IdleTimeout}
	case tables.OwnTagV6Entry:
		r = Read{Kind: OwnTag, Tuple: of6(key6(e.Key)), Own: ownOf(e.Action), Idle: e.IdleTimeout}
	default:
		return r, false, nil
	}
	return r, true, nil
}

func ownOf(a tables.Action) tag.KeyID {
	switch a := a.(type) {
	case tables.PutEd25519:
		return tag.KeyID{Suite: tag.Ed25519, UNID: a.UNID, Epoch: a.Epoch}
	case tables.PutRSA2048:
		return tag.KeyID{Suite: tag.RSA2048, UNID: a.UNID, Epoch: a.Epoch}
	}
	return tag.KeyID{}
}
