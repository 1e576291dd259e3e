package cri

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/engine/cri/capture"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/mounts"
	"cumulet.io/internal/problem"
)

// Engine runs instances on one containerd. Make it with New, start it with Run.
type Engine struct {
	cfg   Config
	log   *slog.Logger
	conn  *grpc.ClientConn
	rt    rt.RuntimeServiceClient
	image rt.ImageServiceClient
	ctrd  *client.Client // for commands in containers; shares conn
	// start is the service on a connection of its own, which outlives this process while starting counts calls on it.
	start     rt.RuntimeServiceClient
	startConn *grpc.ClientConn
	starting  atomic.Int64
	closing   atomic.Bool
	// starts, pulls and measures are semaphores: whoever holds an element may make a sandbox, pull an image or count files.
	starts   chan struct{}
	pulls    chan struct{}
	measures chan struct{}
	cgroup   cgroups
	memory   int64 // the node's, bytes

	mu     sync.Mutex
	runCtx context.Context // nil while Run does not run
	wg     sync.WaitGroup  // the actors
	actors map[string]*actor
	synced bool
	ended  endedSet
	// hearing tells that containerd's events come, and since when; heardUntil is the evidence of before.
	hearing                bool
	hearsSince, heardUntil time.Time

	grants  *grants          // who may use which cached images
	watcher *capture.Watcher // of containers' output; nil when there is none

	suspected atomic.Int64 // when something may last have been left behind (suspect), nanoseconds since 1970
}

var (
	_ engine.Engine        = (*Engine)(nil)
	_ engine.Execer        = (*Engine)(nil)
	_ engine.LogReader     = (*Engine)(nil)
	_ engine.PortForwarder = (*Engine)(nil)
	_ engine.StatsReader   = (*Engine)(nil)
	_ engine.VolumeUpdater = (*Engine)(nil)
)

// New makes an engine. Nothing is asked of containerd before Run or Sync. Close it after Run has returned.
func New(cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Join(cfg.Root, "instances"), cfg.LogRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make engine directory: %w", err)
		}
	}
	if err := os.RemoveAll(filepath.Join(cfg.Root, "io")); err != nil {
		return nil, fmt.Errorf("clear pipes: %w", err)
	}
	if cfg.Handlers[cis.Kata] != "" || len(cfg.KataOrgs) > 0 {
		if err := propagate(filepath.Join(cfg.Root, "instances")); err != nil {
			return nil, err
		}
	}
	allowed, err := openGrants(cfg.Root)
	if err != nil {
		return nil, err
	}
	conn, err := dial(cfg.Socket, func(c net.Conn) net.Conn { return c })
	if err != nil {
		return nil, err
	}
	ctrd, err := client.NewWithConn(conn)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", errors.Join(err, conn.Close()))
	}
	memory, err := hostMemory()
	if err != nil {
		return nil, fmt.Errorf("host capacity: %w", err)
	}
	e := &Engine{cfg: cfg, memory: memory, log: cfg.Logger.With("node", cfg.Node), conn: conn, ctrd: ctrd,
		rt: rt.NewRuntimeServiceClient(conn), image: rt.NewImageServiceClient(conn),
		starts: make(chan struct{}, cfg.ParallelStarts), pulls: make(chan struct{}, cfg.ParallelPulls), measures: make(chan struct{}, measuresAtOnce),
		cgroup: hostCgroups(cfg.CgroupRoot), grants: allowed, actors: map[string]*actor{}}
	if e.startConn, err = dial(cfg.Socket, func(c net.Conn) net.Conn {
		return hold(c, func() bool { return e.closing.Load() && e.starting.Load() > 0 }, e.log)
	}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	e.start = rt.NewRuntimeServiceClient(e.startConn)
	if e.captures() {
		if e.watcher, err = capture.NewWatcher(); err != nil {
			e.log.Warn("output is looked for now and then, which takes longer", "error", err)
		}
	}
	return e, nil
}

// Close ends the connections to containerd. Starts of containers that are under way are left to it.
func (e *Engine) Close() error {
	e.closing.Store(true)
	return errors.Join(e.conn.Close(), e.startConn.Close(), e.watcher.Close())
}

// Run implements engine.Engine. When it returns, no goroutine of the engine is left; the instances go on.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	if e.runCtx != nil {
		e.mu.Unlock()
		return fmt.Errorf("run engine: %w", problem.New(problem.ErrConflict, "the engine runs already"))
	}
	e.runCtx = ctx
	for _, a := range e.actors {
		e.launch(a)
	}
	e.mu.Unlock()

	e.watch(ctx)

	e.mu.Lock()
	e.runCtx = nil
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}

// launch starts an actor's goroutine; e.mu is held and e.runCtx set.
func (e *Engine) launch(a *actor) {
	ctx := e.runCtx
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		if !a.run(ctx) {
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.actors, a.id)
		e.ended.add(a.id)
	}()
}

// Sync implements engine.Engine.
func (e *Engine) Sync(ctx context.Context, all []*cis.Instance) error {
	known := make(map[string]bool, len(all))
	for _, in := range all {
		known[in.ID] = true
	}
	entries, err := os.ReadDir(filepath.Join(e.cfg.Root, "instances"))
	if err != nil {
		return fmt.Errorf("list instance directories: %w", err)
	}
	e.mu.Lock()
	var gone []string
	for _, d := range entries {
		if id := d.Name(); !known[id] && e.actors[id] == nil && validID(id) {
			gone = append(gone, id)
		}
	}
	for _, in := range all {
		if !in.Status.Phase.Final() && validID(in.ID) {
			e.ensureLocked(in)
		}
	}
	e.synced = true
	e.mu.Unlock()

	if err := e.relist(ctx); err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, id := range gone {
		// The sandbox, if there was one, has been removed by relist.
		e.removeFiles(id)
	}
	return nil
}

