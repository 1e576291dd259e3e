package cis

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestDefaulted(t *testing.T) {
	s := Spec{
		Name: strings.Repeat("a", 62) + ".b",
		Containers: []Container{{
			Image: "busybox", Ports: []corev1.ContainerPort{{ContainerPort: 1}},
			Resources:      corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi")}, Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{}}},
			Lifecycle:      &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{}}},
		}},
		Volumes: []Volume{{Name: "v", Files: &FilesVolume{Files: []File{{Path: "a"}, {Path: "b", Mode: 0o400}}}}},
	}
	before, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	d := s.Defaulted()
	c := d.Containers[0]
	cpu, memory := c.Resources.Requests["cpu"], c.Resources.Requests["memory"]
	for what, pair := range map[string][2]any{
		"restart policy":  {d.RestartPolicy, corev1.RestartPolicyAlways},
		"grace":           {*d.GraceSeconds, int64(30)},
		"hostname":        {d.Hostname, strings.Repeat("a", 62)},
		"pull policy":     {c.ImagePullPolicy, corev1.PullAlways},
		"message path":    {c.TerminationMessagePath, "/dev/termination-log"},
		"message policy":  {c.TerminationMessagePolicy, corev1.TerminationMessageReadFile},
		"protocol":        {c.Ports[0].Protocol, corev1.ProtocolTCP},
		"cpu request":     {cpu.String(), "1"},
		"memory request":  {memory.String(), "1Gi"},
		"probe period":    {c.ReadinessProbe.PeriodSeconds, int32(10)},
		"probe path":      {c.ReadinessProbe.HTTPGet.Path, "/"},
		"hook scheme":     {c.Lifecycle.PreStop.HTTPGet.Scheme, corev1.URISchemeHTTP},
		"file mode":       {d.Volumes[0].Files.Files[0].Mode, int32(0o644)},
		"given file mode": {d.Volumes[0].Files.Files[1].Mode, int32(0o400)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %v, want %v", what, pair[0], pair[1])
		}
	}
	if after, err := json.Marshal(s); err != nil || string(after) != string(before) {
		t.Errorf("the spec itself changed to %s, %v", after, err)
	}
	if again := d.Defaulted(); !reflect.DeepEqual(again, d) {
		t.Error("not idempotent")
	}
}

func TestDefaultPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"busybox": corev1.PullAlways, "busybox:latest": corev1.PullAlways, "busybox:1.36": corev1.PullIfNotPresent,
		"localhost:5000/a": corev1.PullAlways, "a@sha256:" + strings.Repeat("0", 64): corev1.PullIfNotPresent,
		"a:latest@sha256:" + strings.Repeat("0", 64): corev1.PullAlways, "Not An Image": corev1.PullIfNotPresent,
	} {
		if got := defaultPullPolicy(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestRedacted(t *testing.T) {
	s := Spec{
		InitContainers: []Container{{Env: []EnvVar{{Name: "A", Value: "topsecret", Secret: true}}}},
		Containers:     []Container{{Env: []EnvVar{{Name: "A", Value: "plain"}, {Name: "B", Value: "topsecret", Secret: true}}}},
		Volumes: []Volume{
			{Name: "s", Files: &FilesVolume{Secret: true, Files: []File{{Path: "a", Data: []byte("topsecret")}}}},
			{Name: "p", Files: &FilesVolume{Files: []File{{Path: "a", Data: []byte("plain")}}}},
			{Name: "e", EmptyDir: &EmptyDir{}}},
		RegistryAuth: []RegistryAuth{{Server: "example.org", Username: "someone", Password: "topsecret"}},
	}
	r := s.Redacted()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "topsecret") || strings.Contains(string(text), "dG9wc2VjcmV0") {
		t.Errorf("a secret is left: %s", text)
	}
	if r.Containers[0].Env[0].Value != "plain" || string(r.Volumes[1].Files.Files[0].Data) != "plain" || r.RegistryAuth[0].Username != "someone" {
		t.Errorf("too much is gone: %s", text)
	}
	if s.Containers[0].Env[1].Value != "topsecret" || string(s.Volumes[0].Files.Files[0].Data) != "topsecret" || s.RegistryAuth[0].Password != "topsecret" {
		t.Error("the spec itself changed")
	}
}
