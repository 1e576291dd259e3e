package directory

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

const (
	// DeviceLife is how long a login by browser may take.
	DeviceLife = 10 * time.Minute
	// DeviceInterval is how often its outcome may be asked for.
	DeviceInterval = 3 * time.Second
	// maxDevices is how many logins may be under way, maxAddressDevices from one address.
	maxDevices        = 10000
	maxAddressDevices = 100
	// codeAlphabet is of letters that are hard to mistake and spell nothing (RFC 8628, section 6.1).
	codeAlphabet = "BCDFGHJKLMNPQRSTVWXZ"
	codeLength   = 8
	// An address may try codeBurst codes at once and one more each codeEvery (RFC 8628, section 5.1).
	codeBurst = 20
	codeEvery = 3 * time.Second
)

// Outcomes of a login by browser.
const (
	devicePending = ""
	deviceDenied  = "denied"
	deviceDone    = "done"
)

// DeviceLogin is a login by browser that has just begun (RFC 8628, section 3.2).
type DeviceLogin struct {
	// Device is the secret that the command line asks with; Code what the person compares, "XXXX-XXXX".
	Device, Code string
}

// BrowserLogin is what the browser's part of a login needs.
type BrowserLogin struct {
	// Code is the person's; Link the account to which the identity is to be linked, "" for a login.
	Code, Link string
	// Provider is whom the browser was sent to; Nonce and Verifier are of that request (OpenID Connect, RFC 7636).
	Provider, Nonce, Verifier string
	device                    string
}

// newCode makes a user code of 34 random bits.
func newCode() string {
	var b strings.Builder
	for b.Len() < codeLength+1 {
		if b.Len() == codeLength/2 {
			b.WriteByte('-')
		}
		var one [1]byte
		_, _ = rand.Read(one[:]) //nolint:errcheck // it never fails
		if limit := 256 / len(codeAlphabet) * len(codeAlphabet); int(one[0]) < limit {
			b.WriteByte(codeAlphabet[int(one[0])%len(codeAlphabet)])
		}
	}
	return b.String()
}

// normalCode is a code as a person may type it, as it was given out.
func normalCode(code string) string {
	code = strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(code))
	if len(code) != codeLength {
		return ""
	}
	return code[:codeLength/2] + "-" + code[codeLength/2:]
}

// NewDeviceLogin begins a login by browser, or, with link, a proof of an identity that is to be linked to that account.
func (s *Store) NewDeviceLogin(ctx context.Context, link string) (*DeviceLogin, error) {
	d := &DeviceLogin{Device: newSecret(devicePrefix), Code: newCode()}
	address, now := registry.ActorFrom(ctx).Address, s.now()
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_device_logins WHERE created < ?`), now.Add(-DeviceLife).UnixNano()); err != nil {
			return err
		}
		if err := s.full(ctx, tx, "logins under way from your address", maxAddressDevices, `SELECT count(*) FROM registry_device_logins WHERE address = ?`, address); err != nil {
			return err
		}
		if err := s.full(ctx, tx, "logins under way", maxDevices, `SELECT count(*) FROM registry_device_logins`); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, s.db.Q(`INSERT INTO registry_device_logins
			(device, code, state, browser, nonce, verifier, address, link, account, outcome, created, polled) VALUES (?, ?, '', '', '', '', ?, ?, '', '', ?, 0)`),
			hashSecret(d.Device), hashSecret(d.Code), address, link, now.UnixNano())
		return err
	})
	return d, wrap("begin login", err)
}

// DeviceLink tells of a code that a person has: the account to which an identity is to be linked, "" for a login.
// ErrNotFound when there is no such login to finish, ErrExhausted for too many tries.
func (s *Store) DeviceLink(ctx context.Context, code string) (link string, err error) {
	if err := s.mayTryCode(ctx); err != nil {
		return "", err
	}
	err = s.db.QueryRowContext(ctx, s.db.Q(`SELECT link FROM registry_device_logins WHERE code = ? AND outcome = '' AND created > ?`),
		hashSecret(normalCode(code)), s.now().Add(-DeviceLife).UnixNano()).Scan(&link)
	if errors.Is(err, sql.ErrNoRows) {
		return "", noCode()
	}
	s.rightCode(ctx)
	return link, wrap("find login", err)
}

func noCode() error {
	return problem.New(problem.ErrNotFound, "there is no login of this code, or it has expired: begin again")
}

func (s *Store) mayTryCode(ctx context.Context) error {
	s.codeMu.Lock()
	defer s.codeMu.Unlock()
	address := registry.ActorFrom(ctx).Address
	b, ok := s.codeTries.Get(address)
	if !ok {
		b = &bucket{}
		s.codeTries.Add(address, b)
	}
	if !b.take(s.now(), codeBurst, codeEvery) {
		return &problem.Error{Class: problem.ErrExhausted, RetryAfter: codeEvery, Detail: "too many codes are tried from your address: wait a moment"}
	}
	return nil
}

// rightCode gives an address its try back.
func (s *Store) rightCode(ctx context.Context) {
	s.codeMu.Lock()
	defer s.codeMu.Unlock()
	if b, ok := s.codeTries.Get(registry.ActorFrom(ctx).Address); ok {
		b.left++
	}
}

// BeginBrowser notes that the browser which holds the secret browser goes to the provider, and comes back with state.
func (s *Store) BeginBrowser(ctx context.Context, code, browser, state string, b BrowserLogin) error {
	if err := s.mayTryCode(ctx); err != nil {
		return err
	}
	res, err := s.db.ExecContext(ctx, s.db.Q(`UPDATE registry_device_logins SET state = ?, browser = ?, provider = ?, nonce = ?, verifier = ?
		WHERE code = ? AND outcome = '' AND created > ?`), hashSecret(state), hashSecret(browser), b.Provider, b.Nonce, b.Verifier,
		hashSecret(normalCode(code)), s.now().Add(-DeviceLife).UnixNano())
	if err != nil {
		return fmt.Errorf("begin login: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, noCode())
	}
	s.rightCode(ctx)
	return nil
}

// EndBrowser gives the login that a browser comes back from the provider for, once; ErrNotFound when it is not the
// browser that went, or the login is over.
func (s *Store) EndBrowser(ctx context.Context, browser, state string) (*BrowserLogin, error) {
	var b BrowserLogin
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, s.db.Q(`SELECT device, link, provider, nonce, verifier FROM registry_device_logins
			WHERE state = ? AND browser = ? AND outcome = '' AND created > ?`), hashSecret(state), hashSecret(browser), s.now().Add(-DeviceLife).UnixNano()).
			Scan(&b.device, &b.Link, &b.Provider, &b.Nonce, &b.Verifier)
		if errors.Is(err, sql.ErrNoRows) {
			return problem.New(problem.ErrNotFound, "this browser has no login under way here, or it has expired: begin again")
		}
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_device_logins SET state = '', browser = '' WHERE device = ? AND state <> ''`), b.device)
		return oneRow(res, err, "this login is over%s", "")
	})
	if err != nil {
		return nil, wrap("end login", err)
	}
	return &b, nil
}

