package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
)

// imageRoutes puts what the index knows of images on a mux whose requests carry claims.
func (s *Server) imageRoutes(mux *http.ServeMux) {
	const repository = "/{org}/{repository...}"
	mux.HandleFunc("GET /v1/tags"+repository, s.handle(s.ofRepository(hubtoken.ActionRead, s.listTags)))
	mux.HandleFunc("GET /v1/tag-history"+repository, s.handle(s.ofRepository(hubtoken.ActionRead, s.tagHistory)))
	mux.HandleFunc("GET /v1/rules"+repository, s.handle(s.ofRepository(hubtoken.ActionRead, s.getRules)))
	mux.HandleFunc("PUT /v1/rules"+repository, s.handle(s.ofRepository(hubtoken.ActionAdmin, s.putRules)))
	mux.HandleFunc("POST /v1/retention"+repository, s.handle(s.ofRepository(hubtoken.ActionRead, s.retain)))
	mux.HandleFunc("GET /v1/images"+repository, s.handle(s.ofRepository(hubtoken.ActionRead, s.getImage)))
	mux.HandleFunc("POST /v1/images"+repository, s.handle(s.ofRepository(hubtoken.ActionWrite, s.attachFacts))) // by push
	mux.HandleFunc("DELETE /v1/repositories"+repository, s.handle(s.ofRepository(hubtoken.ActionAdmin, s.deleteRepository)))
	mux.HandleFunc("GET /v1/orgs/{org}/images", s.handle(s.findImages))
	mux.HandleFunc("GET /v1/orgs/{org}/layers/{digest}", s.handle(s.layerUsers))
	mux.HandleFunc("GET /v1/orgs/{org}/usage", s.handle(s.usage))
}

// imagePrefixes are the paths of imageRoutes besides the orgs'.
func imagePrefixes() []string {
	return []string{"/v1/tags/", "/v1/tag-history/", "/v1/rules/", "/v1/retention/", "/v1/images/"}
}

// ofRepository checks the caller's right on the org of the repository in the path, and that it is there. Who may pull
// from it reads it, too. To write to it is a push: who may only run instances for the org may not.
func (s *Server) ofRepository(action string, f func(w http.ResponseWriter, r *http.Request, name string) (any, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		org, name, err := repositoryName(r)
		if err != nil {
			return nil, err
		}
		claims := hubtoken.FromContext(r.Context())
		switch {
		case action == hubtoken.ActionRead && claims.Allows(hubtoken.TypeRepository, name, "pull"):
		case action == hubtoken.ActionWrite:
			err = mayPush(r, org, name)
		default:
			err = mayOrg(r, org, action)
		}
		if err != nil {
			return nil, err
		}
		if _, err := s.directory.Repository(r.Context(), name); err != nil {
			return nil, err
		}
		return f(w, r, name)
	}
}

func (s *Server) listTags(_ http.ResponseWriter, r *http.Request, name string) (any, error) {
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	tags, err := s.index.Tags(r.Context(), name, after, limit)
	if err != nil {
		return nil, err
	}
	return paged(tags, limit, func(t index.Tag) string { return t.Name }), nil
}

func (s *Server) tagHistory(_ http.ResponseWriter, r *http.Request, name string) (any, error) {
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	var before int64
	if after != "" {
		if before, err = strconv.ParseInt(after, 10, 64); err != nil || before < 1 {
			return nil, problem.Invalid("after", "must be next of the page before", after)
		}
	}
	moves, err := s.index.History(r.Context(), name, r.URL.Query().Get("tag"), before, limit)
	if err != nil {
		return nil, err
	}
	return paged(moves, limit, func(m index.Move) string { return strconv.FormatInt(m.ID, 10) }), nil
}

func (s *Server) getRules(_ http.ResponseWriter, r *http.Request, name string) (any, error) {
	return s.index.Rules(r.Context(), name)
}

func (s *Server) putRules(w http.ResponseWriter, r *http.Request, name string) (any, error) {
	var rules index.Rules
	if err := readJSON(w, r, &rules); err != nil {
		return nil, err
	}
	actor := registry.ActorFrom(r.Context())
	if err := s.images.SetRules(r.Context(), name, actor.Name, actor.Address, &rules); err != nil {
		return nil, err
	}
	return s.index.Rules(r.Context(), name)
}

// retention is what rules have deleted, or with DryRun would.
type retention struct {
	DryRun  bool            `json:"dryRun"`
	Removed []index.Removal `json:"removed"`
}

// retain answers POST /v1/retention/{org}/{repository…}?dryRun=…. Whoever reads may look; applying is an admin's.
func (s *Server) retain(_ http.ResponseWriter, r *http.Request, name string) (any, error) {
	dry, err := boolOf(r, "dryRun")
	if err != nil {
		return nil, err
	}
	if !dry {
		org, _, _ := strings.Cut(name, "/")
		if err := mayOrg(r, org, hubtoken.ActionAdmin); err != nil {
			return nil, err
		}
	}
	actor := registry.ActorFrom(r.Context())
	removed, err := s.images.Retain(r.Context(), name, actor.Name, actor.Address, dry)
	if err != nil {
		return nil, err
	}
	return retention{dry, removed}, nil
}

