package provider

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"cumulet.io/cis"
)

func TestHoldBack(t *testing.T) {
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	waiting := func(message string) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating", Message: message}}}}
	}
	running := []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	for _, c := range []struct {
		name  string
		base  corev1.PodStatus
		st    cis.Status
		wrote time.Time
		age   time.Duration
		want  time.Duration
	}{
		{"recorded", corev1.PodStatus{}, cis.Status{Phase: cis.Pending}, time.Time{}, 0, startupQuiet},
		{"starts", corev1.PodStatus{}, cis.Status{Phase: cis.Starting, Containers: waiting("")}, time.Time{}, startupQuiet / 5, startupQuiet * 4 / 5},
		{"starts for long", corev1.PodStatus{}, cis.Status{Phase: cis.Starting}, time.Time{}, startupQuiet, 0},
		{"another process wrote its status", corev1.PodStatus{StartTime: &metav1.Time{Time: made}}, cis.Status{Phase: cis.Starting}, time.Time{}, 0, 0},
		{"has a new status", corev1.PodStatus{StartTime: &metav1.Time{Time: made}}, cis.Status{Phase: cis.Starting}, made, time.Second, startupEvery - time.Second},
		{"has an old status", corev1.PodStatus{StartTime: &metav1.Time{Time: made}}, cis.Status{Phase: cis.Starting}, made, startupEvery, 0},
		{"has a new status and runs", corev1.PodStatus{StartTime: &metav1.Time{Time: made}}, cis.Status{Phase: cis.Running}, made, time.Second, 0},
		{"in trouble", corev1.PodStatus{}, cis.Status{Phase: cis.Starting, Containers: waiting("no such image")}, time.Time{}, 0, 0},
		{"init container runs", corev1.PodStatus{}, cis.Status{Phase: cis.Starting, InitContainers: running}, time.Time{}, 0, 0},
		{"runs", corev1.PodStatus{}, cis.Status{Phase: cis.Running}, time.Time{}, 0, 0},
		{"rejected", corev1.PodStatus{}, cis.Status{Phase: cis.Rejected}, time.Time{}, 0, 0},
		{"another clock", corev1.PodStatus{}, cis.Status{Phase: cis.Pending}, time.Time{}, -time.Hour, 0},
	} {
		if got := holdBack(&c.base, &cis.Instance{CreatedAt: made, Status: c.st}, c.wrote, made.Add(c.age)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
