package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// base is the status that a pod has now, as far as known: what the API server answered to our last write, since we are the
// only writer of all but foreign conditions and the informer may be behind; the informer's conditions of others laid over.
func (w *work) base(pod *corev1.Pod) *corev1.PodStatus {
	if w.written == nil || terminal(pod.Status.Phase) { // an end is for good, also one that someone else wrote
		return &pod.Status
	}
	out := w.written.DeepCopy()
	for _, c := range pod.Status.Conditions {
		if ours(c.Type) {
			continue
		}
		found := false
		for i := range out.Conditions {
			if out.Conditions[i].Type == c.Type {
				out.Conditions[i], found = c, true
			}
		}
		if !found {
			out.Conditions = append(out.Conditions, c)
		}
	}
	return out
}

func ours(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodScheduled, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodReadyToStartContainers:
		return true
	}
	return false
}

// write brings a pod's status, and the annotations that are the platform's, to what they should be: one patch of what
// differs, for this UID only. What others write is not in it and stays. An ended pod keeps its status. A pod that is gone is
// marked so and is no error.
func (p *Provider) write(ctx context.Context, v *view, status corev1.PodStatus, notes map[string]string) error {
	w, pod := &v.worker, v.pod
	base := w.base(pod)
	if terminal(base.Phase) && status.Phase != base.Phase {
		return nil
	}
	have := map[string]string{}
	for k := range notes {
		if old, ok := pod.Annotations[k]; ok {
			have[k] = old
		}
	}
	if w.annotated != nil {
		have = maps.Clone(w.annotated)
	}
	if apiequality.Semantic.DeepEqual(base, &status) && contains(have, notes) {
		return nil // most looks change nothing, and making a patch is dear
	}
	patch, err := statusPatch(pod.UID, base, &status, have, notes)
	if err != nil || patch == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	after, err := p.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // conflict: the name is another pod's now
		p.unseen(pod, true)
		return nil
	case err != nil:
		return fmt.Errorf("write the pod's status: %w", err)
	}
	w.written, w.annotated, w.writtenAt = &after.Status, maps.Clone(notes), time.Now()
	return nil
}

// contains tells whether have has all of want.
func contains(have, want map[string]string) bool {
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			return false
		}
	}
	return true
}

// statusPatch makes the patch from one status to another; nil when they do not differ.
func statusPatch(uid types.UID, from, to *corev1.PodStatus, have, want map[string]string) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: have}, Status: *from})
	if err != nil {
		return nil, fmt.Errorf("patch of a status: %w", err)
	}
	merged := maps.Clone(have)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, want)
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: merged}, Status: *to})
	if err != nil {
		return nil, fmt.Errorf("patch of a status: %w", err)
	}
	diff, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("patch of a status: %w", err)
	}
	var doc map[string]any
	if err := json.Unmarshal(diff, &doc); err != nil {
		return nil, fmt.Errorf("patch of a status: %w", err)
	}
	if len(doc) == 0 {
		return nil, nil //nolint:nilnil // no patch
	}
	meta, _ := doc["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	meta["uid"] = uid
	doc["metadata"] = meta
	return json.Marshal(doc)
}

// remove deletes the pod's API object for good, this UID only.
func (p *Provider) remove(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	opts := metav1.NewDeleteOptions(0)
	opts.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
	err := p.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *opts)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("remove the pod's API object: %w", err)
	}
	return nil
}
