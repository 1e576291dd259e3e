// Package vnode is a virtual node of a Kubernetes cluster: its Node object, lease and taint, the pod controller that gives a
// provider its pods, and the kubelet's HTTPS API. It wires virtual-kubelet's controllers with clients, limiters and informers
// of its own. What becomes of a pod is package provider's.
package vnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/log"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"cumulet.io/cis"
	"cumulet.io/provider"
	"cumulet.io/provider/podspec"
)

// Config is a virtual node's.
type Config struct {
	// Name is the Node object's. Required.
	Name string
	// Org owns and pays for the node's pods; Orgs overrides it by namespace. Org is required.
	Org  string
	Orgs map[string]string
	// RESTConfig reaches the API server, or Kubeconfig, a file's path, does.
	RESTConfig *rest.Config
	Kubeconfig string
	// Services is the container instance service. Required.
	Services provider.Services

	// Listen is where the kubelet API is served, host:port; port 0 takes a free one. Default 0.0.0.0:10250.
	Listen string
	// Address is the IP that the API server reaches the kubelet API at. Required.
	Address string
	// CertFile and KeyFile serve the kubelet API, read again when they change; without them a certificate is made for this
	// process's life. ClientCAFile has the certificates that clients' are checked by; without it only tokens are accepted.
	CertFile, KeyFile, ClientCAFile string

	// Capacity is what the scheduler may place here. What is missing follows Place, which tells what there is where instances
	// run and may be nil; what both leave open has a default (DefaultCapacity).
	Capacity corev1.ResourceList
	Place    func(context.Context) (*cis.Sandboxes, error)
	// Labels are added to the node's own. NoTaint leaves the node without the provider's taint.
	Labels  map[string]string
	NoTaint bool
	// KubeletVersion is shown as the node's; default the API server's with "-cumulet".
	KubeletVersion string
	// ClusterDNS and ClusterDomain are for dnsPolicy ClusterFirst; RuntimeClasses maps runtimeClassName to sandbox classes
	// (default podspec.DefaultRuntimeClasses). HostDNS is the resolver configuration of the instances' hosts.
	ClusterDNS     []string
	ClusterDomain  string
	HostDNS        cis.DNS
	RuntimeClasses map[string]cis.SandboxClass

	// Workers is how many pods are worked on at a time, default 16. Reconcile is how often pods and instances are compared by
	// listing, default 30 s.
	Workers   int
	Reconcile time.Duration
	// QPS bounds the requests per second to the API server for pods, default 1,000, with twice that in a burst.
	QPS float32
	// Logger is required.
	Logger *slog.Logger
}

const (
	defaultListen  = "0.0.0.0:10250"
	defaultQPS     = 1000
	defaultWorkers = 16
	protobuf       = "application/vnd.kubernetes.protobuf"
	// startTimeout bounds the start's requests.
	startTimeout = 30 * time.Second
)

// Node is a virtual node. New makes it, Run runs it once.
type Node struct {
	cfg      Config
	log      *slog.Logger
	client   kubernetes.Interface // pods and what they refer to
	beat     kubernetes.Interface // node and lease, apart so that pods cannot starve them
	events   kubernetes.Interface // events, apart for the same reason
	auth     nodeutil.Auth
	clientCA clientCA
	listener net.Listener
	ready    chan struct{}
	provider atomic.Pointer[provider.Provider]
}

