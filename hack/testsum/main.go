// Command testsum reads `go test -json` on standard input, prints a line for each package, the output of what failed
// and the reason of each skip, what failed once more in short, and closes with the counts. Its exit code is 1 when anything
// failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// event is a line of test2json (go doc test2json).
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

type result struct {
	passed, failed int
	skips          []string
	failures       []string
	output         map[string][]string // by package/test
}

// maxKept bounds the lines kept of one test's output: its beginning is cut.
const maxKept = 400

func main() {
	r := &result{output: map[string][]string{}}
	if err := r.read(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	if len(r.skips) > 0 {
		fmt.Println("\nskipped:")
		slices.Sort(r.skips)
		for _, s := range r.skips {
			fmt.Println("  " + s)
		}
	}
	if len(r.failures) > 0 {
		fmt.Println("\nfailed:")
		for _, s := range r.failures {
			fmt.Println("  " + s)
		}
	}
	fmt.Printf("\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skips))
	if r.failed > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

func (r *result) read(in io.Reader, out io.Writer) error {
	sc := bufio.NewScanner(in)
	sc.Buffer(make([]byte, 64<<10), 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Fprintln(out, sc.Text()) // the tool's own words, as a compiler's error
			continue
		}
		r.take(e, out)
	}
	return sc.Err()
}

func (r *result) take(e event, out io.Writer) {
	pkg := e.Package
	if pkg == "" {
		pkg = e.ImportPath
	}
	key := pkg + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		if n := len(r.output[key]); n > maxKept {
			r.output[key] = r.output[key][n-maxKept:]
		}
	case "pass":
		if e.Test != "" {
			r.passed++
		} else {
			fmt.Fprintf(out, "ok    %-60s %6.1fs\n", pkg, e.Elapsed)
		}
		delete(r.output, key)
	case "skip":
		if e.Test != "" {
			r.skips = append(r.skips, pkg+" "+e.Test+": "+reason(r.output[key]))
		}
		delete(r.output, key)
	case "fail", "build-fail":
		// A failed test is counted; a package that failed with no failed test (a panic, a build, a leak) is one too.
		if e.Test != "" || !r.failedBefore(pkg) {
			r.failed++
			r.output[pkg+"\x00"] = nil
		}
		name := strings.TrimSpace(key)
		if e.Test != "" {
			r.failures = append(r.failures, name)
			r.failures = append(r.failures, brief(r.output[key])...)
		}
		fmt.Fprintf(out, "FAIL  %-60s %6.1fs\n%s\n", name, e.Elapsed, strings.Join(r.output[key], ""))
	}
}

func (r *result) failedBefore(pkg string) bool {
	_, ok := r.output[pkg+"\x00"]
	return ok
}

// place is how a message of a test's begins.
var place = regexp.MustCompile(`^\s*\S+\.go:\d+: `)

// brief is the beginning of each of a test's last messages: which of them are errors, go test does not say.
func brief(lines []string) []string {
	const messages, most, width = 8, 6, 300
	var all [][]string
	for _, l := range lines {
		switch l = strings.TrimRight(l, "\n"); {
		case place.MatchString(l):
			all = append(all, nil)
		case len(all) == 0 || !strings.HasPrefix(l, "        ") || len(all[len(all)-1]) == most:
			continue
		}
		m := &all[len(all)-1]
		*m = append(*m, l[:min(len(l), width)])
	}
	return slices.Concat(all[max(0, len(all)-messages):]...)
}

// reason is what a skipped test said, without its position.
func reason(lines []string) string {
	for _, l := range lines {
		if place.MatchString(l) {
			return strings.TrimSpace(place.ReplaceAllString(l, ""))
		}
	}
	return "no reason given"
}
