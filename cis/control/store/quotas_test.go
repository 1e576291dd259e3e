package store_test

import (
	"fmt"
	"testing"
	"time"

	"cumulet.io/cis"
	"cumulet.io/internal/sqldb"
)

// What was set is there after a restart, with who did it.
func testQuotas(t *testing.T, open func() *sqldb.DB) {
	c := &clock{now: time.Date(2026, 3, 1, 0, 0, 0, 5, time.UTC)}
	db := open()
	s := openStore(t, db, c)
	set := func(org, actor string, q *cis.Quota) {
		t.Helper()
		c.Advance(time.Minute)
		if err := s.SetQuota(t.Context(), org, actor, q); err != nil {
			t.Fatal(err)
		}
	}
	set("acme", "root", nil) // nothing to take away
	set("acme", "root", &cis.Quota{Instances: 3, MemoryMiB: 1024})
	set("acme", "root", &cis.Quota{Instances: 3, MemoryMiB: 1024})
	set("beta", "root", &cis.Quota{MilliCPU: 1})
	set("acme", "ann", &cis.Quota{})
	for range 2 {
		if q, ok := s.Quota("acme"); !ok || q != (cis.Quota{}) {
			t.Errorf("acme: %+v %v", q, ok)
		}
		if q, ok := s.Quota("beta"); !ok || q != (cis.Quota{MilliCPU: 1}) {
			t.Errorf("beta: %+v %v", q, ok)
		}
		if q, ok := s.Quota("none"); ok {
			t.Errorf("none: %+v", q)
		}
		s = openStore(t, db, c)
	}
	set("acme", "root", nil)
	if q, ok := s.Quota("acme"); ok {
		t.Errorf("acme: %+v", q)
	}
	changes, err := s.QuotaChanges(t.Context(), "acme")
	if err != nil || len(changes) != 3 {
		t.Fatalf("%+v %v", changes, err)
	}
	got := ""
	for _, ch := range changes {
		got += fmt.Sprintf("%s %s %v->%v\n", ch.Time.Format(time.TimeOnly), ch.Actor, ch.Before, ch.After)
	}
	if want := "00:06:00 root &{0 0 0}-><nil>\n00:05:00 ann &{3 0 1024}->&{0 0 0}\n00:02:00 root <nil>->&{3 0 1024}\n"; got != want {
		t.Errorf("changes:\n%swant\n%s", got, want)
	}
}
