package config

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"countersign/tables"
	"countersign/tag"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 8 << 20

// Error is one thing wrong with a configuration, where it is.
type Error struct {
	File   string
	Line   int    // from 1; 0 where the whole file is meant
	Column int    // from 1
	Key    string // path of the key, like ports[2].role
	Err    error
}

// Error formats e as FILE:LINE:COLUMN: KEY: reason.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// source remembers where keys stand, for errors found after parsing.
type source struct {
	file string
	tree *ast.File
}

// Load reads and checks the file. All errors name the file, and where they
// concern a key, its line.
func Load(path string) (*Config, error) {
	f, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if f.Size() > maxFile {
		return nil, &Error{File: path, Err: fmt.Errorf("%d bytes, at most %d are read", f.Size(), maxFile)}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse reads and checks data, which is called file in errors. Unknown keys
// are refused.
func Parse(file string, data []byte) (cfg *Config, err error) {
	defer func() {
		// The YAML library has panicked on hostile documents before.
		if p := recover(); p != nil {
			cfg, err = nil, &Error{File: file, Err: fmt.Errorf("not readable as YAML: %v", p)}
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if err := checkNesting(tokens); err != nil {
		return nil, located(file, err)
	}
	tree, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, located(file, err)
	}
	cfg = &Config{source: &source{file: file, tree: tree}}
	if err := cfg.checkDocuments(); err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalWithOptions(data, cfg, yaml.Strict(), yaml.DisallowUnknownField()); err != nil {
		if path, terr := misread(tree.Docs[0].Body, reflect.TypeFor[Config](), ""); terr != nil {
			return nil, cfg.At(path, terr)
		}
		return nil, located(file, err)
	}
	if err := cfg.checkSchema(data); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// maxNesting bounds the brackets open at once, for which the YAML library needs
// memory and time by the square.
const maxNesting = 64

func checkNesting(tokens token.Tokens) error {
	depth := 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		if depth > maxNesting {
			return &yaml.SyntaxError{Message: fmt.Sprintf("more than %d brackets are open", maxNesting), Token: t}
		}
	}
	return nil
}

// checkDocuments refuses an empty file, and what stands behind a second "---": the decoder would
// pass over it.
func (c *Config) checkDocuments() error {
	docs := c.source.tree.Docs
	if len(docs) == 0 || docs[0].Body == nil {
		return &Error{File: c.source.file, Err: errors.New("is empty")}
	}
	if len(docs) == 1 {
		return nil
	}
	out := &Error{File: c.source.file, Err: errors.New("a second YAML document; a configuration is one")}
	if start := docs[1].Start; start != nil {
		out.Line, out.Column = start.Position.Line, start.Position.Column
	}
	return out
}

// misread finds the first text in n that type t, or a type inside it, cannot
// read, and its path: the YAML library tells the error without the place.
func misread(n ast.Node, t reflect.Type, path string) (string, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v, ok := reflect.New(t).Interface().(encoding.TextUnmarshaler); ok {
		if s, ok := n.(ast.ScalarNode); ok && n.Type() != ast.NullType {
			return path, v.UnmarshalText([]byte(s.GetToken().Value))
		}
		return path, nil
	}
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.SequenceNode:
		if k := t.Kind(); k != reflect.Slice && k != reflect.Array {
			return path, nil
		}
		for i, e := range n.Values {
			if p, err := misread(e, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return p, err
			}
		}
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	}
	for _, kv := range values {
		name, of := kv.Key.GetToken().Value, reflect.Type(nil)
		switch t.Kind() {
		case reflect.Map:
			of = t.Elem()
		case reflect.Struct:
			for f := range t.Fields() {
				if tagged, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); tagged == name {
					of = f.Type
				}
			}
		}
		if of == nil {
			continue
		}
		if p, err := misread(kv.Value, of, strings.TrimPrefix(path+"."+name, ".")); err != nil {
			return p, err
		}
	}
	return path, nil
}

// located turns an error of the YAML library into an Error.
func located(file string, err error) error {
	out := &Error{File: file, Err: err}
	var y yaml.Error
	if errors.As(err, &y) {
		out.Err = errors.New(y.GetMessage())
		if tk := y.GetToken(); tk != nil && tk.Position != nil {
			out.Line, out.Column = tk.Position.Line, tk.Position.Column
		}
	}
	return out
}

// At returns an error about the key at path, for example ports[2].role; it is
// for whatever is found out about a configuration after it was read.
func (c *Config) At(path string, err error) error {
	out := &Error{File: "configuration", Key: path, Err: err}
	if c.source == nil {
		return out
	}
	out.File = c.source.file
	// A missing key is reported at the nearest one that is there.
	for p := path; p != ""; {
		if yp, perr := yaml.PathString("$." + p); perr == nil {
			if node, nerr := yp.FilterFile(c.source.tree); nerr == nil && node != nil && node.GetToken() != nil {
				pos := node.GetToken().Position
				out.Line, out.Column = pos.Line, pos.Column
				break
			}
		}
		i := strings.LastIndexAny(p, ".[")
		p = p[:max(i, 0)]
	}
	return out
}

func (c *Config) setDefaults() {
	def := func(d *Duration, v time.Duration) { *d = cmp.Or(*d, Duration(v)) }
	c.Sign = cmp.Or(c.Sign, tag.Siphash.String())
	if c.Static != nil {
		// Either place names the carrier; Validate refuses a contradiction.
		s := &c.Static.Carrier
		c.Carrier.Kind, c.Carrier.Protocol, c.Carrier.Port = cmp.Or(c.Carrier.Kind, s.Kind), cmp.Or(c.Carrier.Protocol, s.Protocol), cmp.Or(c.Carrier.Port, s.Port)
		s.Kind, s.Protocol, s.Port = cmp.Or(s.Kind, c.Carrier.Kind), cmp.Or(s.Protocol, c.Carrier.Protocol), cmp.Or(s.Port, c.Carrier.Port)
	}
	c.Carrier.Kind = cmp.Or(c.Carrier.Kind, "ip")
	c.Carrier.Protocol = cmp.Or(c.Carrier.Protocol, 253)
	c.Carrier.Port = cmp.Or(c.Carrier.Port, 25300)
	c.Site = cmp.Or(c.Site, c.Member)
	for i := range c.Devices {
		c.Devices[i].ID = cmp.Or(c.Devices[i].ID, 1)
	}
	for i := range c.Ports {
		p := &c.Ports[i]
		if p.Device == "" && len(c.Devices) > 0 {
			p.Device = c.Devices[0].Name
		}
		p.Zone = cmp.Or(p.Zone, p.Name)
		p.MTU = cmp.Or(p.MTU, 1500)
	}
	def(&c.Sessions.TCP, time.Hour)
	def(&c.Sessions.UDP, time.Minute)
	def(&c.Sessions.ICMP, 30*time.Second)
	def(&c.Sessions.Other, 10*time.Minute)
	def(&c.Sessions.Closing, 30*time.Second)
	if c.Directory != nil {
		def(&c.Directory.RotateEvery, 24*time.Hour)
		def(&c.Directory.CodeEvery, time.Hour)
	}
	c.Sessions.Max = cmp.Or(c.Sessions.Max, 4194304)
	c.Punts.Workers = cmp.Or(c.Punts.Workers, 256)
	c.Punts.Queue = cmp.Or(c.Punts.Queue, 256)
	c.Siblings.Mode = cmp.Or(c.Siblings.Mode, "eager")
	def(&c.Siblings.Wait, 500*time.Millisecond)
	c.Siblings.Held = cmp.Or(c.Siblings.Held, 4096)
}

// Validate checks everything that can be checked without a data plane. Every
// error is an *Error; the first one found is returned.
func (c *Config) Validate() error {
	if c.Member == "" {
		return c.At("member", errors.New("is missing: the name of this firewall in the alliance"))
	}
	if len(c.Devices) == 0 {
		return c.At("devices", errors.New("at least one data plane is needed"))
	}
	devices := map[string]bool{}
	for i, d := range c.Devices {
		key := fmt.Sprintf("devices[%d]", i)
		switch {
		case d.Name == "":
			return c.At(key+".name", errors.New("is missing"))
		case devices[d.Name]:
			return c.At(key+".name", fmt.Errorf("%q is there twice", d.Name))
		case d.Address == "":
			return c.At(key+".address", errors.New("is missing: unix:///path or host:port of the data plane's P4Runtime server"))
		case !strings.HasPrefix(d.Address, "unix://"):
			if err := hostPort(d.Address); err != nil {
				return c.At(key+".address", err)
			}
		}
		devices[d.Name] = true
	}
	for _, check := range []func() error{c.validatePorts, c.validateRoutes, c.validateRules, c.validateRest} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validatePorts() error {
	if len(c.Ports) == 0 {
		return c.At("ports", errors.New("at least one port is needed"))
	}
	names := map[string]bool{}
	type place struct {
		device string
		port   uint16
		vlan   uint16
	}
	places := map[place]string{}
	known := map[string]bool{}
	for _, d := range c.Devices {
		known[d.Name] = true
	}
	for i := range c.Ports {
		p := &c.Ports[i]
		key := fmt.Sprintf("ports[%d]", i)
		if !known[p.Device] {
			return c.At(key+".device", fmt.Errorf("no device %q", p.Device))
		}
		if p.Port == 0 || p.Port > 509 {
			return c.At(key+".port", fmt.Errorf("%d is not in 1..509", p.Port))
		}
		if p.VLAN > 4094 {
			return c.At(key+".vlan", fmt.Errorf("%d is not in 0..4094", p.VLAN))
		}
		if p.Name == "" {
			return c.At(key+".name", errors.New("is missing"))
		}
		if names[p.Name] {
			return c.At(key+".name", fmt.Errorf("%q is there twice", p.Name))
		}
		names[p.Name] = true
		at := place{p.Device, p.Port, p.VLAN}
		if other := places[at]; other != "" {
			return c.At(key+".port", fmt.Errorf("port %d, VLAN %d of %s is %q already", p.Port, p.VLAN, p.Device, other))
		}
		places[at] = p.Name
		role, err := p.RoleOf()
		if err != nil {
			return c.At(key+".role", err)
		}
		if p.AllowUntagged && role != tables.RoleTrunk {
			return c.At(key+".allow_untagged", errors.New("is for trunks only"))
		}
		if p.MTU < 576 || p.MTU > 9216 {
			return c.At(key+".mtu", fmt.Errorf("%d is not in 576..9216", p.MTU))
		}
		if _, err := ParseMAC(p.MAC); err != nil {
			return c.At(key+".mac", err)
		}
		for j, a := range p.Addresses {
			if !a.IsValid() || a.Addr().Is4In6() || a.Addr().IsUnspecified() {
				return c.At(fmt.Sprintf("%s.addresses[%d]", key, j), errors.New("is not an address with prefix length"))
			}
		}
	}
	for i, x := range c.CrossConnects {
		key := fmt.Sprintf("cross_connects[%d]", i)
		a, b := c.Port(x.A), c.Port(x.B)
		if a == nil {
			return c.At(key+".a", fmt.Errorf("no port %q", x.A))
		}
		if b == nil || a == b {
			return c.At(key+".b", fmt.Errorf("no other port %q", x.B))
		}
		if a.Device != b.Device {
			return c.At(key+".b", fmt.Errorf("%s is on %s, %s on %s", x.A, a.Device, x.B, b.Device))
		}
	}
	return nil
}

func (c *Config) validateRoutes() error {
	for i, n := range c.Neighbours {
		key := fmt.Sprintf("neighbours[%d]", i)
		if _, err := ParseMAC(n.MAC); err != nil {
			return c.At(key+".mac", err)
		}
		if c.PortTowards(n.Address, "") == nil {
			return c.At(key+".address", fmt.Errorf("%v is in no port's prefix", n.Address))
		}
	}
	for i, r := range c.Routes {
		key := fmt.Sprintf("routes[%d]", i)
		if !r.To.IsValid() {
			return c.At(key+".to", errors.New("is missing"))
		}
		if r.To != r.To.Masked() {
			return c.At(key+".to", fmt.Errorf("%v has bits behind its prefix; %v is meant?", r.To, r.To.Masked()))
		}
		if len(r.Via) == 0 || len(r.Via) > 64 {
			return c.At(key+".via", fmt.Errorf("%d next hops, want 1 to 64", len(r.Via)))
		}
		for j, via := range r.Via {
			k := fmt.Sprintf("%s.via[%d]", key, j)
			if via.Is4() != r.To.Addr().Is4() {
				return c.At(k, fmt.Errorf("%v is not of the family of %v", via, r.To))
			}
			if c.PortTowards(via, r.Device) == nil {
				return c.At(k, fmt.Errorf("%v is in no port's prefix", via))
			}
		}
	}
	return nil
}

func (c *Config) validateRules() error {
	zones := c.Zones()
	suite, err := tag.ParseSuite(c.Sign)
	if err != nil {
		return c.At("sign", fmt.Errorf("%q is not siphash, ed25519 or rsa2048", c.Sign))
	}
	for i, r := range c.Policy {
		key := fmt.Sprintf("policy[%d]", i)
		if r.From != "" && zones[r.From] == 0 {
			return c.At(key+".from", fmt.Errorf("no port has zone %q", r.From))
		}
		if r.To != "" && zones[r.To] == 0 {
			return c.At(key+".to", fmt.Errorf("no port has zone %q", r.To))
		}
		if r.Src.IsValid() && r.Dst.IsValid() && r.Src.Addr().Is4() != r.Dst.Addr().Is4() {
			return c.At(key+".dst", fmt.Errorf("%v is not of the family of %v", r.Dst, r.Src))
		}
		proto, any, err := ParseProtocol(r.Protocol)
		if err != nil {
			return c.At(key+".protocol", err)
		}
		if (r.SrcPort.IsSet() || r.DstPort.IsSet()) && (any || !hasPorts(proto)) {
			return c.At(key+".protocol", fmt.Errorf("%q has no ports", r.Protocol))
		}
		switch r.Action {
		case "admit", "deny":
		case "tag":
			if suite != tag.Siphash {
				return c.At(key+".action", fmt.Errorf("tag needs a member that signs with siphash, this one signs with %v", suite))
			}
		default:
			return c.At(key+".action", fmt.Errorf("%q is not admit, tag or deny", r.Action))
		}
		if r.Always && r.Action != "deny" {
			return c.At(key+".always", errors.New("is for deny only"))
		}
		if r.Midstream && r.Action != "admit" {
			return c.At(key+".midstream", errors.New("is for admit only"))
		}
	}
	for i, s := range c.Serves {
		key := fmt.Sprintf("serves[%d]", i)
		if !s.Prefix.IsValid() {
			return c.At(key+".prefix", errors.New("is missing"))
		}
		proto, any, err := ParseProtocol(s.Protocol)
		if err != nil {
			return c.At(key+".protocol", err)
		}
		if s.Port.IsSet() && (any || !hasPorts(proto)) {
			return c.At(key+".port", fmt.Errorf("protocol %q has no ports", s.Protocol))
		}
	}
	return nil
}

func (c *Config) validateRest() error {
	if c.Carrier.Kind != "ip" && c.Carrier.Kind != "udp" {
		return c.At("carrier.kind", fmt.Errorf("%q is not ip or udp", c.Carrier.Kind))
	}
	if m := c.Siblings.Mode; m != "eager" && m != "lazy" {
		return c.At("siblings.mode", fmt.Errorf("%q is not eager or lazy", m))
	}
	if c.Siblings.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Siblings.Listen); err != nil {
			return c.At("siblings.listen", err)
		}
		if c.Directory == nil {
			return c.At("siblings.listen", errors.New("siblings authenticate by the directory's certificates; there is no directory"))
		}
	}
	for name, rate := range c.Punts.Rates {
		r, err := tables.ParseReason(name)
		if err != nil || r == tables.ReasonNone || r >= 32 {
			return c.At("punts.rates."+name, fmt.Errorf("%q is not a punt reason", name))
		}
		if rate == 0 {
			return c.At("punts.rates."+name, errors.New("0 would punt nothing; leave the port out of the policy instead"))
		}
	}
	for _, n := range []struct {
		key      string
		value    int
		low, top int
	}{
		{"punts.workers", c.Punts.Workers, 1, 4096},
		{"punts.queue", c.Punts.Queue, 1, 65536},
		{"siblings.held", c.Siblings.Held, 1, 1 << 20},
		{"sessions.max", c.Sessions.Max, 1, 1 << 26},
	} {
		if n.value < n.low || n.value > n.top {
			return c.At(n.key, fmt.Errorf("%d is not in %d..%d", n.value, n.low, n.top))
		}
	}
	for _, d := range []struct {
		key   string
		value Duration
	}{
		{"sessions.tcp", c.Sessions.TCP}, {"sessions.udp", c.Sessions.UDP}, {"sessions.icmp", c.Sessions.ICMP},
		{"sessions.other", c.Sessions.Other}, {"sessions.closing", c.Sessions.Closing}, {"siblings.wait", c.Siblings.Wait},
	} {
		if d.value < 0 {
			return c.At(d.key, errors.New("is negative"))
		}
	}
	switch {
	case c.Directory == nil && c.Static == nil:
		return c.At("directory", errors.New("is missing: keys come from a directory, or from static in its place"))
	case c.Directory != nil && c.Static != nil:
		return c.At("static", errors.New("stands in the directory's place; only one of the two can be there"))
	case c.Static != nil && (c.Static.Carrier.Kind != "" && c.Static.Carrier.Kind != c.Carrier.Kind ||
		c.Static.Carrier.Protocol != 0 && c.Static.Carrier.Protocol != c.Carrier.Protocol ||
		c.Static.Carrier.Port != 0 && c.Static.Carrier.Port != c.Carrier.Port):
		return c.At("static.carrier", fmt.Errorf("differs from carrier, which says %s, protocol %d, port %d", c.Carrier.Kind, c.Carrier.Protocol, c.Carrier.Port))
	case c.Static != nil:
		if _, err := c.Static.Snapshot(c.Member); err != nil {
			return c.At("static", err)
		}
	case hostPort(c.Directory.Address) != nil:
		return c.At("directory.address", hostPort(c.Directory.Address))
	case c.Directory.RotateEvery < 0 || c.Directory.CodeEvery < 0:
		return c.At("directory", errors.New("a negative time between rotations"))
	case c.Directory.State == "":
		return c.At("directory.state", errors.New("is missing: a directory for identity, bundle and keys"))
	}
	return nil
}

