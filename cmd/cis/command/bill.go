package command

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"cumulet.io/billing/client"
	"cumulet.io/billing/statement"
	"cumulet.io/cmd/cis/output"
	"cumulet.io/registry/hubtoken"
)

func (a *app) bill() *cobra.Command {
	var period client.Period
	var group, focus string
	var reconcile bool
	cmd := &cobra.Command{
		Use:   "bill",
		Short: "What the org's instances cost, to the second",
		Long: "Print the org's statement of a period, made only from meter events; --reconcile proves that it adds up and fails\n" +
			"when it does not; --focus writes the FinOps FOCUS 1.2 export.",
		Example: "  cis bill\n  cis bill --period 2026-11 --by day\n  cis bill --reconcile\n  cis bill --focus bill.csv",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.open()
			if err != nil {
				return err
			}
			c, err := client.New(client.Config{BaseURL: s.Endpoints.Billing, Source: s.Source(hubtoken.AudienceBilling)})
			if err != nil {
				return err
			}
			switch {
			case reconcile:
				return a.reconcile(cmd, c, s.Org, period)
			case focus != "":
				return a.focus(cmd, c, s.Org, period, focus)
			}
			g := statement.Group(group)
			if g != statement.ByInstance && g != statement.ByDay {
				return &usageError{fmt.Errorf("--by %s: must be instance or day", group)}
			}
			if a.format == output.JSON || a.format == output.YAML {
				g = statement.Everything
			}
			st, err := c.Bill(cmd.Context(), s.Org, period, g)
			if err != nil {
				return err
			}
			if a.format == output.JSON || a.format == output.YAML {
				return output.Print(a.env.Out, a.format, st, output.Columns{}, nil)
			}
			return st.WriteText(a.env.Out, g)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&period.Month, "period", "", "month, as 2026-11; default the current one")
	fl.StringVar(&period.From, "from", "", "from this hour, as 2026-11-22T10:00:00Z, or day; with --to, instead of --period")
	fl.StringVar(&period.To, "to", "", "to this hour or day, not included")
	fl.StringVar(&group, "by", string(statement.ByInstance), "instance or day")
	fl.StringVar(&focus, "focus", "", "write the FOCUS 1.2 export as CSV to this file; - for standard output")
	fl.BoolVar(&reconcile, "reconcile", false, "prove that the bill adds up; fails when it does not")
	return cmd
}

func (a *app) reconcile(cmd *cobra.Command, c *client.Client, org string, p client.Period) error {
	r, err := c.Reconcile(cmd.Context(), org, p)
	if err != nil {
		return err
	}
	rows := [][]string{}
	for _, rep := range r.Reports {
		for _, check := range rep.Checks {
			ok := "ok"
			if !check.OK {
				ok = "DIFFERS: " + strings.Join(check.Differences, "; ")
			}
			rows = append(rows, []string{rep.Org, rep.Period, check.Name, fmt.Sprint(check.Compared), ok})
		}
		for _, n := range rep.Notes {
			rows = append(rows, []string{rep.Org, rep.Period, "note", "-", n})
		}
	}
	if err := output.Print(a.env.Out, a.format, r, output.Columns{Always: []string{"ORG", "PERIOD", "CHECK", "COMPARED", "RESULT"}}, rows); err != nil {
		return err
	}
	return client.Err(r)
}

func (a *app) focus(cmd *cobra.Command, c *client.Client, org string, p client.Period, file string) error {
	if file == "-" {
		return c.FOCUS(cmd.Context(), org, p, a.env.Out)
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write export: %w", err)
	}
	err = c.FOCUS(cmd.Context(), org, p, f)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("write export: %w", cerr)
	}
	if err != nil {
		_ = os.Remove(file) //nolint:errcheck // the first error is the one to tell
		return err
	}
	fmt.Fprintln(a.env.Err, "wrote", file)
	return nil
}
