package vnode

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"cumulet.io/cis"
)

const (
	// TaintKey and TaintValue keep pods away that do not tolerate a virtual node.
	TaintKey = "virtual-kubelet.io/provider"
	// TaintValue is the taint's value.
	TaintValue = "cumulet"
	// ConditionServiceUnavailable is True on a node while it cannot reach the container instance service. Its pods go on
	// running, so the node stays Ready: a node that is not has its pods deleted after a while.
	ConditionServiceUnavailable corev1.NodeConditionType = "InstanceServiceUnavailable"

	statusEvery = 10 * time.Second
	// troubleAfter is how long the service must be out of reach for it to be shown.
	troubleAfter = 30 * time.Second
)

// DefaultCapacity is of what nobody bounds.
func DefaultCapacity() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("4Ti"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Ti"), corev1.ResourcePods: resource.MustParse("5000"),
	}
}

// capacity is what is configured, else what the place of the instances has, else the default.
func capacity(configured corev1.ResourceList, place cis.Capacity) corev1.ResourceList {
	all := DefaultCapacity()
	for name, q := range map[corev1.ResourceName]*resource.Quantity{
		corev1.ResourceCPU:              resource.NewMilliQuantity(place.MilliCPU, resource.DecimalSI),
		corev1.ResourceMemory:           resource.NewQuantity(place.MemoryMiB<<20, resource.BinarySI),
		corev1.ResourceEphemeralStorage: resource.NewQuantity(place.EphemeralDiskMiB<<20, resource.BinarySI),
		corev1.ResourcePods:             resource.NewQuantity(place.Instances, resource.DecimalSI),
	} {
		if q.Sign() > 0 {
			all[name] = *q
		}
	}
	for name, q := range configured {
		if !q.IsZero() {
			all[name] = q
		}
	}
	return all
}

// placeTimeout bounds one question for the capacity.
const placeTimeout = 5 * time.Second

// currentCapacity asks for the capacity.
func (n *Node) currentCapacity(ctx context.Context) (corev1.ResourceList, error) {
	if n.cfg.Place == nil {
		return capacity(n.cfg.Capacity, cis.Capacity{}), nil
	}
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	place, err := n.cfg.Place(ctx)
	if err != nil {
		return nil, fmt.Errorf("capacity of the instance service: %w", err)
	}
	return capacity(n.cfg.Capacity, place.Capacity), nil
}

// firstCapacity is the node's at its start: the service's, what the node had when that does not answer yet, or the default.
func (n *Node) firstCapacity(ctx context.Context) corev1.ResourceList {
	now, err := n.currentCapacity(ctx)
	if err == nil {
		return now
	}
	n.log.WarnContext(ctx, "the node's capacity is not known yet", "error", err)
	have, err := n.beat.CoreV1().Nodes().Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if err == nil && len(have.Status.Capacity) > 0 {
		return have.Status.Capacity
	}
	return capacity(n.cfg.Capacity, cis.Capacity{})
}

func taint() corev1.Taint {
	return corev1.Taint{Key: TaintKey, Value: TaintValue, Effect: corev1.TaintEffectNoSchedule}
}

// object makes the Node object that is registered.
func (n *Node) object(ctx context.Context) (*corev1.Node, error) {
	version := n.cfg.KubeletVersion
	if version == "" {
		v, err := n.beat.Discovery().ServerVersion()
		if err != nil {
			return nil, fmt.Errorf("vnode: version of the API server: %w", err)
		}
		version = v.GitVersion + "-cumulet"
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	labels := map[string]string{
		"type":                 "virtual-kubelet",
		corev1.LabelHostname:   n.cfg.Name,
		corev1.LabelOSStable:   "linux",
		corev1.LabelArchStable: runtime.GOARCH,
		"kubernetes.io/role":   "agent",
		"node.kubernetes.io/exclude-from-external-load-balancers": "true",
		"alpha.service-controller.kubernetes.io/exclude-balancer": "true",
	}
	maps.Copy(labels, n.cfg.Labels)
	var taints []corev1.Taint
	if !n.cfg.NoTaint {
		taints = []corev1.Taint{taint()}
	}
	room := n.firstCapacity(ctx)
	port := 0
	if a, ok := n.Addr().(*net.TCPAddr); ok {
		port = a.Port
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name, Labels: labels},
		Spec:       corev1.NodeSpec{Taints: taints},
		Status: corev1.NodeStatus{
			NodeInfo:        corev1.NodeSystemInfo{KubeletVersion: version, OperatingSystem: "linux", Architecture: runtime.GOARCH, ContainerRuntimeVersion: "cumulet://1", MachineID: n.cfg.Name},
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.cfg.Address}, {Type: corev1.NodeHostName, Address: n.cfg.Name}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}}, //nolint:gosec // a port
			Capacity:        room,
			Allocatable:     room.DeepCopy(),
			Conditions:      nodeConditions(nil, time.Now()),
		},
	}, nil
}

