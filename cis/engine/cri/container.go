package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis/engine/cri/capture"
)

// initialize runs init containers and sidecars in their order; true when all are done or started.
func (a *actor) initialize() bool {
	for _, c := range a.containers {
		switch c.kind {
		case kindInit:
			if t := c.rec.Terminated; t != nil && t.ExitCode == 0 {
				continue
			}
			if a.pastInit() {
				continue // done in this sandbox before this process knew
			}
			a.tend(c)
			return false
		case kindSidecar:
			a.tend(c)
			if !c.up() && !a.pastInit() {
				return false
			}
		case kindMain:
			return true
		}
	}
	return true
}

// pastInit tells whether a container of the instance proper has begun in this sandbox, so that all init containers
// must be done.
func (a *actor) pastInit() bool {
	for _, c := range a.containers {
		if c.kind == kindMain && c.rec.Attempt >= 0 && c.rec.Incarnation == a.rec.Incarnation {
			return true
		}
	}
	return false
}

// up tells whether a sidecar is far enough for the next container to start.
func (c *container) up() bool { return c.running && c.started && c.hooked }

// restarts tells whether a container that ended is to be run again.
func (a *actor) restarts(c *container) bool {
	t := c.rec.Terminated
	if t == nil {
		return true
	}
	switch {
	case c.kind == kindSidecar:
		return true
	case c.kind == kindInit:
		return t.ExitCode != 0 && a.policy() != corev1.RestartPolicyNever
	case a.policy() == corev1.RestartPolicyAlways:
		return true
	case a.policy() == corev1.RestartPolicyOnFailure:
		return t.ExitCode != 0
	}
	return false
}

// tend starts a container when it is due.
func (a *actor) tend(c *container) {
	if c.running || c.busy || !a.restarts(c) {
		return
	}
	img := a.images[c.spec.Image]
	if img == nil || img.info == nil {
		return // resolveImages says why it waits
	}
	if now := time.Now(); now.Before(c.nextTry) {
		if c.rec.Terminated != nil && c.waitReason != "CrashLoopBackOff" {
			c.waitReason = "CrashLoopBackOff"
			c.waitMessage = fmt.Sprintf("back-off %s restarting failed container=%s instance=%s", c.rec.Backoff, c.spec.Name, a.id)
			a.warn(c.spec.Name, "BackOff", fmt.Sprintf("Back-off restarting failed container %s", c.spec.Name))
		}
		a.later(c.nextTry)
		return
	}
	a.start(c, *img.info)
}

// start makes and starts the next attempt of a container.
func (a *actor) start(c *container, img imageInfo) {
	attempt := c.rec.Attempt + 1
	fail := func(reason string, err error) {
		c.waitReason, c.waitMessage = reason, message(err)
		c.nextTry = time.Now().Add(a.e.cfg.CrashBackoff.Initial)
		a.later(c.nextTry)
		a.warn(c.spec.Name, "Failed", "Error: "+message(err))
	}
	cfg, err := a.containerConfig(c, attempt, img)
	if err != nil {
		fail("CreateContainerConfigError", err)
		return
	}
	if c.waitReason != "CrashLoopBackOff" {
		c.waitReason, c.waitMessage = "", ""
	}
	c.busy, c.killing = true, false
	old, sandbox, sandboxCfg := c.id, a.sandboxID, a.sandboxCfg
	a.do(a.makeCtx, func(ctx context.Context) func() {
		s, stage, err := a.launch(ctx, c.spec.Name, old, sandbox, sandboxCfg, cfg, attempt)
		return func() {
			c.busy = false
			early := a.early[s]
			delete(a.early, s)
			switch {
			case stage == stageStarted || stage == stageUnsure:
				a.begin(c, s, attempt, img)
				a.info(c.spec.Name, "Started", "Container started")
				at := time.Now()
				if started := cmp.Or(early.GetStartedAt(), early.GetFinishedAt()); started > 0 {
					at = time.Unix(0, started)
				}
				a.runs(c, at, false)
				if early.GetState() == rt.ContainerState_CONTAINER_EXITED {
					a.over(c, func() corev1.ContainerStateTerminated { return a.terminated(c, early) })
				} else if stage == stageUnsure {
					a.check(c)
				}
			case a.ctx.Err() != nil:
			case stage == stageLost:
				a.loseSandbox(err)
			case stage == stageCreated:
				// It was made and could not be started: that is an attempt which failed.
				a.begin(c, s, attempt, img)
				c.startedAt = time.Now()
				a.warn(c.spec.Name, "Failed", "Error: "+message(err))
				a.exited(c, corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: message(err),
					StartedAt: metaTime(c.startedAt), FinishedAt: metaTime(c.startedAt), ContainerID: containerURI(s)})
			case a.rec.Stop == nil:
				c.id = ""
				if isNotFound(err) {
					delete(a.images, c.spec.Image) // the image may have been removed from the node
				}
				if stage == stageMount {
					fail("CreateContainerConfigError", err)
				} else {
					fail("CreateContainerError", err)
				}
			}
		}
	})
}

