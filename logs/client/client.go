// Package client is the caller's end of the log query API (logs/server): for cis/control, which reads logs of instances
// whose files are gone from the node, and for the command line.
//
// It keeps the error classes of package problem across the wire. It reads no files and no store.
package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/logs"
	"cumulet.io/registry/hubtoken"
)

// Config says where the service is and how to prove who calls.
type Config struct {
	// BaseURL is "http(s)://host[:port][/prefix]", without the /v1.
	BaseURL string
	// Source gives the hubtoken of each request, audience logs. Required.
	Source hubtoken.Source
	// CAPEM are certificates to trust beside the system's; used for https.
	CAPEM []byte
	// HTTPClient makes the requests; nil means one of the client's own. Its Timeout must be zero: streams go on.
	HTTPClient *http.Client
}

// Client calls the service. Safe for concurrent use.
type Client struct {
	base   *url.URL
	source hubtoken.Source
	http   *http.Client
}

var (
	_ logs.Store    = (*Client)(nil)
	_ cis.LogReader = (*Client)(nil)
)

// headTime bounds the wait for the head of an answer; maxPage bounds a page.
const (
	headTime = 45 * time.Second
	maxPage  = 512 << 20
)

// New makes a client. It does not connect.
func New(c Config) (*Client, error) {
	base, err := url.Parse(c.BaseURL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.User != nil {
		return nil, errors.New("log client: the address must be http(s)://host[:port], without user and password")
	}
	if c.Source == nil {
		return nil, errors.New("log client: no source of tokens")
	}
	h := c.HTTPClient
	if h == nil {
		tr := &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: headTime, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}
		if len(c.CAPEM) > 0 {
			roots, err := x509.SystemCertPool()
			if err != nil {
				roots = x509.NewCertPool()
			}
			if !roots.AppendCertsFromPEM(c.CAPEM) {
				return nil, errors.New("log client: no certificate in CAPEM")
			}
			tr.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		}
		h = &http.Client{Transport: tr}
	}
	return &Client{base: base, source: c.Source, http: h}, nil
}

// get sends a request; an answer that is not 200 is an error of its class.
func (c *Client) get(ctx context.Context, org, accept string, v url.Values) (io.ReadCloser, error) {
	const op = "read stored logs"
	token, err := c.source.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	u := c.base.JoinPath("v1", "orgs", url.PathEscape(org), "logs")
	u.RawQuery = v.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", accept)
	otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", op, ctx.Err())
		}
		return nil, fmt.Errorf("%s: %w", op, errors.Join(problem.New(problem.ErrUnavailable, "the log service cannot be reached"), err))
	}
	if resp.StatusCode != http.StatusOK {
		err := problem.Read(resp)
		return nil, fmt.Errorf("%s: %w", op, errors.Join(err, resp.Body.Close()))
	}
	return resp.Body, nil
}

// Logs implements cis.LogReader from the store: the latest attempt that has lines, or with Previous the one before. It
// gives what is stored and ends, also with Follow: it is asked about containers that have ended, which the store cannot
// know. No lines at all are problem.ErrNotFound.
func (c *Client) Logs(ctx context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error) {
	req.Follow = false
	return c.Text(ctx, org, id, req)
}

// Text is Logs that with Follow goes on with what arrives, until ctx ends.
func (c *Client) Text(ctx context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error) {
	v := url.Values{"instance": {id}, "container": {req.Container}, "attempt": {"latest"}}
	if req.Previous {
		v.Set("attempt", "previous")
	}
	if req.Follow {
		v.Set("follow", "true")
	}
	if req.Timestamps {
		v.Set("timestamps", "true")
	}
	if req.Tail != nil {
		v.Set("tail", strconv.FormatInt(max(*req.Tail, 0), 10))
	}
	if !req.Since.IsZero() {
		v.Set("from", req.Since.UTC().Format(time.RFC3339Nano))
	}
	if req.LimitBytes > 0 {
		v.Set("limitBytes", strconv.FormatInt(req.LimitBytes, 10))
	}
	return c.get(ctx, org, "text/plain", v)
}

// values gives the parameters of q.
func values(q logs.Query) url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("instance", q.Instance)
	set("container", q.Container)
	set("stream", string(q.Stream))
	set("contains", q.Contains)
	set("order", string(q.Order))
	set("cursor", string(q.After))
	if q.Attempt != nil {
		set("attempt", strconv.Itoa(*q.Attempt))
	}
	if !q.From.IsZero() {
		set("from", q.From.UTC().Format(time.RFC3339Nano))
	}
	if !q.To.IsZero() {
		set("to", q.To.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit != 0 {
		set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// Search implements logs.Store.
func (c *Client) Search(ctx context.Context, q logs.Query) (logs.Page, error) {
	q, err := q.WithDefaults()
	if err != nil {
		return logs.Page{}, err
	}
	body, err := c.get(ctx, q.Org, "application/json", values(q))
	var p *problem.Error
	if errors.As(err, &p) && p.Field == "cursor" {
		return logs.Page{}, errors.Join(logs.ErrBadCursor, err)
	}
	if err != nil {
		return logs.Page{}, err
	}
	defer body.Close() //nolint:errcheck // read only
	var page logs.Page
	if err := json.NewDecoder(io.LimitReader(body, maxPage)).Decode(&page); err != nil {
		return logs.Page{}, fmt.Errorf("read stored logs: %w", err)
	}
	return page, nil
}

// Stream gives every record of q in order; with q.Limit, so many at most. With follow it goes on with what arrives until
// ctx ends. It ends with an error when the answer was not whole.
func (c *Client) Stream(ctx context.Context, q logs.Query, follow bool) iter.Seq2[logs.Record, error] {
	return func(yield func(logs.Record, error) bool) {
		v := values(q)
		if follow {
			v.Set("follow", "true")
		}
		body, err := c.get(ctx, q.Org, "application/x-ndjson", v)
		if err != nil {
			yield(logs.Record{}, err)
			return
		}
		defer body.Close() //nolint:errcheck // read only
		d := json.NewDecoder(bufio.NewReader(body))
		for {
			var r logs.Record
			switch err := d.Decode(&r); {
			case errors.Is(err, io.EOF):
				return
			case err != nil:
				yield(logs.Record{}, fmt.Errorf("read stored logs: %w", err))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}
