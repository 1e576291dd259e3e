package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// watched is one change of an object, or the error that ended the watch.
type watched struct {
	kind   apiwatch.EventType
	object runtime.Object
	err    error
}

type watchFunc func(context.Context, metav1.ListOptions) (apiwatch.Interface, error)

// watch gives what changes after a version until ctx ends, also when the server ends the watch in between.
func watch(ctx context.Context, f watchFunc, version string) (<-chan watched, error) {
	w, err := watchtools.NewRetryWatcherWithContext(ctx, version, &cache.ListWatch{WatchFuncWithContext: cache.WatchFuncWithContext(f)})
	if err != nil {
		return nil, err
	}
	out := make(chan watched, 4096)
	go func() {
		defer w.Stop()
		for {
			c := watched{err: errors.New("the watch has ended")}
			select {
			case e, ok := <-w.ResultChan():
				if ok {
					c = watched{kind: e.Type, object: e.Object}
				}
				if e.Type == apiwatch.Error {
					c.err = apierrors.FromObject(e.Object)
				}
			case <-ctx.Done():
				return
			}
			select {
			case out <- c:
				if c.err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// until watches what a list began with until done says so.
func until(ctx context.Context, f watchFunc, version string, done func(watched) bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ch, err := watch(ctx, f, version)
	if err != nil {
		return err
	}
	for {
		select {
		case c := <-ch:
			if c.err != nil || done(c) {
				return c.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// firstNode waits for a node and gives its name.
func firstNode(ctx context.Context, cs kubernetes.Interface) (name string, err error) {
	list, err := cs.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) > 0 {
		for _, o := range list.Items {
			name = o.Name
		}
		return name, err
	}
	err = until(ctx, cs.CoreV1().Nodes().Watch, list.ResourceVersion, func(c watched) bool {
		if o, ok := c.object.(*corev1.Node); ok {
			name = o.Name
		}
		return name != ""
	})
	return name, err
}

// serviceAccount waits for the namespace's account, without which no pod is admitted.
func serviceAccount(ctx context.Context, cs kubernetes.Interface) error {
	list, err := cs.CoreV1().ServiceAccounts("default").List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) > 0 {
		return err
	}
	return until(ctx, cs.CoreV1().ServiceAccounts("default").Watch, list.ResourceVersion, func(c watched) bool { return c.kind == apiwatch.Added })
}

// drain waits until no pod is left.
func drain(ctx context.Context, cs kubernetes.Interface) error {
	list, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		return err
	}
	left := map[string]bool{}
	for _, o := range list.Items {
		left[o.Name] = true
	}
	err = until(ctx, cs.CoreV1().Pods("default").Watch, list.ResourceVersion, func(c watched) bool {
		if o, ok := c.object.(*corev1.Pod); ok && c.kind == apiwatch.Deleted {
			delete(left, o.Name)
		}
		return len(left) == 0
	})
	if err != nil {
		return fmt.Errorf("%d pods are left: %w", len(left), err)
	}
	return nil
}

// requests are the API server's counts of requests, by verb and resource.
type requests map[string]float64

// apiRequests reads them; empty when they cannot be read.
func apiRequests(ctx context.Context, cs kubernetes.Interface) requests {
	text, err := cs.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil
	}
	all := requests{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		labels, ok := strings.CutPrefix(name, "apiserver_request_total{")
		n, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			continue
		}
		l := map[string]string{}
		for kv := range strings.SplitSeq(labels, ",") {
			k, v, _ := strings.Cut(kv, "=")
			l[k] = strings.Trim(v, `"`)
		}
		key := l["verb"] + " " + l["resource"]
		if l["subresource"] != "" {
			key += "/" + l["subresource"]
		}
		all[key] += n
	}
	return all
}

// since writes how many were made since others, for each of n.
func (r requests) since(before requests, n int) string {
	var all []string
	for k, v := range r {
		if d := (v - before[k]) / float64(n); d >= 0.05 {
			all = append(all, fmt.Sprintf("%s %.2f", k, d))
		}
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}

// cpuSince writes the processor milliseconds of each process, for each of n.
func cpuSince(now, before map[string]float64, n int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if ms := (now[k] - before[k]) * 1000 / float64(n); ms >= 0.05 {
			all = append(all, fmt.Sprintf("%s %.1f", k, ms))
		}
	}
	return strings.Join(all, ", ")
}
