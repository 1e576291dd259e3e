package command

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cumulet.io/cmd/cis/output"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/files"
)

func (a *app) file() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "file",
		Aliases: []string{"files"},
		Short:   "Keep versioned files in the registry's repositories",
		Long: "Keep versioned files in the registry's repositories.\n\n" +
			"A file is named ORG/REPOSITORY:VERSION/PATH, as demo/tools:1.2/bin/tool. The version \"latest\" is the one of\n" +
			"that path that was stored last.",
		Args: usage(cobra.NoArgs),
	}
	cmd.AddCommand(a.filePush(), a.filePull(), a.fileList(), a.fileRemove())
	return cmd
}

// fileRef is ORG/REPOSITORY:VERSION/PATH.
type fileRef struct{ repository, version, path string }

func parseFileRef(text string) (fileRef, error) {
	repository, rest, ok := strings.Cut(text, ":")
	version, file, _ := strings.Cut(rest, "/")
	if !ok || repository == "" || version == "" {
		return fileRef{}, &usageError{fmt.Errorf("%q is no file: write ORG/REPOSITORY:VERSION/PATH", text)}
	}
	return fileRef{repository, version, file}, nil
}

func (f fileRef) String() string { return f.repository + ":" + f.version + "/" + f.path }

func escapePath(p string) string {
	parts := strings.Split(p, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

func (f fileRef) urlPath() string {
	return files.Prefix + escapePath(f.repository) + "/-/" + url.PathEscape(f.version) + "/" + escapePath(f.path)
}

// repository opens the registry with a token for one repository.
func (a *app) repository(name, actions string) (*registryAPI, error) {
	api, _, err := a.registry("repository:" + name + ":" + actions)
	return api, err
}

const (
	// uploadPart is what one request of an upload carries; files up to it go in one PUT.
	uploadPart = 32 << 20
	// resumeTries is how often in a row an upload or download is tried without getting further.
	resumeTries = 8
)

func (a *app) filePush() *cobra.Command {
	var mediaType string
	var replace bool
	cmd := &cobra.Command{
		Use:     "push FILE ORG/REPOSITORY:VERSION[/PATH]",
		Short:   "Store a file; the path is the file's name when it is left out",
		Example: "  cis file push ./tool demo/tools:1.2/bin/tool",
		Args:    usage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseFileRef(args[1])
			if err != nil {
				return err
			}
			if ref.path == "" || strings.HasSuffix(ref.path, "/") {
				ref.path += filepath.Base(args[0])
			}
			api, err := a.repository(ref.repository, "pull,push")
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("push: %w", err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return fmt.Errorf("push: %w", err)
			}
			if !st.Mode().IsRegular() {
				return &usageError{fmt.Errorf("%s is no regular file", args[0])}
			}
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return fmt.Errorf("push: %w", err)
			}
			u := &uploader{api: api, ref: ref, file: f, size: st.Size(), sum: hex.EncodeToString(h.Sum(nil)), mediaType: mediaType, replace: replace,
				progress: newProgress(a.env.Err, "pushing "+ref.path, st.Size())}
			err = u.push(cmd.Context())
			u.progress.end()
			if err != nil {
				return err
			}
			stored, err := stat(cmd.Context(), api, ref)
			if err != nil {
				return err
			}
			return a.printFiles(stored, *stored)
		},
	}
	cmd.Flags().StringVar(&mediaType, "type", "application/octet-stream", "media type")
	cmd.Flags().BoolVar(&replace, "replace", false, "replace other content of this version")
	return cmd
}

// uploader stores one file.
type uploader struct {
	api       *registryAPI
	ref       fileRef
	file      *os.File
	size      int64
	sum       string
	mediaType string
	replace   bool
	progress  *progress
}

func (u *uploader) headers(req *http.Request) {
	if u.replace {
		req.Header.Set("If-Match", "*")
	}
}

