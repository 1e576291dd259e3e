package testenv

import (
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Line is the line to a PostgreSQL on a socket.
type Line struct {
	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

// PostgresLine is Postgres behind a line, and the address there.
func PostgresLine(t testing.TB) (*Line, string) {
	t.Helper()
	u, err := url.Parse(Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	front, err := os.MkdirTemp("/tmp", "cutest-line-") // a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	const name = ".s.PGSQL.5432"
	target := filepath.Join(u.Query().Get("host"), name)
	l, err := net.Listen("unix", filepath.Join(front, name))
	if err != nil {
		t.Fatal(err)
	}
	line := &Line{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", target)
			line.mu.Lock()
			if err != nil || line.down {
				client.Close()
				if server != nil {
					server.Close()
				}
				line.mu.Unlock()
				continue
			}
			line.conns = append(line.conns, client, server)
			line.mu.Unlock()
			carry := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				to.Close()
				from.Close()
			}
			wg.Go(func() { carry(server, client) })
			wg.Go(func() { carry(client, server) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		line.Cut(true)
		wg.Wait()
		if err := os.RemoveAll(front); err != nil {
			t.Error(err)
		}
	})
	q := u.Query()
	q.Set("host", front)
	u.RawQuery = q.Encode()
	return line, u.String()
}

// Cut cuts the line with all that is on it, or mends it.
func (l *Line) Cut(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
	if down {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}
