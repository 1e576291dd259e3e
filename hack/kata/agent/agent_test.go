package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cumulet.io/hack/kata/agent/inside"
)

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		r    *pb.LinuxResources
		want [][2]string
	}{
		{nil, nil},
		{&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: 1 << 20}}, [][2]string{{"memory.max", "1048576"}}},
		{&pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: -1}}, [][2]string{{"memory.max", "max"}}},
		{&pb.LinuxResources{CPU: &pb.LinuxCPU{Shares: 1024}}, [][2]string{{"cpu.weight", "39"}}},
		{&pb.LinuxResources{CPU: &pb.LinuxCPU{Shares: 2, Quota: 50000, Period: 100000}}, [][2]string{{"cpu.weight", "1"}, {"cpu.max", "50000 100000"}}},
		{&pb.LinuxResources{CPU: &pb.LinuxCPU{Quota: -1}}, [][2]string{{"cpu.max", "max 100000"}}},
		{&pb.LinuxResources{Pids: &pb.LinuxPids{Limit: 10}}, [][2]string{{"pids.max", "10"}}},
	} {
		if got := settings(c.r); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %q, want %q", c.r, got, c.want)
		}
	}
}

func TestParseStats(t *testing.T) {
	got := parseStats("anon 10\nfile 20\nbad\nworse x\n")
	if want := map[string]uint64{"anon": 10, "file": 20}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A container's end waits until the shim has heard of its OOM kill.
func TestOOMQueue(t *testing.T) {
	q := newOOMQueue()
	q.add("a")
	q.add("b")
	q.add("a")
	ended := make(chan struct{})
	go func() {
		q.delivered(context.Background(), "b")
		close(ended)
	}()
	for _, want := range []string{"a", "b"} {
		select {
		case <-ended:
			t.Error("the end came before the reason")
		default:
		}
		if got, err := q.next(context.Background()); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	<-ended
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := q.next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("empty: %v", err)
	}
	q.add("c")
	began := time.Now()
	q.delivered(ctx, "c")
	if time.Since(began) > oomDelivery {
		t.Error("the end waits for nobody")
	}
}

func TestCopyFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a", "b")
	copyPart := func(data string, offset, size int64) error {
		return copyFile(&pb.CopyFileRequest{
			Path: file, FileSize: size, FileMode: unix.S_IFREG | 0o640, DirMode: 0o750, Uid: int32(os.Getuid()), Gid: int32(os.Getgid()), Offset: offset, Data: []byte(data),
		})
	}
	for _, err := range []error{copyPart("long content", 0, 12), copyPart("hel", 0, 5), copyPart("lo", 3, 5)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(file)
	if b, readErr := os.ReadFile(file); string(b) != "hello" || err != nil || readErr != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%q, mode %v, %v %v", b, info.Mode(), err, readErr)
	}
	for _, bad := range [][2]int64{{-1, 5}, {3, 4}, {1 << 62, 5}} {
		if err := copyPart("xx", bad[0], bad[1]); status.Code(err) != codes.InvalidArgument {
			t.Errorf("at %d of %d: %v", bad[0], bad[1], err)
		}
	}
	for _, to := range []string{"old", "new"} {
		link := filepath.Join(dir, "link")
		err := copyFile(&pb.CopyFileRequest{Path: link, FileMode: unix.S_IFLNK | 0o777, DirMode: 0o755, Uid: int32(os.Getuid()), Gid: int32(os.Getgid()), Data: []byte(to)})
		if got, linkErr := os.Readlink(link); err != nil || linkErr != nil || got != to {
			t.Errorf("link to %q, %v %v; want %q", got, err, linkErr, to)
		}
	}
	a := &Agent{}
	for _, path := range []string{"/etc/passwd", copyRoot + "/../../etc/passwd", copyRoot, "relative"} {
		if _, err := a.CopyFile(t.Context(), &pb.CopyFileRequest{Path: path}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Output that came before a process's end is all read; silence after it is the end.
func TestReadAfterExit(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() // another process has it still
	p := &process{stdout: r, exited: make(chan struct{})}
	if _, err := w.WriteString("the last words"); err != nil {
		t.Fatal(err)
	}
	close(p.exited)
	var got strings.Builder
	for {
		resp, err := p.read(p.stdout, 5)
		if err != nil {
			if status.Code(err) != codes.OutOfRange {
				t.Error(err)
			}
			break
		}
		got.Write(resp.Data)
	}
	if got.String() != "the last words" {
		t.Errorf("%q", got.String())
	}
}

// What is there is read however late: a busy machine may let a deadline pass.
func TestReadAfterDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := &process{stdout: r, exited: make(chan struct{})}
	if _, err := w.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if resp, err := p.read(r, 100); err != nil || string(resp.Data) != "late" {
		t.Errorf("%v, %v", resp, err)
	}
	if _, err := p.read(r, 100); status.Code(err) != codes.OutOfRange {
		t.Errorf("silence: %v", err)
	}
}

// What a process says after the end of its input is read, too: the shim must not
// take CloseStdin for a success (see there).
func TestCloseStdin(t *testing.T) {
	in, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p := &process{stdin: stdin, exited: make(chan struct{})}
	c := &container{id: "c", procs: map[string]*process{"e": p}}
	a := &Agent{containers: map[string]*container{"c": c}, log: slog.New(slog.DiscardHandler)}
	if _, err := a.CloseStdin(t.Context(), &pb.CloseStdinRequest{ContainerId: "c", ExecId: "e"}); status.Code(err) != codes.Aborted {
		t.Errorf("close: %v", err)
	}
	if n, err := in.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the process reads %d bytes, %v", n, err)
	}
}

func TestRequestsOfNothing(t *testing.T) {
	a := &Agent{containers: map[string]*container{}, oom: newOOMQueue()}
	ctx := t.Context()
	_, start := a.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: "x"})
	_, wait := a.WaitProcess(ctx, &pb.WaitProcessRequest{ContainerId: "x"})
	_, read := a.ReadStdout(ctx, &pb.ReadStreamRequest{ContainerId: "x", ExecId: "y"})
	_, remove := a.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: "x"})
	for i, err := range []error{start, wait, read, remove} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("request %d: %v", i, err)
		}
	}
	for _, id := range []string{"", "..", "a/b"} {
		_, err := a.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: id, OCI: &pb.Spec{Process: &pb.Process{}, Root: &pb.Root{}, Linux: &pb.Linux{}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("container %q: %v", id, err)
		}
	}
	if _, err := a.SetPolicy(ctx, nil); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

func TestRecover(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	_, err := a.Recover(t.Context(), nil, &ttrpc.UnaryServerInfo{FullMethod: "x"}, func(context.Context, func(any) error) (any, error) { panic("oh") })
	if status.Code(err) != codes.Internal {
		t.Error(err)
	}
}

// A process that is killed before it is its program is an error, also when it had read nothing of its job: its socket then
// ends with ECONNRESET.
func TestPrepareEnded(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{socket: ours}
	defer p.close()
	if err := json.NewEncoder(ours).Encode("not read"); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	n, err := p.readSocket(make([]byte, 512))
	if n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := p.prepare(inside.Job{Process: &pb.Process{}}); err == nil {
		t.Error("a process that has ended is prepared")
	}
}
