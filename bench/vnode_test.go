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
// is Ready. The sides take turns; the ratio is of their medians.
func BenchmarkVirtualNode(b *testing.B) {
	const n, workers, rounds = 500, 16, 7
	p := platform.Start(b, platform.Options{Kubernetes: true, Engine: "memory", Set: []string{"log.level=info", "kubelet.clusterDNS=[127.0.0.1]"}})
	cs := kubeClient(b, p.Kubeconfig)
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	node, err := firstNode(ctx, cs)
	if err != nil {
		b.Fatal(err)
	}
	if err := serviceAccount(ctx, cs); err != nil {
		b.Fatal(err)
	}
	spend := func(side string, f func(prefix string) error, round int) time.Duration {
		calls, cpu := apiRequests(ctx, cs), p.CPU()
		t0 := time.Now()
		if err := f(fmt.Sprintf("%s%d", side, round)); err != nil {
			b.Fatal(err)
		}
		took := time.Since(t0)
		b.Logf("%s: %.1f pods/s; requests a pod: %s; processor ms a pod: %s", side, n/took.Seconds(), apiRequests(ctx, cs).since(calls, n), cpuSince(p.CPU(), cpu, n))
		if err := cs.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			b.Fatal(err)
		}
		if err := drain(ctx, cs); err != nil {
			b.Fatal(err)
		}
		return took
	}
	var wrote *written
	ours := func(prefix string) error {
		w, err := follow(ctx, cs)
		if err != nil {
			return err
		}
		defer w.stop()
		var group errgroup.Group
		group.SetLimit(workers)
		for i := range n {
			group.Go(func() error {
				_, err := cs.CoreV1().Pods("default").Create(ctx, benchPod(prefix, i, node), metav1.CreateOptions{})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if err := w.wait(ctx, n); err != nil {
			return err
		}
		wrote, err = w.written()
		return err
	}
	bare := func(prefix string) error {
		w, err := follow(ctx, cs)
		if err != nil {
			return err
		}
		defer w.stop()
		var group errgroup.Group
		group.SetLimit(workers)
		for i := range n {
			group.Go(func() error { return wrote.replay(ctx, cs, benchPod(prefix, i, "nobody")) }) // a node that nobody serves
		}
		if err := group.Wait(); err != nil {
			return err
		}
		return w.wait(ctx, n)
	}
	var oursTook, bareTook []time.Duration
	for i := range rounds {
		oursTook = append(oursTook, spend("ours", ours, i))
		bareTook = append(bareTook, spend("bare", bare, i))
	}
	report(b, n/median(oursTook)*1000, n/median(bareTook)*1000, "pods/s")
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
