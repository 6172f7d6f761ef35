package device

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// lead is what a primary does until ctx ends: it makes sure of the pipeline,
// opens the writer, and keeps the device at the desired set.
func (s *Session) lead(ctx context.Context, l *link, election ElectionID) {
	wait := newWaiter(s.cfg.Backoff)
	fail := func(err error) {
		if ctx.Err() != nil {
			return
		}
		d := wait.next()
		s.log.Warn("device_sync_failed", "error", err, "retry_in", d)
		s.setState(func(st *State) { st.Phase, st.Err = Primary, err })
		retry := time.NewTimer(d)
		defer retry.Stop()
		select {
		case <-retry.C:
		case <-s.kick:
		case <-ctx.Done():
		}
	}
	pushed := false
	for {
		push, err := s.ensurePipeline(ctx, l, election, pushed)
		pushed = pushed || push
		if err == nil {
			break
		}
		if fail(err); ctx.Err() != nil {
			return
		}
	}
	s.setState(func(st *State) { st.Pushed = pushed })

	w := &writer{
		send: func(updates []*p4v1.Update) error {
			ctx, cancel := context.WithTimeout(ctx, s.cfg.RPCTimeout)
			defer cancel()
			_, err := l.client.Write(ctx, &p4v1.WriteRequest{
				DeviceId: s.cfg.DeviceID, Role: s.cfg.Role, ElectionId: election.proto(), Updates: updates,
			})
			return err
		},
		describe:   s.describeUpdate,
		metrics:    s.metrics,
		maxUpdates: s.cfg.MaxBatch,
		maxBytes:   s.cfg.MaxMessage,
		inFlight:   s.cfg.InFlight,
		busy:       map[uint64]struct{}{},
	}
	s.writer.Store(w)
	defer w.close(ErrNotPrimary)
	defer s.writer.Store(nil)

	var installed map[string]item // what the device has, once known
	adopted := s.cfg.Adopt == nil
	for ctx.Err() == nil {
		s.mu.Lock()
		desired, revision := s.desired, s.revision
		s.mu.Unlock()
		if desired != nil {
			var err error
			installed, err = s.reconcile(ctx, w, installed, desired)
			if !adopted {
				adoptErr := s.cfg.Adopt(ctx, s.readDynamic(ctx))
				if adopted = adoptErr == nil; !adopted {
					err = errors.Join(err, fmt.Errorf("adopting: %w", adoptErr))
				}
			}
			if err != nil {
				fail(err)
				continue
			}
			wait.reset()
			s.setState(func(st *State) {
				if ctx.Err() == nil {
					st.Phase, st.Revision, st.Err = Synced, revision, nil
				}
			})
		}
		select {
		case <-ctx.Done():
		case <-s.kick:
		}
	}
}

// ensurePipeline pushes the pipeline unless the device reports its cookie. It
// pushes in any case with force, after a push that failed: the device may have
// taken the cookie and not the pipeline. pushed says that the device may have
// lost its entries.
func (s *Session) ensurePipeline(ctx context.Context, l *link, election ElectionID, force bool) (pushed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.BulkTimeout)
	defer cancel()
	resp, err := l.client.GetForwardingPipelineConfig(ctx, &p4v1.GetForwardingPipelineConfigRequest{
		DeviceId:     s.cfg.DeviceID,
		ResponseType: p4v1.GetForwardingPipelineConfigRequest_COOKIE_ONLY,
	})
	// Without a pipeline the answer is empty, or on some targets this error.
	if err != nil && status.Code(err) != codes.FailedPrecondition {
		return false, fmt.Errorf("asking for the pipeline's cookie: %w", err)
	}
	has := resp.GetConfig()
	if !force && has.GetCookie() != nil && has.GetCookie().GetCookie() == s.cfg.Pipeline.Cookie {
		return false, nil
	}
	actions := []p4v1.SetForwardingPipelineConfigRequest_Action{p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT}
	if has != nil {
		if s.cfg.Reconcile {
			actions = slices.Insert(actions, 0, p4v1.SetForwardingPipelineConfigRequest_RECONCILE_AND_COMMIT)
		}
		s.clearReplication(ctx, l, election)
	}
	for _, action := range actions {
		_, err = l.client.SetForwardingPipelineConfig(ctx, &p4v1.SetForwardingPipelineConfigRequest{
			DeviceId: s.cfg.DeviceID, Role: s.cfg.Role, ElectionId: election.proto(), Action: action,
			Config: &p4v1.ForwardingPipelineConfig{
				P4Info:         s.cfg.Pipeline.Info,
				P4DeviceConfig: s.cfg.Pipeline.DeviceConfig,
				Cookie:         &p4v1.ForwardingPipelineConfig_Cookie{Cookie: s.cfg.Pipeline.Cookie},
			},
		})
		if err == nil {
			s.metrics.pushes.Inc()
			s.log.Info("device_pipeline_pushed", "action", action.String(), "cookie", s.cfg.Pipeline.Cookie)
			return true, nil
		}
		err = fmt.Errorf("pushing the pipeline with %v: %w", action, err)
		switch status.Code(err) {
		case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
			return true, err
		case codes.PermissionDenied:
			return false, fmt.Errorf("%w: %w", ErrNotPrimary, err)
		}
	}
	return true, err
}

