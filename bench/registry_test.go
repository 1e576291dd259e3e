package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cumulet.io/hack/platform"
	"cumulet.io/internal/testenv"
)

// startRegistry starts a registry process and waits until it answers. The benchmark's end kills it.
func startRegistry(b *testing.B, name, addr string, cmd *exec.Cmd) *registryServer {
	b.Helper()
	log, err := os.Create(filepath.Join(b.TempDir(), name+".log"))
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b.Failed() {
			text, _ := os.ReadFile(log.Name())
			b.Logf("%s:\n%s", name, text)
		}
	})
	s := &registryServer{name: name, url: "http://" + addr, repository: "demo/bench", pid: cmd.Process.Pid,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	b.Cleanup(s.client.CloseIdleConnections)
	testenv.Eventually(b, time.Minute, func() error {
		conn, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return s
}

// ours is cisd with the role registry alone: accounts, tokens and an index beside the images. The token is checked with
// each request.
func ours(b *testing.B) *registryServer {
	b.Helper()
	addr, dir := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(b)), b.TempDir()
	cmd := exec.Command(filepath.Join(platform.Build(b), "cisd"), "registry", "--set", "stateDir="+dir, "--set", "registry.listen="+addr, "--set", "log.level=error")
	s := startRegistry(b, "ours", addr, cmd)
	var password []byte
	testenv.Eventually(b, time.Minute, func() (err error) {
		password, err = os.ReadFile(filepath.Join(dir, "credentials", "admin"))
		return err
	})
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, s.url+"/token?"+url.Values{"service": {addr}, "scope": {"repository:demo/bench:pull,push"}}.Encode(), nil)
	if err != nil {
		b.Fatal(err)
	}
	req.SetBasicAuth("admin", strings.TrimSpace(string(password)))
	resp, err := s.client.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var token struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil || token.Token == "" {
		b.Fatalf("token: %d, %v", resp.StatusCode, err)
	}
	s.bearer = token.Token
	return s
}

// distribution is the peer: its own server with its cache of descriptors, open to everybody, which is less work.
func distribution(b *testing.B) *registryServer {
	b.Helper()
	addr, dir := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(b)), b.TempDir()
	file := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nhttp: {addr: %q, secret: bench}\nstorage:\n  filesystem: {rootdirectory: %q}\n  cache: {blobdescriptor: inmemory}\n", addr, filepath.Join(dir, "blobs"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(testenv.Tool(b, "distribution-registry"), "serve", file)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	return startRegistry(b, "distribution", addr, cmd)
}

// both runs a load on one registry after the other, some rounds in turn, and keeps each one's cheapest run: what a page of
// memory costs the writer differs from one moment to the next more than the registries do.
func both(b *testing.B, rounds int, load func(*registryServer) (cost, error), servers ...*registryServer) []cost {
	b.Helper()
	out := make([]cost, len(servers))
	for round := range rounds {
		for i, s := range servers {
			c, err := load(s)
			if err != nil {
				b.Fatal(err)
			}
			if round == 0 || c.cpu < out[i].cpu {
				out[i] = c
			}
		}
	}
	return out
}

// BenchmarkRegistry measures ours beside distribution's own server, each a process of its own on one file system.
func BenchmarkRegistry(b *testing.B) {
	servers := []*registryServer{ours(b), distribution(b)}
	for _, s := range servers {
		if m, err := processMiB(s.pid, "VmRSS"); err == nil {
			b.ReportMetric(m, s.name+"-start-MiB")
		}
	}
	b.Run("manifests", func(b *testing.B) { benchManifests(b, servers) })
	b.Run("pulls", func(b *testing.B) { benchPulls(b, servers) })
	b.Run("pushes", func(b *testing.B) { benchPushes(b, servers) })
	for _, s := range servers {
		now, err := processMiB(s.pid, "VmRSS")
		if err != nil {
			b.Fatal(err)
		}
		most, err := processMiB(s.pid, "VmHWM")
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("registry memory: %-12s %.0f MiB at the end, %.0f MiB at most\n", s.name, now, most)
	}
}

func reportCosts(b *testing.B, servers []*registryServer, costs []cost, unit string, scale float64) {
	b.Helper()
	for i, s := range servers {
		b.ReportMetric(costs[i].perSecond()*scale, s.name+"-"+unit+"/s")
		b.ReportMetric(float64(costs[i].n)*scale/costs[i].cpu, s.name+"-"+unit+"/CPU-s")
	}
	b.ReportMetric(costs[1].cpuEach()/costs[0].cpuEach(), "x-less-CPU")
	b.ReportMetric(0, "ns/op")
}

func benchManifests(b *testing.B, servers []*registryServer) {
	const n = 20000
	for _, s := range servers {
		for i := range 20 {
			if _, err := s.image(b.Context(), fmt.Sprint("m", i), 100, 100, 100); err != nil {
				b.Fatal(err)
			}
		}
	}
	costs := both(b, 3, func(s *registryServer) (cost, error) {
		return s.measure(16, n, func(i int) error {
			_, _, err := s.ask(context.Background(), http.MethodGet, fmt.Sprint("manifests/m", i%20), nil, http.StatusOK)
			return err
		})
	}, servers...)
	reportCosts(b, servers, costs, "GET", 1)
}

// benchPulls has 16 clients pull an image of four layers of 50 MB.
func benchPulls(b *testing.B, servers []*registryServer) {
	const clients, layers, size = 16, 4, 50_000_000
	costs := both(b, 3, func(s *registryServer) (cost, error) {
		m, err := s.image(b.Context(), "big", size, size, size, size)
		if err != nil {
			return cost{}, err
		}
		return s.measure(clients, clients, func(int) error {
			if _, _, err := s.ask(context.Background(), http.MethodGet, "manifests/big", nil, http.StatusOK); err != nil {
				return err
			}
			for _, l := range m.Layers {
				if n, _, err := s.ask(context.Background(), http.MethodGet, "blobs/"+l.Digest.String(), nil, http.StatusOK); err != nil || n != size {
					return fmt.Errorf("%d bytes: %w", n, err)
				}
			}
			return nil
		})
	}, servers...)
	reportCosts(b, servers, costs, "MB", layers*size/1e6)
}

// benchPushes has 4 clients push layers of 20 MiB.
func benchPushes(b *testing.B, servers []*registryServer) {
	const pushes = 8
	costs := both(b, 12, func(s *registryServer) (cost, error) {
		content := make([][]byte, pushes)
		for i := range content {
			content[i] = randomBytes(20 << 20)
		}
		return s.measure(4, pushes, func(i int) error {
			_, err := s.push(context.Background(), content[i])
			return err
		})
	}, servers...)
	reportCosts(b, servers, costs, "push", 1)
}
