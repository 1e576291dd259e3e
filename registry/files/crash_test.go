package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	gosdir "cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/tracker"
)

const (
	childDir  = "CUMULET_FILES_CHILD"
	childAddr = "CUMULET_FILES_ADDR"
)

// serveChild serves files from dir until it is killed.
func serveChild(dir, addr string) error {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(dir, "registry.db"))
	if err != nil {
		return err
	}
	// The blob space as it is in production.
	store, err := gosdir.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		return err
	}
	t, err := tracker.Open(ctx, db, tracker.Config{})
	if err != nil {
		return err
	}
	region, err := gos.New(gos.Config{Name: "local", Stores: map[string]gos.ObjectStore{"local": store}, Tracker: t})
	if err != nil {
		return err
	}
	var blobs Blobs = region
	if os.Getenv(childDies) != "" {
		blobs = deadly{region}
	}
	s, err := New(ctx, Config{DB: db, Blobs: blobs, Directory: noDirectory{}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return err
	}
	return http.ListenAndServe(addr, NewHandler(s, anyone{})) //nolint:gosec // a test's own client
}

// A server that is killed again and again loses nothing that it has acknowledged: stored files stay, an upload goes on
// where it was told to be, and no part of one is ever seen as a file.
func TestKill(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	addr := "127.0.0.1:" + strconv.Itoa(testenv.FreePort(t))
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	do := func(method, path string, body []byte, header ...string) (*http.Response, []byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, bytes.NewReader(body))
		if err != nil {
			return nil, nil, err
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, b, err
	}
	data := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	upload, offset, finished := "", 0, false
	acknowledged := map[string]string{}
	tus := func(more ...string) []string { return append([]string{"Tus-Resumable", "1.0.0"}, more...) }
	const whole = "/files/acme/tools/-/1/whole"
	step := func() error {
		switch {
		case random.IntN(2) == 0:
			path, text := fmt.Sprintf("/files/acme/tools/-/1/f%d", len(acknowledged)), strings.Repeat(fmt.Sprint(random.Uint64()), 100)
			resp, body, err := do("PUT", path, []byte(text), "If-Match", "*")
			if err != nil {
				return err
			}
			if resp.StatusCode != 201 && resp.StatusCode != 200 {
				t.Errorf("PUT %s: %d %s", path, resp.StatusCode, body)
			}
			acknowledged[path] = text
		case upload == "":
			resp, body, err := do("POST", whole, nil, tus("Upload-Length", fmt.Sprint(len(data)))...)
			if err != nil {
				return err
			}
			if resp.StatusCode != 201 {
				t.Errorf("POST: %d %s", resp.StatusCode, body)
			}
			upload = resp.Header.Get("Location")
		case !finished:
			resp, _, err := do("HEAD", upload, nil, tus()...)
			if err != nil {
				return err
			}
			at, err := strconv.Atoi(resp.Header.Get("Upload-Offset"))
			if err != nil || at < offset {
				t.Errorf("the upload is at %d after %d was acknowledged (%d, %v)", at, offset, resp.StatusCode, err)
			}
			offset = at
			if offset < len(data) {
				if resp, body, err := do("GET", whole, nil); err == nil && resp.StatusCode != 404 {
					t.Errorf("a part is seen: %d, %d bytes", resp.StatusCode, len(body))
				}
			}
			end := min(len(data), offset+256<<10)
			resp, body, err := do("PATCH", upload, data[offset:end], tus("Content-Type", offsetStream, "Upload-Offset", fmt.Sprint(offset))...)
			if err != nil {
				return err
			}
			if resp.StatusCode != 204 {
				t.Errorf("PATCH at %d: %d %s", offset, resp.StatusCode, body)
			}
			offset, finished = end, end == len(data)
		}
		return nil
	}
	for round := range 6 {
		cmd := testenv.Child(t, addr, nil, childDir+"="+dir, childAddr+"="+addr)
		for path, text := range acknowledged {
			if resp, body, err := do("GET", path, nil); err != nil || string(body) != text {
				t.Errorf("%s is lost: %v %v", path, resp, err)
			}
		}
		if round < 5 {
			// It is killed while requests are on their way.
			timer := time.AfterFunc(time.Duration(20+random.IntN(150))*time.Millisecond, func() { _ = cmd.Process.Kill() })
			for err := error(nil); err == nil; {
				err = step()
			}
			timer.Stop()
		} else {
			for !finished {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			if _, body, err := do("GET", whole, nil); err != nil || !bytes.Equal(body, data) {
				t.Errorf("the upload became %d bytes: %v", len(body), err)
			}
			_ = cmd.Process.Kill()
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Errorf("%v", err)
		}
	}
	t.Logf("%d files, upload at %d", len(acknowledged), offset)
}
