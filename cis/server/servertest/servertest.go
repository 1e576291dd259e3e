// Package servertest runs a whole container instance service for tests: real tokens, control plane, SQLite store and
// HTTP server on loopback, over an engine of the test's choice.
//
// It is for tests only; cmd/cisd wires the product.
package servertest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"cumulet.io/cis/control"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/cis/server"
	"cumulet.io/internal/sqldb"
	"cumulet.io/registry/hubtoken"
)

const issuer = "servertest"

// Env is a service that can be killed and started again on the same address and store.
type Env struct {
	// URL is the service's base address.
	URL string
	// Control is the control plane that runs now.
	Control *control.Control

	t      testing.TB
	dir    string
	addr   string
	change func(*control.Config)
	tokens *hubtoken.Issuer
	keys   *hubtoken.Keys
	past   *hubtoken.Issuer
	wrap   func(http.Handler) http.Handler
	stop   func()
}

// Options are what a test may choose.
type Options struct {
	// Change changes the control plane's configuration.
	Change func(*control.Config)
	// Wrap is put around the API, to make faults.
	Wrap func(http.Handler) http.Handler
}

// New starts a service that ends with the test.
func New(t testing.TB, newEngine func(engine.Sink) (engine.Engine, error), o Options) *Env {
	t.Helper()
	e := &Env{t: t, dir: t.TempDir(), addr: "127.0.0.1:0", wrap: o.Wrap}
	e.change = func(c *control.Config) {
		c.NewEngine = newEngine
		if o.Change != nil {
			o.Change(c)
		}
	}
	path := filepath.Join(e.dir, "keys")
	keys, err := hubtoken.OpenKeys(hubtoken.KeysConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	past, err := hubtoken.OpenKeys(hubtoken.KeysConfig{Path: path, Now: func() time.Time { return time.Now().Add(-2 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	e.keys, e.tokens, e.past = keys, hubtoken.NewIssuer(keys, issuer), hubtoken.NewIssuer(past, issuer)
	e.Start()
	t.Cleanup(func() { e.Kill() })
	return e
}

// Start starts what Kill has ended.
func (e *Env) Start() {
	e.t.Helper()
	// Not the test's context: it ends before the clean-up.
	ctx, cancel := context.WithCancel(context.Background())
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(e.dir, "cis.db"))
	if err != nil {
		e.t.Fatal(err)
	}
	key, err := store.LoadKey(filepath.Join(e.dir, "seal.key"))
	if err != nil {
		e.t.Fatal(err)
	}
	st, err := store.Open(ctx, store.Config{DB: db, Key: key})
	if err != nil {
		e.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	cfg := control.Config{Store: st, Region: "test", Node: "test-1", Logger: quiet}
	e.change(&cfg)
	if e.Control, err = control.New(cfg); err != nil {
		e.t.Fatal(err)
	}
	verifier, err := hubtoken.NewVerifier(hubtoken.Config{KeySet: e.keys, Issuer: issuer})
	if err != nil {
		e.t.Fatal(err)
	}
	handler, err := server.New(server.Config{Service: e.Control, Verifier: verifier, Logger: quiet})
	if err != nil {
		e.t.Fatal(err)
	}
	if e.wrap != nil {
		handler = e.wrap(handler)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.addr = l.Addr().String()
	e.URL = "http://" + e.addr
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			e.t.Error(err)
		}
	})
	wg.Go(func() {
		if err := e.Control.Run(ctx); err != nil {
			e.t.Error(err)
		}
	})
	e.stop = sync.OnceFunc(func() {
		cancel()
		err := srv.Close()
		wg.Wait()
		// Handlers that are still on their way see the database closed under them, as in a crash.
		if err := errors.Join(err, st.Close(), db.Close()); err != nil {
			e.t.Error(err)
		}
	})
}

// Kill ends the service at once, connections and all; the store stays.
func (e *Env) Kill() { e.stop() }

// Token signs a token for an audience.
func (e *Env) Token(audience string, access ...hubtoken.Access) string {
	e.t.Helper()
	return e.sign(e.tokens, audience, access)
}

// Expired signs a token that has expired.
func (e *Env) Expired(audience string, access ...hubtoken.Access) string {
	e.t.Helper()
	return e.sign(e.past, audience, access)
}

func (e *Env) sign(i *hubtoken.Issuer, audience string, access []hubtoken.Access) string {
	e.t.Helper()
	token, err := i.Sign(hubtoken.Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: "tester", Audience: jwt.ClaimStrings{audience}}, Access: access}, time.Hour)
	if err != nil {
		e.t.Fatal(err)
	}
	return token
}

// Org is access to an org.
func Org(org string, actions ...string) hubtoken.Access {
	return hubtoken.Access{Type: hubtoken.TypeOrg, Name: org, Actions: actions}
}

// Source gives the same token always.
type Source string

// Token implements hubtoken.Source.
func (s Source) Token(context.Context) (string, error) { return string(s), nil }

// Source gives tokens with the access, for a client.
func (e *Env) Source(access ...hubtoken.Access) hubtoken.Source {
	e.t.Helper()
	return Source(e.Token(hubtoken.AudienceCIS, access...))
}
