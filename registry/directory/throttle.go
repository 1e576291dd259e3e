package directory

import (
	"context"
	"fmt"
	"time"

	"cumulet.io/internal/problem"
)

// How guessing is slowed. A pair is an account name and a client address; names that do not exist are treated alike,
// so that the throttle tells nobody which do. All nodes count together, in the database; each has one guess of a pair
// under way at a time.
const (
	// freeFailures of a pair cost nothing; each further one doubles the wait, from a second up to maxPairWait.
	freeFailures = 5
	maxPairWait  = 15 * time.Minute
	// nameFailures against one name from any address within failureMemory make strangers wait nameWait a guess.
	// Addresses from which the account has logged in before are let through, so that nobody is locked out by others.
	nameFailures  = 100
	nameWait      = 10 * time.Second
	failureMemory = 30 * time.Minute
	// An address is remembered goodMemory long as one that the account has logged in from, noted goodTouch apart, so that
	// most good logins write nothing.
	goodMemory = 90 * 24 * time.Hour
	goodTouch  = 24 * time.Hour
	// maxTracked bounds the rows of either kind: the oldest go first.
	maxTracked = 1 << 16
)

// attempts is what is remembered of a name or a pair.
type attempts struct {
	failures int
	last     time.Time
	good     bool
}

func pairKey(name, client string) string { return name + "\x00" + client }

// attempts gives what is remembered of a pair and of its name, without failures that are too old to count.
func (s *Store) attempts(ctx context.Context, name, client string) (pair, all attempts, err error) {
	type row struct {
		who string
		attempts
	}
	found, err := s.db.QueryContext(ctx, s.db.Q(`SELECT who, failures, last, good FROM registry_login_attempts WHERE who IN (?, ?)`),
		hashSecret(name), hashSecret(pairKey(name, client)))
	rows, err := collect(found, err, "read failed logins", func(scan func(...any) error) (row, error) {
		var r row
		var last, good int64
		err := scan(&r.who, &r.failures, &last, &good)
		r.last, r.good = instant(last), good != 0
		return r, err
	})
	for _, r := range rows {
		if s.now().Sub(r.last) > failureMemory {
			r.failures = 0
		}
		if r.who == hashSecret(name) {
			all = r.attempts
		} else {
			pair = r.attempts
		}
	}
	return pair, all, err
}

// mayTry is an error of class ErrExhausted while this client must wait before it may try this name. It gives what is
// remembered of the pair.
func (s *Store) mayTry(ctx context.Context, name, client string) (attempts, error) {
	pair, all, err := s.attempts(ctx, name, client)
	if err != nil {
		return pair, err
	}
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
	if wait := until.Sub(s.now()); wait > 0 {
		err = &problem.Error{Class: problem.ErrExhausted, RetryAfter: wait, Detail: "too many failed logins: wait before the next"}
	}
	return pair, err
}

// failed counts a failure.
func (s *Store) failed(ctx context.Context, name, client string) error {
	now := s.now()
	// A client that does not wait for the answer is counted too. The name is first, so that those who fail at it wait in turn.
	_, err := s.db.ExecContext(context.WithoutCancel(ctx), s.db.Q(`INSERT INTO registry_login_attempts (who, failures, last, good) VALUES (?, 1, ?, 0), (?, 1, ?, 0)
		ON CONFLICT (who) DO UPDATE SET last = excluded.last,
			failures = CASE WHEN registry_login_attempts.last < ? THEN 1 ELSE registry_login_attempts.failures + 1 END`),
		hashSecret(name), now.UnixNano(), hashSecret(pairKey(name, client)), now.UnixNano(), now.Add(-failureMemory).UnixNano())
	return wrap("count failed login", err)
}

// succeeded forgets a pair's failures and remembers it as good, where that is not known yet.
func (s *Store) succeeded(ctx context.Context, name, client string, pair attempts) error {
	if pair.good && pair.failures == 0 && s.now().Sub(pair.last) < goodTouch {
		return nil
	}
	_, err := s.db.ExecContext(ctx, s.db.Q(`INSERT INTO registry_login_attempts (who, failures, last, good) VALUES (?, 0, ?, 1)
		ON CONFLICT (who) DO UPDATE SET failures = 0, last = excluded.last, good = 1`), hashSecret(pairKey(name, client)), s.now().UnixNano())
	return wrap("note login", err)
}

// pruneAttempts forgets what is too old to matter, and the oldest of what is too much.
func (s *Store) pruneAttempts(ctx context.Context) error {
	for good, memory := range []time.Duration{failureMemory, goodMemory} {
		if _, err := s.db.ExecContext(ctx, s.db.Q(`DELETE FROM registry_login_attempts WHERE good = ? AND last < ?`), good, s.now().Add(-memory).UnixNano()); err != nil {
			return fmt.Errorf("forget failed logins: %w", err)
		}
		for n := int64(1); n > 0; {
			res, err := s.db.ExecContext(ctx, s.db.Q(`DELETE FROM registry_login_attempts WHERE who IN
				(SELECT who FROM registry_login_attempts WHERE good = ? ORDER BY last DESC LIMIT 1000 OFFSET ?)`), good, s.tracked)
			if err == nil {
				n, err = res.RowsAffected()
			}
			if err != nil {
				return fmt.Errorf("forget failed logins: %w", err)
			}
		}
	}
	return nil
}
