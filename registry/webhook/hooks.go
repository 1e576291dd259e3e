package webhook

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/google/uuid"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// Bounds on replacing a secret.
const (
	maxSecrets = 4
	// MaxOverlap is how long a replaced secret may go on signing.
	MaxOverlap = 30 * 24 * time.Hour
)

func (s *Service) audit(ctx context.Context, org, action, target string, detail map[string]string) error {
	if s.cfg.Auditor == nil {
		return nil
	}
	actor := registry.ActorFrom(ctx)
	err := s.cfg.Auditor.Audit(ctx, registry.AuditEntry{Time: s.cfg.Now().UTC(), Org: org, Actor: actor.Name, Address: actor.Address,
		Action: action, Target: target, Detail: detail})
	if err != nil {
		return fmt.Errorf("audit %s: %w", action, err)
	}
	return nil
}

const hookColumns = `id, org, url, description, events, repositories, state, reason, secrets, created, created_by, updated, failing, succeeded`

// stored is a hook with its secrets.
type stored struct {
	Hook
	secrets []secret
}

func (s *Service) scanHook(scan func(...any) error) (*stored, error) {
	h := &stored{}
	var events, repositories string
	var sealed []byte
	var created, updated, failing, succeeded int64
	if err := scan(&h.ID, &h.Org, &h.URL, &h.Description, &events, &repositories, &h.State, &h.Reason, &sealed, &created,
		&h.CreatedBy, &updated, &failing, &succeeded); err != nil {
		return nil, err
	}
	if err := errors.Join(json.Unmarshal([]byte(events), &h.Events), json.Unmarshal([]byte(repositories), &h.Repositories)); err != nil {
		return nil, fmt.Errorf("webhook %s: %w", h.ID, err)
	}
	h.CreatedAt, h.UpdatedAt = timeOf(created), timeOf(updated)
	h.FailingSince, h.SucceededAt = optionalTime(failing), optionalTime(succeeded)
	h.Secrets = []SecretInfo{}
	var err error
	if h.secrets, err = s.vault.open(h.ID, sealed); err != nil {
		// The hook must stay visible, so that its secret can be rotated; without one nothing is sent.
		h.secrets = nil
	}
	for _, one := range h.secrets {
		if one.live(s.cfg.Now()) {
			h.Secrets = append(h.Secrets, SecretInfo{one.Created, optionalTime(unix(one.Expires))})
		}
	}
	return h, nil
}

