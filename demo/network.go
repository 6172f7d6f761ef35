package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"countersign/bmv2/launcher"
	"countersign/controller/config"
	"countersign/directory/client"
	"countersign/directory/clock"
	pb "countersign/directory/proto"
	"countersign/directory/server"
	"countersign/tag"
	"countersign/test/netlab"
)

// network is the demonstration of one suite: namespaces and processes. The zero
// value with its options set is ready for setUp. It is for one goroutine.
type network struct {
	o     *Options
	suite tag.Suite
	dir   string

	lab         *netlab.Lab
	nodes       map[string]*netlab.Node
	processes   []*process
	controllers map[string]*process
	switches    []*launcher.Switch
	closers     []io.Closer
	http        *http.Client
	operator    pb.AdministrationClient
}

// process is a running command with its log.
type process struct {
	*netlab.Process
	name, log string
	stopped   bool
}

func (n *network) path(name string) string   { return filepath.Join(n.dir, name) }
func (n *network) socket(name string) string { return n.path(name + ".sock") }

// close ends every process and takes the network down.
func (n *network) close() {
	for i := len(n.closers) - 1; i >= 0; i-- {
		n.closers[i].Close()
	}
	if n.http != nil {
		n.http.CloseIdleConnections()
	}
	if n.lab != nil {
		n.lab.Close() // ends the switches too
	}
	for _, s := range n.switches {
		<-s.Done()
	}
}

// start runs this project's program in a node, with its output in a log.
func (n *network) start(node, name string, args ...string) (*process, error) {
	p := &process{name: name, log: n.path(name + ".log")}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own copy
	cmd := exec.Command(n.o.Program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if p.Process, err = n.nodes[node].Start(cmd); err != nil {
		return nil, err
	}
	n.processes = append(n.processes, p)
	return p, nil
}

// ended is an error that names the processes that have ended by themselves,
// with the last of what they said.
func (n *network) ended() error {
	var errs []error
	for _, p := range n.processes {
		select {
		case <-p.Done():
			if !p.stopped {
				errs = append(errs, fmt.Errorf("%s ended: %v: %s", p.name, p.Wait(), tail(p.log)))
			}
		default:
		}
	}
	return errors.Join(errs...)
}

// tail is the last line of a file.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	s := strings.TrimSpace(string(b))
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// until calls f until it returns nil. It fails with f's last error after limit,
// and at once where a process has ended.
func (n *network) until(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if err := n.ended(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", limit, last)
		case <-t.C:
		}
	}
}

// setUp builds the network and starts the data planes and the servers.
func (n *network) setUp(ctx context.Context) []Row {
	if err := n.launch(ctx); err != nil {
		return setUpFailed(err)
	}
	return nil
}

func setUpFailed(err error) []Row {
	return []Row{{Step: "0 set-up", Why: err.Error(), fatal: true}}
}

func (n *network) launch(ctx context.Context) error {
	if err := n.build(); err != nil {
		return err
	}
	n.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: n.nodes["management"].DialContext}}
	if _, err := n.nodes["server"].ServeHTTP(webAddr); err != nil {
		return err
	}
	for _, name := range names {
		if err := n.dataPlane(ctx, name); err != nil {
			return fmt.Errorf("data plane of %s: %w", name, err)
		}
	}
	return nil
}

// dataPlane starts a member's data plane, without a pipeline or entries.
func (n *network) dataPlane(ctx context.Context, name string) error {
	if n.o.Target == Fallback {
		args := []string{"fallback", "--listen", "unix://" + n.socket(name), "--device-id", "1"}
		for port, ifname := range interfaces(name) {
			args = append(args, "--port", fmt.Sprintf("%d=%s", port, ifname))
		}
		_, err := n.start(name, name+"-fallback", args...)
		return err
	}
	log, err := os.Create(n.path(name + "-bmv2.log"))
	if err != nil {
		return err
	}
	n.closers = append(n.closers, log)
	ports := map[uint32]string{}
	for port, ifname := range interfaces(name) {
		ports[uint32(port)] = ifname
	}
	s, err := launcher.Launch(ctx, launcher.Config{
		DeviceID: 1, Ports: ports, Socket: n.socket(name), Log: log,
		Start: func(cmd *exec.Cmd) (launcher.Process, error) { return n.nodes[name].Start(cmd) },
	})
	if err == nil {
		n.switches = append(n.switches, s)
	}
	return err
}

// patience bounds what is only waited for: five bmv2 take 30 s and more to load
// the pipeline on a busy machine.
const patience = 3 * time.Minute

