package enginetest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/testenv"
)

// accessCases are the optional abilities; an engine without one skips its cases.
func accessCases() []testCase {
	return []testCase{
		{"Exec", execs},
		{"ExecStdin", execStdin},
		{"ExecTTY", execTTY},
		{"ExecCancel", execCancel},
		{"Logs", logs},
		{"LogsFollow", logsFollow},
		{"LogsPrevious", logsPrevious},
		{"PortForward", portForward},
		{"Stats", stats},
		{"UpdateVolume", updateVolume},
		{"UnknownID", unknownID},
	}
}

// able gives the engine's ability or skips the case.
func able[T any](r *rig) T {
	r.Helper()
	a, ok := r.eng.(T)
	if !ok {
		r.Skip("the engine has no such ability")
	}
	return a
}

// alive starts an instance and waits for it.
func alive(r *rig, change ...func(*cis.Spec)) string {
	r.Helper()
	id := r.ensure(r.instance(forever, append(change, readyWhen("/tmp/up"))...))
	r.await(id, ready)
	return id
}

func execs(r *rig) {
	x := able[engine.Execer](r)
	id := alive(r)
	var out, errOut bytes.Buffer
	run := func(script string) error {
		out.Reset()
		errOut.Reset()
		return x.Exec(r.ctx(), id, cis.ExecRequest{Container: "main", Command: r.f.Shell(script), Stdout: &out, Stderr: &errOut})
	}
	if err := run("echo out; echo err >&2"); err != nil || out.String() != "out\n" || errOut.String() != "err\n" {
		r.Errorf("got %q, %q, %v", out.String(), errOut.String(), err)
	}
	err := run("exit 42")
	var code exec.CodeExitError
	if !errors.As(err, &code) || code.Code != 42 {
		r.Errorf("exit 42 came as %#v", err)
	}
	if err := x.Exec(r.ctx(), id, cis.ExecRequest{Container: "nobody", Command: []string{"true"}}); !errors.Is(err, problem.ErrNotFound) {
		r.Errorf("unknown container: %v", err)
	}
}

func execStdin(r *rig) {
	x := able[engine.Execer](r)
	id := alive(r)
	var out bytes.Buffer
	text := strings.Repeat("all of this\n", 10000)
	err := x.Exec(r.ctx(), id, cis.ExecRequest{Container: "main", Command: []string{"cat"}, Stdin: strings.NewReader(text), Stdout: &out})
	if err != nil || out.String() != text {
		r.Errorf("%d of %d bytes came back: %v", out.Len(), len(text), err)
	}
}

func execTTY(r *rig) {
	x := able[engine.Execer](r)
	id := alive(r)
	var out bytes.Buffer
	stdin, typist := io.Pipe() // nobody types, and the terminal stays open
	defer typist.Close()
	sizes := make(chan cis.TerminalSize, 1)
	sizes <- cis.TerminalSize{Width: 91, Height: 37}
	close(sizes)
	err := x.Exec(r.ctx(), id, cis.ExecRequest{
		Container: "main", Command: r.f.Shell("test -t 1 && echo terminal; sleep 1; stty size"), TTY: true,
		Stdin: stdin, Stdout: &out, Resize: sizes,
	})
	if err != nil || !strings.Contains(out.String(), "terminal\r\n") || !strings.Contains(out.String(), "37 91") {
		r.Errorf("on a terminal: %q, %v", out.String(), err)
	}
}

func execCancel(r *rig) {
	x := able[engine.Execer](r)
	id := alive(r)
	ctx, cancel := context.WithCancel(r.ctx())
	pipe, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- x.Exec(ctx, id, cis.ExecRequest{Container: "main", Command: r.f.Shell("echo begun; sleep 3600"), Stdout: out})
	}()
	if line, err := bufio.NewReader(pipe).ReadString('\n'); line != "begun\n" {
		r.Fatalf("got %q, %v", line, err)
	}
	cancel()
	select {
	case err := <-done:
		if err == nil {
			r.Error("a cancelled command ended well")
		}
	case <-time.After(r.timeout()):
		r.Error("a cancelled command goes on")
	}
}

