package embedded

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

func fuzzStore(tb testing.TB) *Store {
	st, err := Open(tb.Context(), Options{Dir: tb.TempDir(), Log: slog.New(slog.NewTextHandler(failOn{tb}, nil)),
		Writer: Credential{"collector", "write-secret"}, Reader: Credential{"reader", "read-secret"}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := st.Close(); err != nil {
			tb.Error(err)
		}
	})
	return st
}

// failOn fails the test on what the store logs: bad input must never reach that far.
type failOn struct{ tb testing.TB }

func (f failOn) Write(p []byte) (int, error) {
	f.tb.Errorf("the store logged: %s", p)
	return len(p), nil
}

func call(st *Store, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.SetBasicAuth("collector", "write-secret")
	w := httptest.NewRecorder()
	st.ServeHTTP(w, r)
	return w
}

const goodLine = `{"@timestamp":"2026-01-02T03:04:05.000Z","org":"acme","instance":"i","container":"c","attempt":0,"cri":{"time":"2026-01-02T03:04:05.000000001Z","stream":"stderr","tag":"P"},"log":{"offset":0,"file":{"path":"/l/acme/i/c/0.log"}},"message":"\u0000 \ud83d\ude00 text"}`

// FuzzLine holds that the quick reading of a line agrees with encoding/json: what it takes comes back the same.
func FuzzLine(f *testing.F) {
	f.Add([]byte(goodLine))
	f.Add([]byte(strings.ReplaceAll(goodLine, ":", " : ")))
	f.Add([]byte(strings.Replace(goodLine, `"attempt":0`, `"attempt":00`, 1)))
	f.Fuzz(func(t *testing.T, doc []byte) {
		l, ok := parseLine(doc)
		if !ok {
			return
		}
		var a, b any
		if err := json.Unmarshal(doc, &a); err != nil {
			t.Fatalf("took %q: %v", doc, err)
		}
		if err := json.Unmarshal(l.appendDoc(nil), &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%q came back as %q: %v", doc, l.appendDoc(nil), err)
		}
	})
}

// FuzzBulk holds that no body makes a panic or a 500, and that every item of a 200 has its own status.
func FuzzBulk(f *testing.F) {
	id := LineID("/l/acme/i/c/0.log", 0)
	f.Add(`{"create":{"_index":"logs-1","_id":"` + id + `"}}` + "\n" + goodLine + "\n")
	f.Add(`{"index":{"_index":"x"}}` + "\n" + `{"a":[1,{"b":null}]}` + "\n\n" + `{"create":{"_index":"..","_id":"1"}}` + "\n{}\n")
	f.Add(`{"create":{"_index":"x","_id":"1"}}` + "\n" + `{"@timestamp":"9999-12-31T23:59:59Z","cri":{"time":-1},"log":{"offset":1e9}}` + "\n")
	st := fuzzStore(f)
	f.Fuzz(func(t *testing.T, body string) {
		items, _, _, perr := parseBulk([]byte(body), "")
		names := map[string]bool{}
		for _, it := range items {
			names[it.index] = true
		}
		if len(names) > 2 {
			return // a file each
		}
		w := call(st, "/_bulk", body)
		if w.Code >= 500 || (perr == nil) != (w.Code == 200) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		var a struct {
			Items []map[string]struct{ Status int }
		}
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		if w.Code == 200 && len(a.Items) != len(items) {
			t.Fatalf("%d items of %d", len(a.Items), len(items))
		}
		for _, m := range a.Items {
			for _, it := range m {
				if it.Status != 200 && it.Status != 201 && it.Status != 400 && it.Status != 409 {
					t.Fatalf("item status %d", it.Status)
				}
			}
		}
	})
}

// FuzzSearch holds that no query makes a panic or a 500: it is answered, or refused with 400.
func FuzzSearch(f *testing.F) {
	for _, q := range []string{
		`{}`, `{"query":{"match_all":{}},"size":0,"track_total_hits":true}`,
		`{"query":{"bool":{"filter":[{"term":{"org":"acme"}},{"range":{"cri.time":{"gte":"2026-01-01T00:00:00Z","lt":1e3}}}],"must_not":{"exists":{"field":"x.y"}},"should":[{"prefix":{"message":"a"}}],"minimum_should_match":1}}}`,
		`{"query":{"terms":{"attempt":[0,"1",true,1.5]}},"sort":[{"cri.time":{"order":"desc","format":"strict_date_optional_time_nanos"}},"log.offset","message"],"search_after":["2026-01-01T00:00:00Z",5,"x"]}`,
		`{"query":{"wildcard":{"message":{"value":"*a?[b\\*c*"}}},"sort":"org"}`,
		`{"query":{"match_phrase":{"message":{"query":"text"}}},"sort":[{"@timestamp":"asc"},"n"],"search_after":[0,null],"_source":false}`,
	} {
		f.Add(q)
	}
	st := fuzzStore(f)
	id := LineID("/l/acme/i/c/0.log", 0)
	if w := call(st, "/_bulk", `{"create":{"_index":"logs-1","_id":"`+id+`"}}`+"\n"+goodLine+"\n"+
		`{"create":{"_index":"m","_id":"1"}}`+"\n"+`{"@timestamp":1,"n":1.5,"x":{"y":[1]},"s":"1"}`+"\n"); w.Code != 200 {
		f.Fatal(w.Body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		w := call(st, "/_search", body)
		if w.Code != 200 && w.Code != 400 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		var a any
		if err := json.NewDecoder(w.Body).Decode(&a); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	})
}

func TestWildcards(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"a*", "abc", true}, {"a*c", "abc", true}, {"a*d", "abc", false}, {"?b?", "abc", true}, {"?", "", false},
		{`\*`, "*", true}, {`\*`, "x", false}, {"a**c", "ac", true}, {"*a*a*", "aa", true}, {"*a*a*", "a", false}, {"é?", "éx", true},
	} {
		if got := matchPattern(c.pattern, c.s); got != c.want {
			t.Errorf("matchPattern(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
	if !wildcard("logs-*", "logs-2026.01.02") || wildcard("logs-*", "meter-1") || !wildcard("*a*b", "xaayb") || wildcard("a*a", "a") {
		t.Error("index wildcards")
	}
}
