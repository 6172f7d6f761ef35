package pktio_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"

	"countersign/fallback/pktio"
	"countersign/test/netlab"
)

var errPrivileges error

func TestMain(m *testing.M) {
	errPrivileges = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// wire is a link between a host and a data plane's namespace.
type wire struct {
	lab         *netlab.Lab
	host, fw    *netlab.Node
	hostRaw     *netlab.Raw
	hostIf, fw0 string
}

func newWire(t *testing.T, l netlab.LinkOpts) *wire {
	t.Helper()
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	lab, err := netlab.New()
	must(t, err)
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &wire{lab: lab, hostIf: "host0", fw0: "fw0"}
	w.host, err = lab.Node("host")
	must(t, err)
	w.fw, err = lab.Node("fw")
	must(t, err, lab.Link(w.host, w.hostIf, w.fw, w.fw0, l))
	w.hostRaw, err = w.host.OpenRaw(w.hostIf)
	must(t, err)
	return w
}

func (w *wire) open(t *testing.T, o pktio.Options) []pktio.Port {
	t.Helper()
	ports, err := w.tryOpen(o)
	must(t, err)
	t.Cleanup(func() {
		for _, p := range ports {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return ports
}

func (w *wire) tryOpen(o pktio.Options) (ports []pktio.Port, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	errDo := w.fw.Do(func() error {
		ports, err = pktio.Open("afpacket:"+w.fw0, o)
		return err
	})
	return ports, errDo
}

// watchdog ends a port's Recv when a test hangs.
func watchdog(t *testing.T, ports ...pktio.Port) {
	timer := time.AfterFunc(15*time.Second, func() {
		for _, p := range ports {
			p.Wake()
		}
	})
	t.Cleanup(func() { timer.Stop() })
}

func recv(t *testing.T, p pktio.Port, n int) []*pktio.Frame {
	t.Helper()
	watchdog(t, p)
	frames := pktio.NewFrames(n)
	for got := 0; got < n; {
		k, err := p.Recv(frames[got:])
		if err != nil || k == 0 {
			t.Fatalf("Recv after %d of %d frames = %d, %v", got, n, k, err)
		}
		got += k
	}
	return frames
}

// frame is an experimental Ethernet frame of size bytes to a foreign address,
// with VLAN tags in front of its EtherType.
func frame(size int, vlans ...byte) []byte {
	b := make([]byte, 12, size)
	b[0], b[6] = 2, 2
	for _, v := range vlans {
		b = append(b, 0x81, 0, 0x20, v)
	}
	b = append(b, 0x88, 0xb5)
	for len(b) < size {
		b = append(b, byte(len(b)))
	}
	return b
}

func TestAFPacketBothWays(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{MTU: 9000, NoIPv6: true})
	p := w.open(t, pktio.Options{})[0]
	if p.Name() != "fw0" || p.MTU() != 9000 || p.HardwareAddr().String() != "02:00:00:00:00:02" {
		t.Errorf("port %s, MTU %d, address %s", p.Name(), p.MTU(), p.HardwareAddr())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	start := time.Now()
	sizes := []int{16, 60, 1514, 9014}
	for _, size := range sizes {
		for _, vlans := range [][]byte{nil, {7}} {
			want := frame(size+4*len(vlans), vlans...)
			must(t, w.hostRaw.Send(want))
			got := recv(t, p, 1)[0]
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("received %d bytes, want %d of VLANs %v: %x", got.Len(), len(want), vlans, got.Bytes()[:14])
			}
			if at := time.Unix(0, got.Time); at.Before(start.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
				t.Errorf("received at %v", at)
			}
			if got.Room() != pktio.Headroom {
				t.Errorf("room %d", got.Room())
			}
			if n, err := p.Send([]*pktio.Frame{got}); n != 1 || err != nil {
				t.Fatalf("Send = %d, %v", n, err)
			}
			back, err := w.hostRaw.Next(ctx, nil)
			must(t, err)
			if !bytes.Equal(back.Data, want) {
				t.Errorf("host received %d bytes, want %d of VLANs %v", len(back.Data), len(want), vlans)
			}
		}
	}
	if s := p.Stats(); s.RxPackets != 8 || s.TxPackets != 8 || s.RxBytes != s.TxBytes || s.RxTooLong+s.TxDropped+s.RxRingFull != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestAFPacketManyFramesInOrder(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true})
	p := w.open(t, pktio.Options{RingFrames: 1000})[0]
	const rounds, batch = 20, 150 // goes round the ring
	sent := pktio.NewFrames(batch)
	var host []pktio.Port
	must(t, w.host.Do(func() (err error) {
		host, err = pktio.Open(w.hostIf, pktio.Options{})
		return err
	}))
	defer host[0].Close()
	for r := range rounds {
		for i, f := range sent {
			b := frame(60 + i)
			binary.BigEndian.PutUint32(b[14:], uint32(r*batch+i))
			must(t, f.Set(b))
		}
		if n, err := host[0].Send(sent); n != batch || err != nil {
			t.Fatalf("Send = %d, %v", n, err)
		}
		for i, f := range recv(t, p, batch) {
			if !bytes.Equal(f.Bytes(), sent[i].Bytes()) {
				t.Fatalf("round %d frame %d: %x", r, i, f.Bytes())
			}
		}
	}
	if s := host[0].Stats(); s.RxPackets != 0 {
		t.Errorf("the sender received its own frames: %+v", s)
	}
}

func TestAFPacketRingFull(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true})
	p := w.open(t, pktio.Options{RingFrames: 1})[0]
	const n = 1000 // a block holds fewer
	for range n {
		must(t, w.hostRaw.Send(frame(60)))
	}
	full := p.Stats().RxRingFull
	if full == 0 || full >= n {
		t.Fatalf("%d of %d frames lost", full, n)
	}
	recv(t, p, int(n-full))
}