// read reads a log of main whole.
func read(r *rig, id string, req cis.LogRequest) string {
	r.Helper()
	l := able[engine.LogReader](r)
	var out bytes.Buffer
	req.Container = "main"
	if err := l.Logs(r.ctx(), id, req, &out); err != nil {
		r.Errorf("Logs: %v", err)
	}
	return out.String()
}

func logs(r *rig) {
	able[engine.LogReader](r)
	id := r.ensure(r.instance("echo one; echo two; echo three; touch /tmp/up; sleep 3600", readyWhen("/tmp/up"), noGrace))
	r.await(id, ready)
	two := int64(2)
	for _, c := range []struct {
		req  cis.LogRequest
		want string
	}{
		{cis.LogRequest{}, "one\ntwo\nthree\n"},
		{cis.LogRequest{Tail: &two}, "two\nthree\n"},
		{cis.LogRequest{Tail: new(int64)}, ""},
		{cis.LogRequest{LimitBytes: 5}, "one\nt"},
		{cis.LogRequest{Since: time.Now().Add(time.Hour)}, ""},
		{cis.LogRequest{Since: time.Now().Add(-time.Hour)}, "one\ntwo\nthree\n"},
	} {
		if got := read(r, id, c.req); got != c.want {
			r.Errorf("%+v: got %q, want %q", c.req, got, c.want)
		}
	}
	var last time.Time
	for line := range strings.Lines(read(r, id, cis.LogRequest{Timestamps: true})) {
		stamp, _, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || at.Before(last) || time.Since(at).Abs() > time.Hour {
			r.Errorf("time of %q: %v", line, err)
		}
		last = at
	}
	if last.IsZero() {
		r.Error("no line with a time")
	}
	err := able[engine.LogReader](r).Logs(r.ctx(), id, cis.LogRequest{Container: "nobody"}, io.Discard)
	if !errors.Is(err, problem.ErrNotFound) {
		r.Errorf("unknown container: %v", err)
	}
}

// syncBuffer is a buffer that may be written and read at once.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func logsFollow(r *rig) {
	l := able[engine.LogReader](r)
	in := r.instance("trap 'echo last; exit 0' TERM; echo first; touch /tmp/up; sleep 3600 & wait", readyWhen("/tmp/up"))
	id := r.ensure(in)
	r.await(id, ready)
	var out syncBuffer
	done := make(chan error, 1)
	go func() { done <- l.Logs(r.ctx(), id, cis.LogRequest{Container: "main", Follow: true}, &out) }()
	ctx, cancel := context.WithCancel(r.ctx())
	cut := make(chan error, 1)
	go func() { cut <- l.Logs(ctx, id, cis.LogRequest{Container: "main", Follow: true}, io.Discard) }()
	cancel()
	select {
	case <-cut:
	case <-time.After(r.timeout()):
		r.Error("following goes on after its context ended")
	}
	r.ask(in, 60)
	select {
	case err := <-done:
		if err != nil || out.String() != "first\nlast\n" {
			r.Errorf("followed to %q, %v", out.String(), err)
		}
	case <-time.After(r.timeout()):
		r.Errorf("following goes on after the container's end; got %q", out.String())
	}
	r.await(id, ended)
}

func logsPrevious(r *rig) {
	able[engine.LogReader](r)
	id := r.ensure(r.instance("test -f /data/1 || echo attempt one; test -f /data/1 && echo attempt two && touch /data/2 && sleep 3600; touch /data/1; exit 1",
		scratch, noGrace, restart(corev1.RestartPolicyAlways), readyWhen("/data/2")))
	r.await(id, func(st cis.Status) bool { return st.Ready && find(st, "main").RestartCount == 1 })
	if got := read(r, id, cis.LogRequest{}); got != "attempt two\n" {
		r.Errorf("current: %q", got)
	}
	if got := read(r, id, cis.LogRequest{Previous: true}); got != "attempt one\n" {
		r.Errorf("previous: %q", got)
	}
}

