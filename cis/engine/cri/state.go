package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/billing"
	"cumulet.io/cis"
)

// record is what containerd cannot tell after a restart of this process. It is written whole, atomically, to
// <Root>/instances/<id>/state.json and holds no secret.
type record struct {
	Org         string           `json:"org"`
	Class       cis.SandboxClass `json:"class,omitempty"`
	Handler     string           `json:"handler,omitempty"`
	Size        billing.Size     `json:"size,omitzero"`
	Incarnation int64            `json:"incarnation,omitempty"`
	// StartedAt is the meter's start; MarkedRunning tells that a container of the instance proper has started in this
	// incarnation.
	StartedAt     time.Time                   `json:"startedAt,omitzero"`
	MarkedRunning bool                        `json:"markedRunning,omitempty"`
	Containers    map[string]*containerRecord `json:"containers,omitempty"`
	// Stop is set once the instance is to end, Verdict once nothing of it runs any more.
	Stop    *stopRecord `json:"stop,omitempty"`
	Verdict *verdict    `json:"verdict,omitempty"`
}

// containerRecord is the kept part of one container.
type containerRecord struct {
	// Attempt is the number of the last attempt, -1 before the first. It counts on over incarnations.
	Attempt int `json:"attempt"`
	// Incarnation is the sandbox in which the last attempt was made.
	Incarnation int64 `json:"incarnation,omitempty"`
	// ImageID is the image in use, by containerd's id (a digest); ImageRef its repository digest.
	ImageID  string `json:"imageID,omitempty"`
	ImageRef string `json:"imageRef,omitempty"`
	// ID is the CRI id of the last attempt; Exit how it ended as its shim told, until Terminated has it.
	ID   string      `json:"id,omitempty"`
	Exit *exitRecord `json:"exit,omitempty"`
	// Terminated is how the last attempt ended, nil while it runs; Previous how the one before ended.
	Terminated *corev1.ContainerStateTerminated `json:"terminated,omitempty"`
	Previous   *corev1.ContainerStateTerminated `json:"previous,omitempty"`
	// Backoff is the delay before the next attempt.
	Backoff time.Duration `json:"backoff,omitempty"`
	// Started tells that the startup probe of the last attempt has passed.
	Started bool `json:"started,omitempty"`
}

// stopRecord is a decision to end.
type stopRecord struct {
	At    time.Time `json:"at"`
	Grace int64     `json:"grace"`
	// Reason and Message become the status's; Failed makes the end a failure whatever the exit codes say.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	Failed  bool   `json:"failed,omitempty"`
	// Deleted tells that the user asked for it.
	Deleted bool `json:"deleted,omitempty"`
}

// verdict is how the instance ended.
type verdict struct {
	Phase       cis.Phase `json:"phase"`
	Reason      string    `json:"reason,omitempty"`
	Message     string    `json:"message,omitempty"`
	At          time.Time `json:"at"`
	MeterReason string    `json:"meterReason,omitempty"`
}

func statePath(dir string) string { return filepath.Join(dir, "state.json") }

// loadRecord reads the state file of an instance directory; nil when there is none. A file that cannot be read as one
// is taken as none: everything in it but the history can be had from containerd.
func loadRecord(dir string) (*record, error) {
	b, err := os.ReadFile(statePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read instance state: %w", err)
	}
	return decodeRecord(b), nil
}

func decodeRecord(b []byte) *record {
	var r record
	if json.Unmarshal(b, &r) != nil {
		return nil
	}
	for name, c := range r.Containers {
		if c == nil || c.Attempt < -1 {
			delete(r.Containers, name)
		}
	}
	return &r
}

// writeRecord puts an encoded record in place so that a reader, or the next start, sees the old or the new one.
func writeRecord(dir string, b []byte) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("write instance state: %w", err)
	}
	if err := writeFileAtomic(statePath(dir), b, 0o600); err != nil {
		return fmt.Errorf("write instance state: %w", err)
	}
	return nil
}

// writeFileAtomic replaces a file by renaming a new one over it.
func writeFileAtomic(path string, b []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
