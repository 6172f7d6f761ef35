package pktio

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nic is what a port needs to know of its interface.
type nic struct {
	name  string
	index int
	mtu   int
	mac   net.HardwareAddr
}

// badOffloads are the features, by their names in the kernel, under which an
// interface merges or splits frames, or leaves their checksums open.
var badOffloads = []string{
	"rx-gro", "rx-gro-hw", "rx-gro-list", "rx-lro", "rx-udp-gro-forwarding",
	"tx-generic-segmentation", "tx-gso-list", "tx-gso-partial",
	"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
	"tx-udp-segmentation", "tx-sctp-segmentation",
	"tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6", "tx-checksum-sctp",
}

// inspect finds an interface of this network namespace and makes sure that a port
// can work with it.
func inspect(name string, fixOffloads bool) (nic, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			return nic{}, fmt.Errorf("%w in this network namespace: create it, or correct the configuration", ErrNoInterface)
		}
		return nic{}, explain(err)
	}
	a := link.Attrs()
	if a.Flags&net.FlagUp == 0 {
		return nic{}, fmt.Errorf("%w: take it up, by: ip link set dev %s up", ErrDown, name)
	}
	if a.EncapType != "ether" {
		return nic{}, fmt.Errorf("its link type is %s, not Ethernet: %w", a.EncapType, ErrSpec)
	}
	if a.MTU > MaxMTU {
		return nic{}, fmt.Errorf("its MTU is %d, above %d: lower it, by: ip link set dev %s mtu %d: %w", a.MTU, MaxMTU, name, MaxMTU, ErrSpec)
	}
	if err := checkOffloads(name, fixOffloads); err != nil {
		return nic{}, err
	}
	return nic{name: name, index: a.Index, mtu: a.MTU, mac: a.HardwareAddr}, nil
}

// checkOffloads reports ErrOffloads where an interface has bad offloads, after it
// has switched off those it can if fix is set.
func checkOffloads(name string, fix bool) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", explain(err))
	}
	defer tool.Close()
	active, fixed, err := activeOffloads(tool, name)
	if err != nil {
		return err
	}
	if fix && len(active) > 0 {
		change := map[string]bool{}
		for _, f := range active {
			change[f] = false
		}
		for _, f := range fixed {
			delete(change, f)
		}
		if err := tool.Change(name, change); err != nil {
			return fmt.Errorf("switch off %s: %w", strings.Join(slices.Sorted(maps.Keys(change)), ", "), explain(err))
		}
		if active, fixed, err = activeOffloads(tool, name); err != nil {
			return err
		}
	}
	switch {
	case len(fixed) > 0:
		return fmt.Errorf("%w and cannot be switched off: %s: use another interface, such as a veth", ErrOffloads, strings.Join(fixed, ", "))
	case len(active) > 0:
		return fmt.Errorf("%w: %s: switch them off, by: ethtool -K %s %s off, or let them be fixed", ErrOffloads,
			strings.Join(active, ", "), name, strings.Join(active, " off "))
	}
	return nil
}

// activeOffloads returns the bad offloads that are on, and those among them that
// the interface cannot switch off.
func activeOffloads(tool *ethtool.Ethtool, name string) (active, fixed []string, err error) {
	features, err := tool.FeaturesWithState(name)
	if err != nil {
		return nil, nil, fmt.Errorf("read offloads: %w", explain(err))
	}
	for _, f := range badOffloads {
		if st := features[f]; st.Active {
			active = append(active, f)
			if !st.Available || st.NeverChanged {
				fixed = append(fixed, f)
			}
		}
	}
	return active, fixed, nil
}

// isUp asks by a socket of the interface's namespace whether it is up; an error
// means that there is no such interface.
func (n nic) isUp(fd int) (bool, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false, err
	}
	ifr.SetUint32(uint32(n.index))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr); err != nil { // it may have been renamed
		return false, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return false, err
	}
	return ifr.Uint16()&unix.IFF_UP != 0, nil
}
