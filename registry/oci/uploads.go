package oci

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"sync"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/slowbody"
	"cumulet.io/registry/hubtoken"
)

// beginUpload answers POST /v2/NAME/blobs/uploads/: a session, a mount, or with a digest alone the whole blob.
func (r *Registry) beginUpload(w http.ResponseWriter, req *http.Request, rt route) {
	claims, ctx := hubtoken.FromContext(req.Context()), req.Context()
	q := req.URL.Query()
	if req.Method != http.MethodPost || !claims.Allows(hubtoken.TypeRepository, rt.name, "push") || !claims.Allows(hubtoken.TypeRepository, rt.name, "pull") {
		r.app.ServeHTTP(w, r.withoutDeniedMount(req)) // which refuses it
		return
	}
	if !validName(rt.name) {
		begin(w)
		r.fail(w, req, errcode.ErrorCodeNameInvalid.WithMessage("a repository's name is ORG/NAME[/NAME…] of lower-case path components"))
		return
	}
	org := orgOf(rt.name)
	if err := r.checkBegin(ctx, org, rt.name); err != nil {
		begin(w)
		r.noticeRefusal(ctx, org, rt.name, claims.Subject, err)
		r.problem(w, req, "begin upload", err, errcode.ErrorCodeNameUnknown)
		return
	}
	if q.Get("digest") != "" && q.Get("mount") == "" {
		begin(w)
		r.postBlob(w, req, rt, q.Get("digest"))
		return
	}
	r.app.ServeHTTP(w, r.withoutDeniedMount(req))
}

// postBlob takes a whole blob in one request (distribution specification, "Single POST").
func (r *Registry) postBlob(w http.ResponseWriter, req *http.Request, rt route, reference string) {
	dgst, ok := asDigest(reference)
	if !ok {
		r.fail(w, req, errcode.ErrorCodeDigestInvalid.WithMessage("digest must be a sha256 or sha512 digest"))
		return
	}
	ctx := req.Context()
	repo, err := r.repository(ctx, rt.name)
	if err != nil {
		r.problem(w, req, "open repository", err, errcode.ErrorCodeNameUnknown)
		return
	}
	counted := &countedBlobs{BlobStore: repo.Blobs(ctx), registry: r, name: rt.name}
	writer, err := counted.Create(ctx)
	if err != nil {
		r.problem(w, req, "begin upload", err, errcode.ErrorCodeBlobUploadUnknown)
		return
	}
	_, err = io.Copy(writer, slowbody.Reader(w, req, r.cfg.Patience))
	if err != nil {
		err = errcode.ErrorCodeSizeInvalid.WithMessage("the body was not received whole")
		w.Header().Set("Connection", "close")
	} else {
		_, err = writer.Commit(ctx, distribution.Descriptor{Digest: dgst})
	}
	if err != nil {
		_ = writer.Cancel(context.WithoutCancel(ctx)) //nolint:errcheck // what is left is purged after a week
		var invalid distribution.ErrBlobInvalidDigest
		var coded errcode.Error
		switch {
		case errors.As(err, &invalid):
			err = errcode.ErrorCodeDigestInvalid.WithMessage("the body has another digest than " + dgst.String())
		case errors.As(err, &coded):
			err = coded
		default:
			err = r.coded(ctx, "store blob", err, errcode.ErrorCodeBlobUploadUnknown)
		}
		r.fail(w, req, err)
		return
	}
	w.Header().Set("Location", "/v2/"+rt.name+"/blobs/"+dgst.String())
	w.Header().Set("Docker-Content-Digest", dgst.String())
	w.WriteHeader(http.StatusCreated)
}

var contentRange = regexp.MustCompile(`^([0-9]{1,18})-([0-9]{1,18})$`)

