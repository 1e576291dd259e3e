package cri

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"log/slog"
	"slices"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/sandbox"
)

func TestMatchAuth(t *testing.T) {
	auths := []cis.RegistryAuth{{Server: "https://index.docker.io/v1/", Username: "hub"}, {Server: "reg:5000", Username: "host"},
		{Server: "reg:5000/team", Username: "team"}, {Server: "reg:5000/team/app/", Username: "app"}}
	for image, want := range map[string]string{
		"busybox": "hub", "reg:5000/x": "host", "reg:5000/team/y:v1": "team", "reg:5000/teams/y": "host",
		"reg:5000/team/app": "app", "other/x": "hub", "other.io/x": "",
	} {
		named, err := reference.ParseDockerRef(image)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if a := matchAuth(named, auths); a != nil {
			got = a.Username
		}
		if got != want {
			t.Errorf("%s: credential of %q, want %q", image, got, want)
		}
	}
}

func TestPullPolicy(t *testing.T) {
	digest := "@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for image, want := range map[string]corev1.PullPolicy{"a": corev1.PullAlways, "a:latest": corev1.PullAlways, "a:v1": corev1.PullIfNotPresent,
		"a" + digest: corev1.PullIfNotPresent, "a:latest" + digest: corev1.PullIfNotPresent} {
		if got := pullPolicy(&cis.Container{Image: image}); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func limited(name, cpu, mem string) cis.Container {
	return cis.Container{Name: name, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(mem)}}}
}

func TestPodLimits(t *testing.T) {
	size := billing.Size{Class: "c1-m2", MilliCPU: 1000, MemoryMiB: 2048}
	always := corev1.ContainerRestartPolicyAlways
	sidecar := limited("s", "100m", "64Mi")
	sidecar.RestartPolicy = &always
	for name, c := range map[string]struct {
		spec     cis.Spec
		cpu, mib int64
	}{
		"no limits: the size":        {cis.Spec{Containers: []cis.Container{{Name: "a"}}}, 1000, 2048},
		"the sum":                    {cis.Spec{Containers: []cis.Container{limited("a", "200m", "128Mi"), limited("b", "100m", "64Mi")}}, 300, 192},
		"never above the size":       {cis.Spec{Containers: []cis.Container{limited("a", "8", "64Gi")}}, 1000, 2048},
		"a large init container":     {cis.Spec{InitContainers: []cis.Container{limited("i", "500m", "1Gi")}, Containers: []cis.Container{limited("a", "100m", "64Mi")}}, 500, 1024},
		"a sidecar counts with both": {cis.Spec{InitContainers: []cis.Container{sidecar, limited("i", "500m", "1Gi")}, Containers: []cis.Container{limited("a", "100m", "64Mi")}}, 600, 1088},
	} {
		for _, class := range sandbox.Classes() {
			l, over := podLimits(&c.spec, size, class, 100), sandbox.OverheadOf(class, size)
			if l.milliCPU != c.cpu+over.MilliCPU || l.memoryBytes != (c.mib+over.MemoryMiB)<<20 || l.pids != 100 {
				t.Errorf("%s, %s: %+v, want %d and %d MiB, and %+v", name, class, l, c.cpu, c.mib, over)
			}
		}
	}
}

func TestAppArmor(t *testing.T) {
	profile := func(t corev1.AppArmorProfileType) *corev1.AppArmorProfile { return &corev1.AppArmorProfile{Type: t} }
	unconfined, byDefault := profile(corev1.AppArmorProfileTypeUnconfined), profile(corev1.AppArmorProfileTypeRuntimeDefault)
	for name, c := range map[string]struct {
		pod, own  *corev1.AppArmorProfile
		class     cis.SandboxClass
		supported bool
		want      *rt.SecurityProfile
		fails     string
	}{
		"none asked for":          {class: cis.Runc, supported: true},
		"unconfined":              {pod: unconfined, class: cis.Runc, supported: true, want: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Unconfined}},
		"unconfined anyway":       {pod: unconfined, class: cis.Runc, want: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Unconfined}},
		"the container's wins":    {pod: unconfined, own: byDefault, class: cis.Runc, supported: true, want: &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}},
		"not to be had":           {own: byDefault, class: cis.Runc, fails: "securityContext.appArmorProfile"},
		"a kernel of its own":     {own: byDefault, class: cis.GVisor},
		"a profile of the tenant": {own: profile(corev1.AppArmorProfileTypeLocalhost), class: cis.Runc, supported: true, fails: "securityContext.appArmorProfile.type"},
	} {
		got, err := appArmor(&cis.Spec{SecurityContext: &corev1.PodSecurityContext{AppArmorProfile: c.pod}},
			&cis.Container{SecurityContext: &corev1.SecurityContext{AppArmorProfile: c.own}}, c.class, c.supported)
		if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) || got.String() != c.want.String() {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestContainerSecurity(t *testing.T) {
	yes, no, root, user := true, false, int64(0), int64(1000)
	uid := int64(33)
	for name, c := range map[string]struct {
		pod   *corev1.PodSecurityContext
		own   *corev1.SecurityContext
		image imageInfo
		fails bool
		check func(*rt.LinuxContainerSecurityContext) bool
	}{
		"image of root":           {own: &corev1.SecurityContext{RunAsNonRoot: &yes}, fails: true},
		"image with a name":       {own: &corev1.SecurityContext{RunAsNonRoot: &yes}, image: imageInfo{username: "www"}, fails: true},
		"asked for root":          {pod: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &root}, image: imageInfo{uid: &uid}, fails: true},
		"image of a user":         {pod: &corev1.PodSecurityContext{RunAsNonRoot: &yes}, image: imageInfo{uid: &uid}, check: func(s *rt.LinuxContainerSecurityContext) bool { return s.RunAsUser.GetValue() == 33 }},
		"container wins over pod": {pod: &corev1.PodSecurityContext{RunAsNonRoot: &yes}, own: &corev1.SecurityContext{RunAsNonRoot: &no}, check: func(s *rt.LinuxContainerSecurityContext) bool { return s.RunAsUser == nil }},
		"a group needs a user": {own: &corev1.SecurityContext{RunAsGroup: &user}, check: func(s *rt.LinuxContainerSecurityContext) bool {
			return s.RunAsUser != nil && s.RunAsGroup.GetValue() == 1000
		}},
		"no escalation":                {own: &corev1.SecurityContext{AllowPrivilegeEscalation: &no}, check: func(s *rt.LinuxContainerSecurityContext) bool { return s.NoNewPrivs }},
		"fsGroup is supplemental":      {pod: &corev1.PodSecurityContext{FSGroup: &user}, check: func(s *rt.LinuxContainerSecurityContext) bool { return len(s.SupplementalGroups) == 1 }},
		"profiles of files are no use": {own: &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost}}, fails: true},
		"seccomp by default": {check: func(s *rt.LinuxContainerSecurityContext) bool {
			return s.Seccomp.ProfileType == rt.SecurityProfile_RuntimeDefault && len(s.MaskedPaths) > 0
		}},
	} {
		sc, err := containerSecurity(&cis.Spec{SecurityContext: c.pod}, &cis.Container{Name: "c", SecurityContext: c.own}, c.image)
		if (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		} else if c.check != nil && !c.check(sc) {
			t.Errorf("%s: %+v", name, sc)
		}
	}
}