// begin counts an attempt that containerd has made.
func (a *actor) begin(c *container, id string, attempt int, img imageInfo) {
	if c.rec.Terminated != nil {
		c.rec.Previous = c.rec.Terminated
	}
	c.rec.Terminated, c.rec.Started = nil, false
	c.rec.Attempt, c.rec.Incarnation, c.rec.ID, c.id = attempt, a.rec.Incarnation, id, id
	c.rec.ImageID, c.rec.ImageRef = img.id, img.ref
	a.losses = 0
	if c.rec.exit(id) == nil {
		c.rec.Exit = nil // an earlier attempt's
	}
	c.waitReason, c.waitMessage = "", ""
}

type stage int

const (
	stageNone stage = iota
	stageMount
	stageLost // the sandbox is not up any more
	stageCreated
	stageUnsure // started, and perhaps ended since
	stageStarted
)

// launch is the blocking part of start: the old attempt goes, the mounts and the log's place are made, the container
// is created and started.
func (a *actor) launch(ctx context.Context, name, old, sandbox string, sandboxCfg *rt.PodSandboxConfig, cfg *plan, attempt int) (string, stage, error) {
	if old != "" {
		if _, err := a.e.rt.RemoveContainer(ctx, &rt.RemoveContainerRequest{ContainerId: old}); err != nil && !isNotFound(err) {
			return "", stageNone, err
		}
	}
	if err := a.vols.mountsFor(cfg, name, attempt, a.logDir()); err != nil {
		return "", stageMount, err
	}
	r, err := a.e.rt.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: sandbox, Config: cfg.config, SandboxConfig: sandboxCfg})
	if err != nil {
		if a.e.down(ctx, sandbox) {
			return "", stageLost, err
		}
		// It may have been made, the answer lost: the name must be free for the next try.
		if derr := a.e.dropContainer(ctx, a.id, name, attempt); derr != nil {
			err = errors.Join(err, derr)
		}
		return "", stageNone, err
	}
	if err := a.startContainer(ctx, r.ContainerId, name, attempt); err != nil {
		if status.Code(err) == codes.Unavailable {
			return a.afterLostStart(ctx, name, r.ContainerId, sandbox, attempt, err)
		}
		// containerd may not have heard yet: gVisor's shim ends when containerd, killed, was away for its events.
		if a.e.down(ctx, sandbox) || gone(ctx, a.e.cfg.TaskDir, sandbox) {
			return "", stageLost, err
		}
		return r.ContainerId, stageCreated, err
	}
	return r.ContainerId, stageStarted, nil
}

// afterLostStart finds out what became of a start whose answer was lost, because containerd was restarted.
func (a *actor) afterLostStart(ctx context.Context, name, id, sandbox string, attempt int, err error) (string, stage, error) {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	// It may run, and end before containerd is back.
	a.box.post(func() { a.watchExit(wait, a.byName(name), id) })
	if a.e.down(ctx, sandbox) {
		return "", stageLost, err
	}
	st, serr := a.e.rt.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: id})
	if serr == nil && (st.Status.State == rt.ContainerState_CONTAINER_RUNNING || st.Status.State == rt.ContainerState_CONTAINER_EXITED &&
		!a.neverRan(st.Status, name, attempt)) {
		a.box.post(func() { a.see(st.Status) }) // containerd may have been away for long
		return id, stageUnsure, nil
	}
	if serr == nil && st.Status.State == rt.ContainerState_CONTAINER_UNKNOWN {
		return "", stageLost, err // its shim hangs in the start
	}
	_, rerr := a.e.rt.RemoveContainer(ctx, &rt.RemoveContainerRequest{ContainerId: id})
	if rerr != nil && !isNotFound(rerr) {
		err = errors.Join(err, rerr)
	}
	return "", stageNone, err
}

// startErrorExitCode is what containerd, and gVisor's shim, say of a container that could not be started.
const startErrorExitCode = 128

