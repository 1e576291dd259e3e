package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/webhook"
)

// webhookRoutes puts the management of webhooks on a mux whose requests carry claims. All of it needs admin on the org.
func (s *Server) webhookRoutes(mux *http.ServeMux) {
	handle := func(pattern string, status int, f func(*http.Request, *hookRequest) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			q := &hookRequest{w: w, org: r.PathValue("org"), id: r.PathValue("webhook"), event: r.PathValue("event")}
			if err := mayOrg(r, q.org, hubtoken.ActionAdmin); err != nil {
				s.fail(w, r, err)
				return
			}
			body, err := f(r, q)
			switch {
			case err != nil:
				s.fail(w, r, err)
			case body == nil:
				w.WriteHeader(status)
			default:
				answerWith(w, status, body)
			}
		})
	}
	const hooks = "/v1/orgs/{org}/webhooks"
	handle("GET "+hooks, http.StatusOK, s.listWebhooks)
	handle("POST "+hooks, http.StatusCreated, s.createWebhook)
	handle("GET "+hooks+"/{webhook}", http.StatusOK, s.getWebhook)
	handle("PATCH "+hooks+"/{webhook}", http.StatusOK, s.patchWebhook)
	handle("DELETE "+hooks+"/{webhook}", http.StatusNoContent, s.deleteWebhook)
	handle("POST "+hooks+"/{webhook}/rotate-secret", http.StatusOK, s.rotateWebhook)
	handle("POST "+hooks+"/{webhook}/ping", http.StatusAccepted, s.pingWebhook)
	handle("GET "+hooks+"/{webhook}/deliveries", http.StatusOK, s.listDeliveries)
	handle("GET "+hooks+"/{webhook}/deliveries/{event}", http.StatusOK, s.getDelivery)
	handle("POST "+hooks+"/{webhook}/deliveries/{event}/redeliver", http.StatusAccepted, s.redeliver)
}

type hookRequest struct {
	w              http.ResponseWriter
	org, id, event string
}

type hookPage struct {
	Items []webhook.Hook `json:"items"`
}

func (s *Server) listWebhooks(r *http.Request, q *hookRequest) (any, error) {
	items, err := s.webhooks.Hooks(r.Context(), q.org)
	return hookPage{items}, err
}

// hookSecret is a hook with its new secret, which is shown this once.
type hookSecret struct {
	webhook.Hook
	Secret string `json:"secret"`
}

func (s *Server) createWebhook(r *http.Request, q *hookRequest) (any, error) {
	var spec webhook.Spec
	if err := readJSON(q.w, r, &spec); err != nil {
		return nil, err
	}
	h, secret, err := s.webhooks.Create(r.Context(), q.org, spec)
	if err != nil {
		return nil, err
	}
	q.w.Header().Set("Location", "/v1/orgs/"+q.org+"/webhooks/"+h.ID)
	return hookSecret{*h, secret}, nil
}

func (s *Server) getWebhook(r *http.Request, q *hookRequest) (any, error) {
	return orNil(s.webhooks.Hook(r.Context(), q.org, q.id))
}

// orNil keeps a nil pointer from becoming a body.
func orNil[T any](v *T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (s *Server) patchWebhook(r *http.Request, q *hookRequest) (any, error) {
	var change webhook.Change
	if err := readJSON(q.w, r, &change); err != nil {
		return nil, err
	}
	return orNil(s.webhooks.Update(r.Context(), q.org, q.id, change))
}

func (s *Server) deleteWebhook(r *http.Request, q *hookRequest) (any, error) {
	return nil, s.webhooks.Delete(r.Context(), q.org, q.id)
}

// rotation asks for a new secret.
type rotation struct {
	// Secret is the new one; "" has one made up.
	Secret string `json:"secret"`
	// Overlap is how long those before go on signing, as 24h; "" is a day.
	Overlap string `json:"overlap"`
}

func (s *Server) rotateWebhook(r *http.Request, q *hookRequest) (any, error) {
	var ask rotation
	if err := readJSON(q.w, r, &ask); err != nil {
		return nil, err
	}
	overlap := 24 * time.Hour
	if ask.Overlap != "" {
		var err error
		if overlap, err = time.ParseDuration(ask.Overlap); err != nil {
			return nil, problem.Invalid("overlap", "must be a duration such as 24h or 0s", ask.Overlap)
		}
	}
	h, secret, err := s.webhooks.Rotate(r.Context(), q.org, q.id, ask.Secret, overlap)
	if err != nil {
		return nil, err
	}
	return hookSecret{*h, secret}, nil
}

func (s *Server) pingWebhook(r *http.Request, q *hookRequest) (any, error) {
	return orNil(s.webhooks.Ping(r.Context(), q.org, q.id))
}

type deliveryPage struct {
	Items []webhook.Delivery `json:"items"`
	Next  string             `json:"next,omitempty"`
}

func (s *Server) listDeliveries(r *http.Request, q *hookRequest) (any, error) {
	v := r.URL.Query()
	limit := 100
	if text := v.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > webhook.MaxPage {
			return nil, problem.Invalid("limit", "must be 1 to "+strconv.Itoa(webhook.MaxPage), text)
		}
	}
	items, next, err := s.webhooks.Deliveries(r.Context(), q.org, q.id, webhook.DeliveryState(v.Get("state")), v.Get("after"), limit)
	return deliveryPage{items, next}, err
}

func (s *Server) getDelivery(r *http.Request, q *hookRequest) (any, error) {
	return orNil(s.webhooks.Delivery(r.Context(), q.org, q.id, q.event))
}

func (s *Server) redeliver(r *http.Request, q *hookRequest) (any, error) {
	return orNil(s.webhooks.Redeliver(r.Context(), q.org, q.id, q.event))
}

// lateOutbox takes events before the webhooks are there: the directory, whose tables they stand on, has it first.
type lateOutbox struct{ outboxes []registry.Outbox }

// Emit implements registry.Outbox: every one gets the event.
func (l *lateOutbox) Emit(ctx context.Context, e registry.Event) error {
	for _, o := range l.outboxes {
		if err := o.Emit(ctx, e); err != nil {
			return err
		}
	}
	return nil
}
