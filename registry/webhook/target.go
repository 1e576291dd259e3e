package webhook

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// forbidden are the networks that no hook reaches unless the operator allows it: they lead into the machine, the
// operator's own network, a cloud's metadata, or to another address inside of them (IANA special-purpose address
// registries, RFC 6890).
func forbidden() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
		"224.0.0.0/4", "240.0.0.0/4",
		"168.63.129.16/32",               // a cloud's platform service at a public address
		"::/96",                          // unspecified, loopback, IPv4-compatible
		"64:ff9b::/96", "64:ff9b:1::/48", // IPv4 inside, by NAT64
		"100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16",
		"fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// checkAddress tells why an address must not be called. An IPv4 address inside an IPv6 one is the IPv4 address.
func checkAddress(ip netip.Addr, allowed []netip.Prefix) error {
	ip = ip.WithZone("").Unmap()
	if ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("must not be the unspecified or a multicast address")
	}
	for _, p := range allowed {
		if p.Contains(ip) {
			return nil
		}
	}
	for _, p := range forbidden() {
		if p.Contains(ip) {
			return fmt.Errorf("must not be in a loopback, link-local, private or other special network (%s) unless the operator allows it", p)
		}
	}
	return nil
}

// newClient makes the client of all calls. The address is checked when the connection is made, so a name that leads
// elsewhere a moment later is of no use; a redirect is not followed at all; no proxy is asked.
func newClient(allowed []netip.Prefix, timeout time.Duration) *http.Client {
	dialer := &net.Dialer{Timeout: min(timeout, 5*time.Second), KeepAlive: 15 * time.Second,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("the address %s is not an IP address", address)
			}
			if err := checkAddress(at.Addr(), allowed); err != nil {
				return fmt.Errorf("the address %s %w", at.Addr(), err)
			}
			return nil
		}}
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: dialer.DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: min(timeout, 5*time.Second),
			MaxIdleConns: 64, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
