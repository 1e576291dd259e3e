package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cumulet.io/billing"
	"cumulet.io/cis"
	"cumulet.io/cis/control/store"
	"cumulet.io/cis/engine"
	"cumulet.io/internal/problem"
)

// reasonSandbox is the reason of a rejection for want of the sandbox class.
const reasonSandbox = "SandboxUnavailable"

// reasonPolicy is the reason of a rejection because the operator requires a stronger class of the org.
const reasonPolicy = "SandboxForbidden"

// hostAge is how long what the engine says of its host is believed.
const hostAge = 10 * time.Second

// host is what an engine says of where it runs.
type host struct {
	classes  []cis.SandboxClass
	why      map[cis.SandboxClass]string
	capacity engine.Capacity
	at       time.Time
}

type hostCache struct {
	mu   sync.Mutex
	last *host
}

// hostNow asks the engine, not more often than every hostAge.
func (c *Control) hostNow(ctx context.Context) (*host, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	now := c.cfg.Now()
	if h := c.host.last; h != nil && now.Sub(h.at) < hostAge && now.Sub(h.at) >= 0 {
		return h, nil
	}
	capacity, err := c.engine.Capacity(ctx)
	if err != nil {
		return nil, &problem.Error{Class: problem.ErrUnavailable, Detail: "the engine does not answer", RetryAfter: time.Second}
	}
	h := &host{capacity: capacity, at: now}
	h.classes, h.why = c.engine.Classes(ctx)
	if len(h.classes) > 0 { // else ask again: an engine that is only starting has none yet
		c.host.last = h
	}
	return h, nil
}

// isolate gives the class that an instance gets, or why it gets none and the reason's name. The class is decided here,
// once: what the engine has later, it is this class or none. "" leaves it to an engine that has nothing which isolates.
func (c *Control) isolate(h *host, org string, asked cis.SandboxClass) (class cis.SandboxClass, reason, why string) {
	class = asked
	if class == "" && len(h.classes) > 0 {
		class = h.classes[0]
	}
	if class != "" {
		if why := c.cfg.Sandbox.Refuses(org, class); why != "" {
			if asked == "" {
				why = h.lacking(class, c.cfg.Sandbox.Of(org), org)
			}
			return "", reasonPolicy, why
		}
	}
	if why := h.refuses(asked); why != "" {
		return "", reasonSandbox, why
	}
	if asked == "" && class == cis.Runc {
		class = "" // whether it may be without having been asked for is the engine's to say
	}
	return class, "", ""
}

// lacking says why an instance that asks for no class cannot be had by an org of which more is required than there is.
func (h *host) lacking(best, least cis.SandboxClass, org string) string {
	return fmt.Sprintf("the strongest sandbox class here is %q, and the operator requires %q of the instances of %q at least; what is missing: %s",
		best, least, org, h.reasons())
}

// refuses says why an instance of the class cannot be had, and what to do; "" when it can. "" as class stands for the
// strongest that there is.
func (h *host) refuses(class cis.SandboxClass) string {
	have := make([]string, 0, len(h.classes))
	for _, c := range h.classes {
		have = append(have, string(c))
	}
	switch {
	case len(have) == 0:
		return fmt.Sprintf("no sandbox class can be had here: %s", h.reasons())
	case class == "" || slices.Contains(h.classes, class):
		return ""
	}
	why := h.why[class]
	if why == "" {
		why = "the engine does not know it"
	}
	return fmt.Sprintf("sandbox class %q cannot be had here: %s. Ask for one of %s with the annotation %s, or for none",
		class, why, strings.Join(have, ", "), cis.AnnotationSandbox)
}

func (h *host) reasons() string {
	var list []string
	for _, c := range []cis.SandboxClass{cis.Kata, cis.GVisor, cis.Runc} {
		if why := h.why[c]; why != "" {
			list = append(list, string(c)+": "+why)
		}
	}
	if len(list) == 0 {
		return "the engine gives no reason"
	}
	return strings.Join(list, "; ")
}

// admits refuses what does not fit beside what is live.
func (h *host) admits(total store.Usage, s billing.Size) error {
	limit := Quota{Instances: h.capacity.Instances, MilliCPU: h.capacity.MilliCPU, MemoryMiB: h.capacity.MemoryBytes >> 20}
	if what := exceeded(limit, total, s); what != "" {
		return &problem.Error{Class: problem.ErrExhausted, Detail: "there is no room: " + what + "; try again when other instances have ended", RetryAfter: 5 * time.Second}
	}
	return nil
}

// Sandboxes tells how instances can be isolated here.
func (c *Control) Sandboxes(ctx context.Context) (*cis.Sandboxes, error) {
	h, err := c.hostNow(ctx)
	if err != nil {
		return nil, err
	}
	out := &cis.Sandboxes{Region: c.cfg.Region, Node: c.cfg.Node, Available: slices.Clone(h.classes), Unavailable: map[cis.SandboxClass]string{},
		Capacity: cis.Capacity{Instances: h.capacity.Instances, MilliCPU: h.capacity.MilliCPU, MemoryMiB: h.capacity.MemoryBytes >> 20, EphemeralDiskMiB: h.capacity.EphemeralDisk >> 20}}
	if out.Available == nil {
		out.Available = []cis.SandboxClass{}
	}
	for class, why := range h.why {
		out.Unavailable[class] = why
	}
	return out, nil
}
