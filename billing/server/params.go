package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/ledger"
	"cumulet.io/internal/params"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

const (
	maxQueryBytes = 4 << 10
	maxBodyBytes  = 16 << 10
)

// query reads the query of a call that takes the named parameters; none may be empty.
func query(r *http.Request, names ...string) *params.Query {
	q := params.Read(r, "this call", maxQueryBytes, names...)
	q.RefuseEmpty()
	return q
}

// period makes a period of its three texts; all empty means the current month.
func (s *server) period(month, from, to string) (ledger.Period, error) {
	var p ledger.Period
	switch {
	case month != "" && (from != "" || to != ""):
		return p, problem.Invalid("period", "is given alone, or from and to are", month)
	case month != "":
		m, err := ledger.ParseMonth(month)
		if err != nil {
			return p, problem.Invalid("period", "must be a month, as 2026-11", month)
		}
		return ledger.Period{Month: m}, nil
	case from == "" && to == "":
		return ledger.Period{Month: ledger.MonthOf(s.cfg.Now())}, nil
	}
	var err error
	if p.From, err = instant("from", from); err != nil {
		return p, err
	}
	if p.To, err = instant("to", to); err != nil {
		return p, err
	}
	if !p.From.Before(p.To) {
		return p, problem.Invalid("to", "must be after from", to)
	}
	if _, _, err := p.Bounds(); err != nil {
		return p, problem.Invalid("from", "must be in the years 2020 to 2199", from)
	}
	return p, nil
}

// instant reads a full hour, or a day as its first hour.
func instant(name, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t, err = time.Parse(time.DateOnly, text)
	}
	if err != nil || !t.Equal(t.Truncate(time.Hour)) {
		return t, problem.Invalid(name, "must be a full hour UTC, as 2026-11-22T10:00:00Z, or a day, as 2026-11-22", text)
	}
	return t.UTC(), nil
}

// org gives the path's org when the token may do action in it.
func org(r *http.Request, action string) (string, error) {
	name := r.PathValue("org")
	if !billing.ValidIdentifier(name) {
		return "", problem.Invalid("org", "must be the name of an organisation", name)
	}
	if !hubtoken.FromContext(r.Context()).AllowsOrg(name, action) {
		return "", problem.New(problem.ErrForbidden, "the token does not give %s access to the bills of organisation %q", action, name)
	}
	return name, nil
}

// operator refuses everyone but the platform's operator.
func operator(r *http.Request) error {
	if !isOperator(r) {
		return problem.New(problem.ErrForbidden, "this needs the platform's operator role")
	}
	return nil
}

func isOperator(r *http.Request) bool {
	return hubtoken.FromContext(r.Context()).Allows(hubtoken.TypePlatform, "*", hubtoken.ActionOperator)
}

// body decodes one JSON object strictly.
func body(w http.ResponseWriter, r *http.Request, into any) error {
	if t := r.Header.Get("Content-Type"); t != "" && t != "application/json" && !strings.HasPrefix(t, "application/json;") {
		return problem.Invalid("Content-Type", "must be application/json", t)
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("text follows the object")
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &tooLarge):
		return err
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return problem.Invalid(strings.Trim(name, `"`), "is not a field of this call", strings.Trim(name, `"`))
	}
	return problem.New(problem.ErrInvalid, "the body must be one JSON object: %v", err)
}
