package docscheck

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The tree's own pages.
func TestPages(t *testing.T) {
	bad, err := Links("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bad {
		t.Error(b)
	}
	pages, err := find("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"README.md", "docs/README.md", "docs/operations.md"} {
		if !slices.Contains(pages, want) {
			t.Errorf("%s was not looked at", want)
		}
	}
}

func TestLinks(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a.md": "# A page, `x` and more\n[ok](b.md) [ok](sub/c.md#deep-two) [ok](#a-page-x-and-more) [ok](https://example.org/x) [ok](sub/)\n" +
			"[bad](none.md)\n```\n[code](none.md)\n```\n`[span](none.md)` [`code`](b.md)\n[bad](b.md#none) and [`bad`](sub/d.go)\n",
		"b.md":          "text",
		"sub/c.md":      "## Deep *two*\n[up](../a.md) [bad](a.md)\n",
		"testdata/x.md": "[bad](none.md)",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Links(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a.md:3: no such file: none.md", "a.md:8: no such heading: b.md#none", "a.md:8: no such file: sub/d.go", "sub/c.md:2: no such file: sub/a.md"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
