package server_test

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
)

// as gives go-containerregistry's options to log in as user, "" for nobody.
func as(t testing.TB, user string) []remote.Option {
	auth := authn.Anonymous
	if user != "" {
		auth = &authn.Basic{Username: user, Password: "pass-of-" + user}
	}
	return []remote.Option{remote.WithAuth(auth), remote.WithContext(t.Context()), remote.WithJobs(2),
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Steps: 1}), remote.WithRetryStatusCodes()}
}

func (h *hub) ref(t testing.TB, repository string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(h.host+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func randomImage(t testing.TB) v1.Image {
	t.Helper()
	img, err := random.Image(2048, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(t testing.TB, d interface{ Digest() (v1.Hash, error) }) v1.Hash {
	t.Helper()
	hash, err := d.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

func push(t testing.TB, h *hub, user, repository string, img v1.Image) {
	t.Helper()
	if err := remote.Write(h.ref(t, repository), img, as(t, user)...); err != nil {
		t.Fatalf("%s pushes %s: %v", user, repository, err)
	}
}

// pullAs pulls with user name and password, and wants this status.
func pullAs(t testing.TB, h *hub, user, password, repository string, status int) {
	t.Helper()
	auth := remote.WithAuth(&authn.Basic{Username: user, Password: password})
	_, err := remote.Get(h.ref(t, repository), append(as(t, ""), auth)...)
	if status != http.StatusOK {
		wantStatus(t, "pull "+repository, err, status)
	} else if err != nil {
		t.Errorf("pull %s: %v", repository, err)
	}
}

// wantStatus checks that err is the registry's answer with this status.
func wantStatus(t testing.TB, what string, err error, status int) {
	t.Helper()
	var te *transport.Error
	if !errors.As(err, &te) || te.StatusCode != status {
		t.Errorf("%s: err = %v, want status %d", what, err, status)
	}
}

func TestCrane(t *testing.T) {
	h := startHub(t)
	img := randomImage(t)
	ref := h.ref(t, "acme/team/web:v1")
	if err := remote.Write(ref, img, as(t, "wendy")...); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"root", "adam", "wendy", "rita"} {
		got, err := remote.Image(ref, as(t, user)...)
		if err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		if digestOf(t, got) != digestOf(t, img) {
			t.Errorf("%s pulled another image", user)
		}
	}
	repo, err := h.Directory().Repository(t.Context(), "acme/team/web")
	if err != nil || repo.Visibility != registry.Private || repo.CreatedBy != "wendy" {
		t.Errorf("repository = %+v, %v", repo, err)
	}
	events := h.pushed()
	if len(events) != 1 || events[0].Repository != "acme/team/web" || events[0].Tag != "v1" || events[0].Actor != "wendy" ||
		events[0].Digest != digestOf(t, img).String() || events[0].Size == 0 || events[0].MediaType == "" {
		t.Errorf("events = %+v", events)
	}

	t.Run("denied", func(t *testing.T) {
		for _, user := range []string{"", "boris"} {
			_, err := remote.Head(ref, as(t, user)...)
			wantStatus(t, user+" pulls a private image", err, http.StatusUnauthorized)
			_, err = remote.Head(h.ref(t, "acme/missing:v1"), as(t, user)...)
			wantStatus(t, user+" pulls a missing image", err, http.StatusUnauthorized)
		}
		_, err := remote.Get(h.ref(t, "acme/missing:v1"), as(t, "rita")...)
		wantStatus(t, "a member pulls a missing image", err, http.StatusNotFound)
		for _, user := range []string{"", "rita", "boris"} {
			err := remote.Write(h.ref(t, "acme/other:v1"), img, as(t, user)...)
			wantStatus(t, user+" pushes", err, http.StatusUnauthorized)
		}
		for _, repository := range []string{"nobody/x:v1", "plain:v1"} {
			err := remote.Write(h.ref(t, repository), img, as(t, "root")...)
			wantStatus(t, "push to "+repository, err, http.StatusUnauthorized)
		}
		wrong := remote.WithAuth(&authn.Basic{Username: "wendy", Password: "wrong"})
		_, err = remote.Head(ref, append(as(t, ""), wrong)...)
		wantStatus(t, "wrong password", err, http.StatusUnauthorized)
	})

	t.Run("public", func(t *testing.T) {
		if _, err := h.Directory().SetVisibility(t.Context(), "acme/team/web", registry.Public); err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{"", "boris", "node-agent"} {
			got, err := remote.Image(ref, as(t, user)...)
			if err != nil {
				t.Fatalf("%q: %v", user, err)
			}
			layers, err := got.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				if rc, err := l.Compressed(); err != nil {
					t.Errorf("%q: layer: %v", user, err)
				} else if err := rc.Close(); err != nil {
					t.Error(err)
				}
			}
			wantStatus(t, user+" pushes to a public repository", remote.Write(ref, randomImage(t), as(t, user)...), http.StatusUnauthorized)
		}
	})

	t.Run("index", func(t *testing.T) {
		idx, err := random.Index(512, 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		multi := h.ref(t, "acme/multi:latest")
		if err := remote.WriteIndex(multi, idx, as(t, "adam")...); err != nil {
			t.Fatal(err)
		}
		got, err := remote.Index(multi, as(t, "rita")...)
		if err != nil || digestOf(t, got) != digestOf(t, idx) {
			t.Errorf("index: %v", err)
		}
	})

	t.Run("list and delete", func(t *testing.T) {
		tags, err := remote.List(ref.Context(), as(t, "rita")...)
		if err != nil || len(tags) != 1 || tags[0] != "v1" {
			t.Errorf("tags = %v, %v", tags, err)
		}
		reg := ref.Context().Registry
		repos, err := remote.Catalog(t.Context(), reg, as(t, "rita")...)
		if err != nil || fmt.Sprint(repos) != "[acme/multi acme/team/web]" {
			t.Errorf("rita's catalog = %v, %v", repos, err)
		}
		repos, err = remote.CatalogPage(reg, "acme/multi", 1, as(t, "root")...)
		if err != nil || fmt.Sprint(repos) != "[acme/team/web]" {
			t.Errorf("second page = %v, %v", repos, err)
		}
		repos, err = remote.Catalog(t.Context(), reg, as(t, "boris")...)
		if err != nil || len(repos) != 0 {
			t.Errorf("a stranger's catalog = %v, %v", repos, err)
		}
		// Of another org, what is granted and nothing else; so for a robot, whose scopes say it.
		if err := h.Directory().SetGrant(t.Context(), registry.Grant{Org: "acme", Account: "boris", Repositories: "acme/team/*", Role: registry.RoleReader}); err != nil {
			t.Fatal(err)
		}
		if repos, err = remote.Catalog(t.Context(), reg, as(t, "boris")...); err != nil || fmt.Sprint(repos) != "[acme/team/web]" {
			t.Errorf("boris' catalog = %v, %v", repos, err)
		}
		if err := h.Directory().SetGrant(t.Context(), registry.Grant{Org: "acme", Account: "boris", Repositories: "acme/team/*"}); err != nil {
			t.Fatal(err)
		}
		_, secret, err := h.Directory().CreateRobot(t.Context(), registry.RobotAccount{Org: "acme", Name: "lister",
			Scopes: []registry.Scope{{Type: "repository", Name: "acme/m*", Actions: []string{"pull"}}}})
		if err != nil {
			t.Fatal(err)
		}
		repos, err = remote.Catalog(t.Context(), reg, remote.WithAuth(&authn.Basic{Username: "acme+lister", Password: secret}))
		if err != nil || fmt.Sprint(repos) != "[acme/multi]" {
			t.Errorf("a robot's catalog = %v, %v", repos, err)
		}
		_, err = remote.Catalog(t.Context(), reg, as(t, "")...)
		wantStatus(t, "the catalog for nobody", err, http.StatusUnauthorized)

		byDigest := h.ref(t, "acme/team/web@"+digestOf(t, img).String())
		wantStatus(t, "a writer deletes", remote.Delete(byDigest, as(t, "wendy")...), http.StatusUnauthorized)
		if err := remote.Delete(byDigest, as(t, "adam")...); err != nil {
			t.Fatal(err)
		}
		_, err = remote.Get(byDigest, as(t, "rita")...)
		wantStatus(t, "pull after delete", err, http.StatusNotFound)
	})
	if log := h.log.String(); strings.Contains(log, `"level":"ERROR"`) || strings.Contains(log, `"level":"WARN"`) {
		t.Errorf("clients' faults are logged as ours:\n%s", log)
	}
}

func TestConcurrentPush(t *testing.T) {
	h := startHub(t)
	base := randomImage(t)
	var wg sync.WaitGroup
	const pushes = 12
	for i := range pushes {
		wg.Go(func() {
			img, err := mutate.Config(base, v1.Config{Env: []string{fmt.Sprint("N=", i%6)}})
			if err != nil {
				t.Error(err)
				return
			}
			// Two push each image; all share layers, a repository and half of them a tag.
			ref := h.ref(t, fmt.Sprintf("acme/crowd:t%d", i%6))
			if err := remote.Write(ref, img, as(t, "wendy")...); err != nil {
				t.Errorf("push %d: %v", i, err)
				return
			}
			if got, err := remote.Get(ref, as(t, "rita")...); err != nil || got.Digest != digestOf(t, img) {
				t.Errorf("pull %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := len(h.pushed()); n < 6 {
		t.Errorf("%d events for %d pushes of 6 images", n, pushes)
	}
	repos, err := h.Directory().Repositories(t.Context(), []string{"acme"}, false, "", 10)
	if err != nil || len(repos) != 1 {
		t.Errorf("repositories = %v, %v", repos, err)
	}
}

func TestMount(t *testing.T) {
	h := startHub(t)
	img := randomImage(t)
	if err := remote.Write(h.ref(t, "beta/secret:v1"), img, as(t, "boris")...); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest := digestOf(t, layers[0]).String()
	mount := func(bearer, from string) (int, string) {
		resp, body := h.request(http.MethodPost, "/v2/acme/thief/blobs/uploads/?mount="+digest+"&from="+from, "", "Authorization", bearer)
		if resp.StatusCode == http.StatusUnauthorized {
			body = resp.Header.Get("WWW-Authenticate")
		}
		return resp.StatusCode, body
	}
	wendy := h.bearer("wendy", "repository:acme/thief:pull,push", "repository:beta/secret:pull")
	if status, body := mount(wendy, "beta/secret"); status != http.StatusAccepted {
		t.Errorf("mount without a right on the source: %d %s, want a plain upload", status, body)
	}
	if status, body := mount(wendy, "beta/missing"); status != http.StatusAccepted {
		t.Errorf("mount from nowhere: %d %s, want the same", status, body)
	}
	resp, _ := h.request(http.MethodHead, "/v2/acme/thief/blobs/"+digest, "", "Authorization", wendy)
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("the other org's blob is there: %d", resp.StatusCode)
	}
	if status, challenge := mount("", "beta/secret"); status != http.StatusUnauthorized ||
		!strings.Contains(challenge, `scope="repository:acme/thief:pull,push repository:beta/secret:pull"`) {
		t.Errorf("without token: %d %s", status, challenge)
	}
	// With rights on both, the blob is mounted and nothing is uploaded.
	if err := remote.Write(h.ref(t, "acme/source:v1"), img, as(t, "wendy")...); err != nil {
		t.Fatal(err)
	}
	both := h.bearer("wendy", "repository:acme/thief:pull,push repository:acme/source:pull")
	if status, body := mount(both, "acme/source"); status != http.StatusCreated {
		t.Errorf("mount with rights: %d %s", status, body)
	}
	// A real client that tries to mount what it may not goes on by upload.
	if err := remote.Write(h.ref(t, "acme/copy:v1"), &mountable{img, h.ref(t, "beta/secret:v1")}, as(t, "wendy")...); err != nil {
		t.Errorf("copy: %v", err)
	}
}

// mountable is an image whose layers say that they may be mounted from another repository.
type mountable struct {
	v1.Image
	from name.Reference
}

func (m *mountable) Layers() ([]v1.Layer, error) {
	layers, err := m.Image.Layers()
	for i, l := range layers {
		layers[i] = &remote.MountableLayer{Layer: l, Reference: m.from}
	}
	return layers, err
}

func TestSkopeo(t *testing.T) {
	skopeo := testenv.Tool(t, "skopeo")
	h := startHub(t)
	dir := t.TempDir()
	img := randomImage(t)
	path, err := layout.Write(filepath.Join(dir, "image"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy.json")
	writeFile(t, policy, `{"default":[{"type":"insecureAcceptAnything"}]}`)
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), skopeo, append([]string{"--policy", policy}, args...)...)
		cmd.Env = append(cmd.Environ(), "REGISTRY_AUTH_FILE="+filepath.Join(dir, "auth.json"), "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	mustNot := func(want string, args ...string) {
		t.Helper()
		out, err := run(args...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("skopeo %s: %v, want %q\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	src, dst := "oci:"+filepath.Join(dir, "image"), "docker://"+h.host+"/acme/tools:v1"

	mustNot("invalid username/password", "login", "--tls-verify=false", "-u", "wendy", "-p", "pass-wrong", h.host)
	mustNot("", "copy", "--dest-tls-verify=false", src, dst)
	must("login", "--tls-verify=false", "-u", "wendy", "-p", "pass-of-wendy", h.host)
	must("copy", "--dest-tls-verify=false", src, dst)
	if out := must("inspect", "--tls-verify=false", dst); !strings.Contains(out, digestOf(t, img).String()) {
		t.Errorf("inspect: %s", out)
	}
	must("copy", "--src-tls-verify=false", dst, "dir:"+filepath.Join(dir, "pulled"))
	// Within the registry: the layers are mounted.
	must("copy", "--src-tls-verify=false", "--dest-tls-verify=false", dst, "docker://"+h.host+"/acme/tools-copy:v2")
	if out := must("list-tags", "--tls-verify=false", "docker://"+h.host+"/acme/tools-copy"); !strings.Contains(out, `"v2"`) {
		t.Errorf("tags: %s", out)
	}
	mustNot("401 Unauthorized", "delete", "--tls-verify=false", dst)
	mustNot("requested access to the resource is denied", "copy", "--dest-tls-verify=false", src, "docker://"+h.host+"/beta/tools:v1")
	must("logout", h.host)
	mustNot("requested access to the resource is denied", "inspect", "--tls-verify=false", dst)
	must("login", "--tls-verify=false", "-u", "adam", "-p", "pass-of-adam", h.host)
	must("delete", "--tls-verify=false", dst)
	mustNot("manifest unknown", "inspect", "--tls-verify=false", dst)
	if _, err := h.Directory().SetVisibility(t.Context(), "acme/tools-copy", registry.Public); err != nil {
		t.Fatal(err)
	}
	must("logout", h.host)
	must("inspect", "--tls-verify=false", "docker://"+h.host+"/acme/tools-copy:v2")
}
