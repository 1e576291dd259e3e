package provider

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/provider/podspec"
)

const (
	// adoptSpread is over how long the volumes of instances that a new provider finds are looked at for the first time.
	adoptSpread = time.Minute
	// refreshRetry is how soon a refresh that failed is tried again.
	refreshRetry = 30 * time.Second
)

// remember keeps the digests of what an instance is created with.
func (w *work) remember(pod *corev1.Pod, built *podspec.Result) {
	w.volumes = map[string][32]byte{}
	for _, v := range built.Spec.Volumes {
		if v.Files != nil {
			w.volumes[v.Name] = digest(v.Files)
		}
	}
	w.refreshAt, w.labels, w.annotations = built.RefreshAt, pod.Labels, pod.Annotations
	w.stale.Store(false)
}

func digest(f *cis.FilesVolume) [32]byte {
	h := sha256.New()
	for _, file := range f.Files {
		for _, part := range [][]byte{[]byte(file.Path), binary.BigEndian.AppendUint32(nil, uint32(file.Mode)), file.Data} { //nolint:gosec // the mode's bits
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
			h.Write(part)
		}
	}
	return [32]byte(h.Sum(nil))
}

// refresh brings the files of a live instance to what the pod's volumes are now: when an object that they come from has
// changed, when the pod's own labels or annotations have, and when a token gets old.
func (p *Provider) refresh(ctx context.Context, v *view) (again time.Duration, err error) {
	w, pod := &v.worker, v.pod
	if !hasFiles(pod) {
		return 0, nil
	}
	now := time.Now()
	if w.volumes == nil { // found, not created: what its files are is not known
		w.volumes = map[string][32]byte{}
		w.refreshAt, w.labels, w.annotations = now.Add(rand.N(adoptSpread)), pod.Labels, pod.Annotations
	}
	moved := usesMetadata(pod) && (!maps.Equal(w.labels, pod.Labels) || !maps.Equal(w.annotations, pod.Annotations))
	due := !w.refreshAt.IsZero() && !now.Before(w.refreshAt)
	if !w.stale.Swap(false) && !moved && !due {
		return untilRefresh(w.refreshAt, now), nil
	}
	files, refreshAt, err := p.cfg.Builder.Volumes(ctx, pod)
	if err != nil {
		var missing *podspec.MissingError
		if errors.As(err, &missing) {
			p.tell(v, corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for "+err.Error())
		} else {
			v.logger(p.log).WarnContext(ctx, "volumes could not be refreshed", "error", err)
		}
		w.stale.Store(true)
		return refreshRetry, nil
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		sum := digest(&f)
		if w.volumes[name] == sum {
			continue
		}
		err := p.updateVolume(ctx, v, name, f)
		switch {
		case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrGone): // it has just ended
			return 0, nil
		case errors.Is(err, problem.ErrUnsupported), errors.Is(err, problem.ErrInvalid), errors.Is(err, problem.ErrTooLarge):
			p.tell(v, corev1.EventTypeWarning, "FailedVolumeUpdate", fmt.Sprintf("volume %q keeps its old files: %v", name, err))
		case err != nil:
			w.stale.Store(true)
			return 0, fmt.Errorf("update volume %s: %w", name, err)
		}
		w.volumes[name] = sum
	}
	w.refreshAt, w.labels, w.annotations = refreshAt, pod.Labels, pod.Annotations
	return untilRefresh(refreshAt, now), nil
}

func (p *Provider) updateVolume(ctx context.Context, v *view, name string, f cis.FilesVolume) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return p.cfg.Services.Instances.UpdateVolume(ctx, v.org, v.instance.ID, name, f)
}

func untilRefresh(at, now time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(at.Sub(now), time.Second)
}

func hasFiles(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
	})
}

// usesMetadata tells whether a volume shows the pod's own labels or annotations.
func usesMetadata(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.DownwardAPI != nil || v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.DownwardAPI != nil
		})
	})
}
