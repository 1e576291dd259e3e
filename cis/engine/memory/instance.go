package memory

import (
	"fmt"
	"path"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
)

const maxEvents = 100 // waiting for the sink, of one instance

// instance is one instance and all that it holds.
type instance struct {
	world *world
	id    string

	// Guarded by world.mu.
	queued, busy bool

	mu          sync.Mutex
	in          *cis.Instance
	gone        bool // removed: nobody is told any more
	phase       cis.Phase
	reason      string
	message     string
	class       cis.SandboxClass
	size        billing.Size
	ip          string
	incarnation int64
	startedAt   time.Time
	readyAt     time.Time // when the sandbox is up
	endedAt     time.Time
	initialized bool
	mainBegan   bool

	stopping     bool
	stopAsked    bool // by the caller, not by the containers' own end
	stopReason   string
	stopDeadline time.Time
	failed       bool

	inits, mains []*container
	volumes      map[string]*volume
	disk         int

	timer  *time.Timer
	events []cis.Event
	last   *cis.Status // what the sink has
}

type volume struct {
	files map[string]string
	given bool // the caller's, read-only
}

func newInstance(w *world, in *cis.Instance) *instance {
	i := &instance{world: w, id: in.ID, in: in, phase: cis.Pending, incarnation: in.Status.Incarnation, startedAt: in.Status.StartedAt}
	always := func(c *cis.Container) bool { return c.RestartPolicy != nil }
	for n := range in.Spec.InitContainers {
		c := &in.Spec.InitContainers[n]
		i.inits = append(i.inits, &container{inst: i, spec: c, init: true, sidecar: always(c)})
	}
	for n := range in.Spec.Containers {
		i.mains = append(i.mains, &container{inst: i, spec: &in.Spec.Containers[n]})
	}
	// What ran before, in a sandbox that is lost, counts on.
	for n, st := range in.Status.InitContainers {
		if n < len(i.inits) && st.ContainerID != "" {
			i.inits[n].restarts = st.RestartCount + 1
		}
	}
	for n, st := range in.Status.Containers {
		if n < len(i.mains) && st.ContainerID != "" {
			i.mains[n].restarts = st.RestartCount + 1
		}
	}
	return i
}

// wake asks for a step soon. It is called under mu.
func (i *instance) wake() { i.world.enqueue(i) }

func (i *instance) event(t cis.EventType, reason, container, message string) {
	if len(i.events) < maxEvents {
		i.events = append(i.events, cis.Event{Instance: i.id, Type: t, Reason: reason, Container: container, Message: message})
	}
}

// step brings the instance as far as it can get now and sets the timer for what is to come. It is called under mu.
func (i *instance) step(now time.Time) {
	if i.phase.Final() {
		return
	}
	if i.ip == "" && !i.begin(now) {
		return
	}
	if now.Before(i.readyAt) && !i.in.Desired.Stop {
		i.wakeAt(now, i.readyAt)
		return
	}
	for _, c := range i.all() {
		i.letRun(c)
		i.reap(c, now)
	}
	i.heed(now)
	if !i.stopping {
		i.advance(now)
	}
	if i.stopping {
		i.advanceStop(now)
	}
	if i.phase.Final() {
		return
	}
	i.wakeAt(now, i.nextWake(now))
}

func (i *instance) all() []*container { return append(append([]*container{}, i.inits...), i.mains...) }

// begin makes the sandbox; false when the instance has ended instead.
func (i *instance) begin(now time.Time) bool {
	spec := &i.in.Spec
	if i.in.Desired.Stop {
		i.end(now, cis.Failed, "Deleted", "The instance was deleted before it started.")
		return false
	}
	class, err := i.world.options.choose(spec.Sandbox)
	if err != nil {
		i.event(cis.Warning, "SandboxUnavailable", "", err.Error())
		i.end(now, cis.Rejected, "SandboxUnavailable", err.Error())
		return false
	}
	i.class, i.size, i.ip = class, cis.SizeOf(spec), i.world.address()
	i.phase = cis.Starting
	i.incarnation++
	if i.startedAt.IsZero() {
		i.startedAt = now
	}
	i.readyAt = now.Add(i.world.options.StartDelay)
	i.volumes = make(map[string]*volume, len(spec.Volumes))
	for n := range spec.Volumes {
		v := &volume{files: map[string]string{}}
		if f := spec.Volumes[n].Files; f != nil {
			v.given = true
			v.fill(f)
		}
		i.volumes[spec.Volumes[n].Name] = v
	}
	return true
}

