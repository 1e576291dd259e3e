package command

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/registry"
)

// Rights beyond those of a member that a command asks a token for.
const (
	rightOwn      = "own"      // of the org
	rightPlatform = "platform" // to manage or read the whole platform
	rightAccount  = "account"  // to change one's own account
)

// people opens the registry's API with these rights, and gives the org. With --as-admin the platform's are added.
func (a *app) people(rights ...string) (*registryAPI, string, error) {
	s, err := a.open()
	if err != nil {
		return nil, "", err
	}
	if a.asAdmin {
		rights = append(rights, rightPlatform)
	}
	var scopes []string
	for _, r := range rights {
		switch r {
		case rightOwn:
			scopes = append(scopes, "org:"+s.Org+":own")
		case rightPlatform:
			scopes = append(scopes, "platform:*:admin,operator")
		case rightAccount:
			scopes = append(scopes, "account:"+s.User+":read,write")
		}
	}
	api, s, err := a.registry(scopes...)
	if err != nil {
		return nil, "", err
	}
	return api, s.Org, nil
}

// group is a command of commands on what an org has, which the platform's administrators may use for every org.
func (a *app) group(use, short string, aliases []string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Aliases: aliases, Short: short, Args: usage(cobra.NoArgs)}
	cmd.PersistentFlags().BoolVar(&a.asAdmin, "as-admin", false, "act as an administrator of the platform, in any org")
	cmd.AddCommand(commands...)
	return cmd
}

// apiPath joins the segments of a path, escaped, below /v1.
func apiPath(segments ...string) string {
	out := "/v1"
	for _, s := range segments {
		out += "/" + url.PathEscape(s)
	}
	return out
}

// list prints items as a table or for programs.
func list[T any](a *app, items []T, columns []string, wide []string, row func(T) []string) error {
	rows := [][]string{}
	for _, item := range items {
		rows = append(rows, row(item))
	}
	return output.Print(a.env.Out, a.format, items, output.Columns{Always: columns, Wide: wide}, rows)
}

// done tells a person what was done; programs see the exit code.
func (a *app) done(format string, args ...any) error {
	if a.format == output.Table || a.format == output.Wide {
		fmt.Fprintf(a.env.Out, format+"\n", args...)
	}
	return nil
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return output.Age(t) + " ago"
}

func until(t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case time.Now().After(t):
		return "expired"
	}
	return "in " + output.Duration(time.Until(t).Round(time.Minute))
}

// expiry reads an end: "90d", "12h", a date or a time; "" and never are never.
func expiry(text string) (time.Time, error) {
	if text == "" || text == "never" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 100000 {
			return time.Now().AddDate(0, 0, n).UTC().Truncate(time.Second), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return time.Now().Add(d).UTC().Truncate(time.Second), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, &usageError{fmt.Errorf("--expires %s: write 90d, 12h, 2027-01-31, a time as 2027-01-31T12:00:00Z, or never", text)}
}

// scopes reads flags of scopes.
func scopes(texts []string) ([]registry.Scope, error) {
	var out []registry.Scope
	for _, text := range texts {
		s, err := registry.ParseScope("--scope", text)
		if err != nil {
			return nil, &usageError{err}
		}
		out = append(out, s)
	}
	return out, nil
}

func scopeText(scopes []registry.Scope) string {
	var out []string
	for _, s := range scopes {
		out = append(out, s.String())
	}
	return strings.Join(out, " ")
}

const scopeHelp = "repository:ORG/NAME:pull,push,delete or org:ORG:read,write; a repository may be a prefix and *; may be repeated"

// leaf makes a command of a name, arguments and a function.
func leaf(use, short string, args cobra.PositionalArgs, f func(cmd *cobra.Command, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: usage(args), RunE: f}
}

func aliased(cmd *cobra.Command, aliases ...string) *cobra.Command {
	cmd.Aliases = aliases
	return cmd
}
