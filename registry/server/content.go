package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry"
	"cumulet.io/registry/charts"
	"cumulet.io/registry/files"
	"cumulet.io/registry/hubtoken"
)

// openContent opens the stores of files and charts.
func (s *Server) openContent(ctx context.Context, outbox registry.Outbox) error {
	var err error
	s.files, err = files.New(ctx, files.Config{DB: s.cfg.DB, Blobs: s.storage, Directory: s.directory, Quotas: s.directory, Outbox: outbox, Logger: s.cfg.Logger,
		Usage: func(ctx context.Context, db sqldb.Querier, org string) (int64, error) {
			images, err := s.index.Used(ctx, org)
			if err != nil {
				return 0, err
			}
			packed, err := s.charts.UsageIn(ctx, db, org)
			return images + packed, err
		}})
	if err != nil {
		return err
	}
	s.charts, err = charts.New(ctx, charts.Config{DB: s.cfg.DB, Blobs: s.storage, Space: s.files, Directory: s.directory, Outbox: outbox, Logger: s.cfg.Logger})
	if err != nil {
		return err
	}
	access := contentAccess{s}
	file, chart := s.audited(files.NewHandler(s.files, access)), s.audited(charts.NewHandler(s.charts, access))
	s.content = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, charts.Prefix) {
			chart.ServeHTTP(w, r)
			return
		}
		file.ServeHTTP(w, r)
	})
	return nil
}

// imageQuotas are an org's bounds for images: what its files and charts leave.
type imageQuotas struct{ server *Server }

// Quota implements registry.Quotas.
func (q imageQuotas) Quota(ctx context.Context, org string) (registry.Quota, error) {
	s := q.server
	quota, err := s.directory.Quota(ctx, org)
	if err != nil || quota.Bytes == 0 {
		return quota, err
	}
	plain, err := s.files.Usage(ctx, org)
	if err != nil {
		return quota, err
	}
	packed, err := s.charts.Usage(ctx, org)
	if err != nil {
		return quota, err
	}
	quota.Bytes = max(1, quota.Bytes-plain-packed) // 0 would be no bound
	return quota, nil
}

// contentAccess decides on files and charts. Their clients send a hubtoken, or user name and password with each request
// (curl, helm), or nothing for what is public.
type contentAccess struct{ server *Server }

// Authorize implements files.Access.
func (a contentAccess) Authorize(w http.ResponseWriter, r *http.Request, repository, action string) (string, error) {
	claims, err := a.claims(r, repository, action)
	if errors.Is(err, problem.ErrUnauthenticated) {
		a.challenge(w, repository, action)
	}
	if err != nil {
		return "", err
	}
	ctx := r.Context()
	if d, ok := ctx.Value(denialKey{}).(*denial); ok {
		d.actor = claims.Subject
	}
	org, err := registry.SplitRepository("repository", repository)
	if err != nil {
		return "", err
	}
	switch {
	case claims.Allows(hubtoken.TypeRepository, repository, action) && (action == "pull" || claims.Subject != ""):
		return claims.Subject, nil
	case claims.Subject == "":
		a.challenge(w, repository, action)
		return "", deny(ctx, org, problem.New(problem.ErrUnauthenticated, "log in: this is for those who may %s in %s", action, repository))
	case claims.Allows(hubtoken.TypeRepository, repository, "pull"):
		return "", deny(ctx, org, problem.New(problem.ErrForbidden, "this needs %s on the repository %q", action, repository))
	default:
		return "", deny(ctx, org, problem.New(problem.ErrNotFound, "there is no repository %q that you have access to", repository))
	}
}

// claims tells what the caller may do with a repository.
func (a contentAccess) claims(r *http.Request, repository, action string) (*hubtoken.Claims, error) {
	s, ctx := a.server, r.Context()
	if token := hubtoken.Bearer(r); token != "" {
		claims, err := s.verifier.Verify(ctx, token, hubtoken.AudienceRegistry)
		if errors.Is(err, hubtoken.ErrInvalidToken) {
			return nil, problem.New(problem.ErrUnauthenticated, "the token is expired, for another service, or not ours; log in again")
		}
		if err != nil {
			return nil, problem.New(problem.ErrUnavailable, "the token keys cannot be had now")
		}
		return claims, nil
	}
	username, password, ok := r.BasicAuth()
	if !ok && r.Header.Get("Authorization") != "" {
		return nil, problem.New(problem.ErrUnauthenticated, "send a hubtoken as bearer token, or user name and password by Basic authentication")
	}
	asked := hubtoken.Access{Type: hubtoken.TypeRepository, Name: repository, Actions: []string{"pull"}}
	if action != "pull" {
		asked.Actions = append(asked.Actions, action)
	}
	return s.tokens.Claims(ctx, username, password, registry.ActorFrom(ctx).Address, []hubtoken.Access{asked})
}

// challenge says how to log in: by token for those who know them, by password for the rest (RFC 9110, section 11.6.1).
func (a contentAccess) challenge(w http.ResponseWriter, repository, action string) {
	scope := ""
	if _, err := registry.SplitRepository("repository", repository); err == nil {
		scope = fmt.Sprintf(`,scope="repository:%s:%s"`, repository, action)
	}
	w.Header().Add("WWW-Authenticate", `Basic realm="cumulet", charset="UTF-8"`)
	w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="%s"%s`, a.server.base, strings.SplitN(a.server.base, "://", 2)[1], scope))
}
