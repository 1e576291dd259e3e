package token

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// maxFormBytes bounds the body of a token request.
const maxFormBytes = 256 << 10

// Register puts the service's endpoints on a mux: /token, /token/revoke and /v1/pull-credentials.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /token", s.get)
	mux.HandleFunc("POST /token", s.post)
	mux.HandleFunc("POST /token/revoke", s.revoke)
	mux.Handle("POST /v1/pull-credentials", hubtoken.Authenticate(s.cfg.Verifier, hubtoken.AudienceRegistry, http.HandlerFunc(s.pullCredentials)))
}

// clientAddress is the client's address without port: the context's, which knows of proxies in front, else the peer's.
func clientAddress(r *http.Request) string {
	if a := registry.ActorFrom(r.Context()); a.Address != "" {
		return a.Address
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

func noStore(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
}

func (s *Service) answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) //nolint:errcheck // the client has gone; nothing is left to tell it
}

func (s *Service) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, problem.ErrUnauthenticated) {
		w.Header().Set("WWW-Authenticate", `Basic realm="cumulet", charset="UTF-8"`)
	}
	if problem.Write(w, err) >= http.StatusInternalServerError && r.Context().Err() == nil {
		s.cfg.Logger.ErrorContext(r.Context(), "token request failed", "error", err)
	}
}

// get answers "GET /token?service=…&scope=…[&scope=…][&offline_token=true]" with Basic credentials or none (Docker
// token specification, "Requesting a Token").
func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	noStore(w)
	q := r.URL.Query()
	audience, err := s.audience(q.Get("service"))
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	var p principal
	if r.Header.Get("Authorization") != "" {
		username, password, ok := r.BasicAuth()
		if !ok {
			s.refuse(w, r, problem.New(problem.ErrUnauthenticated, "send user name and password by Basic authentication, or nothing"))
			return
		}
		if p, err = s.login(r.Context(), username, password, clientAddress(r)); err != nil {
			s.refuse(w, r, err)
			return
		}
	}
	answer, _, err := s.issue(r.Context(), p, audience, hubtoken.ParseScopes(q["scope"]))
	if err == nil && q.Get("offline_token") == "true" && p.login != nil {
		answer.RefreshToken, err = s.cfg.Offline.NewOfflineToken(r.Context(), p.login, audience, q.Get("client_id"))
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, answer)
}

// oauthError is the answer to a bad OAuth2 request (RFC 6749, section 5.2).
type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

func oauthRefuse(w http.ResponseWriter, status int, code, description string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(oauthError{code, description}) //nolint:errcheck // the client has gone
}

