package pktio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultRingFrames is the length of a receive ring where Options name none.
const DefaultRingFrames = 4096

const (
	// sendBatch is the number of frames given to the kernel in one call.
	sendBatch = 64
	// sendBuffer is what the kernel may hold of sent frames, in bytes.
	sendBuffer = 4 << 20
	// ringBlock is the size of a ring's contiguous blocks, in bytes.
	ringBlock = 1 << 18
	// ringHeader is what the kernel puts in front of a frame in the ring:
	// tpacket2_hdr, sockaddr_ll and its alignment, in bytes, rounded up.
	ringHeader = 96
)

// The ring's header is shared with the kernel (linux/if_packet.h).
const _ = -(unsafe.Sizeof(unix.Tpacket2Hdr{}) ^ 32)

// afPort is an AF_PACKET port: a TPACKET_V2 receive ring, whose frames are seen
// as soon as they arrive, and a second socket that sends by sendmmsg past the
// queueing discipline. docs/packet-io.md says what was measured and why this is
// the choice.
type afPort struct {
	receiver
	nic   nic
	log   *slog.Logger
	stats counters
	held  *isolation // shared by the interface's queues, nil without Isolate

	rx       int // receives; has the ring
	ring     []byte
	slots    []*unix.Tpacket2Hdr
	next     int
	maxFrame int
	link     int // netlink socket told of changes of links
	down     bool
	gone     atomic.Bool

	sendMu sync.Mutex // held while tx is in use
	tx     int
	msgs   [sendBatch]mmsghdr
	iovs   [sendBatch]unix.Iovec
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func openAFPacket(name string, o Options) ([]Port, error) {
	n, err := inspect(name, o.FixOffloads)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", name, err)
	}
	var held *isolation
	if o.Isolate {
		if held, err = isolate(n, o.Queues); err != nil {
			return nil, fmt.Errorf("port %s: %w", name, err)
		}
	}
	ports, fanout := make([]Port, 0, o.Queues), 0
	for len(ports) < o.Queues {
		p := &afPort{nic: n, log: o.Log.With("port", name), maxFrame: n.mtu + L2Len, rx: -1, tx: -1, link: -1, held: held}
		if err := p.open(o, &fanout); err != nil {
			p.free()
			for range o.Queues - len(ports) - 1 {
				held.release()
			}
			return nil, errors.Join(fmt.Errorf("port %s: %w", name, explain(err)), closeAll(ports))
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// explain adds what to do to a missing capability.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w: needs CAP_NET_RAW and CAP_NET_ADMIN in this network namespace: "+
			"run as root, or give them by AmbientCapabilities or setcap cap_net_raw,cap_net_admin+ep", ErrPermission, err)
	}
	return err
}

