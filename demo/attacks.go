package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	pb "countersign/directory/proto"
	"countersign/tag"
	"countersign/test/netlab"
)

// each is how many packets an attack sends where their number is free.
const each = 100

// watch counts the injected packets that arrive at the server.
type watch struct {
	raw  *netlab.Raw
	stop context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	seen  map[uint16]int
	at    time.Time
	total int
	news  chan struct{} // something has come
}

func (n *network) watch() (*watch, error) {
	raw, err := n.nodes["server"].OpenRaw("eth0")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	w := &watch{raw: raw, stop: stop, seen: map[uint16]int{}, news: make(chan struct{}, 1)}
	w.done.Go(func() {
		for {
			c, err := raw.Next(ctx, nil)
			if err != nil {
				return
			}
			if number, ok := isMarked(c.Data); ok && !c.Outgoing {
				w.note(number)
			}
		}
	})
	return w, nil
}

func (w *watch) note(number uint16) {
	w.mu.Lock()
	w.seen[number]++
	w.total++
	w.at = time.Now()
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *watch) close() {
	w.stop()
	w.done.Wait()
	w.raw.Close()
}

// lastSeen is when a packet came last, the zero time for never.
func (w *watch) lastSeen() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

// numbers are the highest number that has come, and how many have.
func (w *watch) numbers() (highest, count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for number := range w.seen {
		highest = max(highest, int(number))
	}
	return highest, len(w.seen)
}

// arrived is how many packets have come.
func (w *watch) arrived() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

// await waits until total packets have come.
func (w *watch) await(ctx context.Context, total int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for w.arrived() < total {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d packets with a valid tag came through", w.arrived(), total)
		case <-w.news:
		}
	}
	return nil
}

// capture makes a short download and returns a packet of its requests as c1 has
// tagged it, without content.
func (n *network) capture(ctx context.Context) (*sample, error) {
	raw, err := n.nodes["t"].OpenRaw("c1")
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := n.nodes["client"].Download(ctx, webAddr, netlab.Transfer{Size: 64 << 10, Seed: 4}); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	var s *sample
	_, err = raw.Next(ctx, func(c netlab.Captured) bool {
		if c.Outgoing {
			return false
		}
		s, err = newSample(c.Data)
		return err == nil && s.view.TCPFlags == 0x10 && s.view.Tag.Suite == n.suite
	})
	if err != nil {
		return nil, fmt.Errorf("capture: no tagged packet: %w", err)
	}
	return s, nil
}

// attack is packets that must all be dropped at one place.
type attack struct {
	name   string
	node   string // where they are injected, and the interface
	port   string
	at     string // who drops them
	frames [][]byte
	want   map[string]int64 // by reason
}

func (a *attack) add(frame []byte, reason string) {
	if a.want == nil {
		a.want = map[string]int64{}
	}
	a.frames = append(a.frames, frame)
	a.want[reason]++
}

// attacks shows what becomes of packets that nobody has admitted.
func (n *network) attacks(ctx context.Context) []Row {
	const step = "c attacks"
	first, err := n.capture(ctx)
	if err != nil {
		return row(step, err)
	}
	second, err := n.capture(ctx)
	if err != nil {
		return row(step, err)
	}
	w, err := n.watch()
	if err != nil {
		return row(step, err)
	}
	defer w.close()
	list, err := n.prepare(ctx, first, second)
	if err != nil {
		return row(step, err)
	}
	var rows []Row
	for i := range list {
		rows = append(rows, n.carryOut(ctx, &list[i], w, first)...)
	}
	// What was valid until now is stale when its key is retired.
	stale := attack{name: "c6 stale tag", node: attacker, port: "eth0", at: "t"}
	for i := range each {
		stale.add(first.replay(uint16(i)), "tag_revoked")
	}
	if err := n.retire(ctx, first.id()); err != nil {
		return append(rows, row(stale.name, err)...)
	}
	fresh, err := n.capture(ctx)
	if err != nil {
		return append(rows, row(stale.name, err)...)
	}
	return append(rows, n.carryOut(ctx, &stale, w, fresh)...)
}

