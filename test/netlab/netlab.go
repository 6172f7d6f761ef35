// Package netlab builds networks of Linux network namespaces for tests and
// demonstrations: nodes, links, bridges, addresses, routes and processes, all by
// netlink.
//
// Namespaces have no name: the lab holds them by file descriptor, so nothing is
// mounted, any number of labs live side by side, and the kernel takes a lab down
// when its process ends, however it ends. Interface names are the caller's and
// hardware addresses follow from the order of creation, so that two runs give
// the same network.
package netlab

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by the methods of a closed Lab and of its nodes.
var ErrClosed = errors.New("lab is closed")

// Lab is a network of namespaces; take it from [New] and end it with Close. Its
// methods may be called from any goroutine.
type Lab struct {
	mu      sync.Mutex
	closed  bool
	nodes   map[string]*Node
	procs   []*Process
	closers []func() error
	macs    uint32
	spawn   *spawner
}

// New returns an empty lab. It needs the privileges that [EnsurePrivileges]
// gets.
func New() (*Lab, error) {
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	return &Lab{nodes: map[string]*Node{}, spawn: newSpawner()}, nil
}

// Node adds a namespace of this name, with its loopback up, IPv6 duplicate
// address detection and reverse-path filters off, and no forwarding. The name is
// known to this lab only.
func (l *Lab) Node(name string) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("node %s: %w", name, ErrClosed)
	}
	if l.nodes[name] != nil {
		return nil, fmt.Errorf("node %s is there already", name)
	}
	ns, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("node %s: netlink: %w", name, err)
	}
	n := &Node{name: name, lab: l, ns: ns, nl: h}
	if err := n.init(); err != nil {
		n.close()
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	l.nodes[name] = n
	return n, nil
}

// LinkOpts say how Link makes a link. The zero value is an MTU of 1500, no
// addresses, and offloads off at both ends.
type LinkOpts struct {
	// MTU of both ends in bytes; 0 means 1500.
	MTU int
	// AddrsA and AddrsB are the ends' addresses with their prefix lengths, such
	// as "10.0.1.1/24" or "fd00:1::1/64".
	AddrsA, AddrsB []string
	// KeepOffloads leaves segmentation and checksum offloads as the kernel makes
	// them: the ends then exchange 64 KB segments without checksums.
	KeepOffloads bool
	// NoIPv6 keeps the kernel's IPv6 off both ends, so that they send nothing of
	// their own: for the ports of a data plane.
	NoIPv6 bool
}

// Link joins two nodes by a veth pair, whose ends it names, and takes it up.
func (l *Lab) Link(a *Node, ifA string, b *Node, ifB string, o LinkOpts) error {
	if err := l.link(a, ifA, b, ifB, o); err != nil {
		return fmt.Errorf("link %s:%s-%s:%s: %w", a.name, ifA, b.name, ifB, err)
	}
	return nil
}

func (l *Lab) link(a *Node, ifA string, b *Node, ifB string, o LinkOpts) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: ifA, MTU: o.MTU, HardwareAddr: l.nextMAC(), TxQLen: 1000},
		PeerName:         ifB,
		PeerMTU:          uint32(o.MTU),
		PeerHardwareAddr: l.nextMAC(),
		PeerNamespace:    netlink.NsFd(int(b.ns)),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	for _, end := range []struct {
		n     *Node
		name  string
		addrs []string
	}{{a, ifA, o.AddrsA}, {b, ifB, o.AddrsB}} {
		if !o.KeepOffloads {
			if err := end.n.OffloadsOff(end.name); err != nil {
				return err
			}
		}
		if o.NoIPv6 {
			if err := end.n.Sysctl("net/ipv6/conf/"+end.name+"/disable_ipv6", "1"); err != nil {
				return err
			}
		}
		if err := end.n.SetUp(end.name, true); err != nil {
			return err
		}
		for _, addr := range end.addrs {
			if err := end.n.AddAddr(end.name, addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextMAC returns 02:00:00:…, numbered in the order of creation.
func (l *Lab) nextMAC() net.HardwareAddr {
	l.macs++
	return net.HardwareAddr{2, 0, byte(l.macs >> 24), byte(l.macs >> 16), byte(l.macs >> 8), byte(l.macs)}
}

// onClose has f called when the lab is closed, last one first.
func (l *Lab) onClose(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.closers = append(l.closers, f)
	return nil
}

// Close ends the lab's processes (SIGTERM, SIGKILL after two seconds), waits for
// them, closes what was opened in its nodes, and takes the network down. It is
// idempotent.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs, closers := l.procs, l.closers
	l.mu.Unlock()

	var errs []error
	stopAll(procs)
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	for _, n := range l.nodes {
		errs = append(errs, n.close())
	}
	l.spawn.close()
	return errors.Join(errs...)
}

// newNamespace makes a network namespace that lives as long as the descriptor.
func newNamespace() (ns netns.NsHandle, err error) {
	ns = netns.None()
	errDo := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		ns, err = netns.Get()
		return err
	})
	return ns, errDo
}

// onThread runs f on an OS thread of its own, which may change its namespace
// because it ends with f.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer func() {
			select {
			case done <- errors.New("function ended its goroutine"):
			default:
			}
		}()
		done <- f()
	}()
	return <-done
}
