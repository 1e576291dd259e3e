package session

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
)

// LoginByBrowser begins a login at the registry, has show tell the person where to finish it, and waits until they have
// (RFC 8628). org is the session's; "" is the first that they are in.
func LoginByBrowser(ctx context.Context, e Endpoints, org string, show func(registry.DeviceAuthorization)) (*Session, error) {
	var d registry.DeviceAuthorization
	if err := postForm(ctx, e.Registry+"/token/device", url.Values{"client_id": {"cis"}}, &d); err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	show(d)
	s := &Session{Endpoints: e, Org: org}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {d.DeviceCode}, "access_type": {"offline"}}
	if err := s.await(ctx, d, form); err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	if s.RefreshToken == "" {
		return nil, errors.New("log in: the token service gave no refresh token")
	}
	return s, s.whoAmI(ctx)
}

// AwaitBrowser waits until a login or the linking of an identity is finished in the browser.
func AwaitBrowser(ctx context.Context, e Endpoints, d registry.DeviceAuthorization) error {
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {d.DeviceCode}}
	return (&Session{Endpoints: e}).await(ctx, d, form)
}

// await asks for the token of a login now and then.
func (s *Session) await(ctx context.Context, d registry.DeviceAuthorization, form url.Values) error {
	interval := max(time.Duration(d.Interval)*time.Second, time.Second)
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		_, err := s.grant(ctx, hubtoken.AudienceCIS, "", form)
		var o *oauthError
		switch {
		case errors.As(err, &o) && o.Code == "slow_down":
			interval += 5 * time.Second // RFC 8628, section 3.5
		case errors.As(err, &o) && o.Code == "authorization_pending":
		default:
			return err
		}
		timer.Reset(interval)
	}
}

// whoAmI fills in the user, from the token at hand, and the org.
func (s *Session) whoAmI(ctx context.Context) error {
	var me struct {
		Sub string `json:"sub"`
	}
	for _, t := range s.tokens {
		parts := strings.Split(t.value, ".")
		if len(parts) != 3 {
			return errors.New("log in: the token is not understood")
		}
		// Read, not verified: the service that gave it is the one that we trust here anyway.
		text, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil || json.Unmarshal(text, &me) != nil || me.Sub == "" {
			return errors.New("log in: the token tells no user")
		}
	}
	s.User, s.tokens = me.Sub, nil
	if s.Org != "" {
		return nil
	}
	var page registry.Page[registry.OrgInfo]
	token, err := s.Source(hubtoken.AudienceRegistry).Token(ctx)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoints.Registry+"/v1/orgs?limit=1", nil)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if err := do(req, &page); err != nil {
		return fmt.Errorf("log in: find your organisations: %w", err)
	}
	s.Org, s.tokens = s.User, nil
	if len(page.Items) > 0 {
		s.Org = page.Items[0].Name
	}
	return nil
}

// Logout revokes the refresh token.
func (s *Session) Logout(ctx context.Context) error {
	return postForm(ctx, s.Endpoints.Registry+"/token/revoke", url.Values{"token": {s.RefreshToken}}, nil)
}

func postForm(ctx context.Context, target string, form url.Values, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(req, out)
}

// oauthError is the token service's refusal of a form (RFC 6749, section 5.2).
type oauthError struct {
	Code        string `json:"error"`
	Description string `json:"error_description"`
	status      int
}

// Error gives what a person needs.
func (e *oauthError) Error() string {
	if e.Description != "" {
		return e.Description
	}
	return e.Code
}

// Unwrap gives the class of the status.
func (e *oauthError) Unwrap() error {
	if e.status == http.StatusUnauthorized || e.Code == "access_denied" || e.Code == "expired_token" {
		return problem.ErrUnauthenticated
	}
	return problem.ErrInvalid
}

// refusal gives the error of an answer of status 400 or above: an OAuth2 one, or a problem.
func refusal(resp *http.Response) error {
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return problem.Read(resp)
	}
	e := &oauthError{status: resp.StatusCode}
	if json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(e) != nil || e.Code == "" {
		return problem.New(problem.ErrUnavailable, "%s answered %s", resp.Request.URL.Host, resp.Status)
	}
	return e
}