func TestAFPacketTooLong(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{MTU: 1500, NoIPv6: true})
	p := w.open(t, pktio.Options{})[0]
	must(t, w.host.SetMTU(w.hostIf, 1600), w.fw.SetMTU(w.fw0, 1600)) // behind the port's back
	for _, b := range [][]byte{frame(1515), frame(1519, 7), frame(1514), frame(1518, 7)} {
		must(t, w.hostRaw.Send(b))
	}
	got := recv(t, p, 2)
	if s := p.Stats(); s.RxTooLong != 2 || got[0].Len() != 1514 || got[1].Len() != 1518 {
		t.Errorf("lengths %d and %d, stats %+v", got[0].Len(), got[1].Len(), s)
	}
	must(t, w.fw.SetMTU(w.fw0, 1500))
	long := pktio.NewFrames(3)
	must(t, long[0].Set(frame(60)), long[1].Set(frame(1515)), long[2].Set(frame(60)))
	if n, err := p.Send(long); n != 2 || err != nil || p.Stats().TxDropped != 1 || p.Stats().TxPackets != 2 {
		t.Errorf("Send of one above the MTU = %d, %v, %+v", n, err, p.Stats())
	}
}

// The kernel's own stack at the other end leaves checksums to the hardware and
// sends 64 KB segments.
func TestAFPacketUnfinishedChecksum(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{KeepOffloads: true, NoIPv6: true, AddrsA: []string{"10.0.0.1/24"}})
	if _, err := w.tryOpen(pktio.Options{}); !errors.Is(err, pktio.ErrOffloads) || !strings.Contains(err.Error(), "fw0") ||
		!strings.Contains(err.Error(), "ethtool -K fw0 ") {
		t.Errorf("Open with offloads on: %v", err)
	}
	p := w.open(t, pktio.Options{FixOffloads: true})[0]
	must(t, w.host.AddNeighbour(w.hostIf, "10.0.0.2", net.HardwareAddr{2, 0, 0, 0, 0, 2}))
	conn, err := w.host.DialContext(t.Context(), "udp", "10.0.0.2:53")
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("an odd number of bytes."))
	must(t, err)
	got := recv(t, p, 1)[0].Bytes()
	if s := p.Stats(); s.RxChecksumFinished != 1 {
		t.Errorf("stats %+v", s)
	}
	if sum := transportSum(got); sum != 0xffff {
		t.Errorf("checksum does not add up: %x of %x", sum, got)
	}
}

// transportSum is the ones' complement sum of an IPv4 frame's pseudo-header and
// transport segment, by the definition.
func transportSum(b []byte) uint32 {
	ip := b[14:]
	segment := ip[20:binary.BigEndian.Uint16(ip[2:])]
	sum := uint32(ip[9]) + uint32(len(segment))
	for i, c := range slices.Concat(ip[12:20], segment) {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}

func TestAFPacketFixesOffloads(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{KeepOffloads: true, NoIPv6: true})
	w.open(t, pktio.Options{FixOffloads: true})
	must(t, w.fw.Do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		features, err := tool.Features(w.fw0)
		for _, f := range []string{"tx-tcp-segmentation", "tx-generic-segmentation", "tx-checksum-ip-generic", "rx-gro"} {
			if features[f] {
				t.Errorf("%s is on", f)
			}
		}
		return err
	}))
	w.open(t, pktio.Options{}) // finds nothing to refuse
}

