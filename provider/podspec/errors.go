package podspec

import (
	"fmt"
	"strings"

	"cumulet.io/internal/problem"
)

// Field is one field of a pod that cannot be honoured.
type Field struct {
	// Path is as in "spec.containers[0].volumeDevices".
	Path string
	// Why is a clause for the user.
	Why string
}

// RefusedError says that a pod can never run here as it is. It is of class problem.ErrUnsupported.
type RefusedError struct{ Fields []Field }

// Error names every field.
func (e *RefusedError) Error() string {
	var s strings.Builder
	for i, f := range e.Fields {
		if i > 0 {
			s.WriteString("; ")
		}
		s.WriteString(f.Path + ": " + f.Why)
	}
	return s.String()
}

// Unwrap gives the class.
func (e *RefusedError) Unwrap() error { return problem.ErrUnsupported }

func refuse(path, format string, args ...any) error {
	return &RefusedError{Fields: []Field{{Path: path, Why: fmt.Sprintf(format, args...)}}}
}

// MissingError says that something that a pod refers to is not there, and may yet come. It is of class
// problem.ErrNotFound.
type MissingError struct {
	// Kind, Namespace and Name are the object's; Key is set when only the key is missing.
	Kind, Namespace, Name, Key string
	// Volume is the volume that needs it; "" when a container's environment does.
	Volume string
	// Container is the container that needs it; "" when a volume does.
	Container string
}

// Error says what is missing, and for what.
func (e *MissingError) Error() string {
	what := fmt.Sprintf("%s %q not found", e.Kind, e.Name)
	if e.Key != "" {
		what = fmt.Sprintf("key %q not found in %s %s/%s", e.Key, e.Kind, e.Namespace, e.Name)
	}
	if e.Volume != "" {
		return fmt.Sprintf("volume %q: %s", e.Volume, what)
	}
	return what
}

// Unwrap gives the class.
func (e *MissingError) Unwrap() error { return problem.ErrNotFound }

// Notice is something that a pod's owner should know, as an event.
type Notice struct {
	Reason, Message string
	// Container is the container that it is about, or "".
	Container string
}

func (r *Result) notice(container, reason, format string, args ...any) {
	r.Notices = append(r.Notices, Notice{Reason: reason, Message: fmt.Sprintf(format, args...), Container: container})
}
