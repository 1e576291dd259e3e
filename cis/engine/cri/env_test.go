package cri

import (
	"slices"
	"testing"

	"cumulet.io/cis"
)

func TestExpand(t *testing.T) {
	known := map[string]string{"A": "1", "B": "two", "EMPTY": "", "DOLLAR": "$(A)"}
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(B)z", "x1ytwoz"},
		{"$(EMPTY)", ""},
		{"$(MISSING)", "$(MISSING)"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$$$$(A)", "$$(A)"},
		{"$A", "$A"},
		{"$", "$"},
		{"a$", "a$"},
		{"$(A", "$(A"},
		{"$(A$(B)", "$(A$(B)"},
		{"$()", "$()"},
		{"$(DOLLAR)", "$(A)"}, // a value is not expanded again
		{"$ (A)", "$ (A)"},
	} {
		if got := expand(c.in, known); got != c.want {
			t.Errorf("expand(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$(A) $$ $(")
	f.Fuzz(func(t *testing.T, s string) {
		if got := expand(s, nil); len(got) > len(s) {
			t.Errorf("expand(%q) grew to %q", s, got)
		}
	})
}

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
