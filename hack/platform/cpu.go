package platform

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// CPU is the processor time in seconds, since its start, of each role, of each of their children by name, and of the
// control plane ("devcluster"), the ended children of each included (proc(5), stat: utime, stime, cutime, cstime).
func (p *Platform) CPU() map[string]float64 {
	all := map[string]float64{}
	p.processes(func(name string, _ int, stat []string) {
		var ticks int64
		for _, field := range stat[11:15] {
			if n, err := strconv.ParseInt(field, 10, 64); err == nil {
				ticks += n
			}
		}
		all[name] += float64(ticks) / 100 // USER_HZ
	})
	return all
}

// Pids are the processes that CPU counts, by the same names.
func (p *Platform) Pids() map[string][]int {
	all := map[string][]int{}
	p.processes(func(name string, pid int, _ []string) { all[name] = append(all[name], pid) })
	return all
}

// processes gives the name, the pid and the rest of the stat line of each of the platform's processes.
func (p *Platform) processes(f func(name string, pid int, stat []string)) {
	roles := map[int]string{}
	p.mu.Lock()
	for role, pr := range p.proc {
		roles[pr.cmd.Process.Pid] = role
	}
	p.mu.Unlock()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return
	}
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
		var pid, parent int
		comm, stat := string(data[open+1:end]), strings.Fields(string(data[end+1:]))
		if len(stat) < 15 {
			continue
		}
		if _, err := fmt.Sscan(string(data[:open])+" "+stat[1], &pid, &parent); err != nil {
			continue
		}
		switch {
		case roles[pid] != "":
			f(roles[pid], pid, stat)
		case roles[parent] != "", parent == os.Getpid() && comm == "devcluster":
			f(comm, pid, stat)
		}
	}
}
