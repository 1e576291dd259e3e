package provider

import (
	"context"
	"fmt"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"cumulet.io/cis"
)

// samples keeps the last processor reading of each running container, to tell rates from.
type samples struct {
	mu   sync.Mutex
	last map[string]sample
}

type sample struct {
	at   time.Time
	cpu  uint64
	rate *uint64
}

// rates gives the processor use of each container in nanocores since its last reading, keyed "instance/container"; nil where
// there was none. Readings of containers that are gone are dropped.
func (s *samples) rates(all []usage) map[string]*uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]sample{}
	out := map[string]*uint64{}
	for _, u := range all {
		for _, c := range u.stats.Containers {
			id := u.stats.Instance + "/" + c.Name
			now := sample{at: u.stats.Time, cpu: c.CPUNanoseconds}
			old, ok := s.last[id]
			span := now.at.Sub(old.at)
			switch {
			case ok && span >= time.Second && now.cpu >= old.cpu:
				rate := uint64(float64(now.cpu-old.cpu) / span.Seconds())
				now.rate = &rate
			case ok && now.cpu >= old.cpu:
				now = old // too close to tell a rate from
			}
			next[id], out[id] = now, now.rate
		}
	}
	s.last = next
	return out
}

// usage is what the instance of a pod uses.
type usage struct {
	pod   *corev1.Pod
	stats cis.Stats
}

// usages asks every org for the usage of its instances, and joins it with the pods that are known.
func (p *Provider) usages(ctx context.Context) ([]usage, error) {
	var all []usage
	for org := range p.orgs() {
		list, err := p.cfg.Services.StatsReader.Stats(ctx, org, nil)
		if err != nil {
			return nil, fmt.Errorf("usage of the instances of %s: %w", org, err)
		}
		p.mu.Lock()
		for _, s := range list {
			t := p.pods[p.instances[s.Instance]]
			if t != nil && t.org == org && t.pod != nil {
				all = append(all, usage{pod: t.pod, stats: s})
			}
		}
		p.mu.Unlock()
	}
	return all, nil
}

// GetStatsSummary answers /stats/summary: the node's numbers are the sums of its pods'.
func (p *Provider) GetStatsSummary(ctx context.Context) (*stats.Summary, error) {
	all, err := p.usages(ctx)
	if err != nil {
		return nil, asErrdefs(err)
	}
	rates := p.samples.rates(all)
	now := metav1.Now()
	sum := &stats.Summary{Node: stats.NodeStats{NodeName: p.cfg.Node, StartTime: metav1.NewTime(p.started), CPU: newCPU(now), Memory: newMemory(now)}}
	for _, u := range all {
		at := metav1.NewTime(u.stats.Time)
		ps := stats.PodStats{
			PodRef:    stats.PodReference{Name: u.pod.Name, Namespace: u.pod.Namespace, UID: string(u.pod.UID)},
			StartTime: metav1.NewTime(u.stats.StartTime), CPU: newCPU(at), Memory: newMemory(at),
		}
		var disk uint64
		for _, c := range u.stats.Containers {
			cs := stats.ContainerStats{Name: c.Name, StartTime: metav1.NewTime(c.StartTime), CPU: newCPU(at), Memory: newMemory(at),
				Rootfs: &stats.FsStats{Time: at, UsedBytes: pointer(c.DiskBytes)}}
			*cs.CPU.UsageCoreNanoSeconds = c.CPUNanoseconds
			cs.CPU.UsageNanoCores = rates[u.stats.Instance+"/"+c.Name]
			*cs.Memory.WorkingSetBytes = c.MemoryBytes
			cs.Memory.UsageBytes = pointer(c.MemoryBytes)
			disk += c.DiskBytes
			addUse(ps.CPU, ps.Memory, cs.CPU, cs.Memory)
			ps.Containers = append(ps.Containers, cs)
		}
		ps.EphemeralStorage = &stats.FsStats{Time: at, UsedBytes: &disk}
		if u.stats.RxBytes > 0 || u.stats.TxBytes > 0 {
			ps.Network = &stats.NetworkStats{Time: at, InterfaceStats: stats.InterfaceStats{Name: "eth0", RxBytes: pointer(u.stats.RxBytes), TxBytes: pointer(u.stats.TxBytes)}}
		}
		addUse(sum.Node.CPU, sum.Node.Memory, ps.CPU, ps.Memory)
		sum.Pods = append(sum.Pods, ps)
	}
	return sum, nil
}

