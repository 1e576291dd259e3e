// Package provider keeps the pods of a virtual node and the instances of the container instance service alike: a pod that is
// bound to the node becomes an instance, what becomes of the instance is written on the pod, and the end of either ends
// the other.
//
// It implements virtual-kubelet's PodLifecycleHandler and the functions of its kubelet API. It is level-triggered: every
// change of a pod, an instance or a referenced object only marks the pod's UID, and one worker at a time looks at all
// that is known of that UID and does what is missing. The node itself is package vnode's, the turning of a pod into a spec
// package podspec's. It knows the container instance service by the interfaces of package cis only.
package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"cumulet.io/cis"
	"cumulet.io/provider/podspec"
)

// Services is the container instance service, part by part. All are required.
type Services struct {
	Instances     cis.Instances
	Watcher       cis.Watcher
	Execer        cis.Execer
	LogReader     cis.LogReader
	PortForwarder cis.PortForwarder
	StatsReader   cis.StatsReader
}

// Config says what a provider works with.
type Config struct {
	// Node is the virtual node's name.
	Node string
	// Org owns and pays for the pods' instances; Orgs overrides it by namespace. Nothing on a pod can.
	Org  string
	Orgs map[string]string
	// Services is the container instance service.
	Services Services
	// Client writes pods.
	Client kubernetes.Interface
	// Pods holds the pods of this node and nothing else.
	Pods cache.SharedIndexInformer
	// Builder turns pods into specs.
	Builder *podspec.Builder
	// Recorder takes the events of pods.
	Recorder record.EventRecorder
	// Workers is how many pods are worked on at a time; 0 means 16.
	Workers int
	// Reconcile is how often instances and pods are compared by listing; 0 means 30 s.
	Reconcile time.Duration
	// Logger is required.
	Logger *slog.Logger
}

const (
	defaultWorkers   = 16
	defaultReconcile = 30 * time.Second
	// firstRetry doubles up to maxRetry for a pod whose work fails.
	firstRetry = 250 * time.Millisecond
	maxRetry   = 30 * time.Second
	// callTimeout bounds one call of the service or the API server.
	callTimeout = 60 * time.Second
)

// Provider is the provider. Safe for concurrent use.
type Provider struct {
	cfg   Config
	log   *slog.Logger
	queue workqueue.TypedRateLimitingInterface[types.UID]
	// refusals slows down the owners whose pods are refused again and again.
	refusals *refusals
	samples  samples
	started  time.Time

	mu sync.Mutex
	// pods are the pods and instances that are known, by pod UID.
	pods map[types.UID]*tracked
	// names tells the UID of the pod that has a "namespace/name" now; instances the UID of the pod of an instance id.
	names     map[string]types.UID
	instances map[string]types.UID
	// synced are the orgs whose instances have all been listed.
	synced map[string]bool
	// troubles are the orgs whose instances cannot be followed now.
	troubles map[string]trouble
}

// trouble is why an org's instances cannot be followed, and since when.
type trouble struct {
	err   error
	since time.Time
}

// Trouble tells why instances cannot be followed, and since when; nil when they can.
func (p *Provider) Trouble() (error, time.Time) { //nolint:revive,staticcheck // the time belongs to the error
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.troubles {
		return t.err, t.since
	}
	return nil, time.Time{}
}

// setTrouble notes how following an org goes; nil is well.
func (p *Provider) setTrouble(org string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.troubles, org)
		return
	}
	t, ok := p.troubles[org]
	if !ok {
		t.since = time.Now()
	}
	t.err = err
	p.troubles[org] = t
}

// tracked is one pod UID. The fields above worker are the provider's, under its lock; those below belong to the one worker
// that the queue lets work on the UID.
type tracked struct {
	uid types.UID
	org string
	// pod is the API object as last seen; nil when only the instance is known.
	pod *corev1.Pod
	// gone says that the API object is certainly not there any more; suspect that it may not be.
	gone, suspect bool
	// created says that the library has called CreatePod.
	created bool
	// instance is the instance as last seen; nil when there is none, as far as known.
	instance *cis.Instance
	// lost says that the service does not know the instance any more.
	lost bool

	worker work
}

