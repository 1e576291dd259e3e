// Package inside has the tests that run in the emulated host of katahost: of Kata with its QEMU driver, KVM, vhost-vsock
// and the shim's own networking. On any other machine they are skipped.
package inside

import (
	"os"
	"strings"
	"testing"

	"cumulet.io/cis"
	"cumulet.io/cis/sandbox"
)

// kataConfig is the configuration that Kata's release has for QEMU.
const kataConfig = "/opt/kata/share/defaults/kata-containers/configuration-qemu.toml"

// handler is what docs/kata-host.md calls it.
const handler = "kata-qemu"

// host looks at the machine as cisd does.
func host(t *testing.T) sandbox.Report {
	t.Helper()
	if os.Getenv("CUMULET_KATA_HOST") != "1" {
		t.Skip("make test-kata-host runs this, in an emulated host")
	}
	return sandbox.Host(t.Context(), sandbox.Options{BinDirs: []string{os.Getenv("CUMULET_CACHE") + "/bin"}, OwnContainerd: true,
		KataConfigs: map[string]string{"qemu": kataConfig}, Hypervisor: "qemu"})
}

// The check of the host finds all that Kata with QEMU needs, and would have instances run in it.
func TestHostCheck(t *testing.T) {
	r := host(t)
	f := r.Finding(handler)
	if f == nil || !f.Available() || r.Default != cis.Kata {
		var b strings.Builder
		err := r.Write(&b)
		t.Fatalf("Kata is not to be had: %v\n%s", err, b.String())
	}
	found := map[string]string{}
	for _, c := range f.Checks {
		found[c.Name] = c.Found
	}
	for name, want := range map[string]string{"hardware virtualisation": "CPU flag svm", "/dev/kvm": "present", "/dev/vhost-vsock": "present", "/dev/vhost-net": "present"} {
		if found[name] != want {
			t.Errorf("%s: %q, want %q", name, found[name], want)
		}
	}
}