func (v *volume) fill(files *cis.FilesVolume) {
	clear(v.files)
	for _, f := range files.Files {
		v.files[path.Join("/", f.Path)] = string(f.Data)
	}
}

// letRun runs the first instructions of a process whose start has been reported.
func (i *instance) letRun(c *container) {
	if c.begun || !c.running() {
		return
	}
	c.begun = true
	c.proc.run()
	if l := c.spec.Lifecycle; l != nil && l.PostStart != nil && l.PostStart.Exec != nil && c.running() {
		c.postStart = i.hook(c, "PostStart", l.PostStart.Exec.Command)
	}
}

// hook starts a hook's command; nil when that is impossible, which is an event.
func (i *instance) hook(c *container, name string, command []string) *process {
	p, err := c.newProcess(command)
	if err != nil {
		i.event(cis.Warning, "Failed"+name+"Hook", c.spec.Name, err.Error())
		return nil
	}
	p.exited = i.wake
	p.run()
	return p
}

// reap takes note of a process that has ended.
func (i *instance) reap(c *container, now time.Time) {
	if c.running() && c.postStart != nil && c.postStart.done && c.postStart.code != 0 {
		i.event(cis.Warning, "FailedPostStartHook", c.spec.Name, fmt.Sprintf("PostStart hook ended with code %d", c.postStart.code))
		c.proc.kill()
	}
	if c.running() && !c.killAt.IsZero() && !now.Before(c.killAt) {
		c.proc.kill()
	}
	if c.proc != nil && c.proc.done && c.ended == nil {
		c.finish(now, c.proc.code, c.proc.reason, "")
	}
}

// heed sees whether the caller or the deadline asks for the end.
func (i *instance) heed(now time.Time) {
	spec, desired := &i.in.Spec, &i.in.Desired
	if desired.Stop {
		grace := i.grace()
		set(&grace, desired.GraceSeconds)
		deadline := now.Add(time.Duration(grace) * time.Second)
		switch {
		case !i.stopping:
			i.stopping, i.stopAsked, i.stopReason, i.stopDeadline = true, true, "Deleted", deadline
		case deadline.Before(i.stopDeadline):
			i.stopDeadline = deadline
		}
	}
	if d := spec.DeadlineSeconds; d != nil && !i.stopping && !now.Before(i.startedAt.Add(time.Duration(*d)*time.Second)) {
		i.event(cis.Warning, "DeadlineExceeded", "", fmt.Sprintf("The instance was active longer than its deadline of %d s.", *d))
		i.stop(now, "DeadlineExceeded", true)
	}
}

func (i *instance) grace() int64 {
	grace := int64(cis.DefaultGraceSeconds)
	set(&grace, i.in.Spec.GraceSeconds)
	return grace
}

// stop begins the end for a reason of the instance's own.
func (i *instance) stop(now time.Time, reason string, failed bool) {
	i.stopping, i.stopReason, i.failed = true, reason, failed
	i.stopDeadline = now.Add(time.Duration(i.grace()) * time.Second)
}

