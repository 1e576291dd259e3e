package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/registry"
)

// Two nodes of a registry count together, whichever a guess comes to.
func TestThrottle(t *testing.T) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) { testThrottle(t, empty(t)) })
}

func testThrottle(t *testing.T, dsn string) {
	clk := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	s := openStore(t, sqldbtest.Open(t, dsn), clk.now)
	nodes, turn := []*Store{s, openStore(t, sqldbtest.Open(t, dsn), clk.now)}, 0
	ctx := t.Context()
	if err := s.CreateAccount(ctx, registry.Account{Name: "ann", Kind: registry.Person}, "pass-of-ann"); err != nil {
		t.Fatal(err)
	}
	try := func(name, password, client string) (string, time.Duration) {
		t.Helper()
		turn++
		_, err := nodes[turn%2].Authenticate(ctx, name, password, client)
		var p *problem.Error
		switch {
		case err == nil:
			return "in", 0
		case errors.Is(err, problem.ErrUnauthenticated):
			return "wrong", 0
		case errors.Is(err, problem.ErrExhausted) && errors.As(err, &p):
			return "wait", p.RetryAfter
		}
		t.Fatal(err)
		return "", 0
	}
	if got, _ := try("ann", "pass-of-ann", "home"); got != "in" {
		t.Fatal(got)
	}
	// A name that does not exist is throttled like one that does.
	for _, name := range []string{"ann", "nobody"} {
		for i := range freeFailures {
			if got, _ := try(name, "guess", "evil"); got != "wrong" {
				t.Fatalf("%s: guess %d: %s", name, i, got)
			}
		}
		for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
			got, wait := try(name, "pass-of-ann", "evil") // a right guess does not get in either
			if got != "wait" || wait != want {
				t.Errorf("%s: %s %s, want to wait %s", name, got, wait, want)
			}
			clk.advance(wait)
			if got, _ := try(name, "guess", "evil"); got != "wrong" {
				t.Errorf("%s: after the wait: %s", name, got)
			}
		}
	}
	if got, _ := try("ann", "pass-of-ann", "home"); got != "in" {
		t.Errorf("the owner, from elsewhere: %s", got)
	}
	// Guessing from many addresses slows strangers down, not those who have been in.
	for i := range nameFailures {
		try("ann", "guess", fmt.Sprint("bot", i))
	}
	if got, wait := try("ann", "guess", "another bot"); got != "wait" || wait > nameWait {
		t.Errorf("a further bot: %s %s", got, wait)
	}
	if got, _ := try("ann", "pass-of-ann", "home"); got != "in" {
		t.Errorf("the owner at home: %s", got)
	}
	clk.advance(failureMemory + time.Second)
	if got, _ := try("ann", "pass-of-ann", "evil"); got != "in" {
		t.Errorf("after a quiet while: %s", got)
	}
	// Most good logins write nothing, on either node.
	for range 2 {
		try("ann", "pass-of-ann", "home")
	}
	kept := rowsOf(t, s)
	for range 10 {
		clk.advance(10 * time.Minute)
		if got, _ := try("ann", "pass-of-ann", "home"); got != "in" {
			t.Error(got)
		}
	}
	if now := rowsOf(t, s); now != kept {
		t.Errorf("after 10 good logins %s, before them %s", now, kept)
	}
	// What is remembered is bounded, and ends. What is typed as a name is not kept.
	try("my-secret", "guess", "home")
	if text := rowsOf(t, s); strings.Contains(text, "my-secret") || strings.Contains(text, "ann") {
		t.Error(text)
	}
	s.tracked = 3
	for i := range 10 {
		try(fmt.Sprint("name", i), "guess", "evil")
		clk.advance(time.Second)
	}
	if err := s.Housekeep(ctx); err != nil {
		t.Fatal(err)
	}
	counts := func() (good, bad int) {
		t.Helper()
		if err := s.db.QueryRowContext(ctx, `SELECT COALESCE(sum(good), 0), COALESCE(sum(1 - good), 0) FROM registry_login_attempts`).Scan(&good, &bad); err != nil {
			t.Fatal(err)
		}
		return good, bad
	}
	if good, bad := counts(); good < 1 || good > 3 || bad != 3 {
		t.Errorf("%d good and %d bad rows are kept", good, bad)
	}
	clk.advance(failureMemory + time.Second)
	if err := s.Housekeep(ctx); err != nil {
		t.Fatal(err)
	}
	if good, bad := counts(); good < 1 || bad != 0 {
		t.Errorf("after a quiet while: %d good and %d bad rows are kept", good, bad)
	}
	clk.advance(goodMemory)
	if err := s.Housekeep(ctx); err != nil {
		t.Fatal(err)
	}
	if good, bad := counts(); good+bad != 0 {
		t.Errorf("at last: %d good and %d bad rows are kept", good, bad)
	}
}

