package directory

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"cumulet.io/registry"
)

// change runs f in one transaction with the audit entry e, whose actor, address and time are set here; f may still add
// to e.Detail, and when it sets e.Action to "" nothing changed and nothing is kept. With an outbox, a change of who may
// what is also announced: the event is in the same transaction, so that a crash after it loses nothing.
func (s *Store) change(ctx context.Context, e *registry.AuditEntry, f func(*sql.Tx) error) error {
	if e.Detail == nil {
		e.Detail = map[string]string{}
	}
	return s.changes(ctx, func(tx *sql.Tx) ([]*registry.AuditEntry, error) {
		if err := f(tx); err != nil || e.Action == "" {
			return nil, err
		}
		return []*registry.AuditEntry{e}, nil
	})
}

// changes is change with any number of entries, which f gives.
func (s *Store) changes(ctx context.Context, f func(*sql.Tx) ([]*registry.AuditEntry, error)) error {
	var events []registry.Event
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		entries, err := f(tx)
		if err != nil {
			return err
		}
		actor := registry.ActorFrom(ctx)
		for _, e := range entries {
			e.Actor, e.Address = cmp.Or(e.Actor, actor.Name), cmp.Or(e.Address, actor.Address)
			if err := s.insertAudit(ctx, tx, *e); err != nil {
				return err
			}
			event, err := s.enqueue(ctx, tx, *e)
			if err != nil {
				return err
			}
			if event != nil {
				events = append(events, *event)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, event := range events {
		s.emit(ctx, event)
	}
	return nil
}

// announced tells whether a kind of change is a member event.
func announced(action string) bool {
	switch action {
	case "member.set", "member.remove", "team.create", "team.delete", "team.member.add", "team.member.remove", "grant.set", "grant.remove":
		return true
	}
	return false
}

// enqueue keeps a member event for e in the change's own transaction.
func (s *Store) enqueue(ctx context.Context, tx *sql.Tx, e registry.AuditEntry) (*registry.Event, error) {
	if s.outbox == nil || e.Org == "" || !announced(e.Action) {
		return nil, nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("announce change: %w", err)
	}
	now := s.now().UTC()
	event := &registry.Event{ID: id.String(), Type: registry.EventMember, Time: now, Org: e.Org, Actor: e.Actor,
		Data: map[string]string{"action": e.Action, "target": e.Target}}
	for k, v := range e.Detail {
		event.Data[k] = v
	}
	body, err := json.Marshal(event)
	if err != nil {
		return nil, fmt.Errorf("announce change: %w", err)
	}
	if _, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_pending_events (id, body, created) VALUES (?, ?, ?)`),
		event.ID, string(body), now.UnixNano()); err != nil {
		return nil, fmt.Errorf("announce change: %w", err)
	}
	return event, nil
}

// emit hands a committed event to the outbox. What fails stays pending for Run.
func (s *Store) emit(ctx context.Context, event registry.Event) {
	err := s.outbox.Emit(ctx, event)
	if err == nil {
		_, err = s.db.ExecContext(ctx, s.db.Q(`DELETE FROM registry_pending_events WHERE id = ?`), event.ID)
	}
	if err != nil {
		s.log.WarnContext(ctx, "an event is not handed over yet", "event", event.ID, "error", err)
	}
}

// emitPending hands over what an earlier emit could not, oldest first.
func (s *Store) emitPending(ctx context.Context) error {
	if s.outbox == nil {
		return nil
	}
	rows, err := s.db.QueryContext(ctx, `SELECT body FROM registry_pending_events ORDER BY created, id LIMIT 1000`)
	if err != nil {
		return fmt.Errorf("read pending events: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var events []registry.Event
	for rows.Next() {
		var body string
		var event registry.Event
		if err := rows.Scan(&body); err != nil {
			return fmt.Errorf("read pending events: %w", err)
		}
		if err := json.Unmarshal([]byte(body), &event); err != nil {
			return fmt.Errorf("read pending events: %w", err)
		}
		events = append(events, event)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read pending events: %w", err)
	}
	for _, event := range events {
		s.emit(ctx, event)
	}
	return nil
}
