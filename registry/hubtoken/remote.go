package hubtoken

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxWaiters bounds how many requests with an unknown key id wait for the next fetch; more are refused at once.
const maxWaiters = 64

// remoteKeys keeps the keys of a JWKS URL.
type remoteKeys struct {
	url             string
	client          *http.Client
	refetch, maxAge time.Duration
	now             func() time.Time

	// turn has one place: its holder may fetch.
	turn    chan struct{}
	waiters atomic.Int32

	mu      sync.RWMutex
	keys    map[string]PublicKey
	fetched time.Time // of keys
	tried   time.Time // of the last fetch, good or bad
	lastErr error     // of the last fetch
}

// find gives a known key at once, renewing the set in passing when it is old. An unknown one is looked for in a fresh
// set: after a rotation the first token of the new key may come a moment after a fetch, so it waits out Refetch.
func (r *remoteKeys) find(ctx context.Context, kid string) (PublicKey, bool, error) {
	asked := r.now()
	r.mu.RLock()
	key, ok := r.keys[kid]
	fresh := asked.Sub(r.fetched) < r.maxAge
	resting := asked.Sub(r.tried) < max(r.refetch, r.maxAge/10)
	r.mu.RUnlock()
	if ok && (fresh || resting) {
		return key, true, nil
	}
	if ok {
		// Old: one caller renews, the others go on with what is known, and so does this one when it fails.
		select {
		case r.turn <- struct{}{}:
			_ = r.fetch(ctx) //nolint:errcheck // kept in lastErr; the known keys serve
			<-r.turn
		default:
			return key, true, nil
		}
		r.mu.RLock()
		defer r.mu.RUnlock()
		key, ok = r.keys[kid]
		return key, ok, nil
	}
	if r.waiters.Add(1) > maxWaiters {
		r.waiters.Add(-1)
		return PublicKey{}, false, r.without()
	}
	defer r.waiters.Add(-1)
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return PublicKey{}, false, ctx.Err()
	}
	return r.findFresh(ctx, kid, asked)
}

// findFresh looks for kid in a set fetched after asked. The caller holds the turn.
func (r *remoteKeys) findFresh(ctx context.Context, kid string, asked time.Time) (PublicKey, bool, error) {
	r.mu.RLock()
	key, ok := r.keys[kid]
	tried, lastErr := r.tried, r.lastErr
	r.mu.RUnlock()
	if ok {
		return key, true, nil
	}
	if !tried.Before(asked) && lastErr != nil {
		return PublicKey{}, false, lastErr // another waiter has just tried
	}
	if tried.Before(asked) {
		if wait := r.refetch - r.now().Sub(tried); wait > 0 && !tried.IsZero() {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return PublicKey{}, false, ctx.Err()
			}
		}
		if err := r.fetch(ctx); err != nil {
			return PublicKey{}, false, err
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	key, ok = r.keys[kid]
	return key, ok, nil
}

// without tells a caller that may not fetch whether its key is unknown or the keys are.
func (r *remoteKeys) without() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.keys == nil || r.lastErr != nil {
		return errors.New("token keys: not fetched yet")
	}
	return nil
}

// fetch replaces the set when the URL answers a good one. The caller holds the turn.
func (r *remoteKeys) fetch(ctx context.Context) error {
	begun := r.now()
	set, err := r.get(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil && err != nil {
		return err // the caller left: this says nothing about the URL
	}
	r.tried, r.lastErr = begun, err
	if err != nil {
		return err
	}
	r.keys, r.fetched = set, begun
	return nil
}

func (r *remoteKeys) get(ctx context.Context) (map[string]PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch token keys: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch token keys: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch token keys: %s", resp.Status)
	}
	doc, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKSBytes+1))
	if err != nil {
		return nil, fmt.Errorf("fetch token keys: %w", err)
	}
	list, err := ParseJWKS(doc)
	if err != nil {
		return nil, err
	}
	set := make(map[string]PublicKey, len(list))
	for _, k := range list {
		set[k.KID] = k
	}
	return set, nil
}