// clearReplication deletes multicast groups and clone sessions ahead of a new
// pipeline: bmv2's server forgets them with the old pipeline and its switch
// does not, so that to insert them again would multiply the copies.
func (s *Session) clearReplication(ctx context.Context, l *link, election ElectionID) {
	var updates []*p4v1.Update
	for _, wildcard := range replicationWildcards() {
		for e, err := range s.Read(ctx, wildcard) {
			if err != nil {
				s.log.Debug("device_replication_unread", "error", err)
				break
			}
			updates = append(updates, &p4v1.Update{Type: p4v1.Update_DELETE, Entity: e})
		}
	}
	if len(updates) == 0 {
		return
	}
	_, err := l.client.Write(ctx, &p4v1.WriteRequest{
		DeviceId: s.cfg.DeviceID, Role: s.cfg.Role, ElectionId: election.proto(), Updates: updates,
	})
	if err != nil {
		s.log.Warn("device_replication_kept", "error", err)
	}
}

func replicationWildcards() []*p4v1.Entity {
	return []*p4v1.Entity{
		{Entity: &p4v1.Entity_PacketReplicationEngineEntry{PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{
			Type: &p4v1.PacketReplicationEngineEntry_MulticastGroupEntry{MulticastGroupEntry: &p4v1.MulticastGroupEntry{}},
		}}},
		{Entity: &p4v1.Entity_PacketReplicationEngineEntry{PacketReplicationEngineEntry: &p4v1.PacketReplicationEngineEntry{
			Type: &p4v1.PacketReplicationEngineEntry_CloneSessionEntry{CloneSessionEntry: &p4v1.CloneSessionEntry{}},
		}}},
	}
}

// entitySet is a desired set in the order in which it was given.
type entitySet struct {
	items []item
	byKey map[string]item
}

func (s *schema) desiredSet(entities []*p4v1.Entity) (*entitySet, error) {
	set := &entitySet{byKey: make(map[string]item, len(entities))}
	for _, e := range entities {
		if err := s.check(e); err != nil {
			return nil, err
		}
		it, err := s.newItem(e)
		if err != nil {
			return nil, err
		}
		if _, ok := set.byKey[it.key]; ok {
			return nil, fmt.Errorf("%w: %s stands twice", ErrInvalid, s.describe(e))
		}
		set.items = append(set.items, it)
		set.byKey[it.key] = it
	}
	return set, nil
}

// staticWildcards selects everything that a desired set owns. Of default
// actions that is what the set names: whether another was set by a controller
// or by the program cannot be told.
func (s *schema) staticWildcards(desired *entitySet) []*p4v1.Entity {
	var w []*p4v1.Entity
	for _, t := range s.tables {
		if !t.constant && !s.dynamic[t.id] {
			e := Table(t.id)
			if t.directMeter {
				e.GetTableEntry().MeterConfig = &p4v1.MeterConfig{}
			}
			w = append(w, e)
		}
	}
	for _, it := range desired.items {
		if t := it.entity.GetTableEntry(); t.GetIsDefaultAction() {
			e := Table(t.GetTableId())
			e.GetTableEntry().IsDefaultAction = true
			w = append(w, e)
		}
	}
	for _, id := range s.profiles {
		if !s.dynamic[id] {
			w = append(w,
				&p4v1.Entity{Entity: &p4v1.Entity_ActionProfileMember{ActionProfileMember: &p4v1.ActionProfileMember{ActionProfileId: id}}},
				&p4v1.Entity{Entity: &p4v1.Entity_ActionProfileGroup{ActionProfileGroup: &p4v1.ActionProfileGroup{ActionProfileId: id}}})
		}
	}
	for _, id := range s.meters {
		if !s.dynamic[id] {
			w = append(w, &p4v1.Entity{Entity: &p4v1.Entity_MeterEntry{MeterEntry: &p4v1.MeterEntry{MeterId: id}}})
		}
	}
	return append(w, replicationWildcards()...)
}

