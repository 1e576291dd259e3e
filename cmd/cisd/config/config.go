// Package config is the server's configuration: one strict YAML file, overridden by environment and flags.
//
// Defaults are in Default alone and make a working single machine. It opens and starts nothing.
package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"cumulet.io/internal/strictyaml"
)

// Config is the whole file. Every role reads its own part and the common ones.
type Config struct {
	// StateDir holds all that the embedded parts keep: databases, blobs, logs, keys, credentials.
	StateDir string `yaml:"stateDir"`
	// Log is how the server itself logs, to standard error, as JSON.
	Log Log `yaml:"log"`
	// Tracing is off while its endpoint is empty.
	Tracing Tracing `yaml:"tracing"`
	// Node names this machine.
	Node Node `yaml:"node"`
	// The roles.
	Registry Registry `yaml:"registry"`
	Control  Control  `yaml:"control"`
	Logs     Logs     `yaml:"logs"`
	Billing  Billing  `yaml:"billing"`
	Kubelet  Kubelet  `yaml:"kubelet"`
}

// Log is the server's own log.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level"`
}

// Tracing sends OpenTelemetry traces over OTLP/HTTP.
type Tracing struct {
	// Endpoint is a URL as http://127.0.0.1:4318; empty means no tracing.
	Endpoint string `yaml:"endpoint"`
	// SampleRatio is the share of traces begun here that are kept, 0 to 1.
	SampleRatio float64 `yaml:"sampleRatio"`
}

// Node names the machine in instances, meter events and bills.
type Node struct {
	Name   string `yaml:"name"`
	Region string `yaml:"region"`
	// Address is the IP that clients in the cluster reach this machine at.
	Address string `yaml:"address"`
}

// Registry is the bundled registry with the token service.
type Registry struct {
	Listen string `yaml:"listen"`
	// URL is how clients and the other roles reach it; default http:// and Listen.
	URL string `yaml:"url"`
	// Database is sqlite:PATH or postgres://…; default a file in the state directory.
	Database string `yaml:"database"`
	// BlobDir keeps blobs where Storage names no regions; default in the state directory.
	BlobDir string `yaml:"blobDir"`
	// Storage is where blobs are kept at scale.
	Storage Storage `yaml:"storage"`
	// AdminUser owns AdminOrg; both are made at the first start. The password is made up and written to
	// credentials/<user> in the state directory when that file is not there.
	AdminUser string `yaml:"adminUser"`
	AdminOrg  string `yaml:"adminOrg"`
	// TokenTTL is how long a hubtoken lives.
	TokenTTL time.Duration `yaml:"tokenTTL"`
	// Webhooks is how events are sent.
	Webhooks Webhooks `yaml:"webhooks"`
	People   `yaml:",inline"`
}

// Webhooks is what the orgs' webhooks may do.
type Webhooks struct {
	// AllowNetworks are networks in CIDR notation that webhooks may call besides the public Internet: private and
	// loopback ones are refused otherwise.
	AllowNetworks []string `yaml:"allowNetworks"`
}

// Networks gives AllowNetworks parsed.
func (w Webhooks) Networks() ([]netip.Prefix, error) { return networks(w.AllowNetworks) }

// Storage is the registry's global object storage.
type Storage struct {
	// Tracker is the database that says what is where, one for all regions; default registry.database.
	Tracker string `yaml:"tracker"`
	// Region is this node's, one of Regions; default node.region.
	Region string `yaml:"region"`
	// SpoolDir is where blobs on their way from other regions are; default in the state directory.
	SpoolDir string `yaml:"spoolDir"`
	// Regions have an S3-compatible object store each; none means the directory registry.blobDir.
	Regions []StorageRegion `yaml:"regions"`
}

