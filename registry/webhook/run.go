package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"cumulet.io/registry"
)

const (
	// lookEvery is how soon work of another process, and what is due again, is seen.
	lookEvery = time.Second
	// pruneEvery is how often what is old is deleted.
	pruneEvery = time.Hour
	routeBatch = 200
)

// Run sends what is in the outbox until ctx ends, and then waits for the calls in flight to be broken off. A fault of
// the database is logged and tried again.
func (s *Service) Run(ctx context.Context) error {
	var senders sync.WaitGroup
	defer func() {
		// Pulls that come from now on are written at once; those gathered are written here.
		s.running.Store(false)
		senders.Wait()
		s.client.CloseIdleConnections()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := s.flushPulls(last); err != nil {
			s.cfg.Logger.ErrorContext(last, "pull events are lost", "error", err)
		}
	}()
	if err := s.refreshPulls(ctx); err == nil {
		s.running.Store(true)
	}
	look, flush, prune := time.NewTicker(lookEvery), time.NewTicker(pullWindow), time.NewTicker(pruneEvery)
	defer look.Stop()
	defer flush.Stop()
	defer prune.Stop()
	tell := func(step string, err error) {
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "webhooks are held up", "step", step, "error", err)
		}
	}
	tell("prune", s.Prune(ctx))
	for {
		tell("route", s.route(ctx))
		tell("send", s.startSenders(ctx, &senders))
	wait:
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-look.C:
			err := s.refreshPulls(ctx)
			tell("look for hooks", err)
			if err == nil {
				s.running.Store(true)
			}
		case <-flush.C:
			if s.pulls.none() {
				goto wait
			}
			tell("write pulls", s.flushPulls(ctx))
		case <-prune.C:
			tell("prune", s.Prune(ctx))
		}
	}
}

// route makes deliveries of the events that have none yet.
func (s *Service) route(ctx context.Context) error {
	for {
		n, err := s.routeBatch(ctx)
		if err != nil || n < routeBatch {
			return err
		}
	}
}

type routable struct {
	seq                       int64
	id, org, repository, body string
	kind                      registry.EventType
}

func (s *Service) routeBatch(ctx context.Context) (n int, err error) {
	// Looked at without a transaction first: on SQLite one would take the write lock each second.
	var one int
	err = s.cfg.DB.QueryRowContext(ctx, `SELECT 1 FROM registry_webhook_events WHERE routed = 0 LIMIT 1`).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("route events: %w", err)
	}
	var behind []*stored
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		events, err := s.unrouted(ctx, tx)
		if err != nil {
			return err
		}
		n = len(events)
		hooks := map[string][]*stored{}
		pending := map[string]int{}
		for _, e := range events {
			list, ok := hooks[e.org]
			if !ok {
				if list, err = s.enabledHooks(ctx, tx, e.org); err != nil {
					return err
				}
				hooks[e.org] = list
			}
			sent := 0
			for _, h := range list {
				if !h.wants(e.kind, e.repository) {
					continue
				}
				if _, ok := pending[h.ID]; !ok {
					var count int
					if err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT count(*) FROM registry_webhook_deliveries WHERE state = ? AND hook = ?`),
						Pending, h.ID).Scan(&count); err != nil {
						return err
					}
					pending[h.ID] = count
				}
				if pending[h.ID] >= MaxPending {
					if pending[h.ID] == MaxPending {
						behind = append(behind, h)
					}
					pending[h.ID] = MaxPending + 1
					continue
				}
				pending[h.ID]++
				sent++
				if err := s.queue(ctx, tx, h.ID, e.id, e.kind, e.repository, false); err != nil {
					return err
				}
			}
			query := `UPDATE registry_webhook_events SET routed = 1 WHERE seq = ?`
			if sent == 0 {
				query = `DELETE FROM registry_webhook_events WHERE seq = ?`
			}
			if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(query), e.seq); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("route events: %w", err)
	}
	for _, h := range behind {
		if err := s.disable(ctx, h, fmt.Sprintf("%d deliveries wait for it", MaxPending)); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *Service) unrouted(ctx context.Context, tx *sql.Tx) ([]routable, error) {
	rows, err := tx.QueryContext(ctx, s.cfg.DB.Q(`SELECT seq, id, org, type, repository, body FROM registry_webhook_events WHERE routed = 0 ORDER BY seq LIMIT ?`+s.skipLocked()), routeBatch)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []routable
	for rows.Next() {
		var e routable
		if err := rows.Scan(&e.seq, &e.id, &e.org, &e.kind, &e.repository, &e.body); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

func (s *Service) enabledHooks(ctx context.Context, tx *sql.Tx, org string) ([]*stored, error) {
	rows, err := tx.QueryContext(ctx, s.cfg.DB.Q(`SELECT `+hookColumns+` FROM registry_webhooks WHERE org = ? AND state = ? ORDER BY id`), org, Enabled)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []*stored
	for rows.Next() {
		h, err := s.scanHook(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, rows.Err()
}

// queue makes a delivery; one that is there already stays as it is.
func (s *Service) queue(ctx context.Context, tx *sql.Tx, hook, event string, t registry.EventType, repository string, forced bool) error {
	now := unix(s.cfg.Now())
	var force int64
	if forced {
		force = 1
	}
	_, err := tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_webhook_deliveries
		(hook, event, type, repository, state, forced, tries, attempts, next, leased, created, finished)
		VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?, 0, ?, 0) ON CONFLICT (hook, event) DO NOTHING`), hook, event, t, repository, Pending, force, now, now)
	return err
}

// startSenders gives each hook that has something due a sender, unless this process runs one for it.
func (s *Service) startSenders(ctx context.Context, senders *sync.WaitGroup) error {
	now := unix(s.cfg.Now())
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT DISTINCT d.hook, h.org FROM registry_webhook_deliveries d JOIN registry_webhooks h ON h.id = d.hook
		WHERE d.state = ? AND d.next <= ? AND d.leased <= ? AND (h.state = ? OR d.forced = 1)`), Pending, now, now, Enabled)
	if err != nil {
		return fmt.Errorf("find what is due: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		var hook, org string
		if err := rows.Scan(&hook, &org); err != nil {
			return fmt.Errorf("find what is due: %w", err)
		}
		s.mu.Lock()
		busy := s.sending[hook]
		s.sending[hook] = true
		s.mu.Unlock()
		if busy {
			continue
		}
		senders.Go(func() {
			defer func() {
				s.mu.Lock()
				delete(s.sending, hook)
				s.mu.Unlock()
			}()
			if err := s.sendAll(ctx, org, hook); err != nil && ctx.Err() == nil {
				s.cfg.Logger.ErrorContext(ctx, "webhooks are held up", "step", "send", "org", org, "webhook", hook, "error", err)
			}
		})
	}
	return rows.Err()
}

// Prune deletes deliveries that were finished before Keep, or wait since then for a hook that is not enabled, and the events that no delivery is left of.
func (s *Service) Prune(ctx context.Context) error {
	before := unix(s.cfg.Now().Add(-s.cfg.Keep))
	if _, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_webhook_deliveries WHERE state <> ? AND finished < ? OR created < ? AND leased < ?`), Pending, before, before, before); err != nil {
		return fmt.Errorf("prune deliveries: %w", err)
	}
	if _, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_webhook_events WHERE routed = 1 AND created < ? AND NOT EXISTS
		(SELECT 1 FROM registry_webhook_deliveries d WHERE d.event = registry_webhook_events.id)`), before); err != nil {
		return fmt.Errorf("prune events: %w", err)
	}
	return nil
}