func portForward(r *rig) {
	p := able[engine.PortForwarder](r)
	// One server for each connection: it answers with what it gets.
	id := r.ensure(r.instance("nc -l -p 7777 -e cat", noGrace, func(s *cis.Spec) { s.RestartPolicy = corev1.RestartPolicyAlways }))
	r.await(id, running)
	poll(r, "an answer through the forwarded port", func() error { return echo(r, p, id) }) // the server may not listen yet
}

func echo(r *rig, p engine.PortForwarder, id string) error {
	conn, err := p.PortForward(r.ctx(), id, 7777)
	if err != nil {
		return err
	}
	defer conn.Close()
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(conn).ReadString('\n')
		got <- answer{line, err}
	}()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	select {
	case a := <-got:
		if a.line == "hello\n" {
			return nil
		}
		return errors.Join(errors.New("answered "+a.line), a.err)
	case <-time.After(r.timeout() / 5):
		return errors.New("no answer")
	}
}

func stats(r *rig) {
	s := able[engine.StatsReader](r)
	id := alive(r)
	got, err := s.Stats(r.ctx(), []string{id, cis.NewID(time.Now())})
	if err != nil || len(got) != 1 || got[0].Instance != id {
		r.Fatalf("got %+v, %v", got, err)
	}
	if len(got[0].Containers) != 1 || got[0].Containers[0].Name != "main" || got[0].Time.IsZero() {
		r.Errorf("got %+v", got[0])
	}
}

func updateVolume(r *rig) {
	u, x := able[engine.VolumeUpdater](r), able[engine.Execer](r)
	id := alive(r, config(cis.File{Path: "a", Data: []byte("1")}, cis.File{Path: "d/b", Data: []byte("1")}, cis.File{Path: "old", Data: []byte("1")}))
	show := func() string {
		var out bytes.Buffer
		err := x.Exec(r.ctx(), id, cis.ExecRequest{Container: "main", Command: r.f.Shell("cat /conf/a /conf/d/b; test -f /conf/old && echo -old; exit 0"), Stdout: &out})
		if err != nil {
			r.Errorf("Exec: %v", err)
		}
		return strings.TrimSpace(out.String())
	}
	if got := show(); got != "11-old" {
		r.Errorf("before: %q", got)
	}
	files := cis.FilesVolume{Files: []cis.File{{Path: "a", Data: []byte("2")}, {Path: "d/b", Data: []byte("2")}}}
	if err := u.UpdateVolume(r.ctx(), id, "conf", files); err != nil {
		r.Fatalf("UpdateVolume: %v", err)
	}
	// A virtual machine may believe for a moment what it has read before; but all or nothing.
	testenv.Eventually(r, r.timeout()/5, func() error {
		got := show()
		switch got {
		case "22":
			return nil
		case "11-old":
			return errors.New("the old files are still read")
		}
		r.Errorf("after: %q", got)
		return nil
	})
	if err := u.UpdateVolume(r.ctx(), id, "nothing", files); !errors.Is(err, problem.ErrNotFound) {
		r.Errorf("unknown volume: %v", err)
	}
}

func unknownID(r *rig) {
	id := cis.NewID(time.Now())
	check := func(what string, err error) {
		r.Helper()
		if !errors.Is(err, problem.ErrNotFound) {
			r.Errorf("%s of an unknown id: %v", what, err)
		}
	}
	if x, ok := r.eng.(engine.Execer); ok {
		check("Exec", x.Exec(r.ctx(), id, cis.ExecRequest{Container: "main", Command: []string{"true"}}))
	}
	if l, ok := r.eng.(engine.LogReader); ok {
		check("Logs", l.Logs(r.ctx(), id, cis.LogRequest{Container: "main"}, io.Discard))
	}
	if p, ok := r.eng.(engine.PortForwarder); ok {
		_, err := p.PortForward(r.ctx(), id, 80)
		check("PortForward", err)
	}
	if u, ok := r.eng.(engine.VolumeUpdater); ok {
		check("UpdateVolume", u.UpdateVolume(r.ctx(), id, "conf", cis.FilesVolume{}))
	}
}
