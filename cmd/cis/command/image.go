package command

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/hubtoken"
	"cumulet.io/registry/index"
)

func (a *app) image() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Aliases: []string{"images"},
		Short:   "What is known of images: who built them, which tests passed, where a layer is used",
		Args:    usage(cobra.NoArgs),
	}
	cmd.AddCommand(a.imageShow(), a.imageFind(), a.imageLayers(), a.imageAttach())
	return cmd
}

// splitImage takes "[host/]org/repo[:tag|@digest]" apart; a missing reference is the tag latest. The host, when given,
// must be the registry that the login is of.
func (a *app) splitImage(host, text string) (repository, reference string, err error) {
	name, reference, byDigest := strings.Cut(text, "@")
	if !byDigest {
		reference = "latest"
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
			name, reference = name[:i], name[i+1:]
		}
	}
	if first, rest, ok := strings.Cut(name, "/"); ok && strings.ContainsAny(first, ".:") || first == "localhost" {
		if first != host {
			return "", "", problem.New(problem.ErrInvalid, "%s is at %s, and you are logged in to %s", text, first, host)
		}
		name = rest
	}
	if _, err := registry.SplitRepository("image", name); err != nil {
		return "", "", err
	}
	if reference == "" {
		return "", "", problem.Invalid("image", "must be ORG/NAME[:TAG] or ORG/NAME@DIGEST", text)
	}
	return name, reference, nil
}

// ofImage opens the API, with a token for actions on the image's repository, and gives the path of what is known of it.
func (a *app) ofImage(text, actions string) (api *registryAPI, path string, err error) {
	s, err := a.open()
	if err != nil {
		return nil, "", err
	}
	u, err := url.Parse(s.Endpoints.Registry)
	if err != nil {
		return nil, "", fmt.Errorf("registry address: %w", err)
	}
	name, reference, err := a.splitImage(u.Host, text)
	if err != nil {
		return nil, "", err
	}
	api = &registryAPI{s.Endpoints.Registry, s.Source(hubtoken.AudienceRegistry, "repository:"+name+":"+actions)}
	return api, "/v1/images/" + name + "?reference=" + url.QueryEscape(reference), nil
}

// imageReport is the answer of GET /v1/images.
type imageReport struct {
	index.Manifest
	Facts     []index.Fact     `json:"facts"`
	Referrers []index.Manifest `json:"referrers"`
}

func (a *app) imageShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show IMAGE",
		Short:   "All that is known of an image",
		Example: "  cis image show demo/hello:1\n  cis image show demo/hello@sha256:… -o json",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.ofImage(args[0], "pull")
			if err != nil {
				return err
			}
			var r imageReport
			if err := api.call(cmd.Context(), http.MethodGet, path, nil, &r); err != nil {
				return err
			}
			if a.format == output.JSON || a.format == output.YAML {
				return output.Print(a.env.Out, a.format, r, output.Columns{}, nil)
			}
			return a.imageText(&r)
		},
	}
}

func (a *app) imageText(r *imageReport) error {
	line := func(key, value string) { fmt.Fprintf(a.env.Out, "%-12s%s\n", key+":", output.Clean(value)) }
	when := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Format(time.RFC3339) + " (" + output.Age(t) + " ago)"
	}
	size := r.Size
	for _, b := range r.Blobs {
		if b.Kind != index.KindForeign && b.Kind != index.KindManifest {
			size += b.Size
		}
	}
	line("Image", r.Repository+"@"+r.Digest.String())
	line("Type", r.MediaType)
	line("Platform", orDash(r.Platform))
	line("Size", bytesText(size))
	line("Created", when(r.Created))
	line("Pushed", when(r.Pushed)+" by "+orDash(r.PushedBy))
	line("Pulled", when(r.Pulled)+", "+strconv.FormatInt(r.Pulls, 10)+" times")
	rows := [][]string{}
	for _, b := range r.Blobs {
		rows = append(rows, []string{b.Kind, b.Digest.String(), bytesText(b.Size)})
	}
	fmt.Fprintln(a.env.Out)
	if err := output.Print(a.env.Out, output.Table, nil, output.Columns{Always: []string{"BLOB", "DIGEST", "SIZE"}}, rows); err != nil {
		return err
	}
	if len(r.Facts) == 0 {
		return nil
	}
	by := map[string]string{r.Digest.String(): "the image"}
	for _, m := range r.Referrers {
		by[m.Digest.String()] = orDash(m.PushedBy)
	}
	rows = [][]string{}
	for _, f := range r.Facts {
		rows = append(rows, []string{f.Kind, f.Name, f.Value, by[f.Source.String()]})
	}
	fmt.Fprintln(a.env.Out)
	return output.Print(a.env.Out, output.Table, nil, output.Columns{Always: []string{"FACT", "NAME", "VALUE", "SAID BY"}}, rows)
}

