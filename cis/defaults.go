package cis

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
)

// DefaultGraceSeconds is the termination grace of a spec that names none.
const DefaultGraceSeconds = 30

// Defaulted is a copy of the spec with every default written out, core/v1's where it has one: restart policy, grace,
// hostname, pull policy, termination message, protocols, probe times, file modes, requests from limits. The copy
// shares nothing that it changed; it is idempotent, and the size of the copy is the size of the spec.
func (s *Spec) Defaulted() Spec {
	out := *s
	out.RestartPolicy = or(s.RestartPolicy, corev1.RestartPolicyAlways)
	if s.GraceSeconds == nil {
		grace := int64(DefaultGraceSeconds)
		out.GraceSeconds = &grace
	}
	if s.Hostname == "" {
		out.Hostname = hostname(s.Name)
	}
	out.InitContainers = defaultContainers(s.InitContainers)
	out.Containers = defaultContainers(s.Containers)
	out.Volumes = slices.Clone(s.Volumes)
	for i := range out.Volumes {
		files := out.Volumes[i].Files
		if files == nil {
			continue
		}
		v := FilesVolume{Files: slices.Clone(files.Files), Secret: files.Secret}
		for j := range v.Files {
			v.Files[j].Mode = or(v.Files[j].Mode, 0o644)
		}
		out.Volumes[i].Files = &v
	}
	return out
}

// hostname makes a DNS label of an instance's name.
func hostname(name string) string {
	return strings.TrimRight(strings.ReplaceAll(name[:min(len(name), 63)], ".", "-"), "-")
}

func or[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}

func defaultContainers(list []Container) []Container {
	out := slices.Clone(list)
	for i := range out {
		c := &out[i]
		c.ImagePullPolicy = or(c.ImagePullPolicy, defaultPullPolicy(c.Image))
		c.TerminationMessagePath = or(c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
		c.TerminationMessagePolicy = or(c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
		c.Ports = slices.Clone(c.Ports)
		for j := range c.Ports {
			c.Ports[j].Protocol = or(c.Ports[j].Protocol, corev1.ProtocolTCP)
		}
		c.Resources = *c.Resources.DeepCopy()
		for name, limit := range c.Resources.Limits {
			if _, has := c.Resources.Requests[name]; has {
				continue
			}
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = limit.DeepCopy()
		}
		c.StartupProbe = defaultProbe(c.StartupProbe)
		c.ReadinessProbe = defaultProbe(c.ReadinessProbe)
		c.LivenessProbe = defaultProbe(c.LivenessProbe)
		if c.Lifecycle != nil {
			c.Lifecycle = c.Lifecycle.DeepCopy()
			for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
				if hook != nil {
					defaultHTTPGet(hook.HTTPGet)
				}
			}
		}
	}
	return out
}

// defaultPullPolicy is core/v1's: Always for the tag latest, written or meant, IfNotPresent for everything else.
func defaultPullPolicy(image string) corev1.PullPolicy {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return corev1.PullIfNotPresent
	}
	if tagged, ok := named.(reference.Tagged); ok && tagged.Tag() == "latest" || reference.IsNameOnly(named) {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func defaultProbe(p *corev1.Probe) *corev1.Probe {
	if p == nil {
		return nil
	}
	p = p.DeepCopy()
	p.TimeoutSeconds = or(p.TimeoutSeconds, 1)
	p.PeriodSeconds = or(p.PeriodSeconds, 10)
	p.SuccessThreshold = or(p.SuccessThreshold, 1)
	p.FailureThreshold = or(p.FailureThreshold, 3)
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil && p.GRPC.Service == nil {
		p.GRPC.Service = new(string)
	}
	return p
}

func defaultHTTPGet(h *corev1.HTTPGetAction) {
	if h != nil {
		h.Path = or(h.Path, "/")
		h.Scheme = or(h.Scheme, corev1.URISchemeHTTP)
	}
}

// Redacted is a copy of the spec without its secrets: values of secret variables, contents of secret files, passwords
// of registries. It is what leaves the service in answers and logs. The copy shares everything that it did not change.
func (s *Spec) Redacted() Spec {
	out := *s
	out.InitContainers = redactContainers(s.InitContainers)
	out.Containers = redactContainers(s.Containers)
	out.Volumes = slices.Clone(s.Volumes)
	for i := range out.Volumes {
		files := out.Volumes[i].Files
		if files == nil || !files.Secret {
			continue
		}
		v := FilesVolume{Files: slices.Clone(files.Files), Secret: true}
		for j := range v.Files {
			v.Files[j].Data = nil
		}
		out.Volumes[i].Files = &v
	}
	out.RegistryAuth = slices.Clone(s.RegistryAuth)
	for i := range out.RegistryAuth {
		out.RegistryAuth[i].Password = ""
	}
	return out
}

func redactContainers(list []Container) []Container {
	out := slices.Clone(list)
	for i := range out {
		if !slices.ContainsFunc(out[i].Env, func(v EnvVar) bool { return v.Secret }) {
			continue
		}
		out[i].Env = slices.Clone(out[i].Env)
		for j := range out[i].Env {
			if v := &out[i].Env[j]; v.Secret {
				v.Value = ""
			}
		}
	}
	return out
}
