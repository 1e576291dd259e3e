package provider_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/testenv"
	"cumulet.io/provider"
	"cumulet.io/provider/internal/testservice"
	"cumulet.io/provider/podspec"
)

func TestMain(m *testing.M) {
	// Started by a library's import, and never ended.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const org = "acme"

// rig is a provider between a fake API server and a real service.
type rig struct {
	t       *testing.T
	client  *fake.Clientset
	service *testservice.Service
	faults  *faults
	p       *provider.Provider
	events  *events
	stop    func()
	// reconcile is how often the provider lists.
	reconcile time.Duration
}

// faults is the service with faults between it and the provider.
type faults struct {
	*testservice.Service
	// loseCreates makes so many creates succeed without the caller hearing of it.
	loseCreates atomic.Int32
	// refuse, when set, is what creates answer.
	refuse atomic.Pointer[error]
	// goneWatches makes so many watches end as too old.
	goneWatches atomic.Int32
	// lists counts listings; down makes them fail.
	lists atomic.Int32
	down  atomic.Bool
	// hide makes an instance unknown.
	hide atomic.Pointer[string]
}

func (f *faults) Create(ctx context.Context, o string, req cis.CreateRequest) (*cis.Instance, bool, error) {
	if err := f.refuse.Load(); err != nil {
		return nil, false, *err
	}
	in, created, err := f.Service.Create(ctx, o, req)
	if err == nil && f.loseCreates.Add(-1) >= 0 {
		return nil, false, problem.New(problem.ErrUnavailable, "the answer was lost")
	}
	return in, created, err
}

func (f *faults) Get(ctx context.Context, o, id string) (*cis.Instance, error) {
	if h := f.hide.Load(); h != nil && *h == id {
		return nil, problem.New(problem.ErrNotFound, "no instance %s", id)
	}
	return f.Service.Get(ctx, o, id)
}

func (f *faults) List(ctx context.Context, o string, req cis.ListRequest) (*cis.InstanceList, error) {
	f.lists.Add(1)
	if f.down.Load() {
		return nil, problem.New(problem.ErrUnavailable, "down")
	}
	list, err := f.Service.List(ctx, o, req)
	if h := f.hide.Load(); h != nil && err == nil {
		c := *list
		c.Items = slices.DeleteFunc(slices.Clone(list.Items), func(in cis.Instance) bool { return in.ID == *h })
		list = &c
	}
	return list, err
}

func (f *faults) Watch(ctx context.Context, o, node, cursor string) iter.Seq2[cis.WatchItem, error] {
	if f.goneWatches.Add(-1) >= 0 {
		return func(yield func(cis.WatchItem, error) bool) {
			yield(cis.WatchItem{}, problem.New(problem.ErrGone, "too old"))
		}
	}
	return f.Service.Watch(ctx, o, node, cursor)
}

// events keeps events as "pod reason: message".
type events struct {
	mu  sync.Mutex
	all []string
}

var _ record.EventRecorder = (*events)(nil)

func (e *events) Event(o runtime.Object, kind, reason, message string) {
	name := "?"
	if ref, ok := o.(*corev1.ObjectReference); ok {
		name = ref.Name
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf("%s %s %s: %s", name, kind, reason, message))
}

func (e *events) Eventf(o runtime.Object, kind, reason, format string, args ...any) {
	e.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

func (e *events) AnnotatedEventf(o runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	e.Eventf(o, kind, reason, format, args...)
}

func (e *events) count(part string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, x := range e.all {
		if strings.Contains(x, part) {
			n++
		}
	}
	return n
}

// newRig makes a rig; up starts its provider.
func newRig(t *testing.T, objects ...runtime.Object) *rig {
	t.Helper()
	s := testservice.Start(t)
	return &rig{t: t, client: fake.NewClientset(objects...), service: s, faults: &faults{Service: s}, events: &events{}, reconcile: 100 * time.Millisecond}
}

func (r *rig) up() {
	r.t.Helper()
	parts := r.service.Parts()
	parts.Instances, parts.Watcher = r.faults, r.faults
	ctx, cancel := context.WithCancel(context.Background())
	pods := informers.NewSharedInformerFactory(r.client, 0)
	objects := informers.NewSharedInformerFactory(r.client, 0)
	core := objects.Core().V1()
	resolver := &provider.Objects{Client: r.client, ConfigMaps: core.ConfigMaps().Lister(), Secrets: core.Secrets().Lister(),
		ServiceAccounts: core.ServiceAccounts().Lister(), ServiceLister: core.Services().Lister()}
	informer := pods.Core().V1().Pods().Informer()
	p, err := provider.New(provider.Config{
		Node: "vnode", Org: org, Orgs: map[string]string{"theirs": "other"}, Services: parts, Client: r.client, Pods: informer,
		Builder: podspec.New(podspec.Settings{Node: "vnode"}, resolver), Recorder: r.events, Workers: 4, Reconcile: r.reconcile,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.p = p
	if _, err := core.ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { p.ObjectChanged("configmap", o.(*corev1.ConfigMap).Namespace, o.(*corev1.ConfigMap).Name) },
		UpdateFunc: func(_, o any) {
			p.ObjectChanged("configmap", o.(*corev1.ConfigMap).Namespace, o.(*corev1.ConfigMap).Name)
		},
	}); err != nil {
		r.t.Fatal(err)
	}
	objects.Start(ctx.Done())
	objects.WaitForCacheSync(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	pods.Start(ctx.Done())
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Errorf("provider: %v", err)
			}
			pods.Shutdown()
			objects.Shutdown()
		})
	}
	r.t.Cleanup(r.stop)
}

