package command

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/registry"
	"cumulet.io/registry/webhook"
)

func (a *app) webhook() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "webhook",
		Aliases: []string{"webhooks", "hook"},
		Short:   "Have the registry's events sent to a URL",
		Args:    usage(cobra.NoArgs),
	}
	cmd.AddCommand(a.webhookList(), a.webhookCreate(), a.webhookShow(), a.webhookSet(), a.webhookRemove(), a.webhookRotate(),
		a.webhookPing(), a.webhookDeliveries(), a.webhookRedeliver())
	return cmd
}

// hooks opens the API and gives the path of the org's webhooks, joined with more elements.
func (a *app) hooks(elem ...string) (*registryAPI, string, error) {
	api, s, err := a.registry()
	if err != nil {
		return nil, "", err
	}
	path := "/v1/orgs/" + url.PathEscape(s.Org) + "/webhooks"
	for _, e := range elem {
		path += "/" + url.PathEscape(e)
	}
	return api, path, nil
}

func hookColumns() output.Columns {
	return output.Columns{Always: []string{"ID", "URL", "EVENTS", "STATE", "LAST SUCCESS"}, Wide: []string{"REPOSITORIES", "DESCRIPTION", "CREATED BY", "REASON"}}
}

func hookRow(h *webhook.Hook) []string {
	events := make([]string, 0, len(h.Events))
	for _, e := range h.Events {
		events = append(events, string(e))
	}
	last := "-"
	if h.SucceededAt != nil {
		last = output.Age(*h.SucceededAt)
	}
	return []string{h.ID, h.URL, orAll(events), string(h.State), last, orAll(h.Repositories), orDash(h.Description), h.CreatedBy, orDash(h.Reason)}
}

func orAll(list []string) string {
	if len(list) == 0 {
		return "all"
	}
	return strings.Join(list, ",")
}

func (a *app) printHooks(v any, hooks ...webhook.Hook) error {
	rows := [][]string{}
	for i := range hooks {
		rows = append(rows, hookRow(&hooks[i]))
	}
	return output.Print(a.env.Out, a.format, v, hookColumns(), rows)
}

func (a *app) webhookList() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the org's webhooks",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, path, err := a.hooks()
			if err != nil {
				return err
			}
			var page struct {
				Items []webhook.Hook `json:"items"`
			}
			if err := api.call(cmd.Context(), http.MethodGet, path, nil, &page); err != nil {
				return err
			}
			return a.printHooks(page.Items, page.Items...)
		},
	}
}

// withSecret is a webhook with a new secret.
type withSecret struct {
	webhook.Hook
	Secret string `json:"secret"`
}

func (a *app) printSecret(h withSecret) error {
	if a.format == output.JSON || a.format == output.YAML {
		return output.Print(a.env.Out, a.format, h, output.Columns{}, nil)
	}
	fmt.Fprintf(a.env.Out, "%s\nsecret %s\nKeep it: it is not shown again.\n", h.ID, h.Secret)
	return nil
}

func (a *app) webhookCreate() *cobra.Command {
	var spec webhook.Spec
	var events []string
	cmd := &cobra.Command{
		Use:     "create URL",
		Short:   "Have events sent to URL; prints the secret that signs them",
		Example: "  cis webhook create https://ci.example/hooks --event push --repository 'demo/**'",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.hooks()
			if err != nil {
				return err
			}
			spec.URL, spec.Events = args[0], eventTypes(events)
			var h withSecret
			if err := api.call(cmd.Context(), http.MethodPost, path, spec, &h); err != nil {
				return err
			}
			return a.printSecret(h)
		},
	}
	cmd.Flags().StringSliceVar(&events, "event", nil, "send this type only: "+typeNames()+"; may be repeated")
	cmd.Flags().StringSliceVar(&spec.Repositories, "repository", nil, "send events of these repositories only: a full name, with * and **; may be repeated")
	cmd.Flags().StringVar(&spec.Description, "description", "", "what it is for")
	return cmd
}