// While the sink is away nothing but repetition is lost, and the order stays.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		sink := newSink()
		sink.setDown(true)
		r := newReporter("i-1", sink, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run(ctx)
		}()
		for i, p := range []cis.Phase{cis.Pending, cis.Starting, cis.Starting, cis.Running, cis.Running, cis.Succeeded} {
			r.status(cis.Status{Phase: p, Incarnation: int64(i)})
		}
		for range 3 * maxReports {
			r.event(cis.Event{Instance: "i-1", Reason: "X"})
		}
		time.Sleep(time.Minute) // of the test's own clock
		sink.setDown(false)
		time.Sleep(time.Minute)
		var phases []cis.Phase
		for _, s := range sink.all("i-1") {
			phases = append(phases, s.Phase)
		}
		want := []cis.Phase{cis.Pending, cis.Starting, cis.Running, cis.Succeeded}
		if len(phases) != len(want) {
			t.Fatalf("got %v, want %v", phases, want)
		}
		for i := range want {
			if phases[i] != want[i] {
				t.Errorf("got %v, want %v", phases, want)
			}
		}
		if len(r.delivered) != 1 {
			t.Error("the final status is not known to be delivered")
		}
		if len(r.queue) != 0 {
			t.Errorf("%d left", len(r.queue))
		}
		cancel()
		<-done
	})
}

// A status of a start that goes on is held back for a while, and never sent when another one comes in that time.
func TestReporterHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		sink := newSink()
		r := newReporter("i-1", sink, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run(ctx)
		}()
		report := func(p cis.Phase, n int64) { r.status(cis.Status{Phase: p, Incarnation: n}) }
		expect := func(events int, want ...int64) {
			t.Helper()
			synctest.Wait()
			var got []int64
			for _, s := range sink.all("i-1") {
				got = append(got, s.Incarnation)
			}
			if n := len(sink.eventsOf("i-1")); !slices.Equal(got, want) || n != events {
				t.Errorf("statuses %v and %d events, want %v and %d", got, n, want, events)
			}
		}
		report(cis.Starting, 1)
		expect(0, 1)
		report(cis.Starting, 2)
		time.Sleep(held / 2)
		report(cis.Starting, 3)
		r.event(cis.Event{Instance: "i-1", Reason: "Behind"})
		expect(0, 1)
		time.Sleep(held / 2)
		expect(1, 1, 3)
		report(cis.Starting, 4)
		r.event(cis.Event{Instance: "i-1", Reason: "Started"})
		report(cis.Running, 5)
		expect(2, 1, 3, 5)
		report(cis.Running, 6) // whether it is ready is told at once
		expect(2, 1, 3, 5, 6)
		cancel()
		<-done
	})
}

func TestBackoff(t *testing.T) {
	b := Backoff{}.orDefault()
	var d time.Duration
	for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		if d = b.next(d); d != want*time.Second {
			t.Errorf("got %v, want %ds", d, want)
		}
	}
	if b.Reset != 10*time.Minute {
		t.Error(b.Reset)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"org":"a","incarnation":2,"containers":{"x":{"attempt":1},"y":null,"z":{"attempt":-7}},"stop":{"grace":-1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := decodeRecord(b)
		if r == nil {
			return
		}
		for name, c := range r.Containers {
			if c == nil || c.Attempt < -1 {
				t.Errorf("container %q: %+v", name, c)
			}
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}

func FuzzNetns(f *testing.F) {
	f.Add(`{"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/run/netns/x"}]}}}`)
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := netnsOf(s); (p == "") != (err != nil) {
			t.Errorf("%q %v", p, err)
		}
	})
}
