package role

import (
	"context"
	"log/slog"

	"cumulet.io/cmd/cisd/config"
	"cumulet.io/internal/httpserve"
	"cumulet.io/logs/elastic"
	"cumulet.io/logs/embedded"
	"cumulet.io/logs/server"
)

// logs is the log store, embedded or an Elasticsearch of the operator's, with its query API.
func (p *process) logs(ctx context.Context) ([]part, error) {
	c := p.cfg.Logs
	log := p.log.With("role", string(Logs))
	var parts []part
	if c.Elasticsearch.URL == "" {
		embedded, err := p.embedded(ctx, c, log)
		if err != nil {
			return nil, err
		}
		parts = embedded
	}
	store, err := p.elastic()
	if err != nil {
		return nil, err
	}
	if c.Elasticsearch.URL != "" {
		if err := store.Setup(ctx); err != nil {
			log.Warn("index templates not installed; give the reading user manage_index_templates once, or install them by hand", "error", err)
		}
	}
	verifier, err := p.verifier()
	if err != nil {
		return nil, err
	}
	handler := server.New(server.Config{Store: store, Verifier: verifier, Logger: log})
	api, err := p.serve(ctx, c.Listen, httpserve.Config{Role: string(Logs), Handler: handler, Ready: store.Ready, Metrics: metrics()})
	if err != nil {
		return nil, err
	}
	return append(parts, api), nil
}

// embedded is the store on this machine, behind the Elasticsearch API.
func (p *process) embedded(ctx context.Context, c config.Logs, log *slog.Logger) ([]part, error) {
	write, err := p.credential(c.Elasticsearch.WriteUser)
	if err != nil {
		return nil, err
	}
	read, err := p.credential(c.Elasticsearch.ReadUser)
	if err != nil {
		return nil, err
	}
	store, err := embedded.Open(ctx, embedded.Options{
		Dir:    p.cfg.Path("logstore"),
		Writer: embedded.Credential{User: c.Elasticsearch.WriteUser, Password: write},
		Reader: embedded.Credential{User: c.Elasticsearch.ReadUser, Password: read},
		Log:    log, LogDays: c.RetentionDays, MeterMonths: c.RetentionMonths,
	})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, store.Close)
	bulk, err := p.serve(ctx, c.BulkListen, httpserve.Config{Role: "logstore", Handler: store})
	if err != nil {
		return nil, err
	}
	return []part{bulk, {"retention", store.Run}}, nil
}

// bulkURL is where the store answers the Elasticsearch API.
func (p *process) bulkURL() string {
	if u := p.cfg.Logs.Elasticsearch.URL; u != "" {
		return u
	}
	return "http://" + p.cfg.Logs.BulkListen
}

// elastic is a reading client of the store.
func (p *process) elastic() (*elastic.Store, error) {
	password, err := p.credential(p.cfg.Logs.Elasticsearch.ReadUser)
	if err != nil {
		return nil, err
	}
	return elastic.New(elastic.Options{Addresses: []string{p.bulkURL()}, User: p.cfg.Logs.Elasticsearch.ReadUser, Password: password})
}