func (r *rig) eventually(f func() error) {
	r.t.Helper()
	testenv.Eventually(r.t, 20*time.Second, f)
}

func newPod(name, image string, change ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: "vnode", DNSPolicy: corev1.DNSDefault, RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "app", Image: image}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, f := range change {
		f(pod)
	}
	return pod
}

func (r *rig) create(pod *corev1.Pod) *corev1.Pod {
	r.t.Helper()
	made, err := r.client.CoreV1().Pods(pod.Namespace).Create(context.Background(), pod, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

func (r *rig) get(name string) (*corev1.Pod, error) {
	return r.client.CoreV1().Pods("shop").Get(context.Background(), name, metav1.GetOptions{})
}

// change changes a pod through the API, without losing what the provider writes in the meantime.
func (r *rig) change(name, patch, sub string) {
	r.t.Helper()
	var subs []string
	if sub != "" {
		subs = []string{sub}
	}
	if _, err := r.client.CoreV1().Pods("shop").Patch(context.Background(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subs...); err != nil {
		r.t.Fatal(err)
	}
}

// pod waits until a pod satisfies ok.
func (r *rig) pod(name string, ok func(*corev1.Pod) bool) *corev1.Pod {
	r.t.Helper()
	var pod *corev1.Pod
	r.eventually(func() error {
		var err error
		if pod, err = r.get(name); err != nil {
			return err
		}
		if !ok(pod) {
			return fmt.Errorf("pod %s: %+v", name, pod.Status)
		}
		return nil
	})
	return pod
}

func phase(want corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p.Status.Phase == want }
}

func (r *rig) instance(name string) *cis.Instance {
	r.t.Helper()
	var found *cis.Instance
	r.eventually(func() error {
		list, err := r.service.List(context.Background(), org, cis.ListRequest{Limit: 1000})
		if err != nil {
			return err
		}
		n := 0
		for i := range list.Items {
			if list.Items[i].Spec.Name == name {
				n++
				found = &list.Items[i]
			}
		}
		if n != 1 {
			return fmt.Errorf("%d instances of %s", n, name)
		}
		return nil
	})
	return found
}

func (r *rig) event(part string) {
	r.t.Helper()
	r.eventually(func() error {
		if r.events.count(part) == 0 {
			r.events.mu.Lock()
			defer r.events.mu.Unlock()
			return fmt.Errorf("no event with %q among %q", part, r.events.all)
		}
		return nil
	})
}

func TestALostAnswerMakesNoSecondInstance(t *testing.T) {
	r := newRig(t)
	r.faults.loseCreates.Store(2)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	r.pod("web", phase(corev1.PodRunning))
	if in := r.instance("web"); in.Key != "pod-uid-web" || in.Org != org {
		t.Errorf("instance %+v", in)
	}
}

// The library is told of a pod as one that it has yet to create, once, whatever the informer has brought already.
func TestGetPodFollowsCreatePod(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	pod := r.pod("web", phase(corev1.PodRunning))
	if _, err := r.p.GetPod(t.Context(), "shop", "web"); !errdefs.IsNotFound(err) {
		t.Errorf("before CreatePod: %v", err)
	}
	if err := r.p.CreatePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if got, err := r.p.GetPod(t.Context(), "shop", "web"); err != nil || got.UID != pod.UID {
		t.Errorf("after CreatePod: %v, %v", got, err)
	}
}

func TestOrgIsTheNamespacesAndNothingElses(t *testing.T) {
	r := newRig(t)
	r.up()
	pod := newPod("web", testservice.ImageRuns, func(p *corev1.Pod) {
		p.Namespace = "theirs"
		p.Labels = map[string]string{"org": org, "cumulet.io/org": org}
	})
	r.create(pod)
	r.eventually(func() error {
		if n := len(r.service.Live(t, "other")); n != 1 {
			return fmt.Errorf("%d instances", n)
		}
		return nil
	})
	if n := len(r.service.Live(t, org)); n != 0 {
		t.Errorf("%d instances of %s", n, org)
	}
}

func TestTooOldWatchListsAgain(t *testing.T) {
	r := newRig(t)
	r.faults.goneWatches.Store(3)
	r.up()
	r.create(newPod("web", testservice.ImageDone))
	r.pod("web", phase(corev1.PodSucceeded))
	if r.faults.lists.Load() < 4 {
		t.Errorf("%d listings", r.faults.lists.Load())
	}
}

func TestStatusKeepsWhatOthersWrite(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns, func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.org/lb"}}
	}))
	pod := r.pod("web", phase(corev1.PodRunning))
	if c := condition(pod, corev1.ContainersReady); c.Status != corev1.ConditionTrue {
		t.Errorf("ContainersReady %+v", c)
	}
	if c := condition(pod, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("Ready %+v", c)
	}
	r.change("web", `{"metadata":{"labels":{"foreign":"yes"}}}`, "")
	r.change("web", `{"status":{"conditions":[{"type":"example.org/lb","status":"True"}]}}`, "status")
	r.pod("web", func(p *corev1.Pod) bool { return condition(p, corev1.PodReady).Status == corev1.ConditionTrue })
	id := r.instance("web").ID
	r.service.Engine.Set(t, id, func(st *cis.Status) { st.Ready = false; st.Containers[0].Ready = false })
	pod = r.pod("web", func(p *corev1.Pod) bool { return condition(p, corev1.PodReady).Status == corev1.ConditionFalse })
	if pod.Labels["foreign"] != "yes" || condition(pod, "example.org/lb").Status != corev1.ConditionTrue {
		t.Errorf("labels %v, conditions %v", pod.Labels, pod.Status.Conditions)
	}
	for k, v := range map[string]string{cis.AnnotationInstance: id, cis.AnnotationSize: "c0.25-m0.5", provider.AnnotationSandboxClass: "runc"} {
		if pod.Annotations[k] == "" || k != cis.AnnotationSize && pod.Annotations[k] != v {
			t.Errorf("annotation %s is %q", k, pod.Annotations[k])
		}
	}
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestWhatWeWriteIsAPatchOfOurs(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageDone))
	r.pod("web", phase(corev1.PodSucceeded))
	for _, a := range r.client.Actions() {
		switch a := a.(type) {
		case clienttesting.PatchActionImpl:
			if a.GetSubresource() != "status" || strings.Contains(string(a.GetPatch()), "labels") || !strings.Contains(string(a.GetPatch()), "uid-web") {
				t.Errorf("patch of %s: %s", a.GetSubresource(), a.GetPatch())
			}
		case clienttesting.UpdateActionImpl:
			t.Errorf("update of %v", a.GetResource())
		}
	}
}

