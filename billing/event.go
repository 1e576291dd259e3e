// Package billing is the contract of metering and billing: meter events, prices, ledger lines, statements.
//
// A bill is made only from meter events. The package holds types and pure rules and does no I/O: billing/meter writes
// events on the node, billing/ledger reads them back from the log store and makes lines, statements and reports.
package billing

import (
	"fmt"
	"time"
)

// EventKind is the kind of a meter event.
type EventKind string

// The kinds. One instance life has one started, any number of heartbeats and at most one stopped event.
const (
	EventStarted   EventKind = "started"
	EventHeartbeat EventKind = "heartbeat"
	EventStopped   EventKind = "stopped"
)

// Phase is the quantity that a second of an instance's life counts for.
type Phase string

// The phases of a meter. An incarnation begins in startup and goes to running once.
const (
	PhaseStartup Phase = "startup"
	PhaseRunning Phase = "running"
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

// Subject is what is metered. All of it but Name and Incarnation stays the same for the instance's whole life.
type Subject struct {
	Org, Instance, Name, Region, Node, SandboxClass string
	// Incarnation is the sandbox's number in the life, from 1.
	Incarnation int64
	Size        Size
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
	// At is the instant that the counters stand at, by the same clock. It is before Time when an end was noticed late
	// (a stop after the node's process was down), else the two differ by less than a millisecond.
	At time.Time `json:"at"`
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
	// Phase is what the time after this event counts for.
	Phase Phase `json:"phase"`
	// Clock is At by the node's monotonic clock; the meter goes on from it after a restart.
	Clock Clock `json:"clock"`
	// Reason says why a stopped instance ended: Completed, Failed, Deleted, OOMKilled, NodeLost, StartFailed.
	Reason string `json:"reason,omitempty"`
}

// Clock is an instant of a node's monotonic clock (CLOCK_BOOTTIME, which counts suspended time too).
type Clock struct {
	// Boot names the boot of the machine; nanoseconds of different boots do not compare.
	Boot string `json:"boot"`
	// Nanos is nanoseconds since that boot.
	Nanos int64 `json:"nanos"`
}

// EventID makes the deterministic id of an event.
func EventID(instance string, incarnation, sequence int64) string {
	return fmt.Sprintf("%s/%d/%d", instance, incarnation, sequence)
}
