package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// check names the first thing that cannot work, by its key.
func (c *Config) check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for key, v := range map[string]string{"registry.listen": c.Registry.Listen, "control.listen": c.Control.Listen,
		"logs.listen": c.Logs.Listen, "logs.bulkListen": c.Logs.BulkListen, "billing.listen": c.Billing.Listen, "kubelet.listen": c.Kubelet.Listen,
		"kubelet.healthListen": c.Kubelet.HealthListen} {
		if _, _, err := net.SplitHostPort(v); err != nil {
			bad(key, "must be host:port, not %q", v)
		}
	}
	for key, v := range map[string]string{"registry.url": c.Registry.URL, "control.url": c.Control.URL, "logs.url": c.Logs.URL, "billing.url": c.Billing.URL,
		"tracing.endpoint": c.Tracing.Endpoint, "logs.elasticsearch.url": c.Logs.Elasticsearch.URL} {
		if v == "" && (key == "tracing.endpoint" || key == "logs.elasticsearch.url") {
			continue
		}
		if u, err := url.Parse(v); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
			bad(key, "must be an http or https URL without credentials")
		}
	}
	if c.StateDir == "" {
		bad("stateDir", "must not be empty")
	}
	c.checkNames(bad)
	c.checkNumbers(bad)
	c.Registry.check(bad)
	if net.ParseIP(c.Node.Address) == nil {
		bad("node.address", "must be an IP address, not %q", c.Node.Address)
	}
	if p, err := netip.ParsePrefix(c.Control.CRI.Subnet); err != nil || !p.Addr().Is4() || p.Bits() > 29 || p != p.Masked() {
		bad("control.cri.subnet", "must be an IPv4 network of /29 or larger, as 10.98.0.0/20, not %q", c.Control.CRI.Subnet)
	}
	if _, err := c.Registry.Webhooks.Networks(); err != nil {
		bad("registry.webhooks.allowNetworks", "%v", err)
	}
	if c.Control.Engine != "cri" && c.Control.Engine != "memory" {
		bad("control.engine", "must be cri or memory, not %q", c.Control.Engine)
	}
	for _, org := range slices.Sorted(maps.Keys(c.Control.OrgQuotas)) {
		if err := cis.ValidateOrg(org); err != nil {
			bad("control.orgQuotas", "%q is not the name of an org", org)
		}
		c.Control.OrgQuotas[org].check("control.orgQuotas."+org, bad)
	}
	c.Control.Quota.check("control.quota", bad)
	if c.Tracing.SampleRatio < 0 || c.Tracing.SampleRatio > 1 {
		bad("tracing.sampleRatio", "must be from 0 to 1, not %v", c.Tracing.SampleRatio)
	}
	c.checkSandbox(bad)
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		bad("log.level", "must be debug, info, warn or error, not %q", c.Log.Level)
	}
	if (c.Kubelet.CertFile == "") != (c.Kubelet.KeyFile == "") {
		bad("kubelet.certFile", "goes with kubelet.keyFile: set both or none")
	}
	c.Registry.Storage.check(bad)
	return errors.Join(errs...)
}

// check names what cannot work.
func (s *Storage) check(bad func(key, format string, args ...any)) {
	seen := map[string]bool{}
	for i, r := range s.Regions {
		key := fmt.Sprintf("registry.storage.regions[%d].", i)
		switch {
		case r.Name == "":
			bad(key+"name", "must not be empty")
		case seen[r.Name]:
			bad(key+"name", "%q is there twice", r.Name)
		}
		seen[r.Name] = true
		for name, v := range map[string]string{"endpoint": r.Endpoint, "publicEndpoint": r.PublicEndpoint} {
			if v == "" && name == "publicEndpoint" {
				continue
			}
			if u, err := url.Parse(v); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Path != "" || u.RawQuery != "" {
				bad(key+name, "must be an http or https URL without credentials and path")
			}
		}
		if r.Bucket == "" {
			bad(key+"bucket", "must not be empty")
		}
		if r.CredentialsFile == "" {
			bad(key+"credentialsFile", "must not be empty")
		}
	}
	if len(s.Regions) > 0 && !seen[s.Region] {
		bad("registry.storage.region", "%q is not one of registry.storage.regions", s.Region)
	}
	if len(s.Regions) > 1 && !strings.HasPrefix(s.Tracker, "postgres") {
		bad("registry.storage.tracker", "must be a postgres:// address where there are several regions")
	}
}

