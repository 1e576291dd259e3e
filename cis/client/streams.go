package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"time"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// Logs implements cis.LogReader. A stream that breaks ends with an error other than io.EOF, never short without one.
func (c *Client) Logs(ctx context.Context, org, id string, req cis.LogRequest) (io.ReadCloser, error) {
	q := url.Values{}
	for name, on := range map[string]bool{"previous": req.Previous, "follow": req.Follow, "timestamps": req.Timestamps} {
		if on {
			q.Set(name, "true")
		}
	}
	if req.Tail != nil {
		q.Set("tail", strconv.FormatInt(*req.Tail, 10))
	}
	if !req.Since.IsZero() {
		q.Set("since", req.Since.UTC().Format(time.RFC3339Nano))
	}
	if req.LimitBytes > 0 {
		q.Set("limitBytes", strconv.FormatInt(req.LimitBytes, 10))
	}
	var body io.ReadCloser
	err := c.retry(ctx, "read log", func() (time.Duration, error) {
		resp, after, err := c.send(ctx, c.http, http.MethodGet, c.orgURL(q, org, "instances", id, "containers", req.Container, "log"), nil, nil)
		if err != nil {
			return after, err
		}
		body = resp.Body
		return 0, nil
	})
	return body, err
}

// PortForward implements cis.PortForwarder: an HTTP/1.1 connection that becomes the raw one. The connection has
// CloseWrite, to end one direction; it ends with ctx.
func (c *Client) PortForward(ctx context.Context, org, id string, port uint16) (io.ReadWriteCloser, error) {
	const op = "port-forward"
	var conn net.Conn
	trace := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conn = i.Conn }})
	resp, _, err := c.send(trace, c.upgrade, http.MethodPost,
		c.orgURL(url.Values{"port": {strconv.Itoa(int(port))}}, org, "instances", id, "portforward"), nil,
		http.Header{"Connection": {"Upgrade"}, "Upgrade": {"tcp"}})
	if err != nil {
		var fault *faultError
		if errors.As(err, &fault) {
			err = unavailable(ctx, fault.error)
		}
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		return nil, errors.Join(fmt.Errorf("%s: %w", op, problem.New(problem.ErrUnavailable,
			"something between here and the service does not let connections be upgraded (%s)", resp.Status)), resp.Body.Close())
	}
	f := &forwarded{ReadWriteCloser: rw, conn: conn}
	f.stop = context.AfterFunc(ctx, func() { rw.Close() }) //nolint:errcheck // it ends reading and writing
	return f, nil
}

type forwarded struct {
	io.ReadWriteCloser
	conn net.Conn
	stop func() bool
}

// CloseWrite tells the other side that nothing more is sent; reading goes on.
func (f *forwarded) CloseWrite() error {
	if cw, ok := f.conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (f *forwarded) Close() error {
	f.stop()
	return f.ReadWriteCloser.Close()
}
