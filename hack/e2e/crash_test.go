package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/hack/platform"
	"cumulet.io/internal/testenv"
)

// TestCrashes kills every process of the platform at random moments and starts it again, while instances come, work
// and go: no instance may be lost, doubled or leaked, no log line missing or twice, and the bill must be exact.
// CRASH_SEED repeats a run's choices; CRASH_KILLS sets their number.
func TestCrashes(t *testing.T) {
	crashes(t, platform.Options{Kubernetes: true}, "runc", "gvisor")
}

// TestKataCrashes is the same with pods in virtual machines by emulation.
func TestKataCrashes(t *testing.T) {
	crashes(t, kataPlatform(t), "kata")
}

func crashes(t *testing.T, o platform.Options, classes ...string) {
	t.Helper()
	seed := setting(t, "CRASH_SEED", uint64(time.Now().UnixNano()))
	kills := int(setting(t, "CRASH_KILLS", 10)) //nolint:gosec // small
	t.Logf("CRASH_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	p := platform.Start(t, o)
	image := p.Push("demo/hello:1")
	p.Login()
	secret(t, p)

	// Some workers end at once, some while processes are killed, some after that.
	const pause = "50ms"
	want := map[string]int{} // pod name to the lines it prints; 0 serves until deleted
	apply := func(n int) {
		class := classes[n%len(classes)]
		name := fmt.Sprintf("work-%d", n)
		lines := 1 + rnd.IntN(400)
		want[name] = lines
		m := pod(name, image, class, fmt.Sprintf("work, --lines, '%d', --every, %s", lines, pause), "  restartPolicy: Never\n")
		if n%3 == 0 {
			name = fmt.Sprintf("serve-%d", n)
			want[name] = 0
			m += pod(name, image, class, "serve", "")
		}
		run(t, p, m, "apply", "-f", "-")
	}
	victims := append(platform.Roles(), "containerd", "filebeat")
	var downBefore []string
	deleted := map[string]bool{} // while processes are killed; what of such a pod ever ran is open
	for n := range kills {
		apply(n)
		if name := fmt.Sprintf("serve-%d", n-3); n%6 == 3 {
			run(t, p, "", "delete", "pod", name, "--wait=false")
			deleted[name] = true
		}
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond) // the random moment itself
		var down []string
		for range 1 + rnd.IntN(4)/3 { // now and then two at once
			v := victims[rnd.IntN(len(victims))]
			// Who alone has heard how a container ended must not die with the only other one, nor before that is back (docs/cis.md, limits).
			if v == "containerd" && slices.Contains(slices.Concat(down, downBefore), "control") || v == "control" && slices.Contains(down, "containerd") {
				continue
			}
			killed := !slices.Contains(down, v) && p.Kill(v)
			t.Logf("kill -9 %s: %v", v, killed)
			if killed {
				down = append(down, v)
			}
		}
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		for _, v := range down {
			if v != "containerd" && v != "filebeat" { // those two are started again by the server
				p.Run(v)
			}
		}
		downBefore = down
	}
	for _, r := range platform.Roles() {
		p.Ready(r)
	}
	for name, n := range want {
		if deleted[name] {
			continue
		}
		cond := "--for=condition=Ready"
		if n > 0 {
			cond = "--for=jsonpath={.status.phase}=Succeeded"
		}
		if _, err := p.Kubectl("", "wait", cond, "pod/"+name, "--timeout=120s"); err != nil {
			t.Error(err)
			t.Logf("%s", run(t, p, "", "describe", "pod", name))
			out, err := p.Cis("describe", name)
			t.Logf("%s %v", out, err)
		}
	}

	// One instance for each pod, never restarted.
	byName := map[string]cis.Instance{}
	for _, in := range instances(t, p) {
		if _, twice := byName[in.Spec.Name]; twice {
			t.Errorf("%s has two instances", in.Spec.Name)
		}
		byName[in.Spec.Name] = in
		if c := in.Status.Containers; len(c) != 1 && !deleted[in.Spec.Name] || len(c) > 0 && c[0].RestartCount != 0 {
			t.Errorf("%s: %+v: something ran twice", in.Spec.Name, in.Status.Containers)
		}
	}
	for name := range want {
		if _, ok := byName[name]; !ok && !deleted[name] {
			t.Errorf("%s has no instance", name)
		}
	}
	run(t, p, "", "delete", "pod", "--all", "--timeout=120s")
	testenv.Eventually(t, 2*time.Minute, func() error {
		if out := mustCis(t, p, "ps"); strings.Contains(out, "i-") {
			return fmt.Errorf("instances are left:\n%s", out)
		}
		return nil
	})
	testenv.Eventually(t, 2*time.Minute, func() error { return p.Leftovers() })

	for name, n := range want {
		if deleted[name] {
			continue
		}
		if n == 0 {
			if got := mustCis(t, p, "logs", byName[name].ID); strings.Count(got, "serving on") != 1 {
				t.Errorf("%s began %d times", name, strings.Count(got, "serving on"))
			}
			continue
		}
		testenv.Eventually(t, time.Minute, func() error {
			if got := mustCis(t, p, "logs", byName[name].ID); got != numbered(n) {
				return fmt.Errorf("%s: the log is not its %d lines in order, but %d bytes in %d lines", name, n, len(got), strings.Count(got, "\n"))
			}
			return nil
		})
	}
	// The bill is complete when the last meter event has come through Filebeat and the store.
	testenv.Eventually(t, 2*time.Minute, func() error { return checkBill(t, p) })
	mustCis(t, p, "bill", "--reconcile")
}

// checkBill compares what is billed with what the engine reported of each instance's life.
func checkBill(t *testing.T, p *platform.Platform) error {
	var bill struct {
		ByInstance []struct {
			Instance       string `json:"instance"`
			StartupSeconds int64  `json:"startupSeconds"`
			RunningSeconds int64  `json:"runningSeconds"`
			Estimated      bool   `json:"estimated"`
		} `json:"byInstance"`
	}
	out, err := p.Cis("bill", "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), &bill); err != nil {
		return err
	}
	var errs []error
	billed := map[string]int64{}
	for _, i := range bill.ByInstance {
		billed[i.Instance] = i.StartupSeconds + i.RunningSeconds
		if i.Estimated {
			errs = append(errs, fmt.Errorf("%s is estimated, though it was stopped in order", i.Instance))
		}
	}
	for _, in := range instances(t, p) {
		var life time.Duration
		if !in.Status.StartedAt.IsZero() { // else it was deleted before it held anything
			life = in.Status.EndedAt.Sub(in.Status.StartedAt)
		}
		if got, exact := billed[in.ID], int64(math.Ceil(life.Seconds())); got < exact-1 || got > exact+1 {
			errs = append(errs, fmt.Errorf("%s (%s) lived %v and is billed %d s: started %v, ended %v, %+v", in.Spec.Name, in.ID, life, got,
				in.Status.StartedAt, in.Status.EndedAt, in.Status.Containers))
		}
	}
	return errors.Join(errs...)
}
