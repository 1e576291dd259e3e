package webhook

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cumulet.io/registry"
)

const (
	// maxRead is what is read of an answer, so that the connection serves again; maxKept is what the log keeps.
	maxRead = 64 << 10
	maxKept = 1 << 10
	// maxRetryAfter is the longest wait that a target may ask for.
	maxRetryAfter = time.Hour
	// afterCrash is how long after its attempt's end a lease lapses.
	afterCrash = 5 * time.Second
)

// sendAll sends what is due for one hook, perHook calls at a time, until nothing is.
func (s *Service) sendAll(ctx context.Context, org, id string) error {
	for ctx.Err() == nil {
		h, err := s.hook(ctx, org, id)
		if err != nil {
			return err
		}
		events, err := s.claim(ctx, h)
		if err != nil || len(events) == 0 {
			return err
		}
		var calls sync.WaitGroup
		errs := make([]error, len(events))
		for i, e := range events {
			calls.Go(func() { errs[i] = s.sendOne(ctx, h, e) })
		}
		calls.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

// claim leases up to perHook deliveries of a hook.
func (s *Service) claim(ctx context.Context, h *stored) ([]string, error) {
	now := s.cfg.Now()
	// What waits for a slot is not sent yet: the lease covers a wait as long as the call.
	until := now.Add(2*s.cfg.Timeout + afterCrash)
	only := ""
	if h.State != Enabled {
		only = ` AND forced = 1`
	}
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhook_deliveries SET leased = ? WHERE hook = ? AND event IN (
		SELECT event FROM registry_webhook_deliveries WHERE state = ? AND hook = ? AND next <= ? AND leased <= ?`+only+`
		ORDER BY next, created, event LIMIT ?`+s.skipLocked()+`) RETURNING event`),
		unix(until), h.ID, Pending, h.ID, unix(now), unix(now), perHook)
	if err != nil {
		return nil, fmt.Errorf("claim deliveries: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []string
	for rows.Next() {
		var event string
		if err := rows.Scan(&event); err != nil {
			return nil, fmt.Errorf("claim deliveries: %w", err)
		}
		out = append(out, event)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("claim deliveries: %w", err)
	}
	return out, nil
}

// orgSlots gives an org's share of the calls at the same time.
func (s *Service) orgSlots(org string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.orgs[org]
	if c == nil {
		c = make(chan struct{}, perOrg)
		s.orgs[org] = c
	}
	return c
}

// outcome is what an attempt came to.
type outcome struct {
	Attempt
	// gone: the target asks to be left alone for good; after: it asks to wait.
	gone  bool
	after time.Duration
}

func (o outcome) ok() bool { return o.Status >= 200 && o.Status < 300 && o.Error == "" }

func (s *Service) sendOne(ctx context.Context, h *stored, event string) error {
	for _, slots := range []chan struct{}{s.orgSlots(h.Org), s.slots} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return s.release(ctx, h.ID, event)
		case <-time.After(s.cfg.Timeout):
			return s.release(ctx, h.ID, event) // the lease may not outlast the wait and the call
		}
	}
	var body string
	err := s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT body FROM registry_webhook_events WHERE id = ?`), event).Scan(&body)
	if err != nil {
		return errors.Join(fmt.Errorf("read event %s: %w", event, err), s.release(ctx, h.ID, event))
	}
	var e registry.Event
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		return fmt.Errorf("read event %s: %w", event, err)
	}
	o := s.attempt(ctx, h, e)
	if ctx.Err() != nil && !o.ok() {
		return s.release(ctx, h.ID, event) // it was broken off here, not there
	}
	// An answer is worth keeping also when the process is about to end.
	return s.record(context.WithoutCancel(ctx), h, e, o)
}

