package inside

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/cis/engine/cri"
	"cumulet.io/cis/engine/enginetest"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/testenv"
)

// The whole life of an instance in a virtual machine of KVM's, as Kata's release configures it for QEMU: it has a kernel of
// its own, the size that its spec asks for, a network, a log; its end leaves nothing on the host.
func TestLife(t *testing.T) {
	env := newContainerd(t)
	before := left(t, env)
	sink := &enginetest.Sink{}
	e := newEngine(t, env, sink)
	run(t, e)
	in := instance("trap 'echo bye; exit 3' TERM; mkdir /tmp/www; echo served > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; echo up; while :; do sleep 0.2; done")
	began := time.Now()
	if err := e.Ensure(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	st := sink.Await(t, in.ID, func(st cis.Status) bool { return st.Phase == cis.Running }, patience)
	t.Logf("the instance ran after %v", time.Since(began).Round(time.Second))
	if st.SandboxClass != cis.Kata || len(st.IPs) != 1 {
		t.Fatalf("status %+v", st)
	}
	g := look(t, e, in.ID)
	if !t.Run("kernel", func(t *testing.T) { kernel(t, g) }) {
		return
	}
	t.Run("size", func(t *testing.T) { size(t, g, st) })
	t.Run("hypervisor", func(t *testing.T) { hypervisor(t, in.ID, st) })
	t.Run("network", func(t *testing.T) { network(t, env, g, st.IPs[0]) })
	t.Run("console", func(t *testing.T) { console(t, e, in.ID) })
	t.Run("stop", func(t *testing.T) {
		stopped := *in
		stopped.Version++
		stopped.Desired = cis.Desired{Stop: true, StopAt: time.Now().UTC()}
		if err := e.Ensure(t.Context(), &stopped); err != nil {
			t.Fatal(err)
		}
		st := sink.Await(t, in.ID, func(st cis.Status) bool { return st.Phase.Final() }, patience)
		if c := st.Containers[0].State.Terminated; c == nil || c.ExitCode != 3 {
			t.Errorf("the container ended as %+v", st.Containers[0].State)
		}
		// Kata signals every process of the container, so the shell may also tell of its sleep's end.
		var log bytes.Buffer
		if err := e.Logs(t.Context(), in.ID, cis.LogRequest{Container: "main"}, &log); err != nil || strings.Replace(log.String(), "Terminated\n", "", 1) != "up\nbye\n" {
			t.Errorf("the log is %q, %v", log.String(), err)
		}
		testenv.Eventually(t, patience, func() error {
			if now := left(t, env); now != before {
				return fmt.Errorf("there is\n%s\nwhere before there was\n%s", now, before)
			}
			return nil
		})
	})
	sink.Check(t)
}

// guest is what an instance sees of its machine, each answer by the name of its question.
type guest map[string]string

const bootID = "/proc/sys/kernel/random/boot_id"

// look asks everything at once: a command takes seconds to start.
func look(t *testing.T, e *cri.Engine, id string) guest {
	t.Helper()
	script := ""
	for name, command := range map[string]string{
		"boot": "cat " + bootID, "clock": "cat /sys/devices/system/clocksource/clocksource0/current_clocksource", "kernel": "uname -r",
		"processors": "nproc", "memory": "grep MemTotal /proc/meminfo", "address": "ip -4 addr show eth0", "routes": "ip route", "disks": "mount",
	} {
		script += fmt.Sprintf("echo %s: $(%s)\n", name, command)
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := e.Exec(ctx, id, cis.ExecRequest{Container: "main", Command: []string{"sh", "-c", script}, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatalf("exec: %v: %s%s", err, &out, &errs)
	}
	g := guest{}
	for line := range strings.Lines(out.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		g[name] = value
	}
	return g
}

// kernel shows that the instance has a kernel of its own, and whose machine it is in.
func kernel(t *testing.T, g guest) {
	here, err := os.ReadFile(bootID)
	if err != nil {
		t.Fatal(err)
	}
	if g["boot"] == strings.TrimSpace(string(here)) || len(g["boot"]) != 36 {
		t.Errorf("the instance's kernel is the host's: boot %s", g["boot"])
	}
	if g["clock"] != "kvm-clock" {
		t.Errorf("the guest's clock is %q: not KVM's", g["clock"])
	}
	if !strings.Contains(g["disks"], " on / type virtiofs ") {
		t.Errorf("the root file system is not shared by virtiofs: %s", g["disks"])
	}
	t.Logf("Linux %s, clock %s, boot %s; the host's boot %s", g["kernel"], g["clock"], g["boot"], strings.TrimSpace(string(here)))
}

// size is what the instance's annotations have asked for, as the guest sees it.
func size(t *testing.T, g guest, st cis.Status) {
	if g["processors"] != "1" { // the configuration's default is another
		t.Errorf("the guest has %s processors, want 1", g["processors"])
	}
	var kib int64
	if _, err := fmt.Sscanf(g["memory"], "MemTotal: %d kB", &kib); err != nil {
		t.Fatalf("%q: %v", g["memory"], err)
	}
	// The guest's kernel keeps some of its part for itself and does not count it.
	if most := memoryMiB(st); kib>>10 < st.Size.MemoryMiB || kib>>10 > most {
		t.Errorf("the guest has %d MiB, want %d to %d", kib>>10, st.Size.MemoryMiB, most)
	}
	t.Logf("an instance of %s has %s processor and %d MiB", st.Size.Class, g["processors"], kib>>10)
}

// memoryMiB is what the virtual machine of an instance is made with.
func memoryMiB(st cis.Status) int64 {
	return st.Size.MemoryMiB + sandbox.OverheadOf(cis.Kata, st.Size).GuestMiB
}

// hypervisor looks at the driver's QEMU: its command line, and that all of the sandbox is in the instance's cgroup.
func hypervisor(t *testing.T, id string, st cis.Status) {
	all := processes(t)
	for name, wants := range map[string][]string{
		"qemu-system-x86_64": {"accel=kvm", "-device vhost-vsock-pci", "vhost-user-fs-pci", "vhost=on", fmt.Sprintf("-m %dM", memoryMiB(st)), "-smp 1,", "-cpu host,pmu=off"},
		"virtiofsd":          {"--thread-pool-size=1", "cache=auto"}, "containerd-shim-kata-v2": {"-namespace k8s.io"},
	} {
		var found []process
		for _, p := range all {
			if p.name == name {
				found = append(found, p)
			}
		}
		if len(found) == 0 {
			t.Errorf("no process %s among %v", name, all)
		}
		for _, p := range found {
			for _, want := range wants {
				if !strings.Contains(p.args, want) {
					t.Errorf("%s has no %q: %s", name, want, p.args)
				}
			}
			if !strings.Contains(p.cgroup, id) {
				t.Errorf("%s is in the cgroup %s, not in the instance's", name, p.cgroup)
			}
		}
	}
}

// console is the driver's socket, whose lines are a log of the instance. The kernel boots quietly; that the agent cannot start
// a program it says there.
func console(t *testing.T, e *cri.Engine, id string) {
	if err := e.Exec(t.Context(), id, cis.ExecRequest{Container: "main", Command: []string{"no-such-program"}, Stdout: io.Discard, Stderr: io.Discard}); err == nil {
		t.Error("a program that is not there has run")
	}
	testenv.Eventually(t, patience/5, func() error {
		var log bytes.Buffer
		err := e.Logs(t.Context(), id, cis.LogRequest{Container: cis.GuestLog}, &log)
		if err == nil && !strings.Contains(log.String(), "no-such-program") {
			err = fmt.Errorf("the console's log is %q", log.String())
		}
		return err
	})
}

// network is by the shim's tap, which traffic control joins to the pod's interface.
func network(t *testing.T, env *testenv.ContainerdEnv, g guest, ip string) {
	if !strings.Contains(g["address"], " "+ip+"/") {
		t.Errorf("the guest's eth0 has not %s: %s", ip, g["address"])
	}
	if !strings.Contains(g["routes"], "default via "+env.Subnet.Addr().Next().String()) {
		t.Errorf("the guest's routes: %s", g["routes"])
	}
	client := http.Client{Timeout: time.Minute}
	testenv.Eventually(t, patience, func() error {
		resp, err := client.Get("http://" + ip + ":8080/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && string(body) != "served\n" {
			err = fmt.Errorf("answered %q", body)
		}
		return err
	})
}
