package webhook

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cumulet.io/internal/sqldb"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
)

func quick(waits ...time.Duration) func(*Config) { return func(c *Config) { c.Backoff = waits } }

func TestRetry(t *testing.T) {
	eachDialect(t, func(t *testing.T, db *sqldb.DB) {
		s := newService(t, db, quick(time.Millisecond, time.Millisecond, time.Millisecond))
		var n atomic.Int32
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			switch n.Add(1) {
			case 1:
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = w.Write([]byte("broken\x00\xff"))
			case 2:
				panic(http.ErrAbortHandler)
			}
		})
		h, _ := mustCreate(t, s, "acme", Spec{URL: r.URL + "/in?key=private"})
		mustEmit(t, s, push("e1", "acme", "acme/web"))
		runService(t, s)
		d := delivery(t, s, h, "e1", delivered)
		if len(d.Log) != 3 || d.Log[2].Status != 500 || d.Log[2].Response != "broken??" || d.Log[1].Status != 0 || d.Log[1].Error == "" || d.Log[0].Number != 3 {
			t.Errorf("%+v", d.Log)
		}
		for _, a := range d.Log {
			if strings.Contains(a.Error, "private") {
				t.Errorf("the log shows the URL: %s", a.Error)
			}
		}
	})
}

func TestGiveUpAndDisable(t *testing.T) {
	s := newService(t, sqlite(t), quick(time.Millisecond), func(c *Config) { c.DisableAfter = time.Nanosecond })
	bad := newReceiver(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	watch := newReceiver(t, nil)
	h, _ := mustCreate(t, s, "acme", Spec{URL: bad.URL, Events: []registry.EventType{registry.EventPush}})
	mustCreate(t, s, "acme", Spec{URL: watch.URL, Events: []registry.EventType{registry.EventWebhook}})
	runService(t, s)
	mustEmit(t, s, push("e1", "acme", "acme/web"))
	p := watch.next(t).payload(t)
	if p.Type != registry.EventWebhook || p.Data.Details["webhook"] != h.ID || !strings.Contains(p.Data.Details["reason"], "redirect") {
		t.Errorf("%+v", p)
	}
	d := delivery(t, s, h, "e1", func(d *DeliveryDetail) bool { return d.State == Failed })
	if d.Attempts != 2 || d.Log[0].Status != 302 {
		t.Errorf("%+v", d)
	}
	got, err := s.Hook(t.Context(), "acme", h.ID)
	if err != nil || got.State != Disabled || got.Reason == "" || got.FailingSince == nil {
		t.Errorf("%+v %v", got, err)
	}
	// It gets no more events, but a ping, which is tried once; enabled again, it starts afresh.
	mustEmit(t, s, push("e2", "acme", "acme/web"))
	ping, err := s.Ping(asRoot(t), "acme", h.ID)
	if err != nil {
		t.Fatal(err)
	}
	delivery(t, s, h, ping.Event, func(d *DeliveryDetail) bool { return d.State == Failed && d.Attempts == 1 })
	if page, _, err := s.Deliveries(t.Context(), "acme", h.ID, "", "", 10); err != nil || len(page) != 2 {
		t.Errorf("%+v %v", page, err)
	}
	on := Enabled
	if got, err = s.Update(asRoot(t), "acme", h.ID, Change{State: &on}); err != nil || got.State != Enabled || got.Reason != "" || got.FailingSince != nil {
		t.Errorf("%+v %v", got, err)
	}
}

func TestGone(t *testing.T) {
	s := newService(t, sqlite(t))
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	h, _ := mustCreate(t, s, "acme", Spec{URL: r.URL})
	runService(t, s)
	mustEmit(t, s, push("e1", "acme", "acme/web"))
	delivery(t, s, h, "e1", func(d *DeliveryDetail) bool { return d.State == Failed && d.Attempts == 1 })
	testenv.Eventually(t, 30*time.Second, func() error {
		if got, err := s.Hook(t.Context(), "acme", h.ID); err != nil || got.State != Disabled {
			return fmt.Errorf("%+v %v", got, err)
		}
		return nil
	})
}

func TestRetryAfter(t *testing.T) {
	s := newService(t, sqlite(t), quick(time.Millisecond))
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "600")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	h, _ := mustCreate(t, s, "acme", Spec{URL: r.URL})
	runService(t, s)
	mustEmit(t, s, push("e1", "acme", "acme/web"))
	d := delivery(t, s, h, "e1", func(d *DeliveryDetail) bool { return d.Attempts == 1 })
	if wait := time.Until(*d.NextAt); d.State != Pending || wait < 5*time.Minute || wait > 11*time.Minute {
		t.Errorf("%+v: %s", d, wait)
	}
}

