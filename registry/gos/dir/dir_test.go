package dir_test

import (
	"os"
	"path/filepath"
	"testing"

	"cumulet.io/registry/gos/dir"
	"cumulet.io/registry/gos/gostest"
)

func TestStore(t *testing.T) {
	root := t.TempDir()
	store, err := dir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	gostest.Run(t, store)
	left, err := os.ReadDir(filepath.Join(root, ".partial"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
