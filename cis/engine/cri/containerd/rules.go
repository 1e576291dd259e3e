package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// The tables of the CNI plugins bridge and portmap, shared by all networks of
// the machine. A rule's comment says whose it is: ", net: NETWORK, " is in
// bridge's, the sandbox's id is portmap's.
const (
	tableMasquerade = "cni_plugins_masquerade"
	tableHostPort   = "cni_hostport"
)

// deleteRules deletes the packet filter's rules of this containerd's sandboxes,
// which are there only where a sandbox was not removed through it.
func (c Config) deleteRules() error {
	sandboxes := map[string]bool{}
	dirs, err := filepath.Glob(filepath.Join(c.Dir, "root", "io.containerd.grpc.v1.cri", "sandboxes", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		sandboxes[filepath.Base(dir)] = true
	}
	network := ", net: " + c.networkName() + ","
	err = deleteRules(func(comment string) bool {
		return strings.Contains(comment, network) || sandboxes[comment]
	})
	if err != nil {
		return fmt.Errorf("delete packet filter rules: %w", err)
	}
	return nil
}

// deleteRules deletes the rules in the plugins' tables whose comment is ours.
func deleteRules(ours func(comment string) bool) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := conn.ListChains()
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without the packet filter
	}
	if err != nil {
		return err
	}
	found := false
	for _, chain := range chains {
		if n := chain.Table.Name; n != tableMasquerade && n != tableHostPort {
			continue
		}
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			return err
		}
		for _, rule := range rules {
			comment, ok := userdata.GetString(rule.UserData, userdata.TypeComment)
			if !ok || !ours(comment) {
				continue
			}
			if err := conn.DelRule(rule); err != nil {
				return err
			}
			found = true
		}
	}
	if !found {
		return nil
	}
	return conn.Flush()
}
