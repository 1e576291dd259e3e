package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/hubtoken"
)

// maxBodyBytes bounds the body of a management request.
const maxBodyBytes = 64 << 10

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if problem.Write(w, err) >= http.StatusInternalServerError && r.Context().Err() == nil {
		s.cfg.Logger.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
	}
}

func answer(w http.ResponseWriter, body any) { answerWith(w, http.StatusOK, body) }

func answerWith(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) //nolint:errcheck // the client has gone
}

// listRepositories answers GET /v1/orgs/{org}/repositories?limit=…&after=….
func (s *Server) listRepositories(w http.ResponseWriter, r *http.Request) {
	org := r.PathValue("org")
	if err := mayOrg(r, org, hubtoken.ActionRead); err != nil {
		s.fail(w, r, err)
		return
	}
	limit, after, err := pageOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	items, err := s.directory.Repositories(r.Context(), []string{org}, false, after, limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, paged(items, limit, func(r registry.Repository) string { return r.Name }))
}

// pageOf reads which page of a listing is wanted: 1 to 1000 items (100 unless told) after the last one's next.
func pageOf(r *http.Request) (limit int, after string, err error) {
	q := r.URL.Query()
	limit = 100
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > directory.MaxPage {
			return 0, "", problem.Invalid("limit", "must be 1 to 1000", text)
		}
	}
	return limit, q.Get("after"), nil
}

// paged makes a page of items; next names an item for the page after it.
func paged[T any](items []T, limit int, next func(T) string) registry.Page[T] {
	if items == nil {
		items = []T{}
	}
	page := registry.Page[T]{Items: items}
	if len(items) == limit {
		page.Next = next(items[limit-1])
	}
	return page
}

// handle makes a handler of a function that gives the body of the answer, nil for none.
func (s *Server) handle(f func(w http.ResponseWriter, r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := f(w, r)
		switch {
		case err != nil:
			s.fail(w, r, err)
		case body == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			answer(w, body)
		}
	}
}

func repositoryName(r *http.Request) (org, name string, err error) {
	name = r.PathValue("org") + "/" + r.PathValue("repository")
	org, err = registry.SplitRepository("repository", name)
	return org, name, err
}

// getRepository answers GET /v1/repositories/{org}/{repository…}.
func (s *Server) getRepository(w http.ResponseWriter, r *http.Request) {
	org, name, err := repositoryName(r)
	if err == nil && !hubtoken.FromContext(r.Context()).Allows(hubtoken.TypeRepository, name, "pull") {
		err = mayOrg(r, org, hubtoken.ActionRead)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	repo, err := s.directory.Repository(r.Context(), name)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, repo)
}

// repositoryPatch changes a repository; what is not in it stays.
type repositoryPatch struct {
	Visibility *registry.Visibility `json:"visibility"`
}

// patchRepository answers PATCH /v1/repositories/{org}/{repository…}.
func (s *Server) patchRepository(w http.ResponseWriter, r *http.Request) {
	org, name, err := repositoryName(r)
	if err == nil {
		err = mayOrg(r, org, hubtoken.ActionAdmin)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var patch repositoryPatch
	if err := readJSON(w, r, &patch); err != nil {
		s.fail(w, r, err)
		return
	}
	if patch.Visibility == nil {
		s.fail(w, r, problem.Invalid("visibility", "must be private or public", ""))
		return
	}
	repo, err := s.directory.SetVisibility(r.Context(), name, *patch.Visibility)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.cfg.Logger.InfoContext(r.Context(), "visibility changed", "repository", name, "visibility", repo.Visibility,
		"account", hubtoken.FromContext(r.Context()).Subject)
	answer(w, repo)
}

// readJSON decodes exactly one JSON object without unknown fields.
func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		return problem.New(problem.ErrInvalid, "the body must be one JSON object")
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return problem.New(problem.ErrInvalid, "the body is not what is expected: %v", err)
}
