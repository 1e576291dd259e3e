package cis

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// unsupported is the rule of a field of core/v1 that no engine carries out.
const unsupported = "is not supported by instances: leave it out"

// containerRules checks the containers of one spec.
type containerRules struct {
	errs    *fieldErrors
	spec    *Spec
	volumes map[string]*Volume
	names   map[string]bool
}

func (v *containerRules) validate(at string, c *Container, init bool) {
	e := v.errs
	e.label(at+".name", c.Name)
	if v.names[c.Name] {
		e.add(at+".name", "must be unique among the containers and init containers", c.Name)
	}
	v.names[c.Name] = true
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil || len(c.Image) > 1024 {
		e.add(at+".image", "must be an image reference: [host[:port]/]path[:tag][@digest]", c.Image)
	}
	one(e, at+".imagePullPolicy", c.ImagePullPolicy, "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	v.strings(at+".command", c.Command)
	v.strings(at+".args", c.Args)
	if c.WorkingDir != "" && !absolute(c.WorkingDir) {
		e.add(at+".workingDir", "must be an absolute path", c.WorkingDir)
	}
	v.env(at+".env", c.Env)
	v.ports(at+".ports", c.Ports)
	v.resources(at+".resources", &c.Resources)
	v.mounts(at+".mounts", c.Mounts)

	if init && !c.Sidecar() {
		for _, f := range []struct {
			name string
			set  bool
		}{{"startupProbe", c.StartupProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil},
			{"livenessProbe", c.LivenessProbe != nil}, {"lifecycle", c.Lifecycle != nil}} {
			if f.set {
				e.add(at+"."+f.name, "may be set only on a container or on an init container with restartPolicy Always", c.Name)
			}
		}
	} else {
		v.probe(at+".startupProbe", c.StartupProbe, c.Ports, 1)
		v.probe(at+".readinessProbe", c.ReadinessProbe, c.Ports, math.MaxInt32)
		v.probe(at+".livenessProbe", c.LivenessProbe, c.Ports, 1)
		if c.ReadinessProbe != nil && c.ReadinessProbe.TerminationGracePeriodSeconds != nil {
			e.add(at+".readinessProbe.terminationGracePeriodSeconds", "has no meaning on a readiness probe: leave it out", *c.ReadinessProbe.TerminationGracePeriodSeconds)
		}
		v.lifecycle(at+".lifecycle", c.Lifecycle, c.Ports)
	}
	if c.SecurityContext != nil {
		validateContainerSecurity(e, at+".securityContext", c.SecurityContext, v.spec.Sandbox)
	}
	switch {
	case c.RestartPolicy == nil:
	case !init:
		e.add(at+".restartPolicy", "may be set only on an init container", *c.RestartPolicy)
	default:
		one(e, at+".restartPolicy", *c.RestartPolicy, corev1.ContainerRestartPolicyAlways)
	}
	if c.TerminationMessagePath != "" && !absolute(c.TerminationMessagePath) {
		e.add(at+".terminationMessagePath", "must be an absolute path", c.TerminationMessagePath)
	}
	one(e, at+".terminationMessagePolicy", c.TerminationMessagePolicy, "", corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
}

// absolute tells whether p is an absolute path that stays where it says.
func absolute(p string) bool {
	return len(p) <= maxPath && strings.HasPrefix(p, "/") && !strings.ContainsRune(p, 0) &&
		!slices.Contains(strings.Split(p, "/"), "..")
}

func (v *containerRules) strings(at string, list []string) {
	v.errs.length(at, "arguments", len(list), 4096)
	for i, s := range list[:min(len(list), 4096)] {
		if len(s) > MaxStringBytes || strings.ContainsRune(s, 0) {
			v.errs.addSecret(fmt.Sprintf("%s[%d]", at, i), fmt.Sprintf("must be at most %d bytes without NUL", MaxStringBytes))
		}
	}
}

func (v *containerRules) env(at string, env []EnvVar) {
	e, total := v.errs, 0
	for i := range env {
		x := &env[i]
		if total += len(x.Name) + len(x.Value); total > MaxEnvBytes {
			e.addSecret(at, fmt.Sprintf("must hold at most %d bytes in all", MaxEnvBytes))
			return
		}
		at := fmt.Sprintf("%s[%d]", at, i)
		if len(validation.IsRelaxedEnvVarName(x.Name)) > 0 {
			e.add(at+".name", "must be printable ASCII without '='", x.Name)
		}
		if len(x.Name)+len(x.Value)+1 > MaxStringBytes || strings.ContainsRune(x.Value, 0) {
			e.addSecret(at+".value", fmt.Sprintf("must be, with its name, at most %d bytes without NUL", MaxStringBytes))
		}
		one(e, at+".field", x.Field, "", "status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs")
		if x.Field != "" && (x.Value != "" || x.Expand) {
			e.addSecret(at+".value", "must be empty and not expanded when field is set")
		}
	}
}

func (v *containerRules) ports(at string, ports []corev1.ContainerPort) {
	e, seen := v.errs, map[string]bool{}
	e.length(at, "ports", len(ports), 256)
	for i := range min(len(ports), 256) {
		p, at := &ports[i], fmt.Sprintf("%s[%d]", at, i)
		if p.Name != "" {
			if len(validation.IsValidPortName(p.Name)) > 0 {
				e.add(at+".name", "must be at most 15 lower-case letters, digits and '-', at least one a letter", p.Name)
			}
			if seen[p.Name] {
				e.add(at+".name", "must be unique in the container", p.Name)
			}
			seen[p.Name] = true
		}
		e.between(at+".containerPort", int64(p.ContainerPort), 1, 65535)
		one(e, at+".protocol", p.Protocol, "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		if p.HostPort != 0 {
			e.add(at+".hostPort", unsupported, p.HostPort)
		}
		if p.HostIP != "" {
			e.add(at+".hostIP", unsupported, p.HostIP)
		}
	}
}

func (v *containerRules) resources(at string, r *corev1.ResourceRequirements) {
	e := v.errs
	for _, l := range []struct {
		name string
		list corev1.ResourceList
	}{{"limits", r.Limits}, {"requests", r.Requests}} {
		for i, name := range slices.Sorted(maps.Keys(l.list)) {
			q, at := l.list[name], at+"."+l.name+"."+string(name)
			switch {
			case i == 16:
				e.addSecret(at, "is one resource too many")
			case i > 16:
			case name != corev1.ResourceCPU && name != corev1.ResourceMemory && name != corev1.ResourceEphemeralStorage:
				e.add(at, "is not a resource of instances: they have cpu, memory and ephemeral-storage", name)
			case tooLarge(q):
				e.addSecret(at, "must be at most 1e15")
			case q.Sign() < 0:
				e.add(at, "must not be negative", q.String())
			}
		}
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		request, limit := r.Requests[name], r.Limits[name]
		if tooLarge(request) || tooLarge(limit) {
			continue
		}
		if _, has := r.Limits[name]; has && request.Cmp(limit) > 0 && limit.Sign() >= 0 {
			e.add(at+".requests."+string(name), "must be at most the limit, "+limit.String(), request.String())
		}
	}
	if len(r.Claims) > 0 {
		e.add(at+".claims", unsupported, r.Claims[0].Name)
	}
}

func (v *containerRules) mounts(at string, mounts []Mount) {
	e, seen := v.errs, map[string]bool{}
	e.length(at, "mounts", len(mounts), 256)
	for i := range min(len(mounts), 256) {
		m, at := &mounts[i], fmt.Sprintf("%s[%d]", at, i)
		if v.volumes[m.Volume] == nil {
			e.add(at+".volume", "must be the name of one of the instance's volumes", m.Volume)
		}
		clean := path.Clean(m.Path)
		switch {
		case !absolute(m.Path) || strings.Contains(m.Path, ":"):
			e.add(at+".path", "must be an absolute path without ':' and '..'", m.Path)
		case clean == "/" || clean == "/proc" || clean == "/sys" || strings.HasPrefix(clean, "/proc/"):
			e.add(at+".path", "must not be the root, /proc or /sys", m.Path)
		case seen[clean]:
			e.add(at+".path", "must be unique in the container", m.Path)
		}
		seen[clean] = true
		if m.SubPath != "" && !cleanRelative(strings.TrimSuffix(m.SubPath, "/")) {
			e.add(at+".subPath", "must be a clean relative path without '..'", m.SubPath)
		}
	}
}

func (v *containerRules) probe(at string, p *corev1.Probe, ports []corev1.ContainerPort, maxSuccess int64) {
	if p == nil {
		return
	}
	e := v.errs
	handlers := 0
	if p.Exec != nil {
		handlers++
		v.exec(at+".exec", p.Exec)
	}
	if p.HTTPGet != nil {
		handlers++
		v.httpGet(at+".httpGet", p.HTTPGet, ports)
	}
	if p.TCPSocket != nil {
		handlers++
		v.port(at+".tcpSocket.port", p.TCPSocket.Port, ports)
		v.host(at+".tcpSocket.host", p.TCPSocket.Host)
	}
	if p.GRPC != nil {
		handlers++
		e.between(at+".grpc.port", int64(p.GRPC.Port), 1, 65535)
		if p.GRPC.Service != nil {
			e.length(at+".grpc.service", "bytes", len(*p.GRPC.Service), 1024)
		}
	}
	if handlers != 1 {
		e.add(at, "must have exactly one of exec, httpGet, tcpSocket and grpc", handlers)
	}
	for _, f := range []struct {
		name string
		n    int32
	}{{"initialDelaySeconds", p.InitialDelaySeconds}, {"timeoutSeconds", p.TimeoutSeconds}, {"periodSeconds", p.PeriodSeconds},
		{"failureThreshold", p.FailureThreshold}} {
		e.between(at+"."+f.name, int64(f.n), 0, math.MaxInt32)
	}
	e.between(at+".successThreshold", int64(p.SuccessThreshold), 0, maxSuccess)
	if g := p.TerminationGracePeriodSeconds; g != nil {
		e.between(at+".terminationGracePeriodSeconds", *g, 1, math.MaxInt32)
	}
}

func (v *containerRules) exec(at string, a *corev1.ExecAction) {
	if len(a.Command) == 0 {
		v.errs.add(at+".command", "must not be empty", 0)
	}
	v.strings(at+".command", a.Command)
}

func (v *containerRules) httpGet(at string, h *corev1.HTTPGetAction, ports []corev1.ContainerPort) {
	e := v.errs
	v.port(at+".port", h.Port, ports)
	v.host(at+".host", h.Host)
	if len(h.Path) > maxPath || strings.ContainsFunc(h.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		e.add(at+".path", "must be at most 4096 characters without control characters", h.Path)
	}
	one(e, at+".scheme", h.Scheme, "", corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	e.length(at+".httpHeaders", "headers", len(h.HTTPHeaders), 64)
	for i, x := range h.HTTPHeaders[:min(len(h.HTTPHeaders), 64)] {
		at := fmt.Sprintf("%s.httpHeaders[%d]", at, i)
		if len(validation.IsHTTPHeaderName(x.Name)) > 0 {
			e.add(at+".name", "must be an HTTP header name", x.Name)
		}
		if len(x.Value) > 8192 || strings.ContainsAny(x.Value, "\r\n\x00") {
			e.addSecret(at+".value", "must be at most 8192 bytes on one line")
		}
	}
}

// host refuses addresses that mean the prober's own machine, for an early answer: where a name leads, and what is the
// machine's or another instance's, the engine looks at when it connects.
func (v *containerRules) host(at, host string) {
	if host == "" {
		return
	}
	const rule = "must be an IP address or DNS name that is not loopback, link-local or unspecified; empty means the instance"
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && (addr.Unmap().IsLoopback() || addr.Unmap().IsLinkLocalUnicast() || addr.Unmap().IsUnspecified() || addr.IsMulticast() || addr.Zone() != ""),
		err != nil && len(validation.IsDNS1123Subdomain(strings.ToLower(host))) > 0,
		strings.EqualFold(host, "localhost"):
		v.errs.add(at, rule, host)
	}
}

func (v *containerRules) port(at string, p intstr.IntOrString, ports []corev1.ContainerPort) {
	if p.Type == intstr.Int {
		v.errs.between(at, int64(p.IntVal), 1, 65535)
		return
	}
	if p.StrVal == "" || !slices.ContainsFunc(ports, func(c corev1.ContainerPort) bool { return c.Name == p.StrVal }) {
		v.errs.add(at, "must be a number or the name of one of the container's ports", p.StrVal)
	}
}

func (v *containerRules) lifecycle(at string, l *corev1.Lifecycle, ports []corev1.ContainerPort) {
	if l == nil {
		return
	}
	if l.StopSignal != nil {
		v.errs.add(at+".stopSignal", unsupported, *l.StopSignal)
	}
	for _, h := range []struct {
		name string
		hook *corev1.LifecycleHandler
	}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
		if h.hook == nil {
			continue
		}
		at, handlers := at+"."+h.name, 0
		if h.hook.Exec != nil {
			handlers++
			v.exec(at+".exec", h.hook.Exec)
		}
		if h.hook.HTTPGet != nil {
			handlers++
			v.httpGet(at+".httpGet", h.hook.HTTPGet, ports)
		}
		if h.hook.Sleep != nil {
			handlers++
			v.errs.between(at+".sleep.seconds", h.hook.Sleep.Seconds, 0, math.MaxInt32)
		}
		if h.hook.TCPSocket != nil {
			v.errs.add(at+".tcpSocket", unsupported, h.hook.TCPSocket.Port.String())
		}
		if handlers != 1 {
			v.errs.add(at, "must have exactly one of exec, httpGet and sleep", handlers)
		}
	}
}
