package p4rtserver

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits on what clients can make the server keep.
const (
	maxRoles          = 256
	maxStreamsPerRole = 64
	maxRoleName       = 256 // bytes
)

// electionID is a 128-bit election id.
type electionID struct{ high, low uint64 }

func (a electionID) compare(b electionID) int {
	return cmp.Or(cmp.Compare(a.high, b.high), cmp.Compare(a.low, b.low))
}

// parseElection returns nil for an id that is not set.
func parseElection(u *p4v1.Uint128) *electionID {
	if u == nil {
		return nil
	}
	return &electionID{u.GetHigh(), u.GetLow()}
}

// role is the controllers that share a role.
type role struct {
	name string
	// highest is the highest election id ever seen, kept when streams end;
	// nil if there was none.
	highest *electionID
	streams []*stream
	primary *stream
}

// arbiter selects the primary controller of each role (P4Runtime
// specification, section 5). It has no controllers at first, needs deviceID and
// log, and is safe for concurrent use.
//
// A Write holds mu for reading from the check of its election id to its end,
// so that a new primary is accepted when the writes of the former one are done.
type arbiter struct {
	deviceID uint64
	log      *slog.Logger
	mu       sync.RWMutex
	roles    map[string]*role
	// primaries is a copy for the data path.
	primaries atomic.Pointer[[]*stream]
}

// update handles a controller's message. An error ends its stream.
func (a *arbiter) update(st *stream, m *p4v1.MasterArbitrationUpdate) error {
	name := m.GetRole().GetName()
	switch {
	case arbitrationRoleID(m) != 0:
		return status.Error(codes.InvalidArgument, "role.id is deprecated, use role.name")
	case m.GetRole().GetConfig() != nil:
		return status.Error(codes.InvalidArgument, "no scheme for role.config is agreed on, leave it unset for full pipeline access")
	case len(name) > maxRoleName:
		return status.Errorf(codes.InvalidArgument, "the role name has %d bytes, expected at most %d", len(name), maxRoleName)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case st.gone:
		return status.Error(codes.Canceled, "the stream has ended")
	case st.role == nil && m.GetDeviceId() != a.deviceID:
		return status.Errorf(codes.NotFound, "there is no device %d here, expected %d", m.GetDeviceId(), a.deviceID)
	case m.GetDeviceId() != a.deviceID:
		return status.Errorf(codes.FailedPrecondition, "the stream belongs to device %d, which cannot change to %d", a.deviceID, m.GetDeviceId())
	case st.role != nil && st.role.name != name:
		return status.Errorf(codes.FailedPrecondition, "the stream has role %q, which cannot change to %q", st.role.name, name)
	}
	r := a.roles[name]
	if r == nil {
		if len(a.roles) >= maxRoles {
			return status.Errorf(codes.ResourceExhausted, "%d roles are known already, no more are taken", maxRoles)
		}
		r = &role{name: name}
	}
	election := parseElection(m.GetElectionId())
	if election != nil {
		for _, other := range r.streams {
			if other != st && other.election != nil && *other.election == *election {
				return status.Errorf(codes.InvalidArgument, "another controller of role %q has election id %d:%d", name, election.high, election.low)
			}
		}
	}
	if st.role == nil {
		if len(r.streams) >= maxStreamsPerRole {
			return status.Errorf(codes.ResourceExhausted, "role %q has %d streams already", name, maxStreamsPerRole)
		}
		if a.roles == nil {
			a.roles = make(map[string]*role)
		}
		a.roles[name] = r
		st.role = r
		r.streams = append(r.streams, st)
	}
	st.election = election
	switch {
	case election != nil && (r.highest == nil || election.compare(*r.highest) >= 0):
		r.highest = election
		a.setPrimary(r, st)
		a.notifyAll(r)
	case r.primary == st:
		a.setPrimary(r, nil)
		a.notifyAll(r)
	default:
		st.notify(a.advisory(r, st))
	}
	return nil
}

// leave takes a stream out when it ends, for good.
func (a *arbiter) leave(st *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := st.role
	if st.gone = true; r == nil {
		return
	}
	st.role = nil
	r.streams = slices.DeleteFunc(r.streams, func(s *stream) bool { return s == st })
	if r.primary == st {
		a.setPrimary(r, nil)
		a.notifyAll(r)
	}
	if r.highest == nil && len(r.streams) == 0 {
		delete(a.roles, r.name) // nothing to remember
	}
}

func (a *arbiter) setPrimary(r *role, st *stream) {
	r.primary = st
	if st == nil {
		a.log.Info("role has no primary controller", "role", r.name)
	} else {
		a.log.Info("primary controller", "role", r.name, "election_id_high", st.election.high, "election_id_low", st.election.low)
	}
	var list []*stream
	for _, r := range a.roles {
		if r.primary != nil {
			list = append(list, r.primary)
		}
	}
	a.primaries.Store(&list)
}

// notifyAll tells every controller of the role, the primary last.
func (a *arbiter) notifyAll(r *role) {
	for _, st := range r.streams {
		if st != r.primary {
			st.notify(a.advisory(r, st))
		}
	}
	if r.primary != nil {
		r.primary.notify(a.advisory(r, r.primary))
	}
}

// advisory is the notification for one controller (section 5.4).
func (a *arbiter) advisory(r *role, st *stream) *p4v1.MasterArbitrationUpdate {
	m := &p4v1.MasterArbitrationUpdate{DeviceId: a.deviceID}
	if r.name != "" {
		m.Role = &p4v1.Role{Name: r.name}
	}
	if r.highest != nil {
		m.ElectionId = &p4v1.Uint128{High: r.highest.high, Low: r.highest.low}
	}
	switch {
	case st == r.primary:
		m.Status = &rpcstatus.Status{Code: int32(codes.OK), Message: "you are the primary"}
	case r.primary != nil:
		m.Status = &rpcstatus.Status{Code: int32(codes.AlreadyExists), Message: "another controller is the primary"}
	default:
		m.Status = &rpcstatus.Status{Code: int32(codes.NotFound), Message: "there is no primary"}
	}
	return m
}

// primary says whether st is the primary of its role.
func (a *arbiter) primary(st *stream) bool {
	list := a.primaries.Load()
	return list != nil && slices.Contains(*list, st)
}

// authorize checks that a request comes from the primary of its role. On
// success a.mu is held for reading until the caller calls done.
func (a *arbiter) authorize(deviceID uint64, roleID uint64, name string, id *p4v1.Uint128) (done func(), err error) {
	if deviceID != a.deviceID {
		return nil, failf(ErrNotFound, "there is no device %d here, expected %d", deviceID, a.deviceID)
	}
	if err := refuseRoleID(roleID); err != nil {
		return nil, err
	}
	a.mu.RLock()
	r := a.roles[name]
	switch election := parseElection(id); {
	case r == nil && name != "":
		err = failf(ErrNotFound, "no controller has opened a stream with role %q", name)
	case r == nil || r.primary == nil:
		err = failf(ErrPermissionDenied, "role %q has no primary controller", name)
	case election == nil:
		err = failf(ErrPermissionDenied, "the request has no election id, expected that of the primary of role %q", name)
	case *election != *r.primary.election:
		err = failf(ErrPermissionDenied, "election id %d:%d is not that of the primary of role %q", election.high, election.low, name)
	}
	if err != nil {
		a.mu.RUnlock()
		return nil, err
	}
	return a.mu.RUnlock, nil
}
