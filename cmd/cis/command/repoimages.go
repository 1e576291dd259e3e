package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/registry"
	"cumulet.io/registry/index"
)

// addRepoImages puts what is about the images of a repository below the command repo.
func (a *app) addRepoImages(root *cobra.Command) {
	commands := []*cobra.Command{a.repoTags(), a.repoHistory(), a.repoRules(), a.repoRetention(), a.repoUsage(), a.repoDelete()}
	for _, c := range root.Commands() {
		if c.Name() == "repo" {
			c.AddCommand(commands...)
			return
		}
	}
	repo := &cobra.Command{Use: "repo", Aliases: []string{"repos", "repository"}, Short: "Repositories of the registry: tags, history, rules", Args: usage(cobra.NoArgs)}
	repo.AddCommand(commands...)
	root.AddCommand(repo)
}

// ofRepository opens the API and gives a path for the repository.
func (a *app) ofRepository(kind, name string) (*registryAPI, string, error) {
	if _, err := registry.SplitRepository("repository", name); err != nil {
		return nil, "", err
	}
	api, _, err := a.registry()
	return api, "/v1/" + kind + "/" + name, err
}

func (a *app) repoTags() *cobra.Command {
	return &cobra.Command{
		Use:   "tags REPOSITORY",
		Short: "A repository's tags with what they point to",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.ofRepository("tags", args[0])
			if err != nil {
				return err
			}
			tags, err := every[index.Tag](cmd.Context(), api, 0, path, nil)
			if err != nil {
				return err
			}
			rows := [][]string{}
			for _, t := range tags {
				immutable := "no"
				if t.Immutable {
					immutable = "yes"
				}
				rows = append(rows, []string{t.Name, t.Digest.String(), orDash(t.Platform), bytesText(t.Size), output.Age(t.Pushed), output.Age(t.Pulled),
					immutable, orDash(t.PushedBy), strconv.FormatInt(t.Sequence, 10), strconv.FormatInt(t.Pulls, 10)})
			}
			return output.Print(a.env.Out, a.format, tags, output.Columns{Always: []string{"TAG", "DIGEST", "PLATFORM", "SIZE", "PUSHED", "PULLED", "IMMUTABLE"},
				Wide: []string{"BY", "MOVES", "PULLS"}}, rows)
		},
	}
}

func (a *app) repoHistory() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "history REPOSITORY [TAG]",
		Short: "Who moved which tag from where to where, the newest first",
		Args:  usage(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.ofRepository("tag-history", args[0])
			if err != nil {
				return err
			}
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			if len(args) == 2 {
				q.Set("tag", args[1])
			}
			var page registry.Page[index.Move]
			if err := api.call(cmd.Context(), http.MethodGet, path+"?"+q.Encode(), nil, &page); err != nil {
				return err
			}
			rows := [][]string{}
			for _, m := range page.Items {
				rows = append(rows, []string{m.Time.Format(time.RFC3339), m.Tag, strconv.FormatInt(m.Sequence, 10), shortDigest(string(m.Before)), shortDigest(string(m.After)),
					orDash(m.Actor), m.Cause, string(m.Before), string(m.After)})
			}
			return output.Print(a.env.Out, a.format, page.Items, output.Columns{Always: []string{"TIME", "TAG", "MOVE", "FROM", "TO", "BY", "CAUSE"},
				Wide: []string{"FROM DIGEST", "TO DIGEST"}}, rows)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "how many, 1 to 1000")
	return cmd
}

// shortDigest is enough of a digest for people.
func shortDigest(d string) string {
	if _, hex, ok := strings.Cut(d, ":"); ok && len(hex) > 12 {
		return hex[:12]
	}
	return orDash(d)
}

