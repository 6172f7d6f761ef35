package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errPrivileges error

func TestMain(m *testing.M) {
	if os.Getenv("NETLAB_TEST_HELPER") != "" {
		helper()
	}
	errPrivileges = EnsurePrivileges()
	os.Exit(m.Run())
}

// helper is what tests start as a process of a node: it prints its addresses and
// waits to be killed.
func helper() {
	switch mode := os.Getenv("NETLAB_TEST_HELPER"); mode {
	case "addrs":
		ifs, err := net.Interfaces()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for _, i := range ifs {
			fmt.Print(i.Name, " ")
		}
		os.Exit(3)
	case "forbid":
		forbid()
	case "forbidden":
		fmt.Println(EnsurePrivileges())
		os.Exit(0)
	case "wait", "stubborn", "lab":
		if mode == "stubborn" {
			signal.Ignore(syscall.SIGTERM)
			fmt.Println("ready")
		}
		if mode == "lab" {
			lab, err := New()
			if err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			n, err := lab.Node("n")
			if err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			p, err := n.Start(helperCommand("wait"))
			if err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			fmt.Println(p.Pid())
		}
		var block [1]byte
		os.Stdin.Read(block[:])
		select {}
	}
	os.Exit(2)
}

// forbid runs the helper again as one that may make no namespace: the limit of its
// own user namespace is 0, and CAP_SYS_ADMIN is out of its reach.
func forbid() {
	runtime.LockOSThread()
	err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
	if err == nil {
		err = unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0)
	}
	if err == nil {
		os.Setenv("NETLAB_TEST_HELPER", "forbidden")
		err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	fmt.Println(err)
	os.Exit(1)
}

func TestForbiddenNamespaces(t *testing.T) {
	newLab(t)
	cmd := helperCommand("forbid")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	must(t, err)
	for _, want := range []string{ErrPrivileges.Error(), "run as root", "sysctl -w user.max_user_namespaces=10000"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("error %q does not say %q", out, want)
		}
	}
}

func helperCommand(mode string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "NETLAB_TEST_HELPER="+mode)
	return cmd
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	lab, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func node(t *testing.T, lab *Lab, name string) *Node {
	t.Helper()
	n, err := lab.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// routed builds client - router - server, for IPv4 and IPv6.
func routed(t *testing.T) (client, router, server *Node) {
	lab := newLab(t)
	client, router, server = node(t, lab, "client"), node(t, lab, "router"), node(t, lab, "server")
	must(t,
		lab.Link(client, "eth0", router, "eth0", LinkOpts{
			AddrsA: []string{"10.0.1.2/24", "fd00:1::2/64"}, AddrsB: []string{"10.0.1.1/24", "fd00:1::1/64"},
		}),
		lab.Link(router, "eth1", server, "eth0", LinkOpts{
			AddrsA: []string{"10.0.2.1/24", "fd00:2::1/64"}, AddrsB: []string{"10.0.2.2/24", "fd00:2::2/64"}, MTU: 9000,
		}),
		router.Forward(),
		client.AddRoute("0.0.0.0/0", "10.0.1.1"), client.AddRoute("::/0", "fd00:1::1"),
		server.AddRoute("0.0.0.0/0", "10.0.2.1"), server.AddRoute("::/0", "fd00:2::1"),
	)
	return client, router, server
}

func TestTransfersThroughRouter(t *testing.T) {
	client, router, server := routed(t)
	for _, c := range []struct {
		name, addr string
		transfer   Transfer
	}{
		{"IPv4", "10.0.2.2:80", Transfer{Size: 3_000_001, Seed: 1}},
		{"IPv6", "[fd00:2::2]:80", Transfer{Size: 3_000_000, Seed: 2}},
		{"empty", "10.0.2.2:81", Transfer{}},
		{"paced", "10.0.2.2:82", Transfer{Size: 100_000, Seed: 3, Rate: 10_000_000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := server.ServeHTTP(c.addr)
			must(t, err)
			down, err := client.Download(testContext(t), s.Addr, c.transfer)
			must(t, err)
			up, err := client.Upload(testContext(t), s.Addr, c.transfer)
			must(t, err)
			if down.Bytes != c.transfer.Size || up.Bytes != c.transfer.Size || s.Sent() != down.Bytes || s.Received() != up.Bytes {
				t.Errorf("down %d, up %d, server sent %d, received %d, want %d",
					down.Bytes, up.Bytes, s.Sent(), s.Received(), c.transfer.Size)
			}
			if down.SHA256 != up.SHA256 {
				t.Errorf("SHA-256 down %s, up %s", down.SHA256, up.SHA256)
			}
		})
	}
	stats, err := router.LinkStats("eth0")
	must(t, err)
	if stats.RxPackets == 0 || stats.RxBytes < 6_000_000 {
		t.Errorf("router received %d packets, %d bytes", stats.RxPackets, stats.RxBytes)
	}
}

func TestDownloadEndsWithContext(t *testing.T) {
	client, _, server := routed(t)
	s, err := server.ServeHTTP("10.0.2.2:80")
	must(t, err)
	why := errors.New("test is over")
	ctx, cancel := context.WithCancelCause(testContext(t))
	go func() {
		for s.Sent() == 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond) // until the transfer moves
		}
		cancel(why)
	}()
	r, err := client.Download(ctx, s.Addr, Transfer{Size: 1 << 30, Rate: 100_000})
	if !errors.Is(err, why) || r.Bytes >= 1<<30 {
		t.Errorf("Download = %d bytes, %v, want %v", r.Bytes, err, why)
	}
}

