package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
)

// manifest answers /v2/NAME/manifests/REFERENCE.
func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, rt route) {
	begin(w)
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		if r.allow(w, req, rt.name, "pull") {
			r.getManifest(w, req, rt)
		}
	case http.MethodPut:
		if r.allow(w, req, rt.name, "pull", "push") {
			r.putManifest(w, req, rt)
		}
	case http.MethodDelete:
		if r.allow(w, req, rt.name, "delete") {
			r.deleteManifest(w, req, rt)
		}
	default:
		r.allowMethods(w, req, http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete)
	}
}

// checkReference tells whether a reference may be a manifest's; any other is answered.
func (r *Registry) checkReference(w http.ResponseWriter, req *http.Request, reference string) bool {
	if strings.Contains(reference, ":") {
		if _, ok := asDigest(reference); !ok {
			r.fail(w, req, errcode.ErrorCodeDigestInvalid.WithMessage("the reference must be a tag or a sha256 or sha512 digest"))
			return false
		}
		return true
	}
	if !tagPattern.MatchString(reference) {
		r.fail(w, req, errcode.ErrorCodeTagInvalid.WithMessage("a tag is 1 to 128 of letters, digits, _ . - and begins with none of . -"))
		return false
	}
	return true
}

// getManifest answers from the index and the remembered contents. The store is asked for contents that are not.
func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, rt route) {
	if !r.checkReference(w, req, rt.reference) {
		return
	}
	ctx := req.Context()
	e, err := r.cfg.Index.Lookup(ctx, rt.name, rt.reference)
	if err != nil {
		r.problem(w, req, "look up manifest", err, errcode.ErrorCodeManifestUnknown)
		return
	}
	byTag := !strings.Contains(rt.reference, ":")
	// By digest a client knows what it asks for. By tag, one that cannot read the type is told so, as the core does.
	if byTag && !accepts(req.Header["Accept"], e.MediaType) {
		r.fail(w, req, errcode.ErrorCodeManifestUnknown.WithMessage("the manifest is of type "+e.MediaType+", which the Accept header does not have"))
		return
	}
	h := w.Header()
	etag := `"` + e.Digest.String() + `"`
	h["Docker-Content-Digest"] = []string{e.Digest.String()}
	h["Etag"] = []string{etag}
	h["Vary"] = []string{"Accept"}
	if matchesETag(req.Header["If-None-Match"], etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body, err := r.content(ctx, rt.name, e.Content)
	if err != nil {
		h.Del("Etag")
		h.Del("Docker-Content-Digest")
		var unknown distribution.ErrManifestUnknownRevision
		if errors.As(err, &unknown) {
			// It was deleted a moment ago, or the store has lost it: the log tells which.
			r.cfg.Logger.WarnContext(ctx, "a manifest's content is not in the store", "repository", rt.name, "digest", e.Digest)
			r.fail(w, req, errcode.ErrorCodeManifestUnknown)
			return
		}
		r.problem(w, req, "read manifest", err, errcode.ErrorCodeManifestUnknown)
		return
	}
	h["Content-Type"] = []string{e.MediaType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return
	}
	tag := ""
	if byTag {
		tag = rt.reference
	}
	r.pulls.add(rt.name, e, tag, hubtoken.FromContext(ctx).Subject)
	_, _ = w.Write(body) //nolint:errcheck // the client has gone
}

// accepts tells whether Accept has a media type; no header is any (RFC 9110, section 12.5.1). Weights are passed over.
func accepts(headers []string, mediaType string) bool {
	if len(headers) == 0 {
		return true
	}
	for _, header := range headers {
		for part := range strings.SplitSeq(header, ",") {
			t, _, _ := strings.Cut(part, ";")
			t = strings.TrimSpace(t)
			if t == mediaType || t == "*/*" || t == "application/*" || t == "" {
				return true
			}
		}
	}
	return false
}

// matchesETag compares weakly (RFC 9110, section 13.1.2).
func matchesETag(headers []string, etag string) bool {
	for _, header := range headers {
		for part := range strings.SplitSeq(header, ",") {
			part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
			if part == "*" || part == etag || part == strings.Trim(etag, `"`) {
				return true
			}
		}
	}
	return false
}

// putManifest stores a manifest and moves a tag to it, in an order that no crash can spoil: the content with its link in
// the store, then its row with the tag's in one transaction, which is the moment it counts; then the repository's row,
// the tag's link in the store, which only a rebuild of the index reads, and the event. What is answered is in both.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, rt route) {
	if !validName(rt.name) {
		r.fail(w, req, errcode.ErrorCodeNameInvalid.WithMessage("a repository's name is ORG/NAME[/NAME…] of lower-case path components"))
		return
	}
	if !r.checkReference(w, req, rt.reference) {
		return
	}
	body, ok := r.readManifest(w, req)
	if !ok {
		return
	}
	ctx := req.Context()
	put, err := r.newPut(rt, req.Header.Get("Content-Type"), body)
	if err == nil {
		err = r.put(ctx, put, hubtoken.FromContext(ctx).Subject)
	}
	if err != nil {
		r.fail(w, req, err)
		return
	}
	w.Header().Set("Location", "/v2/"+rt.name+"/manifests/"+put.m.Digest.String())
	w.Header().Set("Docker-Content-Digest", put.m.Digest.String())
	if put.m.Subject != "" {
		w.Header().Set("OCI-Subject", put.m.Subject.String())
	}
	w.WriteHeader(http.StatusCreated)
}