// prepare makes the attacks that need no change of keys.
func (n *network) prepare(ctx context.Context, first, second *sample) ([]attack, error) {
	keys, err := n.keys(ctx)
	if err != nil {
		return nil, err
	}
	known := func(id tag.KeyID) (pb.KeyState, bool) {
		k, ok := keys[id]
		return k.state, ok
	}
	trunk := func(name string) attack { return attack{name: name, node: attacker, port: "eth0", at: "t"} }
	forged, flipped, crossed := trunk("c1 forged tag"), trunk("c2 bit flipped"), trunk("c3 tag of another session")
	untagged := trunk("c5 untagged on a trunk")
	edge := attack{name: "c4 tag on an edge port", node: "client", port: "eth0", at: "c1"}
	mac, err := n.nodes["c1"].HardwareAddr("lan")
	if err != nil {
		return nil, err
	}
	plain, err := first.untagged()
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(1, uint64(n.suite)))
	for i := range each {
		forged.add(first.forged(random), "tag_forged")
		crossed.add(first.withTagOf(second), "tag_forged")
		untagged.add(plain, "untagged_on_trunk")
		f := first.replay(uint16(i))
		copy(f, mac)
		edge.add(f, "tag_on_edge")
	}
	for _, bit := range flips(&first.view.Tag) {
		flipped.add(first.flipped(bit), flipReason(&first.view.Tag, bit, known))
	}
	return []attack{forged, flipped, crossed, edge, untagged}, nil
}

// carryOut injects an attack's packets and judges what was counted. A packet
// with a valid tag follows them the same way: once that has arrived, none of
// them will.
func (n *network) carryOut(ctx context.Context, a *attack, w *watch, valid *sample) []Row {
	before, err := n.scrape(ctx, a.at)
	if err != nil {
		return row(a.name, err)
	}
	raw, err := n.nodes[a.node].OpenRaw(a.port)
	if err != nil {
		return row(a.name, err)
	}
	defer raw.Close()
	trunk, err := n.nodes[attacker].OpenRaw("eth0")
	if err != nil {
		return row(a.name, err)
	}
	defer trunk.Close()
	came := w.arrived()
	t := time.NewTicker(n.pace())
	defer t.Stop()
	for _, f := range a.frames {
		if err := raw.Send(f); err != nil {
			return row(a.name, err)
		}
		select {
		case <-ctx.Done():
			return row(a.name, ctx.Err())
		case <-t.C:
		}
	}
	var drops map[string]int64
	err = n.until(ctx, 5*time.Second, func(ctx context.Context) error {
		after, err := n.scrape(ctx, a.at)
		if err != nil {
			return err
		}
		drops = after.minus(before).drop
		return mismatch(a.want, drops)
	})
	if control := trunk.Send(valid.replay(0)); control != nil {
		return row(a.name, control)
	}
	err = errors.Join(err, w.await(ctx, came+1))
	through := w.arrived() - came - 1
	if through > 0 {
		err = errors.Join(err, fmt.Errorf("%d packets came through", through))
	}
	figures := []Figure{{"injected", float64(len(a.frames)), ""}}
	for _, reason := range tagReasons {
		if v := drops[reason]; v > 0 {
			figures = append(figures, Figure{a.at + ": " + reason, float64(v), ""})
		}
	}
	return row(a.name, err, append(figures, Figure{"arrived", float64(max(through, 0)), ""})...)
}

// retire has c1 change its key, and waits until the data planes refuse the old
// one.
func (n *network) retire(ctx context.Context, id tag.KeyID) error {
	if err := n.until(ctx, 10*time.Second, func(ctx context.Context) error {
		_, err := n.operator.Rotate(ctx, &pb.RotateRequest{Member: "c1", Suite: pb.Suite(n.suite)})
		return err
	}); err != nil {
		return fmt.Errorf("rotate: %w", err)
	}
	return n.until(ctx, 20*time.Second, func(ctx context.Context) error {
		keys, err := n.keys(ctx)
		if err != nil {
			return err
		}
		if s := keys[id].state; s != pb.KeyState_KEY_STATE_RETIRED {
			return fmt.Errorf("key %v of c1 is %v", id, s)
		}
		st, err := n.operator.Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return err
		}
		return n.acknowledged(ctx, []string{"t"}, st.Version)
	})
}
