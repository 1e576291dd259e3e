package registry

import "context"

// Quota bounds what an org stores; 0 is no bound.
type Quota struct {
	// Bytes counts each blob once per org.
	Bytes        int64 `json:"bytes"`
	Repositories int64 `json:"repositories"`
}

// Quotas tells an org's bounds. Errors are of problem's classes. Safe for concurrent use.
type Quotas interface {
	Quota(ctx context.Context, org string) (Quota, error)
}
