package cri

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/internal/testenv"
)

// serviceAddress is what a Service's could be: no interface has it.
const serviceAddress = "10.96.77.7"

// Instances of an org reach each other, by their addresses and by that of a Service, which kube-proxy on the machine
// translates; an instance of another org does not.
func TestNeighbours(t *testing.T) {
	b := newBench(t)
	for class := range b.cfg.Handlers {
		t.Run(string(class), func(t *testing.T) { b.neighbours(t, class) })
	}
}

// neighbours leaves its instances running: two of the org acme, and one of bank.
func (b *bench) neighbours(t *testing.T, class cis.SandboxClass) (server, friend, stranger *cis.Instance) {
	t.Helper()
	const serve = "mkdir /tmp/www; echo -n $GREETING > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; sleep 3600"
	all := []*cis.Instance{instance(class, shell("main", serve)), instance(class, shell("main", "sleep 3600")), instance(class, shell("main", "sleep 3600"))}
	server, friend, stranger = all[0], all[1], all[2]
	stranger.Org = "bank"
	for _, in := range all {
		in.Spec.Containers[0].Env = []cis.EnvVar{{Name: "GREETING", Value: "hello from " + in.ID}, {Name: "OWN", Value: ownSecret(in)}}
		b.ensure(in)
	}
	for _, in := range all {
		b.sink.waitPhase(t, in.ID, cis.Running)
	}
	address := b.sink.last(server.ID).IPs[0]
	b.service(t, address)
	want := "hello from " + server.ID
	get := func(from *cis.Instance, host string) (string, error) {
		answer, err := b.run(from.ID, "main", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 `+host)
		_, body, _ := strings.Cut(answer, "\r\n\r\n")
		return body, err
	}
	for _, host := range []string{address + " 8080", serviceAddress + " 80"} {
		testenv.Eventually(t, 60*time.Second, func() error { // its server may not listen yet
			if got, err := get(friend, host); err != nil || got != want {
				return fmt.Errorf("%s from %s: %q %w", host, friend.ID, got, err)
			}
			return nil
		})
	}
	if got, err := get(stranger, address+" 8080"); err == nil || got != "" {
		t.Errorf("another org's instance got %q", got)
	}
	return server, friend, stranger
}

// ownSecret is what only the instance's own processes have.
func ownSecret(in *cis.Instance) string { return "only " + in.ID + " knows" }

// service translates the Service's address as kube-proxy does for a Service with one endpoint and masquerade-all.
func (b *bench) service(t *testing.T, endpoint string) {
	t.Helper()
	nft := testenv.Tool(t, "nft")
	table := "cumulet-service-" + b.env.Bridge
	rules := fmt.Sprintf(`
table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain services { type nat hook prerouting priority dstnat; iifname %[2]q ip daddr %[3]s tcp dport 80 dnat to %[4]s:8080; }
	chain postrouting { type nat hook postrouting priority srcnat; oifname %[2]q ip daddr %[4]s ct status dnat masquerade; }
}`, table, b.env.Bridge, serviceAddress, endpoint)
	c := exec.CommandContext(t.Context(), nft, "-f", "-")
	c.Stdin = strings.NewReader(rules)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(nft, "delete", "table", "ip", table).CombinedOutput(); err != nil { //nolint:noctx // it ends by itself
			t.Errorf("nft: %v: %s", err, out)
		}
	})
}
