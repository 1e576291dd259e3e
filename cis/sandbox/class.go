package sandbox

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// Overhead is what a sandbox itself takes of its machine, beside what the size of its instance promises to the
// containers. Placement counts it and the sandbox's cgroup allows it; nobody is billed for it: an instance is billed for
// its size, at the price of its class.
type Overhead struct {
	MilliCPU, MemoryMiB int64
	// GuestMiB is the part of MemoryMiB that is inside of a virtual machine: its kernel and agent.
	GuestMiB int64
}

// OverheadOf is the overhead of a class for an instance of a size: Kata's is the guest's kernel, the virtual machine
// monitor and virtiofsd, with the CPU of Kata's own RuntimeClasses; gVisor's is the Sentry, runc's the pause process and
// the shim.
func OverheadOf(c cis.SandboxClass, s billing.Size) Overhead {
	switch c {
	case cis.Kata:
		guest := 128 + s.MemoryMiB/64 // Linux keeps 64 bytes for each page of 4 KiB
		return Overhead{MilliCPU: 250, MemoryMiB: guest + 160, GuestMiB: guest}
	case cis.GVisor:
		return Overhead{MilliCPU: 50, MemoryMiB: 64}
	}
	return Overhead{MemoryMiB: 16}
}

// On is what an instance of this size takes of its machine.
func (o Overhead) On(s billing.Size) billing.Size {
	s.MilliCPU, s.MemoryMiB = s.MilliCPU+o.MilliCPU, s.MemoryMiB+o.MemoryMiB
	return s
}

// Weaker tells whether a isolates less than b. A class that is not known is weaker than every other.
func Weaker(a, b cis.SandboxClass) bool {
	strength := func(c cis.SandboxClass) int {
		if i := slices.Index(Classes(), c); i >= 0 {
			return -i
		}
		return -len(Classes())
	}
	return strength(a) < strength(b)
}

// Policy is the operator's rule of how little isolation an instance may have.
type Policy struct {
	// Minimum is the weakest class that an instance of an org may have that Orgs does not name; "" allows all.
	Minimum cis.SandboxClass
	Orgs    map[string]cis.SandboxClass
}

// Of is the weakest class that an org's instances may have, "" when there is no bound.
func (p Policy) Of(org string) cis.SandboxClass {
	if c, ok := p.Orgs[org]; ok {
		return c
	}
	return p.Minimum
}

// Refuses says why an org's instance may not have a class, and what to do; "" when it may.
func (p Policy) Refuses(org string, class cis.SandboxClass) string {
	least := p.Of(org)
	if least == "" || !Weaker(class, least) {
		return ""
	}
	return fmt.Sprintf("sandbox class %q isolates less than %q, which the operator requires of the instances of %q at least; ask for %s with the annotation %s, or for none",
		class, least, org, allowed(least), cis.AnnotationSandbox)
}

func allowed(least cis.SandboxClass) string {
	out := ""
	for _, c := range Classes() {
		if Weaker(c, least) {
			break
		}
		if out != "" {
			out += " or "
		}
		out += string(c)
	}
	return out
}

// Supports checks that a class can do what a spec asks of its sandbox. The error is of class problem.ErrInvalid and
// names the field. That an instance has no namespace, path or device of the machine holds in every class, since the spec
// has no field for one.
func Supports(class cis.SandboxClass, s *cis.Spec) error {
	for _, group := range []struct {
		field      string
		containers []cis.Container
	}{{"initContainers", s.InitContainers}, {"containers", s.Containers}} {
		for i := range group.containers {
			if err := supports(class, fmt.Sprintf("spec.%s[%d]", group.field, i), &group.containers[i]); err != nil {
				return err
			}
		}
	}
	if class == cis.GVisor && s.SecurityContext != nil && len(s.SecurityContext.Sysctls) > 0 {
		// runsc takes such values and sets none of them (runsc/boot, of Linux.Sysctl it reads fs.nr_open alone).
		return problem.Invalid("spec.securityContext.sysctls", "must be empty in sandbox gvisor, whose kernel cannot be told; kata and runc can",
			s.SecurityContext.Sysctls[0].Name)
	}
	return nil
}

func supports(class cis.SandboxClass, at string, c *cis.Container) error {
	if sc := c.SecurityContext; class != cis.Runc && sc != nil && sc.Privileged != nil && *sc.Privileged {
		return problem.Invalid(at+".securityContext.privileged", "may be true only in sandbox runc: the other classes give no access to the host", true)
	}
	if class != cis.GVisor {
		return nil
	}
	for i, p := range c.Ports {
		if p.Protocol == corev1.ProtocolSCTP {
			return problem.Invalid(fmt.Sprintf("%s.ports[%d].protocol", at, i), "must be TCP or UDP in sandbox gvisor, whose network stack has no SCTP", p.Protocol)
		}
	}
	return nil
}
