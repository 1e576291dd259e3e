package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/sandbox"
)

// makeSandbox prepares what the sandbox needs on the node and has containerd make it.
func (a *actor) makeSandbox() {
	if now := time.Now(); now.Before(a.sandboxTry) {
		a.later(a.sandboxTry)
		return
	}
	a.sandbox = sandboxMaking
	a.save()
	cfg := a.sandboxConfig()
	limits := podLimits(a.spec, a.rec.Size, a.rec.Class, a.e.cfg.PIDLimit)
	handler, again := a.rec.Handler, a.sandboxWait > 0
	a.do(a.makeCtx, func(ctx context.Context) func() {
		id, ips, reason, err := a.bringUp(ctx, cfg, handler, limits, again)
		return func() { a.sandboxMade(cfg, id, ips, reason, err) }
	})
}

// bringUp is the blocking part; it takes the place in the queue of parallel starts.
func (a *actor) bringUp(ctx context.Context, cfg *rt.PodSandboxConfig, handler string, limits cgroupLimits, again bool) (id string, ips []string, reason string, err error) {
	select {
	case a.e.starts <- struct{}{}:
		defer func() { <-a.e.starts }()
	case <-ctx.Done():
		return "", nil, "FailedCreatePodSandBox", ctx.Err()
	}
	if again {
		// An earlier attempt may have left one behind.
		if err := errors.Join(a.clearSandboxes(ctx), a.e.cgroup.remove(a.id)); err != nil {
			return "", nil, "FailedCreatePodSandBox", err
		}
	}
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		return "", nil, "FailedCreatePodSandBox", fmt.Errorf("make log directory: %w", err)
	}
	if err := a.vols.prepare(a.spec); err != nil {
		return "", nil, "FailedMount", err
	}
	if err := a.e.cgroup.create(a.id, limits); err != nil {
		return "", nil, "FailedCreatePodContainer", err
	}
	run := func(ctx context.Context) (*rt.RunPodSandboxResponse, error) {
		return a.e.start.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	}
	r, err := patiently(ctx, a, run)
	for reserved(err) {
		// An earlier life of this engine has asked for it. It is listed when it is made, and nothing of it may go before.
		sleep(ctx, time.Second)
		if err := a.clearSandboxes(ctx); err != nil {
			return "", nil, "FailedCreatePodSandBox", err
		}
		r, err = patiently(ctx, a, run)
	}
	if err != nil {
		a.e.suspect()
		return "", nil, "FailedCreatePodSandBox", err
	}
	st, err := a.e.rt.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId, Verbose: a.e.cfg.Fence != nil})
	if err != nil {
		return "", nil, "FailedPodSandBoxStatus", err
	}
	if err := a.admit(st); err != nil {
		return "", nil, "FailedCreatePodSandBox", err
	}
	ips = addresses(st.GetStatus())
	if err := a.vols.writeHosts(a.spec, hostname(a.spec), ips); err != nil {
		return "", nil, "FailedMount", err
	}
	return r.PodSandboxId, ips, "", nil
}

// reserved tells that a sandbox was not made because one of its name is being made, or there.
func reserved(err error) bool {
	return status.Code(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "reserve sandbox name")
}

func (a *actor) sandboxMade(cfg *rt.PodSandboxConfig, id string, ips []string, reason string, err error) {
	if err != nil {
		a.sandbox = sandboxNone
		if a.rec.Stop != nil || a.ctx.Err() != nil {
			a.sandboxWait = time.Second // an unfinished one may be there
			return
		}
		a.sandboxWait = min(max(time.Second, 2*a.sandboxWait), 30*time.Second)
		a.sandboxTry = time.Now().Add(a.sandboxWait)
		a.log.Warn("sandbox not made", "reason", reason, "error", err)
		a.warn("", reason, "Failed to create the sandbox: "+message(err))
		return
	}
	a.sandbox, a.sandboxID, a.sandboxCfg, a.ips, a.sandboxWait = sandboxReady, id, cfg, ips, 0
	a.upAt = time.Now()
}

// clearSandboxes removes every sandbox of the instance.
func (a *actor) clearSandboxes(ctx context.Context) error {
	list, err := a.e.listSandboxes(ctx, a.id)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range list {
		err = errors.Join(err, a.e.removeSandbox(ctx, s.Id))
	}
	return err
}

// loseSandbox has the sandbox replaced, in which a container could not be started. Once is what a kill of containerd leaves; what
// is lost again and again is told, and waits longer each time.
func (a *actor) loseSandbox(err error) {
	if a.lost {
		return // another container has said so
	}
	a.lost = true
	if a.losses++; a.losses == 1 {
		return
	}
	a.sandboxTry = time.Now().Add(min(time.Second<<min(a.losses-2, 5), 30*time.Second))
	a.warn("", "SandboxChanged", "Instance sandbox changed, it will be killed and re-created: "+message(err))
}

