package embedded_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"cumulet.io/logs/embedded"
)

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBulk stores batches as Filebeat sends them: gzip, 1,024 lines of 100 bytes from 50 containers.
func BenchmarkBulk(b *testing.B) {
	st, err := embedded.Open(b.Context(), options(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	const batch = 1024
	lines, bytesOf := 0, int64(0)
	var spent time.Duration
	for n := 0; b.Loop(); n++ {
		var z bytes.Buffer
		zw, err := gzip.NewWriterLevel(&z, 1)
		if err != nil {
			b.Fatal(err)
		}
		for i := range batch {
			path := fmt.Sprintf("/var/lib/cumulet/logs/acme/0198f0c2-7c1e-7d55-8d0b-%012d/main/0.log", i%50)
			off := int64(n*batch+i) * 150
			t := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(n*batch+i) * 100 * time.Microsecond)
			fmt.Fprintf(zw, `{"create":{"_index":"logs-2026.01.02","_id":%q}}`+"\n"+`{"@timestamp":%q,"org":"acme","instance":"0198f0c2-7c1e-7d55-8d0b-%012d",`+
				`"container":"main","attempt":0,"cri":{"time":%q,"stream":"stdout","tag":"F"},"log":{"offset":%d,"file":{"path":%q}},"message":"%s %d"}`+"\n",
				embedded.LineID(path, off), t.Format("2006-01-02T15:04:05.000Z"), i%50, t.Format(time.RFC3339Nano), off, path, strings.Repeat("x", 93), i)
		}
		if err := zw.Close(); err != nil {
			b.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "/_bulk", &z)
		r.Header.Set("Content-Encoding", "gzip")
		r.SetBasicAuth("collector", "write-secret")
		w := httptest.NewRecorder()
		before := cpu(b)
		st.ServeHTTP(w, r)
		spent += cpu(b) - before
		if w.Code != http.StatusOK || strings.Contains(w.Body.String()[:100], `"errors":true`) {
			b.Fatal(w.Code, w.Body.String()[:300])
		}
		lines += batch
	}
	u, err := st.Usage()
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range u {
		bytesOf += n
	}
	b.ReportMetric(float64(lines)/spent.Seconds(), "lines/cpu-s")
	b.ReportMetric(float64(bytesOf)/float64(lines), "B/line")
}
