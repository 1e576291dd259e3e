package provider

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"cumulet.io/cis"
)

// AnnotationSandboxClass on a pod says what its instance really runs in.
const AnnotationSandboxClass = "cis.cumulet.io/sandbox-class"

// Reasons of a pod's status that the provider gives by itself.
const (
	reasonUnsupported = "Unsupported"
	reasonRejected    = "Rejected"
	reasonLost        = "InstanceLost"
)

// annotations are what the platform writes on a pod.
func annotations(in *cis.Instance) map[string]string {
	all := map[string]string{cis.AnnotationInstance: in.ID}
	if in.Status.Size.Class != "" {
		all[cis.AnnotationSize] = in.Status.Size.Class
	}
	if in.Status.SandboxClass != "" {
		all[AnnotationSandboxClass] = string(in.Status.SandboxClass)
	}
	return all
}

// podStatus says what an instance's status is as a pod's. base is the status that the pod has: conditions that others
// write, and the times of conditions that have not changed, are kept from it.
func podStatus(pod *corev1.Pod, base *corev1.PodStatus, in *cis.Instance, now time.Time) corev1.PodStatus {
	st := in.Status
	out := *base.DeepCopy()
	out.ObservedGeneration = pod.Generation
	out.Phase = podPhase(st)
	out.Reason, out.Message = st.Reason, st.Message
	if !st.Phase.Final() && out.Phase != corev1.PodPending {
		out.Reason, out.Message = "", ""
	}
	start := st.StartedAt
	if start.IsZero() {
		start = in.CreatedAt
	}
	if out.StartTime == nil && !start.IsZero() {
		t := metav1.NewTime(start).Rfc3339Copy()
		out.StartTime = &t
	}
	if st.HostIP != "" {
		out.HostIP, out.HostIPs = st.HostIP, []corev1.HostIP{{IP: st.HostIP}}
	}
	if len(st.IPs) > 0 {
		out.PodIP, out.PodIPs = st.IPs[0], nil
		for _, ip := range st.IPs {
			out.PodIPs = append(out.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	waiting := "ContainerCreating"
	if len(pod.Spec.InitContainers) > 0 && !st.Initialized {
		waiting = "PodInitializing"
	}
	out.InitContainerStatuses = containerStatuses(pod.Spec.InitContainers, st.InitContainers, base.InitContainerStatuses, waiting, st)
	out.ContainerStatuses = containerStatuses(pod.Spec.Containers, st.Containers, base.ContainerStatuses, waiting, st)

	final := st.Phase.Final()
	ready := corev1.ConditionFalse
	if st.Ready && !final {
		ready = corev1.ConditionTrue
	}
	conditions{status: &out, now: now, generation: pod.Generation}.set(pod, st, final, ready)
	return out
}

// podPhase is the phase of a pod: Running from when all its containers have been made until they have ended.
func podPhase(st cis.Status) corev1.PodPhase {
	switch st.Phase {
	case cis.Succeeded:
		return corev1.PodSucceeded
	case cis.Failed, cis.Rejected:
		return corev1.PodFailed
	case cis.Running:
		return corev1.PodRunning
	case cis.Stopping:
		for _, c := range st.Containers {
			if c.State.Running != nil || c.State.Terminated != nil {
				return corev1.PodRunning
			}
		}
	case cis.Pending, cis.Starting:
	}
	return corev1.PodPending
}

// containerStatuses gives one status for each container of the spec. What the engine has not told yet is waiting; what it
// never told of an instance that has ended is ended with it.
func containerStatuses(spec []corev1.Container, told, before []corev1.ContainerStatus, reason string, st cis.Status) []corev1.ContainerStatus {
	if len(spec) == 0 {
		return nil
	}
	all := make([]corev1.ContainerStatus, 0, len(spec))
	for _, c := range spec {
		i := slices.IndexFunc(told, func(s corev1.ContainerStatus) bool { return s.Name == c.Name })
		if i >= 0 {
			s := *told[i].DeepCopy()
			wholeSeconds(&s.State)
			wholeSeconds(&s.LastTerminationState)
			if s.Image == "" {
				s.Image = c.Image
			}
			all = append(all, s)
			continue
		}
		s := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Started: new(bool)}
		if i := slices.IndexFunc(before, func(s corev1.ContainerStatus) bool { return s.Name == c.Name }); i >= 0 && st.Phase.Final() {
			s = *before[i].DeepCopy()
		}
		s.Ready = false
		if st.Phase.Final() && s.State.Terminated == nil && s.State.Running != nil {
			s.State = ended(s.State.Running.StartedAt, metav1.NewTime(st.EndedAt).Rfc3339Copy(), s.ContainerID)
		} else if s.State.Terminated == nil {
			s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
		}
		all = append(all, s)
	}
	return all
}

// ended is the state of a container whose end nobody saw, as the kubelet gives it.
func ended(started, finished metav1.Time, id string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: 137, Reason: "ContainerStatusUnknown", Message: "The container could not be located when the pod was terminated",
		StartedAt: started, FinishedAt: finished, ContainerID: id,
	}}
}

// wholeSeconds brings times to what the API keeps, so that a status that was written compares equal.
func wholeSeconds(s *corev1.ContainerState) {
	if s.Running != nil {
		s.Running.StartedAt = s.Running.StartedAt.Rfc3339Copy()
	}
	if t := s.Terminated; t != nil {
		t.StartedAt, t.FinishedAt = t.StartedAt.Rfc3339Copy(), t.FinishedAt.Rfc3339Copy()
	}
}

