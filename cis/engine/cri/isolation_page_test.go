package cri

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"cumulet.io/cis"
	"cumulet.io/hack/probe/attempt"
)

// checkPage compares what was seen with the page's table, outcome by outcome: whether something was reached, and not by
// which error it was refused, which differs from kernel to kernel.
func checkPage(t *testing.T, results map[string]map[string]string) {
	t.Helper()
	text, err := os.ReadFile(isolationPage)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- table: written by go test ./cis/engine/cri -run Isolation -update -->\n", "<!-- end of table -->\n"
	before, rest, ok := strings.Cut(string(text), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("docs/isolation.md has no place for the table")
	}
	columns := []string{string(cis.Runc), string(cis.GVisor), string(cis.Kata), privileged}
	was := readTable(old, columns)
	var b strings.Builder
	fmt.Fprintf(&b, "| attempt | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, a := range attempt.All() {
		fmt.Fprintf(&b, "| %s |", a.Name)
		for _, c := range columns {
			now, seen := results[c][a.Name], was[a.Name][c]
			switch {
			case now == "" && seen == "":
				now = "not run"
			case now == "":
				now = seen // this class cannot be had here; what was seen elsewhere stays
			case now == attempt.Reached:
				now = "**reached**"
			}
			if !*update && kindOf(now) != kindOf(seen) {
				t.Errorf("docs/isolation.md says of %q in %s: %q; seen: %q (go test -run Isolation -update)", a.Name, c, seen, now)
			}
			fmt.Fprintf(&b, " %s |", now)
		}
		b.WriteString("\n")
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(isolationPage, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func readTable(text string, columns []string) map[string]map[string]string {
	out := map[string]map[string]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != len(columns)+1 {
			continue
		}
		row := map[string]string{}
		for i, c := range columns {
			row[c] = strings.TrimSpace(cells[i+1])
		}
		out[strings.TrimSpace(cells[0])] = row
	}
	return out
}

func kindOf(outcome string) string {
	if slices.Contains([]string{"", "not run", "**reached**", "its own kernel's"}, outcome) {
		return outcome
	}
	return "refused"
}
