package cri

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"cumulet.io/cis"
)

// An instance that takes more disk than it may, in whichever way, is evicted and says why.
func TestDiskLimits(t *testing.T) {
	b := newBench(t)
	b.cfg.DiskCheck = 500 * time.Millisecond
	b.restart()
	mebi := corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("2Mi")}
	const fill = "dd if=/dev/zero of=%s bs=1M count=5; sleep 1000"
	var checks []func() // of instances that all run at the same time
	for name, c := range map[string]struct {
		script, message string
		limits          corev1.ResourceList
		volume          cis.EmptyDir
	}{
		"volume":         {strings.ReplaceAll(fill, "%s", "/data/x"), `emptyDir volume "data"`, nil, cis.EmptyDir{SizeLimitBytes: 1 << 20}},
		"all together":   {strings.ReplaceAll(fill, "%s", "/data/x"), "The instance takes", mebi, cis.EmptyDir{}},
		"writable layer": {strings.ReplaceAll(fill, "%s", "/x"), "Container main takes", mebi, cis.EmptyDir{}},
		"log":            {"yes 0123456789012345678901234567890123456789 | head -n 100000; sleep 1000", "Container main takes", mebi, cis.EmptyDir{}},
		"within":         {"dd if=/dev/zero of=/data/x bs=1M count=1; sleep 3", "", mebi, cis.EmptyDir{SizeLimitBytes: 2 << 20}},
	} {
		for class := range b.cfg.Handlers {
			in := instance(class, shell("main", c.script))
			in.Spec.RestartPolicy = corev1.RestartPolicyNever
			in.Spec.Containers[0].Resources.Limits = c.limits
			in.Spec.Volumes = []cis.Volume{{Name: "data", EmptyDir: &c.volume}}
			in.Spec.Containers[0].Mounts = []cis.Mount{{Volume: "data", Path: "/data"}}
			b.ensure(in)
			checks = append(checks, func() {
				if c.message == "" {
					b.sink.waitPhase(t, in.ID, cis.Succeeded)
					return
				}
				st := b.sink.waitPhase(t, in.ID, cis.Failed)
				if st.Reason != evicted || !strings.Contains(st.Message, c.message) || !b.sink.hasEvent(in.ID, evicted) {
					t.Errorf("%s, %s: %s: %s", name, class, st.Reason, st.Message)
				}
			})
		}
	}
	for _, check := range checks {
		check()
	}
}

func TestDiskLimitsOf(t *testing.T) {
	limit := func(c cis.Container, q string) cis.Container {
		c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(q)}
		return c
	}
	always := corev1.ContainerRestartPolicyAlways
	side := limit(shell("side", ""), "1Mi")
	side.RestartPolicy = &always
	spec := cis.Spec{InitContainers: []cis.Container{limit(shell("init", ""), "2Mi"), side}, Containers: []cis.Container{limit(shell("a", ""), "3Mi"), shell("b", "")},
		Volumes: []cis.Volume{{Name: "disk", EmptyDir: &cis.EmptyDir{SizeLimitBytes: 5}}, {Name: "mem", EmptyDir: &cis.EmptyDir{Memory: true, SizeLimitBytes: 5}}, {Name: "files", Files: &cis.FilesVolume{}}}}
	l := diskLimitsOf(&spec)
	if l.total != 4<<20 || len(l.containers) != 3 || len(l.volumes) != 1 || l.volumes["disk"] != 5 || l.none() {
		t.Errorf("%+v", l)
	}
	if l := diskLimitsOf(&cis.Spec{Containers: []cis.Container{shell("b", "")}}); !l.none() {
		t.Errorf("%+v", l)
	}
}

// What a container links to from a volume is not counted, and not followed.
func TestDiskUsage(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	err := errors.Join(os.WriteFile(filepath.Join(outside, "big"), make([]byte, 1<<20), 0o600), os.Symlink(outside, filepath.Join(dir, "link")),
		os.Mkdir(filepath.Join(dir, "sub"), 0o700), os.WriteFile(filepath.Join(dir, "sub", "own"), make([]byte, 100<<10), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := diskUsage(t.Context(), dir); err != nil || n < 100<<10 || n > 300<<10 {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := diskUsage(t.Context(), filepath.Join(dir, "none")); err != nil || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
}