// rowsOf gives all that is remembered of logins as text.
func rowsOf(t *testing.T, s *Store) string {
	t.Helper()
	found, err := s.db.QueryContext(t.Context(), `SELECT who, failures, last, good FROM registry_login_attempts ORDER BY who`)
	rows, err := collect(found, err, "read", func(scan func(...any) error) (string, error) {
		var who string
		var failures, last, good int64
		err := scan(&who, &failures, &last, &good)
		return fmt.Sprintln(who, failures, last, good), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(rows, "")
}

// A tenant that shares its address with a platform component cannot lock that component out.
func TestServiceIsNotLockedOut(t *testing.T) {
	s := openStore(t, sqldbtest.Open(t, sqldbtest.SQLite(t)), nil)
	ctx := t.Context()
	account := registry.Account{Name: "kubelet", Kind: registry.Service, Platform: []string{"node"}}
	if err := s.CreateAccount(ctx, account, "short-password"); !errors.Is(err, problem.ErrInvalid) {
		t.Errorf("a service with a short password: %v", err)
	}
	if err := s.CreateAccount(ctx, account, "a-password-that-nobody-types"); err != nil {
		t.Fatal(err)
	}
	for range nameFailures + freeFailures {
		if _, err := s.Authenticate(ctx, "kubelet", "guess", "10.0.0.1"); !errors.Is(err, problem.ErrUnauthenticated) {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := s.Authenticate(ctx, "kubelet", "a-password-that-nobody-types", "10.0.0.1"); err != nil {
			t.Error(err)
		}
	}
	if err := s.SetPassword(ctx, "kubelet", "another-password-of-some-length"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authenticate(ctx, "kubelet", "a-password-that-nobody-types", "10.0.0.1"); !errors.Is(err, problem.ErrUnauthenticated) {
		t.Errorf("the old password, though it was just right: %v", err)
	}
}

func TestParallelGuessesAreCounted(t *testing.T) {
	sqldbtest.Each(t, func(t *testing.T, empty func(testing.TB) string) { testParallelGuesses(t, empty(t)) })
}

func testParallelGuesses(t *testing.T, dsn string) {
	clk := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)} // it stands
	s := openStore(t, sqldbtest.Open(t, dsn), clk.now)
	nodes := []*Store{s, openStore(t, sqldbtest.Open(t, dsn), clk.now)}
	if err := s.CreateAccount(t.Context(), registry.Account{Name: "ann", Kind: registry.Person}, "pass-of-ann"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var tried int
	for i := range 100 {
		wg.Go(func() {
			_, err := nodes[i%2].Authenticate(context.Background(), "ann", fmt.Sprint("guess", i), "evil")
			if errors.Is(err, problem.ErrUnauthenticated) {
				mu.Lock()
				tried++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if tried < freeFailures || tried > freeFailures+1 { // each node may have one under way
		t.Errorf("%d guesses at once were tried, want %d or one more", tried, freeFailures)
	}
}
