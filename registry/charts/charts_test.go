package charts

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"sigs.k8s.io/yaml"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
	"cumulet.io/registry/files"
	"cumulet.io/registry/files/filestest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type access struct{ refuse map[string]error }

func (a *access) Authorize(_ http.ResponseWriter, _ *http.Request, _, action string) (string, error) {
	return "wendy", a.refuse[action]
}

type directory struct{}

func (directory) Pushed(context.Context, string, string) error { return nil }

func (directory) MayPush(context.Context, string) error { return nil }

type fixture struct {
	*Store
	*access
	t      testing.TB
	url    string
	mu     sync.Mutex
	events []registry.Event
}

func (f *fixture) Emit(_ context.Context, e registry.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
	return nil
}

func start(t testing.TB, dsn string) *fixture {
	t.Helper()
	db := sqldbtest.Open(t, dsn)
	blobs, err := filestest.OpenDir(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	space, err := files.New(t.Context(), files.Config{DB: db, Blobs: blobs, Directory: directory{}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, access: &access{map[string]error{}}}
	if f.Store, err = New(t.Context(), Config{DB: db, Blobs: blobs, Space: space, Directory: directory{}, Outbox: f, Logger: log}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(NewHandler(f.Store, f.access))
	t.Cleanup(srv.Close)
	f.url = srv.URL
	return f
}

func startSQLite(t testing.TB) *fixture {
	return start(t, sqldbtest.SQLite(t))
}

func eachDialect(t *testing.T, f func(t *testing.T, f *fixture)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) { f(t, start(t, empty(t))) })
}

func (f *fixture) want(status int, method, path string, body []byte, header ...string) (*http.Response, string) {
	f.t.Helper()
	resp, text := testenv.Request(f.t, method, f.url+path, bytes.NewReader(body), header...)
	if resp.StatusCode != status {
		f.t.Fatalf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, status)
	}
	if status >= 400 && resp.Header.Get("Content-Type") != "application/problem+json" {
		f.t.Errorf("%s %s: %s", method, path, resp.Header.Get("Content-Type"))
	}
	if status >= 400 && method != http.MethodHead {
		var refusal struct{ Title, Error string }
		if err := json.Unmarshal([]byte(text), &refusal); err != nil || refusal.Title == "" || (refusal.Error != "") != strings.HasPrefix(path, "/charts/api/") {
			f.t.Errorf("%s %s: %s, %v", method, path, text, err)
		}
	}
	return resp, text
}

// file is an entry of an archive.
type file struct {
	name, text string
	kind       byte
}

func pack(t testing.TB, list ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	w := tar.NewWriter(gz)
	for _, e := range list {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o644, Size: int64(len(e.text))}
		if e.kind == tar.TypeSymlink {
			h.Linkname, h.Size, e.text = "/etc/passwd", 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func chartYAML(name, version string) string {
	return fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\nappVersion: \"1.0\"\ndescription: |\n  Two\n  lines: of \"text\"\n", name, version)
}

func chart(t testing.TB, name, version string, more ...file) []byte {
	return pack(t, append([]file{{name: name + "/Chart.yaml", text: chartYAML(name, version)}, {name: name + "/values.yaml", text: "a: 1\n"}}, more...)...)
}

func prov(name, version string, archive []byte) []byte {
	return []byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n" + chartYAML(name, version) + "\n...\nfiles:\n  " + fileName(name, version) + ": " +
		digest.FromBytes(archive).String() + "\n-----BEGIN PGP SIGNATURE-----\n\nwsBc\n-----END PGP SIGNATURE-----\n")
}

const (
	base = "/charts/acme/charts/"
	api  = "/charts/api/acme/charts/charts"
)

func (f *fixture) indexOf(repository string) (out struct {
	APIVersion string             `json:"apiVersion"`
	Entries    map[string][]Entry `json:"entries"`
	ServerInfo map[string]string  `json:"serverInfo"`
}) {
	f.t.Helper()
	_, text := f.want(200, "GET", "/charts/"+repository+"/index.yaml", nil)
	if err := yaml.UnmarshalStrict([]byte(text), &out, yaml.DisallowUnknownFields); err != nil && !strings.Contains(err.Error(), "generated") {
		f.t.Fatalf("%v\n%s", err, text)
	}
	return out
}