// replaceSandbox removes a lost sandbox and lets the next one be made, when something is left to run.
func (a *actor) replaceSandbox() {
	if a.sandbox == sandboxMaking || a.sandbox == sandboxRemoving || a.busy() {
		return
	}
	if now := time.Now(); now.Before(a.sandboxTry) {
		a.later(a.sandboxTry)
		return
	}
	a.sandbox = sandboxRemoving
	a.retire()
	outs := a.outputs()
	a.do(a.ctx, func(ctx context.Context) func() {
		err := a.clearSandboxes(ctx)
		if err == nil {
			a.finishOutputs(ctx, outs)
		}
		return func() {
			a.sandbox = sandboxNone
			if err != nil {
				a.log.Warn("lost sandbox not removed", "error", err)
				a.sandboxTry = time.Now().Add(time.Second)
				return
			}
			for _, c := range a.containers {
				if c.running {
					a.exited(c, a.vanished(c, "The sandbox of the container is gone"))
				}
				c.id, c.out = "", nil
			}
			a.lost, a.sandboxID, a.ips = false, "", nil
			if a.checkEnd(); a.rec.Stop != nil {
				return
			}
			if a.untouched() {
				return // nothing has run in it: the next one is still the first try
			}
			if a.policy() == corev1.RestartPolicyNever {
				a.stop(stopRecord{At: time.Now(), Failed: true, Reason: "SandboxLost", Message: "The sandbox is gone and the restart policy is Never"})
				return
			}
			a.rec.Incarnation++
			a.rec.MarkedRunning, a.meter = false, nil // the meter is told of the incarnation, which starts up again
			for _, c := range a.containers {
				if c.kind == kindInit {
					// A new sandbox is initialized anew.
					a.forgetRun(c)
				}
			}
			a.warn("", "SandboxChanged", "Instance sandbox changed, it will be killed and re-created.")
		}
	})
}

// untouched tells that no container was ever made: whatever was lost, nothing has run.
func (a *actor) untouched() bool {
	return !slices.ContainsFunc(a.containers, func(c *container) bool { return c.rec.Attempt >= 0 })
}

// forgetRun makes a finished init container due again, keeping how it ended as its previous end.
func (a *actor) forgetRun(c *container) {
	if c.rec.Terminated != nil {
		c.rec.Previous, c.rec.Terminated = c.rec.Terminated, nil
	}
	c.nextTry = time.Time{}
}

func (a *actor) busy() bool {
	for _, c := range a.containers {
		if c.busy {
			return true
		}
	}
	return false
}

// vanished is the end of a container of which containerd knows nothing any more.
func (a *actor) vanished(c *container, msg string) corev1.ContainerStateTerminated {
	if exit := c.rec.exit(c.rec.ID); exit != nil {
		return a.terminated(c, &rt.ContainerStatus{Id: exit.ID, Metadata: &rt.ContainerMetadata{Name: c.spec.Name, Attempt: uint32(max(0, c.rec.Attempt))},
			StartedAt: nano(c.startedAt), ExitCode: unknownExitCode})
	}
	return corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown", Message: msg,
		StartedAt: metaTime(c.startedAt), FinishedAt: metaTime(time.Now()), ContainerID: containerURI(c.id)}
}

// nano is metaNano's inverse: 0 for the zero time.
func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (a *actor) sandboxConfig() *rt.PodSandboxConfig {
	labels := map[string]string{labelInstance: a.id, labelOrg: a.org, labelNode: a.e.cfg.Node,
		labelIncarnation: strconv.FormatInt(a.rec.Incarnation, 10), labelClass: string(a.rec.Class)}
	cfg := &rt.PodSandboxConfig{
		Metadata: &rt.PodSandboxMetadata{Name: a.id, Namespace: "cumulet", Uid: a.id, Attempt: uint32(a.rec.Incarnation - 1)},
		Hostname: hostname(a.spec), LogDirectory: a.logDir(), Labels: labels,
		DnsConfig:   dnsConfig(a.spec.DNS, a.e.cfg.HostDNS),
		Annotations: sandbox.Annotations(a.rec.Class, a.rec.Size, runtime.NumCPU()),
		Linux: &rt.LinuxPodSandboxConfig{
			CgroupParent:    a.e.cgroup.path(a.id),
			SecurityContext: sandboxSecurity(a.spec),
			Sysctls:         sysctls(a.spec),
		},
	}
	for i := range a.spec.Containers {
		for _, p := range a.spec.Containers[i].Ports {
			if p.HostPort > 0 {
				cfg.PortMappings = append(cfg.PortMappings, &rt.PortMapping{Protocol: protocol(p.Protocol),
					ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP})
			}
		}
	}
	return cfg
}

