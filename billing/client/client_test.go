package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"cumulet.io/billing"
	"cumulet.io/billing/client"
	"cumulet.io/billing/internal/billtest"
	"cumulet.io/billing/reconcile"
	"cumulet.io/billing/server"
	"cumulet.io/billing/statement"
	"cumulet.io/internal/problem"
	"cumulet.io/registry/hubtoken"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tokens is a verifier of four fixed tokens.
type tokens struct{}

func (tokens) Verify(_ context.Context, token, audience string) (*hubtoken.Claims, error) {
	access := map[string][]hubtoken.Access{
		"reader":   {{Type: hubtoken.TypeOrg, Name: "acme", Actions: []string{hubtoken.ActionRead}}},
		"admin":    {{Type: hubtoken.TypeOrg, Name: "acme", Actions: []string{hubtoken.ActionAdmin}}},
		"other":    {{Type: hubtoken.TypeOrg, Name: "zeta", Actions: []string{hubtoken.ActionAdmin}}},
		"operator": {{Type: hubtoken.TypePlatform, Name: "*", Actions: []string{hubtoken.ActionOperator}}},
	}[token]
	if access == nil || audience != hubtoken.AudienceBilling {
		return nil, hubtoken.ErrInvalidToken
	}
	return &hubtoken.Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: token}, Access: access}, nil
}

type token string

func (t token) Token(context.Context) (string, error) { return string(t), nil }

type inventory struct{}

func (inventory) Instances(_ context.Context, org string, _, _ time.Time) ([]reconcile.Instance, error) {
	if org != "acme" {
		return nil, nil
	}
	return []reconcile.Instance{{ID: "i-1", Org: "acme", StartedAt: begin, EndedAt: begin.Add(95 * time.Second)}}, nil
}

var begin = time.Date(2026, 11, 20, 10, 59, 0, 0, time.UTC)

func event(seq int64, kind billing.EventKind, millis int64, reason string) billing.Event {
	at := begin.Add(time.Duration(millis) * time.Millisecond)
	return billing.Event{ID: billing.EventID("i-1", 1, seq), Kind: kind, Org: "acme", Instance: "i-1", Name: "web", Incarnation: 1, Sequence: seq,
		Time: at, At: at, Region: "eu", Node: "n1", SandboxClass: "kata", Size: billing.Size{Class: "c1-m2", MilliCPU: 1000, MemoryMiB: 2048},
		StartupMillis: min(millis, 2500), RunningMillis: max(0, millis-2500), Phase: billing.PhaseRunning, Clock: billing.Clock{Boot: "b"}, Reason: reason}
}