func TestCharts(t *testing.T) {
	eachDialect(t, func(t *testing.T, f *fixture) {
		if i := f.indexOf("acme/charts"); i.APIVersion != "v1" || len(i.Entries) != 0 {
			t.Errorf("%+v", i)
		}
		web1 := chart(t, "web", "1.9.0")
		_, text := f.want(201, "POST", api, web1)
		if !strings.Contains(text, `"saved":true`) {
			t.Error(text)
		}
		f.want(201, "POST", api, chart(t, "web", "1.10.0-rc.1"))
		f.want(201, "POST", api, chart(t, "web", "1.10.0+build.5"))
		f.want(201, "POST", "/charts/api/beta/twins/charts", chart(t, "web-1.2.3", "4.5.6"))
		f.want(200, "GET", "/charts/beta/twins/web-1.2.3-4.5.6.tgz", nil)
		f.events = nil
		// As a form, with its provenance file first.
		db := chart(t, "my-db", "0.1.0")
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		for _, p := range []struct {
			name string
			data []byte
		}{{"prov", prov("my-db", "0.1.0", db)}, {"other", []byte("x")}, {"chart", db}} {
			part, err := w.CreateFormFile(p.name, p.name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := part.Write(p.data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		f.want(201, "POST", api, b.Bytes(), "Content-Type", w.FormDataContentType())

		i := f.indexOf("acme/charts")
		var versions []string
		for _, e := range i.Entries["web"] {
			versions = append(versions, e.Version)
		}
		if fmt.Sprint(versions) != "[1.10.0+build.5 1.10.0-rc.1 1.9.0]" || len(i.Entries) != 2 || i.ServerInfo["contextPath"] != "/charts" {
			t.Errorf("%v %+v", versions, i)
		}
		e := i.Entries["web"][2]
		if e.Digest != digest.FromBytes(web1).Encoded() || e.URLs[0] != "web-1.9.0.tgz" || e.Description != "Two\nlines: of \"text\"\n" || e.AppVersion != "1.0" || e.Created.IsZero() {
			t.Errorf("%+v", e)
		}
		resp, text := f.want(200, "GET", base+"web-1.9.0.tgz", nil)
		if text != string(web1) || resp.Header.Get("Content-Type") != MediaType {
			t.Errorf("%v", resp.Header)
		}
		f.want(206, "GET", base+"web-1.9.0.tgz", nil, "Range", "bytes=0-9")
		f.want(200, "GET", base+"web-1.10.0+build.5.tgz", nil)
		if _, text := f.want(200, "GET", base+"my-db-0.1.0.tgz.prov", nil); text != string(prov("my-db", "0.1.0", db)) {
			t.Error(text)
		}
		f.want(404, "GET", base+"web-1.9.0.tgz.prov", nil)
		f.want(404, "GET", base+"web-9.9.9.tgz", nil)
		f.want(404, "GET", base+"web.tgz", nil)
		f.want(404, "GET", "/charts/acme/other/web-1.9.0.tgz", nil)
		// Provenance afterwards, and only of this archive.
		f.want(201, "POST", "/charts/api/acme/charts/prov", prov("web", "1.9.0", web1))
		f.want(200, "GET", base+"web-1.9.0.tgz.prov", nil)
		f.want(400, "POST", "/charts/api/acme/charts/prov", prov("web", "1.9.0", db))
		f.want(404, "POST", "/charts/api/acme/charts/prov", prov("web", "7.0.0", db))

		// A version does not change unnoticed.
		other := chart(t, "web", "1.9.0", file{name: "web/templates/x.yaml", text: "x"})
		f.want(201, "POST", api, web1)
		f.want(409, "POST", api, other)
		f.refuse["delete"] = problem.New(problem.ErrForbidden, "no")
		f.want(403, "POST", api+"?force=true", other)
		delete(f.refuse, "delete")
		f.want(201, "POST", api+"?force=true", other)
		f.want(404, "GET", base+"web-1.9.0.tgz.prov", nil) // it was of the other archive
		if i := f.indexOf("acme/charts"); i.Entries["web"][2].Digest != digest.FromBytes(other).Encoded() {
			t.Errorf("%+v", i)
		}
		// Caching.
		resp, _ = f.want(200, "GET", base+"index.yaml", nil)
		f.want(304, "GET", base+"index.yaml", nil, "If-None-Match", resp.Header.Get("ETag"))
		// The other half of the API.
		_, text = f.want(200, "GET", api, nil)
		var all map[string][]Entry
		if err := json.Unmarshal([]byte(text), &all); err != nil || len(all["web"]) != 3 || len(all["my-db"]) != 1 {
			t.Errorf("%s %v", text, err)
		}
		f.want(200, "GET", api+"/web", nil)
		f.want(200, "GET", api+"/web/1.9.0", nil)
		f.want(404, "GET", api+"/nothere", nil)
		f.want(200, "DELETE", api+"/web/1.9.0", nil)
		f.want(404, "DELETE", api+"/web/1.9.0", nil)
		f.want(404, "GET", base+"web-1.9.0.tgz", nil)
		f.want(200, "DELETE", api+"/my-db/0.1.0", nil)
		if i := f.indexOf("acme/charts"); len(i.Entries) != 1 || len(i.Entries["web"]) != 2 {
			t.Errorf("%+v", i)
		}
		f.want(200, "GET", base+"index.yaml", nil)
		if n, err := f.Usage(t.Context(), "acme"); err != nil || n == 0 {
			t.Errorf("%d %v", n, err)
		}
		if err := f.DeleteRepository(t.Context(), "acme/charts"); err != nil {
			t.Fatal(err)
		}
		if i := f.indexOf("acme/charts"); len(i.Entries) != 0 {
			t.Errorf("%+v", i)
		}
		if n, err := f.Usage(t.Context(), "acme"); err != nil || n != 0 {
			t.Errorf("%d %v", n, err)
		}
		kinds := map[registry.EventType]int{}
		ids := map[string]bool{}
		for _, e := range f.events {
			kinds[e.Type]++
			ids[e.ID] = true
			if e.Org != "acme" || e.Repository != "acme/charts" || e.Data["kind"] != "chart" || e.Tag == "" || e.Actor != "wendy" {
				t.Errorf("%+v", e)
			}
		}
		// Counted from where the list was emptied; the retry of a push before it has that one's id.
		if kinds[registry.EventPush] != 3 || kinds[registry.EventPull] != 3 || kinds[registry.EventDelete] != 2 || len(ids) != 8 {
			t.Errorf("%v, %d ids", kinds, len(ids))
		}
	})
}

// Many charts: a change of one makes the text of that one alone, and another process sees it.
// Readers of the index, of which most find it unchanged, beside writers.
func TestIndexConcurrent(t *testing.T) {
	f := startSQLite(t)
	const charts = 12
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for seen := 0; seen < charts; {
				i, err := f.Index(t.Context(), "acme/charts")
				if err != nil {
					t.Error(err)
					return
				}
				n := bytes.Count(i.Text, []byte(".tgz"))
				if n < seen || i.ETag == "" {
					t.Errorf("%d charts after %d, ETag %q", n, seen, i.ETag)
					return
				}
				seen = n
			}
		})
	}
	for i := range charts {
		f.want(201, "POST", api, chart(t, fmt.Sprintf("c%d", i), "1.0.0"))
	}
	wg.Wait()
}

