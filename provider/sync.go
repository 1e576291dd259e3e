package provider

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// work is what a UID's worker remembers from one time to the next.
type work struct {
	// request is a create that was sent, and whose answer is not known for sure. It is repeated as it was: another spec
	// under the same key is a conflict.
	request *cis.CreateRequest
	// noticed says that the notices of the spec are in the pod's events.
	noticed bool
	// written and annotated are the status and the annotations that our last write left.
	written   *corev1.PodStatus
	annotated map[string]string
	// writtenAt is when.
	writtenAt time.Time
	// stopping says that the end was asked for, and grace with how many seconds (-1: the spec's).
	stopping bool
	grace    int64
	// volumes are the digests of the files that the instance has, refreshAt when they are looked at again.
	volumes   map[string][32]byte
	refreshAt time.Time
	// stale says that an object that the pod refers to has changed.
	stale atomic.Bool
	// labels and annotations are the pod's when its volumes were last looked at.
	labels, annotations map[string]string
	// changes are those that had no effect and were told last.
	changes string
	// told is the last trouble that went into the pod's events.
	told string
}

// sync looks at all that is known of a pod UID and does what is missing. An error is tried again with backoff; again above 0 asks
// for another look then.
func (p *Provider) sync(ctx context.Context, uid types.UID) (again time.Duration, err error) {
	v, ok := p.view(uid)
	if !ok {
		return 0, nil
	}
	if v.suspect && !v.gone {
		if err := p.verify(ctx, &v); err != nil {
			return 0, err
		}
	}
	if v.lost {
		if err := p.confirmLost(ctx, &v); err != nil {
			return 0, err
		}
	}
	switch {
	case v.gone:
		return p.end(ctx, &v)
	case v.pod == nil:
		if v.instance == nil || v.instance.Status.Phase.Final() {
			p.forget(uid)
		}
		return 0, nil // reconciliation looks for the pod of a live instance
	case !v.synced:
		return 0, nil // all pods are woken when the instances are known
	case v.pod.DeletionTimestamp != nil:
		return p.terminate(ctx, &v)
	case terminal(v.worker.base(v.pod).Phase):
		return 0, p.stopEnded(ctx, &v)
	case v.instance == nil && (v.lost || everRan(v.worker.base(v.pod))):
		return 0, p.fail(ctx, &v, reasonLost, "The container instance service does not know the pod's instance any more")
	case v.instance == nil:
		return p.create(ctx, &v)
	}
	return p.keep(ctx, &v)
}

// keep brings a pod's status to its instance's, and a live instance's volumes to what they should be.
func (p *Provider) keep(ctx context.Context, v *view) (time.Duration, error) {
	in := v.instance
	base := v.worker.base(v.pod)
	if again := holdBack(base, in, v.worker.writtenAt, time.Now()); again > 0 {
		return again, nil
	}
	if err := p.write(ctx, v, podStatus(v.pod, base, in, time.Now()), annotations(in)); err != nil {
		return 0, err
	}
	if in.Status.Phase.Final() {
		if in.Status.Phase == cis.Rejected {
			p.tell(v, corev1.EventTypeWarning, reasonOr(in.Status.Reason, reasonRejected), in.Status.Message)
		}
		v.worker.volumes, v.worker.request = nil, nil
		return 0, nil
	}
	p.tellChanges(v)
	return p.refresh(ctx, v)
}

// While an instance starts without trouble, its first status is held back for startupQuiet and a next one for startupEvery:
// most run within that time, and one write then tells all.
const (
	startupQuiet = 500 * time.Millisecond
	startupEvery = 2 * time.Second
)

// holdBack says for how long nothing is to be written of an instance that starts without trouble. written is when its last
// status was written by this process, zero for never.
func holdBack(base *corev1.PodStatus, in *cis.Instance, written, now time.Time) time.Duration {
	since, quiet := in.CreatedAt, startupQuiet
	if base.StartTime != nil {
		since, quiet = written, startupEvery
	}
	left := since.Add(quiet).Sub(now)
	st := &in.Status
	if left <= 0 || left > quiet || st.Phase != cis.Pending && st.Phase != cis.Starting {
		return 0
	}
	for _, list := range [][]corev1.ContainerStatus{st.InitContainers, st.Containers} {
		for _, c := range list {
			if c.State.Running != nil || c.State.Terminated != nil || c.State.Waiting != nil && c.State.Waiting.Message != "" {
				return 0
			}
		}
	}
	return left
}

func reasonOr(reason, other string) string {
	if reason == "" {
		return other
	}
	return reason
}

