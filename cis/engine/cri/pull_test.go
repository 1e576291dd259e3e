package cri

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// An image of a registry that wants a credential is pulled with the spec's, or else with the platform's; it is pinned
// by digest, and a wrong credential is a waiting reason with a backoff.
func TestPull(t *testing.T) {
	b := newBench(t)
	var refused atomic.Int64
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); !ok || user != "puller" || pass != "right" {
			if ok {
				refused.Add(1)
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	img, err := random.Image(1024, 1)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	push := func(ref string) {
		t.Helper()
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, img, remote.WithAuth(&authn.Basic{Username: "puller", Password: "right"})); err != nil {
			t.Fatal(err)
		}
	}
	push(host + "/team/own:v1")
	push(host + "/team/platform:v1")
	container := func(repo string) cis.Container {
		return cis.Container{Name: "main", Image: host + "/team/" + repo + ":v1", Command: []string{"/none"}}
	}
	pulled := func(in *cis.Instance) {
		t.Helper()
		st := b.sink.wait(t, in.ID, "pulled", func(st cis.Status) bool {
			return len(st.Containers) > 0 && strings.HasSuffix(st.Containers[0].ImageID, "@"+digest.String())
		})
		if st.Containers[0].Image != in.Spec.Containers[0].Image {
			t.Errorf("%+v", st.Containers[0])
		}
	}

	wrong := instance(cis.Runc, container("own"))
	wrong.Spec.RegistryAuth = []cis.RegistryAuth{{Server: host, Username: "puller", Password: "wrong"}}
	b.ensure(wrong)
	b.sink.wait(t, wrong.ID, "refused", func(st cis.Status) bool {
		return len(st.Containers) > 0 && st.Containers[0].State.Waiting != nil && st.Containers[0].State.Waiting.Reason == "ImagePullBackOff"
	})
	if refused.Load() == 0 || !b.sink.hasEvent(wrong.ID, "Failed") {
		t.Error("the wrong credential was not tried")
	}
	for _, st := range b.sink.all(wrong.ID) {
		for _, c := range st.Containers {
			if w := c.State.Waiting; w != nil && strings.Contains(w.Message, "wrong") {
				t.Errorf("the password is in the status: %s", w.Message)
			}
		}
	}
	b.delete(wrong)
	b.sink.waitPhase(t, wrong.ID, cis.Failed)

	right := instance(cis.Runc, container("own"))
	right.Spec.RegistryAuth = []cis.RegistryAuth{{Server: "elsewhere", Username: "x"}, {Server: host + "/team", Username: "puller", Password: "right"}}
	pulled(b.ensure(right))

	// Another org finds the image on the node, but has not shown that it may pull it.
	thief := instance(cis.Runc, container("own"))
	thief.Org = "other"
	thief.Spec.Containers[0].ImagePullPolicy = corev1.PullIfNotPresent
	b.ensure(thief)
	b.sink.wait(t, thief.ID, "refused", func(st cis.Status) bool {
		return len(st.Containers) > 0 && st.Containers[0].State.Waiting != nil && st.Containers[0].State.Waiting.Reason == "ImagePullBackOff"
	})
	b.delete(thief)
	b.sink.waitPhase(t, thief.ID, cis.Failed)

	b.stop()
	b.cfg.PullAuth = func(_ context.Context, org string, images []string) ([]cis.RegistryAuth, error) {
		if org != "acme" || len(images) != 1 || !strings.Contains(images[0], "/team/platform") {
			t.Errorf("asked for %s %v", org, images)
		}
		return []cis.RegistryAuth{{Server: host, Username: "puller", Password: "right"}}, nil
	}
	b.restart(right)
	pulled(b.ensure(instance(cis.Runc, container("platform"))))
}
