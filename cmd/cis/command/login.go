package command

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/cmd/cis/session"
	"cumulet.io/registry"
)

func (a *app) login() *cobra.Command {
	var user string
	var stdin, oidc bool
	cmd := &cobra.Command{
		Use:   "login URL",
		Short: "Log in to a platform",
		Long: "Log in to the platform whose container instance service answers at URL.\n" +
			"The password is asked for, or read from standard input with --password-stdin; it may be an API key, or with\n" +
			"-u ORG+ROBOT a robot's secret. With --oidc you log in with the OpenID provider instead, in any browser. Nothing\n" +
			"but a refresh token is stored, which the platform can revoke.",
		Example: "  cis login http://127.0.0.1:8440 -u admin --org demo\n  cis login https://cis.example --oidc",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ends, err := session.Discover(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s, err := a.newSession(cmd.Context(), ends, user, oidc, stdin)
			if err != nil {
				return err
			}
			path, err := a.sessionPath()
			if err != nil {
				return err
			}
			if err := s.Save(path); err != nil {
				return err
			}
			fmt.Fprintf(a.env.Out, "logged in as %s, org %s\n", s.User, s.Org)
			return nil
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "admin", "user name")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	cmd.Flags().BoolVar(&oidc, "oidc", false, "log in with the OpenID provider, in a browser")
	return cmd
}

// newSession logs in by browser or by password.
func (a *app) newSession(ctx context.Context, ends session.Endpoints, user string, oidc, stdin bool) (*session.Session, error) {
	if oidc {
		return session.LoginByBrowser(ctx, ends, a.org, a.showDevice)
	}
	password, err := a.password(stdin)
	if err != nil {
		return nil, err
	}
	org := a.org
	if robotOrg, _, ok := registry.SplitRobot(user); org == "" && ok {
		org = robotOrg
	}
	return session.Login(ctx, ends, user, password, cmp.Or(org, user))
}

// password reads one line from standard input, without echo when a person types it.
func (a *app) password(stdin bool) (string, error) {
	if f, ok := a.env.In.(*os.File); ok && !stdin && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(a.env.Err, "Password: ")
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.env.Err)
		if err != nil {
			return "", fmt.Errorf("read password: %w", err)
		}
		return string(b), nil
	}
	if !stdin {
		return "", &usageError{errors.New("no terminal to ask for the password at; use --password-stdin")}
	}
	line, err := bufio.NewReader(io.LimitReader(a.env.In, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func (a *app) logout() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "End the login: revoke its token, and forget it",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := a.sessionPath()
			if err != nil {
				return err
			}
			if s, err := session.Load(path); err == nil {
				if err := s.Logout(cmd.Context()); err != nil {
					fmt.Fprintln(a.env.Err, "cis: the token is forgotten here, but could not be revoked:", err)
				}
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("log out: %w", err)
			}
			return nil
		},
	}
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": a.env.Version}
			return output.Print(a.env.Out, a.format, v, output.Columns{Always: []string{"VERSION"}}, [][]string{{a.env.Version}})
		},
	}
}
