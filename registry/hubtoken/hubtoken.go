// Package hubtoken issues and verifies hubtokens: signed JWTs (RFC 7519) that carry tenant and access list, so that
// every service of the platform decides alone, with no call home.
//
// It knows nothing of users or passwords: the token service that decides who gets what is in registry/token.
package hubtoken

import (
	"context"
	"errors"
	"slices"

	"github.com/golang-jwt/jwt/v5"
)

// Audiences: a token for one service is no use at another.
const (
	AudienceRegistry = "registry"
	AudienceCIS      = "cis"
	AudienceLogs     = "logs"
	AudienceBilling  = "billing"
	// AudienceToken marks a token that may only be exchanged at the token service for a narrower one.
	AudienceToken = "token"
)

// Resource types of an access entry.
const (
	// TypeRepository names "org/repo…"; actions pull, push, delete, as the Docker token specification has them.
	TypeRepository = "repository"
	// TypeOrg names an organisation; actions read, write, admin (on instances, logs and bills, by audience), and own
	// (the org itself).
	TypeOrg = "org"
	// TypePlatform names "*"; actions node (a virtual node's agent, may act for every org), operator (reads
	// everything), meter (reads meter events), admin (manages accounts, orgs and quotas at the registry, and opens no
	// org's content). Only admin and operator are ever given to a person.
	TypePlatform = "platform"
	// TypeAccount names the subject's own account; actions read, write (password, API keys, identities). Write is for
	// those who have proven who they are by password or OpenID Connect, not for what stands in for it.
	TypeAccount = "account"
)

// Actions on TypeOrg and TypePlatform.
const (
	ActionRead     = "read"
	ActionWrite    = "write"
	ActionAdmin    = "admin"
	ActionOwn      = "own"
	ActionNode     = "node"
	ActionOperator = "operator"
	ActionMeter    = "meter"
)

// Access is one entry of a token's access list (Docker token specification, "access").
type Access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// Claims is the body of a hubtoken.
type Claims struct {
	jwt.RegisteredClaims
	// Org is the tenant that the subject belongs to; empty for the anonymous and for platform roles.
	Org string `json:"org,omitempty"`
	// Access is what the bearer may do.
	Access []Access `json:"access"`
}

// Allows tells whether the access list grants action on the named resource. There are no wildcards in a token, but for
// TypePlatform, whose only name is "*".
func (c *Claims) Allows(typ, name, action string) bool {
	return slices.ContainsFunc(c.Access, func(a Access) bool {
		return a.Type == typ && a.Name == name && slices.Contains(a.Actions, action)
	})
}

// AllowsOrg tells whether the bearer may do action (read, write, admin, own) in org. admin implies write, write implies
// read; own is itself alone. The platform's node role has write in every org, its operator role read.
func (c *Claims) AllowsOrg(org, action string) bool {
	if c.Allows(TypePlatform, "*", ActionNode) && (action == ActionRead || action == ActionWrite) ||
		c.Allows(TypePlatform, "*", ActionOperator) && action == ActionRead {
		return true
	}
	switch action {
	case ActionRead:
		return c.Allows(TypeOrg, org, ActionRead) || c.Allows(TypeOrg, org, ActionWrite) || c.Allows(TypeOrg, org, ActionAdmin)
	case ActionWrite:
		return c.Allows(TypeOrg, org, ActionWrite) || c.Allows(TypeOrg, org, ActionAdmin)
	default:
		return c.Allows(TypeOrg, org, action)
	}
}

// ErrInvalidToken is returned for a token that is malformed, expired, wrongly signed, for another audience or of an
// unknown key. Its text never holds the token.
var ErrInvalidToken = errors.New("the token is not valid")

// Verifier checks a compact token for one audience. Implementations are safe for concurrent use and bounded in time.
// The error wraps ErrInvalidToken, or is another one when the keys could not be had (then the caller answers 503).
type Verifier interface {
	Verify(ctx context.Context, token, audience string) (*Claims, error)
}

// Source gives a valid token for the bearer's own calls; it refreshes before expiry. Safe for concurrent use.
type Source interface {
	Token(ctx context.Context) (string, error)
}