// hostPort refuses what is not a host and a port's number.
func hostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	return nil
}

// RoleOf is the role as the data plane has it.
func (p *Port) RoleOf() (tables.Role, error) {
	switch p.Role {
	case "edge":
		return tables.RoleEdge, nil
	case "trunk":
		return tables.RoleTrunk, nil
	case "echo":
		return tables.RoleEcho, nil
	}
	return tables.RoleNone, fmt.Errorf("%q is not edge, trunk or echo", p.Role)
}

// Port returns the port of that name, or nil.
func (c *Config) Port(name string) *Port {
	for i := range c.Ports {
		if c.Ports[i].Name == name {
			return &c.Ports[i]
		}
	}
	return nil
}

// PortTowards returns the port, of the device if one is named, in whose prefix
// the address is, by longest match, or nil.
func (c *Config) PortTowards(a netip.Addr, device string) *Port {
	var best *Port
	bits := -1
	for i := range c.Ports {
		p := &c.Ports[i]
		if device != "" && p.Device != device {
			continue
		}
		for _, prefix := range p.Addresses {
			if prefix.Contains(a) && prefix.Bits() > bits {
				best, bits = p, prefix.Bits()
			}
		}
	}
	return best
}

// Zones numbers the zones from 1, in the order in which ports name them.
func (c *Config) Zones() map[string]uint16 {
	zones := map[string]uint16{}
	for _, p := range c.Ports {
		if zones[p.Zone] == 0 {
			zones[p.Zone] = uint16(len(zones) + 1)
		}
	}
	return zones
}

