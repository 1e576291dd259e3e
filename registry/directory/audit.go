package directory

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// Bounds of an audit entry, in bytes: what is longer is cut.
const (
	maxAuditText   = 300
	maxAuditDetail = 16 // keys
)

// auditTimeout bounds the write of a denial.
const auditTimeout = 10 * time.Second

// Audit implements registry.Auditor. A change is on the disk when it returns. Of denials, the first of a kind is, too;
// repeats are counted and written as one entry, and denials that come faster than anyone reads are counted together
// (see denials), so that a guesser cannot fill the disk.
func (s *Store) Audit(ctx context.Context, e registry.AuditEntry) error {
	if !e.Denied {
		return s.insertAudit(ctx, s.db, e)
	}
	// A client that hangs up on its refusal does not undo it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	for _, due := range s.denials.take(bounded(e)) {
		if err := s.insertAudit(ctx, s.db, due); err != nil {
			return err
		}
	}
	return nil
}

// execer is a database or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (s *Store) insertAudit(ctx context.Context, db execer, e registry.AuditEntry) error {
	e = bounded(e)
	if e.Time.IsZero() {
		e.Time = s.now()
	}
	detail, err := json.Marshal(e.Detail)
	if err != nil {
		return fmt.Errorf("write audit entry: %w", err)
	}
	_, err = db.ExecContext(ctx, s.db.Q(`INSERT INTO registry_audit (time, org, actor, address, action, target, denied, detail)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`), e.Time.UnixNano(), e.Org, e.Actor, e.Address, e.Action, e.Target, number(e.Denied), string(detail))
	if err != nil {
		return fmt.Errorf("write audit entry: %w", err)
	}
	return nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// bounded cuts what a client could make long, and drops what PostgreSQL does not take.
func bounded(e registry.AuditEntry) registry.AuditEntry {
	cut := func(text string) string {
		text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?")
		if len(text) > maxAuditText {
			text = strings.ToValidUTF8(text[:maxAuditText], "") + "…"
		}
		return text
	}
	e.Org, e.Actor, e.Address, e.Action, e.Target = cut(e.Org), cut(e.Actor), cut(e.Address), cut(e.Action), cut(e.Target)
	detail := make(map[string]string, len(e.Detail))
	for k, v := range e.Detail {
		if len(detail) < maxAuditDetail {
			detail[cut(k)] = cut(v)
		}
	}
	e.Detail = detail
	return e
}

// AuditFilter chooses audit entries. Zero fields choose everything.
type AuditFilter struct {
	// Org is the org whose entries are wanted; All is for those of every org and of the platform.
	Org string
	All bool
	// Actor is an account. Action is "noun.verb", or "noun" for all its verbs. Target is one, or a prefix and "*".
	Actor, Action, Target string
	// Denied chooses denials or changes.
	Denied *bool
	// Since is the earliest time, Until the first that is too late.
	Since, Until time.Time
	// Before is the id that the page ends before: the last of the page before. Limit is 1 to MaxPage.
	Before int64
	Limit  int
}

// AuditLog gives entries, newest first.
func (s *Store) AuditLog(ctx context.Context, f AuditFilter) ([]registry.AuditEntry, error) {
	where, args := []string{`1 = 1`}, []any{}
	add := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	if !f.All {
		if f.Org == "" {
			return nil, problem.Invalid("org", "is needed", "")
		}
		add(`org = ?`, f.Org)
	}
	if f.Actor != "" {
		add(`actor = ?`, f.Actor)
	}
	if f.Action != "" {
		add(`(action = ? OR substr(action, 1, ?) = ?)`, f.Action, len([]rune(f.Action))+1, f.Action+".")
	}
	if prefix, wild := strings.CutSuffix(f.Target, "*"); wild {
		add(`substr(target, 1, ?) = ?`, len([]rune(prefix)), prefix)
	} else if f.Target != "" {
		add(`target = ?`, f.Target)
	}
	if f.Denied != nil {
		add(`denied = ?`, number(*f.Denied))
	}
	if !f.Since.IsZero() {
		add(`time >= ?`, f.Since.UnixNano())
	}
	if !f.Until.IsZero() {
		add(`time < ?`, f.Until.UnixNano())
	}
	if f.Before > 0 {
		add(`id < ?`, f.Before)
	}
	for i, a := range args {
		if text, ok := a.(string); ok {
			args[i] = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?")
		}
	}
	args = append(args, page(f.Limit))
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT id, time, org, actor, address, action, target, denied, detail FROM registry_audit
		WHERE `+strings.Join(where, ` AND `)+` ORDER BY id DESC LIMIT ?`), args...)
	return collect(rows, err, "read audit log", func(scan func(...any) error) (registry.AuditEntry, error) {
		var e registry.AuditEntry
		var at, denied int64
		var detail string
		err := scan(&e.ID, &at, &e.Org, &e.Actor, &e.Address, &e.Action, &e.Target, &denied, &detail)
		if err == nil {
			err = json.Unmarshal([]byte(detail), &e.Detail)
		}
		e.Time, e.Denied = time.Unix(0, at).UTC(), denied != 0
		return e, err
	})
}

// pruneAudit removes entries older than the retention, some at a time so that nobody waits long for the database.
func (s *Store) pruneAudit(ctx context.Context) error {
	cutoff := s.now().Add(-s.auditRetention).UnixNano()
	for {
		res, err := s.db.ExecContext(ctx, s.db.Q(`DELETE FROM registry_audit WHERE id IN
			(SELECT id FROM registry_audit WHERE time < ? ORDER BY time LIMIT 1000)`), cutoff)
		if err != nil {
			return fmt.Errorf("prune audit log: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n < 1000 {
			return err
		}
	}
}
