package command

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"cumulet.io/registry"
)

func (a *app) orgs() *cobra.Command {
	var all, byDefault bool
	var owner string
	var gib, repositories int64
	ls := aliased(leaf("ls", "List the organisations that you are in", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		rights, q := []string{}, url.Values{}
		if all || a.asAdmin {
			rights, q = []string{rightPlatform}, url.Values{"all": {"true"}}
		}
		api, _, err := a.people(rights...)
		if err != nil {
			return err
		}
		orgs, err := every[registry.OrgInfo](cmd.Context(), api, 0, apiPath("orgs"), q)
		if err != nil {
			return err
		}
		return list(a, orgs, []string{"NAME", "ROLE", "QUOTA", "REPOSITORIES", "CREATED"}, nil, orgRow)
	}), "list")
	ls.Flags().BoolVar(&all, "all", false, "every organisation, for administrators of the platform")
	show := leaf("show [ORG]", "Show an organisation", cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		if len(args) > 0 && args[0] != org {
			a.org = args[0]
			if api, org, err = a.people(); err != nil {
				return err
			}
		}
		var o registry.OrgInfo
		if err := api.call(cmd.Context(), http.MethodGet, apiPath("orgs", org), nil, &o); err != nil {
			return err
		}
		return list(a, []registry.OrgInfo{o}, []string{"NAME", "ROLE", "QUOTA", "REPOSITORIES", "CREATED"}, nil, orgRow)
	})
	create := leaf("create ORG", "Make an organisation, as an administrator of the platform", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, _, err := a.people(rightPlatform)
		if err != nil {
			return err
		}
		var o registry.OrgInfo
		if err := api.call(cmd.Context(), http.MethodPost, apiPath("orgs"), registry.NewOrg{Name: args[0], Owner: owner}, &o); err != nil {
			return err
		}
		return a.done("made the organisation %s", o.Name)
	})
	create.Flags().StringVar(&owner, "owner", "", "its first owner; default you")
	rm := leaf("rm ORG", "Remove an organisation that has no repositories", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		a.org = args[0]
		api, org, err := a.people(rightOwn)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("orgs", org), nil, nil); err != nil {
			return err
		}
		return a.done("removed the organisation %s", org)
	})
	quota := leaf("quota ORG", "Bound what an organisation stores, as an administrator of the platform", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		if byDefault == (cmd.Flags().Changed("gib") || cmd.Flags().Changed("repositories")) {
			return &usageError{fmt.Errorf("give --gib and --repositories, or --default")}
		}
		api, _, err := a.people(rightPlatform)
		if err != nil {
			return err
		}
		if byDefault {
			if err := api.call(cmd.Context(), http.MethodDelete, apiPath("orgs", args[0], "quota"), nil, nil); err != nil {
				return err
			}
			return a.done("%s has the default quota", args[0])
		}
		if err := api.call(cmd.Context(), http.MethodPut, apiPath("orgs", args[0], "quota"), registry.Quota{Bytes: gib << 30, Repositories: repositories}, nil); err != nil {
			return err
		}
		return a.done("%s may store %s in %s", args[0], bound(gib<<30), countBound(repositories))
	})
	quota.Flags().Int64Var(&gib, "gib", 0, "GiB; 0 is no bound")
	quota.Flags().Int64Var(&repositories, "repositories", 0, "how many; 0 is no bound")
	quota.Flags().BoolVar(&byDefault, "default", false, "let the default hold")
	return a.group("org", "Organisations: list, make, bound, remove", []string{"orgs"}, ls, show, create, rm, quota)
}

func orgRow(o registry.OrgInfo) []string {
	return []string{o.Name, orDash(string(o.Role)), bound(o.Quota.Bytes), countBound(o.Quota.Repositories), ago(o.Created)}
}

func bound(bytes int64) string {
	if bytes == 0 {
		return "no bound"
	}
	return fmt.Sprintf("%.4g GiB", float64(bytes)/(1<<30))
}

func countBound(n int64) string {
	if n == 0 {
		return "no bound"
	}
	return fmt.Sprint(n)
}

func (a *app) members() *cobra.Command {
	var team string
	ls := aliased(leaf("ls", "List the members", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		p := apiPath("orgs", org, "members")
		if team != "" {
			p = apiPath("orgs", org, "teams", team, "members")
		}
		members, err := every[registry.Member](cmd.Context(), api, 0, p, nil)
		if err != nil {
			return err
		}
		return list(a, members, []string{"ACCOUNT", "ROLE", "TEAMS"}, nil, func(m registry.Member) []string {
			return []string{m.Account, string(m.Role), orDash(strings.Join(m.Teams, ","))}
		})
	}), "list")
	ls.Flags().StringVar(&team, "team", "", "of this team alone")
	set := leaf("set ACCOUNT ROLE", "Give a person a role: owner, admin, writer or reader", cobra.ExactArgs(2), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people(rightOwn)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodPut, apiPath("orgs", org, "members", args[0]), registry.MemberRole{Role: registry.Role(args[1])}, nil); err != nil {
			return err
		}
		return a.done("%s is %s of %s", args[0], args[1], org)
	})
	rm := leaf("rm ACCOUNT", "Take a person out, with their teams and grants", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people(rightOwn)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("orgs", org, "members", args[0]), nil, nil); err != nil {
			return err
		}
		return a.done("%s is out of %s", args[0], org)
	})
	return a.group("member", "Members of the organisation and their roles", []string{"members"}, ls, set, rm)
}

func (a *app) teams() *cobra.Command {
	var description string
	ls := aliased(leaf("ls", "List the teams", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		teams, err := every[registry.Team](cmd.Context(), api, 0, apiPath("orgs", org, "teams"), nil)
		if err != nil {
			return err
		}
		return list(a, teams, []string{"NAME", "MEMBERS", "CREATED", "DESCRIPTION"}, nil, func(t registry.Team) []string {
			return []string{t.Name, fmt.Sprint(t.Members), ago(t.Created), orDash(t.Description)}
		})
	}), "list")
	create := leaf("create TEAM", "Make a team, or change its description", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodPut, apiPath("orgs", org, "teams", args[0]), registry.TeamChange{Description: description}, nil); err != nil {
			return err
		}
		return a.done("%s has the team %s", org, args[0])
	})
	create.Flags().StringVar(&description, "description", "", "what it is for")
	rm := leaf("rm TEAM", "Remove a team with its grants", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("orgs", org, "teams", args[0]), nil, nil); err != nil {
			return err
		}
		return a.done("removed the team %s", args[0])
	})
	change := func(use, short, method, said string) *cobra.Command {
		return leaf(use, short, cobra.MinimumNArgs(2), func(cmd *cobra.Command, args []string) error {
			api, org, err := a.people()
			if err != nil {
				return err
			}
			for _, account := range args[1:] {
				if err := api.call(cmd.Context(), method, apiPath("orgs", org, "teams", args[0], "members", account), nil, nil); err != nil {
					return fmt.Errorf("%s: %w", account, err)
				}
			}
			return a.done("%s %s the team %s", strings.Join(args[1:], ", "), said, args[0])
		})
	}
	return a.group("team", "Teams, to whom repositories are granted at once", []string{"teams"}, ls, create, rm,
		change("add TEAM ACCOUNT...", "Put members of the organisation in a team", http.MethodPut, "in"),
		change("remove TEAM ACCOUNT...", "Take members out of a team", http.MethodDelete, "out of"))
}