func (p *afPort) open(o Options, fanout *int) (err error) {
	if p.wake, err = newEvent(); err != nil {
		return err
	}
	if p.link, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Bind(p.link, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := p.openTx(); err != nil {
		return err
	}
	return p.openRx(o, fanout)
}

func (p *afPort) openTx() (err error) {
	if p.tx, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(p.tx, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return fmt.Errorf("PACKET_QDISC_BYPASS: %w", err)
	}
	if unix.SetsockoptInt(p.tx, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		if err := unix.SetsockoptInt(p.tx, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer); err != nil {
			return fmt.Errorf("SO_SNDBUF: %w", err)
		}
	}
	if err := unix.Bind(p.tx, &unix.SockaddrLinklayer{Ifindex: p.nic.index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	for i := range p.msgs {
		p.msgs[i].hdr.Iov = &p.iovs[i]
		p.msgs[i].hdr.SetIovlen(1)
	}
	return nil
}

func (p *afPort) openRx(o Options, fanout *int) (err error) {
	if p.rx, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	for _, opt := range []struct {
		name       string
		key, value int
	}{
		{"PACKET_VERSION", unix.PACKET_VERSION, unix.TPACKET_V2},
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING, 1},
	} {
		if err := unix.SetsockoptInt(p.rx, unix.SOL_PACKET, opt.key, opt.value); err != nil {
			return fmt.Errorf("%s: %w", opt.name, err)
		}
	}
	if err := p.mapRing(o.RingFrames); err != nil {
		return err
	}
	if o.Promiscuous {
		mreq := unix.PacketMreq{Ifindex: int32(p.nic.index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(p.rx, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
			return fmt.Errorf("promiscuous mode: %w", err)
		}
	}
	all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in network byte order
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		all = unix.ETH_P_ALL
	}
	if err := unix.Bind(p.rx, &unix.SockaddrLinklayer{Protocol: all, Ifindex: p.nic.index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if o.Queues > 1 {
		return p.joinFanout(fanout)
	}
	return nil
}

// mapRing makes a ring of at least frames slots, each of which holds a frame of
// the interface's MTU.
func (p *afPort) mapRing(frames int) error {
	// An odd number of cache lines a slot spreads the slots' first lines over
	// the sets of the cache.
	slot := (ringHeader + p.maxFrame + 63) &^ 63
	if slot/64%2 == 0 {
		slot += 64
	}
	perBlock := ringBlock / slot
	blocks := (frames + perBlock - 1) / perBlock
	req := unix.TpacketReq{
		Block_size: ringBlock, Block_nr: uint32(blocks), Frame_size: uint32(slot), Frame_nr: uint32(blocks * perBlock),
	}
	if err := unix.SetsockoptTpacketReq(p.rx, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("receive ring of %d KiB: %w", blocks*ringBlock>>10, err)
	}
	ring, err := unix.Mmap(p.rx, 0, blocks*ringBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map receive ring of %d KiB: %w", blocks*ringBlock>>10, err)
	}
	p.ring = ring
	p.slots = make([]*unix.Tpacket2Hdr, 0, blocks*perBlock)
	for b := range blocks {
		for s := range perBlock {
			p.slots = append(p.slots, (*unix.Tpacket2Hdr)(unsafe.Pointer(&ring[b*ringBlock+s*slot])))
		}
	}
	return nil
}

// joinFanout spreads the interface's flows over the queues' sockets; the first
// one is given the group's id by the kernel.
func (p *afPort) joinFanout(group *int) error {
	arg, first := *group|unix.PACKET_FANOUT_HASH<<16|unix.PACKET_FANOUT_FLAG_IGNORE_OUTGOING<<16, *group == 0
	if first {
		arg |= unix.PACKET_FANOUT_FLAG_UNIQUEID << 16
	}
	if err := unix.SetsockoptInt(p.rx, unix.SOL_PACKET, unix.PACKET_FANOUT, arg); err != nil {
		return fmt.Errorf("PACKET_FANOUT: %w", err)
	}
	if first {
		got, err := unix.GetsockoptInt(p.rx, unix.SOL_PACKET, unix.PACKET_FANOUT)
		if err != nil {
			return fmt.Errorf("PACKET_FANOUT: %w", err)
		}
		*group = got & 0xffff
	}
	return nil
}

func (p *afPort) Name() string                   { return p.nic.name }
func (p *afPort) MTU() int                       { return p.nic.mtu }
func (p *afPort) HardwareAddr() net.HardwareAddr { return p.nic.mac }
func (p *afPort) Wake()                          { p.wake.set() }

func (p *afPort) Recv(frames []*Frame) (int, error) { return p.recv(p, frames) }

func (p *afPort) tryRecv(frames []*Frame) (int, error) {
	if err := p.check(p); err != nil {
		return 0, err
	}
	n, bytes := 0, uint64(0)
	for n < len(frames) {
		h := p.slots[p.next]
		status := atomic.LoadUint32(&h.Status)
		if status&unix.TP_STATUS_USER == 0 {
			break
		}
		if p.copyOut(frames[n], h, status) {
			bytes += uint64(frames[n].Len())
			n++
		}
		atomic.StoreUint32(&h.Status, unix.TP_STATUS_KERNEL)
		if p.next++; p.next == len(p.slots) {
			p.next = 0
		}
	}
	if n > 0 {
		p.stats.received(n, bytes)
	} else if p.gone.Load() {
		return 0, fmt.Errorf("port %s: %w", p.nic.name, ErrGone)
	}
	return n, nil
}

// copyOut copies a ring slot into f, puts back the VLAN tag that the kernel took
// off, and finishes the checksum that the sender left open. It reports false, and
// counts, where the frame is dropped.
func (p *afPort) copyOut(f *Frame, h *unix.Tpacket2Hdr, status uint32) bool {
	if h.Snaplen < etherLen {
		p.stats.rxTooShort.Add(1)
		return false
	}
	data := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), uintptr(h.Mac))), h.Snaplen)
	size, tagged := int(h.Len), status&unix.TP_STATUS_VLAN_VALID != 0
	if tagged {
		size += vlanLen
	}
	limit := p.maxFrame
	if outer := binary.BigEndian.Uint16(data[12:]); !tagged && outer != etherTypeVLAN && outer != etherTypeQinQ {
		limit -= vlanLen
	}
	if size > limit || h.Snaplen != h.Len {
		p.stats.rxTooLong.Add(1)
		return false
	}
	f.start, f.end = Headroom, Headroom+size
	f.Time = int64(h.Sec)*1e9 + int64(h.Nsec)
	if b := f.buf[Headroom:f.end]; tagged {
		tpid := uint16(etherTypeVLAN)
		if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			tpid = h.Vlan_tpid
		}
		copy(b, data[:12])
		binary.BigEndian.PutUint16(b[12:], tpid)
		binary.BigEndian.PutUint16(b[14:], h.Vlan_tci)
		copy(b[16:], data[12:])
	} else {
		copy(b, data)
	}
	if status&unix.TP_STATUS_CSUMNOTREADY != 0 {
		if !finishChecksum(f.Bytes()) {
			p.stats.rxChecksumUnfinished.Add(1)
			return false
		}
		p.stats.rxChecksumFinished.Add(1)
	}
	return true
}