func TestServerRefuses(t *testing.T) {
	client, _, server := routed(t)
	s, err := server.ServeHTTP("10.0.2.2:80")
	must(t, err)
	for _, bad := range []Transfer{{Size: -1}, {Size: MaxTransfer + 1}, {Size: 1, Rate: -1}} {
		if _, err := client.Download(testContext(t), s.Addr, bad); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("Download(%+v) = %v, want status 400", bad, err)
		}
	}
	if _, err := server.ServeHTTP("10.9.9.9:80"); err == nil {
		t.Error("ServeHTTP on a foreign address succeeded")
	}
}

func TestInjectAndSniff(t *testing.T) {
	lab := newLab(t)
	a, b := node(t, lab, "a"), node(t, lab, "b")
	must(t, lab.Link(a, "eth0", b, "eth0", LinkOpts{NoIPv6: true}))
	ra, err := a.OpenRaw("eth0")
	must(t, err)
	beside, err := a.OpenRaw("eth0")
	must(t, err)
	rb, err := b.OpenRaw("eth0")
	must(t, err)
	mac := []byte{2, 9, 9, 9, 9, 9, 2, 8, 8, 8, 8, 8}
	for _, c := range []struct {
		name string
		rest []byte
	}{
		{"plain", append([]byte{0x88, 0xb5}, "hello"...)},
		{"vlan", append([]byte{0x81, 0x00, 0x20, 0x05, 0x88, 0xb5}, "hello"...)},
		{"service vlan", append([]byte{0x88, 0xa8, 0x00, 0x07, 0x88, 0xb5}, "hello"...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := append(bytes.Clone(mac), c.rest...)
			must(t, ra.Send(frame))
			got, err := rb.Next(testContext(t), func(c Captured) bool { return bytes.HasPrefix(c.Data, mac) })
			must(t, err)
			if !bytes.Equal(got.Data, frame) || got.Outgoing {
				t.Errorf("received %x outgoing %v, want %x", got.Data, got.Outgoing, frame)
			}
			got, err = beside.Next(testContext(t), nil)
			must(t, err)
			if !bytes.Equal(got.Data, frame) || !got.Outgoing {
				t.Errorf("sender's side saw %x outgoing %v, want %x", got.Data, got.Outgoing, frame)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rb.Next(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Next under an ended context: %v", err)
	}
	must(t, ra.Send(append(bytes.Clone(mac), 0x88, 0xb5, 1)))
	if _, err := rb.Next(testContext(t), nil); err != nil {
		t.Errorf("Next after an ended one: %v", err)
	}
	must(t, rb.Close(), rb.Close())
	if _, err := rb.Next(t.Context(), nil); err == nil {
		t.Error("Next on a closed socket succeeded")
	}
}

func TestBridge(t *testing.T) {
	lab := newLab(t)
	mgmt := node(t, lab, "mgmt")
	var hosts []*Node
	for i := range 3 {
		h := node(t, lab, fmt.Sprint("h", i))
		must(t, lab.Link(h, "mgmt", mgmt, fmt.Sprint("p", i), LinkOpts{AddrsA: []string{fmt.Sprintf("10.99.0.%d/24", i+1)}}))
		hosts = append(hosts, h)
	}
	must(t, mgmt.AddBridge("br0", "p0", "p1", "p2"), mgmt.AddAddr("br0", "10.99.0.254/24"))
	for _, target := range []struct {
		n    *Node
		addr string
	}{{hosts[2], "10.99.0.3:7"}, {mgmt, "10.99.0.254:7"}} {
		ln, err := target.n.Listen("tcp", target.addr)
		must(t, err)
		defer ln.Close()
		for _, h := range hosts[:2] {
			c, err := h.DialContext(testContext(t), "tcp", target.addr)
			must(t, err)
			c.Close()
		}
	}
}

func TestProcessRunsInNode(t *testing.T) {
	lab := newLab(t)
	a, b := node(t, lab, "a"), node(t, lab, "b")
	must(t, lab.Link(a, "only-in-a", b, "only-in-b", LinkOpts{}))
	var out bytes.Buffer
	cmd := helperCommand("addrs")
	cmd.Stdout = &out
	p, err := a.Start(cmd)
	must(t, err)
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("Wait = %v, want exit status 3", err)
	}
	if out.String() != "lo only-in-a " {
		t.Errorf("interfaces %q", out.String())
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("Signal after the end: %v", err)
	}
	if _, err := a.Start(exec.Command(filepath.Join(t.TempDir(), "missing"))); err == nil {
		t.Error("Start of a missing program succeeded")
	}
}

func TestCloseEndsProcesses(t *testing.T) {
	lab := newLab(t)
	n := node(t, lab, "n")
	var procs []*Process
	for _, mode := range []string{"wait", "wait", "stubborn"} {
		cmd := helperCommand(mode)
		out, in, err := os.Pipe()
		must(t, err)
		cmd.Stdout = in
		p, err := n.Start(cmd)
		must(t, err, in.Close())
		if mode == "stubborn" {
			_, err := fmt.Fscanln(out, new(string))
			must(t, err)
		}
		must(t, out.Close())
		procs = append(procs, p)
	}
	procs[0].Stop()
	must(t, lab.Close(), lab.Close())
	for _, p := range procs {
		select {
		case <-p.Done():
		default:
			t.Errorf("process %d is left", p.Pid())
		}
	}
	_, err := lab.Node("late")
	if !errors.Is(err, ErrClosed) {
		t.Errorf("Node after Close: %v", err)
	}
	if _, err := n.Start(helperCommand("addrs")); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
}

// A lab whose process is killed leaves no process behind.
func TestKilledLabLeavesNothing(t *testing.T) {
	newLab(t)
	cmd := helperCommand("lab")
	out, err := cmd.StdoutPipe()
	must(t, err)
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	must(t, cmd.Start())
	var line string
	_, err = fmt.Fscanln(out, &line)
	must(t, err)
	pid, err := strconv.Atoi(line)
	must(t, err, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(state, []byte(") Z ")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is left: %s", pid, state)
		}
	}
}

func TestLabsSideBySide(t *testing.T) {
	newLab(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			lab, err := New()
			if err != nil {
				t.Error(err)
				return
			}
			defer lab.Close()
			a, errA := lab.Node("a")
			b, errB := lab.Node("b")
			if err := errors.Join(errA, errB); err != nil {
				t.Error(err)
				return
			}
			if err := lab.Link(a, "eth0", b, "eth0", LinkOpts{AddrsA: []string{"10.0.0.1/24"}, AddrsB: []string{"10.0.0.2/24"}}); err != nil {
				t.Error(err)
				return
			}
			if mac, err := b.HardwareAddr("eth0"); err != nil || mac.String() != "02:00:00:00:00:02" {
				t.Errorf("hardware address %s, %v", mac, err)
			}
		})
	}
	group.Wait()
}

func TestMistakes(t *testing.T) {
	lab := newLab(t)
	a, b := node(t, lab, "a"), node(t, lab, "b")
	must(t, lab.Link(a, "eth0", b, "eth0", LinkOpts{}))
	errOf := func(_ any, err error) error { return err }
	for _, c := range []struct {
		name string
		err  error
		want string // what the error must name
	}{
		{"node twice", errOf(lab.Node("a")), "node a"},
		{"interface twice", lab.Link(a, "eth0", b, "eth1", LinkOpts{}), "a:eth0-b:eth1"},
		{"name too long", lab.Link(a, "a-name-of-16-byte", b, "eth1", LinkOpts{}), "a-name-of-16-byte"},
		{"MTU too small", lab.Link(a, "eth1", b, "eth1", LinkOpts{MTU: 60}), "a:eth1"},
		{"address", a.AddAddr("eth0", "10.0.0.300/24"), "node a: interface eth0"},
		{"no interface", a.SetUp("eth9", true), "eth9"},
		{"route", a.AddRoute("10.0.0.0", "10.0.0.1"), "10.0.0.0"},
		{"gateway", a.AddRoute("10.0.0.0/8", "router"), "router"},
		{"gateway out of reach", a.AddRoute("10.0.0.0/8", "192.0.2.1"), "192.0.2.1"},
		{"neighbour", a.AddNeighbour("eth0", "x", nil), "eth0"},
		{"bridge port", a.AddBridge("br0", "eth9"), "eth9"},
		{"sysctl", a.Sysctl("net/ipv4/no_such_key", "1"), "no_such_key"},
		{"raw", errOf(a.OpenRaw("eth9")), "eth9"},
		{"delete", a.Delete("eth9"), "eth9"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: error %v does not name %q", c.name, c.err, c.want)
		}
	}
}

func TestLinkChanges(t *testing.T) {
	client, router, _ := routed(t)
	must(t,
		client.SetUp("eth0", false), client.SetUp("eth0", true),
		client.SetMTU("eth0", 1400),
		client.AddNeighbour("eth0", "10.0.1.77", net.HardwareAddr{2, 7, 7, 7, 7, 7}),
		client.Delete("eth0"),
	)
	if err := router.SetUp("eth0", true); err == nil {
		t.Error("the other end outlived its peer")
	}
}
