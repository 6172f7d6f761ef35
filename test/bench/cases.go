package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"countersign/tag"
	"countersign/test/bench/bmv2"
	"countersign/test/bench/figure"
	"countersign/test/bench/forward"
	"countersign/test/bench/gobench"
	"countersign/test/bench/process"
	"countersign/test/bench/sessions"
	"countersign/test/netlab"
)

// env is what a case may depend on.
type env struct {
	quick         bool
	errPrivileges error
}

// pick returns the whole run's value or the quick run's.
func pick[T any](e env, whole, quick T) T {
	if e.quick {
		return quick
	}
	return whole
}

// benchCase measures one thing. Figures that come with an error count.
type benchCase struct {
	name string
	run  func(context.Context, env) ([]figure.Figure, error)
}

var cases = []benchCase{
	{"engine", engine},
	{"sessions/fallback/siphash", admit(process.Fallback, tag.Siphash, 512, figure.AtLeast(10_000))},
	{"sessions/fallback/ed25519", admit(process.Fallback, tag.Ed25519, 512, nil)},
	{"sessions/fallback/rsa2048", admit(process.Fallback, tag.RSA2048, 128, nil)},
	{"sessions/bmv2/writes", bareWrites},
	{"sessions/bmv2/siphash", admit(process.BMv2, tag.Siphash, 64, figure.AtLeast(5_000))},
	{"forward/64", endToEnd(64, figure.AtLeast(0.3))},
	{"forward/1400", endToEnd(1400, nil)},
	{"retag/bmv2", retag},
	{"siblings", siblings},
}

// engine takes the data plane's own benchmarks: one core, memory only. Of
// several runs the best counts, because other load only ever adds time.
func engine(ctx context.Context, e env) ([]figure.Figure, error) {
	const pkg = "countersign/fallback/engine"
	r := gobench.Results{}
	for _, o := range []gobench.Options{
		{Pattern: "^Benchmark(VerifyRetag|Strip|PolicyDeny)$", Time: "200000x", Count: pick(e, 20, 5)},
		{Pattern: "^BenchmarkTagSession$/^1000$", Time: "200000x", Count: pick(e, 20, 5)},
		{Pattern: "^BenchmarkTagSession$/^1000000$", Time: "1000000x", Count: pick(e, 7, 2)},
	} {
		o.Package, o.CPUs = pkg, 1
		part, err := gobench.Run(ctx, o)
		if err != nil {
			return nil, err
		}
		maps.Copy(r, part)
	}
	const ns, few, many = "ns/packet", "TagSession/1000", "TagSession/1000000"
	var out []figure.Figure
	var errs []error
	for _, c := range []struct {
		what, bench string
		limit       float64
	}{
		{"suite 1 verified and tagged anew", "VerifyRetag", 250},
		{"packet of a session tagged, 1,000 sessions", few, 200},
		{"tag verified and stripped", "Strip", 200},
		{"denied by a policy of 10 rules", "PolicyDeny/10", 150},
		{"denied by a policy of 1,000 rules", "PolicyDeny/1000", 0},
	} {
		f := figure.Figure{Name: "engine: " + c.what, Value: figure.Quantity{Unit: ns}}
		if c.limit > 0 {
			f.Target = figure.AtMost(c.limit)
		}
		v, err := r.Min(c.bench, ns)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f.Value.Value = v
		out = append(out, f)
	}
	at1k, err1 := r.Min(few, ns)
	at1M, err2 := r.Min(many, ns)
	size, err3 := r.Median(many, "B/session")
	if err := errors.Join(err1, err2, err3); err != nil {
		return out, errors.Join(append(errs, err)...)
	}
	allocs := 0.0
	for name := range r {
		n, err := r.Max(name, "allocs/op")
		allocs, errs = max(allocs, n), append(errs, err)
	}
	return append(out,
		figure.Figure{Name: "engine: packet of a session tagged, 1,000,000 sessions", Value: figure.Quantity{Value: at1M, Unit: ns},
			Beside: &figure.Quantity{Name: "1,000 sessions", Value: at1k, Unit: ns}, RatioTarget: figure.AtMost(1.6)},
		figure.Figure{Name: "engine: memory of a session, 1,000,000 sessions", Value: figure.Quantity{Value: size, Unit: "bytes"}, Target: figure.AtMost(200)},
		figure.Figure{Name: "engine: allocations in all of these", Value: figure.Quantity{Value: allocs, Unit: "a packet"}, Target: figure.AtMost(0)},
	), errors.Join(errs...)
}

// calm is the share of the highest rate at which latency is measured, so that
// it is not the time spent behind a window of others.
const calm = 0.1

// admit measures new sessions through P4Runtime by real processes: the highest
// rate at which no more than one session in a thousand is lost, then the latency.
func admit(target string, suite tag.Suite, window int, want *figure.Limit) func(context.Context, env) ([]figure.Figure, error) {
	return func(ctx context.Context, e env) (figures []figure.Figure, err error) {
		if e.errPrivileges != nil {
			return nil, e.errPrivileges
		}
		b, err := sessions.New(ctx, target, suite)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, b.Close()) }()
		d := pick(e, 3*time.Second, 500*time.Millisecond)
		if _, err := b.Saturate(ctx, window, d/3); err != nil { // the first ones warm up
			return nil, err
		}
		rate := 0.0
		for range pick(e, 4, 1) {
			r, err := b.Saturate(ctx, window, d)
			if err != nil {
				return nil, err
			}
			if most := r.Offered / 1000; r.Lost > most {
				return nil, fmt.Errorf("%d of %d sessions were lost, at most %d may be", r.Lost, r.Offered, most)
			}
			rate = max(rate, r.Rate)
		}
		paced, err := b.Pace(ctx, int(calm*rate), d)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("new sessions: %s, suite %d", target, suite)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		return []figure.Figure{
			{Name: name, Value: figure.Quantity{Value: rate, Unit: "sessions/s"}, Target: want},
			{Name: fmt.Sprintf("%s, punt to forwarded at %.0f/s", name, calm*rate), Value: figure.Quantity{Name: "p50", Value: ms(paced.P50), Unit: "ms"},
				More: []figure.Quantity{{Name: "p99", Value: ms(paced.P99), Unit: "ms"}, {Name: "lost", Value: float64(paced.Lost)}}},
		}, nil
	}
}

