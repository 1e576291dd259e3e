package registry

import (
	"context"
	"time"
)

// AuditEntry is one line of an org's audit log: a change, or an access that was denied. It never holds a secret.
type AuditEntry struct {
	// ID orders entries; the log gives it.
	ID int64 `json:"id"`
	// Time is set by the log when zero.
	Time time.Time `json:"time"`
	// Org may read the entry; empty for what concerns the platform alone.
	Org string `json:"org,omitempty"`
	// Actor is the account; empty for the anonymous. Address is the client's.
	Actor   string `json:"actor,omitempty"`
	Address string `json:"address,omitempty"`
	// Action is "noun.verb", as "member.set", "repository.delete", "login".
	Action string `json:"action"`
	// Target is what it was done to, as "acme/web:1" or "team/dev".
	Target string `json:"target,omitempty"`
	// Denied tells that it was refused and why is in Detail["reason"].
	Denied bool              `json:"denied"`
	Detail map[string]string `json:"detail,omitempty"`
}

// Auditor keeps audit entries. A change whose entry cannot be kept fails. A denial is kept though ctx has ended, as it does
// when the client hangs up on the answer; equal denials may be counted and kept as one. Safe for concurrent use.
type Auditor interface {
	Audit(ctx context.Context, e AuditEntry) error
}
