package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"cumulet.io/hack/platform"
)

// BenchmarkVirtualNode is pods a second with the in-memory engine, through every service of the platform, beside a bare
// client that writes the same to the same API server: the same pods, each with its token of a service account, each
// status that the platform wrote in its order, and the events that it has. Both are timed from the first create until every pod
// is Ready. The sides take turns, each the first as often; the ratio is the median of the rounds'.
//
// In "apart" the control plane has half of the processors for itself, as it has machines of its own where a virtual node is
// used: what a second gives is what the API server takes from either. In "together" the platform and the control plane
// share all processors, and the ratio is that of their work.
func BenchmarkVirtualNode(b *testing.B) {
	p := platform.Start(b, platform.Options{Kubernetes: true, Engine: "memory", Set: []string{"log.level=info", "kubelet.clusterDNS=[127.0.0.1]"}})
	v := &vnode{Platform: p, kube: kubeClient(b, p.Kubeconfig)}
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	var err error
	if v.node, err = firstNode(ctx, v.kube); err != nil {
		b.Fatal(err)
	}
	if err := serviceAccount(ctx, v.kube); err != nil {
		b.Fatal(err)
	}
	b.Run("apart", func(b *testing.B) {
		apart(b, p)
		v.compare(ctx, b)
	})
	b.Run("together", func(b *testing.B) { v.compare(ctx, b) })
}

// vnode is a platform with a virtual node, and what was seen of its pods.
type vnode struct {
	*platform.Platform
	kube  kubernetes.Interface
	node  string
	wrote *written
}

// compare measures and reports both sides.
func (v *vnode) compare(ctx context.Context, b *testing.B) {
	b.Helper()
	const n = 500
	var ours, bare []time.Duration
	side := func(name string, start func(ctx context.Context, prefix string, n int) error, took *[]time.Duration) func(int) error {
		return func(int) error {
			calls, cpu := apiRequests(ctx, v.kube), v.CPU()
			t0 := time.Now()
			if err := v.ready(ctx, n, func() error { return start(ctx, name, n) }); err != nil {
				return err
			}
			d := time.Since(t0)
			*took = append(*took, d)
			b.Logf("%s: %.1f pods/s; requests a pod: %s; processor ms a pod: %s", name, float64(n)/d.Seconds(),
				apiRequests(ctx, v.kube).since(calls, n), cpuSince(v.CPU(), cpu, n))
			if err := v.kube.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
				return err
			}
			return drain(ctx, v.kube)
		}
	}
	if err := turns(8, side("ours", v.ours, &ours), side("bare", v.bare, &bare)); err != nil {
		b.Fatal(err)
	}
	report(b, n/median(ours)*1000, n/median(bare)*1000, "pods/s", ratio(milliseconds(bare), milliseconds(ours)))
}

// ready follows what f starts until n pods are Ready, and notes what was written of one.
func (v *vnode) ready(ctx context.Context, n int, f func() error) error {
	w, err := follow(ctx, v.kube)
	if err != nil {
		return err
	}
	defer w.stop()
	if err := f(); err != nil {
		return err
	}
	if err := w.wait(ctx, n); err != nil {
		return err
	}
	v.wrote, err = w.written()
	return err
}

// each calls f for the pods of a side, as many at a time as a busy controller.
func each(n int, f func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error { return f(i) })
	}
	return group.Wait()
}

// ours gives n pods to the virtual node.
func (v *vnode) ours(ctx context.Context, prefix string, n int) error {
	return each(n, func(i int) error {
		_, err := v.kube.CoreV1().Pods("default").Create(ctx, benchPod(prefix, i, v.node), metav1.CreateOptions{})
		return err
	})
}

// bare gives n pods to a node that nobody serves, and writes of them what the virtual node wrote of its own.
func (v *vnode) bare(ctx context.Context, prefix string, n int) error {
	wrote := v.wrote
	return each(n, func(i int) error { return wrote.replay(ctx, v.kube, benchPod(prefix, i, "nobody")) })
}

func benchPod(prefix string, i int, node string) *corev1.Pod {
	o := pod(fmt.Sprintf("%s-%d", prefix, i), "example.test/app:1", "runc", "sleep", "100000")
	o.Spec.NodeName, o.Spec.ImagePullSecrets = node, nil
	return o
}

// written is what the platform wrote of one pod.
type written struct {
	states [][]byte // merge patches of annotations and status, in order
	events []corev1.Event
}

// replay writes a pod and the same about it.
func (w *written) replay(ctx context.Context, cs kubernetes.Interface, o *corev1.Pod) error {
	pods := cs.CoreV1().Pods("default")
	made, err := pods.Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	seconds := int64(3607) // what admission puts into pods
	if _, err := cs.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{ExpirationSeconds: &seconds,
		BoundObjectRef: &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: made.Name, UID: made.UID}}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	for _, s := range w.states {
		if _, err := pods.Patch(ctx, made.Name, types.MergePatchType, s, metav1.PatchOptions{}, "status"); err != nil {
			return err
		}
	}
	for i, e := range w.events {
		e.ObjectMeta = metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("%s.%d", made.Name, i)}
		e.InvolvedObject.Name, e.InvolvedObject.UID = made.Name, made.UID
		if _, err := cs.CoreV1().Events("default").Create(ctx, &e, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// follower sees what becomes of the pods of a namespace.
type follower struct {
	pods, events <-chan watched
	stop         func()
	states       map[string][]corev1.Pod // each version of a pod, by name
	ready        map[string]bool
	told         map[string][]corev1.Event
}

func follow(ctx context.Context, cs kubernetes.Interface) (*follower, error) {
	ctx, stop := context.WithCancel(ctx)
	f := &follower{stop: stop, states: map[string][]corev1.Pod{}, ready: map[string]bool{}, told: map[string][]corev1.Event{}}
	list, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{Limit: 1})
	if err == nil {
		f.pods, err = watch(ctx, cs.CoreV1().Pods("default").Watch, list.ResourceVersion)
	}
	if err == nil {
		f.events, err = watch(ctx, cs.CoreV1().Events("default").Watch, list.ResourceVersion)
	}
	if err != nil {
		stop()
		return nil, err
	}
	return f, nil
}

// next takes note of one change.
func (f *follower) next(ctx context.Context) error {
	var w watched
	select {
	case <-ctx.Done():
		return fmt.Errorf("%d pods are ready: %w", len(f.ready), ctx.Err())
	case w = <-f.pods:
	case w = <-f.events:
	}
	switch o := w.object.(type) {
	case *corev1.Pod:
		f.states[o.Name] = append(f.states[o.Name], *o)
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				f.ready[o.Name] = true
			}
		}
	case *corev1.Event:
		f.told[o.InvolvedObject.Name] = append(f.told[o.InvolvedObject.Name], *o)
	}
	return w.err
}

// wait waits until n pods are Ready.
func (f *follower) wait(ctx context.Context, n int) error {
	for len(f.ready) < n {
		if err := f.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// written is what was written of a pod with the usual number of states, which is the median.
func (f *follower) written() (*written, error) {
	byStates := slices.SortedFunc(maps.Keys(f.ready), func(a, b string) int { return len(f.states[a]) - len(f.states[b]) })
	name := byStates[len(byStates)/2]
	w := &written{events: f.told[name]}
	for _, o := range f.states[name] {
		if o.Status.StartTime == nil {
			continue // as it was created
		}
		s, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": o.Annotations}, "status": o.Status})
		if err != nil {
			return nil, err
		}
		w.states = append(w.states, s)
	}
	return w, nil
}
