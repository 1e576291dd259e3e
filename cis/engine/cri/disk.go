package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// evicted is the reason of an instance that was ended for using more disk than it may.
const evicted = "Evicted"

// measuresAtOnce bounds the instances whose files are being counted.
const measuresAtOnce = 2

// diskLimits are a spec's, in bytes: of volumes and containers by name, and of all together; 0 means none.
type diskLimits struct {
	volumes, containers map[string]int64
	total               int64
}

func diskLimitsOf(spec *cis.Spec) diskLimits {
	l := diskLimits{volumes: map[string]int64{}, containers: map[string]int64{}}
	for i := range spec.Volumes {
		if e := spec.Volumes[i].EmptyDir; e != nil && !e.Memory && e.SizeLimitBytes > 0 {
			l.volumes[spec.Volumes[i].Name] = e.SizeLimitBytes
		}
	}
	limit := func(c *cis.Container) int64 {
		q, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]
		if !ok {
			return 0
		}
		l.containers[c.Name] = q.Value()
		return q.Value()
	}
	var largest int64 // of an init container, which runs with nothing but sidecars beside it
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; c.Sidecar() {
			l.total += limit(c)
		} else {
			largest = max(largest, limit(c))
		}
	}
	for i := range spec.Containers {
		l.total += limit(&spec.Containers[i])
	}
	l.total = max(l.total, largest)
	return l
}

func (l diskLimits) none() bool { return len(l.volumes) == 0 && len(l.containers) == 0 }

// watchDisk measures now and then what an instance with limits uses, and ends one that uses more, as kubelet does.
func (a *actor) watchDisk() {
	limits := diskLimitsOf(a.spec)
	if limits.none() || a.measuring {
		return
	}
	if now := time.Now(); now.Before(a.measureAt) {
		a.later(a.measureAt)
		return
	}
	a.measuring = true
	a.do(a.ctx, func(ctx context.Context) func() {
		why, err := a.overDisk(ctx, limits)
		return func() {
			a.measuring, a.measureAt = false, time.Now().Add(a.e.cfg.DiskCheck)
			if err != nil && a.ctx.Err() == nil {
				a.log.Warn("disk usage not known", "error", err)
			}
			if why != "" && a.rec.Stop == nil {
				a.warn("", evicted, why)
				a.stop(stopRecord{At: time.Now(), Failed: true, Reason: evicted, Message: why})
			}
		}
	})
}

// overDisk says which limit is exceeded, "" when none is.
func (a *actor) overDisk(ctx context.Context, limits diskLimits) (string, error) {
	select {
	case a.e.measures <- struct{}{}:
		defer func() { <-a.e.measures }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	var total int64
	var errs []error
	for i := range a.spec.Volumes {
		v := &a.spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.Memory {
			continue
		}
		n, err := diskUsage(ctx, a.vols.path(v.Name))
		errs = append(errs, err)
		if limit := limits.volumes[v.Name]; limit > 0 && n > limit {
			return fmt.Sprintf("The emptyDir volume %q takes %s, more than its limit of %s", v.Name, size(n), size(limit)), nil
		}
		total += n
	}
	if len(limits.containers) == 0 {
		return "", errors.Join(errs...)
	}
	layers, err := a.e.rt.ListContainerStats(ctx, &rt.ListContainerStatsRequest{Filter: &rt.ContainerStatsFilter{LabelSelector: a.e.own(a.id)}})
	errs = append(errs, err)
	used := map[string]int64{}
	for _, s := range layers.GetStats() {
		used[s.GetAttributes().GetMetadata().GetName()] += int64(s.GetWritableLayer().GetUsedBytes().GetValue())
	}
	var names []string
	for i := range a.spec.InitContainers {
		names = append(names, a.spec.InitContainers[i].Name)
	}
	for i := range a.spec.Containers {
		names = append(names, a.spec.Containers[i].Name)
	}
	for _, c := range names {
		for _, dir := range []string{filepath.Join(a.logDir(), c), filepath.Join(a.dir, "output", c)} {
			n, err := diskUsage(ctx, dir)
			errs = append(errs, err)
			used[c] += n
		}
		if limit := limits.containers[c]; limit > 0 && used[c] > limit {
			return fmt.Sprintf("Container %s takes %s of disk with its log, more than its ephemeral-storage limit of %s", c, size(used[c]), size(limit)), nil
		}
		total += used[c]
	}
	if limits.total > 0 && total > limits.total {
		return fmt.Sprintf("The instance takes %s of disk, more than the ephemeral-storage limits of its containers, %s", size(total), size(limits.total)), nil
	}
	return "", errors.Join(errs...)
}

func size(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }

// diskUsage counts the space that a directory takes with all below it; one that is not there takes none. Whatever a
// container puts into it, nothing outside of it is looked at.
func diskUsage(ctx context.Context, dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("measure disk usage: %w", err)
	}
	defer root.Close()
	var n int64
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					n += st.Blocks * 512
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			err = nil
		}
		return errors.Join(err, ctx.Err())
	})
	if err != nil {
		return n, fmt.Errorf("measure disk usage: %w", err)
	}
	return n, nil
}