// checkNames refuses names that other parts would, later and far from here: an instance on a node whose name cannot stand
// in a meter event would never start.
func (c *Config) checkNames(bad func(key, format string, args ...any)) {
	for key, v := range map[string]string{"node.name": c.Node.Name, "node.region": c.Node.Region} {
		if !billing.ValidIdentifier(v) {
			bad(key, "must be 1 to 128 letters, digits and inner '.', '_', '-', not %q", v)
		}
	}
	if len(validation.IsDNS1123Subdomain(c.Kubelet.NodeName)) > 0 {
		bad("kubelet.nodeName", "must be the name of a Kubernetes node, of lower-case letters, digits, '-' and '.', not %q", c.Kubelet.NodeName)
	}
	if len(validation.IsDNS1123Subdomain(c.Kubelet.ClusterDomain)) > 0 {
		bad("kubelet.clusterDomain", "must be a DNS name as cluster.local, not %q", c.Kubelet.ClusterDomain)
	}
	org := func(key, v string) {
		if registry.ValidateOrg(key, v) != nil {
			bad(key, "%q is not the name of an org", v)
		}
	}
	org("registry.adminOrg", c.Registry.AdminOrg)
	org("kubelet.org", c.Kubelet.Org)
	for _, namespace := range slices.Sorted(maps.Keys(c.Kubelet.Orgs)) {
		if len(validation.IsDNS1123Label(namespace)) > 0 {
			bad("kubelet.orgs", "%q is not the name of a namespace", namespace)
		}
		org("kubelet.orgs."+namespace, c.Kubelet.Orgs[namespace])
	}
	if registry.ValidateAccount("", c.Registry.AdminUser) != nil {
		bad("registry.adminUser", "%q is not the name of an account", c.Registry.AdminUser)
	}
	// They name files of credentials/ as well.
	for key, v := range map[string]string{"logs.elasticsearch.writeUser": c.Logs.Elasticsearch.WriteUser, "logs.elasticsearch.readUser": c.Logs.Elasticsearch.ReadUser} {
		if strings.ContainsAny(v, "/$\n\x00") || strings.HasPrefix(v, ".") {
			bad(key, "must be a name, without '/' and '$', not %q", v)
		}
	}
	if c.Logs.Elasticsearch.WriteUser == c.Logs.Elasticsearch.ReadUser && c.Logs.Elasticsearch.URL == "" {
		bad("logs.elasticsearch.readUser", "must be another user than logs.elasticsearch.writeUser")
	}
	for key, v := range map[string]string{"registry.database": c.Registry.Database, "registry.storage.tracker": c.Registry.Storage.Tracker,
		"control.database": c.Control.Database, "billing.database": c.Billing.Database} {
		if !strings.HasPrefix(v, "sqlite:") && !strings.HasPrefix(v, "postgres://") && !strings.HasPrefix(v, "postgresql://") {
			bad(key, "must be sqlite:PATH or postgres://…") // not repeated: it may hold a password
		}
	}
	for i, v := range c.Kubelet.ClusterDNS {
		if net.ParseIP(v) == nil {
			bad(fmt.Sprintf("kubelet.clusterDNS[%d]", i), "must be an IP address, not %q", v)
		}
	}
}

// checkNumbers refuses numbers that mean nothing: a default would take the place of some, and others would lose data.
func (c *Config) checkNumbers(bad func(key, format string, args ...any)) {
	for key, n := range map[string]int64{"control.cri.cpu": c.Control.CRI.CPU, "control.cri.memoryGiB": c.Control.CRI.MemoryGiB,
		"control.collector.keepMiB": c.Control.Collector.KeepMiB, "logs.retentionDays": int64(c.Logs.RetentionDays),
		"logs.retentionMonths": int64(c.Logs.RetentionMonths), "kubelet.cpu": c.Kubelet.CPU, "kubelet.memoryGiB": c.Kubelet.MemoryGiB, "kubelet.pods": c.Kubelet.Pods} {
		if n < 0 {
			bad(key, "must not be negative, not %d", n)
		}
	}
	for key, n := range map[string]int{"control.keepEndedDays": c.Control.KeepEndedDays, "kubelet.workers": c.Kubelet.Workers} {
		if n < 1 {
			bad(key, "must be at least 1, not %d", n)
		}
	}
	if c.Registry.TokenTTL < time.Minute || c.Registry.TokenTTL > hubtoken.MaxTTL {
		bad("registry.tokenTTL", "must be 1m to %s, not %s", hubtoken.MaxTTL, c.Registry.TokenTTL)
	}
	if c.Billing.Interval <= 0 {
		bad("billing.interval", "must be above 0, as 2s, not %s", c.Billing.Interval)
	}
}
