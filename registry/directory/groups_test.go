package directory

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry"
)

// testGroups is run by text: what somebody or a provider does, and what ann has after it.
func testGroups(t *testing.T, dsn string) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s, err := Open(t.Context(), sqldbtest.Open(t, dsn), Config{Cost: cheap(), Now: func() time.Time { return now }, GroupsFor: 30 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"root", "ann"} {
		must(s.CreateAccount(ctx, registry.Account{Name: name, Kind: registry.Person}, "pass-of-"+name))
	}
	for _, org := range []string{"acme", "beta"} {
		must(s.CreateOrg(ctx, org, "root"))
		for _, team := range []string{"web", "ops"} {
			_, err := s.SetTeam(ctx, org, team, "")
			must(err)
		}
	}
	corp := registry.Identity{Issuer: "https://corp.example", Subject: "1", Account: "ann"}
	partner := registry.Identity{Issuer: "https://partner.example", Subject: "1", Account: "ann"} // the same subject
	must(s.LinkIdentity(ctx, corp))
	must(s.LinkIdentity(ctx, partner))
	for _, step := range []struct {
		do, want, missing string
	}{
		{"corp acme:reader", "acme:reader", ""},
		{"corp acme:writer acme:reader:web", "acme:writer[web]", ""},
		{"partner acme:reader:web acme:reader:ops", "acme:writer[ops web]", ""},
		{"corp", "acme:reader[ops web]", ""}, // the other provider still gives it
		{"partner acme:reader:ops", "acme:reader[ops]", ""},
		{"partner", "", ""},
		// What is not there is left out.
		{"corp acme:reader:nobody none:writer beta:admin", "acme:reader beta:admin", "team nobody of acme, organisation none"},
		{"corp", "", ""},
		// What somebody has of their own stays, and groups add to it.
		{"by hand acme:reader:web", "acme:reader[web]", ""},
		{"corp acme:admin:web acme:reader:ops", "acme:admin[ops web]", ""},
		{"corp acme:writer", "acme:writer[web]", ""},
		{"corp", "acme:reader[web]", ""},
		{"by hand acme:writer", "acme:writer[web]", ""},
		{"corp acme:reader", "acme:writer[web]", ""},
		{"corp", "acme:writer[web]", ""},
		// What an administrator sets after a login counts as the person's own.
		{"corp beta:reader", "acme:writer[web] beta:reader", ""},
		{"by hand beta:owner", "acme:writer[web] beta:owner", ""},
		{"corp beta:reader", "acme:writer[web] beta:owner", ""},
		{"corp", "acme:writer[web] beta:owner", ""},
		{"by hand beta:", "acme:writer[web]", ""},
		{"corp beta:reader", "acme:writer[web] beta:reader", ""},
		{"by hand beta:", "acme:writer[web]", ""},
		{"corp beta:reader", "acme:writer[web] beta:reader", ""}, // the group is where to take it away
		{"unlink", "acme:writer[web]", ""},
		{"link", "acme:writer[web]", ""},
		// Who does not log in for long has what is their own; later is 20 days, and 30 are given.
		{"corp acme:admin:ops beta:reader", "acme:admin[ops web] beta:reader", ""},
		{"partner beta:writer", "acme:admin[ops web] beta:writer", ""},
		{"later", "acme:admin[ops web] beta:writer", ""},
		{"login", "acme:admin[ops web] beta:writer", ""},
		{"later", "acme:admin[ops web] beta:reader", ""}, // the partner's
		{"later", "acme:writer[web]", ""},
		{"corp beta:reader", "acme:writer[web] beta:reader", ""},
	} {
		who, rest, _ := strings.Cut(strings.TrimPrefix(step.do, "by "), " ")
		var rights []GroupRight
		for _, text := range strings.Fields(rest) {
			parts := append(strings.Split(text, ":"), "")
			rights = append(rights, GroupRight{Org: parts[0], Role: registry.Role(parts[1]), Team: parts[2]})
		}
		var missing []string
		switch who {
		case "corp", "partner":
			i := corp
			if who == "partner" {
				i = partner
			}
			var err error
			missing, err = s.SetGroups(ctx, i, rights)
			must(err)
		case "hand":
			for _, r := range rights {
				must(s.SetMember(ctx, r.Org, "ann", r.Role))
				if r.Team != "" {
					must(s.SetTeamMember(ctx, r.Org, r.Team, "ann", true))
				}
			}
		case "link":
			must(s.LinkIdentity(ctx, corp))
		case "login":
			_, err := s.Identity(ctx, corp.Issuer, corp.Subject)
			must(err)
		case "later":
			now = now.Add(20 * 24 * time.Hour)
			must(s.Housekeep(ctx))
		case "unlink":
			must(s.UnlinkIdentity(ctx, "ann", corp.Issuer, corp.Subject))
		}
		var has []string
		for _, org := range []string{"acme", "beta"} {
			members, err := s.Members(ctx, org, "", "", 100)
			must(err)
			for _, m := range members {
				if m.Account == "ann" {
					text := org + ":" + string(m.Role)
					if len(m.Teams) > 0 {
						text += fmt.Sprint(m.Teams)
					}
					has = append(has, text)
				}
			}
		}
		if got := strings.Join(has, " "); got != step.want || strings.Join(missing, ", ") != step.missing {
			t.Errorf("after %q: %q, not %q; missing %q", step.do, got, step.want, missing)
		}
	}
	for _, role := range []registry.Role{registry.RoleOwner, "king", ""} {
		_, err := s.SetGroups(ctx, partner, []GroupRight{{Org: "acme", Role: role}})
		check(t, "role "+string(role), err, problem.ErrInvalid)
	}
	log, err := s.AuditLog(ctx, AuditFilter{All: true, Action: "member", Limit: 1000})
	must(err)
	if !slices.ContainsFunc(log, func(e registry.AuditEntry) bool {
		return e.Action == "member.set" && e.Org == "acme" && e.Detail["issuer"] == corp.Issuer && e.Detail["before"] == "reader" && e.Detail["role"] == "admin"
	}) {
		t.Errorf("audit log: %+v", log)
	}
	// Nothing of it stands in the way of an end.
	must(s.DeleteOrg(ctx, "beta"))
	must(s.DeleteAccount(ctx, "ann"))
}
