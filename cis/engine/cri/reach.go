package cri

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// errOutOfReach is what a probe or hook says that was to go where its instance may not.
var errOutOfReach = errors.New("is of the machine, or of another instance: a probe or hook may go to its own instance, or away from here")

// probeDialer connects probes and hooks, which go out from the machine's own network, past the rules that hold for the
// instance. What they are sent to is the tenant's choice, a name among it that means anything at any time, so the rules
// are kept here, for the address that is really connected to: the machine itself, its instances' network and link-local
// services, which a cloud's credentials are had from, are out of reach. own is the instance's address, which always is not.
func probeDialer(own string) *net.Dialer {
	return &net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil { // no host at all is the machine
			return fmt.Errorf("address %q %w", address, errOutOfReach)
		}
		self, _ := netip.ParseAddr(own) //nolint:errcheck // an instance without an address has none that is its own
		addr := to.Addr().Unmap().WithZone("")
		if self.IsValid() && addr == self.Unmap() {
			return nil
		}
		if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			return fmt.Errorf("address %s %w", addr, errOutOfReach)
		}
		here, err := localNetworks()
		if err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		for _, n := range here {
			// The machine by any of its addresses, and whatever is on the network that the instance is on.
			if n.Addr() == addr || self.IsValid() && n.Contains(self.Unmap()) && n.Contains(addr) {
				return fmt.Errorf("address %s %w", addr, errOutOfReach)
			}
		}
		return nil
	}}
}

// localNetworks are the machine's addresses, each with its network.
func localNetworks() ([]netip.Prefix, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the machine's addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				ones, _ := n.Mask.Size()
				addr = addr.Unmap()
				if p := netip.PrefixFrom(addr, ones); p.IsValid() {
					out = append(out, p)
				}
			}
		}
	}
	return out, nil
}
