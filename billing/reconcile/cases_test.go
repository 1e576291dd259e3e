package reconcile_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/internal/billtest"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/reconcile"
	"cumulet.io/billing/statement"
	"cumulet.io/internal/sqldb"
)

var update = flag.Bool("update", false, "write what the cases print into their files; review it by hand")

// TestCases runs testdata/cases/*.txt. A file is blocks apart by empty lines: a command, its input, "----", and what it
// must print. testdata/cases/README.md tells the commands.
func TestCases(t *testing.T) {
	paths, err := filepath.Glob("testdata/cases/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d cases: %v", len(paths), err)
	}
	billtest.EachDialect(t, func(t *testing.T, newDB func(testing.TB) *sqldb.DB) {
		for _, path := range paths {
			t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) { runCase(t, path, newDB(t)) })
		}
	})
}

func runCase(t *testing.T, path string, db *sqldb.DB) {
	text, err := os.ReadFile(path)
	must(t, err)
	c := &caseRun{t: t, db: db, now: time.Date(2027, 6, 1, 0, 0, 0, 0, time.UTC), book: billtest.TwoVersions, inv: inventory{}}
	var out []string
	for _, block := range strings.Split(strings.TrimRight(string(text), "\n"), "\n\n") {
		if strings.HasPrefix(block, "#") {
			out = append(out, block)
			continue
		}
		head, want, _ := strings.Cut(block, "\n----\n")
		head, _ = strings.CutSuffix(head, "\n----")
		command, input, _ := strings.Cut(head, "\n")
		got := strings.TrimRight(c.do(strings.Fields(command), input), "\n")
		got = strings.ReplaceAll(got, "\n\n", "\n.\n") // an empty line ends a block
		if got != want && !*update {
			t.Errorf("%s\ngot:\n%s\nwant:\n%s", head, got, want)
		}
		out = append(out, strings.TrimRight(head+"\n----\n"+got, "\n"))
	}
	if *update {
		must(t, os.WriteFile(path, []byte(strings.Join(out, "\n\n")+"\n"), 0o600))
	}
}

type caseRun struct {
	t    *testing.T
	db   *sqldb.DB
	now  time.Time
	book string
	inv  inventory
	l    *ledger.Ledger
}

