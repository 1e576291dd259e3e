package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cumulet.io/cmd/cis/session"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

// account is about one's own account, and, for administrators of the platform, about all.
func (a *app) account() *cobra.Command {
	cmd := &cobra.Command{Use: "account", Aliases: []string{"accounts"}, Short: "Your account; for administrators of the platform, everyone's", Args: usage(cobra.NoArgs)}
	cmd.AddCommand(a.accountShow(), a.accountPassword(), a.accountTokens(), a.accountIdentities(), a.accountLink(), a.accountUnlink(),
		a.accountList(), a.accountCreate(), a.accountRemove(), a.accountReset())
	yes, no := true, false
	for _, c := range []struct {
		use, short, said string
		change           registry.AccountChange
	}{
		{"disable ACCOUNT", "Keep a person from logging in, and end their refresh tokens", "%s cannot log in", registry.AccountChange{Disabled: &yes}},
		{"enable ACCOUNT", "Let a person log in again", "%s can log in", registry.AccountChange{Disabled: &no}},
		{"promote ACCOUNT", "Make a person an administrator of the platform", "%s administers the platform", registry.AccountChange{Platform: &[]string{"admin"}}},
		{"demote ACCOUNT", "Make an administrator of the platform an ordinary person", "%s does not administer the platform", registry.AccountChange{Platform: &[]string{}}},
	} {
		cmd.AddCommand(leaf(c.use, c.short, cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			api, _, err := a.people(rightPlatform)
			if err != nil {
				return err
			}
			if err := api.call(cmd.Context(), http.MethodPatch, apiPath("accounts", args[0]), c.change, nil); err != nil {
				return err
			}
			return a.done(c.said, args[0])
		}))
	}
	return cmd
}

func (a *app) accountShow() *cobra.Command {
	return leaf("show", "Show who you are", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people()
		if err != nil {
			return err
		}
		var me registry.Me
		if err := api.call(cmd.Context(), http.MethodGet, apiPath("account"), nil, &me); err != nil {
			return err
		}
		return list(a, []registry.Me{me}, []string{"NAME", "KIND", "PLATFORM", "ORGS", "GRANTS", "PASSWORD"}, nil, func(m registry.Me) []string {
			var orgs, grants []string
			for _, o := range m.Orgs {
				orgs = append(orgs, o.Org+":"+string(o.Role))
			}
			for _, g := range m.Grants {
				grants = append(grants, g.Repositories+":"+string(g.Role))
			}
			password := "none"
			if m.HasPassword {
				password = "set"
			}
			return []string{m.Name, string(m.Kind), orDash(strings.Join(m.Platform, ",")), orDash(strings.Join(orgs, " ")), orDash(strings.Join(grants, " ")), password}
		})
	})
}

func (a *app) accountPassword() *cobra.Command {
	var stdin bool
	cmd := leaf("password", "Change your password; ends your refresh tokens", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		c, err := a.twoPasswords(stdin)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodPut, apiPath("account", "password"), c, nil); err != nil {
			return err
		}
		return a.done("your password is changed; log in again: cis login")
	})
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the current and the new password from standard input, a line each")
	return cmd
}

// twoPasswords reads the current and the new password: typed without echo, or a line each.
func (a *app) twoPasswords(stdin bool) (registry.PasswordChange, error) {
	var c registry.PasswordChange
	f, ok := a.env.In.(*os.File)
	if !stdin && ok && term.IsTerminal(int(f.Fd())) {
		var typed [3]string
		for i, prompt := range []string{"Current password (none: just Enter): ", "New password: ", "Again: "} {
			fmt.Fprint(a.env.Err, prompt)
			b, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(a.env.Err)
			if err != nil {
				return c, fmt.Errorf("read password: %w", err)
			}
			typed[i] = string(b)
		}
		if typed[1] != typed[2] {
			return c, &usageError{errors.New("the two new passwords differ")}
		}
		return registry.PasswordChange{Current: typed[0], Password: typed[1]}, nil
	}
	if !stdin {
		return c, &usageError{errors.New("no terminal to ask for the passwords at; use --password-stdin")}
	}
	in := bufio.NewReader(io.LimitReader(a.env.In, 8192))
	for _, into := range []*string{&c.Current, &c.Password} {
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return c, fmt.Errorf("read password: %w", err)
		}
		*into = strings.TrimRight(line, "\r\n")
	}
	return c, nil
}

func (a *app) accountTokens() *cobra.Command {
	var revoke string
	cmd := leaf("sessions", "List where you are logged in, or end one", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		if revoke != "" {
			if err := api.call(cmd.Context(), http.MethodDelete, apiPath("account", "tokens", revoke), nil, nil); err != nil {
				return err
			}
			return a.done("ended the session %s", revoke)
		}
		tokens, err := every[directory.OfflineToken](cmd.Context(), api, 0, apiPath("account", "tokens"), nil)
		if err != nil {
			return err
		}
		return list(a, tokens, []string{"ID", "CLIENT", "SERVICE", "BEGUN", "USED"}, nil, func(t directory.OfflineToken) []string {
			return []string{t.ID, orDash(t.Client), t.Audience, ago(t.Created), ago(t.Used)}
		})
	})
	cmd.Flags().StringVar(&revoke, "end", "", "end the session of this id")
	return cmd
}

