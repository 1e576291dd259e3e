package embedded_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/logs/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(dir string) embedded.Options {
	return embedded.Options{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Writer: embedded.Credential{User: "collector", Password: "write-secret"},
		Reader: embedded.Credential{User: "reader", Password: "read-secret"}}
}

type front struct {
	t  *testing.T
	h  http.Handler
	st *embedded.Store
}

func open(t *testing.T, o embedded.Options) *front {
	t.Helper()
	st, err := embedded.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return &front{t: t, h: st, st: st}
}

type answer struct {
	Status int
	Header http.Header
	Errors bool
	Items  []map[string]struct {
		ID     string `json:"_id"`
		Status int
		Error  struct{ Type, Reason string }
	}
	Hits struct {
		Total *struct {
			Value    int
			Relation string
		}
		Hits []struct {
			Index  string          `json:"_index"`
			ID     string          `json:"_id"`
			Source json.RawMessage `json:"_source"`
			Sort   []any
		}
	}
	Count int
	Error struct{ Type, Reason string }
}

func (f *front) do(user, method, path, body string, header ...string) answer {
	f.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	switch user {
	case "collector":
		r.SetBasicAuth(user, "write-secret")
	case "reader":
		r.SetBasicAuth(user, "read-secret")
	}
	w := httptest.NewRecorder()
	f.h.ServeHTTP(w, r)
	a := answer{Status: w.Code, Header: w.Header()}
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			f.t.Fatalf("%s %s: %q: %v", method, path, w.Body, err)
		}
	}
	return a
}

func (f *front) bulk(body string) answer {
	f.t.Helper()
	return f.do("collector", "POST", "/_bulk", body, "Content-Type", "application/x-ndjson")
}

func doc(instance string, n int) (id, source string) {
	path := "/logs/acme/" + instance + "/main/0.log"
	t := time.Date(2026, 1, 2, 3, 4, 5, n*1000+1, time.UTC)
	return embedded.LineID(path, int64(n)*100), fmt.Sprintf(`{"@timestamp":%q,"org":"acme","instance":%q,"container":"main","attempt":0,`+
		`"cri":{"time":%q,"stream":"stdout","tag":"F"},"log":{"offset":%d,"file":{"path":%q}},"message":"line %d"}`,
		t.Format("2006-01-02T15:04:05.000Z"), instance, t.Format(time.RFC3339Nano), n*100, path, n)
}

func create(index, id, source string) string {
	return fmt.Sprintf(`{"create":{"_index":%q,"_id":%q}}`+"\n%s\n", index, id, source)
}

func lines(instance string, from, to int) string {
	var b strings.Builder
	for n := from; n < to; n++ {
		id, src := doc(instance, n)
		b.WriteString(create("logs-2026.01.02", id, src))
	}
	return b.String()
}

func TestBulkStatuses(t *testing.T) {
	f := open(t, options(t.TempDir()))
	a := f.bulk(lines("a", 0, 100))
	if a.Status != 200 || a.Errors || len(a.Items) != 100 {
		t.Fatalf("%+v", a)
	}
	// Again, with one more and one that is broken.
	id, src := doc("a", 100)
	a = f.bulk(lines("a", 0, 100) + create("logs-2026.01.02", id, src) + create("logs-2026.01.02", "x", `{"cut":`))
	want := map[int]int{}
	for _, it := range a.Items {
		want[it["create"].Status]++
	}
	if a.Status != 200 || !a.Errors || want[409] != 100 || want[201] != 1 || want[400] != 1 {
		t.Fatalf("%d %v", a.Status, want)
	}
	if c := f.do("reader", "GET", "/logs-*/_count", ""); c.Count != 101 {
		t.Errorf("count %d", c.Count)
	}
}

func TestSearchReturnsWhatCame(t *testing.T) {
	f := open(t, options(t.TempDir()))
	id, src := doc("a", 7)
	odd := strings.Replace(src, `"line 7"`, `"\u0000 \"q\" \\ \u00e9 \ud83d\ude00 \ufffd \r"`, 1)
	f.bulk(create("logs-2026.01.02", id, odd) + create("other", "k", `{"@timestamp":"2026-01-02T00:00:00Z","n":1.50,"deep":{"x":["y"]}}`))
	a := f.do("reader", "POST", "/logs-2026.01.02,other/_search", `{"sort":[{"@timestamp":"desc"}]}`)
	if a.Status != 200 || len(a.Hits.Hits) != 2 {
		t.Fatalf("%+v", a)
	}
	same(t, a.Hits.Hits[0].Source, odd)
	same(t, a.Hits.Hits[1].Source, `{"@timestamp":"2026-01-02T00:00:00Z","n":1.50,"deep":{"x":["y"]}}`)
	if a.Hits.Hits[0].ID != id || a.Hits.Hits[0].Sort[0] != 1767323045000.0 {
		t.Errorf("%+v", a.Hits.Hits[0])
	}
}

