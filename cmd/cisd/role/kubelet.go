package role

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"cumulet.io/cis/client"
	"cumulet.io/internal/httpserve"
	"cumulet.io/internal/problem"
	"cumulet.io/provider"
	"cumulet.io/provider/vnode"
	"cumulet.io/registry/hubtoken"
)

// kubelet is the virtual node. It talks to the container instance service over HTTP, also when that is in this process.
func (p *process) kubelet(ctx context.Context) ([]part, error) {
	c := p.cfg.Kubelet
	source, err := p.source(accountKubelet, hubtoken.AudienceCIS, hubtoken.ActionNode)
	if err != nil {
		return nil, err
	}
	log := p.log.With("role", string(Kubelet))
	service, err := client.New(client.Config{BaseURL: p.cfg.Control.URL, Source: source, Logger: log})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, func() error { service.Close(); return nil })
	resolver, err := vnode.HostResolver()
	if err != nil {
		return nil, err
	}
	node, err := vnode.New(vnode.Config{
		Name: c.NodeName, Org: c.Org, Orgs: c.Orgs, Kubeconfig: c.Kubeconfig,
		Services: provider.Services{Instances: service, Watcher: service, Execer: service, LogReader: service,
			PortForwarder: service, StatsReader: service},
		Listen: c.Listen, Address: p.cfg.Node.Address,
		CertFile: c.CertFile, KeyFile: c.KeyFile, ClientCAFile: c.ClientCAFile,
		Capacity: p.capacity(), Place: service.Sandboxes, ClusterDNS: c.ClusterDNS, ClusterDomain: c.ClusterDomain, HostDNS: resolver,
		Workers: c.Workers, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	health, err := p.serve(ctx, c.HealthListen, httpserve.Config{Role: string(Kubelet), Metrics: metrics(), Ready: node.Check,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			problem.Write(w, problem.New(problem.ErrNotFound, "there is /healthz, /readyz and /metrics here; the kubelet API is at %s", c.Listen))
		})})
	if err != nil {
		return nil, err
	}
	return []part{health, {"node", func(ctx context.Context) error {
		if err := node.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("virtual node %s: %w", c.NodeName, err)
		}
		return nil
	}}}, nil
}

// capacity is what is configured of the node's capacity; the rest is what the instance service says.
func (p *process) capacity() corev1.ResourceList {
	list := corev1.ResourceList{}
	set := func(name corev1.ResourceName, n int64, unit string) {
		if n > 0 {
			list[name] = resource.MustParse(fmt.Sprint(n, unit))
		}
	}
	set(corev1.ResourceCPU, p.cfg.Kubelet.CPU, "")
	set(corev1.ResourceMemory, p.cfg.Kubelet.MemoryGiB, "Gi")
	set(corev1.ResourcePods, p.cfg.Kubelet.Pods, "")
	return list
}
