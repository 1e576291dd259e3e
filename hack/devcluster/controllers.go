package main

import (
	"context"
	"fmt"

	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	manageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	_ "k8s.io/component-base/metrics/prometheus/restclient" // the metrics of their clients
)

// clientFlags are common to the components that are clients of the API server:
// their own identity, no port, and rates that suit hundreds of pods at once.
func clientFlags(o Options, pki PKI, name string) []string {
	return []string{
		"--kubeconfig=" + pki.path(name+".kubeconfig"),
		"--leader-elect=false", "--secure-port=0",
		fmt.Sprintf("--kube-api-qps=%d", o.QPS), fmt.Sprintf("--kube-api-burst=%d", 2*o.QPS),
	}
}

// RunControllerManager runs Kubernetes' controllers until ctx ends.
func RunControllerManager(ctx context.Context, o Options, pki PKI) error {
	s, err := manageroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	all, off, aliases := manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases()
	flags := s.Flags(all, off, aliases)
	s.ParsedFlags = &flags
	err = setFlags("kube-controller-manager", flags, append(clientFlags(o, pki, "controller-manager"),
		"--service-account-private-key-file="+pki.key("service-accounts"), "--root-ca-file="+pki.cert("ca"),
		"--cluster-signing-cert-file="+pki.cert("ca"), "--cluster-signing-key-file="+pki.key("ca"),
		"--use-service-account-credentials=true", "--profiling=false",
	))
	if err != nil {
		return err
	}
	config, err := s.Config(ctx, all, off, aliases)
	if err != nil {
		return err
	}
	return manager.Run(ctx, config.Complete())
}

// RunScheduler runs Kubernetes' scheduler until ctx ends.
func RunScheduler(ctx context.Context, o Options, pki PKI) error {
	s := scheduleroptions.NewOptions()
	if err := setFlags("kube-scheduler", *s.Flags, clientFlags(o, pki, "scheduler")); err != nil {
		return err
	}
	config, sched, err := scheduler.Setup(ctx, s)
	if err != nil {
		return err
	}
	return scheduler.Run(ctx, config, sched)
}
