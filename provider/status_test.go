package provider

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

func running(name string, ready bool) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, Image: "x", ContainerID: "id-" + name, Ready: ready, Started: new(true),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
}

func ended0(name string, code int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, Image: "x", ContainerID: "id-" + name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
}

// line sums up a status.
func line(st corev1.PodStatus) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s", st.Phase)
	if st.Reason != "" {
		fmt.Fprintf(&s, " %s", st.Reason)
	}
	for _, c := range append(append([]corev1.ContainerStatus(nil), st.InitContainerStatuses...), st.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil:
			fmt.Fprintf(&s, " %s=%s", c.Name, c.State.Waiting.Reason)
		case c.State.Running != nil:
			fmt.Fprintf(&s, " %s=running", c.Name)
		default:
			fmt.Fprintf(&s, " %s=%d", c.Name, c.State.Terminated.ExitCode)
		}
	}
	s.WriteString(" |")
	for _, kind := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady, corev1.PodScheduled} {
		for _, c := range st.Conditions {
			if c.Type == kind {
				fmt.Fprintf(&s, " %s", c.Status)
				if c.Reason != "" {
					fmt.Fprintf(&s, "(%s)", c.Reason)
				}
			}
		}
	}
	return s.String()
}

func TestPodStatus(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i", Image: "x"}}, Containers: []corev1.Container{{Name: "a", Image: "x"}, {Name: "b", Image: "x"}}}}
	up := &corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{running("a", true), running("b", true)}}
	ips := []string{"10.0.0.1", "fd00::1"}
	for _, tt := range []struct {
		name string
		base *corev1.PodStatus
		st   cis.Status
		want string
	}{
		{"new", nil, cis.Status{Phase: cis.Pending},
			"Pending i=PodInitializing a=PodInitializing b=PodInitializing | False False(ContainersNotInitialized) False(ContainersNotReady) False(ContainersNotReady) True"},
		{"init runs", nil, cis.Status{Phase: cis.Starting, IPs: ips, InitContainers: []corev1.ContainerStatus{running("i", false)}},
			"Pending i=running a=PodInitializing b=PodInitializing | True False(ContainersNotInitialized) False(ContainersNotReady) False(ContainersNotReady) True"},
		{"one runs, one is pulled", nil, cis.Status{Phase: cis.Starting, IPs: ips, Initialized: true, InitContainers: []corev1.ContainerStatus{ended0("i", 0)}, Containers: []corev1.ContainerStatus{running("a", true)}},
			"Pending i=0 a=running b=ContainerCreating | True True False(ContainersNotReady) False(ContainersNotReady) True"},
		{"runs", nil, cis.Status{Phase: cis.Running, IPs: ips, Initialized: true, Ready: true, InitContainers: []corev1.ContainerStatus{ended0("i", 0)}, Containers: []corev1.ContainerStatus{running("a", true), running("b", true)}},
			"Running i=0 a=running b=running | True True True True True"},
		{"stops", nil, cis.Status{Phase: cis.Stopping, Reason: "Deleted", IPs: ips, Initialized: true, InitContainers: []corev1.ContainerStatus{ended0("i", 0)}, Containers: []corev1.ContainerStatus{running("a", false), ended0("b", 143)}},
			"Running i=0 a=running b=143 | True True False(ContainersNotReady) False(ContainersNotReady) True"},
		{"succeeded", nil, cis.Status{Phase: cis.Succeeded, IPs: ips, Initialized: true, InitContainers: []corev1.ContainerStatus{ended0("i", 0)}, Containers: []corev1.ContainerStatus{ended0("a", 0), ended0("b", 0)}},
			"Succeeded i=0 a=0 b=0 | False True(PodCompleted) False(PodCompleted) False(PodCompleted) True"},
		{"failed in init", nil, cis.Status{Phase: cis.Failed, InitContainers: []corev1.ContainerStatus{ended0("i", 1)}},
			"Failed i=1 a=PodInitializing b=PodInitializing | False False(PodFailed) False(PodFailed) False(PodFailed) True"},
		{"rejected", nil, cis.Status{Phase: cis.Rejected, Reason: "SandboxUnavailable", Message: "no"},
			"Failed SandboxUnavailable i=PodInitializing a=PodInitializing b=PodInitializing | False False(PodFailed) False(PodFailed) False(PodFailed) True"},
		{"node lost", up, cis.Status{Phase: cis.Failed, Reason: "NodeLost", Initialized: true, EndedAt: time.Unix(9, 0)},
			"Failed NodeLost i=ContainerCreating a=137 b=137 | False True False(PodFailed) False(PodFailed) True"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := tt.base
			if base == nil {
				base = &corev1.PodStatus{}
			}
			got := podStatus(pod, base, &cis.Instance{Status: tt.st, CreatedAt: time.Unix(5, 0)}, time.Unix(7, 0))
			if l := line(got); l != tt.want {
				t.Errorf("got  %s\nwant %s", l, tt.want)
			}
			if len(tt.st.IPs) > 0 && (got.PodIP != "10.0.0.1" || len(got.PodIPs) != 2) {
				t.Errorf("addresses %v", got.PodIPs)
			}
			if got.StartTime == nil || got.StartTime.Unix() != 5 {
				t.Errorf("start %v", got.StartTime)
			}
		})
	}
}