// control starts every member's controller, in place of those that run, and
// waits until the data planes have what they shall have.
func (n *network) control(ctx context.Context, tags bool) error {
	for _, p := range n.controllers {
		p.stopped = true
		if err := p.Signal(terminate); err != nil {
			return err
		}
	}
	for _, p := range n.controllers {
		select {
		case <-p.Done():
		case <-time.After(5 * time.Second):
			p.Stop()
		}
	}
	n.controllers = map[string]*process{}
	for _, name := range names {
		c, err := n.configuration(name, tags)
		if err != nil {
			return err
		}
		text, err := yaml.Marshal(c)
		if err != nil {
			return err
		}
		file := n.path(name + ".yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
		if _, err := config.Load(file); err != nil {
			return err
		}
		if n.controllers[name], err = n.start(name, name+"-controller", "controller", "-c", file); err != nil {
			return err
		}
	}
	return n.until(ctx, patience, func(ctx context.Context) error {
		for _, name := range names {
			s, err := n.scrape(ctx, name)
			if err != nil {
				return err
			}
			if !s.synced {
				return fmt.Errorf("the data plane of %s has not got its entries", name)
			}
		}
		return nil
	})
}

// direct starts the directory and connects an operator.
func (n *network) direct() error {
	const lifetime = time.Hour
	state := n.path("directory")
	cfg := server.Config{State: state, Address: directoryAddr, Listen: directoryAddr, Alliance: "demo"}
	credential, err := server.Init(cfg, "demo")
	if err != nil {
		return err
	}
	file := n.path("directory.yaml")
	text := fmt.Sprintf("state: %q\nlisten: %q\naddress: %q\nalliance: demo\ngrace: %v\nack_timeout: 10s\nbundle_lifetime: %v\njoin_rate: 1000\n",
		state, directoryAddr, directoryAddr, grace, lifetime)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := n.start("management", "directory", "directory", "-c", file); err != nil {
		return err
	}
	at, err := n.relay(directoryAddr)
	if err != nil {
		return err
	}
	operator, conn, err := client.DialOperator(credential, at, clock.System{})
	if err != nil {
		return err
	}
	n.operator, n.closers = operator, append(n.closers, conn)
	return nil
}

// relay listens on a Unix socket for connections to addr in the management
// network, and returns its address for gRPC.
func (n *network) relay(addr string) (string, error) {
	path := n.path("operator.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", err
	}
	n.closers = append(n.closers, l)
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			far, err := n.nodes["management"].DialContext(ctx, "tcp", addr)
			cancel()
			if err != nil {
				near.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(way[0], way[1]) // either end closes both
					way[0].Close()
					way[1].Close()
				}()
			}
		}
	}()
	return "unix://" + path, nil
}

// enrol makes an alliance: a directory, five invitations, five controllers with
// tags, and keys that everybody has.
func (n *network) enrol(ctx context.Context) []Row {
	if err := n.ally(ctx); err != nil {
		return setUpFailed(err)
	}
	return nil
}

func (n *network) ally(ctx context.Context) error {
	if err := n.direct(); err != nil {
		return err
	}
	suite := pb.Suite(n.suite)
	for _, name := range names {
		var token string
		err := n.until(ctx, 10*time.Second, func(ctx context.Context) error {
			r, err := n.operator.Invite(ctx, &pb.InviteRequest{
				Name: name, Site: sites[name], Suites: []pb.Suite{suite}, Sibling: siblingAddr(name), Role: pb.Role_ROLE_MEMBER,
			})
			token = r.GetToken()
			return err
		})
		if err != nil {
			return fmt.Errorf("invite %s: %w", name, err)
		}
		if err := os.WriteFile(n.path(name+".token"), []byte(token), 0o600); err != nil {
			return err
		}
	}
	for site, prefix := range map[string]string{"client": clientNet, "server": serverNet} {
		if _, err := n.operator.SetSite(ctx, &pb.SetSiteRequest{Site: &pb.Site{Name: site, Prefixes: []string{prefix}}}); err != nil {
			return fmt.Errorf("site %s: %w", site, err)
		}
	}
	if err := n.control(ctx, true); err != nil {
		return err
	}
	return n.until(ctx, patience, n.standing)
}

// standing returns nil once every member signs with a key that all others have,
// and has the next one and a reserve laid up.
func (n *network) standing(ctx context.Context) error {
	keys, err := n.keys(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !keys.has(name, pb.KeyState_KEY_STATE_CURRENT) || !keys.has(name, pb.KeyState_KEY_STATE_NEXT) {
			return fmt.Errorf("%s has no current or next key", name)
		}
	}
	st, err := n.operator.Status(ctx, &pb.StatusRequest{})
	switch {
	case err != nil:
		return err
	case int(st.Connected) != len(names):
		return fmt.Errorf("%d of %d members are connected", st.Connected, len(names))
	case int(st.Reserves) < len(names):
		return fmt.Errorf("%d of %d members have laid up a reserve key", st.Reserves, len(names))
	}
	return n.acknowledged(ctx, names, st.Version)
}

// acknowledged returns nil once the data planes of these members have the keys
// of a version of the bundle, and wait for none.
func (n *network) acknowledged(ctx context.Context, members []string, version uint64) error {
	list, err := n.operator.List(ctx, &pb.ListRequest{})
	if err != nil {
		return err
	}
	have := map[string]uint64{}
	for _, m := range list.Members {
		if len(m.WaitingFor) == 0 {
			have[m.GetMember().GetName()] = m.Acknowledged
		}
	}
	for _, name := range members {
		if have[name] < version {
			return fmt.Errorf("%s has acknowledged %d of %d", name, have[name], version)
		}
	}
	return nil
}
