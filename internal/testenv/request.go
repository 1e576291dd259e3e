package testenv

import (
	"context"
	"io"
	"net/http"
	"testing"
)

// Request sends a request with headers in pairs, follows no redirect, and gives the answer with its whole body. The URL goes
// as it is. The header Transfer-Encoding, of whatever value, sends the body in chunks, whose length is not told.
func Request(t testing.TB, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Transfer-Encoding" {
			req.ContentLength = -1
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it is read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}
