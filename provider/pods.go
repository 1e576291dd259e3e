package provider

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"cumulet.io/internal/problem"
	"cumulet.io/provider/podspec"
)

// podHandler takes the changes of pods. It tells a pod by its UID: a name can be taken again while its last pod still ends.
func (p *Provider) podHandler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if pod, ok := o.(*corev1.Pod); ok {
				p.seen(pod)
			}
		},
		UpdateFunc: func(old, o any) {
			before, ok1 := old.(*corev1.Pod)
			pod, ok2 := o.(*corev1.Pod)
			if !ok1 || !ok2 {
				return
			}
			if before.UID != pod.UID { // the deletion and the next creation were seen as one change
				p.unseen(before, true)
			}
			p.seen(pod)
		},
		DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				if pod, ok := t.Obj.(*corev1.Pod); ok {
					p.unseen(pod, true)
				}
				return
			}
			if pod, ok := o.(*corev1.Pod); ok {
				p.unseen(pod, pod.DeletionTimestamp == nil)
			}
		},
	}
}

// seen notes a pod of the API server.
func (p *Provider) seen(pod *corev1.Pod) {
	p.mu.Lock()
	t := p.track(pod.UID, p.org(pod.Namespace))
	t.pod, t.suspect = pod, false
	p.names[pod.Namespace+"/"+pod.Name] = pod.UID
	p.mu.Unlock()
	p.queue.Add(pod.UID)
}

// unseen notes that a pod seems to be gone. verify asks for it to be looked for before anything follows: the deletion
// itself was not seen.
func (p *Provider) unseen(pod *corev1.Pod, verify bool) {
	p.mu.Lock()
	t := p.track(pod.UID, p.org(pod.Namespace))
	t.pod = pod
	if verify {
		t.suspect = true
	} else {
		t.gone = true
	}
	if key := pod.Namespace + "/" + pod.Name; p.names[key] == pod.UID {
		delete(p.names, key)
	}
	p.mu.Unlock()
	p.queue.Add(pod.UID)
}

// ObjectChanged wakes up the pods that refer to a ConfigMap ("configmap") or a Secret ("secret") that has changed.
func (p *Provider) ObjectChanged(kind, namespace, name string) {
	var wake []types.UID
	p.mu.Lock()
	for uid, t := range p.pods {
		if t.pod != nil && t.pod.Namespace == namespace && podspec.Uses(t.pod, kind, name) {
			t.worker.stale.Store(true)
			wake = append(wake, uid)
		}
	}
	p.mu.Unlock()
	for _, uid := range wake {
		p.queue.Add(uid)
	}
}

// CreatePod implements node.PodLifecycleHandler. It only wakes the pod's worker, and never fails: the library would make a
// pod whose creation fails Failed for good.
func (p *Provider) CreatePod(_ context.Context, pod *corev1.Pod) error {
	p.mu.Lock()
	if t := p.pods[pod.UID]; t != nil {
		t.created = true
	}
	p.mu.Unlock()
	p.queue.Add(pod.UID)
	return nil
}

// UpdatePod implements node.PodLifecycleHandler, as CreatePod does.
func (p *Provider) UpdatePod(_ context.Context, pod *corev1.Pod) error {
	p.queue.Add(pod.UID)
	return nil
}

// DeletePod implements node.PodLifecycleHandler. The pod's own deletion time, which the informer has brought, tells the
// worker what to do. It is not-found for a pod that is not known, be another of its name known or not.
func (p *Provider) DeletePod(_ context.Context, pod *corev1.Pod) error {
	p.mu.Lock()
	t := p.pods[pod.UID]
	p.mu.Unlock()
	if t == nil {
		return asErrdefs(problem.New(problem.ErrNotFound, "pod %s/%s is not known", pod.Namespace, pod.Name))
	}
	p.queue.Add(pod.UID)
	return nil
}

// GetPod implements node.PodLifecycleHandler: the pod that has the name now. It is not-found while only a predecessor of
// that name is still ending, and until CreatePod has been called: of a pod that is there already, the library compares all
// of what it has with all of what it gets.
func (p *Provider) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	v, err := p.named(namespace, name)
	if err != nil {
		return nil, asErrdefs(err)
	}
	if !v.created {
		return nil, asErrdefs(problem.New(problem.ErrNotFound, "pod %s/%s has not been created yet", namespace, name))
	}
	return v.pod.DeepCopy(), nil
}

// GetPodStatus implements node.PodLifecycleHandler.
func (p *Provider) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, err := p.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &pod.Status, nil
}

// GetPods implements node.PodLifecycleHandler: the pods that are known. Instances whose pods are not known are left out;
// finding those that nobody wants is reconciliation's.
func (p *Provider) GetPods(context.Context) ([]*corev1.Pod, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*corev1.Pod, 0, len(p.names))
	for _, uid := range p.names {
		if t := p.pods[uid]; t != nil && t.pod != nil {
			all = append(all, t.pod.DeepCopy())
		}
	}
	return all, nil
}

// NotifyPods implements node.PodNotifier, so that the library does not poll. The provider does not use its callback: the
// library would write back the whole pod, other people's labels as they once were included. Package provider writes
// statuses itself, as patches (write.go).
func (p *Provider) NotifyPods(context.Context, func(*corev1.Pod)) {}

// named gives the pod that has a name now.
func (p *Provider) named(namespace, name string) (view, error) {
	p.mu.Lock()
	uid, ok := p.names[namespace+"/"+name]
	p.mu.Unlock()
	if ok {
		if v, ok := p.view(uid); ok && v.pod != nil && !v.gone {
			return v, nil
		}
	}
	return view{}, problem.New(problem.ErrNotFound, "pod %s/%s is not known", namespace, name)
}
