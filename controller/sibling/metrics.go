package sibling

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts by peer.
type metrics struct {
	sent, received, dropped, refused, resyncs, disconnects *prometheus.CounterVec
	unauthorised                                           prometheus.Counter
	connected                                              *prometheus.GaugeVec
	seconds                                                *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	const prefix = "countersign_sibling_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, append([]string{"peer"}, labels...))
	}
	m := &metrics{
		sent:        counter("announcements_sent_total", "Announcements that a sibling acknowledged."),
		received:    counter("announcements_received_total", "Announcements taken over from a sibling."),
		dropped:     counter("announcements_dropped_total", "Announcements that found no room in the sibling's queue."),
		refused:     counter("announcements_refused_total", "Announcements that are malformed, by direction.", "direction", "reason"),
		resyncs:     counter("resyncs_total", "Times that all standing sessions were sent."),
		disconnects: counter("disconnects_total", "Connections to a sibling that ended or could not be made."),
		unauthorised: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "unauthorised_total", Help: "Streams refused because the caller is no sibling.",
		}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "connected", Help: "1 where the sibling takes announcements.",
		}, []string{"peer"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    prefix + "announcement_seconds",
			Help:    "Time from announcing to the acknowledgement that it is usable, of the oldest in each batch.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2, 17),
		}, []string{"peer"}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.sent, m.received, m.dropped, m.refused, m.resyncs, m.disconnects, m.unauthorised, m.connected, m.seconds,
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
