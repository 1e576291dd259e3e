package registry

import (
	"context"
	"time"
)

// EventType says what happened.
type EventType string

// The event types, as webhooks name them.
const (
	EventPush   EventType = "push"   // a manifest, a file or a chart is stored and, when Tag is set, tagged
	EventPull   EventType = "pull"   // a manifest or a file was given out
	EventDelete EventType = "delete" // a manifest, a tag, a file or a repository is gone
	EventScan   EventType = "scan"   // facts about an image were attached or changed
	EventQuota  EventType = "quota"  // an org came near its quota, or was refused for it
	EventMember EventType = "member" // a membership, team or grant changed
	// EventWebhook tells of a webhook that the server disabled: Data "webhook", "host" and "reason".
	EventWebhook EventType = "webhook"
)

// EventTypes are all of them.
func EventTypes() []EventType {
	return []EventType{EventPush, EventPull, EventDelete, EventScan, EventQuota, EventMember, EventWebhook}
}

// Event tells of something that happened in an org. It never holds a secret.
type Event struct {
	// ID is unique; a repeated emit with the same ID changes nothing.
	ID   string    `json:"id"`
	Type EventType `json:"type"`
	Time time.Time `json:"time"`
	// Org is the tenant that the event belongs to and that may read it.
	Org string `json:"org"`
	// Repository is the full name, "org/repo"; empty for events of the org itself.
	Repository string `json:"repository,omitempty"`
	// Digest is the manifest's or file's, "sha256:…"; Size its length in bytes.
	Digest    string `json:"digest,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
	Size      int64  `json:"size,omitempty"`
	// Tag is empty for what was done by digest; of a file it is the version.
	Tag string `json:"tag,omitempty"`
	// Actor is the account that did it; empty for the anonymous.
	Actor string `json:"actor,omitempty"`
	// Data is what else the type says, as "role" of a member event.
	Data map[string]string `json:"data,omitempty"`
}

// Outbox takes events. When Emit returns nil the event is durable and will be delivered, whatever dies. It is quick:
// nothing is delivered before it returns. Of pulls alone it may gather alike ones, counted in Data "count", and make
// them durable a moment later, so that a pull waits for no disk. Safe for concurrent use.
type Outbox interface {
	Emit(ctx context.Context, e Event) error
}
