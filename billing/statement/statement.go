// Package statement makes what a payer reads from a ledger's bill: totals by instance and by day, one rounding, a text
// table, and the FinOps FOCUS 1.2 export.
//
// It computes no usage and no prices; every number is a sum of the bill's lines.
package statement

import (
	"fmt"
	"sort"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/money"
	"cumulet.io/billing/price"
)

// Group chooses what a statement shows beside its total.
type Group string

// The groups.
const (
	// Everything shows lines and both groups.
	Everything Group = ""
	ByInstance Group = "instance"
	ByDay      Group = "day"
)

// Sums are totals of some lines.
type Sums struct {
	StartupSeconds int64          `json:"startupSeconds"`
	RunningSeconds int64          `json:"runningSeconds"`
	VCPUSeconds    money.Quantity `json:"vCPUSeconds"`
	GiBSeconds     money.Quantity `json:"gibSeconds"`
	// Amount is not rounded.
	Amount money.Amount `json:"amount"`
	// Estimated: an instance among them has no known end yet; its usage is counted to its last event.
	Estimated bool `json:"estimated,omitempty"`
}

// InstanceSums are one instance's.
type InstanceSums struct {
	Instance     string       `json:"instance"`
	Name         string       `json:"name"`
	Region       string       `json:"region"`
	Node         string       `json:"node"`
	SandboxClass string       `json:"sandboxClass"`
	Size         billing.Size `json:"size"`
	// FirstAt and LastAt are the instance's first and last event, also outside the period.
	FirstAt time.Time `json:"firstAt"`
	LastAt  time.Time `json:"lastAt"`
	Stopped bool      `json:"stopped"`
	Reason  string    `json:"reason,omitempty"`
	Sums
}

// DaySums are one day's, UTC. The day of a correction is the day of the usage that it corrects.
type DaySums struct {
	Day string `json:"day"`
	Sums
}

// Statement is an org's bill of a period.
type Statement struct {
	Org      string         `json:"org"`
	Period   string         `json:"period"`
	From     time.Time      `json:"from"`
	To       time.Time      `json:"to"`
	Currency money.Currency `json:"currency"`
	// AsOf: all events are in that had reached the log store by then.
	AsOf time.Time `json:"asOf,omitzero"`
	// Closed: the statement will not change. Estimated: some instance's end is not known.
	Closed    bool `json:"closed"`
	Estimated bool `json:"estimated"`
	// Totals.Amount is the exact sum of the lines; Rounding brings it to Total, half away from zero.
	Totals   Sums         `json:"totals"`
	Rounding money.Amount `json:"rounding"`
	Total    string       `json:"total"`
	// Corrections is the part of Totals.Amount that corrects earlier months.
	Corrections money.Amount   `json:"corrections"`
	ByInstance  []InstanceSums `json:"byInstance,omitempty"`
	ByDay       []DaySums      `json:"byDay,omitempty"`
	Lines       []ledger.Line  `json:"lines,omitempty"`
}

// Build sums a bill.
func Build(b *ledger.Bill) (*Statement, error) {
	s := &Statement{Org: b.Org, Period: b.Period.String(), From: b.From, To: b.To, Currency: b.Currency, AsOf: b.AsOf, Closed: b.Closed,
		Totals: Sums{Amount: money.Zero(b.Currency)}, Corrections: money.Zero(b.Currency), Lines: b.Lines}
	instances, days := map[string]*Sums{}, map[string]*Sums{}
	get := func(m map[string]*Sums, key string) *Sums {
		if m[key] == nil {
			m[key] = &Sums{Amount: money.Zero(b.Currency)}
		}
		return m[key]
	}
	for i := range b.Lines {
		line := &b.Lines[i]
		for _, to := range []*Sums{&s.Totals, get(instances, line.Instance), get(days, line.Start.Format(time.DateOnly))} {
			if err := to.add(line); err != nil {
				return nil, fmt.Errorf("statement of %s: %w", b.Org, err)
			}
		}
		if line.Kind == ledger.Correction {
			var err error
			if s.Corrections, err = s.Corrections.Add(line.Amount); err != nil {
				return nil, fmt.Errorf("statement of %s: %w", b.Org, err)
			}
		}
	}
	for id, sums := range instances {
		v := b.Lives[id]
		s.ByInstance = append(s.ByInstance, InstanceSums{Instance: id, Name: v.Name, Region: v.Region, Node: v.Node,
			SandboxClass: v.SandboxClass, Size: v.Size, FirstAt: v.FirstAt, LastAt: v.LastAt, Stopped: v.Stopped, Reason: v.Reason, Sums: *sums})
	}
	sort.Slice(s.ByInstance, func(i, j int) bool { return s.ByInstance[i].Instance < s.ByInstance[j].Instance })
	for day, sums := range days {
		s.ByDay = append(s.ByDay, DaySums{Day: day, Sums: *sums})
	}
	sort.Slice(s.ByDay, func(i, j int) bool { return s.ByDay[i].Day < s.ByDay[j].Day })
	s.Estimated = s.Totals.Estimated
	rounded := s.Totals.Amount.Round()
	var err error
	if s.Rounding, err = rounded.Sub(s.Totals.Amount); err != nil {
		return nil, fmt.Errorf("statement of %s: %w", b.Org, err)
	}
	s.Total = rounded.Fixed()
	return s, nil
}

func (s *Sums) add(line *ledger.Line) error {
	var err error
	if s.Amount, err = s.Amount.Add(line.Amount); err != nil {
		return err
	}
	s.Estimated = s.Estimated || line.Estimated
	if line.Dimension == price.GiBSecond {
		s.GiBSeconds = s.GiBSeconds.Add(line.Quantity)
		return nil
	}
	s.VCPUSeconds = s.VCPUSeconds.Add(line.Quantity)
	if line.Phase == billing.PhaseStartup {
		s.StartupSeconds += line.Seconds
	} else {
		s.RunningSeconds += line.Seconds
	}
	return nil
}

// Show gives the statement with only what a group asks for.
func (s *Statement) Show(g Group) *Statement {
	c := *s
	switch g {
	case ByInstance:
		c.ByDay, c.Lines = nil, nil
	case ByDay:
		c.ByInstance, c.Lines = nil, nil
	}
	return &c
}
