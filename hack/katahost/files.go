package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed host.sh
var hostScript string

// files are what the emulated machine is made of, and what runs in it.
type files struct {
	qemu, virtiofsd string
	kernel, initrd  string
	modules         string // directory of the kernel's modules
	release         string // what is unpacked as Kata's release
	cache           string // of hack/tools.sh
}

const virtiofsd = "/usr/lib/qemu/virtiofsd"

// find finds everything or says what is missing.
func find() (files, error) {
	if os.Geteuid() != 0 {
		return files{}, errors.New("root is needed, to share this machine's files with the emulated one")
	}
	cache := os.Getenv("CUMULET_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return files{}, err
		}
		cache = filepath.Join(user, "cumulet")
	}
	f := files{virtiofsd: virtiofsd, cache: cache}
	missing := []string{}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		missing = append(missing, "debian-kata (qemu-system-x86_64)")
	}
	f.qemu = qemu
	if _, err := os.Stat(virtiofsd); err != nil {
		missing = append(missing, "debian-kata ("+virtiofsd+")")
	}
	for _, x := range []struct {
		at         *string
		path, tool string
	}{
		{&f.kernel, "kata-host/vmlinuz", "kata-host"}, {&f.initrd, "kata-host/initrd.img", "kata-host"},
		{&f.modules, "kata-host/modules", "kata-host"}, {&f.release, "kata-host/release", "kata-host"},
		{nil, "bin/containerd-shim-kata-v2", "kata-shim"}, {nil, "bin/containerd", "containerd"}, {nil, "bin/bridge", "cni"}, {nil, "images/busybox.tar", "images"},
	} {
		p, err := filepath.EvalSymlinks(filepath.Join(cache, x.path))
		if err != nil {
			missing = append(missing, x.tool+" ("+x.path+")")
		} else if x.at != nil {
			*x.at = p
		}
	}
	if len(missing) > 0 {
		return files{}, fmt.Errorf("missing: %s; install by hack/tools.sh NAME", strings.Join(missing, ", "))
	}
	return f, nil
}

// build builds, into dir, what the emulated machine is to run.
func (f files) build(ctx context.Context, dir string) error {
	for _, args := range [][]string{
		{"test", "-c", "-o", filepath.Join(dir, "tests"), "./hack/katahost/inside"},
		{"build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "cisd"), "./cmd/cisd"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// scriptName is the script's name in the directory of the run.
const scriptName = "run.sh"

// writeScript writes host.sh with what it has to know before it.
func (f files) writeScript(dir, run string) error {
	var b strings.Builder
	fmt.Fprintln(&b, "#!/bin/sh")
	for _, v := range [][2]string{
		{"CUMULET_CACHE", f.cache}, {"MODULES", f.modules}, {"RELEASE", f.release}, {"RUN_DIR", dir}, {"TESTS", run},
	} {
		fmt.Fprintf(&b, "export %s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
	}
	b.WriteString(hostScript)
	return os.WriteFile(filepath.Join(dir, scriptName), []byte(b.String()), 0o700)
}
