package store_test

import (
	"testing"

	"cumulet.io/internal/testenv"
)

// postgres is an empty database, or a skip.
func postgres(t *testing.T) string { return testenv.Postgres(t) }
