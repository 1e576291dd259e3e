package config

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/weblogin"
)

// People is who may log in at the registry and how, and what is kept of it. Its keys are registry's own.
type People struct {
	// TrustedProxies are networks in CIDR notation of the proxies in front, whose X-Forwarded-For tells a client's
	// address.
	TrustedProxies []string `yaml:"trustedProxies"`
	// AuditDays is how long audit entries are kept.
	AuditDays int `yaml:"auditDays"`
	// GroupDays is how long after a login by browser what a provider's groups gave stays; 0 is for ever.
	GroupDays int `yaml:"groupDays"`
	// Quota is of orgs that have none of their own.
	Quota RegistryQuota `yaml:"quota"`
	// OIDC are the OpenID providers with which people log in.
	OIDC []OIDC `yaml:"oidc"`
}

// RegistryQuota bounds what an org stores; 0 is no bound.
type RegistryQuota struct {
	GiB          int64 `yaml:"gib"`
	Repositories int64 `yaml:"repositories"`
}

// OIDC is an OpenID provider.
type OIDC struct {
	// Name is what people call it; Issuer is its URL.
	Name   string `yaml:"name"`
	Issuer string `yaml:"issuer"`
	// ClientID is the registry's at the provider; ClientSecretFile has its secret and no other user may read it.
	ClientID         string `yaml:"clientID"`
	ClientSecretFile string `yaml:"clientSecretFile"`
	// Scopes are asked for beside openid; none are profile and email.
	Scopes []string `yaml:"scopes"`
	// UsernameClaim names new accounts, preferred_username while it is empty; AccountPrefix begins their names.
	UsernameClaim string `yaml:"usernameClaim"`
	AccountPrefix string `yaml:"accountPrefix"`
	// SignUp makes accounts for who has none; with EmailDomains only for verified addresses of these.
	SignUp       bool     `yaml:"signUp"`
	EmailDomains []string `yaml:"emailDomains"`
	// Org is the org that new people become members of, with Role, reader while it is empty; none while Org is empty.
	Org  string `yaml:"org"`
	Role string `yaml:"role"`
	// GroupsClaim has a person's groups, Groups what they give.
	GroupsClaim string      `yaml:"groupsClaim"`
	Groups      []OIDCGroup `yaml:"groups"`
}

// OIDCGroup gives the members of a provider's group a role in an org, reader while it is empty, and a team there.
type OIDCGroup struct {
	Group string `yaml:"group"`
	Org   string `yaml:"org"`
	Role  string `yaml:"role"`
	Team  string `yaml:"team"`
}

// Providers gives OIDC as it is used, without the secrets.
func (p People) Providers() []weblogin.Provider {
	var out []weblogin.Provider
	for _, o := range p.OIDC {
		one := weblogin.Provider{Name: o.Name, Issuer: o.Issuer, ClientID: o.ClientID, Scopes: o.Scopes, UsernameClaim: o.UsernameClaim, AccountPrefix: o.AccountPrefix,
			SignUp: o.SignUp, EmailDomains: o.EmailDomains, SignUpOrg: o.Org, SignUpRole: registry.Role(o.Role), GroupsClaim: o.GroupsClaim}
		for _, g := range o.Groups {
			one.Groups = append(one.Groups, weblogin.Group{Name: g.Group, GroupRight: directory.GroupRight{Org: g.Org, Team: g.Team, Role: registry.Role(g.Role)}})
		}
		out = append(out, one)
	}
	return out
}

// networks parses a list of networks in CIDR notation.
func networks(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return nil, fmt.Errorf("must be networks as 10.0.0.0/8, not %q", text)
		}
		out = append(out, p)
	}
	return out, nil
}

// Proxies gives TrustedProxies parsed.
func (p People) Proxies() ([]netip.Prefix, error) { return networks(p.TrustedProxies) }

// Secret reads the client secret.
func (o OIDC) Secret() (string, error) {
	if o.ClientSecretFile == "" {
		return "", nil
	}
	st, err := os.Stat(o.ClientSecretFile)
	if err != nil {
		return "", err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s may be read by others (mode %04o): chmod 600 it", o.ClientSecretFile, st.Mode().Perm())
	}
	text, err := os.ReadFile(o.ClientSecretFile)
	return strings.TrimSpace(string(text)), err
}

// check tells what cannot work, by its key below registry.
func (p People) check(bad func(key, format string, args ...any)) {
	if _, err := p.Proxies(); err != nil {
		bad("registry.trustedProxies", "%v", err)
	}
	if p.AuditDays < 1 {
		bad("registry.auditDays", "must be at least 1, not %d", p.AuditDays)
	}
	if p.GroupDays < 0 {
		bad("registry.groupDays", "must be 0 (for ever) or more, not %d", p.GroupDays)
	}
	if p.Quota.GiB < 0 || p.Quota.Repositories < 0 {
		bad("registry.quota", "must be 0 (no bound) or more")
	}
	if err := weblogin.Check(p.Providers()); err != nil {
		bad("registry.oidc", "%v", err)
	}
}