func TestIndexIncrements(t *testing.T) {
	f := startSQLite(t)
	for i := range 20 {
		f.want(201, "POST", api, chart(t, fmt.Sprintf("c%d", i), "1.0.0"))
	}
	f.indexOf("acme/charts")
	cached := f.cache.get("acme/charts")
	untouched := &cached.blocks["c3"][0]
	f.want(201, "POST", api, chart(t, "c7", "2.0.0"))
	if i := f.indexOf("acme/charts"); len(i.Entries) != 20 || len(i.Entries["c7"]) != 2 {
		t.Errorf("%d", len(i.Entries))
	}
	if &cached.blocks["c3"][0] != untouched {
		t.Error("the text of another chart was made anew")
	}
	second, err := New(t.Context(), f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	one, err := second.Index(t.Context(), "acme/charts")
	if err != nil {
		t.Fatal(err)
	}
	f.want(200, "DELETE", api+"/c7/2.0.0", nil)
	two, err := second.Index(t.Context(), "acme/charts")
	if err != nil || one.ETag == two.ETag || !bytes.Contains(one.Text, []byte("c7-2.0.0.tgz")) || bytes.Contains(two.Text, []byte("c7-2.0.0.tgz")) {
		t.Errorf("%v", err)
	}
	mine, err := f.Index(t.Context(), "acme/charts")
	if err != nil || mine.ETag != two.ETag || !bytes.Equal(mine.Text, two.Text) {
		t.Errorf("two processes have different indexes: %v", err)
	}
}

func bomb(t testing.TB, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	gz, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(gz)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: MaxUnpackedBytes + 1}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range MaxUnpackedBytes / len(zeros) {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRefusals(t *testing.T) {
	f := startSQLite(t)
	ok := file{name: "web/Chart.yaml", text: chartYAML("web", "1.0.0")}
	many := []file{ok}
	for i := range MaxEntries {
		many = append(many, file{name: fmt.Sprintf("web/f%d", i)})
	}
	whole := chart(t, "web", "1.0.0")
	for _, tt := range []struct {
		name   string
		body   []byte
		status int
	}{
		{"nothing", nil, 400},
		{"text", []byte("hello"), 400},
		{"cut", whole[:len(whole)-20], 400},
		{"spoilt", append(append([]byte{}, whole[:len(whole)-8]...), 1, 2, 3, 4, 5, 6, 7, 8), 400},
		{"no Chart.yaml", pack(t, file{name: "web/values.yaml", text: "x"}), 400},
		{"two tops", pack(t, ok, file{name: "other/x", text: "x"}), 400},
		{"two Chart.yaml", pack(t, ok, ok), 400},
		{"absolute", pack(t, ok, file{name: "/etc/passwd", text: "x"}), 400},
		{"up", pack(t, ok, file{name: "web/../../x", text: "x"}), 400},
		{"backslash", pack(t, ok, file{name: `web\..\x`, text: "x"}), 400},
		{"drive", pack(t, file{name: "c:/x", text: "x"}, ok), 400},
		{"symlink", pack(t, ok, file{name: "web/l", kind: tar.TypeSymlink}), 400},
		{"device", pack(t, ok, file{name: "web/d", kind: tar.TypeChar}), 400},
		{"other directory", pack(t, file{name: "db/Chart.yaml", text: chartYAML("web", "1.0.0")}), 400},
		{"bad version", pack(t, file{name: "web/Chart.yaml", text: chartYAML("web", "v1")}), 400},
		{"bad name", pack(t, file{name: "we b/Chart.yaml", text: chartYAML("we b", "1.0.0")}), 400},
		{"bad type", pack(t, file{name: "web/Chart.yaml", text: chartYAML("web", "1.0.0") + "type: odd\n"}), 400},
		{"no apiVersion", pack(t, file{name: "web/Chart.yaml", text: "name: web\nversion: 1.0.0\n"}), 400},
		{"no YAML", pack(t, file{name: "web/Chart.yaml", text: "\t:\x00"}), 400},
		{"alias bomb", pack(t, file{name: "web/Chart.yaml", text: "a: &a [x,x,x,x,x,x,x,x,x]\n" + strings.Repeat("b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n", 200)}), 400},
		{"long Chart.yaml", pack(t, file{name: "web/Chart.yaml", text: chartYAML("web", "1.0.0") + "#" + strings.Repeat("x", MaxChartYAML)}), 413},
		{"many files", pack(t, many...), 413},
		{"zip bomb", bomb(t, "web/values.yaml"), 413},
		{"bomb as Chart.yaml", bomb(t, "web/Chart.yaml"), 413},
		{"large", make([]byte, MaxArchiveBytes+1), 413},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			f.want(tt.status, "POST", api, tt.body)
		})
	}
	f.t = t
	f.want(400, "POST", api, whole, "Content-Type", "multipart/form-data; boundary=x")
	f.want(400, "POST", api, whole, "Content-Type", "multipart/form-data")
	f.want(400, "POST", "/charts/api/ACME/charts/charts", whole)
	f.want(400, "GET", "/charts/acme/index.yaml", nil)
	f.want(400, "GET", "/charts/acme/%2e%2e/x/index.yaml", nil)
	f.want(400, "GET", "/charts/acme%2fcharts/index.yaml", nil)
	f.want(404, "GET", "/charts/index.yaml", nil)
	f.want(501, "PUT", base+"web-1.0.0.tgz", whole)
	f.want(413, "POST", "/charts/api/acme/charts/prov", make([]byte, MaxProvBytes+1))
	f.want(400, "POST", "/charts/api/acme/charts/prov", []byte("hello"))
	if i := f.indexOf("acme/charts"); len(i.Entries) != 0 || len(f.events) != 0 {
		t.Errorf("%+v %v", i, f.events)
	}
	for _, action := range []string{"pull", "push", "delete"} {
		f.refuse[action] = problem.New(problem.ErrForbidden, "no")
	}
	if _, text := f.want(403, "POST", api, whole); !strings.Contains(text, `"error":"no"`) {
		t.Error(text)
	}
	f.want(403, "POST", "/charts/api/acme/charts/prov", whole)
	f.want(403, "GET", base+"index.yaml", nil)
	f.want(403, "GET", base+"web-1.0.0.tgz", nil)
	f.want(403, "GET", api, nil)
	f.want(403, "DELETE", api+"/web/1.0.0", nil)
}

