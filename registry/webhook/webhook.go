// Package webhook tells other systems of what happens in an org: it is the registry's outbox, and the sender that
// empties it to the URLs that the org's admins chose.
//
// An event is one row the moment Emit returns; Run makes a delivery of it for each hook that wants it and sends those,
// signed after the Standard Webhooks specification, until each was taken or a day has passed. At least once: a
// receiver tells repeats by the webhook-id. It decides nobody's rights: registry/server does.
package webhook

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// Bounds of what an org may keep.
const (
	MaxHooks        = 50
	MaxPatterns     = 100
	MaxPatternBytes = 255
	MaxURLBytes     = 2048
	MaxDescription  = 255
	// MaxPending is how many deliveries may wait for one hook; a hook that falls behind further is disabled.
	MaxPending = 100_000
)

// TypePing is the type of a test event. A hook gets it only when somebody asks for it.
const TypePing registry.EventType = "ping"

// State says whether a hook is sent events.
type State string

// The states.
const (
	Enabled State = "enabled"
	// Paused is by a person's choice, Disabled by the server: the target failed too long or asked to be left alone.
	Paused   State = "paused"
	Disabled State = "disabled"
)

// Hook is a URL that is told of an org's events.
type Hook struct {
	ID          string `json:"id"`
	Org         string `json:"org"`
	URL         string `json:"url"`
	Description string `json:"description,omitempty"`
	// Events are the types that are sent; empty is all of them.
	Events []registry.EventType `json:"events"`
	// Repositories are patterns of full names that are sent; empty is all. "*" stands for any text without "/", "**"
	// for any text. An event of the org itself, as of a member, has no repository and passes.
	Repositories []string `json:"repositories"`
	State        State    `json:"state"`
	// Reason is why a hook is disabled.
	Reason    string    `json:"reason,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	CreatedBy string    `json:"createdBy"`
	UpdatedAt time.Time `json:"updatedAt"`
	// FailingSince is when the attempts began to fail, all of them since then; SucceededAt is the last that did not.
	FailingSince *time.Time `json:"failingSince,omitempty"`
	SucceededAt  *time.Time `json:"succeededAt,omitempty"`
	// Secrets tells of the secrets that sign now, the newest first, and not what they are.
	Secrets []SecretInfo `json:"secrets"`
}

// SecretInfo tells of a signing secret.
type SecretInfo struct {
	CreatedAt time.Time `json:"createdAt"`
	// ExpiresAt is when a replaced secret stops signing; nil for the newest.
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// Spec is what a person says of a hook.
type Spec struct {
	URL          string               `json:"url"`
	Description  string               `json:"description"`
	Events       []registry.EventType `json:"events"`
	Repositories []string             `json:"repositories"`
	// Secret signs; "" has one made up. Of the form whsec_BASE64 with 24 to 64 bytes (Standard Webhooks).
	Secret string `json:"secret"`
}

// Change alters a hook; what is nil stays.
type Change struct {
	URL          *string               `json:"url"`
	Description  *string               `json:"description"`
	Events       *[]registry.EventType `json:"events"`
	Repositories *[]string             `json:"repositories"`
	// State may be set to Enabled or Paused.
	State *State `json:"state"`
}

// validate checks what a person chose. allowed are the operator's networks.
func (h *Hook) validate(allowed []netip.Prefix) error {
	if err := validateURL(h.URL, allowed); err != nil {
		return err
	}
	if len(h.Description) > MaxDescription || strings.ContainsFunc(h.Description, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return problem.Invalid("description", fmt.Sprintf("must be one line of at most %d bytes", MaxDescription), h.Description)
	}
	for i, e := range h.Events {
		if !slices.Contains(registry.EventTypes(), e) {
			return problem.Invalid(fmt.Sprintf("events[%d]", i), "must be of "+eventNames(), e)
		}
	}
	if len(h.Events) > len(registry.EventTypes()) {
		return problem.Invalid("events", "must name each type once", len(h.Events))
	}
	if len(h.Repositories) > MaxPatterns {
		return problem.Invalid("repositories", fmt.Sprintf("must be at most %d patterns", MaxPatterns), len(h.Repositories))
	}
	for i, p := range h.Repositories {
		if !patternForm.MatchString(p) || len(p) > MaxPatternBytes {
			return problem.Invalid(fmt.Sprintf("repositories[%d]", i), "must be a full name such as "+h.Org+"/web, in which * stands for a part of a path component and ** for any text", p)
		}
	}
	return nil
}

func eventNames() string {
	var names []string
	for _, t := range registry.EventTypes() {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

func validateURL(text string, allowed []netip.Prefix) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || len(text) > MaxURLBytes || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Fragment != "":
		return problem.InvalidSecret("url", fmt.Sprintf("must be an http or https URL of at most %d bytes without fragment", MaxURLBytes))
	case u.User != nil:
		return problem.InvalidSecret("url", "must hold no user name or password: receivers check the signature")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		host = "127.0.0.1"
	}
	// A name is looked up at each call, and the address checked then.
	if ip, err := netip.ParseAddr(host); err == nil {
		if err := checkAddress(ip, allowed); err != nil {
			return problem.Invalid("url", err.Error(), u.Hostname())
		}
	}
	return nil
}

// wants tells whether the hook is sent an event.
func (h *Hook) wants(t registry.EventType, repository string) bool {
	if len(h.Events) > 0 && !slices.Contains(h.Events, t) {
		return false
	}
	return repository == "" || len(h.Repositories) == 0 ||
		slices.ContainsFunc(h.Repositories, func(p string) bool { return matches(p, repository) })
}

var patternForm = regexp.MustCompile(`^[a-z0-9*][a-z0-9._*/-]*$`)

// matches tells whether a repository's name is of a pattern. Regular expressions here take linear time.
func matches(pattern, name string) bool {
	expr := regexp.QuoteMeta(pattern)
	expr = strings.ReplaceAll(expr, `\*\*`, `.*`)
	expr = strings.ReplaceAll(expr, `\*`, `[^/]*`)
	re, err := regexp.Compile(`^` + expr + `$`)
	return err == nil && re.MatchString(name)
}

// Payload is the body of a call.
type Payload struct {
	// Type and Timestamp are the event's (Standard Webhooks, "Payload structure").
	Type      registry.EventType `json:"type"`
	Timestamp time.Time          `json:"timestamp"`
	Data      Data               `json:"data"`
}

// Data is the event. What does not apply is left out.
type Data struct {
	// ID is the event's, and the webhook-id.
	ID string `json:"id"`
	// Registry is the registry's URL.
	Registry   string            `json:"registry"`
	Org        string            `json:"org"`
	Repository string            `json:"repository,omitempty"`
	Tag        string            `json:"tag,omitempty"`
	Digest     string            `json:"digest,omitempty"`
	MediaType  string            `json:"mediaType,omitempty"`
	Size       int64             `json:"size,omitempty"`
	Actor      string            `json:"actor,omitempty"`
	Details    map[string]string `json:"details,omitempty"`
}

// payload is the body for an event: the same bytes each time.
func (s *Service) payload(e registry.Event) ([]byte, error) {
	return json.Marshal(Payload{Type: e.Type, Timestamp: e.Time, Data: Data{ID: e.ID, Registry: s.cfg.PublicURL, Org: e.Org,
		Repository: e.Repository, Tag: e.Tag, Digest: e.Digest, MediaType: e.MediaType, Size: e.Size, Actor: e.Actor, Details: e.Data}})
}
