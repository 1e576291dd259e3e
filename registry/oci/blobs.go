package oci

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

const (
	// maxLinks bounds the remembered blobs of repositories, about 300 bytes each.
	maxLinks = 16 << 10
	// linkLife is how long another node's deletion may go unseen.
	linkLife = time.Minute
)

// links remembers which blobs repositories have, for GET. HEAD asks the store each time: a client that is told that a
// blob is there does not upload it, so it must be there and stay.
type links struct {
	lru *lru.Cache[linkKey, linkValue]
}

type linkKey struct {
	repository string
	digest     digest.Digest
}

type linkValue struct {
	canonical digest.Digest
	size      int64
	until     time.Time
}

func newLinks() (*links, error) {
	c, err := lru.New[linkKey, linkValue](maxLinks)
	return &links{c}, err
}

func (l *links) forget(repository string, dgst digest.Digest) {
	l.lru.Remove(linkKey{repository, dgst})
}

func (l *links) forgetAll() { l.lru.Purge() }

// blob answers /v2/NAME/blobs/DIGEST.
func (r *Registry) blob(w http.ResponseWriter, req *http.Request, rt route) {
	begin(w)
	dgst, ok := asDigest(rt.reference)
	if req.Method == http.MethodDelete && ok {
		// Forgotten before and after: the core takes the link away between the two.
		r.links.forget(rt.name, dgst)
		r.app.ServeHTTP(w, req)
		r.links.forget(rt.name, dgst)
		return
	}
	if !r.allow(w, req, rt.name, "pull") || !r.allowMethods(w, req, http.MethodGet, http.MethodHead, http.MethodDelete) {
		return
	}
	if !ok {
		r.fail(w, req, errcode.ErrorCodeDigestInvalid.WithMessage("a blob is named by a sha256 or sha512 digest"))
		return
	}
	if r.cfg.Blobs == nil {
		r.app.ServeHTTP(w, req)
		return
	}
	l, err := r.findBlob(req, rt.name, dgst)
	if err == nil {
		h := w.Header()
		h["Docker-Content-Digest"] = []string{dgst.String()}
		h["Content-Type"] = []string{"application/octet-stream"}
		h["Etag"] = []string{`"` + dgst.String() + `"`}
		h["Cache-Control"] = []string{"private, max-age=31536000, immutable"}
		if err = r.cfg.Blobs.ServeBlob(w, req, l.canonical, l.size); err == nil {
			return
		}
		for _, k := range []string{"Docker-Content-Digest", "Etag", "Cache-Control"} {
			h.Del(k)
		}
		r.links.forget(rt.name, dgst)
	}
	r.problem(w, req, "serve blob", err, errcode.ErrorCodeBlobUnknown)
}

// findBlob gives a blob of a repository, or an error of class ErrNotFound.
func (r *Registry) findBlob(req *http.Request, name string, dgst digest.Digest) (linkValue, error) {
	key, now := linkKey{name, dgst}, time.Now()
	if req.Method == http.MethodGet {
		if l, ok := r.links.lru.Get(key); ok && now.Before(l.until) {
			return l, nil
		}
	}
	l, err := r.statBlob(req.Context(), name, dgst)
	if err == nil {
		l.until = now.Add(linkLife)
		r.links.lru.Add(key, l)
	}
	return l, err
}

func (r *Registry) statBlob(ctx context.Context, name string, dgst digest.Digest) (linkValue, error) {
	if !validName(name) {
		return linkValue{}, problem.New(problem.ErrNotFound, "there is no repository %q", name)
	}
	repo, err := r.repository(ctx, name)
	if err != nil {
		return linkValue{}, err
	}
	desc, err := repo.Blobs(ctx).Stat(ctx, dgst)
	if errors.Is(err, distribution.ErrBlobUnknown) {
		return linkValue{}, problem.New(problem.ErrNotFound, "there is no blob %s in %s", dgst, name)
	}
	return linkValue{canonical: desc.Digest, size: desc.Size}, err
}

// blobFiles serves the file system driver's files themselves, so that the kernel copies them to the connection.
type blobFiles struct{ root string }

// ServeBlob implements BlobServer.
func (b blobFiles) ServeBlob(w http.ResponseWriter, r *http.Request, dgst digest.Digest, _ int64) error {
	hex := dgst.Encoded()
	f, err := os.Open(filepath.Join(b.root, "docker", "registry", "v2", "blobs", dgst.Algorithm().String(), hex[:2], hex, "data"))
	if errors.Is(err, fs.ErrNotExist) {
		return problem.New(problem.ErrNotFound, "there is no blob %s", dgst)
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}
