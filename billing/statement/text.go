package statement

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteText writes the statement as a table for people, by instance or by day. "~" marks what is estimated.
func (s *Statement) WriteText(w io.Writer, g Group) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Organisation  %s\nPeriod        %s (UTC)", s.Org, s.Period)
	if s.Closed {
		b.WriteString(", closed")
	}
	b.WriteString("\n")
	if !s.AsOf.IsZero() {
		fmt.Fprintf(&b, "As of         %s\n", s.AsOf.Format(time.RFC3339Nano))
	}
	b.WriteString("\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(first string, more string, sums *Sums) {
		mark := ""
		if sums.Estimated {
			mark = "~"
		}
		fmt.Fprintf(t, "%s\t%s%d\t%s%d\t%s\t%s\t%s\t\n", first+more, mark, sums.StartupSeconds, mark, sums.RunningSeconds,
			sums.VCPUSeconds, sums.GiBSeconds, sums.Amount)
	}
	head := "STARTUP s\tRUNNING s\tvCPU-s\tGiB-s\t" + string(s.Currency) + "\t\n"
	if g == ByDay {
		fmt.Fprint(t, "DAY\t"+head)
		for i := range s.ByDay {
			row(s.ByDay[i].Day, "", &s.ByDay[i].Sums)
		}
		row("total", "", &s.Totals)
		fmt.Fprintf(t, "rounding\t\t\t\t\t%s\t\n", s.Rounding)
		fmt.Fprintf(t, "to pay\t\t\t\t\t%s\t\n", s.Total)
	} else {
		fmt.Fprint(t, "INSTANCE\tNAME\tCLASS\tSIZE\t"+head)
		for i := range s.ByInstance {
			v := &s.ByInstance[i]
			row(v.Instance, fmt.Sprintf("\t%s\t%s\t%s", v.Name, v.SandboxClass, v.Size.Class), &v.Sums)
		}
		row("total", "\t\t\t", &s.Totals)
		fmt.Fprintf(t, "rounding\t\t\t\t\t\t\t\t%s\t\n", s.Rounding)
		fmt.Fprintf(t, "to pay\t\t\t\t\t\t\t\t%s\t\n", s.Total)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write statement: %w", err)
	}
	if !s.Corrections.IsZero() {
		fmt.Fprintf(&b, "\nThe total holds corrections of earlier months of %s %s.\n", s.Corrections, s.Currency)
	}
	if s.Estimated {
		b.WriteString("\n~ estimated: an instance without a known end is billed to its last event.\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write statement: %w", err)
	}
	return nil
}
