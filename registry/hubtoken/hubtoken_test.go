package hubtoken

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testIssuer = "https://hub.test"

// clock is a settable clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func openKeys(t testing.TB, alg Algorithm, now func() time.Time) *Keys {
	t.Helper()
	keys, err := OpenKeys(KeysConfig{Path: filepath.Join(t.TempDir(), "keys", "hubtoken.json"), Algorithm: alg, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func claimsFor(audience string) Claims {
	return Claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: "alice", Audience: jwt.ClaimStrings{audience}},
		Org:              "acme",
		Access:           []Access{{Type: TypeRepository, Name: "acme/web", Actions: []string{"pull", "push"}}},
	}
}

func sign(t testing.TB, keys *Keys, c Claims, ttl time.Duration) string {
	t.Helper()
	token, err := NewIssuer(keys, testIssuer).Sign(c, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func localVerifier(t testing.TB, set KeySet, now func() time.Time) Verifier {
	t.Helper()
	v, err := NewVerifier(Config{KeySet: set, Issuer: testIssuer, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSignAndVerify(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256} {
		t.Run(string(alg), func(t *testing.T) {
			clk := newClock()
			keys := openKeys(t, alg, clk.now)
			token := sign(t, keys, claimsFor(AudienceRegistry), time.Minute)
			v := localVerifier(t, keys, clk.now)
			c, err := v.Verify(t.Context(), token, AudienceRegistry)
			if err != nil {
				t.Fatal(err)
			}
			if c.Subject != "alice" || c.Org != "acme" || c.ID == "" || !c.Allows(TypeRepository, "acme/web", "push") ||
				c.Allows(TypeRepository, "acme/web", "delete") {
				t.Errorf("claims = %+v", c)
			}
			clk.advance(time.Minute + leeway - time.Second)
			if _, err := v.Verify(t.Context(), token, AudienceRegistry); err != nil {
				t.Errorf("within the leeway: %v", err)
			}
			clk.advance(2 * time.Second)
			if _, err := v.Verify(t.Context(), token, AudienceRegistry); !errors.Is(err, ErrInvalidToken) {
				t.Errorf("expired: err = %v", err)
			}
		})
	}
}

// retirable is a key set whose keys can be withdrawn.
type retirable struct {
	KeySet
	retired bool
}

func (r *retirable) Lookup(kid string) (PublicKey, bool) {
	key, ok := r.KeySet.Lookup(kid)
	return key, ok && !r.retired
}

// A token that was found good is good again without its signature being checked, for the same service, until it expires or
// its key is withdrawn.
func TestVerifyRemembers(t *testing.T) {
	clk := newClock()
	set := &retirable{KeySet: openKeys(t, EdDSA, clk.now)}
	token := sign(t, set.KeySet.(*Keys), claimsFor(AudienceRegistry), time.Minute) //nolint:errcheck // made above
	v := localVerifier(t, set, clk.now)
	first, err := v.Verify(t.Context(), token, AudienceRegistry)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := v.Verify(t.Context(), token, AudienceRegistry); err != nil || again != first {
		t.Errorf("again: %p, %v; first %p", again, err, first)
	}
	if _, err := v.Verify(t.Context(), token, AudienceCIS); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("for another service: err = %v", err)
	}
	set.retired = true
	if _, err := v.Verify(t.Context(), token, AudienceRegistry); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("of a key that was withdrawn: err = %v", err)
	}
	set.retired = false
	clk.advance(time.Minute + leeway + time.Second)
	if _, err := v.Verify(t.Context(), token, AudienceRegistry); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("expired: err = %v", err)
	}
}

// forge signs header and claims by hand with the ring's key, so that each rule is tried with a good signature.
func forge(t testing.TB, keys *Keys, header, claims map[string]any) string {
	t.Helper()
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := b64(h) + "." + b64(c)
	key, ok := keys.keys[0].private.(ed25519.PrivateKey)
	if !ok {
		t.Fatal("forge needs an EdDSA ring")
	}
	return text + "." + b64(ed25519.Sign(key, []byte(text)))
}

func TestVerifyRefuses(t *testing.T) {
	clk := newClock()
	keys := openKeys(t, EdDSA, clk.now)
	other := openKeys(t, EdDSA, clk.now)
	kid := keys.keys[0].KID
	now := clk.now().Unix()
	header := func(mut ...func(map[string]any)) map[string]any {
		m := map[string]any{"alg": "EdDSA", "typ": "JWT", "kid": kid}
		for _, f := range mut {
			f(m)
		}
		return m
	}
	body := func(mut ...func(map[string]any)) map[string]any {
		m := map[string]any{"iss": testIssuer, "aud": "registry", "sub": "alice", "iat": now, "exp": now + 60, "access": []any{}}
		for _, f := range mut {
			f(m)
		}
		return m
	}
	set := func(k string, v any) func(map[string]any) { return func(m map[string]any) { m[k] = v } }
	del := func(k string) func(map[string]any) { return func(m map[string]any) { delete(m, k) } }
	v := localVerifier(t, keys, clk.now)
	good := forge(t, keys, header(), body())
	if _, err := v.Verify(t.Context(), good, "registry"); err != nil {
		t.Fatalf("the unchanged token: %v", err)
	}
	parts := strings.Split(good, ".")
	mac := hmac.New(sha256.New, keys.keys[0].Key.(ed25519.PublicKey))
	hs := b64([]byte(`{"alg":"HS256","kid":"`+kid+`"}`)) + "." + parts[1]
	mac.Write([]byte(hs))

	for name, token := range map[string]string{
		"empty":                "",
		"not a token":          "abc",
		"two parts":            parts[0] + "." + parts[1],
		"no signature":         parts[0] + "." + parts[1] + ".",
		"four parts":           good + ".x",
		"claims changed":       parts[0] + "." + b64([]byte(`{"iss":"https://hub.test","aud":"registry","exp":99999999999}`)) + "." + parts[2],
		"signature bit":        good[:len(good)-3] + string(good[len(good)-3]^1) + good[len(good)-2:],
		"alg none":             b64([]byte(`{"alg":"none","kid":"`+kid+`"}`)) + "." + parts[1] + ".",
		"HS256 by public key":  hs + "." + b64(mac.Sum(nil)),
		"alg of another kind":  forge(t, keys, header(set("alg", "ES256")), body()),
		"alg missing":          forge(t, keys, header(del("alg")), body()),
		"kid missing":          forge(t, keys, header(del("kid")), body()),
		"kid unknown":          forge(t, keys, header(set("kid", "zzz")), body()),
		"kid not text":         forge(t, keys, header(set("kid", 7)), body()),
		"kid of other ring":    forge(t, other, header(), body()),
		"crit":                 forge(t, keys, header(set("crit", []string{"b64"}), set("b64", true)), body()),
		"crit null":            forge(t, keys, header(set("crit", nil)), body()),
		"no exp":               forge(t, keys, header(), body(del("exp"))),
		"exp past":             forge(t, keys, header(), body(set("exp", now-11))),
		"exp text":             forge(t, keys, header(), body(set("exp", "tomorrow"))),
		"nbf to come":          forge(t, keys, header(), body(set("nbf", now+11))),
		"iat to come":          forge(t, keys, header(), body(set("iat", now+11))),
		"no aud":               forge(t, keys, header(), body(del("aud"))),
		"other aud":            forge(t, keys, header(), body(set("aud", "cis"))),
		"no iss":               forge(t, keys, header(), body(del("iss"))),
		"other iss":            forge(t, keys, header(), body(set("iss", "https://evil.test"))),
		"claims not an object": forge(t, keys, header(), nil),
		"too long":             good + strings.Repeat("A", maxTokenBytes),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := v.Verify(t.Context(), token, "registry")
			if !errors.Is(err, ErrInvalidToken) {
				t.Fatalf("Verify = %v, %v", c, err)
			}
			if c != nil {
				t.Error("claims given out with an error")
			}
			if len(token) > 20 && strings.Contains(err.Error(), token[:20]) {
				t.Error("the error holds the token")
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	i := NewIssuer(openKeys(t, EdDSA, nil), testIssuer)
	for name, f := range map[string]func() (string, error){
		"no life":     func() (string, error) { return i.Sign(claimsFor("registry"), 0) },
		"long life":   func() (string, error) { return i.Sign(claimsFor("registry"), MaxTTL+1) },
		"no audience": func() (string, error) { return i.Sign(Claims{}, time.Minute) },
		"two audiences": func() (string, error) {
			c := claimsFor("a")
			c.Audience = append(c.Audience, "b")
			return i.Sign(c, time.Minute)
		},
	} {
		if token, err := f(); err == nil || token != "" {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestThumbprint(t *testing.T) {
	// RFC 8037, appendix A.3.
	x, err := unb64("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Thumbprint(ed25519.PublicKey(x)); err != nil || got != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("Thumbprint = %q, %v", got, err)
	}
}

func TestRotation(t *testing.T) {
	clk := newClock()
	keys := openKeys(t, EdDSA, clk.now)
	v := localVerifier(t, keys, clk.now)
	old := sign(t, keys, claimsFor("registry"), MaxTTL)
	clk.advance(time.Hour)
	if err := keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	fresh := sign(t, keys, claimsFor("registry"), MaxTTL)
	if kidOf(t, old) == kidOf(t, fresh) {
		t.Fatal("the new token has the old key")
	}
	clk.advance(MaxTTL - time.Hour - time.Second)
	for name, token := range map[string]string{"old": old, "fresh": fresh} {
		if _, err := v.Verify(t.Context(), token, "registry"); err != nil {
			t.Errorf("%s token: %v", name, err)
		}
	}
	if pub, err := keys.Public(); err != nil || len(pub) != 2 {
		t.Errorf("Public = %d keys, %v", len(pub), err)
	}
	clk.advance(time.Hour + time.Minute)
	if pub, err := keys.Public(); err != nil || len(pub) != 1 || pub[0].KID != kidOf(t, fresh) {
		t.Errorf("after the last old token: %v, %v", pub, err)
	}
	if err := keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(keys.cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), kidOf(t, old)) {
		t.Error("the first key is still on disk")
	}
}

func TestRotateIfOlder(t *testing.T) {
	clk := newClock()
	path := filepath.Join(t.TempDir(), "k.json")
	var rings []*Keys
	for range 4 {
		k, err := OpenKeys(KeysConfig{Path: path, Now: clk.now})
		if err != nil {
			t.Fatal(err)
		}
		rings = append(rings, k)
	}
	for day, want := range []int{1, 1, 2, 2} {
		var wg sync.WaitGroup
		for _, k := range rings {
			wg.Go(func() {
				if err := k.RotateIfOlder(36 * time.Hour); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if pub, err := rings[0].Public(); err != nil || len(pub) != want {
			t.Errorf("day %d: %d keys, %v, want %d", day, len(pub), err, want)
		}
		clk.advance(23 * time.Hour)
	}
}

func kidOf(t testing.TB, token string) string {
	t.Helper()
	kid, err := peekKID(token)
	if err != nil {
		t.Fatal(err)
	}
	return kid
}

func TestKeysOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.json")
	for _, alg := range []Algorithm{EdDSA, ES256, ""} { // each opens what the last one left, and adds its own
		a, err := OpenKeys(KeysConfig{Path: path, Algorithm: alg})
		if err != nil {
			t.Fatal(err)
		}
		b, err := OpenKeys(KeysConfig{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Rotate(); err != nil {
			t.Fatal(err)
		}
		// b is another process: it signs with the new key and a verifies it.
		token := sign(t, b, claimsFor("registry"), time.Minute)
		if kidOf(t, token) != a.keys[0].KID {
			t.Error("the rotation is not seen by the other ring")
		}
		if _, err := localVerifier(t, a, time.Now).Verify(t.Context(), token, "registry"); err != nil {
			t.Error(err)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode = %v, %v", st.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(KeysConfig{Path: path}); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("a readable key file: err = %v", err)
	}
	if err := os.WriteFile(path, []byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"secretish","d":"secretish"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(KeysConfig{Path: path}); err == nil || strings.Contains(err.Error(), "secretish") {
		t.Errorf("a broken key file: err = %v", err)
	}
}

func TestConcurrentRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.json")
	const rings, turns = 4, 3
	var wg sync.WaitGroup
	for range rings {
		wg.Go(func() {
			k, err := OpenKeys(KeysConfig{Path: path})
			if err != nil {
				t.Error(err)
				return
			}
			for range turns {
				if err := k.Rotate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	k, err := OpenKeys(KeysConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := k.Public(); err != nil || len(pub) != 1+rings*turns {
		t.Errorf("%d keys, %v: a rotation was lost", len(pub), err)
	}
}

func TestParseScopes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		params []string
		want   []Access
	}{
		{"none", nil, nil},
		{"one", []string{"repository:acme/web:pull"}, []Access{{"repository", "acme/web", []string{"pull"}}}},
		{"repeated", []string{"repository:a/b:pull", "repository:c/d:push"}, []Access{{"repository", "a/b", []string{"pull"}}, {"repository", "c/d", []string{"push"}}}},
		{"joined with duplicates", []string{"repository:a/b:pull repository:a/b:pull,push  repository:a/b:push"}, []Access{{"repository", "a/b", []string{"pull", "push"}}}},
		{"order kept", []string{"repository:a/b:push,pull"}, []Access{{"repository", "a/b", []string{"push", "pull"}}}},
		{"port in name", []string{"repository:host:5000/a/b:pull"}, []Access{{"repository", "host:5000/a/b", []string{"pull"}}}},
		{"class", []string{"repository(plugin):a/b:pull"}, []Access{{"repository", "a/b", []string{"pull"}}}},
		{"platform", []string{"platform:*:node"}, []Access{{"platform", "*", []string{"node"}}}},
		{"no actions", []string{"repository:a/b:"}, []Access{{"repository", "a/b", nil}}},
		{"malformed", []string{"repository", "a:b", ":x:y", "repository::pull", "repository(:a:b", " ", "ok:x:y"}, []Access{{"ok", "x", []string{"y"}}}},
		{"too long", []string{strings.Repeat("x", maxScopeBytes+1), "ok:x:y"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := ParseScopes(tc.params); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
