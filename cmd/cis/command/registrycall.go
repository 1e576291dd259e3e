package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"cumulet.io/cmd/cis/session"
	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// registryAPI calls the registry's management API.
type registryAPI struct {
	base   string
	source hubtoken.Source
}

// registry opens the session and the registry's API, with tokens that carry the scopes besides the org's.
func (a *app) registry(scopes ...string) (*registryAPI, *session.Session, error) {
	s, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	return &registryAPI{s.Endpoints.Registry, s.Source(hubtoken.AudienceRegistry, scopes...)}, s, nil
}

// request makes a request with a token. The path is escaped already.
func (c *registryAPI) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	token, err := c.source.Token(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return req, nil
}

// do sends a request; the answer is an error when its status is 400 or above. The caller closes the body.
func (c *registryAPI) do(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, fmt.Errorf("registry %s: %w", req.URL.Host, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close() //nolint:errcheck // read as far as wanted
		return nil, problem.Read(resp)
	}
	return resp, nil
}

// call sends in as JSON, nil for no body, and decodes the answer into out unless that is nil.
func (c *registryAPI) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("registry: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(out); err != nil {
		return fmt.Errorf("registry: the answer is not understood: %w", err)
	}
	return nil
}

// every reads a listing page by page, at most limit items unless that is 0.
func every[T any](ctx context.Context, api *registryAPI, limit int, p string, q url.Values) ([]T, error) {
	if q == nil {
		q = url.Values{}
	}
	out := []T{}
	for {
		size := 1000
		if limit > 0 {
			size = min(size, limit-len(out))
		}
		q.Set("limit", strconv.Itoa(size))
		var page registry.Page[T]
		if err := api.call(ctx, http.MethodGet, p+"?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if page.Next == "" || limit > 0 && len(out) >= limit {
			return out, nil
		}
		q.Set("after", page.Next)
	}
}