// A target that never answers, of an org with many hooks at it, holds up nobody else's.
func TestSlowTarget(t *testing.T) {
	s := newService(t, sqlite(t), func(c *Config) { c.Timeout = 2 * time.Minute })
	block := make(chan struct{})
	slow := newReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-block:
		case <-r.Context().Done():
		}
	})
	good := newReceiver(t, nil)
	for range 6 {
		mustCreate(t, s, "beta", Spec{URL: slow.URL})
	}
	mustCreate(t, s, "acme", Spec{URL: slow.URL})
	mustCreate(t, s, "acme", Spec{URL: good.URL})
	for i := range 30 {
		mustEmit(t, s, push(fmt.Sprintf("b%d", i), "beta", "beta/x"), push(fmt.Sprintf("a%d", i), "acme", "acme/x"))
	}
	stop := runService(t, s)
	for range 30 {
		good.next(t)
	}
	// What is held: perOrg of beta, perHook of acme's one.
	testenv.Eventually(t, 30*time.Second, func() error {
		if n := len(slow.calls); n != perOrg+perHook {
			return fmt.Errorf("%d calls are open", n)
		}
		return nil
	})
	// A stop waits for none of them, and gives back what it held.
	began := time.Now()
	stop()
	close(block)
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("the stop took %s", d)
	}
	var leased int
	if err := s.cfg.DB.QueryRowContext(t.Context(), s.cfg.DB.Q(`SELECT count(*) FROM registry_webhook_deliveries WHERE state = ? AND leased > 0`), Pending).Scan(&leased); err != nil || leased != 0 {
		t.Errorf("%d stay leased: %v", leased, err)
	}
}

func TestAddresses(t *testing.T) {
	allowed := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for _, tt := range []struct {
		ip      string
		allowed []netip.Prefix
		ok      bool
	}{
		{"1.1.1.1", nil, true}, {"2606:4700::1111", nil, true},
		{"127.0.0.1", nil, false}, {"127.8.9.1", nil, false}, {"::1", nil, false}, {"::ffff:127.0.0.1", nil, false}, {"::127.0.0.1", nil, false},
		{"169.254.169.254", nil, false}, {"::ffff:169.254.169.254", nil, false}, {"fe80::1", nil, false}, {"fe80::1%eth0", nil, false},
		{"fd00:ec2::254", nil, false}, {"10.1.2.3", nil, false}, {"172.31.0.1", nil, false}, {"192.168.1.1", nil, false}, {"100.100.100.200", nil, false},
		{"168.63.129.16", nil, false}, {"0.0.0.0", nil, false}, {"0.1.2.3", nil, false}, {"::", nil, false}, {"224.0.0.1", nil, false}, {"ff02::1", nil, false},
		{"255.255.255.255", nil, false}, {"64:ff9b::7f00:1", nil, false}, {"2002:7f00:1::", nil, false}, {"2001:0:1::", nil, false}, {"198.18.0.1", nil, false},
		{"10.1.2.3", allowed[:1], true}, {"::ffff:10.1.2.3", allowed[:1], true}, {"10.2.2.3", allowed[:1], false}, {"127.0.0.1", allowed[:1], false},
		{"127.0.0.1", allowed, true}, {"::1", allowed, true}, {"0.0.0.0", allowed, false}, {"::", allowed, false}, {"224.0.0.1", allowed, false},
	} {
		if err := checkAddress(netip.MustParseAddr(tt.ip), tt.allowed); (err == nil) != tt.ok {
			t.Errorf("%s with %v: %v", tt.ip, tt.allowed, err)
		}
	}
}

// The address is checked where the connection is made: a name that led elsewhere when the hook was made is no way in.
func TestAddressAtTheCall(t *testing.T) {
	db := sqlite(t)
	r := newReceiver(t, nil)
	h, _ := mustCreate(t, newService(t, db), "acme", Spec{URL: strings.Replace(r.URL, "127.0.0.1", "localhost", 1)})
	strict := newService(t, db, func(c *Config) { c.Allow = nil })
	mustEmit(t, strict, push("e1", "acme", "acme/web"))
	runService(t, strict)
	d := delivery(t, strict, h, "e1", func(d *DeliveryDetail) bool { return d.Attempts == 1 })
	if !strings.Contains(d.Log[0].Error, "unless the operator allows it") {
		t.Errorf("%+v", d.Log)
	}
	r.none(t)
}