func TestSplitFileName(t *testing.T) {
	for file, want := range map[string]string{
		"web-1.0.0.tgz": "web 1.0.0", "my-db-2-1.0.0.tgz": "my-db-2 1.0.0", "web-1.0.0-rc.1.tgz": "web 1.0.0-rc.1", "web-1.0.0+b.5.tgz": "web 1.0.0+b.5",
		"web-1.2.3-4.5.6.tgz": "web 1.2.3-4.5.6, web-1.2.3 4.5.6",
		"web.tgz":             "", "web-1.tgz": "", "-1.0.0.tgz": "", "web-1.0.0": "", "../web-1.0.0.tgz": "",
	} {
		var got []string
		for _, r := range splitFileName(file) {
			got = append(got, r.name+" "+r.version)
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(chart(f, "web", "1.0.0"))
	f.Add(pack(f, file{name: "web/l", kind: tar.TypeSymlink}))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := readArchive(bytes.NewReader(data))
		if err != nil {
			if problem.Of(err).Status >= 500 {
				t.Error(err)
			}
			return
		}
		if !slices.Contains(splitFileName(fileName(m.Name, m.Version)), reference{m.Name, m.Version}) {
			t.Errorf("%q %q cannot be downloaded", m.Name, m.Version)
		}
	})
}

