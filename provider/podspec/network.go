package podspec

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// The limits of a resolver configuration (core/v1, PodDNSConfig; resolv.conf(5)).
const (
	maxServers     = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// hostname gives the sandbox's host name and domain.
func (b *Builder) hostname(pod *corev1.Pod) (host, domain string, err error) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, "", nil
	}
	host = pod.Spec.Hostname
	if host == "" {
		host = strings.TrimRight(pod.Name[:min(len(pod.Name), 63)], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, b.set.ClusterDomain)
	}
	if is(pod.Spec.SetHostnameAsFQDN) && domain != "" {
		fqdn := host + "." + domain
		if len(fqdn) > 64 {
			return "", "", refuse("spec.setHostnameAsFQDN", "the name %s is longer than the 64 characters of a Linux host name", fqdn)
		}
		return fqdn, "", nil // the domain is in it
	}
	return host, domain, nil
}

// dns gives the resolver configuration; nil is the host's.
func (b *Builder) dns(pod *corev1.Pod, out *Result) (*cis.DNS, error) {
	policy := pod.Spec.DNSPolicy
	first := policy == corev1.DNSClusterFirst || policy == corev1.DNSClusterFirstWithHostNet || policy == ""
	if first && len(b.set.ClusterDNS) == 0 {
		out.notice("", "MissingClusterDNS", "this node has no address of a cluster DNS, so the pod gets the host's resolver instead of %q", policy)
		policy, first = corev1.DNSDefault, false
	}
	var d cis.DNS
	switch {
	case first:
		d.Servers = slices.Clone(b.set.ClusterDNS)
		d.Searches = append([]string{pod.Namespace + ".svc." + b.set.ClusterDomain, "svc." + b.set.ClusterDomain, b.set.ClusterDomain}, b.set.HostDNS.Searches...)
		d.Options = []string{"ndots:5"}
	case policy == corev1.DNSDefault:
		if pod.Spec.DNSConfig == nil {
			return nil, nil //nolint:nilnil // nil is the host's
		}
		d = cis.DNS{Servers: slices.Clone(b.set.HostDNS.Servers), Searches: slices.Clone(b.set.HostDNS.Searches), Options: slices.Clone(b.set.HostDNS.Options)}
	case policy == corev1.DNSNone:
	default:
		return nil, refuse("spec.dnsPolicy", "%q is not supported", policy)
	}
	if c := pod.Spec.DNSConfig; c != nil {
		d.Servers = append(d.Servers, c.Nameservers...)
		d.Searches = append(d.Searches, c.Searches...)
		for _, o := range c.Options {
			d.Options = setOption(d.Options, o)
		}
	}
	limit(&d, out)
	return &d, nil
}

// setOption adds a resolver option, or replaces the one of its name.
func setOption(options []string, o corev1.PodDNSConfigOption) []string {
	options = slices.DeleteFunc(options, func(x string) bool {
		name, _, _ := strings.Cut(x, ":")
		return name == o.Name
	})
	if o.Value == nil || *o.Value == "" {
		return append(options, o.Name)
	}
	return append(options, o.Name+":"+*o.Value)
}

// limit takes out what is there twice and cuts what a resolver would not read, saying so.
func limit(d *cis.DNS, out *Result) {
	d.Servers, d.Searches = unique(d.Servers), unique(d.Searches)
	cutOff := func(what string, dropped []string) {
		if len(dropped) > 0 {
			out.notice("", "DNSConfigForming", "%s limits were exceeded, left out: %s", what, cut(strings.Join(dropped, " "), 512))
		}
	}
	n := min(len(d.Servers), maxServers)
	cutOff("nameserver", d.Servers[n:])
	d.Servers = d.Servers[:n]
	n = min(len(d.Searches), maxSearches)
	for len(strings.Join(d.Searches[:n], " ")) > maxSearchChars {
		n--
	}
	cutOff("search line", d.Searches[n:])
	d.Searches = d.Searches[:n]
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// ParseResolvConf reads a resolver configuration (resolv.conf(5)); the last search or domain line counts. It reads at most
// 64 KiB.
func ParseResolvConf(r io.Reader) (cis.DNS, error) {
	var d cis.DNS
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() {
		text := lines.Text()
		if i := strings.IndexAny(text, "#;"); i >= 0 {
			text = text[:i]
		}
		f := strings.Fields(text)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Servers = append(d.Servers, f[1])
		case "search", "domain":
			d.Searches = nil
			for _, s := range f[1:] {
				if s = strings.TrimSuffix(s, "."); s != "" {
					d.Searches = append(d.Searches, s)
				}
			}
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	if err := lines.Err(); err != nil {
		return cis.DNS{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	return d, nil
}
