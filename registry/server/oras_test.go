package server_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Artifacts that are no images, by the library of the oras client: pushed, listed, copied, and attached to another.
func TestArtifacts(t *testing.T) {
	h := startHub(t)
	ctx := t.Context()
	open := func(repository, user string) *remote.Repository {
		t.Helper()
		r, err := remote.NewRepository(h.host + "/" + repository)
		if err != nil {
			t.Fatal(err)
		}
		r.PlainHTTP = true
		client := &auth.Client{Cache: auth.NewCache()}
		if user != "" {
			client.Credential = auth.StaticCredential(h.host, auth.Credential{Username: user, Password: "pass-of-" + user})
		}
		r.Client = client
		return r
	}
	store := memory.New()
	add := func(mediaType, text string) v1.Descriptor {
		t.Helper()
		desc := content.NewDescriptorFromBytes(mediaType, []byte(text))
		if err := store.Push(ctx, desc, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	layer := add("text/plain", "a report\n")
	root, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, "application/vnd.example.report", oras.PackManifestOptions{Layers: []v1.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Tag(ctx, root, "v1"); err != nil {
		t.Fatal(err)
	}
	repo := open("acme/reports", "wendy")
	if _, err := oras.Copy(ctx, store, "v1", repo, "v1", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	// Another artifact that is about the first.
	note := add("application/json", `{"ok":true}`)
	about, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, "application/vnd.example.verdict", oras.PackManifestOptions{Subject: &root, Layers: []v1.Descriptor{note}})
	if err != nil {
		t.Fatal(err)
	}
	if err := oras.CopyGraph(ctx, store, repo, about, oras.DefaultCopyGraphOptions); err != nil {
		t.Fatal(err)
	}
	var found []v1.Descriptor
	if err := repo.Referrers(ctx, root, "", func(page []v1.Descriptor) error { found = append(found, page...); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Digest != about.Digest || found[0].ArtifactType != "application/vnd.example.verdict" {
		t.Errorf("%+v", found)
	}
	var tags []string
	if err := repo.Tags(ctx, "", func(page []string) error { tags = append(tags, page...); return nil }); err != nil || strings.Join(tags, " ") != "v1" {
		t.Errorf("%v %v", tags, err)
	}

	reader := open("acme/reports", "rita")
	back := memory.New()
	got, err := oras.Copy(ctx, reader, "v1", back, "v1", oras.DefaultCopyOptions)
	if err != nil || got.Digest != root.Digest {
		t.Fatalf("%v %v", got, err)
	}
	r, err := back.Fetch(ctx, layer)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil || digest.FromBytes(text) != layer.Digest || !bytes.Equal(text, []byte("a report\n")) {
		t.Errorf("%q %v", text, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"", "boris"} {
		if _, err := open("acme/reports", user).Resolve(ctx, "v1"); err == nil {
			t.Errorf("%q resolves a private artifact", user)
		}
	}
	if _, err := oras.Copy(ctx, store, "v1", reader, "v2", oras.DefaultCopyOptions); err == nil {
		t.Error("a reader pushes")
	}
}