func (s *Service) hook(ctx context.Context, org, id string) (*stored, error) {
	h, err := s.scanHook(s.cfg.DB.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT `+hookColumns+` FROM registry_webhooks WHERE org = ? AND id = ?`), org, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noHook(org, id)
	}
	if err != nil {
		return nil, fmt.Errorf("read webhook: %w", err)
	}
	return h, nil
}

func noHook(org, id string) error {
	return problem.New(problem.ErrNotFound, "the organisation %q has no webhook %q", org, id)
}

// Hook gives one hook of an org, or ErrNotFound.
func (s *Service) Hook(ctx context.Context, org, id string) (*Hook, error) {
	h, err := s.hook(ctx, org, id)
	if err != nil {
		return nil, err
	}
	return &h.Hook, nil
}

// Hooks lists an org's hooks, the oldest first: at most MaxHooks.
func (s *Service) Hooks(ctx context.Context, org string) ([]Hook, error) {
	all, err := s.hooks(ctx, `WHERE org = ? ORDER BY id`, org)
	out := make([]Hook, 0, len(all))
	for _, h := range all {
		out = append(out, h.Hook)
	}
	return out, err
}

func (s *Service) hooks(ctx context.Context, where string, args ...any) ([]*stored, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, s.cfg.DB.Q(`SELECT `+hookColumns+` FROM registry_webhooks `+where), args...)
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err tells
	var out []*stored
	for rows.Next() {
		h, err := s.scanHook(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list webhooks: %w", err)
		}
		out = append(out, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	return out, nil
}

// Create makes a hook and gives it with its secret, which is never shown again. ErrExhausted at MaxHooks.
func (s *Service) Create(ctx context.Context, org string, spec Spec) (*Hook, string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, "", fmt.Errorf("create webhook: %w", err)
	}
	now := s.cfg.Now().UTC()
	h := Hook{ID: id.String(), Org: org, URL: spec.URL, Description: spec.Description, Events: spec.Events, Repositories: spec.Repositories,
		State: Enabled, CreatedAt: now, CreatedBy: registry.ActorFrom(ctx).Name, UpdatedAt: now, Secrets: []SecretInfo{{CreatedAt: now}}}
	h.normalize()
	if err := h.validate(s.cfg.Allow); err != nil {
		return nil, "", err
	}
	key := newKey()
	if spec.Secret != "" {
		if key, err = parseSecret(spec.Secret); err != nil {
			return nil, "", err
		}
	}
	sealed, err := s.vault.seal(h.ID, []secret{{Key: key, Created: now}})
	if err != nil {
		return nil, "", fmt.Errorf("create webhook: %w", err)
	}
	if err := s.audit(ctx, org, "webhook.create", "webhook/"+h.ID, map[string]string{"host": hostOf(h.URL)}); err != nil {
		return nil, "", err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		// The org's row is written first: it makes those who add hooks at the same time wait for each other.
		res, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_orgs SET created = created WHERE name = ?`), org)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return problem.New(problem.ErrNotFound, "there is no organisation %q", org)
		}
		var n int
		if err := tx.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT count(*) FROM registry_webhooks WHERE org = ?`), org).Scan(&n); err != nil {
			return err
		}
		if n >= MaxHooks {
			return problem.New(problem.ErrExhausted, "an organisation may have %d webhooks: delete one first", MaxHooks)
		}
		_, err = tx.ExecContext(ctx, s.cfg.DB.Q(`INSERT INTO registry_webhooks (`+hookColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)`),
			h.ID, org, h.URL, h.Description, text(h.Events), text(h.Repositories), h.State, "", sealed, unix(now), registry.ActorFrom(ctx).Name, unix(now))
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("create webhook: %w", err)
	}
	return &h, secretText(key), s.refreshPulls(ctx)
}

// normalize makes lists that are not there empty ones, and drops repeats.
func (h *Hook) normalize() {
	h.Events = slices.Compact(slices.Sorted(slices.Values(h.Events)))
	h.Repositories = slices.Compact(slices.Sorted(slices.Values(h.Repositories)))
	if h.Events == nil {
		h.Events = []registry.EventType{}
	}
	if h.Repositories == nil {
		h.Repositories = []string{}
	}
}

func text(v any) string {
	b, _ := json.Marshal(v) //nolint:errcheck // lists of strings
	return string(b)
}

// hostOf is what of a URL may be logged: its path or query may hold a receiver's secret.
func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}

