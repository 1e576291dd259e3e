// Package fswatch watches one path where the kernel has a watcher left: it gives a user 128 unless told otherwise.
package fswatch

import (
	"errors"

	"github.com/fsnotify/fsnotify"
)

// News tells what changes at a path. Where nothing is watched both channels are nil, and whoever reads looks now and then.
type News struct {
	Events <-chan fsnotify.Event
	Errors <-chan error
	w      *fsnotify.Watcher
}

// Start begins to watch a path; an error says that nothing is watched, and why. It is a variable for tests of what follows.
var Start = func(path string) (*News, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return &News{}, err
	}
	if err := w.Add(path); err != nil {
		return &News{}, errors.Join(err, w.Close())
	}
	return &News{Events: w.Events, Errors: w.Errors, w: w}, nil
}

// Close ends the watching.
func (n *News) Close() error {
	if n.w == nil {
		return nil
	}
	return n.w.Close()
}