func (a *app) repoRules() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "rules REPOSITORY",
		Short: "Show or set which tags are immutable and what is kept",
		Long: "Without --set, print the rules as YAML. With it, replace them by those of a YAML or JSON file (- for standard input):\n\n" +
			"  immutableTags: [\"v*\"]\n  keep:\n    - {tags: \"dev-*\", last: 5, pulledWithin: 7d}\n  untaggedAfter: 30d\n",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.ofRepository("rules", args[0])
			if err != nil {
				return err
			}
			var rules index.Rules
			if file == "" {
				err = api.call(cmd.Context(), http.MethodGet, path, nil, &rules)
			} else if rules, err = a.readRules(file); err == nil {
				err = api.call(cmd.Context(), http.MethodPut, path, rules, &rules)
			}
			if err != nil {
				return err
			}
			format := a.format
			if format != output.JSON {
				format = output.YAML
			}
			return output.Print(a.env.Out, format, rules, output.Columns{}, nil)
		},
	}
	cmd.Flags().StringVar(&file, "set", "", "file with the new rules")
	return cmd
}

// maxRulesBytes bounds a file of rules.
const maxRulesBytes = 64 << 10

func (a *app) readRules(file string) (index.Rules, error) {
	var rules index.Rules
	in := a.env.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return rules, fmt.Errorf("read rules: %w", err)
		}
		defer f.Close() //nolint:errcheck // read only
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxRulesBytes))
	if err != nil {
		return rules, fmt.Errorf("read rules: %w", err)
	}
	body, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return rules, &usageError{fmt.Errorf("rules in %s: %w", file, err)}
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rules); err != nil && !errors.Is(err, io.EOF) {
		return rules, &usageError{fmt.Errorf("rules in %s: %w", file, err)}
	}
	return rules, rules.Validate()
}

func (a *app) repoRetention() *cobra.Command {
	var apply bool
	cmd := &cobra.Command{
		Use:   "retention REPOSITORY",
		Short: "Show what the repository's rules would delete; --apply deletes it",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.ofRepository("retention", args[0])
			if err != nil {
				return err
			}
			var done struct {
				DryRun  bool            `json:"dryRun"`
				Removed []index.Removal `json:"removed"`
			}
			if err := api.call(cmd.Context(), http.MethodPost, path+"?dryRun="+strconv.FormatBool(!apply), nil, &done); err != nil {
				return err
			}
			state := "would go"
			if !done.DryRun {
				state = "deleted"
			}
			rows := [][]string{}
			for _, r := range done.Removed {
				rows = append(rows, []string{orDash(r.Tag), shortDigest(r.Digest.String()), output.Age(r.Pushed), output.Age(r.Pulled), state, r.Reason})
			}
			return output.Print(a.env.Out, a.format, done, output.Columns{Always: []string{"TAG", "DIGEST", "PUSHED", "PULLED", "STATE", "REASON"}}, rows)
		},
	}
	cmd.Flags().BoolVar(&apply, "apply", false, "delete it now; otherwise it goes within the hour")
	return cmd
}

func (a *app) repoUsage() *cobra.Command {
	return &cobra.Command{
		Use:   "usage",
		Short: "What the org's images take beside what they may",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, s, err := a.registry()
			if err != nil {
				return err
			}
			var u struct {
				Bytes int64          `json:"bytes"`
				Quota registry.Quota `json:"quota"`
			}
			if err := api.call(cmd.Context(), http.MethodGet, "/v1/orgs/"+url.PathEscape(s.Org)+"/usage", nil, &u); err != nil {
				return err
			}
			bound := func(n int64, text string) string {
				if n == 0 {
					return "no bound"
				}
				return text
			}
			return output.Print(a.env.Out, a.format, u, output.Columns{Always: []string{"ORG", "USED", "QUOTA", "REPOSITORIES"}},
				[][]string{{s.Org, bytesText(u.Bytes), bound(u.Quota.Bytes, bytesText(u.Quota.Bytes)), bound(u.Quota.Repositories, strconv.FormatInt(u.Quota.Repositories, 10))}})
		},
	}
}

func (a *app) repoDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "delete REPOSITORY",
		Aliases: []string{"rm"},
		Short:   "Delete a repository with all that is in it, immutable tags too",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return &usageError{fmt.Errorf("this deletes every image in %s: say --yes", args[0])}
			}
			api, path, err := a.ofRepository("repositories", args[0])
			if err != nil {
				return err
			}
			if err := api.call(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(a.env.Err, args[0], "is deleted")
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}