// readStatic reads back what the device has of all that a desired set owns. A
// kind of entity that the target does not read counts as not there.
func (s *Session) readStatic(ctx context.Context, desired *entitySet) (map[string]item, error) {
	found := map[string]item{}
	for _, wildcard := range s.schema.staticWildcards(desired) {
		for e, err := range s.Read(ctx, wildcard) {
			if err != nil && unread(wildcard, status.Code(err)) {
				s.log.Debug("device_entities_unread", "entities", s.schema.describe(wildcard), "error", err)
				break
			}
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", s.schema.describe(wildcard), err)
			}
			if m := e.GetMeterEntry(); m != nil && m.GetConfig() == nil {
				continue // every cell is there; this one is not configured
			}
			it, err := s.schema.newItem(e)
			if err != nil {
				return nil, err
			}
			found[it.key] = it
		}
	}
	return found, nil
}

// unread reports whether a target that answers the reading of a wildcard so does
// not have that kind of entity. bmv2 refuses to read the members and groups of
// an action profile whose table is programmed with one-shot sets ("One Shot
// Action Selector Programming" forbids to mix the two).
func unread(wildcard *p4v1.Entity, c codes.Code) bool {
	switch c {
	case codes.Unimplemented, codes.NotFound:
		return wildcard.GetTableEntry() == nil
	case codes.InvalidArgument:
		return wildcard.GetActionProfileMember() != nil || wildcard.GetActionProfileGroup() != nil
	}
	return false
}

// reconcile brings the device from what it has, which is read if it is not
// known, to the desired set. It returns what the device has then, or nil and
// an error where some updates failed; all others are done.
func (s *Session) reconcile(ctx context.Context, w *writer, has map[string]item, desired *entitySet) (map[string]item, error) {
	if has == nil {
		var err error
		if has, err = s.readStatic(ctx, desired); err != nil {
			return nil, err
		}
	}
	var puts, deletes [stages][]*p4v1.Update
	for _, it := range desired.items {
		old, ok := has[it.key]
		if !ok || old.body != it.body {
			u := &p4v1.Update{Type: p4v1.Update_MODIFY, Entity: it.entity}
			if !ok && insertable(it.entity) {
				u.Type = p4v1.Update_INSERT
			}
			puts[stageOf(it.entity)] = append(puts[stageOf(it.entity)], u)
		}
	}
	for key, it := range has {
		if _, ok := desired.byKey[key]; !ok {
			st := stageOf(it.entity)
			deletes[st] = append(deletes[st], removal(it.entity))
		}
	}

	// New before old, so that no packet meets a gap; what a full table had no
	// room for gets another try when the old is gone.
	var errs []*UpdateError
	var again []*p4v1.Update
	total := 0
	write := func(updates []*p4v1.Update, retry bool) error {
		s.metrics.staticWrites.Add(float64(len(updates)))
		total += len(updates)
		err := w.write(ctx, updates)
		for _, e := range failed(err) {
			u := updates[e.Index]
			switch {
			case u.GetType() == p4v1.Update_DELETE && e.Code == codes.NotFound:
			case retry && e.Code == codes.ResourceExhausted:
				again = append(again, u)
			default:
				errs = append(errs, e)
			}
		}
		if failed(err) != nil {
			return nil
		}
		return err
	}
	for _, updates := range puts {
		if err := write(updates, true); err != nil {
			return nil, err
		}
	}
	for _, updates := range slices.Backward(deletes[:]) {
		if err := write(updates, false); err != nil {
			return nil, err
		}
	}
	if err := write(again, false); err != nil {
		return nil, err
	}
	if len(errs) > 0 {
		return nil, &WriteError{errs, total}
	}
	return desired.byKey, nil
}

// insertable says whether an entity comes into being with INSERT; meters and
// default actions are always there.
func insertable(e *p4v1.Entity) bool {
	return e.GetMeterEntry() == nil && !e.GetTableEntry().GetIsDefaultAction()
}

// removal returns the update that undoes e.
func removal(e *p4v1.Entity) *p4v1.Update {
	if insertable(e) {
		return &p4v1.Update{Type: p4v1.Update_DELETE, Entity: e}
	}
	e = proto.CloneOf(e)
	if m := e.GetMeterEntry(); m != nil {
		m.Config = nil
	} else {
		t := e.GetTableEntry()
		id := t.GetTableId()
		t.Reset()
		t.TableId, t.IsDefaultAction = id, true
	}
	return &p4v1.Update{Type: p4v1.Update_MODIFY, Entity: e}
}

// readDynamic yields the entries of the dynamic tables.
func (s *Session) readDynamic(ctx context.Context) iter.Seq2[*p4v1.TableEntry, error] {
	return func(yield func(*p4v1.TableEntry, error) bool) {
		for _, t := range s.schema.tables {
			if !s.schema.dynamic[t.id] || t.constant {
				continue
			}
			for e, err := range s.Read(ctx, Table(t.id)) {
				if !yield(e.GetTableEntry(), err) || err != nil {
					return
				}
			}
		}
	}
}
