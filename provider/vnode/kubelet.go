package vnode

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corev1listers "k8s.io/client-go/listers/core/v1"

	"cumulet.io/provider"
)

const (
	// streamIdle is how long an exec, attach or port-forward may be silent, as the kubelet's default; streamCreation is how
	// long its streams may take to be made.
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second
	// shutdownGrace bounds the wait for open requests at the end.
	shutdownGrace = 5 * time.Second
)

// handler is the kubelet API. Every path needs a client that the API server knows, and that may do this with the node.
func (n *Node) handler(p *provider.Provider, pods corev1listers.PodLister) http.Handler {
	routes := func(idle, creation time.Duration) http.Handler {
		return api.PodHandler(api.PodHandlerConfig{
			RunInContainer: p.RunInContainer, AttachToContainer: p.AttachToContainer, PortForward: p.PortForward,
			GetContainerLogs: p.GetContainerLogs, GetPods: p.GetPods,
			GetPodsFromKubernetes: func(context.Context) ([]*corev1.Pod, error) { return pods.List(labels.Everything()) },
			GetStatsSummary:       p.GetStatsSummary, GetMetricsResource: p.GetMetricsResource,
			StreamIdleTimeout: idle, StreamCreationTimeout: creation,
		}, true)
	}
	mux := http.NewServeMux()
	mux.Handle("/", routes(streamIdle, streamCreation))
	// The library takes one timeout for the other when it forwards ports.
	mux.Handle("/portForward/", routes(streamCreation, streamIdle))
	mux.Handle("/containerLogs/", noLines(routes(streamIdle, streamCreation)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok")) //nolint:errcheck // the client has gone
	})
	return nodeutil.WithAuth(n.auth, mux)
}

// noLines tells tailLines=0 from no tailLines, which the library does not.
func noLines(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.TrimLeft(r.URL.Query().Get("tailLines"), "0") == "" && r.URL.Query().Get("tailLines") != "" {
			r = r.WithContext(provider.WithNoLines(r.Context()))
		}
		next.ServeHTTP(w, r)
	})
}

// serve serves the kubelet API until ctx ends; requests that are open then get a moment, and are cut.
func (n *Node) serve(ctx context.Context, p *provider.Provider, pods corev1listers.PodLister) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler: n.handler(p, pods), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(n.listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer done()
	stop := time.AfterFunc(shutdownGrace/2, cancel) // streams end by their context
	defer stop.Stop()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() //nolint:errcheck // cut what is left
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func tlsListener(l net.Listener, c *tls.Config) net.Listener { return tls.NewListener(l, c) }
