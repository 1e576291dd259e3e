package charts

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/slowbody"
	"cumulet.io/registry"
	"cumulet.io/registry/files"
)

// Prefix begins the paths that Handler serves.
const Prefix = "/charts/"

// contextPath is Prefix as index.yaml has it for ChartMuseum's clients.
const contextPath = "/charts"

// Handler serves charts:
//
//	GET     /charts/ORG/REPO/index.yaml, NAME-VERSION.tgz, NAME-VERSION.tgz.prov
//	POST    /charts/api/ORG/REPO/charts   stores an archive: the body, or the parts chart and prov of a form; ?force
//	POST    /charts/api/ORG/REPO/prov     stores a provenance file
//	GET     /charts/api/ORG/REPO/charts[/NAME[/VERSION]]
//	DELETE  /charts/api/ORG/REPO/charts/NAME/VERSION
//
// The second half is the API of ChartMuseum, so that helm cm-push works.
type Handler struct {
	store  *Store
	access files.Access
	log    *slog.Logger
}

// NewHandler makes a handler for Prefix.
func NewHandler(s *Store, a files.Access) *Handler { return &Handler{s, a, s.cfg.Logger} }

var apiPattern = regexp.MustCompile(`^(.+)/charts(?:/([^/]+)(?:/([^/]+))?)?$`)

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.serve(w, r); err != nil {
		var p *problem.Error
		var tooLarge *http.MaxBytesError
		if !errors.As(err, &p) && !errors.As(err, &tooLarge) && (r.Context().Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, slowbody.ErrSlow)) {
			err = problem.New(problem.ErrInvalid, "the body ended early")
		}
		write := problem.Write
		if strings.HasPrefix(r.URL.Path, Prefix+"api/") {
			write = writeAPIError
		}
		if write(w, err) >= http.StatusInternalServerError && r.Context().Err() == nil {
			h.log.ErrorContext(r.Context(), "chart request failed", "path", r.URL.Path, "error", err)
		}
	}
}

// writeAPIError is problem.Write with the member error, which ChartMuseum's clients show.
func writeAPIError(w http.ResponseWriter, err error) int {
	return problem.WriteAs(w, err, func(d problem.Document) any {
		text := cmp.Or(d.Detail, d.Title)
		if d.Field != "" {
			text = d.Field + ": " + text
		}
		return struct {
			problem.Document
			Error string `json:"error"`
		}{d, text}
	})
}

func noAddress() error {
	return problem.New(problem.ErrNotFound, "there is no such address: a chart repository is at %sORG/REPOSITORY, its index at …/index.yaml", Prefix)
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	if strings.Contains(strings.ToLower(r.URL.EscapedPath()), "%2f") {
		return problem.Invalid("path", "must have no escaped slash", r.URL.EscapedPath())
	}
	rest := strings.TrimPrefix(r.URL.Path, Prefix)
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if api, ok := strings.CutPrefix(rest, "api/"); ok {
		switch {
		case r.Method == http.MethodPost && strings.HasSuffix(api, "/charts"):
			return h.post(w, r, strings.TrimSuffix(api, "/charts"))
		case r.Method == http.MethodPost && strings.HasSuffix(api, "/prov"):
			return h.postProv(w, r, strings.TrimSuffix(api, "/prov"))
		}
		m := apiPattern.FindStringSubmatch(api)
		switch {
		case m != nil && r.Method == http.MethodDelete && m[3] != "":
			return h.delete(w, r, m[1], m[2], m[3])
		case m != nil && read:
			return h.list(w, r, m[1], m[2], m[3])
		}
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		return noAddress()
	}
	repository, file := rest[:i], rest[i+1:]
	if _, err := registry.SplitRepository("repository", repository); err != nil {
		return err
	}
	if !read {
		w.Header().Set("Allow", "GET, HEAD")
		return problem.New(problem.ErrUnsupported, "charts are stored with POST to %sapi/%s/charts", Prefix, repository)
	}
	account, err := h.access.Authorize(w, r, repository, "pull")
	if err != nil {
		return err
	}
	if file == "index.yaml" {
		return h.index(w, r, repository)
	}
	archive, prov := strings.CutSuffix(file, ".prov")
	for _, c := range splitFileName(archive) {
		if prov {
			err = h.prov(w, r, repository, c)
		} else {
			err = h.archive(w, r, repository, c, account)
		}
		if !errors.Is(err, problem.ErrNotFound) {
			return err
		}
	}
	if err != nil {
		return err
	}
	return noAddress()
}

func (h *Handler) prov(w http.ResponseWriter, r *http.Request, repository string, c reference) error {
	text, err := h.store.Prov(r.Context(), repository, c.name, c.version)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(text) //nolint:errcheck // the client has gone
	return nil
}

func (h *Handler) index(w http.ResponseWriter, r *http.Request, repository string) error {
	i, err := h.store.Index(r.Context(), repository)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("ETag", i.ETag)
	w.Header().Set("Cache-Control", "private, no-cache")
	http.ServeContent(w, r, "", i.Changed, bytes.NewReader(i.Text))
	return nil
}

