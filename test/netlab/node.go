package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node is one network namespace of a Lab. Its methods may be called from any
// goroutine and fail once the lab is closed.
type Node struct {
	name string
	lab  *Lab
	ns   netns.NsHandle
	nl   *netlink.Handle
}

// Name returns the name the node was given.
func (n *Node) Name() string { return n.name }

func (n *Node) init() error {
	if err := n.SetUp("lo", true); err != nil {
		return err
	}
	for key, value := range map[string]string{
		"net/ipv4/conf/all/rp_filter":      "0",
		"net/ipv4/conf/default/rp_filter":  "0",
		"net/ipv6/conf/all/accept_dad":     "0",
		"net/ipv6/conf/default/accept_dad": "0",
		"net/ipv6/conf/default/accept_ra":  "0",
	} {
		if err := n.Sysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) close() error {
	n.nl.Close()
	return n.ns.Close()
}

// Do runs f on an OS thread that is in the node's namespace, and returns its
// error. Sockets made by f stay in the namespace; goroutines started by f are not
// in it. Many calls of Do may run at once.
func (n *Node) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return fmt.Errorf("enter node %s: %w", n.name, err)
		}
		return f()
	})
}

// Listen is net.Listen in the node.
func (n *Node) Listen(network, address string) (ln net.Listener, err error) {
	errDo := n.Do(func() error {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, errDo
}

// DialContext is net.Dialer.DialContext in the node; address is a literal IP
// address and port.
func (n *Node) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	errDo := n.Do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, errDo
}

// Sysctl sets a key such as "net/ipv4/ip_forward".
func (n *Node) Sysctl(key, value string) error {
	return n.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
			return fmt.Errorf("node %s: sysctl: %w", n.name, err)
		}
		return nil
	})
}

// Forward turns the node into a router for IPv4 and IPv6.
func (n *Node) Forward() error {
	return errors.Join(n.Sysctl("net/ipv4/ip_forward", "1"), n.Sysctl("net/ipv6/conf/all/forwarding", "1"))
}

// withLink runs f with the interface of this name.
func (n *Node) withLink(name string, f func(netlink.Link) error) error {
	link, err := n.nl.LinkByName(name)
	if err == nil {
		err = f(link)
	}
	if err != nil {
		return fmt.Errorf("node %s: interface %s: %w", n.name, name, err)
	}
	return nil
}

// SetUp takes an interface up or down.
func (n *Node) SetUp(name string, up bool) error {
	return n.withLink(name, func(link netlink.Link) error {
		if up {
			return n.nl.LinkSetUp(link)
		}
		return n.nl.LinkSetDown(link)
	})
}

// Delete removes an interface, of a veth pair both ends.
func (n *Node) Delete(name string) error { return n.withLink(name, n.nl.LinkDel) }

// SetMTU sets an interface's MTU in bytes.
func (n *Node) SetMTU(name string, mtu int) error {
	return n.withLink(name, func(link netlink.Link) error { return n.nl.LinkSetMTU(link, mtu) })
}

// AddAddr adds an address such as "10.0.1.1/24", which can be used at once.
func (n *Node) AddAddr(name, cidr string) error {
	return n.withLink(name, func(link netlink.Link) error {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags |= unix.IFA_F_NODAD
		}
		return n.nl.AddrAdd(link, addr)
	})
}

// AddRoute adds a route to dst, such as "10.0.9.0/24" or "::/0", by gateway via.
func (n *Node) AddRoute(dst, via string) error {
	err := func() error {
		_, prefix, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		gw := net.ParseIP(via)
		if gw == nil {
			return fmt.Errorf("gateway %q is no address", via)
		}
		return n.nl.RouteAdd(&netlink.Route{Dst: prefix, Gw: gw})
	}()
	if err != nil {
		return fmt.Errorf("node %s: route to %s by %s: %w", n.name, dst, via, err)
	}
	return nil
}

// AddNeighbour adds a permanent neighbour entry.
func (n *Node) AddNeighbour(name, ip string, mac net.HardwareAddr) error {
	return n.withLink(name, func(link netlink.Link) error {
		addr := net.ParseIP(ip)
		if addr == nil {
			return fmt.Errorf("neighbour %q is no address", ip)
		}
		return n.nl.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr, HardwareAddr: mac,
		})
	})
}

// AddBridge adds a bridge with the interfaces as its ports, and takes it up.
func (n *Node) AddBridge(name string, ports ...string) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := n.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("node %s: add bridge %s: %w", n.name, name, err)
	}
	for _, p := range ports {
		if err := n.withLink(p, func(link netlink.Link) error { return n.nl.LinkSetMaster(link, bridge) }); err != nil {
			return err
		}
	}
	return n.SetUp(name, true)
}

// HardwareAddr returns an interface's hardware address.
func (n *Node) HardwareAddr(name string) (mac net.HardwareAddr, err error) {
	err = n.withLink(name, func(link netlink.Link) error {
		mac = link.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// LinkStats returns an interface's counters.
func (n *Node) LinkStats(name string) (s netlink.LinkStatistics, err error) {
	err = n.withLink(name, func(link netlink.Link) error {
		if st := link.Attrs().Statistics; st != nil {
			s = *st
		}
		return nil
	})
	return s, err
}

// offloads are the features that merge, split or leave unfinished what goes over
// a link.
var offloads = []string{
	"rx-gro", "rx-gro-hw", "rx-gro-list", "rx-lro", "rx-udp-gro-forwarding",
	"tx-generic-segmentation", "tx-gso-list", "tx-gso-partial",
	"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
	"tx-udp-segmentation", "tx-sctp-segmentation",
	"tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6", "tx-checksum-sctp",
}

// OffloadsOff switches the segmentation, merging and checksum offloads of an
// interface off, so that every frame on the link is one that a wire could carry.
func (n *Node) OffloadsOff(name string) error {
	return n.Do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("node %s: ethtool: %w", n.name, err)
		}
		defer tool.Close()
		have, err := tool.FeaturesWithState(name)
		if err != nil {
			return fmt.Errorf("node %s: interface %s: read offloads: %w", n.name, name, err)
		}
		off := map[string]bool{}
		for _, f := range offloads {
			if st, ok := have[f]; ok && st.Active && st.Available {
				off[f] = false
			}
		}
		if err := tool.Change(name, off); err != nil {
			return fmt.Errorf("node %s: interface %s: switch offloads off: %w", n.name, name, err)
		}
		return nil
	})
}
