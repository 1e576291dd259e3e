package server_test

import (
	"net/http"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resolver is containerd's own client, as the CRI plugin uses it: it posts an OAuth2 form.
func (h *hub) resolver(user, password string) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithClient(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}),
		docker.WithPlainHTTP(docker.MatchLocalhost),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(func(string) (string, string, error) {
			return user, password, nil
		}))))})
}

func TestContainerd(t *testing.T) {
	h := startHub(t)
	img := randomImage(t)
	push(t, h, "wendy", "acme/app:v1", img)
	user, password, err := h.Tokens().Delegate(t.Context(), "acme", []string{"acme/app"})
	if err != nil {
		t.Fatal(err)
	}
	want := digestOf(t, img).String()
	for _, cred := range [][2]string{{"rita", "pass-of-rita"}, {user, password}} {
		r := h.resolver(cred[0], cred[1])
		ref, desc, err := r.Resolve(t.Context(), h.host+"/acme/app:v1")
		if err != nil || desc.Digest.String() != want {
			t.Fatalf("%s: resolve: %v, %v", cred[0], desc.Digest, err)
		}
		fetcher, err := r.Fetcher(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range manifest.Layers {
			rc, err := fetcher.Fetch(t.Context(), ocispec.Descriptor{MediaType: string(layer.MediaType),
				Digest: digest.Digest(layer.Digest.String()), Size: layer.Size})
			if err != nil {
				t.Fatalf("%s: fetch: %v", cred[0], err)
			}
			got, err := digest.FromReader(rc)
			if err != nil || got.String() != layer.Digest.String() {
				t.Errorf("%s: layer %s, %v", cred[0], got, err)
			}
			if err := rc.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for name, r := range map[string]remotes.Resolver{
		"a stranger":     h.resolver("boris", "pass-of-boris"),
		"wrong password": h.resolver("rita", "wrong"),
		"nobody":         h.resolver("", ""),
	} {
		if _, _, err := r.Resolve(t.Context(), h.host+"/acme/app:v1"); err == nil {
			t.Errorf("%s pulls", name)
		}
	}
	if _, _, err := h.resolver("rita", "pass-of-rita").Resolve(t.Context(), h.host+"/acme/missing:v1"); !errdefs.IsNotFound(err) {
		t.Errorf("a missing image: %v", err)
	}

	// It pushes too.
	content := []byte("some layer")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(content), Size: int64(len(content))}
	pusher, err := h.resolver("wendy", "pass-of-wendy").Pusher(t.Context(), h.host+"/acme/app:v2")
	if err != nil {
		t.Fatal(err)
	}
	w, err := pusher.Push(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), desc.Size, desc.Digest); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	resp, body := h.request(http.MethodGet, "/v2/acme/app/blobs/"+desc.Digest.String(), "", "Authorization", h.bearer("rita", "repository:acme/app:pull"))
	if body != string(content) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
