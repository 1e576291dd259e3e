package command

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/registry"
)

// machine tells that a program reads what is printed.
func (a *app) machine() bool { return a.format == output.JSON || a.format == output.YAML }

func robotColumns() ([]string, []string) {
	return []string{"ACCOUNT", "STATE", "EXPIRES", "USED", "SCOPES"}, []string{"CREATED", "BY", "DESCRIPTION"}
}

func robotRow(r registry.RobotAccount) []string {
	state := "enabled"
	if r.Disabled {
		state = "disabled"
	}
	return []string{r.Account, state, until(r.Expires), ago(r.Used), scopeText(r.Scopes), ago(r.Created), orDash(r.CreatedBy), orDash(r.Description)}
}

// secret prints what is shown once.
func (a *app) secret(v any, login, secret string) error {
	if a.machine() {
		return output.Print(a.env.Out, a.format, v, output.Columns{}, nil)
	}
	fmt.Fprintf(a.env.Err, "This is shown once: log in as %s with it as password.\n", login)
	fmt.Fprintln(a.env.Out, secret)
	return nil
}

func (a *app) robots() *cobra.Command {
	always, wide := robotColumns()
	one := func(use, short, method string, in any, segments ...string) *cobra.Command {
		return leaf(use, short, cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			api, org, err := a.people()
			if err != nil {
				return err
			}
			var r registry.RobotAccount
			if err := api.call(cmd.Context(), method, apiPath(append([]string{"orgs", org, "robots", args[0]}, segments...)...), in, &r); err != nil {
				return err
			}
			return list(a, []registry.RobotAccount{r}, always, wide, robotRow)
		})
	}
	ls := aliased(leaf("ls", "List the robots", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		robots, err := every[registry.RobotAccount](cmd.Context(), api, 0, apiPath("orgs", org, "robots"), nil)
		if err != nil {
			return err
		}
		return list(a, robots, always, wide, robotRow)
	}), "list")
	rotate := leaf("rotate ROBOT", "Give a robot a new secret; the old one ends at once", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		var r registry.RobotSecret
		if err := api.call(cmd.Context(), http.MethodPost, apiPath("orgs", org, "robots", args[0], "secret"), nil, &r); err != nil {
			return err
		}
		return a.secret(r, r.Account, r.Secret)
	})
	rm := leaf("rm ROBOT", "Remove a robot with its tokens", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, org, err := a.people()
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("orgs", org, "robots", args[0]), nil, nil); err != nil {
			return err
		}
		return a.done("removed the robot %s", args[0])
	})
	yes, no := true, false
	return a.group("robot", "Robots: accounts of programs, with scopes and an end", []string{"robots"}, ls, a.robotCreate(), a.robotSet(),
		one("show ROBOT", "Show a robot", http.MethodGet, nil),
		one("disable ROBOT", "Keep a robot from logging in", http.MethodPatch, registry.RobotChange{Disabled: &yes}),
		one("enable ROBOT", "Let a robot log in again", http.MethodPatch, registry.RobotChange{Disabled: &no}), rotate, rm)
}

func (a *app) robotCreate() *cobra.Command {
	var n registry.NewRobot
	var texts []string
	var end string
	cmd := leaf("create ROBOT", "Make a robot and print its secret, this once", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		var err error
		n.Name = args[0]
		if n.Scopes, err = scopes(texts); err != nil {
			return err
		}
		if n.Expires, err = expiry(end); err != nil {
			return err
		}
		api, org, err := a.people()
		if err != nil {
			return err
		}
		var r registry.RobotSecret
		if err := api.call(cmd.Context(), http.MethodPost, apiPath("orgs", org, "robots"), n, &r); err != nil {
			return err
		}
		return a.secret(r, r.Account, r.Secret)
	})
	cmd.Example = "  cis robot create ci --scope 'repository:acme/web-*:pull,push' --expires 90d"
	cmd.Flags().StringArrayVar(&texts, "scope", nil, scopeHelp)
	cmd.Flags().StringVar(&end, "expires", "90d", "when it ends: 90d, 12h, a date, a time or never")
	cmd.Flags().StringVar(&n.Description, "description", "", "what it is for")
	return cmd
}

func (a *app) robotSet() *cobra.Command {
	var texts []string
	var end, description string
	cmd := leaf("set ROBOT", "Change a robot's scopes, end or description", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		var c registry.RobotChange
		if cmd.Flags().Changed("scope") {
			list, err := scopes(texts)
			if err != nil {
				return err
			}
			c.Scopes = &list
		}
		if cmd.Flags().Changed("expires") {
			at, err := expiry(end)
			if err != nil {
				return err
			}
			c.Expires = &at
		}
		if cmd.Flags().Changed("description") {
			c.Description = &description
		}
		if c == (registry.RobotChange{}) {
			return &usageError{fmt.Errorf("nothing to change: give --scope, --expires or --description")}
		}
		api, org, err := a.people()
		if err != nil {
			return err
		}
		var r registry.RobotAccount
		if err := api.call(cmd.Context(), http.MethodPatch, apiPath("orgs", org, "robots", args[0]), c, &r); err != nil {
			return err
		}
		always, wide := robotColumns()
		return list(a, []registry.RobotAccount{r}, always, wide, robotRow)
	})
	cmd.Flags().StringArrayVar(&texts, "scope", nil, scopeHelp+"; these replace all there are")
	cmd.Flags().StringVar(&end, "expires", "", "when it ends: 90d, 12h, a date, a time or never")
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	return cmd
}

func (a *app) apikeys() *cobra.Command {
	var texts []string
	var end string
	columns := []string{"NAME", "EXPIRES", "USED", "SCOPES"}
	row := func(k registry.APIKey) []string {
		limit := "all that you may"
		if len(k.Scopes) > 0 {
			limit = scopeText(k.Scopes)
		}
		return []string{k.Name, until(k.Expires), ago(k.Used), limit, ago(k.Created), k.ID}
	}
	ls := aliased(leaf("ls", "List your API keys", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		keys, err := every[registry.APIKey](cmd.Context(), api, 0, apiPath("account", "keys"), nil)
		if err != nil {
			return err
		}
		return list(a, keys, columns, []string{"CREATED", "ID"}, row)
	}), "list")
	create := leaf("create NAME", "Make an API key and print it, this once", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		n := registry.NewAPIKey{Name: args[0]}
		var err error
		if n.Scopes, err = scopes(texts); err != nil {
			return err
		}
		if n.Expires, err = expiry(end); err != nil {
			return err
		}
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		var k registry.APIKeySecret
		if err := api.call(cmd.Context(), http.MethodPost, apiPath("account", "keys"), n, &k); err != nil {
			return err
		}
		return a.secret(k, k.Account, k.Key)
	})
	create.Flags().StringArrayVar(&texts, "scope", nil, "the most that it may do: "+scopeHelp+"; default all that you may")
	create.Flags().StringVar(&end, "expires", "90d", "when it ends: 90d, 12h, a date, a time or never")
	rm := leaf("rm NAME", "End an API key and what was got with it", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("account", "keys", args[0]), nil, nil); err != nil {
			return err
		}
		return a.done("ended the API key %s", args[0])
	})
	cmd := &cobra.Command{Use: "apikey", Aliases: []string{"apikeys"}, Short: "API keys: what your programs use instead of your password", Args: usage(cobra.NoArgs)}
	cmd.AddCommand(ls, create, rm)
	return cmd
}

// clock is a time for people, in UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