func (h *Handler) archive(w http.ResponseWriter, r *http.Request, repository string, ref reference, account string) error {
	c, err := h.store.Chart(r.Context(), repository, ref.name, ref.version)
	if err != nil {
		return err
	}
	if r.Method == http.MethodGet {
		if err := h.store.emit(r.Context(), registry.EventPull, "", repository, c, account); err != nil {
			h.log.WarnContext(r.Context(), "pull event is lost", "error", err)
		}
	}
	w.Header().Set("Content-Type", MediaType)
	w.Header().Set("ETag", `"`+c.sum().String()+`"`)
	w.Header().Set("X-Checksum-Sha256", c.Digest)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Disposition", "attachment; filename*=UTF-8''"+url.PathEscape(fileName(ref.name, ref.version)))
	return files.ServeBlob(w, r, h.store.cfg.Blobs, c.sum(), c.Size, c.Created, h.log)
}

// saved is the answer to a stored chart, as ChartMuseum's clients expect it.
type saved struct {
	Saved   bool   `json:"saved"`
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"`
}

func (h *Handler) answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) //nolint:errcheck // the client has gone
}

func (h *Handler) post(w http.ResponseWriter, r *http.Request, repository string) error {
	if _, err := registry.SplitRepository("repository", repository); err != nil {
		return err
	}
	account, err := h.access.Authorize(w, r, repository, "push")
	if err != nil {
		return err
	}
	u := Upload{Repository: repository, Account: account}
	if q := r.URL.Query(); q.Has("force") && q.Get("force") != "false" {
		// Replacing one is deleting another.
		if _, err := h.access.Authorize(w, r, repository, "delete"); err != nil {
			return err
		}
		u.Force = true
	}
	body := files.SlowBody(w, r)
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" {
		u.Archive = body
		return h.save(w, r, u)
	}
	form, err := readForm(body, params["boundary"])
	if err != nil {
		return err
	}
	defer form.close()
	if form.chart == nil {
		if form.prov != nil {
			return h.saveProv(w, r, repository, form.prov)
		}
		return problem.Invalid("chart", "must be a part of the form", "")
	}
	u.Archive, u.Prov = form.chart, form.prov
	return h.save(w, r, u)
}

func (h *Handler) save(w http.ResponseWriter, r *http.Request, u Upload) error {
	c, _, err := h.store.Store(r.Context(), u)
	if err != nil {
		return err
	}
	w.Header().Set("Location", Prefix+u.Repository+"/"+fileName(c.Name, c.Version))
	h.answer(w, http.StatusCreated, saved{true, c.Name, c.Version, c.sum().String()})
	return nil
}

func (h *Handler) postProv(w http.ResponseWriter, r *http.Request, repository string) error {
	if _, err := registry.SplitRepository("repository", repository); err != nil {
		return err
	}
	if _, err := h.access.Authorize(w, r, repository, "push"); err != nil {
		return err
	}
	body := files.SlowBody(w, r)
	if media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && media == "multipart/form-data" {
		form, err := readForm(body, params["boundary"])
		if err != nil {
			return err
		}
		defer form.close()
		return h.saveProv(w, r, repository, form.prov)
	}
	text, err := readProv(body)
	if err != nil {
		return err
	}
	return h.saveProv(w, r, repository, text)
}

func (h *Handler) saveProv(w http.ResponseWriter, r *http.Request, repository string, text []byte) error {
	if err := h.store.StoreProv(r.Context(), repository, text); err != nil {
		return err
	}
	h.answer(w, http.StatusCreated, saved{Saved: true})
	return nil
}

func readProv(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxProvBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read provenance: %w", err)
	}
	if len(text) > MaxProvBytes {
		return nil, problem.New(problem.ErrTooLarge, "a provenance file may have %d bytes", MaxProvBytes)
	}
	return text, nil
}

func (h *Handler) delete(w http.ResponseWriter, r *http.Request, repository, name, version string) error {
	if _, err := registry.SplitRepository("repository", repository); err != nil {
		return err
	}
	account, err := h.access.Authorize(w, r, repository, "delete")
	if err != nil {
		return err
	}
	if err := h.store.Delete(r.Context(), repository, name, version, account); err != nil {
		return err
	}
	h.answer(w, http.StatusOK, map[string]bool{"deleted": true})
	return nil
}

func (h *Handler) list(w http.ResponseWriter, r *http.Request, repository, name, version string) error {
	if _, err := registry.SplitRepository("repository", repository); err != nil {
		return err
	}
	if _, err := h.access.Authorize(w, r, repository, "pull"); err != nil {
		return err
	}
	ctx := r.Context()
	if version != "" {
		c, err := h.store.Chart(ctx, repository, name, version)
		if err != nil {
			return err
		}
		h.answer(w, http.StatusOK, c.Entry)
		return nil
	}
	names := []string{name}
	if name == "" {
		var err error
		if names, err = h.store.names(ctx, h.store.cfg.DB, repository, 0); err != nil {
			return err
		}
	}
	all := map[string][]Entry{}
	for _, name := range names {
		list, err := h.store.versions(ctx, h.store.cfg.DB, repository, name)
		if err != nil {
			return err
		}
		for _, c := range list {
			all[name] = append(all[name], c.Entry)
		}
	}
	if name == "" {
		h.answer(w, http.StatusOK, all)
		return nil
	}
	if len(all[name]) == 0 {
		return problem.New(problem.ErrNotFound, "%s has no chart %q", repository, name)
	}
	h.answer(w, http.StatusOK, all[name])
	return nil
}
