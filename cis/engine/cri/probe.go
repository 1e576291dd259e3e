package cri

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

type probeKind string

const (
	probeStartup   probeKind = "Startup"
	probeReadiness probeKind = "Readiness"
	probeLiveness  probeKind = "Liveness"
)

// startProbes begins the probes of a run: the startup probe alone first, the others once it has passed.
func (a *actor) startProbes(ctx context.Context, c *container) {
	if !c.started {
		a.probe(ctx, c, probeStartup, c.spec.StartupProbe)
		return
	}
	if p := c.spec.ReadinessProbe; p != nil {
		a.probe(ctx, c, probeReadiness, p)
	}
	if p := c.spec.LivenessProbe; p != nil {
		a.probe(ctx, c, probeLiveness, p)
	}
}

// probe repeats one probe until its run ends. Results are handed to the actor when they cross a threshold.
func (a *actor) probe(ctx context.Context, c *container, k probeKind, p *corev1.Probe) {
	id, ip, spec, startedAt := c.id, a.ip(), c.spec, c.startedAt
	period := time.Duration(max(1, p.PeriodSeconds)) * time.Second
	if p.PeriodSeconds == 0 {
		period = 10 * time.Second
	}
	failAt, passAt := p.FailureThreshold, p.SuccessThreshold
	if failAt <= 0 {
		failAt = 3
	}
	if passAt <= 0 {
		passAt = 1
	}
	a.do(ctx, func(ctx context.Context) func() {
		if d := probeDelay(p, startedAt); d > 0 {
			sleep(ctx, d)
		}
		tick := time.NewTicker(period)
		defer tick.Stop()
		var passes, fails int32
		state := 0 // 1 passed, -1 failed
		for ctx.Err() == nil {
			out, err := a.e.runProbe(ctx, p, id, ip, spec)
			if ctx.Err() != nil {
				break
			}
			if err == nil {
				passes, fails = passes+1, 0
			} else {
				passes, fails = 0, fails+1
				a.post(func() {
					if c.id == id && c.running {
						a.warn(spec.Name, "Unhealthy", fmt.Sprintf("%s probe failed: %s", k, cut(err.Error()+out, 1024)))
					}
				})
			}
			switch {
			case passes >= passAt && state != 1:
				state = 1
				a.post(func() { a.probed(ctx, c, id, k, true) })
				if k == probeStartup {
					return nil
				}
			case fails >= failAt && (state != -1 || k != probeReadiness):
				state = -1
				a.post(func() { a.probed(ctx, c, id, k, false) })
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		return nil
	})
}

// probed takes a probe's verdict.
func (a *actor) probed(ctx context.Context, c *container, id string, k probeKind, ok bool) {
	if c.id != id || !c.running {
		return
	}
	switch {
	case k == probeReadiness:
		c.ready = ok
	case k == probeStartup && ok:
		c.started, c.rec.Started = true, true
		a.startProbes(ctx, c)
	case !ok && !c.killing && a.rec.Stop == nil:
		grace := a.grace()
		p := c.spec.LivenessProbe
		if k == probeStartup {
			p = c.spec.StartupProbe
		}
		if p.TerminationGracePeriodSeconds != nil {
			grace = *p.TerminationGracePeriodSeconds
		}
		a.info(c.spec.Name, "Killing", fmt.Sprintf("Container %s failed %s probe, will be restarted", c.spec.Name, strings.ToLower(string(k))))
		a.kill(c, time.Now().Add(seconds(grace)), grace > 0, nil)
	}
}

func cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// runProbe runs a probe once. The text is what the container said.
func (e *Engine) runProbe(ctx context.Context, p *corev1.Probe, id, ip string, c *cis.Container) (string, error) {
	timeout := time.Duration(max(1, p.TimeoutSeconds)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.Exec != nil:
		return e.execOnce(ctx, id, p.Exec.Command, timeout)
	case p.HTTPGet != nil:
		return httpGet(ctx, p.HTTPGet, ip, c, false)
	case p.TCPSocket != nil:
		port, err := portOf(p.TCPSocket.Port, c)
		if err != nil {
			return "", err
		}
		return "", dialOnce(ctx, orDefault(p.TCPSocket.Host, ip), port, ip)
	case p.GRPC != nil:
		return "", grpcHealth(ctx, ip, p.GRPC)
	}
	return "", nil
}

func orDefault(s, d string) string {
	if s != "" {
		return s
	}
	return d
}

func (e *Engine) execOnce(ctx context.Context, id string, cmd []string, timeout time.Duration) (string, error) {
	r, err := e.rt.ExecSync(ctx, &rt.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64((timeout + time.Second - 1) / time.Second)})
	if status.Code(err) == codes.DeadlineExceeded {
		return "", fmt.Errorf("command timed out after %s", timeout)
	}
	if err != nil {
		return "", errors.New(message(err))
	}
	if r.ExitCode != 0 {
		return ": " + string(r.Stdout) + string(r.Stderr), fmt.Errorf("command exited with code %d", r.ExitCode)
	}
	return "", nil
}

// dialOnce connects for the instance that has the address own.
func dialOnce(ctx context.Context, host string, port int, own string) error {
	conn, err := probeDialer(own).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return conn.Close()
}

// portOf resolves a port by number or by the name that the container gives it.
func portOf(p intstr.IntOrString, c *cis.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		for _, cp := range c.Ports {
			if cp.Name == p.StrVal {
				n = int(cp.ContainerPort)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("no port %q in container %s", p.String(), c.Name)
	}
	return n, nil
}

// probeBody bounds what is read of an answer.
const probeBody = 10 << 10

// httpGet asks a container, as kubelet does: certificates are not checked, a redirect to another host is a success.
// Status codes 200 to 399 are successes.
func httpGet(ctx context.Context, h *corev1.HTTPGetAction, ip string, c *cis.Container, hook bool) (string, error) {
	port, err := portOf(h.Port, c)
	if err != nil {
		return "", err
	}
	path, err := url.Parse(h.Path)
	if err != nil {
		path = &url.URL{Path: h.Path}
	}
	u := url.URL{Scheme: strings.ToLower(orDefault(string(h.Scheme), "http")), Host: net.JoinHostPort(orDefault(h.Host, ip), strconv.Itoa(port)),
		Path: "/" + strings.TrimPrefix(path.Path, "/"), RawQuery: path.RawQuery}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	agent := "kube-probe/1.37"
	if hook {
		agent = "kube-lifecycle/1.37"
	}
	req.Header.Set("User-Agent", agent)
	req.Header.Set("Accept", "*/*")
	for _, x := range h.HTTPHeaders {
		if strings.EqualFold(x.Name, "host") {
			req.Host = x.Value
		} else {
			req.Header.Add(x.Name, x.Value)
		}
	}
	client := http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: probeDialer(ip).DialContext,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // a pod's certificate is its own; the probe asks whether it answers
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Hostname() != via[0].URL.Hostname() || len(via) >= 10 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return "", nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, probeBody))
	if err != nil {
		body = nil
	}
	return ": " + string(body), fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
}

func grpcHealth(ctx context.Context, ip string, p *corev1.GRPCAction) error {
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(ip, strconv.Itoa(int(p.Port))), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.37"), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return probeDialer(ip).DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	req := &healthpb.HealthCheckRequest{}
	if p.Service != nil {
		req.Service = *p.Service
	}
	r, err := healthpb.NewHealthClient(conn).Check(ctx, req)
	if err != nil {
		return errors.New(message(err))
	}
	if r.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("service unhealthy (responded with %q)", r.Status)
	}
	return nil
}
