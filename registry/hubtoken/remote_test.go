package hubtoken

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cumulet.io/internal/problem"
)

// jwksServer publishes a ring, counts, and can be down.
type jwksServer struct {
	*httptest.Server
	hits atomic.Int32
	down atomic.Bool
}

func serveJWKS(t testing.TB, keys *Keys) *jwksServer {
	t.Helper()
	s := &jwksServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.hits.Add(1)
		doc, err := keys.JWKS()
		if err != nil || s.down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		_, _ = w.Write(doc) //nolint:errcheck // test
	}))
	t.Cleanup(s.Close)
	return s
}

func remoteVerifier(t testing.TB, s *jwksServer, refetch, maxAge time.Duration) Verifier {
	t.Helper()
	v, err := NewVerifier(Config{JWKSURL: s.URL, Issuer: testIssuer, HTTPClient: s.Client(), Refetch: refetch, MaxAge: maxAge})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRemoteKeys(t *testing.T) {
	keys := openKeys(t, EdDSA, nil)
	s := serveJWKS(t, keys)
	v := remoteVerifier(t, s, 50*time.Millisecond, time.Hour)
	first := sign(t, keys, claimsFor("cis"), time.Hour)
	for range 10 {
		if _, err := v.Verify(t.Context(), first, "cis"); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.hits.Load(); n != 1 {
		t.Errorf("%d fetches for one key", n)
	}
	if err := keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	// The first token of a new key comes right after a fetch and is good all the same.
	second := sign(t, keys, claimsFor("cis"), time.Hour)
	if _, err := v.Verify(t.Context(), second, "cis"); err != nil {
		t.Fatal(err)
	}
	s.down.Store(true)
	for _, token := range []string{first, second} {
		if _, err := v.Verify(t.Context(), token, "cis"); err != nil {
			t.Errorf("while the service is down: %v", err)
		}
	}
	if err := keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	third := sign(t, keys, claimsFor("cis"), time.Hour)
	if _, err := v.Verify(t.Context(), third, "cis"); err == nil || errors.Is(err, ErrInvalidToken) {
		t.Errorf("unknown key while down: err = %v, want one that means 503", err)
	}
	s.down.Store(false)
	if _, err := v.Verify(t.Context(), third, "cis"); err != nil {
		t.Errorf("back again: %v", err)
	}
}

func TestRemoteKeysGarbageIsCheap(t *testing.T) {
	keys := openKeys(t, EdDSA, nil)
	s := serveJWKS(t, keys)
	v := remoteVerifier(t, s, 30*time.Millisecond, time.Hour)
	foreign := sign(t, openKeys(t, EdDSA, nil), claimsFor("cis"), time.Hour)
	begun := time.Now()
	var wg sync.WaitGroup
	for range 300 {
		wg.Go(func() {
			if _, err := v.Verify(t.Context(), foreign, "cis"); err == nil {
				t.Error("a foreign token is valid")
			}
		})
	}
	wg.Wait()
	if most := int32(2 + time.Since(begun)/(30*time.Millisecond)); s.hits.Load() > most {
		t.Errorf("%d fetches for 300 garbage tokens, want at most %d", s.hits.Load(), most)
	}
	if _, err := v.Verify(t.Context(), foreign, "cis"); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, foreign, "cis"); err == nil {
		t.Error("verified after the caller left")
	}
}

func TestRemoteKeysRenewAndForget(t *testing.T) {
	clk := newClock()
	keys := openKeys(t, EdDSA, clk.now)
	s := serveJWKS(t, keys)
	v, err := NewVerifier(Config{JWKSURL: s.URL, Issuer: testIssuer, HTTPClient: s.Client(), Now: clk.now, MaxAge: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	token := sign(t, keys, claimsFor("cis"), time.Hour)
	if _, err := v.Verify(t.Context(), token, "cis"); err != nil {
		t.Fatal(err)
	}
	s.down.Store(true)
	clk.advance(2 * time.Minute)
	for range 5 {
		if _, err := v.Verify(t.Context(), token, "cis"); err != nil {
			t.Fatalf("old keys serve while the service is down: %v", err)
		}
	}
	if n := s.hits.Load(); n != 2 {
		t.Errorf("%d fetches, want the first and one try to renew", n)
	}
	// The key is withdrawn: it stops verifying when the set is renewed.
	s.down.Store(false)
	keys.mu.Lock()
	keys.keys[0].retires = clk.now()
	fresh, err := newKey(EdDSA, clk.now())
	keys.keys = append([]signingKey{fresh}, keys.keys...)
	keys.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	clk.advance(time.Minute)
	if _, err := v.Verify(t.Context(), token, "cis"); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("token of a withdrawn key: err = %v", err)
	}
}

func TestAuthenticate(t *testing.T) {
	keys := openKeys(t, ES256, nil)
	s := serveJWKS(t, keys)
	h := Authenticate(remoteVerifier(t, s, time.Millisecond, time.Hour), AudienceCIS, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if FromContext(r.Context()).Subject != "alice" {
			t.Error("no claims in the context")
		}
	}))
	token := sign(t, keys, claimsFor(AudienceCIS), time.Hour)
	for _, tc := range []struct {
		name, header string
		down         bool
		want         int
	}{
		{"no header", "", false, 401},
		{"basic", "Basic YTpi", false, 401},
		{"garbage", "Bearer a.b.c", false, 401},
		{"good while keys cannot be had", "Bearer " + token, true, 503},
		{"good", "Bearer " + token, false, 200},
		{"scheme in lower case", "bearer " + token, false, 200},
		{"other audience", "Bearer " + sign(t, keys, claimsFor(AudienceLogs), time.Hour), false, 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.down.Store(tc.down)
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			if tc.header != "" {
				r.Header.Set("Authorization", tc.header)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tc.want {
				t.Errorf("status %d, want %d: %s", w.Code, tc.want, w.Body)
			}
			if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Errorf("challenge = %q", w.Header().Get("WWW-Authenticate"))
			}
		})
	}
}

