package elastic_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/internal/problem"
	"cumulet.io/logs"
	"cumulet.io/logs/elastic"
	"cumulet.io/logs/embedded"
	"cumulet.io/logs/logstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open gives the client over a served embedded store.
func open(t *testing.T) (*elastic.Store, *httptest.Server) {
	t.Helper()
	st, err := embedded.Open(t.Context(), embedded.Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Writer: embedded.Credential{User: "collector", Password: "write-secret"},
		Reader: embedded.Credential{User: "reader", Password: "read-secret"}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(st)
	tr := &http.Transport{}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		srv.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := elastic.New(elastic.Options{Addresses: []string{srv.URL}, User: "reader", Password: "read-secret", Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	return s, srv
}

func TestStoreOverEmbedded(t *testing.T) {
	logstest.Run(t, func(t *testing.T) (logs.Store, logstest.Seed) {
		s, srv := open(t)
		return s, logstest.BulkSeed(srv.Client(), srv.URL, "collector", "write-secret")
	})
}

// TestSameNamesOfTwoOrgs holds that the org is in the path, and so in the identity.
func TestSameNamesOfTwoOrgs(t *testing.T) {
	s, srv := open(t)
	seed := logstest.BulkSeed(srv.Client(), srv.URL, "collector", "write-secret")
	seed(t, logstest.Record("acme", "i", "c", 0, 1), logstest.Record("umbrella", "i", "c", 0, 1))
	for _, org := range []string{"acme", "umbrella"} {
		if got := logstest.All(t, s, logs.Query{Org: org}); len(got) != 1 || got[0].Org != org {
			t.Errorf("%s: %v", org, got)
		}
	}
}

func bulk(t *testing.T, srv *httptest.Server, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/_bulk", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("collector", "write-secret")
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
}

func meterDoc(n int, at time.Time, line string) string {
	j, _ := json.Marshal(line)
	return fmt.Sprintf(`{"create":{"_index":"meter-%s","_id":"h%03d"}}`+"\n"+`{"@timestamp":%q,"event":{"hash":"h%03d"},"message":%s}`+"\n",
		at.Format("2006.01"), n, at.Format("2006-01-02T15:04:05.000Z"), n, j)
}

func TestSearchMeter(t *testing.T) {
	s, srv := open(t)
	base := time.Date(2026, 1, 31, 23, 59, 58, 0, time.UTC)
	var body strings.Builder
	var want []string
	for n := range 25 {
		line := fmt.Sprintf(`{"id":"i/1/%d",  "odd" :1.50}`, n)
		want = append(want, line)
		body.WriteString(meterDoc(n, base.Add(time.Duration(n/2)*time.Second), line))
	}
	bulk(t, srv, body.String())
	for _, limit := range []int{1, 4, 5, 25, 26} {
		var got []string
		var after []any
		for {
			lines, next, err := s.SearchMeter(t.Context(), base, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lines {
				got = append(got, string(l))
			}
			if len(next) == 0 {
				break
			}
			// A place may be kept as JSON between two calls.
			j, err := json.Marshal(next)
			if err != nil || json.Unmarshal(j, &after) != nil {
				t.Fatal(err)
			}
			after = next
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("limit %d: got %v", limit, got)
		}
	}
	lines, _, err := s.SearchMeter(t.Context(), base.Add(5*time.Second), nil, 100)
	if err != nil || len(lines) != 15 {
		t.Errorf("%d %v", len(lines), err)
	}
}

func TestErrors(t *testing.T) {
	_, srv := open(t)
	for name, o := range map[string]elastic.Options{
		"wrong password": {Addresses: []string{srv.URL}, User: "reader", Password: "nonsense"},
		"nobody there":   {Addresses: []string{"http://127.0.0.1:1"}},
	} {
		tr := &http.Transport{}
		o.Transport = tr
		s, err := elastic.New(o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Search(t.Context(), logs.Query{Org: "acme"})
		if err == nil || strings.Contains(err.Error(), "nonsense") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "nobody there" && !errors.Is(err, problem.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		tr.CloseIdleConnections()
	}
}