// Update changes a hook. Enabling one that is disabled starts it afresh; what waits for it is sent.
func (s *Service) Update(ctx context.Context, org, id string, c Change) (*Hook, error) {
	h, err := s.hook(ctx, org, id)
	if err != nil {
		return nil, err
	}
	detail := map[string]string{}
	if c.URL != nil {
		h.URL, detail["host"] = *c.URL, hostOf(*c.URL)
	}
	if c.Description != nil {
		h.Description = *c.Description
	}
	if c.Events != nil {
		h.Events, detail["events"] = *c.Events, text(*c.Events)
	}
	if c.Repositories != nil {
		h.Repositories, detail["repositories"] = *c.Repositories, text(*c.Repositories)
	}
	failing := h.FailingSince
	if c.State != nil {
		if *c.State != Enabled && *c.State != Paused {
			return nil, problem.Invalid("state", "must be enabled or paused", *c.State)
		}
		h.State, h.Reason, failing, detail["state"] = *c.State, "", nil, string(*c.State)
	}
	h.normalize()
	if err := h.validate(s.cfg.Allow); err != nil {
		return nil, err
	}
	if err := s.audit(ctx, org, "webhook.change", "webhook/"+id, detail); err != nil {
		return nil, err
	}
	h.UpdatedAt, h.FailingSince = s.cfg.Now().UTC(), failing
	var since int64
	if failing != nil {
		since = unix(*failing)
	}
	res, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhooks SET url = ?, description = ?, events = ?, repositories = ?, state = ?,
		reason = ?, updated = ?, failing = ? WHERE org = ? AND id = ?`),
		h.URL, h.Description, text(h.Events), text(h.Repositories), h.State, h.Reason, unix(h.UpdatedAt), since, org, id)
	if err := oneRow(res, err, org, id); err != nil {
		return nil, err
	}
	s.poke()
	return &h.Hook, s.refreshPulls(ctx)
}

// Delete removes a hook with its log; what waits for it is not sent.
func (s *Service) Delete(ctx context.Context, org, id string) error {
	if _, err := s.hook(ctx, org, id); err != nil {
		return err
	}
	if err := s.audit(ctx, org, "webhook.delete", "webhook/"+id, nil); err != nil {
		return err
	}
	res, err := s.cfg.DB.ExecContext(ctx, s.cfg.DB.Q(`DELETE FROM registry_webhooks WHERE org = ? AND id = ?`), org, id)
	if err := oneRow(res, err, org, id); err != nil {
		return err
	}
	return s.refreshPulls(ctx)
}

func oneRow(res sql.Result, err error, org, id string) error {
	if err != nil {
		return fmt.Errorf("change webhook: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return fmt.Errorf("change webhook: %w", err)
	} else if n == 0 {
		return noHook(org, id)
	}
	return nil
}

// Rotate gives a hook a new secret: text, or one made up when "". Those before it go on signing for overlap, at most
// MaxOverlap; with 0 they end at once. It gives the new secret, which is never shown again.
func (s *Service) Rotate(ctx context.Context, org, id, given string, overlap time.Duration) (*Hook, string, error) {
	if overlap < 0 || overlap > MaxOverlap {
		return nil, "", problem.Invalid("overlap", "must be from 0s to 720h", overlap)
	}
	key, err := newKey(), error(nil)
	if given != "" {
		if key, err = parseSecret(given); err != nil {
			return nil, "", err
		}
	}
	if _, err := s.hook(ctx, org, id); err != nil {
		return nil, "", err
	}
	if err := s.audit(ctx, org, "webhook.rotate", "webhook/"+id, map[string]string{"overlap": overlap.String()}); err != nil {
		return nil, "", err
	}
	err = s.cfg.DB.InTx(ctx, func(tx *sql.Tx) error {
		now := s.cfg.Now().UTC()
		// Written first, so that two rotations at once keep each other's secret.
		if _, err := tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhooks SET updated = ? WHERE org = ? AND id = ?`), unix(now), org, id); err != nil {
			return err
		}
		h, err := s.scanHook(tx.QueryRowContext(ctx, s.cfg.DB.Q(`SELECT `+hookColumns+` FROM registry_webhooks WHERE org = ? AND id = ?`), org, id).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return noHook(org, id)
		}
		if err != nil {
			return err
		}
		secrets := []secret{{Key: key, Created: now}}
		end := now.Add(overlap)
		for _, old := range h.secrets {
			if old.Expires.IsZero() || old.Expires.After(end) {
				old.Expires = end
			}
			if old.live(now) && len(secrets) < maxSecrets {
				secrets = append(secrets, old)
			}
		}
		sealed, err := s.vault.seal(id, secrets)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, s.cfg.DB.Q(`UPDATE registry_webhooks SET secrets = ? WHERE org = ? AND id = ?`), sealed, org, id)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("rotate secret: %w", err)
	}
	h, err := s.Hook(ctx, org, id)
	return h, secretText(key), err
}
