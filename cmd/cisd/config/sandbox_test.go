package config

import (
	"strings"
	"testing"
)

func TestSandboxKeys(t *testing.T) {
	for override, want := range map[string]string{
		"control.sandbox.minimum=jail":                                "control.sandbox.minimum: must be kata, gvisor or runc",
		"control.sandbox.orgs={bank: vm}":                             "control.sandbox.orgs.bank: must be kata",
		"control.cri.nodePorts=[53]":                                  `control.cri.nodePorts[0]: must be PORT/tcp or PORT/udp, not "53"`,
		"control.cri.nodePorts=[0/udp]":                               "must be PORT/tcp",
		"control.cri.nodePorts=[70000/udp]":                           "must be PORT/tcp",
		"control.cri.kata.configs={clh: /etc/c.toml}":                 `control.cri.kata.hypervisor: must be one of control.cri.kata.configs, not "qemu"`,
		"control.cri.kata.configs={qemu: c.toml}":                     "control.cri.kata.configs.qemu: must be an absolute path",
		`control.cri.kata.configs={"a b": /c}`:                        `"a b" is no name`,
		"control.cri.kata.orgs={bank: fc}":                            "control.cri.kata.orgs.bank: must be one of",
		"control.cri.kata.cache=-1":                                   "must be 0 to 64",
		"control.cri.kata.console=/run/x":                             "with {id} in it",
		"control.cri.kata={template: true, cache: 2}":                 "Kata makes virtual machines in one of the two ways",
		"control.cri={socket: /run/c.sock, kata: {cache: 2}}":         "must be unset with control.cri.socket",
		"control.cri={socket: /run/c.sock, kata: {template: true}}":   "must be unset with control.cri.socket",
		"control.cri.kata.configs={qemu: /etc/q.toml}":                "",
		"control.cri.nodePorts=[53/udp, 6443/tcp]":                    "",
		"control.cri.kata.console=/run/{id:16}/log":                   "",
		"control.sandbox={minimum: gvisor, orgs: {a: kata, b: runc}}": "",
	} {
		_, err := Load("", nil, []string{override})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", override, err, want)
		}
	}
}
