package strictyaml

import (
	"strings"
	"testing"
	"time"
)

type inner struct {
	Listen  string        `yaml:"listen"`
	Timeout time.Duration `yaml:"timeout"`
}

type outer struct {
	Name  string           `yaml:"name"`
	One   inner            `yaml:"one"`
	Many  []inner          `yaml:"many"`
	ByKey map[string]inner `yaml:"byKey"`
}

func TestDecode(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"good", "name: x\none: {listen: a, timeout: 3s}\nmany: [{listen: b}]\nbyKey: {k: {listen: c}}", ""},
		{"empty", "", ""},
		{"near", "one:\n  lisen: a\n", `c.yaml:2:3: unknown key "one.lisen"; did you mean "listen"?`},
		{"far", "zzzzzzzz: 1\n", `unknown key "zzzzzzzz"; known here: byKey, many, name, one`},
		{"in list", "many:\n- listen: a\n- timeot: 1s\n", `c.yaml:3:3: unknown key "many[1].timeot"; did you mean "timeout"?`},
		{"in map", "byKey:\n  k:\n    liste: a\n", `unknown key "byKey.k.liste"`},
		{"both", "nam: 1\nony: {}\n", `did you mean "one"?`},
		{"type", "one: {timeout: soon}\n", "cannot unmarshal"},
		{"syntax", "a: [", "c.yaml: yaml:"},
		{"two documents", "name: x\n---\nname: y\n", "c.yaml: it must be one YAML document"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var o outer
			err := Decode("c.yaml", []byte(tc.in), &o)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: x\none: {listen: a}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var o outer
		_ = Decode("f", data, &o) //nolint:errcheck // only that it returns
	})
}
