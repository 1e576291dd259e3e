package index

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a settable clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(time.Microsecond)
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// onEach runs f on an empty index of each dialect.
func onEach(t *testing.T, f func(t *testing.T, s *Store, c *clock)) {
	sqldbtest.Each(t, func(t *testing.T, empty func(t testing.TB) string) {
		c := &clock{t: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
		s, err := Open(t.Context(), sqldbtest.Open(t, empty(t)), Config{Now: c.now})
		if err != nil {
			t.Fatal(err)
		}
		f(t, s, c)
	})
}

func blob(text string, size int64) Blob {
	return Blob{Digest: digest.FromString(text), Kind: KindLayer, Size: size}
}

// image makes a manifest of 100 bytes with these blobs.
func image(repository, text string, blobs ...Blob) *Manifest {
	d := digest.FromString(text)
	return &Manifest{Repository: repository, Digest: d, Content: d, MediaType: v1.MediaTypeImageManifest, Size: 100, Blobs: blobs}
}

func put(t *testing.T, s *Store, m *Manifest, tag string) PutResult {
	t.Helper()
	out, err := s.Put(t.Context(), PutRequest{Manifest: m, Tag: tag, Actor: "wendy", Cause: CausePush})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantClass(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: %v, want %v", what, err, class)
	}
}

func used(t *testing.T, s *Store, org string) int64 {
	t.Helper()
	n, err := s.Used(t.Context(), org)
	return must(t, n, err)
}

func TestStore(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store, c *clock) {
		t.Run("tags and history", func(t *testing.T) { testTags(t, s) })
		t.Run("usage", func(t *testing.T) { testUsage(t, s, c) })
		t.Run("referrers and facts", func(t *testing.T) { testFacts(t, s) })
		t.Run("rules and retention", func(t *testing.T) { testRetention(t, s, c) })
		t.Run("concurrent moves", func(t *testing.T) { testConcurrent(t, s) })
		t.Run("state", func(t *testing.T) {
			if done, err := s.Complete(t.Context()); err != nil || done {
				t.Errorf("complete at first: %v, %v", done, err)
			}
			for range 2 {
				if err := s.SetComplete(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if done, err := s.Complete(t.Context()); err != nil || !done {
				t.Errorf("complete: %v, %v", done, err)
			}
		})
	})
}

func testTags(t *testing.T, s *Store) {
	ctx := t.Context()
	a, b := image("acme/web", "a", blob("base", 1000)), image("acme/web", "b", blob("base", 1000), blob("top", 10))
	if out := put(t, s, a, "v1"); !out.New || !out.Moved || out.Before != "" || out.Used != 1100 || out.Added != 1100 {
		t.Errorf("first: %+v", out)
	}
	if out := put(t, s, a, "v1"); out.New || out.Moved || out.Added != 0 {
		t.Errorf("again: %+v", out)
	}
	put(t, s, a, "v2")
	if out := put(t, s, b, "v1"); out.Before != a.Digest || !out.Moved || out.Added != 110 {
		t.Errorf("moved: %+v", out)
	}
	for reference, want := range map[string]digest.Digest{"v1": b.Digest, "v2": a.Digest, a.Digest.String(): a.Digest} {
		for range 2 { // once from memory
			if e, err := s.Lookup(ctx, "acme/web", reference); err != nil || e.Digest != want || e.Size != 100 {
				t.Errorf("%s: %+v, %v", reference, e, err)
			}
		}
		_, err := s.Lookup(ctx, "acme/other", reference)
		wantClass(t, "in another repository", err, problem.ErrNotFound)
	}
	if m, err := s.Manifest(ctx, "acme/web", b.Digest); err != nil || len(m.Blobs) != 2 || m.PushedBy != "wendy" || m.Pushed.IsZero() {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	for _, name := range []string{"V3", "Z", "a", "_x"} {
		put(t, s, a, name)
	}
	if names, err := s.TagNames(ctx, "acme/web", "", 100); err != nil || strings.Join(names, " ") != "V3 Z _x a v1 v2" {
		t.Errorf("names = %v, %v", names, err)
	}
	if names, err := s.TagNames(ctx, "acme/web", "Z", 2); err != nil || strings.Join(names, " ") != "_x a" {
		t.Errorf("page = %v, %v", names, err)
	}
	if tags, err := s.Tags(ctx, "acme/web", "a", 1); err != nil || len(tags) != 1 || tags[0].Name != "v1" || tags[0].Sequence != 2 || tags[0].Size != 1110 {
		t.Errorf("tags = %+v, %v", tags, err)
	}
	if dgst, err := s.DeleteTag(ctx, "acme/web", "v1", "adam", CauseDelete, nil); err != nil || dgst != b.Digest {
		t.Errorf("delete: %v, %v", dgst, err)
	}
	_, err := s.DeleteTag(ctx, "acme/web", "v1", "adam", CauseDelete, nil)
	wantClass(t, "delete again", err, problem.ErrNotFound)
	_, err = s.Lookup(ctx, "acme/web", "v1")
	wantClass(t, "after delete", err, problem.ErrNotFound)
	// What is imported does not bring back what was deleted.
	if out, err := s.Put(ctx, PutRequest{Manifest: b, Tag: "v1", Cause: CauseImport}); err != nil || out.Moved {
		t.Errorf("import: %+v, %v", out, err)
	}
	put(t, s, a, "v1")
	moves, err := s.History(ctx, "acme/web", "v1", 0, 10)
	var got []string
	for _, m := range must(t, moves, err) {
		got = append(got, fmt.Sprintf("%d %s>%s %s %s", m.Sequence, short(m.Before), short(m.After), m.Actor, m.Cause))
	}
	want := []string{fmt.Sprintf("4 >%s wendy push", short(a.Digest)), fmt.Sprintf("3 %s> adam delete", short(b.Digest)),
		fmt.Sprintf("2 %s>%s wendy push", short(a.Digest), short(b.Digest)), fmt.Sprintf("1 >%s wendy push", short(a.Digest))}
	if !slices.Equal(got, want) {
		t.Errorf("history:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if older, err := s.History(ctx, "acme/web", "", moves[0].ID, 1); err != nil || len(older) != 1 || older[0].ID >= moves[0].ID {
		t.Errorf("the page before: %+v, %v", older, err)
	}
	for _, tc := range []struct {
		repository string
		dgst       digest.Digest
		want       bool
	}{{"acme/web", digest.FromString("top"), true}, {"", digest.FromString("top"), true}, {"acme/other", digest.FromString("top"), false},
		{"", b.Digest, true}, {"acme/web", b.Digest, true}, {"acme/other", b.Digest, false}, {"", digest.FromString("nothing"), false}} {
		if live, err := s.Live(ctx, tc.repository, tc.dgst); err != nil || live != tc.want {
			t.Errorf("live in %q: %v, %v, want %v", tc.repository, live, err, tc.want)
		}
	}
	if m, tags, err := s.Delete(ctx, "acme/web", b.Digest, "adam", CauseDelete, nil); err != nil || len(tags) != 0 || m.Digest != b.Digest {
		t.Errorf("delete manifest: %v, %v", tags, err)
	}
	if live, err := s.Live(ctx, "", digest.FromString("top")); err != nil || live {
		t.Errorf("live after delete: %v, %v", live, err)
	}
	_, tags, err := s.Delete(ctx, "acme/web", a.Digest, "adam", CauseDelete, nil)
	slices.Sort(tags)
	if err != nil || strings.Join(tags, " ") != "V3 Z _x a v1 v2" {
		t.Errorf("tags of the deleted: %v, %v", tags, err)
	}
	if has, err := s.HasRepository(ctx, "acme/web"); err != nil || has || used(t, s, "acme") != 0 {
		t.Errorf("left: %v, %v, %d bytes", has, err, used(t, s, "acme"))
	}
}

func short(d digest.Digest) string {
	if d == "" {
		return ""
	}
	return d.Encoded()[:6]
}

func testUsage(t *testing.T, s *Store, c *clock) {
	ctx := t.Context()
	base := blob("base2", 500)
	put(t, s, image("quo/a", "qa", base), "1")
	put(t, s, image("quo/b", "qb", base), "1") // the base once
	if n := used(t, s, "quo"); n != 700 {
		t.Errorf("used = %d", n)
	}
	req := PutRequest{Manifest: image("quo/c", "qc", blob("more", 300)), Tag: "1", Cause: CausePush, MaxBytes: 1000}
	_, err := s.Put(ctx, req)
	wantClass(t, "above the quota", err, problem.ErrExhausted)
	if _, err := s.Lookup(ctx, "quo/c", "1"); !errors.Is(err, problem.ErrNotFound) || used(t, s, "quo") != 700 {
		t.Errorf("a refused manifest left a trace: %v, %d", err, used(t, s, "quo"))
	}
	wantClass(t, "an upload above the quota", s.Uploaded(ctx, "quo", digest.FromString("big"), 400, 1000), problem.ErrExhausted)
	for range 2 {
		if err := s.Uploaded(ctx, "quo", digest.FromString("fits"), 300, 1000); err != nil {
			t.Error(err)
		}
	}
	if n := used(t, s, "quo"); n != 1000 {
		t.Errorf("with an upload: %d", n)
	}
	// A manifest that needs the upload counts only itself.
	if out := put(t, s, image("quo/d", "qd", Blob{Digest: digest.FromString("fits"), Kind: KindLayer, Size: 300}), "1"); out.Added != 100 {
		t.Errorf("added %d", out.Added)
	}
	if err := s.Uploaded(ctx, "quo", digest.FromString("orphan"), 50, 0); err != nil {
		t.Error(err)
	}
	c.advance(PendingFor + time.Minute)
	if err := s.ExpirePending(ctx); err != nil {
		t.Error(err)
	}
	if n := used(t, s, "quo"); n != 1100 {
		t.Errorf("after the orphan is forgotten: %d", n)
	}
	for _, name := range []string{"a", "b", "d"} {
		if _, _, err := s.Delete(ctx, "quo/"+name, digest.FromString("q"+name), "", CauseDelete, nil); err != nil {
			t.Error(err)
		}
	}
	if n := used(t, s, "quo"); n != 0 {
		t.Errorf("at the end: %d", n)
	}
}

func testFacts(t *testing.T, s *Store) {
	ctx := t.Context()
	app := image("facts/app", "app", blob("fl", 1))
	app.Labels = map[string]string{v1.AnnotationSource: "https://git.example/app", "team": "blue"}
	app.Platform = "linux/amd64"
	put(t, s, app, "v1")
	put(t, s, app, "v2")
	other := image("facts/other", "other", blob("fl", 1))
	put(t, s, other, "")
	referrer := func(text, artifactType string, annotations map[string]string) *Manifest {
		m := image("facts/app", text)
		m.Subject, m.ArtifactType, m.Annotations = app.Digest, artifactType, annotations
		put(t, s, m, "")
		return m
	}
	build := referrer("build", ArtifactBuild, map[string]string{"io.cumulet.build.by": "ci", v1.AnnotationBaseImageName: "base:1"})
	referrer("test", ArtifactTest, map[string]string{"io.cumulet.test.name": "unit", "io.cumulet.test.result": "passed"})
	referrer("scan", ArtifactScan, map[string]string{"io.cumulet.scan.critical": "0", "io.cumulet.scan.high": "2"})
	referrer("sbom", "application/spdx+json", nil)
	strange := referrer("strange", "application/x-strange", map[string]string{"io.cumulet.build.by": "mallory"})
	list, more, err := s.Referrers(ctx, "facts/app", app.Digest, "", "", 3)
	if err != nil || len(list) != 3 || !more {
		t.Errorf("first page: %d, %v, %v", len(list), more, err)
	}
	rest, more, err := s.Referrers(ctx, "facts/app", app.Digest, "", list[2].Digest, 2)
	if err != nil || len(rest) != 2 || more {
		t.Errorf("second page: %d, %v, %v", len(rest), more, err)
	}
	if only, _, err := s.Referrers(ctx, "facts/app", app.Digest, ArtifactBuild, "", 10); err != nil || len(only) != 1 || only[0].Digest != build.Digest || only[0].Annotations["io.cumulet.build.by"] != "ci" {
		t.Errorf("filtered: %+v, %v", only, err)
	}
	if none, _, err := s.Referrers(ctx, "facts/other", app.Digest, "", "", 10); err != nil || len(none) != 0 {
		t.Errorf("of another repository: %v, %v", none, err)
	}
	facts, err := s.FactsOf(ctx, "facts/app", app.Digest)
	var got []string
	for _, f := range must(t, facts, err) {
		if f.Source == strange.Digest {
			t.Errorf("a referrer of another type says %+v", f)
		}
		got = append(got, f.Kind+":"+f.Name+"="+f.Value)
	}
	for _, want := range []string{"build:by=ci", "build:base=base:1", "build:source=https://git.example/app", "build:pushed-by=wendy", "test:unit=passed", "scan:high=2", "label:team=blue"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not in %v", want, got)
		}
	}
	for query, want := range map[string]int{"test:unit=passed": 1, "test:unit=failed": 0, "sbom": 1, "!sbom": 1, "build:by=ci sbom test:unit=passed": 1,
		"build:by=mallory": 0, "label:team=blue": 1, "": 2, "!test": 1} {
		var conditions []Condition
		for _, text := range strings.Fields(query) {
			c, err := ParseCondition(text)
			conditions = append(conditions, must(t, c, err))
		}
		found, err := s.Find(ctx, "facts", conditions, "", "", 10)
		if err != nil || len(found) != want {
			t.Errorf("%q: %+v, %v", query, found, err)
		}
		if query == "sbom" && len(found) == 1 && (strings.Join(found[0].Tags, " ") != "v1 v2" || found[0].Platform != "linux/amd64") {
			t.Errorf("found %+v", found)
		}
		if strangers, err := s.Find(ctx, "acme", conditions, "", "", 10); err != nil || len(strangers) != 0 {
			t.Errorf("another org finds %v, %v", strangers, err)
		}
	}
	for _, bad := range []string{"", "nothing", "test:", "!", "label:=x", "x:" + strings.Repeat("a", 1000)} {
		_, err := ParseCondition(bad)
		wantClass(t, bad, err, problem.ErrInvalid)
	}
	users, err := s.UsedBy(ctx, "facts", digest.FromString("fl"), "", "", 10)
	if err != nil || len(users) != 2 || users[0].Repository != "facts/app" || len(users[0].Tags) != 2 || users[1].Tags == nil {
		t.Errorf("users of the layer: %+v, %v", users, err)
	}
	if page, err := s.UsedBy(ctx, "facts", digest.FromString("fl"), users[0].Repository, users[0].Digest, 10); err != nil || len(page) != 1 {
		t.Errorf("second page: %+v, %v", page, err)
	}
	if users, err := s.UsedBy(ctx, "acme", digest.FromString("fl"), "", "", 10); err != nil || len(users) != 0 {
		t.Errorf("another org sees %v, %v", users, err)
	}
	if _, _, err := s.Delete(ctx, "facts/app", build.Digest, "", CauseDelete, nil); err != nil {
		t.Fatal(err)
	}
	c, err := ParseCondition("build:by=ci")
	if found, err := s.Find(ctx, "facts", []Condition{must(t, c, err)}, "", "", 10); err != nil || len(found) != 0 {
		t.Errorf("a fact outlives its referrer: %v, %v", found, err)
	}
}

func testConcurrent(t *testing.T, s *Store) {
	const movers, moves = 4, 8
	var wg sync.WaitGroup
	for i := range movers {
		wg.Go(func() {
			for j := range moves {
				m := image(fmt.Sprintf("crowd/r%d", (i+j)%2), fmt.Sprint("c", i, j), blob("cl", 7))
				if _, err := s.Put(t.Context(), PutRequest{Manifest: m, Tag: "latest", Cause: CausePush}); err != nil {
					t.Error(err)
				}
				if _, err := s.Lookup(t.Context(), m.Repository, "latest"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for r := range 2 {
		name := fmt.Sprintf("crowd/r%d", r)
		history, err := s.History(t.Context(), name, "latest", 0, 1000)
		e, lerr := s.Lookup(t.Context(), name, "latest")
		if err != nil || lerr != nil || e.Digest != history[0].After {
			t.Fatalf("%v, %v: the tag is at %v", err, lerr, e.Digest)
		}
		for i, m := range history {
			if m.Sequence != int64(len(history)-i) || i > 0 && m.After != history[i-1].Before {
				t.Fatalf("history breaks at %d: %+v", i, m)
			}
		}
		total += len(history)
	}
	if n := used(t, s, "crowd"); total != movers*moves || n != movers*moves*100+7 {
		t.Errorf("%d moves, %d bytes", total, n)
	}
}
