// Package cis is the contract of the container instance service: what an instance is, how it is asked for, what its
// status says.
//
// It holds types, their validation and pure rules, and does no I/O. cis/control keeps instances, cis/engine runs them,
// cis/server and cis/client are the two ends of the HTTP API.
package cis

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/billing"
)

// SandboxClass is how an instance is isolated.
type SandboxClass string

// The sandbox classes, strongest first.
const (
	Kata   SandboxClass = "kata"
	GVisor SandboxClass = "gvisor"
	Runc   SandboxClass = "runc"
)

// Annotations that a pod may carry, and that the platform writes back.
const (
	AnnotationSandbox  = "cis.cumulet.io/sandbox"
	AnnotationInstance = "cis.cumulet.io/instance"
	AnnotationSize     = "cis.cumulet.io/size"
)

// GuestLog is the name by which the log of a virtual machine's own kernel is asked for, as if it were a container's; no
// container can have it.
const GuestLog = "_kernel"

// Instance is one pod-shaped unit of work with its own sandbox.
type Instance struct {
	// ID is given by the service: "i-" and 20 characters of [0-9a-v].
	ID string `json:"id"`
	// Org owns and pays.
	Org string `json:"org"`
	// Key is the caller's name for this create; a second create with the same key in the org gives the same instance.
	Key string `json:"key"`
	// CreatedAt is when the record was made.
	CreatedAt time.Time `json:"createdAt"`
	// Version grows with every change of the record, over all instances of the service.
	Version int64 `json:"version"`
	// Spec is what was asked for. In an answer of the API its secret values are empty (Spec.Redacted).
	Spec Spec `json:"spec,omitzero"`
	// Desired is what the caller wants now.
	Desired Desired `json:"desired"`
	// Status is what the engine last reported.
	Status Status `json:"status"`
}

// Desired is the wanted state of an instance. Once Stop is set it is never unset.
type Desired struct {
	// Stop asks for a graceful end.
	Stop bool `json:"stop"`
	// GraceSeconds is how long the containers get between TERM and KILL; at least 0. nil: the spec's.
	GraceSeconds *int64 `json:"graceSeconds,omitempty"`
	// StopAt is when the stop was asked for.
	StopAt time.Time `json:"stopAt,omitzero"`
}

// Spec is what an instance is made of. All names that a pod would resolve through Kubernetes are resolved already:
// environment, files, tokens, DNS.
type Spec struct {
	// Name is for people: a DNS subdomain, not unique.
	Name string `json:"name"`
	// Labels are the caller's own, for listing. They decide nothing.
	Labels map[string]string `json:"labels,omitempty"`
	// Sandbox is the class asked for; "" means the strongest that the engine's host supports.
	Sandbox SandboxClass `json:"sandbox,omitempty"`
	// InitContainers run in order before Containers; one with RestartPolicy Always is a sidecar, that keeps running.
	InitContainers []Container `json:"initContainers,omitempty"`
	// Containers is 1 to 50 containers.
	Containers []Container `json:"containers"`
	// RestartPolicy is Always (default), OnFailure or Never.
	RestartPolicy corev1.RestartPolicy `json:"restartPolicy,omitempty"`
	// Volumes are what Mounts name.
	Volumes []Volume `json:"volumes,omitempty"`
	// Hostname is the sandbox's, a DNS name of at most 64 characters; default the name, cut to 63. Domain, when set, makes the FQDN.
	Hostname string `json:"hostname,omitempty"`
	Domain   string `json:"domain,omitempty"`
	// DNS is the resolver configuration; nil means the host's.
	DNS *DNS `json:"dns,omitempty"`
	// HostAliases are lines of /etc/hosts.
	HostAliases []corev1.HostAlias `json:"hostAliases,omitempty"`
	// GraceSeconds is the termination grace, default 30.
	GraceSeconds *int64 `json:"graceSeconds,omitempty"`
	// DeadlineSeconds ends the instance as failed (DeadlineExceeded) so long after its start; nil means never.
	DeadlineSeconds *int64 `json:"deadlineSeconds,omitempty"`
	// SecurityContext is the pod's.
	SecurityContext *corev1.PodSecurityContext `json:"securityContext,omitempty"`
	// ShareProcessNamespace gives all containers one process namespace.
	ShareProcessNamespace bool `json:"shareProcessNamespace,omitempty"`
	// RegistryAuth are credentials to pull images with, tried by longest matching server prefix.
	RegistryAuth []RegistryAuth `json:"registryAuth,omitempty"`
	// Source says where the spec came from; for people and for the provider to find its own.
	Source Source `json:"source,omitzero"`
}

