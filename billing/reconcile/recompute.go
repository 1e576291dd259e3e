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
	sample  billing.Event
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
	seconds := &pricer{book: l.Book(), counts: map[secondKey]int64{}}
	err := l.Events(ctx, instance, func(ev billing.Event) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		newStartup, newRunning := ev.StartupMillis-startup, ev.RunningMillis-running
		base := startup + running
		begin, end := clock, ev.At
		if c.events == 0 {
			begin = end.Add(-time.Duration(newStartup+newRunning) * time.Millisecond)
			c.first, c.org, c.sample = ev.At, ev.Org, ev
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
			at := min(begin.UnixNano()+offset*int64(time.Millisecond), end.UnixNano())
			phase := billing.PhaseRunning
			if offset < newStartup {
				phase = billing.PhaseStartup
			}
			tally(&c.life, phase)
			if at >= from.UnixNano() && at < to.UnixNano() {
				tally(&c.period, phase)
				if err := seconds.note(at, phase); err != nil {
					return err
				}
			}
		}
		clock, startup, running = end, ev.StartupMillis, ev.RunningMillis
		c.events++
		c.last = end
		c.stopped = c.stopped || ev.Kind == billing.EventStopped
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, seconds.price(c)
}

func tally(s *ledger.Seconds, p billing.Phase) {
	if p == billing.PhaseStartup {
		s.Startup++
	} else {
		s.Running++
	}
}

// pricer prices seconds in rational numbers, not in the decimals of the ledger. Equal seconds are counted first and
// multiplied at the end.
type pricer struct {
	book    *price.Book
	version int
	counts  map[secondKey]int64
}

type secondKey struct {
	version int
	phase   billing.Phase
}

// note counts a second that begins at an instant, nanoseconds since 1970.
func (p *pricer) note(at int64, phase billing.Phase) error {
	versions := p.book.Versions
	for p.version+1 < len(versions) && at >= versions[p.version+1].EffectiveFrom.UnixNano() {
		p.version++
	}
	for p.version > 0 && at < versions[p.version].EffectiveFrom.UnixNano() {
		p.version--
	}
	if at < versions[p.version].EffectiveFrom.UnixNano() {
		return price.ErrNoPrice
	}
	p.counts[secondKey{p.version, phase}]++
	return nil
}

// price adds the cost of all seconds.
func (p *pricer) price(c *recount) error {
	for k, n := range p.counts {
		r, err := p.book.Versions[k.version].Rates(c.sample.SandboxClass, c.sample.Region, k.phase)
		if err != nil {
			return err
		}
		cpu := new(big.Rat).Mul(rat(r.VCPUSecond), big.NewRat(c.sample.Size.MilliCPU, 1000))
		mem := new(big.Rat).Mul(rat(r.GiBSecond), big.NewRat(c.sample.Size.MemoryMiB, 1024))
		c.cost.Add(c.cost, cpu.Add(cpu, mem).Mul(cpu, new(big.Rat).SetInt64(n)))
	}
	return nil
}

func rat(r money.Rate) *big.Rat {
	v, ok := new(big.Rat).SetString(r.String())
	if !ok {
		return new(big.Rat)
	}
	return v
}
