package initrd

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// ModuleList is the file in the archive that names the modules' files in the
// order in which to load them, one a line.
const ModuleList = "/modules/order"

// Write writes an archive with the program as /init and the modules from the
// directory that modules.dep is in, with the mount points that /init needs.
func Write(w io.Writer, program, moduleDir string) error {
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	// Debian's package has no modules.dep: depmod makes it (kmod).
	dep, err := os.Open(filepath.Join(moduleDir, "modules.dep"))
	if err != nil {
		return err
	}
	defer dep.Close()
	order, err := LoadOrder(dep, modules)
	if err != nil {
		return err
	}
	a := NewWriter(w)
	var list strings.Builder
	if err := a.File("/init", 0o755, init); err != nil {
		return err
	}
	for _, f := range order {
		content, err := os.ReadFile(filepath.Join(moduleDir, f))
		if err != nil {
			return err
		}
		name := path.Join("/modules", path.Base(f))
		if err := a.File(name, 0o644, content); err != nil {
			return err
		}
		fmt.Fprintln(&list, name)
	}
	if err := a.File(ModuleList, 0o644, []byte(list.String())); err != nil {
		return err
	}
	for _, d := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		if err := a.Dir(d, 0o755); err != nil {
			return err
		}
	}
	// The kernel opens the console for /init before devtmpfs is mounted.
	if err := a.Char("/dev/console", 0o600, 5, 1); err != nil {
		return err
	}
	if err := a.Char("/dev/null", 0o666, 1, 3); err != nil {
		return err
	}
	return a.Close()
}
