package memory

import (
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"cumulet.io/cis"
)

// Bounds of what one instance may keep in memory.
const (
	maxDisk    = 4 << 20   // files written by its containers
	maxLog     = 256 << 10 // of one attempt of one container; the oldest is dropped
	maxMessage = 4096      // termination message, as Kubernetes has it
)

var (
	errNoFile   = errors.New("No such file or directory") //nolint:staticcheck // as strerror(3) says it
	errReadOnly = errors.New("Read-only file system")     //nolint:staticcheck // as strerror(3) says it
	errNoSpace  = errors.New("No space left on device")   //nolint:staticcheck // as strerror(3) says it
)

// container is one container of an instance; its instance's lock guards it.
type container struct {
	inst    *instance
	spec    *cis.Container
	init    bool
	sidecar bool

	id       string
	restarts int32
	proc     *process // of the current attempt; nil before the first
	begun    bool     // the process has been let run
	pulled   bool
	waiting  *corev1.ContainerStateWaiting
	ended    *corev1.ContainerStateTerminated // of the current attempt
	last     *corev1.ContainerStateTerminated
	started  time.Time
	retryAt  time.Time
	backOff  time.Duration

	env      map[string]string
	files    map[string]string // of the writable layer
	listens  []uint16
	log, old *logBuffer

	probes    [3]probe // startup, readiness, liveness
	postStart *process
	preStop   *process
	stopStep  int // 0 not asked, 1 in the hook, 2 TERM sent
	termAt    time.Time
	killAt    time.Time // by a failed liveness probe; zero: the instance's
}

// running tells whether a process is there.
func (c *container) running() bool { return c.proc != nil && !c.proc.done && c.ended == nil }

func (c *container) workingDir() string {
	if c.spec.WorkingDir != "" {
		return c.spec.WorkingDir
	}
	return "/"
}

func (c *container) user() (uid, gid int64) {
	if s := c.inst.in.Spec.SecurityContext; s != nil {
		set(&uid, s.RunAsUser)
		set(&gid, s.RunAsGroup)
	}
	if s := c.spec.SecurityContext; s != nil {
		set(&uid, s.RunAsUser)
		set(&gid, s.RunAsGroup)
	}
	return uid, gid
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// place finds the files that a path lies in, and its name there.
func (c *container) place(p string) (files map[string]string, name string, readOnly bool) {
	if !path.IsAbs(p) {
		p = path.Join(c.workingDir(), p)
	}
	p = path.Clean(p)
	var best *cis.Mount
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		at := path.Clean(m.Path)
		if (p == at || strings.HasPrefix(p, at+"/")) && (best == nil || len(at) > len(path.Clean(best.Path))) {
			best = m
		}
	}
	if best == nil {
		sc := c.spec.SecurityContext
		ro := sc != nil && sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem && p != c.messagePath()
		return c.files, p, ro
	}
	v := c.inst.volumes[best.Volume]
	return v.files, path.Join("/", best.SubPath, strings.TrimPrefix(p, path.Clean(best.Path))), best.ReadOnly || v.given
}

func (c *container) messagePath() string {
	if c.spec.TerminationMessagePath != "" {
		return c.spec.TerminationMessagePath
	}
	return corev1.TerminationMessagePathDefault
}

func (c *container) read(p string) (string, error) {
	files, name, _ := c.place(p)
	data, ok := files[name]
	if !ok {
		return "", errNoFile
	}
	return data, nil
}

func (c *container) write(p, text string, app bool) error {
	if p == "/dev/null" {
		return nil
	}
	files, name, readOnly := c.place(p)
	if readOnly {
		return errReadOnly
	}
	if c.inst.disk += len(text) + 64; c.inst.disk > maxDisk {
		return errNoSpace
	}
	if app {
		text = files[name] + text
	}
	files[name] = text
	return nil
}

