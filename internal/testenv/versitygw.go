package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cumulet.io/internal/proc"
)

// The credentials of every S3 server that S3 starts, and the bucket that it has.
const (
	S3AccessKey = "cumulet"
	S3SecretKey = "cumulet-test-secret"
	S3Bucket    = "blobs"
)

// S3 starts an S3 server of the test's own with one empty bucket, and returns its URL and the directory whose files are
// its objects.
func S3(t testing.TB) (url, dir string) {
	t.Helper()
	program := Tool(t, "versitygw")
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, S3Bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	server := proc.Child{
		Name: "versitygw", Path: program, Dir: t.TempDir(), Log: logger(t), Output: log, DieWithParent: true,
		Env:  append(os.Environ(), "ROOT_ACCESS_KEY="+S3AccessKey, "ROOT_SECRET_KEY="+S3SecretKey),
		Args: []string{"--port", address, "--region", "us-east-1", "--quiet", "posix", dir},
	}
	stop := start(server.Run)
	t.Cleanup(func() {
		if err := errors.Join(stop(), log.Close()); err != nil {
			t.Errorf("versitygw: %v", err)
		}
		if t.Failed() {
			t.Logf("the S3 server's log ends:\n%s", tail(log.Name()))
		}
	})
	Eventually(t, startTimeout, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("the S3 server does not answer: %w", err)
		}
		return conn.Close()
	})
	return "http://" + address, dir
}
