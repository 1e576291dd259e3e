package control

import (
	"context"
	"fmt"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/control/store"
	"cumulet.io/internal/problem"
)

// Quota is the contract's.
type Quota = cis.Quota

// quota gives what bounds an org and where that comes from: what was set, the configuration's for the org, its default.
func (c *Control) quota(org string) (q Quota, source string) {
	if q, ok := c.store.Quota(org); ok {
		return q, cis.QuotaSet
	}
	if q, ok := c.cfg.OrgQuota[org]; ok {
		return q, cis.QuotaConfigured
	}
	return c.cfg.Quota, cis.QuotaDefault
}

// admits refuses what would pass an org's quota beside what is live.
func admits(q Quota, u store.Usage, s billing.Size) error {
	if what := exceeded(q, u, s); what != "" {
		return problem.New(problem.ErrExhausted, "the organisation's quota is used up: %s; delete instances, or ask for a larger quota", what)
	}
	return nil
}

// exceeded names the bound that would be passed, "" when none.
func exceeded(q Quota, u store.Usage, s billing.Size) string {
	for _, b := range []struct {
		name             string
		limit, used, add int64
	}{
		{"instances", q.Instances, u.Instances, 1},
		{"milliCPU", q.MilliCPU, u.MilliCPU, s.MilliCPU},
		{"memory MiB", q.MemoryMiB, u.MemoryMiB, s.MemoryMiB},
	} {
		if b.limit > 0 && b.used+b.add > b.limit {
			return fmt.Sprintf("%d %s in use and %d more asked for, of %d", b.used, b.name, b.add, b.limit)
		}
	}
	return ""
}

// Quota implements cis.Quotas.
func (c *Control) Quota(ctx context.Context, org string) (*cis.OrgQuota, error) {
	if err := cis.ValidateOrg(org); err != nil {
		return nil, err
	}
	out := &cis.OrgQuota{Org: org}
	out.Quota, out.Source = c.quota(org)
	used, _ := c.store.Usage(org)
	out.Used = Quota(used)
	var err error
	out.Changes, err = c.store.QuotaChanges(ctx, org)
	return out, err
}

// SetQuota implements cis.Quotas.
func (c *Control) SetQuota(ctx context.Context, org, actor string, q *Quota) (*cis.OrgQuota, error) {
	if err := cis.ValidateOrg(org); err != nil {
		return nil, err
	}
	if q != nil {
		if err := q.Validate(); err != nil {
			return nil, err
		}
	}
	if err := c.store.SetQuota(ctx, org, actor, q); err != nil {
		return nil, err
	}
	c.log.InfoContext(ctx, "quota set", "org", org, "actor", actor, "quota", q)
	return c.Quota(ctx, org)
}
