package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos/tracker"
)

// childVariable makes the test's own binary be cisd.
const childVariable = "CUMULET_TEST_CISD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// killed is a `cisd registry` that is killed again and again, and what it has acknowledged.
type killed struct {
	t        *testing.T
	dir, url string
	storage  string // of the configuration, in one line
	cmd      *exec.Cmd
	client   *http.Client

	mu     sync.Mutex
	random *rand.Rand
	tags   map[string]v1.Hash // by reference
	files  map[string][]byte  // by path
	pulls  int

	// The upload in chunks, and how much of it was acknowledged.
	blob     []byte
	location string
	offset   int
	cut      int // chunks that were under way at a kill
}

// kill -9 of `cisd registry` at random moments under pushes and pulls: no acknowledged blob, tag or file is lost, no upload
// that is not finished is seen, and uploads resume where they were.
func TestRegistryKilled(t *testing.T) {
	k := newKilled(t)
	k.random, k.blob = testenv.Random(t), make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{byte(k.random.Uint32())}).Read(k.blob) //nolint:errcheck // it never fails
	const kills = 6
	for round := range kills {
		k.start()
		k.resume()
		ctx, cancel := context.WithCancel(t.Context())
		under := make(chan struct{})
		once := sync.OnceFunc(func() { close(under) })
		var wg sync.WaitGroup
		for w := range 2 {
			wg.Go(func() { k.push(ctx, fmt.Sprintf("demo/r%d:t%d", w, round), once) })
		}
		wg.Go(func() { k.pull(ctx) })
		wg.Go(func() { k.store(ctx, round) })
		wg.Go(func() { k.send(ctx) })
		select {
		case <-under:
		case <-time.After(time.Minute):
			t.Error("no push was acknowledged in a minute")
		}
		k.mu.Lock()
		moment := time.Duration(k.random.IntN(600)) * time.Millisecond
		k.mu.Unlock()
		time.Sleep(moment) // the moment of death is random; nothing is waited for
		k.kill()
		cancel()
		wg.Wait()
	}
	k.start()
	k.resume()
	blob := digest.FromBytes(k.blob)
	if status, _, _ := k.do(t.Context(), http.MethodGet, "/v2/demo/chunks/blobs/"+blob.String(), nil); status != http.StatusNotFound {
		t.Errorf("an upload that is not finished is seen: %d", status)
	}
	for k.offset < len(k.blob) {
		if err := k.chunk(t.Context(), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(k.location)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("digest", blob.String())
	u.RawQuery = q.Encode()
	if status, text, err := k.do(t.Context(), http.MethodPut, u.RequestURI(), nil); status != http.StatusCreated {
		t.Errorf("the end of the upload: %d %s %v", status, text, err)
	}
	if _, text, err := k.do(t.Context(), http.MethodGet, "/v2/demo/chunks/blobs/"+blob.String(), nil); err != nil || !bytes.Equal(text, k.blob) {
		t.Errorf("the upload became %d bytes, %v", len(text), err)
	}
	k.check()
	t.Logf("%d kills, %d of them in a chunk: %d tags and %d files were acknowledged, %d pulls went through", kills, k.cut, len(k.tags), len(k.files), k.pulls)
	k.kill()
	if len(k.tags) == 0 || len(k.files) == 0 {
		t.Error("nothing was stored: the test shows nothing")
	}
}

// A `cisd registry` that starts while its tracker is down is ready and serves what it has; it takes a push when the tracker
// is back.
func TestRegistryStartsWithoutTracker(t *testing.T) {
	line, dsn := testenv.PostgresLine(t)
	endpoint, _ := testenv.S3(t)
	k := newKilled(t)
	credentials := filepath.Join(k.dir, "s3")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", testenv.S3AccessKey, testenv.S3SecretKey)
	if err := os.WriteFile(credentials, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k.storage = fmt.Sprintf("{tracker: %q, region: here, regions: [{name: here, endpoint: %q, bucket: %s, credentialsFile: %q}]}", dsn, endpoint, testenv.S3Bucket, credentials)
	k.start()
	img, err := random.Image(50_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if k.tags["demo/web:1"], err = img.Digest(); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(k.ref("demo/web:1"), img, k.options(t.Context())...); err != nil {
		t.Fatal(err)
	}
	replica, err := tracker.Open(t.Context(), sqldbtest.Open(t, "sqlite:"+filepath.Join(k.dir, "state", "registry-replica.db")), tracker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() error {
		_, err := replica.Read(t.Context(), "/docker/registry/v2/repositories/demo/web/_manifests/tags/1/current/link") // the last of the push
		return err
	})
	k.kill()
	line.Cut(true)
	k.start()
	k.check()
	if status, text, err := k.do(t.Context(), http.MethodGet, "/readyz", nil); status != http.StatusOK {
		t.Errorf("readyz without the tracker: %d %s %v", status, text, err)
	}
	const uploads = "/v2/demo/chunks/blobs/uploads/"
	if status, text, err := k.do(t.Context(), http.MethodPost, uploads, nil); status != http.StatusServiceUnavailable {
		t.Errorf("push without the tracker: %d %s %v", status, text, err)
	}
	line.Cut(false)
	testenv.Eventually(t, time.Minute, func() error {
		if status, text, err := k.do(t.Context(), http.MethodPost, uploads, nil); status != http.StatusAccepted {
			return fmt.Errorf("push with the tracker back: %d %s %w", status, text, err)
		}
		return nil
	})
	k.kill()
}

func newKilled(t *testing.T) *killed {
	return &killed{t: t, dir: t.TempDir(), url: fmt.Sprintf("http://127.0.0.1:%d", testenv.FreePort(t)), tags: map[string]v1.Hash{}, files: map[string][]byte{},
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}}
}

func (k *killed) start() {
	k.t.Helper()
	config := filepath.Join(k.dir, "cisd.yaml")
	text := fmt.Sprintf("stateDir: %s\nlog: {level: error}\nregistry: {listen: '%s', url: '%s', storage: %s}\n", filepath.Join(k.dir, "state"), strings.TrimPrefix(k.url, "http://"), k.url, cmp.Or(k.storage, "{}"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
	k.cmd = testenv.Child(k.t, strings.TrimPrefix(k.url, "http://"), []string{"registry", "--config", config}, childVariable+"=1")
}

func (k *killed) kill() {
	if err := k.cmd.Process.Kill(); err != nil {
		k.t.Fatal(err)
	}
	_ = k.cmd.Wait() //nolint:errcheck // killed
}

func (k *killed) password() string {
	text, err := os.ReadFile(filepath.Join(k.dir, "state", "credentials", "admin"))
	if err != nil {
		k.t.Error(err)
	}
	return strings.TrimSpace(string(text))
}

func (k *killed) options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuth(&authn.Basic{Username: "admin", Password: k.password()}),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithTransport(k.client.Transport)}
}

func (k *killed) ref(text string) name.Reference {
	ref, err := name.ParseReference(strings.TrimPrefix(k.url, "http://")+"/"+text, name.Insecure)
	if err != nil {
		k.t.Error(err)
	}
	return ref
}

// do makes a request with what it needs to be let in, and gives the whole answer. The location of an upload is kept.
func (k *killed) do(ctx context.Context, method, path string, body []byte, header ...string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.SetBasicAuth("admin", k.password())
	if strings.HasPrefix(path, "/v2/") {
		status, text, err := k.do(ctx, http.MethodGet, "/token?service=registry&scope=repository:demo/chunks:pull,push", nil)
		var answer struct{ Token string }
		if err != nil || status != http.StatusOK || json.Unmarshal(text, &answer) != nil {
			return 0, nil, fmt.Errorf("token: %d %s %w", status, text, err)
		}
		req.Header.Set("Authorization", "Bearer "+answer.Token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if at := resp.Header.Get("Location"); err == nil && strings.Contains(at, "/blobs/uploads/") {
		k.location = at
	}
	if method == http.MethodGet && resp.StatusCode == http.StatusNoContent {
		text = []byte(resp.Header.Get("Range"))
	}
	return resp.StatusCode, text, err
}

// push pushes images until the registry is dead.
func (k *killed) push(ctx context.Context, prefix string, done func()) {
	for i := 0; ctx.Err() == nil; i++ {
		img, err := random.Image(20_000, 2)
		if err != nil {
			k.t.Error(err)
			return
		}
		hash, err := img.Digest()
		if err != nil {
			k.t.Error(err)
			return
		}
		text := fmt.Sprintf("%s-%d", prefix, i)
		if remote.Write(k.ref(text), img, k.options(ctx)...) != nil {
			return
		}
		k.mu.Lock()
		k.tags[text] = hash
		k.mu.Unlock()
		done()
	}
}

// pull pulls what was acknowledged, and finds it whole, until the registry is dead.
func (k *killed) pull(ctx context.Context) {
	for ctx.Err() == nil {
		k.mu.Lock()
		text := ""
		for text = range k.tags {
			break
		}
		k.mu.Unlock()
		if text == "" {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		img, err := remote.Image(k.ref(text), k.options(ctx)...)
		if err != nil || validate.Image(img) != nil {
			return // what counts is read at the end
		}
		k.mu.Lock()
		k.pulls++
		k.mu.Unlock()
	}
}

// store stores files until the registry is dead.
func (k *killed) store(ctx context.Context, round int) {
	for i := 0; ctx.Err() == nil; i++ {
		k.mu.Lock()
		data := bytes.Repeat([]byte(strconv.FormatUint(k.random.Uint64(), 36)), 1+k.random.IntN(5000))
		k.mu.Unlock()
		path := fmt.Sprintf("/files/demo/tools/-/1/f%d-%d", round, i)
		status, text, err := k.do(ctx, http.MethodPut, path, data)
		if err != nil {
			return
		}
		if status != http.StatusCreated {
			k.t.Errorf("PUT %s: %d %s", path, status, text)
		}
		k.mu.Lock()
		k.files[path] = data
		k.mu.Unlock()
	}
}

// send goes on with the upload until the registry is dead, but not to its end.
func (k *killed) send(ctx context.Context) {
	for ctx.Err() == nil && k.offset < len(k.blob)-1<<20 {
		if k.chunk(ctx, 300_000) != nil {
			k.cut++
			return
		}
	}
}

// chunk sends the next bytes of the upload.
func (k *killed) chunk(ctx context.Context, size int) error {
	end := min(len(k.blob), k.offset+size)
	status, text, err := k.do(ctx, http.MethodPatch, k.location, k.blob[k.offset:end], "Content-Type", "application/octet-stream", "Content-Range", fmt.Sprintf("%d-%d", k.offset, end-1))
	if err != nil {
		return err
	}
	if status != http.StatusAccepted {
		k.t.Errorf("PATCH at %d: %d %s", k.offset, status, text)
		return fmt.Errorf("status %d", status)
	}
	k.offset = end
	return nil
}

// resume begins the upload, or asks where it is: no byte that was acknowledged is missing.
func (k *killed) resume() {
	k.t.Helper()
	if k.location == "" {
		if status, text, err := k.do(k.t.Context(), http.MethodPost, "/v2/demo/chunks/blobs/uploads/", nil); err != nil || status != http.StatusAccepted {
			k.t.Fatalf("POST: %d %s %v", status, text, err)
		}
		return
	}
	at, _, _ := strings.Cut(k.location, "?")
	status, text, err := k.do(k.t.Context(), http.MethodGet, at, nil)
	if err != nil || status != http.StatusNoContent {
		k.t.Fatalf("the upload is lost: %d %s %v", status, text, err)
	}
	last, err := strconv.Atoi(strings.TrimPrefix(string(text), "0-"))
	if err != nil {
		k.t.Fatalf("Range %q: %v", text, err)
	}
	now := last + 1
	if last == 0 {
		now = 0 // nothing yet: no chunk is of one byte
	}
	if now < k.offset || now > len(k.blob) {
		k.t.Fatalf("the upload is at %d after %d was acknowledged", now, k.offset)
	}
	k.offset = now
}

// check finds all that was acknowledged, and nothing shown that is not whole.
func (k *killed) check() {
	k.t.Helper()
	ctx := k.t.Context()
	for text, hash := range k.tags {
		img, err := remote.Image(k.ref(text), k.options(ctx)...)
		if err == nil {
			err = validate.Image(img)
		}
		if err != nil {
			k.t.Errorf("%s was acknowledged and is lost: %v", text, err)
		} else if got, err := img.Digest(); err != nil || got != hash {
			k.t.Errorf("%s is %s, not %s: %v", text, got, hash, err)
		}
	}
	for path, data := range k.files {
		if status, text, err := k.do(ctx, http.MethodGet, path, nil); err != nil || status != http.StatusOK || !bytes.Equal(text, data) {
			k.t.Errorf("%s was acknowledged and is lost: %d, %d bytes, %v", path, status, len(text), err)
		}
	}
	repositories, err := remote.Catalog(ctx, k.ref("demo/x:x").Context().Registry, k.options(ctx)...)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, repository := range repositories {
		tags, err := remote.List(k.ref(repository+":x").Context(), k.options(ctx)...)
		if err != nil {
			continue // it has files or chunks alone
		}
		for _, tag := range tags {
			img, err := remote.Image(k.ref(repository+":"+tag), k.options(ctx)...)
			if err == nil {
				err = validate.Image(img)
			}
			if err != nil {
				k.t.Errorf("%s:%s is shown and not whole: %v", repository, tag, err)
			}
		}
	}
}
