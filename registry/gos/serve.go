package gos

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/lazyread"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/gos/tracker"
)

// ServeBlob answers GET and HEAD of a blob (OCI distribution specification, "Pulling blobs"; ranges by RFC 9110): from a
// local directory by the kernel, from a store that clients can reach by a redirect, from another region through the
// spool. The caller has authorised the read. size is the blob's as the caller knows it, negative where it does not: a
// blob of another size is an error. Content-Type, Docker-Content-Digest, ETag and Cache-Control are as the caller has set
// them, which may know the blob by another digest, and else the blob's. An error is one of problem's and nothing was
// written; nil once an answer was begun. An answer that cannot be finished ends short of its Content-Length, which
// net/http makes a broken connection.
func (r *Region) ServeBlob(w http.ResponseWriter, req *http.Request, dgst digest.Digest, size int64) error {
	ctx := req.Context()
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return problem.New(problem.ErrUnsupported, "a blob is read with GET or HEAD")
	}
	b, err := r.find(ctx, dgst)
	if err != nil {
		return err
	}
	if size >= 0 && size != b.Size {
		return fmt.Errorf("blob %s has %d bytes, not %d", dgst, b.Size, size)
	}
	if b.Inline != nil {
		serveContent(w, req, b, bytes.NewReader(b.Inline))
		return nil
	}
	if req.Method == http.MethodHead {
		serveContent(w, req, b, &lazyread.Seeker{Size: b.Size})
		return nil
	}
	if key := b.In(r.cfg.Name); key != "" {
		served, err := r.serveLocal(w, req, b, key)
		if served || err == nil {
			return nil
		}
		if b, err = r.lost(ctx, b, key, err); err != nil {
			return err
		}
	}
	return r.serveStream(w, req, b)
}

// serveLocal serves this region's own object.
func (r *Region) serveLocal(w http.ResponseWriter, req *http.Request, b *tracker.Blob, key string) (served bool, err error) {
	ctx := req.Context()
	if opener, ok := r.store.(FileOpener); ok {
		f, err := opener.OpenFile(ctx, key)
		if err != nil {
			return false, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return false, err
		}
		if info.Size() != b.Size {
			return false, fmt.Errorf("object %s has %d bytes, not %d", key, info.Size(), b.Size)
		}
		serveContent(w, req, b, f)
		return true, nil
	}
	if p, ok := r.store.(Presigner); ok && !unmodified(w.Header(), req, b.Digest) {
		u, err := p.Presign(ctx, key, r.cfg.PresignTTL)
		if err != nil {
			return false, err
		}
		if u != "" {
			h := w.Header()
			h.Set("Location", u)
			setDefault(h, "Docker-Content-Digest", b.Digest.String())
			h.Set("Cache-Control", "no-store") // the URL is good for a while only, and for whom it was made
			h.Set("Content-Length", "0")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true, nil
		}
	}
	// The first byte is waited for before anything is promised.
	from := rangeStart(req.Header.Get("Range"), b.Size)
	body, err := r.store.Get(ctx, key, from, -1)
	if err != nil {
		return false, err
	}
	s := lazyread.Opened(b.Size, from, r.hold(b.Digest, body), func(offset int64) (io.ReadCloser, error) {
		body, err := r.store.Get(ctx, key, offset, -1)
		if err != nil {
			return nil, err
		}
		return r.hold(b.Digest, body), nil
	})
	defer s.Close()
	serveContent(w, req, b, s)
	return true, nil
}

// serveStream serves a blob of another region.
func (r *Region) serveStream(w http.ResponseWriter, req *http.Request, b *tracker.Blob) error {
	ctx := req.Context()
	from := rangeStart(req.Header.Get("Range"), b.Size)
	body, err := r.open(ctx, b, from)
	if err != nil {
		return err
	}
	s := lazyread.Opened(b.Size, from, body, func(offset int64) (io.ReadCloser, error) { return r.open(ctx, b, offset) })
	defer s.Close()
	serveContent(w, req, b, s)
	return nil
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

// unmodified tells whether the client has the blob (RFC 9110, "If-None-Match"): http.ServeContent will say so, and a
// redirect must not make it fetch the blob again.
func unmodified(h http.Header, req *http.Request, d digest.Digest) bool {
	own := cmp.Or(h.Get("Etag"), etag(d))
	for _, list := range req.Header.Values("If-None-Match") {
		for tag := range strings.SplitSeq(list, ",") { // no digest has a comma
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == own {
				return true
			}
		}
	}
	return false
}

func serveContent(w http.ResponseWriter, req *http.Request, b *tracker.Blob, content io.ReadSeeker) {
	h := w.Header()
	setDefault(h, "Content-Type", "application/octet-stream")
	setDefault(h, "Docker-Content-Digest", b.Digest.String())
	setDefault(h, "Etag", etag(b.Digest))
	setDefault(h, "Cache-Control", "private, max-age=31536000, immutable")
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, req, "", time.Time{}, content)
}

// setDefault leaves alone what the caller has set.
func setDefault(h http.Header, name, value string) {
	if h.Get(name) == "" {
		h.Set(name, value)
	}
}

// rangeStart guesses where a read will begin, so that it can be opened there: the first byte of a Range header of one
// range, else 0. What is really served is http.ServeContent's decision.
func rangeStart(header string, size int64) int64 {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0
	}
	if first == "" { // the last N bytes
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 {
			return 0
		}
		return max(0, size-n)
	}
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil || n < 0 || n >= size {
		return 0
	}
	return n
}

// Redirect gives a URL at which a client can read a blob by itself, "" when it cannot. The digest is kept from being
// collected until the URL is over.
func (r *Region) Redirect(ctx context.Context, d digest.Digest) (string, error) {
	p, ok := r.store.(Presigner)
	if !ok {
		return "", nil
	}
	b, err := r.find(ctx, d)
	if err != nil {
		return "", err
	}
	key := b.In(r.cfg.Name)
	if key == "" || b.Inline != nil {
		return "", nil
	}
	return p.Presign(ctx, key, r.cfg.PresignTTL)
}
