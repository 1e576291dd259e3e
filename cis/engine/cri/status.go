package cri

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// view is what other goroutines may see of an actor. It is never changed once published.
type view struct {
	org        string
	class      cis.SandboxClass
	sandboxID  string
	handler    string
	ips        []string
	containers map[string]containerView
}

type containerView struct {
	id      string
	attempt int
	running bool
	// ended is closed when the attempt has ended; nil when it never ran under this process.
	ended     <-chan struct{}
	startedAt time.Time
	// stdin and tty are the spec's, for attach; output is where the output is captured, "" when it is not.
	stdin, tty bool
	output     string
}

// publish reports the status and shows the view.
func (a *actor) publish() {
	v := &view{org: a.org, class: a.rec.Class, sandboxID: a.sandboxID, handler: a.rec.Handler, ips: a.ips, containers: make(map[string]containerView, len(a.containers))}
	for _, c := range a.containers {
		cv := containerView{id: c.id, attempt: c.rec.Attempt, running: c.running, ended: c.ended, startedAt: c.startedAt,
			stdin: c.spec.Stdin, tty: c.spec.TTY}
		if c.out != nil {
			cv.output = a.outputDir(c.spec.Name, c.rec.Attempt)
		}
		v.containers[c.spec.Name] = cv
	}
	a.view.Store(v)
	if a.adopt && !a.adopted || a.finished {
		return // what is known is not the whole yet
	}
	a.rep.status(a.status())
}

// status is the whole status as of now.
func (a *actor) status() cis.Status {
	st := cis.Status{SandboxClass: a.rec.Class, Runtime: a.rec.Handler, Size: a.rec.Size, IPs: slices.Clone(a.ips), HostIP: a.e.cfg.HostIP,
		Node: a.e.cfg.Node, Region: a.e.cfg.Region, Incarnation: a.rec.Incarnation, StartedAt: a.rec.StartedAt}
	ready, initialized := true, true
	for _, c := range a.containers {
		if c.kind == kindMain {
			continue
		}
		cs := a.containerStatus(c, false)
		st.InitContainers = append(st.InitContainers, cs)
		switch {
		case a.pastInit():
		case c.kind == kindSidecar:
			initialized = initialized && c.up()
		default:
			initialized = initialized && cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
		}
		if c.kind == kindSidecar {
			ready = ready && cs.Ready
		}
	}
	for _, c := range a.containers {
		if c.kind == kindMain {
			cs := a.containerStatus(c, !initialized)
			ready = ready && cs.Ready
			st.Containers = append(st.Containers, cs)
		}
	}
	st.Initialized = initialized && !a.rec.StartedAt.IsZero()
	st.Phase = a.phase(st.Containers, initialized)
	st.Ready = ready && initialized && (st.Phase == cis.Running || st.Phase == cis.Stopping)
	if s := a.rec.Stop; s != nil {
		st.Reason, st.Message = s.Reason, s.Message
	}
	if v := a.rec.Verdict; v != nil && a.finalQueued {
		st.Phase, st.Reason, st.Message, st.EndedAt, st.Ready = v.Phase, v.Reason, v.Message, v.At, false
		if v.Phase == cis.Rejected {
			st.SandboxClass, st.Runtime = "", ""
		}
	}
	return st
}

// phase follows kubelet's rules, with Starting for its Pending once resources are held.
func (a *actor) phase(main []corev1.ContainerStatus, initialized bool) cis.Phase {
	switch {
	case a.rec.Stop != nil && (a.rec.Stop.Deleted || a.rec.Stop.Reason != ""):
		return cis.Stopping
	case a.rec.StartedAt.IsZero():
		return cis.Pending
	case !initialized && !a.rec.MarkedRunning:
		return cis.Starting
	}
	for i := range main {
		if s := &main[i]; s.State.Waiting != nil && s.LastTerminationState.Terminated == nil {
			return cis.Starting
		}
	}
	return cis.Running
}

func (a *actor) containerStatus(c *container, initializing bool) corev1.ContainerStatus {
	cs := corev1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image, ImageID: c.rec.ImageRef,
		RestartCount: int32(max(0, c.rec.Attempt)), ContainerID: containerURI(c.id)}
	if p := c.rec.Previous; p != nil {
		cs.LastTerminationState.Terminated = p.DeepCopy()
	}
	started := false
	t := c.rec.Terminated
	switch {
	case c.running:
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: metaTime(c.startedAt)}
		started = c.started
		cs.Ready = c.started && c.ready
	case t != nil && c.waitReason == "":
		cs.State.Terminated = t.DeepCopy()
		cs.ContainerID = t.ContainerID
		cs.Ready = c.kind == kindInit && t.ExitCode == 0
	default:
		cs.State.Waiting = a.waiting(c, initializing)
		if t != nil {
			cs.LastTerminationState.Terminated = t.DeepCopy()
			cs.ContainerID = t.ContainerID
		}
	}
	cs.Started = &started
	return cs
}

func (a *actor) waiting(c *container, initializing bool) *corev1.ContainerStateWaiting {
	w := &corev1.ContainerStateWaiting{Reason: c.waitReason, Message: c.waitMessage}
	img := a.images[c.spec.Image]
	switch {
	case w.Reason != "":
	case initializing && c.kind == kindMain, c.kind != kindMain && !a.isNext(c):
		w.Reason = "PodInitializing"
	case img != nil && img.reason != "":
		w.Reason, w.Message = img.reason, img.message
	default:
		w.Reason = "ContainerCreating"
	}
	return w
}

// isNext tells whether no init container before c is still to finish.
func (a *actor) isNext(c *container) bool {
	for _, o := range a.containers {
		if o == c {
			return true
		}
		if t := o.rec.Terminated; o.kind == kindInit && (t == nil || t.ExitCode != 0) || o.kind == kindSidecar && !o.up() {
			return false
		}
	}
	return true
}
