package weblogin

import (
	"encoding/json"
	"strings"
	"testing"

	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

func TestAccountName(t *testing.T) {
	for name, want := range map[string]string{
		"ann": "ann", "Ann@corp.example": "ann", "ann.b_c-d": "ann.b_c-d", "Ännchen Müller": "nnchen-m-ller", "CORP\\ann": "corp-ann",
		"": "", "@x": "", "...": "", "ann+robot": "ann-robot", strings.Repeat("a", 100): strings.Repeat("a", 63),
	} {
		if got := accountName(name); got != want {
			t.Errorf("accountName(%q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzAccountName(f *testing.F) {
	f.Add("Ann@corp.example")
	f.Add("Ünï/cödé")
	f.Fuzz(func(t *testing.T, name string) {
		got := accountName(name)
		// It is empty, the one name that nobody may have, or good: never a robot's.
		if got != "" && got != registry.TokenUser && registry.ValidateAccount("f", got) != nil {
			t.Fatalf("%q makes %q", name, got)
		}
	})
}

func TestClaims(t *testing.T) {
	s := &Service{cfg: Config{Provider: Provider{UsernameClaim: "upn"}}}
	for text, want := range map[string]claims{
		`{"email":"a@b","email_verified":true,"upn":"ann"}`:   {Email: "a@b", EmailVerified: true, username: "ann"},
		`{"email":"a@b","email_verified":"true","upn":"ann"}`: {Email: "a@b", EmailVerified: true, username: "ann"},
		`{"email":"a@b","email_verified":"yes","upn":7}`:      {Email: "a@b"},
		`{"email":"a@b","email_verified":1}`:                  {Email: "a@b"},
		`{"email":"a@b","email_verified":null}`:               {Email: "a@b"},
		`{}`:                                                  {},
	} {
		got, err := s.claimsOf(func(into any) error { return json.Unmarshal([]byte(text), into) })
		if err != nil || *got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

func TestNew(t *testing.T) {
	good := func() Config {
		return Config{Directory: &directory.Store{}, PublicURL: "https://hub.example", Provider: Provider{Issuer: "https://id.example", ClientID: "x"}}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no directory": func(c *Config) { c.Directory = nil },
		"no client":    func(c *Config) { c.Provider.ClientID = "" },
		"issuer":       func(c *Config) { c.Provider.Issuer = "ftp://x" },
		"password":     func(c *Config) { c.Provider.Issuer = "https://u:p@id.example" },
		"owners":       func(c *Config) { c.Provider.SignUpOrg, c.Provider.SignUpRole = "acme", registry.RoleOwner },
		"role":         func(c *Config) { c.Provider.SignUpOrg, c.Provider.SignUpRole = "acme", "king" },
	} {
		c := good()
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