// New makes a provider. Run makes it work.
func New(cfg Config) (*Provider, error) {
	s := cfg.Services
	switch {
	case cfg.Node == "" || cfg.Org == "":
		return nil, errors.New("provider: a node and an org are needed")
	case s.Instances == nil || s.Watcher == nil || s.Execer == nil || s.LogReader == nil || s.PortForwarder == nil || s.StatsReader == nil:
		return nil, errors.New("provider: a part of the container instance service is missing")
	case cfg.Client == nil || cfg.Pods == nil || cfg.Builder == nil || cfg.Recorder == nil || cfg.Logger == nil:
		return nil, errors.New("provider: client, pods, builder, recorder and logger are needed")
	}
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.Reconcile <= 0 {
		cfg.Reconcile = defaultReconcile
	}
	p := &Provider{
		cfg: cfg, log: cfg.Logger, started: time.Now(),
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](firstRetry, maxRetry),
			workqueue.TypedRateLimitingQueueConfig[types.UID]{}),
		refusals:  newRefusals(),
		pods:      map[types.UID]*tracked{},
		names:     map[string]types.UID{},
		instances: map[string]types.UID{},
		synced:    map[string]bool{},
		troubles:  map[string]trouble{},
	}
	return p, nil
}

// Run works until ctx ends, and then returns nil. The informer of pods must be running, or be started soon. Instances go on
// running.
func (p *Provider) Run(ctx context.Context) error {
	reg, err := p.cfg.Pods.AddEventHandler(p.podHandler())
	if err != nil {
		p.queue.ShutDown()
		return fmt.Errorf("provider: watch pods: %w", err)
	}
	defer p.cfg.Pods.RemoveEventHandler(reg) //nolint:errcheck // the informer has stopped then
	g, ctx := errgroup.WithContext(ctx)
	for org := range p.orgs() {
		g.Go(func() error { return p.follow(ctx, org, reg.HasSynced) })
	}
	for range p.cfg.Workers {
		g.Go(func() error {
			for p.next(ctx) {
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		p.queue.ShutDown()
		return nil
	})
	return g.Wait()
}

// orgs are all the orgs that pods of this node may belong to.
func (p *Provider) orgs() map[string]bool {
	all := map[string]bool{p.cfg.Org: true}
	for _, o := range p.cfg.Orgs {
		all[o] = true
	}
	return all
}

func (p *Provider) org(namespace string) string {
	if o := p.cfg.Orgs[namespace]; o != "" {
		return o
	}
	return p.cfg.Org
}

// next takes one UID from the queue and works on it; false when the queue is shut down.
func (p *Provider) next(ctx context.Context) bool {
	uid, shutdown := p.queue.Get()
	if shutdown {
		return false
	}
	defer p.queue.Done(uid)
	again, err := p.sync(ctx, uid)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		p.log.WarnContext(ctx, "work on a pod failed, will be tried again", "uid", uid, "tries", p.queue.NumRequeues(uid)+1, "error", err)
		p.queue.AddRateLimited(uid)
	case again > 0:
		p.queue.AddAfter(uid, again)
	default:
		p.queue.Forget(uid)
	}
	return true
}

// track gives the record of a UID, made when it is new. The caller holds the lock.
func (p *Provider) track(uid types.UID, org string) *tracked {
	t := p.pods[uid]
	if t == nil {
		t = &tracked{uid: uid, org: org}
		p.pods[uid] = t
	}
	return t
}

// view is what a worker sees of a tracked pod.
type view struct {
	*tracked
	pod                    *corev1.Pod
	instance               *cis.Instance
	gone, suspect, created bool
	lost, synced           bool
}

func (p *Provider) view(uid types.UID) (view, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.pods[uid]
	if t == nil {
		return view{}, false
	}
	return view{tracked: t, pod: t.pod, instance: t.instance, gone: t.gone, suspect: t.suspect, created: t.created, lost: t.lost, synced: p.synced[t.org]}, true
}

// forget drops a UID of which nothing is left.
func (p *Provider) forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.pods[uid]
	if t == nil {
		return
	}
	if t.instance != nil {
		delete(p.instances, t.instance.ID)
	}
	if t.pod != nil {
		if key := t.pod.Namespace + "/" + t.pod.Name; p.names[key] == uid {
			delete(p.names, key)
		}
	}
	delete(p.pods, uid)
}

// logger has the ids of a pod.
func (v *view) logger(l *slog.Logger) *slog.Logger {
	l = l.With("org", v.org, "uid", v.uid)
	if v.pod != nil {
		l = l.With("namespace", v.pod.Namespace, "pod", v.pod.Name)
	}
	if v.instance != nil {
		l = l.With("instance", v.instance.ID)
	}
	return l
}
