package collect

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Filebeat's registry (libbeat/statestore/backend/memlog, version 1): a checkpoint, whose path is in active.dat, and
// log.json with the changes since, two lines each: the action, then key and value. The key of a file is
// "filestream::INPUT::path::PATH", the offset in its value counts what the store has acknowledged.

// entry is the value of a registry key.
type entry struct {
	Cursor *struct {
		Offset int64 `json:"offset"`
	} `json:"cursor"`
}

// registry is what the registry says: acknowledged bytes by path.
type registry map[string]int64

// readRegistry reads the registry in dir; one that is not there yet is empty. Filebeat may write meanwhile.
func readRegistry(dir string) (registry, error) {
	for range 5 {
		active, err := readActive(dir)
		if err != nil {
			return nil, err
		}
		r := registry{}
		if err := r.readCheckpoint(active); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err := r.readLog(filepath.Join(dir, "log.json"), checkpointID(active)); err != nil {
			return nil, err
		}
		// A checkpoint in between moves what we read: once more.
		if again, err := readActive(dir); err == nil && again == active {
			return r, nil
		}
	}
	return nil, errors.New("read Filebeat's registry: it does not hold still")
}

func readActive(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "active.dat"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read Filebeat's registry: %w", err)
	}
	// The directory may have been moved since: only the name counts.
	return filepath.Join(dir, filepath.Base(strings.TrimSpace(string(b)))), nil
}

// checkpointID is the number of the last change in a checkpoint: its file's name.
func checkpointID(path string) uint64 {
	id, _ := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ".json"), 10, 64) //nolint:errcheck // 0 before the first
	return id
}

func (r registry) set(key string, e entry) {
	parts := strings.SplitN(key, "::", 4)
	if len(parts) != 4 || parts[0] != "filestream" || parts[2] != "path" {
		return
	}
	if e.Cursor == nil {
		delete(r, parts[3])
		return
	}
	r[parts[3]] = e.Cursor.Offset
}

func (r registry) readCheckpoint(path string) error {
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read Filebeat's registry: %w", err)
	}
	var all []struct {
		Key string `json:"_key"`
		entry
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("read Filebeat's registry: checkpoint: %w", err)
	}
	for _, e := range all {
		r.set(e.Key, e.entry)
	}
	return nil
}

// readLog applies the changes behind the checkpoint. A change that is not whole is still being written.
func (r registry) readLog(path string, behind uint64) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read Filebeat's registry: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	br := bufio.NewReaderSize(f, 64<<10)
	for {
		var action struct {
			Op string `json:"op"`
			ID uint64 `json:"id"`
		}
		var change struct {
			Key   string `json:"k"`
			Value entry  `json:"v"`
		}
		if ok, err := nextJSON(br, &action); !ok || err != nil {
			return err
		}
		if ok, err := nextJSON(br, &change); !ok || err != nil {
			return err
		}
		switch {
		case action.ID <= behind:
		case action.Op == "set":
			r.set(change.Key, change.Value)
		case action.Op == "remove":
			r.set(change.Key, entry{})
		}
	}
}

// nextJSON reads one line; false at the end, or at a line that is not whole.
func nextJSON(br *bufio.Reader, to any) (bool, error) {
	l, err := br.ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read Filebeat's registry: %w", err)
	}
	return err == nil && json.Unmarshal(l, to) == nil, nil
}

func (c *Collector) registry() (registry, error) {
	return readRegistry(filepath.Join(c.o.Dir, "data", "registry", "filebeat"))
}

// Shipped tells whether every line of a file that is no longer written to has been acknowledged by the store. What
// follows the last newline is not a line (its writer was killed) and is not waited for. A file that is not there has
// nothing left to ship.
func (c *Collector) Shipped(path string) (bool, error) {
	r, err := c.registry()
	if err != nil {
		return false, err
	}
	return r.shipped(path)
}

func (r registry) shipped(path string) (bool, error) {
	end, err := linesEnd(path)
	return err == nil && (end == 0 || r[path] >= end), err
}

// linesEnd is the offset behind the last newline; 0 when there is no line or no file.
func linesEnd(path string) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at log file: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at log file: %w", err)
	}
	buf := make([]byte, 32<<10)
	for right := st.Size(); right > 0; {
		left := max(right-int64(len(buf)), 0)
		n, err := f.ReadAt(buf[:right-left], left)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("look at log file: %w", err)
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return left + int64(i) + 1, nil
		}
		right = left
	}
	return 0, nil
}
