package cri

import "testing"

func TestGrants(t *testing.T) {
	dir := t.TempDir()
	open := func() *grants {
		g, err := openGrants(dir)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := open()
	if !g.allows("a", "host/imported") {
		t.Error("what the operator imported is for all")
	}
	if err := g.pulling("host/a/app"); err != nil {
		t.Fatal(err)
	}
	if open().allows("a", "host/a/app") {
		t.Error("a crash in a pull leaves the image open to all")
	}
	if err := g.pulled("a", "host/a/app"); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*grants{g, open()} {
		if !g.allows("a", "host/a/app") || g.allows("b", "host/a/app") {
			t.Error("the image is for the org that pulled it, and for no other")
		}
	}
}
