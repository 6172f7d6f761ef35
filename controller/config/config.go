// Package config is the one YAML file of a controller: what it may say, how it
// is read, and what is wrong with it, by file, line and key.
package config

import (
	"net/netip"
	"time"

	"countersign/directory/static"
)

// Config is the file of one controller. The zero value is not valid: Load and
// Parse return only values that passed Validate.
type Config struct {
	// Member is the name of this firewall in the alliance.
	Member string `yaml:"member"`
	// Site groups firewalls behind one egress; siblings share it.
	Site string `yaml:"site"`
	// Devices are the member's data planes, at least one.
	Devices []Device `yaml:"devices"`
	// Ports of all devices.
	Ports []Port `yaml:"ports"`
	// CrossConnects join ports transparently, in place of routes.
	CrossConnects []CrossConnect `yaml:"cross_connects,omitempty"`
	// Routes by longest match.
	Routes []Route `yaml:"routes,omitempty"`
	// Neighbours with known link-layer addresses; others are resolved.
	Neighbours []Neighbour `yaml:"neighbours,omitempty"`
	// Sign is the suite that the member signs with: siphash (default), ed25519
	// or rsa2048.
	Sign string `yaml:"sign,omitempty"`
	// Carrier must agree with the alliance's bundle, and is used alone with
	// static keys.
	Carrier Carrier `yaml:"carrier,omitempty"`
	// Serves are the prefixes and services of the site: the servers of
	// sessions that siblings may announce, and whose replies wait for them.
	Serves []Service `yaml:"serves,omitempty"`
	// Policy in order; the first rule that matches decides, none denies.
	Policy []Rule `yaml:"policy,omitempty"`
	// Sessions holds idle timeouts and limits.
	Sessions Sessions `yaml:"sessions,omitempty"`
	// Punts holds the budgets of what the data plane sends to the controller.
	Punts Punts `yaml:"punts,omitempty"`
	// Siblings tells how members of one site share sessions.
	Siblings Siblings `yaml:"siblings,omitempty"`
	// Directory is the management server; Static stands in its place.
	Directory *Directory     `yaml:"directory,omitempty"`
	Static    *static.Config `yaml:"static,omitempty"`
	// Admin is the Unix socket of the controller's admin API.
	Admin string `yaml:"admin,omitempty"`
	// Metrics is the host:port that Prometheus scrapes.
	Metrics string `yaml:"metrics,omitempty"`

	source *source
}

// Device is one data plane.
type Device struct {
	Name string `yaml:"name"`
	// ID is the P4Runtime device id, default 1.
	ID uint64 `yaml:"id,omitempty"`
	// Address is unix:///path, a loopback host:port, or host:port with TLS.
	Address string `yaml:"address"`
	TLS     *TLS   `yaml:"tls,omitempty"`
}

// TLS names the PEM files of mutual TLS.
type TLS struct {
	CA         string `yaml:"ca"`
	Cert       string `yaml:"cert"`
	Key        string `yaml:"key"`
	ServerName string `yaml:"server_name,omitempty"`
}

// Port is a port of a data plane, or one VLAN of it.
type Port struct {
	// Device is a name of Devices, by default the first.
	Device string `yaml:"device,omitempty"`
	// Port number of the data plane, 1 to 509.
	Port uint16 `yaml:"port"`
	// VLAN id, 1 to 4094, or 0 for untagged frames.
	VLAN uint16 `yaml:"vlan,omitempty"`
	// Name is unique and is what other keys refer to.
	Name string `yaml:"name"`
	// Role: edge, trunk or echo.
	Role string `yaml:"role"`
	// Zone is the name that rules use, by default the port's.
	Zone string `yaml:"zone,omitempty"`
	// MTU in bytes of the IP packet, by default 1500.
	MTU uint16 `yaml:"mtu,omitempty"`
	// MAC that the member uses on this port.
	MAC string `yaml:"mac"`
	// Addresses of the member, with the prefix that is reached directly.
	Addresses []netip.Prefix `yaml:"addresses,omitempty"`
	// AllowUntagged lets untagged packets in by a trunk, as by an edge.
	AllowUntagged bool `yaml:"allow_untagged,omitempty"`
}

// CrossConnect joins two ports of one device, both ways.
type CrossConnect struct {
	A string `yaml:"a"`
	B string `yaml:"b"`
}

// Route sends a prefix to next hops, several of them by flow.
type Route struct {
	To  netip.Prefix `yaml:"to"`
	Via []netip.Addr `yaml:"via"`
	// Device limits the route to one data plane; by default every device that
	// reaches a next hop directly has it.
	Device string `yaml:"device,omitempty"`
}

