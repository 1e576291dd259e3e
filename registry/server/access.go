package server

import (
	"context"
	"net/http"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// denial is what becomes known of a request on its way, for the audit log.
type denial struct {
	actor, org, reason string
}

type denialKey struct{}

// deny notes that a request is refused for want of a right on org, and gives err on.
func deny(ctx context.Context, org string, err *problem.Error) error {
	if d, ok := ctx.Value(denialKey{}).(*denial); ok {
		d.org, d.reason = org, err.Detail
	}
	return err
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// audited keeps every access that next denies.
func (s *Server) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := &denial{}
		sw := &statusWriter{ResponseWriter: w}
		ctx := context.WithValue(r.Context(), denialKey{}, d)
		next.ServeHTTP(sw, r.WithContext(ctx))
		switch {
		case d.reason != "":
		case sw.status == http.StatusUnauthorized:
			d.reason = "no valid token"
		case sw.status == http.StatusForbidden:
			d.reason = "not allowed"
		default:
			return
		}
		err := s.directory.Audit(ctx, registry.AuditEntry{Org: d.org, Actor: d.actor, Address: registry.ActorFrom(ctx).Address, Action: "access",
			Target: r.Method + " " + r.URL.Path, Denied: true, Detail: map[string]string{"reason": d.reason}})
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "a denial is not in the audit log", "path", r.URL.Path, "error", err)
		}
	})
}

// withActor makes the token's subject the one who does what next does.
func withActor(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		actor := registry.Actor{Name: hubtoken.FromContext(ctx).Subject, Address: registry.ActorFrom(ctx).Address}
		if d, ok := ctx.Value(denialKey{}).(*denial); ok {
			d.actor = actor.Name
		}
		next.ServeHTTP(w, r.WithContext(registry.WithActor(ctx, actor)))
	})
}

func platform(r *http.Request, action string) bool {
	return hubtoken.FromContext(r.Context()).Allows(hubtoken.TypePlatform, "*", action)
}

// mayOrg checks the caller's token. Without any right on the org, the answer is that of an org that does not exist.
func mayOrg(r *http.Request, org, action string) error {
	ctx := r.Context()
	claims := hubtoken.FromContext(ctx)
	switch {
	case claims.AllowsOrg(org, action):
		return nil
	case claims.AllowsOrg(org, hubtoken.ActionRead):
		return deny(ctx, org, problem.New(problem.ErrForbidden, "this needs %s on the organisation %q", action, org))
	default:
		return deny(ctx, org, problem.New(problem.ErrNotFound, "there is no organisation %q that your token has access to", org))
	}
}

// mayPush checks for the push into a repository. Without any right on it or its org, the answer is that of an org that
// does not exist.
func mayPush(r *http.Request, org, repository string) error {
	claims := hubtoken.FromContext(r.Context())
	if claims.Subject != "" && claims.Allows(hubtoken.TypeRepository, repository, "push") {
		return nil
	}
	if !claims.Allows(hubtoken.TypeRepository, repository, "pull") {
		if err := mayOrg(r, org, hubtoken.ActionRead); err != nil {
			return err
		}
	}
	return deny(r.Context(), org, problem.New(problem.ErrForbidden, "this needs push on the repository %q: ask for the scope repository:%[1]s:pull,push", repository))
}

// mayManage is mayOrg for what the platform's administrators may do in every org, and its operators read there.
func mayManage(r *http.Request, org, action string) error {
	if platform(r, hubtoken.ActionAdmin) || r.Method == http.MethodGet && platform(r, hubtoken.ActionOperator) {
		return nil
	}
	return mayOrg(r, org, action)
}

// mayPlatform checks for the platform's administrators, and for its operators where something is read.
func mayPlatform(r *http.Request) error {
	if platform(r, hubtoken.ActionAdmin) || r.Method == http.MethodGet && platform(r, hubtoken.ActionOperator) {
		return nil
	}
	return deny(r.Context(), "", problem.New(problem.ErrForbidden, "this is for the platform's administrators: ask for the scope platform:*:admin"))
}

// mayAccount checks for an action on the caller's own account, and gives its name.
func mayAccount(r *http.Request, action string) (string, error) {
	claims := hubtoken.FromContext(r.Context())
	if claims.Subject != "" && claims.Allows(hubtoken.TypeAccount, claims.Subject, action) {
		return claims.Subject, nil
	}
	return "", deny(r.Context(), "", problem.New(problem.ErrForbidden,
		"this needs the scope account:%s:%s, which a login by password or browser gives and an API key or a robot does not", claims.Subject, action))
}
