// Package sessions measures how many sessions a second a member admits, and how
// long the first packet of one takes: through the data plane, as packet-in to
// the controller, its decision, the entry written, the packet handed back, and
// out again with its tag.
package sessions

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"countersign/fallback/pktio"
	"countersign/packet"
	"countersign/tag"
	"countersign/test/bench/process"
	"countersign/test/netlab"
)

const (
	mtu = 1800
	// patience is how long a packet may take before it counts as lost.
	patience = 2 * time.Second
	// maxSessions bounds the sessions of one Bench.
	maxSessions = 4 << 20
)

var (
	source  = [4]byte{10, 64, 0, 0} // of session 0; the lower half counts
	target  = [4]byte{198, 18, 2, 1}
	viaMAC  = net.HardwareAddr{2, 0xff, 0, 0, 0, 1}
	fromMAC = net.HardwareAddr{2, 0, 0, 0, 0, 99}
)

// firstPort is the source port of the first 65,536 sessions.
const firstPort = 1024

// Bench is a member between a sender and a receiver of packets; take it from
// New, end it with Close. It is for one goroutine.
type Bench struct {
	lab    *netlab.Lab
	member *process.Member
	out    pktio.Port // to the member
	in     pktio.Port // from it
	frames []*pktio.Frame
	got    []*pktio.Frame
	sent   []int64 // by session: when, in Unix nanoseconds; 0: has arrived, or was given up
	first  []byte  // packet of session 0
}

