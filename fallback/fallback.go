// Package fallback is the process of the software data plane: it ties the
// engine, the ports and the P4Runtime server together. State lives in memory
// only; it goes on forwarding when its controller is gone.
package fallback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"countersign/fallback/engine"
	"countersign/fallback/p4rtserver"
	"countersign/fallback/pktio"
	"countersign/packet"
	"countersign/tables"
)

// ErrConfig means that a Config cannot be.
var ErrConfig = errors.New("bad fallback configuration")

// Config is what Run needs to know. The zero value lacks ports and an endpoint.
type Config struct {
	// Ports are the data plane's ports by number, 1 to 509, each a
	// specification of pktio.Open: an interface's name or KIND:NAME.
	Ports map[uint16]string
	// Workers is the number of worker threads, each of which polls a queue of
	// every port; 0 means 1.
	Workers int
	// DeviceID is the P4Runtime device id.
	DeviceID uint64
	// P4Runtime is where the controller connects.
	P4Runtime p4rtserver.Endpoint
	// Metrics is the HOST:PORT of the Prometheus metrics; empty: none.
	Metrics string
	// Carrier is the alliance's; the zero value means packet.DefaultCarrier.
	Carrier packet.Carrier
	// FixOffloads switches off offloads that a packet processor cannot work
	// with; without it a port that has them on is refused.
	FixOffloads bool
	// KeepKernel leaves what the ports receive to the host's own network stack
	// too, which would answer and forward it.
	KeepKernel bool
	// Promiscuous receives frames for any hardware address, which transparent
	// ports need.
	Promiscuous bool
	// Log receives events; nil means slog.Default.
	Log *slog.Logger
	// Ready is called once ports are open and the controller can connect, with
	// the P4Runtime and metrics addresses (nil without metrics); nil: not called.
	Ready func(p4runtime, metrics net.Addr)
}

// SweepInterval is how often idle timeouts are looked for.
const SweepInterval = time.Second

// batchLen is the number of frames that a worker receives at once.
const batchLen = 2 * engine.MaxBatch

// Run serves until ctx is done, which is no error, or something cannot go on.
// Where a port does not open the error names it, and nothing was started.
func Run(ctx context.Context, c Config) (err error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Workers = max(c.Workers, 1)
	ports, err := openPorts(&c)
	if err != nil {
		return err
	}
	f := &process{Config: c, ports: ports, registry: prometheus.NewRegistry()}
	if f.workers, err = newWorkers(f); err != nil {
		return errors.Join(err, f.ports.close())
	}
	defer func() {
		for _, w := range f.workers {
			err = errors.Join(err, w.mux.Close())
		}
	}()
	f.engine = engine.New(engine.Options{Workers: c.Workers, Carrier: c.Carrier, Output: f.output})
	server, err := p4rtserver.New(f.engine, p4rtserver.Options{DeviceID: c.DeviceID, Registerer: f.registry, Logger: c.Log})
	if err != nil {
		return err
	}
	if err := f.registry.Register(&collector{f}); err != nil {
		return err
	}
	lis, err := c.P4Runtime.Listen(ctx)
	if err != nil {
		return err
	}
	metrics, err := f.listenMetrics(ctx)
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	return f.serve(ctx, server, lis, metrics)
}

// process is a running data plane.
type process struct {
	Config
	ports    portSet
	registry *prometheus.Registry
	engine   *engine.Engine
	workers  []*worker
}

// portSet is the open ports.
type portSet struct {
	ids    []uint16                        // ascending
	queues [][]pktio.Port                  // by port's place in ids, then by worker
	index  [tables.PortTxCounterSize]int16 // of a port's id in ids; -1: no such port
}

func openPorts(c *Config) (s portSet, err error) {
	if len(c.Ports) == 0 {
		return s, fmt.Errorf("%w: it names no ports", ErrConfig)
	}
	for i := range s.index {
		s.index[i] = -1
	}
	used := make(map[string]uint16)
	for _, id := range slices.Sorted(maps.Keys(c.Ports)) {
		spec := c.Ports[id]
		if id == 0 || id >= tables.CPUPort {
			return s, errors.Join(fmt.Errorf("%w: port %d (%s): numbers are 1 to %d", ErrConfig, id, spec, tables.CPUPort-1), s.close())
		}
		if other, ok := used[spec]; ok {
			return s, errors.Join(fmt.Errorf("%w: ports %d and %d are both %s", ErrConfig, other, id, spec), s.close())
		}
		used[spec] = id
		queues, err := pktio.Open(spec, pktio.Options{
			Queues: c.Workers, FixOffloads: c.FixOffloads, Isolate: !c.KeepKernel, Promiscuous: c.Promiscuous, Log: c.Log,
		})
		if err != nil {
			return s, errors.Join(fmt.Errorf("port %d: %w", id, err), s.close())
		}
		s.index[id] = int16(len(s.ids))
		s.ids = append(s.ids, id)
		s.queues = append(s.queues, queues)
	}
	return s, nil
}

