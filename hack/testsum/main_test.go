package main

import (
	"slices"
	"strings"
	"testing"
)

func TestBrief(t *testing.T) {
	var lines []string
	for line := range strings.Lines(`=== RUN   TestX
    x_test.go:1: the first of many
    x_test.go:2: 2
    x_test.go:3: 3
    x_test.go:4: 4
    x_test.go:5: 5
    x_test.go:6: 6
    x_test.go:7: 7
=== NAME  TestX
    x_test.go:8: bad
        because
        2
        3
        4
        5
        too much
    x_test.go:9: ` + strings.Repeat("x", 1000) + `
--- FAIL: TestX (0.00s)
`) {
		lines = append(lines, line)
	}
	got := brief(lines)
	if len(got) != 13 || strings.Contains(got[0], "first") || slices.Contains(got, "        too much") || !slices.Contains(got, "        5") || len(got[12]) != 300 {
		t.Errorf("%d lines: %q", len(got), got)
	}
}
