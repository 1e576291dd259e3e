package gos_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/gostest"
	"cumulet.io/registry/gos/tracker"
)

// Whatever a client asks for as a range, the answer is what the blob has there.
func FuzzRange(f *testing.F) {
	tr, err := tracker.Open(f.Context(), sqldbtest.Open(f, sqldbtest.SQLite(f)), tracker.Config{})
	if err != nil {
		f.Fatal(err)
	}
	store, err := dir.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	// A store that is neither a directory nor reachable for clients is read through.
	r, err := gos.New(gos.Config{Name: "here", Stores: map[string]gos.ObjectStore{"here": struct{ gos.ObjectStore }{store}}, Tracker: tr})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { r.Close() })
	data := gostest.Bytes(1, 5000)
	d, _, err := r.Put(f.Context(), "test", bytes.NewReader(data))
	if err != nil {
		f.Fatal(err)
	}
	for _, header := range []string{"", "bytes=0-0", "bytes=10-", "bytes=-7", "bytes=-0", "bytes=4999-9999", "bytes=5000-", "bytes=1-2,4-8",
		"bytes=9-1", "bytes=a-b", "bytes= 1-2", "bytes=-99999999999999999999", "bytes=1--2", "x=1-2"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if strings.ContainsAny(header, "\r\n\x00") {
			return
		}
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header["Range"] = []string{header}
		w := httptest.NewRecorder()
		if err := r.ServeBlob(w, req, d, int64(len(data))); err != nil {
			t.Fatalf("%q: %v", header, err)
		}
		body := w.Body.Bytes()
		switch w.Code {
		case http.StatusOK:
			if !bytes.Equal(body, data) {
				t.Errorf("%q: other bytes", header)
			}
		case http.StatusPartialContent:
			if strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/") {
				return
			}
			if !bytes.Contains(data, body) { // nothing, of the last 0 bytes
				t.Errorf("%q: %d bytes that are not the blob's", header, len(body))
			}
		case http.StatusRequestedRangeNotSatisfiable:
		default:
			t.Errorf("%q: %d", header, w.Code)
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add(gos.NewKey())
	f.Add("../../../etc/passwd")
	f.Fuzz(func(t *testing.T, key string) {
		if gos.ValidKey(key) && (len(key) != 27 || strings.ContainsAny(key, ".\\") || strings.Count(key, "/") != 1) {
			t.Errorf("%q is taken", key)
		}
	})
}
