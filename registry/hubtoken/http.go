package hubtoken

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"cumulet.io/internal/problem"
)

type claimsKey struct{}

// WithClaims returns a context that carries the caller's claims.
func WithClaims(ctx context.Context, c *Claims) context.Context {
	return context.WithValue(ctx, claimsKey{}, c)
}

// FromContext gives the caller's claims, or claims that allow nothing when there are none.
func FromContext(ctx context.Context) *Claims {
	if c, ok := ctx.Value(claimsKey{}).(*Claims); ok {
		return c
	}
	return &Claims{}
}

// Bearer gives the bearer token of a request, "" when there is none (RFC 6750, section 2.1).
func Bearer(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// Authenticate lets a request with a valid token for audience through, its claims in the context; any other is
// answered 401, or 503 while the keys cannot be had.
func Authenticate(v Verifier, audience string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := Bearer(r)
		if token == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="cumulet"`)
			problem.Write(w, problem.New(problem.ErrUnauthenticated, "send a hubtoken for audience %q as bearer token; cis login gets one", audience))
			return
		}
		claims, err := v.Verify(r.Context(), token, audience)
		switch {
		case err == nil:
			next.ServeHTTP(w, r.WithContext(WithClaims(r.Context(), claims)))
		case errors.Is(err, ErrInvalidToken):
			w.Header().Set("WWW-Authenticate", `Bearer realm="cumulet",error="invalid_token"`)
			problem.Write(w, problem.New(problem.ErrUnauthenticated, "the token is expired, for another service, or not ours; log in again"))
		default:
			problem.Write(w, problem.New(problem.ErrUnavailable, "the token keys cannot be had now"))
		}
	})
}
