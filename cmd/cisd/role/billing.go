package role

import (
	"context"
	"fmt"
	"time"

	"cumulet.io/billing/ledger"
	"cumulet.io/billing/price"
	"cumulet.io/billing/reconcile"
	"cumulet.io/billing/server"
	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/internal/httpserve"
	"cumulet.io/registry/hubtoken"
)

// billing is the ledger with its API. It reads meter events from the log store alone.
func (p *process) billing(ctx context.Context) ([]part, error) {
	c := p.cfg.Billing
	log := p.log.With("role", string(Billing))
	book, err := priceBook(c.PriceBook)
	if err != nil {
		return nil, err
	}
	db, err := p.database(ctx, c.Database)
	if err != nil {
		return nil, err
	}
	led, err := ledger.Open(ctx, db, book, ledger.Options{})
	if err != nil {
		return nil, err
	}
	store, err := p.elastic()
	if err != nil {
		return nil, err
	}
	verifier, err := p.verifier()
	if err != nil {
		return nil, err
	}
	source, err := p.source(accountBilling, hubtoken.AudienceCIS, hubtoken.ActionOperator)
	if err != nil {
		return nil, err
	}
	instances, err := client.New(client.Config{BaseURL: p.cfg.Control.URL, Source: source, Logger: log})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, func() error { instances.Close(); return nil })
	handler, err := server.New(server.Config{Ledger: led, Inventory: inventory{instances}, Verifier: verifier, Logger: log})
	if err != nil {
		return nil, err
	}
	api, err := p.serve(ctx, c.Listen, httpserve.Config{Role: string(Billing), Handler: handler, Metrics: metrics(),
		Ready: func(ctx context.Context) error { return db.PingContext(ctx) }})
	if err != nil {
		return nil, err
	}
	return []part{api, {"ledger", ledger.NewIngestor(led, store, ledger.IngestorOptions{Poll: c.Interval, Logger: log}).Run}}, nil
}

func priceBook(file string) (*price.Book, error) {
	if file == "" {
		return price.Example()
	}
	book, err := price.Load(file)
	if err != nil {
		return nil, fmt.Errorf("billing.priceBook: %w", err)
	}
	return book, nil
}

// inventory is the container instance service, as reconciliation needs it.
type inventory struct{ instances cis.Instances }

// Instances implements reconcile.Inventory.
func (i inventory) Instances(ctx context.Context, org string, from, to time.Time) ([]reconcile.Instance, error) {
	var out []reconcile.Instance
	req := cis.ListRequest{Limit: 1000}
	for {
		page, err := i.instances.List(ctx, org, req)
		if err != nil {
			return nil, fmt.Errorf("list instances: %w", err)
		}
		for _, in := range page.Items {
			ended := in.Status.EndedAt
			if in.CreatedAt.Before(to) && (ended.IsZero() || !ended.Before(from)) {
				out = append(out, reconcile.Instance{ID: in.ID, Org: in.Org, StartedAt: in.Status.StartedAt, EndedAt: ended})
			}
		}
		if page.Next == "" {
			return out, nil
		}
		req.Cursor = page.Next
	}
}
