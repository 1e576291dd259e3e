package server_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
)

// go-containerregistry's client attaches an artifact, finds it by the referrers API and deletes it.
func TestCraneReferrers(t *testing.T) {
	h := startHub(t)
	img := randomImage(t)
	ref := h.ref(t, "acme/app:v1")
	push(t, h, "wendy", "acme/app:v1", img)
	subject, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/spdx+json")
	sbom, ok := mutate.Subject(base, *subject).(v1.Image)
	if !ok {
		t.Fatal("no image")
	}
	sbomRef := h.ref(t, "acme/app@"+digestOf(t, sbom).String())
	if err := remote.Write(sbomRef, sbom, as(t, "wendy")...); err != nil {
		t.Fatal(err)
	}
	byDigest := ref.Context().Digest(digestOf(t, img).String())
	find := func(user string, filter string) []v1.Descriptor {
		t.Helper()
		options := as(t, user)
		if filter != "" {
			options = append(options, remote.WithFilter("artifactType", filter))
		}
		ix, err := remote.Referrers(byDigest, options...)
		if err != nil {
			t.Fatal(err)
		}
		list, err := ix.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		return list.Manifests
	}
	for filter, want := range map[string]int{"": 1, "application/spdx+json": 1, "application/x-other": 0} {
		if got := find("rita", filter); len(got) != want || want == 1 && got[0].Digest != digestOf(t, sbom) {
			t.Errorf("%q: %v", filter, got)
		}
	}
	// The client falls back to a tag where there is no referrers API: it must not have.
	if tags, err := remote.List(ref.Context(), as(t, "rita")...); err != nil || fmt.Sprint(tags) != "[v1]" {
		t.Errorf("tags = %v, %v", tags, err)
	}
	_, err = remote.Referrers(byDigest, as(t, "boris")...)
	wantStatus(t, "a stranger asks", err, http.StatusUnauthorized)
	if err := remote.Delete(sbomRef, as(t, "adam")...); err != nil {
		t.Fatal(err)
	}
	if got := find("rita", ""); len(got) != 0 {
		t.Errorf("after delete: %v", got)
	}
}

func TestBuildah(t *testing.T) { builds(t, "buildah", "--policy=always") }

// Podman asks the registry with every pull.
func TestPodman(t *testing.T) { builds(t, "podman") }

// builds has a client build, push a multi-architecture index and pull it again; it is refused what it may not.
func builds(t *testing.T, name string, always ...string) {
	t.Helper()
	client := testenv.Tool(t, name)
	testenv.RequireRoot(t)
	h := startHub(t)
	dir := t.TempDir()
	config := filepath.Join(dir, ".config", "containers")
	if err := os.MkdirAll(config, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(config, "policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	writeFile(t, filepath.Join(dir, "file"), "content")
	writeFile(t, filepath.Join(dir, "Containerfile"), "FROM scratch\nCOPY file /file\nLABEL team=blue\n")
	run := func(args ...string) (string, error) {
		args = append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)
		cmd := exec.CommandContext(t.Context(), client, args...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), "REGISTRY_AUTH_FILE="+filepath.Join(dir, "auth.json"), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "BUILDAH_ISOLATION=chroot")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return out
	}
	must("login", "--tls-verify=false", "-u", "wendy", "-p", "pass-of-wendy", h.host)
	for _, arch := range []string{"amd64", "arm64"} {
		must("build", "--layers=false", "--arch", arch, "--manifest", "both", "-f", "Containerfile", ".")
	}
	must("manifest", "push", "--tls-verify=false", "--all", "both", "docker://"+h.host+"/acme/built:v1")
	ix, err := remote.Index(h.ref(t, "acme/built:v1"), as(t, "rita")...)
	if err != nil {
		t.Fatal(err)
	}
	list, err := ix.IndexManifest()
	if err != nil || len(list.Manifests) != 2 {
		t.Fatalf("index: %+v, %v", list, err)
	}
	m, err := h.Index().Manifest(t.Context(), "acme/built", digestAs(list.Manifests[1].Digest))
	if err != nil || m.Platform != "linux/arm64" && m.Platform != "linux/arm64/v8" || m.Labels["team"] != "blue" {
		t.Errorf("the index knows %+v, %v", m, err)
	}
	must("rmi", "--all", "--force")
	must("pull", "--tls-verify=false", h.host+"/acme/built:v1")
	if out, err := run("push", "--tls-verify=false", h.host+"/acme/built:v1", "docker://"+h.host+"/beta/stolen:v1"); err == nil || !strings.Contains(out, "denied") {
		t.Errorf("a push to another org: %v\n%s", err, out)
	}
	must("logout", h.host)
	pull := func() (string, error) {
		return run(slices.Concat([]string{"pull", "--tls-verify=false"}, always, []string{h.host + "/acme/built:v1"})...)
	}
	if out, err := pull(); err == nil {
		t.Errorf("an anonymous pull of a private image: %s", out)
	}
	if _, err := h.Directory().SetVisibility(t.Context(), "acme/built", registry.Public); err != nil {
		t.Fatal(err)
	}
	if out, err := pull(); err != nil {
		t.Errorf("an anonymous pull of a public image: %v\n%s", err, out)
	}
}

// A repository of ten thousand tags is listed whole by a client that pages, and one tag costs what it costs elsewhere.
func TestManyTags(t *testing.T) {
	const n = 10050
	h := startHub(t)
	img, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	push(t, h, "wendy", "acme/many:first", img)
	m, err := h.Index().Manifest(t.Context(), "acme/many", digestAs(digestOf(t, img)))
	if err != nil {
		t.Fatal(err)
	}
	h.tagMany(t, m, n)
	tags, err := remote.List(h.ref(t, "acme/many:first").Context(), as(t, "rita")...)
	if err != nil || len(tags) != n+1 {
		t.Errorf("%d tags, %v", len(tags), err)
	}
	c := h.client("acme/many")
	header := c.want(200, "", "GET", "tags/list", "")
	if header.Get("Link") == "" {
		t.Error("more than ten thousand tags in one answer")
	}
	if _, err := remote.Get(h.ref(t, "acme/many:t09999"), as(t, "rita")...); err != nil {
		t.Error(err)
	}
	// The manifest goes with all of them.
	c.want(202, "", "DELETE", "manifests/"+digestOf(t, img).String(), "")
	c.want(200, `"tags":[]`, "GET", "tags/list", "")
}