// advance starts what is to be started and restarts what has ended, in the order of core/v1.
func (i *instance) advance(now time.Time) {
	policy := i.in.Spec.RestartPolicy
	if policy == "" {
		policy = corev1.RestartPolicyAlways
	}
	retry := policy
	if policy == corev1.RestartPolicyAlways {
		retry = corev1.RestartPolicyOnFailure
	}
	for _, c := range i.inits {
		switch {
		case c.sidecar:
			i.tend(c, now, corev1.RestartPolicyAlways)
			if !i.initialized && !c.passed() {
				return
			}
		case i.initialized || c.ended != nil && c.ended.ExitCode == 0:
		case c.ended != nil && policy == corev1.RestartPolicyNever:
			i.stop(now, "InitContainerFailed", true)
			return
		default:
			i.tend(c, now, retry)
			return
		}
	}
	i.initialized = true
	done, failed := true, false
	for _, c := range i.mains {
		i.tend(c, now, policy)
		if c.proc != nil {
			i.mainBegan = true
		}
		if c.ended == nil || restarts(policy, c.ended) {
			done = false
		} else if c.ended.ExitCode != 0 {
			failed = true
		}
	}
	if i.mainBegan {
		i.phase = cis.Running
	}
	if done {
		reason := "Completed"
		if failed {
			reason = "Failed"
		}
		i.stop(now, reason, failed)
	}
}

func restarts(policy corev1.RestartPolicy, end *corev1.ContainerStateTerminated) bool {
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && end.ExitCode != 0
}

// tend starts or restarts one container when that is due.
func (i *instance) tend(c *container, now time.Time, policy corev1.RestartPolicy) {
	opt := &i.world.options
	if c.running() {
		i.probe(c, now)
		return
	}
	if c.ended == nil {
		if !now.Before(c.retryAt) {
			i.pullAndStart(c, now)
		}
		return
	}
	if !restarts(policy, c.ended) {
		return
	}
	c.last = c.ended
	if c.retryAt.IsZero() {
		c.retryAt = now
		if now.Sub(c.started) > 10*time.Minute {
			c.backOff = 0
		}
		if c.restarts > 0 {
			c.backOff = min(max(2*c.backOff, opt.BackOff), 30*opt.BackOff)
			c.retryAt = now.Add(c.backOff)
			text := fmt.Sprintf("Back-off %v restarting failed container %s", c.backOff, c.spec.Name)
			c.waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: text}
			i.event(cis.Warning, "BackOff", c.spec.Name, text)
		}
	}
	if !now.Before(c.retryAt) {
		c.retryAt = time.Time{}
		c.restarts++
		i.startContainer(c, now)
	}
}

func (i *instance) pullAndStart(c *container, now time.Time) {
	opt := &i.world.options
	if !c.pulled && opt.Pull != nil {
		if err := opt.Pull(c.spec.Image); err != nil {
			reason := "ErrImagePull"
			if c.waiting != nil {
				reason = "ImagePullBackOff"
			}
			text := fmt.Sprintf("Failed to pull image %q: %v", c.spec.Image, err)
			c.waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: text}
			i.event(cis.Warning, "Failed", c.spec.Name, text)
			c.backOff = min(max(2*c.backOff, opt.BackOff), 30*opt.BackOff)
			c.retryAt = now.Add(c.backOff)
			return
		}
	}
	c.pulled, c.retryAt, c.backOff = true, time.Time{}, 0
	i.startContainer(c, now)
}

func (i *instance) startContainer(c *container, now time.Time) {
	c.start(now)
	if c.ended != nil {
		i.event(cis.Warning, "Failed", c.spec.Name, c.ended.Message)
	}
	i.wake() // to let it run, once its start has been reported
}

// probe asks a running container's probes.
func (i *instance) probe(c *container, now time.Time) {
	if !c.begun || !c.killAt.IsZero() {
		return
	}
	for kind := range c.probes {
		if kind != startup && !c.passed() {
			return
		}
		p := &c.probes[kind]
		if _, fatal := p.ask(c, kind, now); fatal {
			grace := i.grace()
			set(&grace, p.spec.TerminationGracePeriodSeconds)
			c.killAt = now.Add(time.Duration(grace) * time.Second)
			if c.proc.term(); grace == 0 {
				c.proc.kill()
			}
			i.wake()
			return
		}
	}
}

