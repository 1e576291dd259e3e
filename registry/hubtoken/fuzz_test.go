package hubtoken

import (
	"errors"
	"testing"
	"time"
)

func FuzzVerify(f *testing.F) {
	keys := openKeys(f, EdDSA, nil)
	es := openKeys(f, ES256, nil)
	v := localVerifier(f, keys, time.Now)
	good := sign(f, keys, claimsFor("registry"), time.Hour)
	f.Add(good)
	f.Add(sign(f, es, claimsFor("registry"), time.Hour))
	f.Add("a.b.c")
	f.Add(b64([]byte(`{"alg":"EdDSA","kid":"`+kidOf(f, good)+`"}`)) + "." + b64([]byte(`{"aud":["registry"]}`)) + ".AA")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := v.Verify(t.Context(), token, "registry")
		switch {
		case err == nil && token != good:
			t.Fatalf("a token that was never issued is valid: %q gives %+v", token, c)
		case err != nil && !errors.Is(err, ErrInvalidToken):
			t.Fatalf("err = %v", err)
		}
	})
}

func FuzzParseScopes(f *testing.F) {
	f.Add("repository:a/b:pull,push repository:host:5000/x:delete", "registry:catalog:*")
	f.Fuzz(func(t *testing.T, a, b string) {
		got := ParseScopes([]string{a, b})
		var again []string
		for _, e := range got {
			if e.Type == "" || e.Name == "" {
				t.Fatalf("empty type or name: %+v", e)
			}
			again = append(again, e.String())
		}
		if len(again) > maxScopes {
			t.Fatalf("%d entries", len(again))
		}
		if len(a)+len(b) < maxScopeBytes/2 && len(ParseScopes(again)) != len(got) {
			t.Fatalf("not stable: %v then %v", got, ParseScopes(again))
		}
	})
}

func FuzzParseJWKS(f *testing.F) {
	for _, alg := range []Algorithm{EdDSA, ES256} {
		doc, err := openKeys(f, alg, nil).JWKS()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"x"}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		keys, err := ParseJWKS(doc)
		if err != nil {
			return
		}
		again, err := MarshalJWKS(keys)
		if err != nil {
			t.Fatal(err)
		}
		if k, err := ParseJWKS(again); err != nil || len(k) != len(keys) {
			t.Fatalf("not stable: %d keys, then %d, %v", len(keys), len(k), err)
		}
	})
}
