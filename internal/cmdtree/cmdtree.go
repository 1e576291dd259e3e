// Package cmdtree makes a tree of cobra commands strict: a word that is no command is an error. Cobra prints the help of
// a command that only has others, whatever follows it, and is content: a script would take a misspelt command for one
// that was carried out.
package cmdtree

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Strict makes root, and every command below it that only has others, refuse a word that is none of them, with the error
// that wrong makes; alone they print their help as ever.
func Strict(root *cobra.Command, wrong func(error) error) {
	for _, c := range root.Commands() {
		Strict(c, wrong)
	}
	if root.Runnable() || !root.HasSubCommands() {
		return
	}
	root.SuggestionsMinimumDistance = 2
	root.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := fmt.Sprintf("see: %s --help", cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("did you mean %q?", near[0])
		}
		return wrong(fmt.Errorf("unknown command %q for %q; %s", args[0], cmd.CommandPath(), hint))
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}
