package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/testenv"
)

// endsByTerm runs until it is told to end, and then ends with that code and its last words.
func endsByTerm(class cis.SandboxClass, code int) *cis.Instance {
	in := instance(class, shell("main", fmt.Sprintf("printf 'began, '; trap 'trap \"\" TERM; echo told; echo no >&2; printf ended; exit %d' TERM; while :; do sleep 0.1; done", code)))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	return in
}

// endAtShim has a container end without containerd, and gives the end as its shim tells it; without a time when the
// shim has gone with the container.
func endAtShim(t *testing.T, b *bench, id string) exitRecord {
	t.Helper()
	var exit *exitRecord
	testenv.Eventually(t, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		s, err := openShim(ctx, b.cfg.TaskDir, id)
		if errors.Is(err, unix.ECONNREFUSED) {
			exit = &exitRecord{ID: id} // gVisor's shim panics at an end that it cannot tell containerd
			return nil
		}
		if err != nil {
			return err
		}
		defer s.close()
		if exit, err = s.ended(ctx); err != nil || exit != nil {
			return err
		}
		if s.old {
			_, err = s.v2.Kill(ctx, &taskv2.KillRequest{ID: id, Signal: uint32(unix.SIGTERM)})
		} else {
			_, err = s.v3.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: uint32(unix.SIGTERM)})
		}
		return errors.Join(err, errors.New("the container still runs"))
	})
	return *exit
}

// containerd is killed, and containers end by themselves before it is back: their ends are known nevertheless, as they
// were, whether or not the engine was there to see them.
func TestEndWhileContainerdDown(t *testing.T) {
	b := newBench(t)
	for _, away := range []bool{false, true} {
		for class := range b.cfg.Handlers {
			t.Run(fmt.Sprintf("%s,engine away %v", class, away), func(t *testing.T) {
				var all []*cis.Instance
				want := []int32{0, 3}
				ends := make([]exitRecord, len(want))
				for _, code := range want {
					all = append(all, b.ensure(endsByTerm(class, int(code))))
				}
				ids := make([]string, len(want))
				for i, in := range all {
					st := b.sink.waitPhase(t, in.ID, cis.Running)
					ids[i] = strings.TrimPrefix(st.Containers[0].ContainerID, "containerd://")
				}
				if away {
					b.stop()
				}
				down := time.Now()
				b.env.Down()
				for i := range all {
					ends[i] = endAtShim(t, b, ids[i])
				}
				if away {
					b.up() // not yet told of any instance
				}
				if err := b.CollectExits(t.Context()); err != nil {
					t.Error(err)
				}
				b.env.Up()
				up := time.Now()
				if away {
					if err := b.Sync(t.Context(), all); err != nil {
						t.Fatal(err)
					}
				}
				for i, in := range all {
					phase, reason, meter := cis.Succeeded, "Completed", meterCompleted
					if want[i] != 0 {
						phase, reason, meter = cis.Failed, "Error", meterFailed
					}
					st := b.sink.waitPhase(t, in.ID, phase)
					e := ended(st.Containers[0])
					if e == nil || e.ExitCode != want[i] || e.Reason != reason || !e.FinishedAt.After(e.StartedAt.Time) ||
						st.Containers[0].RestartCount != 0 || st.Incarnation != 1 {
						t.Fatalf("shim %+v, status %+v", ends[i], st)
					}
					// gVisor's shim may be gone before it has told the time; then it is that of asking.
					if at := e.FinishedAt.Time; class == cis.Runc && !at.Equal(ends[i].At) || at.Before(down) || at.After(up) {
						t.Errorf("ended at %s, the shim says %s, containerd was down from %s to %s", at, ends[i].At, down, up)
					}
					b.meter.mu.Lock()
					if !b.meter.stopAt[in.ID].Equal(e.FinishedAt.Time) || b.meter.stopped[in.ID] != meter {
						t.Errorf("meter stopped at %s (%s), want %s", b.meter.stopAt[in.ID], b.meter.stopped[in.ID], e.FinishedAt)
					}
					b.meter.mu.Unlock()
					if got := b.logText(in.ID, "main"); strings.Replace(got, "no\n", "", 1) != "began, told\nended" {
						t.Errorf("log %q", got)
					}
				}
			})
		}
	}
}

