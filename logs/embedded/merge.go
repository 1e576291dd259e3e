package embedded

import (
	"container/heap"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// run is a search under way: a stream of rows from each source of each index, merged by the sort keys. A stream is
// opened only when the merge comes to the time of its first row, so the days behind the page cost nothing.
type run struct {
	ctx     context.Context
	req     *request
	streams []*stream
	views   []*view
}

// view is the snapshot of one index.
type view struct {
	ix      *index
	release func()
	tx      *sql.Tx
	stmts   map[string]*sql.Stmt
}

// stream is the rows of one table of one index that match, in order, read in batches.
type stream struct {
	v      *view
	t      table
	query  node // reduced
	tmin   int64
	tmax   int64
	open   bool
	edge   []any // of a stream that is not open: its first row is not before this
	batch  int   // rows to read at once
	budget int   // bytes of documents to read at once
	buf    []row
	more   bool
	last   []any
	rowKey []any // of the first row in buf
}

// row is a hit.
type row struct {
	key []any
	id  string
	doc []byte
}

func newRun(ctx context.Context, ixs []*index, req *request) (*run, error) {
	r := &run{ctx: ctx, req: req}
	for _, ix := range ixs {
		release, ok := ix.acquire()
		if !ok {
			continue
		}
		v := &view{ix: ix, release: release, stmts: map[string]*sql.Stmt{}}
		r.views = append(r.views, v)
		all, others, omin, omax := ix.sources()
		for _, s := range all {
			if err := r.add(v, table{name: "lines", src: s}, s.tmin, s.tmax); err != nil {
				r.close()
				return nil, err
			}
		}
		if others > 0 {
			if err := r.add(v, table{name: "others"}, omin, omax); err != nil {
				r.close()
				return nil, err
			}
		}
	}
	return r, nil
}

// add adds a stream unless the source alone says that nothing of it matches.
func (r *run) add(v *view, t table, tmin, tmax int64) error {
	q, err := t.reduce(r.req.query)
	if err != nil {
		return err
	}
	if _, none := q.(noneNode); none || t.src != nil && outside(q, tmin, tmax) {
		return nil
	}
	st := &stream{v: v, t: t, query: q, tmin: tmin, tmax: tmax}
	if len(r.req.sort) > 0 {
		k := r.req.sort[0]
		if t.src != nil && isDate(k.field) && r.req.after != nil {
			if at, ok := r.req.after[0].(int64); ok && (!k.desc && tmax < at || k.desc && cutMillis(tmin) > at) {
				return nil
			}
		}
		switch {
		case t.src == nil && k.field != "@timestamp" || !isDate(k.field):
			st.edge = nil
		case k.desc:
			st.edge = []any{tmax}
		default:
			st.edge = []any{cutMillis(tmin)}
		}
	}
	r.streams = append(r.streams, st)
	return nil
}

// outside tells that a range on the time, at the top of the query, excludes all of tmin to tmax.
func outside(q node, tmin, tmax int64) bool {
	switch q := q.(type) {
	case andNode:
		for _, c := range q {
			if outside(c, tmin, tmax) {
				return true
			}
		}
	case *pred:
		if q.op != opRange || q.field != "cri.time" {
			return false
		}
		for k, b := range q.bound {
			ns, ok := b.(int64)
			if ok && (k[0] == 'g' && tmax < ns || k[0] == 'l' && tmin > ns) {
				return true
			}
		}
	}
	return false
}

func (r *run) close() {
	for _, v := range r.views {
		if v.tx != nil {
			_ = v.tx.Rollback() //nolint:errcheck // it only read
		}
		v.release()
	}
}

// begin starts the view's snapshot.
func (v *view) begin(ctx context.Context) error {
	if v.tx != nil {
		return nil
	}
	tx, err := v.ix.r.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("read index %s: %w", v.ix.name, err)
	}
	v.tx = tx
	return nil
}

func (v *view) stmt(ctx context.Context, text string) (*sql.Stmt, error) {
	if err := v.begin(ctx); err != nil {
		return nil, err
	}
	if st := v.stmts[text]; st != nil {
		return st, nil
	}
	st, err := v.tx.PrepareContext(ctx, text)
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", v.ix.name, err)
	}
	v.stmts[text] = st
	return st, nil
}

