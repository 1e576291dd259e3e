package server_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/s3"
	"cumulet.io/registry/gos/tracker"
	"cumulet.io/registry/server"
)

// What a client does wrong, as a body that ends early or is not what it is said to be, is answered as the client's fault
// and is nobody else's in the log: not an error, not the store's.
func TestFaultsOfClients(t *testing.T) {
	t.Run("directory", func(t *testing.T) { testFaultsOfClients(t, startHub(t)) })
	t.Run("S3", func(t *testing.T) {
		url, _ := testenv.S3(t)
		store, err := s3.Open(s3.Config{Endpoint: url, Bucket: testenv.S3Bucket, Credentials: credentials.NewStaticV4(testenv.S3AccessKey, testenv.S3SecretKey, "")})
		if err != nil {
			t.Fatal(err)
		}
		tr, err := tracker.Open(t.Context(), sqldbtest.Open(t, sqldbtest.SQLite(t)), tracker.Config{})
		if err != nil {
			t.Fatal(err)
		}
		testFaultsOfClients(t, startHub(t, func(c *server.Config) {
			c.Storage = gos.Config{Name: "here", Stores: map[string]gos.ObjectStore{"here": store}, Tracker: tr}
		}))
	})
}

func testFaultsOfClients(t *testing.T, h *hub) {
	bearer := h.bearer("adam", "repository:acme/web:pull,push,delete")
	wrong := digest.FromString("something else").String()
	upload := func() string {
		t.Helper()
		resp, text := h.request(http.MethodPost, "/v2/acme/web/blobs/uploads/", "", "Authorization", bearer)
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
		return resp.Header.Get("Location")
	}
	octets := []string{"Content-Type", "application/octet-stream"}
	tus := []string{"Tus-Resumable", "1.0.0"}
	resp, text := h.request(http.MethodPost, "/files/acme/tools/-/1/parts", "", append(tus, "Authorization", h.bearer("adam", "repository:acme/tools:pull,push"), "Upload-Length", "100000")...)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	parts := resp.Header.Get("Location")
	for name, tc := range map[string]struct {
		method, path string
		header       []string
	}{
		"file":          {"PUT", "/files/acme/tools/-/1/early", nil},
		"upload of one": {"PATCH", parts, append(tus, "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")},
		"chart":         {"POST", "/charts/api/acme/tools/charts", nil},
		"blob":          {"POST", "/v2/acme/web/blobs/uploads/?digest=" + wrong, octets},
		"chunk":         {"PATCH", upload(), octets},
		"last chunk":    {"PUT", withQuery(t, upload(), "digest", wrong), octets},
		"manifest":      {"PUT", "/v2/acme/web/manifests/early", []string{"Content-Type", "application/vnd.oci.image.manifest.v1+json"}},
	} {
		auth := bearer
		if !strings.HasPrefix(tc.path, "/v2/") {
			auth = h.bearer("adam", "repository:acme/tools:pull,push")
		}
		status := h.cutShort(tc.method, tc.path, append(tc.header, "Authorization", auth)...)
		if status != 0 && (status < 200 || status >= 500) {
			t.Errorf("%s that ends early: %d", name, status)
		}
	}
	for name, tc := range map[string]struct {
		method, path string
		header       []string
	}{
		"file":       {"PUT", "/files/acme/tools/-/1/wrong", []string{"X-Checksum-Sha256", strings.TrimPrefix(wrong, "sha256:")}},
		"chart":      {"POST", "/charts/api/acme/tools/charts", nil},
		"blob":       {"POST", "/v2/acme/web/blobs/uploads/?digest=" + wrong, octets},
		"last chunk": {"PUT", withQuery(t, upload(), "digest", wrong), octets},
	} {
		auth := bearer
		if !strings.HasPrefix(tc.path, "/v2/") {
			auth = h.bearer("adam", "repository:acme/tools:pull,push")
		}
		if resp, text := h.request(tc.method, tc.path, strings.Repeat("not that ", 10000), append(tc.header, "Authorization", auth)...); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s of another digest: %d %s", name, resp.StatusCode, text)
		}
	}
	for line := range strings.Lines(h.log.String()) {
		if strings.Contains(line, `"level":"ERROR"`) || strings.Contains(line, "object store") {
			t.Errorf("in the log: %s", line)
		}
	}
}

// cutShort sends a request whose body ends before its Content-Length, and gives the status of the answer, 0 for none.
func (h *hub) cutShort(method, path string, header ...string) int {
	h.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: hub.example\r\nContent-Length: 90000\r\n", method, path)
	for i := 0; i+1 < len(header); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", header[i], header[i+1])
	}
	b.WriteString("\r\n" + strings.Repeat("x", 50000))
	if _, err := io.WriteString(conn, b.String()); err != nil {
		h.t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		h.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