// bareWrites measures bmv2's P4Runtime server alone.
func bareWrites(ctx context.Context, e env) (figures []figure.Figure, err error) {
	if e.errPrivileges != nil {
		return nil, e.errPrivileges
	}
	rates, err := bmv2.Writes(ctx, []int{1, 100, 500}, pick(e, time.Second, 200*time.Millisecond))
	for _, r := range rates {
		figures = append(figures, figure.Figure{
			Name:  fmt.Sprintf("new sessions: bmv2, entries written in batches of %d", r.Batch),
			Value: figure.Quantity{Value: r.PerSecond, Unit: "entries/s"},
		})
	}
	return figures, err
}

// endToEnd measures a member's forwarding between veth interfaces by turns with
// the kernel's.
func endToEnd(size int, want *figure.Limit) func(context.Context, env) ([]figure.Figure, error) {
	return func(ctx context.Context, e env) ([]figure.Figure, error) {
		if e.errPrivileges != nil {
			return nil, e.errPrivileges
		}
		forwarders := []struct {
			what string
			f    forward.Forwarder
		}{
			{"", forward.Kernel},
			{"packet I/O alone", forward.Packets},
			{"session, edge to edge", member("edge")},
			{"session, edge to trunk with a tag", member("trunk")},
		}
		const flows = 64
		pps, ratio := make([][]float64, len(forwarders)), make([][]float64, len(forwarders))
		for range pick(e, 7, 2) {
			for i, f := range forwarders {
				r, err := forward.Measure(ctx, f.f, size, flows, pick(e, 500*time.Millisecond, 200*time.Millisecond))
				if err != nil {
					return nil, err
				}
				pps[i] = append(pps[i], r.PPS())
				ratio[i] = append(ratio[i], r.PPS()/pps[0][len(pps[0])-1])
			}
		}
		kernel := figure.Quantity{Name: "kernel", Value: median(pps[0]), Unit: "packets/s"}
		var out []figure.Figure
		for i, f := range forwarders[1:] {
			v := median(pps[i+1])
			fig := figure.Figure{
				Name:   fmt.Sprintf("veth, %d bytes, one worker: %s", size, f.what),
				Value:  figure.Quantity{Value: v, Unit: "packets/s"},
				More:   []figure.Quantity{{Value: v * float64(size) * 8 / 1e9, Unit: "Gbit/s"}},
				Beside: &kernel, Ratio: median(ratio[i+1]),
			}
			if i > 0 {
				fig.RatioTarget = want
			}
			out = append(out, fig)
		}
		return out, nil
	}
}

// member forwards by a data plane and its controller, each a process.
func member(egress string) forward.Forwarder {
	return func(ctx context.Context, node *netlab.Node, dst, _ net.HardwareAddr, ready func()) error {
		m, err := process.Start(ctx, node, process.Options{
			Target: process.Fallback, Suite: tag.Siphash, Egress: egress, InIf: forward.InIf, OutIf: forward.OutIf,
			InAddr: forward.InAddr, OutAddr: forward.OutAddr, Dst: forward.TargetNet, Via: forward.SinkAddr, ViaMAC: dst,
		})
		if err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return m.Close()
	}
}

// retag compares verifying and tagging on bmv2 with plain forwarding on it.
func retag(ctx context.Context, e env) ([]figure.Figure, error) {
	if e.errPrivileges != nil {
		return nil, e.errPrivileges
	}
	r, err := bmv2.Compare(ctx, pick(e, 5, 1), pick(e, 2*time.Second, 500*time.Millisecond))
	if err != nil {
		return nil, err
	}
	return []figure.Figure{{
		Name: "bmv2: suite 1 verified and tagged anew", Value: figure.Quantity{Value: r.Retag, Unit: "packets/s"},
		Beside:      &figure.Quantity{Name: "plain forwarding", Value: r.Forward, Unit: "packets/s"},
		RatioTarget: figure.AtLeast(bmv2.SketchRatio),
	}}, nil
}

// siblings takes the benchmark of announcements between two controllers.
func siblings(ctx context.Context, e env) ([]figure.Figure, error) {
	r, err := gobench.Run(ctx, gobench.Options{
		Package: "countersign/controller/sibling", Pattern: "^BenchmarkAnnounce$", Time: pick(e, "2s", "200ms"),
	})
	if err != nil {
		return nil, err
	}
	p50, err1 := r.Median("Announce/alone", "p50-µs")
	p99, err2 := r.Median("Announce/alone", "p99-µs")
	rate, err3 := r.Median("Announce/stream", "announcements/s")
	return []figure.Figure{
		{Name: "siblings: one announcement over mutual TLS", Value: figure.Quantity{Name: "p50", Value: p50, Unit: "µs"},
			More: []figure.Quantity{{Name: "p99", Value: p99, Unit: "µs"}}},
		{Name: "siblings: announcements one after the other", Value: figure.Quantity{Value: rate, Unit: "announcements/s"}},
	}, errors.Join(err1, err2, err3)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
