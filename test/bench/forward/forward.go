// Package forward measures how many packets a second a forwarder carries between
// two veth interfaces, by the kernel and by any data plane, in namespaces built
// alike in the same run, so that the ratio means something on a busy machine too.
package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/fallback/pktio"
	"countersign/test/netlab"
)

// The forwarder's interfaces, and the addresses of the network: packets go from
// Source to Target, which is in TargetNet behind the sink.
const (
	InIf, OutIf = "in0", "out0"
	MTU         = 1800
	InAddr      = "10.0.1.1/24"
	OutAddr     = "10.0.2.1/24"
	SinkAddr    = "10.0.2.2"
	Target      = "198.18.2.1"
	TargetNet   = "198.18.2.0/24"
	Source      = "198.18.1.1"
)

// nextHop is not the sink's own hardware address, so that the sink drops what it
// has counted at once.
var nextHop = net.HardwareAddr{2, 0xff, 0, 0, 0, 1}

// Forwarder carries frames from InIf to OutIf of the node until the context ends;
// it calls ready when it does. dst and src are the next hop's and OutIf's
// hardware addresses.
type Forwarder func(ctx context.Context, node *netlab.Node, dst, src net.HardwareAddr, ready func()) error

// Result is what Measure has counted.
type Result struct {
	Sent, Received uint64
	Elapsed        time.Duration
}

// PPS is the number of packets received in a second.
func (r Result) PPS() float64 { return float64(r.Received) / r.Elapsed.Seconds() }

// Measure sends UDP packets of size bytes, Ethernet header included and FCS not,
// of flows flows, as fast as one thread can, for the duration, and counts what
// comes out behind the forwarder.
func Measure(ctx context.Context, f Forwarder, size, flows int, d time.Duration) (r Result, err error) {
	lab, err := netlab.New()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	var nodes [3]*netlab.Node
	for i, name := range []string{"source", "forwarder", "sink"} {
		if nodes[i], err = lab.Node(name); err != nil {
			return r, err
		}
	}
	source, fwd, sink := nodes[0], nodes[1], nodes[2]
	if err := errors.Join(
		lab.Link(source, "out0", fwd, InIf, netlab.LinkOpts{MTU: MTU, AddrsB: []string{InAddr}, NoIPv6: true}),
		lab.Link(fwd, OutIf, sink, "in0", netlab.LinkOpts{MTU: MTU, AddrsA: []string{OutAddr}, AddrsB: []string{SinkAddr + "/24"}, NoIPv6: true}),
	); err != nil {
		return r, err
	}
	var macs [2]net.HardwareAddr
	for i, name := range []string{InIf, OutIf} {
		if macs[i], err = fwd.HardwareAddr(name); err != nil {
			return r, err
		}
	}
	if err := errors.Join(fwd.AddRoute(TargetNet, SinkAddr), fwd.AddNeighbour(OutIf, SinkAddr, nextHop)); err != nil {
		return r, err
	}

	var out []pktio.Port
	if err := source.Do(func() error {
		out, err = pktio.Open("out0", pktio.Options{RingFrames: 1})
		return err
	}); err != nil {
		return r, err
	}
	defer out[0].Close()
	frames := packets(size, flows, macs[0])

	run, stop := context.WithCancel(ctx)
	defer stop()
	group, run := errgroup.WithContext(run)
	ready := make(chan struct{})
	group.Go(func() error { return f(run, fwd, nextHop, macs[1], func() { close(ready) }) })
	select {
	case <-ready:
	case <-run.Done():
		return r, group.Wait()
	}
	before, err := sink.LinkStats("in0")
	if err != nil {
		return r, err
	}
	start := time.Now()
	for time.Since(start) < d && run.Err() == nil {
		n, err := out[0].Send(frames)
		if err != nil {
			return r, err
		}
		r.Sent += uint64(n)
	}
	r.Elapsed = time.Since(start)
	after, err := sink.LinkStats("in0")
	r.Received = after.RxPackets - before.RxPackets
	stop()
	return r, errors.Join(err, group.Wait())
}

// packets returns one UDP packet of each flow, often enough to fill a batch.
func packets(size, flows int, dst net.HardwareAddr) []*pktio.Frame {
	frames := pktio.NewFrames(max(64, flows))
	for i, f := range frames {
		b := make([]byte, max(size, 42))
		copy(b, dst)
		copy(b[6:], []byte{2, 0, 0, 0, 0, 99})
		binary.BigEndian.PutUint16(b[12:], 0x0800)
		ip := b[14:]
		ip[0], ip[8], ip[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:], net.ParseIP(Source).To4())
		copy(ip[16:], net.ParseIP(Target).To4())
		var sum uint32
		for j := 0; j < 20; j += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[j:]))
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
		udp := ip[20:]
		binary.BigEndian.PutUint16(udp, uint16(1024+i%flows))
		binary.BigEndian.PutUint16(udp[2:], 9)
		binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
		_ = f.Set(b) // size is checked by the interface's MTU
	}
	return frames
}

// Kernel is the plain forwarding of the Linux kernel.
func Kernel(ctx context.Context, node *netlab.Node, _, _ net.HardwareAddr, ready func()) error {
	if err := node.Forward(); err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return nil
}

// Packets is one worker that does nothing but packet I/O and the hardware
// addresses: the most that a data plane on it can reach.
func Packets(ctx context.Context, node *netlab.Node, dst, src net.HardwareAddr, ready func()) error {
	var in, out []pktio.Port
	err := node.Do(func() (err error) {
		o := pktio.Options{Isolate: true}
		if in, err = pktio.Open(InIf, o); err == nil {
			out, err = pktio.Open(OutIf, o)
		}
		return err
	})
	if err != nil {
		return errors.Join(err, closePorts(in))
	}
	mux, err := pktio.NewMux(in[0], out[0])
	if err != nil {
		return errors.Join(err, closePorts(in), closePorts(out))
	}
	defer context.AfterFunc(ctx, func() { _ = mux.Close() })()
	defer mux.Close()
	ready()
	frames := pktio.NewFrames(64)
	for {
		n, port, err := mux.Recv(frames)
		switch {
		case errors.Is(err, pktio.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("forward: %w", err)
		case port != 0:
			continue
		}
		for _, f := range frames[:n] {
			b := f.Bytes()
			copy(b, dst)
			copy(b[6:], src)
		}
		if _, err := out[0].Send(frames[:n]); err != nil && !errors.Is(err, pktio.ErrClosed) {
			return fmt.Errorf("forward: %w", err)
		}
	}
}

func closePorts(ports []pktio.Port) error {
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