func (r *Registry) readManifest(w http.ResponseWriter, req *http.Request) ([]byte, bool) {
	tooLarge := func() {
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":"SIZE_INVALID","message":"a manifest is at most %d bytes long"}]}`+"\n", maxManifestBytes) //nolint:errcheck // the client has gone
	}
	if req.ContentLength > maxManifestBytes {
		tooLarge()
		return nil, false
	}
	// A manifest is small: whoever needs so long for it does something else.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(r.cfg.Patience)) //nolint:errcheck // a recorder has no connection
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxManifestBytes))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	var above *http.MaxBytesError
	switch {
	case errors.As(err, &above):
		tooLarge()
		return nil, false
	case err != nil:
		w.Header().Set("Connection", "close")
		r.fail(w, req, errcode.ErrorCodeManifestInvalid.WithMessage("the body was not received whole"))
		return nil, false
	}
	return body, true
}

// putting is a manifest on its way in.
type putting struct {
	m        *index.Manifest
	manifest distribution.Manifest
	tag      string
}

// newPut checks what can be checked of a manifest alone. Errors are the specification's.
func (r *Registry) newPut(rt route, contentType string, body []byte) (*putting, error) {
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil || !slices.Contains(distribution.ManifestMediaTypes(), mediaType) {
		return nil, errcode.ErrorCodeManifestInvalid.WithMessage(fmt.Sprintf("Content-Type must be one of %s, not %.100q", strings.Join(distribution.ManifestMediaTypes(), ", "), contentType))
	}
	p := &putting{}
	if p.m, err = index.Parse(mediaType, body); err != nil {
		return nil, r.coded(context.Background(), "parse manifest", err, errcode.ErrorCodeManifestInvalid)
	}
	p.m.Repository = rt.name
	if dgst, ok := asDigest(rt.reference); ok {
		if dgst.Algorithm().FromBytes(body) != dgst {
			return nil, errcode.ErrorCodeDigestInvalid.WithMessage("the body has another digest than " + dgst.String())
		}
		p.m.Digest = dgst
	} else {
		p.tag = rt.reference
	}
	if p.manifest, _, err = distribution.UnmarshalManifest(mediaType, body); err != nil {
		return nil, errcode.ErrorCodeManifestInvalid.WithMessage(err.Error())
	}
	return p, nil
}

// put is putIn with the specification's errors.
func (r *Registry) put(ctx context.Context, p *putting, account string) error {
	err := r.putIn(ctx, p, account)
	var coded errcode.Errors
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return r.coded(ctx, "push", err, errcode.ErrorCodeDenied)
}

