package httpserve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, c Config) (string, func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Role, c.Logger, c.Metrics = "test", slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, l, c) }()
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return "http://" + l.Addr().String(), func() error { cancel(); return <-done }
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestServes(t *testing.T) {
	url, stop := start(t, Config{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic("no")
			}
			io.WriteString(w, "hello") //nolint:errcheck // a test
		}),
		Ready: func(context.Context) error { return errors.New("still warming up") },
	})
	for _, tc := range []struct {
		path, body string
		status     int
	}{
		{"/x", "hello", 200},
		{"/panic", "Internal error", 500},
		{"/healthz", "ok", 200},
		{"/readyz", "still warming up", 503},
		{"/metrics", `cumulet_http_requests_total{class="5xx",method="GET",role="test"} 2`, 200},
	} {
		if status, body := get(t, url+tc.path); status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%s: %d %s, want %d with %q", tc.path, status, body, tc.status, tc.body)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// A role that waits for something says so while it waits.
func TestReadyAnswersInTime(t *testing.T) {
	url, stop := start(t, Config{Handler: http.NotFoundHandler(), Ready: func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("containerd is not ready: %w", ctx.Err())
	}})
	client := &http.Client{Timeout: 4 * readyWithin}
	resp, err := client.Get(url + "/readyz") //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 503 || !strings.Contains(string(b), "containerd is not ready") {
		t.Errorf("%d %s %v", resp.StatusCode, b, err)
	}
	client.CloseIdleConnections()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// A watch never ends by itself: the stop must end it within the grace.
func TestStopEndsStreams(t *testing.T) {
	url, stop := start(t, Config{Grace: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush() //nolint:errcheck // a test
		<-r.Context().Done()
	})})
	resp, err := http.Get(url) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatalf("the stream was cut, not ended: %v", err)
	}
}
