package command

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/registry"
)

func (a *app) audit() *cobra.Command {
	var all, denied, changes bool
	var limit int
	var since, end string
	q := map[string]*string{"actor": new(string), "action": new(string), "target": new(string)}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Who changed what, and what was denied to whom",
		Long: "Print the organisation's audit log, newest first: every change of accounts, members, teams, grants, robots and\n" +
			"repositories, and every denied access. Repeated denials are one entry that tells how many there were.",
		Example: "  cis audit --action member --since 7d\n  cis audit --denied --actor acme+ci\n  cis audit --target 'acme/web*' -o json",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			values := url.Values{}
			for name, v := range q {
				if *v != "" {
					values.Set(name, *v)
				}
			}
			for name, text := range map[string]string{"since": since, "until": end} {
				if text == "" {
					continue
				}
				at, err := instant(name, text)
				if err != nil {
					return err
				}
				values.Set(name, at.UTC().Format(time.RFC3339Nano))
			}
			switch {
			case denied && changes:
				return &usageError{fmt.Errorf("--denied and --changes exclude each other")}
			case denied:
				values.Set("denied", "true")
			case changes:
				values.Set("denied", "false")
			}
			var rights []string
			if all {
				rights = append(rights, rightPlatform)
			}
			api, org, err := a.people(rights...)
			if err != nil {
				return err
			}
			p := apiPath("orgs", org, "audit")
			if all {
				p = apiPath("audit")
			}
			entries, err := every[registry.AuditEntry](cmd.Context(), api, limit, p, values)
			if err != nil {
				return err
			}
			return list(a, entries, []string{"TIME", "ACTOR", "ACTION", "TARGET", "RESULT", "DETAIL"}, []string{"ORG", "ADDRESS", "ID"}, auditRow)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(q["actor"], "actor", "", "by this account")
	fl.StringVar(q["action"], "action", "", "of this kind: member.set, or member for all of them")
	fl.StringVar(q["target"], "target", "", "to this, or to what begins with a prefix and *")
	fl.StringVar(&since, "since", "", "not before: 7d, 12h ago, a date or a time")
	fl.StringVar(&end, "until", "", "before: 7d, 12h ago, a date or a time")
	fl.BoolVar(&denied, "denied", false, "denials alone")
	fl.BoolVar(&changes, "changes", false, "changes alone")
	fl.IntVar(&limit, "limit", 100, "how many at most; 0 is all")
	fl.BoolVar(&all, "all", false, "of every organisation and the platform, for administrators of the platform")
	fl.BoolVar(&a.asAdmin, "as-admin", false, "act as an administrator of the platform, in any org")
	return cmd
}

// instant reads a point in the past.
func instant(flag, text string) (time.Time, error) {
	at, err := expiry(text)
	if err != nil {
		return at, &usageError{fmt.Errorf("--%s %s: write 7d, 12h, 2027-01-31 or a time as 2027-01-31T12:00:00Z", flag, text)}
	}
	if now := time.Now(); at.After(now) && !strings.Contains(text, "-") {
		at = now.Add(-at.Sub(now)) // a duration is backwards
	}
	return at, nil
}

func auditRow(e registry.AuditEntry) []string {
	result := "done"
	if e.Denied {
		result = "denied"
	}
	var detail []string
	for k, v := range e.Detail {
		if v != "" {
			detail = append(detail, k+"="+v)
		}
	}
	slices.Sort(detail)
	return []string{clock(e.Time), orDash(e.Actor), e.Action, orDash(e.Target), result, orDash(strings.Join(detail, " ")), orDash(e.Org), orDash(e.Address), fmt.Sprint(e.ID)}
}
