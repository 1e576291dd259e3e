package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

// S3's own limits are parts of 5 MiB to 5 GiB, but the last which may be smaller, and 10,000 of them.
const (
	minPart = 5 << 20
	// partSize is of the first parts of a stream, whose length nobody knows: a writer holds two of them. Later ones grow,
	// so that an object may have half a TiB.
	partSize = 8 << 20
	// wholeSize is up to where an object of known length goes in one request, and the size of its parts above.
	wholeSize = 64 << 20
	// copySize is the largest part that is copied on the server's side.
	copySize = 1 << 30
	// abortTime bounds the cleaning up after a failure.
	abortTime = 30 * time.Second
)

// Put implements gos.ObjectStore.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64) (int64, error) {
	if err := validKey(key); err != nil {
		return 0, err
	}
	switch {
	case size < 0:
		return s.putStream(ctx, key, r)
	case size <= wholeSize:
		counted := &counter{r: io.LimitReader(r, size)}
		if err := s.putWhole(ctx, key, counted, size); err != nil {
			return counted.n, err
		}
		if size > 0 && counted.n != size {
			return counted.n, io.ErrUnexpectedEOF
		}
		return size, nil
	}
	u, err := s.begin(ctx, key)
	if err != nil {
		return 0, err
	}
	var at int64
	for at < size {
		n := min(wholeSize, size-at)
		if err := u.put(ctx, io.LimitReader(r, n), n); err != nil {
			return at, u.abort(err)
		}
		at += n
	}
	return size, u.complete(ctx)
}

type counter struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// growing gives the size of a part, so that 10,000 parts are enough.
func growing(number int) int64 {
	switch {
	case number <= 1000:
		return partSize
	case number <= 3000:
		return 2 * partSize
	default:
		return 8 * partSize
	}
}

// putStream stores what comes until its end: one request when that is little, else parts, of which one is sent while
// the next comes in.
func (s *Store) putStream(ctx context.Context, key string, r io.Reader) (int64, error) {
	first := &bytes.Buffer{}
	n, err := io.CopyN(first, r, partSize)
	if errors.Is(err, io.EOF) {
		return n, s.putWhole(ctx, key, bytes.NewReader(first.Bytes()), n)
	}
	if err != nil {
		return n, fmt.Errorf("put object: %w", err)
	}
	u, err := s.begin(ctx, key)
	if err != nil {
		return n, err
	}
	free := make(chan *bytes.Buffer, 2)
	free <- &bytes.Buffer{}
	group, gctx := errgroup.WithContext(ctx)
	full := make(chan *bytes.Buffer)
	group.Go(func() error {
		for buf := range full {
			if err := u.put(gctx, bytes.NewReader(buf.Bytes()), int64(buf.Len())); err != nil {
				return err
			}
			buf.Reset()
			free <- buf
		}
		return nil
	})
	total := n
	group.Go(func() error {
		defer close(full)
		buf := first
		for number := 1; ; number++ {
			select {
			case full <- buf:
			case <-gctx.Done():
				return gctx.Err()
			}
			select {
			case buf = <-free:
			case <-gctx.Done():
				return gctx.Err()
			}
			n, err := io.CopyN(buf, r, growing(number+1))
			total += n
			if errors.Is(err, io.EOF) {
				if n == 0 {
					return nil
				}
				select {
				case full <- buf:
					return nil
				case <-gctx.Done():
					return gctx.Err()
				}
			}
			if err != nil {
				return fmt.Errorf("put object: %w", err)
			}
		}
	})
	if err := group.Wait(); err != nil {
		return total, u.abort(err)
	}
	return total, u.complete(ctx)
}

// upload is a multipart upload. For one goroutine.
type upload struct {
	s       *Store
	key, id string
	parts   []minio.CompletePart
}

func (s *Store) begin(ctx context.Context, key string) (*upload, error) {
	id, err := s.core.NewMultipartUpload(ctx, s.bucket, key, putOptions())
	if err != nil {
		return nil, fmt.Errorf("S3: begin upload: %w", err)
	}
	return &upload{s: s, key: key, id: id}, nil
}

