package memory

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

const hostIP = "198.18.0.1"

func itoa(n int32) string { return strconv.Itoa(int(n)) }

func (i *instance) waitingReason() string {
	if len(i.inits) > 0 && !i.initialized {
		return "PodInitializing"
	}
	return "ContainerCreating"
}

// status is the whole status now. It is called under mu.
func (i *instance) status() cis.Status {
	st := cis.Status{
		Phase: i.phase, Reason: i.reason, Message: i.message,
		Node: i.world.options.Node, Region: i.world.options.Region,
		Incarnation: i.incarnation, StartedAt: i.startedAt, EndedAt: i.endedAt, Initialized: i.initialized,
	}
	if i.ip != "" {
		st.SandboxClass, st.Runtime, st.Size = i.class, "memory", i.size
		st.IPs, st.HostIP = []string{i.ip}, hostIP
	}
	st.InitContainers = statuses(i.inits)
	st.Containers = statuses(i.mains)
	st.Ready = i.phase == cis.Running
	for _, c := range i.mains {
		st.Ready = st.Ready && c.ready()
	}
	for _, c := range i.inits {
		st.Ready = st.Ready && (!c.sidecar || c.ready())
	}
	return st
}

func statuses(list []*container) []corev1.ContainerStatus {
	if len(list) == 0 {
		return nil
	}
	out := make([]corev1.ContainerStatus, len(list))
	for n, c := range list {
		out[n] = c.status()
	}
	return out
}
