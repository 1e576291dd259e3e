package store_test

import (
	"os"
	"testing"
)

// postgres is an empty database, or a skip.
func postgres(t *testing.T) string {
	dsn := os.Getenv("CUMULET_TEST_POSTGRES")
	if dsn == "" {
		t.Skip("set CUMULET_TEST_POSTGRES to the address of an empty PostgreSQL database")
	}
	return dsn
}
