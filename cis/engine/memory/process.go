package memory

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// process is a command at work in a container. It needs no goroutine: it runs until it must wait, and goes on from a
// timer or a signal. Everything of it is guarded by its instance's lock.
type process struct {
	c      *container
	frames []frame
	status int
	// shell tells a script, which as a container's first process ignores the TERM that it does not trap; a plain
	// command ends on it, with code 143, the image's own one with 0.
	shell, image bool
	traps        map[string]string
	pendingTerm  bool

	blocked  bool // waits for a timer or for ever
	waiting  bool // in the wait builtin: a trap interrupts it
	jobs     int  // sleeps in the background
	timer    *time.Timer
	done     bool
	code     int
	reason   string
	stdout   func(string)
	stderr   func(string)
	terminal func() (rows, cols uint16, ok bool)
	exited   func()
}

type frame struct {
	list []statement
	pc   int
}

// newProcess prepares a command line; an error means that the program cannot be started.
func (c *container) newProcess(argv []string) (*process, error) {
	p := &process{c: c, traps: map[string]string{}, stdout: func(string) {}, stderr: func(string) {}, exited: func() {}}
	switch {
	case len(argv) == 0:
		p.image = true
		p.frames = []frame{{list: []statement{{op: ";", words: []string{"pause"}}}}}
	case (argv[0] == "sh" || argv[0] == "/bin/sh") && len(argv) >= 3 && argv[1] == "-c":
		list, err := parse(argv[2])
		if err != nil {
			list = []statement{{op: ";", words: []string{"echo", quote(err.Error())}, redirects: []redirect{{fd: 1, target: "&2"}}}, {op: ";", words: []string{"exit", "2"}}}
		}
		p.shell, p.frames = true, []frame{{list: list}}
	default:
		if !slices.Contains(commands(), argv[0]) {
			return nil, fmt.Errorf("exec: %q: executable file not found in $PATH", argv[0])
		}
		words := make([]string, len(argv))
		for i, a := range argv {
			words[i] = quote(a)
		}
		p.frames = []frame{{list: []statement{{op: ";", words: words}}}}
	}
	return p, nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// commands are the programs that every image of this engine has.
func commands() []string {
	return []string{"cat", "echo", "env", "exit", "fail", "false", "hostname", "httpd", "id", "nc", "pause", "pwd", "rm", "sleep", "stty", "tail", "test", "touch", "true"}
}

// run works until the process ends or waits.
func (p *process) run() {
	for steps := 0; !p.done && !p.blocked; steps++ {
		if p.pendingTerm {
			p.pendingTerm = false
			if list, err := parse(p.traps["TERM"]); err == nil {
				p.frames = append(p.frames, frame{list: list})
			}
		}
		top := &p.frames[len(p.frames)-1]
		if top.pc == len(top.list) {
			p.frames = p.frames[:len(p.frames)-1]
			if len(p.frames) == 0 {
				p.end(p.status, "")
			}
			continue
		}
		st := &top.list[top.pc]
		top.pc++
		if st.op == "&&" && p.status != 0 || st.op == "||" && p.status == 0 {
			continue
		}
		p.command(st)
	}
}

func (p *process) end(code int, reason string) {
	if p.done {
		return
	}
	p.done, p.code, p.reason, p.blocked = true, code&0xff, reason, false
	if p.timer != nil {
		p.timer.Stop()
	}
	p.exited()
}

// term delivers TERM.
func (p *process) term() {
	handler, trapped := p.traps["TERM"]
	switch {
	case p.done, trapped && handler == "":
	case trapped:
		p.pendingTerm = true
		if p.waiting {
			p.waiting, p.blocked = false, false
			p.run()
		}
	case p.image:
		p.end(0, "")
	case !p.shell:
		p.end(143, "")
	}
}

func (p *process) kill() { p.end(137, "") }

// block waits: for ever, or for d and then goes on.
func (p *process) block(d time.Duration) {
	p.blocked = true
	if d < 0 {
		return
	}
	i := p.c.inst
	p.timer = time.AfterFunc(d, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if !p.done {
			p.blocked = false
			p.run()
		}
	})
}

func (p *process) variable(name string) string {
	if name == "?" {
		return strconv.Itoa(p.status)
	}
	return p.c.env[name]
}