// Neighbour is a fixed link-layer address.
type Neighbour struct {
	Address netip.Addr `yaml:"address"`
	MAC     string     `yaml:"mac"`
}

// Carrier is how tags are announced (docs/wire.md).
type Carrier struct {
	// Kind: ip (default) or udp.
	Kind string `yaml:"kind,omitempty"`
	// Protocol of carrier ip, default 253.
	Protocol uint8 `yaml:"protocol,omitempty"`
	// Port of carrier udp, default 25300.
	Port uint16 `yaml:"port,omitempty"`
}

// Service is a prefix, or a service in it, that the site serves.
type Service struct {
	Prefix   netip.Prefix `yaml:"prefix"`
	Protocol string       `yaml:"protocol,omitempty"`
	Port     PortRange    `yaml:"port,omitempty"`
}

// Rule of the policy. Empty fields match anything.
type Rule struct {
	Name string `yaml:"name,omitempty"`
	// From and To are zones of the ingress and egress port.
	From string `yaml:"from,omitempty"`
	To   string `yaml:"to,omitempty"`
	// Src and Dst are prefixes of one family.
	Src netip.Prefix `yaml:"src,omitempty"`
	Dst netip.Prefix `yaml:"dst,omitempty"`
	// Protocol: tcp, udp, icmp, icmpv6, sctp, dccp, udplite, or a number.
	Protocol string    `yaml:"protocol,omitempty"`
	SrcPort  PortRange `yaml:"src_port,omitempty"`
	DstPort  PortRange `yaml:"dst_port,omitempty"`
	// Action: admit (keep a session), tag (by the rule alone, no session, for
	// members that sign with siphash) or deny.
	Action string `yaml:"action"`
	// Always makes a deny rule bind tagged packets too.
	Always bool `yaml:"always,omitempty"`
	// Midstream lets an admit rule take TCP packets other than SYN.
	Midstream bool `yaml:"midstream,omitempty"`
}

// Sessions holds idle timeouts.
type Sessions struct {
	TCP   Duration `yaml:"tcp,omitempty"`   // default 1h
	UDP   Duration `yaml:"udp,omitempty"`   // default 60s
	ICMP  Duration `yaml:"icmp,omitempty"`  // default 30s
	Other Duration `yaml:"other,omitempty"` // default 10m
	// Closing is how long a TCP session stays after FIN or RST, default 30s.
	Closing Duration `yaml:"closing,omitempty"`
	// Max is the number of sessions that the controller keeps, default 4194304.
	Max int `yaml:"max,omitempty"`
}

// Punts bounds what reaches the controller.
type Punts struct {
	// Workers decide in parallel, default 256.
	Workers int `yaml:"workers,omitempty"`
	// Queue is how many punts wait for each worker, default 256.
	Queue int `yaml:"queue,omitempty"`
	// Rates in packets a second by reason, for each role and zone; a reason
	// that is not named keeps its default.
	Rates map[string]uint32 `yaml:"rates,omitempty"`
}

// Siblings shares sessions among the members of one site.
type Siblings struct {
	// Listen is the host:port for the siblings' connections; empty shares none.
	Listen string `yaml:"listen,omitempty"`
	// Mode: eager (default, announced sessions are installed) or lazy (kept in
	// memory until a packet asks).
	Mode string `yaml:"mode,omitempty"`
	// Wait is how long a reply is held for its announcement, default 500ms.
	Wait Duration `yaml:"wait,omitempty"`
	// Held is how many packets wait in all, default 4096.
	Held int `yaml:"held,omitempty"`
}

// Directory is where and how the management server is reached.
type Directory struct {
	Address string `yaml:"address"`
	// State is a directory, mode 0700, for identity, bundle and keys.
	State string `yaml:"state"`
	// TokenFile holds the one-time token of enrolment; it is read when State
	// holds no identity yet.
	TokenFile string `yaml:"token_file,omitempty"`
	// KeyFile holds the key that private keys are encrypted under, by default
	// made beside the state.
	KeyFile string `yaml:"key_file,omitempty"`
	// RotateEvery is how often each signing key is replaced, with jitter,
	// default 24h; CodeEvery how often the anti-impersonation code is, default
	// 1h.
	RotateEvery Duration `yaml:"rotate_every,omitempty"`
	CodeEvery   Duration `yaml:"code_every,omitempty"`
}

// Duration is a time.Duration that YAML writes as "500ms", "30s" or "1h".
type Duration time.Duration

// Std is the duration as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// MarshalText writes the duration as time.Duration prints it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}