// release gives a claimed delivery back.
func (s *Service) release(ctx context.Context, hook, event string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhook_deliveries SET leased = 0 WHERE hook = ? AND event = ? AND state = ?`), hook, event, Pending)
	if err != nil {
		return fmt.Errorf("release delivery: %w", err)
	}
	return nil
}

// attempt calls the hook's URL once.
func (s *Service) attempt(ctx context.Context, h *stored, e registry.Event) (o outcome) {
	began := s.cfg.Now().UTC()
	o.StartedAt = began
	clock := time.Now()
	defer func() { o.Millis = time.Since(clock).Milliseconds() }()
	body, err := s.payload(e)
	if err != nil {
		o.Error = "the payload cannot be made"
		return o
	}
	signed := signature(h.secrets, e.ID, began, body)
	if signed == "" {
		o.Error = "the hook has no secret that can be read: rotate it"
		return o
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		o.Error = "the URL cannot be called"
		return o
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Cumulet-Webhook/1")
	req.Header.Set("webhook-id", e.ID)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(began.Unix(), 10))
	req.Header.Set("webhook-signature", signed)
	resp, err := s.client.Do(req)
	if err != nil {
		o.Error = reason(err)
		return o
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as wanted
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxRead))
	o.Status, o.Response = resp.StatusCode, printable(answer)
	switch {
	case o.Status >= 200 && o.Status < 300:
		// It was taken, whatever becomes of the rest of the answer.
	case o.Status >= 300 && o.Status < 400:
		o.Error = "it redirects, which is not followed: set the URL that it leads to"
	case o.Status == http.StatusGone:
		o.gone, o.Error = true, "it is gone"
	case err != nil:
		o.Error = reason(err)
	default:
		o.Error = "it answered " + strconv.Itoa(o.Status)
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 &&
		(o.Status == http.StatusTooManyRequests || o.Status == http.StatusServiceUnavailable) {
		o.after = min(time.Duration(min(seconds, 1<<20))*time.Second, maxRetryAfter)
	}
	return o
}

// reason tells why a call failed, without the URL, whose path or query may hold a receiver's secret.
func reason(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		if u.Timeout() {
			return "it did not answer in time"
		}
		err = u.Err
	}
	return cut(err.Error(), maxKept)
}

func printable(b []byte) string {
	text := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r == 0 {
			return '?'
		}
		return r
	}, string(b[:min(len(b), maxKept)]))
	return cut(text, maxKept)
}

// cut shortens text to a number of bytes, between two characters.
func cut(text string, limit int) string {
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "?"), "?")
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// record writes down an attempt and what follows from it.
func (s *Service) record(ctx context.Context, h *stored, e registry.Event, o outcome) error {
	now := s.cfg.Now()
	var failing int64
	giveUp := false
	err := s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		var number, tries int64
		err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhook_deliveries SET attempts = attempts + 1, tries = tries + 1, leased = 0
			WHERE hook = ? AND event = ? RETURNING attempts, tries`), h.ID, e.ID).Scan(&number, &tries)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // the hook was deleted meanwhile
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_webhook_attempts (hook, event, number, started, millis, status, error, response)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`), h.ID, e.ID, number, unix(o.StartedAt), o.Millis, o.Status, o.Error, o.Response); err != nil {
			return err
		}
		state, next, finished := Pending, int64(0), int64(0)
		switch {
		case o.ok():
			state, finished = Delivered, unix(now)
		case o.gone || e.Type == TypePing || int(tries) > len(s.cfg.Backoff): // a ping is tried once
			state, finished, giveUp = Failed, unix(now), true
		default:
			wait := s.cfg.Backoff[tries-1]
			// Spread, so that what failed together does not come back together.
			wait += time.Duration(float64(wait) * 0.1 * rand.Float64()) //nolint:gosec // no secret
			next = unix(now.Add(max(wait, o.after)))
		}
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhook_deliveries SET state = ?, next = ?, finished = ? WHERE hook = ? AND event = ? AND state = ?`),
			state, next, finished, h.ID, e.ID, Pending); err != nil {
			return err
		}
		if o.ok() {
			_, err = tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhooks SET failing = 0, succeeded = ? WHERE id = ?`), unix(now), h.ID)
			return err
		}
		return tx.QueryRowContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhooks SET failing = CASE WHEN failing = 0 THEN CAST(? AS BIGINT) ELSE failing END WHERE id = ? RETURNING failing`),
			unix(now), h.ID).Scan(&failing)
	})
	if err != nil {
		return fmt.Errorf("record attempt: %w", err)
	}
	switch {
	case o.gone:
		return s.disable(ctx, h, "the target answered 410: it wants no more calls")
	case giveUp && failing != 0 && now.Sub(timeOf(failing)) >= s.cfg.DisableAfter:
		return s.disable(ctx, h, "every call since "+timeOf(failing).Format(time.RFC3339)+" failed; the last: "+o.Error)
	}
	return nil
}

// disable stops sending to a hook, and tells the org's other hooks and the audit log.
func (s *Service) disable(ctx context.Context, h *stored, why string) error {
	e, err := s.newEvent(h.Org, registry.EventWebhook, map[string]string{"webhook": h.ID, "host": hostOf(h.URL), "reason": cut(why, maxKept)})
	if err != nil {
		return err
	}
	disabled := false
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhooks SET state = ?, reason = ?, updated = ? WHERE id = ? AND state = ?`),
			Disabled, cut(why, maxKept), unix(s.cfg.Now()), h.ID, Enabled)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil || n == 0 {
			return err
		}
		disabled = true
		return s.insert(ctx, tx, e)
	})
	if err != nil {
		return fmt.Errorf("disable webhook: %w", err)
	}
	if !disabled {
		return nil
	}
	s.poke()
	s.cfg.Logger.WarnContext(ctx, "webhook disabled", "org", h.Org, "webhook", h.ID, "host", hostOf(h.URL), "reason", why)
	return s.audit(ctx, h.Org, "webhook.disable", "webhook/"+h.ID, map[string]string{"reason": cut(why, maxKept)})
}