// push stores the file: in one request, or in parts when it is large.
func (u *uploader) push(ctx context.Context) error {
	if u.size <= uploadPart {
		return u.put(ctx)
	}
	req, err := u.api.request(ctx, http.MethodPost, u.ref.urlPath(), nil)
	if err != nil {
		return err
	}
	u.headers(req)
	req.Header.Set("Tus-Resumable", "1.0.0")
	req.Header.Set("Upload-Length", strconv.FormatInt(u.size, 10))
	req.Header.Set("Upload-Metadata", "filetype "+base64.StdEncoding.EncodeToString([]byte(u.mediaType))+",sha256 "+base64.StdEncoding.EncodeToString([]byte(u.sum)))
	resp, err := u.api.do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() //nolint:errcheck // it is empty
	location := resp.Header.Get("Location")
	if !strings.HasPrefix(location, files.Prefix) {
		return errors.New("push: the registry did not say where the upload goes on")
	}
	offset, tries := int64(0), 0
	for {
		at, err := u.patch(ctx, location, offset)
		if err == nil && at == u.size {
			return nil
		}
		if at > offset {
			tries = 0
		}
		if err != nil {
			var p *problem.Error
			if errors.As(err, &p) && !errors.Is(err, problem.ErrUnavailable) && !errors.Is(err, problem.ErrConflict) {
				return err
			}
			if tries++; tries == resumeTries {
				return fmt.Errorf("push: %w", err)
			}
			if err := pause(ctx, tries); err != nil {
				return err
			}
			if at, err = u.offset(ctx, location); err != nil {
				continue // the next append tells
			}
		}
		offset = at
	}
}

func pause(ctx context.Context, tries int) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(tries) * 500 * time.Millisecond):
		return nil
	}
}

func (u *uploader) put(ctx context.Context) error {
	if _, err := u.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("push: %w", err)
	}
	req, err := u.api.request(ctx, http.MethodPut, u.ref.urlPath(), u.progress.reader(u.file, 0))
	if err != nil {
		return err
	}
	u.headers(req)
	req.ContentLength = u.size
	if u.size == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", u.mediaType)
	req.Header.Set("X-Checksum-Sha256", u.sum)
	resp, err := u.api.do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// patch sends one part from offset on, and gives where the upload is then.
func (u *uploader) patch(ctx context.Context, location string, offset int64) (int64, error) {
	n := min(uploadPart, u.size-offset)
	req, err := u.api.request(ctx, http.MethodPatch, location, u.progress.reader(io.NewSectionReader(u.file, offset, n), offset))
	if err != nil {
		return offset, err
	}
	req.ContentLength = n
	if n == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Tus-Resumable", "1.0.0")
	req.Header.Set("Content-Type", "application/offset+octet-stream")
	req.Header.Set("Upload-Offset", strconv.FormatInt(offset, 10))
	resp, err := u.api.do(req)
	if err != nil {
		return offset, err
	}
	_ = resp.Body.Close() //nolint:errcheck // it is empty
	return strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64)
}

// offset asks where the upload is.
func (u *uploader) offset(ctx context.Context, location string) (int64, error) {
	req, err := u.api.request(ctx, http.MethodHead, location, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Tus-Resumable", "1.0.0")
	resp, err := u.api.do(req)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close() //nolint:errcheck // it is empty
	return strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64)
}

// stat finds one file; of "latest" the version that it is.
func stat(ctx context.Context, api *registryAPI, ref fileRef) (*files.File, error) {
	if ref.version == files.Latest {
		req, err := api.request(ctx, http.MethodHead, ref.urlPath(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := api.do(req)
		if err != nil {
			return nil, problem.New(problem.ErrNotFound, "there is no file %s", ref)
		}
		_ = resp.Body.Close() //nolint:errcheck // it is empty
		ref.version = resp.Header.Get("X-File-Version")
	}
	list, _, err := filePage(ctx, api, ref.repository, url.Values{"path": {ref.path}, "version": {ref.version}, "limit": {"1"}})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, problem.New(problem.ErrNotFound, "there is no file %s", ref)
	}
	return &list[0], nil
}

func filePage(ctx context.Context, api *registryAPI, repository string, q url.Values) (items []files.File, next string, err error) {
	var page struct {
		Items []files.File `json:"items"`
		Next  string       `json:"next"`
	}
	err = api.call(ctx, http.MethodGet, files.Prefix+escapePath(repository)+"/-/?"+q.Encode(), nil, &page)
	return page.Items, page.Next, err
}

func (a *app) filePull() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     "pull ORG/REPOSITORY:VERSION/PATH",
		Short:   "Fetch a file and check it; a broken download goes on where it was",
		Example: "  cis file pull demo/tools:latest/bin/tool -O ./tool",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseFileRef(args[0])
			if err != nil {
				return err
			}
			if ref.path == "" {
				return &usageError{fmt.Errorf("%q has no path", args[0])}
			}
			api, err := a.repository(ref.repository, "pull")
			if err != nil {
				return err
			}
			f, err := stat(cmd.Context(), api, ref)
			if err != nil {
				return err
			}
			if out == "" {
				out = path.Base(f.Path)
			}
			d := &downloader{api: api, file: f, progress: newProgress(a.env.Err, "pulling "+f.Path, f.Size)}
			err = d.pull(cmd.Context(), out)
			d.progress.end()
			if err != nil {
				return err
			}
			return a.printFiles(f, *f)
		},
	}
	cmd.Flags().StringVarP(&out, "to", "O", "", "where to write it; default the file's name in this directory")
	return cmd
}

