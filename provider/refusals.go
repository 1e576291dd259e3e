package provider

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	firstRefusalDelay = time.Second
	maxRefusalDelay   = 5 * time.Minute
	// maxRefused bounds the owners that are remembered.
	maxRefused = 1024
	// maxRefusedPods bounds the pods of one owner that are remembered.
	maxRefusedPods = 256
)

// refusals slows down controllers whose pods are refused one after the other: a ReplicaSet makes a new pod as soon as one has
// failed, without end and without a pause of its own.
type refusals struct {
	mu     sync.Mutex
	owners map[types.UID]*refusal
}

type refusal struct {
	next  time.Duration
	until time.Time
	pods  map[types.UID]time.Time // when each waiting pod may fail
}

func newRefusals() *refusals { return &refusals{owners: map[types.UID]*refusal{}} }

// delay tells how long a pod still waits before it fails. The first of an owner does not wait, nor does a pod without a
// controller.
func (r *refusals) delay(pod *corev1.Pod, now time.Time) time.Duration {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owners[owner.UID]
	if o == nil || now.Sub(o.until) > 2*maxRefusalDelay {
		r.shrink(now)
		o = &refusal{pods: map[types.UID]time.Time{}}
		r.owners[owner.UID] = o
	}
	at, known := o.pods[pod.UID]
	if !known {
		if len(o.pods) >= maxRefusedPods {
			clear(o.pods)
		}
		at = now.Add(o.next)
		o.pods[pod.UID] = at
		o.next = min(max(2*o.next, firstRefusalDelay), maxRefusalDelay)
		o.until = at
	}
	if left := at.Sub(now); left > 0 {
		return left
	}
	return 0
}

// forget ends the slowing of a pod's owner.
func (r *refusals) forget(pod *corev1.Pod) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.owners, owner.UID)
}

// shrink drops owners that have been quiet, and all of them when there are too many.
func (r *refusals) shrink(now time.Time) {
	for uid, o := range r.owners {
		if now.Sub(o.until) > 2*maxRefusalDelay {
			delete(r.owners, uid)
		}
	}
	if len(r.owners) >= maxRefused {
		clear(r.owners)
	}
}
