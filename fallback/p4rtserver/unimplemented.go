package p4rtserver

// Unimplemented answers ErrUnimplemented for the parts of a Pipeline that a
// target may lack: direct and indirect counters and meters, action profiles,
// the packet replication engine, packet-out. The zero value is ready to embed.
type Unimplemented struct{}

// SetDirectCounter implements Pipeline.
func (Unimplemented) SetDirectCounter(*Entry) error { return ErrUnimplemented }

// SetDirectMeter implements Pipeline.
func (Unimplemented) SetDirectMeter(*Entry) error { return ErrUnimplemented }

// WriteMember implements Pipeline.
func (Unimplemented) WriteMember(Op, *Member) error { return ErrUnimplemented }

// WriteGroup implements Pipeline.
func (Unimplemented) WriteGroup(Op, *Group) error { return ErrUnimplemented }

// Counter implements Pipeline.
func (Unimplemented) Counter(uint32, int64) (CounterData, error) {
	return CounterData{}, ErrUnimplemented
}

// SetCounter implements Pipeline.
func (Unimplemented) SetCounter(uint32, int64, CounterData) error { return ErrUnimplemented }

// Meter implements Pipeline.
func (Unimplemented) Meter(uint32, int64, Want) (*MeterConfig, *MeterCounters, error) {
	return nil, nil, ErrUnimplemented
}

// SetMeter implements Pipeline.
func (Unimplemented) SetMeter(uint32, int64, *MeterConfig, bool) error { return ErrUnimplemented }

// WriteMulticastGroup implements Pipeline.
func (Unimplemented) WriteMulticastGroup(Op, uint32, []Replica) error { return ErrUnimplemented }

// WriteCloneSession implements Pipeline.
func (Unimplemented) WriteCloneSession(Op, *CloneSession) error { return ErrUnimplemented }

// PacketOut implements Pipeline.
func (Unimplemented) PacketOut([][]byte, []byte) error { return ErrUnimplemented }
