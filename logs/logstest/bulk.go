package logstest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"cumulet.io/logs"
	"cumulet.io/logs/embedded"
)

// Path is where a node keeps the record's file, below root.
func Path(root string, r logs.Record) string {
	return fmt.Sprintf("%s/%s/%s/%s/%d.log", root, r.Org, r.Instance, r.Container, r.Attempt)
}

// Bulk makes the bulk request that Filebeat, as logs/collect configures it, sends for records.
func Bulk(recs ...logs.Record) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, r := range recs {
		tag := "F"
		if r.Partial {
			tag = "P"
		}
		path := Path("/var/log/cumulet", r)
		type m = map[string]any
		for _, v := range []any{
			m{"create": m{"_index": "logs-" + r.Time.UTC().Format("2006.01.02"), "_id": embedded.LineID(path, r.Offset)}},
			m{"@timestamp": r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), "org": r.Org, "instance": r.Instance,
				"container": r.Container, "attempt": r.Attempt, "message": r.Message,
				"cri": m{"time": r.Time.UTC().Format(time.RFC3339Nano), "stream": r.Stream, "tag": tag},
				"log": m{"offset": r.Offset, "file": m{"path": path}}},
		} {
			_ = enc.Encode(v) //nolint:errcheck // maps of strings and numbers, into memory
		}
	}
	return b.Bytes()
}

// BulkSeed seeds over the bulk API at url.
func BulkSeed(client *http.Client, url, user, password string) Seed {
	return func(t *testing.T, recs ...logs.Record) {
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		_, err := zw.Write(Bulk(recs...))
		if err != nil || zw.Close() != nil {
			t.Error("gzip:", err)
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/_bulk", &z)
		if err != nil {
			t.Error(err)
			return
		}
		req.SetBasicAuth(user, password)
		req.Header.Set("Content-Type", "application/x-ndjson")
		req.Header.Set("Content-Encoding", "gzip")
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close() //nolint:errcheck // read only
		var a struct {
			Items []map[string]struct{ Status int }
		}
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("bulk: %s %v", resp.Status, err)
		}
		for _, it := range a.Items {
			if st := it["create"].Status; st != http.StatusCreated && st != http.StatusConflict {
				t.Errorf("bulk item: %d", st)
			}
		}
	}
}
