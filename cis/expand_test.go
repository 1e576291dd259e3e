package cis

import (
	"slices"
	"strings"
	"testing"
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
		{"$(A$$", "$(A$"},
		{"$(A$(B)", "$(A$(B)"},
		{"$()", "$()"},
		{"$(DOLLAR)", "$(A)"}, // a value is not expanded again
		{"$ (A)", "$ (A)"},
	} {
		if got := Expand(c.in, Known(known)); got != c.want {
			t.Errorf("Expand(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	if got := ExpandAll([]string{"$(A)", "b"}, known); !slices.Equal(got, []string{"1", "b"}) || ExpandAll(nil, known) != nil {
		t.Errorf("ExpandAll gives %q", got)
	}
	if got := References("$(A) $$(B) $(C"); !slices.Equal(got, []string{"A"}) {
		t.Errorf("references %q", got)
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "$", "$(", "$()", "$(A)", "$$(A)", "a$(A)b$(B)", "$(A", "$$$(A)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := Expand(s, Known(nil)); len(got) > len(s) {
			t.Fatalf("%q grew to %q", s, got)
		}
		known := Known(map[string]string{"A": "1$(B)$$2"})
		once := Expand(s, known)
		// A template that is resolved later gives the same, whatever is put off.
		template := ExpandTemplate(s, Known(map[string]string{"A": "$(A)"}))
		if again := Expand(template, known); again != once {
			t.Fatalf("%q: %q at once, %q by way of %q", s, once, again, template)
		}
		early := ExpandTemplate(s, func(name string) (string, bool) {
			v, ok := known(name)
			return EscapeTemplate(v), ok
		})
		if again := Expand(early, known); again != once && !strings.Contains(s, "$(B)") {
			t.Fatalf("%q: %q at once, %q by way of %q", s, once, again, early)
		}
	})
}
