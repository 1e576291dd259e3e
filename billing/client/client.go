// Package client is the caller's end of the billing HTTP API.
//
// It keeps the error classes of package problem across the wire. It retries nothing: every call is quick to repeat, and
// a reconciliation is not to be made twice by itself.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"cumulet.io/billing/ledger"
	"cumulet.io/billing/price"
	"cumulet.io/billing/reconcile"
	"cumulet.io/billing/server"
	"cumulet.io/billing/statement"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// Bounds of one call.
const (
	timeout      = 10 * time.Minute // a reconciliation reads every event of a period
	maxBodyBytes = 512 << 20
)

// Config says where the service is and how to prove who calls.
type Config struct {
	// BaseURL is "http(s)://host[:port][/prefix]", without the /v1.
	BaseURL string
	// Source gives the hubtoken of each request, audience billing. Required.
	Source hubtoken.Source
	// HTTPClient makes the requests; nil means http.DefaultClient.
	HTTPClient *http.Client
}

// Client calls the service. Safe for concurrent use.
type Client struct {
	base *url.URL
	cfg  Config
}

// New makes a client. It does not connect.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("billing client: address: %w", err)
	}
	if (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" || base.User != nil {
		return nil, errors.New("billing client: the address must be http(s)://host[:port], without user and password")
	}
	if cfg.Source == nil {
		return nil, errors.New("billing client: no source of tokens")
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = http.DefaultClient
	}
	return &Client{base: base, cfg: cfg}, nil
}

// Period is a month ("2026-11"), or hours From to To ("2026-11-22T10:00:00Z" or "2026-11-22"); zero is the current month.
type Period struct {
	Month, From, To string
}

func (p Period) query() url.Values {
	q := url.Values{}
	for name, v := range map[string]string{"period": p.Month, "from": p.From, "to": p.To} {
		if v != "" {
			q.Set(name, v)
		}
	}
	return q
}

// Bill gives an org's statement.
func (c *Client) Bill(ctx context.Context, org string, p Period, g statement.Group) (*statement.Statement, error) {
	q := p.query()
	if g != statement.Everything {
		q.Set("group", string(g))
	}
	var st statement.Statement
	if err := c.call(ctx, http.MethodGet, q, nil, &st, "v1", "orgs", org, "bill"); err != nil {
		return nil, fmt.Errorf("get bill: %w", err)
	}
	return &st, nil
}

// FOCUS copies an org's FOCUS 1.2 export to w. What was written before an error is not the whole.
func (c *Client) FOCUS(ctx context.Context, org string, p Period, w io.Writer) error {
	resp, cancel, err := c.send(ctx, http.MethodGet, p.query(), nil, "v1", "orgs", org, "bill.focus.csv")
	if err != nil {
		return fmt.Errorf("get FOCUS export: %w", err)
	}
	defer cancel()
	defer resp.Body.Close() //nolint:errcheck // read to its end or failed
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("get FOCUS export: %w", err)
	}
	return nil
}

// Reconcile has an org's bill proved, or all orgs' for "". The error tells that it could not be done; whether the bills
// add up is in the answer: see OK, and Report.Err.
func (c *Client) Reconcile(ctx context.Context, org string, p Period) (*server.Reconciliation, error) {
	in := map[string]string{}
	for name, v := range map[string]string{"org": org, "period": p.Month, "from": p.From, "to": p.To} {
		if v != "" {
			in[name] = v
		}
	}
	var out server.Reconciliation
	if err := c.call(ctx, http.MethodPost, nil, in, &out, "v1", "reconcile"); err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	return &out, nil
}

// Err is the first report's error, nil when all bills add up.
func Err(r *server.Reconciliation) error {
	for _, rep := range r.Reports {
		if err := rep.Err(); err != nil {
			return err
		}
	}
	if !r.OK {
		return reconcile.ErrDiffers
	}
	return nil
}

// PriceBook gives the book in force.
func (c *Client) PriceBook(ctx context.Context) (*price.Book, error) {
	var b price.Book
	if err := c.call(ctx, http.MethodGet, nil, nil, &b, "v1", "pricebook"); err != nil {
		return nil, fmt.Errorf("get price book: %w", err)
	}
	return &b, nil
}

// Quarantine gives a page of the lines that were not taken; after is "" or Next of an earlier page.
func (c *Client) Quarantine(ctx context.Context, after string, limit int) (*ledger.QuarantinePage, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if after != "" {
		q.Set("after", after)
	}
	var page ledger.QuarantinePage
	if err := c.call(ctx, http.MethodGet, q, nil, &page, "v1", "quarantine"); err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	return &page, nil
}

// Months tells which months are closed.
func (c *Client) Months(ctx context.Context) (*server.Months, error) {
	var m server.Months
	if err := c.call(ctx, http.MethodGet, nil, nil, &m, "v1", "months"); err != nil {
		return nil, fmt.Errorf("get months: %w", err)
	}
	return &m, nil
}

// CloseMonth closes a month, as "2026-11".
func (c *Client) CloseMonth(ctx context.Context, month string) (*server.Months, error) {
	var m server.Months
	if err := c.call(ctx, http.MethodPost, nil, nil, &m, "v1", "months", month, "close"); err != nil {
		return nil, fmt.Errorf("close month %s: %w", month, err)
	}
	return &m, nil
}

func (c *Client) call(ctx context.Context, method string, q url.Values, in, out any, path ...string) error {
	resp, cancel, err := c.send(ctx, method, q, in, path...)
	if err != nil {
		return err
	}
	defer cancel()
	defer resp.Body.Close() //nolint:errcheck // read to its end or failed
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBodyBytes)).Decode(out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// send makes a request; the caller closes the body and calls cancel.
func (c *Client) send(ctx context.Context, method string, q url.Values, in any, path ...string) (*http.Response, context.CancelFunc, error) {
	var r io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, nil, err
		}
		r = bytes.NewReader(b)
	}
	for i := range path {
		path[i] = url.PathEscape(path[i])
	}
	u := c.base.JoinPath(path...)
	u.RawQuery = q.Encode()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	resp, err := c.do(ctx, method, u, r)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return resp, cancel, nil
}

func (c *Client) do(ctx context.Context, method string, u *url.URL, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	token, err := c.cfg.Source.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.cfg.HTTPClient.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the address is no news to the caller
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", c.base.Host, err)
		}
		return nil, problem.New(problem.ErrUnavailable, "the billing service at %s does not answer: %v", c.base.Host, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close() //nolint:errcheck // read as far as it matters
		return nil, problem.Read(resp)
	}
	return resp, nil
}