// ParseMAC reads a unicast 48-bit link-layer address.
func ParseMAC(s string) (uint64, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return 0, fmt.Errorf("%q is not a link-layer address like 02:00:00:00:00:01", s)
	}
	if mac[0]&1 != 0 {
		return 0, fmt.Errorf("%q is a multicast address", s)
	}
	var v uint64
	for _, b := range mac {
		v = v<<8 | uint64(b)
	}
	return v, nil
}

var protocols = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "icmpv6": 58, "sctp": 132, "udplite": 136}

// ParseProtocol reads a protocol's name or number; empty is any.
func ParseProtocol(s string) (p uint8, any bool, err error) {
	if s == "" || s == "any" {
		return 0, true, nil
	}
	if p, ok := protocols[s]; ok {
		return p, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, false, fmt.Errorf("%q is not a protocol: tcp, udp, icmp, icmpv6, sctp, dccp, udplite, gre, esp or a number to 255", s)
	}
	return uint8(n), false, nil
}

func hasPorts(p uint8) bool { return p == 6 || p == 17 || p == 33 || p == 132 || p == 136 }

// PortRange is a range of transport ports, written "80" or "1000-2000". The
// zero value is every port.
type PortRange struct{ Low, High uint16 }

// IsSet reports whether the range is narrower than every port.
func (r PortRange) IsSet() bool { return r != PortRange{} && r != PortRange{0, 65535} }