func (u *upload) put(ctx context.Context, r io.Reader, size int64) error {
	number := len(u.parts) + 1
	p, err := u.s.core.PutObjectPart(ctx, u.s.bucket, u.key, u.id, number, r, size, minio.PutObjectPartOptions{})
	if err != nil {
		return fmt.Errorf("S3: put part: %w", err)
	}
	u.parts = append(u.parts, minio.CompletePart{PartNumber: number, ETag: p.ETag})
	return nil
}

func (u *upload) copyFrom(ctx context.Context, key string, offset, length int64) error {
	number := len(u.parts) + 1
	p, err := u.s.core.CopyObjectPart(ctx, u.s.bucket, key, u.s.bucket, u.key, u.id, number, offset, length, nil)
	if err != nil {
		return convert("copy part", err)
	}
	u.parts = append(u.parts, minio.CompletePart{PartNumber: number, ETag: p.ETag})
	return nil
}

func (u *upload) complete(ctx context.Context) error {
	if _, err := u.s.core.CompleteMultipartUpload(ctx, u.s.bucket, u.key, u.id, u.parts, putOptions()); err != nil {
		return u.abort(fmt.Errorf("S3: complete upload: %w", err))
	}
	return nil
}

// abort removes the parts. What it cannot remove, Delete does.
func (u *upload) abort(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), abortTime)
	defer cancel()
	if abortErr := u.s.core.AbortMultipartUpload(ctx, u.s.bucket, u.key, u.id); abortErr != nil {
		return errors.Join(err, fmt.Errorf("S3: abort upload: %w", abortErr))
	}
	return err
}

// piece is a range of an object.
type piece struct {
	key            string
	offset, length int64
}

// Compose implements gos.ObjectStore: large parts are copied by the server, small ones go through here together.
func (s *Store) Compose(ctx context.Context, key string, parts []string) (int64, error) {
	if err := validKey(key); err != nil {
		return 0, err
	}
	var pieces []piece
	var total int64
	for _, part := range parts {
		size, err := s.Stat(ctx, part)
		if err != nil {
			return 0, fmt.Errorf("compose object: %w", err)
		}
		total += size
		pieces = append(pieces, piece{part, 0, size})
	}
	if total < minPart {
		buf, err := s.readAll(ctx, pieces)
		if err != nil {
			return 0, err
		}
		return total, s.putWhole(ctx, key, bytes.NewReader(buf), total)
	}
	u, err := s.begin(ctx, key)
	if err != nil {
		return 0, err
	}
	for _, group := range plan(pieces) {
		if len(group) == 1 && group[0].length >= minPart {
			err = u.copyFrom(ctx, group[0].key, group[0].offset, group[0].length)
		} else {
			var buf []byte
			if buf, err = s.readAll(ctx, group); err == nil {
				err = u.put(ctx, bytes.NewReader(buf), int64(len(buf)))
			}
		}
		if err != nil {
			return 0, u.abort(err)
		}
	}
	return total, u.complete(ctx)
}

// plan groups pieces into parts of an upload: each but the last has minPart bytes at least, and a group of several
// pieces, or of a small one, exactly so many or is the last.
func plan(pieces []piece) [][]piece {
	var out [][]piece
	var pending []piece
	var size int64
	for _, p := range pieces {
		if size > 0 {
			take := min(p.length, minPart-size)
			pending = append(pending, piece{p.key, p.offset, take})
			if size += take; size == minPart {
				out, pending, size = append(out, pending), nil, 0
			}
			p.offset, p.length = p.offset+take, p.length-take
		}
		for p.length >= minPart {
			take := min(p.length, copySize)
			if rest := p.length - take; rest > 0 && rest < minPart {
				take -= minPart // leave enough for a part of its own
			}
			out = append(out, []piece{{p.key, p.offset, take}})
			p.offset, p.length = p.offset+take, p.length-take
		}
		if p.length > 0 {
			pending, size = append(pending, p), size+p.length
		}
	}
	if size > 0 {
		out = append(out, pending)
	}
	return out
}

func (s *Store) readAll(ctx context.Context, pieces []piece) ([]byte, error) {
	var buf bytes.Buffer
	for _, p := range pieces {
		if p.length == 0 {
			continue
		}
		body, err := s.Get(ctx, p.key, p.offset, p.length)
		if err != nil {
			return nil, fmt.Errorf("compose object: %w", err)
		}
		n, err := io.Copy(&buf, body)
		body.Close()
		if err == nil && n != p.length {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("compose object: %w", err)
		}
	}
	return buf.Bytes(), nil
}