// Ensure implements engine.Engine.
func (e *Engine) Ensure(_ context.Context, in *cis.Instance) error {
	if !validID(in.ID) {
		return fmt.Errorf("ensure instance: %w", problem.Invalid("id", "must be an instance id", in.ID))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ensureLocked(in)
	return nil
}

func (e *Engine) ensureLocked(in *cis.Instance) {
	if a := e.actors[in.ID]; a != nil {
		a.box.post(func() { a.desire(in) })
		return
	}
	if in.Status.Phase.Final() || e.ended.has(in.ID) {
		return
	}
	a := newActor(e, in)
	e.actors[in.ID] = a
	if e.runCtx != nil {
		e.launch(a)
	}
}

// actor finds a live instance; problem.ErrNotFound when there is none.
func (e *Engine) actor(id string) (*actor, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a := e.actors[id]; a != nil {
		return a, nil
	}
	return nil, problem.New(problem.ErrNotFound, "instance %s does not run on node %s", id, e.cfg.Node)
}

// Classes implements engine.Engine.
func (e *Engine) Classes(context.Context) ([]cis.SandboxClass, map[cis.SandboxClass]string) {
	var have []cis.SandboxClass
	missing := map[cis.SandboxClass]string{}
	for _, c := range sandbox.Classes() {
		if e.cfg.Handlers[c] != "" {
			have = append(have, c)
		} else {
			missing[c] = e.whyNot(c)
		}
	}
	return have, missing
}

// handler is the runtime handler of an org's instances of a class, "" and why when there is none.
func (e *Engine) handler(org string, class cis.SandboxClass) (handler, why string) {
	if own, ok := e.cfg.KataOrgs[org]; ok && class == cis.Kata {
		return own.Handler, own.Unavailable
	}
	if h := e.cfg.Handlers[class]; h != "" {
		return h, ""
	}
	return "", e.whyNot(class)
}

// unfit is why an instance cannot have a handler, "" when it can.
func (e *Engine) unfit(handler string, s *cis.Spec) string {
	if !e.cfg.Copying[handler] {
		return ""
	}
	for i := range s.Volumes {
		if s.Volumes[i].EmptyDir != nil {
			return fmt.Sprintf("volume %q: the virtual machines of %s share no directory with the machine, so that each container would have an emptyDir of its own; "+
				"do without, or have the operator give the org another hypervisor (control.cri.kata)", s.Volumes[i].Name, handler)
		}
	}
	return ""
}

func (e *Engine) whyNot(c cis.SandboxClass) string {
	if why := e.cfg.Unavailable[c]; why != "" {
		return why
	}
	return fmt.Sprintf("node %s has no runtime for sandbox class %q", e.cfg.Node, c)
}

// Capacity implements engine.Engine: what the configuration says, and the host's for the rest.
func (e *Engine) Capacity(context.Context) (engine.Capacity, error) {
	c := e.cfg.Capacity
	if c.MilliCPU == 0 {
		c.MilliCPU = int64(runtime.NumCPU()) * 1000
	}
	if c.MemoryBytes == 0 {
		c.MemoryBytes = e.memory
	}
	if c.EphemeralDisk == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(e.cfg.Root, &st); err != nil {
			return c, fmt.Errorf("host capacity: %w", err)
		}
		c.EphemeralDisk = int64(st.Blocks) * st.Bsize
	}
	if c.Instances == 0 {
		c.Instances = 250
	}
	return c, nil
}

func hostMemory() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemTotal")
}

func (e *Engine) instanceDir(id string) string { return filepath.Join(e.cfg.Root, "instances", id) }

// removeFiles removes what an instance leaves on the node except its logs.
func (e *Engine) removeFiles(id string) {
	if err := mounts.RemoveAll(e.instanceDir(id)); err != nil {
		e.log.Warn("instance directory not removed", "instance", id, "error", err)
	}
	if err := e.cgroup.remove(id); err != nil {
		e.log.Warn("instance cgroup not removed", "instance", id, "error", err)
	}
}

// validID tells whether id can be a file name and a label: instance ids are "i-" and 20 of [0-9a-v].
func validID(id string) bool {
	if len(id) < 3 || len(id) > 63 || !strings.HasPrefix(id, "i-") {
		return false
	}
	return strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == ""
}

// endedSet remembers the last ended instances, so that a late Ensure does not start one anew.
type endedSet struct {
	ids  map[string]struct{}
	ring []string
}

const endedKept = 20_000

func (s *endedSet) has(id string) bool { _, ok := s.ids[id]; return ok }

func (s *endedSet) add(id string) {
	if s.ids == nil {
		s.ids = map[string]struct{}{}
	}
	if s.has(id) {
		return
	}
	if len(s.ring) >= endedKept {
		delete(s.ids, s.ring[0])
		s.ring = s.ring[1:]
	}
	s.ids[id] = struct{}{}
	s.ring = append(s.ring, id)
}
