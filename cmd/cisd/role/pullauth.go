package role

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/distribution/reference"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// pullAuth asks the registry for short-lived credentials, for exactly the repositories of an instance.
type pullAuth struct {
	base   *url.URL
	source hubtoken.Source
	http   *http.Client
}

func newPullAuth(registryURL string, source hubtoken.Source) (*pullAuth, error) {
	base, err := url.Parse(registryURL)
	if err != nil {
		return nil, fmt.Errorf("registry.url: %w", err)
	}
	return &pullAuth{base: base, source: source, http: &http.Client{Timeout: 20 * time.Second}}, nil
}

// Credentials gives what org may pull of images with; images of other registries are left out.
func (a *pullAuth) Credentials(ctx context.Context, org string, images []string) ([]cis.RegistryAuth, error) {
	var repositories []string
	for _, image := range images {
		named, err := reference.ParseNormalizedNamed(image)
		if err != nil {
			return nil, problem.Invalid("image", "must be an image reference", image)
		}
		if reference.Domain(named) == a.base.Host {
			repositories = append(repositories, reference.Path(named))
		}
	}
	if len(repositories) == 0 {
		return nil, nil
	}
	body, err := json.Marshal(map[string]any{"org": org, "repositories": repositories})
	if err != nil {
		return nil, fmt.Errorf("pull credentials: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base.JoinPath("/v1/pull-credentials").String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("pull credentials: %w", err)
	}
	token, err := a.source.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("pull credentials: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("pull credentials: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("pull credentials: %w", problem.Read(resp))
	}
	var out struct{ Username, Password string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&out); err != nil {
		return nil, fmt.Errorf("pull credentials: %w", err)
	}
	return []cis.RegistryAuth{{Server: a.base.Host, Username: out.Username, Password: out.Password}}, nil
}
