package embedded

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
)

// Credential is a user with its password.
type Credential struct {
	User     string
	Password string
}

// String keeps the password out of prints.
func (c Credential) String() string { return c.User }

// GoString keeps the password out of %#v.
func (c Credential) GoString() string { return fmt.Sprintf("Credential{User: %q}", c.User) }

func (c Credential) check(role string) error {
	if c.User == "" || len(c.Password) < 8 {
		return errors.New("the " + role + " needs a name and a password of 8 characters or more")
	}
	return nil
}

// is compares in constant time; the hashes hide the lengths.
func (c Credential) is(user, password string) bool {
	u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	cu, cp := sha256.Sum256([]byte(c.User)), sha256.Sum256([]byte(c.Password))
	return subtle.ConstantTimeCompare(u[:], cu[:])&subtle.ConstantTimeCompare(p[:], cp[:]) == 1
}

// authorize lets the writer do all and the reader read.
func (s *Store) authorize(r *http.Request, write bool) error {
	user, password, ok := r.BasicAuth()
	if ok {
		writer, reader := s.o.Writer.is(user, password), s.o.Reader.is(user, password)
		switch {
		case writer, reader && !write:
			return nil
		case reader:
			return &apiError{status: http.StatusForbidden, typ: "security_exception", reason: "user [" + s.o.Reader.User + "] may only read"}
		}
	}
	return &apiError{status: http.StatusUnauthorized, typ: "security_exception", reason: "missing or wrong authentication credentials"}
}
