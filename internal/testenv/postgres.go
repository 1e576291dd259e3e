package testenv

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cumulet.io/internal/proc"
)

// Postgres starts an empty PostgreSQL of the test's own and returns the URL of
// its one database, whose user may do everything. It listens on a socket in a
// directory that is open to its own user and root only, on no port. It skips
// the test where PostgreSQL's server is not installed.
func Postgres(t testing.TB) string {
	t.Helper()
	bin := postgresBin(t)
	// A socket's path is bounded, so not t.TempDir.
	dir, err := os.MkdirTemp("/tmp", "cutest-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	as := unprivileged(t)
	if as != nil {
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(t.Context(), filepath.Join(bin, "initdb"), "-D", data,
		"-U", "cumulet", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}

	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	server := proc.Child{
		Name: "postgres", Path: filepath.Join(bin, "postgres"), Dir: dir, Log: logger(t), Output: log,
		DieWithParent: true, Credential: as, StopSignal: syscall.SIGINT, // a fast shutdown, not waiting for clients
		Args: []string{"-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "unix_socket_permissions=0700",
			"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"},
	}
	stop := start(server.Run)
	t.Cleanup(func() {
		if err := errors.Join(stop(), log.Close()); err != nil {
			t.Errorf("postgres: %v", err)
		}
		if t.Failed() {
			t.Logf("PostgreSQL's log ends:\n%s", tail(log.Name()))
		}
	})
	dsn := "postgres://cumulet@/postgres?" + url.Values{"host": {dir}, "sslmode": {"disable"}}.Encode()
	Eventually(t, startTimeout, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
		return conn.Close(ctx)
	})
	return dsn
}

// postgresBin finds the newest installed server's directory of programs, which
// Debian keeps out of PATH.
func postgresBin(t testing.TB) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }))
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			return filepath.Dir(p)
		}
	}
	missing(t, "no PostgreSQL server is installed: run hack/tools.sh debian-test")
	return ""
}

// version is the number in /usr/lib/postgresql/NUMBER/bin/initdb.
func version(path string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	if err != nil {
		return 0
	}
	return n
}

// unprivileged is the user that PostgreSQL, which refuses to be root, runs as;
// nil is this process's own.
func unprivileged(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("user %s: %v", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	missing(t, "neither the user postgres nor nobody exists, for PostgreSQL to run as")
	return nil
}