// post answers the OAuth2 form of a token request: grant_type password or refresh_token (Docker token specification,
// "OAuth2 authentication").
func (s *Service) post(w http.ResponseWriter, r *http.Request) {
	noStore(w)
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		oauthRefuse(w, http.StatusBadRequest, "invalid_request", "the body must be a form")
		return
	}
	if err := r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			s.refuse(w, r, err)
			return
		}
		oauthRefuse(w, http.StatusBadRequest, "invalid_request", "the body is not a form")
		return
	}
	form := r.PostForm // never the URL: it may be logged on the way
	audience, err := s.audience(form.Get("service"))
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	p, err := s.formLogin(r, audience)
	if code := oauthCode(err); code != "" {
		oauthRefuse(w, http.StatusBadRequest, code, err.Error())
		return
	}
	if errors.Is(err, problem.ErrUnauthenticated) {
		w.Header().Set("WWW-Authenticate", `Basic realm="cumulet", charset="UTF-8"`)
		oauthRefuse(w, http.StatusUnauthorized, "invalid_grant", problem.Of(err).Detail)
		return
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	answer, granted, err := s.issue(r.Context(), p, audience, hubtoken.ParseScopes(form["scope"]))
	if err == nil && form.Get("grant_type") != "refresh_token" && form.Get("access_type") == "offline" && p.login != nil {
		answer.RefreshToken, err = s.cfg.Offline.NewOfflineToken(r.Context(), p.login, audience, form.Get("client_id"))
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	answer.Scope = scopeText(granted)
	s.answer(w, answer)
}

// grantDevice is the grant type of a login by browser (RFC 8628, section 3.4).
const grantDevice = "urn:ietf:params:oauth:grant-type:device_code"

var errGrantType = errors.New("use password, refresh_token or device_code")

// oauthCode gives the error code of RFC 6749 and RFC 8628 that an error has; "" for any other.
func oauthCode(err error) string {
	switch {
	case errors.Is(err, errGrantType):
		return "unsupported_grant_type"
	case errors.Is(err, registry.ErrLoginPending):
		return "authorization_pending"
	case errors.Is(err, registry.ErrLoginSlowDown):
		return "slow_down"
	case errors.Is(err, registry.ErrLoginDenied):
		return "access_denied"
	case errors.Is(err, registry.ErrLoginExpired):
		return "expired_token"
	}
	return ""
}

// formLogin proves who sends an OAuth2 form.
func (s *Service) formLogin(r *http.Request, audience string) (principal, error) {
	ctx, form := r.Context(), r.PostForm
	switch form.Get("grant_type") {
	case "password":
		return s.login(ctx, form.Get("username"), form.Get("password"), clientAddress(r))
	case "refresh_token":
		// One that was got for cis is the login of a user's command line and serves every service; any other serves its
		// own alone, so that what docker login leaves on a disk runs no instances.
		login, of, err := s.cfg.Offline.UseOfflineToken(ctx, form.Get("refresh_token"), audience, hubtoken.AudienceCIS)
		if errors.Is(err, problem.ErrUnauthenticated) {
			s.loginRefused(ctx, "", clientAddress(r), err)
		}
		if err != nil {
			return principal{}, err
		}
		return principal{login: login, present: of == hubtoken.AudienceCIS && login.KeyID == "", images: of == hubtoken.AudienceRegistry}, nil
	case grantDevice:
		if s.cfg.Devices == nil {
			return principal{}, errGrantType
		}
		login, err := s.cfg.Devices.PollDevice(ctx, form.Get("device_code"))
		if err != nil {
			return principal{}, err
		}
		return principal{login: login, present: true}, nil
	}
	return principal{}, errGrantType
}

// revoke ends an offline token: whoever holds it may (RFC 7009).
func (s *Service) revoke(w http.ResponseWriter, r *http.Request) {
	noStore(w)
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	if err := r.ParseForm(); err != nil || r.PostForm.Get("token") == "" {
		oauthRefuse(w, http.StatusBadRequest, "invalid_request", "send a form with token")
		return
	}
	if err := s.cfg.Offline.RevokeOfflineToken(r.Context(), r.PostForm.Get("token")); err != nil {
		s.refuse(w, r, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// PullCredentialRequest asks for a PullCredential.
type PullCredentialRequest struct {
	Org          string   `json:"org"`
	Repositories []string `json:"repositories"`
}

func (s *Service) pullCredentials(w http.ResponseWriter, r *http.Request) {
	noStore(w)
	if !hubtoken.FromContext(r.Context()).Allows(hubtoken.TypePlatform, "*", hubtoken.ActionNode) {
		s.refuse(w, r, problem.New(problem.ErrForbidden, "only the platform's node role makes pull credentials"))
		return
	}
	var req PullCredentialRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxFormBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		var tooLarge *http.MaxBytesError
		if !errors.As(err, &tooLarge) {
			err = problem.New(problem.ErrInvalid, "the body must be {\"org\": …, \"repositories\": […]}")
		}
		s.refuse(w, r, err)
		return
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		s.refuse(w, r, problem.New(problem.ErrInvalid, "the body must be one JSON object"))
		return
	}
	req.Repositories = slices.Compact(req.Repositories)
	c, err := s.PullCredential(r.Context(), req.Org, req.Repositories)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, c)
}