// putIn enters a manifest for an account. Errors are of problem's classes, or the specification's about the manifest.
func (r *Registry) putIn(ctx context.Context, p *putting, account string) error {
	name := p.m.Repository
	org := orgOf(name)
	quota, err := r.quota(ctx, org)
	if err != nil {
		return err
	}
	if err := r.cfg.Directory.MayPush(ctx, name); err != nil {
		r.noticeRefusal(ctx, org, name, account, err)
		return err
	}
	if p.tag != "" {
		// Asked again when it is moved; here before anything is stored.
		if err := r.checkMovable(ctx, name, p.tag, p.m.Digest); err != nil {
			return err
		}
	}
	repo, err := r.repository(ctx, name)
	if err != nil {
		return err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return fmt.Errorf("open manifests: %w", err)
	}
	if _, err := manifests.Put(ctx, p.manifest); err != nil {
		return refused(err)
	}
	if err := r.describe(ctx, repo, p.m); err != nil {
		return fmt.Errorf("read blobs: %w", err)
	}
	done, err := r.cfg.Index.Put(ctx, index.PutRequest{Manifest: p.m, Tag: p.tag, Actor: account, Cause: index.CausePush, MaxBytes: quota.Bytes})
	if err != nil {
		r.noticeRefusal(ctx, org, name, account, err)
		return err
	}
	ctx = context.WithoutCancel(ctx) // it counts: the rest is done whether or not the client waits
	if err := r.keepContent(ctx, repo, p, account); err != nil {
		return err
	}
	if err := r.cfg.Directory.Pushed(ctx, name, account); err != nil {
		return fmt.Errorf("record push: %w", err)
	}
	if p.tag != "" {
		if err := r.linkTag(ctx, repo, p.tag); err != nil {
			return fmt.Errorf("link tag: %w", err)
		}
	}
	r.noticeUse(ctx, org, quota, done)
	if err := r.announcePush(ctx, p, done, account); err != nil {
		return fmt.Errorf("announce push: %w", err)
	}
	return nil
}

// keepContent sees to it that a manifest whose row is there has its content, which a deletion of the same manifest, or of
// the repository, may have taken a moment before. Where the layers are gone with it, so is the row.
func (r *Registry) keepContent(ctx context.Context, repo distribution.Repository, p *putting, account string) error {
	manifests, err := repo.Manifests(ctx) // of this context: the client may have gone
	if err != nil {
		return fmt.Errorf("open manifests: %w", err)
	}
	there, err := manifests.Exists(ctx, p.m.Content)
	if err != nil && !gone(err) {
		return fmt.Errorf("look for manifest: %w", err)
	}
	if there {
		return nil
	}
	if _, err := manifests.Put(ctx, p.manifest); err != nil {
		_, _, derr := r.cfg.Index.Delete(ctx, p.m.Repository, p.m.Digest, account, index.CauseDelete, nil)
		if err = refused(err); derr != nil && !errors.Is(derr, problem.ErrNotFound) {
			err = errors.Join(err, derr)
		}
		return err
	}
	return nil
}

// refused turns the core's refusal of a manifest into the specification's codes.
func refused(err error) error {
	var verification distribution.ErrManifestVerification
	if !errors.As(err, &verification) {
		return fmt.Errorf("store manifest: %w", err)
	}
	var out errcode.Errors
	for _, e := range verification {
		var unknown distribution.ErrManifestBlobUnknown
		switch {
		case errors.As(e, &unknown):
			out = append(out, errcode.ErrorCodeManifestBlobUnknown.WithDetail(map[string]digest.Digest{"digest": unknown.Digest}))
		case errors.Is(e, distribution.ErrBlobUnknown):
			continue // told with its digest
		default:
			out = append(out, errcode.ErrorCodeManifestInvalid.WithMessage(e.Error()))
		}
	}
	if len(out) == 0 {
		out = errcode.Errors{errcode.ErrorCodeManifestInvalid}
	}
	return out
}

// linkTag writes where the index says that a tag is into the store. Of two pushes at once the later one may come first:
// so it is the index that is asked, and again afterwards.
func (r *Registry) linkTag(ctx context.Context, repo distribution.Repository, tag string) error {
	for range 4 {
		e, err := r.cfg.Index.Lookup(ctx, repo.Named().Name(), tag)
		if errors.Is(err, problem.ErrNotFound) {
			return nil // it was deleted meanwhile, and what the index has known a rebuild leaves alone
		}
		if err != nil {
			return err
		}
		if err := repo.Tags(ctx).Tag(ctx, tag, distribution.Descriptor{Digest: e.Content, MediaType: e.MediaType, Size: e.Size}); err != nil {
			return err
		}
		if again, err := r.cfg.Index.Lookup(ctx, repo.Named().Name(), tag); err == nil && again.Content == e.Content {
			return nil
		}
	}
	return nil
}
