// Package inside is what a container's process does before it becomes the
// program that the container is for.
//
// The agent starts its own program again, in the container's cgroup and PID
// namespace; Main of this package makes the rest of the container around it: it
// mounts the root file system and leaves the guest's, drops what the process may
// not do, and calls execve(2). For a further process of a container it enters
// what is there already.
//
// The two talk by a socket, which is file descriptor 3: the agent sends a Job,
// the process answers with a Result and, for a terminal, its master's file
// descriptor. A container's first process then waits for a Start. The socket is closed by execve(2); had that failed, a second
// Result would tell.
package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
)

// Command is the argument by which the agent's program knows that it is to call
// Main.
const Command = "inside-container"

// Job is what the agent wants of the process.
type Job struct {
	Spec    *pb.Spec    // of a new container; else nil
	Process *pb.Process // what to run
	// Join are the file descriptors of the namespaces to enter, for a further
	// process: of cgroups and of mounts, in this order.
	Join int
}

// Start has a container's first process call execve(2).
type Start struct{}

// Result is empty for success.
type Result struct {
	Error string `json:"error,omitempty"`
}

const (
	socketFD = 3
	joinFD   = 4 // the first one
)

// Main never returns.
func Main() {
	runtime.LockOSThread()
	unix.CloseOnExec(socketFD)
	socket := os.NewFile(socketFD, "agent")
	err := run(socket)
	// Whoever should read it may be gone.
	_ = json.NewEncoder(socket).Encode(Result{Error: err.Error()})
	os.Exit(255)
}

func run(socket *os.File) error {
	decoder := json.NewDecoder(socket)
	var job Job
	if err := decoder.Decode(&job); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	p := job.Process
	if job.Spec != nil {
		if err := build(job.Spec); err != nil {
			return err
		}
	} else if err := join(job.Join); err != nil {
		return err
	}
	if p.Terminal {
		if err := openTerminal(p, socket, job.Spec != nil); err != nil {
			return err
		}
	}
	if job.Spec != nil {
		if err := restrict(job.Spec); err != nil {
			return err
		}
	}
	if err := enterDir(p.Cwd); err != nil {
		return err
	}
	path, err := lookup(p)
	if err != nil {
		return err
	}
	if err := become(p); err != nil {
		return err
	}
	if err := json.NewEncoder(socket).Encode(Result{}); err != nil {
		return fmt.Errorf("answer the agent: %w", err)
	}
	if job.Spec != nil {
		if err := decoder.Decode(&Start{}); err != nil {
			return fmt.Errorf("wait to be started: %w", err)
		}
	}
	return fmt.Errorf("exec %s: %w", path, unix.Exec(path, p.Args, p.Env))
}

// join enters the namespaces of a container.
func join(n int) error {
	// A thread that shares its root and working directory cannot change its
	// mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for fd := joinFD; fd < joinFD+n; fd++ {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter the container's namespace %d: %w", fd-joinFD, err)
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// enterDir makes the working directory where the image does not have it.
func enterDir(dir string) error {
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make working directory: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("change to working directory %s: %w", dir, err)
	}
	return nil
}
