package tables

import (
	"fmt"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
)

// GroupMember is a member's part in a group of an action profile.
type GroupMember struct {
	MemberID uint32
	Weight   int32 // at least 1
	// WatchPort, where set, is the port whose failure takes the member out.
	WatchPort Optional[uint32]
}

// groupToProto encodes a group of profile p.
func (p *ProfileInfo) groupToProto(id uint32, maxSize int32, members []GroupMember) (*p4v1.ActionProfileGroup, error) {
	if maxSize < 0 {
		return nil, p.fail(fmt.Errorf("group %d: maximum size %d: %w", id, maxSize, ErrValue))
	}
	g := &p4v1.ActionProfileGroup{ActionProfileId: p.ID, GroupId: id, MaxSize: maxSize}
	for _, m := range members {
		if m.Weight < 1 {
			return nil, p.fail(fmt.Errorf("group %d: member %d: weight %d: %w", id, m.MemberID, m.Weight, ErrValue))
		}
		pm := &p4v1.ActionProfileGroup_Member{MemberId: m.MemberID, Weight: m.Weight}
		if m.WatchPort.Set {
			pm.WatchKind = &p4v1.ActionProfileGroup_Member_WatchPort{WatchPort: appendWord(nil, uint64(m.WatchPort.Value))}
		}
		g.Members = append(g.Members, pm)
	}
	return g, nil
}

// groupMembers decodes the members of a group of profile p.
func (p *ProfileInfo) groupMembers(g *p4v1.ActionProfileGroup) ([]GroupMember, error) {
	if g.GetActionProfileId() != p.ID {
		return nil, p.fail(fmt.Errorf("group of profile id %#x: %w", g.GetActionProfileId(), ErrUnknownID))
	}
	var members []GroupMember
	for _, pm := range g.GetMembers() {
		m := GroupMember{MemberID: pm.GetMemberId(), Weight: pm.GetWeight()}
		if m.Weight < 1 {
			return nil, p.fail(fmt.Errorf("group %d: member %d: weight %d: %w", g.GetGroupId(), m.MemberID, m.Weight, ErrValue))
		}
		var err error
		switch w := pm.GetWatchKind().(type) {
		case nil:
		case *p4v1.ActionProfileGroup_Member_WatchPort:
			m.WatchPort, err = watchPort(w.WatchPort)
		default:
			err = fmt.Errorf("%T: %w", w, ErrUnsupported)
		}
		if err != nil {
			return nil, p.fail(fmt.Errorf("group %d: member %d: %w", g.GetGroupId(), m.MemberID, err))
		}
		members = append(members, m)
	}
	return members, nil
}

func watchPort(b []byte) (Optional[uint32], error) {
	v, err := parseWord(b, 32)
	if err != nil {
		return Optional[uint32]{}, fmt.Errorf("watch port: %w", err)
	}
	return Some(uint32(v)), nil
}

// weightedToProto encodes one action of a one-shot set.
func weightedToProto(a Action, weight int32, watch Optional[uint32]) (*p4v1.ActionProfileAction, error) {
	if a == nil {
		return nil, fmt.Errorf("tables: one-shot action: %w", ErrMissing)
	}
	if weight < 1 {
		return nil, fmt.Errorf("tables: one-shot action id %#x: weight %d: %w", a.ActionID(), weight, ErrValue)
	}
	pa, err := a.ToProto()
	if err != nil {
		return nil, err
	}
	w := &p4v1.ActionProfileAction{Action: pa, Weight: weight}
	if watch.Set {
		w.WatchKind = &p4v1.ActionProfileAction_WatchPort{WatchPort: appendWord(nil, uint64(watch.Value))}
	}
	return w, nil
}

// weightedWatch checks weight and watch port of an action of a one-shot set.
func weightedWatch(w *p4v1.ActionProfileAction) (Optional[uint32], error) {
	if w.GetWeight() < 1 {
		return Optional[uint32]{}, fmt.Errorf("tables: one-shot action id %#x: weight %d: %w",
			w.GetAction().GetActionId(), w.GetWeight(), ErrValue)
	}
	switch k := w.GetWatchKind().(type) {
	case nil:
		return Optional[uint32]{}, nil
	case *p4v1.ActionProfileAction_WatchPort:
		return watchPort(k.WatchPort)
	default:
		return Optional[uint32]{}, fmt.Errorf("tables: one-shot action: %T: %w", k, ErrUnsupported)
	}
}

// member checks that m belongs to p and returns its action in the order of the
// P4Info.
func (p *ProfileInfo) member(dst [][]byte, m *p4v1.ActionProfileMember) ([][]byte, error) {
	if m.GetActionProfileId() != p.ID {
		return nil, p.fail(fmt.Errorf("member of profile id %#x: %w", m.GetActionProfileId(), ErrUnknownID))
	}
	return p.params(dst, m.GetAction())
}

// params returns the parameters of a in the order of the P4Info.
func (p *ProfileInfo) params(dst [][]byte, a *p4v1.Action) ([][]byte, error) {
	for _, known := range p.Actions {
		if known.ID == a.GetActionId() {
			dst = dst[:len(known.Params)]
			return dst, known.paramsFromProto(dst, a)
		}
	}
	return nil, p.fail(fmt.Errorf("action id %#x: %w", a.GetActionId(), ErrAction))
}

func (p *ProfileInfo) fail(err error) error {
	return fmt.Errorf("tables: action profile %v: %w", p.Object, err)
}

// profileUpdate makes an update of a member or group.
func profileUpdate(kind p4v1.Update_Type, e *p4v1.Entity, err error) (*p4v1.Update, error) {
	if err != nil {
		return nil, err
	}
	return &p4v1.Update{Type: kind, Entity: e}, nil
}
