package server

import (
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

// metrics are the directory's own; they count whether or not they are
// registered.
type metrics struct {
	version, members, connected, behind, alarms prometheus.Gauge
	updates                                     prometheus.Counter
	requests                                    *prometheus.CounterVec // method, code
	events                                      *prometheus.CounterVec // event, level
	keyStates                                   *prometheus.CounterVec // state, forced
}

func newMetrics(r prometheus.Registerer) metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "countersign_directory_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_directory_" + name, Help: help}, labels)
	}
	m := metrics{
		version:   gauge("bundle_version", "Version of the signed bundle."),
		members:   gauge("members", "Members of the alliance, in any state."),
		connected: gauge("connected_members", "Members that watch the bundle."),
		behind:    gauge("behind_members", "Members that did not acknowledge a key in time."),
		alarms:    gauge("alarmed_members", "Members whose identity two parties held."),
		updates:   prometheus.NewCounter(prometheus.CounterOpts{Name: "countersign_directory_updates_total", Help: "Updates sent to watching members."}),
		requests:  counters("requests_total", "Requests by method and gRPC code.", "method", "code"),
		events:    counters("events_total", "Changes by kind.", "event"),
		keyStates: counters("key_states_total", "Keys that reached a state.", "state", "forced"),
	}
	if r != nil {
		r.MustRegister(m.version, m.members, m.connected, m.behind, m.alarms, m.updates, m.requests, m.events, m.keyStates)
	}
	return m
}

func (m *metrics) request(method string, err error) {
	m.requests.WithLabelValues(method[strings.LastIndexByte(method, '/')+1:], status.Code(err).String()).Inc()
}

func (m *metrics) count(e event) {
	m.events.WithLabelValues(e.name).Inc()
	if e.name != "key_state" {
		return
	}
	var r slog.Record
	r.Add(e.attrs...)
	labels := prometheus.Labels{}
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "to":
			labels["state"] = a.Value.String()
		case "forced":
			labels["forced"] = a.Value.String()
		}
		return true
	})
	m.keyStates.With(labels).Inc()
}

func (m *metrics) observe(s *state) {
	members, behind, alarms := 0, 0, 0
	for _, a := range s.accounts.all {
		members++
		if a.BehindSince != 0 {
			behind++
		}
		if a.Alarm {
			alarms++
		}
	}
	m.version.Set(float64(s.header.GetVersion()))
	m.members.Set(float64(members))
	m.behind.Set(float64(behind))
	m.alarms.Set(float64(alarms))
}