func (c *caseRun) do(args []string, input string) string {
	c.t.Helper()
	ctx := context.Background()
	var out bytes.Buffer
	fail := func(err error) string { return "error: " + err.Error() }
	period := func(text string) ledger.Period {
		if from, to, ok := strings.Cut(text, ".."); ok {
			return ledger.Period{From: c.time(from), To: c.time(to)}
		}
		m, err := ledger.ParseMonth(text)
		must(c.t, err)
		return ledger.Period{Month: m}
	}
	switch args[0] {
	case "now":
		c.now = c.time(args[1])
		return ""
	case "book":
		c.book, c.l = input, nil
		b := billtest.Book(c.t, input)
		l, err := ledger.Open(ctx, c.db, b, ledger.Options{Now: func() time.Time { return c.now }})
		if err != nil {
			return fail(err)
		}
		c.l = l
		return fmt.Sprintf("%d versions\n", len(b.Versions))
	case "inventory":
		for _, line := range strings.Split(input, "\n") {
			f := strings.Fields(line)
			in := reconcile.Instance{ID: f[0], Org: f[1]}
			if f[2] != "-" {
				in.StartedAt = c.time(f[2])
			}
			if len(f) > 3 {
				in.EndedAt = c.time(f[3])
			}
			c.inv[in.ID] = in
		}
		return ""
	}
	if c.l == nil {
		c.l = billtest.Ledger(c.t, c.db, billtest.Book(c.t, c.book), func() time.Time { return c.now })
	}
	switch args[0] {
	case "ingest":
		var lines [][]byte
		for _, line := range strings.Split(input, "\n") {
			lines = append(lines, c.event(line))
		}
		n, err := c.l.Ingest(ctx, lines)
		if err != nil {
			return fail(err)
		}
		return fmt.Sprintf("new %d, known %d, quarantined %d", n.New, n.Known, n.Quarantined)
	case "close":
		if err := c.l.Close(ctx, period(args[1]).Month); err != nil {
			return fail(err)
		}
		return ""
	case "quarantine":
		page, err := c.l.Quarantine(ctx, "", 100)
		must(c.t, err)
		for _, q := range page.Items {
			fmt.Fprintf(&out, "%q: %s\n", q.EventID, q.Reason)
		}
		return out.String()
	case "reconcile":
		rep, err := reconcile.Run(ctx, c.l, c.inv, args[1], period(args[2]), reconcile.Options{Now: func() time.Time { return c.now }})
		if err != nil {
			return fail(err)
		}
		for _, x := range rep.Checks {
			fmt.Fprintf(&out, "%-5v %s (%d compared)\n", x.OK, x.Name, x.Compared)
			for _, d := range x.Differences {
				fmt.Fprintf(&out, "      %s\n", d)
			}
		}
		for _, n := range rep.Notes {
			fmt.Fprintf(&out, "note  %s\n", n)
		}
		return out.String()
	}
	b, err := c.l.Bill(ctx, args[1], period(args[2]))
	if err != nil {
		return fail(err)
	}
	st, err := statement.Build(b)
	must(c.t, err)
	switch args[0] {
	case "lines":
		w := tabwriter.NewWriter(&out, 0, 0, 1, ' ', 0)
		for _, l := range b.Lines {
			mark := ""
			if l.Estimated {
				mark = "~"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s%d s\t%s\t* %s\t= %s\n", l.Kind, l.Instance, l.Start.Format("01-02T15"), l.End.Format("01-02T15"),
				l.Phase, l.Dimension, l.PriceVersion, mark, l.Seconds, l.Quantity, l.Rate, l.Amount)
		}
		must(c.t, w.Flush())
		fmt.Fprintf(&out, "total %s %s %s\n", st.Totals.Amount, st.Rounding, st.Total)
	case "bill":
		g := statement.ByInstance
		if len(args) > 3 {
			g = statement.Group(args[3])
		}
		must(c.t, st.WriteText(&out, g))
	case "focus":
		must(c.t, st.WriteFOCUS(&out, statement.FocusOptions{}))
	default:
		c.t.Fatalf("unknown command %q", args[0])
	}
	return out.String()
}

func (c *caseRun) time(s string) time.Time {
	c.t.Helper()
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t, err = time.Parse(time.DateOnly, s)
	}
	must(c.t, err)
	return t
}

// event makes a line of "instance/incarnation/sequence kind time startup running key=value…"; a line that begins with
// "raw " is taken as it is.
func (c *caseRun) event(line string) []byte {
	c.t.Helper()
	if raw, ok := strings.CutPrefix(line, "raw"); ok {
		return []byte(strings.TrimPrefix(raw, " "))
	}
	f := strings.Fields(line)
	id := strings.Split(f[0], "/")
	num := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		must(c.t, err)
		return n
	}
	ev := billing.Event{ID: f[0], Instance: id[0], Incarnation: num(id[1]), Sequence: num(id[2]), Kind: billing.EventKind(f[1]),
		Time: c.time(f[2]), At: c.time(f[2]), StartupMillis: num(f[3]), RunningMillis: num(f[4]),
		Org: "acme", Name: "web", Region: "eu", Node: "n1", SandboxClass: "kata",
		Size: billing.Size{Class: "c1-m2", MilliCPU: 1000, MemoryMiB: 2048}, Phase: billing.PhaseRunning, Clock: billing.Clock{Boot: "b"}}
	if ev.Kind == billing.EventStopped {
		ev.Reason = "Completed"
	}
	for _, kv := range f[5:] {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "org":
			ev.Org = v
		case "class":
			ev.SandboxClass = v
		case "region":
			ev.Region = v
		case "cpu":
			ev.Size.MilliCPU = num(v)
		case "mem":
			ev.Size.MemoryMiB = num(v)
		case "reason":
			ev.Reason = v
		case "at":
			ev.At = c.time(v)
		default:
			c.t.Fatalf("unknown key %q", k)
		}
	}
	return billtest.Line(c.t, ev)
}
