package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
)

// childDir is set in the environment of a test binary that is to be a registry process and nothing else.
const childDir, childAddr = "CUMULET_TEST_REGISTRY_DIR", "CUMULET_TEST_REGISTRY_ADDR"

// serveChild is a registry process on the state in dir, until it is killed.
func serveChild(dir, addr string) error {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(dir, "registry.db"))
	if err != nil {
		return err
	}
	s, err := server.New(ctx, server.Config{DB: db, Dir: dir, PublicURL: "http://" + addr, Logger: slog.New(slog.DiscardHandler),
		HashCost:  directory.HashCost{MemoryKiB: 64, Passes: 1},
		Bootstrap: directory.Bootstrap{Org: "acme", Admin: directory.Credential{Name: "root", PasswordFile: filepath.Join(dir, "admin")}}})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return http.Serve(l, s) //nolint:gosec // a test's own client
}

// startChild starts a registry process and waits until it serves.
func startChild(t *testing.T, dir, addr string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$") //nolint:noctx // killed by the test, which is its point
	cmd.Env = append(os.Environ(), childDir+"="+dir, childAddr+"="+addr)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/.well-known/jwks.json", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return cmd
}

// Killed at random moments under pushes, the registry keeps every push that it has answered, shows no image that is
// not whole, and its tokens stay good.
func TestKilledUnderPushes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CUMULET_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CUMULET_TEST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // moments, not secrets
	dir := t.TempDir()
	h := &hub{t: t, host: fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))}
	h.url = "http://" + h.host

	type ack struct{ ref, digest string }
	var mu sync.Mutex
	var acked []ack
	var firstToken string
	password := func() string {
		text, err := os.ReadFile(filepath.Join(dir, "admin"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	login := func() []remote.Option {
		return append(as(t, ""), remote.WithAuth(&authn.Basic{Username: "root", Password: password()}))
	}
	const rounds, pushers = 5, 3
	for round := range rounds {
		child := startChild(t, dir, h.host)
		auth := login()
		if round == 0 {
			firstToken = h.answer(h.request(http.MethodGet, "/token?scope=registry:catalog:*", "", "Authorization", basic("root", password()))).Token
		}
		ctx, cancel := context.WithCancel(t.Context())
		under := make(chan struct{}, 1)
		var wg sync.WaitGroup
		for p := range pushers {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					img := randomImage(t)
					name := fmt.Sprintf("acme/r%d:t%d-%d", p, round, i)
					if err := remote.Write(h.ref(t, name), img, append(slices.Clip(auth), remote.WithContext(ctx))...); err != nil {
						return // the registry is dead
					}
					mu.Lock()
					acked = append(acked, ack{name, digestOf(t, img).String()})
					mu.Unlock()
					select {
					case under <- struct{}{}:
					default:
					}
				}
			})
		}
		select {
		case <-under:
		case <-time.After(time.Minute):
			t.Error("no push was acknowledged in a minute")
		}
		// The moment of death is random; nothing is waited for.
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() //nolint:errcheck // killed
		cancel()
		wg.Wait()
	}
	if len(acked) == 0 {
		t.Fatal("nothing was pushed: the test shows nothing")
	}
	child := startChild(t, dir, h.host)
	defer func() {
		_ = child.Process.Kill() //nolint:errcheck // Wait tells
		_ = child.Wait()         //nolint:errcheck // killed
	}()
	auth := login()
	for _, a := range acked {
		img, err := remote.Image(h.ref(t, a.ref), auth...)
		if err != nil || digestOf(t, img).String() != a.digest {
			t.Errorf("%s was acknowledged and is lost: %v", a.ref, err)
		} else if err := validate.Image(img); err != nil {
			t.Errorf("%s was acknowledged and is broken: %v", a.ref, err)
		}
	}
	repos, err := remote.Catalog(t.Context(), h.ref(t, "acme/r0:x").Context().Registry, auth...)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, repo := range repos {
		tags, err := remote.List(h.ref(t, repo+":x").Context(), auth...)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			seen++
			img, err := remote.Image(h.ref(t, repo+":"+tag), auth...)
			if err == nil {
				err = validate.Image(img)
			}
			if err != nil {
				t.Errorf("%s:%s is shown and not whole: %v", repo, tag, err)
			}
		}
	}
	if resp, _ := h.request(http.MethodGet, "/v2/_catalog", "", "Authorization", "Bearer "+firstToken); resp.StatusCode != http.StatusOK {
		t.Errorf("a token from before the first kill: %d", resp.StatusCode)
	}
	t.Logf("%d pushes acknowledged and %d tags shown over %d kills", len(acked), seen, rounds)

	// No row of the index is without its content.
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() //nolint:errcheck // killed
	db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the test's own
	s, err := server.New(t.Context(), server.Config{DB: db, Dir: dir, PublicURL: h.url, Logger: slog.New(slog.DiscardHandler), HashCost: directory.HashCost{MemoryKiB: 64, Passes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the test's own
	done, err := s.Images().Reindex(t.Context())
	if err != nil || done.Dropped != 0 {
		t.Errorf("reindex: %+v, %v", done, err)
	}
}