// New checks the configuration and listens. It does not ask the API server for anything.
func New(cfg Config) (*Node, error) {
	switch {
	case cfg.Name == "" || cfg.Org == "":
		return nil, errors.New("vnode: a name and an org are needed")
	case net.ParseIP(cfg.Address) == nil:
		return nil, fmt.Errorf("vnode: the address must be an IP address, not %q", cfg.Address)
	case (cfg.CertFile == "") != (cfg.KeyFile == ""):
		return nil, errors.New("vnode: certificate and key go together")
	case cfg.Logger == nil:
		return nil, errors.New("vnode: a logger is needed")
	}
	if cfg.Listen == "" {
		cfg.Listen = defaultListen
	}
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.QPS <= 0 {
		cfg.QPS = defaultQPS
	}
	n := &Node{cfg: cfg, log: cfg.Logger.With("node", cfg.Name), ready: make(chan struct{})}
	if err := n.connect(); err != nil {
		return nil, fmt.Errorf("vnode: %w", err)
	}
	tlsConfig, err := n.tls()
	if err != nil {
		return nil, fmt.Errorf("vnode: %w", err)
	}
	if n.auth, err = n.webhookAuth(); err != nil {
		return nil, fmt.Errorf("vnode: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("vnode: %w", err)
	}
	n.listener = tlsListener(l, tlsConfig)
	return n, nil
}

// connect makes the clients.
func (n *Node) connect() error {
	base := n.cfg.RESTConfig
	if base == nil {
		var err error
		if base, err = clientcmd.BuildConfigFromFlags("", n.cfg.Kubeconfig); err != nil {
			return fmt.Errorf("kubeconfig: %w", err)
		}
	}
	client := func(qps float32) (kubernetes.Interface, error) {
		c := rest.CopyConfig(base)
		c.QPS, c.Burst = qps, int(2*qps)
		c.ContentType, c.AcceptContentTypes = protobuf, protobuf+",application/json"
		c.UserAgent = "cumulet-kubelet/" + n.cfg.Name
		return kubernetes.NewForConfig(c)
	}
	var err error
	if n.client, err = client(n.cfg.QPS); err == nil {
		if n.beat, err = client(50); err == nil {
			n.events, err = client(max(n.cfg.QPS/2, 50))
		}
	}
	if err != nil {
		return fmt.Errorf("client of the API server: %w", err)
	}
	return nil
}

// Addr is where the kubelet API is served.
func (n *Node) Addr() net.Addr { return n.listener.Addr() }

// Ready is closed when the node is registered and takes pods.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Check tells why the node cannot do its work now; nil when it can.
func (n *Node) Check(context.Context) error {
	select {
	case <-n.ready:
	default:
		return errors.New("the node is not registered with the API server yet")
	}
	if err, since := n.provider.Load().Trouble(); err != nil {
		return fmt.Errorf("its instances are not known since %s: %w", since.UTC().Format(time.RFC3339), err)
	}
	return nil
}

// Run runs the node until ctx ends, and then returns nil; instances go on running and the Node object stays. It returns an
// error when the node cannot be run.
func (n *Node) Run(ctx context.Context) error {
	defer n.listener.Close() //nolint:errcheck // the server closes it first
	ctx = log.WithLogger(ctx, libraryLogger{n.log.With("library", "virtual-kubelet")})
	object, err := n.object(ctx)
	if err != nil {
		return err
	}
	pods := informers.NewSharedInformerFactoryWithOptions(n.client, 0, nodeutil.PodInformerFilter(n.cfg.Name), informers.WithTransform(slim))
	objects := informers.NewSharedInformerFactoryWithOptions(n.client, 0, informers.WithTransform(slim))
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	watch := broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: n.events.CoreV1().Events("")})
	defer watch.Stop()
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: n.cfg.Name})

	core := objects.Core().V1()
	resolver := &provider.Objects{Client: n.client, ConfigMaps: core.ConfigMaps().Lister(), Secrets: core.Secrets().Lister(),
		ServiceAccounts: core.ServiceAccounts().Lister(), ServiceLister: core.Services().Lister()}
	p, err := provider.New(provider.Config{
		Node: n.cfg.Name, Org: n.cfg.Org, Orgs: n.cfg.Orgs, Services: n.cfg.Services, Client: n.client,
		Pods: pods.Core().V1().Pods().Informer(), Recorder: recorder, Workers: n.cfg.Workers, Reconcile: n.cfg.Reconcile, Logger: n.log,
		Builder: podspec.New(podspec.Settings{Node: n.cfg.Name, ClusterDNS: n.cfg.ClusterDNS, ClusterDomain: n.cfg.ClusterDomain,
			HostDNS: n.cfg.HostDNS, RuntimeClasses: n.cfg.RuntimeClasses, Allocatable: object.Status.Allocatable}, resolver),
	})
	if err != nil {
		return err
	}
	n.provider.Store(p)
	for kind, informer := range map[string]sharedInformer{"configmap": core.ConfigMaps().Informer(), "secret": core.Secrets().Informer()} {
		if _, err := informer.AddEventHandler(changeHandler(kind, p.ObjectChanged)); err != nil {
			return fmt.Errorf("vnode: watch %ss: %w", kind, err)
		}
	}
	podController, err := node.NewPodController(node.PodControllerConfig{
		PodClient: p.PodClient(n.client.CoreV1()), PodInformer: provider.PodInformer(pods.Core().V1().Pods()), Provider: p,
		EventRecorder:     &record.FakeRecorder{}, // the provider's events say all that the library's do
		ConfigMapInformer: core.ConfigMaps(), SecretInformer: core.Secrets(), ServiceInformer: core.Services(),
		SyncPodsFromKubernetesRateLimiter: limiter(), DeletePodsFromKubernetesRateLimiter: limiter(), SyncPodStatusFromProviderRateLimiter: limiter(),
		SkipDownwardAPIResolution: true,
	})
	if err != nil {
		return fmt.Errorf("vnode: pod controller: %w", err)
	}

	g, ctx := errgroup.WithContext(ctx)
	defer pods.Shutdown()
	defer objects.Shutdown()
	objects.Start(ctx.Done())
	for kind, ok := range objects.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return stopped(ctx, fmt.Errorf("vnode: %v could not be listed", kind))
		}
	}
	g.Go(func() error { return n.serve(ctx, p, pods.Core().V1().Pods().Lister()) })
	g.Go(func() error { return n.clientCA.run(ctx) })
	g.Go(func() error { return p.Run(ctx) })
	g.Go(func() error { return podController.Run(ctx, n.cfg.Workers) })
	g.Go(func() error { return n.register(ctx, object, podController.Ready(), p.Trouble) })
	pods.Start(ctx.Done())
	return stopped(ctx, g.Wait())
}

// stopped leaves out an error that only says that the end was asked for.
func stopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// limiter gives retries a backoff, and first tries no delay: the library's default admits ten a second.
func limiter() workqueue.TypedRateLimiter[any] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Millisecond, 10*time.Second)
}

// HostResolver reads the resolver configuration of this machine, for Config.HostDNS where instances run on it.
func HostResolver() (cis.DNS, error) {
	f, err := os.Open("/etc/resolv.conf")
	if errors.Is(err, os.ErrNotExist) {
		return cis.DNS{}, nil
	}
	if err != nil {
		return cis.DNS{}, fmt.Errorf("host's resolver configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	return podspec.ParseResolvConf(f)
}