// Source names the Kubernetes object that an instance was made for; zero when there is none.
type Source struct {
	Node      string `json:"node,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Container is one container of an instance. Fields mean what the fields of the same name mean in core/v1.
type Container struct {
	Name            string                      `json:"name"`
	Image           string                      `json:"image"`
	ImagePullPolicy corev1.PullPolicy           `json:"imagePullPolicy,omitempty"`
	Command         []string                    `json:"command,omitempty"`
	Args            []string                    `json:"args,omitempty"`
	WorkingDir      string                      `json:"workingDir,omitempty"`
	Env             []EnvVar                    `json:"env,omitempty"`
	Ports           []corev1.ContainerPort      `json:"ports,omitempty"`
	Resources       corev1.ResourceRequirements `json:"resources,omitzero"`
	Mounts          []Mount                     `json:"mounts,omitempty"`

	StartupProbe    *corev1.Probe           `json:"startupProbe,omitempty"`
	ReadinessProbe  *corev1.Probe           `json:"readinessProbe,omitempty"`
	LivenessProbe   *corev1.Probe           `json:"livenessProbe,omitempty"`
	Lifecycle       *corev1.Lifecycle       `json:"lifecycle,omitempty"`
	SecurityContext *corev1.SecurityContext `json:"securityContext,omitempty"`

	// RestartPolicy is Always for a sidecar among the init containers, else nil.
	RestartPolicy *corev1.ContainerRestartPolicy `json:"restartPolicy,omitempty"`

	TerminationMessagePath   string                          `json:"terminationMessagePath,omitempty"`
	TerminationMessagePolicy corev1.TerminationMessagePolicy `json:"terminationMessagePolicy,omitempty"`

	TTY       bool `json:"tty,omitempty"`
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// EnvVar is one environment variable. Exactly one of Value and Field is used.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
	// Expand asks for $(NAME) in Value to be replaced by variables before it in the list, as core/v1 has it.
	Expand bool `json:"expand,omitempty"`
	// Field is a value known only when the sandbox is up: status.podIP, status.podIPs, status.hostIP, status.hostIPs.
	Field string `json:"field,omitempty"`
	// Secret keeps the value out of every answer.
	Secret bool `json:"secret,omitempty"`
}

// Mount puts a volume, or a part of it, into a container.
type Mount struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	SubPath  string `json:"subPath,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Volume is one volume. Exactly one of EmptyDir and Files is set.
type Volume struct {
	Name     string       `json:"name"`
	EmptyDir *EmptyDir    `json:"emptyDir,omitempty"`
	Files    *FilesVolume `json:"files,omitempty"`
}

// EmptyDir is scratch space that lives as long as the instance.
type EmptyDir struct {
	// Memory keeps it in memory (tmpfs) and counts it as the instance's memory.
	Memory bool `json:"memory,omitempty"`
	// SizeLimitBytes bounds it; 0 means the instance's ephemeral storage.
	SizeLimitBytes int64 `json:"sizeLimitBytes,omitempty"`
}

// FilesVolume is a set of files given by the caller: ConfigMap, Secret, downward API, projected tokens. It can be
// replaced as a whole while the instance runs; readers see all old or all new files.
type FilesVolume struct {
	Files []File `json:"files"`
	// Secret keeps the contents out of every answer.
	Secret bool `json:"secret,omitempty"`
}

// File is one file of a FilesVolume.
type File struct {
	// Path is relative, clean, without "..".
	Path string `json:"path"`
	// Mode is the permission bits, default 0644.
	Mode int32 `json:"mode,omitempty"`
	// Data is at most 3 MiB over all files of the volume.
	Data []byte `json:"data"`
}

// DNS is a resolver configuration.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// RegistryAuth is a credential for one registry, or one path of it.
type RegistryAuth struct {
	// Server is "host[:port][/path]".
	Server   string `json:"server"`
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Phase is the coarse state of an instance.
type Phase string

// The phases. Succeeded and Failed are final; Rejected is final too and was never billed.
const (
	Pending   Phase = "Pending"
	Starting  Phase = "Starting"
	Running   Phase = "Running"
	Stopping  Phase = "Stopping"
	Succeeded Phase = "Succeeded"
	Failed    Phase = "Failed"
	Rejected  Phase = "Rejected"
)

// Final tells whether nothing follows.
func (p Phase) Final() bool { return p == Succeeded || p == Failed || p == Rejected }

// Status is what an engine reports of an instance, always whole.
type Status struct {
	Phase Phase `json:"phase"`
	// Reason is one CamelCase word, Message a sentence for the user.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// SandboxClass is what the instance really runs in, Runtime the containerd handler.
	SandboxClass SandboxClass `json:"sandboxClass,omitempty"`
	Runtime      string       `json:"runtime,omitempty"`
	// Size is what is billed, frozen at start.
	Size billing.Size `json:"size,omitzero"`
	// IPs are the sandbox's, the first is the main one; HostIP the node's.
	IPs    []string `json:"ips,omitempty"`
	HostIP string   `json:"hostIP,omitempty"`
	// Node and Region say where it runs.
	Node   string `json:"node,omitempty"`
	Region string `json:"region,omitempty"`
	// Incarnation counts the sandboxes of the instance's life, from 1; 0 before the first.
	Incarnation int64 `json:"incarnation,omitempty"`
	// StartedAt is when the resources were held (the meter's start), EndedAt when the instance ended.
	StartedAt time.Time `json:"startedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	// InitContainers and Containers have one entry for each container of the spec, in its order.
	InitContainers []corev1.ContainerStatus `json:"initContainers,omitempty"`
	Containers     []corev1.ContainerStatus `json:"containers,omitempty"`
	// Initialized and Ready are the pod conditions of the same meaning.
	Initialized bool `json:"initialized,omitempty"`
	Ready       bool `json:"ready,omitempty"`
}

// EventType is how bad an event is.
type EventType string

// The event types.
const (
	Normal  EventType = "Normal"
	Warning EventType = "Warning"
)

// Event is something that happened to an instance, for people. Equal events (type, reason, container, message) are
// counted, not repeated.
type Event struct {
	Instance  string    `json:"instance"`
	Type      EventType `json:"type"`
	Reason    string    `json:"reason"`
	Message   string    `json:"message"`
	Container string    `json:"container,omitempty"`
	// First and Last are when it happened, Count how often.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int64     `json:"count"`
}
