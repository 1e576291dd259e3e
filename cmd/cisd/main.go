// Command cisd is the server: one binary, one subcommand for each role, and `cisd up` for all of them in one process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"
	"gopkg.in/yaml.v3"

	"cumulet.io/cmd/cisd/config"
	"cumulet.io/cmd/cisd/role"
	"cumulet.io/internal/cmdtree"
)

// Version is set by the build.
var Version = "dev"

func main() {
	// What a gRPC connection cannot do comes back as an error; its own log would say it twice.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "cisd:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	var file string
	var set []string
	load := func() (*config.Config, error) { return config.Load(file, os.Environ(), set) }
	cmd := &cobra.Command{Use: "cisd", Short: "The Cumulet server", SilenceUsage: true, SilenceErrors: true}
	cmd.PersistentFlags().StringVarP(&file, "config", "c", "", "configuration file (YAML)")
	cmd.PersistentFlags().StringArrayVar(&set, "set", nil, "override one key, as registry.listen=127.0.0.1:5001; may be repeated")

	serve := func(use, short string, roles ...role.Name) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			return role.Run(cmd.Context(), c, Version, roles...)
		}}
	}
	cmd.AddCommand(
		serve("up", "Run every role in this process", role.All()...),
		serve("registry", "Run the registry and token service alone", role.Registry),
		serve("logs", "Run the log store and query API alone", role.Logs),
		serve("control", "Run the container instance service with its engine and log collector alone", role.Control),
		serve("billing", "Run the ledger and billing API alone", role.Billing),
		serve("kubelet", "Run the virtual node alone", role.Kubelet),
	)

	conf := &cobra.Command{Use: "config", Short: "Check and show the configuration"}
	conf.AddCommand(
		&cobra.Command{Use: "check", Short: "Check the configuration", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := load(); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
			return nil
		}},
		&cobra.Command{Use: "show", Short: "Print the configuration in force, defaults included", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			e := yaml.NewEncoder(cmd.OutOrStdout())
			e.SetIndent(2)
			return errors.Join(e.Encode(c.Redacted()), e.Close())
		}},
	)
	host := &cobra.Command{Use: "host", Short: "Look at this machine"}
	host.AddCommand(&cobra.Command{Use: "check", Short: "Which sandbox classes this machine can run, and how to mend the others", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			return role.HostCheck(cmd.Context(), c, cmd.OutOrStdout())
		}})
	purge := &cobra.Command{Use: "purge", Short: "End every instance on this machine and remove all state; the server must be stopped", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			return role.Purge(cmd.Context(), c, cmd.OutOrStdout())
		}}
	version := &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintln(cmd.OutOrStdout(), Version)
	}}
	cmd.AddCommand(conf, host, purge, version)
	cmdtree.Strict(cmd, func(err error) error { return err })
	return cmd
}