// neverRan tells that an attempt which does not run was never more than a start that failed or was cut short: containerd
// knows of no start, and nothing was written. One that ended as a failed start may have written: containerd, killed while it
// starts a container, and gVisor's shim with it, end what has just begun. That is started again, and with it its output
// begins anew, unless some has come to its log.
func (a *actor) neverRan(s *rt.ContainerStatus, name string, attempt int) bool {
	if s.StartedAt != 0 {
		return false
	}
	if s.ExitCode == startErrorExitCode {
		st, err := os.Stat(a.logFile(name, attempt))
		return errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0
	}
	return (s.Reason != "" || s.State == rt.ContainerState_CONTAINER_UNKNOWN) && !capture.Written(a.outputDir(name, attempt))
}

// dropContainer removes one attempt of a container, if it is there.
func (e *Engine) dropContainer(ctx context.Context, instance, name string, attempt int) error {
	list, err := e.listContainers(ctx, instance)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.Metadata.GetName() != name || int(c.Metadata.GetAttempt()) != attempt {
			continue
		}
		if _, err := e.rt.RemoveContainer(ctx, &rt.RemoveContainerRequest{ContainerId: c.Id}); err != nil && !isNotFound(err) {
			return err
		}
	}
	return nil
}

// down tells whether a sandbox is known not to be up.
func (e *Engine) down(ctx context.Context, sandbox string) bool {
	r, err := e.rt.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: sandbox})
	return isNotFound(err) || err == nil && r.Status.State != rt.PodSandboxState_SANDBOX_READY
}

// runs notes that a container runs and starts its hook and probes. adopted tells that it ran before this process. The
// instance has no more CPU than its own from now on; until its first container runs, its sandbox may take more.
func (a *actor) runs(c *container, at time.Time, adopted bool) {
	if err := a.e.cgroup.limitCPU(a.id, podLimits(a.spec, a.rec.Size, a.rec.Class, 0).milliCPU); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Error("CPU not limited", "error", err)
		a.warn("", "FailedCPULimit", "The CPU of the instance is not limited to its size: "+err.Error())
	}
	ctx, stop := context.WithCancel(a.ctx)
	c.running, c.startedAt, c.stopRun, c.ended = true, at.UTC(), stop, make(chan struct{})
	c.started = c.spec.StartupProbe == nil || adopted && c.rec.Started
	c.rec.Started = c.started
	c.ready = c.spec.ReadinessProbe == nil
	a.watchExit(ctx, c, c.id)
	if a.openOutput(c); c.out != nil {
		out := c.out
		a.do(ctx, func(ctx context.Context) func() {
			out.Follow(ctx, a.e.watcher, a.log)
			return nil
		})
	}
	c.hooked, c.stopped = true, false
	if l := c.spec.Lifecycle; l != nil && l.PostStart != nil && !adopted {
		c.hooked = false
		a.postStart(ctx, c, l.PostStart)
		return // probes begin after the hook
	}
	a.startProbes(ctx, c)
}

// exited notes how a container ended and decides when it is due again.
func (a *actor) exited(c *container, t corev1.ContainerStateTerminated) {
	if c.stopRun != nil {
		c.stopRun()
	}
	if c.running {
		close(c.ended)
	}
	c.running, c.ready, c.started, c.killing = false, false, false, false
	c.waitReason, c.waitMessage = "", ""
	c.rec.Terminated, c.rec.Exit, c.rec.Started = &t, nil, false
	b := a.e.cfg.CrashBackoff
	if t.FinishedAt.Sub(t.StartedAt.Time) >= b.Reset {
		c.rec.Backoff = 0
	}
	// As kubelet: the first restart is at once, later ones wait.
	c.nextTry = t.FinishedAt.Add(c.rec.Backoff)
	c.rec.Backoff = b.next(c.rec.Backoff)
	a.log.Info("container ended", "container", c.spec.Name, "attempt", c.rec.Attempt, "exitCode", t.ExitCode, "reason", t.Reason)
}

