package provider

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

const maxEventMessage = 1000 // the API's limit is 1,024

// event puts an event on a pod; container, when set, is the part of it that the event is about.
func (p *Provider) event(pod *corev1.Pod, container, kind, reason, message string) {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}
	if container != "" {
		ref.FieldPath = fmt.Sprintf("spec.containers{%s}", container)
		for i := range pod.Spec.InitContainers {
			if pod.Spec.InitContainers[i].Name == container {
				ref.FieldPath = fmt.Sprintf("spec.initContainers{%s}", container)
			}
		}
	}
	if len(message) > maxEventMessage {
		message = strings.ToValidUTF8(message[:maxEventMessage], "") + "…"
	}
	p.cfg.Recorder.Event(ref, kind, reason, message)
}

// tell puts an event on the worker's pod, unless it was the last that was told.
func (p *Provider) tell(v *view, kind, reason, message string) {
	if told := reason + "\n" + message; v.worker.told != told {
		v.worker.told = told
		p.event(v.pod, "", kind, reason, message)
	}
}

// tellAlways puts a warning on the worker's pod again and again, as the kubelet does while something is missing.
func (p *Provider) tellAlways(v *view, container, reason, message string) {
	p.event(v.pod, container, corev1.EventTypeWarning, reason, message)
}

// instanceEvent passes an instance's event on to its pod.
func (p *Provider) instanceEvent(ev *cis.Event) {
	p.mu.Lock()
	var pod *corev1.Pod
	if t := p.pods[p.instances[ev.Instance]]; t != nil && !t.gone {
		pod = t.pod
	}
	p.mu.Unlock()
	if pod == nil {
		return
	}
	kind := corev1.EventTypeNormal
	if ev.Type == cis.Warning {
		kind = corev1.EventTypeWarning
	}
	p.event(pod, ev.Container, kind, ev.Reason, ev.Message)
}

// tellChanges says which changes of a running pod have no effect. The API lets a pod's images and deadline be changed, and its
// resources through a subresource.
func (p *Provider) tellChanges(v *view) {
	var changed []string
	for list, c := range map[string]struct {
		now  []corev1.Container
		then []cis.Container
	}{
		"initContainers": {v.pod.Spec.InitContainers, v.instance.Spec.InitContainers},
		"containers":     {v.pod.Spec.Containers, v.instance.Spec.Containers},
	} {
		for i := range min(len(c.now), len(c.then)) {
			at := fmt.Sprintf("spec.%s[%d]", list, i)
			if c.now[i].Image != c.then[i].Image {
				changed = append(changed, at+".image")
			}
			if !sameResources(c.now[i].Resources, c.then[i].Resources) {
				changed = append(changed, at+".resources")
			}
		}
	}
	if !samePointer(v.pod.Spec.ActiveDeadlineSeconds, v.instance.Spec.DeadlineSeconds) {
		changed = append(changed, "spec.activeDeadlineSeconds")
	}
	if len(v.pod.Spec.EphemeralContainers) > 0 {
		changed = append(changed, "spec.ephemeralContainers")
	}
	slices.Sort(changed)
	text := strings.Join(changed, ", ")
	if text == v.worker.changes {
		return
	}
	v.worker.changes = text
	if text != "" {
		p.event(v.pod, "", corev1.EventTypeWarning, "UpdateNotSupported",
			text+": changes of a running pod are not supported and have no effect; delete the pod for its controller to make a new one")
	}
}

func samePointer(a, b *int64) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func sameResources(a, b corev1.ResourceRequirements) bool {
	same := func(x, y corev1.ResourceList) bool {
		if len(x) != len(y) {
			return false
		}
		for k, q := range x {
			if o, ok := y[k]; !ok || q.Cmp(o) != 0 {
				return false
			}
		}
		return true
	}
	return same(a.Limits, b.Limits) && same(a.Requests, b.Requests)
}
