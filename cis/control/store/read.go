package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

const instanceColumns = `id, org, create_key, spec, created_at, version, desired, status`

// maxAnswer bounds the specs that one page, or one look at the tables for a watch, holds: it ends with the one that goes
// beyond it, and the next begins behind that.
const maxAnswer = 32 << 20

// scan reads a row of instanceColumns.
func (s *Store) scan(row interface{ Scan(...any) error }) (*entry, error) {
	e, _, err := s.scanSized(row)
	return e, err
}

// scanSized is scan that tells the size of the spec as well.
func (s *Store) scanSized(row interface{ Scan(...any) error }) (*entry, int, error) {
	var (
		in              cis.Instance
		spec            []byte
		created         int64
		desired, status string
	)
	if err := row.Scan(&in.ID, &in.Org, &in.Key, &spec, &created, &in.Version, &desired, &status); err != nil {
		return nil, 0, err
	}
	in.CreatedAt = time.Unix(0, created).UTC()
	text, err := s.seal.open(in.ID, spec)
	if err != nil {
		return nil, 0, fmt.Errorf("spec of %s: %w", in.ID, err)
	}
	if err := errors.Join(json.Unmarshal(text, &in.Spec), json.Unmarshal([]byte(desired), &in.Desired),
		json.Unmarshal([]byte(status), &in.Status)); err != nil {
		return nil, 0, fmt.Errorf("record of %s: %w", in.ID, err)
	}
	e, err := s.newEntry(&in, nil)
	if err != nil {
		return nil, 0, err
	}
	e.status = status
	return e, len(spec), nil
}

// Get gives an org's instance, redacted.
func (s *Store) Get(ctx context.Context, org, id string) (*cis.Instance, error) {
	e := s.cached(id)
	if e == nil {
		var err error
		e, err = s.scan(s.stmts[qGet].QueryRowContext(ctx, id))
		if errors.Is(err, sql.ErrNoRows) {
			return nil, notFound(id)
		}
		if err != nil {
			return nil, fmt.Errorf("get instance: %w", err)
		}
	}
	if e.in.Org != org {
		return nil, notFound(id)
	}
	return e.public, nil
}

const (
	defaultPage = 500
	maxPage     = 1000
	// scanPage is how many rows are looked at for one page when labels select.
	scanPage = 5000
)

// List gives a page of an org's instances, redacted, in the order they were made. A page may be shorter than its limit
// and not the last.
func (s *Store) List(ctx context.Context, org string, req cis.ListRequest) (*cis.InstanceList, error) {
	limit := req.Limit
	if limit == 0 {
		limit = defaultPage
	}
	if limit < 1 || limit > maxPage {
		return nil, problem.Invalid("limit", "must be 1 to 1000", req.Limit)
	}
	afterTime, afterID := int64(-1), ""
	if req.Cursor != "" {
		var err error
		if afterTime, afterID, err = parsePage(req.Cursor); err != nil {
			return nil, err
		}
	}
	out := &cis.InstanceList{Items: []cis.Instance{}, Cursor: s.cursor(s.published.Load())}
	where, args := `org = ? AND (created_at > ? OR (created_at = ? AND id > ?))`, []any{org, afterTime, afterTime, afterID}
	if req.Node != "" {
		where, args = where+` AND node = ?`, append(args, req.Node)
	}
	if req.Live {
		where += ` AND final_at = 0`
	}
	rowLimit := limit
	if len(req.Labels) > 0 {
		rowLimit = scanPage
	}
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+instanceColumns+` FROM cis_instances WHERE `+where+` ORDER BY created_at, id LIMIT ?`),
		append(args, rowLimit)...)
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err is checked
	seen, held := 0, 0
	for rows.Next() {
		e, size, err := s.scanSized(rows)
		if err != nil {
			return nil, fmt.Errorf("list instances: %w", err)
		}
		seen++
		if hasLabels(e.in.Spec.Labels, req.Labels) {
			out.Items = append(out.Items, *e.public)
			held += size
		}
		if len(out.Items) == limit || seen == rowLimit || held > maxAnswer {
			out.Next = formatPage(e.in.CreatedAt.UnixNano(), e.in.ID)
			break
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	return out, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func formatPage(created int64, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(created, 36) + "/" + id))
}