func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func (a *app) imageFind() *cobra.Command {
	var source, revision, base, by string
	var tests, labels []string
	var sbom, noSBOM bool
	var facts []string
	cmd := &cobra.Command{
		Use:   "find",
		Short: "Find the org's images by what is known of them",
		Long:  "List the images that meet every condition. --fact takes any: [!]kind[:name[=value]], with ! for its absence.",
		Example: "  cis image find --test unit=passed --no-sbom\n  cis image find --base debian:12 --built-by ci\n" +
			"  cis image find --fact scan:critical=0 --fact '!signature'",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"fact": facts}
			for name, value := range map[string]string{"source": source, "revision": revision, "base": base, "by": by} {
				if value != "" {
					q.Add("fact", "build:"+name+"="+value)
				}
			}
			for _, t := range tests {
				q.Add("fact", "test:"+t)
			}
			for _, l := range labels {
				q.Add("fact", "label:"+l)
			}
			if sbom {
				q.Add("fact", "sbom")
			}
			if noSBOM {
				q.Add("fact", "!sbom")
			}
			sort.Strings(q["fact"])
			return a.listImages(cmd.Context(), "images", q)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&source, "source", "", "built from this source repository")
	fl.StringVar(&revision, "revision", "", "built from this revision of the source")
	fl.StringVar(&base, "base", "", "built on this base image")
	fl.StringVar(&by, "built-by", "", "built by this builder")
	fl.StringArrayVar(&tests, "test", nil, "has this test's result, NAME=passed|failed|skipped")
	fl.StringArrayVarP(&labels, "label", "l", nil, "has this label, key=value")
	fl.BoolVar(&sbom, "sbom", false, "has a software bill of materials")
	fl.BoolVar(&noSBOM, "no-sbom", false, "has none")
	fl.StringArrayVar(&facts, "fact", nil, "has this fact, [!]kind[:name[=value]]")
	cmd.MarkFlagsMutuallyExclusive("sbom", "no-sbom")
	return cmd
}

func (a *app) imageLayers() *cobra.Command {
	return &cobra.Command{
		Use:     "layers DIGEST",
		Aliases: []string{"layer"},
		Short:   "The org's images that use a layer or config",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.listImages(cmd.Context(), "layers/"+url.PathEscape(args[0]), url.Values{})
		},
	}
}

// listImages prints all pages of a listing of images below the org.
func (a *app) listImages(ctx context.Context, path string, q url.Values) error {
	api, s, err := a.registry()
	if err != nil {
		return err
	}
	images, err := every[index.Image](ctx, api, 0, "/v1/orgs/"+url.PathEscape(s.Org)+"/"+path, q)
	if err != nil {
		return err
	}
	rows := [][]string{}
	for _, i := range images {
		rows = append(rows, []string{i.Repository, orDash(strings.Join(i.Tags, ",")), orDash(i.Platform), i.Digest.String(), i.MediaType})
	}
	return output.Print(a.env.Out, a.format, images, output.Columns{Always: []string{"REPOSITORY", "TAGS", "PLATFORM", "DIGEST"}, Wide: []string{"TYPE"}}, rows)
}

func (a *app) imageAttach() *cobra.Command {
	var kind string
	var facts map[string]string
	cmd := &cobra.Command{
		Use:     "attach IMAGE",
		Short:   "Attach build, test or scan facts to an image",
		Example: "  cis image attach demo/hello:1 --kind test --fact name=unit --fact result=passed\n  cis image attach demo/hello:1 --kind build --fact by=ci --fact source=https://git.example/hello",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, path, err := a.ofImage(args[0], "pull,push")
			if err != nil {
				return err
			}
			var made struct {
				Digest string `json:"digest"`
			}
			body := map[string]any{"kind": kind, "facts": facts}
			if err := api.call(cmd.Context(), http.MethodPost, path, body, &made); err != nil {
				return err
			}
			return output.Print(a.env.Out, a.format, made, output.Columns{Always: []string{"ATTACHED"}}, [][]string{{made.Digest}})
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "build, test or scan")
	cmd.Flags().StringToStringVar(&facts, "fact", nil, "name=value; of a test name and result")
	return cmd
}
