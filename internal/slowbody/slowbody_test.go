package slowbody_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/internal/slowbody"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 300 * time.Millisecond

// send sends what body writes, which may go on until stop, and tells what the handler read.
func send(t *testing.T, body func(w io.Writer, stop <-chan struct{}) error) (read int64, err error) {
	t.Helper()
	type result struct {
		n   int64
		err error
	}
	results := make(chan result, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, slowbody.Reader(w, r, patience))
		results <- result{n, err}
	}))
	defer srv.Close()
	pr, pw := io.Pipe()
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() { _ = pw.CloseWithError(body(pw, stop)) }) //nolint:errcheck // always nil
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL, pr)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := srv.Client().Do(req); err == nil {
		_ = resp.Body.Close() //nolint:errcheck // what the handler read counts
	}
	_ = pr.Close() //nolint:errcheck // always nil
	select {
	case got := <-results:
		return got.n, got.err
	case <-time.After(30 * time.Second):
		t.Fatal("the handler reads on")
		return 0, nil
	}
}

// A byte now and then does not hold the connection.
func TestDripping(t *testing.T) {
	began := time.Now()
	n, err := send(t, func(w io.Writer, _ <-chan struct{}) error {
		for range 200 {
			if _, err := w.Write([]byte("x")); err != nil {
				return err
			}
			time.Sleep(patience / 10)
		}
		return nil
	})
	if !errors.Is(err, slowbody.ErrSlow) || n >= 200 || time.Since(began) > 20*patience {
		t.Errorf("%d bytes, %v, after %v", n, err, time.Since(began))
	}
}

func TestStalled(t *testing.T) {
	n, err := send(t, func(w io.Writer, stop <-chan struct{}) error {
		_, err := w.Write(bytes.Repeat([]byte("x"), 3*slowbody.Least))
		<-stop
		return err
	})
	if !errors.Is(err, slowbody.ErrSlow) || n != 3*slowbody.Least {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// What takes longer than the patience and comes steadily is received whole.
func TestSteady(t *testing.T) {
	const pieces = 12
	n, err := send(t, func(w io.Writer, _ <-chan struct{}) error {
		for range pieces {
			if _, err := w.Write(bytes.Repeat([]byte("x"), slowbody.Least)); err != nil {
				return err
			}
			time.Sleep(patience / 4)
		}
		return nil
	})
	if err != nil || n != pieces*slowbody.Least {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// A recorder has no connection whose deadline could be set.
func TestRecorder(t *testing.T) {
	r := httptest.NewRequest(http.MethodPut, "/", bytes.NewReader([]byte("text")))
	body := slowbody.Reader(httptest.NewRecorder(), r, patience)
	if got, err := io.ReadAll(body); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}
