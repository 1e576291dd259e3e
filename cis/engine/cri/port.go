package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis/engine/cri/fence"
)

// Fence decides which instances of one network reach each other: package fence. An instance is admitted when its
// sandbox is up, before any of its containers, and retired when its sandbox is to go.
type Fence interface {
	Admit(p fence.Port) error
	Retire(addrs []netip.Addr) error
}

// admit lets an instance's sandbox take part in the network.
func (a *actor) admit(r *rt.PodSandboxStatusResponse) error {
	if a.e.cfg.Fence == nil {
		return nil
	}
	iface, err := hostInterface(r.GetInfo()["info"])
	if err != nil {
		return fmt.Errorf("admit to the network: %w", err)
	}
	return a.e.cfg.Fence.Admit(fence.Port{Org: a.org, Interface: iface, Addrs: parseAddrs(addresses(r.GetStatus()))})
}

// retire takes an instance's sandbox out of the network.
func (a *actor) retire() {
	if a.e.cfg.Fence == nil || len(a.ips) == 0 {
		return
	}
	if err := a.e.cfg.Fence.Retire(parseAddrs(a.ips)); err != nil {
		a.log.Warn("instance not taken out of the network", "error", err)
	}
}

func parseAddrs(ips []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ips {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// hostInterface finds the machine's end of a sandbox's cable in what containerd tells of the sandbox (verbose): of the
// interfaces that the network plugins made, it is the one with a pair's name and outside of the sandbox.
func hostInterface(info string) (string, error) {
	var told struct {
		CNIResult struct {
			Interfaces map[string]struct{ Sandbox string }
		} `json:"cniResult"`
	}
	if err := json.Unmarshal([]byte(info), &told); err != nil {
		return "", fmt.Errorf("what containerd tells of the sandbox is not understood: %w", err)
	}
	for name, i := range told.CNIResult.Interfaces {
		if i.Sandbox == "" && strings.HasPrefix(name, "veth") {
			return name, nil
		}
	}
	return "", errors.New("containerd tells of no interface of the sandbox on the machine's side")
}
