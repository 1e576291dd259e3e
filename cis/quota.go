package cis

import (
	"context"
	"io"
	"time"

	"cumulet.io/internal/problem"
)

// Quota bounds the live instances of an org together. A zero field does not bound.
type Quota struct {
	Instances int64 `json:"instances,omitempty"`
	MilliCPU  int64 `json:"milliCPU,omitempty"`
	MemoryMiB int64 `json:"memoryMiB,omitempty"`
}

// Where the quota that holds for an org comes from.
const (
	QuotaSet        = "set"        // by SetQuota
	QuotaConfigured = "configured" // for the org, in the operator's configuration
	QuotaDefault    = "default"    // for every org that has none of its own
)

// OrgQuota is what bounds an org, and what it uses of it.
type OrgQuota struct {
	Org   string `json:"org"`
	Quota Quota  `json:"quota"`
	// Source is QuotaSet, QuotaConfigured or QuotaDefault.
	Source string `json:"source"`
	// Used is what the org's live instances take.
	Used Quota `json:"used"`
	// Changes are the last ones, newest first; at most MaxQuotaChanges.
	Changes []QuotaChange `json:"changes"`
}

// MaxQuotaChanges is how many changes an OrgQuota tells.
const MaxQuotaChanges = 20

// QuotaChange is a change of what was set for an org.
type QuotaChange struct {
	Time time.Time `json:"time"`
	// Actor is the account that made it.
	Actor string `json:"actor"`
	// Before and After are what was set; nil is nothing.
	Before *Quota `json:"before,omitempty"`
	After  *Quota `json:"after,omitempty"`
}

// Quotas reads and sets what bounds the orgs. Errors are of problem's classes.
type Quotas interface {
	// Quota tells what bounds an org. Every valid name is one.
	Quota(ctx context.Context, org string) (*OrgQuota, error)
	// SetQuota sets an org's quota over the configuration's, or with nil lets that hold again, and keeps who did it. It holds
	// for instances that are made from then on; what runs goes on. Safe to repeat.
	SetQuota(ctx context.Context, org, actor string, q *Quota) (*OrgQuota, error)
}

// maxQuotaBytes bounds the body that sets a quota.
const maxQuotaBytes = 4 << 10

// maxQuota bounds each field: sums of it do not overflow.
const maxQuota = 1 << 40

// DecodeQuota reads a Quota as DecodeCreate reads a request.
func DecodeQuota(r io.Reader) (*Quota, error) {
	q := new(Quota)
	if err := decodeStrict(r, maxQuotaBytes, q); err != nil {
		return nil, err
	}
	return q, nil
}

// Validate checks that the bounds are possible.
func (q *Quota) Validate() error {
	for _, f := range []struct {
		name  string
		value int64
	}{{"instances", q.Instances}, {"milliCPU", q.MilliCPU}, {"memoryMiB", q.MemoryMiB}} {
		if f.value < 0 || f.value > maxQuota {
			return problem.Invalid(f.name, "must be 0 (no bound) to 1099511627776", f.value)
		}
	}
	return nil
}
