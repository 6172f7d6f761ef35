package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxRaw is the longest frame that Raw receives, in bytes: a merged segment.
const maxRaw = 64<<10 + 18

// Raw is a packet socket on one interface of a node, which injects frames as they
// stand, and sees what the interface receives and sends, beside its own frames;
// take it from [Node.OpenRaw]. Send and Next may be called from different goroutines, each
// from one at a time.
type Raw struct {
	name string
	file *os.File
	buf  []byte
	oob  []byte
}

// Captured is a frame that Raw has seen.
type Captured struct {
	// Data is the frame from its Ethernet header, with its VLAN tag.
	Data []byte
	// Outgoing says that the interface sent it.
	Outgoing bool
}

// OpenRaw opens a packet socket on an interface of the node; Close or Lab.Close
// ends it. What the interface receives and sends from then on is kept for Next, up
// to the socket's buffer.
func (n *Node) OpenRaw(name string) (*Raw, error) {
	r := &Raw{name: n.name + ":" + name, buf: make([]byte, maxRaw), oob: make([]byte, 128)}
	err := n.Do(func() error {
		link, err := n.nl.LinkByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if err := prepareRaw(fd, link.Attrs().Index); err != nil {
			unix.Close(fd)
			return err
		}
		r.file = os.NewFile(uintptr(fd), r.name)
		return nil
	})
	if err == nil {
		err = n.lab.onClose(r.Close)
	}
	if err != nil {
		if r.file != nil {
			r.file.Close()
		}
		return nil, fmt.Errorf("node %s: interface %s: %w", n.name, name, err)
	}
	return r, nil
}

func prepareRaw(fd, index int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("PACKET_AUXDATA: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // the default serves too
	mreq := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
		return fmt.Errorf("promiscuous mode: %w", err)
	}
	var all [2]byte
	binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all[:]), Ifindex: index})
}

// Send injects a frame, which begins with its Ethernet header and ends without
// FCS.
func (r *Raw) Send(frame []byte) error {
	if _, err := r.file.Write(frame); err != nil {
		return fmt.Errorf("inject %d bytes: %w", len(frame), err)
	}
	return nil
}

// Next returns the next frame for which match is true; a nil match takes any. It
// waits until the context ends, whose cause it then returns.
func (r *Raw) Next(ctx context.Context, match func(Captured) bool) (Captured, error) {
	if err := r.file.SetReadDeadline(time.Time{}); err != nil {
		return Captured{}, fmt.Errorf("sniff %s: %w", r.name, err)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = r.file.SetReadDeadline(time.Unix(1, 0))
		close(ended)
	})
	defer func() {
		if !stop() {
			<-ended // before the next call lifts the deadline
		}
	}()
	for {
		c, err := r.read()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return Captured{}, fmt.Errorf("sniff %s: %w", r.name, err)
		}
		if match == nil || match(c) {
			return c, nil
		}
	}
}

func (r *Raw) read() (c Captured, err error) {
	conn, err := r.file.SyscallConn()
	if err != nil {
		return c, err
	}
	var n, oobn int
	var from unix.Sockaddr
	var errRecv error
	if err := conn.Read(func(fd uintptr) bool {
		n, oobn, _, from, errRecv = unix.Recvmsg(int(fd), r.buf, r.oob, 0)
		return errRecv != unix.EAGAIN && errRecv != unix.EINTR
	}); err != nil {
		return c, err
	}
	if errRecv != nil {
		return c, errRecv
	}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		c.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	c.Data = putVLAN(r.buf[:n], r.oob[:oobn])
	return c, nil
}

// putVLAN copies a frame and puts back the VLAN tag that the kernel took off.
func putVLAN(frame, oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err == nil && len(frame) >= 12 {
		for _, m := range messages {
			if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < int(unsafe.Sizeof(auxdata{})) {
				continue
			}
			aux := (*auxdata)(unsafe.Pointer(&m.Data[0]))
			if aux.status&unix.TP_STATUS_VLAN_VALID != 0 {
				if aux.status&unix.TP_STATUS_VLAN_TPID_VALID == 0 {
					aux.tpid = 0x8100
				}
				out := make([]byte, 0, len(frame)+4)
				out = append(out, frame[:12]...)
				out = binary.BigEndian.AppendUint16(out, aux.tpid)
				out = binary.BigEndian.AppendUint16(out, aux.tci)
				return append(out, frame[12:]...)
			}
		}
	}
	return append([]byte(nil), frame...)
}

// auxdata is the kernel's struct tpacket_auxdata (linux/if_packet.h).
type auxdata struct {
	status, length, snaplen uint32
	mac, net                uint16
	tci, tpid               uint16
}

// Close closes the socket. It is idempotent.
func (r *Raw) Close() error {
	if err := r.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close %s: %w", r.name, err)
	}
	return nil
}
