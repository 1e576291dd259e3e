package files

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/slowbody"
	"cumulet.io/registry"
)

// Prefix begins the paths that Handler serves.
const Prefix = "/files/"

// separator parts a repository's name from what is in it: no component of a name begins with "-".
const (
	separator       = "/-/"
	uploadSeparator = "/-uploads/"
)

// Access decides who may do what. It gives the caller's account, "" for the anonymous, or an error of class
// ErrUnauthenticated, ErrForbidden or ErrNotFound, for which it has set the header that asks for a credential.
type Access interface {
	// Authorize checks one action on a repository: pull, push or delete.
	Authorize(w http.ResponseWriter, r *http.Request, repository, action string) (account string, err error)
}

// Handler serves files:
//
//	GET, HEAD  /files/ORG/REPO/-/VERSION/PATH   with Range, If-None-Match and the like; VERSION may be "latest"
//	PUT        /files/ORG/REPO/-/VERSION/PATH   stores; If-Match: replaces
//	DELETE     /files/ORG/REPO/-/VERSION/PATH
//	POST       /files/ORG/REPO/-/VERSION/PATH   begins a resumable upload (tus 1.0.0)
//	…          /files/ORG/REPO/-uploads/ID      HEAD, PATCH, DELETE of tus
//	GET        /files/ORG/REPO/-/               lists
type Handler struct {
	store  *Store
	access Access
	log    *slog.Logger
}

// NewHandler makes a handler for Prefix.
func NewHandler(s *Store, a Access) *Handler { return &Handler{s, a, s.cfg.Logger} }

// target is what a URL names.
type target struct {
	repository string
	// upload is an upload's id; else version and path are set, or both empty for the listing.
	upload, version, path string
}

// parseTarget reads the escaped path of a URL. An escaped slash is none of a path's own: it is refused.
func parseTarget(escaped string) (t target, err error) {
	rest, ok := strings.CutPrefix(escaped, Prefix)
	if !ok {
		return t, problem.New(problem.ErrNotFound, "there is no such address")
	}
	if name, id, ok := strings.Cut(rest, uploadSeparator); ok {
		t.repository, t.upload = name, id
		_, err = registry.SplitRepository("repository", name)
		return t, err
	}
	name, rest, ok := strings.Cut(rest, separator)
	if !ok {
		return t, problem.New(problem.ErrNotFound, "there is no such address: a file is at %sORG/REPOSITORY/-/VERSION/PATH", Prefix)
	}
	t.repository = name
	if _, err := registry.SplitRepository("repository", name); err != nil {
		return t, err
	}
	if rest == "" {
		return t, nil
	}
	if strings.Contains(strings.ToLower(rest), "%2f") {
		return t, problem.Invalid("path", "must have no escaped slash", rest)
	}
	plain, err := url.PathUnescape(rest)
	if err != nil {
		return t, problem.Invalid("path", "must be escaped as in a URL", rest)
	}
	t.version, t.path, ok = strings.Cut(plain, "/")
	if !ok {
		return t, problem.Invalid("path", "must have a version and a path: "+Prefix+"ORG/REPOSITORY/-/VERSION/PATH", plain)
	}
	if t.version != Latest {
		if err := ValidateVersion(t.version); err != nil {
			return t, err
		}
	}
	return t, ValidatePath(t.path)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodOptions {
		h.options(w)
		return
	}
	t, err := parseTarget(r.URL.EscapedPath())
	if err == nil {
		switch {
		case t.upload != "":
			err = h.serveUpload(w, r, t)
		case t.path == "":
			err = h.list(w, r, t)
		default:
			err = h.serveFile(w, r, t)
		}
	}
	if err != nil {
		h.fail(w, r, err)
	}
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	var p *problem.Error
	var tooLarge *http.MaxBytesError
	if !errors.As(err, &p) && !errors.As(err, &tooLarge) && clientGone(r, err) {
		err = problem.New(problem.ErrInvalid, "the body ended early")
	}
	if problem.Write(w, err) >= http.StatusInternalServerError && r.Context().Err() == nil {
		h.log.ErrorContext(r.Context(), "file request failed", "path", r.URL.Path, "error", err)
	}
}

