package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"countersign/directory/bundle"
	pb "countersign/directory/proto"
	"countersign/tag"
)

const terminate = syscall.SIGTERM

// counts are one member's counters at one moment, by name. Data planes of every
// kind have the same, because its controller reads them by P4Runtime.
type counts struct {
	synced  bool
	outcome map[string]int64 // of forwarded packets
	drop    map[string]int64 // by reason, in the data plane or the controller
}

// minus is what was counted since older.
func (c counts) minus(older counts) counts {
	return counts{c.synced, difference(c.outcome, older.outcome), difference(c.drop, older.drop)}
}

func difference(a, b map[string]int64) map[string]int64 {
	d := map[string]int64{}
	for k, v := range a {
		if v -= b[k]; v != 0 {
			d[k] = v
		}
	}
	return d
}

// scrape reads a member's counters from its controller's metrics.
func (n *network) scrape(ctx context.Context, name string) (c counts, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddr(name)+"/metrics", nil)
	if err != nil {
		return c, err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return c, fmt.Errorf("counters of %s: %w", name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c, fmt.Errorf("counters of %s: %s", name, resp.Status)
	}
	if c, err = parseCounts(resp.Body); err != nil {
		return c, fmt.Errorf("counters of %s: %w", name, err)
	}
	return c, nil
}

func (n *network) scrapeAll(ctx context.Context) (map[string]counts, error) {
	all := map[string]counts{}
	for _, name := range names {
		c, err := n.scrape(ctx, name)
		if err != nil {
			return nil, err
		}
		all[name] = c
	}
	return all, nil
}

// parseCounts reads Prometheus' text format.
func parseCounts(r io.Reader) (counts, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	c := counts{outcome: map[string]int64{}, drop: map[string]int64{}}
	if err != nil {
		return c, err
	}
	each := func(family string, f func(value float64, label func(string) string)) {
		for _, m := range families[family].GetMetric() {
			f(m.GetCounter().GetValue()+m.GetGauge().GetValue(), func(name string) string { return label(m, name) })
		}
	}
	each("countersign_device_synced", func(v float64, _ func(string) string) { c.synced = v == 1 })
	each("countersign_packets_total", func(v float64, label func(string) string) { c.outcome[label("outcome")] += int64(v) })
	each("countersign_dropped_packets_total", func(v float64, label func(string) string) { c.drop[label("reason")] += int64(v) })
	each("countersign_decisions_total", func(v float64, label func(string) string) {
		if label("verdict") == "dropped" && label("reason") != "announcement" {
			c.drop[label("why")] += int64(v)
		}
	})
	for _, family := range []string{"countersign_punts_dropped_total", "countersign_p4runtime_packet_in_drops_total"} {
		each(family, func(v float64, _ func(string) string) { c.drop["punt_queue_full"] += int64(v) })
	}
	return c, nil
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// ring is the state of every key by its id and, beside it, who issues under it.
type ring map[tag.KeyID]struct {
	member string
	state  pb.KeyState
}

func (n *network) keys(ctx context.Context) (ring, error) {
	resp, err := n.operator.Keys(ctx, &pb.KeysRequest{})
	if err != nil {
		return nil, err
	}
	r := ring{}
	for _, k := range resp.Keys {
		st, err := bundle.ParseStatement(k.Statement)
		if err != nil {
			return nil, err
		}
		id := bundle.KeyIDOf(st.Id)
		e := r[id]
		e.member, e.state = st.Member, k.State
		r[id] = e
	}
	return r, nil
}

func (r ring) has(member string, state pb.KeyState) bool {
	for _, k := range r {
		if k.member == member && k.state == state {
			return true
		}
	}
	return false
}

// current is the epoch that each member signs with.
func (r ring) current() map[string]tag.KeyID {
	m := map[string]tag.KeyID{}
	for id, k := range r {
		if k.state == pb.KeyState_KEY_STATE_CURRENT {
			m[k.member] = id
		}
	}
	return m
}

// retransmits is how many TCP segments a node has sent again.
func (n *network) retransmits(node string) (count int64, err error) {
	err = n.nodes[node].Do(func() error {
		f, err := os.Open("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		defer f.Close()
		count, err = parseRetransmits(f)
		return err
	})
	return count, err
}

// parseRetransmits reads the kernel's RFC 4022 counters: a line of names, then a
// line of values.
func parseRetransmits(r io.Reader) (int64, error) {
	var fields []string
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if fields == nil {
			fields = f
			continue
		}
		for i, name := range fields {
			if name == "RetransSegs" && i < len(f) {
				return strconv.ParseInt(f[i], 10, 64)
			}
		}
	}
	return 0, errors.New("the kernel does not count TCP retransmissions")
}
