package control_test

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/cis/control"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/sandbox"
	"cumulet.io/internal/problem"
)

// The operator's rule of the weakest class holds whether a class is asked for or not, and is told as an event.
func TestSandboxPolicy(t *testing.T) {
	for _, tc := range []struct {
		name, org string
		asked     cis.SandboxClass
		classes   []cis.SandboxClass
		want      cis.SandboxClass // "" with a reason: rejected
		reason    string
		message   string
	}{
		{name: "asked for and strong enough", org: "acme", asked: cis.GVisor, want: cis.GVisor},
		{name: "the default is what was admitted", org: "acme", want: cis.GVisor},
		{name: "too weak", org: "acme", asked: cis.Runc, reason: "SandboxForbidden", message: `"runc" isolates less than "gvisor", which the operator requires of the instances of "acme" at least; ask for kata or gvisor`},
		{name: "an org with a rule of its own", org: "bank", asked: cis.GVisor, reason: "SandboxForbidden", message: "ask for kata with"},
		{name: "the default is too weak for it", org: "bank", reason: "SandboxForbidden", message: `operator requires "kata" of the instances of "bank" at least; what is missing: kata: the CPU has no virtualisation`},
		{name: "an org that may have anything", org: "lab", asked: cis.Runc, want: cis.Runc},
		{name: "what nobody has is not a matter of the rule", org: "bank", asked: cis.Kata, reason: "SandboxUnavailable", message: "cannot be had here"},
		{name: "runc alone, and none asked for: the engine says", org: "lab", classes: []cis.SandboxClass{cis.Runc}},
		{name: "runc alone, and more required", org: "acme", classes: []cis.SandboxClass{cis.Runc}, reason: "SandboxForbidden", message: `strongest sandbox class here is "runc"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newScripted()
			e.idle = true
			if tc.classes != nil {
				e.classes = tc.classes
			}
			f := start(t, dbPath(t), e, func(c *control.Config) {
				c.Sandbox = sandbox.Policy{Minimum: cis.GVisor, Orgs: map[string]cis.SandboxClass{"bank": cis.Kata, "lab": ""}}
			})
			sp := spec("web")
			sp.Sandbox = tc.asked
			in, _, err := f.Create(t.Context(), tc.org, cis.CreateRequest{Key: "k", Spec: sp})
			if err != nil || in.Status.SandboxClass != tc.want || in.Status.Reason != tc.reason || !strings.Contains(in.Status.Message, tc.message) {
				t.Fatalf("%+v, %v", in, err)
			}
			if (in.Status.Phase == cis.Rejected) != (tc.reason != "") {
				t.Errorf("phase %s", in.Status.Phase)
			}
			evs, err := f.Events(t.Context(), tc.org, in.ID)
			if tc.reason != "" && (err != nil || len(evs) != 1 || evs[0].Reason != tc.reason) {
				t.Errorf("events %+v, %v", evs, err)
			}
		})
	}
}

// What a class cannot do is refused before anything is recorded.
func TestSandboxSupports(t *testing.T) {
	f := start(t, dbPath(t), newScripted(), nil)
	sp := spec("web")
	sp.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net.ipv4.tcp_syncookies", Value: "0"}}}
	_, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "k", Spec: sp})
	var p *problem.Error
	if !errors.As(err, &p) || p.Field != "spec.securityContext.sysctls" {
		t.Fatal(err)
	}
	sp.Sandbox = cis.Runc
	f.create(t, "other")
	if _, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "k", Spec: sp}); err != nil {
		t.Fatal(err)
	}
}

// Placement counts what a sandbox takes beside what its instance may use; an org's quota does not.
func TestOverheadCounts(t *testing.T) {
	e := newScripted()
	e.idle = true
	size := cis.SizeOf(&cis.Spec{Containers: spec("web").Containers})
	e.capacity = engine.Capacity{MemoryBytes: (2*size.MemoryMiB + 1) << 20}
	f := start(t, dbPath(t), e, func(c *control.Config) { c.Quota.MemoryMiB = 2 * size.MemoryMiB })
	sp := spec("web")
	if _, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "a", Spec: sp}); err != nil {
		t.Fatal(err)
	}
	_, _, err := f.Create(t.Context(), "acme", cis.CreateRequest{Key: "b", Spec: sp})
	if !errors.Is(err, problem.ErrExhausted) || !strings.Contains(err.Error(), "there is no room") {
		t.Errorf("the second one's overhead was not counted: %v", err)
	}
}
