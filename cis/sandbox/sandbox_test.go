package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// host makes a root with the given files; a path in bin/ is executable, one in dev/ is a character device.
func host(t *testing.T, files map[string]string) Options {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "dev/") && text == "device" {
			if err := unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
				t.Skipf("no device can be made here: %v", err)
			}
			continue
		}
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Options{Root: root, BinDirs: []string{filepath.Join(root, "bin")}, KataConfig: "kata.toml",
		Run: func(_ context.Context, path string, _ ...string) (string, error) {
			if data, err := os.ReadFile(path); err != nil || string(data) == "broken" {
				return "", errors.New("exec format error")
			}
			return filepath.Base(path) + " version 1\n", nil
		}}
}

// A report travels as JSON: what a program needs of it must be there.
func TestReportJSON(t *testing.T) {
	data, err := json.Marshal(Host(t.Context(), host(t, map[string]string{"bin/runc": "", "bin/containerd-shim-runc-v2": ""})))
	if err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	have, why := got.Handlers()
	if have[cis.Runc] != "runc" || len(have) != 1 || !strings.Contains(why[cis.Kata], "/dev/kvm: missing (load") || why[cis.GVisor] == "" || got.Default != "" {
		t.Errorf("%s", data)
	}
}

func TestHost(t *testing.T) {
	const vmx = "processor: 0\nflags\t\t: fpu vmx sse\n"
	kata := map[string]string{"proc/cpuinfo": vmx, "dev/kvm": "device", "dev/vhost-vsock": "device", "bin/containerd-shim-kata-v2": "", "kata.toml": ""}
	gvisor := map[string]string{"bin/runsc": "", "bin/containerd-shim-runsc-v1": ""}
	runc := map[string]string{"bin/runc": "", "bin/containerd-shim-runc-v2": ""}
	all := func(ms ...map[string]string) map[string]string {
		out := map[string]string{}
		for _, m := range ms {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	noCPU := all(kata, gvisor, runc, map[string]string{"proc/cpuinfo": "flags : fpu sse\n"})
	for _, tc := range []struct {
		name      string
		files     map[string]string
		allowRunc bool
		asked     cis.SandboxClass
		want      cis.SandboxClass
		err       string
	}{
		{name: "kata is the strongest", files: all(kata, gvisor, runc), want: cis.Kata},
		{name: "a weaker class may be asked for", files: all(kata, gvisor, runc), asked: cis.Runc, want: cis.Runc},
		{name: "/dev/kvm without the CPU's flag", files: noCPU, want: cis.GVisor},
		{name: "no silent downgrade", files: noCPU, asked: cis.Kata, err: "no vmx or svm flag in /proc/cpuinfo (enable it"},
		{name: "runc is no default", files: runc, err: "runc, which isolates nothing, must be asked for by name"},
		{name: "the error says what the stronger ones lack", files: runc, err: "gvisor: runsc: not found (install gVisor"},
		{name: "nothing at all", err: "runc: runc: not found"},
		{name: "unless allowed", files: runc, allowRunc: true, want: cis.Runc},
		{name: "a runtime that does not start", files: all(runc, gvisor, map[string]string{"bin/runsc": "broken"}), asked: cis.GVisor, err: "exec format error"},
		{name: "a shim is missing", files: map[string]string{"bin/runsc": ""}, asked: cis.GVisor, err: "containerd-shim-runsc-v1: not found"},
		{name: "no device", files: all(kata, map[string]string{"dev/kvm": "a file"}), asked: cis.Kata, err: "/dev/kvm: not a device"},
		{name: "unknown", files: runc, asked: "jail", err: "must be kata, gvisor or runc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := host(t, tc.files)
			o.AllowRuncDefault = tc.allowRunc
			r := Host(t.Context(), o)
			got, handler, err := r.Choose(tc.asked)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %q, %v; want error %q", got, err, tc.err)
				}
				if !errors.Is(err, problem.ErrUnsupported) && !errors.Is(err, problem.ErrInvalid) {
					t.Errorf("class of %v", err)
				}
				return
			}
			if err != nil || got != tc.want || handler != Handler(tc.want) {
				t.Fatalf("got %q (%s), %v; want %q", got, handler, err, tc.want)
			}
			var b strings.Builder
			if err := r.Write(&b); err != nil || !strings.Contains(b.String(), "(default)") {
				t.Errorf("%v\n%s", err, b.String())
			}
		})
	}
}
