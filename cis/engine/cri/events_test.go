package cri

import (
	"testing"
	"testing/synctest"
	"time"
)

// What is known of instances' lives is never later than the last word of containerd, and a moment behind it.
func TestEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Engine{}
		want := func(at time.Time) {
			t.Helper()
			if got := e.Evidence(); !got.Equal(at) {
				t.Errorf("%v, want %v", got, at)
			}
		}
		want(time.Time{})
		e.hears(true)
		want(time.Time{}) // what ended before is being found out
		time.Sleep(time.Minute)
		want(time.Now().Add(-hearsay))
		last := time.Now().Add(-hearsay)
		e.hears(false)
		time.Sleep(time.Minute)
		want(last)
		e.hears(true)
		time.Sleep(time.Second)
		want(last)
		e.hears(false)
		want(last)
		e.hears(true)
		time.Sleep(hearsay)
		want(time.Now().Add(-hearsay))
	})
}
