package cri

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// What instances in virtual machines have of each other: the network, within an org, and nothing else.
func TestKataPair(t *testing.T) {
	b := newKataBench(t)
	one, other, _ := b.neighbours(t, cis.Kata)
	first, second := b.machine(t, one), b.machine(t, other)
	t.Run("processes", func(t *testing.T) {
		for name, pid := range first.pids {
			if pid == 0 || pid == second.pids[name] {
				t.Errorf("%s: %d and %d", name, pid, second.pids[name])
			}
		}
	})
	// A machine's memory is a file of its own, which has the secret of its instance, and which no process of the other
	// machine has open or mapped.
	t.Run("memory", func(t *testing.T) {
		if first.memory == second.memory {
			t.Fatal("both have the same memory")
		}
		for _, c := range []struct {
			of, by *machine
			has    bool
		}{{first, first, true}, {second, second, true}, {first, second, false}, {second, first, false}} {
			if has := c.of.remembers(t, ownSecret(c.by.instance)); has != c.has {
				t.Errorf("memory of %s has the secret of %s: %v", c.of.instance.ID, c.by.instance.ID, has)
			}
			for name, pid := range c.by.pids {
				if name != shimName && mapped(t, pid, c.of.memory) != c.has {
					t.Errorf("%s of %s has the memory of %s mapped: %v", name, c.by.instance.ID, c.of.instance.ID, !c.has)
				}
			}
		}
	})
	// What its file server can reach, by its root, are the files of its own containers.
	t.Run("disk", func(t *testing.T) {
		if slices.Equal(first.shared, second.shared) {
			t.Errorf("both have %q", first.shared)
		}
		for _, m := range []*machine{first, second} {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", m.pids[fileServerName]))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if !slices.Equal(names, m.shared) {
				t.Errorf("%s shares %q, want its containers %q", m.instance.ID, names, m.shared)
			}
		}
		if _, err := b.run(one.ID, "main", "sh", "-c", "echo mine > /only-here"); err != nil {
			t.Fatal(err)
		}
		if out, err := b.run(other.ID, "main", "ls", "/only-here"); err == nil {
			t.Errorf("a file of the one is in the other: %s", out)
		}
	})
}

const (
	shimName       = "containerd-shim-kata-v2"
	vmName         = "qemu-system-x86_64"
	fileServerName = "virtiofsd"
)

// machine is the virtual machine of an instance.
type machine struct {
	instance *cis.Instance
	pids     map[string]int
	memory   uint64   // the inode of its memory's file
	fd       string   // by which the hypervisor has it open
	shared   []string // ids of the containers with files, sorted
}

func (b *bench) machine(t *testing.T, in *cis.Instance) *machine {
	t.Helper()
	sandboxes, err := b.listSandboxes(t.Context(), in.ID)
	if err != nil || len(sandboxes) != 1 {
		t.Fatal(sandboxes, err)
	}
	id := sandboxes[0].Id
	m := &machine{instance: in, pids: map[string]int{shimName: 0, vmName: 0, fileServerName: 0}, shared: []string{id}}
	for _, c := range b.sink.last(in.ID).Containers {
		m.shared = append(m.shared, strings.TrimPrefix(c.ContainerID, "containerd://"))
	}
	slices.Sort(m.shared)
	for _, p := range b.machinery() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		if err != nil {
			continue // it has ended
		}
		if _, ours := m.pids[p.name]; ours && strings.Contains(string(text), id[:16]) {
			m.pids[p.name] = p.pid
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", m.pids[vmName])
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		if link, err := os.Readlink(at); err == nil && strings.HasPrefix(link, "/memfd:memory-backend") {
			var st unix.Stat_t
			if err := unix.Stat(at, &st); err != nil {
				t.Fatal(err)
			}
			m.memory, m.fd = st.Ino, at
		}
	}
	if m.memory == 0 {
		t.Fatalf("no memory among the open files of %d", m.pids[vmName])
	}
	return m
}

// remembers tells whether a text is in the machine's memory.
func (m *machine) remembers(t *testing.T, text string) bool {
	t.Helper()
	f, err := os.Open(m.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return false // only holes are left
		}
		if err != nil {
			t.Fatal(err)
		}
		n, err := f.ReadAt(buf, at)
		if bytes.Contains(buf[:n], []byte(text)) {
			return true
		}
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		at += int64(max(1, n-len(text)))
	}
}

// mapped tells whether a process has a file mapped.
func mapped(t *testing.T, pid int, inode uint64) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == fmt.Sprint(inode) && strings.HasPrefix(f[5], "/memfd:") {
			return true
		}
	}
	return false
}

// A log of a hundred megabytes is complete and in order.
func TestKataLongLog(t *testing.T) {
	b := newKataBench(t)
	lines := 10_000 // of a thousand bytes
	if os.Getenv("CUMULET_KATA_ALL") == "1" {
		lines = 100_000
	}
	b.longLog(t, cis.Kata, lines)
}

func (b *bench) longLog(t *testing.T, class cis.SandboxClass, lines int) {
	t.Helper()
	in := instance(class, shell("main", fmt.Sprintf(`awk 'BEGIN { pad = sprintf("%%0990d", 0); for (i = 1; i <= %d; i++) printf "%%09d%%s\n", i, pad }'`, lines)))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	began := time.Now()
	b.ensure(in)
	b.sink.wait(t, in.ID, "the end", func(st cis.Status) bool { return st.Phase == cis.Succeeded })
	t.Logf("%d bytes in %v with the sandbox's start", lines*1000, time.Since(began).Round(time.Millisecond))
	want := sha256.New()
	w := bufio.NewWriter(want)
	for i := range lines {
		fmt.Fprintf(w, "%09d%0990d\n", i+1, 0)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got := &counter{hash: sha256.New()}
	if err := b.Logs(t.Context(), in.ID, cis.LogRequest{Container: "main"}, got); err != nil {
		t.Fatal(err)
	}
	if got.bytes != lines*1000 || got.lines != lines || !bytes.Equal(got.hash.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes in %d lines, SHA-256 %x; want %d in %d, %x", got.bytes, got.lines, got.hash.Sum(nil), lines*1000, lines, want.Sum(nil))
	}
}

type counter struct {
	bytes, lines int
	hash         hash.Hash
}

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += len(p)
	c.lines += bytes.Count(p, []byte("\n"))
	return c.hash.Write(p)
}
