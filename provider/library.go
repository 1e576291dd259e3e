package provider

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1informers "k8s.io/client-go/informers/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
)

// PodClient gives virtual-kubelet's pod controller the pods of client, without what the provider does itself: the library
// removes the API object of a deleted pod when its grace period is over, or at once when no container of it runs, whatever has
// become of the instance. The provider removes it when the instance has ended; until then the pod is seen as terminating. And
// the library's own status updates, which write the whole pod, are left out.
func (p *Provider) PodClient(client corev1client.PodsGetter) corev1client.PodsGetter {
	return podsGetter{p: p, next: client}
}

type podsGetter struct {
	p    *Provider
	next corev1client.PodsGetter
}

func (g podsGetter) Pods(namespace string) corev1client.PodInterface {
	return podInterface{PodInterface: g.next.Pods(namespace), p: g.p}
}

type podInterface struct {
	corev1client.PodInterface
	p *Provider
}

// Delete wakes the worker of the pod.
func (i podInterface) Delete(_ context.Context, _ string, opts metav1.DeleteOptions) error {
	if opts.Preconditions != nil && opts.Preconditions.UID != nil {
		i.p.queue.Add(*opts.Preconditions.UID)
	}
	return nil
}

// UpdateStatus changes nothing.
func (i podInterface) UpdateStatus(_ context.Context, pod *corev1.Pod, _ metav1.UpdateOptions) (*corev1.Pod, error) {
	return pod, nil
}

// PodInformer gives virtual-kubelet's pod controller the pods of an informer, without the updates that change nothing of
// what is asked of a pod: its own statuses and annotations come back to the node with every write, and the library compares
// the whole pod field by field each time (docs/decisions/0006).
func PodInformer(pods corev1informers.PodInformer) corev1informers.PodInformer {
	return podInformer{pods}
}

type podInformer struct{ corev1informers.PodInformer }

func (i podInformer) Informer() cache.SharedIndexInformer {
	return changesOnly{i.PodInformer.Informer()}
}

type changesOnly struct{ cache.SharedIndexInformer }

// AddEventHandler implements cache.SharedInformer.
func (i changesOnly) AddEventHandler(next cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    next.OnAdd,
		DeleteFunc: next.OnDelete,
		UpdateFunc: func(before, now any) {
			if old, ok := before.(*corev1.Pod); ok && sameRequest(old, now.(*corev1.Pod)) { //nolint:errcheck // an informer of pods
				return
			}
			next.OnUpdate(before, now)
		},
	})
}

// sameRequest tells whether two versions of an object ask the same of the node. The API server raises a pod's generation with
// each change of its spec (KEP-5067; zero where it does not yet), and a deletion raises it, too.
func sameRequest(old, now *corev1.Pod) bool {
	return old.UID == now.UID && now.Generation != 0 && old.Generation == now.Generation &&
		(old.DeletionTimestamp == nil) == (now.DeletionTimestamp == nil)
}
