package fallback

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/fallback/pktio"
	"countersign/tables"
)

// collector reads the engine's and the ports' counters when it is asked.
type collector struct{ f *process }

var (
	packetsDesc = desc("packets_total", "Packets by the stage that decided, verdict and reason.", "stage", "verdict", "reason")
	puntsDesc   = desc("punts_total", "Packets handed to the controller, held or as copies, by reason.", "reason")
	entriesDesc = desc("table_entries", "Entries of a table.", "table")
	sizeDesc    = desc("table_size", "Entries that a table takes.", "table")
	sessionDesc = desc("sessions", "Admitted sessions by IP family.", "family")
	noPortDesc  = desc("egress_port_missing_total", "Packets for a port that this data plane does not have.")
	frameDesc   = desc("port_frames_total", "Frames by port and direction.", "port", "direction")
	bytesDesc   = desc("port_bytes_total", "Bytes of frames by port and direction.", "port", "direction")
	lossDesc    = desc("port_lost_frames_total", "Frames that a port lost, by cause.", "port", "cause")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("countersign_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		packetsDesc, puntsDesc, entriesDesc, sizeDesc, sessionDesc, noPortDesc, frameDesc, bytesDesc, lossDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	s := c.f.engine.Stats()
	for _, x := range s.Stages {
		counter(packetsDesc, x.Packets, x.Stage.String(), x.Verdict.String(), x.Reason.String())
	}
	for reason, n := range s.Punts {
		counter(puntsDesc, n, reason.String())
	}
	for _, t := range s.Tables {
		gauge(entriesDesc, t.Entries, t.Table)
		gauge(sizeDesc, t.Size, t.Table)
		switch t.ID {
		case tables.SessionV4TableID:
			gauge(sessionDesc, t.Entries, "ipv4")
		case tables.SessionV6TableID:
			gauge(sessionDesc, t.Entries, "ipv6")
		}
	}
	var missing uint64
	for _, w := range c.f.workers {
		missing += w.noPort.Load()
	}
	counter(noPortDesc, missing)
	for i, queues := range c.f.ports.queues {
		port := strconv.Itoa(int(c.f.ports.ids[i]))
		sum := sumStats(queues)
		counter(frameDesc, sum.RxPackets, port, "in")
		counter(frameDesc, sum.TxPackets, port, "out")
		counter(bytesDesc, sum.RxBytes, port, "in")
		counter(bytesDesc, sum.TxBytes, port, "out")
		counter(lossDesc, sum.RxRingFull, port, "ring_full")
		counter(lossDesc, sum.RxTooLong, port, "too_long")
		counter(lossDesc, sum.RxTooShort, port, "too_short")
		counter(lossDesc, sum.RxChecksumUnfinished, port, "checksum_unfinished")
		counter(lossDesc, sum.TxDropped, port, "tx_dropped")
		counter(lossDesc, sum.TxLinkDown, port, "link_down")
	}
}

// sumStats adds up a port's queues.
func sumStats(queues []pktio.Port) (sum pktio.Stats) {
	for _, q := range queues {
		s := q.Stats()
		sum.RxPackets += s.RxPackets
		sum.TxPackets += s.TxPackets
		sum.RxBytes += s.RxBytes
		sum.TxBytes += s.TxBytes
		sum.RxRingFull += s.RxRingFull
		sum.RxTooLong += s.RxTooLong
		sum.RxTooShort += s.RxTooShort
		sum.RxChecksumUnfinished += s.RxChecksumUnfinished
		sum.TxDropped += s.TxDropped
		sum.TxLinkDown += s.TxLinkDown
	}
	return sum
}