func TestAFPacketLinkFlap(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true})
	p := w.open(t, pktio.Options{})[0]
	m, err := pktio.NewMux(p)
	must(t, err)
	defer m.Close()
	timer := time.AfterFunc(15*time.Second, m.Wake)
	defer timer.Stop()
	one := pktio.NewFrames(1)
	must(t, one[0].Set(frame(60)))

	received := make(chan error)
	frames := pktio.NewFrames(4)
	next := func() {
		n, _, err := m.Recv(frames)
		if n != 1 && err == nil {
			err = errors.New("woken by the watchdog")
		}
		received <- err
	}
	for round := range uint64(3) {
		go next() // waits over the flap
		must(t, w.fw.SetUp(w.fw0, false))
		if n, err := p.Send(one); n != 0 || err != nil || p.Stats().TxLinkDown != round+1 {
			t.Errorf("Send on a link that is down = %d, %v, %+v", n, err, p.Stats())
		}
		for p.Stats().LinkDowns != round+1 {
			time.Sleep(time.Millisecond) // until the receiver has seen it
		}
		must(t, w.fw.SetUp(w.fw0, true), w.hostRaw.Send(frame(60)))
		must(t, <-received)
		if n, err := p.Send(one); n != 1 || err != nil {
			t.Errorf("Send after the flap = %d, %v", n, err)
		}
	}

	go next()
	must(t, w.host.Delete(w.hostIf))
	if err := <-received; !errors.Is(err, pktio.ErrGone) || !strings.Contains(err.Error(), "fw0") {
		t.Errorf("Recv of a removed interface: %v", err)
	}
	if n, err := p.Send(one); n != 0 || !errors.Is(err, pktio.ErrGone) {
		t.Errorf("Send on a removed interface = %d, %v", n, err)
	}
}

func TestAFPacketIsolate(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true, AddrsA: []string{"10.0.0.1/24"}, AddrsB: []string{"10.0.0.2/24"}})
	must(t, w.host.AddNeighbour(w.hostIf, "10.0.0.2", net.HardwareAddr{2, 0, 0, 0, 0, 2}))
	var stack net.PacketConn
	must(t, w.fw.Do(func() (err error) {
		stack, err = net.ListenPacket("udp4", "10.0.0.2:7")
		return err
	}))
	defer stack.Close()
	conn, err := w.host.DialContext(t.Context(), "udp", "10.0.0.2:7")
	must(t, err)
	defer conn.Close()
	reaches := func(within time.Duration) bool {
		_, err := conn.Write([]byte("x"))
		must(t, err, stack.SetReadDeadline(time.Now().Add(within)))
		_, _, err = stack.ReadFrom(make([]byte, 1))
		return err == nil
	}
	if !reaches(15 * time.Second) {
		t.Fatal("the host's stack is out of reach without a port")
	}
	queues := w.open(t, pktio.Options{Isolate: true, Queues: 2})
	if reaches(20 * time.Millisecond) {
		t.Error("the host's stack sees what an isolated port receives")
	}
	must(t, queues[0].Close())
	if reaches(20 * time.Millisecond) {
		t.Error("isolation ended with the first queue")
	}
	over := w.open(t, pktio.Options{Isolate: true}) // takes over a filter that is there
	recv(t, queues[1], 1)
	must(t, queues[1].Close(), over[0].Close())
	if !reaches(15 * time.Second) {
		t.Error("isolation outlived its ports")
	}
}

