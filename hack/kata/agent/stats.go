package agent

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"github.com/vishvananda/netlink"
)

// readStats reads a cgroup's file of "name value" lines; none from a file that
// is not there.
func readStats(path string) map[string]uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return parseStats(string(b))
}

func parseStats(s string) map[string]uint64 {
	stats := map[string]uint64{}
	for line := range strings.Lines(s) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			stats[name] = n
		}
	}
	return stats
}

// number reads a file of one number; "max", as a missing one, is 0.
func (g *cgroup) number(file string) uint64 {
	b, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// stats are in the terms of cgroup version 1, as the protocol has them: times in
// nanoseconds.
func (g *cgroup) stats() *pb.CgroupStats {
	cpu, mem := readStats(filepath.Join(g.dir, "cpu.stat")), readStats(filepath.Join(g.dir, "memory.stat"))
	const usec = 1000
	// What version 1 called so and who computes a working set from it asks for.
	if mem == nil {
		mem = map[string]uint64{}
	}
	mem["total_inactive_file"], mem["total_active_file"] = mem["inactive_file"], mem["active_file"]
	mem["total_rss"], mem["rss"] = mem["anon"], mem["anon"]
	return &pb.CgroupStats{
		CpuStats: &pb.CpuStats{
			CpuUsage: &pb.CpuUsage{
				TotalUsage: cpu["usage_usec"] * usec, UsageInUsermode: cpu["user_usec"] * usec, UsageInKernelmode: cpu["system_usec"] * usec,
			},
			ThrottlingData: &pb.ThrottlingData{
				Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * usec,
			},
		},
		MemoryStats: &pb.MemoryStats{
			Cache: mem["file"], Stats: mem,
			Usage: &pb.MemoryData{
				Usage: g.number("memory.current"), Limit: g.number("memory.max"), MaxUsage: g.number("memory.peak"),
				Failcnt: readStats(filepath.Join(g.dir, "memory.events"))["max"],
			},
			SwapUsage:   &pb.MemoryData{Usage: g.number("memory.current") + g.number("memory.swap.current"), Limit: g.number("memory.max")},
			KernelUsage: &pb.MemoryData{Usage: mem["kernel"]},
		},
		PidsStats:  &pb.PidsStats{Current: g.number("pids.current"), Limit: g.number("pids.max")},
		BlkioStats: &pb.BlkioStats{},
	}
}

// StatsContainer returns what a container uses; the network is the pod's.
func (a *Agent) StatsContainer(_ context.Context, r *pb.StatsContainerRequest) (*pb.StatsContainerResponse, error) {
	c, _, err := a.find(r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	resp := &pb.StatsContainerResponse{CgroupStats: c.cgroup.stats()}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		s := l.Attrs().Statistics
		if s == nil {
			continue
		}
		resp.NetworkStats = append(resp.NetworkStats, &pb.NetworkStats{
			Name:    l.Attrs().Name,
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		})
	}
	return resp, nil
}
