package guest

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const asProgram = "GUEST_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		Main(func(*slog.Logger) (Agent, error) { return nil, errors.New("it was started") })
		return
	}
	os.Exit(m.Run())
}

// Who starts the agent on a machine that is no guest is told so, and the machine goes on. Nobody's user may not end a
// machine: should the agent try, the test survives it.
func TestNotTheFirstProcess(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	if os.Geteuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "is a virtual machine's first process") ||
		strings.Contains(string(out), "power off") || strings.Contains(string(out), "it was started") {
		t.Errorf("%v: %s", err, out)
	}
}
