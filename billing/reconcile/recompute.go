package reconcile

import (
	"context"
	"math/big"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/money"
	"cumulet.io/billing/price"
)

// recount is what an instance's raw events say, counted second by second. It shares no code with the ledger's fold:
// that takes differences of the cumulative ceiling, this walks from one billed second to the next.
type recount struct {
	org     string
	life    ledger.Seconds
	period  ledger.Seconds
	cost    *big.Rat
	stopped bool
	first   time.Time
	last    time.Time
	events  int
}

// count walks one instance's events, in order. Seconds that begin in [from, to) are the period's, and priced.
func count(ctx context.Context, l *ledger.Ledger, instance string, from, to time.Time) (*recount, error) {
	c := &recount{cost: new(big.Rat)}
	var clock time.Time // never goes back
	var startup, running int64
	rates := newPricer(l.Book())
	err := l.Events(ctx, instance, func(ev billing.Event) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		newStartup, newRunning := ev.StartupMillis-startup, ev.RunningMillis-running
		base := startup + running
		begin, end := clock, ev.At
		if c.events == 0 {
			begin = end.Add(-time.Duration(newStartup+newRunning) * time.Millisecond)
			c.first, c.org = ev.At, ev.Org
		}
		if begin.After(end) {
			end = begin
		}
		second := base / 1000 * 1000
		if second < base {
			second += 1000
		}
		for ; second < base+newStartup+newRunning; second += 1000 {
			offset := second - base
			at := begin.Add(time.Duration(offset) * time.Millisecond)
			if at.After(end) {
				at = end
			}
			phase := billing.PhaseRunning
			if offset < newStartup {
				phase = billing.PhaseStartup
			}
			tally(&c.life, phase)
			if at.Before(from) || !at.Before(to) {
				continue
			}
			tally(&c.period, phase)
			cost, err := rates.second(at, &ev, phase)
			if err != nil {
				return err
			}
			c.cost.Add(c.cost, cost)
		}
		clock, startup, running = end, ev.StartupMillis, ev.RunningMillis
		c.events++
		c.last = end
		c.stopped = c.stopped || ev.Kind == billing.EventStopped
		return nil
	})
	rates.settle(c.cost)
	return c, err
}

func tally(s *ledger.Seconds, p billing.Phase) {
	if p == billing.PhaseStartup {
		s.Startup++
	} else {
		s.Running++
	}
}

// pricer prices single seconds in rational numbers, not in the decimals of the ledger. Equal seconds are counted and
// multiplied at the end.
type pricer struct {
	book    *price.Book
	version int
	counts  map[secondKey]int64
	prices  map[secondKey]*big.Rat
}

type secondKey struct {
	version int
	phase   billing.Phase
}

func newPricer(b *price.Book) *pricer {
	return &pricer{book: b, counts: map[secondKey]int64{}, prices: map[secondKey]*big.Rat{}}
}

// second notes a second; its price comes with settle. It returns zero so that a caller sees errors at once.
func (p *pricer) second(at time.Time, ev *billing.Event, phase billing.Phase) (*big.Rat, error) {
	v := p.version
	for v+1 < len(p.book.Versions) && !at.Before(p.book.Versions[v+1].EffectiveFrom) {
		v++
	}
	for v > 0 && at.Before(p.book.Versions[v].EffectiveFrom) {
		v--
	}
	if at.Before(p.book.Versions[v].EffectiveFrom) {
		return nil, price.ErrNoPrice
	}
	p.version = v
	k := secondKey{v, phase}
	p.counts[k]++
	if p.prices[k] == nil {
		r, err := p.book.Versions[v].Rates(ev.SandboxClass, ev.Region, phase)
		if err != nil {
			return nil, err
		}
		cpu := new(big.Rat).Mul(rat(r.VCPUSecond), big.NewRat(ev.Size.MilliCPU, 1000))
		mem := new(big.Rat).Mul(rat(r.GiBSecond), big.NewRat(ev.Size.MemoryMiB, 1024))
		p.prices[k] = cpu.Add(cpu, mem)
	}
	return new(big.Rat), nil
}

func (p *pricer) settle(sum *big.Rat) {
	for k, n := range p.counts {
		sum.Add(sum, new(big.Rat).Mul(p.prices[k], new(big.Rat).SetInt64(n)))
	}
}

func rat(r money.Rate) *big.Rat {
	v, ok := new(big.Rat).SetString(r.String())
	if !ok {
		return new(big.Rat)
	}
	return v
}
