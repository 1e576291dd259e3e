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

// repositoryPage is one page of a listing. Next is "" on the last.
type repositoryPage struct {
	Items []registry.Repository `json:"items"`
	Next  string                `json:"next,omitempty"`
}

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

// mayOrg checks the caller's token. Without any right on the org, the answer is that of an org that does not exist.
func mayOrg(r *http.Request, org, action string) error {
	claims := hubtoken.FromContext(r.Context())
	switch {
	case claims.AllowsOrg(org, action):
		return nil
	case claims.AllowsOrg(org, hubtoken.ActionRead):
		return problem.New(problem.ErrForbidden, "this needs %s on the organisation %q", action, org)
	default:
		return problem.New(problem.ErrNotFound, "there is no organisation %q that your token has access to", org)
	}
}

// listRepositories answers GET /v1/orgs/{org}/repositories?limit=…&after=….
func (s *Server) listRepositories(w http.ResponseWriter, r *http.Request) {
	org := r.PathValue("org")
	if err := mayOrg(r, org, hubtoken.ActionRead); err != nil {
		s.fail(w, r, err)
		return
	}
	q := r.URL.Query()
	limit := 100
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > directory.MaxPage {
			s.fail(w, r, problem.Invalid("limit", "must be 1 to 1000", text))
			return
		}
	}
	items, err := s.directory.Repositories(r.Context(), []string{org}, false, q.Get("after"), limit)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	page := repositoryPage{Items: items}
	if len(items) == limit {
		page.Next = items[limit-1].Name
	}
	if page.Items == nil {
		page.Items = []registry.Repository{}
	}
	answer(w, page)
}

func repositoryName(r *http.Request) (org, name string, err error) {
	name = r.PathValue("org") + "/" + r.PathValue("repository")
	org, err = registry.SplitRepository("repository", name)
	return org, name, err
}

// getRepository answers GET /v1/repositories/{org}/{repository…}.
func (s *Server) getRepository(w http.ResponseWriter, r *http.Request) {
	org, name, err := repositoryName(r)
	if err == nil {
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
