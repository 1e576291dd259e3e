package containerd

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"

	"cumulet.io/cis/sandbox"
)

// Names of the runtime handlers that DetectHandlers finds.
const (
	HandlerRunc   = "runc"
	HandlerGVisor = "runsc"
	HandlerKata   = "kata"
)

// The runtimes' types, as containerd finds their shims.
const (
	typeRunc   = "io.containerd.runc.v2"
	typeGVisor = "io.containerd.runsc.v1"
	typeKata   = "io.containerd.kata.v2"
)

// Handler is one way to run a sandbox, by the name that a CRI client asks for.
type Handler struct {
	Name string // what RunPodSandbox names as its runtime handler
	Type string // containerd's runtime type, io.containerd.NAME.VERSION

	// Binary is the runtime's program, absolute. Needed for runc and gVisor;
	// Kata has none.
	Binary string
	// ConfigPath is the runtime's own configuration file, absolute. Kata's; the
	// one of gVisor is written by this package.
	ConfigPath string
	// Kata is the operator's choice beside a Kata configuration.
	Kata sandbox.KataOptions
	// Platform is gVisor's way to catch system calls. Default: systrap, which
	// needs nothing of the machine. kvm hangs on a machine that has /dev/kvm
	// but no virtualisation in its CPU.
	Platform string
}

// DetectHandlers finds what the programs on this machine allow: runc, gVisor
// where runsc and its shim are, Kata where its shim is and kataConfig names its
// configuration. It searches binDirs, then PATH, and says nothing of whether
// the machine can run what was found.
func DetectHandlers(binDirs []string, kataConfig string) []Handler {
	var found []Handler
	if runc, err := lookup(binDirs, "runc"); err == nil && have(binDirs, "containerd-shim-runc-v2") {
		found = append(found, Handler{Name: HandlerRunc, Type: typeRunc, Binary: runc})
	}
	if runsc, err := lookup(binDirs, "runsc"); err == nil && have(binDirs, "containerd-shim-runsc-v1") {
		found = append(found, Handler{Name: HandlerGVisor, Type: typeGVisor, Binary: runsc})
	}
	if kataConfig != "" && have(binDirs, "containerd-shim-kata-v2") {
		found = append(found, Handler{Name: HandlerKata, Type: typeKata, ConfigPath: kataConfig})
	}
	return found
}

// KataHandler is the handler of a Kata configuration file.
func KataHandler(name, configPath string, o sandbox.KataOptions) Handler {
	return Handler{Name: name, Type: typeKata, ConfigPath: configPath, Kata: o}
}

func have(dirs []string, name string) bool {
	_, err := lookup(dirs, name)
	return err == nil
}

// lookup finds a program in dirs, then in PATH and the directories that a
// server's PATH may lack.
func lookup(dirs []string, name string) (string, error) {
	for _, dir := range dirs {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return filepath.Abs(p)
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

var (
	handlerName = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$`)
	runtimeType = regexp.MustCompile(`^io\.containerd\.[a-z0-9-]+\.v[0-9]+$`)
	platform    = regexp.MustCompile(`^[a-z]*$`)
)

func checkHandlers(handlers []Handler) []error {
	if len(handlers) == 0 {
		return []error{errors.New("Handlers is empty: no runtime to run a sandbox with")}
	}
	var errs []error
	names := map[string]bool{}
	for _, h := range handlers {
		switch {
		case !handlerName.MatchString(h.Name):
			errs = append(errs, fmt.Errorf("handler %q: want a DNS label as its name", h.Name))
		case names[h.Name]:
			errs = append(errs, fmt.Errorf("handler %q is given twice", h.Name))
		case !runtimeType.MatchString(h.Type):
			errs = append(errs, fmt.Errorf("handler %q: type %q is not io.containerd.NAME.VERSION", h.Name, h.Type))
		case (h.Type == typeRunc || h.Type == typeGVisor) && !filepath.IsAbs(h.Binary):
			errs = append(errs, fmt.Errorf("handler %q: binary %q is not an absolute path", h.Name, h.Binary))
		case h.ConfigPath != "" && !filepath.IsAbs(h.ConfigPath):
			errs = append(errs, fmt.Errorf("handler %q: ConfigPath %q is not an absolute path", h.Name, h.ConfigPath))
		case !platform.MatchString(h.Platform):
			errs = append(errs, fmt.Errorf("handler %q: platform %q", h.Name, h.Platform))
		}
		names[h.Name] = true
	}
	return errs
}
