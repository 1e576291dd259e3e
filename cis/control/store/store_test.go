package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cumulet.io/cis"
	"cumulet.io/cis/control/store"
	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConformance runs every suite on each database that is there, each on an empty one.
func TestConformance(t *testing.T) {
	suites := []struct {
		name string
		run  func(t *testing.T, open func() *sqldb.DB)
	}{{"store", testStore}, {"sealed", testSealed}, {"list", testList}, {"large", testLarge}, {"events", testEvents}, {"prune", testPrune}, {"quotas", testQuotas}}
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) {
		for _, suite := range suites {
			t.Run(suite.name, func(t *testing.T) {
				address := empty(t)
				suite.run(t, func() *sqldb.DB { return sqldbtest.Open(t, address) })
			})
		}
	})
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Microsecond)
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func openStore(t testing.TB, db *sqldb.DB, c *clock) *store.Store {
	t.Helper()
	cfg := store.Config{DB: db, Key: store.Key{1, 2, 3}}
	if c != nil {
		cfg.Now = c.Now
	}
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

const secret = "correct-horse-battery-staple"

func spec(name string) cis.Spec {
	return cis.Spec{
		Name:         name,
		Labels:       map[string]string{"app": name},
		Containers:   []cis.Container{{Name: "main", Image: "registry.test/a/b:1", Env: []cis.EnvVar{{Name: "P", Value: secret, Secret: true}}}},
		Volumes:      []cis.Volume{{Name: "v", Files: &cis.FilesVolume{Secret: true, Files: []cis.File{{Path: "a", Data: []byte(secret)}}}}},
		RegistryAuth: []cis.RegistryAuth{{Server: "registry.test", Username: "u", Password: secret}},
		Source:       cis.Source{Node: "vk-1", UID: name},
	}
}

func create(t testing.TB, s *store.Store, org, key string, sp cis.Spec) (*cis.Instance, bool) {
	t.Helper()
	in, created, err := tryCreate(t.Context(), s, org, key, sp, nil)
	if err != nil {
		t.Fatal(err)
	}
	return in, created
}

func tryCreate(ctx context.Context, s *store.Store, org, key string, sp cis.Spec, admit func(a, b store.Usage) error) (*cis.Instance, bool, error) {
	hash, err := s.Hash(&sp)
	if err != nil {
		return nil, false, err
	}
	return s.Create(ctx, store.NewInstance{Org: org, Key: key, Spec: sp, Hash: hash, Status: cis.Status{Phase: cis.Pending}, Admit: admit})
}

func setPhase(t testing.TB, s *store.Store, id string, p cis.Phase) *cis.Instance {
	t.Helper()
	in, err := s.Update(t.Context(), id, func(in *cis.Instance) (store.Changed, error) {
		in.Status.Phase = p
		return store.ChangedState, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func testStore(t *testing.T, open func() *sqldb.DB) {
	db := open()
	c := &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}
	s := openStore(t, db, c)

	in, created := create(t, s, "acme", "k1", spec("one"))
	if !created || in.Version != 1 || in.Status.Phase != cis.Pending || !cis.ValidID(in.ID) {
		t.Fatalf("created %v, %+v", created, in)
	}
	again, created := create(t, s, "acme", "k1", spec("one"))
	if created || again.ID != in.ID {
		t.Errorf("the same key made %v, %s; want %s", created, again.ID, in.ID)
	}
	if _, _, err := tryCreate(t.Context(), s, "acme", "k1", spec("two"), nil); !errors.Is(err, problem.ErrConflict) {
		t.Errorf("same key, other spec: %v; want a conflict", err)
	}
	if other, created := create(t, s, "umbrella", "k1", spec("one")); !created || other.ID == in.ID {
		t.Error("the key of another org is not the same key")
	}
	if _, err := s.Get(t.Context(), "umbrella", in.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another org's instance: %v; want not found", err)
	}
	full := errors.New("full")
	if _, _, err := tryCreate(t.Context(), s, "acme", "k9", spec("x"), func(ofOrg, total store.Usage) error {
		if ofOrg.Instances != 1 || total.Instances != 2 || ofOrg.MilliCPU == 0 || total.MemoryMiB == 0 {
			t.Errorf("usage %+v of %+v", ofOrg, total)
		}
		return full
	}); !errors.Is(err, full) {
		t.Errorf("refused admission gave %v", err)
	}

	running := setPhase(t, s, in.ID, cis.Running)
	if running.Version != 3 || running.Status.Phase != cis.Running {
		t.Errorf("update gave version %d, %s", running.Version, running.Status.Phase)
	}
	// Files are replaced; the key still stands for the spec that was created.
	if _, err := s.Update(t.Context(), in.ID, func(in *cis.Instance) (store.Changed, error) {
		in.Spec.Volumes = []cis.Volume{{Name: "v", Files: &cis.FilesVolume{Files: []cis.File{{Path: "a", Data: []byte("new")}}}}}
		return store.ChangedSpec, nil
	}); err != nil {
		t.Fatal(err)
	}
	if again, created := create(t, s, "acme", "k1", spec("one")); created || again.ID != in.ID {
		t.Error("after an update of files the key no longer finds its instance")
	}
	if err := s.Record(t.Context(), cis.Event{Instance: in.ID, Type: cis.Normal, Reason: "Pulled", Message: "ok"}); err != nil {
		t.Fatal(err)
	}

	// A new store on the same tables knows the same.
	s2 := openStore(t, db, c)
	got, err := s2.Get(t.Context(), "acme", in.ID)
	if err != nil || got.Status.Phase != cis.Running || got.Version != 4 || string(got.Spec.Volumes[0].Files.Files[0].Data) != "new" || !got.CreatedAt.Equal(in.CreatedAt) {
		t.Fatalf("after reopening: %+v, %v", got, err)
	}
	if u, total := s2.Usage("acme"); u.Instances != 1 || total.Instances != 2 {
		t.Errorf("after reopening usage is %+v of %+v", u, total)
	}
	if live := s2.Live(in.ID); live.Spec.Containers[0].Env[0].Value != secret {
		t.Error("the engine does not get the secrets")
	}
	if got.Spec.Containers[0].Env[0].Value != "" || got.Spec.RegistryAuth[0].Password != "" {
		t.Error("an answer holds secrets")
	}
	var version int64
	if err := db.QueryRowContext(t.Context(), `SELECT value FROM cis_meta WHERE name = 'version'`).Scan(&version); err != nil || version != 5 {
		t.Errorf("sequence is %d (%v), want 5", version, err)
	}
}

func testSealed(t *testing.T, open func() *sqldb.DB) {
	db := open()
	s := openStore(t, db, nil)
	create(t, s, "acme", "k1", spec("one"))
	rows, err := db.QueryContext(t.Context(), `SELECT spec FROM cis_instances`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte("registry.test")) {
			t.Error("the spec is readable at rest")
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), store.Config{DB: db, Key: store.Key{9}}); err == nil || !strings.Contains(err.Error(), "key file") {
		t.Errorf("opening with another key gave %v", err)
	}
}

// Instances with large files come in pages that a client can read, and to a watch that is behind likewise: all of them, each once.
func testLarge(t *testing.T, open func() *sqldb.DB) {
	s := openStore(t, open(), &clock{now: time.Unix(1e9, 0)})
	const large = 12
	start, err := s.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range large {
		sp := spec(fmt.Sprint("i", i))
		sp.Volumes = append(sp.Volumes, cis.Volume{Name: "big", Files: &cis.FilesVolume{Files: []cis.File{{Path: "f", Data: make([]byte, cis.MaxFilesBytes)}}}})
		in, _ := create(t, s, "acme", fmt.Sprint(i), sp)
		want = append(want, in.ID)
	}
	const most = 40 << 20 // of one answer
	var got []string
	for req := (cis.ListRequest{Limit: 1000}); ; {
		page, err := s.List(t.Context(), "acme", req)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := json.Marshal(page); err != nil || len(text) > most {
			t.Errorf("a page of %d instances has %d bytes, %v", len(page.Items), len(text), err)
		}
		for _, in := range page.Items {
			got = append(got, in.ID)
		}
		if req.Cursor = page.Next; page.Next == "" {
			break
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed  %v\nwant %v", got, want)
	}
	got = nil
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for item, err := range s.Watch(ctx, "acme", "", start.Cursor, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if item.Instance == nil {
			break // it has caught up
		}
		got = append(got, item.Instance.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("watched %v\nwant %v", got, want)
	}
}

func testList(t *testing.T, open func() *sqldb.DB) {
	s := openStore(t, open(), &clock{now: time.Unix(1e9, 0)})
	var want []string
	for i := range 25 {
		in, _ := create(t, s, "acme", fmt.Sprint("k", i), spec([]string{"a", "b"}[i%2]))
		want = append(want, in.ID)
		create(t, s, "other", fmt.Sprint("k", i), spec("a"))
	}
	setPhase(t, s, want[3], cis.Failed)
	for name, tt := range map[string]struct {
		req  cis.ListRequest
		want func(i int) bool
	}{
		"all":    {cis.ListRequest{Limit: 7}, func(int) bool { return true }},
		"live":   {cis.ListRequest{Limit: 10, Live: true}, func(i int) bool { return i != 3 }},
		"label":  {cis.ListRequest{Limit: 5, Labels: map[string]string{"app": "b"}}, func(i int) bool { return i%2 == 1 }},
		"node":   {cis.ListRequest{Node: "vk-1"}, func(int) bool { return true }},
		"nobody": {cis.ListRequest{Node: "vk-2"}, func(int) bool { return false }},
	} {
		t.Run(name, func(t *testing.T) {
			var got, exp []string
			for {
				page, err := s.List(t.Context(), "acme", tt.req)
				if err != nil {
					t.Fatal(err)
				}
				for _, in := range page.Items {
					got = append(got, in.ID)
				}
				if page.Next == "" {
					break
				}
				tt.req.Cursor = page.Next
			}
			for i, id := range want {
				if tt.want(i) {
					exp = append(exp, id)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(exp) {
				t.Errorf("got  %v\nwant %v", got, exp)
			}
		})
	}
	for _, bad := range []string{"x", "!!", "AAAA", strings.Repeat("A", 1000)} {
		if _, err := s.List(t.Context(), "acme", cis.ListRequest{Cursor: bad}); !errors.Is(err, problem.ErrInvalid) {
			t.Errorf("cursor %.20q gave %v", bad, err)
		}
	}
	if _, err := s.List(t.Context(), "acme", cis.ListRequest{Limit: 1001}); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("limit 1001 gave %v", err)
	}
}

func testEvents(t *testing.T, open func() *sqldb.DB) {
	s := openStore(t, open(), &clock{now: time.Unix(1e9, 0)})
	in, _ := create(t, s, "acme", "k", spec("a"))
	record := func(reason, message string) {
		t.Helper()
		if err := s.Record(t.Context(), cis.Event{Instance: in.ID, Type: cis.Warning, Reason: reason, Message: message}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		record("BackOff", "again")
	}
	evs, err := s.Events(t.Context(), "acme", in.ID)
	if err != nil || len(evs) != 1 || evs[0].Count != 3 || !evs[0].First.Before(evs[0].Last) || evs[0].Instance != in.ID {
		t.Fatalf("events %+v, %v", evs, err)
	}
	for i := range 150 {
		record("Noise", fmt.Sprint(i, strings.Repeat("ä", 2000)))
	}
	evs, err = s.Events(t.Context(), "acme", in.ID)
	if err != nil || len(evs) != 100 || !strings.HasPrefix(evs[99].Message, "149ä") || len(evs[99].Message) > 1024 {
		t.Fatalf("%d events, %v", len(evs), err)
	}
	if _, err := s.Events(t.Context(), "other", in.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("another org's events: %v", err)
	}
	if err := s.Record(t.Context(), cis.Event{Instance: "i-none", Reason: "X"}); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("an event of nothing: %v", err)
	}
}

func testPrune(t *testing.T, open func() *sqldb.DB) {
	db := open()
	c := &clock{now: time.Unix(1e9, 0)}
	s := openStore(t, db, c)
	old, _ := create(t, s, "acme", "old", spec("a"))
	page, err := s.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	before := page.Cursor
	setPhase(t, s, old.ID, cis.Succeeded)
	live, _ := create(t, s, "acme", "live", spec("a"))
	page, err = s.List(t.Context(), "acme", cis.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	after := page.Cursor
	c.Advance(25 * time.Hour)
	if n, err := s.Prune(t.Context(), c.Now().Add(-24*time.Hour), 100); err != nil || n != 1 {
		t.Fatalf("pruned %d, %v", n, err)
	}
	if _, err := s.Get(t.Context(), "acme", old.ID); !errors.Is(err, problem.ErrNotFound) {
		t.Errorf("pruned instance: %v", err)
	}
	if _, err := s.Get(t.Context(), "acme", live.ID); err != nil {
		t.Errorf("live instance: %v", err)
	}
	for _, s := range []*store.Store{s, openStore(t, db, c)} {
		if err := watchError(t, s, before); !errors.Is(err, problem.ErrGone) {
			t.Errorf("a cursor from before the pruned change gave %v", err)
		}
		if err := watchError(t, s, after); err != nil {
			t.Errorf("a cursor from after the pruned change gave %v", err)
		}
	}
	if err := watchError(t, s, "zzzzzzzz.1"); !errors.Is(err, problem.ErrGone) {
		t.Errorf("a cursor of another store gave %v", err)
	}
	if err := watchError(t, s, "1"); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("a malformed cursor gave %v", err)
	}
}

// watchError is the first thing that a watch gives.
func watchError(t *testing.T, s *store.Store, cursor string) error {
	t.Helper()
	for _, err := range s.Watch(t.Context(), "acme", "", cursor, nil) {
		return err
	}
	t.Fatal("the watch ended")
	return nil
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	a, err := store.LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.LoadKey(path)
	if err != nil || a != b || a == (store.Key{}) {
		t.Errorf("the key does not last (%v)", err)
	}
	if strings.Contains(fmt.Sprintf("%v %s %+v", a, a, struct{ K store.Key }{a}), fmt.Sprint(a[0], " ", a[1])) {
		t.Error("the key prints itself")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := store.LoadKey(path); err == nil {
		t.Error("a key that all may read was taken")
	}
	if err := os.WriteFile(path, []byte("beef"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.LoadKey(path); err == nil {
		t.Error("a short key was taken")
	}
}