// clientGone tells whether an error is of reading the request.
func clientGone(r *http.Request, err error) bool {
	return r.Context().Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, slowbody.ErrSlow)
}

func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request, t target) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return h.get(w, r, t)
	case http.MethodPut:
		return h.put(w, r, t)
	case http.MethodDelete:
		return h.delete(w, r, t)
	case http.MethodPost:
		return h.create(w, r, t)
	}
	return notAllowed(w, "GET, HEAD, PUT, DELETE, POST, OPTIONS")
}

func notAllowed(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(http.StatusMethodNotAllowed)
	d := problem.Document{Type: "about:blank", Title: "Method not allowed", Status: http.StatusMethodNotAllowed, Detail: "allowed here: " + allowed}
	_ = json.NewEncoder(w).Encode(d) //nolint:errcheck // the client has gone
	return nil
}

// describe sets the headers of a file.
func describe(w http.ResponseWriter, f *File) {
	head := w.Header()
	head.Set("ETag", `"`+f.Digest.String()+`"`)
	head.Set("X-Checksum-Sha256", f.Digest.Encoded())
	if sum, err := hex.DecodeString(f.Digest.Encoded()); err == nil {
		head.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
	}
	head.Set("X-File-Version", f.Version)
}

func (h *Handler) get(w http.ResponseWriter, r *http.Request, t target) error {
	account, err := h.access.Authorize(w, r, t.repository, "pull")
	if err != nil {
		return err
	}
	f, err := h.store.File(r.Context(), t.repository, t.path, t.version)
	if err != nil {
		return err
	}
	describe(w, f)
	head := w.Header()
	head.Set("Content-Type", f.MediaType)
	// What somebody stored is not of this site: a browser neither shows nor runs it here.
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	head.Set("Content-Disposition", disposition(path.Base(f.Path)))
	head.Set("Cache-Control", "private, no-cache")
	if r.Method == http.MethodGet && wholeOrStart(r.Header.Get("Range")) {
		if err := h.store.emit(r.Context(), registry.EventPull, "", *f, account); err != nil {
			h.log.WarnContext(r.Context(), "pull event is lost", "error", err)
		}
	}
	return ServeBlob(w, r, h.store.cfg.Blobs, f.Digest, f.Size, f.CreatedAt, h.log)
}

// wholeOrStart tells whether a request begins a download: a client's further ranges are the same pull.
func wholeOrStart(header string) bool {
	return header == "" || strings.HasPrefix(strings.ReplaceAll(header, " ", ""), "bytes=0-")
}

// disposition has a file saved under its name (RFC 6266, RFC 8187).
func disposition(name string) string {
	return "attachment; filename*=UTF-8''" + strings.ReplaceAll(url.QueryEscape(name), "+", "%20")
}

// claimed gives the digest that a client says the content has: by Repr-Digest or Content-Digest (RFC 9530), or by
// X-Checksum-Sha256.
func claimed(r *http.Request) (digest.Digest, error) {
	var found digest.Digest
	add := func(field, encoded string) error {
		d := digest.NewDigestFromEncoded(digest.SHA256, strings.ToLower(encoded))
		if d.Validate() != nil || found != "" && found != d {
			return problem.Invalid(field, "must be the SHA-256 of the content, one alone", encoded)
		}
		found = d
		return nil
	}
	for _, field := range []string{"Repr-Digest", "Content-Digest"} {
		for part := range strings.SplitSeq(r.Header.Get(field), ",") {
			value, ok := strings.CutPrefix(strings.TrimSpace(part), "sha-256=")
			if !ok {
				continue // another algorithm
			}
			sum, err := base64.StdEncoding.DecodeString(strings.Trim(value, ":"))
			if err != nil {
				return "", problem.Invalid(field, "must be sha-256=:BASE64:", part)
			}
			if err := add(field, hex.EncodeToString(sum)); err != nil {
				return "", err
			}
		}
	}
	if text := r.Header.Get("X-Checksum-Sha256"); text != "" {
		if err := add("X-Checksum-Sha256", text); err != nil {
			return "", err
		}
	}
	return found, nil
}

