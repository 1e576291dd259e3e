package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/index"
)

// maxTags is the most tags that one answer has, also to a client that asked for no page: the Link says that there are more.
const maxTags = 10000

// tags answers GET /v2/NAME/tags/list?n=…&last=… (distribution specification, "Listing Tags").
func (r *Registry) tags(w http.ResponseWriter, req *http.Request, rt route) {
	begin(w)
	if !r.allow(w, req, rt.name, "pull") || !r.allowMethods(w, req, http.MethodGet, http.MethodHead) {
		return
	}
	ctx, q := req.Context(), req.URL.Query()
	n := maxTags
	if text := q.Get("n"); text != "" {
		asked, err := strconv.Atoi(text)
		if err != nil || asked < 0 {
			r.fail(w, req, errcode.ErrorCodePaginationNumberInvalid.WithDetail(map[string]string{"n": text}))
			return
		}
		n = min(n, asked)
	}
	if err := r.known(ctx, rt.name); err != nil {
		r.problem(w, req, "list tags", err, errcode.ErrorCodeNameUnknown)
		return
	}
	names := []string{}
	if n > 0 {
		var err error
		if names, err = r.cfg.Index.TagNames(ctx, rt.name, q.Get("last"), n+1); err != nil {
			r.problem(w, req, "list tags", err, errcode.ErrorCodeNameUnknown)
			return
		}
	}
	if len(names) > n {
		names = names[:n]
		link(w, req, url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}})
	}
	writeJSON(w, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{rt.name, names})
}

// known gives ErrNotFound for a repository that has nothing and that nobody has made.
func (r *Registry) known(ctx context.Context, name string) error {
	if has, err := r.cfg.Index.HasRepository(ctx, name); err != nil || has {
		return err
	}
	_, err := r.cfg.Directory.Repository(ctx, name)
	return err
}

// link says where the next page is (RFC 8288).
func link(w http.ResponseWriter, req *http.Request, query url.Values) {
	w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, req.URL.EscapedPath(), query.Encode()))
}

func writeJSON(w http.ResponseWriter, contentType string, body any) {
	text, err := json.Marshal(body)
	if err != nil { // of plain values: cannot be
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)+1))
	_, _ = w.Write(append(text, '\n')) //nolint:errcheck // the client has gone
}

// checkMovable refuses to move a tag that is immutable and points elsewhere.
func (r *Registry) checkMovable(ctx context.Context, name, tag string, to digest.Digest) error {
	e, err := r.cfg.Index.Lookup(ctx, name, tag)
	if errors.Is(err, problem.ErrNotFound) || err == nil && e.Digest == to {
		return nil
	}
	if err != nil {
		return err
	}
	rules, err := r.cfg.Index.Rules(ctx, name)
	if err != nil || !rules.Immutable(tag) {
		return err
	}
	return index.ImmutableTag(name, tag)
}
