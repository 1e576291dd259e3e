package memory_test

import (
	"testing"

	"cumulet.io/logs"
	"cumulet.io/logs/logstest"
	"cumulet.io/logs/memory"
)

func TestStore(t *testing.T) {
	logstest.Run(t, func(*testing.T) (logs.Store, logstest.Seed) {
		s := &memory.Store{}
		return s, func(_ *testing.T, recs ...logs.Record) { s.Add(recs...) }
	})
}
