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

// OrgActions gives a role's actions on hubtoken.TypeOrg: read; write from writer; admin from admin.
func (r Role) OrgActions() []string {
	switch r {
	case RoleOwner, RoleAdmin:
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
)

// Account is someone who can log in.
type Account struct {
	Name string
	Kind Kind
	// Platform is the actions on hubtoken.TypePlatform (node, operator, meter) of a Service; empty for a Person.
	Platform []string
}

// Membership is an account's role in an org.
type Membership struct {
	Org  string
	Role Role
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
