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

// provenFor is how long after its last use a password found right need not be hashed again. A changed password counts at once all the
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
//
// Service accounts are not locked out: their passwords are too long to guess, and a tenant's instance that shares its
// machine's address with a platform component must not be able to stop that component.
func (s *Store) Authenticate(ctx context.Context, name, password, client string) (*registry.Account, error) {
	if registry.ValidateAccount("name", name) != nil || len(password) > registry.MaxPasswordLength {
		return nil, wrongPassword() // can never be right: nothing to protect, nothing to remember
	}
	account, hash, err := s.account(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		account, hash = nil, s.decoy
	} else if err != nil {
		return nil, err
	}
	if hash == "" { // an account without password, as OpenID Connect makes it
		account, hash = nil, s.decoy
	}
	service := account != nil && account.Kind == registry.Service
	if service && !account.Disabled && s.isProven(name, password, hash) {
		return account, nil // at once, past any queue of guesses
	}
	stripe := s.stripe(name, client)
	if err := acquire(ctx, stripe); err != nil {
		return nil, err
	}
	defer func() { <-stripe }()
	var pair attempts
	mayTry := func() (err error) {
		if !service {
			pair, err = s.mayTry(ctx, name, client)
		}
		return err
	}
	if err := mayTry(); err != nil {
		return nil, err
	}
	ok := s.isProven(name, password, hash)
	if !ok {
		if ok, err = s.check(ctx, password, hash, mayTry); err != nil {
			return nil, err
		}
	}
	if !ok || account == nil {
		if !service {
			if err := s.failed(ctx, name, client); err != nil {
				return nil, err
			}
		}
		return nil, wrongPassword()
	}
	s.prove(name, password, hash)
	if !service {
		if err := s.succeeded(ctx, name, client, pair); err != nil {
			return nil, err
		}
	}
	if account.Disabled {
		return nil, disabled()
	}
	return account, nil
}

func wrongPassword() error {
	return problem.New(problem.ErrUnauthenticated, "the user name or the password is wrong")
}

// digest is what is remembered of a password and the hash that it was checked against.
func (s *Store) digest(password, hash string) [32]byte {
	mac := hmac.New(sha256.New, s.proveKey[:])
	mac.Write([]byte(hash + "\x00" + password))
	return [32]byte(mac.Sum(nil))
}

func (s *Store) isProven(name, password, hash string) bool {
	known, ok := s.proven.Get(name)
	digest := s.digest(password, hash)
	if !ok || !s.now().Before(known.until) || !hmac.Equal(known.digest[:], digest[:]) {
		return false
	}
	s.prove(name, password, hash)
	return true
}

func (s *Store) prove(name, password, hash string) {
	s.proven.Add(name, proof{digest: s.digest(password, hash), until: s.now().Add(provenFor)})
}

// check hashes the password and compares, when it is this caller's turn and mayTry, asked again, lets it.
func (s *Store) check(ctx context.Context, password, hash string, mayTry func() error) (bool, error) {
	if err := acquire(ctx, s.hashing); err != nil {
		return false, err
	}
	defer func() { <-s.hashing }()
	// Others may have failed while this one waited.
	if err := mayTry(); err != nil {
		return false, err
	}
	return checkPassword(password, hash)
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
