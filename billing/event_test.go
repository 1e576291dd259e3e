package billing_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"cumulet.io/billing"
)

const good = `{"id":"i-1/2/3","kind":"stopped","org":"acme","instance":"i-1","name":"web","incarnation":2,"sequence":3,` +
	`"time":"2026-11-22T10:00:00.123456789Z","region":"eu","node":"n1","sandboxClass":"kata",` +
	`"size":{"class":"c1-m2","milliCPU":1000,"memoryMiB":2048},"startupMillis":1500,"runningMillis":60000,"at":"2026-11-22T10:00:00Z",` +
	`"phase":"running","clock":{"boot":"b","nanos":5},"reason":"OOMKilled"}`

func TestDecodeEvent(t *testing.T) {
	ev, err := billing.DecodeEvent([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	again, err := ev.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if ev2, err := billing.DecodeEvent(again); err != nil || ev2 != ev {
		t.Errorf("not the same after a round trip: %v\n%+v\n%+v", err, ev, ev2)
	}
	// A newer node's field is passed over; another zone's time is the same event.
	if ev2, err := billing.DecodeEvent([]byte(strings.Replace(strings.Replace(good, `{"id"`, `{"new":1,"id"`, 1), "T10:00:00Z", "T12:00:00+02:00", 1))); err != nil || ev2 != ev {
		t.Errorf("%v\n%+v", err, ev2)
	}
	for _, c := range [][3]string{
		{`"kind":"stopped"`, `"kind":"ended"`, "kind"},
		{`"instance":"i-1"`, `"instance":"i-2"`, "id"},
		{`"instance":"i-1"`, `"instance":"../x"`, "instance"},
		{`"org":"acme"`, `"org":""`, "org"},
		{`"name":"web"`, `"name":"w\u0000b"`, "name"},
		{`"incarnation":2`, `"incarnation":0`, "incarnation"},
		{`"sequence":3`, `"sequence":0`, "sequence"},
		{`"startupMillis":1500`, `"startupMillis":-1`, "startupMillis"},
		{`"runningMillis":60000`, `"runningMillis":9000000000000`, "runningMillis"},
		{`"runningMillis":60000`, `"runningMillis":1.5`, "runningMillis"},
		{`"milliCPU":1000`, `"milliCPU":0`, "size.milliCPU"},
		{`"reason":"OOMKilled"`, `"reason":"oom killed"`, "reason"},
		{`"reason":"OOMKilled"`, `"reason":""`, "reason"},
		{`"phase":"running"`, `"phase":""`, "phase"},
		{"2026-11-22T10:00:00Z", "0001-01-01T00:00:00Z", "at"},
		{`"OOMKilled"}`, `"OOMKilled"}{}`, "text follows"},
	} {
		bad := strings.Replace(good, c[0], c[1], 1)
		if _, err := billing.DecodeEvent([]byte(bad)); !errors.Is(err, billing.ErrBadEvent) || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%s: got %v", c[1], err)
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"id":"`))
	f.Fuzz(func(t *testing.T, line []byte) {
		ev, err := billing.DecodeEvent(line)
		if err != nil {
			if !errors.Is(err, billing.ErrBadEvent) {
				t.Fatalf("an error of no class: %v", err)
			}
			return
		}
		a, err := ev.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := billing.DecodeEvent(a)
		if err != nil {
			t.Fatalf("what was decoded is not decoded again: %v", err)
		}
		b, err := again.Encode()
		if err != nil || !bytes.Equal(a, b) || bytes.ContainsRune(a, '\n') {
			t.Fatalf("not canonical: %v\n%s\n%s", err, a, b)
		}
	})
}
