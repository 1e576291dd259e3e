package control_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cumulet.io/cis"
)

// cpu is what the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLife makes instances a hundred at a time; each is recorded and reported on five times, with one event. It
// tells the CPU time of one, and how many such lives there are in a second, on SQLite with synchronous=FULL.
func BenchmarkLife(b *testing.B) {
	e := newScripted()
	e.idle = true
	f := start(b, dbPath(b), e, nil)
	var n atomic.Int64
	begin, cpuBegin := time.Now(), cpu()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for {
				i := n.Add(1)
				if i > int64(b.N) {
					return
				}
				in, _, err := f.Create(b.Context(), "acme", cis.CreateRequest{Key: fmt.Sprint(i), Spec: spec("web")})
				if err != nil {
					b.Error(err)
					return
				}
				for _, p := range []cis.Phase{cis.Starting, cis.Running, cis.Running, cis.Stopping, cis.Succeeded} {
					if err := f.Report(b.Context(), in.ID, cis.Status{Phase: p, Incarnation: 1, Message: fmt.Sprint(n.Load())}); err != nil {
						b.Error(err)
					}
				}
				if err := f.Record(b.Context(), cis.Event{Instance: in.ID, Reason: "Started", Message: "main"}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpu()-cpuBegin).Microseconds())/float64(b.N), "cpu-µs/life")
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "lives/s")
}
