package webhook

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// MaxPage is the most deliveries that a listing gives at once.
const MaxPage = 500

// DeliveryState tells how far a delivery is.
type DeliveryState string

// The states.
const (
	Pending   DeliveryState = "pending"
	Delivered DeliveryState = "delivered"
	// Failed is given up, after a day or because the target is gone. It can be asked for again.
	Failed DeliveryState = "failed"
)

// Delivery is one event for one hook.
type Delivery struct {
	// Event is the event's id, and with it the webhook-id and the delivery's name within its hook.
	Event      string             `json:"event"`
	Type       registry.EventType `json:"type"`
	Repository string             `json:"repository,omitempty"`
	State      DeliveryState      `json:"state"`
	CreatedAt  time.Time          `json:"createdAt"`
	FinishedAt *time.Time         `json:"finishedAt,omitempty"`
	// NextAt is when the next attempt is due; nil when there is none.
	NextAt   *time.Time `json:"nextAt,omitempty"`
	Attempts int        `json:"attempts"`
}

// Attempt is one call.
type Attempt struct {
	Number    int       `json:"number"`
	StartedAt time.Time `json:"startedAt"`
	Millis    int64     `json:"millis"`
	// Status is the HTTP status, 0 without an answer; Error is empty when it was taken.
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	// Response is the beginning of the answer.
	Response string `json:"response,omitempty"`
}

// DeliveryDetail is a delivery with its attempts, the latest 100, and the body that is sent.
type DeliveryDetail struct {
	Delivery
	Log     []Attempt       `json:"log"`
	Payload json.RawMessage `json:"payload"`
}

const deliveryColumns = `event, type, repository, state, created, finished, next, attempts`

func scanDelivery(scan func(...any) error) (Delivery, int64, error) {
	var d Delivery
	var created, finished, next int64
	if err := scan(&d.Event, &d.Type, &d.Repository, &d.State, &created, &finished, &next, &d.Attempts); err != nil {
		return d, 0, err
	}
	d.CreatedAt, d.FinishedAt = timeOf(created), optionalTime(finished)
	if d.State == Pending {
		d.NextAt = optionalTime(next)
	}
	return d, created, nil
}

// Deliveries lists a hook's deliveries, the newest first: those of a state, "" for all, after a cursor that an earlier
// page gave, "" for the first. The next cursor is "" at the end.
func (s *Service) Deliveries(ctx context.Context, org, id string, state DeliveryState, cursor string, limit int) (page []Delivery, next string, err error) {
	if _, err := s.hook(ctx, org, id); err != nil {
		return nil, "", err
	}
	where, args := `WHERE hook = ?`, []any{id}
	switch state {
	case "":
	case Pending, Delivered, Failed:
		where, args = where+` AND state = ?`, append(args, state)
	default:
		return nil, "", problem.Invalid("state", "must be pending, delivered or failed", state)
	}
	if cursor != "" {
		at, event, ok := strings.Cut(cursor, ".")
		ns, err := strconv.ParseInt(at, 10, 64)
		if !ok || err != nil {
			return nil, "", problem.Invalid("after", "must be the next of an earlier page", cursor)
		}
		where, args = where+` AND (created < ? OR created = ? AND event < ?)`, append(args, ns, ns, event)
	}
	limit = min(max(limit, 1), MaxPage)
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT `+deliveryColumns+` FROM registry_webhook_deliveries `+where+` ORDER BY created DESC, event DESC LIMIT ?`), append(args, limit)...)
	if err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	page = []Delivery{}
	for rows.Next() {
		d, created, err := scanDelivery(rows.Scan)
		if err != nil {
			return nil, "", fmt.Errorf("list deliveries: %w", err)
		}
		if page = append(page, d); len(page) == limit {
			next = strconv.FormatInt(created, 10) + "." + d.Event
		}
	}
	if err := rows.Err(); err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	return page, next, nil
}

// Delivery gives one delivery with its attempts, or ErrNotFound.
func (s *Service) Delivery(ctx context.Context, org, id, event string) (*DeliveryDetail, error) {
	if _, err := s.hook(ctx, org, id); err != nil {
		return nil, err
	}
	d, _, err := scanDelivery(s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT `+deliveryColumns+` FROM registry_webhook_deliveries WHERE hook = ? AND event = ?`), id, event).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noDelivery(id, event)
	}
	if err != nil {
		return nil, fmt.Errorf("read delivery: %w", err)
	}
	out := &DeliveryDetail{Delivery: d, Log: []Attempt{}}
	var body string
	if err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT body FROM registry_webhook_events WHERE id = ?`), event).Scan(&body); err != nil {
		return nil, fmt.Errorf("read delivery: %w", err)
	}
	var e registry.Event
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		return nil, fmt.Errorf("read delivery: %w", err)
	}
	if out.Payload, err = s.payload(e); err != nil {
		return nil, fmt.Errorf("read delivery: %w", err)
	}
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT number, started, millis, status, error, response FROM registry_webhook_attempts
		WHERE hook = ? AND event = ? ORDER BY number DESC LIMIT 100`), id, event)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		var a Attempt
		var started int64
		if err := rows.Scan(&a.Number, &started, &a.Millis, &a.Status, &a.Error, &a.Response); err != nil {
			return nil, fmt.Errorf("read attempts: %w", err)
		}
		a.StartedAt = timeOf(started)
		out.Log = append(out.Log, a)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return out, nil
}

func noDelivery(id, event string) error {
	return problem.New(problem.ErrNotFound, "the webhook %q has no delivery %q", id, event)
}

// Redeliver sends a delivery again now, also one that was taken, with the same id and body and a new signature; the
// tries start anew. It is sent even when the hook is paused or disabled.
func (s *Service) Redeliver(ctx context.Context, org, id, event string) (*DeliveryDetail, error) {
	if _, err := s.hook(ctx, org, id); err != nil {
		return nil, err
	}
	if err := s.audit(ctx, org, "webhook.redeliver", "webhook/"+id, map[string]string{"event": cut(event, maxKept)}); err != nil {
		return nil, err
	}
	res, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhook_deliveries SET state = ?, forced = 1, tries = 0, next = ?, finished = 0
		WHERE hook = ? AND event = ?`), Pending, unix(s.cfg.Now()), id, event)
	if err != nil {
		return nil, fmt.Errorf("redeliver: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return nil, fmt.Errorf("redeliver: %w", err)
	} else if n == 0 {
		return nil, noDelivery(id, event)
	}
	s.poke()
	return s.Delivery(ctx, org, id, event)
}

// Ping queues a test event for one hook, whatever it is sent otherwise, and gives its delivery. It is sent even when
// the hook is paused or disabled.
func (s *Service) Ping(ctx context.Context, org, id string) (*DeliveryDetail, error) {
	if _, err := s.hook(ctx, org, id); err != nil {
		return nil, err
	}
	e, err := s.newEvent(org, TypePing, map[string]string{"webhook": id})
	if err != nil {
		return nil, err
	}
	e.Actor = registry.ActorFrom(ctx).Name
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_webhook_events (id, org, type, repository, body, created, routed) VALUES (?, ?, ?, '', ?, ?, 1)`),
			e.ID, org, e.Type, string(body), unix(s.cfg.Now())); err != nil {
			return err
		}
		return s.queue(ctx, tx, id, e.ID, e.Type, "", true)
	})
	if err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	s.poke()
	return s.Delivery(ctx, org, id, e.ID)
}
