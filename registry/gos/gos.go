// Package gos is the registry's global object storage: one content-addressed blob space over the object stores of many
// regions, with a tracker that says what is where.
//
// An ObjectStore (gos/dir, gos/s3) keeps bytes under opaque keys and knows no digest. The tracker (gos/tracker) maps a
// digest to its keys, so that a commit is one transaction and never a copy. A Region is one node's view: its own store,
// the others to read from, and the spool through which a blob comes from another region once, however many ask for it.
// gos/driver offers all that to the distribution core as a storage driver.
//
// It authorises nobody: who may read a digest is decided before it is asked.
package gos

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// ErrNoObject is what a store has for a key that it does not have.
var ErrNoObject = errors.New("no such object")

// ObjectStore keeps objects under keys that NewKey made. An object never changes: a key is written once. Safe for
// concurrent use.
type ObjectStore interface {
	// Put stores what r gives until its end, size bytes or, when size is negative, as many as come, and returns how many.
	// The object is durable and whole when Put returns nil; after an error, also one of r, there is none to be read.
	Put(ctx context.Context, key string, r io.Reader, size int64) (int64, error)
	// Get reads length bytes from offset on; a negative length is until the end. From the end on there is nothing to
	// read, which is no error. ErrNoObject where there is none. The caller closes the reader.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	// Stat gives an object's size, or ErrNoObject.
	Stat(ctx context.Context, key string) (int64, error)
	// Compose stores the concatenation of at least two other objects, which stay, and returns its size. It is as atomic
	// as Put.
	Compose(ctx context.Context, key string, parts []string) (int64, error)
	// Delete removes an object and what an interrupted Put of it left. It is no error when there is none.
	Delete(ctx context.Context, key string) error
}

// Creator is the ability of a store to take an object piece by piece from whoever has it, with no pipe between the two.
type Creator interface {
	// Create begins an object. The caller ends it by Commit or Abort.
	Create(ctx context.Context, key string) (ObjectWriter, error)
}

// ObjectWriter is an object that is being written. It is for one goroutine, but for Abort, which any may call.
type ObjectWriter interface {
	io.Writer
	// Commit makes what was written the object, which is durable and whole when it returns nil; else there is none.
	Commit() error
	// Abort leaves no object and ends a Write under way. Behind Commit, or once more, it does nothing.
	Abort()
}

// Presigner is the ability of a store to let a client read an object by itself.
type Presigner interface {
	// Presign gives a URL at which the object can be read until ttl is over, or "" where clients cannot reach the store.
	Presign(ctx context.Context, key string, ttl time.Duration) (string, error)
}

// FileOpener is the ability of a store to give an object as a file, so that the kernel can send it.
type FileOpener interface {
	// OpenFile opens an object for reading, or ErrNoObject. The caller closes it.
	OpenFile(ctx context.Context, key string) (*os.File, error)
}

var keyPattern = regexp.MustCompile(`^[a-z2-7]{2}/[a-z2-7]{24}$`)

// NewKey makes a key, which tells nothing of its object.
func NewKey() string {
	text := strings.ToLower(rand.Text()) // 26 letters of base32
	return text[:2] + "/" + text[2:26]
}

// ValidKey tells whether NewKey may have made a key. A store takes no other, so that no key is a path trick.
func ValidKey(key string) bool { return keyPattern.MatchString(key) }
