package demo

import (
	"fmt"
	"net/netip"
	"time"

	"countersign/controller/config"
	"countersign/directory/static"
	"countersign/tag"
	"countersign/test/netlab"
)

// The ports of every firewall at an edge; those of t have the numbers of the
// members they lead to.
const (
	lanPort   = 1
	trunkPort = 2

	hostMTU  = 1500
	trunkMTU = 1800 // a full packet and the longest tag, 284 bytes
)

// Addresses that are not in members.
const (
	clientNet  = "10.1.0.0/24"
	clientAddr = "10.1.0.10"
	serverNet  = "10.2.0.0/24"
	serverAddr = "10.2.0.10"
	webAddr    = serverAddr + ":80"

	directoryAddr = "10.99.0.1:7443"
)

// member is what the topology says of one firewall at an edge.
type member struct {
	name, site string
	lan        string // network
	address    string // in it
	far        string // network behind t
	trunk      int    // number of its link to t: 10.9.N.1, t is 10.9.N.2
}

var edges = []member{
	{"c1", "client", clientNet, "10.1.0.1", serverNet, 1},
	{"c2", "client", clientNet, "10.1.0.2", serverNet, 2},
	{"s1", "server", serverNet, "10.2.0.1", clientNet, 3},
	{"s2", "server", serverNet, "10.2.0.2", clientNet, 4},
}

// names are the members in the order in which figures name them: as a request
// and its reply meet them.
var names = []string{"c1", "t", "s1", "s2", "c2"}

var sites = map[string]string{"c1": "client", "c2": "client", "s1": "server", "s2": "server", "t": "transit"}

// management is the address of a member in the management network.
func management(name string) string {
	for i, n := range names {
		if n == name {
			return fmt.Sprintf("10.99.0.%d", 11+i)
		}
	}
	return ""
}

func metricsAddr(name string) string { return management(name) + ":9100" }
func siblingAddr(name string) string { return management(name) + ":7500" }

func near(trunk int) string { return fmt.Sprintf("10.9.%d.1", trunk) }
func far(trunk int) string  { return fmt.Sprintf("10.9.%d.2", trunk) }

// build makes the namespaces, links, addresses and routes.
func (n *network) build() (err error) {
	if n.lab, err = netlab.New(); err != nil {
		return err
	}
	n.nodes = map[string]*netlab.Node{}
	for _, name := range append([]string{"client", "server", clientNet, serverNet, "management", wire, attacker}, names...) {
		if n.nodes[name], err = n.lab.Node(name); err != nil {
			return err
		}
	}
	segment := map[string][]string{}
	link := func(a, ifA, b, ifB string, o netlab.LinkOpts) {
		if err == nil {
			err = n.lab.Link(n.nodes[a], ifA, n.nodes[b], ifB, o)
		}
		segment[b] = append(segment[b], ifB)
	}
	quiet, trunk := netlab.LinkOpts{NoIPv6: true}, netlab.LinkOpts{MTU: trunkMTU, NoIPv6: true}
	link("client", "eth0", clientNet, "client", netlab.LinkOpts{NoIPv6: true, AddrsA: []string{clientAddr + "/24"}})
	link("server", "eth0", serverNet, "server", netlab.LinkOpts{NoIPv6: true, AddrsA: []string{serverAddr + "/24"}})
	for _, m := range edges {
		link(m.name, "lan", m.lan, m.name, quiet)
		if m.name == "c1" {
			link(m.name, "trunk", wire, m.name, trunk)
			link("t", m.name, wire, "t", trunk)
			link(attacker, "eth0", wire, attacker, trunk)
			continue
		}
		link(m.name, "trunk", "t", m.name, trunk)
	}
	for _, name := range names {
		link(name, "mgmt", "management", name, netlab.LinkOpts{NoIPv6: true, AddrsA: []string{management(name) + "/24"}})
	}
	for _, net := range []string{clientNet, serverNet, "management", wire} {
		if err == nil {
			err = n.nodes[net].Sysctl("net/ipv6/conf/default/disable_ipv6", "1") // a bridge would speak for itself
		}
		if err == nil {
			err = n.nodes[net].AddBridge("bridge", segment[net]...)
		}
	}
	if err == nil {
		err = n.teach()
	}
	if err != nil {
		return err
	}
	if err := n.nodes["management"].AddAddr("bridge", "10.99.0.1/24"); err != nil {
		return err
	}
	// Requests leave by c1, replies by s2.
	if err := n.nodes["client"].AddRoute("0.0.0.0/0", "10.1.0.1"); err != nil {
		return err
	}
	return n.nodes["server"].AddRoute("0.0.0.0/0", "10.2.0.2")
}

