package role

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/meter"
	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/cri"
	"cumulet.io/cis/engine/cri/containerd"
	"cumulet.io/cis/engine/cri/fence"
	"cumulet.io/cis/sandbox"
	"cumulet.io/cmd/cisd/config"
	"cumulet.io/registry/hubtoken"
)

// pauseImage is the sandbox image in the archive of control.cri.pauseImage.
const pauseImage = "cumulet.io/pause:v1"

// binDirs are where runtimes are looked for before PATH.
func binDirs(c config.CRI) []string {
	if c.BinDir == "" {
		return nil
	}
	return []string{c.BinDir}
}

func report(ctx context.Context, c config.CRI) sandbox.Report {
	return sandbox.Host(ctx, sandbox.Options{BinDirs: binDirs(c), KataConfig: c.KataConfig, KataConfigs: c.Kata.Configs,
		Hypervisor: c.Kata.Hypervisor, Kata: kataOptions(c), OwnContainerd: c.Socket == "", AllowRuncDefault: c.AllowRuncDefault})
}

// offer are the handlers that containerd gets: those of which the host has everything, the strongest last, since the
// first is what a sandbox gets that names none, and ours all name one.
func offer(c config.CRI, rep sandbox.Report) []containerd.Handler {
	var offered []containerd.Handler
	for _, h := range containerd.DetectHandlers(binDirs(c), "") {
		if f := rep.Finding(h.Name); f != nil && f.Available() {
			offered = append(offered, h)
		}
	}
	for _, f := range rep.Findings {
		if f.Class == cis.Kata && f.Available() {
			offered = append(offered, containerd.KataHandler(f.Handler, f.KataConfig, kataOptions(c)))
		}
	}
	return offered
}

func kataOptions(c config.CRI) sandbox.KataOptions {
	return sandbox.KataOptions{Template: c.Kata.Template, Cache: c.Kata.Cache}
}

// kataOrgs are the handlers of the orgs that have a hypervisor of their own.
func kataOrgs(c config.CRI, rep sandbox.Report) map[string]cri.OrgKata {
	out := map[string]cri.OrgKata{}
	for org, name := range c.Kata.Orgs {
		if f := rep.Finding(sandbox.KataHandler(name)); f != nil && f.Available() {
			out[org] = cri.OrgKata{Handler: f.Handler}
		} else if f != nil {
			out[org] = cri.OrgKata{Unavailable: f.Why()}
		}
	}
	return out
}

// copying are the handlers whose virtual machines have copies of files.
func copying(rep sandbox.Report) map[string]bool {
	out := map[string]bool{}
	for _, f := range rep.Findings {
		out[f.Handler] = f.Copying
	}
	return out
}

// sandboxPolicy is the configured least isolation.
func sandboxPolicy(c config.Sandbox) sandbox.Policy {
	p := sandbox.Policy{Minimum: cis.SandboxClass(c.Minimum), Orgs: map[string]cis.SandboxClass{}}
	for org, class := range c.Orgs {
		p.Orgs[org] = cis.SandboxClass(class)
	}
	return p
}

// HostCheck prints which sandbox classes this machine can run, and how to mend the others.
func HostCheck(ctx context.Context, cfg *config.Config, w io.Writer) error {
	return report(ctx, cfg.Control.CRI).Write(w)
}

// daemon is the containerd that the server runs as its child, nil when the operator has one running.
func daemon(cfg *config.Config, rep sandbox.Report, log *slog.Logger, beforeStart func(context.Context)) (*containerd.Daemon, error) {
	c := cfg.Control.CRI
	if c.Socket != "" {
		return nil, nil
	}
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return nil, fmt.Errorf("control.cri.subnet: %w", err)
	}
	registry, err := url.Parse(cfg.Registry.URL)
	if err != nil {
		return nil, fmt.Errorf("registry.url: %w", err)
	}
	offered := offer(c, rep)
	// The engine makes the instances' cgroups itself, beside systemd's where there is one.
	machine, err := containerd.DetectHost()
	if err != nil {
		return nil, err
	}
	machine.Systemd = false
	return containerd.New(containerd.Config{
		Dir: cfg.Path("containerd"), BinDirs: binDirs(c), CNIBinDir: c.BinDir, Handlers: offered, Host: &machine,
		SandboxImage: pauseImage, SandboxArchive: c.PauseImage,
		Network:    containerd.Network{Bridge: c.Bridge, Subnet: subnet},
		Registries: []containerd.Registry{{Host: registry.Host, PlainHTTP: registry.Scheme == "http"}},
		Log:        log, BeforeStart: beforeStart,
	})
}

