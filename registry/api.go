package registry

import "time"

// Page is one page of a listing of the HTTP API. Next is "" on the last.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// Me is the caller's own account.
type Me struct {
	Account
	// Orgs are a person's.
	Orgs []Membership `json:"orgs"`
	// Grants are a person's on repositories, their own and those of their teams.
	Grants []Grant `json:"grants"`
	// HasPassword tells that a password lets them in; who came by OpenID Connect has none until they set one.
	HasPassword bool `json:"hasPassword"`
}

// OrgInfo is an org with what the caller is in it.
type OrgInfo struct {
	Org
	// Role is the caller's; empty for who manages the platform.
	Role Role `json:"role,omitempty"`
	// Quota bounds what the org stores.
	Quota Quota `json:"quota"`
}

// NewAccount asks for a person's account. Without Password one is made up and answered once.
type NewAccount struct {
	Name     string   `json:"name"`
	Password string   `json:"password,omitempty"`
	Platform []string `json:"platform,omitempty"`
}

// AccountChange changes an account; nil stays.
type AccountChange struct {
	Disabled *bool     `json:"disabled,omitempty"`
	Platform *[]string `json:"platform,omitempty"`
}

// AccountPassword is an account with a password that was made up for it, shown this once.
type AccountPassword struct {
	Account
	Password string `json:"password,omitempty"`
}

// PasswordChange sets a password. Current is needed by who has one and changes their own.
type PasswordChange struct {
	Current  string `json:"current,omitempty"`
	Password string `json:"password"`
}

// NewOrg asks for an org. Owner is the caller when it is empty.
type NewOrg struct {
	Name  string `json:"name"`
	Owner string `json:"owner,omitempty"`
}

// MemberRole sets a member's role.
type MemberRole struct {
	Role Role `json:"role"`
}

// TeamChange makes or changes a team.
type TeamChange struct {
	Description string `json:"description"`
}

// NewRobot asks for a robot.
type NewRobot struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Scopes      []Scope   `json:"scopes"`
	Expires     time.Time `json:"expires,omitzero"`
}

// RobotChange changes a robot; nil stays, and the zero time of Expires is never.
type RobotChange struct {
	Description *string    `json:"description,omitempty"`
	Scopes      *[]Scope   `json:"scopes,omitempty"`
	Disabled    *bool      `json:"disabled,omitempty"`
	Expires     *time.Time `json:"expires,omitempty"`
}

// RobotSecret is a robot with its new secret, shown this once.
type RobotSecret struct {
	RobotAccount
	Secret string `json:"secret"`
}

// NewAPIKey asks for an API key.
type NewAPIKey struct {
	Name    string    `json:"name"`
	Scopes  []Scope   `json:"scopes,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// APIKeySecret is an API key with the key itself, shown this once.
type APIKeySecret struct {
	APIKey
	Key string `json:"key"`
}

// DeviceAuthorization tells how a person finishes a login in a browser (RFC 8628, section 3.2).
type DeviceAuthorization struct {
	DeviceCode              string `json:"device_code"`
	UserCode                string `json:"user_code"`
	VerificationURI         string `json:"verification_uri"`
	VerificationURIComplete string `json:"verification_uri_complete"`
	// ExpiresIn and Interval are in seconds.
	ExpiresIn int `json:"expires_in"`
	Interval  int `json:"interval"`
}
