// Package engine is the contract between cis/control and the places where instances run.
//
// An engine owns sandboxes and containers and nothing else: admission, quota, tenancy and the record are control's.
// cis/engine/enginetest is the conformance suite that every engine passes; cis/engine/memory keeps everything in
// memory, cis/engine/cri is one machine with containerd.
package engine

import (
	"context"
	"io"

	"cumulet.io/cis"
)

// Sink takes an engine's reports. control implements it. Both calls are durable when they return nil; an engine repeats
// a failed call. Safe for concurrent use; an engine calls it in order for one instance.
type Sink interface {
	// Report stores the whole status of an instance. Reporting an unknown id is problem.ErrNotFound.
	Report(ctx context.Context, id string, st cis.Status) error
	// Record stores an event of an instance; First, Last and Count are filled by the sink.
	Record(ctx context.Context, ev cis.Event) error
}

// Engine runs instances. Safe for concurrent use. The *cis.Instance it is given is the engine's to keep and not to change.
type Engine interface {
	// Run works until ctx ends and then returns nil; instances go on running. It must be running for anything to happen.
	Run(ctx context.Context) error
	// Sync is called once, before any Ensure, with every instance that is not final: the engine adopts what is there
	// already (after a crash of either side), starts or stops what is asked, and removes sandboxes of its own that
	// nobody knows any more.
	Sync(ctx context.Context, all []*cis.Instance) error
	// Ensure brings the engine to the instance's desired state: run it, or end it when Desired.Stop. It returns at once;
	// progress goes to the Sink. Idempotent: an instance that is running already is not started again, and one that
	// the engine reported as final stays so.
	Ensure(ctx context.Context, in *cis.Instance) error
	// Classes tells the sandbox classes that this engine can run, strongest first, and why not the others.
	Classes(ctx context.Context) ([]cis.SandboxClass, map[cis.SandboxClass]string)
	// Capacity tells what the engine can hold in all.
	Capacity(ctx context.Context) (Capacity, error)
}

// Capacity is what an engine can hold.
type Capacity struct {
	MilliCPU      int64 `json:"milliCPU"`
	MemoryBytes   int64 `json:"memoryBytes"`
	EphemeralDisk int64 `json:"ephemeralDisk"`
	Instances     int64 `json:"instances"`
}

// Execer is an engine that can run commands in containers. Semantics as cis.Execer.
type Execer interface {
	Exec(ctx context.Context, id string, req cis.ExecRequest) error
}

// LogReader is an engine that can read the node's log files. problem.ErrNotFound means: not (or no longer) here,
// ask the log store. Copying ends as cis.LogRequest says.
type LogReader interface {
	Logs(ctx context.Context, id string, req cis.LogRequest, w io.Writer) error
}

// PortForwarder is an engine that can connect to a port inside an instance.
type PortForwarder interface {
	PortForward(ctx context.Context, id string, port uint16) (io.ReadWriteCloser, error)
}

// StatsReader is an engine that can tell usage; ids it does not run are left out.
type StatsReader interface {
	Stats(ctx context.Context, ids []string) ([]cis.Stats, error)
}

// VolumeUpdater is an engine that can replace the files of a volume of a live instance, atomically for its readers.
type VolumeUpdater interface {
	UpdateVolume(ctx context.Context, id, volume string, files cis.FilesVolume) error
}
