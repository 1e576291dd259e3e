package files

import (
	"encoding/base64"
	"encoding/hex"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

// tusVersion is of the protocol for resumable uploads, https://tus.io/protocols/resumable-upload: its core, creation,
// creation with upload, expiration and termination.
const (
	tusVersion    = "1.0.0"
	tusExtensions = "creation,creation-with-upload,expiration,termination"
	offsetStream  = "application/offset+octet-stream"
)

// options tells a client what is offered; it needs no credential.
func (h *Handler) options(w http.ResponseWriter) {
	head := w.Header()
	head.Set("Tus-Resumable", tusVersion)
	head.Set("Tus-Version", tusVersion)
	head.Set("Tus-Extension", tusExtensions)
	head.Set("Tus-Max-Size", strconv.FormatInt(h.store.cfg.MaxBytes, 10))
	w.WriteHeader(http.StatusNoContent)
}

// speaksTus tells whether a request is of the version that is offered; else it is answered 412.
func speaksTus(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Tus-Resumable") == tusVersion {
		w.Header().Set("Tus-Resumable", tusVersion)
		return true
	}
	w.Header().Set("Tus-Version", tusVersion)
	w.WriteHeader(http.StatusPreconditionFailed)
	return false
}

// create answers POST: it begins an upload.
func (h *Handler) create(w http.ResponseWriter, r *http.Request, t target) error {
	account, err := h.mayPush(w, r, t.repository)
	if err != nil {
		return err
	}
	if !speaksTus(w, r) {
		return nil
	}
	length, err := strconv.ParseInt(r.Header.Get("Upload-Length"), 10, 64)
	if err != nil || length < 0 {
		return problem.Invalid("Upload-Length", "must be the length of the file in bytes", r.Header.Get("Upload-Length"))
	}
	p, err := described(r, t, account, length)
	if err != nil {
		return err
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) //nolint:errcheck // what is none has no body
	withBody := media == offsetStream
	meta, err := metadata(r.Header.Get("Upload-Metadata"))
	if err != nil {
		return err
	}
	p.MediaType = meta["filetype"]
	if sum := meta["sha256"]; sum != "" {
		if p.Digest = digest.NewDigestFromEncoded(digest.SHA256, strings.ToLower(sum)); p.Digest.Validate() != nil {
			return problem.Invalid("Upload-Metadata", "must have the SHA-256 of the content in hexadecimal digits as sha256", sum)
		}
	}
	u, err := h.store.NewUpload(r.Context(), p)
	if err != nil {
		return err
	}
	w.Header().Set("Location", Prefix+t.repository+uploadSeparator+url.PathEscape(u.ID))
	if withBody || length == 0 {
		if u, err = h.store.Append(r.Context(), t.repository, u.ID, 0, SlowBody(w, r)); err != nil && (u == nil || u.Offset == 0) {
			return err
		}
		w.Header().Set("Upload-Offset", strconv.FormatInt(u.Offset, 10))
	}
	expiry(w, u)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func expiry(w http.ResponseWriter, u *Upload) {
	w.Header().Set("Upload-Expires", u.ExpiresAt.Format(http.TimeFormat))
}

// metadata reads Upload-Metadata: "key base64, key base64".
func metadata(header string) (map[string]string, error) {
	out := map[string]string{}
	if len(header) > 4096 {
		return nil, problem.InvalidSecret("Upload-Metadata", "must have at most 4096 bytes")
	}
	for part := range strings.SplitSeq(header, ",") {
		key, encoded, _ := strings.Cut(strings.TrimSpace(part), " ")
		if key == "" {
			continue
		}
		value, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
		if err != nil {
			return nil, problem.Invalid("Upload-Metadata", "must be pairs of a key and a value in base64", part)
		}
		out[key] = string(value)
	}
	return out, nil
}

// serveUpload answers what is asked of an upload. It needs the right to push, and whoever has that may go on with it.
func (h *Handler) serveUpload(w http.ResponseWriter, r *http.Request, t target) error {
	if _, err := h.mayPush(w, r, t.repository); err != nil {
		return err
	}
	if !speaksTus(w, r) {
		return nil
	}
	w.Header().Set("Cache-Control", "no-store")
	switch r.Method {
	case http.MethodHead:
		u, err := h.store.Upload(r.Context(), t.repository, t.upload)
		if err != nil {
			return err
		}
		w.Header().Set("Upload-Offset", strconv.FormatInt(u.Offset, 10))
		w.Header().Set("Upload-Length", strconv.FormatInt(u.Length, 10))
		expiry(w, u)
		w.WriteHeader(http.StatusOK)
		return nil
	case http.MethodPatch:
		return h.patch(w, r, t)
	case http.MethodDelete:
		if err := h.store.EndUpload(r.Context(), t.repository, t.upload); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return notAllowed(w, "HEAD, PATCH, DELETE, OPTIONS")
}

func (h *Handler) patch(w http.ResponseWriter, r *http.Request, t target) error {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != offsetStream {
		w.WriteHeader(http.StatusUnsupportedMediaType) // tus, "PATCH"
		return nil
	}
	offset, err := strconv.ParseInt(r.Header.Get("Upload-Offset"), 10, 64)
	if err != nil || offset < 0 {
		return problem.Invalid("Upload-Offset", "must be where the body begins", r.Header.Get("Upload-Offset"))
	}
	u, err := h.store.Append(r.Context(), t.repository, t.upload, offset, SlowBody(w, r))
	if u != nil {
		w.Header().Set("Upload-Offset", strconv.FormatInt(u.Offset, 10))
		expiry(w, u)
	}
	if err != nil {
		if u != nil && u.Offset != offset && clientGone(r, err) {
			w.WriteHeader(http.StatusNoContent) // what came is kept; there may be nobody to be told
			return nil
		}
		if u != nil && offset != u.Offset && isOffset(err) {
			return problem.New(problem.ErrConflict, "the upload is at %d, not at %d", u.Offset, offset) // tus asks for 409
		}
		return err
	}
	if u.Finished {
		if f, err := h.store.File(r.Context(), u.Repository, u.Path, u.Version); err == nil {
			w.Header().Set("X-Checksum-Sha256", f.Digest.Encoded())
			if sum, err := hex.DecodeString(f.Digest.Encoded()); err == nil {
				w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
			}
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// isOffset tells whether a client and an upload disagree on where it is.
func isOffset(err error) bool {
	d := problem.Of(err)
	return d.Field == "Upload-Offset"
}
