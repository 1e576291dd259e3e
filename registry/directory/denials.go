package directory

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"cumulet.io/registry"
)

// How denials are kept in bounds.
const (
	// repeatWindow is how long equal denials are counted before one entry tells how many there were.
	repeatWindow = 5 * time.Minute
	// maxRepeats bounds how many kinds are counted at once.
	maxRepeats = 4096
	// One address may have addressBurst kinds written at once and one more each addressEvery; all together allBurst
	// and one more each allEvery, which is some 12 MB a day at most.
	addressBurst = 50
	addressEvery = 12 * time.Second
	allBurst     = 1000
	allEvery     = 2 * time.Second
	// maxAddresses bounds the memory of addresses.
	maxAddresses = 1 << 14
)

// repeat is a kind of denial that has been written once.
type repeat struct {
	entry  registry.AuditEntry
	since  time.Time
	last   time.Time
	repeat int
}

// bucket lets a burst through and then a steady trickle.
type bucket struct {
	left float64
	at   time.Time
}

func (b *bucket) take(now time.Time, burst float64, every time.Duration) bool {
	if b.at.IsZero() {
		b.left = burst
	}
	b.left = min(burst, b.left+float64(now.Sub(b.at))/float64(every))
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// denials decides which denials are written. What it counts is in memory: a crash loses counts, never first entries.
type denials struct {
	now func() time.Time

	mu        sync.Mutex
	seen      *simplelru.LRU[string, *repeat]
	addresses *simplelru.LRU[string, *bucket]
	all       bucket
	// due are entries of counts to write with the next one.
	due []registry.AuditEntry
	// folded counts what was not even written once, from foldedLast the last time.
	folded     int
	foldedLast registry.AuditEntry
}

func newDenials(now func() time.Time) (*denials, error) {
	d := &denials{now: now}
	var err error
	if d.addresses, err = simplelru.NewLRU[string, *bucket](maxAddresses, nil); err != nil {
		return nil, err
	}
	d.seen, err = simplelru.NewLRU(maxRepeats, func(_ string, r *repeat) { d.finish(r) })
	return d, err
}

// finish makes the entry of a kind's count. The caller holds mu.
func (d *denials) finish(r *repeat) {
	if r.repeat == 0 {
		return
	}
	e := r.entry
	e.Time = r.last
	e.Detail = map[string]string{"repeated": strconv.Itoa(r.repeat), "since": r.since.UTC().Format(time.RFC3339Nano)}
	for k, v := range r.entry.Detail {
		e.Detail[k] = v
	}
	d.due = append(d.due, e)
}

// take counts a denial and gives the entries to write now.
func (d *denials) take(e registry.AuditEntry) []registry.AuditEntry {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if e.Time.IsZero() {
		e.Time = now
	}
	key := strings.Join([]string{e.Org, e.Actor, e.Address, e.Action, e.Target, e.Detail["reason"]}, "\x00")
	if r, ok := d.seen.Get(key); ok {
		if now.Sub(r.since) < repeatWindow {
			r.repeat++
			r.last = now
			return nil
		}
		d.seen.Remove(key) // its count falls due
	}
	b, ok := d.addresses.Get(e.Address)
	if !ok {
		b = &bucket{}
		d.addresses.Add(e.Address, b)
	}
	if !b.take(now, addressBurst, addressEvery) || !d.all.take(now, allBurst, allEvery) {
		d.folded++
		d.foldedLast = e
		return d.takeDue()
	}
	d.seen.Add(key, &repeat{entry: e, since: now, last: now})
	return append(d.takeDue(), e)
}

func (d *denials) takeDue() []registry.AuditEntry {
	due := d.due
	d.due = nil
	return due
}

// flush gives the counts whose window is over, and with all every count.
func (d *denials) flush(all bool) []registry.AuditEntry {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	for _, key := range d.seen.Keys() {
		if r, ok := d.seen.Peek(key); ok && (all || now.Sub(r.since) >= repeatWindow) {
			d.seen.Remove(key)
		}
	}
	if d.folded > 0 {
		d.due = append(d.due, registry.AuditEntry{Time: d.foldedLast.Time, Address: d.foldedLast.Address, Action: "audit.folded", Denied: true,
			Detail: map[string]string{"reason": "too many denials to keep each", "entries": strconv.Itoa(d.folded), "last": d.foldedLast.Action}})
		d.folded = 0
	}
	return d.takeDue()
}