// New builds the network and starts a member of that target and suite. Errors
// are those of process.Start.
func New(ctx context.Context, kind string, suite tag.Suite) (_ *Bench, err error) {
	b := &Bench{frames: pktio.NewFrames(64), got: pktio.NewFrames(64)}
	if b.lab, err = netlab.New(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	var nodes [3]*netlab.Node
	for i, name := range []string{"client", "member", "server"} {
		if nodes[i], err = b.lab.Node(name); err != nil {
			return nil, err
		}
	}
	o := netlab.LinkOpts{MTU: mtu, NoIPv6: true}
	if err := errors.Join(
		b.lab.Link(nodes[0], "out0", nodes[1], "in0", o),
		b.lab.Link(nodes[1], "out0", nodes[2], "in0", o),
	); err != nil {
		return nil, err
	}
	if b.out, err = open(nodes[0], "out0", pktio.Options{RingFrames: 1}); err != nil {
		return nil, err
	}
	if b.in, err = open(nodes[2], "in0", pktio.Options{Isolate: true}); err != nil {
		return nil, err
	}
	mac, err := nodes[1].HardwareAddr("in0")
	if err != nil {
		return nil, err
	}
	b.first = firstPacket(mac)
	b.member, err = process.Start(ctx, nodes[1], process.Options{
		Target: kind, Suite: suite, Egress: "trunk", InIf: "in0", OutIf: "out0",
		InAddr: "10.0.1.1/24", OutAddr: "10.0.2.1/24", Dst: "198.18.2.0/24", Via: "10.0.2.2", ViaMAC: viaMAC,
	})
	return b, err
}

func open(node *netlab.Node, name string, o pktio.Options) (pktio.Port, error) {
	var ports []pktio.Port
	err := node.Do(func() (err error) {
		ports, err = pktio.Open(name, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ports[0], nil
}

// Close ends the member and takes the network down.
func (b *Bench) Close() error {
	var errs []error
	if b.member != nil {
		errs = append(errs, b.member.Close())
	}
	for _, p := range []pktio.Port{b.out, b.in} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(append(errs, b.lab.Close())...)
}

// Result is what a measurement has counted.
type Result struct {
	// Offered is the number of sessions; of Lost no packet came out.
	Offered, Lost int
	// Rate is the number of sessions a second whose first packet came out with
	// a tag.
	Rate float64
	// P50 and P99 are quantiles of the time from sending that packet to its
	// arrival.
	P50, P99 time.Duration
}

// Saturate opens sessions for the duration as fast as the member admits them,
// with window of them under way.
func (b *Bench) Saturate(ctx context.Context, window int, d time.Duration) (Result, error) {
	return b.measure(ctx, d, func(_ time.Duration, _, underWay int) int { return window - underWay })
}

// Pace opens rate sessions a second for the duration, however they fare.
func (b *Bench) Pace(ctx context.Context, rate int, d time.Duration) (Result, error) {
	return b.measure(ctx, d, func(elapsed time.Duration, offered, _ int) int {
		return int(elapsed.Seconds()*float64(rate)) - offered
	})
}

// measure opens as many sessions as due says, of which offered were opened since
// the beginning and underWay are not through.
func (b *Bench) measure(ctx context.Context, d time.Duration, due func(elapsed time.Duration, offered, underWay int) int) (r Result, err error) {
	ticks, stop := context.WithCancel(ctx)
	defer stop()
	go wake(ticks, b.in)

	first, oldest := len(b.sent), len(b.sent)
	underWay := 0
	var took []time.Duration
	inTime := 0
	start := time.Now()
	for {
		now := time.Now()
		elapsed := now.Sub(start)
		if elapsed < d {
			n := min(due(elapsed, len(b.sent)-first, underWay), maxSessions-len(b.sent))
			if err := b.open(n); err != nil {
				return r, err
			}
			underWay += max(n, 0)
		} else if underWay == 0 {
			break
		}
		n, err := b.in.Recv(b.got)
		if err != nil {
			return r, err
		}
		if err := ctx.Err(); err != nil {
			return r, err
		}
		for _, f := range b.got[:n] {
			i, ok := sessionOf(f.Bytes())
			if !ok || i < first || i >= len(b.sent) || b.sent[i] == 0 {
				continue
			}
			took = append(took, time.Duration(f.Time-b.sent[i]))
			b.sent[i] = 0
			underWay--
			if time.Since(start) < d {
				inTime++
			}
		}
		for limit := time.Now().Add(-patience).UnixNano(); oldest < len(b.sent) && b.sent[oldest] < limit; oldest++ {
			if b.sent[oldest] != 0 {
				b.sent[oldest] = 0
				underWay--
				r.Lost++
			}
		}
	}
	r.Offered = len(b.sent) - first
	r.Rate = float64(inTime) / d.Seconds()
	if len(took) == 0 {
		return r, fmt.Errorf("of %d sessions none came through: %s", r.Offered, b.member.Logs())
	}
	slices.Sort(took)
	r.P50, r.P99 = took[len(took)/2], took[len(took)*99/100]
	return r, nil
}

// wake ends waits for packets, so that the time is looked at.
func wake(ctx context.Context, p pktio.Port) {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.Wake()
		}
	}
}

// open sends the first packets of the next n sessions.
func (b *Bench) open(n int) error {
	for n > 0 {
		k := min(n, len(b.frames))
		for i, f := range b.frames[:k] {
			if err := f.Set(b.first); err != nil {
				return err
			}
			number(f.Bytes(), len(b.sent)+i)
		}
		now := time.Now().UnixNano()
		for range k {
			b.sent = append(b.sent, now)
		}
		if _, err := b.out.Send(b.frames[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// firstPacket is an Ethernet frame of 64 bytes, FCS included, with UDP.
func firstPacket(dst net.HardwareAddr) []byte {
	f := make([]byte, 60)
	copy(f, dst)
	copy(f[6:], fromMAC)
	f[12] = 8
	ip := f[14:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, byte(len(ip)), 64, 17
	copy(ip[12:], source[:])
	copy(ip[16:], target[:])
	binary.BigEndian.PutUint16(ip[22:], 9)
	binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
	return f
}

// number makes the frame one of session i: the lower half of the source address
// and the source port are its.
func number(f []byte, i int) {
	ip := f[14:]
	binary.BigEndian.PutUint16(ip[14:], uint16(i))
	binary.BigEndian.PutUint16(ip[20:], firstPort+uint16(i>>16))
	ip[10], ip[11] = 0, 0
	var sum uint32
	for j := 0; j < 20; j += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[j:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
}

// sessionOf returns the number of the session that a tagged frame belongs to.
func sessionOf(f []byte) (int, bool) {
	const tagAt = 14 + 20
	if len(f) < tagAt+2 || f[12] != 8 || f[13] != 0 || f[23] != packet.DefaultCarrier.Protocol {
		return 0, false
	}
	udp := tagAt + 4*int(f[tagAt+1])
	if len(f) < udp+8 {
		return 0, false
	}
	port := binary.BigEndian.Uint16(f[udp:])
	return int(port-firstPort)<<16 | int(binary.BigEndian.Uint16(f[28:])), port >= firstPort
}
