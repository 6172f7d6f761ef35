package p4rtserver

//lint:file-ignore SA1019 deprecated fields are read to be refused: to ignore them would be to lose them

import p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

// refuseRoleID refuses the numeric role id that role names have replaced.
func refuseRoleID(id uint64) error {
	if id != 0 {
		return failf(ErrNotFound, "role_id %d: role_id is deprecated, use role", id)
	}
	return nil
}

func writeRoleID(r *p4v1.WriteRequest) uint64 { return r.GetRoleId() }

func pipelineRoleID(r *p4v1.SetForwardingPipelineConfigRequest) uint64 { return r.GetRoleId() }

func arbitrationRoleID(m *p4v1.MasterArbitrationUpdate) uint64 { return m.GetRole().GetId() }

// refuseControllerMetadata refuses the cookie that metadata has replaced.
func refuseControllerMetadata(o object, te *p4v1.TableEntry) error {
	if te.GetControllerMetadata() != 0 {
		return failf(ErrUnimplemented, "%v: controller_metadata is deprecated, use metadata", o)
	}
	return nil
}

// refuseWatch refuses the port number that watch_port has replaced.
func refuseWatch(o object, x interface{ GetWatch() int32 }) error {
	if x.GetWatch() != 0 {
		return failf(ErrUnimplemented, "%v: watch is deprecated, use watch_port", o)
	}
	return nil
}