// Bounds returns the range, 0..65535 for the zero value.
func (r PortRange) Bounds() (low, high uint16) {
	if !r.IsSet() {
		return 0, 65535
	}
	return r.Low, r.High
}

// MarshalText writes the range as it is read.
func (r PortRange) MarshalText() ([]byte, error) {
	switch {
	case !r.IsSet():
		return nil, nil
	case r.Low == r.High:
		return strconv.AppendUint(nil, uint64(r.Low), 10), nil
	}
	return fmt.Appendf(nil, "%d-%d", r.Low, r.High), nil
}

// UnmarshalText reads "80" or "1000-2000".
func (r *PortRange) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*r = PortRange{}
		return nil
	}
	low, high, ranged := strings.Cut(string(b), "-")
	if !ranged {
		high = low
	}
	l, err1 := strconv.ParseUint(strings.TrimSpace(low), 10, 16)
	h, err2 := strconv.ParseUint(strings.TrimSpace(high), 10, 16)
	if err1 != nil || err2 != nil || l > h {
		return fmt.Errorf("%q is not a port or a range of ports like 1000-2000", b)
	}
	*r = PortRange{uint16(l), uint16(h)}
	return nil
}

// Matches reports whether the rule speaks of a packet, as the data plane's
// entries made from it do; TCP flags are not looked at.
func (r *Rule) Matches(zones map[string]uint16, in, out uint16, src, dst netip.Addr, protocol uint8, sport, dport uint16) bool {
	proto, any, err := ParseProtocol(r.Protocol)
	sl, sh := r.SrcPort.Bounds()
	dl, dh := r.DstPort.Bounds()
	return err == nil && (any || proto == protocol) &&
		(r.From == "" || zones[r.From] == in) && (r.To == "" || zones[r.To] == out) &&
		(!r.Src.IsValid() || r.Src.Contains(src)) && (!r.Dst.IsValid() || r.Dst.Contains(dst)) &&
		sl <= sport && sport <= sh && dl <= dport && dport <= dh
}