// nodeConditions are the node's conditions; trouble, when set, says why the container instance service is out of reach.
func nodeConditions(trouble error, now time.Time) []corev1.NodeCondition {
	at := metav1.NewTime(now)
	cond := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: s, Reason: reason, Message: message, LastHeartbeatTime: at, LastTransitionTime: at}
	}
	service := cond(ConditionServiceUnavailable, corev1.ConditionFalse, "ServiceAnswers", "the container instance service answers")
	if trouble != nil {
		service = cond(ConditionServiceUnavailable, corev1.ConditionTrue, "ServiceDoesNotAnswer", trouble.Error())
	}
	return []corev1.NodeCondition{
		cond(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "the virtual kubelet is running"),
		cond(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "instances have memory of their own"),
		cond(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "instances have disks of their own"),
		cond(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "instances have processes of their own"),
		cond(corev1.NodeNetworkUnavailable, corev1.ConditionFalse, "RouteCreated", "instances have networks of their own"),
		service,
	}
}

// register registers the node when the pod controller is ready, and keeps its object, lease and taint until ctx ends.
func (n *Node) register(ctx context.Context, object *corev1.Node, podsReady <-chan struct{}, trouble func() (error, time.Time)) error {
	select {
	case <-podsReady:
	case <-ctx.Done():
		return nil
	}
	if err := n.ensureTaint(ctx); err != nil { // before the node is Ready again: an old one may have lost its taint
		return stopped(ctx, err)
	}
	status := &statusProvider{}
	var latest atomic.Pointer[corev1.Node] // as it is now; the library keeps the object that it was given
	latest.Store(object)
	controller, err := node.NewNodeController(status, object, n.beat.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(nodeutil.NodeLeaseV1Client(n.beat), node.DefaultLeaseDuration),
		node.WithNodeStatusUpdateErrorHandler(func(ctx context.Context, err error) error {
			if !apierrors.IsNotFound(err) {
				return err
			}
			fresh := latest.Load().DeepCopy() // someone has deleted the node; it comes back as at the start
			fresh.ResourceVersion, fresh.UID = "", ""
			_, err = n.beat.CoreV1().Nodes().Create(ctx, fresh, metav1.CreateOptions{})
			return err
		}))
	if err != nil {
		return fmt.Errorf("vnode: node controller: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return stopped(ctx, controller.Run(ctx)) })
	g.Go(func() error {
		select {
		case <-controller.Ready():
			close(n.ready)
			n.log.InfoContext(ctx, "node is registered", "address", n.Addr().String())
		case <-ctx.Done():
			return nil
		}
		return n.watchOver(ctx, &latest, status, trouble)
	})
	return g.Wait()
}

// watchOver keeps the taint and the capacity, and shows when the container instance service is out of reach.
func (n *Node) watchOver(ctx context.Context, latest *atomic.Pointer[corev1.Node], status *statusProvider, trouble func() (error, time.Time)) error {
	shown := false
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if err := n.ensureTaint(ctx); err != nil && ctx.Err() == nil {
				n.log.WarnContext(ctx, "the node's taint could not be checked", "error", err)
			}
			err, since := trouble()
			bad := err != nil && now.Sub(since) >= troubleAfter
			next := latest.Load().DeepCopy()
			room, cerr := n.currentCapacity(ctx)
			if cerr != nil {
				room = next.Status.Capacity // what was last known
			}
			if bad == shown && apiequality.Semantic.DeepEqual(room, next.Status.Capacity) {
				continue
			}
			shown = bad
			if !bad {
				err = nil
			}
			next.Status.Capacity, next.Status.Allocatable = room, room.DeepCopy()
			next.Status.Conditions = nodeConditions(err, now)
			latest.Store(next.DeepCopy())
			status.push(ctx, next)
		}
	}
}

// ensureTaint gives an existing node the taint: the library only sets it on a node that it makes.
func (n *Node) ensureTaint(ctx context.Context) error {
	if n.cfg.NoTaint {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		have, err := n.beat.CoreV1().Nodes().Get(ctx, n.cfg.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := taint()
		if slices.ContainsFunc(have.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&want) && t.Value == want.Value }) {
			return nil
		}
		have.Spec.Taints = slices.DeleteFunc(have.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&want) })
		have.Spec.Taints = append(have.Spec.Taints, want)
		_, err = n.beat.CoreV1().Nodes().Update(ctx, have, metav1.UpdateOptions{})
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("vnode: taint of the node: %w", err)
	}
	return nil
}

// statusProvider is the node controller's source of statuses.
type statusProvider struct {
	mu sync.Mutex
	cb func(*corev1.Node)
}

// Ping implements node.NodeProvider: the node is alive as long as this process is.
func (s *statusProvider) Ping(ctx context.Context) error { return ctx.Err() }

// NotifyNodeStatus implements node.NodeProvider.
func (s *statusProvider) NotifyNodeStatus(_ context.Context, cb func(*corev1.Node)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cb = cb
}

// push passes a status on; the controller holds one in store, so this does not block for long.
func (s *statusProvider) push(ctx context.Context, n *corev1.Node) {
	s.mu.Lock()
	cb := s.cb
	s.mu.Unlock()
	if cb != nil && ctx.Err() == nil {
		cb(n)
	}
}
