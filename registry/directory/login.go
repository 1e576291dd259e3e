package directory

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// provenFor is how long a password found right need not be hashed again. A changed password counts at once all the
// same, since the stored hash is part of what is remembered.
const (
	provenFor = 5 * time.Minute
	maxProven = 4096
)

type proof struct {
	digest [32]byte
	until  time.Time
}

// Authenticate checks a password. client is the caller's network address without port, for the throttle. A wrong
// password and a missing account give the same error of class ErrUnauthenticated after the same work; too many tries
// give ErrExhausted with RetryAfter, whether or not the account exists and the password is right.
func (s *Store) Authenticate(ctx context.Context, name, password, client string) (*registry.Account, error) {
	if registry.ValidateAccount("name", name) != nil || len(password) > registry.MaxPasswordLength {
		return nil, wrongPassword() // can never be right: nothing to protect, nothing to remember
	}
	stripe := s.stripe(name, client)
	if err := acquire(ctx, stripe); err != nil {
		return nil, err
	}
	defer func() { <-stripe }()
	if err := s.mayTry(name, client); err != nil {
		return nil, err
	}
	account, hash, err := s.account(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		account, hash = nil, s.decoy
	} else if err != nil {
		return nil, err
	}
	ok, err := s.check(ctx, name, client, password, hash)
	if err != nil {
		return nil, err
	}
	if !ok || account == nil {
		s.throttle.failed(name, client)
		return nil, wrongPassword()
	}
	s.throttle.succeeded(name, client)
	return account, nil
}

func wrongPassword() error {
	return problem.New(problem.ErrUnauthenticated, "the user name or the password is wrong")
}

func (s *Store) mayTry(name, client string) error {
	if wait := s.throttle.wait(name, client); wait > 0 {
		return &problem.Error{Class: problem.ErrExhausted, RetryAfter: wait,
			Detail: "too many failed logins: wait before the next"}
	}
	return nil
}

// check compares with the stored hash, by memory where the same was found right lately.
func (s *Store) check(ctx context.Context, name, client, password, hash string) (bool, error) {
	mac := hmac.New(sha256.New, s.proveKey[:])
	mac.Write([]byte(hash + "\x00" + password))
	digest := [32]byte(mac.Sum(nil))
	if known, ok := s.proven.Get(name); ok && s.now().Before(known.until) && hmac.Equal(known.digest[:], digest[:]) {
		return true, nil
	}
	if err := acquire(ctx, s.hashing); err != nil {
		return false, err
	}
	defer func() { <-s.hashing }()
	// Others may have failed while this one waited.
	if err := s.mayTry(name, client); err != nil {
		return false, err
	}
	ok, err := checkPassword(password, hash)
	if ok && hash != s.decoy {
		s.proven.Add(name, proof{digest: digest, until: s.now().Add(provenFor)})
	}
	return ok, err
}

func (s *Store) hash(ctx context.Context, password string) (string, error) {
	if err := acquire(ctx, s.hashing); err != nil {
		return "", err
	}
	defer func() { <-s.hashing }()
	return hashPassword(password, s.cost)
}

func (s *Store) stripe(name, client string) chan struct{} {
	h := fnv.New32a()
	_, _ = h.Write([]byte(pairKey(name, client))) //nolint:errcheck // a hash never fails
	return s.stripes[h.Sum32()%uint32(len(s.stripes))]
}

func acquire(ctx context.Context, sem chan struct{}) error {
	select {
	case sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait to check the password: %w", ctx.Err())
	}
}