// FinishDevice ends a login with the account that the person has, or with "" for a refusal.
func (s *Store) FinishDevice(ctx context.Context, b *BrowserLogin, account string) error {
	outcome := deviceDone
	if account == "" {
		outcome = deviceDenied
	}
	res, err := s.db.ExecContext(ctx, s.db.Q(`UPDATE registry_device_logins SET outcome = ?, account = ? WHERE device = ? AND outcome = ''`), outcome, account, b.device)
	return oneRow(res, err, "this login is over%s", "")
}

// PollDevice gives the login that a device code was approved for, once; else one of registry's ErrLogin… errors.
func (s *Store) PollDevice(ctx context.Context, device string) (*registry.Login, error) {
	if !strings.HasPrefix(device, devicePrefix) || len(device) > 256 {
		return nil, registry.ErrLoginExpired
	}
	hash, now := hashSecret(device), s.now()
	var account, outcome string
	var failed error
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		var created, polled int64
		err := tx.QueryRowContext(ctx, s.db.Q(`SELECT account, outcome, created, polled FROM registry_device_logins WHERE device = ?`), hash).
			Scan(&account, &outcome, &created, &polled)
		switch {
		case errors.Is(err, sql.ErrNoRows), err == nil && now.Sub(time.Unix(0, created)) > DeviceLife:
			failed = registry.ErrLoginExpired
			return nil
		case err != nil:
			return err
		case outcome == devicePending:
			failed = registry.ErrLoginPending
			if now.Sub(time.Unix(0, polled)) < DeviceInterval*9/10 {
				failed = registry.ErrLoginSlowDown
			}
			_, err := tx.ExecContext(ctx, s.db.Q(`UPDATE registry_device_logins SET polled = ? WHERE device = ?`), now.UnixNano(), hash)
			return err
		case outcome == deviceDenied:
			failed = registry.ErrLoginDenied
		}
		// Whatever it was, it is told once: of two that ask at the same time, one gets it.
		res, err := tx.ExecContext(ctx, s.db.Q(`DELETE FROM registry_device_logins WHERE device = ?`), hash)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			failed = registry.ErrLoginExpired
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("poll login: %w", err)
	}
	if failed != nil {
		return nil, failed
	}
	a, err := s.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	if a.Disabled {
		return nil, disabled()
	}
	return &registry.Login{Account: *a}, nil
}