// tokenEndpoint is a token service of one user.
type tokenEndpoint struct {
	*httptest.Server
	hits  atomic.Int32
	fail  atomic.Int32 // status to fail with
	query atomic.Value
}

func serveTokens(t testing.TB, keys *Keys, ttl time.Duration) *tokenEndpoint {
	t.Helper()
	e := &tokenEndpoint{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.hits.Add(1)
		e.query.Store(r.URL.RawQuery)
		if code := int(e.fail.Load()); code != 0 {
			http.Error(w, "no", code)
			return
		}
		if user, pass, _ := r.BasicAuth(); user != "alice" || pass != "right" {
			problem.Write(w, problem.New(problem.ErrUnauthenticated, "wrong user name or password"))
			return
		}
		token := sign(t, keys, claimsFor(r.URL.Query().Get("service")), ttl)
		_ = json.NewEncoder(w).Encode(TokenResponse{AccessToken: token, ExpiresIn: int(ttl / time.Second)}) //nolint:errcheck // test
	}))
	t.Cleanup(e.Close)
	return e
}

func TestPasswordSource(t *testing.T) {
	clk := newClock()
	keys := openKeys(t, EdDSA, clk.now)
	e := serveTokens(t, keys, 100*time.Second)
	src, err := NewPasswordSource(PasswordConfig{Realm: e.URL + "/token", Service: "cis", Username: "alice", Password: "right",
		Scopes: []string{"org:acme:read,write", "org:beta:read"}, HTTPClient: e.Client(), Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := src.Token(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := e.hits.Load(); n != 1 {
		t.Errorf("%d requests for 20 callers", n)
	}
	if q := e.query.Load().(string); !strings.Contains(q, "scope=org%3Aacme%3Aread%2Cwrite&scope=org%3Abeta%3Aread") || strings.Contains(q, "right") {
		t.Errorf("query = %s", q)
	}
	first, err := src.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	clk.advance(81 * time.Second) // a fifth of the life is left
	e.fail.Store(502)
	if got, err := src.Token(t.Context()); err != nil || got != first {
		t.Errorf("while the service is down the token in hand serves: %v", err)
	}
	e.fail.Store(0)
	if got, err := src.Token(t.Context()); err != nil || got == first {
		t.Errorf("not renewed: %v", err)
	}
	e.fail.Store(502)
	clk.advance(101 * time.Second)
	if got, err := src.Token(t.Context()); err == nil || got != "" {
		t.Error("an expired token was given out")
	}
}

func TestPasswordSourceRefused(t *testing.T) {
	e := serveTokens(t, openKeys(t, EdDSA, nil), time.Minute)
	src, err := NewPasswordSource(PasswordConfig{Realm: e.URL, Service: "cis", Username: "alice", HTTPClient: e.Client(),
		ReadPassword: func() (string, error) { return "s3cret-wrong", nil }})
	if err != nil {
		t.Fatal(err)
	}
	_, err = src.Token(t.Context())
	if !errors.Is(err, problem.ErrUnauthenticated) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("err = %v", err)
	}
	for _, cfg := range []PasswordConfig{
		{Realm: "hub.test/token", Service: "x", Username: "a"},
		{Realm: "http://a:b@hub.test/", Service: "x", Username: "a"},
		{Realm: "http://hub.test/", Username: "a"},
		{Realm: "http://hub.test/", Service: "x"},
	} {
		if _, err := NewPasswordSource(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}
