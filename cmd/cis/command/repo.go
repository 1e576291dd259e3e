package command

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"cumulet.io/registry"
)

// repo is about repositories and who may do what in them.
func (a *app) repo() *cobra.Command {
	ls := aliased(leaf("ls", "List the organisation's repositories", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		repos, err := every[registry.Repository](cmd.Context(), api, 0, apiPath("orgs", org, "repositories"), nil)
		if err != nil {
			return err
		}
		return list(a, repos, repoColumns(), []string{"CREATED", "BY"}, repoRow)
	}), "list")
	show := leaf("show REPOSITORY", "Show a repository", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		return a.oneRepo(cmd, http.MethodGet, args[0], nil)
	})
	visibility := func(v registry.Visibility, short string) *cobra.Command {
		return leaf(string(v)+" REPOSITORY", short, cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			return a.oneRepo(cmd, http.MethodPatch, args[0], map[string]registry.Visibility{"visibility": v})
		})
	}
	return a.group("repo", "Repositories of the registry, and who may do what in them", []string{"repos", "repository"}, ls, show,
		visibility(registry.Public, "Let anyone pull"), visibility(registry.Private, "Let members alone pull"),
		a.repoGrants(), a.repoGrant(), a.repoRevoke())
}

func repoColumns() []string { return []string{"NAME", "VISIBILITY", "PUSHED"} }

func repoRow(r registry.Repository) []string {
	return []string{r.Name, string(r.Visibility), ago(r.Pushed), ago(r.Created), orDash(r.CreatedBy)}
}

func (a *app) oneRepo(cmd *cobra.Command, method, name string, in any) error {
	if _, err := registry.SplitRepository("repository", name); err != nil {
		return err
	}
	api, _, err := a.people()
	if err != nil {
		return err
	}
	var r registry.Repository
	if err := api.call(cmd.Context(), method, "/v1/repositories/"+name, in, &r); err != nil {
		return err
	}
	return list(a, []registry.Repository{r}, repoColumns(), []string{"CREATED", "BY"}, repoRow)
}

func (a *app) repoGrants() *cobra.Command {
	return leaf("grants", "List the roles that teams and people have on repositories beyond those of members", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		grants, err := every[registry.Grant](cmd.Context(), api, 0, apiPath("orgs", org, "grants"), nil)
		if err != nil {
			return err
		}
		return list(a, grants, []string{"REPOSITORIES", "WHO", "ROLE"}, []string{"CREATED", "BY"}, func(g registry.Grant) []string {
			who := "account " + g.Account
			if g.Team != "" {
				who = "team " + g.Team
			}
			return []string{g.Repositories, who, string(g.Role), ago(g.Created), orDash(g.CreatedBy)}
		})
	})
}

// whom adds the flags of a grant's team or account.
func whom(cmd *cobra.Command, team, account *string) {
	cmd.Flags().StringVar(team, "team", "", "a team of the organisation")
	cmd.Flags().StringVar(account, "account", "", "a person, who need not be a member")
}

func (a *app) repoGrant() *cobra.Command {
	var team, account string
	cmd := leaf("grant REPOSITORIES ROLE", "Give a team or a person a role on repositories: admin, writer or reader", cobra.ExactArgs(2),
		func(cmd *cobra.Command, args []string) error {
			if (team == "") == (account == "") {
				return &usageError{errors.New("give --team or --account")}
			}
			api, org, err := a.people()
			if err != nil {
				return err
			}
			in := map[string]string{"repositories": args[0], "role": args[1]}
			if team != "" {
				in["team"] = team
			} else {
				in["account"] = account
			}
			if err := api.call(cmd.Context(), http.MethodPut, apiPath("orgs", org, "grants"), in, nil); err != nil {
				return err
			}
			return a.done("%s%s is %s of %s", team, account, args[1], args[0])
		})
	cmd.Example = "  cis repo grant 'acme/web-*' writer --team web\n  cis repo grant acme/tools reader --account ann"
	whom(cmd, &team, &account)
	return cmd
}

func (a *app) repoRevoke() *cobra.Command {
	var team, account string
	cmd := leaf("revoke REPOSITORIES", "Take a grant away", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		if (team == "") == (account == "") {
			return &usageError{errors.New("give --team or --account")}
		}
		api, org, err := a.people()
		if err != nil {
			return err
		}
		q := url.Values{"repositories": {args[0]}, "team": {team}, "account": {account}}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("orgs", org, "grants")+"?"+q.Encode(), nil, nil); err != nil {
			return err
		}
		return a.done("%s%s has no grant on %s", team, account, args[0])
	})
	whom(cmd, &team, &account)
	return cmd
}
