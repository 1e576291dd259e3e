package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
)

// applier is the state of one index.apply.
type applier struct {
	ctx     context.Context
	tx      *sql.Tx
	ix      *index
	touched map[string]*stored
	others  int64
	omin    int64
	omax    int64
	status  []int
	stmts   map[string]*sql.Stmt
}

func (a *applier) run(ops []op) error {
	var batch []int // places of lines to create together
	for i := range ops {
		o := &ops[i]
		if o.isLine && !o.overwrite {
			src, err := a.source(&o.line)
			if err != nil {
				return err
			}
			// Offsets of a file only grow, so behind the largest nothing can be there already.
			if src != nil && a.others == 0 && o.line.offset > src.omax {
				src.omax = o.line.offset
				if batch = append(batch, i); len(batch) == insertRows {
					if err := a.insertBatch(ops, batch); err != nil {
						return err
					}
					batch = batch[:0]
				}
				continue
			}
		}
		// Order matters between equal ids: what is waiting goes first.
		if err := a.insertBatch(ops, batch); err != nil {
			return err
		}
		batch = batch[:0]
		if err := a.one(o, &a.status[i]); err != nil {
			return err
		}
	}
	if err := a.insertBatch(ops, batch); err != nil {
		return err
	}
	for _, s := range a.touched {
		if err := a.exec(`INSERT INTO sources(id, path, org, instance, container, attempt, tmin, tmax, omax) VALUES (?,?,?,?,?,?,?,?,?)
			ON CONFLICT(id) DO UPDATE SET tmin = excluded.tmin, tmax = excluded.tmax, omax = excluded.omax`,
			s.id, s.path, s.org, s.instance, s.container, s.attempt, s.tmin, s.tmax, s.omax); err != nil {
			return err
		}
	}
	return nil
}

// source gives the dictionary's entry for a line, its bounds widened, or nil when the path is another source's.
func (a *applier) source(l *line) (*stored, error) {
	s := a.touched[l.src.path]
	if s == nil {
		if old := a.ix.bySrc[l.src.path]; old != nil { // only apply writes the map, and it holds wmu
			c := *old
			s = &c
		} else {
			s = &stored{source: l.src, tmin: math.MaxInt64, tmax: math.MinInt64, omax: -1}
			s.id = int64(len(a.ix.bySrc)) + 1
			for _, t := range a.touched {
				s.id = max(s.id, t.id+1)
			}
		}
		if s.source != l.src {
			return nil, nil
		}
		a.touched[l.src.path] = s
	}
	if s.source != l.src {
		return nil, nil
	}
	s.tmin, s.tmax = min(s.tmin, l.time), max(s.tmax, l.time)
	return s, nil
}

// insertBatch creates lines that are not there, with one statement when there are enough.
func (a *applier) insertBatch(ops []op, batch []int) error {
	if len(batch) < insertRows {
		for _, i := range batch {
			if err := a.insert(ops[i : i+1]...); err != nil {
				return err
			}
			a.status[i] = created
		}
		return nil
	}
	args := make([]any, 0, 5*insertRows)
	for _, i := range batch {
		l := &ops[i].line
		args = append(args, a.touched[l.src.path].id, l.offset, l.time, l.flags, l.text)
		a.status[i] = created
	}
	return a.inserted(len(batch), args...)
}

// insert creates lines one by one.
func (a *applier) insert(ops ...op) error {
	for i := range ops {
		l := &ops[i].line
		s := a.touched[l.src.path]
		s.omax = max(s.omax, l.offset)
		if err := a.inserted(1, s.id, l.offset, l.time, l.flags, l.text); err != nil {
			return err
		}
	}
	return nil
}

// inserted runs insertSQL and checks that every row is new.
func (a *applier) inserted(rows int, args ...any) error {
	st, err := a.stmt(insertSQL(rows))
	if err != nil {
		return err
	}
	res, err := st.ExecContext(a.ctx, args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != int64(rows) {
		return errors.Join(fmt.Errorf("%d lines of %d were there already, against the dictionary", int64(rows)-n, rows), err)
	}
	return nil
}

// one writes a single document.
func (a *applier) one(o *op, status *int) error {
	if o.isLine {
		src, err := a.source(&o.line)
		if err != nil {
			return err
		}
		if src == nil { // the path is known with another owner: kept as it came
			o.isLine = false
			o.doc, o.time, o.criTime = o.line.appendDoc(nil), cutMillis(o.line.time), &o.line.time
		}
	}
	there, err := a.exists(o)
	if err != nil {
		return err
	}
	switch {
	case there && !o.overwrite:
		*status = exists
		return nil
	case there:
		*status = updated
		if err := a.remove(o); err != nil {
			return err
		}
	default:
		*status = created
	}
	if o.isLine {
		return a.insert(*o)
	}
	if a.others == 0 {
		a.omin, a.omax = o.time, o.time
	}
	a.others++
	a.omin, a.omax = min(a.omin, o.time), max(a.omax, o.time)
	return a.exec(`INSERT INTO others(id, t, ct, doc) VALUES (?,?,?,?)`, o.id, o.time, o.criTime, string(o.doc))
}

// sourceID gives the number of the source that o's identity is an offset of.
func (a *applier) sourceID(o *op) (int64, bool) {
	if o.path == "" {
		return 0, false
	}
	if s := a.touched[o.path]; s != nil {
		return s.id, true
	}
	if s := a.ix.bySrc[o.path]; s != nil {
		return s.id, true
	}
	return 0, false
}

func (a *applier) exists(o *op) (bool, error) {
	var n int
	if id, ok := a.sourceID(o); ok {
		err := a.query(`SELECT count(*) FROM lines WHERE src = ? AND off = ?`, &n, id, o.offset)
		if err != nil || n > 0 {
			return n > 0, err
		}
	}
	if a.others == 0 {
		return false, nil
	}
	err := a.query(`SELECT count(*) FROM others WHERE id = ?`, &n, o.id)
	return n > 0, err
}

func (a *applier) remove(o *op) error {
	if id, ok := a.sourceID(o); ok {
		if err := a.exec(`DELETE FROM lines WHERE src = ? AND off = ?`, id, o.offset); err != nil {
			return err
		}
	}
	var n int64
	if err := a.query(`SELECT count(*) FROM others WHERE id = ?`, &n, o.id); err != nil {
		return err
	}
	a.others -= n
	return a.exec(`DELETE FROM others WHERE id = ?`, o.id)
}

// stmt prepares a statement once for the transaction.
func (a *applier) stmt(text string) (*sql.Stmt, error) {
	if st := a.stmts[text]; st != nil {
		return st, nil
	}
	st, err := a.tx.PrepareContext(a.ctx, text)
	if err == nil {
		a.stmts[text] = st
	}
	return st, err
}

func (a *applier) exec(text string, args ...any) error {
	st, err := a.stmt(text)
	if err != nil {
		return err
	}
	_, err = st.ExecContext(a.ctx, args...)
	return err
}

func (a *applier) query(text string, to any, args ...any) error {
	st, err := a.stmt(text)
	if err != nil {
		return err
	}
	return st.QueryRowContext(a.ctx, args...).Scan(to)
}
