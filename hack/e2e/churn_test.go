package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"cumulet.io/cis"
	"cumulet.io/hack/platform"
	"cumulet.io/internal/testenv"
)

// TestChurn runs many instances that come and go, sixteen at a time: each must end as its program did, say all that it
// said, be billed for its life, and leave nothing. CHURN_INSTANCES sets their number; CHURN_SEED repeats a run's choices.
func TestChurn(t *testing.T) {
	n, seed := int(setting(t, "CHURN_INSTANCES", 40)), setting(t, "CHURN_SEED", uint64(time.Now().UnixNano())) //nolint:gosec // small, positive
	t.Logf("CHURN_SEED=%d", seed)
	p := platform.Start(t, platform.Options{})
	image := p.Push("demo/hello:1")
	p.Login()

	// A program says its lines, is silent now and then, and ends with a code; or it is removed while it works.
	type program struct {
		lines, code int
		every       time.Duration
		removed     bool
	}
	programs := map[string]program{}
	rnd := rand.New(rand.NewPCG(seed, 0))
	var group errgroup.Group
	group.SetLimit(16)
	for i := range n {
		name, class := fmt.Sprintf("churn-%d", i), "runc"
		if i%8 == 7 {
			class = "gvisor"
		}
		w := program{lines: 1 + rnd.IntN(300), code: rnd.IntN(4), removed: rnd.IntN(10) == 0}
		after := time.Duration(rnd.IntN(1000)) * time.Millisecond
		switch {
		case w.removed:
			w.lines, w.every = 1000, 100*time.Millisecond
		case rnd.IntN(2) == 0:
			w.lines, w.every = 1+rnd.IntN(3), time.Duration(rnd.IntN(2000))*time.Millisecond
		}
		programs[name] = w
		group.Go(func() error {
			args := []string{"--name", name, "--sandbox", class, image, "work", "--lines", fmt.Sprint(w.lines), "--every", w.every.String(), "--exit", fmt.Sprint(w.code)}
			if w.removed {
				out, err := p.Cis(append([]string{"run", "--detach"}, args...)...)
				if err == nil {
					time.Sleep(after) // its random moment
					_, err = p.Cis("rm", strings.TrimSpace(out))
				}
				return err
			}
			code := 0
			out, err := p.Cis(append([]string{"run"}, args...)...)
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				return err
			}
			if code != w.code || out != numbered(w.lines) {
				return fmt.Errorf("%s: cis run ended with %d, want %d, after %d bytes in %d lines, want %d: %w", name, code, w.code, len(out), strings.Count(out, "\n"), w.lines, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	ended := map[string]cis.Instance{}
	testenv.Eventually(t, 5*time.Minute, func() error {
		live := 0
		for _, in := range instances(t, p) {
			if !in.Status.Phase.Final() {
				live++
				continue
			}
			ended[in.ID] = in
		}
		if live > 0 || len(ended) != n {
			return fmt.Errorf("%d of %d instances have ended, %d live", len(ended), n, live)
		}
		return nil
	})
	testenv.Eventually(t, 2*time.Minute, func() error { return p.Leftovers() })
	for id, in := range ended {
		w, ok := programs[in.Spec.Name]
		if delete(programs, in.Spec.Name); !ok {
			t.Errorf("%s (%s) is there twice, or nobody's", in.Spec.Name, id)
		}
		if w.removed {
			continue
		}
		if c := in.Status.Containers; len(c) != 1 || c[0].State.Terminated == nil || int(c[0].State.Terminated.ExitCode) != w.code || c[0].RestartCount != 0 {
			t.Errorf("%s (%s) ended as %+v, want code %d", in.Spec.Name, id, c, w.code)
		}
		testenv.Eventually(t, 2*time.Minute, func() error {
			if got := mustCis(t, p, "logs", id); got != numbered(w.lines) {
				return fmt.Errorf("%s (%s): the log is not its %d lines in order, but %d bytes in %d lines", in.Spec.Name, id, w.lines, len(got), strings.Count(got, "\n"))
			}
			return nil
		})
	}
	testenv.Eventually(t, 2*time.Minute, func() error { return checkBill(t, p) })
	mustCis(t, p, "bill", "--reconcile")
}
