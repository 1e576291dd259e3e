package server_test

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
)

// helm is the real client, with a home of the test's own.
type helm struct {
	t    *testing.T
	path string
	home string
}

func newHelm(t *testing.T) *helm { return &helm{t, testenv.Tool(t, "helm"), t.TempDir()} }

func (h *helm) try(stdin string, args ...string) (string, error) {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), h.path, args...)
	cmd.Dir = h.home
	cmd.Env = append(os.Environ(), "HOME="+h.home, "HELM_CACHE_HOME="+h.home+"/cache", "HELM_CONFIG_HOME="+h.home+"/config", "HELM_DATA_HOME="+h.home+"/data")
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (h *helm) run(args ...string) string { h.t.Helper(); return h.runWith("", args...) }

func (h *helm) runWith(stdin string, args ...string) string {
	h.t.Helper()
	out, err := h.try(stdin, args...)
	if err != nil {
		h.t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// pack makes a chart that is one ConfigMap, and gives the archive's path.
func (h *helm) pack(version string) string {
	h.t.Helper()
	dir := filepath.Join(h.home, "src", "note")
	if err := os.MkdirAll(filepath.Join(dir, "templates"), 0o700); err != nil {
		h.t.Fatal(err)
	}
	writeFile(h.t, filepath.Join(dir, "Chart.yaml"), "apiVersion: v2\nname: note\ndescription: One note\nversion: "+version+"\nappVersion: \"7\"\nkeywords: [paper]\n")
	writeFile(h.t, filepath.Join(dir, "values.yaml"), "text: hello\n")
	writeFile(h.t, filepath.Join(dir, "templates", "note.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  text: {{ .Values.text }}\n  version: {{ .Chart.Version | quote }}\n")
	h.run("package", dir, "-d", h.home)
	return filepath.Join(h.home, "note-"+version+".tgz")
}

func (h *hub) postChart(user, repository, archive string) (*http.Response, string) {
	h.t.Helper()
	data, err := os.ReadFile(archive)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.request("POST", "/charts/api/"+repository+"/charts", string(data), "Authorization", basic(user, "pass-of-"+user))
}

// The real helm uses a repository of the classic kind, and one of the OCI kind, of the same name.
func TestHelm(t *testing.T) {
	c := newHelm(t)
	h := startHub(t)
	for _, version := range []string{"0.1.0", "0.2.0"} {
		if resp, text := h.postChart("wendy", "acme/charts", c.pack(version)); resp.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
	}
	if resp, _ := h.postChart("rita", "acme/charts", c.pack("0.3.0")); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a reader pushes: %d", resp.StatusCode)
	}
	url := h.url + "/charts/acme/charts"
	if out, err := c.try("", "repo", "add", "denied", url); err == nil {
		t.Errorf("a stranger adds a private repository: %s", out)
	}
	if out, err := c.try("pass-of-boris", "repo", "add", "denied", url, "--username", "boris", "--password-stdin"); err == nil {
		t.Errorf("a member of another org adds it: %s", out)
	}
	c.runWith("pass-of-rita", "repo", "add", "acme", url, "--username", "rita", "--password-stdin")
	c.run("repo", "update")
	if out := c.run("search", "repo", "note", "--versions"); !strings.Contains(out, "acme/note\t0.2.0") || !strings.Contains(out, "acme/note\t0.1.0") || !strings.Contains(out, "One note") {
		t.Errorf("%s", out)
	}
	if out := c.run("search", "repo", "paper"); !strings.Contains(out, "0.2.0") {
		t.Errorf("%s", out)
	}
	for _, dir := range []string{"pulled", "fromoci"} {
		if err := os.Mkdir(filepath.Join(c.home, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c.run("pull", "acme/note", "--version", "0.1.0", "-d", "pulled")
	want, err1 := os.ReadFile(filepath.Join(c.home, "note-0.1.0.tgz"))
	got, err2 := os.ReadFile(filepath.Join(c.home, "pulled", "note-0.1.0.tgz"))
	if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
		t.Errorf("what was pulled is not what was pushed: %v %v", err1, err2)
	}
	if out := c.run("show", "chart", "acme/note"); !strings.Contains(out, "version: 0.2.0") {
		t.Errorf("%s", out)
	}
	if out := c.run("template", "mine", "acme/note", "--set", "text=bye"); !strings.Contains(out, "text: bye") || !strings.Contains(out, `version: "0.2.0"`) {
		t.Errorf("%s", out)
	}
	// A new version is there with the next update, a deleted one is not.
	if resp, text := h.postChart("wendy", "acme/charts", c.pack("0.4.0")); resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	if resp, text := h.request("DELETE", "/charts/api/acme/charts/charts/note/0.2.0", "", "Authorization", basic("adam", "pass-of-adam")); resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, text)
	}
	c.run("repo", "update")
	if out := c.run("search", "repo", "note", "--versions"); strings.Contains(out, "0.2.0") || !strings.Contains(out, "0.4.0") {
		t.Errorf("%s", out)
	}
	// A dependency is found there.
	dir := filepath.Join(c.home, "parent")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "Chart.yaml"), "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n- name: note\n  version: ^0.1.0\n  repository: "+url+"\n")
	c.run("dependency", "update", "parent")
	if _, err := os.Stat(filepath.Join(dir, "charts", "note-0.1.0.tgz")); err != nil {
		t.Error(err)
	}

	// As an OCI artifact.
	c.runWith("pass-of-wendy", "registry", "login", h.host, "--username", "wendy", "--password-stdin", "--plain-http")
	if out := c.run("push", "note-0.4.0.tgz", "oci://"+h.host+"/acme/oci", "--plain-http"); !strings.Contains(out, "/acme/oci/note:0.4.0") {
		t.Errorf("%s", out)
	}
	c.run("pull", "oci://"+h.host+"/acme/oci/note", "--version", "0.4.0", "--plain-http", "-d", "fromoci")
	want, err1 = os.ReadFile(filepath.Join(c.home, "note-0.4.0.tgz"))
	got, err2 = os.ReadFile(filepath.Join(c.home, "fromoci", "note-0.4.0.tgz"))
	if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
		t.Errorf("what was pulled is not what was pushed: %v %v", err1, err2)
	}
	if out := c.run("template", "mine", "oci://"+h.host+"/acme/oci/note", "--version", "0.4.0", "--plain-http"); !strings.Contains(out, "text: hello") {
		t.Errorf("%s", out)
	}

	// Of a public repository everybody's.
	if _, err := h.Directory().SetVisibility(t.Context(), "acme/charts", registry.Public); err != nil {
		t.Fatal(err)
	}
	c.run("repo", "add", "public", url)
	if out := c.run("search", "repo", "public/note"); !strings.Contains(out, "0.4.0") {
		t.Errorf("%s", out)
	}
	if resp, _ := h.request("POST", "/charts/api/acme/charts/charts", "x"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger pushes: %d", resp.StatusCode)
	}

	t.Run("install", func(t *testing.T) {
		// Into a real control plane; a ConfigMap needs no node.
		cluster := testenv.Cluster(t)
		c.t = t
		kube := []string{"--kubeconfig", cluster.Kubeconfig}
		c.run(append([]string{"install", "first", "acme/note", "--version", "0.1.0", "--set", "text=first"}, kube...)...)
		c.run(append([]string{"install", "second", "oci://" + h.host + "/acme/oci/note", "--version", "0.4.0", "--plain-http"}, kube...)...)
		out := c.run(append([]string{"list"}, kube...)...)
		if !strings.Contains(out, "note-0.1.0") || !strings.Contains(out, "note-0.4.0") || strings.Count(out, "deployed") != 2 {
			t.Errorf("%s", out)
		}
		if out := c.run(append([]string{"get", "manifest", "first"}, kube...)...); !strings.Contains(out, "text: first") {
			t.Errorf("%s", out)
		}
		c.run(append([]string{"upgrade", "first", "acme/note", "--version", "0.4.0"}, kube...)...)
		c.run(append([]string{"uninstall", "first", "second"}, kube...)...)
	})
}
