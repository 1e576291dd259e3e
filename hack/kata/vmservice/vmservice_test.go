package vmservice

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/kata-containers/kata-containers/src/runtime/protocols/hypervisor"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"cumulet.io/hack/kata/sharing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func valid(t *testing.T) Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{Socket: "/s", StateDir: "/x", QEMU: file, Virtiofsd: file, Kernel: file, Initrd: file, Accel: "tcg", MemoryMiB: 256, Log: slog.New(slog.DiscardHandler)}
}

func TestConfig(t *testing.T) {
	c := valid(t)
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"socket":                     func(c *Config) { c.Socket = "rel" },
		"no such file":               func(c *Config) { c.Kernel = "/none" },
		"accelerator":                func(c *Config) { c.Accel = "xen" },
		"128":                        func(c *Config) { c.MemoryMiB = 64 },
		"bytes too long for sockets": func(c *Config) { c.StateDir = "/" + strings.Repeat("x", 90) },
	} {
		c := valid(t)
		change(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestNewVM(t *testing.T) {
	s := &Service{config: valid(t), log: slog.New(slog.DiscardHandler)}
	v, err := newVM(s, 1, &pb.CreateVMRequest{Id: strings.Repeat("a", 64), Annotations: map[string]string{annotationMemory: "512", annotationCPUs: "2", "other": "x"}})
	if err != nil || v.memory != 512 || v.cpus != 2 || filepath.Base(v.dir) != strings.Repeat("a", 16) {
		t.Fatalf("%+v, %v", v, err)
	}
	args := strings.Join(v.qemuArgs([]tap{{mac: "02:00:00:00:00:01"}}, 3), " ")
	for _, want := range []string{"-smp 2", "size=512M", "-accel tcg", "tap,id=net0,fd=3", "mac=02:00:00:00:00:01", "tag=" + sharing.Tag, "-no-reboot"} {
		if !strings.Contains(args, want) {
			t.Errorf("QEMU's arguments lack %q: %s", want, args)
		}
	}
	if v, err = newVM(s, 1, &pb.CreateVMRequest{Id: "x"}); err != nil || v.memory != 256 || v.cpus != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	for name, r := range map[string]*pb.CreateVMRequest{
		"no id":   {},
		"path":    {Id: "../x"},
		"memory":  {Id: "x", Annotations: map[string]string{annotationMemory: "1"}},
		"number":  {Id: "x", Annotations: map[string]string{annotationMemory: "much"}},
		"process": {Id: "x", Annotations: map[string]string{annotationCPUs: "1000"}},
	} {
		if _, err := newVM(s, 1, r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// bundle writes a container's bundle.
func bundle(t *testing.T, dir, id, sandbox string, mounts ...specs.Mount) {
	t.Helper()
	spec := specs.Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: mounts, Annotations: map[string]string{annotationSandbox: sandbox}}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, id, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"config.json": b, "rootfs/image": []byte("image")} {
		if err := os.WriteFile(filepath.Join(dir, id, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The guest gets its own containers' files, as their records have them.
func TestShares(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	volume, file := filepath.Join(dir, "volume"), filepath.Join(dir, "file")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("file"), 0o600); err != nil {
		t.Fatal(err)
	}
	bundle(t, dir, "ours", "sandbox",
		specs.Mount{Destination: "/data/", Type: "bind", Source: volume, Options: []string{"rbind", "ro"}},
		specs.Mount{Destination: "/etc/file", Type: "bind", Source: file, Options: []string{"rbind", "rw"}},
		specs.Mount{Destination: "/dev/null", Type: "bind", Source: "/dev/null"},
		specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"})
	bundle(t, dir, "theirs", "another")

	// A namespace of the test's own, as a shim's is.
	space, err := enterSpace(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := space.do(ownMounts); err != nil {
		t.Fatal(err)
	}
	share := filepath.Join(dir, "share")
	s := &shares{vm: "sandbox", dir: share, bundles: dir, space: space}
	for _, id := range []string{"theirs", "none", "../ours", ""} {
		if _, err := s.handle(sharing.Request{Container: id}); err == nil || strings.Contains(err.Error(), dir) {
			t.Errorf("container %q: %v", id, err)
		}
	}
	r, err := s.handle(sharing.Request{Container: "ours"})
	if err != nil {
		t.Fatal(err)
	}
	if r.Root != "ours/root" || len(r.Mounts) != 2 || r.Mounts["/data"] != "ours/0" || r.Mounts["/etc/file"] != "ours/1" {
		t.Errorf("%+v", r)
	}
	err = space.do(func() error {
		if b, err := os.ReadFile(filepath.Join(share, r.Root, "image")); err != nil || string(b) != "image" {
			t.Errorf("root: %q, %v", b, err)
		}
		if err := os.WriteFile(filepath.Join(share, r.Mounts["/data"], "x"), nil, 0o600); err == nil {
			t.Error("the read-only volume could be written to")
		}
		return os.WriteFile(filepath.Join(share, r.Mounts["/etc/file"]), []byte("new"), 0o600)
	})
	if err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "new" {
		t.Errorf("the host reads %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(share, r.Mounts["/etc/file"])); err != nil || len(b) != 0 {
		t.Errorf("the mounts are seen outside of their namespace: %q, %v", b, err)
	}
	if _, err := s.handle(sharing.Request{Container: "ours"}); err == nil {
		t.Error("shared twice")
	}
	if err := s.releaseAll(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(share); err != nil || len(left) != 0 {
		t.Errorf("left in the share: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ours", "rootfs", "image")); err != nil {
		t.Errorf("the image's content: %v", err)
	}
	if _, err := s.handle(sharing.Request{Container: "ours"}); err == nil {
		t.Error("shared after the end")
	}
	if err := space.leave(); err != nil {
		t.Error(err)
	}
}

// What has content is never removed with a machine's directory.
func TestRemoveDirKeepsContent(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, shareDir, "c", "0")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(at, "x")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeDir(dir); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(precious); err != nil {
		t.Fatal(err)
	}
	if err := removeDir(dir); err != nil {
		t.Error(err)
	}
}

// A guest that prints for ever fills no disk.
func TestConsoleIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	for n, want := range map[int64]int64{100: 100, maxConsole + 1000: maxConsole + int64(len("\n[16777216 bytes: no more is kept]\n"))} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := keepConsole(path, io.LimitReader(zeros{}, n)); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != want {
			t.Errorf("of %d bytes %v are kept, %v", n, info, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// A machine goes with its shim: before its start, and when it has been stopped already, as by a start that failed.
func TestGoesWithItsShim(t *testing.T) {
	for name, before := range map[string]func(*vm){"created": func(*vm) {}, "stopped": func(v *vm) { v.stop("the test has it so") }} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := &Service{config: Config{StateDir: t.TempDir(), MemoryMiB: 256}, log: slog.New(slog.NewTextHandler(t.Output(), nil)), ctx: ctx, vms: map[string]*vm{}}
			shim := exec.Command("sleep", "1000")
			if err := shim.Start(); err != nil {
				t.Fatal(err)
			}
			p := &peer{s, shim.Process.Pid}
			if _, err := p.CreateVM(ctx, &pb.CreateVMRequest{Id: "machine"}); err != nil {
				t.Fatal(err)
			}
			before(s.vm("machine"))
			if err := shim.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = shim.Wait() // it was killed
			for deadline := time.Now().Add(20 * time.Second); s.vm("machine") != nil; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the machine is still known")
				}
			}
			cancel() // there is nobody else who could leave something
			s.watches.Wait()
			if left, err := os.ReadDir(s.config.StateDir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

func TestKataConfig(t *testing.T) {
	c := KataConfig("/run/x.sock", 300)
	for _, want := range []string{`remote_hypervisor_socket = "/run/x.sock"`, "default_memory = 300", `internetworking_model = "none"`} {
		if !strings.Contains(c, want) {
			t.Errorf("lacks %q:\n%s", want, c)
		}
	}
}
