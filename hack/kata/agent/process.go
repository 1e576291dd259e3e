package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cumulet.io/hack/kata/agent/inside"
)

// process is a container's process, running or ended. Its streams are this end
// of pipes, or all one terminal's master, which then has no stderr.
type process struct {
	pid                   int
	stdin, stdout, stderr *os.File
	terminal              bool

	socket  *net.UnixConn // to package inside, until it has become the program
	decoder *json.Decoder

	exited chan struct{}
	code   int32 // once exited is closed

	closeOnce sync.Once
}

// drain is how long, after a process has ended, its output may stay silent
// until it counts as ended, too: another process may have it still.
const drain = 200 * time.Millisecond

// starter starts a process of a container.
type starter struct {
	job    inside.Job
	cgroup *cgroup
	flags  uintptr    // new namespaces
	pidNS  *os.File   // the PID namespace to be in; nil for the agent's, or a new one
	join   []*os.File // namespaces that the process itself enters
}

func (s *starter) start() (*process, error) {
	p := &process{terminal: s.job.Process.Terminal, exited: make(chan struct{})}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	// It lives as long as the container wants, not as long as a request.
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", inside.Command)
	cmd.ExtraFiles = append([]*os.File{theirs}, s.join...)
	s.job.Join = len(s.join)
	// The process's ends are closed here when it has them: their end is how we
	// hear of its.
	childEnds := []*os.File{theirs}
	dir, err := s.cgroup.open()
	if err != nil {
		ours.Close()
		theirs.Close()
		return nil, err
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: s.flags, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if !p.terminal {
		ends, err := p.pipes(cmd)
		if err != nil {
			ours.Close()
			theirs.Close()
			return nil, err
		}
		childEnds = append(childEnds, ends...)
	}
	err = startIn(cmd, s.pidNS)
	for _, f := range childEnds {
		f.Close()
	}
	if err != nil {
		ours.Close()
		p.close()
		return nil, fmt.Errorf("start process: %w", err)
	}
	p.pid, p.socket = cmd.Process.Pid, ours
	if err := p.prepare(s.job); err != nil {
		p.close() // which ends it, had it not ended by itself
		p.wait(cmd)
		return nil, err
	}
	go p.wait(cmd)
	return p, nil
}

// startIn starts the command in a PID namespace. A thread enters it for its
// children alone, and is not used again.
func startIn(cmd *exec.Cmd, pidNS *os.File) error {
	if pidNS == nil {
		return cmd.Start()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(int(pidNS.Fd()), unix.CLONE_NEWPID); err != nil {
			result <- fmt.Errorf("enter PID namespace: %w", err)
			return
		}
		result <- cmd.Start()
	}()
	return <-result
}

func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "process"), os.NewFile(uintptr(fds[1]), "agent")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// pipes makes the process's three streams.
func (p *process) pipes(cmd *exec.Cmd) (childEnds []*os.File, err error) {
	var files [6]*os.File
	for i := 0; i < len(files); i += 2 {
		if files[i], files[i+1], err = os.Pipe(); err != nil {
			for _, f := range files[:i] {
				f.Close()
			}
			return nil, err
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[3], files[5]
	p.stdin, p.stdout, p.stderr = files[1], files[2], files[4]
	return []*os.File{files[0], files[3], files[5]}, nil
}

// prepare sends the job and waits until the process is ready to become its
// program.
func (p *process) prepare(job inside.Job) error {
	if err := json.NewEncoder(p.socket).Encode(job); err != nil {
		return fmt.Errorf("send job to process: %w", err)
	}
	p.decoder = json.NewDecoder(readerFunc(p.readSocket))
	var result inside.Result
	if err := p.decoder.Decode(&result); err != nil {
		return fmt.Errorf("the process ended before it was the container's: %w", err)
	}
	if result.Error != "" {
		return errors.New(result.Error)
	}
	if p.terminal && p.stdout == nil {
		return errors.New("the process has made no terminal")
	}
	if job.Spec == nil {
		return p.became()
	}
	return nil
}

// begin starts a container's first process.
func (p *process) begin() error {
	if p.socket == nil {
		return errors.New("the container has been started already")
	}
	if err := json.NewEncoder(p.socket).Encode(inside.Start{}); err != nil {
		return fmt.Errorf("start the process: %w", err)
	}
	return p.became()
}

// became waits for execve, which closes the socket, or its failure.
func (p *process) became() error {
	var result inside.Result
	err := p.decoder.Decode(&result)
	p.socket.Close()
	p.socket = nil
	if err == nil {
		return errors.New(result.Error)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for execve: %w", err)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// readSocket reads from the process, and takes the terminal that may come along.
func (p *process) readSocket(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := p.socket.ReadMsgUnix(b, oob)
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, err // n is -1 then
	}
	if oobn == 0 {
		return n, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return n, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if err := unix.SetNonblock(fd, true); err != nil {
				return n, err
			}
			p.stdout = os.NewFile(uintptr(fd), "terminal")
			p.stdin = p.stdout
		}
	}
	return n, nil
}

// wait waits for the process's end.
func (p *process) wait(cmd *exec.Cmd) {
	err := cmd.Wait()
	state, ok := syscall.WaitStatus(0), false
	if cmd.ProcessState != nil {
		state, ok = cmd.ProcessState.Sys().(syscall.WaitStatus)
	}
	switch {
	case !ok:
		p.code = 255
		_ = err // there is nobody to tell; the code does
	case state.Signaled():
		p.code = 128 + int32(state.Signal())
	default:
		p.code = int32(state.ExitStatus())
	}
	close(p.exited)
	// Whoever waits for output now waits a little longer only.
	for _, f := range []*os.File{p.stdout, p.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drain)) // fails when closed
		}
	}
}

// close closes the agent's ends of the process's streams.
func (p *process) close() {
	p.closeOnce.Do(func() {
		for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
			if f != nil {
				f.Close()
			}
		}
		if p.socket != nil {
			p.socket.Close()
		}
	})
}

// namespace opens one of the process's namespaces.
func (p *process) namespace(name string) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.pid, name))
}
