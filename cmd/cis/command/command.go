// Package command is the command line's commands: parse, call the platform's clients, print.
//
// Exit codes: 0 done; 1 failed; 2 the call was wrong; 3 not logged in or not allowed; 4 not found; and for exec and run
// the command's own.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cmd/cis/output"
	"cumulet.io/cmd/cis/session"
	"cumulet.io/internal/cmdtree"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

// Env is what a run of the command line sees of the world.
type Env struct {
	Version  string
	In       io.Reader
	Out, Err io.Writer
}

// Exit codes.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitDenied   = 3
	exitNotFound = 4
)

// Main runs one command line and gives its exit code.
func Main(ctx context.Context, env Env, args []string) int {
	root := Root(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	fmt.Fprintln(env.Err, "cis:", err)
	var usage *usageError
	switch {
	case errors.As(err, &usage), errors.Is(err, problem.ErrInvalid):
		return exitUsage
	case errors.Is(err, problem.ErrUnauthenticated), errors.Is(err, problem.ErrForbidden):
		return exitDenied
	case errors.Is(err, problem.ErrNotFound):
		return exitNotFound
	}
	return exitFailed
}

type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// app is what every command shares.
type app struct {
	env     Env
	format  output.Format
	org     string
	session string
	// asAdmin has a token ask for the platform's rights, too.
	asAdmin bool
}

// Root is the whole command tree.
func Root(env Env) *cobra.Command {
	a := &app{env: env}
	root := &cobra.Command{
		Use:           "cis",
		Short:         "Container instances: run them, read their logs, see their bill",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	flags := root.PersistentFlags()
	flags.VarP(&a.format, "output", "o", "how to print: table, wide, json or yaml")
	flags.StringVar(&a.org, "org", "", "organisation; default the one logged in to")
	flags.StringVar(&a.session, "session", "", "session file; default $CIS_CONFIG or the user's configuration directory")
	root.AddCommand(a.login(), a.logout(), a.run(), a.ps(), a.describe(), a.logs(), a.exec(), a.rm(), a.events(),
		a.bill(), a.sizes(), a.version())
	root.AddCommand(a.account(), a.orgs(), a.members(), a.teams(), a.repo(), a.robots(), a.apikeys(), a.audit())
	root.AddCommand(a.webhook(), a.image(), a.file(), a.quotas())
	a.addRepoImages(root)
	cmdtree.Strict(root, func(err error) error { return &usageError{err} })
	return root
}

// usage makes a cobra argument check a usage error, for its exit code.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{fmt.Errorf("%w; see: %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}

// open loads the session.
func (a *app) open() (*session.Session, error) {
	path, err := a.sessionPath()
	if err != nil {
		return nil, err
	}
	s, err := session.Load(path)
	if err != nil {
		return nil, problem.New(problem.ErrUnauthenticated, "%v", err)
	}
	if a.org != "" {
		s.Org = a.org
	}
	return s, nil
}

func (a *app) sessionPath() (string, error) {
	if a.session != "" {
		return a.session, nil
	}
	return session.DefaultPath()
}

// service opens the session and a client of the container instance service.
func (a *app) service() (*client.Client, *session.Session, error) {
	s, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	c, err := client.New(client.Config{BaseURL: s.Endpoints.Control, Source: s.Source(hubtoken.AudienceCIS)})
	if err != nil {
		return nil, nil, err
	}
	return c, s, nil
}

// instance opens the service and finds the instance that ref names.
func (a *app) instance(ctx context.Context, ref string) (*client.Client, *cis.Instance, error) {
	c, s, err := a.service()
	if err != nil {
		return nil, nil, err
	}
	in, err := find(ctx, c, s.Org, ref)
	return c, in, err
}

// find gives the instance that ref names: an id, or a name, of the newest live instance before the newest ended one.
func find(ctx context.Context, c *client.Client, org, ref string) (*cis.Instance, error) {
	in, err := c.Get(ctx, org, ref)
	if err == nil || !errors.Is(err, problem.ErrNotFound) && !errors.Is(err, problem.ErrInvalid) {
		return in, err
	}
	var found *cis.Instance
	for in, err := range all(ctx, c, org, cis.ListRequest{}) {
		if err != nil {
			return nil, err
		}
		if in.Spec.Name == ref && (found == nil || preferred(in, found)) {
			found = in
		}
	}
	if found == nil {
		return nil, problem.New(problem.ErrNotFound, "no instance has the id or name %q in org %s; see: cis ps --all", ref, org)
	}
	return found, nil
}

func preferred(in, to *cis.Instance) bool {
	if live := !in.Status.Phase.Final(); live != !to.Status.Phase.Final() {
		return live
	}
	return in.CreatedAt.After(to.CreatedAt)
}

// all pages through a listing.
func all(ctx context.Context, c *client.Client, org string, req cis.ListRequest) func(func(*cis.Instance, error) bool) {
	return func(yield func(*cis.Instance, error) bool) {
		for {
			page, err := c.List(ctx, org, req)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Items {
				if !yield(&page.Items[i], nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			req.Cursor = page.Next
		}
	}
}