func TestConditionTimesChangeWithTheirStatusOnly(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}}
	first := podStatus(pod, &corev1.PodStatus{}, &cis.Instance{CreatedAt: time.Unix(5, 0), Status: cis.Status{Phase: cis.Pending}}, time.Unix(10, 0))
	second := podStatus(pod, &first, &cis.Instance{Status: cis.Status{Phase: cis.Running, IPs: []string{"10.0.0.1"}, Initialized: true, Ready: true, Containers: []corev1.ContainerStatus{running("a", true)}}}, time.Unix(20, 0))
	for _, c := range second.Conditions {
		want := int64(20)
		if c.Type == corev1.PodScheduled || c.Type == corev1.PodInitialized {
			want = 10
		}
		if c.LastTransitionTime.Unix() != want {
			t.Errorf("%s changed at %v", c.Type, c.LastTransitionTime.Unix())
		}
	}
	if patch, err := statusPatch("u", &second, podAgain(t, &second), nil, nil); err != nil || patch != nil {
		t.Errorf("a patch of nothing: %s %v", patch, err)
	}
}

func podAgain(t *testing.T, st *corev1.PodStatus) *corev1.PodStatus {
	t.Helper()
	again := st.DeepCopy()
	again.StartTime = &metav1.Time{Time: st.StartTime.Add(300 * time.Millisecond)} // the API keeps seconds
	return again
}

func TestErrdefs(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("a: %w", fmt.Errorf("b: %w", err)) }
	if err := asErrdefs(wrapped(problem.New(problem.ErrNotFound, "x"))); !errdefs.IsNotFound(err) {
		t.Errorf("%v is not not-found", err)
	}
	if err := asErrdefs(wrapped(problem.Invalid("f", "r", 1))); !errdefs.IsInvalidInput(err) {
		t.Errorf("%v is not invalid input", err)
	}
	exit, ok := asErrdefs(wrapped(utilexec.CodeExitError{Err: errors.New("x"), Code: 4})).(utilexec.CodeExitError) //nolint:errorlint // as the library does
	if !ok || exit.Code != 4 {
		t.Errorf("exit code: %v", exit)
	}
	if err := asErrdefs(errors.New("other")); errdefs.IsNotFound(err) || errdefs.IsInvalidInput(err) || asErrdefs(nil) != nil {
		t.Error(err)
	}
}

func TestRefusalsGrowAndEnd(t *testing.T) {
	r, now, yes := newRefusals(), time.Unix(1000, 0), true
	pod := func(i int) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: apitypes.UID(fmt.Sprint(i)), OwnerReferences: []metav1.OwnerReference{{UID: "set", Controller: &yes}}}}
	}
	for i, want := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second} {
		if d := r.delay(pod(i), now); d != want {
			t.Errorf("pod %d waits %v, not %v", i, d, want)
		}
		if d := r.delay(pod(i), now.Add(want)); d != 0 && want > 0 {
			t.Errorf("pod %d still waits %v", i, d)
		}
	}
	r.forget(pod(9))
	if d := r.delay(pod(9), now); d != 0 {
		t.Errorf("waits %v after a success", d)
	}
	if d := r.delay(&corev1.Pod{}, now); d != 0 {
		t.Errorf("a pod of nobody waits %v", d)
	}
}
