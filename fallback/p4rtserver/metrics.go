package p4rtserver

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the server does.
type metrics struct {
	rpcs         *prometheus.CounterVec // method, code
	updates      *prometheus.CounterVec // code
	entities     prometheus.Counter
	streams      prometheus.Gauge
	packetIn     *prometheus.CounterVec // result
	packetOut    *prometheus.CounterVec // code
	notesDropped *prometheus.CounterVec // kind
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "countersign", Subsystem: "p4runtime", Name: name, Help: help}
	}
	m := &metrics{
		rpcs:         prometheus.NewCounterVec(counter("requests_total", "P4Runtime requests by method and status code."), []string{"method", "code"}),
		updates:      prometheus.NewCounterVec(counter("updates_total", "Updates of Write requests by canonical code."), []string{"code"}),
		entities:     prometheus.NewCounter(counter("read_entities_total", "Entities returned by Read.")),
		packetIn:     prometheus.NewCounterVec(counter("packet_in_total", "Packets for a controller: sent, dropped (queue full), no_primary, malformed."), []string{"result"}),
		packetOut:    prometheus.NewCounterVec(counter("packet_out_total", "Packets from a controller by canonical code."), []string{"code"}),
		notesDropped: prometheus.NewCounterVec(counter("notifications_dropped_total", "Notifications that a controller did not read in time, by kind."), []string{"kind"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "countersign", Subsystem: "p4runtime",
			Name: "streams", Help: "Open stream channels."}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.rpcs, m.updates, m.entities, m.streams, m.packetIn, m.packetOut, m.notesDropped} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
