// Package sandbox knows the sandbox classes: what this host can do and why not, which runtime handler an instance gets,
// and what a class cannot do.
//
// It looks at the machine and starts nothing but the runtimes' own version commands. Starting sandboxes is the engine's.
package sandbox

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"cumulet.io/cis"
)

// Handler is the containerd runtime handler of a class.
func Handler(c cis.SandboxClass) string {
	if c == cis.GVisor {
		return "runsc"
	}
	return string(c)
}

// KataHandler is the handler of instances of class kata with a hypervisor of its own configuration.
func KataHandler(hypervisor string) string { return Handler(cis.Kata) + "-" + hypervisor }

// Classes are all sandbox classes, strongest first.
func Classes() []cis.SandboxClass { return []cis.SandboxClass{cis.Kata, cis.GVisor, cis.Runc} }

// Check is one thing that a class needs of the host.
type Check struct {
	// Name says what, as "hardware virtualisation".
	Name string `json:"name"`
	// OK tells whether the host has it; Found is what was seen.
	OK    bool   `json:"ok"`
	Found string `json:"found"`
	// Fix says how to get it; empty when OK.
	Fix string `json:"fix,omitempty"`
}

// Finding is what the host can do for one class.
type Finding struct {
	Class cis.SandboxClass `json:"class"`
	// Handler is the containerd runtime handler.
	Handler string `json:"handler"`
	// KataConfig is the configuration file of class kata; "" when there is none.
	KataConfig string `json:"kataConfig,omitempty"`
	// Copying tells that its virtual machines share no directory with the host: they get copies of files, made once.
	Copying bool    `json:"copying,omitempty"`
	Checks  []Check `json:"checks"`
}

// Available tells whether every check passed.
func (f Finding) Available() bool { return f.Why() == "" }

// Why is a sentence of what is missing and how to mend it; "" when nothing is.
func (f Finding) Why() string {
	var missing []string
	for _, c := range f.Checks {
		if !c.OK {
			missing = append(missing, fmt.Sprintf("%s: %s (%s)", c.Name, c.Found, c.Fix))
		}
	}
	return strings.Join(missing, "; ")
}

// Report is what the host can do, strongest class first; of Kata there may be several findings, of which the first counts
// and the others are for the orgs that have another hypervisor.
type Report struct {
	Findings []Finding `json:"findings"`
	// Default is the class of an instance that asks for none; "" when there is none.
	Default cis.SandboxClass `json:"default"`
}

// Handlers are the handlers of the available classes, and why the others are not.
func (r Report) Handlers() (have map[cis.SandboxClass]string, why map[cis.SandboxClass]string) {
	have, why = map[cis.SandboxClass]string{}, map[cis.SandboxClass]string{}
	for _, f := range r.Findings {
		switch {
		case have[f.Class] != "" || why[f.Class] != "":
		case f.Available():
			have[f.Class] = f.Handler
		default:
			why[f.Class] = f.Why()
		}
	}
	return have, why
}

// Finding gives the finding of a handler; nil when there is none.
func (r Report) Finding(handler string) *Finding {
	for i := range r.Findings {
		if r.Findings[i].Handler == handler {
			return &r.Findings[i]
		}
	}
	return nil
}

// Write prints the report as a table for people.
func (r Report) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	fmt.Fprintln(tw, "CLASS\tHANDLER\tAVAILABLE\tNEEDS\tFOUND\tFIX")
	said := false
	for _, f := range r.Findings {
		available := "no"
		if f.Available() {
			available = "yes"
		}
		if f.Class == r.Default && !said {
			available, said = available+" (default)", true
		}
		class, handler := string(f.Class), f.Handler
		for _, c := range f.Checks {
			fix := c.Fix
			if c.OK {
				fix = "-"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", class, handler, available, c.Name, c.Found, fix)
			class, handler, available = "", "", ""
		}
	}
	return tw.Flush()
}
