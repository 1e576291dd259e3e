// Package reconcile proves that a bill adds up, or says where it does not.
//
// It counts the raw events anew, second by second and in rational numbers, and compares: the lines of each instance
// with its seconds, tenant with day with instance totals, the FOCUS export with the statement, and the instances that
// the platform knows with those that metered, both ways. It changes nothing.
package reconcile

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sort"
	"strings"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/money"
	"cumulet.io/billing/price"
	"cumulet.io/billing/statement"
)

// ErrDiffers is returned by Report.Err when a check failed.
var ErrDiffers = errors.New("the bill does not add up")

// Instance is an instance as the container instance service knows it.
type Instance struct {
	ID  string
	Org string
	// StartedAt is when its resources were held; zero if they never were, and then nothing may be billed.
	StartedAt time.Time
	// EndedAt is zero while it lives.
	EndedAt time.Time
}

// Inventory is the container instance service, as reconciliation needs it.
type Inventory interface {
	// Instances gives every instance of an org, deleted ones included, that was alive between two instants. It may give
	// more.
	Instances(ctx context.Context, org string, from, to time.Time) ([]Instance, error)
}

// Options configures a reconciliation. The zero value is good.
type Options struct {
	// Transit is how long an event may be on its way: an instance that started or ended after now - Transit may lack
	// events. 0 means 2 minutes.
	Transit time.Duration
	// Slack is how far the billed time may exceed the inventory's; 0 means 2 s. The two clocks' readings are taken at
	// different moments.
	Slack time.Duration
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
}

// Report is the result.
type Report struct {
	Org    string    `json:"org"`
	Period string    `json:"period"`
	Made   time.Time `json:"made"`
	AsOf   time.Time `json:"asOf,omitzero"`
	// OK is whether every check holds.
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
	// Notes are worth knowing and no failure: estimated lives, quarantined lines.
	Notes []string `json:"notes,omitempty"`
}

// Check is one comparison.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Compared is how many things were compared.
	Compared int `json:"compared"`
	// Differences tells what differs, at most 100.
	Differences []string `json:"differences,omitempty"`
}

const maxDifferences = 100

// The names of the checks.
const (
	CheckLife      = "lines of each instance's life = its seconds"
	CheckPeriod    = "lines of each instance in the period = its seconds in it"
	CheckCost      = "cost of the lines = cost of the seconds"
	CheckTotals    = "by tenant = by day = by instance"
	CheckFOCUS     = "FOCUS export = statement"
	CheckEvents    = "every instance with events is in the inventory"
	CheckInventory = "every instance of the inventory has its events"
)

func (c *Check) differ(format string, args ...any) {
	if len(c.Differences) < maxDifferences {
		c.Differences = append(c.Differences, fmt.Sprintf(format, args...))
	}
	c.OK = false
}

// Err is nil when the report is good and wraps ErrDiffers with the first difference when not.
func (r *Report) Err() error {
	for _, c := range r.Checks {
		if !c.OK {
			return fmt.Errorf("%w: %s of %s: %s: %s", ErrDiffers, r.Period, r.Org, c.Name, strings.Join(c.Differences[:min(1, len(c.Differences))], ""))
		}
	}
	return nil
}

// run is one reconciliation.
type run struct {
	l      *ledger.Ledger
	inv    Inventory
	opts   Options
	bill   *ledger.Bill
	st     *statement.Statement
	report *Report
	counts map[string]*recount
	// corrected are lines that changed a closed month since.
	corrected []ledger.Line
}

