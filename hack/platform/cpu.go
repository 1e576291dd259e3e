package platform

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// CPU is the processor time in seconds, since its start, of each role, of each of their children by name, and of the
// control plane ("devcluster"), the ended children of each included (proc(5), stat: utime, stime, cutime, cstime).
func (p *Platform) CPU() map[string]float64 {
	names := map[string]string{}
	p.mu.Lock()
	for role, pr := range p.proc {
		names[fmt.Sprint(pr.cmd.Process.Pid)] = role
	}
	p.mu.Unlock()
	all := map[string]float64{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	self := fmt.Sprint(os.Getpid())
	for _, s := range stats {
		data, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		// pid (comm) state ppid …
		open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
		if open < 0 || end < open {
			continue
		}
		pid, comm, f := strings.TrimSpace(string(data[:open])), string(data[open+1:end]), strings.Fields(string(data[end+1:]))
		if len(f) < 15 {
			continue
		}
		name := names[pid]
		switch {
		case name != "":
		case names[f[1]] != "", f[1] == self && comm == "devcluster":
			name = comm
		default:
			continue
		}
		var ticks int64
		for _, field := range f[11:15] {
			var n int64
			if _, err := fmt.Sscan(field, &n); err == nil {
				ticks += n
			}
		}
		all[name] += float64(ticks) / 100 // USER_HZ
	}
	return all
}
