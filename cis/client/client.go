// Package client is the caller's end of the container instance service's HTTP API: it implements the interfaces of
// package cis over the network.
//
// It retries what is safe to repeat, keeps the error classes of package problem across the wire and resumes watches by
// itself. It decides nothing about instances and stores nothing; cis/server is the other end.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"

	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// Config says where the service is and how to prove who calls.
type Config struct {
	// BaseURL is "http(s)://host[:port][/prefix]", without the /v1.
	BaseURL string
	// Source gives the hubtoken of each request, audience cis. Required.
	Source hubtoken.Source
	// CAPEM are certificates to trust beside the system's, PEM; used for https.
	CAPEM []byte
	// HTTPClient makes the plain requests; nil means one of the client's own. Its Timeout must be zero, since streams
	// go on for ever. Exec and port-forward dial by themselves, with CAPEM.
	HTTPClient *http.Client
	// Logger hears of retries; nil means slog.Default.
	Logger *slog.Logger
}

const (
	// tryTimeout bounds one try of a call that is not a stream.
	tryTimeout = 30 * time.Second
	// maxTries bounds the tries of one call.
	maxTries = 6
	// firstBackoff doubles up to maxBackoff, each with up to half of it in jitter.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 3 * time.Second
	// maxRetryAfter bounds what a server's advice can make us wait.
	maxRetryAfter = 10 * time.Second
	// maxBody bounds an answer that is read whole, and one line of a watch.
	maxBody = 256 << 20
)

// Client calls the service. Safe for concurrent use.
type Client struct {
	base    *url.URL
	source  hubtoken.Source
	http    *http.Client
	upgrade *http.Client // HTTP/1.1 alone, for connections that become something else
	caPEM   []byte
	log     *slog.Logger
}

// New makes a client. It does not connect.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("cis client: address: %w", err)
	}
	if (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" || base.User != nil {
		return nil, errors.New("cis client: the address must be http(s)://host[:port], without user and password")
	}
	if cfg.Source == nil {
		return nil, errors.New("cis client: no source of tokens")
	}
	var roots *x509.CertPool
	if len(cfg.CAPEM) > 0 {
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(cfg.CAPEM) {
			return nil, errors.New("cis client: CAPEM holds no certificate")
		}
	}
	c := &Client{base: base, source: cfg.Source, http: cfg.HTTPClient, caPEM: cfg.CAPEM, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.http == nil {
		c.http = &http.Client{Transport: transport(roots, false)}
	}
	c.upgrade = &http.Client{Transport: transport(roots, true)}
	return c, nil
}

func transport(roots *x509.CertPool, http1 bool) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // documented to be one
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	t.MaxIdleConnsPerHost = 64
	if http1 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
		t.DisableKeepAlives = true
	}
	return t
}

// Close closes idle connections. Streams that are open go on.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.upgrade.CloseIdleConnections()
}

// url joins escaped path elements to the base address.
func (c *Client) url(query url.Values, elements ...string) *url.URL {
	for i := range elements {
		elements[i] = url.PathEscape(elements[i])
	}
	u := c.base.JoinPath(elements...)
	u.RawQuery = query.Encode()
	return u
}

func (c *Client) orgURL(query url.Values, org string, elements ...string) *url.URL {
	return c.url(query, append([]string{"v1", "orgs", org}, elements...)...)
}

// request makes a request with a fresh token.
func (c *Client) request(ctx context.Context, method string, u *url.URL, body []byte) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	token, err := c.source.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(req.Header))
	return req, nil
}

// call makes a call whose answer is read whole into out (nil: dropped), repeating it on faults that another try may
// mend. Every call made with it is idempotent. It returns the status of the answer.
func (c *Client) call(ctx context.Context, op, method string, u *url.URL, in, out any) (int, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return 0, fmt.Errorf("%s: %w", op, err)
		}
	}
	var status int
	err := c.retry(ctx, op, func() (time.Duration, error) {
		try, cancel := context.WithTimeout(ctx, tryTimeout)
		defer cancel()
		resp, after, err := c.send(try, c.http, method, u, body, nil)
		if err != nil {
			return after, err
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end or failed
		status = resp.StatusCode
		if out == nil {
			return 0, nil
		}
		limited := &io.LimitedReader{R: resp.Body, N: maxBody}
		if err := json.NewDecoder(limited).Decode(out); err != nil {
			if limited.N <= 0 {
				return 0, problem.New(problem.ErrTooLarge, "the answer is larger than %d bytes", maxBody)
			}
			return 0, &faultError{fmt.Errorf("read the answer: %w", err)}
		}
		return 0, nil
	})
	return status, err
}

// send makes one try. The caller closes the body of the answer, whose status is below 400.
func (c *Client) send(ctx context.Context, hc *http.Client, method string, u *url.URL, body []byte, header http.Header) (*http.Response, time.Duration, error) {
	req, err := c.request(ctx, method, u, body)
	if err != nil {
		return nil, 0, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := hc.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the address is of no interest, and its query may be
		}
		return nil, 0, &faultError{fmt.Errorf("%s: %w", c.base.Host, err)}
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close() //nolint:errcheck // read as far as it matters
		err := problem.Read(resp)
		if resp.StatusCode >= http.StatusInternalServerError && resp.StatusCode != http.StatusNotImplemented {
			err = &faultError{err}
		}
		return nil, retryAfter(resp), err
	}
	return resp, 0, nil
}

// faultError marks an error that another try may mend.
type faultError struct{ error }

func (e *faultError) Unwrap() error { return e.error }

func retryAfter(resp *http.Response) time.Duration {
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}

// retry tries until f succeeds, fails for good, or the tries are used up.
func (c *Client) retry(ctx context.Context, op string, f func() (time.Duration, error)) error {
	backoff := firstBackoff
	for try := 1; ; try++ {
		after, err := f()
		if err == nil {
			return nil
		}
		var fault *faultError
		if !errors.As(err, &fault) {
			return fmt.Errorf("%s: %w", op, err)
		}
		if ctx.Err() != nil || try == maxTries {
			return fmt.Errorf("%s: %w", op, unavailable(ctx, fault.error))
		}
		c.log.DebugContext(ctx, "call failed, trying again", "op", op, "try", try, "error", fault.error)
		if err := pause(ctx, max(after, jitter(backoff))); err != nil {
			return fmt.Errorf("%s: %w", op, unavailable(ctx, fault.error))
		}
		backoff = min(backoff*2, maxBackoff)
	}
}

// unavailable gives a fault of the network the class ErrUnavailable; a cancelled caller gets its own error.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	var p *problem.Error
	if errors.As(err, &p) {
		return err
	}
	return problem.New(problem.ErrUnavailable, "the container instance service does not answer: %v", err)
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
