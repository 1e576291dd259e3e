package server

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/ledger"
	"cumulet.io/billing/reconcile"
	"cumulet.io/billing/statement"
	"cumulet.io/internal/params"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

func (s *server) statement(r *http.Request, q *params.Query) (*statement.Statement, error) {
	name, err := org(r, hubtoken.ActionRead)
	if err != nil {
		return nil, err
	}
	p, err := s.period(q.Get("period"), q.Get("from"), q.Get("to"))
	if err != nil {
		return nil, err
	}
	b, err := s.cfg.Ledger.Bill(r.Context(), name, p)
	if err != nil {
		return nil, err
	}
	return statement.Build(b)
}

func (s *server) bill(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "period", "from", "to", "group")
	if err := q.Err(); err != nil {
		return err
	}
	g := statement.Group(q.Get("group"))
	switch g {
	case statement.Everything, statement.ByInstance, statement.ByDay:
	default:
		return problem.Invalid("group", "must be instance or day", g)
	}
	st, err := s.statement(r, q)
	if err != nil {
		return err
	}
	return answer(w, st.Show(g))
}

func (s *server) focus(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "period", "from", "to")
	if err := q.Err(); err != nil {
		return err
	}
	st, err := s.statement(r, q)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := st.WriteFOCUS(&b, s.cfg.Focus); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/csv; charset=utf-8")
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s-%s.focus.csv"`, st.Org, st.From.Format("20060102T15")))
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(b.Bytes()) //nolint:errcheck // the client has gone
	return nil
}

// reconcileRequest is the body of POST /v1/reconcile.
type reconcileRequest struct {
	// Org is the org to reconcile; "" means all, for the operator.
	Org    string `json:"org"`
	Period string `json:"period"`
	From   string `json:"from"`
	To     string `json:"to"`
}

// Reconciliation is the answer of POST /v1/reconcile.
type Reconciliation struct {
	// OK is whether every report is.
	OK      bool                `json:"ok"`
	Reports []*reconcile.Report `json:"reports"`
}

func (s *server) reconcile(w http.ResponseWriter, r *http.Request) error {
	if err := query(r).Err(); err != nil {
		return err
	}
	var req reconcileRequest
	if err := body(w, r, &req); err != nil {
		return err
	}
	claims := hubtoken.FromContext(r.Context())
	switch {
	case req.Org != "" && !billing.ValidIdentifier(req.Org):
		return problem.Invalid("org", "must be the name of an organisation", req.Org)
	case isOperator(r):
	case req.Org == "":
		return problem.New(problem.ErrForbidden, "to reconcile all organisations needs the platform's operator role; name one that you administer")
	case !claims.AllowsOrg(req.Org, hubtoken.ActionAdmin):
		return problem.New(problem.ErrForbidden, "to reconcile organisation %q needs admin access to it", req.Org)
	}
	p, err := s.period(req.Period, req.From, req.To)
	if err != nil {
		return err
	}
	select {
	case s.heavy <- struct{}{}:
		defer func() { <-s.heavy }()
	default:
		return &problem.Error{Class: problem.ErrExhausted, Detail: "other reconciliations are running", RetryAfter: 5 * time.Second}
	}
	orgs := []string{req.Org}
	if req.Org == "" {
		if orgs, err = s.cfg.Ledger.Orgs(r.Context(), p); err != nil {
			return err
		}
	}
	out := Reconciliation{OK: true, Reports: []*reconcile.Report{}}
	for _, name := range orgs {
		rep, err := reconcile.Run(r.Context(), s.cfg.Ledger, s.cfg.Inventory, name, p, s.cfg.Reconcile)
		if err != nil {
			return err
		}
		out.OK = out.OK && rep.OK
		out.Reports = append(out.Reports, rep)
	}
	return answer(w, out)
}

func (s *server) priceBook(w http.ResponseWriter, r *http.Request) error {
	if err := query(r).Err(); err != nil {
		return err
	}
	return answer(w, s.cfg.Ledger.Book())
}

func (s *server) quarantine(w http.ResponseWriter, r *http.Request) error {
	if err := operator(r); err != nil {
		return err
	}
	q := query(r, "after", "limit")
	limit := int64(100)
	if n := q.Number("limit", 1, 1000); n != nil {
		limit = *n
	}
	if err := q.Err(); err != nil {
		return err
	}
	page, err := s.cfg.Ledger.Quarantine(r.Context(), q.Get("after"), int(limit))
	if err != nil {
		return err
	}
	return answer(w, page)
}

// Months is the answer of GET /v1/months and of a closing.
type Months struct {
	// ClosedThrough is the last closed month, as 2026-11; "" when none is.
	ClosedThrough string    `json:"closedThrough"`
	ClosedAt      time.Time `json:"closedAt,omitzero"`
}

func (s *server) months(w http.ResponseWriter, r *http.Request) error {
	if err := query(r).Err(); err != nil {
		return err
	}
	m, at, ok, err := s.cfg.Ledger.ClosedThrough(r.Context())
	if err != nil {
		return err
	}
	out := Months{}
	if ok {
		out = Months{ClosedThrough: m.String(), ClosedAt: at}
	}
	return answer(w, out)
}

func (s *server) closeMonth(w http.ResponseWriter, r *http.Request) error {
	if err := operator(r); err != nil {
		return err
	}
	if err := query(r).Err(); err != nil {
		return err
	}
	m, err := ledger.ParseMonth(r.PathValue("month"))
	if err != nil {
		return problem.Invalid("month", "must be a month, as 2026-11", r.PathValue("month"))
	}
	if err := s.cfg.Ledger.Close(r.Context(), m); err != nil {
		return err
	}
	return s.months(w, r)
}