func eventTypes(names []string) []registry.EventType {
	out := []registry.EventType{}
	for _, n := range names {
		out = append(out, registry.EventType(n))
	}
	return out
}

func typeNames() string {
	var names []string
	for _, t := range registry.EventTypes() {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

func (a *app) webhookShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show a webhook",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.hookCall(cmd.Context(), http.MethodGet, nil, args[0])
		},
	}
}

func (a *app) hookCall(ctx context.Context, method string, in any, elem ...string) error {
	api, path, err := a.hooks(elem...)
	if err != nil {
		return err
	}
	var h webhook.Hook
	if err := api.call(ctx, method, path, in, &h); err != nil {
		return err
	}
	return a.printHooks(h, h)
}

func (a *app) webhookSet() *cobra.Command {
	var target, description string
	var events, repositories []string
	var pause, enable bool
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Change a webhook, pause it or enable it again",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Only what was given is sent: what is not there stays.
			change := map[string]any{}
			given := func(flag, key string, v any) {
				if cmd.Flags().Changed(flag) {
					change[key] = v
				}
			}
			given("url", "url", target)
			given("description", "description", description)
			given("event", "events", eventTypes(events))
			given("repository", "repositories", append([]string{}, repositories...))
			switch {
			case pause && enable:
				return &usageError{fmt.Errorf("--pause and --enable exclude each other")}
			case pause:
				change["state"] = webhook.Paused
			case enable:
				change["state"] = webhook.Enabled
			}
			if len(change) == 0 {
				return &usageError{fmt.Errorf("nothing to change; see: %s --help", cmd.CommandPath())}
			}
			return a.hookCall(cmd.Context(), http.MethodPatch, change, args[0])
		},
	}
	cmd.Flags().StringVar(&target, "url", "", "the URL to call")
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	cmd.Flags().StringSliceVar(&events, "event", nil, "types to send; an empty one for all")
	cmd.Flags().StringSliceVar(&repositories, "repository", nil, "patterns of repositories; an empty one for all")
	cmd.Flags().BoolVar(&pause, "pause", false, "send nothing until it is enabled again")
	cmd.Flags().BoolVar(&enable, "enable", false, "send again")
	return cmd
}

func (a *app) webhookRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID...",
		Short: "Remove webhooks with their logs",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				api, path, err := a.hooks(id)
				if err != nil {
					return err
				}
				if err := api.call(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
					return err
				}
				fmt.Fprintln(a.env.Out, id)
			}
			return nil
		},
	}
}

func (a *app) webhookRotate() *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give a webhook a new secret",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.hooks(args[0], "rotate-secret")
			if err != nil {
				return err
			}
			var h withSecret
			if err := api.call(cmd.Context(), http.MethodPost, path, map[string]string{"overlap": overlap.String()}, &h); err != nil {
				return err
			}
			return a.printSecret(h)
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old secret goes on signing beside the new one")
	return cmd
}

func (a *app) webhookPing() *cobra.Command {
	return &cobra.Command{
		Use:   "ping ID",
		Short: "Send a test event and wait for what came of it",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.hooks(args[0], "ping")
			if err != nil {
				return err
			}
			var d webhook.DeliveryDetail
			if err := api.call(cmd.Context(), http.MethodPost, path, nil, &d); err != nil {
				return err
			}
			return a.awaitDelivery(cmd.Context(), args[0], d.Event, 0)
		},
	}
}

