package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"math"
	"net/http"
	"time"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// watchWrite bounds one write to a watcher: one that does not read loses its connection, and resumes by cursor.
const watchWrite = 30 * time.Second

// watchBuffer holds the lines of changes that were committed together, which then go out in one write.
const watchBuffer = 32 << 10

// watchLine is one line of a watch: an item, or the problem that ended it.
type watchLine struct {
	cis.WatchItem
	Error *problem.Document `json:"error,omitempty"`
}

// watch streams changes, one JSON document a line. It ends with the token: a client comes back with a new one.
func (s *server) watch(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "node", "cursor", "specs")
	node, cursor, specs := q.Text("node", 253), q.Text("cursor", 128), q.Text("specs", 8)
	if specs != "" && specs != "all" && specs != "once" {
		q.Fail("specs", "must be all or once", specs)
	}
	if q.Err() != nil {
		return q.Err()
	}
	ctx := r.Context()
	if exp := hubtoken.FromContext(ctx).ExpiresAt; exp != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, exp.Sub(s.cfg.Now()))
		defer cancel()
	}
	next, stop := iter.Pull2(s.svc.Watch(ctx, r.PathValue("org"), node, cursor))
	defer stop()
	item, err, ok := next()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rc := http.NewResponseController(w)
	buffer := bufio.NewWriterSize(w, watchBuffer)
	enc := json.NewEncoder(buffer)
	sent := map[string]bool{} // the live instances whose specs the reader has
	for ; ok; item, err, ok = next() {
		if in := item.Instance; specs == "once" && in != nil {
			if sent[in.ID] && item.SameSpec {
				short := *in
				short.Spec = cis.Spec{}
				item.Instance = &short
			}
			if sent[in.ID] = true; in.Status.Phase.Final() {
				delete(sent, in.ID)
			}
		}
		line := watchLine{WatchItem: item}
		switch {
		case ctx.Err() != nil:
			return nil // cut: the client resumes
		case err != nil:
			d := problem.Of(err)
			d.RequestID = w.Header().Get("X-Request-Id")
			if d.Status >= http.StatusInternalServerError {
				s.log.ErrorContext(ctx, "watch failed", "org", r.PathValue("org"), "requestId", d.RequestID, "error", err)
			}
			line.Error = &d
		}
		if err := rc.SetWriteDeadline(time.Now().Add(watchWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil
		}
		if enc.Encode(line) != nil {
			return nil
		}
		if item.More {
			continue
		}
		if buffer.Flush() != nil || rc.Flush() != nil || line.Error != nil {
			return nil
		}
	}
	return nil
}

// logs streams a container's bytes. A fault on the way cuts the connection, so that a reader can tell.
func (s *server) logs(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "follow", "tail", "since", "previous", "timestamps", "limitBytes")
	req := cis.LogRequest{Container: r.PathValue("container"), Follow: q.Flag("follow"), Previous: q.Flag("previous"),
		Timestamps: q.Flag("timestamps"), Tail: q.Number("tail", 0, math.MaxInt64), Since: q.Time("since")}
	if n := q.Number("limitBytes", 1, math.MaxInt64); n != nil {
		req.LimitBytes = *n
	}
	if q.Err() != nil {
		return q.Err()
	}
	body, err := s.svc.Logs(r.Context(), r.PathValue("org"), r.PathValue("id"), req)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read to its end, or the client has gone
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rc := http.NewResponseController(w)
	// A reader may be a person with a pager: only the connection's end ends this.
	if err := rc.SetWriteDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if rc.Flush() != nil {
		return nil
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil {
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			if r.Context().Err() == nil {
				s.log.ErrorContext(r.Context(), "log stream failed", "instance", r.PathValue("id"), "requestId", w.Header().Get("X-Request-Id"), "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}
}