func TestGraceAndRemoval(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("slow", testservice.ImageStubborn))
	r.pod("slow", phase(corev1.PodRunning))
	in := r.instance("slow")
	// The API server's part of a graceful deletion.
	pod, err := r.get("slow")
	if err != nil {
		t.Fatal(err)
	}
	grace, now := int64(1), metav1.Now()
	pod.DeletionGracePeriodSeconds, pod.DeletionTimestamp, pod.Finalizers = &grace, &now, []string{"example.org/keep"}
	if _, err := r.client.CoreV1().Pods("shop").Update(context.Background(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.eventually(func() error {
		in, err := r.service.Get(context.Background(), org, in.ID)
		if err != nil || !in.Desired.Stop || in.Desired.GraceSeconds == nil || *in.Desired.GraceSeconds != 1 {
			return fmt.Errorf("%+v %w", in.Desired, err)
		}
		return nil
	})
	// What the library does when it thinks that the pod is over, has no effect before it is.
	uid := pod.UID
	pods := r.p.PodClient(r.client.CoreV1()).Pods("shop")
	if err := pods.Delete(context.Background(), "slow", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.get("slow"); err != nil {
		t.Fatalf("the pod went before its instance: %v", err)
	}
	r.eventually(func() error {
		if _, err := r.get("slow"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %v", err)
		}
		return nil
	})
	if in, err := r.service.Get(context.Background(), org, in.ID); err != nil || !in.Status.Phase.Final() {
		t.Errorf("the instance is %+v, %v", in, err)
	}
	for _, a := range r.client.Actions() {
		if d, ok := a.(clienttesting.DeleteActionImpl); ok {
			if o := d.GetDeleteOptions(); o.Preconditions == nil || *o.Preconditions.UID != uid || *o.GracePeriodSeconds != 0 {
				t.Errorf("delete with %+v", o)
			}
		}
	}
}

func TestDeletesThatNobodySaw(t *testing.T) {
	r := newRig(t)
	r.up()
	for i := range 5 {
		r.create(newPod(fmt.Sprintf("web-%d", i), testservice.ImageRuns))
		r.pod(fmt.Sprintf("web-%d", i), phase(corev1.PodRunning))
	}
	r.stop()
	// While the API server does not answer, or answers anything but that a pod is gone, no instance ends.
	var broken atomic.Bool
	broken.Store(true)
	var asked atomic.Int32
	r.client.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if broken.Load() {
			asked.Add(1)
			return true, nil, apierrors.NewInternalError(errors.New("broken"))
		}
		return false, nil, nil
	})
	for i := range 5 {
		if err := r.client.CoreV1().Pods("shop").Delete(context.Background(), fmt.Sprintf("web-%d", i), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r.create(newPod("web-0", testservice.ImageRuns, func(p *corev1.Pod) { p.UID = "another" }))
	r.up()
	r.eventually(func() error {
		if n := asked.Load(); n < 15 {
			return fmt.Errorf("asked %d times", n)
		}
		return nil
	})
	for _, in := range r.service.Live(t, org) {
		if in.Desired.Stop {
			t.Fatalf("instance %s was ended on an error's word", in.Spec.Source.UID)
		}
	}
	broken.Store(false)
	r.eventually(func() error {
		live := r.service.Live(t, org)
		if len(live) != 1 || live[0].Spec.Source.UID != "another" {
			return fmt.Errorf("%d live", len(live))
		}
		return nil
	})
}

func TestAServiceThatDoesNotAnswerEndsNothing(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	r.pod("web", phase(corev1.PodRunning))
	r.stop()
	r.faults.down.Store(true)
	r.up()
	before := r.faults.lists.Load()
	r.eventually(func() error {
		if r.faults.lists.Load() < before+2 {
			return errors.New("not asked")
		}
		return nil
	})
	if err, _ := r.p.Trouble(); err == nil {
		t.Error("no trouble is told of")
	}
	if pod, err := r.get("web"); err != nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("%+v %v", pod, err)
	}
	r.faults.down.Store(false)
	r.eventually(func() error { err, _ := r.p.Trouble(); return err })
}

func TestAnInstanceThatIsLost(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	r.pod("web", phase(corev1.PodRunning))
	id := r.instance("web").ID
	r.faults.hide.Store(&id)
	pod := r.pod("web", phase(corev1.PodFailed))
	if pod.Status.Reason != "InstanceLost" || pod.Status.ContainerStatuses[0].State.Terminated == nil {
		t.Errorf("%+v", pod.Status)
	}
	r.event("web Warning InstanceLost")
	if n := len(r.service.Live(t, org)); n != 1 {
		t.Errorf("%d instances: another was made", n)
	}
}

func TestAPodThatSomeoneElseEnds(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	r.pod("web", phase(corev1.PodRunning))
	in := r.instance("web")
	r.change("web", `{"status":{"phase":"Failed","reason":"Evicted"}}`, "status")
	r.eventually(func() error {
		in, err := r.service.Get(context.Background(), org, in.ID)
		if err != nil || !in.Status.Phase.Final() {
			return fmt.Errorf("%v %w", in, err)
		}
		return nil
	})
	if pod, err := r.get("web"); err != nil || pod.Status.Reason != "Evicted" {
		t.Errorf("%+v %v", pod.Status, err)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.up()
	yes := true
	owned := func(p *corev1.Pod) {
		p.Spec.HostPID = true
		p.OwnerReferences = []metav1.OwnerReference{{UID: "set", Controller: &yes, Kind: "ReplicaSet", Name: "set"}}
	}
	r.create(newPod("first", testservice.ImageRuns, owned))
	pod := r.pod("first", phase(corev1.PodFailed))
	if pod.Status.Reason != "Unsupported" || !strings.Contains(pod.Status.Message, "spec.hostPID") {
		t.Errorf("%+v", pod.Status)
	}
	r.event("first Warning Unsupported: spec.hostPID")
	// A ReplicaSet makes the next at once; it has to wait.
	r.create(newPod("second", testservice.ImageRuns, owned))
	r.event("second Warning Unsupported: spec.hostPID")
	start := time.Now()
	pod = r.pod("second", func(p *corev1.Pod) bool { return len(p.Status.ContainerStatuses) > 0 })
	if pod.Status.Phase != corev1.PodPending || pod.Status.ContainerStatuses[0].State.Waiting.Reason != "Unsupported" {
		t.Errorf("%+v", pod.Status)
	}
	r.pod("second", phase(corev1.PodFailed))
	if d := time.Since(start); d < 500*time.Millisecond {
		t.Errorf("failed after %v", d)
	}
	// What the service refuses names the field as well.
	r.create(newPod("image", "NOT AN IMAGE"))
	pod = r.pod("image", phase(corev1.PodFailed))
	if pod.Status.Reason != "Rejected" || !strings.Contains(pod.Status.Message, "spec.containers[0].image") {
		t.Errorf("%+v", pod.Status)
	}
	// A class that the host lacks.
	r.create(newPod("kata", testservice.ImageRuns, func(p *corev1.Pod) { p.Annotations = map[string]string{cis.AnnotationSandbox: "kata"} }))
	r.pod("kata", phase(corev1.PodFailed))
	r.event("hardware virtualisation")
	// No room is no refusal.
	var full error = problem.New(problem.ErrExhausted, "the org's quota is used up")
	r.faults.refuse.Store(&full)
	r.create(newPod("full", testservice.ImageRuns))
	r.event("full Warning QuotaExceeded")
	r.pod("full", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodPending && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting.Reason == "QuotaExceeded"
	})
	r.faults.refuse.Store(nil)
	r.pod("full", phase(corev1.PodRunning))
}

func TestWaitsForAConfigMapAndFollowsIt(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns, func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
			{Name: "info", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		}
	}))
	r.event(`web Warning FailedMount: MountVolume.SetUp failed for volume "conf": configmap "conf" not found`)
	if pod, err := r.get("web"); err != nil || pod.Status.Phase != corev1.PodPending {
		t.Fatalf("%+v %v", pod, err)
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "conf"}, Data: map[string]string{"k": "one"}}
	cm, err := r.client.CoreV1().ConfigMaps("shop").Create(context.Background(), cm, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.pod("web", phase(corev1.PodRunning))
	id := r.instance("web").ID
	files := func(volume string) map[string]string {
		all := map[string]string{}
		f, _ := r.service.Engine.Volume(id, volume)
		for _, x := range f.Files {
			all[x.Path] = string(x.Data)
		}
		return all
	}
	cm.Data["k"] = "two"
	if _, err := r.client.CoreV1().ConfigMaps("shop").Update(context.Background(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.eventually(func() error {
		if got := files("conf"); !maps.Equal(got, map[string]string{"k": "two"}) {
			return fmt.Errorf("files %v", got)
		}
		return nil
	})
	if _, ok := r.service.Engine.Volume(id, "info"); ok {
		t.Error("a volume that has not changed was updated")
	}
	r.change("web", `{"metadata":{"labels":{"app":"web","new":"label"}}}`, "")
	r.eventually(func() error {
		if got := files("info"); !maps.Equal(got, map[string]string{"labels": "app=\"web\"\nnew=\"label\""}) {
			return fmt.Errorf("files %v", got)
		}
		return nil
	})
}

func TestChangesThatHaveNoEffect(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	r.pod("web", phase(corev1.PodRunning))
	r.change("web", `{"spec":{"activeDeadlineSeconds":5,"containers":[{"name":"app","image":"example.org/next:v2"}]}}`, "")
	r.event("web Warning UpdateNotSupported: spec.activeDeadlineSeconds, spec.containers[0].image")
	if n := r.events.count("UpdateNotSupported"); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestANewProviderFindsItsInstances(t *testing.T) {
	r := newRig(t)
	r.up()
	r.create(newPod("web", testservice.ImageRuns))
	r.create(newPod("done", testservice.ImageHeld))
	r.pod("web", phase(corev1.PodRunning))
	id := r.instance("done").ID
	r.stop()
	now := time.Now().UTC()
	r.service.Engine.Set(t, id, func(st *cis.Status) {
		*st = cis.Status{Phase: cis.Failed, Reason: "OOMKilled", StartedAt: now, EndedAt: now, Initialized: true, Containers: []corev1.ContainerStatus{{
			Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}}}}}
	})
	r.up()
	pod := r.pod("done", phase(corev1.PodFailed))
	if pod.Status.Reason != "OOMKilled" || pod.Status.ContainerStatuses[0].State.Terminated.ExitCode != 137 {
		t.Errorf("%+v", pod.Status)
	}
	r.instance("web") // one, still
	r.create(newPod("later", testservice.ImageRuns))
	r.pod("later", phase(corev1.PodRunning))
}
