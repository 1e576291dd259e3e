package cri

import (
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/sandbox"
)

// podLimits are the limits of the whole instance: the sum of the containers' limits where each has one, and never more
// than the size that is paid for; the sandbox's overhead comes on top.
func podLimits(s *cis.Spec, size billing.Size, class cis.SandboxClass, pids int64) cgroupLimits {
	l := cgroupLimits{milliCPU: size.MilliCPU, memoryBytes: size.MemoryMiB << 20, pids: pids}
	if n, ok := sumLimits(s, corev1.ResourceMemory); ok && (l.memoryBytes == 0 || n < l.memoryBytes) {
		l.memoryBytes = n
	}
	if n, ok := sumLimits(s, corev1.ResourceCPU); ok && (l.milliCPU == 0 || n < l.milliCPU) {
		l.milliCPU = n
	}
	over := sandbox.OverheadOf(class, size)
	if l.memoryBytes > 0 {
		l.memoryBytes += over.MemoryMiB << 20
	}
	if l.milliCPU > 0 {
		l.milliCPU += over.MilliCPU
	}
	return l
}

// sumLimits is the most that the instance can use at one time by its containers' limits (CPU in thousandths); false
// when a container has none. Containers run together with all sidecars, an init container with the sidecars before it.
func sumLimits(s *cis.Spec, name corev1.ResourceName) (int64, bool) {
	limit := func(c *cis.Container) (int64, bool) {
		q, ok := c.Resources.Limits[name]
		if name == corev1.ResourceCPU {
			return q.MilliValue(), ok && q.Sign() > 0
		}
		return q.Value(), ok && q.Sign() > 0
	}
	var sidecars, most int64
	for i := range s.InitContainers {
		c := &s.InitContainers[i]
		n, ok := limit(c)
		if !ok {
			return 0, false
		}
		if c.Sidecar() {
			sidecars += n
			most = max(most, sidecars)
		} else {
			most = max(most, sidecars+n)
		}
	}
	sum := sidecars
	for i := range s.Containers {
		n, ok := limit(&s.Containers[i])
		if !ok {
			return 0, false
		}
		sum += n
	}
	return max(most, sum), true
}

// shares are cgroup v1 CPU shares for thousandths of a CPU, as kubelet; containerd converts them for v2.
func shares(milliCPU int64) int64 {
	if milliCPU == 0 {
		return 2
	}
	return min(max(2, milliCPU*1024/1000), 262144)
}

// containerResources maps requests and limits as kubelet does.
func containerResources(s *cis.Spec, c *cis.Container, nodeMemory int64) *rt.LinuxContainerResources {
	cpuLimit, hasCPU := c.Resources.Limits[corev1.ResourceCPU]
	cpuRequest, hasRequest := c.Resources.Requests[corev1.ResourceCPU]
	if !hasRequest && hasCPU {
		cpuRequest = cpuLimit
	}
	r := &rt.LinuxContainerResources{CpuShares: shares(cpuRequest.MilliValue()), OomScoreAdj: oomScoreAdj(s, c, nodeMemory)}
	if hasCPU && cpuLimit.Sign() > 0 {
		r.CpuPeriod = cpuPeriod
		r.CpuQuota = max(1000, cpuLimit.MilliValue()*cpuPeriod/1000)
	}
	if m, ok := c.Resources.Limits[corev1.ResourceMemory]; ok && m.Sign() > 0 {
		r.MemoryLimitInBytes = m.Value()
	}
	return r
}

// oomScoreAdj says which containers the kernel kills first when the node itself runs out of memory: those of
// instances without requests, last those that have all they may use reserved.
func oomScoreAdj(s *cis.Spec, c *cis.Container, nodeMemory int64) int64 {
	guaranteed, bestEffort := true, true
	for _, list := range [][]cis.Container{s.InitContainers, s.Containers} {
		for i := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				lim, hasLimit := list[i].Resources.Limits[name]
				req, hasRequest := list[i].Resources.Requests[name]
				if hasLimit || hasRequest {
					bestEffort = false
				}
				if !hasLimit || lim.Sign() <= 0 || hasRequest && req.Cmp(lim) != 0 {
					guaranteed = false
				}
			}
		}
	}
	switch {
	case bestEffort:
		return 1000
	case guaranteed:
		return -997
	}
	req, ok := c.Resources.Requests[corev1.ResourceMemory]
	if !ok {
		req = c.Resources.Limits[corev1.ResourceMemory]
	}
	if nodeMemory <= 0 {
		return 999
	}
	return min(max(3, 1000-1000*req.Value()/nodeMemory), 999)
}
