package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

const (
	// maxEvents bounds the different events kept of an instance; the one seen longest ago goes first.
	maxEvents = 100
	// maxMessage bounds an event's texts, in bytes.
	maxMessage = 1024
)

// tx is a transaction with what its writes have changed so far.
type tx struct {
	*sql.Tx
	s       *Store
	ctx     context.Context //nolint:containedctx // lives as long as the transaction
	first   int64           // the version before the transaction
	version int64
	changed map[string]*entry
	items   []change // in order of version
	pruned  int64    // the highest version removed
}

// change is one change for watchers.
type change struct {
	org, node string
	version   int64
	item      cis.WatchItem // without the cursor
}

// begin takes the write lock and reads the sequence.
func (t *tx) begin() error {
	err := t.queryRow("read the sequence", qReadSequence, nil, &t.version)
	t.first = t.version
	return err
}

// end writes the sequence back.
func (t *tx) end() error {
	if t.version == t.first {
		return nil
	}
	return t.exec("write the sequence", qWriteSequence, t.version)
}

func (t *tx) next() int64 { t.version++; return t.version }

func (t *tx) exec(op, query string, args ...any) error {
	_, err := t.StmtContext(t.ctx, t.s.stmts[query]).ExecContext(t.ctx, args...)
	return dbFault(op, err)
}

