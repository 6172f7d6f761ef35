package pktio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// isolation keeps what an interface receives from the host's own network stack.
// Packet sockets see a frame before the ingress filter that drops it. A nil
// isolation holds nothing.
type isolation struct {
	nl      *netlink.Handle
	index   int
	created bool // the clsact qdisc is ours
	refs    atomic.Int32
}

// The filter's place: first at the interface's ingress, by a number of our own.
const (
	isolationPriority = 1
	isolationHandle   = 0x4353
)

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// isolate adds the filter, which goes with the last of refs calls of release. A
// filter left behind by a process that was killed is taken over: until then the
// interface is isolated, and the host does not forward round the data plane.
func isolate(n nic, refs int) (*isolation, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("isolate: netlink: %w", err)
	}
	i := &isolation{nl: h, index: n.index}
	i.refs.Store(int32(refs))
	err = h.QdiscAdd(clsact(n.index))
	if i.created = err == nil; err != nil && !errors.Is(err, unix.EEXIST) {
		h.Close()
		return nil, fmt.Errorf("isolate: clsact qdisc: %w", explain(err))
	}
	if err := addDropFilter(n.index); err != nil {
		i.refs.Store(1)
		i.release()
		return nil, fmt.Errorf("isolate: ingress filter (needs cls_bpf in the kernel): %w", explain(err))
	}
	return i, nil
}

// addDropFilter adds a classic BPF program that drops all, which unlike an eBPF
// program needs no privilege outside the namespace.
func addDropFilter(index int) error {
	const tcActShot = 2 // linux/pkt_cls.h
	req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family:  nl.FAMILY_ALL,
		Ifindex: int32(index),
		Handle:  isolationHandle,
		Parent:  netlink.HANDLE_MIN_INGRESS,
		Info:    netlink.MakeHandle(isolationPriority, nl.Swap16(unix.ETH_P_ALL)),
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	program := binary.NativeEndian.AppendUint16(nil, unix.BPF_RET|unix.BPF_K)
	program = append(program, 0, 0)
	program = binary.NativeEndian.AppendUint32(program, tcActShot)
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_OPS_LEN, binary.NativeEndian.AppendUint16(nil, 1))
	options.AddRtAttr(nl.TCA_BPF_OPS, program)
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(options)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil // left behind by an earlier process
	}
	return err
}

// release takes the filter off at the last call.
func (i *isolation) release() {
	if i == nil || i.refs.Add(-1) != 0 {
		return
	}
	// The interface may be gone, and everything on it.
	if i.created {
		_ = i.nl.QdiscDel(clsact(i.index))
	} else {
		_ = i.nl.FilterDel(&netlink.GenericFilter{FilterType: "bpf", FilterAttrs: netlink.FilterAttrs{
			LinkIndex: i.index, Handle: isolationHandle, Parent: netlink.HANDLE_MIN_INGRESS,
			Priority: isolationPriority, Protocol: unix.ETH_P_ALL,
		}})
	}
	i.nl.Close()
}