// StorageRegion is the object store of a region.
type StorageRegion struct {
	Name string `yaml:"name"`
	// Endpoint is the store's URL without path, as https://s3.example; PublicEndpoint how clients of the registry reach
	// it: they are sent there for blobs. Empty means that they cannot.
	Endpoint       string `yaml:"endpoint"`
	PublicEndpoint string `yaml:"publicEndpoint"`
	// Bucket is there already, and is the registry's alone.
	Bucket string `yaml:"bucket"`
	// S3Region is what requests are signed for; default us-east-1.
	S3Region string `yaml:"s3Region"`
	// CredentialsFile has aws_access_key_id and aws_secret_access_key in section default, as AWS's own tools have it.
	CredentialsFile string `yaml:"credentialsFile"`
}

// Control is the container instance service with its engine.
type Control struct {
	Listen   string `yaml:"listen"`
	URL      string `yaml:"url"`
	Database string `yaml:"database"`
	// Engine is cri, or memory (runs nothing; for trying out and benchmarks).
	Engine string `yaml:"engine"`
	// Quota is each org's that OrgQuotas does not name; zero fields mean no limit.
	Quota Quota `yaml:"quota"`
	// OrgQuotas are the quotas of single orgs, whole: a field that one leaves out is no limit.
	OrgQuotas map[string]Quota `yaml:"orgQuotas"`
	// AllowPrivileged lets instances of class runc be privileged, which is root on this machine.
	AllowPrivileged bool `yaml:"allowPrivileged"`
	// Sandbox is the least isolation.
	Sandbox Sandbox `yaml:"sandbox"`
	// KeepEndedDays is how long the record of an ended instance is kept; reconciliation of a month needs it that long.
	KeepEndedDays int `yaml:"keepEndedDays"`
	CRI           CRI `yaml:"cri"`
	// Collector ships log files and meter events to the log store.
	Collector Collector `yaml:"collector"`
}

// Quota bounds what the live instances of one org hold.
type Quota struct {
	Instances int64 `yaml:"instances"`
	CPU       int64 `yaml:"cpu"`
	MemoryGiB int64 `yaml:"memoryGiB"`
}

// maxQuota keeps the conversion to smaller units within an int64, and is more than any place has.
const maxQuota = 1 << 40

func (q Quota) check(key string, bad func(key, format string, args ...any)) {
	for name, v := range map[string]int64{"instances": q.Instances, "cpu": q.CPU, "memoryGiB": q.MemoryGiB} {
		if v < 0 || v > maxQuota {
			bad(key+"."+name, "must be 0 (no limit) to %d, not %d", int64(maxQuota), v)
		}
	}
}

// CRI is the engine on one machine.
type CRI struct {
	// Socket of a containerd that runs already; empty means that the server runs its own as a child.
	Socket string `yaml:"socket"`
	// BinDir has containerd, its shims, runc, runsc and (in cni/ or itself) the CNI plugins; empty means PATH.
	BinDir string `yaml:"binDir"`
	// PauseImage is an image archive for the sandbox's own process.
	PauseImage string `yaml:"pauseImage"`
	// Bridge and Subnet of the instances' network.
	Bridge string `yaml:"bridge"`
	Subnet string `yaml:"subnet"`
	// NodePorts are ports of this machine that instances may reach, as 53/udp; all others are closed to them.
	NodePorts []string `yaml:"nodePorts"`
	// AllowRuncDefault lets an instance that names no class run without isolation when the host has nothing stronger.
	AllowRuncDefault bool `yaml:"allowRuncDefault"`
	// CPU (vCPUs) and MemoryGiB are what instances may hold in all, by their size classes; 0 means what the machine has.
	// More than the machine has is overcommitment: limits still hold, but instances share.
	CPU       int64 `yaml:"cpu"`
	MemoryGiB int64 `yaml:"memoryGiB"`
	// KataConfig is a Kata configuration file; empty means the shim's default.
	KataConfig string `yaml:"kataConfig"`
	// Kata is more of it.
	Kata Kata `yaml:"kata"`
}

// Collector is Filebeat.
type Collector struct {
	// Filebeat is the binary; empty means filebeat in control.cri.binDir or PATH.
	Filebeat string `yaml:"filebeat"`
	// Disabled leaves shipping to an agent that the operator runs.
	Disabled bool `yaml:"disabled"`
	// KeepMiB is how much of a container's log stays on this machine once the log store has it; 0 means all.
	KeepMiB int64 `yaml:"keepMiB"`
}

