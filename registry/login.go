package registry

import "errors"

// Why a login by browser gives no token (RFC 8628, section 3.5).
var (
	// ErrLoginPending: the person has not finished.
	ErrLoginPending = errors.New("the login is not finished in the browser yet")
	// ErrLoginSlowDown: it was asked for too often.
	ErrLoginSlowDown = errors.New("the login is asked for too often: wait longer between two tries")
	// ErrLoginDenied: the person may not log in.
	ErrLoginDenied = errors.New("the login was refused")
	// ErrLoginExpired: it took too long, or there is no such login.
	ErrLoginExpired = errors.New("the login has expired: begin again")
)