// where gives the condition of the stream without paging.
func (st *stream) where(args *[]any) (string, error) {
	// The bounds are those that the merge goes by: what is written meanwhile outside them waits for the next search.
	cond := "t BETWEEN ? AND ?"
	if st.t.src != nil {
		cond = "src = ? AND " + cond
		*args = append(*args, st.t.src.id)
	}
	*args = append(*args, st.tmin, st.tmax)
	c, err := st.t.sqlOf(st.query, args)
	return cond + " AND " + c, err
}

// fill reads the next batch.
func (st *stream) fill(ctx context.Context, req *request) error {
	var args []any
	cond, err := st.where(&args)
	if err != nil {
		return err
	}
	after := req.after
	if st.open {
		after = st.last
	}
	if after != nil {
		c, err := st.t.after(req.sort, after, &args)
		if err != nil {
			return err
		}
		cond += " AND " + c
	}
	cols := "off, t, fl, msg"
	if st.t.src == nil {
		cols = "id, doc"
	}
	var order []string
	exprs := make([]int, len(req.sort)) // place among the columns, or -1
	consts := make([]any, len(req.sort))
	n := 0
	for i, k := range req.sort {
		v, err := st.t.field(k.field)
		if err != nil {
			return err
		}
		exprs[i] = -1
		if v.expr == "" {
			if v.isConst {
				consts[i] = v.konst
			}
			continue
		}
		exprs[i] = n
		n++
		cols += ", " + v.expr
		dir := ""
		if k.desc {
			dir = " DESC"
		}
		if v.null {
			order = append(order, v.expr+" IS NULL")
		}
		order = append(order, v.expr+dir)
	}
	text := "SELECT " + cols + " FROM " + st.t.name + " WHERE " + cond
	if len(order) > 0 {
		text += " ORDER BY " + strings.Join(order, ", ")
	}
	text += " LIMIT ?"
	args = append(args, st.batch)
	stmt, err := st.v.stmt(ctx, text)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return fmt.Errorf("read index %s: %w", st.v.ix.name, err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	st.open, st.buf = true, nil
	bytes := 0
	for rows.Next() {
		rw, err := st.scan(rows, exprs, consts, n, req.source)
		if err != nil {
			return fmt.Errorf("read index %s: %w", st.v.ix.name, err)
		}
		st.buf = append(st.buf, rw)
		if bytes += len(rw.doc); bytes > st.budget { // the rest comes with the next batch
			break
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read index %s: %w", st.v.ix.name, err)
	}
	st.more = len(st.buf) == st.batch || bytes > st.budget
	if len(st.buf) > 0 {
		st.last = st.buf[len(st.buf)-1].key
	}
	st.batch = min(2*st.batch, maxSize)
	return nil
}

func (st *stream) scan(rows *sql.Rows, exprs []int, consts []any, n int, source bool) (row, error) {
	vals := make([]any, n)
	var l line
	var id, doc string
	dest := []any{&id, &doc}
	if st.t.src != nil {
		dest = []any{&l.offset, &l.time, &l.flags, &l.text}
	}
	for i := range vals {
		dest = append(dest, &vals[i])
	}
	if err := rows.Scan(dest...); err != nil {
		return row{}, err
	}
	rw := row{id: id, key: make([]any, len(exprs))}
	for i, at := range exprs {
		rw.key[i] = consts[i]
		if at >= 0 {
			rw.key[i] = vals[at]
		}
		if b, ok := rw.key[i].([]byte); ok {
			rw.key[i] = string(b)
		}
	}
	if st.t.src != nil {
		l.src = st.t.src.source
		rw.id = LineID(l.src.path, l.offset)
		if source {
			rw.doc = l.appendDoc(nil)
		}
	} else if source {
		rw.doc = []byte(doc)
	}
	return rw, nil
}

// count counts what matches, to at most limit when that is above 0; more tells that there is more.
func (r *run) count(limit int64) (n int64, more bool, err error) {
	for _, st := range r.streams {
		var args []any
		cond, err := st.where(&args)
		if err != nil {
			return 0, false, err
		}
		text := "SELECT count(*) FROM (SELECT 1 FROM " + st.t.name + " WHERE " + cond + " LIMIT ?)"
		left := int64(-1)
		if limit >= 0 {
			left = limit + 1 - n
		}
		stmt, err := st.v.stmt(r.ctx, text)
		if err != nil {
			return 0, false, err
		}
		var c int64
		if err := stmt.QueryRowContext(r.ctx, append(args, left)...).Scan(&c); err != nil {
			return 0, false, fmt.Errorf("count index %s: %w", st.v.ix.name, err)
		}
		if n += c; limit >= 0 && n > limit {
			return limit, true, nil
		}
	}
	return n, false, nil
}

// rows merges the streams into the page.
func (r *run) rows() ([]json.RawMessage, error) {
	hits := []json.RawMessage{}
	if r.req.size == 0 {
		return hits, nil
	}
	h := &streamHeap{keys: r.req.sort, s: r.streams}
	for _, st := range h.s {
		st.batch = min(r.req.size, max(16, 2*r.req.size/len(h.s)))
		st.budget = max(64<<10, maxAnswer/2/len(h.s))
		if st.edge == nil {
			if err := st.advance(r.ctx, r.req); err != nil {
				return nil, err
			}
		}
	}
	h.s = live(h.s)
	heap.Init(h)
	total := 0
	for h.Len() > 0 && len(hits) < r.req.size {
		st := h.s[0]
		if st.open {
			rw := st.buf[0]
			hit := r.hit(st, rw)
			if total += len(hit); total > maxAnswer {
				return nil, &apiError{status: http.StatusTooManyRequests, typ: "circuit_breaking_exception",
					reason: fmt.Sprintf("Data too large: the answer is above %d bytes, ask for a smaller size", maxAnswer)}
			}
			hits = append(hits, hit)
			st.buf = st.buf[1:]
		}
		if err := st.advance(r.ctx, r.req); err != nil {
			return nil, err
		}
		if len(st.buf) == 0 {
			heap.Pop(h)
		} else {
			heap.Fix(h, 0)
		}
	}
	return hits, nil
}

// advance makes sure that buf has the next row, if there is one.
func (st *stream) advance(ctx context.Context, req *request) error {
	if len(st.buf) == 0 && (!st.open || st.more) {
		if err := st.fill(ctx, req); err != nil {
			if ctx.Err() != nil { // the driver says "interrupted"
				err = errors.Join(ctx.Err(), err)
			}
			return err
		}
	}
	if len(st.buf) > 0 {
		st.rowKey = st.buf[0].key
	}
	return nil
}

func live(all []*stream) []*stream {
	var out []*stream
	for _, st := range all {
		if !st.open || len(st.buf) > 0 {
			out = append(out, st)
		}
	}
	return out
}

func (r *run) hit(st *stream, rw row) json.RawMessage {
	b := append([]byte(nil), `{"_index":`...)
	b = appendString(b, st.v.ix.name)
	b = append(b, `,"_id":`...)
	b = appendString(b, rw.id)
	b = append(b, `,"_score":null`...)
	if rw.doc != nil {
		b = append(b, `,"_source":`...)
		b = append(b, rw.doc...)
	}
	if r.req.shown {
		shown := make([]any, len(rw.key))
		for i, k := range r.req.sort {
			shown[i] = k.show(rw.key[i])
		}
		j, _ := json.Marshal(shown) //nolint:errcheck // numbers and strings
		b = append(b, `,"sort":`...)
		b = append(b, j...)
	}
	return append(b, '}')
}

// streamHeap orders streams by their next row; one that is not open yet goes before rows of the same time.
type streamHeap struct {
	keys []sortKey
	s    []*stream
}

func (h *streamHeap) Len() int      { return len(h.s) }
func (h *streamHeap) Swap(i, j int) { h.s[i], h.s[j] = h.s[j], h.s[i] }
func (h *streamHeap) Push(x any)    { h.s = append(h.s, x.(*stream)) } //nolint:forcetypeassert // only streams are pushed
func (h *streamHeap) Pop() any {
	last := h.s[len(h.s)-1]
	h.s = h.s[:len(h.s)-1]
	return last
}

func (h *streamHeap) Less(i, j int) bool {
	a, b := h.s[i], h.s[j]
	if a.open && b.open {
		return compareRows(h.keys, a.rowKey, b.rowKey) < 0
	}
	ka, kb := a.rowKey, b.rowKey
	if !a.open {
		ka = a.edge
	}
	if !b.open {
		kb = b.edge
	}
	if c := compareRows(h.keys[:1], ka[:1], kb[:1]); c != 0 {
		return c < 0
	}
	return !a.open
}
