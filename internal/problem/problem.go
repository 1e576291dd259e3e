// Package problem holds the platform's few error classes and their one mapping to HTTP: RFC 9457 problem+json.
//
// A domain package returns errors made here; an HTTP front answers with Write; a client turns an answer back into
// the same class with Read, so errors.Is works across a process boundary. It is not for transport or logging.
package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The classes. Test with errors.Is.
var (
	ErrInvalid         = errors.New("invalid")
	ErrUnauthenticated = errors.New("unauthenticated")
	ErrForbidden       = errors.New("forbidden")
	ErrNotFound        = errors.New("not found")
	ErrConflict        = errors.New("conflict")
	ErrGone            = errors.New("gone")
	ErrTooLarge        = errors.New("too large")
	ErrExhausted       = errors.New("resource exhausted")
	ErrUnsupported     = errors.New("unsupported")
	ErrUnavailable     = errors.New("unavailable")
)

type class struct {
	err    error
	status int
	slug   string
	title  string
}

// classes is the single mapping between a class, its status and its type URI.
func classes() []class {
	return []class{
		{ErrInvalid, http.StatusBadRequest, "invalid", "The request is not valid"},
		{ErrUnauthenticated, http.StatusUnauthorized, "unauthenticated", "No valid credential"},
		{ErrForbidden, http.StatusForbidden, "forbidden", "Not allowed"},
		{ErrNotFound, http.StatusNotFound, "not-found", "No such thing"},
		{ErrConflict, http.StatusConflict, "conflict", "Conflicts with what is there"},
		{ErrGone, http.StatusGone, "gone", "No longer there"},
		{ErrTooLarge, http.StatusRequestEntityTooLarge, "too-large", "Too large"},
		{ErrExhausted, http.StatusTooManyRequests, "exhausted", "A limit is reached"},
		{ErrUnsupported, http.StatusNotImplemented, "unsupported", "Not supported here"},
		{ErrUnavailable, http.StatusServiceUnavailable, "unavailable", "Try again later"},
	}
}

const typePrefix = "https://cumulet.io/problems/"

// Error is an error of one class, with what a user needs to mend it.
type Error struct {
	// Class is one of the Err… values.
	Class error
	// Detail is one sentence for the user: what was wrong and what to do. It never holds a secret.
	Detail string
	// Field is the JSON path of the offending field, as "spec.containers[0].image"; empty where there is none.
	Field string
	// Rule is what the field must satisfy.
	Rule string
	// Value is the offending value as text, cut to 200 bytes; empty when it might be a secret.
	Value string
	// RetryAfter asks the client to wait; zero means no advice.
	RetryAfter time.Duration
}

// Error says the class, the field and the detail.
func (e *Error) Error() string {
	if e.Field != "" {
		return fmt.Sprintf("%s: %s: %s", e.Class, e.Field, e.Detail)
	}
	return fmt.Sprintf("%s: %s", e.Class, e.Detail)
}

// Unwrap gives the class, so that errors.Is(err, ErrNotFound) holds.
func (e *Error) Unwrap() error { return e.Class }

// New makes an error of a class with a formatted detail.
func New(class error, format string, args ...any) *Error {
	return &Error{Class: class, Detail: fmt.Sprintf(format, args...)}
}

// Invalid names a field, the rule that it breaks and the value that breaks it.
func Invalid(field, rule string, value any) *Error {
	v := fmt.Sprint(value)
	if len(v) > 200 {
		v = v[:200] + "…"
	}
	return &Error{Class: ErrInvalid, Field: field, Rule: rule, Value: v, Detail: fmt.Sprintf("%s, not %q", rule, v)}
}

// InvalidSecret is Invalid for a field whose value must not be repeated.
func InvalidSecret(field, rule string) *Error {
	return &Error{Class: ErrInvalid, Field: field, Rule: rule, Detail: rule}
}

// Document is the body of a problem+json answer (RFC 9457, section 3.1), with the platform's members.
type Document struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	Field     string `json:"field,omitempty"`
	Rule      string `json:"rule,omitempty"`
	Value     string `json:"value,omitempty"`
	RequestID string `json:"requestId,omitempty"`
}

// Of gives the document for an error. An error of no class is a 500 whose text stays inside.
func Of(err error) Document {
	for _, c := range classes() {
		if !errors.Is(err, c.err) {
			continue
		}
		d := Document{Type: typePrefix + c.slug, Title: c.title, Status: c.status}
		var e *Error
		if errors.As(err, &e) {
			d.Detail, d.Field, d.Rule, d.Value = e.Detail, e.Field, e.Rule, e.Value
		}
		return d
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return Of(New(ErrTooLarge, "the body is larger than %d bytes", tooLarge.Limit))
	}
	return Document{Type: "about:blank", Title: "Internal error", Status: http.StatusInternalServerError,
		Detail: "the server failed; its log has the cause under this request id"}
}

// Write answers with the problem of err and returns the status it sent. The request id, when a front has set one on
// the response header (X-Request-Id), is repeated in the body.
func Write(w http.ResponseWriter, err error) int {
	return WriteAs(w, err, func(d Document) any { return d })
}

// WriteAs is Write with a document that has extension members (RFC 9457, section 3.2) besides the platform's.
func WriteAs(w http.ResponseWriter, err error, extended func(Document) any) int {
	d := Of(err)
	d.RequestID = w.Header().Get("X-Request-Id")
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(d.Status)
	_ = json.NewEncoder(w).Encode(extended(d)) //nolint:errcheck // the client has gone; nothing is left to tell it
	return d.Status
}

// Read turns an answer of status 400 or above into an error of its class; the body is read up to 64 KiB and not closed.
func Read(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) //nolint:errcheck // what was read is enough to say
	var d Document
	if json.Unmarshal(body, &d) != nil || d.Status == 0 {
		d = Document{Status: resp.StatusCode, Detail: fmt.Sprintf("%s answered %s", resp.Request.URL.Host, resp.Status)}
	}
	for _, c := range classes() {
		if c.status == resp.StatusCode {
			return &Error{Class: c.err, Detail: d.Detail, Field: d.Field, Rule: d.Rule, Value: d.Value}
		}
	}
	return fmt.Errorf("server error %d: %s (request %s)", resp.StatusCode, d.Detail, d.RequestID)
}
