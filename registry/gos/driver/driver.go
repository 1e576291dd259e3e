// Package driver lets the distribution core keep its files in a gos.Region: a storage driver of its registry.
//
// The core's layout is taken as it is. A blob's path stands for the digest in it; other small files are rows of the
// tracker. It is for the core alone: other code talks to the region.
package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	gopath "path"
	"strings"
	"sync"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/base"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/gos"
	"cumulet.io/registry/gos/tracker"
)

// Name is the driver's, and ParameterRegion its parameter that holds the *gos.Region.
const (
	Name            = "gos"
	ParameterRegion = "region"
)

// maxInline is the size from which a file that is written at once is no small file.
const maxInline = 8 << 20

type creator struct{}

// Create implements factory.StorageDriverFactory.
func (creator) Create(_ context.Context, parameters map[string]any) (storagedriver.StorageDriver, error) {
	r, ok := parameters[ParameterRegion].(*gos.Region)
	if !ok {
		return nil, errors.New("gos: the parameter region is missing")
	}
	return New(r), nil
}

// registerOnce guards the core's table of drivers, which takes a name once in the life of a process.
var registerOnce sync.Once //nolint:gochecknoglobals // guards the core's own global

// Register enters the driver in the core's table. The first call in a process counts.
func Register() { registerOnce.Do(func() { factory.Register(Name, creator{}) }) }

// New makes a driver on a region.
func New(r *gos.Region) storagedriver.StorageDriver {
	return &checked{base.Base{StorageDriver: &driver{region: r}}}
}

// checked is the driver with the core's own checks of paths and offsets.
type checked struct{ base.Base }

type driver struct{ region *gos.Region }

// Name implements storagedriver.StorageDriver.
func (d *driver) Name() string { return Name }

func notFound(path string) error {
	return storagedriver.PathNotFoundError{Path: path, DriverName: Name}
}

func fault(path string, err error) error {
	if errors.Is(err, problem.ErrNotFound) {
		return notFound(path)
	}
	return err
}

