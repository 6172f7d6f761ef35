package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	pb "countersign/directory/proto"
	"countersign/tag"
	"countersign/test/netlab"
)

// row makes a row that passes where err is nil.
func row(step string, err error, figures ...Figure) []Row {
	r := Row{Step: step, Pass: err == nil, Figures: figures}
	if err != nil {
		r.Why = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return []Row{r}
}

// plain shows that connection state alone does not do: the reply comes by a
// firewall that has not seen the request.
func (n *network) plain(ctx context.Context) []Row {
	const step = "a plain state, no tags"
	if err := n.control(ctx, false); err != nil {
		return setUpFailed(err)
	}
	before, err := n.scrapeAll(ctx)
	if err != nil {
		return row(step, err)
	}
	attempt, cancel := context.WithTimeout(ctx, 3*time.Second)
	report, fail := n.nodes["client"].Download(attempt, webAddr, netlab.Transfer{Size: n.o.Size, Seed: 1})
	cancel()
	after, err := n.scrapeAll(ctx)
	if err != nil {
		return row(step, err)
	}
	s1, s2 := after["s1"].minus(before["s1"]), after["s2"].minus(before["s2"])
	switch {
	case fail == nil:
		err = errors.New("the download came through without tags")
	case s1.outcome["forwarded_plain"] == 0:
		err = errors.New("no request reached the server")
	case s2.drop["policy_default"] == 0:
		err = errors.New("s2 has dropped no reply")
	case report.Bytes != 0:
		err = fmt.Errorf("%d bytes came through without tags", report.Bytes)
	}
	return row(step, err,
		Figure{"downloaded", float64(report.Bytes), "B"},
		Figure{"requests past s1", float64(s1.outcome["forwarded_plain"]), ""},
		Figure{"replies dropped at s2 (policy_default)", float64(s2.drop["policy_default"]), ""})
}

// limit bounds a download.
const limit = 60 * time.Second

// tagged shows the download with tags, and what each member did to it.
func (n *network) tagged(ctx context.Context) []Row {
	const step = "b with tags"
	before, err := n.scrapeAll(ctx)
	if err != nil {
		return row(step, err)
	}
	sent, err := n.retransmits("server")
	if err != nil {
		return row(step, err)
	}
	attempt, cancel := context.WithTimeout(ctx, limit)
	report, fail := n.nodes["client"].Download(attempt, webAddr, netlab.Transfer{Size: n.o.Size, Seed: 2})
	cancel()
	figures := []Figure{
		{"downloaded", float64(report.Bytes), "B"},
		{"on average", float64(report.Bytes) / report.Elapsed.Seconds(), "B/s"},
	}
	again, err := n.retransmits("server")
	if err != nil {
		return row(step, err)
	}
	figures = append(figures, Figure{"retransmitted", float64(again - sent), ""})
	after, err := n.scrapeAll(ctx)
	if err != nil {
		return row(step, err)
	}
	verified := "verified_" + n.suite.String()
	did := map[string]map[string]int64{}
	for _, name := range names {
		did[name] = after[name].minus(before[name]).outcome
		for _, what := range []string{"tagged", verified, "retagged", "stripped"} {
			if v := did[name][what]; v > 0 {
				figures = append(figures, Figure{name + ": " + strings.TrimSuffix(what, "_"+n.suite.String()), float64(v), ""})
			}
		}
	}
	err = fail
	must := func(name, what string) {
		if err == nil && did[name][what] == 0 {
			err = fmt.Errorf("%s has %s nothing", name, what)
		}
	}
	never := func(name, what string) {
		if err == nil && did[name][what] != 0 {
			err = fmt.Errorf("%s has %s %d packets that should take the other way", name, what, did[name][what])
		}
	}
	must("c1", "tagged")
	never("c1", "stripped")
	must("t", verified)
	must("t", "retagged")
	must("s1", "stripped")
	never("s1", "tagged")
	must("s2", "tagged")
	never("s2", "stripped")
	must("c2", "stripped")
	never("c2", "tagged")
	return row(step, err, figures...)
}

// pace is how far apart injected packets are: bmv2 drops bursts before it counts
// them.
func (n *network) pace() time.Duration {
	if n.o.Target == BMv2 {
		return 4 * time.Millisecond
	}
	return time.Millisecond
}

// rotation shows that no packet is lost to a change of keys.
func (n *network) rotation(ctx context.Context) []Row {
	const step = "d keys rotated every second"
	const lasts = 6 // seconds
	before, err := n.scrapeAll(ctx)
	if err != nil {
		return row(step, err)
	}
	sent, err := n.retransmits("server")
	if err != nil {
		return row(step, err)
	}
	seen := epochs{}
	if err := seen.note(ctx, n); err != nil {
		return row(step, err)
	}
	turning, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var late int
	wg.Go(func() { late = n.turn(turning, seen) })
	attempt, cancel := context.WithTimeout(ctx, limit)
	report, fail := n.nodes["client"].Download(attempt, webAddr, netlab.Transfer{Size: n.o.Size, Seed: 3, Rate: n.o.Size / lasts})
	cancel()
	stop()
	wg.Wait()
	again, err := n.retransmits("server")
	if err != nil {
		return row(step, err)
	}
	if err := seen.note(ctx, n); err != nil {
		return row(step, err)
	}
	after, err := n.scrapeAll(ctx)
	if err != nil {
		return row(step, err)
	}
	lost, least := map[string]int64{}, lasts
	for _, name := range names {
		for reason, v := range after[name].minus(before[name]).drop {
			lost[reason] += v
		}
		least = min(least, len(seen[name])-1)
	}
	figures := []Figure{
		{"downloaded", float64(report.Bytes), "B"},
		{"long", report.Elapsed.Seconds(), "s"},
		{"keys switched", float64(seen.switches()), ""},
		{"at least by each member", float64(least), ""},
		{"switches late", float64(late), ""},
		{"retransmitted", float64(again - sent), ""},
	}
	err = fail
	var dropped int64
	for _, reason := range append([]string{"no_signing_key", "punt_limited", "punt_loop", "punt_queue_full"}, tagReasons...) {
		if v := lost[reason]; v != 0 {
			dropped += v
			err = errors.Join(err, fmt.Errorf("%d dropped as %s", v, reason))
		}
	}
	if least < 2 {
		err = errors.Join(err, fmt.Errorf("a member has switched its key only %d times", least))
	}
	return row(step, err, append(figures, Figure{"dropped", float64(dropped), ""})...)
}

// epochs are the keys that each member has been seen to sign with.
type epochs map[string]map[tag.KeyID]bool

func (e epochs) note(ctx context.Context, n *network) error {
	keys, err := n.keys(ctx)
	if err != nil {
		return err
	}
	for name, id := range keys.current() {
		if e[name] == nil {
			e[name] = map[tag.KeyID]bool{}
		}
		e[name][id] = true
	}
	return nil
}

func (e epochs) switches() (sum int) {
	for _, ids := range e {
		sum += len(ids) - 1
	}
	return sum
}

// turn has every member switch to its next key once a second until ctx ends. It
// returns how many times a member's next key was not there yet.
func (n *network) turn(ctx context.Context, seen epochs) (late int) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		for _, name := range names {
			r, err := n.operator.Rotate(ctx, &pb.RotateRequest{Member: name, Suite: pb.Suite(n.suite)})
			if ctx.Err() == nil && (err != nil || !r.Done) {
				late++
			}
		}
		_ = seen.note(ctx, n) // the next one sees it
		select {
		case <-ctx.Done():
			return late
		case <-t.C:
		}
	}
}

