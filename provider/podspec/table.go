package podspec

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

func take() rule                  { return rule{} }
func walk() rule                  { return rule{walk: true} }
func no(why string) rule          { return rule{why: why} }
func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// only accepts the named values of a string, or of a pointer to one.
func only(values ...string) rule {
	return rule{check: func(_ string, v reflect.Value) string {
		s := reflect.Indirect(v).String()
		if slices.Contains(values, s) {
			return ""
		}
		return fmt.Sprintf("%q is not supported, only %s", s, strings.Join(values, ", "))
	}}
}

// onlyFalse and onlyTrue accept one value of a bool, or of a pointer to one.
func onlyFalse(why string) rule { return onlyBool(false, why) }
func onlyTrue(why string) rule  { return onlyBool(true, why) }

func onlyBool(want bool, why string) rule {
	return rule{check: func(_ string, v reflect.Value) string {
		if reflect.Indirect(v).Bool() == want {
			return ""
		}
		return why
	}}
}

// all gives every named field the same rule.
func all(r rule, names ...string) map[string]rule {
	m := make(map[string]rule, len(names))
	for _, n := range names {
		m[n] = r
	}
	return m
}

func join(ms ...map[string]rule) map[string]rule {
	out := map[string]rule{}
	for _, m := range ms {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

const (
	ownSandbox = "an instance has its own sandbox and cannot share the host's"
	noDisk     = "this kind of volume is not supported; use emptyDir, configMap, secret, downwardAPI or projected"
	noOwner    = "file owners are not supported; use securityContext.fsGroup"
	noWindows  = "an instance runs Linux"
	noDevices  = "devices are not supported"
	noSELinux  = "SELinux labels are not supported"
)

// rules is what of the pod API an instance honours. The test of this table fails when a type gains a field that it does
// not have.
func rules() table {
	return table{
		typeOf[corev1.PodSpec](): join(
			// The scheduler's and the API server's, with no meaning on the node.
			all(take(), "NodeSelector", "NodeName", "Affinity", "SchedulerName", "Tolerations", "PriorityClassName", "Priority",
				"PreemptionPolicy", "TopologySpreadConstraints", "SchedulingGates", "ReadinessGates", "Overhead",
				"ServiceAccountName", "DeprecatedServiceAccount", "AutomountServiceAccountToken"),
			all(take(), "RestartPolicy", "TerminationGracePeriodSeconds", "ActiveDeadlineSeconds", "DNSPolicy", "ShareProcessNamespace",
				"Hostname", "Subdomain", "SetHostnameAsFQDN", "HostnameOverride", "RuntimeClassName", "EnableServiceLinks"),
			all(walk(), "Volumes", "InitContainers", "Containers", "SecurityContext", "ImagePullSecrets", "HostAliases", "DNSConfig", "OS"),
			all(onlyFalse(ownSandbox), "HostNetwork", "HostPID", "HostIPC"),
			map[string]rule{
				"HostUsers":           onlyTrue("user namespaces are not supported; the sandbox separates an instance from its host"),
				"EphemeralContainers": no("ephemeral containers are not supported"),
				"ResourceClaims":      no("resource claims are not supported"),
				"Resources":           no("resources of the pod as a whole are not supported; set them on its containers"),
				"SchedulingGroup":     no("scheduling groups are not supported"),
				"EvictionResponders":  no("eviction responders are not supported"),
			}),
		typeOf[corev1.Container](): join(
			all(take(), "Name", "Image", "Command", "Args", "WorkingDir", "TerminationMessagePath", "TerminationMessagePolicy",
				"ImagePullPolicy", "Stdin", "StdinOnce", "TTY",
				"ResizePolicy"), // only says how a resize would go; a resize itself is refused when it comes
			all(walk(), "Ports", "EnvFrom", "Env", "Resources", "VolumeMounts", "LivenessProbe", "ReadinessProbe", "StartupProbe",
				"Lifecycle", "SecurityContext"),
			map[string]rule{
				"RestartPolicy":      {check: sidecarOnly},
				"RestartPolicyRules": no("restart rules are not supported; use the pod's restartPolicy"),
				"VolumeDevices":      no(noDevices),
			}),
		typeOf[corev1.PodSecurityContext](): join(
			all(take(), "RunAsUser", "RunAsGroup", "RunAsNonRoot", "SupplementalGroups", "SupplementalGroupsPolicy", "FSGroup", "Sysctls",
				"FSGroupChangePolicy", "SeccompProfile", "AppArmorProfile"),
			map[string]rule{"SELinuxOptions": no(noSELinux), "SELinuxChangePolicy": no(noSELinux), "WindowsOptions": no(noWindows)}),
		typeOf[corev1.SecurityContext](): join(
			all(take(), "Capabilities", "Privileged", "RunAsUser", "RunAsGroup", "RunAsNonRoot", "ReadOnlyRootFilesystem",
				"AllowPrivilegeEscalation", "SeccompProfile", "AppArmorProfile"),
			map[string]rule{"SELinuxOptions": no(noSELinux), "WindowsOptions": no(noWindows), "ProcMount": only("Default")}),
		typeOf[corev1.ResourceRequirements](): {
			"Limits": {check: plainResources}, "Requests": {check: plainResources}, "Claims": no("resource claims are not supported"),
		},
		typeOf[corev1.ContainerPort](): join(all(take(), "Name", "ContainerPort", "Protocol"), map[string]rule{
			"HostPort": no("ports of the host are not supported; use a Service"), "HostIP": no("ports of the host are not supported; use a Service")}),
		typeOf[corev1.LocalObjectReference](): all(take(), "Name"),
		typeOf[corev1.HostAlias]():            all(take(), "IP", "Hostnames"),
		typeOf[corev1.PodDNSConfig]():         join(all(take(), "Nameservers", "Searches"), all(walk(), "Options")),
		typeOf[corev1.PodDNSConfigOption]():   all(take(), "Name", "Value"),
		typeOf[corev1.PodOS]():                {"Name": only("linux")},

		typeOf[corev1.EnvFromSource]():         join(all(take(), "Prefix"), all(walk(), "ConfigMapRef", "SecretRef")),
		typeOf[corev1.ConfigMapEnvSource]():    join(all(walk(), "LocalObjectReference"), all(take(), "Optional")),
		typeOf[corev1.SecretEnvSource]():       join(all(walk(), "LocalObjectReference"), all(take(), "Optional")),
		typeOf[corev1.EnvVar]():                join(all(take(), "Name", "Value"), all(walk(), "ValueFrom")),
		typeOf[corev1.EnvVarSource]():          join(all(walk(), "FieldRef", "ResourceFieldRef", "ConfigMapKeyRef", "SecretKeyRef"), map[string]rule{"FileKeyRef": no("variables from files are not supported")}),
		typeOf[corev1.ObjectFieldSelector]():   {"APIVersion": only("v1"), "FieldPath": take()},
		typeOf[corev1.ResourceFieldSelector](): all(take(), "ContainerName", "Resource", "Divisor"),
		typeOf[corev1.ConfigMapKeySelector]():  join(all(walk(), "LocalObjectReference"), all(take(), "Key", "Optional")),
		typeOf[corev1.SecretKeySelector]():     join(all(walk(), "LocalObjectReference"), all(take(), "Key", "Optional")),
		typeOf[corev1.VolumeMount](): join(all(take(), "Name", "ReadOnly", "MountPath", "SubPath", "SubPathExpr"), map[string]rule{
			"RecursiveReadOnly": only("Disabled", "IfPossible"),
			"MountPropagation":  only("None"),
			"BindMountOptions":  no("bind mount options are not supported"),
		}),
		typeOf[corev1.Probe]():            join(all(walk(), "ProbeHandler"), all(take(), "InitialDelaySeconds", "TimeoutSeconds", "PeriodSeconds", "SuccessThreshold", "FailureThreshold", "TerminationGracePeriodSeconds")),
		typeOf[corev1.ProbeHandler]():     all(walk(), "Exec", "HTTPGet", "TCPSocket", "GRPC"),
		typeOf[corev1.ExecAction]():       all(take(), "Command"),
		typeOf[corev1.HTTPGetAction]():    join(all(take(), "Path", "Port", "Host", "Scheme", "HTTPHeaders"), map[string]rule{"Protocol": no("the choice of an HTTP version is not supported")}),
		typeOf[corev1.TCPSocketAction]():  all(take(), "Port", "Host"),
		typeOf[corev1.GRPCAction]():       join(all(take(), "Port", "Service"), map[string]rule{"Mode": no("the choice of a gRPC mode is not supported")}),
		typeOf[corev1.SleepAction]():      all(take(), "Seconds"),
		typeOf[corev1.Lifecycle]():        join(all(walk(), "PostStart", "PreStop"), map[string]rule{"StopSignal": no("the choice of a stop signal is not supported; set it in the image")}),
		typeOf[corev1.LifecycleHandler](): join(all(walk(), "Exec", "HTTPGet", "Sleep"), map[string]rule{"TCPSocket": no("a hook cannot be a TCP connection; use exec, httpGet or sleep")}),

		typeOf[corev1.Volume]():       join(all(take(), "Name"), all(walk(), "VolumeSource")),
		typeOf[corev1.VolumeSource](): join(all(walk(), "EmptyDir", "Secret", "ConfigMap", "DownwardAPI", "Projected"), otherVolumes()),
		typeOf[corev1.EmptyDirVolumeSource](): {
			"Medium": only("Memory"), "SizeLimit": take(), "Mode": no("the mode of an emptyDir is not supported"),
		},
		typeOf[corev1.SecretVolumeSource]():            join(all(take(), "SecretName", "DefaultMode", "Optional"), all(walk(), "Items"), all(no(noOwner), "DefaultUser")),
		typeOf[corev1.ConfigMapVolumeSource]():         join(all(take(), "DefaultMode", "Optional"), all(walk(), "LocalObjectReference", "Items"), all(no(noOwner), "DefaultUser")),
		typeOf[corev1.DownwardAPIVolumeSource]():       join(all(take(), "DefaultMode"), all(walk(), "Items"), all(no(noOwner), "DefaultUser")),
		typeOf[corev1.DownwardAPIVolumeFile]():         join(all(take(), "Path", "Mode"), all(walk(), "FieldRef", "ResourceFieldRef"), all(no(noOwner), "User")),
		typeOf[corev1.ProjectedVolumeSource]():         join(all(take(), "DefaultMode"), all(walk(), "Sources"), all(no(noOwner), "DefaultUser")),
		typeOf[corev1.VolumeProjection]():              join(all(walk(), "Secret", "DownwardAPI", "ConfigMap", "ServiceAccountToken"), all(no("this kind of projection is not supported"), "ClusterTrustBundle", "PodCertificate")),
		typeOf[corev1.SecretProjection]():              join(all(take(), "Optional"), all(walk(), "LocalObjectReference", "Items")),
		typeOf[corev1.ConfigMapProjection]():           join(all(take(), "Optional"), all(walk(), "LocalObjectReference", "Items")),
		typeOf[corev1.DownwardAPIProjection]():         all(walk(), "Items"),
		typeOf[corev1.ServiceAccountTokenProjection](): join(all(take(), "Audience", "ExpirationSeconds", "Path"), all(no(noOwner), "User")),
		typeOf[corev1.KeyToPath]():                     join(all(take(), "Key", "Path", "Mode"), all(no(noOwner), "User")),
	}
}

// otherVolumes refuses the kinds of volume that are known and not supported.
func otherVolumes() map[string]rule {
	return all(no(noDisk), "HostPath", "GCEPersistentDisk", "AWSElasticBlockStore", "GitRepo", "NFS", "ISCSI", "Glusterfs",
		"PersistentVolumeClaim", "RBD", "FlexVolume", "Cinder", "CephFS", "Flocker", "FC", "AzureFile", "VsphereVolume", "Quobyte",
		"AzureDisk", "PhotonPersistentDisk", "PortworxVolume", "ScaleIO", "StorageOS", "CSI", "Ephemeral", "Image")
}

// sidecarOnly accepts a container's own restart policy for a sidecar only.
func sidecarOnly(path string, v reflect.Value) string {
	if strings.HasPrefix(path, "spec.initContainers[") && reflect.Indirect(v).String() == string(corev1.ContainerRestartPolicyAlways) {
		return ""
	}
	return "is supported only as Always of an init container (a sidecar)"
}

// plainResources accepts processors, memory and scratch space.
func plainResources(_ string, v reflect.Value) string {
	list, ok := v.Interface().(corev1.ResourceList)
	if !ok {
		return "is not a list of resources"
	}
	var bad []string
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		default:
			if !q.IsZero() {
				bad = append(bad, string(name))
			}
		}
	}
	if len(bad) == 0 {
		return ""
	}
	slices.Sort(bad)
	return strings.Join(bad, ", ") + ": only cpu, memory and ephemeral-storage are supported"
}
