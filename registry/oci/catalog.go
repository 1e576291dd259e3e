package oci

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/auth"

	"cumulet.io/registry/hubtoken"
)

// Page sizes of the catalog.
const (
	catalogPage    = 100
	catalogMaxPage = 1000
)

// catalog answers GET /v2/_catalog?n=…&last=… with the repositories that the caller may pull by a right of its own
// (Docker registry HTTP API, "Listing Repositories").
func (r *Registry) catalog(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	ctx := req.Context()
	claims := hubtoken.FromContext(ctx)
	access := []auth.Access{{Resource: auth.Resource{Type: "registry", Name: "catalog"}, Action: "*"}}
	if err := r.check(ctx, claims, access); err != nil {
		if c, ok := err.(auth.Challenge); ok { //nolint:errorlint // check makes nothing else
			c.SetHeaders(req, w)
		}
		r.fail(w, req, errcode.ErrorCodeUnauthorized.WithDetail(access))
		return
	}
	if req.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		r.fail(w, req, errcode.ErrorCodeUnsupported)
		return
	}
	q := req.URL.Query()
	n := catalogPage
	if text := q.Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 0 {
			r.fail(w, req, errcode.ErrorCodePaginationNumberInvalid.WithDetail(map[string]string{"n": text}))
			return
		}
	}
	n = min(n, catalogMaxPage)
	names := []string{}
	if n > 0 {
		var err error
		if names, err = r.cfg.Directory.Catalog(ctx, claims.Subject, q.Get("last"), n); err != nil {
			r.failRead(w, req, err)
			return
		}
	}
	more := n > 0 && len(names) == n
	if more {
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {names[len(names)-1]}}
		w.Header().Set("Link", fmt.Sprintf(`</v2/_catalog?%s>; rel="next"`, next.Encode()))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string][]string{"repositories": names}) //nolint:errcheck // the client has gone
}

func (r *Registry) failRead(w http.ResponseWriter, req *http.Request, err error) {
	if req.Context().Err() == nil {
		r.cfg.Logger.ErrorContext(req.Context(), "catalog failed", "error", err)
	}
	r.fail(w, req, errcode.ErrorCodeUnavailable)
}
