// Package firewall runs one member, controller and data plane, between a
// client and a server that are real kernels.
package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/controller"
	"countersign/controller/admin"
	"countersign/controller/config"
	"countersign/fallback"
	"countersign/fallback/p4rtserver"
	"countersign/test/netlab"
)

// forbidden is why no namespaces can be made here.
var forbidden error

func TestMain(m *testing.M) {
	forbidden = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

const member = `
member: m1
devices: [{name: dp, address: "unix://%[1]s/dp.sock"}]
ports:
  - {port: 1, name: lan, role: edge, mac: "%[2]s", addresses: [10.1.0.1/24, "fd01::1/64"]}
  - {port: 2, name: net, role: edge, mac: "%[3]s", addresses: [10.2.0.1/24, "fd02::1/64"]}
policy:
  - {from: lan, to: net, protocol: tcp, dst_port: 80, action: admit}
sessions: {closing: 1m}
admin: %[1]s/admin.sock
static:
  members: [{name: m1, unid: 1}]
  keys: [{suite: siphash, unid: 1, epoch: 1, issue: 000102030405060708090a0b0c0d0e0f}]
`

func TestSessionThroughOneMember(t *testing.T) {
	if forbidden != nil {
		t.Skip(forbidden)
	}
	lab, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	client, fw, server := node(t, lab, "client"), node(t, lab, "fw"), node(t, lab, "server")
	for _, err := range []error{
		lab.Link(client, "eth0", fw, "lan", netlab.LinkOpts{AddrsA: []string{"10.1.0.2/24", "fd01::2/64"}}),
		lab.Link(server, "eth0", fw, "net", netlab.LinkOpts{AddrsA: []string{"10.2.0.2/24", "fd02::2/64"}}),
		client.AddRoute("0.0.0.0/0", "10.1.0.1"),
		client.AddRoute("::/0", "fd01::1"),
		server.AddRoute("0.0.0.0/0", "10.2.0.1"),
		server.AddRoute("::/0", "fd02::1"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	mac := func(name string) net.HardwareAddr {
		m, err := fw.HardwareAddr(name)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	cfg, err := config.Parse("m1.yaml", fmt.Appendf(nil, member, dir, mac("lan"), mac("net")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	ready := make(chan struct{})
	ended := make(chan error, 2)
	go func() {
		ended <- fw.Do(func() error {
			return fallback.Run(ctx, fallback.Config{
				Ports: map[uint16]string{1: "lan", 2: "net"}, DeviceID: 1, FixOffloads: true,
				P4Runtime: p4rtserver.Endpoint{Address: "unix://" + filepath.Join(dir, "dp.sock")}, Log: log,
				Ready: func(net.Addr, net.Addr) { close(ready) },
			})
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal("data plane: ", err)
	}
	go func() { ended <- controller.Run(ctx, controller.Options{Config: cfg, Log: log}) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil && !strings.Contains(err.Error(), "context canceled") {
				t.Error(err)
			}
		}
	})

	for _, addr := range []string{"10.2.0.2", "fd02::2"} {
		good, err := server.ServeHTTP(net.JoinHostPort(addr, "80"))
		if err != nil {
			t.Fatal(err)
		}
		defer good.Close()
		other, err := server.ServeHTTP(net.JoinHostPort(addr, "81"))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		report, err := client.Download(ctx, net.JoinHostPort(addr, "80"), netlab.Transfer{Size: 4 << 20, Seed: 7})
		if err != nil {
			t.Fatalf("%s: %v", addr, err)
		}
		t.Logf("%s: %d bytes in %v", addr, report.Bytes, report.Elapsed)
		short, stop := context.WithTimeout(ctx, 1500*time.Millisecond)
		if _, err := client.Download(short, net.JoinHostPort(addr, "81"), netlab.Transfer{Size: 1000}); err == nil {
			t.Errorf("%s: port 81 passed without a rule", addr)
		}
		stop()
	}
	c := admin.NewClient(filepath.Join(dir, "admin.sock"))
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Devices) != 1 || st.Devices[0].Phase != "synced" || st.Sessions == 0 {
		t.Errorf("status: %+v", st)
	}
}

func node(t *testing.T, lab *netlab.Lab, name string) *netlab.Node {
	t.Helper()
	n, err := lab.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
