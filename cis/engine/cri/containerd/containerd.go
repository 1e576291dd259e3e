// Package containerd runs containerd for a server that brings its own: it
// writes the configuration of containerd, its runtimes and the instances'
// network, keeps the daemon running as a child, says when it is ready, and
// brings the sandbox image along, so that starting an instance needs no other
// registry. It is not the engine: what happens to an instance is package cri's
// affair, over the CRI socket that this package names.
//
// Instances outlive the daemon and this process. The daemon outlives a kill of
// this process, too, and the next start goes on with it: an end of an instance
// meanwhile is seen when it happens.
package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Config says where and how containerd runs. Dir, BinDirs, CNIBinDir, Handlers
// and SandboxImage have no defaults.
type Config struct {
	// Dir holds all state of this containerd: images, containers, sockets,
	// configuration, log. Absolute. Whoever may write to it controls the
	// machine; it is made with mode 0711.
	Dir string
	// RunDir holds what ends with the machine's uptime, sockets included, in at
	// most MaxRunDir bytes, for a socket's path is bounded. Default: Dir/run, or
	// a directory in /run where Dir is long.
	RunDir string

	// BinDirs are searched, in order and before PATH, for containerd, the shims
	// and the runtimes.
	BinDirs []string
	// CNIBinDir has the CNI plugins bridge, host-local, loopback, portmap and
	// bandwidth.
	CNIBinDir string

	// Handlers are the runtime handlers to offer, the first one being the
	// default; see DetectHandlers.
	Handlers []Handler
	// Host is what the machine allows. Default: DetectHost's findings.
	Host *Host

	// SandboxImage is the reference of the image that holds a sandbox open, and
	// SandboxArchive a local docker or OCI archive that contains it. With an
	// empty SandboxArchive the image is pulled.
	SandboxImage   string
	SandboxArchive string

	Network    Network
	Registries []Registry

	// LogLevel is trace, debug, info, warn or error. Default: info. The log is
	// Dir/log/containerd.log, at most 64 MiB with its predecessors.
	LogLevel string
	// Log gets this package's own records. Default: slog.Default().
	Log *slog.Logger
	// BeforeStart, if set, is called before each start of containerd, which waits
	// for it: what containerd forgets at its start can be kept then.
	BeforeStart func(ctx context.Context)
}

// Network is the instances' network on this machine: a bridge with NAT to the
// outside, written as a CNI configuration with nftables back ends.
type Network struct {
	// Bridge is the name of the bridge, at most 15 bytes. Default: cumulet0.
	Bridge string
	// Subnet is where instances get their IPv4 addresses; its first address is
	// the bridge's. At most a /29. Default: 10.214.0.0/16.
	Subnet netip.Prefix
	// MTU of the instances' interfaces. Default: that of the interface with the
	// default route, else 1500.
	MTU int
}

// Registry is how to talk to one registry; others get HTTPS with the system's
// certificate authorities.
type Registry struct {
	Host      string // as in an image reference: host or host:port
	PlainHTTP bool
	CAFile    string // PEM, absolute; trusted for this registry besides the system's
}

// Defaults of Config and Network.
const (
	DefaultBridge   = "cumulet0"
	DefaultSubnet   = "10.214.0.0/16"
	DefaultLogLevel = "info"
)

// The kernel allows 107 bytes of a unix socket's path.
const (
	maxSocketPath = 107
	// MaxRunDir is the longest RunDir in bytes.
	MaxRunDir = maxSocketPath - len("/c.sock.ttrpc")
	// maxShimSockets is the longest directory of shims' sockets, whose names
	// are a hash in hexadecimal.
	maxShimSockets = maxSocketPath - len("/") - 2*sha256.Size
)

var (
	bridgeName   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$`)
	registryHost = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?$|^\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?$`)
)