// terminated makes the end that containerd reports the contract's.
func (a *actor) terminated(c *container, s *rt.ContainerStatus) corev1.ContainerStateTerminated {
	s = c.rec.witnessed(s)
	t := corev1.ContainerStateTerminated{ExitCode: s.ExitCode, Reason: s.Reason, Message: s.Message,
		StartedAt: metaNano(s.StartedAt), FinishedAt: metaNano(s.FinishedAt), ContainerID: containerURI(s.Id)}
	if s.FinishedAt <= s.CreatedAt {
		// It is not known when. gVisor's shim says that a container has stopped a moment before it has the time of it,
		// and a containerd that starts just then takes the year 1.
		t.FinishedAt = metaTime(time.Now())
		if exit := c.rec.exit(s.Id); exit != nil {
			t.FinishedAt = metaTime(exit.At)
		}
	}
	if t.FinishedAt.Before(&t.StartedAt) {
		// containerd notes the start when the call for it returns; a short process has ended by then.
		t.StartedAt = t.FinishedAt
	}
	if t.Reason == "" {
		t.Reason = "Completed"
		if t.ExitCode != 0 {
			t.Reason = "Error"
		}
	}
	if (t.ExitCode == 137 || t.ExitCode == 128) && !c.killing && a.rec.Stop == nil && a.e.cgroup.outOfMemory(a.id) {
		t.Reason = "OOMKilled"
	}
	if t.Reason == "OOMKilled" && t.ExitCode == 128 {
		t.ExitCode = 137 // what gVisor's shim says of a sandbox that was killed as a whole
	}
	if m := a.terminationMessage(c, int(s.Metadata.GetAttempt()), t.ExitCode); m != "" {
		t.Message = m
	}
	return t
}

func metaTime(t time.Time) metav1.Time { return metav1.NewTime(t.UTC()) }

func metaNano(n int64) metav1.Time {
	if n == 0 {
		return metav1.Time{}
	}
	return metaTime(time.Unix(0, n))
}

func containerURI(id string) string {
	if id == "" {
		return ""
	}
	return "containerd://" + id
}

// observe takes an event of containerd: it carries the whole status of the sandbox and its containers.
func (a *actor) observe(ev *rt.ContainerEventResponse) {
	for _, s := range ev.ContainersStatuses {
		a.see(s)
	}
	if ev.ContainerId != a.sandboxID || a.sandboxID == "" || ev.ContainerEventType != rt.ContainerEventType_CONTAINER_STOPPED_EVENT {
		return
	}
	if a.sandbox == sandboxReady && !a.cleaning {
		a.log.Warn("sandbox lost", "sandbox", a.sandboxID)
		a.lost = true
	}
}

// see takes the status of one container; news are an end, everything else was this actor's doing.
func (a *actor) see(s *rt.ContainerStatus) {
	c := a.byName(s.Metadata.GetName())
	if c == nil {
		return
	}
	if c.busy && c.id != s.Id {
		if s.State == rt.ContainerState_CONTAINER_RUNNING || s.State == rt.ContainerState_CONTAINER_EXITED {
			a.early[s.Id] = s
		}
		return
	}
	if c.id == s.Id && c.running && s.State == rt.ContainerState_CONTAINER_EXITED {
		a.over(c, func() corev1.ContainerStateTerminated { return a.terminated(c, s) })
	}
}

// compare takes what a relist found; only differences cost a call.
func (a *actor) compare(f *seen) {
	if a.adopt && !a.adopted || a.cleaning || a.sandbox != sandboxReady {
		return
	}
	present := false
	for _, s := range f.sandboxes {
		if s.Id == a.sandboxID {
			present = s.State == rt.PodSandboxState_SANDBOX_READY
		}
	}
	if !present && len(f.sandboxes) == 0 && a.madeAfter(f.at) {
		return
	}
	for _, c := range a.containers {
		if !c.running || c.busy || c.startedAt.After(f.at) {
			continue
		}
		if s, ok := f.containers[c.id]; !ok || s != rt.ContainerState_CONTAINER_RUNNING {
			a.check(c)
		}
	}
	if !present && !a.lost {
		a.log.Warn("sandbox lost", "sandbox", a.sandboxID)
		a.lost = true
	}
}

// madeAfter tells whether the sandbox may be younger than a listing that does not have it.
func (a *actor) madeAfter(t time.Time) bool { return a.upAt.After(t) }

// check asks containerd for the status of a container that should be running.
func (a *actor) check(c *container) {
	id := c.id
	a.do(a.ctx, func(ctx context.Context) func() {
		r, err := a.e.rt.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: id})
		return func() {
			switch {
			case c.id != id || !c.running:
			case isNotFound(err):
				a.over(c, func() corev1.ContainerStateTerminated { return a.vanished(c, "The container is gone") })
			case err != nil:
				a.log.Warn("container status not known", "container", c.spec.Name, "error", err)
			case r.Status.State == rt.ContainerState_CONTAINER_EXITED:
				a.over(c, func() corev1.ContainerStateTerminated { return a.terminated(c, r.Status) })
			}
		}
	})
}
