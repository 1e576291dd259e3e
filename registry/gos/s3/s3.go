// Package s3 is an object store in a bucket of an S3-compatible service, through minio-go.
//
// It asks for little: a blob that comes as a stream costs one request, or a multipart upload of large parts; nothing is
// listed and nothing is copied but by Compose.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"cumulet.io/registry/gos"
)

// headerTime is how long a store may think before it answers.
const headerTime = 2 * time.Minute

// Config is for Open. Endpoint, Bucket and Credentials are required.
type Config struct {
	// Endpoint is the service's URL without path, http or https. Buckets are asked for by path.
	Endpoint string
	// PublicEndpoint is how clients of the registry reach the service; "" means that they cannot.
	PublicEndpoint string
	// Bucket is there already and is for this store alone.
	Bucket string
	// Region is what requests are signed for; "" is us-east-1.
	Region      string
	Credentials *credentials.Credentials
	// Transport is for tests that count or break; nil is minio-go's with as many idle connections as are in use.
	Transport http.RoundTripper
}

// Store is a bucket. Safe for concurrent use, also by several processes.
type Store struct {
	bucket string
	core   *minio.Core
	public *minio.Client // nil where clients cannot reach the service
}

var (
	_ gos.ObjectStore = (*Store)(nil)
	_ gos.Presigner   = (*Store)(nil)
)

// ReadCredentials reads a credentials file as AWS's tools have it: section default with aws_access_key_id and
// aws_secret_access_key. Of mode 0600.
func ReadCredentials(path string) (*credentials.Credentials, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("S3 credentials: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("S3 credentials: %s may be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	c := credentials.NewFileAWSCredentials(path, "default")
	if v, err := c.GetWithContext(nil); err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		// The parser's own error may repeat the file.
		return nil, fmt.Errorf("S3 credentials: %s must have aws_access_key_id and aws_secret_access_key in section [default]", path)
	}
	return c, nil
}

// Open makes a store. It sends nothing: Check does.
func Open(cfg Config) (*Store, error) {
	if cfg.Bucket == "" || cfg.Credentials == nil {
		return nil, errors.New("S3: bucket and credentials are needed")
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1"
	}
	s := &Store{bucket: cfg.Bucket}
	client, err := newClient(cfg, cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	s.core = &minio.Core{Client: client}
	if cfg.PublicEndpoint != "" {
		if s.public, err = newClient(cfg, cfg.PublicEndpoint); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newClient(cfg Config, endpoint string) (*minio.Client, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("S3: the endpoint must be http(s)://host[:port], not %q", endpoint)
	}
	transport := cfg.Transport
	if transport == nil {
		t, err := minio.DefaultTransport(u.Scheme == "https")
		if err != nil {
			return nil, fmt.Errorf("S3: %w", err)
		}
		t.MaxIdleConnsPerHost = 256
		t.DisableCompression = true
		t.ResponseHeaderTimeout = headerTime
		transport = t
	}
	// The region is given, so that none is asked for; few retries, since who reads tries again where it was.
	c, err := minio.New(u.Host, &minio.Options{Creds: cfg.Credentials, Secure: u.Scheme == "https", Region: cfg.Region,
		Transport: transport, BucketLookup: minio.BucketLookupPath, MaxRetries: 3})
	if err != nil {
		return nil, fmt.Errorf("S3: %w", err)
	}
	return c, nil
}

// Check tells whether the bucket is there.
func (s *Store) Check(ctx context.Context) error {
	ok, err := s.core.BucketExists(ctx, s.bucket)
	if err != nil {
		return fmt.Errorf("S3 bucket %s: %w", s.bucket, err)
	}
	if !ok {
		return fmt.Errorf("S3 bucket %s: there is none; make it", s.bucket)
	}
	return nil
}

// convert gives gos.ErrNoObject for a missing object.
func convert(operation string, err error) error {
	if resp := minio.ToErrorResponse(err); resp.Code == minio.NoSuchKey || resp.Code == "NotFound" && resp.StatusCode == http.StatusNotFound {
		return gos.ErrNoObject
	}
	return fmt.Errorf("S3: %s: %w", operation, err)
}

func validKey(key string) error {
	if !gos.ValidKey(key) {
		return fmt.Errorf("%q is no object key", key)
	}
	return nil
}

// Get implements gos.ObjectStore.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := validKey(key); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("get object: offset %d", offset)
	}
	if length == 0 {
		_, err := s.Stat(ctx, key)
		return http.NoBody, err
	}
	var opts minio.GetObjectOptions
	switch {
	case length > 0:
		if err := opts.SetRange(offset, offset+length-1); err != nil {
			return nil, fmt.Errorf("get object: %w", err)
		}
	case offset > 0:
		if err := opts.SetRange(offset, 0); err != nil {
			return nil, fmt.Errorf("get object: %w", err)
		}
	}
	body, _, _, err := s.core.GetObject(ctx, s.bucket, key, opts)
	if err != nil {
		if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return http.NoBody, nil
		}
		return nil, convert("get object", err)
	}
	return body, nil
}

// Stat implements gos.ObjectStore.
func (s *Store) Stat(ctx context.Context, key string) (int64, error) {
	if err := validKey(key); err != nil {
		return 0, err
	}
	info, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return 0, convert("stat object", err)
	}
	return info.Size, nil
}

// Delete implements gos.ObjectStore.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := validKey(key); err != nil {
		return err
	}
	if err := s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}); err != nil {
		if err = convert("delete object", err); !errors.Is(err, gos.ErrNoObject) {
			return err
		}
	}
	if err := s.core.RemoveIncompleteUpload(ctx, s.bucket, key); err != nil {
		return fmt.Errorf("S3: abort upload: %w", err)
	}
	return nil
}

// Presign implements gos.Presigner.
func (s *Store) Presign(ctx context.Context, key string, ttl time.Duration) (string, error) {
	if err := validKey(key); err != nil {
		return "", err
	}
	if s.public == nil {
		return "", nil
	}
	u, err := s.public.PresignedGetObject(ctx, s.bucket, key, ttl, url.Values{"response-content-type": {"application/octet-stream"}})
	if err != nil {
		return "", fmt.Errorf("S3: presign: %w", err)
	}
	return u.String(), nil
}

// putWhole stores an object with one request.
func (s *Store) putWhole(ctx context.Context, key string, r io.Reader, size int64) error {
	if size == 0 {
		r = bytes.NewReader(nil) // a body of no known end would be chunked
	}
	_, err := s.core.PutObject(ctx, s.bucket, key, r, size, "", "", putOptions())
	if err != nil {
		return fmt.Errorf("S3: put object: %w", err)
	}
	return nil
}

func putOptions() minio.PutObjectOptions {
	return minio.PutObjectOptions{ContentType: "application/octet-stream"}
}