// criPlace runs instances on this machine: containerd as a child or an existing one, the engine, the meter.
func (p *process) criPlace(ctx context.Context, log *slog.Logger) (*place, error) {
	c := p.cfg.Control.CRI
	rep := report(ctx, c)
	handlers, why := rep.Handlers()
	for class, reason := range why {
		log.Info("a sandbox class is not to be had here", "class", class, "why", reason)
	}
	if rep.Default == "" {
		log.Warn("no sandbox class is the default here: instances must name one; see cisd host check")
	}
	var made atomic.Pointer[cri.Engine]
	ctrd, err := daemon(p.cfg, rep, log, func(ctx context.Context) {
		// What ended without containerd is forgotten by its start, so the shims are asked before it.
		if e := made.Load(); e != nil {
			if err := e.CollectExits(ctx); err != nil {
				log.Warn("not every container's end could be asked for", "error", err)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	pulls, err := p.source(accountControl, hubtoken.AudienceRegistry, hubtoken.ActionNode)
	if err != nil {
		return nil, err
	}
	auth, err := newPullAuth(p.cfg.Registry.URL, pulls)
	if err != nil {
		return nil, err
	}
	meters, err := meter.Open(p.meterDir(), meter.Options{Logger: log, Evidence: func() time.Time {
		if e := made.Load(); e != nil {
			return e.Evidence()
		}
		return time.Time{}
	}})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, meters.Close)
	pl := &place{meters: meters, parts: []part{{"meter", meters.Run}}}
	socket, taskDir, runsc := c.Socket, "", cri.Runsc{}
	pl.ready = func(ctx context.Context) error { return containerd.Answers(ctx, c.Socket) }
	if ctrd != nil {
		socket, taskDir = ctrd.Socket(), ctrd.TaskDir()
		runsc.Binary, runsc.Root = ctrd.Runsc()
		pl.ready = ctrd.Ready
		pl.parts = append(pl.parts, part{"containerd", ctrd.Run})
	}
	pl.engine = func(sink engine.Sink) (engine.Engine, error) {
		var wall cri.Fence
		if ctrd != nil { // the network of another containerd is not ours
			f, err := fence.Open(fence.Config{Bridge: c.Bridge, NodePorts: nodePorts(c)})
			if err != nil {
				return nil, err
			}
			wall = f
		}
		e, err := cri.New(cri.Config{Fence: wall,
			Socket: socket, TaskDir: taskDir, Runsc: runsc, Root: p.cfg.Path("engine"), LogRoot: logRoot(p.cfg), Node: p.cfg.Node.Name, Region: p.cfg.Node.Region,
			HostIP: p.cfg.Node.Address, Handlers: handlers, KataOrgs: kataOrgs(c, rep), Copying: copying(rep), Console: c.Kata.Console, Unavailable: why, Default: rep.Default, Sink: sink, Meter: meterStarter{meters}, Logger: log,
			PullAuth: auth.Credentials, CgroupRoot: cgroupRoot(p.cfg),
			Capacity: engine.Capacity{MilliCPU: c.CPU * 1000, MemoryBytes: c.MemoryGiB << 30},
		})
		if err != nil {
			return nil, err
		}
		p.close = append(p.close, e.Close)
		made.Store(e)
		pl.metrics = e.KataMetrics()
		return e, nil
	}
	return pl, nil
}

// nodePorts are the machine's ports that instances may reach.
func nodePorts(c config.CRI) []fence.NodePort {
	var out []fence.NodePort
	for _, s := range c.NodePorts {
		if p, err := config.ParseNodePort(s); err == nil { // the configuration has been checked
			out = append(out, fence.NodePort{UDP: p.Protocol == "udp", Port: p.Port})
		}
	}
	return out
}

// logRoot is where containers' log files are, and what the collector reads.
func logRoot(c *config.Config) string { return c.Path("log", "instances") }

// cgroupRoot keeps the instances of several servers on one machine apart.
func cgroupRoot(c *config.Config) string { return "/cumulet-" + c.Control.CRI.Bridge }

type meterStarter struct{ w *meter.Writer }

// Start implements cri.MeterStarter.
func (m meterStarter) Start(ctx context.Context, s billing.Subject) (cri.Meter, error) {
	return m.w.Start(ctx, s)
}

// Purge ends every instance on this machine and removes all state. The server must not be running.
func Purge(ctx context.Context, cfg *config.Config, w io.Writer) error {
	log := slog.New(slog.DiscardHandler)
	ctrd, err := daemon(cfg, report(ctx, cfg.Control.CRI), log, nil)
	if err != nil {
		return err
	}
	if ctrd != nil {
		if err := purgeSandboxes(ctx, ctrd, w); err != nil {
			fmt.Fprintln(w, "not every instance could be ended in good order:", err)
		}
		if err := ctrd.Purge(ctx); err != nil {
			return err
		}
		if err := fence.Remove(cfg.Control.CRI.Bridge); err != nil {
			return err
		}
	}
	if err := cri.Purge(cri.Config{Root: cfg.Path("engine"), LogRoot: logRoot(cfg), CgroupRoot: cgroupRoot(cfg)}); err != nil {
		return err
	}
	if err := os.RemoveAll(cfg.StateDir); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// purgeSandboxes starts containerd once more to give every sandbox an orderly end: addresses, rules and mounts go with it.
func purgeSandboxes(ctx context.Context, ctrd *containerd.Daemon, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- ctrd.Run(run) }()
	err := ctrd.Ready(ctx)
	if err == nil {
		fmt.Fprintln(w, "ending instances")
		err = ctrd.RemoveSandboxes(ctx)
	}
	stop()
	if rerr := <-done; err == nil {
		err = rerr
	}
	return err
}
