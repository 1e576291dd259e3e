package cis

import (
	"context"
	"io"
	"iter"
	"time"
)

// CreateRequest asks for an instance.
type CreateRequest struct {
	// Key names this create for the caller: 1 to 128 characters of [A-Za-z0-9._:-]. Repeating it is safe: the same
	// instance is answered. Repeating it with another spec is a conflict.
	Key  string `json:"key"`
	Spec Spec   `json:"spec"`
}

// ListRequest selects instances of an org.
type ListRequest struct {
	// Node restricts to instances whose Source.Node is this.
	Node string
	// Labels must all be equal.
	Labels map[string]string
	// Live leaves out ended instances.
	Live bool
	// Limit is the page size at most, 1 to 1,000; 0 means 500. Large instances make a page shorter. Cursor continues a
	// listing.
	Limit  int
	Cursor string
}

// InstanceList is one page. Next is "" on the last. Cursor is where a Watch that misses nothing after this page begins.
type InstanceList struct {
	Items  []Instance `json:"items"`
	Next   string     `json:"next,omitempty"`
	Cursor string     `json:"cursor"`
}

// Instances keeps instances. Errors are of problem's classes: ErrNotFound also for another org's instance.
type Instances interface {
	// Create makes an instance, or answers the one with this key (created is false then). It returns when the record
	// is durable, before anything runs.
	Create(ctx context.Context, org string, req CreateRequest) (in *Instance, created bool, err error)
	Get(ctx context.Context, org, id string) (*Instance, error)
	List(ctx context.Context, org string, req ListRequest) (*InstanceList, error)
	// Delete asks for a graceful end; idempotent. nil grace means the spec's. The record stays readable for a day
	// after the end.
	Delete(ctx context.Context, org, id string, graceSeconds *int64) (*Instance, error)
	// UpdateVolume replaces the files of a FilesVolume of a live instance.
	UpdateVolume(ctx context.Context, org, id, volume string, files FilesVolume) error
}

// WatchItem is one change. Exactly one of Instance and Event is set, or neither on a bookmark.
type WatchItem struct {
	// Cursor resumes behind this item.
	Cursor   string    `json:"cursor"`
	Instance *Instance `json:"instance,omitempty"`
	Event    *Event    `json:"event,omitempty"`
	// SameSpec says that the instance has the spec that it had in its item before this one.
	SameSpec bool `json:"-"`
	// More says that the next item is there already, so that who passes items on need not flush yet.
	More bool `json:"-"`
}

// Watcher streams changes of an org's instances and their events in order, each at least once, from behind cursor
// ("" means from now). It ends with an error of class ErrGone when the cursor is too old: list again. With node set,
// only instances of that Source.Node.
type Watcher interface {
	Watch(ctx context.Context, org, node, cursor string) iter.Seq2[WatchItem, error]
}

// EventLister lists the events of an instance, oldest first.
type EventLister interface {
	Events(ctx context.Context, org, id string) ([]Event, error)
}

// TerminalSize is a terminal's size in characters.
type TerminalSize struct{ Width, Height uint16 }

// ExecRequest runs a command in a container, or attaches to its main process when Command is empty.
type ExecRequest struct {
	Container string
	Command   []string
	TTY       bool
	// Stdin, Stdout and Stderr are used when not nil. With TTY, Stderr must be nil.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize gives terminal sizes until it is closed; may be nil.
	Resize <-chan TerminalSize
}

// Execer runs commands in live containers. A command's exit code above 0 is a k8s.io/utils/exec.CodeExitError.
// The command is killed when ctx ends.
type Execer interface {
	Exec(ctx context.Context, org, id string, req ExecRequest) error
}

// LogRequest selects lines of one container. The answer is the container's bytes.
type LogRequest struct {
	Container string
	// Previous reads the attempt before the current one.
	Previous bool
	// Follow goes on until the container ends or ctx does.
	Follow bool
	// Tail keeps the last lines only, when not nil. Since leaves out older lines. LimitBytes cuts, when above 0.
	Tail       *int64
	Since      time.Time
	LimitBytes int64
	// Timestamps puts an RFC 3339 time with nanoseconds before each line.
	Timestamps bool
}

// LogReader reads a container's log: from the node while its files are there, from the log store afterwards.
type LogReader interface {
	Logs(ctx context.Context, org, id string, req LogRequest) (io.ReadCloser, error)
}

// PortForwarder connects to a TCP port inside an instance.
type PortForwarder interface {
	PortForward(ctx context.Context, org, id string, port uint16) (io.ReadWriteCloser, error)
}

// Stats is what an instance uses now.
type Stats struct {
	Instance string    `json:"instance"`
	Time     time.Time `json:"time"`
	// StartTime is the sandbox's.
	StartTime time.Time `json:"startTime,omitzero"`
	// Containers has an entry for each running container.
	Containers []ContainerStats `json:"containers"`
	// Network counters of the sandbox, bytes; zero where the engine cannot tell.
	RxBytes uint64 `json:"rxBytes,omitempty"`
	TxBytes uint64 `json:"txBytes,omitempty"`
}

// ContainerStats is what one container uses.
type ContainerStats struct {
	Name      string    `json:"name"`
	StartTime time.Time `json:"startTime,omitzero"`
	// CPUNanoseconds is cumulative CPU time; MemoryBytes the working set; DiskBytes the writable layer.
	CPUNanoseconds uint64 `json:"cpuNanoseconds"`
	MemoryBytes    uint64 `json:"memoryBytes"`
	DiskBytes      uint64 `json:"diskBytes"`
}

// StatsReader tells usage; ids empty means all live instances of the org.
type StatsReader interface {
	Stats(ctx context.Context, org string, ids []string) ([]Stats, error)
}
