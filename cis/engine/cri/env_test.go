package cri

import (
	"slices"
	"testing"

	"cumulet.io/cis"
)

func TestEnviron(t *testing.T) {
	vars := []cis.EnvVar{
		{Name: "A", Value: "$(B)", Expand: true}, // B comes later
		{Name: "B", Value: "b"},
		{Name: "C", Value: "$(B)$(IP)", Expand: true},
		{Name: "RAW", Value: "$(B)"},
		{Name: "IP", Field: "status.podIP"},
		{Name: "D", Value: "$(IP)", Expand: true},
		{Name: "B", Value: "again"},
	}
	envs, known := environ(vars, envFields([]string{"10.0.0.2", "fd00::2"}, "192.0.2.1"))
	var got []string
	for _, e := range envs {
		got = append(got, e.Key+"="+string(e.Value))
	}
	want := []string{"A=$(B)", "B=again", "C=b$(IP)", "RAW=$(B)", "IP=10.0.0.2", "D=10.0.0.2"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if known["B"] != "again" || known["D"] != "10.0.0.2" {
		t.Errorf("known %v", known)
	}
}
