package decide

import (
	"context"
	"fmt"
	"iter"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/controller/compile"
	"countersign/controller/entry"
	"countersign/controller/session"
	"countersign/directory"
	"countersign/tables"
	"countersign/tag"
)

// Update takes a new snapshot of the directory: what stands because of keys
// that have died goes at once, and finished tags of an epoch that is no longer
// signed with are made anew. The entries of issuer_key are not its concern.
func (d *Decider) Update(ctx context.Context, snap *directory.Snapshot) error {
	v := &view{snap: snap, keys: make(map[tag.KeyID]*directory.VerifyKey, len(snap.Keys))}
	for i := range snap.Keys {
		v.keys[snap.Keys[i].KeyID] = &snap.Keys[i]
	}
	old := d.view.Swap(v)

	var dead []tables.Entry
	var resign []tag.Tuple
	current := snap.Current(d.suite)
	for t, r := range d.book.AllTags() {
		var kept []session.Vouched
		for _, o := range r.Vouched {
			if k := v.keys[o.ID]; k != nil && k.State.Live() {
				kept = append(kept, o)
			} else {
				dead = append(dead, entry.VouchedRemoval(t, o))
			}
		}
		drop := false
		if r.Own != (tag.KeyID{}) && (current == nil || r.Own != current.KeyID) {
			if k := v.keys[r.Own]; k == nil || k.State == directory.Revoked || k.State == directory.Retired {
				dead = append(dead, entry.Removal(entry.OwnTag, t))
				drop = true
			} else {
				resign = append(resign, t)
			}
		}
		if len(kept) != len(r.Vouched) || drop {
			d.book.Tags(t, func(r *session.Tags) {
				r.Vouched = kept
				if drop {
					r.Own = tag.KeyID{}
				}
			})
		}
	}
	if len(dead) > 0 {
		d.erase(ctx, dead...)
	}
	d.flushIssuers(ctx, old.snap, snap)
	for _, t := range resign {
		e, err := d.signature(t)
		if err != nil {
			return err
		}
		for dev := range d.planes {
			if err := d.upsert(ctx, dev, e); err != nil {
				return fmt.Errorf("sign %v anew on %s: %w", t, dev, err)
			}
		}
	}
	return nil
}

// flushIssuers removes the sessions that members vouched for who are no longer
// active.
func (d *Decider) flushIssuers(ctx context.Context, old, snap *directory.Snapshot) {
	if old == nil {
		return
	}
	gone := map[string]bool{}
	for i := range old.Members {
		m := &old.Members[i]
		if m.State != directory.Active {
			continue
		}
		if n := snap.Member(m.Name); n == nil || n.State != directory.Active {
			gone[m.Name] = true
		}
	}
	if len(gone) == 0 {
		return
	}
	for s := range d.book.Sessions() {
		if gone[s.Issuer] || gone[s.Origin] {
			d.remove(ctx, s.Tuple, s.Origin, s.Generation)
		}
	}
}

// Sign writes own_key on a device: with a fresh salt, because a device that
// has restarted counts nonces from 0 again.
func (d *Decider) Sign(ctx context.Context, dev string) error {
	snap := d.view.Load().snap
	if snap == nil {
		return nil
	}
	var failed error
	entries, err := compile.OwnKeys(snap, d.suite, func() uint64 {
		salt, err := d.random64()
		if err != nil {
			failed = err
		}
		return salt
	})
	if err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if len(entries) == 0 {
		d.log.Warn("no_signing_key", "suite", d.suite.String(), "device", dev)
		return nil
	}
	return d.upsert(ctx, dev, entries...)
}

// Adopt reconciles the dynamic entries found on a device with the book: what
// the book knows and the device lost is written again, what the device has and
// the book does not know is taken into it, so that a restart on either side
// loses no session.
func (d *Decider) Adopt(ctx context.Context, dev string, found iter.Seq2[*p4v1.TableEntry, error]) error {
	type place struct {
		kind entry.Kind
		t    tag.Tuple
		v    session.Vouched
	}
	there := map[place]bool{}
	var stray []tables.Entry
	snap := d.view.Load()
	for te, err := range found {
		if err != nil {
			return err
		}
		r, ok, err := entry.Decode(te)
		if err != nil || !ok {
			continue
		}
		there[place{r.Kind, r.Tuple, r.Vouched}] = true
		switch r.Kind {
		case entry.Session, entry.Delivered:
			s, known := d.book.Get(r.Tuple)
			if !known {
				s = session.Session{Tuple: r.Tuple, Generation: d.generation.Add(1), Created: d.now()}
				if r.Kind == entry.Session && r.Idle == 0 {
					// A sibling's, whose announcements we have not seen since the start.
					s.Expiry = d.now().Add(2 * d.idle(r.Tuple))
				}
			}
			if at := s.At(dev); r.Kind == entry.Delivered {
				at.Delivered = true
			} else {
				at.Session = true
				s.LowZone, s.HighZone = r.LowZone, r.HighZone
			}
			d.book.Put(s)
		case entry.Vouched:
			if k := snap.keys[r.Vouched.ID]; k == nil || !k.State.Live() {
				stray = append(stray, entry.VouchedRemoval(r.Tuple, r.Vouched))
				continue
			}
			d.book.Tags(r.Tuple, func(t *session.Tags) {
				for _, o := range t.Vouched {
					if o == r.Vouched {
						return
					}
				}
				t.Vouched = append(t.Vouched, r.Vouched)
			})
		case entry.OwnTag:
			if k := snap.keys[r.Own]; k == nil || !k.State.Live() {
				stray = append(stray, entry.Removal(entry.OwnTag, r.Tuple))
				continue
			}
			d.book.Tags(r.Tuple, func(t *session.Tags) { t.Own = r.Own })
		}
	}
	var missing []tables.Entry
	for s := range d.book.Sessions() {
		for _, at := range s.Places {
			if at.Device != dev {
				continue
			}
			if at.Session && !there[place{kind: entry.Session, t: s.Tuple}] {
				missing = append(missing, d.sessionEntry(s))
			}
			if at.Delivered && !there[place{kind: entry.Delivered, t: s.Tuple}] {
				missing = append(missing, entry.ForDelivered(s.Tuple, d.idle(s.Tuple)))
			}
		}
	}
	for t, r := range d.book.AllTags() {
		for _, v := range r.Vouched {
			if !there[place{entry.Vouched, t, v}] {
				missing = append(missing, entry.ForVouched(t, v, d.idle(t)))
			}
		}
		if r.Own != (tag.KeyID{}) && !there[place{kind: entry.OwnTag, t: t}] {
			e, err := d.signature(t)
			if err != nil {
				return err
			}
			missing = append(missing, e)
		}
	}
	const chunk = 1000
	for len(missing) > 0 {
		n := min(chunk, len(missing))
		if err := d.upsert(ctx, dev, missing[:n]...); err != nil {
			return err
		}
		missing = missing[n:]
	}
	if len(stray) > 0 {
		d.erase(ctx, stray...)
	}
	return d.Sign(ctx, dev)
}
