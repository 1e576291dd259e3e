package role

import (
	"context"
	"fmt"
	"time"

	"cumulet.io/cmd/cisd/config"
	"cumulet.io/internal/httpserve"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/server"
	"cumulet.io/registry/weblogin"
)

// registry is the bundled registry with the token service.
func (p *process) registry(ctx context.Context) ([]part, error) {
	c := p.cfg.Registry
	db, err := p.database(ctx, c.Database)
	if err != nil {
		return nil, err
	}
	storage, err := p.storage(ctx, db, c.Database)
	if err != nil {
		return nil, err
	}
	file := func(name string) directory.Credential {
		return directory.Credential{Name: name, PasswordFile: p.cfg.Path("credentials", name)}
	}
	networks, err := c.Webhooks.Networks()
	if err != nil {
		return nil, fmt.Errorf("registry.webhooks.allowNetworks: %w", err)
	}
	proxies, err := c.Proxies()
	if err != nil {
		return nil, fmt.Errorf("registry.trustedProxies: %w", err)
	}
	providers, err := openIDProviders(c.People)
	if err != nil {
		return nil, err
	}
	reg, err := server.New(ctx, server.Config{
		DB: db, Dir: p.cfg.Path("registry"), PublicURL: c.URL, Issuer: tokenIssuer, TokenTTL: c.TokenTTL,
		Storage: storage,
		Bootstrap: directory.Bootstrap{
			Admin: file(c.AdminUser), Org: c.AdminOrg,
			Services: []directory.ServiceAccount{
				{Credential: file(accountKubelet), Platform: []string{hubtoken.ActionNode}},
				{Credential: file(accountControl), Platform: []string{hubtoken.ActionNode, hubtoken.ActionOperator}},
				{Credential: file(accountBilling), Platform: []string{hubtoken.ActionOperator, hubtoken.ActionMeter}},
			},
		},
		WebhookNetworks: networks,
		TrustedProxies:  proxies,
		AuditRetention:  time.Duration(c.AuditDays) * 24 * time.Hour,
		GroupsFor:       time.Duration(c.GroupDays) * 24 * time.Hour,
		Quota:           registry.Quota{Bytes: c.Quota.GiB << 30, Repositories: c.Quota.Repositories},
		OIDC:            providers,
		Logger:          p.log.With("role", Registry),
	})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, reg.Close)
	http, err := p.serve(ctx, c.Listen, httpserve.Config{Role: string(Registry), Handler: reg, Ready: reg.Check, Metrics: metrics()})
	if err != nil {
		return nil, err
	}
	return []part{http, {"registry", reg.Run}}, nil
}

// openIDProviders are those of the configuration with their secrets.
func openIDProviders(p config.People) ([]weblogin.Provider, error) {
	providers := p.Providers()
	for i, o := range p.OIDC {
		var err error
		if providers[i].ClientSecret, err = o.Secret(); err != nil {
			return nil, fmt.Errorf("registry.oidc[%d].clientSecretFile: %w", i, err)
		}
	}
	return providers, nil
}

// database opens a role's database; it is closed when everything has stopped.
func (p *process) database(ctx context.Context, dsn string) (*sqldb.DB, error) {
	db, err := sqldb.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, db.Close)
	return db, nil
}