func TestAFPacketQueues(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true, AddrsA: []string{"10.0.0.1/24"}})
	ports := w.open(t, pktio.Options{Queues: 2, Promiscuous: true})
	if len(ports) != 2 {
		t.Fatalf("%d ports", len(ports))
	}
	must(t, w.host.AddNeighbour(w.hostIf, "10.0.0.2", net.HardwareAddr{2, 0, 0, 0, 0, 9}))
	const flows, each = 64, 3
	for range each {
		for i := range flows {
			must(t, w.host.Do(func() error {
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(sourceOf(i)),
					net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.2:9")))
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("x"))
				return err
			}))
		}
	}
	m, err := pktio.NewMux(ports...)
	must(t, err)
	timer := time.AfterFunc(15*time.Second, m.Wake)
	defer timer.Stop()
	frames := pktio.NewFrames(16)
	queue, count := map[uint16]int{}, [2]int{}
	for got := 0; got < flows*each; {
		n, q, err := m.Recv(frames)
		if err != nil || n == 0 {
			t.Fatalf("Recv after %d frames = %d, %v", got, n, err)
		}
		for _, f := range frames[:n] {
			source := binary.BigEndian.Uint16(f.Bytes()[34:])
			if first, ok := queue[source]; ok && first != q {
				t.Errorf("flow %d on queues %d and %d", source, first, q)
			}
			queue[source] = q
			count[q]++
		}
		got += n
	}
	if count[0] == 0 || count[1] == 0 {
		t.Errorf("frames by queue %v", count)
	}
	out := pktio.NewFrames(1)
	must(t, out[0].Set(frame(60)))
	for _, p := range ports {
		if n, err := p.Send(out); n != 1 || err != nil {
			t.Errorf("Send = %d, %v", n, err)
		}
	}
	m.Wake()
	if n, _, err := m.Recv(frames); n != 0 || err != nil {
		t.Errorf("a queue received what another sent: %d, %v", n, err)
	}
	must(t, m.Close())
}

func sourceOf(flow int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(1000+flow))
}

func TestAFPacketRefuses(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true})
	must(t, w.fw.SetUp(w.fw0, false))
	if _, err := w.tryOpen(pktio.Options{}); !errors.Is(err, pktio.ErrDown) || !strings.Contains(err.Error(), "ip link set dev fw0 up") {
		t.Errorf("Open of an interface that is down: %v", err)
	}
	must(t, w.fw.SetUp(w.fw0, true), w.fw.SetMTU(w.fw0, 9217))
	if _, err := w.tryOpen(pktio.Options{}); !errors.Is(err, pktio.ErrSpec) || !strings.Contains(err.Error(), "fw0: its MTU is 9217") {
		t.Errorf("Open of an MTU of 9217: %v", err)
	}
	w.fw0 = "lo"
	if _, err := w.tryOpen(pktio.Options{FixOffloads: true}); !errors.Is(err, pktio.ErrSpec) {
		t.Errorf("Open of the loopback: %v", err)
	}
	w.fw0 = "fw1"
	if _, err := w.tryOpen(pktio.Options{}); !errors.Is(err, pktio.ErrNoInterface) || !strings.Contains(err.Error(), "port fw1") {
		t.Errorf("Open of no interface: %v", err)
	}
}

func TestAFPacketClosed(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true})
	p := w.open(t, pktio.Options{})[0]
	done := make(chan error)
	go func() {
		_, err := p.Recv(pktio.NewFrames(1))
		done <- err
	}()
	must(t, p.Close())
	if err := <-done; !errors.Is(err, pktio.ErrClosed) {
		t.Errorf("Recv ended by Close: %v", err)
	}
	if _, err := p.Send(pktio.NewFrames(1)); !errors.Is(err, pktio.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	p.Wake()
	_ = p.Stats()
	must(t, p.Close())
}

func TestAFPacketNoAllocations(t *testing.T) {
	w := newWire(t, netlab.LinkOpts{NoIPv6: true})
	p := w.open(t, pktio.Options{})[0]
	m, err := pktio.NewMux(p)
	must(t, err)
	defer m.Close()
	timer := time.AfterFunc(15*time.Second, m.Wake)
	defer timer.Stop()
	var host []pktio.Port
	must(t, w.host.Do(func() (err error) {
		host, err = pktio.Open(w.hostIf, pktio.Options{})
		return err
	}))
	defer host[0].Close()
	sent, got := pktio.NewFrames(32), pktio.NewFrames(32)
	for _, f := range sent {
		must(t, f.Set(frame(60)))
	}
	if n := testing.AllocsPerRun(100, func() {
		_, _ = host[0].Send(sent)
		for k := 0; k < len(sent); {
			n, _, err := m.Recv(got)
			if n == 0 || err != nil {
				t.Fatalf("Recv = %d, %v", n, err)
			}
			k += n
		}
		m.Wake()
		_, _, _ = m.Recv(got) // polls
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}
