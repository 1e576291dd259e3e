package oci

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/index"
)

// nearPercent is from where on an org is told that its quota comes to an end.
const nearPercent = 90

// noticeEvery bounds how often an org is told the same.
const noticeEvery = time.Hour

// quotaNotices remembers which notices were given. An org is one entry.
type quotaNotices struct {
	mu    sync.Mutex
	given map[string]time.Time
}

func newQuotaNotices() *quotaNotices { return &quotaNotices{given: map[string]time.Time{}} }

func (q *quotaNotices) first(key string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t, ok := q.given[key]; ok && now.Sub(t) < noticeEvery {
		return false
	}
	if len(q.given) > 4096 {
		clear(q.given)
	}
	q.given[key] = now
	return true
}

func (r *Registry) quota(ctx context.Context, org string) (registry.Quota, error) {
	if r.cfg.Quotas == nil {
		return registry.Quota{}, nil
	}
	return r.cfg.Quotas.Quota(ctx, org)
}

// checkBegin refuses an upload into an org that is full.
func (r *Registry) checkBegin(ctx context.Context, org, name string) error {
	q, err := r.quota(ctx, org)
	if err != nil {
		return err
	}
	if err := r.cfg.Directory.MayPush(ctx, name); err != nil {
		return err
	}
	return r.checkRoom(ctx, org, q, 1)
}

// checkUpload refuses a blob that an org has no room for, unless it has it already.
func (r *Registry) checkUpload(ctx context.Context, org string, q registry.Quota, dgst digest.Digest, size int64) error {
	if q.Bytes <= 0 {
		return nil
	}
	if known, err := r.cfg.Index.HasBlob(ctx, org, dgst); err != nil || known {
		return err
	}
	return r.checkRoom(ctx, org, q, size)
}

func (r *Registry) checkRoom(ctx context.Context, org string, q registry.Quota, size int64) error {
	if q.Bytes <= 0 {
		return nil
	}
	used, err := r.cfg.Index.Used(ctx, org)
	if err != nil {
		return err
	}
	if used+size > q.Bytes {
		return problem.New(problem.ErrExhausted, "the organisation %q may store %d bytes and uses %d: delete images or ask for more", org, q.Bytes, used)
	}
	return nil
}

// mounted counts a blob that came into an org by a mount. Without a bound, nothing is counted before a manifest needs it.
func (r *Registry) mounted(ctx context.Context, name string, desc distribution.Descriptor) error {
	org := orgOf(name)
	if q, err := r.quota(ctx, org); err != nil || q.Bytes <= 0 {
		return err
	}
	return r.cfg.Index.Uploaded(ctx, org, desc.Digest, desc.Size, 0)
}

// noticeRefusal announces that something was refused for a quota.
func (r *Registry) noticeRefusal(ctx context.Context, org, repository, account string, err error) {
	var p *problem.Error
	if !errors.Is(err, problem.ErrExhausted) || !errors.As(err, &p) || !r.quotas.first(org+" refused", time.Now()) {
		return
	}
	r.notice(ctx, registry.Event{Type: registry.EventQuota, Org: org, Repository: repository, Actor: account,
		Data: map[string]string{"state": "refused", "reason": p.Detail}})
}

// noticeUse announces that an org has come near its quota.
func (r *Registry) noticeUse(ctx context.Context, org string, q registry.Quota, done index.PutResult) {
	if q.Bytes <= 0 || done.Added == 0 || done.Used < q.Bytes/100*nearPercent || !r.quotas.first(org+" near", time.Now()) {
		return
	}
	r.notice(ctx, registry.Event{Type: registry.EventQuota, Org: org, Data: map[string]string{"state": "near",
		"used": strconv.FormatInt(done.Used, 10), "quota": strconv.FormatInt(q.Bytes, 10)}})
}

// notice announces what is no reason to fail for when it cannot be announced.
func (r *Registry) notice(ctx context.Context, e registry.Event) {
	if err := r.announce(ctx, e); err != nil {
		r.cfg.Logger.ErrorContext(ctx, "an event is lost", "type", e.Type, "org", e.Org, "error", err)
	}
}