func (t *tx) queryRow(op, query string, args []any, dest ...any) error {
	err := t.StmtContext(t.ctx, t.s.stmts[query]).QueryRowContext(t.ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return dbFault(op, err)
}

// get reads an instance as this transaction sees it.
func (t *tx) get(id string) (*entry, error) {
	if e := t.changed[id]; e != nil {
		return e, nil
	}
	if e := t.s.cached(id); e != nil {
		return e, nil
	}
	e, err := t.s.scan(t.StmtContext(t.ctx, t.s.stmts[qGet]).QueryRowContext(t.ctx, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, notFound(id)
	}
	return e, dbFault("read instance", err)
}

// usage is what the org's live instances take as this transaction sees it, and all together.
func (t *tx) usage(org string) (ofOrg, total Usage) {
	ofOrg, total = t.s.Usage(org)
	for id, e := range t.changed {
		apply := func(e *entry, sign int64) {
			if e == nil || e.in.Status.Phase.Final() {
				return
			}
			total.add(e.held(), sign)
			if e.in.Org == org {
				ofOrg.add(e.size, sign)
			}
		}
		apply(t.s.cached(id), -1)
		apply(e, 1)
	}
	return ofOrg, total
}

func (t *tx) note(e *entry, sameSpec bool) {
	t.changed[e.in.ID] = e
	t.items = append(t.items, change{org: e.in.Org, node: e.in.Spec.Source.Node, version: e.in.Version,
		item: cis.WatchItem{Instance: e.public, SameSpec: sameSpec}})
}

// NewInstance is what Create records.
type NewInstance struct {
	Org, Key string
	Spec     cis.Spec
	// Hash is of the spec as the caller sent it (Store.Hash): what tells a repeat from a conflict.
	Hash string
	// Status is the first one.
	Status cis.Status
	// Events are recorded with it.
	Events []cis.Event
	// Admit refuses when the instance would not fit, given what is live now; nil admits. It is not asked for a repeat,
	// nor when Status is final.
	Admit func(ofOrg, total Usage) error
}

// Hash tells specs apart without telling what is in them.
func (s *Store) Hash(spec *cis.Spec) (string, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return "", fmt.Errorf("hash spec: %w", err)
	}
	return s.seal.hash(text), nil
}

// Create records an instance, or answers the one of the same org and key (created is false then); with another hash
// that is ErrConflict.
func (s *Store) Create(ctx context.Context, n NewInstance) (in *cis.Instance, created bool, err error) {
	text, err := json.Marshal(n.Spec)
	if err != nil {
		return nil, false, fmt.Errorf("create: %w", err)
	}
	now := s.now()
	id := cis.NewID(now)
	sealed := s.seal.seal(id, text)
	err = s.do(ctx, func(t *tx) error {
		var old, hash string
		err := t.queryRow("find by key", qFindKey, []any{n.Org, n.Key}, &old, &hash)
		switch {
		case err == nil && hash != n.Hash:
			return &problem.Error{Class: problem.ErrConflict, Field: "key", Rule: "a key stands for one spec", Value: cut(n.Key, 200),
				Detail: "instance " + old + " was made with this key and another spec; use another key, or delete that instance and use another key"}
		case err == nil:
			e, err := t.get(old)
			if err == nil {
				in, created = e.public, false
			}
			return err
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		if n.Admit != nil && !n.Status.Phase.Final() {
			if err := n.Admit(t.usage(n.Org)); err != nil {
				return err
			}
		}
		e, err := s.newEntry(&cis.Instance{ID: id, Org: n.Org, Key: n.Key, CreatedAt: now, Version: t.next(), Spec: n.Spec, Status: n.Status}, nil)
		if err != nil {
			return err
		}
		if err := t.exec("insert instance", qInsert,
			id, n.Org, n.Key, n.Hash, sealed, n.Spec.Source.Node, e.in.CreatedAt.UnixNano(), e.in.Version, s.finalAt(e.in), "{}", e.status); err != nil {
			return err
		}
		t.note(e, false)
		for _, ev := range n.Events {
			ev.Instance = id
			if err := t.event(e, ev); err != nil {
				return err
			}
		}
		in, created = e.public, true
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return in, created, nil
}

// Changed says what a change function has changed.
type Changed int

// What may change. ChangedSpec is of volumes' files alone; it includes the others.
const (
	Unchanged Changed = iota
	ChangedState
	ChangedSpec
)

// Update changes an instance. f is given a shallow copy to change (Desired, Status; of Spec, by replacing slices); it may
// run more than once. The answer is redacted.
func (s *Store) Update(ctx context.Context, id string, f func(*cis.Instance) (Changed, error)) (*cis.Instance, error) {
	var out *cis.Instance
	err := s.do(ctx, func(t *tx) error {
		old, err := t.get(id)
		if err != nil {
			return err
		}
		in := *old.in
		what, err := f(&in)
		if err != nil {
			return err
		}
		if what == Unchanged {
			out = old.public
			return nil
		}
		reuse := old
		if what == ChangedSpec {
			reuse = nil
		}
		in.Version = t.next()
		e, err := s.newEntry(&in, reuse)
		if err != nil {
			return err
		}
		desired, err := json.Marshal(in.Desired)
		if err != nil {
			return err
		}
		if what == ChangedSpec {
			text, err := json.Marshal(in.Spec)
			if err != nil {
				return err
			}
			if err := t.exec("update spec", qUpdateSpec, s.seal.seal(id, text), id); err != nil {
				return err
			}
		}
		finalAt := int64(0)
		if old.in.Status.Phase.Final() != in.Status.Phase.Final() {
			finalAt = s.finalAt(&in)
		}
		if err := t.exec("update instance",
			qUpdate,
			in.Version, finalAt, string(desired), e.status, id); err != nil {
			return err
		}
		t.note(e, what == ChangedState)
		out = e.public
		return nil
	})
	return out, err
}

// newEntry derives what is cached of an instance. The spec's derivations are taken from old when it has the same.
func (s *Store) newEntry(in *cis.Instance, old *entry) (*entry, error) {
	status, err := json.Marshal(in.Status)
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	e := &entry{in: in, status: string(status)}
	public := *in
	if old != nil {
		e.size, public.Spec = old.size, old.public.Spec
	} else {
		e.size, public.Spec = cis.SizeOf(&in.Spec), in.Spec.Redacted()
	}
	e.public = &public
	return e, nil
}

func (s *Store) now() time.Time { return s.cfg.Now().UTC().Round(0) }

func (s *Store) finalAt(in *cis.Instance) int64 {
	if !in.Status.Phase.Final() {
		return 0
	}
	return s.now().UnixNano()
}

// Record counts an event of an instance. First, Last and Count are filled here.
func (s *Store) Record(ctx context.Context, ev cis.Event) error {
	return s.do(ctx, func(t *tx) error {
		e, err := t.get(ev.Instance)
		if err != nil {
			return err
		}
		return t.event(e, ev)
	})
}

func (t *tx) event(e *entry, ev cis.Event) error {
	ev.Reason, ev.Container, ev.Message = cut(ev.Reason, 128), cut(ev.Container, 128), cut(ev.Message, maxMessage)
	if ev.Type != cis.Warning {
		ev.Type = cis.Normal
	}
	h := sha256.Sum256([]byte(strings.Join([]string{string(ev.Type), ev.Reason, ev.Container, ev.Message}, "\x00")))
	now := t.s.now()
	version := t.next()
	org, node := e.in.Org, e.in.Spec.Source.Node
	var first int64
	if err := t.queryRow("count event", qCountEvent,
		[]any{ev.Instance, hex.EncodeToString(h[:12]), org, node, version, string(ev.Type), ev.Reason, ev.Container, ev.Message, now.UnixNano(), now.UnixNano()},
		&first, &ev.Count); err != nil {
		return err
	}
	ev.First, ev.Last = time.Unix(0, first).UTC(), now
	if ev.Count == 1 {
		if err := t.exec("drop old events", qDropEvents, ev.Instance, ev.Instance, maxEvents); err != nil {
			return err
		}
	}
	t.items = append(t.items, change{org: org, node: node, version: version, item: cis.WatchItem{Event: &ev}})
	return nil
}

// Prune removes instances that ended before t, with their events, at most limit of them, and tells how many. Cursors
// from before their last changes are gone then.
func (s *Store) Prune(ctx context.Context, before time.Time, limit int) (int, error) {
	var n int
	err := s.do(ctx, func(t *tx) error {
		n = 0
		rows, err := t.QueryContext(t.ctx, s.db.Q(`SELECT id, version, (SELECT coalesce(max(e.version), 0) FROM cis_events e WHERE e.instance = i.id)
			FROM cis_instances i WHERE final_at > 0 AND final_at < ? ORDER BY final_at LIMIT ?`), before.UnixNano(), limit)
		if err != nil {
			return dbFault("find ended instances", err)
		}
		var ids []string
		var highest int64
		for rows.Next() {
			var id string
			var v, ev int64
			if err := rows.Scan(&id, &v, &ev); err != nil {
				return dbFault("find ended instances", errors.Join(err, rows.Close()))
			}
			ids, highest = append(ids, id), max(highest, v, ev)
		}
		if err := rows.Err(); err != nil {
			return dbFault("find ended instances", err)
		}
		for _, id := range ids {
			if _, changed := t.changed[id]; changed {
				continue // by a neighbour in this batch; next time
			}
			if err := t.exec("remove events", qRemoveEvents, id); err != nil {
				return err
			}
			if err := t.exec("remove instance", qRemove, id); err != nil {
				return err
			}
			n++
		}
		if n == 0 {
			return nil
		}
		t.pruned = highest
		return t.exec("note removal", qNotePruned, highest, highest)
	})
	return n, err
}

// cut shortens a text to at most n bytes of whole, valid characters.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
