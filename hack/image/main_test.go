package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func source(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "bin")
	if err := os.WriteFile(f, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return f
}

// files lists a one-layer image's paths as "type mode name -> link" lines, and
// the regular files' contents.
func files(t *testing.T, img v1.Image) (lines []string, contents map[string]string) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers: %d, %v", len(layers), err)
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	contents = map[string]string{}
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return lines, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		line := string(h.Typeflag) + " " + os.FileMode(h.Mode).String() + " " + h.Name
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		lines = append(lines, line)
		if h.Typeflag == tar.TypeReg {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			contents[h.Name] = string(b)
		}
	}
}

func TestDockerArchive(t *testing.T) {
	bin := source(t, "program", 0o755)
	dir := t.TempDir()
	archive := func(name string) string {
		out := filepath.Join(dir, name)
		args := []string{"-o", out, "-tag", "example.test/app:v1", "-entrypoint", "/bin/app", "-entrypoint", "serve",
			"-cmd", "--all", "-env", "A=b=c", "-label", "k=v=w", "-user", "7:8", "-workdir", "/srv",
			"-symlink", "app:/bin/sh", "-dir", "/tmp:1777", bin + ":/bin/app"}
		if err := run(args, io.Discard); err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := archive("a.tar")
	tag, err := name.NewTag("example.test/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(first, &tag)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := file.Config
	got := strings.Join([]string{strings.Join(c.Entrypoint, " "), strings.Join(c.Cmd, " "), strings.Join(c.Env, " "),
		c.User, c.WorkingDir, c.Labels["k"], file.OS, file.Architecture}, "|")
	if want := "/bin/app serve|--all|A=b=c|7:8|/srv|v=w|linux|amd64"; got != want {
		t.Errorf("config %q, want %q", got, want)
	}
	lines, contents := files(t, img)
	want := []string{"5 -rwxr-xr-x bin/", "0 -rwxr-xr-x bin/app", "2 -rwxrwxrwx bin/sh -> app", "5 " + os.FileMode(0o1777).String() + " tmp/"}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("layer:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if contents["bin/app"] != "program" {
		t.Errorf("content %q", contents["bin/app"])
	}

	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(archive("b.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the same input made two different archives")
	}
}

func TestOCILayout(t *testing.T) {
	out := filepath.Join(t.TempDir(), "layout")
	args := []string{"-format", "oci", "-o", out, "-tag", "example.test/app:v1", source(t, "x", 0o700) + ":/x"}
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 1 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "example.test/app:v1" {
		t.Errorf("index %+v", m.Manifests)
	}
	if err := run(args, io.Discard); err == nil {
		t.Error("a second run overwrote the layout")
	}
}

func TestBadArguments(t *testing.T) {
	bin := source(t, "x", 0o755)
	for want, args := range map[string][]string{
		"-tag":                 {"-tag", "NOT A REF", bin + ":/x"},
		"required":             {bin + ":/x"},
		"want FILE:PATH":       {"-tag", "a.test/b:c", bin},
		"clean absolute path":  {"-tag", "a.test/b:c", bin + ":x"},
		`path "/a/../x"`:       {"-tag", "a.test/b:c", bin + ":/a/../x"},
		"given twice":          {"-tag", "a.test/b:c", bin + ":/x", bin + ":/x"},
		`"/x" is not a direct`: {"-tag", "a.test/b:c", bin + ":/x", bin + ":/x/y"},
		"no such file":         {"-tag", "a.test/b:c", bin + ".missing:/x"},
		"not a regular file":   {"-tag", "a.test/b:c", filepath.Dir(bin) + ":/x"},
		"octal":                {"-tag", "a.test/b:c", "-dir", "/tmp:9"},
		"want KEY=VALUE":       {"-tag", "a.test/b:c", "-label", "x"},
		"want TARGET:PATH":     {"-tag", "a.test/b:c", "-symlink", "x"},
		"unknown -format":      {"-tag", "a.test/b:c", "-format", "zip", bin + ":/x"},
	} {
		dir := t.TempDir()
		err := run(append([]string{"-o", filepath.Join(dir, "out")}, args...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", args, err, want)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%v: left %v behind", args, left)
		}
	}
}