// upload gives the context for the state of an upload, which is kept also of a client that has gone: it can go on where
// it was.
func upload(ctx context.Context, p tracker.Path) context.Context {
	if p.Kind == tracker.KindUpload {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// GetContent implements storagedriver.StorageDriver.
func (d *driver) GetContent(ctx context.Context, path string) ([]byte, error) {
	body, err := d.Reader(ctx, path, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return content, nil
}

// PutContent implements storagedriver.StorageDriver. The content of a blob's path is its manifest, whose digest the core
// has made of it.
func (d *driver) PutContent(ctx context.Context, path string, content []byte) error {
	p := tracker.ParsePath(path)
	ctx = upload(ctx, p)
	if p.Kind == tracker.KindBlob {
		if got := p.Digest.Algorithm().FromBytes(content); got != p.Digest {
			return fmt.Errorf("content of %s has digest %s", path, got)
		}
		return d.noted(ctx, d.region.Tracker().PutInline(ctx, p.Digest, content))
	}
	if len(content) <= maxInline {
		if p.Kind == tracker.KindUpload && d.remembered(ctx, path, content) {
			return nil
		}
		return d.noted(ctx, d.region.Tracker().PutFile(ctx, path, content))
	}
	w, err := d.Writer(ctx, path, false)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, bytes.NewReader(content)); err != nil {
		return errors.Join(err, w.Cancel(ctx))
	}
	return errors.Join(w.Commit(ctx), w.Close())
}

// remembered tells whether a state of an upload's hash needs no writing. The core writes it whenever it closes an upload:
// also at its start, from which it reads none, and once more when it commits what was there.
func (d *driver) remembered(ctx context.Context, path string, content []byte) bool {
	dir, offset := gopath.Split(path)
	if gopath.Base(gopath.Dir(gopath.Clean(dir))) != "hashstates" {
		return false
	}
	if offset == "0" {
		return true
	}
	f, err := d.region.File(ctx, path)
	return err == nil && !f.Dir && bytes.Equal(f.Content, content)
}

// noted leaves word of the tracker's absence for gos.Unavailable.
func (d *driver) noted(ctx context.Context, err error) error {
	gos.Note(ctx, err)
	return err
}

// Reader implements storagedriver.StorageDriver.
func (d *driver) Reader(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	var body io.ReadCloser
	var err error
	if p := tracker.ParsePath(path); p.Kind == tracker.KindBlob {
		body, err = d.region.Open(ctx, p.Digest, offset)
	} else {
		body, err = d.region.OpenFile(ctx, path, offset)
	}
	if err != nil {
		return nil, fault(path, err)
	}
	return body, nil
}

// Writer implements storagedriver.StorageDriver.
func (d *driver) Writer(ctx context.Context, path string, resume bool) (storagedriver.FileWriter, error) {
	if tracker.ParsePath(path).Kind == tracker.KindBlob {
		return nil, fmt.Errorf("%s: a blob is moved into its place", path)
	}
	return d.region.Writer(ctx, path, resume)
}

// Stat implements storagedriver.StorageDriver.
func (d *driver) Stat(ctx context.Context, path string) (storagedriver.FileInfo, error) {
	fields := storagedriver.FileInfoFields{Path: path}
	if p := tracker.ParsePath(path); p.Kind == tracker.KindBlob {
		size, err := d.region.Stat(ctx, p.Digest)
		if err != nil {
			return nil, fault(path, err)
		}
		fields.Size = size
		fields.ModTime = time.Unix(0, 0).UTC() // a blob never changes
		return storagedriver.FileInfoInternal{FileInfoFields: fields}, nil
	}
	f, err := d.region.File(ctx, path)
	if err != nil {
		return nil, fault(path, err)
	}
	return info(*f), nil
}

func info(f tracker.File) storagedriver.FileInfo {
	return storagedriver.FileInfoInternal{FileInfoFields: storagedriver.FileInfoFields{Path: f.Path, Size: f.Size, ModTime: f.Modified, IsDir: f.Dir}}
}

// List implements storagedriver.StorageDriver. Blobs are not listed: the core lists them to collect garbage, which is the
// region's own work.
func (d *driver) List(ctx context.Context, path string) ([]string, error) {
	files, err := d.list(ctx, path)
	out := make([]string, 0, len(files))
	for _, f := range files {
		out = append(out, f.Path)
	}
	return out, err
}

func (d *driver) list(ctx context.Context, path string) ([]tracker.File, error) {
	files, err := d.region.List(ctx, path)
	if err != nil {
		return nil, fault(path, err)
	}
	if len(files) == 0 && path != "/" {
		return nil, notFound(path)
	}
	return files, nil
}

// Move implements storagedriver.StorageDriver.
func (d *driver) Move(ctx context.Context, from, to string) error {
	if tracker.ParsePath(from).Kind == tracker.KindBlob {
		return storagedriver.ErrUnsupportedMethod{DriverName: Name}
	}
	if err := d.region.Tracker().Move(ctx, from, to); err != nil {
		return fault(from, d.noted(ctx, err))
	}
	return nil
}

// Delete implements storagedriver.StorageDriver. Blobs are not deleted but collected.
func (d *driver) Delete(ctx context.Context, path string) error {
	if tracker.ParsePath(strings.TrimSuffix(path, "/data")+"/data").Kind == tracker.KindBlob {
		return storagedriver.ErrUnsupportedMethod{DriverName: Name}
	}
	ctx = upload(ctx, tracker.ParsePath(path+"/data"))
	if err := d.region.Tracker().Delete(ctx, path); err != nil {
		return fault(path, d.noted(ctx, err))
	}
	return nil
}

// RedirectURL implements storagedriver.StorageDriver.
func (d *driver) RedirectURL(r *http.Request, path string) (string, error) {
	p := tracker.ParsePath(path)
	if p.Kind != tracker.KindBlob || r.Method != http.MethodGet {
		return "", nil
	}
	u, err := d.region.Redirect(r.Context(), p.Digest)
	if err != nil {
		return "", fault(path, err)
	}
	return u, nil
}

// Walk implements storagedriver.StorageDriver.
func (d *driver) Walk(ctx context.Context, path string, f storagedriver.WalkFn, options ...func(*storagedriver.WalkOptions)) error {
	return storagedriver.WalkFallback(ctx, &walker{driver: d}, path, f, options...)
}

// walker answers the core's walk, which asks for each name that a list has given, from the list.
type walker struct {
	*driver
	seen map[string]tracker.File
}

// List implements storagedriver.StorageDriver.
func (w *walker) List(ctx context.Context, path string) ([]string, error) {
	files, err := w.list(ctx, path)
	if w.seen == nil {
		w.seen = map[string]tracker.File{}
	}
	out := make([]string, 0, len(files))
	for _, f := range files {
		w.seen[f.Path] = f
		out = append(out, f.Path)
	}
	return out, err
}

// Stat implements storagedriver.StorageDriver.
func (w *walker) Stat(ctx context.Context, path string) (storagedriver.FileInfo, error) {
	if f, ok := w.seen[path]; ok {
		delete(w.seen, path)
		return info(f), nil
	}
	return w.driver.Stat(ctx, path)
}
