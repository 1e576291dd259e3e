package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/cmd/cis/session"
)

func (a *app) login() *cobra.Command {
	var user string
	var stdin bool
	cmd := &cobra.Command{
		Use:   "login URL",
		Short: "Log in to a platform",
		Long: "Log in to the platform whose container instance service answers at URL.\n" +
			"The password is asked for, or read from standard input with --password-stdin. It is not stored: the session\n" +
			"keeps a refresh token that the platform can revoke.",
		Example: "  cis login http://127.0.0.1:8440 -u admin --org demo",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ends, err := session.Discover(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			password, err := a.password(stdin)
			if err != nil {
				return err
			}
			org := a.org
			if org == "" {
				org = user
			}
			s, err := session.Login(cmd.Context(), ends, user, password, org)
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
			fmt.Fprintf(a.env.Out, "logged in as %s, org %s\n", user, org)
			return nil
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "admin", "user name")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	return cmd
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
		Short: "Forget the login",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			path, err := a.sessionPath()
			if err != nil {
				return err
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
