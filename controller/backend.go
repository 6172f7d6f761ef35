package controller

import (
	"context"
	"errors"
	"iter"
	"time"

	"countersign/controller/admin"
	"countersign/tag"
)

// errStatic: static keys are the configuration's, nothing rotates them.
var errStatic = errors.New("static keys do not rotate; change the configuration")

// Status implements admin.Backend.
func (c *controller) Status() admin.Status {
	snap := c.snap.Load()
	st := admin.Status{
		Member: c.cfg.Member, Site: c.cfg.Site,
		Started: c.started, Uptime: admin.Seconds(time.Since(c.started)),
		Sessions: c.decider.Book().Len(), Signing: []admin.Key{},
	}
	for _, p := range c.devices {
		s := p.State()
		d := admin.Device{
			Name: p.cfg.Name, Address: p.cfg.Address, Phase: s.Phase.String(),
			Generation: s.Generation, Revision: s.Revision,
		}
		if s.Err != nil {
			d.Error = s.Err.Error()
		}
		st.Devices = append(st.Devices, d)
	}
	if c.client != nil {
		s := c.client.Status()
		st.Directory = &admin.Directory{
			Address: c.cfg.Directory.Address, Connected: s.Connected, Version: s.Version, Sequence: s.Sequence,
			Age: admin.Seconds(s.Age), Expiry: s.Expiry, Expired: s.Expired,
		}
	}
	if c.siblings != nil {
		st.Siblings = c.siblings.Status()
	}
	if snap != nil {
		st.Alliance, st.Site = snap.Alliance, snap.Self.Site
		for _, k := range admin.KeysOf(snap) {
			if k.Own && k.State.Live() {
				st.Signing = append(st.Signing, k)
			}
		}
	}
	return st
}

// Keys implements admin.Backend.
func (c *controller) Keys() []admin.Key { return admin.KeysOf(c.snap.Load()) }

// Sessions implements admin.Backend.
func (c *controller) Sessions() iter.Seq[admin.Session] {
	return func(yield func(admin.Session) bool) {
		names := map[uint16]string{0xffff: "*"}
		for name, id := range c.cfg.Zones() {
			names[id] = name
		}
		now := time.Now()
		for s := range c.decider.Book().Sessions() {
			out := admin.Session{
				InitiatorLow: s.InitiatorLow, LowZone: names[s.LowZone], HighZone: names[s.HighZone],
				Origin: s.Origin, Issuer: s.Issuer, Generation: s.Generation,
				Age: admin.Seconds(now.Sub(s.Created)), Expiry: s.Expiry,
				Installed: s.Installed(), Delivered: s.Delivered(), Closing: s.Closing,
			}
			out.SetTuple(&s.Tuple)
			if !yield(out) {
				return
			}
		}
	}
}

// Rotate implements admin.Backend.
func (c *controller) Rotate(ctx context.Context, suite tag.Suite) (bool, error) {
	if c.client == nil {
		return false, errStatic
	}
	return c.client.Rotate(ctx, suite)
}

// KillSession implements admin.Backend.
func (c *controller) KillSession(ctx context.Context, t tag.Tuple) bool {
	return c.decider.Kill(ctx, t)
}

var _ admin.Backend = (*controller)(nil)
