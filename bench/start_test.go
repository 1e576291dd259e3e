package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/hack/platform"
)

func kubeClient(b *testing.B, kubeconfig string) kubernetes.Interface {
	b.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		b.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 1000, 2000
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return cs
}

func pod(name, image, class string, args ...string) *corev1.Pod {
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{cis.AnnotationSandbox: class}},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"type": "virtual-kubelet"},
			Tolerations:                   []corev1.Toleration{{Key: "virtual-kubelet.io/provider", Operator: corev1.TolerationOpExists}},
			ImagePullSecrets:              []corev1.LocalObjectReference{{Name: "registry"}},
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "app", Image: image, Args: args, Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("50m"), "memory": resource.MustParse("64Mi")},
				Limits:   corev1.ResourceList{"memory": resource.MustParse("128Mi")}}}},
		},
	}
}

// started is a platform with Kubernetes, an image pushed and the pull secret made, beside a raw client of its containerd.
type started struct {
	*platform.Platform
	kube   kubernetes.Interface
	raw    *rawCRI
	image  string
	seen   map[string]bool // instances whose logs have been looked for
	groups groups

	rawPods []*rawPod // to be removed
}

func start(b *testing.B) *started {
	b.Helper()
	g := joinGroups(b)
	p := platform.Start(b, platform.Options{Kubernetes: true, Set: []string{"log.level=info"}})
	s := &started{Platform: p, image: p.Push("demo/hello:1"), kube: kubeClient(b, p.Kubeconfig), groups: g, seen: map[string]bool{}}
	p.Login()
	if err := serviceAccount(b.Context(), s.kube); err != nil {
		b.Fatal(err)
	}
	if _, err := p.Kubectl("", "create", "secret", "docker-registry", "registry", "--docker-server="+p.Registry, "--docker-username=admin", "--docker-password="+p.Password()); err != nil {
		b.Fatal(err)
	}
	var err error
	s.raw, err = openCRI(filepath.Join(p.StateDir, "containerd", "run", "c.sock"), filepath.Join(p.Dir, "raw"), &rt.AuthConfig{Username: "admin", Password: p.Password()})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// platformStart creates a pod and gives the time until its process began.
func (s *started) platformStart(ctx context.Context, name, class string) (time.Duration, error) {
	t0 := time.Now()
	made, err := s.kube.CoreV1().Pods("default").Create(ctx, pod(name, s.image, class, "stamp"), metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	log, err := s.newLog(ctx)
	if err != nil {
		return 0, fmt.Errorf("pod %s: %w", name, err)
	}
	at, err := stamp(ctx, log)
	if err != nil {
		return 0, err
	}
	// Gone for good, its log too, before the next one begins.
	if err := s.kube.CoreV1().Pods("default").Delete(ctx, made.Name, metav1.DeleteOptions{}); err != nil {
		return 0, err
	}
	return at.Sub(t0), drain(ctx, s.kube)
}

// newLog waits for an instance that was not there before and gives the path of its log file.
func (s *started) newLog(ctx context.Context) (string, error) {
	dir := s.logs()
	for {
		instances, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		for _, in := range instances {
			if !s.seen[in.Name()] {
				return s.logOf(in.Name()), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no instance appears: %w", ctx.Err())
		case <-time.After(look):
		}
	}
}

// logs has a directory for each instance.
func (s *started) logs() string { return filepath.Join(s.StateDir, "log", "instances", org) }

// logOf is where an instance's container writes; newLog gives it no more.
func (s *started) logOf(instance string) string {
	s.seen[instance] = true
	return filepath.Join(s.logs(), instance, "app", "0.log")
}

// BenchmarkColdStart is the time from the create of a pod to the first instruction of its process, the image pulled anew
// each time, beside the same by raw CRI calls.
func BenchmarkColdStart(b *testing.B) {
	s := start(b)
	for class, handler := range map[string]string{"runc": "runc", "gvisor": "runsc"} {
		b.Run(class, func(b *testing.B) {
			const rounds = 10
			ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
			defer cancel()
			var ours, raws []time.Duration
			for i := range rounds {
				if err := s.raw.forget(ctx, s.Registry+"/"); err != nil {
					b.Fatal(err)
				}
				d, err := s.platformStart(ctx, fmt.Sprintf("cold-%s-%d", class, i), class)
				if err != nil {
					b.Fatal(err)
				}
				ours = append(ours, d)

				if err := s.raw.forget(ctx, s.Registry+"/"); err != nil {
					b.Fatal(err)
				}
				t0 := time.Now()
				p, err := s.raw.start(ctx, fmt.Sprintf("raw-%s-%d", class, i), handler, s.image, true, "stamp")
				if err != nil {
					b.Fatal(err)
				}
				at, err := stamp(ctx, p.log)
				if err != nil {
					b.Fatal(err)
				}
				raws = append(raws, at.Sub(t0))
				if err := s.raw.remove(ctx, p); err != nil {
					b.Fatal(err)
				}
			}
			report(b, median(ours), median(raws), "ms", median(ours)/median(raws))
		})
	}
}

// report writes our figure, the peer's and their ratio.
func report(b *testing.B, ours, peer float64, unit string, ratio float64) {
	b.ReportMetric(0, "ns/op") // wall time of the whole says nothing
	b.ReportMetric(ours, "ours-"+unit)
	b.ReportMetric(peer, "raw-"+unit)
	b.ReportMetric(ratio, "ratio")
}

// instances is how many start at once: 100, or CUMULET_BENCH_INSTANCES.
func instances(b *testing.B) int {
	text := os.Getenv("CUMULET_BENCH_INSTANCES")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkMassStart is the processor time for 100 starts at once until all have begun, that of every service of the
// platform included, and of the Kubernetes control plane where it has a part, beside the same by raw CRI calls, eight at a time. Instances are
// asked of the container instance service, as raw CRI calls are asked of containerd; pods go through Kubernetes too, with
// its scheduler, its objects and its events. The image is there for every side. The platform and the control plane run
// idle beside the raw side, and are not counted there. Raw calls and instances take turns, six times, each the first three times, and
// the ratios are the medians of the rounds'. Pods come once, and last.
func BenchmarkMassStart(b *testing.B) {
	n := instances(b)
	s := start(b)
	service, err := s.service(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer service.Close()
	for class, handler := range map[string]string{"runc": "runc", "gvisor": "runsc"} {
		b.Run(class, func(b *testing.B) {
			ctx, cancel := context.WithTimeout(b.Context(), 15*time.Minute)
			defer cancel()
			// Everything is idle beside the raw side but containerd. Kubernetes has no part in instances.
			alone := func(process string) bool { return process == "containerd" }
			withService := func(process string) bool { return process != "devcluster" }
			withKubernetes := func(string) bool { return true }
			// The image is there, and the org may run it.
			if _, err := s.platformStart(ctx, "warm-"+class, class); err != nil {
				b.Fatal(err)
			}
			var raw, ours []usage
			b.Run("instances", func(b *testing.B) {
				many := func(round int) string { return fmt.Sprintf("many-%s-%d", class, round) }
				err := turns(6, func(round int) error {
					used, err := s.used(b, "instances "+class, n, withService, func() error { return s.instancesMany(ctx, service, many(round), class, n) })
					if err != nil {
						return err
					}
					ours = append(ours, used)
					return end(ctx, service)
				}, func(round int) error {
					used, err := s.used(b, "raw "+class, n, alone, func() error { return s.rawMany(ctx, many(round), handler, n) })
					if err != nil {
						return err
					}
					raw = append(raw, used)
					return s.removeRaw(ctx) // idle sandboxes cost the other side
				})
				if err != nil {
					b.Fatal(err)
				}
				reportUsage(b, class, ours, raw)
			})
			b.Run("pods", func(b *testing.B) {
				calls := apiRequests(ctx, s.kube)
				ours, err := s.used(b, "pods "+class, n, withKubernetes, func() error { return s.platformMany(ctx, class, n) })
				if err != nil {
					b.Fatal(err)
				}
				b.Logf("requests a pod: %s", apiRequests(ctx, s.kube).since(calls, n))
				if err := s.kube.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
					b.Fatal(err)
				}
				if err := drain(ctx, s.kube); err != nil {
					b.Fatal(err)
				}
				last := raw[len(raw)-1:] // the machine is as it was then
				reportUsage(b, class, []usage{ours}, last)
			})
		})
	}
}

// used is the processor time that f takes: of this process, containerd with its shims, the sandboxes, and those of the
// platform's processes that counts names. Kernel threads and what else runs on the machine are not in it.
func (s *started) used(b *testing.B, what string, n int, counts func(process string) bool, f func() error) (usage, error) {
	all := []string{groupAll, groupRaw, s.Cgroup}
	parts, sandboxes, client := s.CPU(), 0.0, clientSeconds()
	before, err := s.groups.seconds(all...)
	if err == nil {
		sandboxes, err = s.groups.seconds(all[1:]...)
	}
	if err == nil {
		err = f()
	}
	if err != nil {
		return usage{}, err
	}
	after, err := s.groups.seconds(all...)
	if err != nil {
		return usage{}, err
	}
	for name, since := range s.CPU() {
		if !counts(name) {
			after -= since - parts[name]
		}
	}
	inside, err := s.groups.seconds(all[1:]...)
	b.Logf("%s: processor ms an instance: %.1f, sandboxes %.1f, client %.1f, %s, the rest shims", what, (after-before)*1000/float64(n),
		(inside-sandboxes)*1000/float64(n), (clientSeconds()-client)*1000/float64(n), cpuSince(s.CPU(), parts, n))
	return usage{all: after - before, sandboxes: inside - sandboxes}, err
}

// usage is processor time in seconds.
type usage struct {
	all, sandboxes float64
}

// reportUsage reports medians and ratios. For runc there is beside that of all that of what a second inside of the sandboxes came
// with: the work in there is the same on both sides, so that a machine whose speed changes within a round is not in it. (gVisor's
// sandbox does more of its work the more CPU it may take.)
func reportUsage(b *testing.B, class string, ours, peer []usage) {
	b.Helper()
	each := func(us []usage, of func(usage) float64) []float64 {
		var all []float64
		for _, u := range us {
			all = append(all, of(u))
		}
		return all
	}
	all := func(u usage) float64 { return u.all }
	steady := func(u usage) float64 { return u.all / u.sandboxes }
	report(b, middle(each(ours, all)), middle(each(peer, all)), "cpu-s", ratio(each(ours, all), each(peer, all)))
	if class == "runc" {
		b.ReportMetric(ratio(each(ours, steady), each(peer, steady)), "steady-ratio")
	}
}

// rawMany starts n and waits until each has begun; removing them is not counted for either side.
func (s *started) rawMany(ctx context.Context, name, handler string, n int) error {
	var group errgroup.Group
	group.SetLimit(8)
	var mu sync.Mutex
	var pods []*rawPod
	for i := range n {
		group.Go(func() error {
			p, err := s.raw.start(ctx, fmt.Sprintf("%s-%d", name, i), handler, s.image, false, "stamp")
			if err != nil {
				return err
			}
			if _, err := stamp(ctx, p.log); err != nil {
				return err
			}
			mu.Lock()
			pods = append(pods, p)
			mu.Unlock()
			return nil
		})
	}
	err := group.Wait()
	s.rawPods = append(s.rawPods, pods...)
	return err
}

func (s *started) platformMany(ctx context.Context, class string, n int) error {
	var group errgroup.Group
	group.SetLimit(8)
	for i := range n {
		group.Go(func() error {
			_, err := s.kube.CoreV1().Pods("default").Create(ctx, pod(fmt.Sprintf("many-%s-%d", class, i), s.image, class, "stamp"), metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for range n {
		log, err := s.newLog(ctx)
		if err != nil {
			return err
		}
		if _, err := stamp(ctx, log); err != nil {
			return err
		}
	}
	return nil
}

// removeRaw removes the raw side's pods.
func (s *started) removeRaw(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(8)
	for _, p := range s.rawPods {
		group.Go(func() error { return s.raw.remove(ctx, p) })
	}
	s.rawPods = nil
	return group.Wait()
}