// verify asks the API server for a pod that seems to be gone.
func (p *Provider) verify(ctx context.Context, v *view) error {
	pod, gone, err := p.lookFor(ctx, v.pod.Namespace, v.pod.Name, v.uid)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !v.tracked.suspect {
		return nil // it was seen in the meantime
	}
	if gone {
		v.tracked.gone, v.gone = true, true
	} else {
		v.tracked.pod, v.pod = pod, pod
		p.names[pod.Namespace+"/"+pod.Name] = pod.UID
	}
	v.tracked.suspect, v.suspect = false, false
	return nil
}

// confirmLost asks for an instance that a listing did not have. It leaves v.lost only if the service does not know it.
func (p *Provider) confirmLost(ctx context.Context, v *view) error {
	if v.instance == nil {
		return nil
	}
	in, err := p.cfg.Services.Instances.Get(ctx, v.org, v.instance.ID)
	if err != nil && !errors.Is(err, problem.ErrNotFound) {
		return fmt.Errorf("get instance: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		v.tracked.lost, v.lost = false, false
		if in.Version > v.tracked.instance.Version {
			v.tracked.instance = in
		}
		v.instance = v.tracked.instance
		return nil
	}
	v.logger(p.log).WarnContext(ctx, "the service does not know the instance any more")
	delete(p.instances, v.instance.ID)
	v.tracked.instance, v.instance = nil, nil
	return nil
}

// fail ends a pod without its instance's word.
func (p *Provider) fail(ctx context.Context, v *view, reason, message string) error {
	p.tell(v, corev1.EventTypeWarning, reason, message)
	base := v.worker.base(v.pod)
	return p.write(ctx, v, failedStatus(v.pod, base, reason, message, time.Now()), nil)
}

// stopEnded stops an instance whose pod was ended by someone else, as by an eviction.
func (p *Provider) stopEnded(ctx context.Context, v *view) error {
	v.worker.request = nil
	if v.instance == nil || v.instance.Status.Phase.Final() {
		return nil
	}
	return p.stop(ctx, v, nil)
}

// terminate ends a pod that is being deleted: the instance gets the pod's grace, and when it has ended the pod gets its last
// status and its API object goes.
func (p *Provider) terminate(ctx context.Context, v *view) (time.Duration, error) {
	if v.instance == nil && v.worker.request != nil {
		if err := p.settle(ctx, v); err != nil {
			return 0, err
		}
	}
	base := v.worker.base(v.pod)
	if v.instance == nil {
		if everRan(base) && !terminal(base.Phase) {
			if err := p.write(ctx, v, failedStatus(v.pod, base, reasonLost, "The pod's instance is gone", time.Now()), nil); err != nil {
				return 0, err
			}
		}
		return 0, p.remove(ctx, v.pod)
	}
	if err := p.write(ctx, v, podStatus(v.pod, base, v.instance, time.Now()), annotations(v.instance)); err != nil {
		return 0, err
	}
	if v.instance.Status.Phase.Final() {
		return 0, p.remove(ctx, v.pod)
	}
	return 0, p.stop(ctx, v, v.pod.DeletionGracePeriodSeconds)
}

// end ends the instance of a pod that is gone.
func (p *Provider) end(ctx context.Context, v *view) (time.Duration, error) {
	if v.instance == nil && v.worker.request != nil && v.pod != nil {
		if err := p.settle(ctx, v); err != nil {
			return 0, err
		}
	}
	if v.instance == nil || v.instance.Status.Phase.Final() {
		p.forget(v.uid)
		return 0, nil
	}
	var grace *int64
	if v.pod != nil {
		grace = v.pod.DeletionGracePeriodSeconds
	}
	return 0, p.stop(ctx, v, grace)
}

// stop asks for the instance's end, once, and again when the grace has become shorter. nil is the spec's.
func (p *Provider) stop(ctx context.Context, v *view, grace *int64) error {
	w := &v.worker
	seconds := int64(-1)
	if grace != nil {
		seconds = *grace
	}
	if w.stopping && (seconds < 0 || w.grace >= 0 && seconds >= w.grace) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in, err := p.cfg.Services.Instances.Delete(ctx, v.org, v.instance.ID, grace)
	if errors.Is(err, problem.ErrNotFound) {
		p.mu.Lock()
		v.tracked.lost = true
		p.mu.Unlock()
		p.queue.Add(v.uid)
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop instance: %w", err)
	}
	w.stopping, w.grace = true, seconds
	p.note(v.org, in)
	return nil
}
