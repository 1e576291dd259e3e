package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cis/server/servertest"
	"cumulet.io/internal/problem"
)

// transports runs f over WebSocket and over SPDY.
func transports(t *testing.T, f func(t *testing.T, e *loop, c *client.Client, id string)) {
	for _, name := range []string{"websocket", "spdy"} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			used := map[string]bool{}
			e := newLoop()
			env := servertest.New(t, e.make, servertest.Options{Wrap: func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					up := strings.ToLower(r.Header.Get("Upgrade"))
					if up == "websocket" && name == "spdy" {
						http.Error(w, "no WebSockets through here", http.StatusBadGateway)
						return
					}
					mu.Lock()
					used[up] = true
					mu.Unlock()
					next.ServeHTTP(w, r)
				})
			}})
			c := newClient(t, env)
			f(t, e, c, running(t, c, "k").ID)
			mu.Lock()
			defer mu.Unlock()
			if want := map[string]string{"websocket": "websocket", "spdy": "spdy/3.1"}[name]; !used[want] {
				t.Errorf("used %v, not %s", used, want)
			}
		})
	}
}

func TestExec(t *testing.T) {
	transports(t, func(t *testing.T, e *loop, c *client.Client, id string) {
		big := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
		for _, tt := range []struct {
			name        string
			command     []string
			stdin       string
			stderr      bool
			out, errOut string
			code        int
			err         string
		}{
			{name: "stdin", command: []string{"cat"}, stdin: "hello\n", out: "hello\n"},
			{name: "no stdin", command: []string{"both"}, stderr: true, out: "to stdout", errOut: "to stderr"},
			{name: "much", command: []string{"cat"}, stdin: big, out: big},
			{name: "flood", command: []string{"flood", "3000000"}, out: strings.Repeat("\x00", 3_000_000)},
			{name: "exit code", command: []string{"exit", "42"}, code: 42},
			{name: "internal", command: []string{"fail"}, err: "the server failed"},
			{name: "refused", command: []string{"nosuch & x=y ü"}, err: "nosuch & x=y ü: not found in the image"},
			{name: "attach", out: "attached"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var out, errOut bytes.Buffer
				req := cis.ExecRequest{Container: "main", Command: tt.command, Stdout: &out}
				if tt.stdin != "" {
					req.Stdin = strings.NewReader(tt.stdin)
				}
				if tt.stderr {
					req.Stderr = &errOut
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err := c.Exec(ctx, "acme", id, req)
				var exit utilexec.CodeExitError
				switch {
				case tt.code != 0:
					if !errors.As(err, &exit) || exit.Code != tt.code {
						t.Errorf("%v, want exit code %d", err, tt.code)
					}
				case tt.err != "":
					if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "secret path") {
						t.Errorf("%v, want %q", err, tt.err)
					}
				case err != nil:
					t.Error(err)
				}
				if out.String() != tt.out || errOut.String() != tt.errOut {
					t.Errorf("stdout %d bytes %.40q, stderr %q", out.Len(), out.String(), errOut.String())
				}
			})
		}
		t.Run("resize", func(t *testing.T) {
			sizes := make(chan cis.TerminalSize, 3)
			sizes <- cis.TerminalSize{Width: 80, Height: 24}
			sizes <- cis.TerminalSize{Width: 132, Height: 50}
			var out bytes.Buffer
			if err := c.Exec(t.Context(), "acme", id, cis.ExecRequest{Container: "main", Command: []string{"sizes", "2"}, TTY: true, Stdout: &out, Resize: sizes}); err != nil || out.String() != "80x24;132x50;" {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
		t.Run("killed with the caller", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			pr, pw := io.Pipe()
			done := make(chan error, 1)
			go func() {
				done <- c.Exec(ctx, "acme", id, cis.ExecRequest{Container: "main", Command: []string{"hang"}, Stdout: pw})
			}()
			if _, err := io.ReadFull(pr, make([]byte, 7)); err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			select {
			case <-e.killed:
			case <-time.After(10 * time.Second):
				t.Error("the command goes on without its caller")
			}
		})
		var out bytes.Buffer
		for name, tt := range map[string]struct {
			id, container string
			want          error
		}{
			"no instance":  {"i-00000000000000000000", "main", problem.ErrNotFound},
			"no container": {id, "nope", problem.ErrNotFound},
		} {
			if err := c.Exec(t.Context(), "acme", tt.id, cis.ExecRequest{Container: tt.container, Command: []string{"cat"}, Stdout: &out}); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := c.Delete(t.Context(), "acme", id, nil); err != nil {
			t.Fatal(err)
		}
		await(t, c, id, cis.Succeeded)
		if err := c.Exec(t.Context(), "acme", id, cis.ExecRequest{Container: "main", Command: []string{"cat"}, Stdout: &out}); !errors.Is(err, problem.ErrConflict) {
			t.Errorf("ended: %v", err)
		}
	})
}

func TestPortForward(t *testing.T) {
	e := newLoop()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e.port = l.Addr().String()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		// Answers only when the other side has said all: half-close must cross.
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Error(err)
		}
		if _, err := conn.Write(bytes.ToUpper(b)); err != nil {
			t.Error(err)
		}
	})
	env := servertest.New(t, e.make, servertest.Options{})
	c := newClient(t, env)
	id := running(t, c, "k").ID
	conn, err := c.PortForward(t.Context(), "acme", id, 80)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("hello ", 50_000)
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != strings.ToUpper(text) {
		t.Errorf("%d bytes back, %v", len(got), err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.PortForward(t.Context(), "acme", id, 81); !errors.Is(err, problem.ErrUnavailable) || !strings.Contains(err.Error(), "port 81") {
		t.Errorf("closed port: %v", err)
	}
	if _, err := c.PortForward(t.Context(), "acme", "i-00000000000000000000", 80); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("no instance: %v", err)
	}
}
