package role

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A runtime that is not there is asked for now and then, also when the answer comes at once, as of a socket that is missing.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, asked := time.Now(), 0
		ready := func(context.Context) error {
			if asked++; time.Since(begun) < time.Minute {
				return errors.New("no such file")
			}
			return nil
		}
		if !await(t.Context(), ready, slog.New(slog.DiscardHandler)) || asked < 50 || asked > 70 {
			t.Errorf("asked %d times in a minute", asked)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if await(ctx, func(context.Context) error { return errors.New("never") }, slog.New(slog.DiscardHandler)) {
			t.Error("ready, and never was")
		}
	})
}