// checkRange tells what is wrong with the Content-Range of a chunk (distribution specification, "Pushing a blob in
// chunks"). The core looks at it where there is a Content-Length alone, and not at the last chunk's.
func checkRange(req *http.Request) error {
	text := req.Header.Get("Content-Range")
	if text == "" {
		return nil
	}
	m := contentRange.FindStringSubmatch(text)
	if m == nil {
		return errcode.ErrorCodeRangeInvalid.WithMessage("Content-Range must be START-END")
	}
	start, _ := strconv.ParseInt(m[1], 10, 64) //nolint:errcheck // the pattern is of numbers
	end, _ := strconv.ParseInt(m[2], 10, 64)   //nolint:errcheck // as above
	offset, ok := uploadOffset(req.URL.Query().Get("_state"))
	if start > end || ok && start != offset {
		return errcode.ErrorCodeRangeInvalid.WithMessage(fmt.Sprintf("Content-Range must begin at %d, where the upload is", offset))
	}
	if req.ContentLength >= 0 && req.ContentLength != end-start+1 {
		return errcode.ErrorCodeSizeInvalid.WithMessage(fmt.Sprintf("the body has %d bytes, and Content-Range %d", req.ContentLength, end-start+1))
	}
	return nil
}

// uploadOffset reads where an upload is from the state in its URL, which is signed: the core refuses it when it is not
// its own, or when the upload is elsewhere by now.
func uploadOffset(state string) (int64, bool) {
	data, err := base64.URLEncoding.DecodeString(state)
	if err != nil || len(data) <= sha256.Size {
		return 0, false
	}
	var s struct{ Offset *int64 }
	if err := json.Unmarshal(data[sha256.Size:], &s); err != nil || s.Offset == nil {
		return 0, false
	}
	return *s.Offset, true
}

// continueUpload answers the rest of an upload by the core, which takes for its own fault what is the client's.
func (r *Registry) continueUpload(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodPatch || req.Method == http.MethodPut {
		if err := checkRange(req); err != nil {
			begin(w)
			r.fail(w, req, err)
			return
		}
		if ct := req.Header.Get("Content-Type"); req.Method == http.MethodPatch && ct != "" && ct != "application/octet-stream" {
			begin(w)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnsupportedMediaType)
			_, _ = io.WriteString(w, `{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"Content-Type must be application/octet-stream"}]}`+"\n") //nolint:errcheck // the client has gone
			return
		}
		req.Body = slowbody.Reader(w, req, r.cfg.Patience)
	}
	r.app.ServeHTTP(w, req)
}

// withoutDeniedMount turns a mount from a repository that the token may not pull into a plain upload, which is the
// specification's answer (202) of a registry that cannot mount: it tells nothing of the source, and clients go on.
func (r *Registry) withoutDeniedMount(req *http.Request) *http.Request {
	q := req.URL.Query()
	from := q.Get("from")
	if req.Method != http.MethodPost || from == "" || hubtoken.FromContext(req.Context()).Allows(hubtoken.TypeRepository, from, "pull") {
		return req
	}
	if state, ok := req.Context().Value(stateKey{}).(authState); !ok || state != tokenGood {
		return req // the challenge asks for both repositories
	}
	q.Del("from")
	q.Del("mount")
	out := req.Clone(req.Context())
	out.URL.RawQuery = q.Encode()
	out.RequestURI = out.URL.RequestURI()
	return out
}

// countedRepository counts what is uploaded or mounted through the core's handlers.
type countedRepository struct {
	distribution.Repository
	registry *Registry
}

// Blobs implements distribution.Repository.
func (c *countedRepository) Blobs(ctx context.Context) distribution.BlobStore {
	return &countedBlobs{BlobStore: c.Repository.Blobs(ctx), registry: c.registry, name: c.Named().Name()}
}

type countedBlobs struct {
	distribution.BlobStore
	registry *Registry
	name     string
}

// canonicalMount makes of the mount of a blob by a digest of another algorithm one by the canonical digest, which alone
// the core can mount. named is the digest that was asked for, "" where there is nothing to be done.
func (b *countedBlobs) canonicalMount(ctx context.Context, options []distribution.BlobCreateOption) (_ []distribution.BlobCreateOption, named digest.Digest, err error) {
	var asked distribution.CreateOptions
	for _, o := range options {
		if err := o.Apply(&asked); err != nil {
			return nil, "", err
		}
	}
	if !asked.Mount.ShouldMount || asked.Mount.From.Digest().Algorithm() == digest.Canonical {
		return options, "", nil
	}
	source, err := b.registry.statBlob(ctx, asked.Mount.From.Name(), asked.Mount.From.Digest())
	if errors.Is(err, problem.ErrNotFound) {
		return nil, "", nil // as a plain upload
	}
	if err != nil {
		return nil, "", err
	}
	from, err := reference.WithDigest(reference.TrimNamed(asked.Mount.From), source.canonical)
	return []distribution.BlobCreateOption{storage.WithMountFrom(from)}, asked.Mount.From.Digest(), err
}

