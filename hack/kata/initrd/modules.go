package initrd

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// Modules are what a guest needs of the kernel beyond what Debian has built in:
// the bus and its devices (shared directory, network, socket, entropy, the console
// of Kata's QEMU driver), and overlayfs for container images that are unpacked
// inside.
var modules = []string{
	"virtio_pci", "virtiofs", "virtio_net", "vmw_vsock_virtio_transport", "virtio-rng", "virtio_console", "overlay",
}

// Modules returns the names of the modules that a guest needs.
func Modules() []string { return append([]string(nil), modules...) }

// LoadOrder returns the files of the modules and of all that they depend on,
// each after its dependencies. dep is the kernel's modules.dep: a line for each
// module, "file: dependency...", all relative to its directory.
func LoadOrder(dep io.Reader, names []string) ([]string, error) {
	needs, file := map[string][]string{}, map[string]string{}
	scan := bufio.NewScanner(dep)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		name, deps, ok := strings.Cut(scan.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep: line %q has no colon", scan.Text())
		}
		needs[name] = strings.Fields(deps)
		file[moduleName(name)] = name
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("modules.dep: %w", err)
	}
	var order []string
	done := map[string]bool{}
	var add func(f string)
	add = func(f string) {
		if done[f] {
			return
		}
		done[f] = true
		for _, d := range needs[f] {
			add(d)
		}
		order = append(order, f)
	}
	for _, n := range names {
		f, ok := file[moduleName(n)]
		if !ok {
			return nil, fmt.Errorf("modules.dep has no module %s", n)
		}
		add(f)
	}
	return order, nil
}

// moduleName is a module's name by its file: the kernel takes - and _ as one.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