// The trunk between c1 and t is a segment that an attacker has got at: what it
// injects must come from a port of its own, because bmv2 sees what others send
// on its interfaces too.
const (
	wire     = "wire"
	attacker = "attacker"
)

// teach has the wire's bridge know where t is, so that the attacker's packets
// go to t only: t itself sends nothing this way.
func (n *network) teach() error {
	mac, err := n.nodes["t"].HardwareAddr("c1")
	if err != nil {
		return err
	}
	raw, err := n.nodes["t"].OpenRaw("c1")
	if err != nil {
		return err
	}
	defer raw.Close()
	frame := make([]byte, 60)
	copy(frame, attackerMAC[:])
	copy(frame[6:], mac)
	frame[12], frame[13] = 0x88, 0xb5 // IEEE 802, local experiments
	return raw.Send(frame)
}

// interfaces are the ports of a member's data plane.
func interfaces(name string) map[uint16]string {
	if name != "t" {
		return map[uint16]string{lanPort: "lan", trunkPort: "trunk"}
	}
	ports := map[uint16]string{}
	for _, m := range edges {
		ports[uint16(m.trunk)] = m.name
	}
	return ports
}

// configuration is a controller's. Without tags the trunks are edges and every
// firewall admits whatever begins a session, as far as it can tell alone.
func (n *network) configuration(name string, tags bool) (*config.Config, error) {
	c := &config.Config{
		Member: name, Site: sites[name], Sign: n.suite.String(),
		Devices: []config.Device{{Name: "dp", ID: 1, Address: "unix://" + n.socket(name)}},
		Metrics: metricsAddr(name),
		// A whole TCP window may be held behind the first packet of a new tag.
		Punts: config.Punts{Queue: 1024},
	}
	role := "edge"
	if tags {
		role = "trunk"
	}
	var err error
	mac := func(node, name string) string {
		hw, e := n.nodes[node].HardwareAddr(name)
		if e != nil {
			err = e
		}
		return hw.String()
	}
	prefix := func(addr string, bits int) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr), bits)}
	}
	neighbour := func(addr, mac string) {
		c.Neighbours = append(c.Neighbours, config.Neighbour{Address: netip.MustParseAddr(addr), MAC: mac})
	}
	route := func(to, via string) {
		c.Routes = append(c.Routes, config.Route{To: netip.MustParsePrefix(to), Via: []netip.Addr{netip.MustParseAddr(via)}})
	}
	for _, m := range edges {
		switch name {
		case m.name:
			c.Ports = append(c.Ports,
				config.Port{Port: lanPort, Name: "lan", Role: "edge", MTU: hostMTU, MAC: mac(name, "lan"), Addresses: prefix(m.address, 24)},
				config.Port{Port: trunkPort, Name: "wan", Role: role, MTU: trunkMTU, MAC: mac(name, "trunk"), Addresses: prefix(near(m.trunk), 30)})
			neighbour(far(m.trunk), mac("t", m.name))
			route(m.far, far(m.trunk))
		case "t":
			c.Ports = append(c.Ports, config.Port{
				Port: uint16(m.trunk), Name: m.name, Role: role, MTU: trunkMTU, MAC: mac(name, m.name), Addresses: prefix(far(m.trunk), 30)})
			neighbour(near(m.trunk), mac(m.name, "trunk"))
		}
	}
	if name == "t" {
		route(serverNet, near(3)) // by s1
		route(clientNet, near(2)) // by c2
	}
	if !tags {
		c.Policy = []config.Rule{{Name: "any", Action: "admit"}}
		c.Static = &static.Config{Members: []static.Member{{Name: name, UNID: 1, Suites: []tag.Suite{n.suite}}}}
		return c, err
	}
	c.Directory = &config.Directory{Address: directoryAddr, State: n.path(name + ".state"), TokenFile: n.path(name + ".token")}
	switch sites[name] {
	case "client":
		c.Policy = []config.Rule{{Name: "web", From: "lan", To: "wan", Protocol: "tcp", DstPort: config.PortRange{Low: 80, High: 80}, Action: "admit"}}
		c.Siblings.Listen = siblingAddr(name)
	case "server":
		c.Serves = []config.Service{{Prefix: netip.MustParsePrefix(serverNet), Protocol: "tcp", Port: config.PortRange{Low: 80, High: 80}}}
		c.Siblings.Listen = siblingAddr(name)
	}
	return c, err
}

// grace is how long the directory has an old key accepted: short, so that what
// is older is stale soon enough to be shown.
const grace = 2 * time.Second
