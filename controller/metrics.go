package controller

import (
	"context"
	"strconv"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/controller/device"
	"countersign/tables"
)

// scrapeTimeout bounds how long a scrape waits for a data plane's counters.
const scrapeTimeout = 2 * time.Second

// planeCollector reads the data planes' counters when it is scraped, so that
// they are the same on every target.
type planeCollector struct {
	c        *controller
	drops    *prometheus.Desc
	punts    *prometheus.Desc
	outcomes *prometheus.Desc
	rx, tx   *prometheus.Desc
	up       *prometheus.Desc
	epoch    *prometheus.Desc
}

func newPlaneCollector(c *controller) *planeCollector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("countersign_"+name, help, labels, nil)
	}
	return &planeCollector{
		c:        c,
		drops:    d("dropped_packets_total", "Packets that the data plane dropped, by reason.", "device", "reason"),
		punts:    d("punted_packets_total", "Packets that the data plane handed to the controller, by reason.", "device", "reason"),
		outcomes: d("packets_total", "What became of packets that the data plane forwarded.", "device", "outcome"),
		rx:       d("port_received_packets_total", "Packets received, by port.", "device", "port"),
		tx:       d("port_sent_packets_total", "Packets sent, by port.", "device", "port"),
		up:       d("device_synced", "1 where the data plane has everything it should have.", "device"),
		epoch:    d("key_state", "Keys by issuer, suite, epoch and state; the value is 1.", "member", "suite", "epoch", "state"),
	}
}

// Describe implements prometheus.Collector.
func (p *planeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{p.drops, p.punts, p.outcomes, p.rx, p.tx, p.up, p.epoch} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *planeCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		if v > 0 {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
		}
	}
	for _, pl := range p.c.devices {
		name := pl.cfg.Name
		var synced float64
		if pl.State().Phase == device.Synced {
			synced = 1
		}
		ch <- prometheus.MustNewConstMetric(p.up, prometheus.GaugeValue, synced, name)
		for e, err := range pl.Read(ctx, device.Counter(0)) {
			if err != nil {
				p.c.log.Debug("counters_not_read", "device", name, "error", err)
				break
			}
			p.counter(e.GetCounterEntry(), name, count)
		}
	}
	if snap := p.c.snap.Load(); snap != nil {
		for i := range snap.Keys {
			k := &snap.Keys[i]
			ch <- prometheus.MustNewConstMetric(p.epoch, prometheus.GaugeValue, 1,
				k.Member, k.Suite.String(), strconv.FormatUint(uint64(k.UNID), 16)+"/"+strconv.Itoa(int(k.Epoch)), k.State.String())
		}
	}
}

func (p *planeCollector) counter(e *p4v1.CounterEntry, name string, count func(*prometheus.Desc, int64, ...string)) {
	i := e.GetIndex().GetIndex()
	n := e.GetData().GetPacketCount()
	switch e.GetCounterId() {
	case tables.DropsCounterID:
		count(p.drops, n, name, tables.Reason(i).String())
	case tables.PuntsCounterID:
		count(p.punts, n, name, tables.Reason(i).String())
	case tables.OutcomesCounterID:
		count(p.outcomes, n, name, tables.Outcome(i).String())
	case tables.PortRxCounterID:
		count(p.rx, n, name, strconv.FormatInt(i, 10))
	case tables.PortTxCounterID:
		count(p.tx, n, name, strconv.FormatInt(i, 10))
	}
}
