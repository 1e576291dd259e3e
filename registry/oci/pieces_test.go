package oci

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/distribution/distribution/v3"
)

// memoryUpload is a writer of the core that keeps what it is given.
type memoryUpload struct {
	distribution.BlobWriter
	bytes.Buffer
	calls int
}

// Write implements io.Writer.
func (m *memoryUpload) Write(p []byte) (int, error) {
	m.calls++
	return m.Buffer.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (m *memoryUpload) ReadFrom(io.Reader) (int64, error) { return 0, errors.New("the core copies") }

// An upload is taken in large pieces; what came before it was cut is kept, and the cut is no end.
func TestUploadInPieces(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 40_000)
	cut := errors.New("cut")
	for name, tc := range map[string]struct {
		src io.Reader
		err error
	}{
		"whole":                 {strings.NewReader(content), nil},
		"small reads":           {iotest.HalfReader(strings.NewReader(content)), nil},
		"end with the last one": {iotest.DataErrReader(strings.NewReader(content)), nil},
		"cut":                   {io.MultiReader(strings.NewReader(content), iotest.ErrReader(cut)), cut},
		"cut as net/http says":  {io.MultiReader(strings.NewReader(content), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			to := &memoryUpload{}
			n, err := (&countedWriter{BlobWriter: to}).ReadFrom(tc.src)
			if !errors.Is(err, tc.err) || n != int64(len(content)) || to.String() != content {
				t.Errorf("%d bytes, %v; %d were kept", n, err, to.Len())
			}
			if to.calls > 6 {
				t.Errorf("%d calls", to.calls)
			}
		})
	}
}
