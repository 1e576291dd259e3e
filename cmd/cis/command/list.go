package command

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/cmd/cis/output"
)

func (a *app) ps() *cobra.Command {
	var every bool
	var labels map[string]string
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"ls"},
		Short:   "List instances",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, s, err := a.service()
			if err != nil {
				return err
			}
			items := []*cis.Instance{}
			rows := [][]string{}
			for in, err := range all(cmd.Context(), c, s.Org, cis.ListRequest{Live: !every, Labels: labels}) {
				if err != nil {
					return err
				}
				items = append(items, in)
				rows = append(rows, row(in))
			}
			return output.Print(a.env.Out, a.format, items, output.Columns{
				Always: []string{"ID", "NAME", "STATUS", "READY", "RESTARTS", "CLASS", "SIZE", "AGE"},
				Wide:   []string{"IP", "NODE", "IMAGES", "SOURCE"}}, rows)
		},
	}
	cmd.Flags().BoolVarP(&every, "all", "a", false, "ended instances too")
	cmd.Flags().StringToStringVarP(&labels, "label", "l", nil, "only instances with this label, key=value")
	return cmd
}

func row(in *cis.Instance) []string {
	ready, restarts := 0, int32(0)
	for _, c := range in.Status.Containers {
		if c.Ready {
			ready++
		}
		restarts += c.RestartCount
	}
	source := "cis"
	if in.Spec.Source.Name != "" {
		source = "pod " + in.Spec.Source.Namespace + "/" + in.Spec.Source.Name
	}
	var images []string
	for _, c := range in.Spec.Containers {
		images = append(images, c.Image)
	}
	ip := "-"
	if len(in.Status.IPs) > 0 {
		ip = in.Status.IPs[0]
	}
	return []string{in.ID, in.Spec.Name, status(in), fmt.Sprintf("%d/%d", ready, len(in.Spec.Containers)), fmt.Sprint(restarts),
		orDash(string(in.Status.SandboxClass)), orDash(in.Status.Size.Class), output.Age(in.CreatedAt),
		ip, orDash(in.Status.Node), strings.Join(images, ","), source}
}

// status is what a person wants to know first: the phase, or why a container does not run.
func status(in *cis.Instance) string {
	if !in.Status.Phase.Final() {
		for _, c := range slices.Concat(in.Status.InitContainers, in.Status.Containers) {
			if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
				return w.Reason
			}
		}
	}
	if in.Status.Reason != "" && in.Status.Phase != cis.Succeeded {
		return string(in.Status.Phase) + " (" + in.Status.Reason + ")"
	}
	return orDash(string(in.Status.Phase))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) events() *cobra.Command {
	return &cobra.Command{
		Use:   "events INSTANCE",
		Short: "What happened to an instance",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, in, err := a.instance(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			events, err := c.Events(cmd.Context(), in.Org, in.ID)
			if err != nil {
				return err
			}
			return output.Print(a.env.Out, a.format, events, eventColumns(), eventRows(events))
		},
	}
}

func eventColumns() output.Columns {
	return output.Columns{Always: []string{"LAST", "TYPE", "REASON", "CONTAINER", "COUNT", "MESSAGE"}}
}

func eventRows(events []cis.Event) [][]string {
	rows := [][]string{}
	for _, e := range events {
		rows = append(rows, []string{e.Last.UTC().Format(time.RFC3339), string(e.Type), e.Reason, orDash(e.Container), fmt.Sprint(e.Count), e.Message})
	}
	return rows
}

func (a *app) describe() *cobra.Command {
	return &cobra.Command{
		Use:   "describe INSTANCE",
		Short: "Everything about an instance: state of its containers, addresses, size, events",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, in, err := a.instance(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			events, err := c.Events(cmd.Context(), in.Org, in.ID)
			if err != nil {
				return err
			}
			if a.format == output.JSON || a.format == output.YAML {
				return output.Print(a.env.Out, a.format, struct {
					*cis.Instance
					Events []cis.Event `json:"events"`
				}{in, events}, output.Columns{}, nil)
			}
			a.text(in)
			if len(events) == 0 {
				return nil
			}
			fmt.Fprintln(a.env.Out, "Events:")
			return output.Print(a.env.Out, output.Table, nil, eventColumns(), eventRows(events))
		},
	}
}

func (a *app) text(in *cis.Instance) {
	line := func(indent int, key, value string) {
		fmt.Fprintf(a.env.Out, "%*s%-*s%s\n", indent, "", 16-indent, key+":", output.Clean(value))
	}
	when := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format(time.RFC3339Nano) + " (" + output.Age(t) + " ago)"
	}
	st := in.Status
	line(0, "ID", in.ID)
	line(0, "Name", in.Spec.Name)
	line(0, "Org", in.Org)
	if in.Spec.Source.Name != "" {
		line(0, "Pod", in.Spec.Source.Namespace+"/"+in.Spec.Source.Name)
	}
	line(0, "Status", status(in))
	if st.Message != "" {
		line(0, "Message", st.Message)
	}
	line(0, "Sandbox", orDash(string(st.SandboxClass)))
	line(0, "Size", orDash(st.Size.Class))
	line(0, "Node", orDash(st.Node))
	line(0, "IPs", orDash(strings.Join(st.IPs, ", ")))
	line(0, "Created", when(in.CreatedAt))
	line(0, "Started", when(st.StartedAt))
	line(0, "Ended", when(st.EndedAt))
	group := func(title string, cs []cis.Container, sts []corev1.ContainerStatus) {
		if len(cs) == 0 {
			return
		}
		fmt.Fprintln(a.env.Out, title+":")
		for i, c := range cs {
			line(2, c.Name, "")
			line(4, "Image", c.Image)
			if i < len(sts) {
				line(4, "State", state(sts[i].State))
				if sts[i].RestartCount > 0 {
					line(4, "Last", state(sts[i].LastTerminationState))
				}
				line(4, "Ready", fmt.Sprint(sts[i].Ready))
				line(4, "Restarts", fmt.Sprint(sts[i].RestartCount))
			}
		}
	}
	group("Init containers", in.Spec.InitContainers, st.InitContainers)
	group("Containers", in.Spec.Containers, st.Containers)
}

func state(s corev1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running since " + s.Running.StartedAt.UTC().Format(time.RFC3339)
	case s.Terminated != nil:
		return fmt.Sprintf("ended: %s, exit code %d", s.Terminated.Reason, s.Terminated.ExitCode)
	case s.Waiting != nil:
		return strings.TrimSuffix("waiting: "+s.Waiting.Reason+": "+s.Waiting.Message, ": ")
	}
	return "-"
}

func (a *app) sizes() *cobra.Command {
	return &cobra.Command{
		Use:   "sizes",
		Short: "The published size classes that instances are rounded up to",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			rows := [][]string{}
			for _, s := range cis.Sizes() {
				rows = append(rows, []string{s.Class, fmt.Sprintf("%g", float64(s.MilliCPU)/1000), fmt.Sprintf("%g", float64(s.MemoryMiB)/1024)})
			}
			return output.Print(a.env.Out, a.format, cis.Sizes(), output.Columns{Always: []string{"CLASS", "VCPU", "GIB"}}, rows)
		},
	}
}
