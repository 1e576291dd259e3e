package command

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cmd/cis/output"
	"cumulet.io/registry/hubtoken"
)

// quotas is about what bounds an org's instances; what it may store is org quota's.
func (a *app) quotas() *cobra.Command {
	show := leaf("show [ORG]", "Show what bounds an organisation's instances, and who changed it", cobra.MaximumNArgs(1), func(cmd *cobra.Command, args []string) error {
		c, org, err := a.quotaService(args)
		if err != nil {
			return err
		}
		q, err := c.Quota(cmd.Context(), org)
		if err != nil {
			return err
		}
		return a.printQuota(q, true)
	})
	var q cis.Quota
	var cpu float64
	var gib int64
	set := leaf("set ORG", "Bound an organisation's instances; what is left out is no bound", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		if fl := cmd.Flags(); !fl.Changed("instances") && !fl.Changed("cpu") && !fl.Changed("memory-gib") {
			return &usageError{fmt.Errorf("give at least one of --instances, --cpu and --memory-gib; 0 is no bound")}
		}
		if cpu < 0 || cpu > 1e9 || gib < 0 || gib > 1<<30 {
			return &usageError{fmt.Errorf("--cpu and --memory-gib must be 0 (no bound) or more, and possible")}
		}
		q.MilliCPU, q.MemoryMiB = int64(cpu*1000+0.5), gib<<10
		c, org, err := a.quotaService(args)
		if err != nil {
			return err
		}
		now, err := c.SetQuota(cmd.Context(), org, &q)
		if err != nil {
			return err
		}
		return a.printQuota(now, false)
	})
	set.Flags().Int64Var(&q.Instances, "instances", 0, "how many may live at once")
	set.Flags().Float64Var(&cpu, "cpu", 0, "their vCPUs together")
	set.Flags().Int64Var(&gib, "memory-gib", 0, "their memory together")
	unset := leaf("unset ORG", "Let the configuration's bounds hold again", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		c, org, err := a.quotaService(args)
		if err != nil {
			return err
		}
		now, err := c.SetQuota(cmd.Context(), org, nil)
		if err != nil {
			return err
		}
		return a.printQuota(now, false)
	})
	cmd := &cobra.Command{Use: "quota", Short: "What an organisation's instances may take, for administrators of the platform", Args: usage(cobra.NoArgs)}
	cmd.AddCommand(show, set, unset)
	return cmd
}

// quotaService opens the container instance service with the platform's rights, for the org that is given or one's own.
func (a *app) quotaService(args []string) (*client.Client, string, error) {
	s, err := a.open()
	if err != nil {
		return nil, "", err
	}
	org := s.Org
	if len(args) > 0 {
		org = args[0]
	}
	c, err := client.New(client.Config{BaseURL: s.Endpoints.Control, Source: s.Source(hubtoken.AudienceCIS, "platform:*:admin,operator")})
	return c, org, err
}

func (a *app) printQuota(q *cis.OrgQuota, changes bool) error {
	if err := output.Print(a.env.Out, a.format, q, output.Columns{Always: []string{"ORG", "INSTANCES", "CPU", "MEMORY", "FROM"}},
		[][]string{{q.Org, ofBound(q.Used.Instances, q.Quota.Instances, strconv.Itoa), ofBound(q.Used.MilliCPU, q.Quota.MilliCPU, cores),
			ofBound(q.Used.MemoryMiB, q.Quota.MemoryMiB, mebibytes), q.Source}}); err != nil {
		return err
	}
	if !changes || len(q.Changes) == 0 || a.format != output.Table && a.format != output.Wide {
		return nil
	}
	rows := [][]string{}
	for _, c := range q.Changes {
		rows = append(rows, []string{c.Time.Format(time.RFC3339), c.Actor, quotaText(c.Before), quotaText(c.After)})
	}
	fmt.Fprintln(a.env.Out)
	return output.Print(a.env.Out, a.format, q.Changes, output.Columns{Always: []string{"CHANGED", "BY", "BEFORE", "AFTER"}}, rows)
}

func cores(milli int) string { return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64) }

func mebibytes(n int) string { return strconv.FormatFloat(float64(n)/1024, 'f', -1, 64) + " GiB" }

// ofBound says how much is used of what.
func ofBound(used, limit int64, text func(int) string) string {
	if limit == 0 {
		return text(int(used)) + " of no bound"
	}
	return text(int(used)) + " of " + text(int(limit))
}

func quotaText(q *cis.Quota) string {
	if q == nil {
		return "-"
	}
	bound := func(n int64, text func(int) string, what string) string {
		if n == 0 {
			return "any " + what
		}
		return text(int(n)) + " " + what
	}
	return bound(q.Instances, strconv.Itoa, "instances") + ", " + bound(q.MilliCPU, cores, "cpu") + ", " + bound(q.MemoryMiB, mebibytes, "memory")
}
