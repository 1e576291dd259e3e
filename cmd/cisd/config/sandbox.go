package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Sandbox says how weakly instances may be isolated.
type Sandbox struct {
	// Minimum is the weakest sandbox class that instances may have: kata, gvisor or runc; empty allows all. Orgs overrides
	// it by org.
	Minimum string            `yaml:"minimum"`
	Orgs    map[string]string `yaml:"orgs"`
}

// Kata is what instances of class kata run in.
type Kata struct {
	// Configs are Kata configuration files by hypervisor, as qemu, clh and fc; each becomes the runtime handler
	// kata-NAME. Empty: control.cri.kataConfig or the shim's default, as the handler kata.
	Configs map[string]string `yaml:"configs"`
	// Hypervisor is the name in Configs that instances get; Orgs overrides it by org.
	Hypervisor string            `yaml:"hypervisor"`
	Orgs       map[string]string `yaml:"orgs"`
	// Template makes new virtual machines as copies of one that has booted; Cache keeps so many ready. Not both.
	Template bool `yaml:"template"`
	Cache    int  `yaml:"cache"`
	// Console is where a virtual machine's console is, a file that the hypervisor writes or a socket that it serves, with
	// {id} for the sandbox's id, or {id:16} for the first 16 characters of it; empty: the guest's kernel log is not kept.
	Console string `yaml:"console"`
}

var kataName = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$`)

// NodePort is a port of the node that instances may reach.
type NodePort struct {
	Protocol string // tcp or udp
	Port     uint16
}

// ParseNodePort reads "443/tcp" or "53/udp".
func ParseNodePort(s string) (NodePort, error) {
	n, proto, _ := strings.Cut(s, "/")
	port, err := strconv.ParseUint(n, 10, 16)
	if err != nil || port == 0 || proto != "tcp" && proto != "udp" {
		return NodePort{}, fmt.Errorf("must be PORT/tcp or PORT/udp, not %q", s)
	}
	return NodePort{Protocol: proto, Port: uint16(port)}, nil
}

func (c *Config) checkSandbox(bad func(key, format string, args ...any)) {
	class := func(key, v string) {
		if !slices.Contains([]string{"", "kata", "gvisor", "runc"}, v) {
			bad(key, "must be kata, gvisor or runc, not %q", v)
		}
	}
	class("control.sandbox.minimum", c.Control.Sandbox.Minimum)
	for _, org := range slices.Sorted(maps.Keys(c.Control.Sandbox.Orgs)) {
		class("control.sandbox.orgs."+org, c.Control.Sandbox.Orgs[org])
	}
	for i, p := range c.Control.CRI.NodePorts {
		if _, err := ParseNodePort(p); err != nil {
			bad(fmt.Sprintf("control.cri.nodePorts[%d]", i), "%v", err)
		}
	}
	k := c.Control.CRI.Kata
	for _, name := range slices.Sorted(maps.Keys(k.Configs)) {
		if !kataName.MatchString(name) {
			bad("control.cri.kata.configs", "%q is no name: want lower-case letters, digits and '-'", name)
		}
		if !filepath.IsAbs(k.Configs[name]) {
			bad("control.cri.kata.configs."+name, "must be an absolute path, not %q", k.Configs[name])
		}
	}
	known := func(key, name string) {
		if _, ok := k.Configs[name]; !ok {
			bad(key, "must be one of control.cri.kata.configs, not %q", name)
		}
	}
	if len(k.Configs) > 0 {
		known("control.cri.kata.hypervisor", k.Hypervisor)
	}
	for _, org := range slices.Sorted(maps.Keys(k.Orgs)) {
		known("control.cri.kata.orgs."+org, k.Orgs[org])
	}
	if k.Template && k.Cache > 0 {
		bad("control.cri.kata.cache", "must be 0 with control.cri.kata.template: Kata makes virtual machines in one of the two ways")
	}
	if c.Control.CRI.Socket != "" && (k.Template || k.Cache > 0) {
		bad("control.cri.kata", "template and cache must be unset with control.cri.socket: set them in the [factory] of the Kata configuration that this containerd has")
	}
	if k.Cache < 0 || k.Cache > 64 {
		bad("control.cri.kata.cache", "must be 0 to 64, not %d", k.Cache)
	}
	if k.Console != "" && (!filepath.IsAbs(k.Console) || !strings.Contains(k.Console, "{id")) {
		bad("control.cri.kata.console", "must be an absolute path with {id} in it, not %q", k.Console)
	}
}