func (a *app) accountIdentities() *cobra.Command {
	return leaf("identities", "List who you are at the OpenID provider", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		identities, err := every[registry.Identity](cmd.Context(), api, 0, apiPath("account", "identities"), nil)
		if err != nil {
			return err
		}
		return list(a, identities, []string{"PROVIDER", "ISSUER", "SUBJECT", "EMAIL", "LINKED", "USED"}, nil, func(i registry.Identity) []string {
			return []string{orDash(i.Provider), i.Issuer, i.Subject, orDash(i.Email), ago(i.Created), ago(i.Used)}
		})
	})
}

func (a *app) accountLink() *cobra.Command {
	return leaf("link", "Link an identity at the OpenID provider, to log in with it", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		s, err := a.open()
		if err != nil {
			return err
		}
		var d registry.DeviceAuthorization
		if err := api.call(cmd.Context(), http.MethodPost, apiPath("account", "identities"), nil, &d); err != nil {
			return err
		}
		a.showDevice(d)
		if err := session.AwaitBrowser(cmd.Context(), s.Endpoints, d); err != nil {
			return err
		}
		return a.done("linked; log in with it by: cis login --oidc URL")
	})
}

// showDevice tells a person where to finish what they began.
func (a *app) showDevice(d registry.DeviceAuthorization) {
	fmt.Fprintf(a.env.Err, "Open this page in a browser, and go on if it shows the code %s:\n  %s\nWaiting…\n", d.UserCode, d.VerificationURIComplete)
}

func (a *app) accountUnlink() *cobra.Command {
	return leaf("unlink ISSUER SUBJECT", "Take an identity away; ends your refresh tokens", cobra.ExactArgs(2), func(cmd *cobra.Command, args []string) error {
		api, _, err := a.people(rightAccount)
		if err != nil {
			return err
		}
		q := url.Values{"issuer": {args[0]}, "subject": {args[1]}}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("account", "identities")+"?"+q.Encode(), nil, nil); err != nil {
			return err
		}
		return a.done("unlinked; log in again: cis login")
	})
}

func (a *app) accountList() *cobra.Command {
	return aliased(leaf("ls", "List everyone, as an administrator of the platform", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		api, _, err := a.people(rightPlatform)
		if err != nil {
			return err
		}
		accounts, err := every[registry.Account](cmd.Context(), api, 0, apiPath("accounts"), nil)
		if err != nil {
			return err
		}
		return list(a, accounts, []string{"NAME", "KIND", "STATE", "PLATFORM", "CREATED"}, nil, func(c registry.Account) []string {
			state := "enabled"
			if c.Disabled {
				state = "disabled"
			}
			return []string{c.Name, string(c.Kind), state, orDash(strings.Join(c.Platform, ",")), ago(c.Created)}
		})
	}), "list")
}

func (a *app) accountCreate() *cobra.Command {
	var stdin, admin bool
	cmd := leaf("create ACCOUNT", "Make a person's account, as an administrator of the platform", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		n := registry.NewAccount{Name: args[0]}
		if admin {
			n.Platform = []string{"admin"}
		}
		if stdin {
			var err error
			if n.Password, err = a.password(true); err != nil {
				return err
			}
		}
		api, _, err := a.people(rightPlatform)
		if err != nil {
			return err
		}
		var made registry.AccountPassword
		if err := api.call(cmd.Context(), http.MethodPost, apiPath("accounts"), n, &made); err != nil {
			return err
		}
		if made.Password != "" {
			return a.secret(made, made.Name, made.Password)
		}
		return a.done("made the account %s", made.Name)
	})
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input; otherwise one is made up and printed, this once")
	cmd.Flags().BoolVar(&admin, "admin", false, "make them an administrator of the platform")
	return cmd
}

func (a *app) accountRemove() *cobra.Command {
	return leaf("rm ACCOUNT", "Remove a person, as an administrator of the platform", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		api, _, err := a.people(rightPlatform)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodDelete, apiPath("accounts", args[0]), nil, nil); err != nil {
			return err
		}
		return a.done("removed the account %s", args[0])
	})
}

func (a *app) accountReset() *cobra.Command {
	var stdin bool
	cmd := leaf("reset-password ACCOUNT", "Set a person's password, as an administrator of the platform", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		password, err := a.password(stdin)
		if err != nil {
			return err
		}
		api, _, err := a.people(rightPlatform)
		if err != nil {
			return err
		}
		if err := api.call(cmd.Context(), http.MethodPut, apiPath("accounts", args[0], "password"), registry.PasswordChange{Password: password}, nil); err != nil {
			return err
		}
		return a.done("%s has a new password", args[0])
	})
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	return cmd
}
