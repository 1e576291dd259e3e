// Package podspec turns a Kubernetes pod into an instance's spec: environment, files, tokens, DNS, pull credentials and
// service variables are resolved to plain values, so that what runs the instance needs to know nothing of Kubernetes.
//
// What cannot be run as asked is refused with the name of the field; nothing is dropped in silence. The package holds no
// state, starts nothing and reaches the outside only through Objects. Pods' lives are package provider's.
package podspec

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// Objects gives the Kubernetes objects that pods refer to. A missing object is an error of class problem.ErrNotFound.
// Answers are shared and never changed by the caller. Safe for concurrent use.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	// Services lists a namespace's services.
	Services(ctx context.Context, namespace string) ([]*corev1.Service, error)
	// Token gives a token of the pod's service account that is bound to the pod.
	Token(ctx context.Context, pod *corev1.Pod, audience string, expirationSeconds int64) (Token, error)
}

// Token is a service-account token.
type Token struct {
	Value string
	// RefreshAt is when a newer one should take its place.
	RefreshAt time.Time
}

// Settings are the node's part of a spec.
type Settings struct {
	// Node is the virtual node's name, kept in the spec's Source.
	Node string
	// ClusterDNS and ClusterDomain make the resolver of dnsPolicy ClusterFirst.
	ClusterDNS    []string
	ClusterDomain string
	// HostDNS is the host's resolver configuration: its search domains end every ClusterFirst list, and dnsConfig is
	// laid over it for dnsPolicy Default.
	HostDNS cis.DNS
	// RuntimeClasses maps spec.runtimeClassName to a sandbox class; other names are refused.
	RuntimeClasses map[string]cis.SandboxClass
	// Allocatable stands in for a limit that a resourceFieldRef asks for and the container does not have.
	Allocatable corev1.ResourceList
}

// DefaultRuntimeClasses maps the sandbox classes' own names, and Kata's usual ones.
func DefaultRuntimeClasses() map[string]cis.SandboxClass {
	return map[string]cis.SandboxClass{
		"kata": cis.Kata, "kata-qemu": cis.Kata, "gvisor": cis.GVisor, "runsc": cis.GVisor, "runc": cis.Runc,
	}
}

// Builder builds specs. Safe for concurrent use.
type Builder struct {
	set   Settings
	objs  Objects
	rules table
}

// New makes a builder.
func New(set Settings, objs Objects) *Builder {
	if set.RuntimeClasses == nil {
		set.RuntimeClasses = DefaultRuntimeClasses()
	}
	if set.ClusterDomain == "" {
		set.ClusterDomain = "cluster.local"
	}
	return &Builder{set: set, objs: objs, rules: rules()}
}

// Result is a pod's spec with what its reader should know.
type Result struct {
	Spec cis.Spec
	// Notices are for the pod's events.
	Notices []Notice
	// RefreshAt is when the first token of a volume wants refreshing; zero when there is none.
	RefreshAt time.Time
}

// Build resolves a pod. The error is a *RefusedError when the pod can never run here as it is, a *MissingError when
// something that it refers to is not there (yet), and any other when looking something up failed.
func (b *Builder) Build(ctx context.Context, pod *corev1.Pod) (*Result, error) {
	refused := b.rules.check(pod)
	class, bad := b.sandbox(pod)
	refused = append(refused, bad...)
	if len(refused) > 0 {
		return nil, &RefusedError{Fields: refused}
	}
	out := &Result{}
	spec := &out.Spec
	*spec = cis.Spec{
		Name:            pod.Name,
		Labels:          maps.Clone(pod.Labels),
		Sandbox:         class,
		RestartPolicy:   pod.Spec.RestartPolicy,
		HostAliases:     pod.Spec.HostAliases,
		GraceSeconds:    pod.Spec.TerminationGracePeriodSeconds,
		DeadlineSeconds: pod.Spec.ActiveDeadlineSeconds,
		SecurityContext: pod.Spec.SecurityContext.DeepCopy(),
		Source:          cis.Source{Node: b.set.Node, Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)},
	}
	if pod.Spec.ShareProcessNamespace != nil {
		spec.ShareProcessNamespace = *pod.Spec.ShareProcessNamespace
	}
	var err error
	if spec.Hostname, spec.Domain, err = b.hostname(pod); err != nil {
		return nil, err
	}
	if spec.DNS, err = b.dns(pod, out); err != nil {
		return nil, err
	}
	if spec.Volumes, out.RefreshAt, err = b.volumes(ctx, pod); err != nil {
		return nil, err
	}
	services, err := b.serviceEnv(ctx, pod)
	if err != nil {
		return nil, err
	}
	if spec.InitContainers, err = b.containers(ctx, pod, "initContainers", pod.Spec.InitContainers, services, out); err != nil {
		return nil, err
	}
	if spec.Containers, err = b.containers(ctx, pod, "containers", pod.Spec.Containers, services, out); err != nil {
		return nil, err
	}
	if spec.RegistryAuth, err = b.registryAuth(ctx, pod, out); err != nil {
		return nil, err
	}
	return out, nil
}

// sandbox gives the sandbox class that the pod asks for, by annotation or by runtime class.
func (b *Builder) sandbox(pod *corev1.Pod) (cis.SandboxClass, []Field) {
	var class cis.SandboxClass
	if name := pod.Spec.RuntimeClassName; name != nil && *name != "" {
		var ok bool
		if class, ok = b.set.RuntimeClasses[*name]; !ok {
			return "", []Field{{Path: "spec.runtimeClassName", Why: fmt.Sprintf("%q is no sandbox class of this node", *name)}}
		}
	}
	text, ok := pod.Annotations[cis.AnnotationSandbox]
	if !ok {
		return class, nil
	}
	path := "metadata.annotations[" + cis.AnnotationSandbox + "]"
	asked := cis.SandboxClass(text)
	switch asked {
	case cis.Kata, cis.GVisor, cis.Runc:
	default:
		return "", []Field{{Path: path, Why: fmt.Sprintf("must be kata, gvisor or runc, not %q", cut(text, 40))}}
	}
	if class != "" && class != asked {
		return "", []Field{{Path: path, Why: fmt.Sprintf("asks for %s, but spec.runtimeClassName for %s", asked, class)}}
	}
	return asked, nil
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
