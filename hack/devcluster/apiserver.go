package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/spf13/pflag"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// RunAPIServer runs the API server on the listener until ctx ends.
func RunAPIServer(ctx context.Context, o Options, pki PKI, etcd string, listener net.Listener) error {
	s := options.NewServerRunOptions()
	err := setFlags("kube-apiserver", s.Flags(), []string{
		"--etcd-servers=" + etcd,
		"--etcd-cafile=" + pki.cert("etcd-ca"), "--etcd-certfile=" + pki.cert("etcd"), "--etcd-keyfile=" + pki.key("etcd"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", listener.Addr().(*net.TCPAddr).Port),
		"--tls-cert-file=" + pki.cert("apiserver"), "--tls-private-key-file=" + pki.key("apiserver"),
		"--client-ca-file=" + pki.cert("ca"),
		"--kubelet-client-certificate=" + pki.cert("apiserver-kubelet-client"), "--kubelet-client-key=" + pki.key("apiserver-kubelet-client"),
		"--kubelet-certificate-authority=" + pki.cert("ca"), "--kubelet-preferred-address-types=InternalIP,Hostname",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki.path("service-accounts.pub"), "--service-account-signing-key-file=" + pki.key("service-accounts"),
		"--service-cluster-ip-range=10.96.0.0/16",
		// A loopback address is no endpoint that a Service may have.
		"--endpoint-reconciler-type=none",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--requestheader-client-ca-file=" + pki.cert("front-proxy-ca"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pki.cert("front-proxy-client"), "--proxy-client-key-file=" + pki.key("front-proxy-client"),
		fmt.Sprintf("--v=%d", o.Verbose),
	})
	if err != nil {
		return err
	}
	s.SecureServing.Listener = listener
	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	// The log's configuration is the process's, so the controllers have it too.
	if err := logsapi.ValidateAndApply(s.Logs, utilfeature.DefaultFeatureGate); err != nil {
		return err
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(completed.Validate()...); err != nil {
		return err
	}
	return app.Run(ctx, completed)
}

// setFlags sets a component's options by its command line flags, which are its
// stable interface.
func setFlags(component string, sets cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet(component, pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		fs.AddFlagSet(set)
	}
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("flags: %w", err)
	}
	return nil
}