// Logs is the log store and its query API.
type Logs struct {
	Listen string `yaml:"listen"`
	URL    string `yaml:"url"`
	// Elasticsearch is the store; empty URL means the embedded one.
	Elasticsearch Elasticsearch `yaml:"elasticsearch"`
	// BulkListen is where the embedded store answers the Elasticsearch API.
	BulkListen string `yaml:"bulkListen"`
	// RetentionDays is how long lines are kept; meter events are kept for RetentionMonths.
	RetentionDays   int `yaml:"retentionDays"`
	RetentionMonths int `yaml:"retentionMonths"`
}

// Elasticsearch is a cluster of the operator's own.
type Elasticsearch struct {
	URL string `yaml:"url"`
	// WriteUser and ReadUser with their password files in credentials/.
	WriteUser string `yaml:"writeUser"`
	ReadUser  string `yaml:"readUser"`
}

// Billing is the ledger with its API.
type Billing struct {
	Listen   string `yaml:"listen"`
	URL      string `yaml:"url"`
	Database string `yaml:"database"`
	// PriceBook is a YAML file; empty means the example book that the server carries.
	PriceBook string `yaml:"priceBook"`
	// Interval is how often the ledger reads new meter events.
	Interval time.Duration `yaml:"interval"`
}

// Kubelet is the virtual node. It runs when Kubeconfig is set.
type Kubelet struct {
	Kubeconfig string `yaml:"kubeconfig"`
	// NodeName is the Kubernetes node's; default the node's name.
	NodeName string `yaml:"nodeName"`
	// Org is who pays for this node's pods; Orgs overrides it by namespace.
	Org  string            `yaml:"org"`
	Orgs map[string]string `yaml:"orgs"`
	// Listen is the kubelet API; CertFile and KeyFile serve it (self-signed when empty), ClientCAFile knows the API server.
	// HealthListen is health, readiness and metrics, in the open.
	Listen       string `yaml:"listen"`
	HealthListen string `yaml:"healthListen"`
	CertFile     string `yaml:"certFile"`
	KeyFile      string `yaml:"keyFile"`
	ClientCAFile string `yaml:"clientCAFile"`
	// ClusterDNS and ClusterDomain for dnsPolicy ClusterFirst.
	ClusterDNS    []string `yaml:"clusterDNS"`
	ClusterDomain string   `yaml:"clusterDomain"`
	// Workers sync pods at a time.
	Workers int `yaml:"workers"`
	// CPU, MemoryGiB and Pods are the capacity shown to the scheduler; 0 means what the instance service says.
	CPU       int64 `yaml:"cpu"`
	MemoryGiB int64 `yaml:"memoryGiB"`
	Pods      int64 `yaml:"pods"`
}

// Default is a single machine on loopback.
func Default() *Config {
	return &Config{
		StateDir: "/var/lib/cumulet",
		Log:      Log{Level: "info"},
		Tracing:  Tracing{SampleRatio: 0.1},
		Node:     Node{Name: "cumulet-0", Region: "local", Address: "127.0.0.1"},
		Registry: Registry{Listen: "127.0.0.1:5000", AdminUser: "admin", AdminOrg: "demo", TokenTTL: 5 * time.Minute,
			People: People{AuditDays: 365, GroupDays: 30}},
		Control: Control{Listen: "127.0.0.1:8440", Engine: "cri", KeepEndedDays: 62,
			CRI:       CRI{Bridge: "cumulet0", Subnet: "10.98.0.0/20", Kata: Kata{Hypervisor: "qemu"}},
			Collector: Collector{KeepMiB: 50}},
		Logs:    Logs{Listen: "127.0.0.1:8441", BulkListen: "127.0.0.1:8444", RetentionDays: 30, RetentionMonths: 13},
		Billing: Billing{Listen: "127.0.0.1:8442", Interval: 2 * time.Second},
		Kubelet: Kubelet{Org: "demo", Listen: "127.0.0.1:10250", HealthListen: "127.0.0.1:8443", ClusterDomain: "cluster.local", Workers: 16},
	}
}