// revocation shows how soon a revoked member's tags are refused: packets with
// its tag are sent on until none has come through for a while.
func (n *network) revocation(ctx context.Context) []Row {
	const step = "e member revoked"
	s, err := n.capture(ctx)
	if err != nil {
		return row(step, err)
	}
	r, err := n.revoke(ctx, s)
	if err != nil {
		return row(step, err, r.figures()...)
	}
	if r.last >= time.Second {
		err = errors.New("it took more than a second")
	}
	return row(step, err, r.figures()...)
}

// revoked is what came of a revocation; times are from the operator's call.
type revoked struct {
	call, last, first time.Duration // answer; last accepted and first refused tag was sent
	accepted, refused int64
	behind            int64 // lost for other reasons, at t or s1
}

func (r revoked) figures() []Figure {
	return []Figure{
		{"from the call to the last tag accepted", ms(r.last), "ms"},
		{"to the first tag refused", ms(r.first), "ms"},
		{"to the directory's answer", ms(r.call), "ms"},
		{"accepted before and after the call", float64(r.accepted), ""},
		{"refused at t (tag_revoked)", float64(r.refused), ""},
		{"lost in the switch of keys", float64(r.behind), ""},
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func (n *network) revoke(ctx context.Context, s *sample) (r revoked, err error) {
	const (
		ahead = 200 * time.Millisecond // of the call
		quiet = 500 * time.Millisecond // without one that came through
		most  = 20 * time.Second
	)
	in, err := n.nodes[attacker].OpenRaw("eth0")
	if err != nil {
		return r, err
	}
	defer in.Close()
	w, err := n.watch()
	if err != nil {
		return r, err
	}
	defer w.close()
	watched := [2]string{"t", "s1"}
	var before [2]counts
	for i, name := range watched {
		if before[i], err = n.scrape(ctx, name); err != nil {
			return r, err
		}
	}
	type answer struct {
		began, ended time.Time
		err          error
	}
	answers := make(chan answer, 1)
	var called *answer
	var sent []time.Time
	began := time.Now()
	ask := time.AfterFunc(ahead, func() {
		a := answer{began: time.Now()}
		_, a.err = n.operator.Revoke(ctx, &pb.MemberRequest{Name: "c1"})
		a.ended = time.Now()
		answers <- a
	})
	defer ask.Stop()
	t := time.NewTicker(n.pace())
	defer t.Stop()
	for len(sent) < 1<<16 {
		if called == nil {
			select {
			case a := <-answers:
				called = &a
			default:
			}
		}
		if called != nil && (called.err != nil || time.Since(cmp.Or(w.lastSeen(), called.ended)) > quiet) || time.Since(began) > most {
			break
		}
		if err := in.Send(s.replay(uint16(len(sent)))); err != nil {
			return r, err
		}
		sent = append(sent, time.Now())
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-t.C:
		}
	}
	switch {
	case called == nil:
		return r, errors.New("the directory has not answered")
	case called.err != nil:
		return r, called.err
	}
	last, accepted := w.numbers()
	if accepted == 0 {
		return r, errors.New("no tag was accepted before the call")
	}
	r.accepted, r.call = int64(accepted), called.ended.Sub(called.began)
	r.last = sent[last].Sub(called.began)
	if last+1 == len(sent) {
		return r, fmt.Errorf("tags were still accepted after %v", most)
	}
	r.first = sent[last+1].Sub(called.began)
	// Beside what t refuses, packets in flight may be lost behind it while it and
	// s1 change the keys that c1 has held.
	lost := int64(len(sent) - accepted)
	err = n.until(ctx, 3*time.Second, func(ctx context.Context) error {
		var drops [2]map[string]int64
		var all int64
		for i, name := range watched {
			after, err := n.scrape(ctx, name)
			if err != nil {
				return err
			}
			drops[i] = after.minus(before[i]).drop
			for _, v := range drops[i] {
				all += v
			}
		}
		r.refused = drops[0]["tag_revoked"]
		r.behind = all - r.refused
		if all != lost || r.refused == 0 {
			return fmt.Errorf("%d tags did not come through, but t has refused %d and %d more were dropped", lost, r.refused, r.behind)
		}
		return nil
	})
	return r, err
}
