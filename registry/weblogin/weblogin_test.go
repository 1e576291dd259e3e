package weblogin

import (
	"encoding/json"
	"reflect"
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
	c := &client{Provider: Provider{UsernameClaim: "upn", GroupsClaim: "groups"}}
	for text, want := range map[string]claims{
		`{"email":"a@b","email_verified":true,"upn":"ann"}`:   {Email: "a@b", EmailVerified: true, username: "ann"},
		`{"email":"a@b","email_verified":"true","upn":"ann"}`: {Email: "a@b", EmailVerified: true, username: "ann"},
		`{"email":"a@b","email_verified":"yes","upn":7}`:      {Email: "a@b"},
		`{"email":"a@b","email_verified":1}`:                  {Email: "a@b"},
		`{"email":"a@b","email_verified":null}`:               {Email: "a@b"},
		`{}`:                                                  {},
		`{"groups":["a","b",7,{"c":1}]}`:                      {groups: []string{"a", "b"}},
		`{"groups":"a"}`:                                      {groups: []string{"a"}},
		`{"groups":[]}`:                                       {groups: []string{}},
		`{"groups":{"a":true}}`:                               {},
		`{"_claim_names":{"groups":"src1"}}`:                  {elsewhere: true},
		`{"_claim_names":["groups"],"groups":["a"]}`:          {groups: []string{"a"}},
		`{"_claim_names":{"groups":"x"},"groups":[]}`:         {groups: []string{}},
	} {
		got, err := c.claimsOf(func(into any) error { return json.Unmarshal([]byte(text), into) })
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"email":"a@b","email_verified":"true","upn":"ann","groups":["a"],"_claim_names":{"groups":"x"}}`))
	c := &client{Provider: Provider{UsernameClaim: "upn", GroupsClaim: "groups"}}
	f.Fuzz(func(t *testing.T, text []byte) {
		said, err := c.claimsOf(func(into any) error { return json.Unmarshal(text, into) })
		if err == nil && bool(said.EmailVerified) && !strings.Contains(string(text), "true") {
			t.Errorf("%s verifies an address", text)
		}
	})
}

// A new account's name tells whose provider it is from.
func TestAccountPrefix(t *testing.T) {
	s := &Service{}
	for _, p := range []Provider{{Name: "corp"}, {Name: "partner", AccountPrefix: "partner-"}, {Name: "lab", AccountPrefix: "lab."}} {
		s.clients = append(s.clients, &client{Provider: p, s: s})
	}
	for _, tc := range []struct{ provider, username, want string }{
		{"corp", "ann", "ann"}, {"partner", "Ann@x", "partner-ann"}, {"lab", "ann", "lab.ann"},
		{"partner", "lab.ann", "partner-lab.ann"},
		{"corp", "partner-ann", ""}, {"corp", "PARTNER+ann", ""}, {"corp", "lab.ann@corp", ""}, {"corp", "_partner-ann", ""}, {"corp", "partner", "partner"},
		{"partner", "", ""}, {"partner", "@x", ""}, {"corp", "hubtoken", ""}, {"partner", strings.Repeat("a", 100), "partner-" + strings.Repeat("a", 55)},
	} {
		got, err := s.client(tc.provider).accountName(tc.username)
		if (err == nil) != (tc.want != "") || err == nil && got != tc.want {
			t.Errorf("%s %q: %q, %v", tc.provider, tc.username, got, err)
		}
	}
}

func TestNew(t *testing.T) {
	good := func() Config {
		return Config{Directory: &directory.Store{}, PublicURL: "https://hub.example", Providers: []Provider{{Name: "corp", Issuer: "https://id.example", ClientID: "x", SignUp: true}}}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
	second := func(c *Config, p Provider) {
		p.ClientID, p.SignUp = "x", true
		c.Providers = append(c.Providers, p)
	}
	for name, spoil := range map[string]func(*Config){
		"no directory": func(c *Config) { c.Directory = nil },
		"no provider":  func(c *Config) { c.Providers = nil },
		"no name":      func(c *Config) { c.Providers[0].Name = "" },
		"name":         func(c *Config) { c.Providers[0].Name = "a/b" },
		"no client":    func(c *Config) { c.Providers[0].ClientID = "" },
		"issuer":       func(c *Config) { c.Providers[0].Issuer = "ftp://x" },
		"password":     func(c *Config) { c.Providers[0].Issuer = "https://u:p@id.example" },
		"prefix":       func(c *Config) { c.Providers[0].AccountPrefix = "-x" },
		"owners":       func(c *Config) { c.Providers[0].SignUpOrg, c.Providers[0].SignUpRole = "acme", registry.RoleOwner },
		"role":         func(c *Config) { c.Providers[0].SignUpOrg, c.Providers[0].SignUpRole = "acme", "king" },
		"no claim": func(c *Config) {
			c.Providers[0].Groups = []Group{{Name: "g", GroupRight: directory.GroupRight{Org: "acme"}}}
		},
		"owners by group": func(c *Config) {
			c.Providers[0].GroupsClaim = "groups"
			c.Providers[0].Groups = []Group{{Name: "g", GroupRight: directory.GroupRight{Org: "acme", Role: registry.RoleOwner}}}
		},
		"group of no org": func(c *Config) { c.Providers[0].GroupsClaim, c.Providers[0].Groups = "groups", []Group{{Name: "g"}} },
		"same name": func(c *Config) {
			second(c, Provider{Name: "corp", Issuer: "https://other.example", AccountPrefix: "o-"})
		},
		"same issuer": func(c *Config) { second(c, Provider{Name: "other", Issuer: "https://id.example", AccountPrefix: "o-"}) },
		"no prefix":   func(c *Config) { second(c, Provider{Name: "other", Issuer: "https://other.example"}) },
		"prefixes": func(c *Config) {
			c.Providers[0].AccountPrefix = "a"
			second(c, Provider{Name: "other", Issuer: "https://other.example", AccountPrefix: "ab-"})
		},
	} {
		c := good()
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
