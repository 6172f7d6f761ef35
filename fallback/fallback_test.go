package fallback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"countersign/fallback/p4rtserver"
	"countersign/fallback/pktio"
	"countersign/p4src"
	"countersign/tables"
)

// running is a Run in the background.
type running struct {
	p4runtime, metrics net.Addr
	cancel             context.CancelFunc
	done               chan error
}

func start(t *testing.T, c Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{cancel: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	c.Ready = func(p4runtime, metrics net.Addr) {
		r.p4runtime, r.metrics = p4runtime, metrics
		close(ready)
	}
	go func() { r.done <- Run(ctx, c) }()
	select {
	case <-ready:
	case err := <-r.done:
		t.Fatal(err)
	}
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// controller is a primary with our pipeline pushed.
type controller struct {
	t      *testing.T
	client p4v1.P4RuntimeClient
	stream p4v1.P4Runtime_StreamChannelClient
}

func dial(t *testing.T, addr net.Addr) *controller {
	t.Helper()
	target := addr.String()
	if addr.Network() == "unix" {
		target = "unix://" + target
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &controller{t: t, client: p4v1.NewP4RuntimeClient(conn)}
	if c.stream, err = c.client.StreamChannel(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.arbitrate()
	info, err := p4src.P4Info()
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.client.SetForwardingPipelineConfig(t.Context(), &p4v1.SetForwardingPipelineConfigRequest{
		DeviceId: 7, ElectionId: &p4v1.Uint128{Low: 1}, Action: p4v1.SetForwardingPipelineConfigRequest_VERIFY_AND_COMMIT,
		Config: &p4v1.ForwardingPipelineConfig{P4Info: info, P4DeviceConfig: []byte("countersign")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// arbitrate makes the controller primary, and waits for all it has sent.
func (c *controller) arbitrate() {
	c.t.Helper()
	c.send(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Arbitration{
		Arbitration: &p4v1.MasterArbitrationUpdate{DeviceId: 7, ElectionId: &p4v1.Uint128{Low: 1}}}})
	if _, err := c.stream.Recv(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *controller) send(m *p4v1.StreamMessageRequest) {
	c.t.Helper()
	if err := c.stream.Send(m); err != nil {
		c.t.Fatal(err)
	}
}

func (c *controller) insert(entries ...tables.Entry) {
	c.t.Helper()
	req := &p4v1.WriteRequest{DeviceId: 7, ElectionId: &p4v1.Uint128{Low: 1}}
	for _, e := range entries {
		u, err := e.Update(p4v1.Update_INSERT)
		if err != nil {
			c.t.Fatal(err)
		}
		req.Updates = append(req.Updates, u)
	}
	if _, err := c.client.Write(c.t.Context(), req); err != nil {
		c.t.Fatal(err)
	}
}

// scrape reads the metrics.
func (r *running) scrape(t *testing.T) string {
	t.Helper()
	resp, err := http.Get("http://" + r.metrics.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return string(b)
}

// capture writes frames to a file and returns its name.
func capture(t *testing.T, frames ...[]byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "in.pcap")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pktio.NewPcapWriter(f)
	for i, b := range frames {
		err = errors.Join(err, w.Write(b, int64(i)))
	}
	if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

func arp() []byte {
	b := make([]byte, 60)
	binary.BigEndian.PutUint16(b[12:], 0x0806)
	return b
}

// TestRun takes a packet of the CPU out by a port, over a Unix socket, and
// shows it in the metrics.
func TestRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.pcap")
	r := start(t, Config{
		Ports:     map[uint16]string{1: "pcap:" + capture(t, arp()), 2: "pcap:," + out},
		Workers:   1,
		DeviceID:  7,
		P4Runtime: p4rtserver.Endpoint{Address: "unix://" + filepath.Join(t.TempDir(), "p4rt")},
		Metrics:   "127.0.0.1:0",
	})
	c := dial(t, r.p4runtime)
	c.insert(
		tables.PortEntry{Key: tables.PortKey{InPort: 3}, Action: tables.PortConfig{Role: tables.RoleEdge, Zone: 1}},
		tables.PuntEntry{Key: tables.PuntKey{Reason: tables.ReasonToMe, Role: tables.RoleEdge, Zone: 1}, Action: tables.ToCPU{}},
	)
	for _, egress := range []uint16{2, 99} {
		m, err := tables.PacketOut{Mode: tables.PacketOutModeSend, EgressPort: egress}.ToProto(arp())
		if err != nil {
			t.Fatal(err)
		}
		c.send(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Packet{Packet: m}})
	}
	m, err := tables.PacketOut{Mode: tables.PacketOutModeReturn, IngressPort: 3}.ToProto(arp())
	if err != nil {
		t.Fatal(err)
	}
	c.send(&p4v1.StreamMessageRequest{Update: &p4v1.StreamMessageRequest_Packet{Packet: m}})
	c.arbitrate()
	text := r.scrape(t)
	for _, want := range []string{
		`countersign_packets_total{reason="punt_loop",stage="punt",verdict="drop"} 1`,
		`countersign_packets_total{reason="none",stage="egress",verdict="forward"} 2`,
		`countersign_table_entries{table="port"} 1`,
		`countersign_table_size{table="session_v4"} 4.194304e+06`,
		`countersign_sessions{family="ipv6"} 0`,
		"countersign_egress_port_missing_total 1",
		`countersign_port_frames_total{direction="out",port="2"} 1`,
		`countersign_p4runtime_requests_total`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	r.stop(t)
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := pktio.NewPcapReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if b, _, err := p.Next(); err != nil || string(b) != string(arp()) {
		t.Errorf("sent %x, %v", b, err)
	}
}

func TestRunMistakes(t *testing.T) {
	socket := func(t *testing.T) p4rtserver.Endpoint {
		return p4rtserver.Endpoint{Address: "unix://" + filepath.Join(t.TempDir(), "p4rt")}
	}
	for name, c := range map[string]struct {
		config func(t *testing.T) Config
		is     error
		want   string
	}{
		"no ports": {func(t *testing.T) Config { return Config{P4Runtime: socket(t)} }, ErrConfig, "no ports"},
		"port that does not exist": {func(t *testing.T) Config {
			return Config{Ports: map[uint16]string{3: "nosuchport0"}, P4Runtime: socket(t)}
		}, pktio.ErrNoInterface, "port 3: port nosuchport0"},
		"port number of the CPU": {func(t *testing.T) Config {
			return Config{Ports: map[uint16]string{510: "pcap:,x"}, P4Runtime: socket(t)}
		}, ErrConfig, "port 510"},
		"one interface twice": {func(t *testing.T) Config {
			p := "pcap:" + capture(t)
			return Config{Ports: map[uint16]string{1: p, 2: p}, P4Runtime: socket(t)}
		}, ErrConfig, "ports 1 and 2"},
		"clear text to all": {func(t *testing.T) Config {
			return Config{Ports: map[uint16]string{1: "pcap:" + capture(t)}, P4Runtime: p4rtserver.Endpoint{Address: "0.0.0.0:0"}}
		}, p4rtserver.ErrInsecure, "0.0.0.0"},
		"metrics address": {func(t *testing.T) Config {
			return Config{Ports: map[uint16]string{1: "pcap:" + capture(t)}, P4Runtime: socket(t), Metrics: "nowhere"}
		}, nil, "metrics: listen on nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Run(t.Context(), c.config(t))
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error %v, want %v with %q", err, c.is, c.want)
			}
		})
	}
}