func same(t *testing.T, got json.RawMessage, want string) {
	t.Helper()
	var g, w any
	if json.Unmarshal(got, &g) != nil || json.Unmarshal([]byte(want), &w) != nil || fmt.Sprintf("%#v", g) != fmt.Sprintf("%#v", w) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestRequestsRefused(t *testing.T) {
	f := open(t, options(t.TempDir()))
	f.bulk(lines("a", 0, 1))
	for _, c := range []struct {
		user, method, path, body string
		status                   int
		reason                   string
	}{
		{"", "GET", "/", "", 401, "credentials"},
		{"reader", "POST", "/_bulk", lines("a", 1, 2), 403, "only read"},
		{"collector", "POST", "/_bulk", "", 400, "body is required"},
		{"collector", "POST", "/_bulk", "{}", 400, "newline"},
		{"collector", "POST", "/_bulk", "{\"create\":{\"_index\":\"x\"}}\n", 400, "no document"},
		{"collector", "POST", "/_bulk", "{\"delete\":{\"_index\":\"x\",\"_id\":\"1\"}}\n{}\n", 400, "delete"},
		{"collector", "POST", "/_bulk", "{\"create\":{\"_index\":\"x\",\"pipeline\":\"p\"}}\n{}\n", 400, "pipeline"},
		{"collector", "POST", "/_bulk", "nonsense\n{}\n", 400, "line [1]"},
		{"reader", "POST", "/_search", `{"query":{"fuzzy":{"a":"b"}}}`, 400, "[fuzzy]"},
		{"reader", "POST", "/_search", `{"aggs":{}}`, 400, "[aggs]"},
		{"reader", "POST", "/_search", `{"from":5}`, 400, "[from]"},
		{"reader", "POST", "/_search", `{"size":10001}`, 400, "[size]"},
		{"reader", "POST", "/_search", `{"query":{"range":{"@timestamp":{"gte":"now-1d"}}}}`, 400, "date"},
		{"reader", "POST", "/_search", `{"query":{"term":{"a'); DROP TABLE lines--":1}}}`, 400, "field name"},
		{"reader", "POST", "/_search?scroll=1m", `{}`, 400, "[scroll]"},
		{"reader", "POST", "/missing/_search", `{}`, 404, "missing"},
		{"reader", "GET", "/_cat/indices", "", 404, "_cat"},
		{"reader", "DELETE", "/logs-2026.01.02", "", 404, "DELETE"},
	} {
		a := f.do(c.user, c.method, c.path, c.body)
		if a.Status != c.status || !strings.Contains(a.Error.Reason, c.reason) {
			t.Errorf("%s %s %s: %d %q, want %d %q", c.method, c.path, c.body, a.Status, a.Error.Reason, c.status, c.reason)
		}
		if a.Header.Get("X-Elastic-Product") != "Elasticsearch" {
			t.Errorf("%s: no product header", c.path)
		}
	}
	if c := f.do("reader", "GET", "/_count", ""); c.Count != 1 {
		t.Errorf("a refused request left a trace: %d documents", c.Count)
	}
}

func TestGzipAndCutBody(t *testing.T) {
	f := open(t, options(t.TempDir()))
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	if _, err := io.WriteString(zw, lines("a", 0, 500)); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if a := f.do("collector", "POST", "/_bulk", z.String()[:z.Len()-20], "Content-Encoding", "gzip"); a.Status != 400 {
		t.Errorf("cut body: %d", a.Status)
	}
	if a := f.do("reader", "GET", "/_count", ""); a.Count != 0 {
		t.Errorf("a cut body left %d documents", a.Count)
	}
	if a := f.do("collector", "POST", "/_bulk", z.String(), "Content-Encoding", "gzip"); a.Status != 200 || len(a.Items) != 500 {
		t.Errorf("%d", a.Status)
	}
	o := options(t.TempDir())
	o.MaxBody = 1000
	small := open(t, o)
	for _, h := range [][]string{{}, {"Content-Encoding", "gzip"}} {
		body := lines("a", 0, 500)
		if len(h) > 0 {
			body = z.String()
		}
		if a := small.do("collector", "POST", "/_bulk", body, h...); a.Status != 413 {
			t.Errorf("large body %v: %d", h, a.Status)
		}
	}
}

func TestReopenKeepsAll(t *testing.T) {
	o := options(t.TempDir())
	st, err := embedded.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{t: t, h: st}
	f.bulk(lines("a", 0, 10) + create("meter-2026.01", "e1", `{"@timestamp":"2026-01-02T00:00:00Z"}`))
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if a := f.do("reader", "GET", "/_count", ""); a.Count != 0 {
		t.Errorf("%+v", a)
	}
	g := open(t, o)
	if a := g.bulk(lines("a", 5, 15)); a.Status != 200 {
		t.Errorf("%+v", a)
	}
	if a := g.do("reader", "GET", "/_count", ""); a.Count != 16 {
		t.Errorf("count %d", a.Count)
	}
	if u, err := g.st.Usage(); err != nil || u["meter-2026.01"] == 0 {
		t.Errorf("%v %v", u, err)
	}
}

func TestRetention(t *testing.T) {
	o := options(t.TempDir())
	o.LogDays, o.MeterMonths = 7, 12
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	o.Now = func() time.Time { return now }
	f := open(t, o)
	for _, ix := range []string{"logs-2026.01.02", "logs-2026.01.03", "logs-odd", "meter-2024.12", "meter-2025.01"} {
		f.bulk(create(ix, "1", `{"@timestamp":"2026-01-02T00:00:00Z"}`))
	}
	gone, err := f.st.Expire(t.Context())
	if err != nil || fmt.Sprint(gone) != "[logs-2026.01.02 meter-2024.12]" {
		t.Errorf("%v %v", gone, err)
	}
	if a := f.do("reader", "GET", "/_count", ""); a.Count != 3 {
		t.Errorf("count %d", a.Count)
	}
}