func (c *container) remove(p string) error {
	files, name, readOnly := c.place(p)
	if _, ok := files[name]; !ok {
		return errNoFile
	}
	if readOnly {
		return errReadOnly
	}
	delete(files, name)
	return nil
}

// start begins an attempt; the process runs at the instance's next step, so that its start can be seen.
func (c *container) start(now time.Time) {
	c.id = "memory://" + c.inst.id + "/" + c.spec.Name + "/" + itoa(c.restarts)
	c.waiting, c.ended, c.begun, c.listens = nil, nil, false, nil
	c.postStart, c.preStop, c.stopStep, c.killAt = nil, nil, 0, time.Time{}
	c.started, c.files = now, map[string]string{}
	c.old, c.log = c.log, &logBuffer{}
	c.probes = newProbes(c.spec, now)
	c.env = environment(c.spec.Env, c.inst)
	p, err := c.newProcess(cis.ExpandAll(append(slices.Clone(c.spec.Command), c.spec.Args...), c.env))
	if err != nil {
		c.proc = &process{c: c, done: true, code: 128}
		c.finish(now, 128, "StartError", err.Error())
		return
	}
	p.stdout = func(s string) { c.log.write(time.Now(), s) }
	p.stderr = p.stdout
	p.exited = c.inst.wake
	c.proc = p
}

// finish records the end of the current attempt.
func (c *container) finish(now time.Time, code int, reason, message string) {
	if reason == "" {
		reason = "Error"
		if code == 0 {
			reason = "Completed"
		}
	}
	if message == "" {
		message = c.files[c.messagePath()]
		if message == "" && code != 0 && c.spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
			message = c.log.tail(2048, 80)
		}
	}
	c.ended = &corev1.ContainerStateTerminated{
		ExitCode: int32(code), Reason: reason, Message: message[:min(len(message), maxMessage)], //nolint:gosec // a byte
		StartedAt: metav1.NewTime(c.started), FinishedAt: metav1.NewTime(now), ContainerID: c.id,
	}
	c.log.close()
	for _, p := range []*process{c.postStart, c.preStop} {
		if p != nil {
			p.exited = func() {}
			p.kill()
		}
	}
	for i := range c.probes {
		c.probes[i].drop()
	}
}

// passed tells whether a container counts as started: its hook and its startup probe have succeeded.
func (c *container) passed() bool {
	return c.running() && c.begun && (c.postStart == nil || c.postStart.done) && (c.probes[startup].spec == nil || c.probes[startup].ok)
}

func (c *container) ready() bool {
	return c.passed() && (c.probes[readiness].spec == nil || c.probes[readiness].ok)
}

func (c *container) status() corev1.ContainerStatus {
	st := corev1.ContainerStatus{
		Name: c.spec.Name, RestartCount: c.restarts, Image: c.spec.Image, ContainerID: c.id,
		Ready: c.ready() || c.init && !c.sidecar && c.ended != nil && c.ended.ExitCode == 0,
	}
	passed := c.passed()
	st.Started = &passed
	if c.pulled {
		st.ImageID = c.spec.Image
	}
	st.LastTerminationState.Terminated = c.last
	switch {
	case c.waiting != nil:
		st.State.Waiting = c.waiting
	case c.ended != nil:
		st.State.Terminated = c.ended
	case c.proc != nil:
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.started)}
	default:
		st.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.inst.waitingReason()}
	}
	return st
}

// environment resolves a container's variables.
func environment(list []cis.EnvVar, i *instance) map[string]string {
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": i.in.Spec.Hostname}
	for _, v := range list {
		switch {
		case v.Field == "status.podIP" || v.Field == "status.podIPs":
			env[v.Name] = i.ip
		case v.Field != "":
			env[v.Name] = hostIP
		case v.Expand:
			env[v.Name] = cis.Expand(v.Value, cis.Known(env))
		default:
			env[v.Name] = v.Value
		}
	}
	return env
}
