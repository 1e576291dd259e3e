package billing

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of a meter event; more is not believed.
const (
	// MaxEventBytes bounds one encoded event.
	MaxEventBytes = 16 << 10
	maxTextRunes  = 253
	maxMillis     = int64(10 * 366 * 24 * time.Hour / time.Millisecond)
	maxMilliCPU   = int64(1024 * 1000)
	maxMemoryMiB  = int64(64 << 20)
	maxCount      = int64(1) << 40
)

// ErrBadEvent is wrapped by every error of DecodeEvent and Event.Validate.
var ErrBadEvent = errors.New("the meter event is not valid")

var (
	identifier = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)
	reasonWord = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{0,63}$`)
)

// ValidIdentifier tells whether s can be an instance or org id in an event: 1 to 128 of letters, digits, ".", "_" and
// "-", beginning and ending with a letter or digit.
func ValidIdentifier(s string) bool { return identifier.MatchString(s) }

// ValidText tells whether s can be a free text in an event: UTF-8 without control characters, at most 253 characters.
func ValidText(s string) bool {
	if len(s) > maxTextRunes*utf8.UTFMax || !utf8.ValidString(s) || utf8.RuneCountInString(s) > maxTextRunes {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// DecodeEvent decodes one line and validates it. A field that it does not know is passed over, so that an older ledger
// reads a newer node's events. Errors wrap ErrBadEvent; what was decoded is returned with them, for a report.
func DecodeEvent(line []byte) (Event, error) {
	if len(line) > MaxEventBytes {
		return Event{}, fmt.Errorf("%w: %d bytes are more than %d", ErrBadEvent, len(line), MaxEventBytes)
	}
	var ev Event
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&ev); err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrBadEvent, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Event{}, fmt.Errorf("%w: text follows the event", ErrBadEvent)
	}
	ev.Time, ev.At = ev.Time.UTC(), ev.At.UTC()
	return ev, ev.Validate()
}

// Encode gives the event as one line of JSON without a newline; equal events give equal bytes.
func (e *Event) Encode() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode meter event %s: %w", e.ID, err)
	}
	return b, nil
}

// Validate checks everything that one event alone can show. Errors wrap ErrBadEvent and name the field.
func (e *Event) Validate() error {
	bad := func(field, rule string) error { return fmt.Errorf("%w: %s %s", ErrBadEvent, field, rule) }
	switch e.Kind {
	case EventStarted, EventHeartbeat, EventStopped:
	default:
		return bad("kind", "must be started, heartbeat or stopped")
	}
	switch {
	case !identifier.MatchString(e.Instance):
		return bad("instance", "must be an identifier")
	case !identifier.MatchString(e.Org):
		return bad("org", "must be an identifier")
	case e.Incarnation < 1 || e.Incarnation > maxCount:
		return bad("incarnation", "must be at least 1")
	case e.Sequence < 0 || e.Sequence > maxCount:
		return bad("sequence", "must be at least 0")
	case (e.Kind == EventStarted) != (e.Sequence == 0):
		return bad("sequence", "is 0 for started and for nothing else")
	case e.ID != EventID(e.Instance, e.Incarnation, e.Sequence):
		return bad("id", "must be instance/incarnation/sequence")
	case !ValidText(e.Name):
		return bad("name", "must be at most 253 printable characters")
	case !identifier.MatchString(e.Region):
		return bad("region", "must be an identifier")
	case !identifier.MatchString(e.Node):
		return bad("node", "must be an identifier")
	case !identifier.MatchString(e.SandboxClass):
		return bad("sandboxClass", "must be an identifier")
	case !identifier.MatchString(e.Size.Class):
		return bad("size.class", "must be an identifier")
	case e.Size.MilliCPU < 1 || e.Size.MilliCPU > maxMilliCPU:
		return bad("size.milliCPU", "must be 1 to 1024000")
	case e.Size.MemoryMiB < 1 || e.Size.MemoryMiB > maxMemoryMiB:
		return bad("size.memoryMiB", "must be 1 to 67108864")
	case e.StartupMillis < 0 || e.StartupMillis > maxMillis:
		return bad("startupMillis", "must be 0 to ten years")
	case e.RunningMillis < 0 || e.RunningMillis > maxMillis:
		return bad("runningMillis", "must be 0 to ten years")
	case e.Phase != PhaseStartup && e.Phase != PhaseRunning:
		return bad("phase", "must be startup or running")
	case e.Clock.Nanos < 0 || len(e.Clock.Boot) > 128:
		return bad("clock", "must be an instant of a boot")
	case (e.Kind == EventStopped) != (e.Reason != ""):
		return bad("reason", "is given for stopped and for nothing else")
	case e.Reason != "" && !reasonWord.MatchString(e.Reason):
		return bad("reason", "must be one CamelCase word")
	}
	for field, t := range map[string]time.Time{"time": e.Time, "at": e.At} {
		if t.Year() < 2020 || t.Year() > 2199 {
			return bad(field, "must be in the years 2020 to 2199")
		}
	}
	return nil
}
