package config

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// The operator's page has every key, no other, and the defaults that hold.
func TestOperationsPage(t *testing.T) {
	text, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-zA-Z]+(?:\\.[a-zA-Z]+)*)` \\| (.*?) \\|")
	_, table, ok := strings.Cut(string(text), "| key | default | meaning |")
	if !ok {
		t.Fatal("the page has no table of keys")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		documented[m[1]] = m[2]
	}
	keys := map[string]string{}
	collect("", reflect.TypeFor[Config](), keys)
	for key := range maps.Values(keys) {
		if _, ok := documented[key]; !ok {
			t.Errorf("%s is not in docs/operations.md", key)
		}
	}
	for key := range documented {
		if !slices.Contains(slices.Collect(maps.Values(keys)), key) {
			t.Errorf("docs/operations.md has %s, which is no key", key)
		}
	}
	values := defaults(t)
	for key, says := range documented {
		want := values[key]
		if want == "" || want == "{}" || want == "[]" { // none, or what follows from other keys
			if says != "none" && !strings.Contains(says, "`") {
				t.Errorf("docs/operations.md: the default of %s is %q; nothing is set", key, says)
			}
			continue
		}
		if strings.Trim(says, "`") != want {
			t.Errorf("docs/operations.md: the default of %s is %q, not %q", key, says, want)
		}
	}
}

// defaults gives the values of Default by key, as text.
func defaults(t *testing.T) map[string]string {
	t.Helper()
	data, err := yaml.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
			if v := n.Content[i+1]; v.Kind == yaml.MappingNode && len(v.Content) > 0 {
				walk(key, v)
			} else {
				out[key] = strings.Replace(v.Value, "m0s", "m", 1) // 5m0s reads as 5m
			}
		}
	}
	walk("", root.Content[0])
	return out
}
