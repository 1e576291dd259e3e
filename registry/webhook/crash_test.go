package webhook

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cumulet.io/internal/sqldb"
)

const childDir = "CUMULET_WEBHOOK_CHILD"

// child emits events and sends them until it is killed. It tells of each that it has kept, on a line.
func child(dir string) {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(dir, "registry.db"))
	if err == nil {
		var s *Service
		s, err = New(ctx, Config{DB: db, KeyFile: filepath.Join(dir, "key"), Allow: loopback, Timeout: time.Second, Backoff: []time.Duration{time.Second, time.Second, time.Second, time.Second},
			Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err == nil {
			go s.Run(ctx) //nolint:errcheck // killed
			for i := 0; err == nil; i++ {
				id := fmt.Sprintf("%d-%d", os.Getpid(), i)
				if err = s.Emit(ctx, push(id, "acme", "acme/web")); err == nil {
					fmt.Println(id)
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
}

// Whatever is killed at whatever moment: what Emit took arrives, under its own id.
func TestKill(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	db := openDB(t, "sqlite:"+filepath.Join(dir, "registry.db"))
	r := newReceiver(t, nil)
	options := func(c *Config) { c.KeyFile, c.Timeout = filepath.Join(dir, "key"), time.Second }
	s := newService(t, db, options)
	mustCreate(t, s, "acme", Spec{URL: r.URL})
	kept := map[string]bool{}
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		var log strings.Builder
		cmd.Stderr = &log
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 20 + random.IntN(60) {
			if !lines.Scan() {
				break
			}
			kept[lines.Text()] = true
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		// What it had said before it died counts too.
		for lines.Scan() {
			kept[lines.Text()] = true
		}
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err == nil {
			t.Error("the child was not killed")
		}
		if log.Len() > 0 {
			t.Log(log.String())
		}
	}
	if len(kept) < 60 {
		t.Fatalf("only %d events were kept", len(kept))
	}
	runService(t, s)
	for len(kept) > 0 {
		delete(kept, r.next(t).header.Get("webhook-id"))
	}
}