// Create implements distribution.BlobIngester.
func (b *countedBlobs) Create(ctx context.Context, options ...distribution.BlobCreateOption) (distribution.BlobWriter, error) {
	options, named, err := b.canonicalMount(ctx, options)
	if err != nil {
		return nil, err
	}
	w, err := b.BlobStore.Create(ctx, options...)
	var mounted distribution.ErrBlobMounted
	if errors.As(err, &mounted) {
		// The manifest that needs it is refused where there is no room.
		if cerr := b.registry.mounted(ctx, b.name, mounted.Descriptor); cerr != nil {
			return nil, cerr
		}
		if named != "" {
			// The core's layout: a link of each digest that a repository knows a blob by holds the canonical one.
			link := "/docker/registry/v2/repositories/" + b.name + "/_layers/" + named.Algorithm().String() + "/" + named.Encoded() + "/link"
			if err := b.registry.driver.PutContent(ctx, link, []byte(mounted.Descriptor.Digest)); err != nil {
				return nil, err
			}
			mounted.Descriptor.Digest = named
			return nil, mounted
		}
	}
	if err != nil {
		return nil, err
	}
	return &countedWriter{BlobWriter: w, blobs: b}, nil
}

// Resume implements distribution.BlobIngester.
func (b *countedBlobs) Resume(ctx context.Context, id string) (distribution.BlobWriter, error) {
	w, err := b.BlobStore.Resume(ctx, id)
	if err != nil {
		return nil, err
	}
	return &countedWriter{BlobWriter: w, blobs: b}, nil
}

type countedWriter struct {
	distribution.BlobWriter
	blobs *countedBlobs
}

// pieces are what an upload is taken in: a quarter of the calls of io.Copy's 32 KiB.
var pieces = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }} //nolint:gochecknoglobals // a pool

// ReadFrom implements io.ReaderFrom: the core's own copies in small pieces. What came before an error is kept.
func (w *countedWriter) ReadFrom(src io.Reader) (int64, error) {
	buf := pieces.Get().(*[]byte) //nolint:errcheck // it has nothing else
	defer pieces.Put(buf)
	var total int64
	for {
		n, err := fill(*buf, src)
		written, werr := w.BlobWriter.Write((*buf)[:n]) // also of nothing: the core then takes up the digest
		total += int64(written)
		switch {
		case werr != nil:
			return total, werr
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// fill reads until b is full or src has an error, which is its own: io.ReadFull would hide whether a body was cut.
func fill(b []byte, src io.Reader) (n int, err error) {
	for n < len(b) && err == nil {
		var got int
		got, err = src.Read(b[n:])
		n += got
	}
	return n, err
}

// Commit implements distribution.BlobWriter: room is asked for before, the blob counted after it is there under its
// canonical digest. The descriptor has the digest that was asked for, which the repository knows it by, too.
func (w *countedWriter) Commit(ctx context.Context, provisional distribution.Descriptor) (distribution.Descriptor, error) {
	r, name := w.blobs.registry, w.blobs.name
	if _, ok := asDigest(provisional.Digest.String()); !ok {
		return distribution.Descriptor{}, errcode.ErrorCodeDigestInvalid.WithMessage("digest must be a sha256 or sha512 digest")
	}
	org := orgOf(name)
	refuse := func(err error) error {
		r.noticeRefusal(ctx, org, name, hubtoken.FromContext(ctx).Subject, err)
		return r.coded(ctx, "count upload", err, errcode.ErrorCodeBlobUploadUnknown)
	}
	quota, err := r.quota(ctx, org)
	if err != nil {
		return distribution.Descriptor{}, refuse(err)
	}
	if err := r.checkUpload(ctx, org, quota, provisional.Digest, w.Size()); err != nil {
		return distribution.Descriptor{}, refuse(err)
	}
	desc, err := w.BlobWriter.Commit(ctx, provisional)
	if err != nil {
		return desc, err
	}
	r.links.forget(name, provisional.Digest)
	if quota.Bytes > 0 {
		if err := r.cfg.Index.Uploaded(ctx, org, desc.Digest, desc.Size, quota.Bytes); err != nil {
			return distribution.Descriptor{}, refuse(err)
		}
	}
	desc.Digest = provisional.Digest
	return desc, nil
}