func (p *afPort) appendPoll(fds []unix.PollFd) ([]unix.PollFd, bool) {
	return append(fds,
		unix.PollFd{Fd: int32(p.rx), Events: unix.POLLIN},
		unix.PollFd{Fd: int32(p.link), Events: unix.POLLIN}), true
}

func (p *afPort) polled(fds []unix.PollFd) {
	if fds[0].Revents&unix.POLLERR != 0 {
		// Reading the error clears it; ENETDOWN is seen by checkLink too.
		_, _ = unix.GetsockoptInt(p.rx, unix.SOL_SOCKET, unix.SO_ERROR)
		p.checkLink()
	}
	if fds[1].Revents != 0 {
		var b [8192]byte
		for {
			if n, err := unix.Read(p.link, b[:]); n <= 0 && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		p.checkLink()
	}
}

// checkLink notes that the interface went down, came up or was removed. The
// kernel itself takes the sockets off an interface that goes down and back on
// when it comes up.
func (p *afPort) checkLink() {
	up, err := p.nic.isUp(p.rx)
	switch {
	case err != nil:
		if !p.gone.Swap(true) {
			p.log.Warn("interface_removed")
		}
	case up == p.down:
		p.down = !up
		if p.down {
			p.stats.linkDowns.Add(1)
			p.log.Warn("interface_down")
		} else {
			p.log.Info("interface_up")
		}
	}
}

func (p *afPort) Send(frames []*Frame) (int, error) {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if err := p.check(p); err != nil {
		return 0, err
	}
	sent, bytes := 0, uint64(0)
	var err error
	for len(frames) > 0 && err == nil {
		batch := frames[:min(len(frames), sendBatch)]
		frames = frames[len(batch):]
		for i, f := range batch {
			p.iovs[i].Base = unsafe.SliceData(f.buf[f.start:])
			p.iovs[i].SetLen(f.Len())
		}
		var n int
		n, err = p.sendBatch(batch)
		sent += n
		for i := range batch {
			bytes += uint64(p.msgs[i].n)
			p.msgs[i].n = 0
			p.iovs[i].Base = nil
		}
	}
	p.stats.sent(sent, bytes)
	if err != nil {
		p.stats.txLinkDown.Add(uint64(len(frames)))
		err = fmt.Errorf("port %s: %w", p.nic.name, err)
	}
	return sent, err
}

// sendBatch sends the frames that iovs point to and returns how many the
// interface took; the length of each is left in msgs.
func (p *afPort) sendBatch(batch []*Frame) (sent int, err error) {
	for i := 0; i < len(batch); {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(p.tx),
			uintptr(unsafe.Pointer(&p.msgs[i])), uintptr(len(batch)-i), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			sent += int(n)
			i += int(n)
		case unix.EINTR:
		case unix.ENETDOWN:
			p.stats.txLinkDown.Add(uint64(len(batch) - i))
			return sent, nil
		case unix.ENXIO, unix.ENODEV, unix.EBADF:
			p.stats.txLinkDown.Add(uint64(len(batch) - i))
			return sent, ErrGone
		default: // its queue is full, or the frame is longer than its MTU
			p.stats.txDropped.Add(1)
			i++
		}
	}
	return sent, nil
}

func (p *afPort) Stats() Stats {
	p.sendMu.Lock() // the sockets must not be freed meanwhile
	defer p.sendMu.Unlock()
	if !p.closed.Load() {
		// Reading the socket's counters clears them.
		if s, err := unix.GetsockoptTpacketStats(p.rx, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			p.stats.rxRingFull.Add(uint64(s.Drops))
		}
	}
	return p.stats.load()
}

func (p *afPort) Close() error {
	p.shut(p.free)
	return nil
}

// free releases what open got, also where it failed midway.
func (p *afPort) free() {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if p.ring != nil {
		p.slots = nil
		_ = unix.Munmap(p.ring)
		p.ring = nil
	}
	for _, fd := range []*int{&p.rx, &p.tx, &p.link} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	p.held.release()
}