func TestDecodeShimAddress(t *testing.T) {
	for _, c := range []struct {
		in, socket string
		version    int
	}{
		{`{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}`, "/run/s/1", 3},
		{`{"version":2,"address":"unix:///run/s/1","protocol":"ttrpc"}`, "/run/s/1", 2},
		{"unix:///run/s/1\n", "/run/s/1", 2},
		{`{"version":3,"address":"unix:///run/s/1","protocol":"grpc"}`, "", 0},
		{`{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}`, "", 0},
		{"unix://relative", "", 0},
		{"", "", 0},
	} {
		socket, version, err := decodeShimAddress([]byte(c.in))
		if socket != c.socket || version != c.version || (err == nil) != (c.socket != "") {
			t.Errorf("%s: %q %d %v", c.in, socket, version, err)
		}
	}
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}`))
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.sandbox-uid":"i-1","io.kubernetes.cri.container-name":"main"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if socket, version, err := decodeShimAddress(b); err == nil && (!filepath.IsAbs(socket) || version < 2) {
			t.Errorf("%q %d", socket, version)
		}
		decodeOwner(b)
	})
}

// containerd may tell an end without a time, or with one that no clock has shown: then it is that of the kept end, or now.
func TestTerminatedWithoutTime(t *testing.T) {
	made := time.Now().Add(-time.Minute)
	kept := made.Add(30 * time.Second).UTC()
	for _, c := range []struct {
		name     string
		finished int64
		exit     *exitRecord
		want     time.Time // zero is now
	}{
		{"as told", made.Add(time.Second).UnixNano(), &exitRecord{ID: "c-1", At: kept}, made.Add(time.Second)},
		{"no time", 0, nil, time.Time{}},
		{"the year 1", time.Time{}.UnixNano(), nil, time.Time{}},
		{"1970, but the shim knew", 1, &exitRecord{ID: "c-1", At: kept}, kept},
		{"another's end", 0, &exitRecord{ID: "c-0", At: kept}, time.Time{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &actor{rec: &record{}, vols: volumes{dir: t.TempDir()}}
			before := time.Now()
			got := a.terminated(&container{spec: &cis.Container{Name: "main"}, rec: &containerRecord{ID: "c-1", Exit: c.exit}},
				&rt.ContainerStatus{Id: "c-1", Metadata: &rt.ContainerMetadata{Name: "main"}, State: rt.ContainerState_CONTAINER_EXITED,
					CreatedAt: made.UnixNano(), StartedAt: made.UnixNano() + 1, FinishedAt: c.finished})
			if at := got.FinishedAt.Time; c.want.IsZero() && at.Before(before) || !c.want.IsZero() && !at.Equal(c.want) {
				t.Errorf("ended %s", at)
			}
		})
	}
}

// A start that failed or was cut short is told from a life that containerd has not noted.
func TestNeverRan(t *testing.T) {
	unknown := rt.ContainerState_CONTAINER_UNKNOWN
	exited := rt.ContainerState_CONTAINER_EXITED
	for _, c := range []struct {
		name            string
		status          *rt.ContainerStatus
		written, logged bool
		want            bool
	}{
		{"started", &rt.ContainerStatus{State: exited, StartedAt: 1, ExitCode: 128, Reason: "StartError"}, false, false, false},
		{"a start that failed", &rt.ContainerStatus{State: exited, ExitCode: 128, Reason: "StartError"}, false, false, true},
		{"a start that was ended when it had written", &rt.ContainerStatus{State: exited, ExitCode: 128}, true, false, true},
		{"that is in the log", &rt.ContainerStatus{State: exited, ExitCode: 128}, true, true, false},
		{"a hanging start", &rt.ContainerStatus{State: unknown}, false, false, true},
		{"a life without a start, which has written", &rt.ContainerStatus{State: exited, ExitCode: 255, Reason: "Unknown"}, true, false, false},
		{"a short life", &rt.ContainerStatus{State: exited}, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			a := &actor{id: "i-1", org: "acme", dir: dir, e: &Engine{cfg: Config{LogRoot: filepath.Join(dir, "log")}}}
			write := func(path string, wanted bool) {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				content := ""
				if wanted {
					content = "line\n"
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(filepath.Join(a.outputDir("main", 0), "stdout"), c.written)
			write(a.logFile("main", 0), c.logged)
			if got := a.neverRan(c.status, "main", 0); got != c.want {
				t.Errorf("%v", got)
			}
		})
	}
}