// replaced reads If-Match: what may be replaced or deleted.
func replaced(r *http.Request) (string, error) {
	text := strings.TrimSpace(r.Header.Get("If-Match"))
	if text == "" || text == "*" {
		return text, nil
	}
	d := digest.Digest(strings.Trim(text, `"`))
	if d.Validate() != nil {
		return "", problem.Invalid("If-Match", "must be * or one ETag of a file here", text)
	}
	return d.String(), nil
}

// described reads the headers that say what a file is.
func described(r *http.Request, t target, account string, length int64) (Put, error) {
	if t.version == Latest {
		return Put{}, problem.Invalid("version", `must be a version: "latest" is the one that was stored last`, t.version)
	}
	d, err := claimed(r)
	if err != nil {
		return Put{}, err
	}
	replace, err := replaced(r)
	if err != nil {
		return Put{}, err
	}
	return Put{Repository: t.repository, Path: t.path, Version: t.version, MediaType: r.Header.Get("Content-Type"), Digest: d, Replace: replace,
		Length: length, Account: account}, nil
}

func (h *Handler) put(w http.ResponseWriter, r *http.Request, t target) error {
	account, err := h.mayPush(w, r, t.repository)
	if err != nil {
		return err
	}
	if r.Header.Get("Content-Range") != "" {
		// Taking a part for the whole would be wrong (RFC 9110, section 14.5).
		return problem.Invalid("Content-Range", "is not taken with PUT: use the tus protocol for an upload in parts", r.Header.Get("Content-Range"))
	}
	p, err := described(r, t, account, r.ContentLength)
	if err != nil {
		return err
	}
	f, made, err := h.store.Store(r.Context(), p, SlowBody(w, r))
	if err != nil {
		return err
	}
	describe(w, f)
	w.Header().Set("Content-Type", "application/json")
	if made {
		w.Header().Set("Location", r.URL.EscapedPath())
		w.WriteHeader(http.StatusCreated)
	}
	_ = json.NewEncoder(w).Encode(f) //nolint:errcheck // the client has gone
	return nil
}

// mayPush is Authorize for push by somebody: the anonymous pushes nothing.
func (h *Handler) mayPush(w http.ResponseWriter, r *http.Request, repository string) (string, error) {
	return h.access.Authorize(w, r, repository, "push")
}

func (h *Handler) delete(w http.ResponseWriter, r *http.Request, t target) error {
	account, err := h.access.Authorize(w, r, t.repository, "delete")
	if err != nil {
		return err
	}
	if t.version == Latest {
		return problem.Invalid("version", "must be named to be deleted", t.version)
	}
	expected, err := replaced(r)
	if err != nil {
		return err
	}
	if err := h.store.Delete(r.Context(), t.repository, t.path, t.version, expected, account); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// page is one page of a listing. Next is "" on the last.
type page struct {
	Items []File `json:"items"`
	Next  string `json:"next,omitempty"`
}

// list answers GET /files/ORG/REPO/-/?prefix=…&path=…&version=…&limit=…&after=….
func (h *Handler) list(w http.ResponseWriter, r *http.Request, t target) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return notAllowed(w, "GET, HEAD")
	}
	if _, err := h.access.Authorize(w, r, t.repository, "pull"); err != nil {
		return err
	}
	q := r.URL.Query()
	f := Filter{Prefix: q.Get("prefix"), Path: q.Get("path"), Version: q.Get("version"), Limit: 100}
	for _, field := range []string{"prefix", "path", "version", "after"} {
		if v := q.Get(field); strings.ContainsRune(v, 0) || strings.ToValidUTF8(v, "") != v {
			return problem.InvalidSecret(field, "must be UTF-8")
		}
	}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxPage {
			return problem.Invalid("limit", "must be 1 to "+strconv.Itoa(MaxPage), text)
		}
		f.Limit = n
	}
	if text := q.Get("after"); text != "" {
		var ok bool
		if f.AfterVersion, f.After, ok = strings.Cut(text, "/"); !ok {
			return problem.Invalid("after", "must be the next of the page before", text)
		}
	}
	items, err := h.store.List(r.Context(), t.repository, f)
	if err != nil {
		return err
	}
	out := page{Items: items}
	if len(items) == f.Limit {
		last := items[len(items)-1]
		out.Next = last.Version + "/" + last.Path
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(out) //nolint:errcheck // the client has gone
	return nil
}