// advanceStop ends the containers, then the sidecars from the last to the first, then the instance.
func (i *instance) advanceStop(now time.Time) {
	if i.stopAsked && i.phase != cis.Stopping {
		i.phase = cis.Stopping
		i.wake() // to go on when that has been reported
		return
	}
	busy := false
	for _, c := range i.all() {
		if !c.sidecar {
			busy = i.stopContainer(c, now) || busy
		}
	}
	for n := len(i.inits) - 1; n >= 0 && !busy; n-- {
		if i.inits[n].sidecar {
			busy = i.stopContainer(i.inits[n], now)
		}
	}
	if busy {
		return
	}
	phase := cis.Succeeded
	for _, c := range i.mains {
		if c.ended == nil || c.ended.ExitCode != 0 {
			phase = cis.Failed
		}
	}
	if i.failed {
		phase = cis.Failed
	}
	i.end(now, phase, i.stopReason, "")
}

// stopContainer brings one container nearer to its end; true while it runs.
func (i *instance) stopContainer(c *container, now time.Time) bool {
	if !c.running() {
		return false
	}
	if !now.Before(i.stopDeadline) {
		c.proc.kill()
	}
	if c.stopStep == 0 {
		c.stopStep, c.termAt = 1, now
		if l := c.spec.Lifecycle; l != nil && l.PreStop != nil && c.begun {
			switch {
			case l.PreStop.Exec != nil:
				c.preStop = i.hook(c, "PreStop", l.PreStop.Exec.Command)
			case l.PreStop.Sleep != nil:
				c.termAt = now.Add(time.Duration(l.PreStop.Sleep.Seconds) * time.Second)
			}
		}
	}
	if c.stopStep == 1 && (c.preStop == nil || c.preStop.done) && !now.Before(c.termAt) {
		c.stopStep = 2
		c.proc.term()
	}
	i.reap(c, now)
	return c.running()
}

func (i *instance) end(now time.Time, phase cis.Phase, reason, message string) {
	i.phase, i.reason, i.message, i.endedAt = phase, reason, message, now
	i.release()
}

// release lets go of what an ended instance needs no more; the logs stay.
func (i *instance) release() {
	if i.timer != nil {
		i.timer.Stop()
	}
	for _, c := range i.all() {
		for _, p := range []*process{c.proc, c.postStart, c.preStop} {
			if p != nil {
				p.exited = func() {}
				p.kill()
			}
		}
		for n := range c.probes {
			c.probes[n].drop()
		}
		if c.log != nil {
			c.log.close()
		}
		c.files, c.env = nil, nil
	}
	i.volumes = nil
}

func (i *instance) wakeAt(now, at time.Time) {
	if at.IsZero() {
		if i.timer != nil {
			i.timer.Stop()
		}
		return
	}
	d := max(at.Sub(now), 0)
	if i.timer == nil {
		i.timer = time.AfterFunc(d, func() { i.world.enqueue(i) })
		return
	}
	i.timer.Reset(d)
}

// nextWake is the time of the next thing that only the clock brings; zero for none.
func (i *instance) nextWake(now time.Time) time.Time {
	var next time.Time
	add := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if i.stopping {
		add(i.stopDeadline)
	} else if d := i.in.Spec.DeadlineSeconds; d != nil {
		add(i.startedAt.Add(time.Duration(*d) * time.Second))
	}
	for _, c := range i.all() {
		if !c.running() {
			if !i.stopping {
				add(c.retryAt)
			}
			continue
		}
		add(c.killAt)
		if c.stopStep == 1 && now.Before(c.termAt) {
			add(c.termAt)
		}
		if i.stopping || !c.begun || !c.killAt.IsZero() {
			continue
		}
		for kind := range c.probes {
			p := &c.probes[kind]
			if p.spec == nil || kind == startup && p.ok || kind != startup && !c.passed() {
				continue
			}
			if p.proc != nil {
				add(p.deadline)
			} else {
				add(p.next)
			}
		}
	}
	return next
}
