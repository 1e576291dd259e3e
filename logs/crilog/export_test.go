package crilog

import (
	"errors"
	"testing"

	"github.com/fsnotify/fsnotify"
)

// Blind has no directory be watched until the end of t.
func Blind(t *testing.T) {
	t.Helper()
	was := watchDir
	watchDir = func(string) (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") }
	t.Cleanup(func() { watchDir = was })
}
