// Package cri is the engine of one machine: it runs instances on containerd through the Container Runtime Interface.
//
// One goroutine per instance owns its state and moves it towards what is desired: image pulls, the sandbox, init
// containers and sidecars, containers, probes, hooks, restarts, graceful end. What the goroutine knows can be rebuilt at
// any time from containerd and a small file per instance, so a kill -9 of either side loses nothing.
//
// The package decides nothing about admission, quota or tenancy (cis/control does) and does not configure or start
// containerd (cis/engine/cri/containerd does).
package cri

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/engine"
)

// Config is what an engine is made of. Socket, Root, LogRoot, Node, Handlers and Sink are required.
type Config struct {
	// Socket is the path of containerd's unix socket.
	Socket string
	// TaskDir is where containerd keeps the bundles of tasks, <its state>/io.containerd.runtime.v2.task: by them the
	// engine learns from the shims how containers end while containerd is down. Empty: what ends then ends as unknown.
	TaskDir string
	// Runsc is gVisor's runtime by which the ends of its containers are learned when their shim has gone as well; may
	// be empty.
	Runsc Runsc
	// Root keeps the engine's own files (instances/<id>/…); LogRoot gets the container logs,
	// <LogRoot>/<org>/<instance>/<container>/<attempt>.log. Both are absolute.
	Root    string
	LogRoot string
	// Node and Region say where this engine is; HostIP is the node's address as instances see it, may be empty.
	Node   string
	Region string
	HostIP string
	// Handlers maps each sandbox class that this host can run to its containerd handler; Unavailable says of the others
	// why not.
	Handlers    map[cis.SandboxClass]string
	Unavailable map[cis.SandboxClass]string
	// KataOrgs are the orgs whose instances of class kata have another handler than that of Handlers: another hypervisor.
	KataOrgs map[string]OrgKata
	// Copying are the handlers whose sandboxes share no directory with the machine: they get copies of its files, made once.
	Copying map[string]bool
	// Default is the class of an instance that asks for none; empty means the strongest of Handlers that isolates: runc
	// must be asked for, or named here.
	Default cis.SandboxClass
	// Console is where the console of a virtual machine is, a file or a socket, a pattern as ConsolePath has it; empty: it
	// is not kept.
	Console string
	// Fence keeps orgs apart on the instances' network; nil leaves the network open.
	Fence Fence
	// Sink takes the reports.
	Sink engine.Sink
	// Meter starts meters; nil means that nothing is metered.
	Meter MeterStarter
	// Logger is used with the ids as attributes; nil means slog.Default().
	Logger *slog.Logger
	// PullAuth gives short-lived credentials for images of the platform's own registry, for which the spec has none;
	// may be nil.
	PullAuth func(ctx context.Context, org string, images []string) ([]cis.RegistryAuth, error)
	// HostDNS is the resolver of instances whose spec has none; nil means the host's /etc/resolv.conf.
	HostDNS *cis.DNS
	// CgroupRoot is the cgroup below which each instance has its own; default "/cumulet". It is a path: the engine sets
	// the limits itself, so containerd must not have systemd do it (SystemdCgroup = false).
	CgroupRoot string
	// Capacity is what the engine offers; zero fields are taken from the host.
	Capacity engine.Capacity
	// ParallelStarts bounds sandboxes being made at the same time, ParallelPulls image pulls; default 8 each.
	ParallelStarts int
	ParallelPulls  int
	// PIDLimit bounds the processes of one instance; default 4096.
	PIDLimit int64
	// Relist is the interval of the safety relist behind the event stream; default 30 s.
	Relist time.Duration
	// DiskCheck is the time between two measurements of what an instance with disk limits uses; default 10 s.
	DiskCheck time.Duration
	// StopBound is how long a sandbox has to stop before its shim is killed; default 20 s.
	StopBound time.Duration
	// CrashBackoff and PullBackoff pace restarts and repeated pulls; defaults 10 s doubling to 5 min.
	CrashBackoff Backoff
	PullBackoff  Backoff
}

// OrgKata is an org's handler of class kata, or why it cannot be had. It is never replaced by another.
type OrgKata struct{ Handler, Unavailable string }

// Runsc is gVisor's command and the directory in which its shim has it keep the containers. Both are absolute.
type Runsc struct{ Binary, Root string }

// Backoff is a delay that doubles from Initial to Max, and begins anew after Reset without a failure.
type Backoff struct {
	Initial, Max, Reset time.Duration
}

func (b Backoff) orDefault() Backoff {
	if b.Initial <= 0 {
		b.Initial = 10 * time.Second
	}
	if b.Max <= 0 {
		b.Max = 5 * time.Minute
	}
	if b.Reset <= 0 {
		b.Reset = 2 * b.Max
	}
	return b
}

func (b Backoff) next(d time.Duration) time.Duration {
	if d <= 0 {
		return b.Initial
	}
	return min(2*d, b.Max)
}

// Meter is one instance's running meter.
type Meter interface {
	// MarkRunning ends the startup time at an instant; repeating it changes nothing.
	MarkRunning(at time.Time) error
	// Stop ends the meter at a time for which there is evidence; repeating it changes nothing.
	Stop(ctx context.Context, at time.Time, reason string) error
}

// MeterStarter starts the meter of an instance, or goes on with the one that is there already. Safe for concurrent use.
type MeterStarter interface {
	Start(ctx context.Context, s billing.Subject) (Meter, error)
}

// Why a meter stopped, as billing.Event.Reason has it.
const (
	meterCompleted   = "Completed"
	meterFailed      = "Failed"
	meterDeleted     = "Deleted"
	meterOOMKilled   = "OOMKilled"
	meterStartFailed = "StartFailed"
)

// defaultCgroupRoot is where instances' cgroups are when the configuration does not say.
const defaultCgroupRoot = "/cumulet"

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Socket == "":
		return c, errors.New("cri: Config.Socket is empty")
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.LogRoot):
		return c, errors.New("cri: Config.Root and Config.LogRoot must be absolute paths")
	case c.TaskDir != "" && !filepath.IsAbs(c.TaskDir):
		return c, errors.New("cri: Config.TaskDir must be an absolute path")
	case c.Node == "":
		return c, errors.New("cri: Config.Node is empty")
	case strings.HasSuffix(c.CgroupRoot, ".slice"):
		return c, errors.New("cri: Config.CgroupRoot is a systemd slice: containerd must run with SystemdCgroup = false, and CgroupRoot be a path")
	case c.Sink == nil:
		return c, errors.New("cri: Config.Sink is nil")
	}
	for class, h := range c.Handlers {
		if h == "" {
			return c, errors.New("cri: Config.Handlers has no handler for class " + string(class))
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = defaultCgroupRoot
	}
	if c.ParallelStarts <= 0 {
		c.ParallelStarts = max(8, 2*runtime.NumCPU())
	}
	if c.ParallelPulls <= 0 {
		c.ParallelPulls = 8
	}
	if c.PIDLimit <= 0 {
		c.PIDLimit = 4096
	}
	if c.Relist <= 0 {
		c.Relist = 30 * time.Second
	}
	if c.DiskCheck <= 0 {
		c.DiskCheck = 10 * time.Second
	}
	if c.StopBound <= 0 {
		c.StopBound = 20 * time.Second
	}
	c.CrashBackoff, c.PullBackoff = c.CrashBackoff.orDefault(), c.PullBackoff.orDefault()
	return c, nil
}
