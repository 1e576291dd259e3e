package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// watchIdle is how long a watch may be silent before the connection is taken for dead; the server writes a bookmark
// every 15 seconds.
const watchIdle = 50 * time.Second

// errWatchCut is the cause of a watch's end that is mended by asking again.
var errWatchCut = errors.New("the watch was cut")

// Watch implements cis.Watcher. Broken connections are resumed from the last cursor, for as long as ctx lasts. It
// ends with ctx's error, or with the first error that asking again does not mend: ErrGone, ErrNotFound, ErrInvalid,
// ErrForbidden, ErrUnauthenticated.
func (c *Client) Watch(ctx context.Context, org, node, cursor string) iter.Seq2[cis.WatchItem, error] {
	return func(yield func(cis.WatchItem, error) bool) {
		backoff := firstBackoff
		for {
			stopped := false
			err := c.watchOnce(ctx, org, node, cursor, func(item cis.WatchItem) bool {
				backoff = firstBackoff
				cursor = item.Cursor
				stopped = !yield(item, nil)
				return !stopped
			})
			var fault *faultError
			switch {
			case stopped:
				return
			case ctx.Err() != nil:
				yield(cis.WatchItem{}, ctx.Err())
				return
			case !errors.As(err, &fault):
				yield(cis.WatchItem{}, fmt.Errorf("watch: %w", err))
				return
			}
			c.log.DebugContext(ctx, "watch broke, resuming", "org", org, "cursor", cursor, "error", fault.error)
			if pause(ctx, jitter(backoff)) != nil {
				yield(cis.WatchItem{}, ctx.Err())
				return
			}
			backoff = min(backoff*2, maxBackoff)
		}
	}
}

// watchOnce reads one connection's stream until it breaks or take returns false; the error is a faultError when
// asking again may mend it.
func (c *Client) watchOnce(ctx context.Context, org, node, cursor string, take func(cis.WatchItem) bool) error {
	q := url.Values{"specs": {"once"}}
	if node != "" {
		q.Set("node", node)
	}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(watchIdle, cancel)
	defer idle.Stop()

	resp, _, err := c.send(ctx, c.http, http.MethodGet, c.orgURL(q, org, "watch"), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or failed
	r := bufio.NewReaderSize(resp.Body, 64<<10)
	specs := map[string]cis.Spec{} // of the live instances that this connection has told of
	for {
		line, err := readLine(r, maxBody)
		if errors.Is(err, problem.ErrTooLarge) {
			return err
		}
		if err != nil {
			return &faultError{fmt.Errorf("%w: %w", errWatchCut, err)}
		}
		idle.Reset(watchIdle)
		var item struct {
			cis.WatchItem
			Error *problem.Document `json:"error"`
		}
		if err := json.Unmarshal(line, &item); err != nil {
			return &faultError{fmt.Errorf("%w: %w", errWatchCut, err)}
		}
		if item.Error != nil {
			return c.streamError(resp.Request, item.Error)
		}
		if in := item.Instance; in != nil {
			if in.Spec.Containers == nil { // as before
				spec, ok := specs[in.ID]
				if !ok {
					return &faultError{fmt.Errorf("%w: instance %s came without its spec", errWatchCut, in.ID)}
				}
				in.Spec = spec
			}
			if specs[in.ID] = in.Spec; in.Status.Phase.Final() {
				delete(specs, in.ID)
			}
		}
		if !take(item.WatchItem) {
			return nil
		}
	}
}

// streamError is the error that a stream's last line carries.
func (c *Client) streamError(req *http.Request, d *problem.Document) error {
	body, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	err = problem.Read(&http.Response{StatusCode: d.Status, Request: req, Body: io.NopCloser(bytes.NewReader(body))})
	if d.Status >= http.StatusInternalServerError {
		return &faultError{err}
	}
	return err
}

// readLine reads up to a newline, at most limit bytes. A last line without newline is io.ErrUnexpectedEOF: it was cut.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > limit:
			return nil, problem.New(problem.ErrTooLarge, "a line of the stream is longer than %d bytes", limit)
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}