// What Chart.yaml holds comes back out of the index, whatever it is.
func FuzzIndex(f *testing.F) {
	f.Add("web", "1.0.0", "two\nlines", "a: b")
	f.Add("a.b", "1.0.0-rc+1", "  indented\n\n  more\n", "\"'#|>-")
	f.Fuzz(func(t *testing.T, name, version, description, icon string) {
		text, err := json.Marshal(map[string]string{"apiVersion": "v2", "name": name, "version": version, "description": description, "icon": icon})
		if err != nil {
			t.Skip()
		}
		m, err := parseMetadata(text)
		if err != nil {
			if problem.Of(err).Status >= 500 {
				t.Error(err)
			}
			return
		}
		b, err := block(m.Name, []Chart{{Entry: Entry{Metadata: *m, URLs: []string{fileName(m.Name, m.Version)}}}})
		if err != nil {
			t.Fatal(err)
		}
		var back struct {
			Entries map[string][]Entry `json:"entries"`
		}
		if err := yaml.Unmarshal(append([]byte("apiVersion: v1\nentries:\n"), b...), &back); err != nil || len(back.Entries[m.Name]) != 1 {
			t.Fatalf("%v\n%s", err, b)
		}
		if got := back.Entries[m.Name][0]; got.Description != m.Description || got.Icon != m.Icon || got.Version != m.Version {
			t.Errorf("%+v became %+v\n%s", m, got, b)
		}
	})
}

func FuzzProv(f *testing.F) {
	f.Add(prov("web", "1.0.0", []byte("x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, sum, err := parseProv(data); err == nil && sum.Validate() != nil || err != nil && problem.Of(err).Status >= 500 {
			t.Errorf("%v %v", sum, err)
		}
	})
}
