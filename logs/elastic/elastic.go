// Package elastic is the log store over the Elasticsearch API: a real cluster or logs/embedded.
//
// It searches what logs/collect ships and answers logs.Store and the billing worker's reading of meter events. It
// never writes documents; Setup installs the index templates that a real cluster needs. Tenancy is a filter of every
// query, made here and not by the caller.
package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/elastic/go-elasticsearch/v8"
	"github.com/elastic/go-elasticsearch/v8/esapi"

	"cumulet.io/internal/problem"
)

// Index patterns, and the names within.
const (
	LogIndices   = "logs-*"
	MeterIndices = "meter-*"
)

// Options of New.
type Options struct {
	// Addresses are base URLs. Required.
	Addresses []string
	// User and Password are for basic authentication.
	User, Password string
	// CACert is a PEM bundle to trust instead of the system's; may be nil.
	CACert []byte
	// Timeout bounds one request; 0 means 30 s.
	Timeout time.Duration
	// Transport is for tests and telemetry; nil means Go's default.
	Transport http.RoundTripper
}

// Store is the client. Safe for concurrent use.
type Store struct {
	c       *elasticsearch.Client
	timeout time.Duration
}

// New makes a client; it asks the server nothing yet.
func New(o Options) (*Store, error) {
	if len(o.Addresses) == 0 {
		return nil, errors.New("log store client: no address")
	}
	c, err := elasticsearch.NewClient(elasticsearch.Config{Addresses: o.Addresses, Username: o.User, Password: o.Password,
		CACert: o.CACert, Transport: o.Transport, RetryOnStatus: []int{502, 503, 504}, MaxRetries: 2, DisableMetaHeader: true,
		RetryBackoff: func(i int) time.Duration { return time.Duration(i) * 200 * time.Millisecond }})
	if err != nil {
		return nil, fmt.Errorf("log store client: %w", err)
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	return &Store{c: c, timeout: o.Timeout}, nil
}

// maxAnswer bounds what is read of one answer.
const maxAnswer = 256 << 20

// errTooLarge is an answer that asks for a smaller page.
var errTooLarge = errors.New("the page is too large")

// answer reads an answer into to, or turns it into an error: problem.ErrUnavailable for what may pass.
func answer(op string, resp *esapi.Response, err error, to any) error {
	if err != nil {
		return fmt.Errorf("%s: %w", op, errors.Join(problem.New(problem.ErrUnavailable, "the log store cannot be reached"), err))
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if !resp.IsError() {
		if to == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
			return err
		}
		d := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
		d.UseNumber()
		if err := d.Decode(to); err != nil {
			return fmt.Errorf("%s: %w", op, errors.Join(problem.New(problem.ErrUnavailable, "the log store's answer was cut"), err))
		}
		return nil
	}
	var e struct {
		Error struct{ Type, Reason string }
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) //nolint:errcheck // what was read is enough to say
	_ = json.Unmarshal(body, &e)                             //nolint:errcheck // an empty reason then
	said := fmt.Errorf("%s: the log store answered %d %s: %.300s", op, resp.StatusCode, e.Error.Type, e.Error.Reason)
	switch {
	case e.Error.Type == "circuit_breaking_exception":
		return errors.Join(errTooLarge, said)
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		return errors.Join(problem.New(problem.ErrUnavailable, "the log store is overloaded or not ready"), said)
	}
	return said
}

// hit is one document of a search.
type hit struct {
	Index  string          `json:"_index"`
	ID     string          `json:"_id"`
	Source json.RawMessage `json:"_source"`
	Sort   []any           `json:"sort"`
}

type object = map[string]any

// search runs one search on indices; a partial answer is an error.
func (s *Store) search(ctx context.Context, op, indices string, body object) ([]hit, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	resp, err := s.c.Search(s.c.Search.WithContext(ctx), s.c.Search.WithIndex(indices), s.c.Search.WithBody(bytes.NewReader(b)),
		s.c.Search.WithIgnoreUnavailable(true))
	var a struct {
		TimedOut bool `json:"timed_out"`
		Shards   struct {
			Failed int `json:"failed"`
		} `json:"_shards"`
		Hits struct {
			Hits []hit `json:"hits"`
		} `json:"hits"`
	}
	if err := answer(op, resp, err, &a); err != nil {
		return nil, err
	}
	if a.TimedOut || a.Shards.Failed > 0 {
		return nil, fmt.Errorf("%s: %w", op, problem.New(problem.ErrUnavailable, "a part of the log store did not answer"))
	}
	return a.Hits.Hits, nil
}

// refresh makes what is acknowledged searchable.
func (s *Store) refresh(ctx context.Context, op, indices string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.c.Indices.Refresh(s.c.Indices.Refresh.WithContext(ctx), s.c.Indices.Refresh.WithIndex(indices),
		s.c.Indices.Refresh.WithIgnoreUnavailable(true))
	return answer(op, resp, err, nil)
}

// Ready asks the server whether it is there.
func (s *Store) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.c.Info(s.c.Info.WithContext(ctx))
	return answer("log store", resp, err, nil)
}
