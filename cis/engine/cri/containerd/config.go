package containerd

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"cumulet.io/cis/sandbox"
)

//go:embed config.toml.tmpl
var configTemplate string

type option struct{ Key, Value string } // Value is TOML

// handlerSection is one handler in containerd's configuration.
type handlerSection struct {
	Name, Type         string
	PodAnnotations     []string
	WithoutHostDevices bool
	Options            []option
}

// quote makes a TOML basic string: JSON's escapes are a subset of TOML's.
func quote(s string) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

func mustQuote(s string) string {
	q, err := quote(s)
	if err != nil {
		panic(err) // a string can always be encoded
	}
	return q
}

// render makes every file of the configuration, by absolute path.
func (c Config) render() (map[string][]byte, error) {
	files := map[string][]byte{}
	main, err := c.renderMain()
	if err != nil {
		return nil, err
	}
	files[c.configFile()] = main
	for _, h := range c.Handlers {
		if h.Type == typeGVisor {
			files[c.handlerFile(h.Name)] = c.renderGVisor(h)
		}
		if h.Type == typeKata && h.ConfigPath != "" {
			if err := c.renderKata(h, files); err != nil {
				return nil, err
			}
		}
	}
	network, err := c.renderNetwork()
	if err != nil {
		return nil, err
	}
	files[filepath.Join(c.cniDir(), "10-cumulet.conflist")] = network
	for _, r := range c.Registries {
		files[filepath.Join(c.certsDir(), r.Host, "hosts.toml")] = r.render()
	}
	return files, nil
}

func (c Config) renderMain() ([]byte, error) {
	t, err := template.New("containerd.toml").Funcs(template.FuncMap{"q": quote}).Parse(configTemplate)
	if err != nil {
		return nil, fmt.Errorf("containerd configuration: %w", err)
	}
	var sections []handlerSection
	for _, h := range c.Handlers {
		sections = append(sections, c.section(h))
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"Root":             filepath.Join(c.Dir, "root"),
		"State":            c.stateDir(),
		"Socket":           c.socket(),
		"ShimSockets":      c.shimSockets(),
		"Opt":              filepath.Join(c.Dir, "opt"),
		"Verifiers":        filepath.Join(c.Dir, "verifiers"),
		"LogLevel":         c.LogLevel,
		"SandboxImage":     c.SandboxImage,
		"Certs":            c.certsDir(),
		"RestrictOOMScore": !c.Host.LowerOOMScore,
		"CNIBinDir":        c.CNIBinDir,
		"CNIDir":           c.cniDir(),
		"DefaultHandler":   c.Handlers[0].Name,
		"Handlers":         sections,
	})
	if err != nil {
		return nil, fmt.Errorf("containerd configuration: %w", err)
	}
	return out.Bytes(), nil
}

func (c Config) section(h Handler) handlerSection {
	s := handlerSection{Name: h.Name, Type: h.Type}
	str := func(key, value string) { s.Options = append(s.Options, option{key, mustQuote(value)}) }
	switch h.Type {
	case typeRunc:
		str("BinaryName", h.Binary)
		s.Options = append(s.Options, option{"SystemdCgroup", strconv.FormatBool(c.Host.Systemd)})
	case typeGVisor:
		s.PodAnnotations = []string{"dev.gvisor.*"}
		str("TypeUrl", "io.containerd.runsc.v1.options")
		str("ConfigPath", c.handlerFile(h.Name))
	default:
		// A VM gets no device of the machine, even when it is privileged in it.
		s.PodAnnotations, s.WithoutHostDevices = []string{"io.katacontainers.*"}, true
		if h.ConfigPath != "" {
			str("ConfigPath", filepath.Join(c.kataDir(h.Name), kataFile))
		}
	}
	return s
}

// renderGVisor makes the configuration of gVisor's shim, whose [runsc_config]
// are runsc's flags.
func (c Config) renderGVisor(h Handler) []byte {
	platform := h.Platform
	if platform == "" {
		platform = "systrap"
	}
	return fmt.Appendf(nil, `# Written by Cumulet at every start of containerd. Changes made here are lost.
binary_name = %s
root = %s
grouping = true
[runsc_config]
  platform = %s
  systemd-cgroup = %q
`, mustQuote(h.Binary), mustQuote(filepath.Join(c.RunDir, h.Name)), mustQuote(platform), strconv.FormatBool(c.Host.Systemd))
}

// kataFile is the name of Kata's configuration in the directory of its handler.
const kataFile = "configuration.toml"

