package cri

import (
	"errors"
	"fmt"
	"os"

	"cumulet.io/internal/mounts"
)

// Purge removes what an engine with this configuration keeps on the machine beside the sandboxes: mounts, files, logs and
// cgroups. The engine must not run and its sandboxes must be gone.
func Purge(cfg Config) error {
	errs := []error{mounts.RemoveAll(cfg.Root), os.RemoveAll(cfg.LogRoot)}
	root := cfg.CgroupRoot
	if root == "" {
		root = defaultCgroupRoot
	}
	for _, dir := range hostCgroups(root).roots() {
		errs = append(errs, removeCgroup(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge engine: %w", err)
	}
	return nil
}
