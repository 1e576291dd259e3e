package cri

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"cumulet.io/cis"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/testenv"
)

// The whole life of an instance in a virtual machine, which has the instance's size.
func TestKataLife(t *testing.T) {
	b := newKataBench(t)
	b.life(t, cis.Kata)
	b.attaches(t, cis.Kata)
	in := instance(cis.Kata, shell("main", "sleep 1000"))
	in.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("700Mi")}
	b.ensure(in)
	st := b.sink.waitPhase(t, in.ID, cis.Running)
	if out, err := b.run(in.ID, "main", "nproc"); err != nil || out != "2\n" {
		t.Errorf("processors of an instance of %s: %q %v", st.Size.Class, out, err)
	}
	out, err := b.run(in.ID, "main", "grep", "MemTotal", "/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.ParseInt(strings.Fields(out)[1], 10, 64)
	// The guest's kernel keeps some of its part for itself and does not count it.
	if most := st.Size.MemoryMiB + sandbox.OverheadOf(cis.Kata, st.Size).GuestMiB; err != nil || kib>>10 > most || kib>>10 < st.Size.MemoryMiB {
		t.Errorf("memory of an instance of %s: %q, want %d to %d MiB", st.Size.Class, out, st.Size.MemoryMiB, most)
	}
	began := time.Now()
	if out, err := b.run(in.ID, "main", "no-such-program"); err == nil {
		t.Errorf("a program that is not there has run: %q", out)
	}
	t.Logf("a program that is not there is refused after %v", time.Since(began).Round(time.Millisecond))
	// Its kernel's log is one of the instance's, and does not stand in the way of the container's. The test's guest boots
	// quietly: there is what its firmware says, and what the agent says of the program.
	testenv.Eventually(t, 30*time.Second, func() error {
		if got := b.logText(in.ID, cis.GuestLog); !strings.Contains(got, "SeaBIOS") || !strings.Contains(got, "no-such-program") {
			return fmt.Errorf("the console's log is %.2000q", got)
		}
		return nil
	})
	families, err := b.KataMetrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	labelled := 0
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "instance_id" && l.GetValue() == in.ID {
					labelled++
				}
			}
		}
	}
	if labelled == 0 {
		t.Errorf("no metric of the instance among %d families", len(families))
	}
	t.Logf("%d metrics of the instance", labelled)
}

// Whatever is killed, an instance that may not be restarted ends as failed or goes on and succeeds, its meter is stopped
// once, and nothing of it is left.
func TestKataKills(t *testing.T) {
	b := newKataBench(t)
	random := testenv.Random(t)
	kills := 4
	if s := os.Getenv("CUMULET_KATA_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CUMULET_KATA_KILLS=%d", kills)
	bill := b.metered(t)
	before := b.leftovers(t)
	traces := &traces{}
	victims := []string{"qemu-system", "containerd-shim-kata-v2", "virtiofsd", "VM service", "containerd", "engine"}
	random.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	for i := range kills {
		victim := victims[i%len(victims)]
		t.Run(fmt.Sprintf("%d-%s", i, strings.ReplaceAll(victim, " ", "-")), func(t *testing.T) {
			in := instance(cis.Kata, shell("main", "while [ ! -f /tmp/end ]; do sleep 0.1; done"))
			in.Spec.RestartPolicy = corev1.RestartPolicyNever
			b.ensure(in)
			early := random.IntN(4) == 0 // also while it starts
			if early {
				b.sink.wait(t, in.ID, "a first report", func(cis.Status) bool { return true })
				time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond) // the kill's moment, and not a wait for anything
			} else {
				b.sink.waitPhase(t, in.ID, cis.Running)
			}
			traces.note(b, t, in, !early)
			at := time.Now()
			b.kill(t, in, victim)
			fatal := slices.Contains([]string{"qemu-system", "VM service"}, victim)
			if fatal && !early {
				st := b.sink.wait(t, in.ID, "the end", func(st cis.Status) bool {
					return st.Phase.Final() || len(st.Containers) > 0 && st.Containers[0].State.Terminated != nil
				})
				took := time.Since(at)
				t.Logf("the end was known after %v: %s %s", took.Round(time.Millisecond), st.Phase, st.Reason)
				if most := b.sink.slow * 2 * time.Second; victim == "qemu-system" && took > most {
					t.Errorf("that is more than %v", most) // 2 s on a machine with nothing else to do
				}
			}
			b.delete(in)
			st := b.sink.wait(t, in.ID, "the final status", func(st cis.Status) bool { return st.Phase.Final() })
			evs := meterEvents(t, bill, in.ID)
			exactBill(t, evs, st)
			t.Logf("ended as %s %s; %s", st.Phase, st.Reason, describeBill(evs))
		})
		testenv.Eventually(t, 120*time.Second, func() error {
			if left := append(beyond(b.leftovers(t), before), traces.left()...); len(left) > 0 {
				return fmt.Errorf("after the kill of %s there is left\n%s", victim, strings.Join(left, "\n"))
			}
			return nil
		})
	}
}

// kill kills a part of the instance's machinery as a crash would, and brings back what everything needs.
func (b *bench) kill(t *testing.T, in *cis.Instance, victim string) {
	t.Helper()
	switch victim {
	case "engine":
		b.metered(t, in)
	case "containerd":
		b.env.Kill()
		b.env.Ready()
	case "VM service":
		b.signal(t, b.kata.PID())
		b.kata.Ready()
	default:
		for _, p := range b.machinery() {
			if strings.Contains(p.name, victim) {
				b.signal(t, p.pid)
			}
		}
	}
}

func (b *bench) signal(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Errorf("kill %d: %v", pid, err)
	}
}

// traces are the places outside of the test's directories at which sandboxes could leave something.
type traces struct{ paths []string }

// note takes down those of an instance's sandbox: its shim's socket, and Kata's own of it. Of one that runs they are there.
func (s *traces) note(b *bench, t *testing.T, in *cis.Instance, runs bool) {
	t.Helper()
	list, err := b.listSandboxes(t.Context(), in.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, sandbox := range list {
		all := []string{shimSocket(b.env.Socket, sandbox.Id), "/run/vc/sbs/" + sandbox.Id, "/run/kata-containers/shared/sandboxes/" + sandbox.Id}
		for _, p := range all {
			if _, err := os.Lstat(p); err != nil && runs {
				t.Errorf("the test is blind to what is left: %v", err)
			}
		}
		s.paths = append(s.paths, all...)
	}
}

func (s *traces) left() []string {
	var left []string
	for _, p := range s.paths {
		if _, err := os.Lstat(p); err == nil {
			left = append(left, "trace "+p)
		}
	}
	return left
}
