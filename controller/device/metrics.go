package device

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Metrics counts what sessions do, by device; make it with NewMetrics. It is
// safe for concurrent use and may serve many sessions.
type Metrics struct {
	updates, packetIns, packetInDrops, streamErrors               *prometheus.CounterVec
	batches, reconnects, mastership, pushes, packetOuts           *prometheus.CounterVec
	idleTimeouts, idleTimeoutDrops, staticWrites, unhandledStream *prometheus.CounterVec
	phase                                                         *prometheus.GaugeVec
	writeSeconds                                                  *prometheus.HistogramVec
}

// NewMetrics returns metrics registered with reg, or with none if reg is nil.
// It panics, as prometheus.MustRegister does, if reg has them already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_p4runtime_" + name, Help: help,
		}, append([]string{"device"}, labels...))
		if reg != nil {
			reg.MustRegister(v)
		}
		return v
	}
	m := &Metrics{
		updates:          counter("updates_total", "Updates written, by canonical code.", "code"),
		batches:          counter("write_batches_total", "Write RPCs sent."),
		staticWrites:     counter("static_updates_total", "Updates sent to reconcile the static entries."),
		reconnects:       counter("reconnects_total", "Connections that ended or could not be made."),
		mastership:       counter("mastership_changes_total", "Changes between primary and backup."),
		pushes:           counter("pipeline_pushes_total", "Pipelines pushed."),
		packetIns:        counter("packet_ins_total", "Packet-ins received, by queue.", "queue"),
		packetInDrops:    counter("packet_in_drops_total", "Packet-ins dropped because their queue was full.", "queue"),
		packetOuts:       counter("packet_outs_total", "Packet-outs sent."),
		idleTimeouts:     counter("idle_timeouts_total", "Entries reported idle."),
		idleTimeoutDrops: counter("idle_timeout_drops_total", "Entries reported idle and dropped because the queue was full."),
		streamErrors:     counter("stream_errors_total", "StreamError messages received, by canonical code.", "code"),
		unhandledStream:  counter("unhandled_stream_messages_total", "Digests and other stream messages that are ignored."),
		phase: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "countersign_p4runtime_phase",
			Help: "Phase of the session: 0 disconnected, 1 connected, 2 backup, 3 primary, 4 synced.",
		}, []string{"device"}),
		writeSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "countersign_p4runtime_write_seconds",
			Help:    "Time from sending a Write RPC to its answer.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2, 17),
		}, []string{"device"}),
	}
	if reg != nil {
		reg.MustRegister(m.phase, m.writeSeconds)
	}
	return m
}

// deviceMetrics are the metrics of one device, looked up once.
type deviceMetrics struct {
	updates                                             [codes.Unauthenticated + 1]prometheus.Counter
	packetIns, packetInDrops                            []prometheus.Counter
	batches, reconnects, mastership, pushes, packetOuts prometheus.Counter
	idleTimeouts, idleTimeoutDrops, staticWrites        prometheus.Counter
	unhandledStream                                     prometheus.Counter
	phase                                               prometheus.Gauge
	writeSeconds                                        prometheus.Observer
	streamErrors                                        *prometheus.CounterVec
}

func (m *Metrics) device(name string, queues []Queue) *deviceMetrics {
	d := &deviceMetrics{
		batches:          m.batches.WithLabelValues(name),
		reconnects:       m.reconnects.WithLabelValues(name),
		mastership:       m.mastership.WithLabelValues(name),
		pushes:           m.pushes.WithLabelValues(name),
		packetOuts:       m.packetOuts.WithLabelValues(name),
		idleTimeouts:     m.idleTimeouts.WithLabelValues(name),
		idleTimeoutDrops: m.idleTimeoutDrops.WithLabelValues(name),
		staticWrites:     m.staticWrites.WithLabelValues(name),
		unhandledStream:  m.unhandledStream.WithLabelValues(name),
		phase:            m.phase.WithLabelValues(name),
		writeSeconds:     m.writeSeconds.WithLabelValues(name),
		streamErrors:     m.streamErrors.MustCurryWith(prometheus.Labels{"device": name}),
	}
	for c := range d.updates {
		d.updates[c] = m.updates.WithLabelValues(name, codes.Code(c).String())
	}
	for _, q := range queues {
		d.packetIns = append(d.packetIns, m.packetIns.WithLabelValues(name, q.Name))
		d.packetInDrops = append(d.packetInDrops, m.packetInDrops.WithLabelValues(name, q.Name))
	}
	return d
}

// update counts n updates that ended with code c.
func (d *deviceMetrics) update(c codes.Code, n int) {
	if int(c) >= len(d.updates) {
		c = codes.Unknown
	}
	d.updates[c].Add(float64(n))
}
