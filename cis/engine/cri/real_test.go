package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/testenv"
)

// The whole life of an instance in each sandbox class: it runs, can be asked, ends with its exit code, and its log stays.
func TestLife(t *testing.T) {
	b := newBench(t)
	for class := range b.cfg.Handlers {
		t.Run(string(class), func(t *testing.T) { b.life(t, class) })
	}
}

func (b *bench) life(t *testing.T, class cis.SandboxClass) {
	t.Helper()
	in := instance(class, shell("main", "echo hello; sleep 0.2; echo bad >&2; while [ ! -f /tmp/end ]; do sleep 0.1; done; exit 3"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	in.Spec.Hostname = "host-x"
	b.ensure(in)
	st := b.sink.waitPhase(t, in.ID, cis.Running)
	if st.SandboxClass != class || st.Incarnation != 1 || len(st.IPs) == 0 || st.Size.Class == "" || !st.Ready {
		t.Errorf("status %+v", st)
	}
	if out, err := b.run(in.ID, "main", "hostname"); err != nil || out != "host-x\n" {
		t.Errorf("exec: %q %v", out, err)
	}
	if out, err := b.run(in.ID, "main", "cat", "/etc/hosts"); err != nil || !strings.Contains(out, st.IPs[0]+"\thost-x") {
		t.Errorf("hosts: %q %v", out, err)
	}
	if out, err := b.run(in.ID, "main", "no-such-program"); err == nil {
		t.Errorf("a program that is not there has run: %q", out)
	}
	_, err := b.run(in.ID, "main", "sh", "-c", "exit 7")
	var code utilexec.CodeExitError
	if !errors.As(err, &code) || code.Code != 7 {
		t.Errorf("exit code: %v", err)
	}
	if _, err := b.run(in.ID, "main", "touch", "/tmp/end"); err != nil {
		t.Error(err)
	}
	st = b.sink.waitPhase(t, in.ID, cis.Failed)
	e := ended(st.Containers[0])
	if e == nil || e.ExitCode != 3 || e.Reason != "Error" || st.EndedAt.IsZero() {
		t.Errorf("end %+v", st)
	}
	if got := b.logText(in.ID, "main"); got != "hello\nbad\n" {
		t.Errorf("log %q", got)
	}
	if b.meter.started[in.ID] != 1 || b.meter.running[in.ID] != 1 || b.meter.stopped[in.ID] != "Failed" {
		t.Errorf("meter %+v", b.meter)
	}
}

// Every line is in the log once, and as it was written, whatever of containerd and the engine is killed meanwhile.
func TestLogThroughKills(t *testing.T) {
	b := newBench(t)
	var all []*cis.Instance
	for class := range b.cfg.Handlers {
		in := instance(class, shell("main", `i=0; while [ ! -f /tmp/end ]; do i=$((i+1)); printf "line $i"; echo " ends"; done; echo $i > /tmp/lines; while [ ! -f /tmp/bye ]; do sleep 0.1; done; printf bye`))
		in.Spec.RestartPolicy = corev1.RestartPolicyNever
		all = append(all, b.ensure(in))
	}
	for _, in := range all {
		b.sink.waitPhase(t, in.ID, cis.Running)
	}
	for range 3 {
		b.env.Kill()
		b.env.Ready()
		b.restart(all...)
		for _, in := range all {
			testenv.Eventually(t, 30*time.Second, func() error { _, err := b.run(in.ID, "main", "true"); return err })
		}
	}
	for _, in := range all {
		if _, err := b.run(in.ID, "main", "touch", "/tmp/end"); err != nil {
			t.Fatal(err)
		}
		var lines int
		testenv.Eventually(t, 30*time.Second, func() error {
			out, err := b.run(in.ID, "main", "cat", "/tmp/lines")
			if err != nil {
				return err
			}
			_, err = fmt.Sscan(out, &lines)
			return err
		})
		if _, err := b.run(in.ID, "main", "touch", "/tmp/bye"); err != nil {
			t.Fatal(err)
		}
		b.sink.waitPhase(t, in.ID, cis.Succeeded)
		var want strings.Builder
		for i := range lines {
			fmt.Fprintf(&want, "line %d ends\n", i+1)
		}
		want.WriteString("bye")
		if got := b.logText(in.ID, "main"); got != want.String() {
			t.Errorf("%s: the log has %d bytes in %d lines, want %d in %d", in.Spec.Sandbox, len(got), strings.Count(got, "\n"), want.Len(), lines)
		}
	}
}

// Of a containerd whose state is nobody's to touch, containerd itself writes the logs.
func TestLogByContainerd(t *testing.T) {
	b := newBench(t)
	b.cfg.TaskDir = ""
	b.restart()
	in := instance(cis.Runc, shell("main", "echo out; echo err >&2; printf end"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	b.ensure(in)
	b.sink.waitPhase(t, in.ID, cis.Succeeded)
	// The two streams are pipes of their own, and come in any order.
	if got := b.logText(in.ID, "main"); strings.Replace(got, "err\n", "", 1) != "out\nend" {
		t.Errorf("log %q", got)
	}
}

// A class that the host lacks is refused with the reason, and costs nothing.
func TestClassUnavailable(t *testing.T) {
	b := newBench(t)
	in := b.ensure(instance(cis.Kata, shell("main", "true")))
	st := b.sink.waitPhase(t, in.ID, cis.Rejected)
	if st.Reason != "SandboxClassUnavailable" || st.Message != "the host has no KVM" || !b.sink.hasEvent(in.ID, "SandboxClassUnavailable") {
		t.Errorf("%+v", st)
	}
	if b.meter.started[in.ID] != 0 {
		t.Error("a meter ran")
	}
}

// An org that has a hypervisor of its own gets that one or none: no other, and no weaker class.
func TestOrgKata(t *testing.T) {
	b := newBench(t)
	b.cfg.Handlers[cis.Kata] = "kata-qemu" // which this containerd has not, nor the others
	b.cfg.KataOrgs = map[string]OrgKata{"bank": {Unavailable: "no cloud-hypervisor"}, "shop": {Handler: "kata-fc"}}
	b.cfg.Copying = map[string]bool{"kata-fc": true}
	b.restart()
	scratch := []cis.Volume{{Name: "data", EmptyDir: &cis.EmptyDir{}}}
	for _, c := range []struct {
		org      string
		class    cis.SandboxClass
		volumes  []cis.Volume
		rejected string
		handler  string // that containerd is asked for
	}{
		{org: "bank", class: cis.Kata, rejected: "no cloud-hypervisor"},
		{org: "bank", rejected: "no cloud-hypervisor"}, // the default is kata
		{org: "shop", class: cis.Kata, volumes: scratch, rejected: `volume "data": the virtual machines of kata-fc share no directory`},
		{org: "shop", class: cis.Kata, handler: "kata-fc"},
		{org: "acme", class: cis.Kata, volumes: scratch, handler: "kata-qemu"},
	} {
		in := instance(c.class, shell("main", "true"))
		in.Org, in.Spec.Volumes = c.org, c.volumes
		b.ensure(in)
		if c.rejected != "" {
			if st := b.sink.waitPhase(t, in.ID, cis.Rejected); !strings.Contains(st.Message, c.rejected) {
				t.Errorf("%+v: %+v", c, st)
			}
			continue
		}
		testenv.Eventually(t, 30*time.Second, func() error {
			for _, ev := range b.sink.eventsOf(in.ID) {
				if strings.Contains(ev.Message, `no runtime for "`+c.handler+`" is configured`) {
					return nil
				}
			}
			return fmt.Errorf("events %+v", b.sink.eventsOf(in.ID))
		})
	}
}

// A failing container is restarted with its attempts counted, and its previous log can be read.
func TestRestarts(t *testing.T) {
	b := newBench(t)
	in := b.ensure(instance(cis.Runc, shell("main", "echo try; exit 1")))
	st := b.sink.wait(t, in.ID, "three restarts", func(st cis.Status) bool {
		return len(st.Containers) > 0 && st.Containers[0].RestartCount >= 3 && st.Containers[0].State.Waiting != nil
	})
	c := st.Containers[0]
	if c.State.Waiting.Reason != "CrashLoopBackOff" || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 1 || st.Phase != cis.Running {
		t.Errorf("%+v", st)
	}
	var out strings.Builder
	if err := b.Logs(t.Context(), in.ID, cis.LogRequest{Container: "main", Previous: true}, &out); err != nil || out.String() != "try\n" {
		t.Errorf("previous log %q %v", out.String(), err)
	}
	b.delete(in)
	b.sink.waitPhase(t, in.ID, cis.Failed)
}

// An engine that is killed and started again adopts what runs and restarts nothing.
func TestAdopt(t *testing.T) {
	b := newBench(t)
	for class := range b.cfg.Handlers {
		t.Run(string(class), func(t *testing.T) {
			in := b.ensure(instance(class, shell("main", "trap 'exit 0' TERM; while :; do sleep 0.1; done")))
			before := b.sink.waitPhase(t, in.ID, cis.Running)
			stale := *in
			stale.Status = before
			b.restart(&stale)
			n := len(b.sink.all(in.ID))
			b.sink.wait(t, in.ID, "a report after the restart", func(cis.Status) bool { return len(b.sink.statuses[in.ID]) > n })
			after := b.sink.last(in.ID)
			if after.Containers[0].ContainerID != before.Containers[0].ContainerID || after.Containers[0].RestartCount != 0 || after.Incarnation != 1 ||
				after.IPs[0] != before.IPs[0] || after.Containers[0].ImageID != before.Containers[0].ImageID {
				t.Errorf("before %+v\nafter %+v", before, after)
			}
			// containerd is killed, too: the container goes on, and its end is seen.
			b.env.Kill()
			b.env.Ready()
			b.delete(in)
			st := b.sink.waitPhase(t, in.ID, cis.Succeeded)
			if e := ended(st.Containers[0]); e == nil || e.ExitCode != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// What ended while the engine was away is reported as it ended; a sandbox that nobody knows is removed.
func TestEndWhileAway(t *testing.T) {
	b := newBench(t)
	in := instance(cis.Runc, shell("main", "sleep 2; exit 5"))
	in.Spec.RestartPolicy = corev1.RestartPolicyNever
	b.ensure(in)
	orphan := b.ensure(instance(cis.Runc, shell("main", "sleep 1000")))
	b.sink.waitPhase(t, in.ID, cis.Running)
	b.sink.waitPhase(t, orphan.ID, cis.Running)
	b.stop()
	probe, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		list, err := probe.listContainers(t.Context(), in.ID)
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].State.String() != "CONTAINER_EXITED" {
			return errors.New("still running")
		}
		return nil
	})
	if err := probe.Close(); err != nil {
		t.Error(err)
	}
	b.restart(in)
	st := b.sink.waitPhase(t, in.ID, cis.Failed)
	if e := ended(st.Containers[0]); e == nil || e.ExitCode != 5 || st.Containers[0].RestartCount != 0 {
		t.Errorf("%+v", st)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		list, err := b.listSandboxes(t.Context(), orphan.ID)
		if err == nil && len(list) > 0 {
			err = errors.New("the orphan is still there")
		}
		return err
	})
}

// A sandbox that vanishes is replaced by the next incarnation.
func TestSandboxLost(t *testing.T) {
	b := newBench(t)
	in := b.ensure(instance(cis.Runc, shell("main", "sleep 1000")))
	b.sink.waitPhase(t, in.ID, cis.Running)
	list, err := b.listSandboxes(t.Context(), in.ID)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := b.removeSandbox(t.Context(), list[0].Id); err != nil {
		t.Log(err) // the engine removes it as well, at the same time
	}
	st := b.sink.wait(t, in.ID, "second incarnation", func(st cis.Status) bool {
		return st.Incarnation == 2 && len(st.Containers) > 0 && st.Containers[0].State.Running != nil
	})
	// One restart, or two when a start was tried while the sandbox was going.
	if n := st.Containers[0].RestartCount; n < 1 || n > 2 || !b.sink.hasEvent(in.ID, "SandboxChanged") {
		t.Errorf("%+v", st)
	}
}

// An exec ends when its context does.
func TestExecCancelled(t *testing.T) {
	b := newBench(t)
	in := b.ensure(instance(cis.Runc, shell("main", "sleep 1000")))
	b.sink.waitPhase(t, in.ID, cis.Running)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var out strings.Builder
	err := b.Exec(ctx, in.ID, cis.ExecRequest{Container: "main", Command: []string{"sleep", "777"}, Stdout: &out})
	if err == nil {
		t.Error("no error")
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		ps, err := b.run(in.ID, "main", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
		if err == nil && strings.Contains(ps, "sleep 777") {
			err = errors.New("the command still runs")
		}
		return err
	})
}