// Load reads file (none when empty) over the defaults, then environment variables CUMULET_A_B (for a.b), then the
// overrides "a.b=value", and checks the result.
func Load(file string, environ, overrides []string) (*Config, error) {
	c := Default()
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		if err := strictyaml.Decode(file, data, c); err != nil {
			return nil, err
		}
	}
	for _, kv := range fromEnviron(environ) {
		if err := c.set("environment", kv[0], kv[1]); err != nil {
			return nil, err
		}
	}
	for _, o := range overrides {
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			return nil, fmt.Errorf("--set %s: write key=value, as registry.listen=127.0.0.1:5001", o)
		}
		if err := c.set("--set", k, v); err != nil {
			return nil, err
		}
	}
	c.derive()
	return c, c.check()
}

// set decodes one dotted key through the same strict decoder as the file. No value is an empty one by --set; an environment
// variable without one is not set.
func (c *Config) set(from, key, value string) error {
	leaf := &yaml.Node{}
	switch err := yaml.Unmarshal([]byte(value), leaf); {
	case value == "" && from == "--set":
		leaf = &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle}}}
	case err != nil || len(leaf.Content) == 0:
		leaf = &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: value}}}
	}
	n := leaf.Content[0]
	parts := strings.Split(key, ".")
	for i := len(parts) - 1; i >= 0; i-- {
		n = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: parts[i]}, n}}
	}
	text, err := yaml.Marshal(n)
	if err != nil {
		return fmt.Errorf("%s %s: %w", from, key, err)
	}
	return strictyaml.Decode(from, text, c)
}

// derive fills what follows from other fields.
func (c *Config) derive() {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	if abs, err := filepath.Abs(c.StateDir); err == nil && c.StateDir != "" { // "" would be the working directory
		c.StateDir = abs
	}
	def(&c.Registry.URL, "http://"+c.Registry.Listen)
	def(&c.Control.URL, "http://"+c.Control.Listen)
	def(&c.Logs.URL, "http://"+c.Logs.Listen)
	def(&c.Billing.URL, "http://"+c.Billing.Listen)
	def(&c.Registry.Database, "sqlite:"+c.Path("registry.db"))
	def(&c.Control.Database, "sqlite:"+c.Path("control.db"))
	def(&c.Billing.Database, "sqlite:"+c.Path("billing.db"))
	def(&c.Registry.BlobDir, c.Path("blobs"))
	def(&c.Registry.Storage.Tracker, c.Registry.Database)
	def(&c.Registry.Storage.Region, c.Node.Region)
	def(&c.Registry.Storage.SpoolDir, c.Path("spool"))
	def(&c.Kubelet.NodeName, c.Node.Name)
	def(&c.Logs.Elasticsearch.WriteUser, "collector")
	def(&c.Logs.Elasticsearch.ReadUser, "reader")
}

// Path is a path below the state directory.
func (c *Config) Path(elem ...string) string {
	return filepath.Join(append([]string{c.StateDir}, elem...)...)
}

// Redacted is the configuration without the passwords that a database address may hold, for printing.
func (c *Config) Redacted() *Config {
	r := *c
	for _, dsn := range []*string{&r.Registry.Database, &r.Registry.Storage.Tracker, &r.Control.Database, &r.Billing.Database} {
		u, err := url.Parse(*dsn)
		if err != nil {
			continue
		}
		if q := u.Query(); q.Has("password") || q.Has("sslpassword") { // libpq takes them as parameters, too
			for _, name := range []string{"password", "sslpassword"} {
				if q.Has(name) {
					q.Set(name, "xxxxx")
				}
			}
			u.RawQuery = q.Encode()
			*dsn = u.Redacted()
		} else if u.User != nil {
			*dsn = u.Redacted()
		}
	}
	return &r
}
