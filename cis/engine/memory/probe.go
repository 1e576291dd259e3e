package memory

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"cumulet.io/cis"
)

// The probes of a container, in the order in which they are asked.
const (
	startup = iota
	readiness
	liveness
)

// probe is one probe of one attempt of a container.
type probe struct {
	spec      *corev1.Probe
	next      time.Time
	ok        bool
	good, bad int32
	proc      *process // an exec probe at work
	deadline  time.Time
}

func newProbes(c *cis.Container, now time.Time) [3]probe {
	var probes [3]probe
	for i, spec := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		if spec != nil {
			probes[i] = probe{spec: spec, next: now.Add(seconds(spec.InitialDelaySeconds, 0))}
		}
	}
	return probes
}

func seconds(n, fallback int32) time.Duration {
	if n <= 0 {
		n = fallback
	}
	return time.Duration(n) * time.Second
}

func (p *probe) drop() {
	if p.proc != nil {
		p.proc.exited = func() {}
		p.proc.kill()
		p.proc = nil
	}
}

// ask runs a probe when it is due. It gives the time of its next step, zero for none, and whether it has just failed
// so often that the container is to be killed.
func (p *probe) ask(c *container, kind int, now time.Time) (next time.Time, fatal bool) {
	if p.spec == nil || kind == startup && p.ok {
		return time.Time{}, false
	}
	var good bool
	switch {
	case p.proc != nil && p.proc.done:
		good = p.proc.code == 0
		p.proc = nil
	case p.proc != nil && now.Before(p.deadline):
		return p.deadline, false
	case p.proc != nil:
		p.drop()
	case now.Before(p.next):
		return p.next, false
	case p.spec.Exec != nil:
		proc, err := c.newProcess(p.spec.Exec.Command)
		if err != nil {
			break
		}
		proc.run()
		if !proc.done {
			proc.exited = c.inst.wake
			p.proc, p.deadline = proc, now.Add(seconds(p.spec.TimeoutSeconds, 1))
			return p.deadline, false
		}
		good = proc.code == 0
	default:
		good = c.listening(probePort(p.spec, c.spec))
	}
	p.next = now.Add(seconds(p.spec.PeriodSeconds, 10))
	return p.next, p.count(c, kind, good)
}

// count takes one result.
func (p *probe) count(c *container, kind int, good bool) (fatal bool) {
	if good {
		p.bad = 0
		if p.good++; p.good >= max(p.spec.SuccessThreshold, 1) {
			p.ok = true
		}
		return false
	}
	p.good = 0
	name := [...]string{"Startup", "Readiness", "Liveness"}[kind]
	c.inst.event(cis.Warning, "Unhealthy", c.spec.Name, name+" probe failed")
	failures := p.spec.FailureThreshold
	if failures <= 0 {
		failures = 3
	}
	if p.bad++; p.bad < failures {
		return false
	}
	p.ok = false
	if kind == readiness {
		return false
	}
	c.inst.event(cis.Normal, "Killing", c.spec.Name, fmt.Sprintf("Container %s failed its %s probe and will be restarted", c.spec.Name, name))
	return true
}

func probePort(p *corev1.Probe, c *cis.Container) uint16 {
	switch {
	case p.HTTPGet != nil:
		return portNumber(p.HTTPGet.Port, c)
	case p.TCPSocket != nil:
		return portNumber(p.TCPSocket.Port, c)
	case p.GRPC != nil:
		return uint16(p.GRPC.Port) //nolint:gosec // validated
	default:
		return 0
	}
}

func portNumber(port intstr.IntOrString, c *cis.Container) uint16 {
	if port.Type == intstr.Int {
		return uint16(port.IntVal) //nolint:gosec // validated
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return uint16(p.ContainerPort) //nolint:gosec // validated
		}
	}
	return 0
}

// listening tells whether something in the container would answer on a port: a port that the spec declares, or nc's.
func (c *container) listening(port uint16) bool {
	if !c.running() || !c.begun {
		return false
	}
	return slices.Contains(c.listens, port) ||
		slices.ContainsFunc(c.spec.Ports, func(p corev1.ContainerPort) bool { return uint16(p.ContainerPort) == port }) //nolint:gosec // validated
}
