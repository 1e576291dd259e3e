package oci

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/distribution/distribution/v3/registry/auth"
	"github.com/google/uuid"

	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
)

// announce gives an event its id, time and org, and to the outbox.
func (r *Registry) announce(ctx context.Context, e registry.Event) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	e.ID, e.Time = id.String(), time.Now().UTC()
	if e.Org == "" {
		e.Org = orgOf(e.Repository)
	}
	return r.cfg.Outbox.Emit(ctx, e)
}

// announcePush tells of a manifest that was stored, and of what it says about another.
func (r *Registry) announcePush(ctx context.Context, p *putting, done index.PutResult, account string) error {
	m := p.m
	e := registry.Event{Type: registry.EventPush, Repository: m.Repository, Digest: m.Digest.String(), MediaType: m.MediaType, Size: m.Size,
		Tag: p.tag, Actor: account}
	if done.Moved && done.Before != "" {
		e.Data = map[string]string{"before": done.Before.String()}
	}
	if err := r.announce(ctx, e); err != nil {
		return err
	}
	if m.Subject == "" || !done.New {
		return nil
	}
	facts := m.Facts()
	if len(facts) == 0 {
		return nil
	}
	data := map[string]string{"source": m.Digest.String(), "artifactType": m.ArtifactType}
	for _, f := range facts {
		data[f.Kind+":"+f.Name] = f.Value
	}
	return r.announce(ctx, registry.Event{Type: registry.EventScan, Repository: m.Repository, Digest: m.Subject.String(), Actor: account, Data: data})
}

// audit writes an entry for a change that is about to be made.
func (r *Registry) audit(ctx context.Context, by actor, action, repository, target string) error {
	if r.cfg.Auditor == nil {
		return nil
	}
	org := orgOf(repository)
	return r.cfg.Auditor.Audit(ctx, registry.AuditEntry{Org: org, Actor: by.name, Address: by.address, Action: action, Target: target,
		Detail: map[string]string{"cause": by.cause}})
}

// addressOf is the client's address, as the server has found it behind its proxies.
func addressOf(req *http.Request) string {
	if a := registry.ActorFrom(req.Context()).Address; a != "" {
		return a
	}
	if h, _, err := net.SplitHostPort(req.RemoteAddr); err == nil {
		return h
	}
	return req.RemoteAddr
}

// auditDenied writes down that a token did not allow something. A request without a token, or with an old one, is how
// every client begins: that is none.
func (r *Registry) auditDenied(req *http.Request, access []auth.Access) {
	ctx := req.Context()
	if state, ok := ctx.Value(stateKey{}).(authState); !ok || state != tokenGood || r.cfg.Auditor == nil {
		return
	}
	claims := hubtoken.FromContext(ctx)
	for _, a := range access {
		if a.Type != hubtoken.TypeRepository || claims.Allows(a.Type, a.Name, a.Action) || !validName(a.Name) {
			continue
		}
		org := orgOf(a.Name)
		err := r.cfg.Auditor.Audit(ctx, registry.AuditEntry{Org: org, Actor: claims.Subject, Address: addressOf(req), Action: "repository." + a.Action,
			Target: a.Name, Denied: true, Detail: map[string]string{"reason": "the token does not allow it"}})
		if err != nil {
			r.cfg.Logger.ErrorContext(ctx, "a denied access is not in the audit log", "repository", a.Name, "error", err)
		}
	}
}
