// Package output prints what commands found: a table for people, JSON or YAML for programs.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"
)

// Format is a value of -o.
type Format string

// The formats. Wide is a table with more columns.
const (
	Table Format = ""
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Table, Wide, JSON, YAML:
		*f = Format(s)
		return nil
	case "table":
		*f = Table
		return nil
	}
	return fmt.Errorf("must be table, wide, json or yaml, not %q", s)
}

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "table|wide|json|yaml" }

// Columns are a table's; those after Always are shown with -o wide.
type Columns struct {
	Always []string
	Wide   []string
}

// Print writes v as JSON or YAML, or the rows as a table. Every row has a cell for each column, wide ones included.
func Print(w io.Writer, f Format, v any, cols Columns, rows [][]string) error {
	switch f {
	case JSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case YAML:
		b, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
		_, err = w.Write(b)
		return err
	}
	n := len(cols.Always)
	head := cols.Always
	if f == Wide {
		head = append(append([]string{}, head...), cols.Wide...)
		n = len(head)
	}
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, r := range rows {
		for i, c := range r[:n] {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, Clean(c))
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// Clean makes a tenant's text safe for a terminal: control characters, escape sequences among them, become "?".
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// Age is a duration as kubectl writes it: 5s, 3m, 2h, 4d.
func Age(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return Duration(time.Since(since))
}

// Duration is d in its largest unit; below two minutes in seconds, below three hours in minutes.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
