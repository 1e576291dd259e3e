package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a testing.TB that notes how a helper ends the test and runs the
// cleanups when told to.
type recorder struct {
	testing.TB
	skipped, failed string
	cleanups        []func()
}

func (r *recorder) Helper()                  {}
func (r *recorder) Output() io.Writer        { return io.Discard }
func (r *recorder) Context() context.Context { return r.TB.Context() }
func (r *recorder) Cleanup(f func())         { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool             { return r.failed != "" }
func (r *recorder) Logf(string, ...any)      {}
func (r *recorder) Error(a ...any)           { r.failed += fmt.Sprintln(a...) }
func (r *recorder) Errorf(f string, a ...any) {
	r.failed += fmt.Sprintf(f, a...)
}
func (r *recorder) Skipf(f string, a ...any)  { r.skipped = fmt.Sprintf(f, a...); runtime.Goexit() }
func (r *recorder) Fatalf(f string, a ...any) { r.failed = fmt.Sprintf(f, a...); runtime.Goexit() }
func (r *recorder) Fatal(a ...any)            { r.failed = fmt.Sprint(a...); runtime.Goexit() }

// record runs f as a test of its own would, cleanups and all.
func record(t *testing.T, f func(t testing.TB)) *recorder {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	for len(r.cleanups) > 0 {
		last := r.cleanups[len(r.cleanups)-1]
		r.cleanups = r.cleanups[:len(r.cleanups)-1]
		last()
	}
	return r
}

func TestMissingToolSkipsOrFails(t *testing.T) {
	t.Setenv("CUMULET_CACHE", t.TempDir())
	use := map[string]func(t testing.TB){
		"no-such-tool": func(t testing.TB) { Tool(t, "no-such-tool") },
		"busybox.tar":  func(t testing.TB) { Image(t, "busybox") },
	}
	for want, f := range use {
		t.Setenv("CUMULET_REQUIRE_TOOLS", "")
		if r := record(t, f); r.failed != "" || !strings.Contains(r.skipped, want) || !strings.Contains(r.skipped, "hack/tools.sh") {
			t.Errorf("skipped with %q, failed with %q; want a skip that names %s and the remedy", r.skipped, r.failed, want)
		}
		t.Setenv("CUMULET_REQUIRE_TOOLS", "1")
		if r := record(t, f); r.skipped != "" || !strings.Contains(r.failed, want) {
			t.Errorf("skipped with %q, failed with %q; want a failure that names %s", r.skipped, r.failed, want)
		}
	}
}

func TestToolPrefersTheBuiltOne(t *testing.T) {
	cache, path := t.TempDir(), t.TempDir()
	t.Setenv("CUMULET_CACHE", cache)
	t.Setenv("PATH", path)
	add := func(dir string) string {
		p := filepath.Join(dir, "a-tool")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if want := add(path); Tool(t, "a-tool") != want {
		t.Errorf("got %s, want the one in PATH", Tool(t, "a-tool"))
	}
	if want := add(filepath.Join(cache, "bin")); Tool(t, "a-tool") != want {
		t.Errorf("got %s, want the built one", Tool(t, "a-tool"))
	}
}

// The script that fills the cache and the helpers that use it mean the same
// directory.
func TestCacheIsTheScripts(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	for _, env := range []map[string]string{
		{"CUMULET_CACHE": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"},
		{"CUMULET_CACHE": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"},
		{"CUMULET_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"},
	} {
		for k, v := range env {
			t.Setenv(k, v)
		}
		want, err := exec.CommandContext(t.Context(), bash, "../../hack/tools.sh", "--print-cache").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := cacheDir(); err != nil || got != strings.TrimSpace(string(want)) {
			t.Errorf("%v: %q, %v; the script has %q", env, got, err, want)
		}
	}
}

func TestEventually(t *testing.T) {
	calls := 0
	r := record(t, func(t testing.TB) {
		Eventually(t, 10*time.Second, func() error {
			if calls++; calls < 4 {
				return errors.New("not yet")
			}
			return nil
		})
	})
	if r.failed != "" || calls != 4 {
		t.Errorf("%d calls, failed with %q; want 4 and a success", calls, r.failed)
	}
	r = record(t, func(t testing.TB) {
		Eventually(t, 20*time.Millisecond, func() error { return errors.New("the reason") })
	})
	if !strings.Contains(r.failed, "the reason") {
		t.Errorf("failed with %q, which lacks the reason", r.failed)
	}
}

func TestFreePortIsFree(t *testing.T) {
	port := FreePort(t)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestSlotsDoNotClash(t *testing.T) {
	seen := map[string]bool{}
	for range 8 {
		s := takeSlot(t, false)
		for _, v := range []string{s.dir, s.bridge, s.subnet.String(), s.cgroup + " (cgroup)"} {
			if seen[v] {
				t.Errorf("%s is given twice", v)
			}
			seen[v] = true
		}
	}
}
