package charts

import (
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"os"

	"cumulet.io/internal/problem"
)

// form is an upload as a form: chart may come after prov, so it is put aside.
type form struct {
	chart *os.File
	prov  []byte
}

func (f *form) close() {
	if f.chart != nil {
		_ = f.chart.Close() //nolint:errcheck // it is removed
		_ = os.Remove(f.chart.Name())
	}
}

// readForm reads the parts chart and prov, and passes over at most a few others.
func readForm(body io.Reader, boundary string) (_ *form, err error) {
	f := &form{}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if boundary == "" {
		return nil, problem.Invalid("Content-Type", "must have a boundary", "")
	}
	reader := multipart.NewReader(io.LimitReader(body, MaxArchiveBytes+MaxProvBytes+1<<20), boundary)
	for range 16 {
		part, err := reader.NextPart()
		if errors.Is(err, io.EOF) {
			return f, nil
		}
		if err != nil {
			return nil, problem.New(problem.ErrInvalid, "the form cannot be read to its end, or is too large")
		}
		switch {
		case part.FormName() == "chart" && f.chart == nil:
			if f.chart, err = os.CreateTemp("", "chart-*.tgz"); err != nil {
				return nil, fmt.Errorf("read chart: %w", err)
			}
			if _, err := io.Copy(f.chart, io.LimitReader(part, MaxArchiveBytes+1)); err != nil {
				return nil, problem.New(problem.ErrInvalid, "the form cannot be read to its end, or is too large")
			}
			if _, err := f.chart.Seek(0, io.SeekStart); err != nil {
				return nil, fmt.Errorf("read chart: %w", err)
			}
		case part.FormName() == "prov" && f.prov == nil:
			if f.prov, err = readProv(part); err != nil {
				return nil, err
			}
		}
	}
	return nil, problem.New(problem.ErrInvalid, "the form has too many parts")
}
