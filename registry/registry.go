// Package registry is the contract of the bundled registry: organisations, members and their roles, accounts,
// repositories, and what a push announces.
//
// It holds types and rules and no I/O. registry/directory keeps them in a database, registry/token turns them into
// hubtokens, registry/oci serves images, registry/server puts the parts together.
package registry

import (
	"slices"
	"time"
)

// Role is what a member may do in an org. Each includes those after it: owner, admin, writer, reader.
type Role string

// The roles. RoleNone is that of a stranger.
const (
	RoleOwner  Role = "owner"
	RoleAdmin  Role = "admin"
	RoleWriter Role = "writer"
	RoleReader Role = "reader"
	RoleNone   Role = ""
)

func (r Role) rank() int {
	return slices.Index([]Role{RoleNone, RoleReader, RoleWriter, RoleAdmin, RoleOwner}, r)
}

// Valid tells whether r is one of the four roles of a member.
func (r Role) Valid() bool { return r.rank() > 0 }

// AtLeast tells whether r includes minimum.
func (r Role) AtLeast(minimum Role) bool { return r.Valid() && r.rank() >= minimum.rank() }

// OrgActions gives a role's actions on hubtoken.TypeOrg: read; write from writer; admin from admin; own for the owner,
// who alone makes owners and ends the org.
func (r Role) OrgActions() []string {
	switch r {
	case RoleOwner:
		return []string{"read", "write", "admin", "own"}
	case RoleAdmin:
		return []string{"read", "write", "admin"}
	case RoleWriter:
		return []string{"read", "write"}
	case RoleReader:
		return []string{"read"}
	default:
		return nil
	}
}

// RepositoryActions gives a role's actions on a repository of its org: pull; push from writer; delete from admin. A
// public repository may be pulled by anyone.
func (r Role) RepositoryActions(v Visibility) []string {
	switch r {
	case RoleOwner, RoleAdmin:
		return []string{"pull", "push", "delete"}
	case RoleWriter:
		return []string{"pull", "push"}
	case RoleReader:
		return []string{"pull"}
	default:
		if v == Public {
			return []string{"pull"}
		}
		return nil
	}
}

// Visibility says who may pull: members of the org, or anyone.
type Visibility string

// The visibilities. A first push makes a private repository.
const (
	Private Visibility = "private"
	Public  Visibility = "public"
)

// Valid tells whether v is one of the two.
func (v Visibility) Valid() bool { return v == Private || v == Public }

// Kind is what stands behind an account.
type Kind string

// The kinds.
const (
	// Person is a human's account; it is a member of orgs.
	Person Kind = "person"
	// Service is a platform component's account; it has platform actions and no membership.
	Service Kind = "service"
	// Robot is a program's account in one org, "org+name"; it has scopes and no membership.
	Robot Kind = "robot"
)

// Account is someone who can log in.
type Account struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// Platform is the actions on hubtoken.TypePlatform: node, operator, meter of a Service; admin, operator of a
	// Person; none of a Robot.
	Platform []string `json:"platform,omitempty"`
	// Disabled accounts cannot log in.
	Disabled bool      `json:"disabled,omitempty"`
	Created  time.Time `json:"created,omitzero"`
}

// Org is an organisation: the tenant.
type Org struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

// Membership is an account's role in an org.
type Membership struct {
	Org  string `json:"org"`
	Role Role   `json:"role"`
}

// Member is a person in an org.
type Member struct {
	Account string `json:"account"`
	Role    Role   `json:"role"`
	// Teams of the org that they are in, by name.
	Teams []string `json:"teams"`
}

// Team is a group of members of an org, to whom repositories are granted at once.
type Team struct {
	Org         string    `json:"org"`
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	// Members is how many there are.
	Members int `json:"members"`
}

// Grant gives a team or a person a role on repositories of an org beyond what their role in the org gives. A person
// need not be a member.
type Grant struct {
	Org string `json:"org"`
	// Exactly one of Team and Account is set.
	Team    string `json:"team,omitempty"`
	Account string `json:"account,omitempty"`
	// Repositories is a full name, or a prefix and "*", as ValidatePattern has it.
	Repositories string `json:"repositories"`
	// Role is reader, writer or admin.
	Role      Role      `json:"role"`
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"createdBy"`
}

// RobotAccount is a robot with what is known of its secret, which itself is shown once.
type RobotAccount struct {
	Org string `json:"org"`
	// Name is unique in the org; Account is what it logs in as.
	Name        string  `json:"name"`
	Account     string  `json:"account"`
	Description string  `json:"description,omitempty"`
	Scopes      []Scope `json:"scopes"`
	Disabled    bool    `json:"disabled"`
	// Expires is when it ends; zero is never. Used is when it last logged in, to the hour; zero is never.
	Expires   time.Time `json:"expires,omitzero"`
	Used      time.Time `json:"used,omitzero"`
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"createdBy"`
}

// APIKey stands in for a person's password; the key itself is shown once.
type APIKey struct {
	ID      string `json:"id"`
	Account string `json:"account"`
	// Name is unique among the account's keys.
	Name string `json:"name"`
	// Scopes are the most that it may do; empty is all that the account may, but for changes of the account itself.
	Scopes []Scope `json:"scopes"`
	// Expires is when it ends; zero is never. Used is when it was last used, to the hour; zero is never.
	Expires time.Time `json:"expires,omitzero"`
	Used    time.Time `json:"used,omitzero"`
	Created time.Time `json:"created"`
}

// Identity is who a person is at an OpenID provider.
type Identity struct {
	// Provider is what the registry calls the provider, "" when it is not configured any more.
	Provider string `json:"provider,omitempty"`
	// Issuer is the provider, Subject the person there, who never changes.
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
	Account string `json:"account"`
	// Email is what the provider said when it was linked; nothing is decided by it.
	Email   string    `json:"email,omitempty"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used,omitzero"`
}

// Login is a proven identity with the bounds of what proved it.
type Login struct {
	Account
	// Scopes are a robot's: all that it may do.
	Scopes []Scope
	// KeyID is the API key's that was given; empty for any other proof.
	KeyID string
	// Limited tells that no more than Limits may be done.
	Limited bool
	Limits  []Scope
}

// Repository is a named collection of manifests and blobs of one org.
type Repository struct {
	// Name is the full name, "org/repo…".
	Name       string     `json:"name"`
	Org        string     `json:"org"`
	Visibility Visibility `json:"visibility"`
	// Created is the time of the first push, Pushed of the latest.
	Created time.Time `json:"created"`
	Pushed  time.Time `json:"pushed"`
	// CreatedBy is the account that pushed first.
	CreatedBy string `json:"createdBy"`
}
