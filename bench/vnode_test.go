package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"cumulet.io/hack/platform"
)

// BenchmarkVirtualNode is pods a second until Ready with the in-memory engine, through every service of the platform,
// beside a bare client that writes the same pods and the statuses that the platform wrote to the same API server.
func BenchmarkVirtualNode(b *testing.B) {
	const n, workers = 500, 16
	p := platform.Start(b, platform.Options{Kubernetes: true, Engine: "memory", Set: []string{"log.level=info", "kubelet.clusterDNS=[127.0.0.1]"}})
	cs := client(b, p.Kubeconfig)
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	var node string
	for node == "" {
		nodes, err := cs.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			b.Fatal(err)
		}
		for _, o := range nodes.Items {
			node = o.Name
		}
		time.Sleep(100 * time.Millisecond)
	}

	t0 := time.Now()
	if err := create(ctx, cs, "ours", node, n, workers); err != nil {
		b.Fatal(err)
	}
	ours, err := ready(ctx, cs, n)
	if err != nil {
		b.Fatal(err)
	}
	took := time.Since(t0)
	// What the platform wrote is what the bare client has to write.
	status, annotations := ours[0].Status, ours[0].Annotations
	if err := cs.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		b.Fatal(err)
	}
	if err := (&started{kube: cs}).drain(ctx); err != nil {
		b.Fatal(err)
	}

	// A node that nobody serves: the platform leaves its pods alone.
	t0 = time.Now()
	if err := create(ctx, cs, "bare", "nobody", n, workers); err != nil {
		b.Fatal(err)
	}
	if err := write(ctx, cs, status, annotations, n, workers); err != nil {
		b.Fatal(err)
	}
	if _, err := ready(ctx, cs, n); err != nil {
		b.Fatal(err)
	}
	bare := time.Since(t0)
	report(b, n/took.Seconds(), n/bare.Seconds(), "pods/s")
}

func create(ctx context.Context, cs kubernetes.Interface, prefix, node string, n, workers int) error {
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range n {
		group.Go(func() error {
			o := pod(fmt.Sprintf("%s-%d", prefix, i), "example.test/app:1", "runc", "sleep", "100000")
			o.Spec.NodeName, o.Spec.ImagePullSecrets = node, nil
			_, err := cs.CoreV1().Pods("default").Create(ctx, o, metav1.CreateOptions{})
			return err
		})
	}
	return group.Wait()
}

// write is the bare client: the annotations and the status of each pod, one request each.
func write(ctx context.Context, cs kubernetes.Interface, status corev1.PodStatus, annotations map[string]string, n, workers int) error {
	meta, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	stat, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range n {
		group.Go(func() error {
			name := fmt.Sprintf("bare-%d", i)
			if _, err := cs.CoreV1().Pods("default").Patch(ctx, name, types.MergePatchType, meta, metav1.PatchOptions{}); err != nil {
				return err
			}
			_, err := cs.CoreV1().Pods("default").Patch(ctx, name, types.MergePatchType, stat, metav1.PatchOptions{}, "status")
			return err
		})
	}
	return group.Wait()
}

// ready watches until n pods are Ready and gives them.
func ready(ctx context.Context, cs kubernetes.Interface, n int) ([]corev1.Pod, error) {
	list, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	done := map[string]corev1.Pod{}
	take := func(o *corev1.Pod) {
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				done[o.Name] = *o
			}
		}
	}
	for i := range list.Items {
		take(&list.Items[i])
	}
	w, err := cs.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	for len(done) < n {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d pods are ready: %w", len(done), n, ctx.Err())
		case e, ok := <-w.ResultChan():
			if !ok {
				return nil, fmt.Errorf("the watch ended at %d of %d pods", len(done), n)
			}
			if o, ok := e.Object.(*corev1.Pod); ok {
				take(o)
			}
		}
	}
	var pods []corev1.Pod
	for _, o := range done {
		pods = append(pods, o)
	}
	return pods, nil
}