func pointer[T any](v T) *T { return &v }

func newCPU(at metav1.Time) *stats.CPUStats {
	return &stats.CPUStats{Time: at, UsageCoreNanoSeconds: new(uint64)}
}

func newMemory(at metav1.Time) *stats.MemoryStats {
	return &stats.MemoryStats{Time: at, WorkingSetBytes: new(uint64)}
}

// addUse adds a part's use to the whole's.
func addUse(cpu *stats.CPUStats, memory *stats.MemoryStats, partCPU *stats.CPUStats, partMemory *stats.MemoryStats) {
	*cpu.UsageCoreNanoSeconds += *partCPU.UsageCoreNanoSeconds
	if partCPU.UsageNanoCores != nil {
		if cpu.UsageNanoCores == nil {
			cpu.UsageNanoCores = new(uint64)
		}
		*cpu.UsageNanoCores += *partCPU.UsageNanoCores
	}
	*memory.WorkingSetBytes += *partMemory.WorkingSetBytes
}

// GetMetricsResource answers /metrics/resource with the kubelet's metrics, that metrics-server reads.
func (p *Provider) GetMetricsResource(ctx context.Context) ([]*dto.MetricFamily, error) {
	all, err := p.usages(ctx)
	if err != nil {
		return nil, asErrdefs(err)
	}
	counter, gauge := dto.MetricType_COUNTER, dto.MetricType_GAUGE
	var (
		nodeCPU        = family("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", counter)
		nodeMemory     = family("node_memory_working_set_bytes", "Current working set of the node in bytes", gauge)
		podCPU         = family("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", counter)
		podMemory      = family("pod_memory_working_set_bytes", "Current working set of the pod in bytes", gauge)
		containerCPU   = family("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", counter)
		containerMem   = family("container_memory_working_set_bytes", "Current working set of the container in bytes", gauge)
		containerStart = family("container_start_time_seconds", "Start time of the container since unix epoch in seconds", gauge)
		scrape         = family("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", gauge)
	)
	var cpuSum, memorySum float64
	for _, u := range all {
		var cpu, memory float64
		at := u.stats.Time
		for _, c := range u.stats.Containers {
			seconds, bytes := float64(c.CPUNanoseconds)/1e9, float64(c.MemoryBytes)
			cpu, memory = cpu+seconds, memory+bytes
			labels := []string{"container", c.Name, "namespace", u.pod.Namespace, "pod", u.pod.Name}
			add(containerCPU, seconds, at, labels...)
			add(containerMem, bytes, at, labels...)
			if !c.StartTime.IsZero() {
				add(containerStart, float64(c.StartTime.UnixNano())/1e9, time.Time{}, labels...)
			}
		}
		labels := []string{"namespace", u.pod.Namespace, "pod", u.pod.Name}
		add(podCPU, cpu, at, labels...)
		add(podMemory, memory, at, labels...)
		cpuSum, memorySum = cpuSum+cpu, memorySum+memory
	}
	now := time.Now()
	add(nodeCPU, cpuSum, now)
	add(nodeMemory, memorySum, now)
	add(scrape, 0, time.Time{})
	families := []*dto.MetricFamily{nodeCPU, nodeMemory, scrape}
	for _, f := range []*dto.MetricFamily{podCPU, podMemory, containerCPU, containerMem, containerStart} {
		if len(f.Metric) > 0 {
			families = append(families, f)
		}
	}
	return families, nil
}

func family(name, help string, kind dto.MetricType) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
}

// add adds a reading; labels are pairs of name and value.
func add(f *dto.MetricFamily, v float64, at time.Time, labels ...string) {
	m := &dto.Metric{}
	if f.GetType() == dto.MetricType_COUNTER {
		m.Counter = &dto.Counter{Value: &v}
	} else {
		m.Gauge = &dto.Gauge{Value: &v}
	}
	if !at.IsZero() {
		m.TimestampMs = pointer(at.UnixMilli())
	}
	for i := 0; i+1 < len(labels); i += 2 {
		m.Label = append(m.Label, &dto.LabelPair{Name: &labels[i], Value: &labels[i+1]})
	}
	f.Metric = append(f.Metric, m)
}