// checked validates every answer against the document.
func checked(t *testing.T, next http.Handler) http.Handler {
	doc, err := openapi3.NewLoader().LoadFromFile("../server/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		route, args, err := router.FindRoute(r)
		if err != nil {
			if !errors.Is(err, routers.ErrPathNotFound) && !errors.Is(err, routers.ErrMethodNotAllowed) {
				t.Errorf("%s %s: %v", r.Method, r.URL, err)
			}
		} else {
			in := &openapi3filter.ResponseValidationInput{
				RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: args, Route: route},
				Status:                 rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(rec.Body.Bytes())),
				Options: &openapi3filter.Options{IncludeResponseStatus: true},
			}
			if err := openapi3filter.ValidateResponse(r.Context(), in); err != nil {
				t.Errorf("%s %s answered what the document does not say: %v", r.Method, r.URL, err)
			}
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

func serve(t *testing.T) (as func(string) *client.Client, base string) {
	t.Helper()
	now := func() time.Time { return time.Date(2026, 12, 5, 0, 0, 0, 0, time.UTC) }
	l := billtest.Ledger(t, billtest.SQLite(t), billtest.Book(t, billtest.TwoVersions), now)
	if _, err := l.Ingest(context.Background(), [][]byte{
		billtest.Line(t, event(0, billing.EventStarted, 0, "")), billtest.Line(t, event(1, billing.EventHeartbeat, 60_000, "")),
		billtest.Line(t, event(2, billing.EventStopped, 94_001, "Completed")), []byte(`{"id":"x"}`),
	}); err != nil {
		t.Fatal(err)
	}
	h, err := server.New(server.Config{Ledger: l, Inventory: inventory{}, Verifier: tokens{}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(checked(t, h))
	t.Cleanup(srv.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return func(who string) *client.Client {
		c, err := client.New(client.Config{BaseURL: srv.URL, Source: token(who)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}, srv.URL
}

func TestBill(t *testing.T) {
	as, _ := serve(t)
	ctx := context.Background()
	st, err := as("reader").Bill(ctx, "acme", client.Period{Month: "2026-11"}, statement.Everything)
	if err != nil {
		t.Fatal(err)
	}
	// 94.001 s are 95 s: 3 of startup (they begin at 0, 1 and 2 s), 92 running.
	if st.Totals.StartupSeconds != 3 || st.Totals.RunningSeconds != 92 || len(st.Lines) != 4 || st.Estimated {
		t.Errorf("bill %+v", st)
	}
	// (3*2 + 92*12) vCPU-µUSD + (3*0.4 + 92*2.6) GiB-µUSD
	if st.Totals.Amount.String() != "0.0013504" || st.Total != "0.00" {
		t.Errorf("amount %s, total %s", st.Totals.Amount, st.Total)
	}
	st, err = as("operator").Bill(ctx, "acme", client.Period{From: "2026-11-20T10:00:00Z", To: "2026-11-20T11:00:00Z"}, statement.ByDay)
	if err != nil || st.Totals.StartupSeconds+st.Totals.RunningSeconds != 60 || len(st.Lines) != 0 || len(st.ByDay) != 1 || len(st.ByInstance) != 0 {
		t.Errorf("one hour: %v %+v", err, st)
	}
	st, err = as("reader").Bill(ctx, "acme", client.Period{}, statement.ByInstance)
	if err != nil || st.Period != "2026-12" || st.Total != "0.00" {
		t.Errorf("this month: %v %+v", err, st)
	}
	var csv bytes.Buffer
	if err := as("reader").FOCUS(ctx, "acme", client.Period{Month: "2026-11"}, &csv); err != nil || strings.Count(csv.String(), "\n") != 6 {
		t.Errorf("FOCUS: %v\n%s", err, csv.String())
	}
	book, err := as("other").PriceBook(ctx)
	if err != nil || len(book.Versions) != 2 || book.Versions[0].Prices[0].Running.VCPUSecond.String() != "0.000011244" {
		t.Errorf("book: %v %+v", err, book)
	}
}

func TestOperator(t *testing.T) {
	as, _ := serve(t)
	ctx := context.Background()
	for _, who := range []string{"admin", "operator"} {
		rec, err := as(who).Reconcile(ctx, "acme", client.Period{Month: "2026-11"})
		if err != nil || !rec.OK || client.Err(rec) != nil || len(rec.Reports) != 1 || len(rec.Reports[0].Checks) != 7 {
			t.Errorf("%s reconciles: %v %+v", who, err, rec)
		}
	}
	rec, err := as("operator").Reconcile(ctx, "", client.Period{Month: "2026-11"})
	if err != nil || len(rec.Reports) != 1 {
		t.Errorf("all orgs: %v %+v", err, rec)
	}
	page, err := as("operator").Quarantine(ctx, "", 10)
	if err != nil || len(page.Items) != 1 || page.Items[0].Line != `{"id":"x"}` {
		t.Errorf("quarantine: %v %+v", err, page)
	}
	m, err := as("operator").CloseMonth(ctx, "2026-11")
	if err != nil || m.ClosedThrough != "2026-11" {
		t.Errorf("close: %v %+v", err, m)
	}
	if m, err = as("reader").Months(ctx); err != nil || m.ClosedThrough != "2026-11" {
		t.Errorf("months: %v %+v", err, m)
	}
	if _, err := as("operator").CloseMonth(ctx, "2026-12"); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("close a month that has not ended: %v", err)
	}
	st, err := as("reader").Bill(ctx, "acme", client.Period{Month: "2026-11"}, statement.Everything)
	if err != nil || !st.Closed || st.Totals.RunningSeconds != 92 {
		t.Errorf("closed month: %v %+v", err, st)
	}
}

func TestRefusals(t *testing.T) {
	as, base := serve(t)
	ctx := context.Background()
	for name, err := range map[string]error{
		"other org's bill":   second(as("other").Bill(ctx, "acme", client.Period{}, "")),
		"reader reconciles":  second(as("reader").Reconcile(ctx, "acme", client.Period{})),
		"admin, another org": second(as("admin").Reconcile(ctx, "zeta", client.Period{})),
		"admin, all orgs":    second(as("admin").Reconcile(ctx, "", client.Period{})),
		"admin's quarantine": second(as("admin").Quarantine(ctx, "", 1)),
		"admin closes":       second(as("admin").CloseMonth(ctx, "2026-11")),
		"other org's export": as("other").FOCUS(ctx, "acme", client.Period{}, io.Discard),
	} {
		if !errors.Is(err, problem.ErrForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := as("nobody").PriceBook(ctx); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("no token: %v", err)
	}
	bill := "/v1/orgs/acme/bill"
	for _, c := range []struct{ method, path, body, field string }{
		{"GET", bill + "?perod=2026-11", "", "perod"},
		{"GET", bill + "?period=2026-13", "", "period"},
		{"GET", bill + "?period=2026-11&period=2026-10", "", "period"},
		{"GET", bill + "?period=2026-11&from=2026-11-01", "", "period"},
		{"GET", bill + "?from=2026-11-01", "", "to"},
		{"GET", bill + "?from=2026-11-01T00:30:00Z&to=2026-11-02", "", "from"},
		{"GET", bill + "?from=2026-11-02&to=2026-11-02", "", "to"},
		{"GET", bill + "?group=week", "", "group"},
		{"GET", bill + "?group=", "", "group"},
		{"GET", bill + ".focus.csv?group=day", "", "group"},
		{"GET", "/v1/quarantine?limit=0", "", "limit"},
		{"POST", "/v1/reconcile", `{"period":"2026-11","orgs":"acme"}`, "orgs"},
		{"POST", "/v1/reconcile", `{"org":"a/b"}`, "org"},
		{"POST", "/v1/months/yesterday/close", "", "month"},
	} {
		req, err := http.NewRequestWithContext(ctx, c.method, base+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer operator")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		err = problem.Read(resp)
		resp.Body.Close()
		var p *problem.Error
		if resp.StatusCode != http.StatusBadRequest || !errors.As(err, &p) || p.Field != c.field {
			t.Errorf("%s %s: %s %v", c.method, c.path, resp.Status, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
