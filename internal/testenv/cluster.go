package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cumulet.io/internal/proc"
)

// ClusterEnv is a Kubernetes control plane of the test's own on loopback, with
// no node and the default service account made.
type ClusterEnv struct {
	Server            string // the API server's URL
	Kubeconfig        string // file; the administrator's
	KubeletKubeconfig string // file; the virtual node's, with its rights only

	// NodeName is the virtual node's, for which its serving certificate is made.
	NodeName                              string
	NodeCertFile, NodeKeyFile, NodeCAFile string // PEM; the CA is also the API server's
}

// clusterTimeout is how long a control plane may take to start on a busy
// machine.
const clusterTimeout = 2 * time.Minute

// Cluster starts a control plane; it takes about 3 seconds and 350 MB. It skips
// the test where devcluster is not built.
func Cluster(t testing.TB) *ClusterEnv {
	t.Helper()
	const node = "cumulet-test"
	binary, dir := Tool(t, "devcluster"), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	c := &ClusterEnv{
		Kubeconfig: in("admin.kubeconfig"), KubeletKubeconfig: in("kubelet.kubeconfig"),
		NodeName: node, NodeCertFile: in("kubelet.crt"), NodeKeyFile: in("kubelet.key"), NodeCAFile: in("ca.crt"),
	}
	log, err := os.Create(in("log"))
	if err != nil {
		t.Fatal(err)
	}
	var starts atomic.Int32
	child := proc.Child{
		Name: "devcluster", Path: binary, Log: logger(t), Output: log, DieWithParent: true,
		Args:      []string{"up", "--dir", dir, "--node-name", node, "--unsafe-no-fsync"},
		StopBound: 20 * time.Second,
		Started:   func(int) { starts.Add(1) },
	}
	stop := start(child.Run)
	t.Cleanup(func() {
		if err := errors.Join(stop(), log.Close()); err != nil {
			t.Errorf("devcluster: %v", err)
		}
		if t.Failed() {
			t.Logf("devcluster's log ends:\n%s", tail(in("log")))
		}
	})
	Eventually(t, clusterTimeout, func() error {
		server, err := os.ReadFile(in("ready"))
		if starts.Load() > 1 {
			t.Fatal("the control plane ended instead of getting ready")
		}
		if err != nil {
			return fmt.Errorf("the control plane is not ready: %w", err)
		}
		c.Server = strings.TrimSpace(string(server))
		return nil
	})
	return c
}