// normalize fills the defaults in and reports everything that is wrong.
func (c Config) normalize() (Config, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !filepath.IsAbs(c.Dir) {
		bad("Dir %q is not an absolute path", c.Dir)
	}
	if c.RunDir == "" {
		if c.RunDir = filepath.Join(c.Dir, "run"); len(c.RunDir) > MaxRunDir {
			c.RunDir = c.shortDir()
		}
	}
	if !filepath.IsAbs(c.RunDir) || len(c.RunDir) > MaxRunDir {
		bad("RunDir %q: want an absolute path of at most %d bytes, for the sockets in it", c.RunDir, MaxRunDir)
	}
	if !filepath.IsAbs(c.CNIBinDir) {
		bad("CNIBinDir %q is not an absolute path", c.CNIBinDir)
	}
	if c.SandboxImage == "" {
		bad("SandboxImage is empty")
	}
	if c.SandboxArchive != "" && !filepath.IsAbs(c.SandboxArchive) {
		bad("SandboxArchive %q is not an absolute path", c.SandboxArchive)
	}
	if c.LogLevel == "" {
		c.LogLevel = DefaultLogLevel
	}
	if !slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, c.LogLevel) {
		bad("LogLevel %q: want trace, debug, info, warn or error", c.LogLevel)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Host == nil {
		h, err := DetectHost()
		if err != nil {
			errs = append(errs, err)
		}
		c.Host = &h
	}
	errs = append(errs, checkHandlers(c.Handlers)...)
	for _, r := range c.Registries {
		if !registryHost.MatchString(r.Host) || strings.Contains(r.Host, "..") {
			bad("registry %q: want host or host:port", r.Host)
		}
		if r.CAFile != "" && !filepath.IsAbs(r.CAFile) {
			bad("registry %q: CAFile %q is not an absolute path", r.Host, r.CAFile)
		}
	}
	network, err := c.Network.normalize()
	if err != nil {
		errs = append(errs, err)
	}
	c.Network = network
	if err := errors.Join(errs...); err != nil {
		return Config{}, fmt.Errorf("containerd configuration: %w", err)
	}
	return c, nil
}

func (n Network) normalize() (Network, error) {
	if n.Bridge == "" {
		n.Bridge = DefaultBridge
	}
	if !bridgeName.MatchString(n.Bridge) {
		return n, fmt.Errorf("bridge %q: want 1 to 15 letters, digits, '_', '.' or '-'", n.Bridge)
	}
	if !n.Subnet.IsValid() {
		n.Subnet = netip.MustParsePrefix(DefaultSubnet)
	}
	if !n.Subnet.Addr().Is4() || n.Subnet.Bits() > 29 || n.Subnet.Masked() != n.Subnet {
		return n, fmt.Errorf("subnet %s: want an IPv4 network of /29 or larger, with no host bits", n.Subnet)
	}
	if n.MTU == 0 {
		n.MTU = defaultMTU()
	}
	if n.MTU < 576 || n.MTU > 65535 {
		return n, fmt.Errorf("MTU %d: want 576 to 65535", n.MTU)
	}
	return n, nil
}

// The files of a configuration, all below Dir but for the sockets.
func (c Config) configFile() string { return filepath.Join(c.Dir, "config", "containerd.toml") }
func (c Config) handlerFile(name string) string {
	return filepath.Join(c.Dir, "config", "handler-"+name+".toml")
}
func (c Config) kataDir(name string) string {
	return filepath.Join(c.Dir, "config", "handler-"+name)
}
func (c Config) cniDir() string   { return filepath.Join(c.Dir, "config", "cni") }
func (c Config) certsDir() string { return filepath.Join(c.Dir, "config", "certs.d") }
func (c Config) logFile() string  { return filepath.Join(c.Dir, "log", "containerd.log") }
func (c Config) socket() string   { return filepath.Join(c.RunDir, "c.sock") }

// stateDir is containerd's state, taskDir its tasks' part of it.
func (c Config) stateDir() string { return filepath.Join(c.RunDir, "state") }
func (c Config) taskDir() string  { return filepath.Join(c.stateDir(), "io.containerd.runtime.v2.task") }

// shimSockets is where the shims listen.
func (c Config) shimSockets() string {
	if dir := filepath.Join(c.RunDir, "s"); len(dir) <= maxShimSockets {
		return dir
	}
	return filepath.Join(c.shortDir(), "s")
}

// shortDir is for sockets whose path would be too long below Dir.
func (c Config) shortDir() string { return filepath.Join("/run", c.networkName()) }

// networkName tells this network's address store from another's on the machine.
func (c Config) networkName() string {
	sum := sha256.Sum256([]byte(c.Dir))
	return "cumulet-" + hex.EncodeToString(sum[:4])
}