// downloader fetches one version of a file.
type downloader struct {
	api      *registryAPI
	file     *files.File
	progress *progress
}

// pull writes the file whole to a place, or not at all. What a broken run has left of the same content is used.
func (d *downloader) pull(ctx context.Context, to string) error {
	partial := to + "." + d.file.Digest.Encoded()[:12] + ".part"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	at, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	for tries := 0; at < d.file.Size; {
		n, err := d.fetch(ctx, f, h, at)
		if at += n; n > 0 {
			tries = 0
		}
		if err == nil {
			continue
		}
		var p *problem.Error
		if tries++; tries == resumeTries || ctx.Err() != nil || errors.As(err, &p) && !errors.Is(err, problem.ErrUnavailable) {
			return fmt.Errorf("pull: %w", err)
		}
		if err := pause(ctx, tries); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.file.Digest.Encoded() || at != d.file.Size {
		return errors.Join(fmt.Errorf("pull: the content is sha256:%s, not %s: it is thrown away; try again", got, d.file.Digest), os.Remove(partial))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	return os.Rename(partial, to)
}

// fetch appends what comes from an offset on, and tells how much that was.
func (d *downloader) fetch(ctx context.Context, to io.Writer, h hash.Hash, at int64) (int64, error) {
	req, err := d.api.request(ctx, http.MethodGet, fileRef{d.file.Repository, d.file.Version, d.file.Path}.urlPath(), nil)
	if err != nil {
		return 0, err
	}
	if at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", at))
		req.Header.Set("If-Match", `"`+d.file.Digest.String()+`"`)
	}
	resp, err := d.api.do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as it goes
	if at > 0 && resp.StatusCode != http.StatusPartialContent {
		return 0, problem.New(problem.ErrConflict, "the registry gave the whole file where a part was asked for")
	}
	return io.Copy(io.MultiWriter(to, h), d.progress.reader(io.LimitReader(resp.Body, d.file.Size-at), at))
}

func (a *app) printFiles(v any, list ...files.File) error {
	rows := [][]string{}
	for _, f := range list {
		rows = append(rows, []string{f.Path, f.Version, size(f.Size), output.Age(f.CreatedAt), f.CreatedBy, f.Digest.String(), f.MediaType})
	}
	return output.Print(a.env.Out, a.format, v, output.Columns{Always: []string{"PATH", "VERSION", "SIZE", "AGE", "BY"}, Wide: []string{"DIGEST", "TYPE"}}, rows)
}

// size is a number of bytes as people read it.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

func (a *app) fileList() *cobra.Command {
	var prefix string
	var limit int
	cmd := &cobra.Command{
		Use:   "ls ORG/REPOSITORY[:VERSION]",
		Short: "List a repository's files",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			repository, version, _ := strings.Cut(args[0], ":")
			api, err := a.repository(repository, "pull")
			if err != nil {
				return err
			}
			all := []files.File{}
			for after := ""; len(all) < limit; {
				q := url.Values{"limit": {strconv.Itoa(min(limit-len(all), files.MaxPage))}, "prefix": {prefix}, "version": {version}}
				if after != "" {
					q.Set("after", after)
				}
				items, next, err := filePage(cmd.Context(), api, repository, q)
				if err != nil {
					return err
				}
				all = append(all, items...)
				if after = next; after == "" {
					break
				}
			}
			return a.printFiles(all, all...)
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "only paths that begin with this")
	cmd.Flags().IntVar(&limit, "limit", 1000, "at most so many")
	return cmd
}

func (a *app) fileRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm ORG/REPOSITORY:VERSION/PATH...",
		Short: "Remove versions of files",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				ref, err := parseFileRef(arg)
				if err != nil {
					return err
				}
				api, err := a.repository(ref.repository, "pull,delete")
				if err != nil {
					return err
				}
				if err := api.call(cmd.Context(), http.MethodDelete, ref.urlPath(), nil, nil); err != nil {
					return err
				}
				fmt.Fprintln(a.env.Out, output.Clean(ref.String()))
			}
			return nil
		},
	}
}
