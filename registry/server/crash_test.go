package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/s3"
	"cumulet.io/registry/server"
)

// childDir is set in the environment of a test binary that is to be a registry process and nothing else.
const childDir, childAddr = "CUMULET_TEST_REGISTRY_DIR", "CUMULET_TEST_REGISTRY_ADDR"

// childS3 is the URL of the S3 server that a child keeps its blobs on; without it they are in its directory.
const childS3 = "CUMULET_TEST_REGISTRY_S3"

// serveChild is a registry process on the state in dir, until it is killed.
func serveChild(dir, addr string) error {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(dir, "registry.db"))
	if err != nil {
		return err
	}
	storage, err := childStorage(os.Getenv(childS3))
	if err != nil {
		return err
	}
	s, err := server.New(ctx, server.Config{DB: db, Dir: dir, Storage: storage, PublicURL: "http://" + addr, Logger: slog.New(slog.DiscardHandler),
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

// childStorage is on an S3 server, or in the registry's directory where there is none.
func childStorage(endpoint string) (gos.Config, error) {
	if endpoint == "" {
		return gos.Config{}, nil
	}
	store, err := s3.Open(s3.Config{Endpoint: endpoint, Bucket: testenv.S3Bucket,
		Credentials: credentials.NewStaticV4(testenv.S3AccessKey, testenv.S3SecretKey, "")})
	return gos.Config{Name: "s3", Stores: map[string]gos.ObjectStore{"s3": store}}, err
}

// startChild starts a registry process and waits until it serves.
func startChild(t *testing.T, dir, addr, s3URL string) *exec.Cmd {
	t.Helper()
	return testenv.Child(t, addr, nil, childDir+"="+dir, childAddr+"="+addr, childS3+"="+s3URL)
}

// Killed at random moments under pushes and pulls, the registry keeps every push that it has answered, shows no image that
// is not whole, goes on with an upload where it was, and its tokens stay good.
func TestKilledUnderPushes(t *testing.T) {
	t.Run("directory", func(t *testing.T) { killedUnderPushes(t, "") })
	t.Run("s3", func(t *testing.T) {
		u, _ := testenv.S3(t)
		killedUnderPushes(t, u)
	})
}

func killedUnderPushes(t *testing.T, s3URL string) {
	random := testenv.Random(t)
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
	var location string
	var chunks []byte
	for round := range rounds {
		child := startChild(t, dir, h.host, s3URL)
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
		// An upload in chunks goes on over all kills.
		chunk := gostest.Bytes(uint64(round), 70_000)
		token := h.answer(h.request(http.MethodGet, "/token?scope=repository:acme/chunks:pull,push", "", "Authorization", basic("root", password()))).Token
		header := []string{"Authorization", "Bearer " + token, "Content-Type", "application/octet-stream"}
		if round == 0 {
			resp, text := h.request(http.MethodPost, "/v2/acme/chunks/blobs/uploads/", "", header...)
			if resp.StatusCode != http.StatusAccepted {
				t.Fatalf("POST: %d %s", resp.StatusCode, text)
			}
			location = resp.Header.Get("Location")
		}
		resp, text := h.request(http.MethodPatch, location, string(chunk), header...)
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("PATCH in round %d: %d %s", round, resp.StatusCode, text)
		}
		location = resp.Header.Get("Location")
		chunks = append(chunks, chunk...)
		wg.Go(func() {
			for ctx.Err() == nil { // pulls
				mu.Lock()
				var a ack
				if len(acked) > 0 {
					a = acked[random.IntN(len(acked))]
				}
				mu.Unlock()
				if a.ref == "" {
					select {
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
					continue
				}
				img, err := remote.Image(h.ref(t, a.ref), append(slices.Clip(auth), remote.WithContext(ctx))...)
				if err != nil {
					return // the registry is dead
				}
				_ = validate.Image(img) //nolint:errcheck // what counts is read at the end
			}
		})
		select {
		case <-under:
		case <-time.After(time.Minute):
			t.Error("no push was acknowledged in a minute")
		}
		// The moment of death is random; nothing is waited for.
		mu.Lock() // of random
		moment := time.Duration(random.IntN(400)) * time.Millisecond
		mu.Unlock()
		time.Sleep(moment)
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
	child := startChild(t, dir, h.host, s3URL)
	defer func() {
		_ = child.Process.Kill() //nolint:errcheck // Wait tells
		_ = child.Wait()         //nolint:errcheck // killed
	}()
	auth := login()
	token := h.answer(h.request(http.MethodGet, "/token?scope=repository:acme/chunks:pull,push", "", "Authorization", basic("root", password()))).Token
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	blob := digest.FromBytes(chunks)
	q.Set("digest", blob.String())
	u.RawQuery = q.Encode()
	if resp, text := h.request(http.MethodPut, u.String(), "", "Authorization", "Bearer "+token); resp.StatusCode != http.StatusCreated {
		t.Errorf("PUT of the upload in chunks: %d %s", resp.StatusCode, text)
	} else if _, text := h.request(http.MethodGet, "/v2/acme/chunks/blobs/"+blob.String(), "", "Authorization", "Bearer "+token); text != string(chunks) {
		t.Errorf("the upload in chunks is %d bytes, not %d", len(text), len(chunks))
	}
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
	storage, err := childStorage(s3URL)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.New(t.Context(), server.Config{DB: db, Dir: dir, Storage: storage, PublicURL: h.url, Logger: slog.New(slog.DiscardHandler), HashCost: directory.HashCost{MemoryKiB: 64, Passes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the test's own
	done, err := s.Images().Reindex(t.Context())
	if err != nil || done.Dropped != 0 {
		t.Errorf("reindex: %+v, %v", done, err)
	}
}