// An answer without end costs no more than its beginning.
func TestEndlessAnswer(t *testing.T) {
	s := newService(t, sqlite(t))
	r := newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	h, _ := mustCreate(t, s, "acme", Spec{URL: r.URL})
	runService(t, s)
	mustEmit(t, s, push("e1", "acme", "acme/web"))
	d := delivery(t, s, h, "e1", delivered)
	if len(d.Log) != 1 || len(d.Log[0].Response) > maxKept {
		t.Errorf("%d attempts", len(d.Log))
	}
}

func TestPulls(t *testing.T) {
	s := newService(t, sqlite(t))
	r := newReceiver(t, nil)
	pull := func(id, repository string) registry.Event {
		e := push(id, "acme", repository)
		e.Type = registry.EventPull
		return e
	}
	mustEmit(t, s, pull("before", "acme/web")) // no hook: nothing is kept
	h, _ := mustCreate(t, s, "acme", Spec{URL: r.URL, Events: []registry.EventType{registry.EventPull}})
	// Without Run it is written at once.
	mustEmit(t, s, pull("p0", "acme/web"))
	stop := runService(t, s)
	if c := r.next(t); c.header.Get("webhook-id") != "p0" {
		t.Errorf("%s", c.body)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		if !s.running.Load() {
			return fmt.Errorf("not running")
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 500 {
				if err := s.Emit(t.Context(), pull(fmt.Sprintf("p%d-%d", i, j), "acme/web")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	stop()
	runService(t, s)
	total := 0
	seen := map[string]bool{"p0": true} // a call that the stop broke off comes again
	for total < 2000 {
		p := r.next(t).payload(t)
		if seen[p.Data.ID] {
			continue
		}
		seen[p.Data.ID] = true
		n := 1
		if text := p.Data.Details["count"]; text != "" {
			if _, err := fmt.Sscan(text, &n); err != nil {
				t.Fatal(err)
			}
		}
		total += n
	}
	if page, _, err := s.Deliveries(t.Context(), "acme", h.ID, "", "", MaxPage); err != nil || total != 2000 || len(page) > 100 {
		t.Errorf("%d pulls in %d deliveries, %v", total, len(page), err)
	}
}

// Several processes share the work; without a fault each event is sent once.
func TestProcesses(t *testing.T) {
	eachDialect(t, func(t *testing.T, db *sqldb.DB) {
		r := newReceiver(t, nil)
		services := []*Service{newService(t, db), newService(t, db), newService(t, db)}
		mustCreate(t, services[0], "acme", Spec{URL: r.URL})
		for _, s := range services {
			runService(t, s)
		}
		const n = 60
		var wg sync.WaitGroup
		for i, s := range services {
			wg.Go(func() {
				for j := range n {
					if err := s.Emit(t.Context(), push(fmt.Sprintf("e%d-%d", i, j), "acme", "acme/web")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for len(seen) < n*len(services) {
			id := r.next(t).header.Get("webhook-id")
			if seen[id] {
				t.Errorf("%s came twice", id)
			}
			seen[id] = true
		}
	})
}

func TestPrune(t *testing.T) {
	db := sqlite(t)
	s := newService(t, db)
	r := newReceiver(t, nil)
	h, _ := mustCreate(t, s, "acme", Spec{URL: r.URL})
	stop := runService(t, s)
	mustEmit(t, s, push("e1", "acme", "acme/web"))
	delivery(t, s, h, "e1", delivered)
	stop()
	if err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	delivery(t, s, h, "e1", delivered)
	later := newService(t, db, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(15 * 24 * time.Hour) } })
	if err := later.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"deliveries", "events", "attempts"} {
		var n int
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM registry_webhook_`+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows stay in %s: %v", n, table, err)
		}
	}
}

// The secrets are of no use without the key, and the hook can be mended then.
func TestLostKey(t *testing.T) {
	db := sqlite(t)
	r := newReceiver(t, nil)
	h, _ := mustCreate(t, newService(t, db), "acme", Spec{URL: r.URL})
	other := newService(t, db, func(c *Config) { c.KeyFile += ".other" })
	runService(t, other)
	mustEmit(t, other, push("e1", "acme", "acme/web"))
	d := delivery(t, other, h, "e1", func(d *DeliveryDetail) bool { return d.Attempts == 1 })
	if !strings.Contains(d.Log[0].Error, "rotate") {
		t.Errorf("%+v", d.Log)
	}
	_, secret, err := other.Rotate(asRoot(t), "acme", h.ID, "", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mustEmit(t, other, push("e2", "acme", "acme/web"))
	verify(t, secret, r.next(t))
}
