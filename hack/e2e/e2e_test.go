// Package e2e tests the product from outside, through kubectl, cis, skopeo and the HTTP APIs, every role a process of
// its own. It has no code but tests.
package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/hack/platform"
	"cumulet.io/internal/testenv"
)

// pod is a manifest of a pod on the virtual node. more is YAML below spec, indented by two.
func pod(name, image, class, args, more string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, annotations: {cis.cumulet.io/sandbox: %s}}
spec:
  nodeSelector: {type: virtual-kubelet}
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  imagePullSecrets: [{name: registry}]
  terminationGracePeriodSeconds: 5
  containers:
  - name: app
    image: %s
    args: [%s]
    resources: {requests: {cpu: 50m, memory: 64Mi}}
%s---
`, name, class, image, args, more)
}

// secret makes the pull secret in the default namespace.
func secret(t *testing.T, p *platform.Platform) {
	t.Helper()
	// The default service account appears a moment after the control plane is ready.
	testenv.Eventually(t, time.Minute, func() error { _, err := p.Kubectl("", "get", "serviceaccount", "default"); return err })
	run(t, p, "", "create", "secret", "docker-registry", "registry", "--docker-server="+p.Registry, "--docker-username=admin", "--docker-password="+p.Password())
}

func run(t *testing.T, p *platform.Platform, stdin string, args ...string) string {
	t.Helper()
	out, err := p.Kubectl(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustCis(t *testing.T, p *platform.Platform, args ...string) string {
	t.Helper()
	out, err := p.Cis(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// instances lists all of the org, ended ones included, oldest first.
func instances(t *testing.T, p *platform.Platform) []cis.Instance {
	t.Helper()
	var list []cis.Instance
	if err := json.Unmarshal([]byte(mustCis(t, p, "ps", "--all", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b cis.Instance) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list
}

// setting is a number of the environment, for who repeats or enlarges a run.
func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// numbered is what the demo workload prints for work --lines n.
func numbered(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "line %d of %d\n", i, n)
	}
	return b.String()
}

func wantContains(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, got)
		}
	}
}
