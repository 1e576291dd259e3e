package testenv

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// devcluster is one run of it on a directory.
type devcluster struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// upCluster starts it and waits until it is ready.
func upCluster(t *testing.T, dir string, args ...string) *devcluster {
	t.Helper()
	// A file that a killed run has left says nothing of this one.
	if err := os.Remove(filepath.Join(dir, "ready")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	d := &devcluster{}
	d.cmd = exec.Command(Tool(t, "devcluster"), append([]string{"up", "--dir", dir, "--unsafe-no-fsync"}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	Eventually(t, clusterTimeout, func() error {
		_, err := os.Stat(filepath.Join(dir, "ready"))
		return err
	})
	return d
}

func (d *devcluster) end(t *testing.T, s syscall.Signal) error {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	return d.cmd.Wait()
}

func kubectl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Tool(t, "devcluster"), append([]string{"kubectl"}, args...)...)
	cmd.Env = []string{"KUBECONFIG=" + filepath.Join(dir, "admin.kubeconfig"), "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s: no PEM", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Killed and started again, it is the same cluster at the same place for the
// same clients; told to end, it ends soon and cleanly, whoever watches.
func TestDevclusterSurvivesRestarts(t *testing.T) {
	dir := t.TempDir()
	first := upCluster(t, dir, "--node-name", "node-a")
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	server, config, serving := read("ready"), read("admin.kubeconfig"), certificate(t, filepath.Join(dir, "kubelet.crt"))
	if !slices.Contains(serving.DNSNames, "node-a") {
		t.Errorf("the node's certificate is for %q", serving.DNSNames)
	}
	if out, err := exec.CommandContext(t.Context(), Tool(t, "devcluster"), "up", "--dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "another devcluster") {
		t.Errorf("a second one on the directory: %v: %s", err, out)
	}
	kubectl(t, dir, "create", "configmap", "kept", "--from-literal=k=v")
	if err := first.end(t, syscall.SIGKILL); err == nil {
		t.Error("killed, yet it ended well")
	}

	second := upCluster(t, dir, "--node-name", "node-b", "--node-ip", "192.0.2.77")
	if got := read("ready"); got != server {
		t.Errorf("at %q, then at %q", server, got)
	}
	if got := read("admin.kubeconfig"); got != config {
		t.Error("the kubeconfig is another one")
	}
	if got := kubectl(t, dir, "get", "configmap", "kept", "-o", "jsonpath={.data.k}"); got != "v" {
		t.Errorf("the object has become %q", got)
	}
	serving = certificate(t, filepath.Join(dir, "kubelet.crt"))
	if !slices.Contains(serving.DNSNames, "node-b") || !strings.Contains(fmt.Sprint(serving.IPAddresses), "192.0.2.77") {
		t.Errorf("the node's certificate is for %q %v", serving.DNSNames, serving.IPAddresses)
	}

	watch := exec.CommandContext(t.Context(), Tool(t, "devcluster"), "kubectl", "get", "pods", "-w")
	watch.Env = []string{"KUBECONFIG=" + filepath.Join(dir, "admin.kubeconfig"), "HOME=" + t.TempDir()}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Process.Kill(); _ = watch.Wait() }()
	began := time.Now()
	if err := second.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("told to end: %v\n%s", err, tailOf(second.out.String()))
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); !os.IsNotExist(err) {
		t.Errorf("ready after the end: %v", err)
	}
}

func tailOf(s string) string { return s[max(0, len(s)-4000):] }

func TestDevclusterRefusesBadArguments(t *testing.T) {
	binary := Tool(t, "devcluster")
	for want, args := range map[string][]string{
		"subcommand":       {},
		"unknown":          {"down"},
		"--dir":            {"up"},
		"--port":           {"up", "--dir", "/tmp/x", "--port", "70000"},
		"takes no argumen": {"up", "--dir", "/tmp/x", "more"},
	} {
		out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%q: %v: %s", args, err, out)
		}
	}
}