// waitingStatus is the status of a pod that has no instance yet, and why. container is the one that is to blame, or "".
func waitingStatus(pod *corev1.Pod, base *corev1.PodStatus, container, reason, message string, now time.Time) corev1.PodStatus {
	out := *base.DeepCopy()
	out.ObservedGeneration = pod.Generation
	out.Phase, out.Reason, out.Message = corev1.PodPending, "", ""
	usual := "ContainerCreating"
	if len(pod.Spec.InitContainers) > 0 {
		usual = "PodInitializing"
	}
	fill := func(spec []corev1.Container) (all []corev1.ContainerStatus) {
		for _, c := range spec {
			w := &corev1.ContainerStateWaiting{Reason: usual}
			if container == "" || container == c.Name {
				w = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
			}
			all = append(all, corev1.ContainerStatus{Name: c.Name, Image: c.Image, Started: new(bool), State: corev1.ContainerState{Waiting: w}})
		}
		return all
	}
	out.InitContainerStatuses, out.ContainerStatuses = fill(pod.Spec.InitContainers), fill(pod.Spec.Containers)
	conditions{status: &out, now: now, generation: pod.Generation}.set(pod, cis.Status{Phase: cis.Pending}, false, corev1.ConditionFalse)
	return out
}

// failedStatus is the status of a pod that ends without its instance's word: refused, rejected or lost.
func failedStatus(pod *corev1.Pod, base *corev1.PodStatus, reason, message string, now time.Time) corev1.PodStatus {
	st := cis.Status{Phase: cis.Failed, Reason: reason, Message: message, EndedAt: now}
	out := podStatus(pod, base, &cis.Instance{Status: st}, now)
	if reason != reasonLost { // nothing of it ever ran
		out.InitContainerStatuses, out.ContainerStatuses = nil, nil
	}
	return out
}

// conditions writes the conditions that are the kubelet's.
type conditions struct {
	status     *corev1.PodStatus
	now        time.Time
	generation int64
}

func (c conditions) set(pod *corev1.Pod, st cis.Status, final bool, containersReady corev1.ConditionStatus) {
	boolean := func(b bool) corev1.ConditionStatus {
		if b {
			return corev1.ConditionTrue
		}
		return corev1.ConditionFalse
	}
	done := map[bool]string{true: "PodCompleted"}[st.Phase == cis.Succeeded]
	if final && done == "" {
		done = "PodFailed"
	}
	c.one(corev1.PodReadyToStartContainers, boolean(len(st.IPs) > 0 && !final), "", "")
	if st.Initialized || len(pod.Spec.InitContainers) == 0 && !(final && done == "PodFailed" && len(st.Containers) == 0) {
		reason := ""
		if st.Phase == cis.Succeeded {
			reason = done
		}
		c.one(corev1.PodInitialized, corev1.ConditionTrue, reason, "")
	} else {
		reason, message := "ContainersNotInitialized", named("containers with incomplete status", unfinished(c.status.InitContainerStatuses))
		if final {
			reason, message = done, ""
		}
		c.one(corev1.PodInitialized, corev1.ConditionFalse, reason, message)
	}
	reason, message := "", ""
	if containersReady != corev1.ConditionTrue {
		reason, message = "ContainersNotReady", named("containers with unready status", unready(c.status.ContainerStatuses))
		if final {
			reason, message = done, ""
		}
	}
	c.one(corev1.ContainersReady, containersReady, reason, message)
	ready := containersReady
	if ready == corev1.ConditionTrue {
		if missing := c.openGates(pod); len(missing) > 0 {
			ready, reason, message = corev1.ConditionFalse, "ReadinessGatesNotReady", named("the status of pod readiness gates is not \"True\", but one of", missing)
		}
	}
	c.one(corev1.PodReady, ready, reason, message)
	c.one(corev1.PodScheduled, corev1.ConditionTrue, "", "")
}

// openGates lists the readiness gates that are not True.
func (c conditions) openGates(pod *corev1.Pod) (missing []string) {
	for _, g := range pod.Spec.ReadinessGates {
		ok := slices.ContainsFunc(c.status.Conditions, func(x corev1.PodCondition) bool {
			return x.Type == g.ConditionType && x.Status == corev1.ConditionTrue
		})
		if !ok {
			missing = append(missing, string(g.ConditionType))
		}
	}
	return missing
}

// one sets a condition. Its time changes with its status only.
func (c conditions) one(kind corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) {
	next := corev1.PodCondition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: c.generation,
		LastTransitionTime: metav1.NewTime(c.now).Rfc3339Copy()}
	for i, old := range c.status.Conditions {
		if old.Type != kind {
			continue
		}
		if old.Status == status {
			next.LastTransitionTime = old.LastTransitionTime
		}
		c.status.Conditions[i] = next
		return
	}
	c.status.Conditions = append(c.status.Conditions, next)
}

func named(what string, names []string) string {
	return fmt.Sprintf("%s: [%s]", what, strings.Join(names, " "))
}

func unready(all []corev1.ContainerStatus) (names []string) {
	for _, s := range all {
		if !s.Ready {
			names = append(names, s.Name)
		}
	}
	return names
}

func unfinished(all []corev1.ContainerStatus) (names []string) {
	for _, s := range all {
		if t := s.State.Terminated; (t == nil || t.ExitCode != 0) && !(s.Started != nil && *s.Started) {
			names = append(names, s.Name)
		}
	}
	return names
}

// everRan tells whether a pod's status says that its containers have run: such a pod is never started a second time.
func everRan(st *corev1.PodStatus) bool {
	if st.Phase == corev1.PodRunning {
		return true
	}
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
		for _, s := range list {
			if s.ContainerID != "" || s.State.Running != nil || s.State.Terminated != nil {
				return true
			}
		}
	}
	return false
}

func terminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}
