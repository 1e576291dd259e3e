package initrd

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const dep = `kernel/a-b.ko: kernel/c.ko kernel/d.ko
kernel/c.ko: kernel/d.ko
kernel/d.ko:
kernel/other.ko.xz:
`

func TestLoadOrder(t *testing.T) {
	got, err := LoadOrder(strings.NewReader(dep), []string{"a_b", "other"})
	if want := []string{"kernel/d.ko", "kernel/c.ko", "kernel/a-b.ko", "kernel/other.ko.xz"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, bad := range []struct{ dep, module string }{{dep, "missing"}, {"no colon\n", "x"}} {
		if _, err := LoadOrder(strings.NewReader(bad.dep), []string{bad.module}); err == nil {
			t.Errorf("%q in %q: no error", bad.module, bad.dep)
		}
	}
}

// The kernel's format, as cpio and, where there is none, the numbers say.
func TestArchive(t *testing.T) {
	var b, again bytes.Buffer
	for _, out := range []*bytes.Buffer{&b, &again} {
		w := NewWriter(out)
		for _, err := range []error{
			w.File("/init", 0o755, []byte("#!")), w.File("/a/b/c", 0o600, nil), w.Dir("/a/b", 0o700), w.Char("/dev/null", 0o666, 1, 3), w.Close(),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("the same calls made other bytes")
	}
	first := "070701" + "00000001" + "000081ED" + strings.Repeat("00000000", 2) + "00000001" + "00000000" + "00000002" +
		strings.Repeat("00000000", 4) + "00000005" + "00000000" + "init\x00\x00#!\x00\x00"
	// Header and name are padded to 4 bytes together.
	if !strings.HasPrefix(b.String(), first) || b.Len()%4 != 0 || !strings.Contains(b.String(), "TRAILER!!!") {
		t.Errorf("archive begins %q", b.String()[:130])
	}
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		busybox := "/bin/busybox"
		if _, err := os.Stat(busybox); err != nil {
			t.Skip("no cpio to read the archive with")
		}
		cpio = busybox
	}
	cmd := exec.CommandContext(t.Context(), cpio, "-t")
	if filepath.Base(cpio) == "busybox" {
		cmd = exec.CommandContext(t.Context(), cpio, "cpio", "-t")
	}
	cmd.Stdin = &b
	out, err := cmd.Output()
	if want := "init\na\na/b\na/b/c\ndev\ndev/null\n"; err != nil || string(out) != want {
		t.Errorf("cpio lists %q, %v; want %q", out, err, want)
	}
}

func TestTwice(t *testing.T) {
	w := NewWriter(new(bytes.Buffer))
	if err := w.File("/x", 0o600, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.File("x", 0o600, nil); err == nil {
		t.Error("a name was written twice")
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if err := Write(new(bytes.Buffer), "/proc/self/exe", dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without modules.dep: %v", err)
	}
	var deps strings.Builder
	for _, m := range Modules() {
		name := m + ".ko"
		if err := os.WriteFile(filepath.Join(dir, name), []byte("module "+m), 0o600); err != nil {
			t.Fatal(err)
		}
		deps.WriteString(name + ":\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(deps.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "agent")
	if err := os.WriteFile(program, []byte("the agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Write(&b, program, dir); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the agent", "module virtiofs", "/modules/virtio_pci.ko\n/modules/virtiofs.ko\n", "dev/console"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the archive lacks %q", want)
		}
	}
}
