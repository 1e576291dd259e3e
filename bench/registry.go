package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// registryServer is a registry process under load, asked by plain HTTP.
type registryServer struct {
	name, url, repository string
	pid                   int
	// bearer is sent with each request; "" is none.
	bearer string
	client *http.Client
}

// cost is what a load took: requests, the server's own processor time, wall time.
type cost struct {
	n    int
	cpu  float64
	wall time.Duration
}

func (c cost) perSecond() float64 { return float64(c.n) / c.wall.Seconds() }

// cpuEach is microseconds of processor time for one.
func (c cost) cpuEach() float64 { return c.cpu * 1e6 / float64(c.n) }

// processCPU is what a process has worked, in seconds (proc(5), /proc/PID/stat fields 14 and 15).
func processCPU(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
	user, err := strconv.ParseFloat(fields[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, err // USER_HZ
}

// processMiB gives a field of a process's status in MiB: VmRSS now, VmHWM at most.
func processMiB(pid int, field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", field, pid)
}

// ask does one request and gives how many bytes the answer's body had.
func (s *registryServer) ask(ctx context.Context, method, path string, body io.Reader, want int) (int64, http.Header, error) {
	if !strings.HasPrefix(path, "http") {
		if !strings.HasPrefix(path, "/") {
			path = "/v2/" + s.repository + "/" + path
		}
		path = s.url + path
	}
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return 0, nil, err
	}
	if s.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+s.bearer)
	}
	switch method {
	case http.MethodGet:
		req.Header.Set("Accept", v1.MediaTypeImageManifest)
	case http.MethodPut, http.MethodPatch:
		req.Header.Set("Content-Type", "application/octet-stream")
		if strings.Contains(path, "/manifests/") {
			req.Header.Set("Content-Type", v1.MediaTypeImageManifest)
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s: %s %s: status %d, want %d", s.name, method, path, resp.StatusCode, want)
	}
	return n, resp.Header, err
}

// push uploads a blob as most clients do: POST, PATCH, PUT.
func (s *registryServer) push(ctx context.Context, content []byte) (v1.Descriptor, error) {
	d := digest.FromBytes(content)
	_, h, err := s.ask(ctx, http.MethodPost, "blobs/uploads/", nil, http.StatusAccepted)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if _, h, err = s.ask(ctx, http.MethodPatch, h.Get("Location"), bytes.NewReader(content), http.StatusAccepted); err != nil {
		return v1.Descriptor{}, err
	}
	u, err := url.Parse(h.Get("Location"))
	if err != nil {
		return v1.Descriptor{}, err
	}
	q := u.Query()
	q.Set("digest", d.String())
	u.RawQuery = q.Encode()
	_, _, err = s.ask(ctx, http.MethodPut, u.String(), nil, http.StatusCreated)
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(content))}, err
}

func randomBytes(n int) []byte {
	content := make([]byte, n)
	_, _ = rand.Read(content) //nolint:errcheck // never fails
	return content
}

// image pushes an image with layers of random bytes under a tag.
func (s *registryServer) image(ctx context.Context, tag string, layers ...int) (v1.Manifest, error) {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	var err error
	if m.Config, err = s.push(ctx, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers"}}`)); err != nil {
		return m, err
	}
	m.Config.MediaType = v1.MediaTypeImageConfig
	for _, size := range layers {
		l, err := s.push(ctx, randomBytes(size))
		if err != nil {
			return m, err
		}
		m.Layers = append(m.Layers, l)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return m, err
	}
	_, _, err = s.ask(ctx, http.MethodPut, "manifests/"+tag, bytes.NewReader(text), http.StatusCreated)
	return m, err
}

// measure has workers do n pieces of work between them and gives what it cost the server.
func (s *registryServer) measure(workers, n int, work func(i int) error) (cost, error) {
	before, err := processCPU(s.pid)
	if err != nil {
		return cost{}, err
	}
	began := time.Now()
	next := make(chan int)
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range next {
				if err := work(i); err != nil {
					errs <- err
					for range next { // the others' share is not done either
					}
					return
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	wall := time.Since(began)
	select {
	case err := <-errs:
		return cost{}, err
	default:
	}
	after, err := processCPU(s.pid)
	return cost{n, after - before, wall}, err
}
