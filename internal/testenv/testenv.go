// Package testenv gives tests the real things they run against: built tools,
// images, a containerd, a Kubernetes control plane, a PostgreSQL. Each helper
// takes what it needs or skips the test, saying why, and stops and removes what
// it has started when the test ends, failed or not. What a killed test run has
// left behind, the next one removes. It is for tests only: no product code
// imports it.
//
// hack/tools.sh installs what is missing. With CUMULET_REQUIRE_TOOLS=1 in the
// environment, as in CI, a missing thing fails the test instead.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// References of the images that Image and Containerd provide.
const (
	PauseImage   = "cumulet.io/pause:v1"   // holds a sandbox
	BusyboxImage = "cumulet.io/busybox:v1" // Debian's busybox with its applets in /bin
)

// missing skips the test, or fails it where nothing may be missing.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CUMULET_REQUIRE_TOOLS") == "1" {
		t.Fatalf("CUMULET_REQUIRE_TOOLS=1, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// cacheDir is where hack/tools.sh puts what it builds.
func cacheDir() (string, error) {
	if dir := os.Getenv("CUMULET_CACHE"); dir != "" {
		return dir, nil
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "cumulet"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".cache", "cumulet"), err
}

// findTool returns the path of a program: built by hack/tools.sh, else the
// machine's own.
func findTool(name string) (string, error) {
	cache, err := cacheDir()
	if err == nil {
		if p, err := exec.LookPath(filepath.Join(cache, "bin", name)); err == nil {
			return p, nil
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	// A user's PATH often lacks these.
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is neither in %s nor in PATH: run hack/tools.sh", name, filepath.Join(cache, "bin"))
}

// Tool returns the path of a program by its name: containerd, runsc, filebeat,
// kubectl, skopeo and so on.
func Tool(t testing.TB, name string) string {
	t.Helper()
	p, err := findTool(name)
	if err != nil {
		missing(t, "%v", err)
	}
	return p
}

// Image returns the path of an image archive that hack/tools.sh made: "pause"
// has PauseImage, "busybox" has BusyboxImage.
func Image(t testing.TB, name string) string {
	t.Helper()
	cache, err := cacheDir()
	if err != nil {
		missing(t, "no cache directory: %v", err)
	}
	p := filepath.Join(cache, "images", name+".tar")
	if _, err := os.Stat(p); err != nil {
		missing(t, "no image archive %s: run hack/tools.sh images", p)
	}
	return p
}

// RequireRoot skips the test of a user who is not root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		missing(t, "this test needs root, not user %d", uid)
	}
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listened on a moment
// ago. It is below the range from which the kernel takes ports for those that
// ask for any (ip_local_port_range), so that nobody gets it by chance before
// the caller's server does. Where a server can listen on port 0 and tell, let
// it.
func FreePort(t testing.TB) int {
	t.Helper()
	const first, last = 12000, 32000
	for range 100 {
		port := first + rand.IntN(last-first)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatalf("find a free port: %v", err)
		}
		return port
	}
	t.Fatal("find a free port: none in 100 tries")
	return 0
}

// Random makes a test's choices: by the seed CUMULET_TEST_SEED, to repeat a run, or by a new one. It is printed.
func Random(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("CUMULET_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CUMULET_TEST_SEED: %v", err)
		}
	}
	t.Logf("CUMULET_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // moments, not secrets
}

// Eventually calls f until it returns nil, and fails the test with f's last
// error when that takes longer than the timeout.
func Eventually(t testing.TB, timeout time.Duration, f func() error) {
	t.Helper()
	if err := poll(timeout, f); err != nil {
		t.Fatal(err)
	}
}

// poll calls f with growing pauses, at most 200 ms, until it returns nil.
func poll(timeout time.Duration, f func() error) error {
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().Add(pause).After(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
		time.Sleep(pause)
	}
}

// start runs a part until stop is called, which returns what run did. A later
// call returns the same.
func start(run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = run(ctx)
	}()
	return func() error {
		cancel()
		<-done
		return err
	}
}

// logger writes to the test's log.
func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// tail returns the end of a file for a failed test's log.
func tail(path string) string {
	const most = 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	b := make([]byte, min(info.Size(), most))
	n, err := f.ReadAt(b, info.Size()-int64(len(b)))
	if err != nil && n == 0 && !errors.Is(err, os.ErrClosed) {
		return err.Error()
	}
	return string(b[:n])
}
