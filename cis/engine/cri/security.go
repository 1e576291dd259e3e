package cri

import (
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// MaskedPaths is what a container does not see of /proc and /sys by default, as kubelet has it.
func MaskedPaths() []string {
	return []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
}

// ReadonlyPaths is what it cannot write there.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func namespaceOptions(s *cis.Spec) *rt.NamespaceOption {
	n := &rt.NamespaceOption{Network: rt.NamespaceMode_POD, Ipc: rt.NamespaceMode_POD, Pid: rt.NamespaceMode_CONTAINER}
	if s.ShareProcessNamespace {
		n.Pid = rt.NamespaceMode_POD
	}
	return n
}

func sandboxSecurity(s *cis.Spec) *rt.LinuxSandboxSecurityContext {
	sc := &rt.LinuxSandboxSecurityContext{NamespaceOptions: namespaceOptions(s),
		Seccomp: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}}
	for _, list := range [][]cis.Container{s.InitContainers, s.Containers} {
		for i := range list {
			if c := list[i].SecurityContext; c != nil && c.Privileged != nil && *c.Privileged {
				sc.Privileged = true // containerd wants it of the sandbox of a privileged container
			}
		}
	}
	return sc
}

func sysctls(s *cis.Spec) map[string]string {
	if s.SecurityContext == nil || len(s.SecurityContext.Sysctls) == 0 {
		return nil
	}
	m := make(map[string]string, len(s.SecurityContext.Sysctls))
	for _, x := range s.SecurityContext.Sysctls {
		m[x.Name] = x.Value
	}
	return m
}

func first[T any](list ...*T) *T {
	for _, p := range list {
		if p != nil {
			return p
		}
	}
	return nil
}

// containerSecurity maps the pod's and the container's security context, the container's winning. An error is a
// configuration that cannot be kept, such as an image of root where root is forbidden.
func containerSecurity(s *cis.Spec, c *cis.Container, img imageInfo) (*rt.LinuxContainerSecurityContext, error) {
	pod, own := s.SecurityContext, c.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	sc := &rt.LinuxContainerSecurityContext{NamespaceOptions: namespaceOptions(s), MaskedPaths: MaskedPaths(), ReadonlyPaths: ReadonlyPaths()}
	user := first(own.RunAsUser, pod.RunAsUser)
	if nonRoot := first(own.RunAsNonRoot, pod.RunAsNonRoot); nonRoot != nil && *nonRoot {
		if err := checkNonRoot(c, user, img); err != nil {
			return nil, err
		}
	}
	switch {
	case user != nil:
		sc.RunAsUser = &rt.Int64Value{Value: *user}
	case img.uid != nil:
		sc.RunAsUser = &rt.Int64Value{Value: *img.uid}
	default:
		sc.RunAsUsername = img.username
	}
	if g := first(own.RunAsGroup, pod.RunAsGroup); g != nil {
		sc.RunAsGroup = &rt.Int64Value{Value: *g}
		if sc.RunAsUser == nil && sc.RunAsUsername == "" {
			sc.RunAsUser = &rt.Int64Value{} // CRI takes a group only beside a user; the image's is root
		}
	}
	sc.SupplementalGroups = slices.Clone(pod.SupplementalGroups)
	if pod.FSGroup != nil {
		sc.SupplementalGroups = append(sc.SupplementalGroups, *pod.FSGroup)
	}
	if p := pod.SupplementalGroupsPolicy; p != nil && *p == corev1.SupplementalGroupsPolicyStrict {
		sc.SupplementalGroupsPolicy = rt.SupplementalGroupsPolicy_Strict
	}
	sc.Privileged = own.Privileged != nil && *own.Privileged
	sc.ReadonlyRootfs = own.ReadOnlyRootFilesystem != nil && *own.ReadOnlyRootFilesystem
	sc.NoNewPrivs = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
	if own.Capabilities != nil {
		sc.Capabilities = &rt.Capability{AddCapabilities: capabilities(own.Capabilities.Add), DropCapabilities: capabilities(own.Capabilities.Drop)}
	}
	if sc.Privileged || own.ProcMount != nil && *own.ProcMount == corev1.UnmaskedProcMount {
		sc.MaskedPaths, sc.ReadonlyPaths = nil, nil
	}
	var err error
	sc.Seccomp, err = seccomp(first(own.SeccompProfile, pod.SeccompProfile), sc.Privileged)
	return sc, err
}

func capabilities(list []corev1.Capability) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = string(c)
	}
	return out
}

// seccomp is the runtime's profile unless the spec asks otherwise: the same as kubelet with seccompDefault.
func seccomp(p *corev1.SeccompProfile, privileged bool) (*rt.SecurityProfile, error) {
	t := corev1.SeccompProfileTypeRuntimeDefault
	if p != nil {
		t = p.Type
	}
	switch {
	case privileged || t == corev1.SeccompProfileTypeUnconfined:
		return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Unconfined}, nil
	case t == corev1.SeccompProfileTypeRuntimeDefault:
		return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}, nil
	}
	return nil, fmt.Errorf("seccomp profile type %q is not supported", t)
}

// appArmor is the AppArmor profile that was asked for; nil leaves it to containerd, which loads its own where the machine
// has AppArmor. Profiles are the machine's kernel's, so they are of class runc: the kernel of another sandbox has none to
// load. One that cannot be kept is an error, as kubelet has it, rather than left out.
func appArmor(s *cis.Spec, c *cis.Container, class cis.SandboxClass, supported bool) (*rt.SecurityProfile, error) {
	var asked *corev1.AppArmorProfile
	if s.SecurityContext != nil {
		asked = s.SecurityContext.AppArmorProfile
	}
	if c.SecurityContext != nil {
		asked = first(c.SecurityContext.AppArmorProfile, asked)
	}
	switch {
	case asked == nil || class != cis.Runc:
		return nil, nil
	case asked.Type == corev1.AppArmorProfileTypeUnconfined:
		return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Unconfined}, nil
	case asked.Type != corev1.AppArmorProfileTypeRuntimeDefault:
		return nil, fmt.Errorf("securityContext.appArmorProfile.type: %q is not supported", asked.Type)
	case !supported:
		return nil, errors.New("securityContext.appArmorProfile: RuntimeDefault cannot be kept: AppArmor is not enabled on this node")
	}
	return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}, nil
}

func checkNonRoot(c *cis.Container, user *int64, img imageInfo) error {
	switch {
	case user != nil && *user == 0:
		return errors.New("container's runAsUser breaks non-root policy (container: " + c.Name + ")")
	case user != nil:
		return nil
	case img.username != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (container: %s)", img.username, c.Name)
	case img.uid == nil || *img.uid == 0:
		return errors.New("container has runAsNonRoot and image will run as root (container: " + c.Name + ")")
	}
	return nil
}
