package vmservice

import "fmt"

// KataConfig is a configuration of Kata's shim for a service at the socket: a
// file for the runtime option ConfigPath. What differs from a production
// configuration is the hypervisor's section and what depends on it.
func KataConfig(socket string, memoryMiB int) string {
	return fmt.Sprintf(`# Kata Containers with the VM service of hack/kata: virtual machines by emulation,
# for tests. No boundary that anybody should rely on.
[hypervisor.remote]
remote_hypervisor_socket = %q
remote_hypervisor_timeout = %d
default_memory = %d
default_vcpus = 1
enable_annotations = ["default_memory", "default_vcpus"]
disable_selinux = true
disable_guest_selinux = true

[agent.kata]
# The agent's socket is there when a machine has started, and gone when it has ended:
# a shim that looks for it then, looks in vain and can be asked nothing meanwhile.
dial_timeout = 2

[runtime]
# The service joins the pod's network to the machine; the shim has no part in it.
internetworking_model = "none"
disable_new_netns = true
# A machine has its size when it starts: nothing is plugged in later.
static_sandbox_resource_mgmt = true
sandbox_cgroup_only = true
disable_guest_seccomp = true
create_container_timeout = %d
`, socket, startTimeout, memoryMiB, startTimeout)
}

// startTimeout, in seconds, is what the shim allows for a machine's start: far
// more than emulation needs on a machine with much else to do.
const startTimeout = 180
