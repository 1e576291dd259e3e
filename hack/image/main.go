// Command image packs files into a container image without a container engine:
// the sandbox image, the base image of tests, the demo's own image. It is for
// static files that exist already; it runs nothing and pulls nothing.
//
//	go run ./hack/image -o out.tar -tag REF -entrypoint /x path:/in/image ...
//
// The result is the same bytes for the same input, whenever it is built.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "image:", err)
		}
		os.Exit(1)
	}
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func run(args []string, usage io.Writer) error {
	var (
		spec                      Spec
		entrypoint, cmd, env      list
		labels, symlinks, dirs    list
		out, format, tag, workdir string
	)
	fs := flag.NewFlagSet("image", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.StringVar(&out, "o", "", "`path` to write: a file for docker, a directory for oci")
	fs.StringVar(&format, "format", "docker", "docker (an archive that docker, podman, skopeo and containerd load) or oci (a layout directory)")
	fs.StringVar(&tag, "tag", "", "the image's `reference`, such as example.test/name:v1")
	fs.StringVar(&spec.User, "user", "", "user[:group] that the container runs as, in numbers")
	fs.StringVar(&workdir, "workdir", "", "working directory")
	fs.StringVar(&spec.Arch, "arch", "amd64", "architecture of the packed programs")
	fs.Var(&entrypoint, "entrypoint", "one `word` of the entrypoint (repeatable)")
	fs.Var(&cmd, "cmd", "one `word` of the command (repeatable)")
	fs.Var(&env, "env", "`KEY=VALUE` of the environment (repeatable)")
	fs.Var(&labels, "label", "`KEY=VALUE` image label (repeatable)")
	fs.Var(&symlinks, "symlink", "`TARGET:PATH` makes PATH in the image a symlink (repeatable)")
	fs.Var(&dirs, "dir", "`PATH:MODE` makes a directory, mode in octal (repeatable)")
	fs.Usage = func() {
		fmt.Fprintln(usage, "usage: image -o OUT -tag REF [flags] FILE:PATH-IN-IMAGE...")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if out == "" || tag == "" {
		return errors.New("-o and -tag are required")
	}
	spec.Entrypoint, spec.Cmd, spec.Env, spec.WorkingDir = entrypoint, cmd, env, workdir
	if err := spec.add(labels, symlinks, dirs, fs.Args()); err != nil {
		return err
	}
	img, err := Build(spec)
	if err != nil {
		return fmt.Errorf("build %s: %w", tag, err)
	}
	switch format {
	case "docker":
		return writeDocker(out, tag, img)
	case "oci":
		return writeOCI(out, tag, img)
	}
	return fmt.Errorf("unknown -format %q: docker or oci", format)
}

// add parses the arguments that name what goes into the image.
func (s *Spec) add(labels, symlinks, dirs, files []string) error {
	s.Labels = map[string]string{}
	for _, l := range labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return fmt.Errorf("-label %q: want KEY=VALUE", l)
		}
		s.Labels[k] = v
	}
	for _, l := range symlinks {
		target, path, ok := strings.Cut(l, ":")
		if !ok || target == "" {
			return fmt.Errorf("-symlink %q: want TARGET:PATH", l)
		}
		s.Entries = append(s.Entries, Entry{Path: path, Target: target})
	}
	for _, d := range dirs {
		path, mode, err := parseDir(d)
		if err != nil {
			return err
		}
		s.Entries = append(s.Entries, Entry{Path: path, Dir: true, Mode: mode})
	}
	for _, f := range files {
		i := strings.LastIndex(f, ":")
		if i <= 0 {
			return fmt.Errorf("%q: want FILE:PATH-IN-IMAGE", f)
		}
		s.Entries = append(s.Entries, Entry{Path: f[i+1:], Source: f[:i]})
	}
	return nil
}