// awaitDelivery follows a delivery until one more attempt than before is made, and prints that.
func (a *app) awaitDelivery(ctx context.Context, hook, event string, before int) error {
	api, path, err := a.hooks(hook, "deliveries", event)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		var d webhook.DeliveryDetail
		if err := api.call(ctx, http.MethodGet, path, nil, &d); err != nil {
			return err
		}
		if d.Attempts > before && len(d.Log) > 0 {
			if a.format == output.JSON || a.format == output.YAML {
				return output.Print(a.env.Out, a.format, d, output.Columns{}, nil)
			}
			last := d.Log[0]
			if last.Error != "" {
				return fmt.Errorf("%s was not delivered: %s", d.Event, output.Clean(last.Error))
			}
			fmt.Fprintf(a.env.Out, "%s delivered: %d in %d ms\n", d.Event, last.Status, last.Millis)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not sent yet; see: cis webhook deliveries %s", event, hook)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (a *app) webhookDeliveries() *cobra.Command {
	var state string
	var limit int
	cmd := &cobra.Command{
		Use:   "deliveries ID [EVENT]",
		Short: "What was sent and what waits, the newest first; or all about one event",
		Args:  usage(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return a.oneDelivery(cmd.Context(), args[0], args[1])
			}
			api, path, err := a.hooks(args[0], "deliveries")
			if err != nil {
				return err
			}
			items := []webhook.Delivery{}
			rows := [][]string{}
			for after := ""; ; {
				q := url.Values{"state": {state}, "after": {after}, "limit": {fmt.Sprint(min(max(limit-len(items), 1), webhook.MaxPage))}}
				if state == "" {
					q.Del("state")
				}
				var page struct {
					Items []webhook.Delivery `json:"items"`
					Next  string             `json:"next"`
				}
				if err := api.call(cmd.Context(), http.MethodGet, path+"?"+q.Encode(), nil, &page); err != nil {
					return err
				}
				items = append(items, page.Items...)
				if after = page.Next; after == "" || len(items) >= limit {
					break
				}
			}
			for _, d := range items {
				next := "-"
				if d.NextAt != nil {
					next = d.NextAt.Format(time.RFC3339)
				}
				rows = append(rows, []string{d.Event, string(d.Type), orDash(d.Repository), string(d.State), fmt.Sprint(d.Attempts), output.Age(d.CreatedAt), next})
			}
			return output.Print(a.env.Out, a.format, items, output.Columns{Always: []string{"EVENT", "TYPE", "REPOSITORY", "STATE", "ATTEMPTS", "AGE"}, Wide: []string{"NEXT"}}, rows)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "pending, delivered or failed")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many")
	return cmd
}

func (a *app) oneDelivery(ctx context.Context, hook, event string) error {
	api, path, err := a.hooks(hook, "deliveries", event)
	if err != nil {
		return err
	}
	var d webhook.DeliveryDetail
	if err := api.call(ctx, http.MethodGet, path, nil, &d); err != nil {
		return err
	}
	if a.format == output.JSON || a.format == output.YAML {
		return output.Print(a.env.Out, a.format, d, output.Columns{}, nil)
	}
	rows := [][]string{}
	for _, one := range d.Log {
		status := "-"
		if one.Status != 0 {
			status = fmt.Sprint(one.Status)
		}
		rows = append(rows, []string{fmt.Sprint(one.Number), one.StartedAt.Format(time.RFC3339), fmt.Sprintf("%d ms", one.Millis), status, orDash(one.Error)})
	}
	if err := output.Print(a.env.Out, output.Table, nil, output.Columns{Always: []string{"ATTEMPT", "STARTED", "TOOK", "STATUS", "ERROR"}}, rows); err != nil {
		return err
	}
	fmt.Fprintf(a.env.Out, "\n%s: %s\n%s\n", d.Event, d.State, output.Clean(string(d.Payload)))
	return nil
}

func (a *app) webhookRedeliver() *cobra.Command {
	return &cobra.Command{
		Use:   "redeliver ID EVENT",
		Short: "Send an event again and wait for what came of it",
		Args:  usage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.hooks(args[0], "deliveries", args[1], "redeliver")
			if err != nil {
				return err
			}
			var d webhook.DeliveryDetail
			if err := api.call(cmd.Context(), http.MethodPost, path, nil, &d); err != nil {
				return err
			}
			return a.awaitDelivery(cmd.Context(), args[0], args[1], d.Attempts)
		},
	}
}