func (p *process) command(st *statement) {
	argv := make([]string, len(st.words))
	for i, w := range st.words {
		argv[i] = expand(w, p.variable)
	}
	stdout, stderr := p.stdout, p.stderr
	for _, r := range st.redirects {
		var to func(string)
		switch target := expand(r.target, p.variable); target {
		case "&1":
			to = stdout
		case "&2":
			to = stderr
		default:
			err := p.c.write(target, "", r.app)
			if err != nil {
				stderr("sh: can't create " + target + ": " + err.Error() + "\n")
				p.status = 1
				return
			}
			to = func(text string) { _ = p.c.write(target, text, true) } //nolint:errcheck // a full disk cuts, as in a shell without set -e
		}
		if r.fd == 1 {
			stdout = to
		} else {
			stderr = to
		}
	}
	p.status = p.builtin(argv, st.background, stdout, stderr)
}

// builtin carries out one command.
func (p *process) builtin(argv []string, background bool, stdout, stderr func(string)) int {
	if argv[0] == "exec" && len(argv) > 1 {
		argv = argv[1:]
		p.shell = false
	}
	args := argv[1:]
	arg := func(n int) string {
		if n < len(args) {
			return args[n]
		}
		return ""
	}
	switch argv[0] {
	case "true", ":":
	case "false", "fail":
		return 1
	case "exit":
		code := p.status
		if len(args) > 0 {
			code, _ = strconv.Atoi(args[0]) //nolint:errcheck // not a number is 0
		}
		p.end(code, "")
	case "echo":
		stdout(strings.Join(args, " ") + "\n")
	case "env":
		for _, k := range slices.Sorted(maps.Keys(p.c.env)) {
			stdout(k + "=" + p.c.env[k] + "\n")
		}
	case "hostname":
		stdout(p.c.inst.in.Spec.Hostname + "\n")
	case "pwd":
		stdout(p.c.workingDir() + "\n")
	case "id":
		uid, gid := p.c.user()
		if arg(0) == "-g" {
			uid = gid
		}
		stdout(strconv.FormatInt(uid, 10) + "\n")
	case "trap":
		p.traps[arg(1)] = arg(0)
	case "sleep":
		seconds, err := strconv.ParseFloat(strings.TrimSuffix(arg(0), "s"), 64)
		switch {
		case err != nil || seconds < 0:
			stderr("sleep: invalid number '" + arg(0) + "'\n")
			return 1
		case background:
			p.jobs++
		default:
			p.block(time.Duration(min(seconds, 1e9) * float64(time.Second)))
		}
	case "wait":
		if p.jobs > 0 {
			p.waiting = true
			p.block(-1)
		}
	case "pause":
		p.block(-1)
	case "nc", "httpd": // nc -l -p PORT, httpd -f -p PORT
		if n := slices.Index(args, "-p"); n >= 0 {
			if port, err := strconv.ParseUint(arg(n+1), 10, 16); err == nil {
				p.c.listens = append(p.c.listens, uint16(port))
			}
		}
		p.block(-1)
	case "tail":
		if arg(0) == "/dev/zero" {
			p.end(137, "OOMKilled")
			return 137
		}
		return p.cat(args, stdout, stderr)
	case "cat":
		return p.cat(args, stdout, stderr)
	case "touch":
		return p.each(args, "touch", stderr, func(path string) error { return p.c.write(path, "", true) })
	case "rm":
		return p.each(slices.DeleteFunc(args, func(a string) bool { return a == "-f" }), "rm", stderr, p.c.remove)
	case "test":
		return p.test(args)
	case "stty":
		rows, cols, ok := p.size()
		if !ok {
			stderr("stty: standard input: not a tty\n")
			return 1
		}
		stdout(fmt.Sprintf("%d %d\n", rows, cols))
	default:
		stderr("sh: " + argv[0] + ": not found\n")
		return 127
	}
	return 0
}

func (p *process) size() (rows, cols uint16, ok bool) {
	if p.terminal == nil {
		return 0, 0, false
	}
	return p.terminal()
}

func (p *process) cat(args []string, stdout, stderr func(string)) int {
	return p.each(args, "cat", stderr, func(path string) error {
		data, err := p.c.read(path)
		stdout(data)
		return err
	})
}

func (p *process) each(paths []string, name string, stderr func(string), f func(string) error) int {
	status := 0
	for _, path := range paths {
		if err := f(path); err != nil {
			stderr(name + ": " + path + ": " + err.Error() + "\n")
			status = 1
		}
	}
	return status
}

func (p *process) test(args []string) int {
	ok := false
	switch {
	case len(args) == 2 && args[0] == "-t":
		_, _, ok = p.size()
	case len(args) == 2 && (args[0] == "-f" || args[0] == "-e"):
		_, err := p.c.read(args[1])
		ok = err == nil
	case len(args) == 2 && args[0] == "-n":
		ok = args[1] != ""
	case len(args) == 2 && args[0] == "-z":
		ok = args[1] == ""
	case len(args) == 3 && args[1] == "=":
		ok = args[0] == args[2]
	}
	if ok {
		return 0
	}
	return 1
}
