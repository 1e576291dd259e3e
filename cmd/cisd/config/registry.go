package config

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// People is who may log in at the registry and how, and what is kept of it. Its keys are registry's own.
type People struct {
	// TrustedProxies are networks in CIDR notation of the proxies in front, whose X-Forwarded-For tells a client's
	// address.
	TrustedProxies []string `yaml:"trustedProxies"`
	// AuditDays is how long audit entries are kept.
	AuditDays int `yaml:"auditDays"`
	// Quota is of orgs that have none of their own.
	Quota RegistryQuota `yaml:"quota"`
	// OIDC is the OpenID provider with which people log in; none while its issuer is empty.
	OIDC OIDC `yaml:"oidc"`
}

// RegistryQuota bounds what an org stores; 0 is no bound.
type RegistryQuota struct {
	GiB          int64 `yaml:"gib"`
	Repositories int64 `yaml:"repositories"`
}

// OIDC is an OpenID provider.
type OIDC struct {
	// Issuer is its URL.
	Issuer string `yaml:"issuer"`
	// ClientID is the registry's at the provider; ClientSecretFile has its secret and no other user may read it.
	ClientID         string `yaml:"clientID"`
	ClientSecretFile string `yaml:"clientSecretFile"`
	// UsernameClaim names new accounts.
	UsernameClaim string `yaml:"usernameClaim"`
	// SignUp makes accounts for who has none; with EmailDomains only for verified addresses of these.
	SignUp       bool     `yaml:"signUp"`
	EmailDomains []string `yaml:"emailDomains"`
	// Org is the org that new people become members of, with Role; none while it is empty.
	Org  string `yaml:"org"`
	Role string `yaml:"role"`
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
	if p.Quota.GiB < 0 || p.Quota.Repositories < 0 {
		bad("registry.quota", "must be 0 (no bound) or more")
	}
	if p.OIDC.Issuer == "" {
		return
	}
	if !strings.HasPrefix(p.OIDC.Issuer, "https://") && !strings.HasPrefix(p.OIDC.Issuer, "http://") {
		bad("registry.oidc.issuer", "must be an http or https URL, not %q", p.OIDC.Issuer)
	}
	if p.OIDC.ClientID == "" {
		bad("registry.oidc.clientID", "is needed with registry.oidc.issuer")
	}
	switch p.OIDC.Role {
	case "admin", "writer", "reader":
	default:
		bad("registry.oidc.role", "must be admin, writer or reader, not %q", p.OIDC.Role)
	}
}
