// Package fence keeps apart the instances that share a bridge, and the machine from them, by the kernel's packet filter:
// instances of one org reach each other, instances of different orgs do not; no instance sends as another; the machine
// itself answers ping and what it was told to answer, and its link-local neighbours (a cloud's metadata service) are out
// of reach. What the machine translates to an instance's address, as a published port, is for every instance; the
// instance sees the machine's address then.
//
// The rules are on the machine's side of the interfaces, so they hold for every sandbox class and for a privileged
// process in an instance. They say nothing of where an instance may go outside of the machine.
package fence

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"

	"github.com/google/nftables"
)

// Config says which bridge. Bridge has no default.
type Config struct {
	// Bridge is the network device of the instances. All rules are in tables of its name.
	Bridge string
	// NodePorts are ports of this machine that instances may reach.
	NodePorts []NodePort
}

// NodePort is a port of the machine.
type NodePort struct {
	UDP  bool // else TCP
	Port uint16
}

// Port is an instance's place on the bridge.
type Port struct {
	// Org owns the instance.
	Org string
	// Interface is the machine's end of the instance's cable, Addrs its IPv4 addresses.
	Interface string
	Addrs     []netip.Addr
}

// Fence is the rules of one bridge. Safe for concurrent use.
type Fence struct {
	config Config

	mu     sync.Mutex
	ports  map[netip.Addr]place
	orgs   map[string]uint32 // an org's number in the packet filter, from 1
	behind bool              // the kernel lacks a change
}

type place struct{ iface, org string }

const ifNameSize = 16 // the kernel's IFNAMSIZ, the end included

// Open puts the rules up, in one step, over those that may be there from before; instances that were admitted stay so.
// It needs CAP_NET_ADMIN and a kernel with nf_tables for bridges.
func Open(config Config) (*Fence, error) {
	if config.Bridge == "" || len(config.Bridge) >= ifNameSize {
		return nil, fmt.Errorf("fence: bridge %q is not a device's name", config.Bridge)
	}
	f := &Fence{config: config, ports: map[netip.Addr]place{}, orgs: map[string]uint32{}}
	if err := f.recall(); err != nil {
		return nil, fmt.Errorf("fence: read the rules of %s: %w", config.Bridge, err)
	}
	if err := f.rebuild(); err != nil {
		return nil, fmt.Errorf("fence: write the rules of %s (the kernel needs nf_tables with the families inet and bridge): %w", config.Bridge, err)
	}
	return f, nil
}

// Admit lets an instance send and receive. What was admitted before with one of its addresses is no more.
func (f *Fence) Admit(p Port) error {
	if p.Org == "" || p.Interface == "" || len(p.Interface) >= ifNameSize {
		return fmt.Errorf("fence: admit %q of org %q: both must be set", p.Interface, p.Org)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.begin()
	if err != nil {
		return fmt.Errorf("fence: admit %s: %w", p.Interface, err)
	}
	now := place{iface: p.Interface, org: p.Org}
	for _, a := range p.Addrs {
		if !a.Is4() || f.ports[a] == now {
			continue
		}
		if was, ok := f.ports[a]; ok {
			b.remove(a, was)
		}
		b.add(a, now)
		f.ports[a] = now
	}
	if err := f.commit(b); err != nil {
		return fmt.Errorf("fence: admit %s: %w", p.Interface, err)
	}
	return nil
}

// Retire takes back what Admit gave to these addresses; those that have nothing are fine.
func (f *Fence) Retire(addrs []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.begin()
	if err != nil {
		return fmt.Errorf("fence: retire: %w", err)
	}
	for _, a := range addrs {
		if was, ok := f.ports[a]; ok {
			b.remove(a, was)
			delete(f.ports, a)
		}
	}
	if err := f.commit(b); err != nil {
		return fmt.Errorf("fence: retire %v: %w", addrs, err)
	}
	return nil
}

// commit brings the kernel up to date. Where somebody has changed the rules meanwhile, all of them are written anew.
func (f *Fence) commit(b *batch) error {
	if !f.behind && b.commit() == nil {
		return nil
	}
	err := f.rebuild()
	f.behind = err != nil
	return err
}

// Remove takes the rules of a bridge down; when there are none it does nothing.
func Remove(bridge string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	tables, err := conn.ListTables()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without the packet filter
	}
	if err != nil {
		return fmt.Errorf("fence: list tables: %w", err)
	}
	found := false
	for _, t := range tables {
		if t.Name == tableName(bridge) {
			conn.DelTable(t)
			found = true
		}
	}
	if !found {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("fence: remove the rules of %s: %w", bridge, err)
	}
	return nil
}

// number is an org's mark in the packet filter; it stays the same as long as this fence, or an instance of the org, is
// there. The lock is held.
func (f *Fence) number(org string) uint32 {
	if n, ok := f.orgs[org]; ok {
		return n
	}
	n := uint32(1)
	for _, other := range f.orgs {
		n = max(n, other+1)
	}
	f.orgs[org] = n
	return n
}

func tableName(bridge string) string { return "cumulet-" + bridge }