// Run reconciles an org's period. The error is one of reading; what does not add up is in the report.
func Run(ctx context.Context, l *ledger.Ledger, inv Inventory, org string, p ledger.Period, opts Options) (*Report, error) {
	if opts.Transit == 0 {
		opts.Transit = 2 * time.Minute
	}
	if opts.Slack == 0 {
		opts.Slack = 2 * time.Second
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	r := &run{l: l, inv: inv, opts: opts, counts: map[string]*recount{}}
	if err := r.run(ctx, org, p); err != nil {
		return nil, fmt.Errorf("reconcile %s for %s: %w", org, p, err)
	}
	return r.report, nil
}

func (r *run) run(ctx context.Context, org string, p ledger.Period) error {
	from, to, err := p.Bounds()
	if err != nil {
		return err
	}
	if r.bill, err = r.l.Bill(ctx, org, p); err != nil {
		return err
	}
	if r.st, err = statement.Build(r.bill); err != nil {
		return err
	}
	if r.bill.Closed {
		if r.corrected, err = r.l.Corrected(ctx, org, p.Month); err != nil {
			return err
		}
	}
	r.report = &Report{Org: org, Period: p.String(), Made: r.opts.Now().UTC(), AsOf: r.bill.AsOf, OK: true}
	lives, err := r.l.Lives(ctx, org, from, to)
	if err != nil {
		return err
	}
	earliest := from
	for _, v := range r.bill.Lives {
		lives = append(lives, v)
	}
	for _, v := range lives {
		r.counts[v.Instance] = nil
		if v.FirstAt.Before(earliest) {
			earliest = v.FirstAt
		}
	}
	for _, line := range r.corrected {
		r.counts[line.Instance] = nil
	}
	known, err := r.inventory(ctx, earliest, from, to)
	if err != nil {
		return err
	}
	for id := range r.counts {
		if r.counts[id], err = count(ctx, r.l, id, from, to); err != nil {
			return err
		}
	}
	focus, err := r.checkFOCUS()
	if err != nil {
		return err
	}
	life, err := r.checkLife(ctx)
	if err != nil {
		return err
	}
	events, inventory := r.checkInventory(known)
	for _, c := range []*Check{life, r.checkPeriod(), r.checkCost(), r.checkTotals(), focus, events, inventory} {
		r.report.OK = r.report.OK && c.OK
		r.report.Checks = append(r.report.Checks, *c)
	}
	return r.notes(ctx)
}

// usageLines calls f for every line about usage that began in the period: its own, and of a closed month those that
// corrected it since.
func (r *run) usageLines(f func(*ledger.Line)) {
	for i := range r.bill.Lines {
		if r.bill.Lines[i].Kind == ledger.Usage {
			f(&r.bill.Lines[i])
		}
	}
	for i := range r.corrected {
		f(&r.corrected[i])
	}
}

// checkLife compares all that was or will be billed of each life with ceil(total).
func (r *run) checkLife(ctx context.Context) (*Check, error) {
	c := &Check{Name: CheckLife, OK: true}
	for _, id := range r.ids() {
		n := r.counts[id]
		billed, err := r.l.Billed(ctx, id)
		if err != nil {
			return nil, err
		}
		c.Compared++
		if billed != n.life {
			c.differ("%s: billed %d+%d s, its events say %d+%d s (startup+running)", id,
				billed.Startup, billed.Running, n.life.Startup, n.life.Running)
		}
	}
	return c, nil
}

// checkPeriod compares the period's lines with the seconds that began in it. What a closed month got wrong must be in
// its corrections, billed later or waiting.
func (r *run) checkPeriod() *Check {
	c := &Check{Name: CheckPeriod, OK: true}
	for _, d := range []price.Dimension{price.VCPUSecond, price.GiBSecond} {
		sums := map[string]ledger.Seconds{}
		r.usageLines(func(line *ledger.Line) {
			s := sums[line.Instance]
			switch {
			case line.Dimension != d:
			case line.Phase == billing.PhaseStartup:
				s.Startup += line.Seconds
			default:
				s.Running += line.Seconds
			}
			sums[line.Instance] = s
		})
		for _, id := range r.ids() {
			c.Compared++
			if n, s := r.counts[id].period, sums[id]; s != n {
				c.differ("%s: %s lines are %d+%d s, its events say %d+%d s (startup+running)", id, d, s.Startup, s.Running, n.Startup, n.Running)
			}
		}
	}
	return c
}

// checkCost compares the exact cost of the same lines with the cost of the counted seconds.
func (r *run) checkCost() *Check {
	c := &Check{Name: CheckCost, OK: true}
	costs := map[string]*big.Rat{}
	for _, id := range r.ids() {
		costs[id] = new(big.Rat)
	}
	r.usageLines(func(line *ledger.Line) {
		costs[line.Instance].Add(costs[line.Instance], amount(line.Amount))
	})
	for _, id := range r.ids() {
		c.Compared++
		if costs[id].Cmp(r.counts[id].cost) != 0 {
			c.differ("%s: lines cost %s, its seconds %s", id, costs[id].FloatString(18), r.counts[id].cost.FloatString(18))
		}
	}
	return c
}

// checkTotals compares the three ways to sum the lines, and the lines themselves.
func (r *run) checkTotals() *Check {
	c := &Check{Name: CheckTotals, OK: true}
	lines, days, instances := new(big.Rat), new(big.Rat), new(big.Rat)
	var ls, ds, is ledger.Seconds
	for _, line := range r.bill.Lines {
		lines.Add(lines, amount(line.Amount))
		switch {
		case line.Dimension != price.VCPUSecond:
		case line.Phase == billing.PhaseStartup:
			ls.Startup += line.Seconds
		default:
			ls.Running += line.Seconds
		}
	}
	for i := range r.st.ByDay {
		d := &r.st.ByDay[i].Sums
		days.Add(days, amount(d.Amount))
		ds = ledger.Seconds{Startup: ds.Startup + d.StartupSeconds, Running: ds.Running + d.RunningSeconds}
	}
	for i := range r.st.ByInstance {
		v := &r.st.ByInstance[i].Sums
		instances.Add(instances, amount(v.Amount))
		is = ledger.Seconds{Startup: is.Startup + v.StartupSeconds, Running: is.Running + v.RunningSeconds}
	}
	tenant := amount(r.st.Totals.Amount)
	ts := ledger.Seconds{Startup: r.st.Totals.StartupSeconds, Running: r.st.Totals.RunningSeconds}
	for _, other := range []struct {
		name    string
		amount  *big.Rat
		seconds ledger.Seconds
	}{{"lines", lines, ls}, {"days", days, ds}, {"instances", instances, is}} {
		c.Compared++
		if tenant.Cmp(other.amount) != 0 || ts != other.seconds {
			c.differ("tenant %s and %d s, %s %s and %d s", tenant.FloatString(18), ts.Sum(), other.name, other.amount.FloatString(18), other.seconds.Sum())
		}
	}
	c.Compared++
	rounded := new(big.Rat).Add(tenant, amount(r.st.Rounding))
	if total, ok := new(big.Rat).SetString(r.st.Total); !ok || total.Cmp(rounded) != 0 {
		c.differ("tenant with rounding %s, to pay %s", rounded.FloatString(18), r.st.Total)
	}
	return c
}

// checkFOCUS reads the export back, as a stranger would, and compares its sums with the statement's.
func (r *run) checkFOCUS() (*Check, error) {
	c := &Check{Name: CheckFOCUS, OK: true}
	var b bytes.Buffer
	if err := r.st.WriteFOCUS(&b, statement.FocusOptions{}); err != nil {
		return nil, err
	}
	in := csv.NewReader(&b)
	in.ReuseRecord = true
	header, err := in.Read()
	if err != nil {
		return nil, err
	}
	column := map[string]int{}
	for i, name := range header {
		column[name] = i
	}
	cost, adjusted := new(big.Rat), new(big.Rat)
	units := map[string]*big.Rat{"vCPU-Seconds": new(big.Rat), "GiB-Seconds": new(big.Rat)}
	rows := 0
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		rows++
		billed, ok := new(big.Rat).SetString(row[column["BilledCost"]])
		if !ok {
			c.differ("row %d: BilledCost is %q", rows, row[column["BilledCost"]])
			continue
		}
		cost.Add(cost, billed)
		if row[column["ChargeCategory"]] != "Usage" {
			adjusted.Add(adjusted, billed)
			continue
		}
		quantity, ok := new(big.Rat).SetString(row[column["PricingQuantity"]])
		rate, ok2 := new(big.Rat).SetString(row[column["ListUnitPrice"]])
		unit := units[row[column["PricingUnit"]]]
		if !ok || !ok2 || unit == nil {
			c.differ("row %d: quantity %q of %q at %q", rows, row[column["PricingQuantity"]], row[column["PricingUnit"]], row[column["ListUnitPrice"]])
			continue
		}
		unit.Add(unit, quantity)
		if new(big.Rat).Mul(quantity, rate).Cmp(billed) != 0 {
			c.differ("row %d: %s at %s is not %s", rows, quantity.FloatString(12), rate.FloatString(18), billed.FloatString(18))
		}
	}
	c.Compared = rows
	for _, x := range []struct {
		name  string
		focus *big.Rat
		told  string
	}{
		{"BilledCost", cost, r.st.Total},
		{"rounding", adjusted, r.st.Rounding.String()},
		{"vCPU-Seconds", units["vCPU-Seconds"], r.st.Totals.VCPUSeconds.String()},
		{"GiB-Seconds", units["GiB-Seconds"], r.st.Totals.GiBSeconds.String()},
	} {
		if want, ok := new(big.Rat).SetString(x.told); !ok || want.Cmp(x.focus) != 0 {
			c.differ("%s: FOCUS %s, statement %s", x.name, x.focus.FloatString(18), x.told)
		}
	}
	return c, nil
}

// ids are the counted instances, in order.
func (r *run) ids() []string {
	out := make([]string, 0, len(r.counts))
	for id := range r.counts {
		out = append(out, id)
	}
	sort.Strings(out)
	return out
}

func amount(a money.Amount) *big.Rat {
	v, ok := new(big.Rat).SetString(a.String())
	if !ok {
		return new(big.Rat)
	}
	return v
}