func protocol(p corev1.Protocol) rt.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return rt.Protocol_UDP
	case corev1.ProtocolSCTP:
		return rt.Protocol_SCTP
	}
	return rt.Protocol_TCP
}

func dnsConfig(own, host *cis.DNS) *rt.DNSConfig {
	if own == nil {
		own = host
	}
	if own == nil {
		return nil
	}
	return &rt.DNSConfig{Servers: own.Servers, Searches: own.Searches, Options: own.Options}
}

// hostname is the sandbox's: at most 63 characters (Linux allows 64), no dot or dash at the end.
func hostname(s *cis.Spec) string {
	h := s.Hostname
	if h == "" {
		h = s.Name
	}
	if len(h) > 63 {
		h = h[:63]
	}
	return strings.TrimRight(h, "-.")
}

func addresses(s *rt.PodSandboxStatus) []string {
	var ips []string
	add := func(ip string) {
		if net.ParseIP(ip) != nil {
			ips = append(ips, ip)
		}
	}
	add(s.GetNetwork().GetIp())
	for _, p := range s.GetNetwork().GetAdditionalIps() {
		add(p.Ip)
	}
	return ips
}

// find looks what of the instance is in containerd after this process, or containerd, was restarted.
func (a *actor) find() {
	if a.metering || time.Now().Before(a.retryAt) {
		a.later(a.retryAt)
		return
	}
	a.metering = true // one at a time, and nothing else goes on meanwhile
	resume := a.rec.Stop == nil
	a.do(a.ctx, func(ctx context.Context) func() {
		f, err := a.lookUp(ctx, resume)
		return func() {
			a.metering = false
			if err != nil {
				a.log.Warn("instance not found out", "error", err)
				a.retryAt = time.Now().Add(time.Second)
				return
			}
			a.adopted = true
			a.take(f)
		}
	})
}

// found is what containerd has of an instance.
type found struct {
	sandbox    *rt.PodSandboxStatus // the newest, nil when there is none
	handler    string
	containers []*rt.ContainerStatus
	resumed    map[string]bool // those of them, by id, whose start was brought to its end just now
	attempts   map[string]int  // the highest attempt that has written something
}

// lookUp asks containerd; with resume, starts that are under way are brought to their end.
func (a *actor) lookUp(ctx context.Context, resume bool) (*found, error) {
	f := &found{attempts: logAttempts(a.logDir(), 1), resumed: map[string]bool{}}
	list, err := a.e.listSandboxes(ctx, a.id)
	if err != nil {
		return nil, err
	}
	var newest *rt.PodSandbox
	for _, s := range list {
		better := newest == nil || s.Metadata.GetAttempt() > newest.Metadata.GetAttempt()
		if old := s; newest != nil {
			if better {
				old = newest
			}
			if err := a.e.removeSandbox(ctx, old.Id); err != nil {
				return nil, err
			}
		}
		if better {
			newest = s
		}
	}
	if newest == nil {
		return f, nil
	}
	st, err := a.e.rt.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: newest.Id, Verbose: a.e.cfg.Fence != nil})
	if err != nil {
		return nil, err
	}
	if st.GetStatus().GetState() == rt.PodSandboxState_SANDBOX_READY {
		if err := a.admit(st); err != nil {
			return nil, err
		}
	}
	f.sandbox, f.handler = st.GetStatus(), newest.RuntimeHandler
	cl, err := a.e.listContainers(ctx, a.id)
	if err != nil {
		return nil, err
	}
	for _, c := range cl {
		if c.PodSandboxId != newest.Id {
			continue
		}
		s, err := a.e.rt.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: c.Id})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		st := s.Status
		if resume {
			if st, err = a.resumeStart(ctx, st); err != nil {
				return nil, err
			}
			f.resumed[c.Id] = st.State != s.Status.State
		}
		f.containers = append(f.containers, st)
	}
	return f, nil
}

// logAttempts finds the highest attempt of each container that has a log of at least so many bytes.
func logAttempts(dir string, bytes int64) map[string]int {
	out := map[string]int{}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.log"))
	if err != nil {
		return out
	}
	for _, f := range files {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f), ".log"))
		if st, serr := os.Stat(f); serr != nil || st.Size() < bytes {
			continue
		}
		if name := filepath.Base(filepath.Dir(f)); err == nil && n >= 0 {
			if was, ok := out[name]; !ok || n > was {
				out[name] = n
			}
		}
	}
	return out
}