func boolOf(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, problem.Invalid(name, "must be true or false", text)
	}
	return v, nil
}

// image is all that is known of one.
type image struct {
	*index.Manifest
	Facts     []index.Fact      `json:"facts"`
	Referrers []*index.Manifest `json:"referrers"`
}

// imageOf finds the image that the query's reference names.
func (s *Server) imageOf(ctx context.Context, r *http.Request, name string) (digest.Digest, error) {
	reference := r.URL.Query().Get("reference")
	if reference == "" {
		return "", problem.Invalid("reference", "must be a tag or a digest", reference)
	}
	e, err := s.index.Lookup(ctx, name, reference)
	return e.Digest, err
}

func (s *Server) getImage(_ http.ResponseWriter, r *http.Request, name string) (any, error) {
	ctx := r.Context()
	dgst, err := s.imageOf(ctx, r, name)
	if err != nil {
		return nil, err
	}
	out := image{}
	if out.Manifest, err = s.index.Manifest(ctx, name, dgst); err != nil {
		return nil, err
	}
	if out.Facts, err = s.index.FactsOf(ctx, name, dgst); err != nil {
		return nil, err
	}
	out.Referrers, _, err = s.index.Referrers(ctx, name, dgst, "", "", index.MaxPage)
	return out, err
}

// attachRequest is facts about an image.
type attachRequest struct {
	Kind  string            `json:"kind"`
	Facts map[string]string `json:"facts"`
}

// attached names the referrer that holds them.
type attached struct {
	Digest digest.Digest `json:"digest"`
}

func (s *Server) attachFacts(w http.ResponseWriter, r *http.Request, name string) (any, error) {
	var req attachRequest
	if err := readJSON(w, r, &req); err != nil {
		return nil, err
	}
	dgst, err := s.imageOf(r.Context(), r, name)
	if err != nil {
		return nil, err
	}
	made, err := s.images.Attach(r.Context(), name, dgst, req.Kind, req.Facts, registry.ActorFrom(r.Context()).Name)
	return attached{made}, err
}

// deleteRepository deletes what is in a repository before its row, so that what a crash leaves can be deleted again.
func (s *Server) deleteRepository(_ http.ResponseWriter, r *http.Request, name string) (any, error) {
	ctx := r.Context()
	if err := s.images.DeleteRepository(ctx, name, registry.ActorFrom(ctx).Name); err != nil {
		return nil, err
	}
	if err := s.files.DeleteRepository(ctx, name); err != nil {
		return nil, err
	}
	if err := s.charts.DeleteRepository(ctx, name); err != nil {
		return nil, err
	}
	return nil, s.directory.DeleteRepository(ctx, name)
}

// imagePage reads the page of images that is wanted: after "repository@digest".
func imagePage(r *http.Request) (limit int, repository string, dgst digest.Digest, err error) {
	limit, after, err := pageOf(r)
	if err != nil || after == "" {
		return limit, "", "", err
	}
	repository, text, ok := strings.Cut(after, "@")
	if !ok {
		return 0, "", "", problem.Invalid("after", "must be next of the page before", after)
	}
	return limit, repository, digest.Digest(text), nil
}

func pagedImages(images []index.Image, limit int) registry.Page[index.Image] {
	return paged(images, limit, func(i index.Image) string { return i.Repository + "@" + i.Digest.String() })
}

func (s *Server) findImages(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayOrg(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	limit, repository, dgst, err := imagePage(r)
	if err != nil {
		return nil, err
	}
	var conditions []index.Condition
	for _, text := range r.URL.Query()["fact"] {
		c, err := index.ParseCondition(text)
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, c)
	}
	images, err := s.index.Find(r.Context(), org, conditions, repository, dgst, limit)
	if err != nil {
		return nil, err
	}
	return pagedImages(images, limit), nil
}

func (s *Server) layerUsers(_ http.ResponseWriter, r *http.Request) (any, error) {
	org, blob := r.PathValue("org"), digest.Digest(r.PathValue("digest"))
	if err := mayOrg(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	if blob.Validate() != nil {
		return nil, problem.Invalid("digest", "must be a digest, as sha256:…", blob)
	}
	limit, repository, dgst, err := imagePage(r)
	if err != nil {
		return nil, err
	}
	images, err := s.index.UsedBy(r.Context(), org, blob, repository, dgst, limit)
	if err != nil {
		return nil, err
	}
	return pagedImages(images, limit), nil
}

// usage is what an org's images, files and charts take beside what they may.
type usage struct {
	Bytes int64          `json:"bytes"`
	Quota registry.Quota `json:"quota"`
}

func (s *Server) usage(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayOrg(r, org, hubtoken.ActionRead); err != nil {
		return nil, err
	}
	quota, err := s.directory.Quota(r.Context(), org)
	if err != nil {
		return nil, err
	}
	used, err := s.files.Used(r.Context(), org)
	return usage{used, quota}, err
}
