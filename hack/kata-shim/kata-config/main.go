// Command kata-config prints, as JSON, what Kata's shim makes of a configuration
// file and of the drop-ins beside it: it reads them by Kata's own package, which
// refuses what the shim would refuse, but for a host without vhost-vsock.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/kata-containers/kata-containers/src/runtime/pkg/katautils"
	"github.com/kata-containers/kata-containers/src/runtime/virtcontainers/utils"
)

type result struct {
	Hypervisor, Path, Kernel, Image, Initrd string
	MemoryMiB                               uint32
	CPUs                                    float32
	Annotations                             []string
	StaticSize, SandboxCgroup, Template     bool
	Cache                                   uint
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: kata-config FILE")
		os.Exit(2)
	}
	utils.VHostVSockDevicePath = os.DevNull // the configuration is asked for, not the host
	_, c, err := katautils.LoadConfiguration(os.Args[1], true)
	if err == nil {
		h := c.HypervisorConfig
		err = json.NewEncoder(os.Stdout).Encode(result{
			Hypervisor: string(c.HypervisorType), Path: h.HypervisorPath, Kernel: h.KernelPath, Image: h.ImagePath, Initrd: h.InitrdPath,
			MemoryMiB: h.MemorySize, CPUs: h.NumVCPUsF, Annotations: h.EnableAnnotations,
			StaticSize: c.StaticSandboxResourceMgmt, SandboxCgroup: c.SandboxCgroupOnly,
			Template: c.FactoryConfig.Template, Cache: c.FactoryConfig.VMCacheNumber,
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kata-config:", err)
		os.Exit(1)
	}
}