func parsePage(cursor string) (created int64, id string, err error) {
	bad := problem.Invalid("cursor", "must be the next of an earlier page", cursor)
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(raw) > 128 {
		return 0, "", bad
	}
	t, id, ok := strings.Cut(string(raw), "/")
	created, err = strconv.ParseInt(t, 36, 64)
	if !ok || err != nil || created < 0 || id == "" || formatPage(created, id) != cursor {
		return 0, "", bad
	}
	return created, id, nil
}

// cursor is a place in the sequence of changes of this very store.
func (s *Store) cursor(version int64) string { return s.name + "." + strconv.FormatInt(version, 10) }

// parseCursor gives the version of a watch cursor. A cursor of another store, or from before what has been pruned, is
// ErrGone.
func (s *Store) parseCursor(cursor string) (int64, error) {
	name, v, ok := strings.Cut(cursor, ".")
	version, err := strconv.ParseInt(v, 10, 64)
	if !ok || err != nil || version < 0 || len(name) != len(s.name) || strconv.FormatInt(version, 10) != v {
		return 0, problem.Invalid("cursor", "must be the cursor of a list or of a watch item", cursor)
	}
	if name != s.name || version < s.pruned.Load() || version > s.published.Load() {
		return 0, problem.New(problem.ErrGone, "the cursor is too old: list again and watch from that list's cursor")
	}
	return version, nil
}

// Events lists the events of an org's instance, the one that began first first.
func (s *Store) Events(ctx context.Context, org, id string) ([]cis.Event, error) {
	if _, err := s.Get(ctx, org, id); err != nil {
		return nil, err
	}
	changes, err := s.readEvents(ctx, `org = ? AND instance = ? ORDER BY first_at, version`, org, id)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	out := make([]cis.Event, 0, len(changes))
	for _, c := range changes {
		out = append(out, *c.item.Event)
	}
	return out, nil
}

func (s *Store) readEvents(ctx context.Context, where string, args ...any) ([]change, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT version, instance, type, reason, message, container, first_at, last_at, count FROM cis_events WHERE `+where), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err is checked
	var out []change
	for rows.Next() {
		var (
			c           change
			ev          cis.Event
			first, last int64
		)
		if err := rows.Scan(&c.version, &ev.Instance, &ev.Type, &ev.Reason, &ev.Message, &ev.Container, &first, &last, &ev.Count); err != nil {
			return nil, err
		}
		ev.First, ev.Last = time.Unix(0, first).UTC(), time.Unix(0, last).UTC()
		c.item.Event = &ev
		out = append(out, c)
	}
	return out, rows.Err()
}

// changesAfter reads the changes of an org behind after and up to upTo, in order, at most limit, and fewer large ones. An
// instance or event that has changed again since is only there with its newest change. more tells that something was cut.
func (s *Store) changesAfter(ctx context.Context, org, node string, after, upTo int64, limit int) (out []change, more bool, err error) {
	where, args := `org = ? AND version > ? AND version <= ?`, []any{org, after, upTo}
	if node != "" {
		where, args = where+` AND node = ?`, append(args, node)
	}
	where, args = where+` ORDER BY version LIMIT ?`, append(args, limit)
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT `+instanceColumns+` FROM cis_instances WHERE `+where), args...)
	if err != nil {
		return nil, false, fmt.Errorf("read changes: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err is checked
	last, held := upTo, 0
	for !more && rows.Next() {
		e, size, err := s.scanSized(rows)
		if err != nil {
			return nil, false, fmt.Errorf("read changes: %w", err)
		}
		out = append(out, change{version: e.in.Version, item: cis.WatchItem{Instance: e.public}})
		if held += size; len(out) == limit || held > maxAnswer {
			last, more = e.in.Version, true
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, false, fmt.Errorf("read changes: %w", err)
	}
	events, err := s.readEvents(ctx, where, args...)
	if err != nil {
		return nil, false, fmt.Errorf("read changes: %w", err)
	}
	if len(events) == limit {
		last, more = min(last, events[limit-1].version), true
	}
	out = slices.DeleteFunc(append(out, events...), func(c change) bool { return c.version > last })
	slices.SortFunc(out, func(a, b change) int { return cmp.Compare(a.version, b.version) })
	return out, more, nil
}
