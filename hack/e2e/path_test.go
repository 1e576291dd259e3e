package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cumulet.io/hack/platform"
	"cumulet.io/internal/testenv"
)

// TestWholePath goes from a push to a bill, as the quickstart does, and checks what it says at each step.
func TestWholePath(t *testing.T) {
	wholePath(t, platform.Start(t, platform.Options{Kubernetes: true}), "gvisor")
}

// TestKataPath is the same with pods in virtual machines by emulation.
func TestKataPath(t *testing.T) {
	wholePath(t, platform.Start(t, kataPlatform(t)), "kata")
}

// kataPlatform is one whose Kata gets virtual machines by emulation.
func kataPlatform(t *testing.T) platform.Options {
	t.Helper()
	if os.Getenv("CUMULET_KATA_ALL") != "1" {
		t.Skip("virtual machines by emulation start slowly: make test-kata runs it")
	}
	return platform.Options{Kubernetes: true, Set: []string{"control.cri.kataConfig=" + testenv.Kata(t).ConfigPath}}
}

// wholePath has most pods in a class that isolates.
func wholePath(t *testing.T, p *platform.Platform, class string) {
	t.Helper()
	image := p.Push("demo/hello:1")
	p.Login()
	secret(t, p)

	run(t, p, pod("web", image, class, "serve", "    env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]\n")+
		pod("plain", image, "runc", "serve", "")+
		pod("count", image, class, "work, --lines, '1000'", "  restartPolicy: Never\n"), "apply", "-f", "-")
	run(t, p, "", "wait", "--for=condition=Ready", "pod/web", "pod/plain", "--timeout=180s")
	run(t, p, "", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/count", "--timeout=180s")

	t.Run("describe", func(t *testing.T) {
		testenv.Eventually(t, 20*time.Second, func() error {
			out := run(t, p, "", "describe", "pod", "web")
			for _, want := range []string{"Node:", "Started", "Pulled", "cis.cumulet.io/instance", "cis.cumulet.io/size"} {
				if !strings.Contains(out, want) {
					return fmt.Errorf("describe lacks %q:\n%s", want, out)
				}
			}
			return nil
		})
	})
	t.Run("isolation", func(t *testing.T) {
		inside := run(t, p, "", "logs", "web")
		wantContains(t, "log", inside, "serving on :8080 as web")
		host, err := exec.CommandContext(t.Context(), "uname", "-r").Output()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(inside, strings.TrimSpace(string(host))) {
			t.Errorf("a %s instance sees the host's kernel %s: %s", class, host, inside)
		}
		wantContains(t, "log of the runc pod", run(t, p, "", "logs", "plain"), strings.TrimSpace(string(host)))
	})
	t.Run("logs", func(t *testing.T) {
		if got := run(t, p, "", "logs", "count"); got != numbered(1000) {
			t.Errorf("the log is not 1000 lines in order: %d bytes", len(got))
		}
		if got := run(t, p, "", "logs", "count", "--tail=2"); got != "line 999 of 1000\nline 1000 of 1000\n" {
			t.Errorf("--tail=2: %q", got)
		}
		stamped := run(t, p, "", "logs", "count", "--tail=1", "--timestamps")
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z line 1000 of 1000\n$`).MatchString(stamped) {
			t.Errorf("--timestamps: %q", stamped)
		}
	})
	t.Run("logs of lives", func(t *testing.T) { lives(t, p, image, class) })
	t.Run("exec", func(t *testing.T) {
		out := run(t, p, "", "exec", "web", "--", "/app", "env", "POD_IP")
		if !regexp.MustCompile(`^POD_IP=\d+\.\d+\.\d+\.\d+\n$`).MatchString(out) {
			t.Errorf("exec: %q", out)
		}
		if own := mustCis(t, p, "exec", "web", "--", "/app", "env", "POD_IP"); own != out {
			t.Errorf("cis exec: %q, kubectl exec: %q", own, out)
		}
		_, err := p.Kubectl("", "exec", "web", "--", "/app", "nonsense")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("the exit code of a failing command: %v", err)
		}
	})
	for _, name := range []string{"web", "plain"} {
		t.Run("terminal of "+name, func(t *testing.T) { terminal(t, p, name) })
	}
	t.Run("volumes", func(t *testing.T) { volumes(t, p, image, class) })
	t.Run("port-forward", func(t *testing.T) { portForward(t, p) })
	t.Run("the node", func(t *testing.T) {
		if out := run(t, p, "", "get", "--raw", "/api/v1/nodes"); !strings.Contains(out, "virtual-kubelet.io/provider") {
			t.Errorf("the node has no taint: %s", out)
		}
	})
	t.Run("stats", func(t *testing.T) { stats(t, p) })
	t.Run("health", func(t *testing.T) { health(t, p) })
	t.Run("a class that the host lacks", func(t *testing.T) {
		if out, err := p.Cis("run", "--sandbox", "kata", "-d", image); err == nil {
			id := strings.TrimSpace(out)
			if strings.Contains(mustCis(t, p, "describe", id), "Sandbox:        kata") {
				mustCis(t, p, "rm", id)
				t.Skip("this host runs Kata")
			}
		}
		run(t, p, pod("vm", image, "kata", "serve", ""), "apply", "-f", "-")
		testenv.Eventually(t, 30*time.Second, func() error {
			out := run(t, p, "", "describe", "pod", "vm")
			if !strings.Contains(out, "kata") || !strings.Contains(out, "Warning") {
				return fmt.Errorf("no event says why: %s", out)
			}
			return nil
		})
	})
	t.Run("an unsupported field", func(t *testing.T) {
		run(t, p, strings.Replace(pod("hostnet", image, "runc", "serve", ""), "spec:", "spec:\n  hostNetwork: true", 1), "apply", "-f", "-")
		testenv.Eventually(t, 30*time.Second, func() error {
			if out := run(t, p, "", "describe", "pod", "hostnet"); !strings.Contains(out, "spec.hostNetwork") {
				return fmt.Errorf("no event names the field: %s", out)
			}
			return nil
		})
	})
	t.Run("cis run", func(t *testing.T) {
		if out := mustCis(t, p, "run", "--sandbox", "runc", image, "work", "--lines", "3"); out != numbered(3) {
			t.Errorf("cis run printed %q", out)
		}
		_, err := p.Cis("run", "--sandbox", "runc", image, "nonsense")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("the exit code of a failing instance: %v", err)
		}
	})
	t.Run("after the end", func(t *testing.T) { afterTheEnd(t, p) })
}

// volumes are a ConfigMap, a Secret and a service account's token, and what changes of them while the pod runs.
func volumes(t *testing.T, p *platform.Platform, image, class string) {
	run(t, p, "", "create", "configmap", "settings", "--from-literal=mode=slow")
	run(t, p, "", "create", "secret", "generic", "keys", "--from-literal=key=first")
	mounts := "    volumeMounts: [{name: settings, mountPath: /settings}, {name: all, mountPath: /all}]\n" + `  volumes:
  - {name: settings, configMap: {name: settings}}
  - name: all
    projected:
      sources:
      - secret: {name: keys}
      - serviceAccountToken: {path: token, audience: tests, expirationSeconds: 3600}
`
	run(t, p, pod("volumes", image, class, "serve", mounts), "apply", "-f", "-")
	run(t, p, "", "wait", "--for=condition=Ready", "pod/volumes", "--timeout=180s")
	read := func() string {
		return run(t, p, "", "exec", "volumes", "--", "/app", "cat", "/settings/mode", "/all/key")
	}
	if got := read(); got != "slowfirst" {
		t.Errorf("the volumes have %q", got)
	}
	if got := run(t, p, "", "exec", "volumes", "--", "/app", "cat", "/all/token"); strings.Count(got, ".") != 2 {
		t.Error("the token is no JWT")
	}
	run(t, p, "", "patch", "configmap", "settings", "--patch", `{"data": {"mode": "fast"}}`)
	run(t, p, "", "patch", "secret", "keys", "--patch", `{"stringData": {"key": "second"}}`)
	testenv.Eventually(t, 2*time.Minute, func() error {
		if got := read(); got != "fastsecond" {
			return fmt.Errorf("the volumes still have %q", got)
		}
		return nil
	})
}

// lives reads the log of a container that writes, ends and begins again.
func lives(t *testing.T, p *platform.Platform, image, class string) {
	const lines = 40
	run(t, p, pod("again", image, class, fmt.Sprintf("work, --lines, '%d', --every, 100ms", lines), ""), "apply", "-f", "-")
	run(t, p, "", "wait", "--for=jsonpath={.status.phase}=Running", "pod/again", "--timeout=120s")
	if got := run(t, p, "", "logs", "-f", "again"); got != numbered(lines) {
		t.Errorf("followed to the end of a life: %q", got)
	}
	var stamped string
	testenv.Eventually(t, time.Minute, func() (err error) {
		stamped, err = p.Kubectl("", "logs", "again", "--previous", "--timestamps")
		return err
	})
	var want strings.Builder
	var since time.Time
	for line := range strings.Lines(stamped) {
		stamp, text, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			t.Fatal(err)
		}
		if since.IsZero() {
			since = at.Truncate(time.Second).Add(2 * time.Second)
		}
		if !at.Before(since) {
			want.WriteString(text)
		}
	}
	got := run(t, p, "", "logs", "again", "--previous", "--since-time="+since.Format(time.RFC3339))
	if n := strings.Count(stamped, "\n"); n != lines || got != want.String() || got == "" || strings.HasPrefix(got, "line 1 of") {
		t.Errorf("the life before has %d lines, since %s %q, want %q", n, since, got, want.String())
	}
	if got := run(t, p, "", "logs", "again", "--previous", "--since=1h"); got != numbered(lines) {
		t.Errorf("--since=1h: %q", got)
	}
	run(t, p, "", "delete", "pod", "again", "--wait=false")
}

// health asks every role for what operators ask, without a token.
func health(t *testing.T, p *platform.Platform) {
	for _, role := range platform.Roles() {
		for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "process_cpu_seconds_total"} {
			resp, err := http.Get(p.HealthURL(role) + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
				t.Errorf("%s of %s: %s %.200s %v", path, role, resp.Status, body, err)
			}
		}
	}
}

// stats are what the kubelet API tells of the pods' use, to those who may ask.
func stats(t *testing.T, p *platform.Platform) {
	in := func(name string) string { return filepath.Join(filepath.Dir(p.Kubeconfig), name) }
	ca, err := os.ReadFile(in("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(in("apiserver-kubelet-client.crt"), in("apiserver-kubelet-client.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	url := strings.Replace(p.URL["kubelet"], "http:", "https:", 1)
	ask := func(path string, certs ...tls.Certificate) (int, string, error) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs}}}
		resp, err := client.Get(url + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	for path, want := range map[string]*regexp.Regexp{
		"/stats/summary":    regexp.MustCompile(`"podRef":\s*\{\s*"name":\s*"web"`),
		"/metrics/resource": regexp.MustCompile(`pod_memory_working_set_bytes\{namespace="default",pod="web"\} [1-9]`),
	} {
		testenv.Eventually(t, 30*time.Second, func() error {
			if status, body, err := ask(path, pair); err != nil || status != http.StatusOK || !want.MatchString(body) {
				return fmt.Errorf("%s: %d %s %w", path, status, body, err)
			}
			return nil
		})
		if status, body, err := ask(path); err != nil || status != http.StatusUnauthorized {
			t.Errorf("%s without a certificate: %d %s %v", path, status, body, err)
		}
	}
}

func portForward(t *testing.T, p *platform.Platform) {
	port := testenv.FreePort(t)
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "kubectl"), "--kubeconfig", p.Kubeconfig, "port-forward", "pod/web", fmt.Sprintf("%d:8080", port))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	testenv.Eventually(t, 30*time.Second, func() error {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.Contains(string(body), "hello from web") {
			return fmt.Errorf("got %q, %v", body, err)
		}
		return nil
	})
}

// afterTheEnd deletes the pods and reads back what must outlive them.
func afterTheEnd(t *testing.T, p *platform.Platform) {
	var count string
	for _, in := range instances(t, p) {
		if in.Spec.Name == "count" {
			count = in.ID
		}
	}
	run(t, p, "", "delete", "pod", "--all", "--timeout=60s")
	testenv.Eventually(t, time.Minute, func() error {
		if out := mustCis(t, p, "ps"); strings.Contains(out, "i-") {
			return fmt.Errorf("instances are left:\n%s", out)
		}
		return nil
	})
	testenv.Eventually(t, time.Minute, func() error {
		if got := mustCis(t, p, "logs", count); got != numbered(1000) {
			return fmt.Errorf("the deleted pod's log is not 1000 lines in order but %d bytes", len(got))
		}
		return nil
	})
	testenv.Eventually(t, 90*time.Second, func() error {
		out, err := p.Cis("bill", "--reconcile")
		if err != nil {
			return err
		}
		if bill := mustCis(t, p, "bill"); !strings.Contains(bill, count) {
			return fmt.Errorf("the bill lacks %s:\n%s\n%s", count, bill, out)
		}
		return nil
	})
}
