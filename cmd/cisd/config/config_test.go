package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		p := filepath.Join(dir, "cisd.yaml")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tc := range []struct {
		name, yaml string
		env, set   []string
		want       string
		ok         func(*Config) bool
	}{
		{name: "defaults", ok: func(c *Config) bool {
			return c.Registry.URL == "http://127.0.0.1:5000" && c.Registry.Database == "sqlite:/var/lib/cumulet/registry.db"
		}},
		{name: "file, environment, flag", yaml: "registry: {listen: 127.0.0.1:1}\nlogs: {retentionDays: 3}",
			env: []string{"CUMULET_REGISTRY_LISTEN=127.0.0.1:2", "CUMULET_CACHE=/x"}, set: []string{"registry.listen=127.0.0.1:3", "billing.interval=5s"},
			ok: func(c *Config) bool {
				return c.Registry.Listen == "127.0.0.1:3" && c.Logs.RetentionDays == 3 && c.Billing.Interval.Seconds() == 5
			}},
		{name: "list by flag", set: []string{"kubelet.clusterDNS=[10.96.0.10]"}, ok: func(c *Config) bool { return c.Kubelet.ClusterDNS[0] == "10.96.0.10" }},
		{name: "quotas", yaml: "control: {quota: {instances: 5}, orgQuotas: {acme: {cpu: 16}}}", ok: func(c *Config) bool {
			return c.Control.Quota.Instances == 5 && c.Control.OrgQuotas["acme"] == Quota{CPU: 16}
		}},
		{name: "quota by flag", set: []string{"control.orgQuotas={acme: {instances: 1}}", "control.orgQuotas.big.memoryGiB=9"}, ok: func(c *Config) bool {
			return c.Control.OrgQuotas["acme"].Instances == 1 && c.Control.OrgQuotas["big"].MemoryGiB == 9
		}},
		{name: "quota of no org", yaml: "control: {orgQuotas: {Acme Inc: {cpu: 16}}}", want: `control.orgQuotas: "Acme Inc" is not the name of an org`},
		{name: "negative quota", yaml: "control: {orgQuotas: {acme: {cpu: -1}}}", want: "control.orgQuotas.acme.cpu: must be 0 (no limit) to"},
		{name: "misspelt quota", yaml: "control: {orgQuotas: {acme: {cpus: 1}}}", want: `did you mean "cpu"?`},
		{name: "unknown key", yaml: "registry:\n  listn: x\n", want: `cisd.yaml:2:3: unknown key "registry.listn"; did you mean "listen"?`},
		{name: "unknown flag key", set: []string{"registry.listn=x"}, want: `did you mean "listen"?`},
		{name: "no equals", set: []string{"registry.listen"}, want: "write key=value"},
		{name: "bad values", yaml: "node: {address: here}\ncontrol: {engine: podman, cri: {subnet: 10.0.0.1}}\nlog: {level: loud}",
			want: `control.engine: must be cri or memory, not "podman"`},
		{name: "credentials in a URL", yaml: "logs: {url: 'http://u:p@h'}", want: "logs.url: must be an http or https URL without credentials"},
		{name: "one S3 region", yaml: "registry: {storage: {region: a, regions: [{name: a, endpoint: 'https://s3.example', bucket: b, credentialsFile: /c}]}}",
			ok: func(c *Config) bool { return c.Registry.Storage.Tracker == c.Registry.Database }},
		{name: "unknown key of a region", yaml: "registry: {storage: {regions: [{nam: a}]}}", want: `did you mean "name"?`},
		{name: "bad region", yaml: "registry: {storage: {region: a, regions: [{name: a, endpoint: s3.example, credentialsFile: /c}]}}",
			want: "registry.storage.regions[0].endpoint: must be an http or https URL"},
		{name: "regions without this one", yaml: "registry: {storage: {region: b, regions: [{name: a, endpoint: 'https://s3.example', bucket: b, credentialsFile: /c}]}}",
			want: `registry.storage.region: "b" is not one of registry.storage.regions`},
		{name: "regions with a tracker of one machine", yaml: "registry: {storage: {region: a, regions: [" +
			"{name: a, endpoint: 'https://a.example', bucket: b, credentialsFile: /c}, {name: b, endpoint: 'https://b.example', bucket: b, credentialsFile: /c}]}}",
			want: "registry.storage.tracker: must be a postgres:// address"},
		{name: "OpenID providers", yaml: "registry: {trustedProxies: [10.0.0.0/8], oidc: [{name: corp, issuer: 'https://id.example', clientID: hub, signUp: true, " +
			"groupsClaim: groups, groups: [{group: devs, org: demo, team: web, role: writer}]}, {name: partner, issuer: 'https://partner.example', clientID: hub, signUp: true, accountPrefix: partner-}]}",
			ok: func(c *Config) bool {
				p, err := c.Registry.Proxies()
				o := c.Registry.Providers()
				return len(o) == 2 && o[0].SignUp && o[0].Groups[0].Team == "web" && o[1].AccountPrefix == "partner-" && err == nil && len(p) == 1
			}},
		{name: "OpenID provider without client", yaml: "registry: {oidc: [{name: corp, issuer: 'https://id.example'}]}", want: `registry.oidc: provider "corp": a client id is needed`},
		{name: "OpenID provider makes owners", yaml: "registry: {oidc: [{name: corp, issuer: 'https://id.example', clientID: x, org: demo, role: owner}]}", want: "new people may become"},
		{name: "OpenID providers that cannot be told apart", yaml: "registry: {oidc: [{name: a, issuer: 'https://id.example', clientID: x}, {name: b, issuer: 'https://id.example', clientID: x}]}",
			want: "must differ in name and issuer"},
		{name: "accounts that cannot be told apart", yaml: "registry: {oidc: [{name: a, issuer: 'https://a.example', clientID: x, signUp: true}, {name: b, issuer: 'https://b.example', clientID: x, signUp: true}]}",
			want: "need a prefix"},
		{name: "unknown key of a provider", yaml: "registry: {oidc: [{nam: corp}]}", want: `did you mean "name"?`},
		{name: "one provider that is no list", yaml: "registry: {oidc: {issuer: 'https://id.example'}}", want: "line 1: cannot unmarshal !!map"},
		{name: "proxies", yaml: "registry: {trustedProxies: [10.0.0.1/8]}", want: "registry.trustedProxies: must be networks"},
		{name: "audit", yaml: "registry: {auditDays: 0}", want: "registry.auditDays: must be at least 1"},
		{name: "no state directory", yaml: "stateDir: ''", want: "stateDir: must not be empty"},
		{name: "a node that cannot stand in a meter event", yaml: "node: {name: node one}", want: "node.name: must be 1 to 128 letters"},
		{name: "no region", set: []string{"node.region="}, want: "node.region: must be 1 to 128 letters"},
		{name: "a number that is none", set: []string{"kubelet.workers="}, want: "cannot unmarshal"},
		{name: "an empty variable", env: []string{"CUMULET_NODE_REGION="}, ok: func(c *Config) bool { return c.Node.Region == "local" }},
		{name: "a node that Kubernetes does not take", yaml: "node: {name: Node_1}", want: "kubelet.nodeName: must be the name of a Kubernetes node"},
		{name: "the same with another in Kubernetes", yaml: "node: {name: Node_1}\nkubelet: {nodeName: node-1}", ok: func(c *Config) bool { return c.Node.Name == "Node_1" }},
		{name: "an org that is none", yaml: "kubelet: {orgs: {team-a: Acme}}", want: `kubelet.orgs.team-a: "Acme" is not the name of an org`},
		{name: "a namespace that is none", yaml: "kubelet: {orgs: {Team: acme}}", want: `kubelet.orgs: "Team" is not the name of a namespace`},
		{name: "records that are gone at once", yaml: "control: {keepEndedDays: -1}", want: "control.keepEndedDays: must be at least 1"},
		{name: "retention", yaml: "logs: {retentionDays: -1}", want: "logs.retentionDays: must not be negative"},
		{name: "a token for a week", yaml: "registry: {tokenTTL: 168h}", want: "registry.tokenTTL: must be 1m to 24h"},
		{name: "no interval", yaml: "billing: {interval: 0s}", want: "billing.interval: must be above 0"},
		{name: "another database", yaml: "control: {database: 'mysql://u:hush@h/d'}", want: "control.database: must be sqlite:PATH or postgres://"},
		{name: "a network of another kind", yaml: "control: {cri: {subnet: 'fd00::/64'}}", want: "control.cri.subnet: must be an IPv4 network"},
		{name: "credentials to a collector of traces", yaml: "tracing: {endpoint: 'http://u:p@h:4318'}", want: "tracing.endpoint: must be an http or https URL without credentials"},
		{name: "a credential elsewhere", yaml: "logs: {elasticsearch: {writeUser: ../../etc/passwd}}", want: "logs.elasticsearch.writeUser: must be a name"},
		{name: "one user for both", yaml: "logs: {elasticsearch: {writeUser: a, readUser: a}}", want: "logs.elasticsearch.readUser: must be another user"},
		{name: "a resolver by name", yaml: "kubelet: {clusterDNS: [dns.local]}", want: "kubelet.clusterDNS[0]: must be an IP address"},
		{name: "groups", yaml: "registry: {groupDays: -1}", want: "registry.groupDays: must be 0 (for ever) or more"},
		{name: "half a key pair", yaml: "kubelet: {certFile: a}", want: "kubelet.certFile: goes with kubelet.keyFile"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := ""
			if tc.yaml != "" {
				file = write(tc.yaml)
			}
			c, err := Load(file, tc.env, tc.set)
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("the error tells a password: %v", err)
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if tc.ok != nil && !tc.ok(c) {
				t.Errorf("got %+v", c)
			}
		})
	}
}

// What `cisd config show` prints has no password of a database, wherever it is in the address.
func TestRedacted(t *testing.T) {
	c := Default()
	c.Registry.Database = "postgres://u:hush@h/d"
	c.Control.Database = "postgres://h/d?user=u&password=hush&sslmode=require"
	c.Billing.Database = "postgres://u:hush@h/d?sslpassword=hush"
	c.Registry.Storage.Tracker = "sqlite:/var/lib/x.db"
	r := c.Redacted()
	for _, dsn := range []string{r.Registry.Database, r.Control.Database, r.Billing.Database} {
		if strings.Contains(dsn, "hush") || !strings.Contains(dsn, "xxxxx") {
			t.Errorf("shown: %s", dsn)
		}
	}
	if r.Registry.Storage.Tracker != c.Registry.Storage.Tracker || !strings.Contains(r.Control.Database, "sslmode=require") {
		t.Errorf("shown: %+v", r)
	}
}