// renderKata makes Kata's configuration: a copy of the operator's file and of its drop-ins, and one drop-in more, the last.
func (c Config) renderKata(h Handler, files map[string][]byte) error {
	dir := c.kataDir(h.Name)
	read, err := sandbox.ReadKataConfig(h.ConfigPath)
	if err != nil {
		return fmt.Errorf("handler %s: %w", h.Name, err)
	}
	from := []string{h.ConfigPath}
	more, err := filepath.Glob(filepath.Join(filepath.Dir(h.ConfigPath), "config.d", "*"))
	if err != nil {
		return fmt.Errorf("handler %s: %w", h.Name, err)
	}
	for i, path := range append(from, more...) {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("handler %s: copy Kata's configuration: %w", h.Name, err)
		}
		to := filepath.Join(dir, kataFile)
		if i > 0 {
			to = filepath.Join(dir, "config.d", filepath.Base(path))
		}
		files[to] = text
	}
	own, err := sandbox.KataDropIn(read, h.Kata)
	if err != nil {
		return fmt.Errorf("handler %s: %w", h.Name, err)
	}
	files[filepath.Join(dir, "config.d", "zz-cumulet.toml")] = append([]byte("# Written by Cumulet at every start of containerd. Changes made here are lost.\n"), own...)
	return nil
}

// renderNetwork makes the CNI configuration. The plugins' nftables back ends are
// asked for by name: what they fall back to leaks rules of gVisor's pods.
func (c Config) renderNetwork() ([]byte, error) {
	type object = map[string]any
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       c.networkName(),
		"plugins": []object{
			{
				"type": "bridge", "bridge": c.Network.Bridge, "mtu": c.Network.MTU,
				"isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
				"ipam": object{
					"type":    "host-local",
					"dataDir": filepath.Join(c.Dir, "addresses"),
					"ranges":  [][]object{{{"subnet": c.Network.Subnet.String()}}},
					"routes":  []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "backend": "nftables", "capabilities": object{"portMappings": true}},
			{"type": "bandwidth", "capabilities": object{"bandwidth": true}},
		},
	}, "", "  ")
}

// render makes the registry's hosts.toml.
func (r Registry) render() []byte {
	scheme := "https"
	if r.PlainHTTP {
		scheme = "http"
	}
	server := mustQuote(scheme + "://" + r.Host)
	out := fmt.Appendf(nil, "server = %s\n[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n", server, server)
	if r.CAFile != "" {
		out = fmt.Appendf(out, "  ca = %s\n", mustQuote(r.CAFile))
	}
	return out
}

// write brings the configuration on disk up to date: its directories, every
// file whole or not at all, and none of an earlier configuration. What is as it
// should be is left alone: a containerd may be running with it.
func (c Config) write() error {
	files, err := c.render()
	if err != nil {
		return err
	}
	if err := c.clearAfterReboot(); err != nil {
		return err
	}
	for _, dir := range []string{c.Dir, c.RunDir, filepath.Dir(c.shimSockets())} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.configFile()), 0o700); err != nil {
		return err
	}
	for path, content := range files {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
			continue
		}
		if err := writeFile(path, content); err != nil {
			return err
		}
	}
	dirs := []string{c.cniDir(), c.certsDir()}
	for _, h := range c.Handlers {
		if h.Type == typeKata {
			dirs = append(dirs, c.kataDir(h.Name))
		}
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := keepOnly(dir, files); err != nil {
			return err
		}
	}
	return nil
}

// keepOnly removes what is below dir and neither in files nor above one of them.
func keepOnly(dir string, files map[string][]byte) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, ok := files[path]; ok {
			continue
		}
		keep := false
		for f := range files {
			keep = keep || strings.HasPrefix(f, path+string(filepath.Separator))
		}
		if keep && e.IsDir() {
			err = keepOnly(path, files)
		} else {
			err = os.RemoveAll(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// version names the whole configuration.
func (c Config) version() (string, error) {
	files, err := c.render()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%q %q\n", path, files[path])
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// clearAfterReboot empties RunDir when it is from before the machine's last
// start: what it describes ended then.
func (c Config) clearAfterReboot() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read the boot id: %w", err)
	}
	mark := filepath.Join(c.RunDir, "boot_id")
	if have, err := os.ReadFile(mark); err == nil && bytes.Equal(have, boot) {
		return nil
	}
	if err := os.RemoveAll(c.RunDir); err != nil {
		return fmt.Errorf("clear %s after a reboot: %w", c.RunDir, err)
	}
	if err := os.MkdirAll(c.RunDir, 0o711); err != nil {
		return err
	}
	return writeFile(mark, boot)
}

func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
