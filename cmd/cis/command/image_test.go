package command_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cumulet.io/cmd/cis/command"
	"cumulet.io/cmd/cis/session"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
)

// cli is a command line that is logged in to a registry as the owner of the org demo.
type cli struct {
	t             *testing.T
	host, session string
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	dir := t.TempDir()
	db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(dir, "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's own
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	reg, err := server.New(t.Context(), server.Config{DB: db, Dir: dir, PublicURL: url, HashCost: directory.HashCost{MemoryKiB: 64, Passes: 1},
		Bootstrap: directory.Bootstrap{Org: "demo", Admin: directory.Credential{Name: "ann", Password: "pass-of-ann"}}})
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: reg}} //nolint:gosec // a test's own client
	srv.Start()
	t.Cleanup(func() {
		srv.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := session.Login(t.Context(), session.Endpoints{Registry: url}, "ann", "pass-of-ann", "demo")
	if err != nil {
		t.Fatal(err)
	}
	c := &cli{t: t, host: l.Addr().String(), session: filepath.Join(dir, "session.json")}
	if err := s.Save(c.session); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs one command line and gives its exit code and both outputs.
func (c *cli) run(in string, args ...string) (code int, out string) {
	c.t.Helper()
	var b bytes.Buffer
	code = command.Main(context.Background(), command.Env{Version: "test", In: strings.NewReader(in), Out: &b, Err: &b}, append(args, "--session", c.session))
	return code, b.String()
}

// want runs a command and checks its exit code and that it prints these texts.
func (c *cli) want(code int, has []string, in string, args ...string) string {
	c.t.Helper()
	got, out := c.run(in, args...)
	if got != code {
		c.t.Errorf("cis %s: exit %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	for _, h := range has {
		if !strings.Contains(out, h) {
			c.t.Errorf("cis %s: %q is not in\n%s", strings.Join(args, " "), h, out)
		}
	}
	return out
}

func TestImages(t *testing.T) {
	c := newCLI(t)
	img, err := random.Image(512, 2)
	if err != nil {
		t.Fatal(err)
	}
	push := func(tag string) string {
		ref, err := name.ParseReference(c.host+"/demo/app:"+tag, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "ann", Password: "pass-of-ann"})); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	first := push("v1")
	push("dev-1")
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers[0]); err != nil {
		t.Fatal(err)
	}
	second := push("dev-2")
	short := func(d string) string { return d[7:19] }

	c.want(0, []string{"ATTACHED", "sha256:"}, "", "image", "attach", "demo/app:v1", "--kind", "test", "--fact", "name=unit", "--fact", "result=passed")
	c.want(0, nil, "", "image", "attach", c.host+"/demo/app:v1", "--kind", "build", "--fact", "by=ci,base=debian:12")
	c.want(2, []string{"passed, failed or skipped"}, "", "image", "attach", "demo/app:v1", "--kind", "test", "--fact", "name=unit")
	c.want(0, []string{"demo/app@" + first, "layer", "unit", "passed", "debian:12", "ann"}, "", "image", "show", "demo/app:v1")
	c.want(0, []string{`"facts"`, `"referrers"`}, "", "image", "show", "demo/app@"+first, "-o", "json")
	c.want(4, []string{"no tag"}, "", "image", "show", "demo/app:nothere")
	c.want(2, nil, "", "image", "show", "UPPER/case")
	c.want(2, []string{"logged in to"}, "", "image", "show", "hub.example/demo/app:v1")
	if out := c.want(0, []string{"v1", first}, "", "image", "find", "--test", "unit=passed", "--base", "debian:12", "--no-sbom"); strings.Contains(out, second) {
		t.Errorf("find: %s", out)
	}
	c.want(0, []string{"[]"}, "", "image", "find", "--sbom", "-o", "json")
	c.want(2, []string{"fact"}, "", "image", "find", "--fact", "gossip")
	c.want(0, []string{first, second, "dev-2"}, "", "image", "layers", layer.String())

	c.want(0, []string{"TAG", "dev-1", "dev-2", "v1", second}, "", "repo", "tags", "demo/app")
	c.want(0, []string{"dev-2", short(second), "ann", "push"}, "", "repo", "history", "demo/app", "dev-2")
	rules := "immutableTags: [\"v*\"]\nkeep:\n  - {tags: \"dev-*\", last: 1}\nuntaggedAfter: 30d\n"
	c.want(0, []string{"untaggedAfter: 30d"}, rules, "repo", "rules", "demo/app", "--set", "-")
	c.want(0, []string{"immutableTags:", "- v*"}, "", "repo", "rules", "demo/app")
	c.want(2, []string{"keeps"}, "keeps: []", "repo", "rules", "demo/app", "--set", "-")
	c.want(2, []string{"keep[0]"}, "keep: [{tags: x}]", "repo", "rules", "demo/app", "--set", "-")
	c.want(0, []string{"dev-1", "would go"}, "", "repo", "retention", "demo/app")
	c.want(0, []string{"dev-1", "deleted"}, "", "repo", "retention", "demo/app", "--apply")
	if out := c.want(0, nil, "", "repo", "tags", "demo/app"); strings.Contains(out, "dev-1") {
		t.Errorf("dev-1 is kept:\n%s", out)
	}
	c.want(0, []string{"retention", short(first)}, "", "repo", "history", "demo/app", "dev-1")
	c.want(0, []string{"demo", "no bound"}, "", "repo", "usage")
	c.want(4, []string{fmt.Sprintf("%q", "demo/nothere")}, "", "repo", "tags", "demo/nothere")
	c.want(2, []string{"--yes"}, "", "repo", "delete", "demo/app")
	c.want(0, []string{"is deleted"}, "", "repo", "delete", "demo/app", "--yes")
	c.want(4, nil, "", "repo", "tags", "demo/app")
}
