package webhook

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"cumulet.io/registry"
)

const (
	// pullWindow is how long pulls are gathered before they are written.
	pullWindow = 250 * time.Millisecond
	// maxGathered bounds the different pulls that are gathered; a pull beyond them is written at once.
	maxGathered = 10_000
)

// Emit implements registry.Outbox: one insert, and none where the org has no hook. Pulls are far more than all else,
// and a pull must not wait for a disk: those of an org that wants to know are gathered while Run runs, alike ones
// counted as one (Data "count"), and written within a quarter of a second.
func (s *Service) Emit(ctx context.Context, e registry.Event) error {
	if e.Type == registry.EventPull && s.running.Load() {
		if done := s.pulls.add(e); done {
			return nil
		}
	}
	if err := s.insert(ctx, s.cfg.DB, e); err != nil {
		return err
	}
	s.poke()
	return nil
}

// execer is a database or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (s *Service) insert(ctx context.Context, db execer, e registry.Event) error {
	if e.ID == "" || e.Org == "" || e.Type == "" {
		return errors.New("emit event: id, type and org are needed")
	}
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("emit event: %w", err)
	}
	_, err = db.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_webhook_events (id, org, type, repository, body, created, routed)
		SELECT ?, ?, ?, ?, ?, CAST(? AS BIGINT), 0 WHERE EXISTS (SELECT 1 FROM registry_webhooks WHERE org = ? AND state = ?)
		ON CONFLICT (id) DO NOTHING`), e.ID, e.Org, e.Type, e.Repository, string(body), unix(s.cfg.Now()), e.Org, Enabled)
	if err != nil {
		return fmt.Errorf("emit event: %w", err)
	}
	return nil
}

// pullKey is what alike pulls share.
type pullKey struct{ org, repository, digest, tag, actor string }

type gathered struct {
	event registry.Event
	count int
}

// pulls are the pulls that are not written yet.
type pulls struct {
	mu sync.Mutex
	// wanted are the orgs with an enabled hook that is sent pulls.
	wanted map[string]bool
	byKey  map[pullKey]*gathered
}

// add tells whether the pull needs no further care.
func (p *pulls) add(e registry.Event) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.wanted[e.Org] {
		return true
	}
	key := pullKey{e.Org, e.Repository, e.Digest, e.Tag, e.Actor}
	if g := p.byKey[key]; g != nil {
		g.count++
		return true
	}
	if len(p.byKey) >= maxGathered {
		return false
	}
	if p.byKey == nil {
		p.byKey = map[pullKey]*gathered{}
	}
	p.byKey[key] = &gathered{e, 1}
	return true
}

func (p *pulls) none() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byKey) == 0
}

// take empties the gathering.
func (p *pulls) take() map[pullKey]*gathered {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.byKey
	p.byKey = nil
	return out
}

// restore puts back what could not be written.
func (p *pulls) restore(all map[pullKey]*gathered) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byKey == nil {
		p.byKey = map[pullKey]*gathered{}
	}
	for key, g := range all {
		if later := p.byKey[key]; later != nil {
			later.count += g.count
		} else if len(p.byKey) < maxGathered {
			p.byKey[key] = g
		}
	}
}

// flushPulls writes the gathered pulls in one transaction.
func (s *Service) flushPulls(ctx context.Context) error {
	all := s.pulls.take()
	if len(all) == 0 {
		return nil
	}
	err := s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		for _, g := range all {
			e := g.event
			if g.count > 1 {
				data := map[string]string{"count": strconv.Itoa(g.count)}
				for k, v := range e.Data {
					data[k] = v
				}
				e.Data = data
			}
			if err := s.insert(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.pulls.restore(all)
		return fmt.Errorf("write pulls: %w", err)
	}
	return nil
}

// refreshPulls learns which orgs want pulls. Changes by another process are seen at Run's next look.
func (s *Service) refreshPulls(ctx context.Context) error {
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT DISTINCT org FROM registry_webhooks WHERE state = ? AND (events = '[]' OR events LIKE '%"pull"%')`), Enabled)
	if err != nil {
		return fmt.Errorf("list webhooks: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	wanted := map[string]bool{}
	for rows.Next() {
		var org string
		if err := rows.Scan(&org); err != nil {
			return fmt.Errorf("list webhooks: %w", err)
		}
		wanted[org] = true
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list webhooks: %w", err)
	}
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	s.pulls.wanted = wanted
	return nil
}

// newEvent is an event of the sender's own.
func (s *Service) newEvent(org string, t registry.EventType, data map[string]string) (registry.Event, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return registry.Event{}, fmt.Errorf("make event: %w", err)
	}
	return registry.Event{ID: id.String(), Type: t, Time: s.cfg.Now().UTC(), Org: org, Data: data}, nil
}
