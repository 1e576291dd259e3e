package provider

import (
	"errors"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/internal/problem"
)

// asErrdefs turns an error into what virtual-kubelet understands: its errdefs classes, which it looks for by Cause and not by
// Unwrap, and an exit code, which it looks for by type. It is the last thing that happens to an error on the way out.
func asErrdefs(err error) error {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return utilexec.CodeExitError{Err: exit, Code: exit.ExitStatus()}
	case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrGone):
		return errdefs.AsNotFound(err)
	case errors.Is(err, problem.ErrInvalid), errors.Is(err, problem.ErrUnsupported), errors.Is(err, problem.ErrConflict):
		return errdefs.AsInvalidInput(err)
	}
	return err
}
