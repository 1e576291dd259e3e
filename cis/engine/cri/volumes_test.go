package cri

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cumulet.io/cis"
	"cumulet.io/internal/mounts"
	"cumulet.io/internal/testenv"
)

func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(files ...cis.File) {
		t.Helper()
		if err := writeFiles(dir, files, nil); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	write(cis.File{Path: "a", Data: []byte("1")}, cis.File{Path: "d/b", Data: []byte("2"), Mode: 0o600}, cis.File{Path: "gone", Data: []byte("3")})
	if read("a") != "1" || read("d/b") != "2" || read("gone") != "3" {
		t.Errorf("first: %q %q %q", read("a"), read("d/b"), read("gone"))
	}
	if st, err := os.Stat(filepath.Join(dir, "d/b")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", st, err)
	}
	// A reader that has the directory open goes on with what it had.
	old, err := os.Open(filepath.Join(dir, dataLink, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	write(cis.File{Path: "a", Data: []byte("new")}, cis.File{Path: "d/c", Data: []byte("4")})
	if read("a") != "new" || read("d/c") != "4" {
		t.Errorf("second: %q %q", read("a"), read("d/c"))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			continue // the data itself
		}
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{dataLink, "a", "d"}) || len(entries) != 4 {
		t.Errorf("left: %v of %v", names, entries)
	}
	for _, bad := range []string{"", "..", "../x", "/x", "a/../b", "..data", "a//b", "a/", "."} {
		if err := writeFiles(dir, []cis.File{{Path: bad}}, nil); err == nil {
			t.Errorf("path %q was taken", bad)
		}
	}
	if read("a") != "new" {
		t.Error("a refused write changed something")
	}
}

// A container cannot make a subPath lead out of its volume.
func TestSubPath(t *testing.T) {
	testenv.RequireRoot(t)
	v := &volumes{dir: t.TempDir()}
	t.Cleanup(func() {
		if err := v.remove(); err != nil {
			t.Error(err)
		}
	})
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	vol := v.path("data")
	if err := os.MkdirAll(filepath.Join(vol, "real"), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": filepath.Dir(outside), "up": "../../..", "in": "real", "file": outside} {
		if err := os.Symlink(target, filepath.Join(vol, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"abs", "up", "file", "abs/secret", "up/x", "../data", "/etc", "real/../../.."} {
		if at, err := v.subPath("c", 0, cis.Mount{Volume: "data", SubPath: sub}); err == nil {
			t.Errorf("subPath %q led to %s", sub, at)
		}
	}
	at, err := v.subPath("c", 0, cis.Mount{Volume: "data", SubPath: "in/made/deep"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(vol, "real/made/deep/f")); err != nil || string(b) != "x" {
		t.Errorf("%q %v", b, err)
	}
	// Again, as for a restarted container: the same place.
	if again, err := v.subPath("c", 0, cis.Mount{Volume: "data", SubPath: "in/made/deep"}); err != nil || again != at {
		t.Errorf("%s %v", again, err)
	}
	points, err := mounts.In(v.dir)
	if err != nil || len(points) != 1 {
		t.Errorf("mounts %v %v", points, err)
	}
}

func TestVolumes(t *testing.T) {
	testenv.RequireRoot(t)
	v := &volumes{dir: t.TempDir()}
	spec := &cis.Spec{Volumes: []cis.Volume{
		{Name: "mem", EmptyDir: &cis.EmptyDir{Memory: true, SizeLimitBytes: 1 << 20}},
		{Name: "key", Files: &cis.FilesVolume{Secret: true, Files: []cis.File{{Path: "k", Data: []byte("v1")}}}},
		{Name: "disk", EmptyDir: &cis.EmptyDir{}},
	}}
	// An update before the volumes are made is what they are made with.
	if err := v.update(spec, "key", &cis.FilesVolume{Secret: true, Files: []cis.File{{Path: "k", Data: []byte("v2")}}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // making them again changes nothing
		if err := v.prepare(spec); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(v.path("key"), "k")); err != nil || string(b) != "v2" {
		t.Errorf("%q %v", b, err)
	}
	points, err := mounts.In(v.dir)
	if err != nil || len(points) != 2 {
		t.Errorf("mounts %v %v", points, err)
	}
	if st, err := os.Stat(v.path("disk")); err != nil || st.Mode().Perm() != 0o777 {
		t.Errorf("%v %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(v.path("mem"), "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("the size limit does not hold")
	}
	if err := v.update(spec, "disk", &cis.FilesVolume{}); err == nil {
		t.Error("an emptyDir took files")
	}
	if err := v.remove(); err != nil {
		t.Fatal(err)
	}
	if points, err := mounts.In(v.dir); err != nil || len(points) != 0 {
		t.Errorf("mounts left %v %v", points, err)
	}
}
