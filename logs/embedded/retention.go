package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Run deletes indices that are past their time, hourly, until ctx ends; then it returns nil.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if n, err := s.Expire(ctx); err != nil {
			s.o.Log.ErrorContext(ctx, "delete old log indices", "error", err)
		} else if len(n) > 0 {
			s.o.Log.InfoContext(ctx, "deleted old log indices", "indices", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Expire deletes what is past its time by the options and tells the names.
func (s *Store) Expire(ctx context.Context) ([]string, error) {
	all, err := s.match("*", true)
	if err != nil {
		return nil, err
	}
	now := s.o.Now().UTC()
	var gone []string
	var errs []error
	for _, ix := range all {
		if end, ok := s.expiry(ix.name); !ok || now.Before(end) {
			continue
		}
		if err := s.drop(ix.name); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, ix.name)
	}
	return gone, errors.Join(append(errs, ctx.Err())...)
}

// expiry tells when an index of a known name ends.
func (s *Store) expiry(name string) (time.Time, bool) {
	if day, ok := strings.CutPrefix(name, "logs-"); ok && s.o.LogDays > 0 {
		t, err := time.Parse("2006.01.02", day)
		return t.AddDate(0, 0, 1+s.o.LogDays), err == nil
	}
	if month, ok := strings.CutPrefix(name, "meter-"); ok && s.o.MeterMonths > 0 {
		t, err := time.Parse("2006.01", month)
		return t.AddDate(0, 1+s.o.MeterMonths, 0), err == nil
	}
	return time.Time{}, false
}

// drop deletes an index with its files. Searches under way on it end first.
func (s *Store) drop(name string) error {
	s.mu.Lock()
	ix := s.indices[name]
	delete(s.indices, name)
	s.mu.Unlock()
	if ix == nil {
		return &apiError{status: 404, typ: "index_not_found_exception", reason: "no such index [" + name + "]"}
	}
	err := ix.close()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if rerr := os.Remove(ix.path + suffix); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("delete index %s: %w", name, err)
	}
	return nil
}

// Usage is the bytes on the disk by index name.
func (s *Store) Usage() (map[string]int64, error) {
	all, err := s.match("*", true)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int64, len(all))
	for _, ix := range all {
		files, err := filepath.Glob(ix.path + "*")
		if err != nil {
			return nil, fmt.Errorf("log store usage: %w", err)
		}
		for _, f := range files {
			st, err := os.Stat(f)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("log store usage: %w", err)
			}
			out[ix.name] += st.Size()
		}
	}
	return out, nil
}
