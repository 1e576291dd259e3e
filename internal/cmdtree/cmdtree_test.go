package cmdtree

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestStrict(t *testing.T) {
	marked := errors.New("wrong")
	for _, tc := range []struct{ line, want, out string }{
		{line: "", out: "Usage:"},
		{line: "config", out: "Usage:"},
		{line: "config check", out: "checked"},
		{line: "config check it", out: "checked"},
		{line: "confg check", want: `unknown command "confg" for "x"; did you mean "config"?`},
		{line: "config chekc", want: `unknown command "chekc" for "x config"; did you mean "check"?`},
		{line: "config nonsense", want: `see: x config --help`},
		{line: "--help", out: "Usage:"},
	} {
		var out bytes.Buffer
		root := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true}
		config := &cobra.Command{Use: "config"}
		config.AddCommand(&cobra.Command{Use: "check", RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "checked")
			return nil
		}})
		root.AddCommand(config)
		Strict(root, func(err error) error { return errors.Join(marked, err) })
		root.SetOut(&out)
		root.SetArgs(strings.Fields(tc.line))
		err := root.Execute()
		if (err != nil) != (tc.want != "") || err != nil && (!errors.Is(err, marked) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%q: %v, want %q", tc.line, err, tc.want)
		}
		if !strings.Contains(out.String(), tc.out) {
			t.Errorf("%q printed %q, want %q", tc.line, out.String(), tc.out)
		}
	}
}