func (s *portSet) close() error {
	var errs []error
	for _, queues := range s.queues {
		for _, q := range queues {
			errs = append(errs, q.Close())
		}
	}
	return errors.Join(errs...)
}

// find returns a worker's queue of the port with that number, nil where there
// is none.
func (s *portSet) find(id uint16, worker int) pktio.Port {
	if int(id) >= len(s.index) || s.index[id] < 0 {
		return nil
	}
	return s.queues[s.index[id]][worker]
}

// output sends what left because of a packet-out.
func (f *process) output(p *engine.Packet) {
	port := f.ports.find(p.Egress, 0)
	if port == nil {
		f.workers[0].noPort.Add(1)
		return
	}
	if _, err := port.Send([]*pktio.Frame{p.Frame}); err != nil {
		f.Log.Error("send failed", "port", p.Egress, "error", err)
	}
}

func (f *process) listenMetrics(ctx context.Context) (net.Listener, error) {
	if f.Metrics == "" {
		return nil, nil
	}
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", f.Metrics)
	if err != nil {
		return nil, fmt.Errorf("metrics: listen on %s: %w", f.Metrics, err)
	}
	return lis, nil
}

// serve runs everything until ctx is done or a part fails.
func (f *process) serve(ctx context.Context, server *p4rtserver.Server, lis, metrics net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Serve(ctx, lis, f.P4Runtime.TLS) })
	g.Go(func() error { f.sweep(ctx); return nil })
	for i, w := range f.workers {
		g.Go(func() error { return w.run(f.engine.Worker(i)) })
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, w := range f.workers {
			w.stop.Store(true)
			w.mux.Wake()
		}
		return nil
	})
	var at net.Addr
	if metrics != nil {
		at = metrics.Addr()
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(f.registry, promhttp.HandlerOpts{}))
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		g.Go(func() error {
			if err := srv.Serve(metrics); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("metrics: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return srv.Close()
		})
	}
	f.Log.Info("data plane is up", "ports", len(f.ports.ids), "workers", len(f.workers), "p4runtime", lis.Addr().String())
	if f.Ready != nil {
		f.Ready(lis.Addr(), at)
	}
	return g.Wait()
}

func (f *process) sweep(ctx context.Context) {
	t := time.NewTicker(SweepInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			f.engine.Sweep(now.UnixNano())
		}
	}
}

// run receives, processes and sends until the worker is stopped. A port that
// fails is left out from then on.
func (w *worker) run(e *engine.Worker) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	frames := pktio.NewFrames(batchLen)
	batch := make([]engine.Packet, batchLen)
	for !w.stop.Load() {
		n, port, err := w.mux.Recv(frames)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && port < 0:
			return nil // captures only, all read
		case errors.Is(err, io.EOF):
			continue
		case port < 0:
			return fmt.Errorf("worker %d: %w", w.id, err)
		default:
			w.f.Log.Error("port failed", "port", w.f.ports.ids[port], "worker", w.id, "error", err)
			continue
		}
		for i := range n {
			batch[i].Frame, batch[i].InPort = frames[i], w.f.ports.ids[port]
		}
		e.Process(time.Now().UnixNano(), batch[:n])
		w.send(batch[:n])
	}
	return nil
}

// send sends the packets of a batch that leave, each port's together.
func (w *worker) send(batch []engine.Packet) {
	for i := range batch {
		p := &batch[i]
		if p.Verdict != engine.Forward {
			continue
		}
		if int(p.Egress) >= len(w.f.ports.index) || w.f.ports.index[p.Egress] < 0 {
			w.noPort.Add(1)
			continue
		}
		at := w.f.ports.index[p.Egress]
		w.out[at] = append(w.out[at], p.Frame)
	}
	for i, frames := range w.out {
		if len(frames) == 0 {
			continue
		}
		if _, err := w.f.ports.queues[i][w.id].Send(frames); err != nil {
			w.f.Log.Debug("send failed", "port", w.f.ports.ids[i], "error", err)
		}
		w.out[i] = frames[:0]
	}
}
