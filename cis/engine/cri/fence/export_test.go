package fence

import "net/netip"

// Places are who is admitted, as Place has it.
func (f *Fence) Places() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for a, p := range f.ports {
		out[a] = Place(p.iface, p.org)
	}
	return out
}

// Place is one who is admitted.
func Place(iface, org string) string { return iface + " of " + org }
