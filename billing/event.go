// Package billing is the contract of metering and billing: meter events, prices, ledger lines, statements.
//
// A bill is made only from meter events. The package holds types and pure rules and does no I/O: billing/meter writes
// events on the node, billing/ledger reads them back from the log store and makes lines, statements and reports.
package billing

import "time"

// EventKind is the kind of a meter event.
type EventKind string

// The kinds. One instance life has one started, any number of heartbeats and at most one stopped event.
const (
	EventStarted   EventKind = "started"
	EventHeartbeat EventKind = "heartbeat"
	EventStopped   EventKind = "stopped"
)

// HeartbeatInterval is how often a live instance's meter appends a heartbeat.
const HeartbeatInterval = 60 * time.Second

// Size is what an instance is billed for: a published size class, frozen at start.
type Size struct {
	// Class is the published name, as "c1-m2": 1 vCPU, 2 GiB.
	Class string `json:"class"`
	// MilliCPU is thousandths of a vCPU.
	MilliCPU int64 `json:"milliCPU"`
	// MemoryMiB is mebibytes.
	MemoryMiB int64 `json:"memoryMiB"`
}

// Event is one meter event: an instance lifecycle record, the only thing a bill is made from.
type Event struct {
	// ID is "instance/incarnation/sequence": deterministic, so a replay changes nothing.
	ID string `json:"id"`
	// Kind says which.
	Kind EventKind `json:"kind"`
	// Org pays.
	Org string `json:"org"`
	// Instance is the instance's id.
	Instance string `json:"instance"`
	// Name is the instance's name at start, for the reader of a bill; it never decides who pays.
	Name string `json:"name"`
	// Incarnation counts the sandboxes of the instance's life, from 1.
	Incarnation int64 `json:"incarnation"`
	// Sequence counts the events of an incarnation, from 0 (started).
	Sequence int64 `json:"sequence"`
	// Time is when the event was made, by the node's wall clock, UTC, nanoseconds.
	Time time.Time `json:"time"`
	// Region and Node say where it ran.
	Region string `json:"region"`
	Node   string `json:"node"`
	// SandboxClass is kata, gvisor or runc.
	SandboxClass string `json:"sandboxClass"`
	// Size is frozen at start and the same in every event of the instance.
	Size Size `json:"size"`
	// StartupMillis and RunningMillis are cumulative over the instance's life (all incarnations), by a monotonic
	// clock: startup until the first container of the pod proper has started, running after that.
	StartupMillis int64 `json:"startupMillis"`
	RunningMillis int64 `json:"runningMillis"`
	// Reason says why a stopped instance ended: Completed, Failed, Deleted, OOMKilled, NodeLost, StartFailed.
	Reason string `json:"reason,omitempty"`
}
