package directory

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// How guessing is slowed. A pair is an account name and a client address; names that do not exist are treated alike,
// so that the throttle tells nobody which do.
const (
	// freeFailures of a pair cost nothing; each further one doubles the wait, from a second up to maxPairWait.
	freeFailures = 5
	maxPairWait  = 15 * time.Minute
	// nameFailures against one name from any address within failureMemory make strangers wait nameWait a guess.
	// Addresses from which the account has logged in before are let through, so that nobody is locked out by others.
	nameFailures  = 100
	nameWait      = 10 * time.Second
	failureMemory = 30 * time.Minute
	// maxTracked bounds the memory: the least recently seen go first.
	maxTracked = 1 << 16
)

type attempts struct {
	failures int
	last     time.Time
	good     bool // a pair that has logged in
}

// throttle remembers failed logins in this process; behind a load balancer each process counts for itself.
type throttle struct {
	now func() time.Time

	mu   sync.Mutex
	seen *simplelru.LRU[string, attempts]
}

func newThrottle(now func() time.Time) (*throttle, error) {
	seen, err := simplelru.NewLRU[string, attempts](maxTracked, nil)
	if err != nil {
		return nil, err
	}
	return &throttle{now: now, seen: seen}, nil
}

func pairKey(name, client string) string { return name + "\x00" + client }

// get gives what is remembered, without failures that are too old to count. The caller holds mu.
func (t *throttle) get(key string) attempts {
	a, _ := t.seen.Get(key)
	if t.now().Sub(a.last) > failureMemory {
		a.failures = 0
	}
	return a
}

// wait tells how long this client must wait before it may try this name; 0 is now.
func (t *throttle) wait(name, client string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair, all := t.get(pairKey(name, client)), t.get(name)
	var until time.Time
	if n := pair.failures - freeFailures; n >= 0 {
		pause := maxPairWait
		if n < 20 {
			pause = min(time.Second<<n, maxPairWait)
		}
		until = pair.last.Add(pause)
	}
	if all.failures >= nameFailures && !pair.good {
		if u := all.last.Add(nameWait); u.After(until) {
			until = u
		}
	}
	return max(until.Sub(t.now()), 0)
}

func (t *throttle) failed(name, client string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range []string{name, pairKey(name, client)} {
		a := t.get(key)
		a.failures++
		a.last = t.now()
		t.seen.Add(key, a)
	}
}

func (t *throttle) succeeded(name, client string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen.Add(pairKey(name, client), attempts{good: true})
}