// take makes what was found the actor's state.
func (a *actor) take(f *found) {
	for _, c := range a.containers {
		if n, ok := f.attempts[c.spec.Name]; ok && n > c.rec.Attempt {
			c.rec.Attempt, c.rec.Started = n, false
			if c.rec.Terminated != nil {
				c.rec.Previous, c.rec.Terminated = c.rec.Terminated, nil
			}
		}
	}
	if f.sandbox == nil {
		if a.rec.Incarnation > 0 && a.rec.Verdict == nil && a.everRan() {
			a.lost = true
			for _, c := range a.containers {
				if c.rec.Attempt >= 0 && c.rec.Terminated == nil {
					a.over(c, func() corev1.ContainerStateTerminated {
						return a.vanished(c, "The container is gone with its sandbox")
					})
				}
			}
		}
		return
	}
	if n := int64(f.sandbox.Metadata.GetAttempt()) + 1; n > a.rec.Incarnation {
		a.rec.Incarnation = n
	}
	if a.rec.Class == "" || a.rec.Handler == "" {
		a.rec.Class, a.rec.Handler = cis.SandboxClass(f.sandbox.Labels[labelClass]), f.handler
	}
	a.sandboxID, a.ips = f.sandbox.Id, addresses(f.sandbox)
	a.sandboxCfg = a.sandboxConfig()
	a.sandbox = sandboxReady
	a.lost = f.sandbox.State != rt.PodSandboxState_SANDBOX_READY
	if err := a.vols.writeHosts(a.spec, hostname(a.spec), a.ips); err != nil {
		a.log.Warn("hosts file not written", "error", err)
	}
	for _, s := range f.containers {
		if c := a.byName(s.Metadata.GetName()); c != nil {
			a.takeContainer(c, s, f.resumed[s.Id])
		}
	}
	for _, c := range a.containers {
		if c.id == "" && c.rec.Attempt >= 0 && c.rec.Terminated == nil && c.rec.Incarnation == a.rec.Incarnation {
			a.over(c, func() corev1.ContainerStateTerminated { return a.vanished(c, "The container is gone") })
		}
	}
}

// everRan tells whether a sandbox of the instance has been up before.
func (a *actor) everRan() bool {
	if a.rec.MarkedRunning || len(a.in.Status.IPs) > 0 {
		return true
	}
	for _, c := range a.containers {
		if c.rec.Attempt >= 0 {
			return true
		}
	}
	return false
}

// takeContainer makes the state of one container what containerd says of it; resumed tells that its start has just come
// to its end.
func (a *actor) takeContainer(c *container, s *rt.ContainerStatus, resumed bool) {
	n := int(s.Metadata.GetAttempt())
	if n < c.rec.Attempt && c.rec.Terminated == nil {
		// The end of the attempt before the last.
		if s.State == rt.ContainerState_CONTAINER_EXITED {
			t := a.terminated(c, s)
			c.rec.Previous = &t
		}
		return
	}
	if n < c.rec.Attempt {
		return
	}
	if n > c.rec.Attempt {
		c.rec.Attempt, c.rec.Started = n, false
		if c.rec.Terminated != nil {
			c.rec.Previous, c.rec.Terminated = c.rec.Terminated, nil
		}
	}
	c.id, c.rec.ID, c.rec.Incarnation = s.Id, s.Id, a.rec.Incarnation
	if c.rec.ImageID == "" {
		c.rec.ImageID, c.rec.ImageRef = s.ImageId, s.ImageRef
	}
	switch s.State {
	case rt.ContainerState_CONTAINER_RUNNING:
		c.rec.Terminated = nil
		a.runs(c, time.Unix(0, s.StartedAt), !resumed)
	case rt.ContainerState_CONTAINER_EXITED:
		switch {
		case c.rec.Terminated != nil:
		case a.neverRan(s, c.spec.Name, n):
			c.rec.Attempt-- // it is made again under the same number
		case s.StartedAt == 0:
			// It began and ended before containerd, which was killed meanwhile, had noted that.
			c.startedAt = time.Unix(0, s.FinishedAt)
			a.over(c, func() corev1.ContainerStateTerminated { return a.terminated(c, s) })
		default:
			c.startedAt = time.Unix(0, s.StartedAt)
			a.over(c, func() corev1.ContainerStateTerminated { return a.terminated(c, s) })
		}
	case rt.ContainerState_CONTAINER_CREATED:
		// Made and never started: it is made again under the same number.
		c.rec.Attempt--
	default:
		if a.neverRan(s, c.spec.Name, n) {
			// Its shim hangs in a start that was cut short: it is made again, in another sandbox.
			c.id, c.rec.ID, a.lost = "", "", true
			c.rec.Attempt--
			return
		}
		a.over(c, func() corev1.ContainerStateTerminated { return a.vanished(c, "The container's state is unknown") })
	}
}

func (a *actor) byName(name string) *container {
	for _, c := range a.containers {
		if c.spec.Name == name {
			return c
		}
	}
	return nil
}
